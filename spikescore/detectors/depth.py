"""Detectors that compare the layers of a model with each other.

One takes the layers' intrinsic dimensions to choose which of them a probe reads, the other takes
how far their states are from each other for what a classifier reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import StateDetector
from spikescore.detectors.lesson import LayerReader, first_answers
from spikescore.detectors.networks import fit_saplma
from spikescore.errors import UserError
from spikescore.stats.roc import auroc

HORIZON = 7
"""Layers that FEPoID looks ahead, as its authors do."""
DISCARDED = 0.1
"""The share of points, those with the largest ratios, that TwoNN leaves out of its line."""
TEMPERATURES = (1.0, 3.0, 10.0, 30.0)
ROWS_AT_ONCE = 256
BYTES_AT_ONCE = 2**25


# --- intrinsic dimension ------------------------------------------------------------------------


class Fepoid(LayerReader):
    """SAPLMA's network at the first effective peak of the layers' intrinsic dimension (FEPoID).

    The dimension of a layer is TwoNN's (`intrinsic_dimension`) on the states of train and
    validation split together; no label and no AUROC chooses the layer (`first_effective_peak`).
    Higher = more hallucinated (a probability); the network is trained as `networks.Saplma` is.
    Source: Wang et al. (2026), "Automatic Layer Selection for Hallucination Detection", ICML, arXiv
    2605.26366, section 3.5, horizon 7. Their probe is another MLP, stopped at the lowest validation
    loss, and their second proposal, to read the last token of the first sentence, needs a state
    that stage 1 does not store. A curve without a peak, of which they say nothing, gives the layer
    of the highest dimension.
    """

    name, title = "saplma_fepoid", "SAPLMA, layer by FEPoID"
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        material = first_answers(train, val)
        dimensions = [intrinsic_dimension(rows) for rows in material.by_layer]
        layer = first_effective_peak(dimensions)
        self.keep(fit_saplma(material, seed, layer=layer))
        del self.chosen["val_auroc_by_layer"]  # of a single one
        self.chosen["intrinsic_dimensions"] = dimensions


def intrinsic_dimension(states: np.ndarray) -> float:
    """Return the intrinsic dimension of states [n, H] by TwoNN.

    With m_i = the distance of point i to its second nearest neighbour by that to its nearest,
    sorted, and F_i = (i - 1) / n, it is the slope of the line through the origin that fits
    -log(1 - F_i) over log m_i best, the largest tenth of the m_i left out. Points that lie on
    another have no m and are left out. Source: Facco et al. (2017), Scientific Reports 7:12140, as
    scikit-dimension computes it. UserError where fewer than three points differ.
    """
    points = np.unique(states.astype(np.float64), axis=0)
    if len(points) < 3:
        raise UserError("the states of a layer do not differ; check the states")
    points -= points.mean(axis=0)
    squares = np.square(points).sum(axis=1)
    ratios = []
    for first in range(0, len(points), ROWS_AT_ONCE):
        some = points[first : first + ROWS_AT_ONCE]
        near = squares[first : first + len(some), None] + squares - 2 * some @ points.T
        near[np.arange(len(some)), first + np.arange(len(some))] = np.inf
        nearest = np.argpartition(near, 1, axis=1)[:, :2]
        # by subtraction: the difference of large squares is not exact
        exact = np.linalg.norm(points[nearest] - some[:, None], axis=2)
        ratios.append(exact.max(axis=1) / exact.min(axis=1))
    logs = np.log(np.sort(np.concatenate(ratios))[: int(len(points) * (1 - DISCARDED))])
    heights = -np.log(1 - np.arange(len(logs)) / len(points))
    return float(heights @ logs / max(logs @ logs, 1e-300))


def first_effective_peak(dimensions: Sequence[float]) -> int:
    """Return the layer, counted from 1, of the first effective peak of a curve over layers 1 to L.

    A layer is a peak when both its neighbours lie below it. A peak does not count when within the
    HORIZON the curve rises from the next layer on, without a break, to above it. The first that
    counts is taken, or else the first, or else the layer of the highest value.
    """
    curve = np.asarray(dimensions, dtype=np.float64)
    inner = np.arange(1, len(curve) - 1)
    peaks = [at for at in inner if curve[at] > max(curve[at - 1], curve[at + 1])]
    for at in peaks:
        ahead = curve[at + 1 : at + 1 + HORIZON]
        if not (ahead[-1] > curve[at] and (np.diff(ahead) > 0).all()):
            return int(at) + 1
    return int(peaks[0] if peaks else curve.argmax()) + 1


# --- how far layers are from each other ---------------------------------------------------------


class LayerDivergence(StateDetector):
    """Boosted trees on KL(p_i || p_j) of every two layers i != j, p_i = softmax(z_i / T).

    z_i is the state after layer i at one token, and the softmax is over its H numbers: the L x L
    map tells how the layers agree, whatever the state's directions mean. Higher = more hallucinated
    (a probability). T is the one of TEMPERATURES, and the number of trees the one up to 100, with
    the highest validation AUROC (of equal ones the first). Source of the map: Badash, Belinkov and
    Freiman (2026), "Between the Layers Lies the Truth", arXiv 2603.22299, of which public texts
    tell the softmax with a temperature, the directed KL divergences of post-MLP activations and
    LightGBM. What they do not tell is set here, so figures may differ from theirs: the temperature;
    the trees (scikit-learn's, with LightGBM's defaults: 31 leaves, rate 0.1, of 20 items at least,
    on small splits of a thirtieth of them); and that the activation is the residual stream
    after a layer, the last one after the final norm. A further "contrast" of maps is not made.
    """

    name, title = "layer_divergence", "Layer divergence"
    family = "trained"

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        material = first_answers(train, val)
        y = material.labels
        best = (-1.0, 0.0, 0)
        areas = {}
        for temperature in TEMPERATURES:
            maps = np.concatenate(
                [divergence_maps(states, temperature) for states in material.blocks()]
            )
            trees = HistGradientBoostingClassifier(
                early_stopping=False,
                min_samples_leaf=min(20, max(1, material.n_train // 30)),
                random_state=seed,
            ).fit(maps[material.train], y[material.train])
            stages = trees.staged_predict_proba(maps[material.val])
            found = [auroc(y[material.val], stage[:, 1]) for stage in stages]
            number = int(np.argmax(found)) + 1
            areas[f"{temperature:g}"] = found[number - 1]
            if found[number - 1] > best[0]:
                best = (found[number - 1], temperature, number)
                self._trees = trees
        _, self._temperature, self._number = best
        self.chosen |= {
            "temperature": self._temperature,
            "trees": self._number,
            "val_auroc": best[0],
            "val_auroc_by_temperature": areas,
        }

    def score_states(self, states: np.ndarray) -> np.ndarray:
        maps = divergence_maps(states, self._temperature)
        for number, stage in enumerate(self._trees.staged_predict_proba(maps), start=1):
            if number == self._number:
                return stage[:, 1]
        raise AssertionError("fewer trees than were counted")


def divergence_maps(states: np.ndarray, temperature: float) -> np.ndarray:
    """Return KL(p_i || p_j), i != j, of the layers 1 to L of states [m, L+1, H], row by row of the
    map: float32 [m, L (L - 1)].
    """
    n_layers = states.shape[1] - 1
    apart = ~np.eye(n_layers, dtype=bool)
    found = []
    at_once = max(1, BYTES_AT_ONCE // (8 * states[0].size))
    for first in range(0, len(states), at_once):
        few = states[first : first + at_once, 1:]
        z = few.astype(np.float64) / temperature
        z -= z.max(axis=2, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=2, keepdims=True))
        p = np.exp(log_p)
        own = (p * log_p).sum(axis=2)
        found.append((own[:, :, None] - p @ log_p.transpose(0, 2, 1))[:, apart])
    return np.concatenate(found).astype(np.float32)
