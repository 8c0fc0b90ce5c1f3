"""What every fit of a probe is given and gives back, whether a network or a logistic regression.

A fit has candidates: choices of layers, each with the features [n, d] that these layers give. Every
candidate is fitted by itself, from a start and with a stop of its own, so that its result does not
depend on which others were tried; the validation split chooses among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from spikescore.probes.layers import Layers, layers_text


@dataclass
class Examples:
    """What is learned: item numbers per split, labels [n] of 0 and 1 to choose by, targets [n]."""

    train: np.ndarray
    val: np.ndarray
    labels: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Recipe:
    """A network d-hidden-1 and how it is trained.

    After each hidden linear layer come `norm` ("batch", "layer" or none), `activation` ("relu",
    "leaky_relu" or "mish") and dropout; `sigmoid` stands at the end. `loss` is one of
    `losses.LOSSES`. Adam takes `weight_decay` as an L2 penalty, or as AdamW does where `decoupled`.
    Training stops when validation has not improved for `patience` epochs (0: never).
    """

    name: str
    hidden: tuple[int, ...]
    epochs: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    decoupled: bool = False
    patience: int = 0
    activation: str = "relu"
    norm: str = ""
    dropout: float = 0.0
    input_dropout: float = 0.0
    sigmoid: bool = True
    loss: str = "cross_entropy"


SAPLMA = Recipe("saplma", (256, 128, 64), epochs=5)
"""Azaria and Mitchell (2023)."""
SEP_MLP = Recipe(
    "sep-mlp",
    (1024, 512, 128),
    epochs=200,
    batch_size=64,
    learning_rate=1e-4,
    weight_decay=0.01,
    decoupled=True,
    patience=20,
    activation="mish",
    norm="layer",
    sigmoid=False,
    loss="huber",
)
"""As the public release trains its probes."""


@dataclass
class Fit:
    """A candidate at its best epoch, and as it was when training ended.

    `best` and `last` are a probe's lists of operations (see `probe.Probe`), `score` is (validation
    AUROC, minus validation loss) at the best epoch, 0 where there are no epochs. `aurocs` has the
    validation AUROC of every epoch, `val_auroc` that of every candidate, by the text of its layers;
    `tried` holds all candidates where they are small enough to be kept.
    """

    layers: Layers
    score: tuple[float, float]
    best: list[tuple]
    last: list[tuple]
    mean: np.ndarray | None
    scale: np.ndarray | None
    aurocs: list[float]
    epoch: int = 0
    last_epoch: int = 0
    val_auroc: dict[str, list[float]] = field(default_factory=dict)
    tried: Sequence[Fit] = ()


def best_of(fits: Iterable[Fit]) -> Fit:
    """Return the candidate of the highest validation AUROC; of equal ones the lowest loss wins,
    then the first. Of the others only AUROCs are kept, where the fits come one by one.
    """
    areas: dict[str, list[float]] = {}

    def noted() -> Iterator[Fit]:
        for fit in fits:
            if fit.layers:
                areas[layers_text(fit.layers)] = fit.aurocs
            yield fit

    chosen = max(noted(), key=lambda fit: fit.score)
    chosen.val_auroc = areas
    return chosen


BLOCK_BYTES = 2**28
"""Rows of examples, in float64, that are in memory at a time."""


def in_blocks(items: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Cut item numbers [n], of rows of a width, into blocks of BLOCK_BYTES; one block at least."""
    at_once = max(1, BLOCK_BYTES // (8 * width))
    for start in range(0, max(1, len(items)), at_once):
        yield items[start : start + at_once]


def normaliser(rows: np.ndarray, items: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation [...] of rows [n, ...], or of the items named of them:
    float32, a constant keeps 1.
    """
    items = np.arange(len(rows)) if items is None else items
    blocks = list(in_blocks(items, max(1, rows[0].size)))
    if len(blocks) == 1:
        only = rows[items].astype(np.float32)
        mean, deviation = only.mean(axis=0), only.std(axis=0)
    else:
        mean = sum(rows[some].sum(axis=0, dtype=np.float64) for some in blocks) / len(items)
        apart = (rows[some] - mean for some in blocks)
        squares = sum(np.square(one, out=one).sum(axis=0) for one in apart)
        mean, deviation = mean.astype(np.float32), np.sqrt(squares / len(items)).astype(np.float32)
    return mean, np.where(deviation > 1e-6, deviation, np.float32(1))
