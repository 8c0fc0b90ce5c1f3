"""What trained detectors learn from, and which layer they read, in one way for all of them.

The candidates are the layers 1 to L, each by itself: the embedding output (0) knows only the last
token. Train items teach; the validation items' AUROC chooses the layer. Of layers with the same
AUROC that with the lowest validation loss wins, and of those the lowest layer. With a few dozen
validation items AUROCs are coarse, and the loss does decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import StateDetector
from spikescore.errors import UserError
from spikescore.probes.layers import Layers
from spikescore.probes.linear import fit_sep_logistic
from spikescore.probes.probe import Probe
from spikescore.stats.roc import auroc

if TYPE_CHECKING:
    from spikescore.probes.network import Examples, Fit, NetworkFit


CLASSES = "hallucinated / consistent"


@dataclass(frozen=True)
class Lesson:
    """Rows to learn from: those of the train split, then those of the validation split.

    `features` is [n, L+1, H], or [n, d] where there are no layers; labels [n] are 0 and 1.
    """

    features: np.ndarray
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
        return [(layer,) for layer in range(1, self.features.shape[1])]

    @property
    def by_layer(self) -> list[np.ndarray]:
        """The candidates' rows [n, H], as views: no state is copied."""
        return [self.features[:, layer] for (layer,) in self.layers]

    def examples(self, target: np.ndarray | None = None) -> Examples:
        """Return the rows' numbers and labels as the trainers take them; target: else the labels.

        Labels choose on the validation split, and the target is what the loss learns.
        """
        from spikescore.probes.network import Examples

        return Examples(
            self.train, self.val, self.labels, self.labels if target is None else target
        )


def lesson(
    train: np.ndarray,
    val: np.ndarray,
    y_train: np.ndarray,
    y_val: np.ndarray,
    *,
    classes: str = CLASSES,
) -> Lesson:
    """Join the splits' rows and labels; UserError, with the counts, if a split lacks a class."""
    for split, y in (("train", y_train), ("validation", y_val)):
        ones, zeros = int((y == 1).sum()), int((y == 0).sum())
        if not (ones and zeros):
            raise UserError(
                f"the {split} split needs both classes, it has {classes}: {ones} / {zeros}; "
                "use more questions"
            )
    labels = np.concatenate([y_train, y_val]).astype(np.int64)
    return Lesson(np.concatenate([train, val]), labels, len(y_train))


def first_answers(train: Answers, val: Answers) -> Lesson:
    """Return the lesson of the first answers' states [n, L+1, H] and labels."""
    return lesson(train.first_states, val.first_states, train.y, val.y)


def present(arrays: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return which items [n] have an array, finite throughout, and those arrays stacked [m, ...].

    Without any, the stack is empty and of shape [0].
    """
    there = np.array([array is not None and np.isfinite(array).all() for array in arrays], bool)
    kept = [np.asarray(array) for array, known in zip(arrays, there, strict=True) if known]
    return there, np.stack(kept) if kept else np.empty(0)


def fit_logistic(
    features: Sequence[np.ndarray], layers: Sequence[Layers], examples: Examples
) -> Fit:
    """Fit a logistic regression on each layer's standardised rows [n, d]; return the best layer.

    L2 with C = 1. Best is the highest validation AUROC (of equal ones: the lowest cross-entropy).
    """
    return fit_sep_logistic(features, layers, examples)


@dataclass(frozen=True)
class Choice:
    """The chosen candidate's place, its validation AUROC, and the AUROCs of all candidates."""

    place: int
    auroc: float
    aurocs: list[float]


def choose(y: np.ndarray, scores: Sequence[np.ndarray], losses: Sequence[float]) -> Choice:
    """Choose among candidates by validation scores [n] each: AUROC, then lowest loss, then first.

    y [n] are the validation items' labels, of both classes.
    """
    aurocs = [auroc(y, np.asarray(row, dtype=np.float64)) for row in scores]
    place = max(range(len(aurocs)), key=lambda c: (aurocs[c], -losses[c], -c))
    return Choice(place, aurocs[place], aurocs)


class LayerReader(StateDetector):
    """A detector that is a small network, or one linear map, on the state of one layer.

    `chosen` gets the layer, its validation AUROC, and the best one of every layer (1 to L).
    """

    _layer: int
    _network: Probe | NetworkFit

    def keep(self, fit: Fit) -> None:
        """Take over what a trainer found to be best."""
        (self._layer,) = fit.layers
        self._network = as_network(fit)
        self.chosen |= told(fit)

    def score_states(self, states: np.ndarray) -> np.ndarray:
        return self._network.score(states[:, self._layer]).astype(np.float64)


def as_network(fit: Fit) -> Probe:
    """Return the best network with its standardisation; `score` takes features [m, d]."""
    return Probe("saplma", fit.best, mean=fit.mean, scale=fit.scale)


def told(fit: Fit) -> dict[str, object]:
    """Return what a fit chose, as plain values; the epoch only where there are epochs."""
    (layer,) = fit.layers
    areas = [max(areas) for areas in fit.val_auroc.values()]
    chosen: dict[str, object] = {"layer": layer, "val_auroc": fit.score[0]}
    if fit.epoch:
        chosen["epoch"] = fit.epoch
    return chosen | {"val_auroc_by_layer": areas}
