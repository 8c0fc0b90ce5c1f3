"""Detectors that find a direction in unlabelled states; labels only say which end of it is which.

The unlabelled data are the training domain's train split. Neither is free of labels altogether:
each says in its docstring what it takes from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.detectors.lesson import LayerReader, Lesson, choose, first_answers, lesson, present
from spikescore.detectors.networks import epochs_for
from spikescore.errors import UserError
from spikescore.runtime import derived_seed
from spikescore.stats.roc import auroc

if TYPE_CHECKING:
    from spikescore.probes.network import NetworkFit


# --- contrast-consistent search -----------------------------------------------------------------

TRIES = 10
EPOCHS = 1000
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
CELLS_AT_ONCE = 2**25
"""Float32 numbers of states that are searched together (0.1 GB for each reply)."""


class Ccs(Detector):
    """1 - (p(yes) + 1 - p(no)) / 2, or that from 1, with p = sigmoid(w . z + b) found by CCS.

    z is the state after the model is asked whether its answer is true and replies yes, or no; each
    reply's states are standardised by themselves, so that the reply itself cannot be read. w, b
    minimise mean[(p(yes) - (1 - p(no)))^2 + min(p(yes), p(no))^2] over the train split, without
    labels: AdamW at 1e-3, weight decay 0.01, 1,000 full-batch steps, the lowest loss of 10 starts.
    The loss is the same for an answer and its negation: which end means hallucinated is said by the
    TRAINING labels (AUROC at least 0.5). The layer has the highest validation AUROC (of equal ones:
    the lowest mean squared distance from y, then the lowest layer). NaN where the pair was not
    measured. Source: Burns et al. (2023), "Discovering Latent Knowledge in Language Models Without
    Supervision", whose pairs end in the two answers to a question with two; here the statement is
    that the model's own answer is true. Their code centres without scaling.
    """

    name = "ccs"
    title = "CCS"
    family = "trained"
    needs = frozenset({"questions"})
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        (known, pairs), (val_known, val_pairs) = (contrast_pairs(part) for part in (train, val))
        if not (known.any() and val_known.any()):
            raise UserError(
                'no "truth_state_yes" and "truth_state_no" were measured of these answers; run '
                "measure_answers.py"
            )
        material = lesson(pairs, val_pairs, train.y[known], val.y[val_known])
        y, y_val = material.labels[material.train], material.labels[material.val]
        probes = [
            _oriented(probe, pairs[:, layer], y)
            for layer, probe in enumerate(search(pairs[:, 1:], seed=seed), start=1)
        ]
        scores = [probe.score(val_pairs[:, layer]) for layer, probe in enumerate(probes, start=1)]
        choice = choose(y_val, scores, [float(np.square(row - y_val).mean()) for row in scores])
        self._layer, self._probe = choice.place + 1, probes[choice.place]
        self.chosen |= {
            "layer": self._layer,
            "val_auroc": choice.auroc,
            "loss": self._probe.loss,
            "direction": self._probe.sign,
            "val_auroc_by_layer": choice.aurocs,
        }

    def score(self, items: Answers) -> np.ndarray:
        known, pairs = contrast_pairs(items)
        scores = np.full(len(items), np.nan)
        if known.any():
            scores[known] = self._probe.score(pairs[:, self._layer])
        return scores


def contrast_pairs(items: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Return which items have both states, and those states [m, L+1, 2, H], yes before no."""
    names = ("truth_state_yes", "truth_state_no")
    found = zip(*(items.measured_arrays(name) for name in names), strict=True)
    return present([None if a is None or b is None else np.stack([a, b], 1) for a, b in found])


@dataclass(frozen=True)
class CcsProbe:
    """A direction found by CCS: weight [H], bias, mean and scale [2, H], its loss; sign +1: p is
    the probability of being true, -1: of being false."""

    weight: np.ndarray
    bias: float
    mean: np.ndarray
    scale: np.ndarray
    loss: float
    sign: int = 1

    def score(self, pairs: np.ndarray) -> np.ndarray:
        """Return scores in 0 to 1 of pairs [m, 2, H]: float64 [m], higher = more hallucinated."""
        z = (pairs.astype(np.float64) - self.mean) / self.scale
        p = _sigmoid(z @ self.weight.astype(np.float64) + self.bias)
        true = (p[:, 0] + 1 - p[:, 1]) / 2
        return 1 - true if self.sign == 1 else true


def _oriented(probe: CcsProbe, pairs: np.ndarray, y: np.ndarray) -> CcsProbe:
    sign = 1 if auroc(y, probe.score(pairs)) >= 0.5 else -1
    return CcsProbe(probe.weight, probe.bias, probe.mean, probe.scale, probe.loss, sign)


def search(pairs: np.ndarray, *, seed: int) -> list[CcsProbe]:
    """Return each layer's best CCS probe for pairs [n, layers, 2, H], by the loss alone.

    All starts of several layers take their steps together; a layer's result depends on no other.
    """
    n, n_layers, _, width = pairs.shape
    at_once = max(1, CELLS_AT_ONCE // (n * width))
    probes: list[CcsProbe] = []
    for start in range(0, n_layers, at_once):
        layers = range(start, min(start + at_once, n_layers))
        states = pairs[:, start : layers.stop].astype(np.float32)
        mean, deviation = states.mean(axis=0), states.std(axis=0)
        scale = np.where(deviation > 1e-6, deviation, np.float32(1))
        yes, no = ((states - mean) / scale).transpose(2, 1, 0, 3)
        w, b, losses = _minimise(yes, no, _starts(layers, width, seed))
        for place in range(len(layers)):
            best = int(losses[place].argmin())
            probes.append(
                CcsProbe(
                    weight=w[place, :, best],
                    bias=float(b[place, 0, best]),
                    mean=mean[place],
                    scale=scale[place],
                    loss=float(losses[place, best]),
                )
            )
    return probes


def _starts(layers: range, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [layers, H, TRIES] and biases [layers, 1, TRIES], uniform within 1/sqrt(H)."""
    drawn = np.stack(
        [
            np.random.default_rng(derived_seed(seed, "ccs", layer)).uniform(
                -1, 1, size=(width + 1, TRIES)
            )
            for layer in layers
        ]
    ).astype(np.float32) / np.float32(np.sqrt(width))
    return np.ascontiguousarray(drawn[:, :-1]), np.ascontiguousarray(drawn[:, -1:])


def ccs_loss(p_yes: np.ndarray, p_no: np.ndarray) -> np.ndarray:
    """mean over items of (p_yes - (1 - p_no))^2 + min(p_yes, p_no)^2, Burns et al. (2023).

    [..., n, tries] -> [..., tries]. Low where p is consistent (a statement is as likely as its
    denial is not) and confident.
    """
    consistency = np.square(p_yes + p_no - 1)
    return (consistency + np.square(np.minimum(p_yes, p_no))).mean(axis=-2)


def ccs_gradient(p_yes: np.ndarray, p_no: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of `ccs_loss` by the two logits, each of the shape of p_yes."""
    shared = 2 * (p_yes + p_no - 1)
    lower = p_yes < p_no
    by_yes = (shared + 2 * p_yes * lower) * p_yes * (1 - p_yes)
    by_no = (shared + 2 * p_no * ~lower) * p_no * (1 - p_no)
    n = p_yes.shape[-2]
    return by_yes / n, by_no / n


def _minimise(
    yes: np.ndarray, no: np.ndarray, start: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take EPOCHS steps of AdamW on states [layers, n, H]; return w, b and losses [layers, tries].

    By hand in numpy: the arrays are small, and a thousand steps of torch cost three times as much.
    """
    w, b = start
    moments = [(np.zeros_like(x), np.zeros_like(x)) for x in (w, b)]
    beta, beta_square, tiny = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
    yes_t, no_t = (np.ascontiguousarray(x.transpose(0, 2, 1)) for x in (yes, no))
    for step in range(1, EPOCHS + 1):
        by_yes, by_no = ccs_gradient(_sigmoid(yes @ w + b), _sigmoid(no @ w + b))
        gradients = yes_t @ by_yes + no_t @ by_no, (by_yes + by_no).sum(axis=1, keepdims=True)
        rate = np.float32(LEARNING_RATE / (1 - 0.9**step))
        correction = np.float32(1 / np.sqrt(1 - 0.999**step))
        for x, gradient, (first, second) in zip((w, b), gradients, moments, strict=True):
            first += (1 - beta) * (gradient - first)
            second += (1 - beta_square) * (np.square(gradient) - second)
            x *= np.float32(1 - LEARNING_RATE * WEIGHT_DECAY)
            x -= rate * first / (np.sqrt(second) * correction + tiny)
    return w, b, ccs_loss(_sigmoid(yes @ w + b), _sigmoid(no @ w + b))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # never overflows; keeps the dtype


# --- HaloScope ----------------------------------------------------------------------------------

MAX_COMPONENTS = 10
QUANTILES = (0.25, 0.5, 0.75)
"""Thresholds that are tried, as shares of the train split below them."""


class HaloScope(LayerReader):
    """Output of an MLP H-1024-1 taught the pseudo-labels "zeta > threshold" of the train split.

    zeta(x) = (1/k) sum_{j <= k} s_j <x - m, v_j>^2, with m the mean of the training states and s_j,
    v_j the singular values and right singular vectors of the centred states: how far a state lies
    along the directions in which the unlabelled states vary most. The labelled validation split,
    and no other label, chooses: layer, k in 1 to 10 and direction by the AUROC of zeta (of equal
    ones: the lowest layer, the smallest k, the direction "further out = hallucinated"); then the
    threshold among the quartiles of zeta, and the epoch, by the AUROC of the network. Higher = more
    hallucinated. Source: Du et al. (2024), "HaloScope", NeurIPS. Their code averages the
    projections before squaring, tries 38 thresholds and every layer anew for each, and trains by
    SGD on unscaled states. Here the network reads zeta's layer, standardised, and is trained as
    SAPLMA is.
    """

    name = "haloscope"
    title = "HaloScope"
    family = "trained"
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        material = first_answers(train, val)
        layer, k, sign, area = best_subspace(material)
        rows = material.by_layer[layer - 1]
        zeta = sign * Subspace.of(rows[material.train]).zeta(rows)[:, k - 1]
        # ties may leave a threshold with nothing above it
        cuts = np.unique(np.quantile(zeta[material.train], QUANTILES))
        cuts = cuts[cuts < zeta[material.train].max()]
        if not cuts.size:
            raise UserError(f"the training states of layer {layer} do not differ; check the states")
        fits = [_fit_pseudo(material, layer, zeta > cut, seed) for cut in cuts]
        best = max(range(len(fits)), key=lambda place: fits[place].rank)
        self._layer, self._network = layer, fits[best]
        self.chosen |= {
            "layer": layer,
            "k": k,
            "direction": sign,
            "val_auroc_zeta": area,
            "share_called_hallucinated": float((zeta[material.train] > cuts[best]).mean()),
            "epoch": fits[best].epoch,
            "val_auroc": fits[best].rank[0],
        }


@dataclass(frozen=True)
class Subspace:
    """Mean [H], singular values [k] and right singular vectors [k, H] of states, k <= 10."""

    mean: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, states: np.ndarray) -> Subspace:
        """Fit to unlabelled states [n, H]; directions in which they do not vary are left out."""
        mean = states.mean(axis=0, dtype=np.float64)
        centred = states.astype(np.float64) - mean
        # the smaller product has the same leading values, in a tenth of the time of an SVD
        wide = centred.shape[1] > centred.shape[0]
        squares, basis = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
        leading = np.argsort(-squares)[:MAX_COMPONENTS]
        leading = leading[squares[leading] > 1e-10 * max(squares.max(), 1e-300)]
        values, basis = np.sqrt(squares[leading]), basis[:, leading].T
        return cls(mean, values, basis @ centred / values[:, None] if wide else basis)

    def zeta(self, states: np.ndarray) -> np.ndarray:
        """Return zeta of states [m, H] for k = 1, 2, ... components: float64 [m, components]."""
        projections = (states.astype(np.float64) - self.mean) @ self.vectors.T
        weighted = self.values * np.square(projections)
        return np.cumsum(weighted, axis=1) / np.arange(1, len(self.values) + 1)


def best_subspace(material: Lesson) -> tuple[int, int, int, float]:
    """Return layer, number of components, direction and validation AUROC of the best zeta."""
    y = material.labels[material.val]
    best = (0, 0, 0, -1.0)
    for (layer,), rows in zip(material.layers, material.by_layer, strict=True):
        zetas = Subspace.of(rows[material.train]).zeta(rows[material.val])
        for k, zeta in enumerate(zetas.T, start=1):
            area = auroc(y, zeta)
            sign = 1 if area >= 0.5 else -1
            if max(area, 1 - area) > best[3]:
                best = (layer, k, sign, max(area, 1 - area))
    if not best[0]:
        raise UserError("the training items' states do not differ; check the states")
    return best


def _fit_pseudo(material: Lesson, layer: int, called: np.ndarray, seed: int) -> NetworkFit:
    """Train on pseudo-labels; the labels themselves only choose the epoch on validation."""
    from spikescore.probes.network import Recipe, fit_network

    target = np.where(np.arange(len(called)) < material.n_train, called, material.labels)
    return fit_network(
        material.by_layer[layer - 1],
        material.examples(target),
        Recipe((1024,)),
        epochs=epochs_for(material.n_train),
        seed=seed,
    )


DETECTORS: tuple[type[Detector], ...] = (Ccs, HaloScope)
