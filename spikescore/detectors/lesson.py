"""What trained detectors learn from, and which layer they read, in one way for all of them.

The candidates are the layers 1 to L, each by itself: the embedding output (0) knows only the last
token. Train items teach; the validation items' AUROC chooses the layer. Of layers with the same
AUROC that with the lowest validation loss wins, and of those the lowest layer. With a few dozen
validation items AUROCs are coarse, and the loss does decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import StateDetector
from spikescore.errors import UserError
from spikescore.measures.file import HOLDS
from spikescore.probes.fit import Examples, Fit
from spikescore.probes.layers import Layers
from spikescore.probes.probe import Probe

AT_ONCE = 64
"""Items whose arrays of all layers are together in memory."""
CLASSES = "hallucinated / consistent"


@dataclass(frozen=True)
class Lesson:
    """Rows to learn from: those of the train split, then those of the validation split.

    `features` is [n, d], or where there are layers [n, L+1, H], or a list of n arrays [L+1, H] (or
    of several such), which stay where they are until a layer or a block of them is asked for.
    Labels [n] are 0 and 1.
    """

    features: np.ndarray | list[Any]
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
        return len(self.features[0])

    @property
    def by_layer(self) -> Iterator[np.ndarray]:
        """The candidates' rows [n, H], one candidate's at a time."""
        return (self.layer(layer) for (layer,) in self.layers)

    def layer(self, layer: int) -> np.ndarray:
        """Return the rows [n, H] of a layer, 0 to L."""
        if isinstance(self.features, np.ndarray):
            return self.features[:, layer]
        return np.stack([one[layer] for one in self.features])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the rows of all layers [m, L+1, H], some of them at a time."""
        for start in range(0, len(self.features), AT_ONCE):
            yield np.stack(self.features[start : start + AT_ONCE])

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
    rows = [*train.first_rows(), *val.first_rows()]
    return Lesson(rows, _labels(y_train, y_val, classes), len(train))


def measured_lesson(train: Answers, val: Answers, *names: str) -> Lesson:
    """Return the lesson of what was measured of first answers (`measured`); items without it are
    left out. UserError when a split has none, or lacks a class.
    """
    (known, rows), (val_known, val_rows) = (measured_rows(part, *names) for part in (train, val))
    if not (known.any() and val_known.any()):
        told = " and ".join(f'"{name}"' for name in names)
        groups = [group for group, held in HOLDS.items() if names[0] in held.get("first", ())]
        raise UserError(
            f"no {told} measured of these answers; run scripts/measure_answers.py --groups "
            f"{','.join(groups)}"
        )
    return Lesson([*rows, *val_rows], _labels(train.y[known], val.y[val_known]), len(rows))


def measured_rows(items: Answers, *names: str) -> tuple[np.ndarray, list[Any]]:
    """Return which items [n] have an array measured under each name, finite throughout, and of
    these items the array, or for several names the tuple of them, where it lies.
    """
    known, kept = [], []
    for arrays in zip(*(items.measured_arrays(name) for name in names), strict=True):
        there = all(array is not None and np.isfinite(array).all() for array in arrays)
        known.append(there)
        if there:
            kept.append(arrays if len(names) > 1 else np.asarray(arrays[0]))
    return np.array(known, bool), kept


def measured(items: Answers, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what `measured_rows` does, as one array: [m, ...], or for several names [m, names,
    ...]. Without any it is of shape [0].
    """
    known, rows = measured_rows(items, *names)
    return known, np.stack([np.stack(row) for row in rows]) if rows else np.empty(0)


def some_at_a_time(items: Answers) -> Iterator[tuple[np.ndarray, Answers]]:
    """Yield the items in parts of AT_ONCE, each with its places."""
    for start in range(0, len(items), AT_ONCE):
        places = np.arange(start, min(start + AT_ONCE, len(items)))
        yield places, items.select(places)


def score_measured(
    items: Answers, name: str, score: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the scores of the arrays [m, ...] measured under a name, NaN where there are none:
    float64 [n].
    """
    scores = np.full(len(items), np.nan)
    for places, part in some_at_a_time(items):
        known, rows = measured(part, name)
        if known.any():
            scores[places[known]] = score(rows)
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
