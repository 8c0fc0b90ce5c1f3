"""What trained detectors learn from, and which layer they read, in one way for all of them.

The candidates are the layers 1 to L, each by itself: the embedding output (0) knows only the last
token. Train items teach; the validation items' AUROC chooses the layer. Of layers with the same
AUROC that with the lowest validation loss wins, and of those the lowest layer. With a few dozen
validation items AUROCs are coarse, and the loss does decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import StateDetector
from spikescore.errors import UserError
from spikescore.measures.file import HOLDS
from spikescore.probes.fit import Examples, Fit
from spikescore.probes.layers import Layers
from spikescore.probes.probe import Probe

CLASSES = "hallucinated / consistent"


@dataclass(frozen=True)
class Lesson:
    """Rows to learn from: those of the train split, then those of the validation split.

    `features` is [n, L+1, H], or [n, d] where there are no layers; of first answers' states it is
    the items, whose states stay where they are until a layer or a block of them is asked for.
    Labels [n] are 0 and 1.
    """

    features: np.ndarray | tuple[Answers, Answers]
    labels: np.ndarray
    n_train: int

    @property
    def train(self) -> np.ndarray:
        """Places of the train rows."""
        return np.arange(self.n_train)

    @property
    def val(self) -> np.ndarray:
        """Places of the validation rows."""
        return np.arange(self.n_train, len(self.labels))

    @property
    def layers(self) -> list[Layers]:
        """The candidates (1,) to (L,)."""
        return [(layer,) for layer in range(1, self.n_states)]

    @property
    def n_states(self) -> int:
        """L+1."""
        return next(self.blocks()).shape[1]

    @property
    def by_layer(self) -> Iterator[np.ndarray]:
        """The candidates' rows [n, H], one candidate's at a time."""
        return (self.layer(layer) for (layer,) in self.layers)

    def layer(self, layer: int) -> np.ndarray:
        """Return the rows [n, H] of a layer, 0 to L."""
        if isinstance(self.features, np.ndarray):
            return self.features[:, layer]
        return np.concatenate([part.first_layer(layer) for part in self.features])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the rows of all layers [m, L+1, H], some of them at a time."""
        if isinstance(self.features, np.ndarray):
            yield self.features
        else:
            for part in self.features:
                yield from part.first_blocks()

    def examples(self, target: np.ndarray | None = None) -> Examples:
        """Return the rows' numbers and labels as the trainers take them; target: else the labels.

        Labels choose on the validation split, and the target is what the loss learns.
        """
        target = self.labels if target is None else target
        return Examples(self.train, self.val, self.labels, target)


def lesson(train: np.ndarray, val: np.ndarray, y_train: np.ndarray, y_val: np.ndarray) -> Lesson:
    """Join the splits' rows and labels; UserError, with the counts, if a split lacks a class."""
    labels = _labels(y_train, y_val)
    return Lesson(np.concatenate([train, val]), labels, len(y_train))


def _labels(y_train: np.ndarray, y_val: np.ndarray, classes: str = CLASSES) -> np.ndarray:
    """Join the splits' labels; UserError, with the counts, if one lacks a class."""
    for split, y in (("train", y_train), ("validation", y_val)):
        ones, zeros = int((y == 1).sum()), int((y == 0).sum())
        if not (ones and zeros):
            raise UserError(
                f"the {split} split needs both classes, it has {classes}: {ones} / {zeros}; "
                "use more questions"
            )
    return np.concatenate([y_train, y_val]).astype(np.int64)


def first_answers(
    train: Answers,
    val: Answers,
    labels: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    classes: str = CLASSES,
) -> Lesson:
    """Return the lesson of the first answers' states [n, L+1, H] and their labels, or others."""
    y_train, y_val = labels or (train.y, val.y)
    return Lesson((train, val), _labels(y_train, y_val, classes), len(train))


def measured_lesson(train: Answers, val: Answers, *names: str) -> Lesson:
    """Return the lesson of what was measured of first answers (`measured`); items without it are
    left out. UserError when a split has none, or lacks a class.
    """
    (known, rows), (val_known, val_rows) = (measured(part, *names) for part in (train, val))
    if not (known.any() and val_known.any()):
        told = " and ".join(f'"{name}"' for name in names)
        groups = [group for group, held in HOLDS.items() if names[0] in held.get("first", ())]
        raise UserError(
            f"no {told} measured of these answers; run scripts/measure_answers.py --groups "
            f"{','.join(groups)}"
        )
    return lesson(rows, val_rows, train.y[known], val.y[val_known])


def measured(items: Answers, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which items [n] have an array measured under each name, finite throughout, and those
    arrays: [m, ...], or for several names [m, names, ...]. Without any it is of shape [0].
    """
    found = zip(*(items.measured_arrays(name) for name in names), strict=True)
    known, kept = [], []
    for arrays in found:
        there = all(array is not None and np.isfinite(array).all() for array in arrays)
        known.append(there)
        if there:
            kept.append(np.stack(arrays) if len(names) > 1 else np.asarray(arrays[0]))
    return np.array(known, bool), np.stack(kept) if kept else np.empty(0)


def score_known(
    known: np.ndarray, rows: np.ndarray, score: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the scores of the m known items' rows [m, ...], NaN for the others: float64 [n]."""
    scores = np.full(len(known), np.nan)
    if known.any():
        scores[known] = score(rows)
    return scores


class LayerReader(StateDetector):
    """A detector that is a small network, or one linear map, on the state of one layer.

    `chosen` gets the layer, its validation AUROC, and the best one of every layer (1 to L).
    """

    family = "trained"
    _layer: int
    _network: Probe

    def keep(self, fit: Fit) -> None:
        """Take over what a trainer found to be best."""
        (self._layer,) = fit.layers
        self._network = as_network(fit)
        self.chosen |= told(fit)

    @property
    def read_layer(self) -> int:
        """The one layer that is read."""
        return self._layer

    def score_layer(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores of states [m, H] of that layer: float64 [m]."""
        return self._network.score(rows).astype(np.float64)

    def score_states(self, states: np.ndarray) -> np.ndarray:
        return self.score_layer(states[:, self._layer])


def as_network(fit: Fit) -> Probe:
    """Return the best network with its standardisation; `score` takes features [m, d]."""
    return Probe("saplma", fit.best, mean=fit.mean, scale=fit.scale)


def told(fit: Fit) -> dict[str, object]:
    """Return what a fit chose, as plain values; layers and epoch only where there are such."""
    chosen: dict[str, object] = {"val_auroc": fit.score[0]}
    if fit.epoch:
        chosen["epoch"] = fit.epoch
    if fit.layers:
        (chosen["layer"],) = fit.layers
        chosen["val_auroc_by_layer"] = [max(areas) for areas in fit.val_auroc.values()]
    return chosen
