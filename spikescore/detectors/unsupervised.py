"""Detectors that find a direction in unlabelled states; labels only say which end of it is which.

The unlabelled data are the training domain's train split. Neither is free of labels altogether:
each says in its docstring what it takes from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.detectors.lesson import (
    LayerReader,
    Lesson,
    as_network,
    first_answers,
    measured_lesson,
    measured_rows,
)
from spikescore.detectors.networks import train_network
from spikescore.errors import UserError
from spikescore.probes.fit import Fit, Recipe, normaliser
from spikescore.runtime import derived_seed, limited_threads, usable_cores
from spikescore.stats.roc import auroc

if TYPE_CHECKING:
    import torch

# --- contrast-consistent search -----------------------------------------------------------------

TRIES = 10
EPOCHS = 1000
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
CELLS_AT_ONCE = 2**25
"""Float32 numbers of states that are searched together (0.1 GB for each reply)."""
LARGE = 2**22
"""Numbers of states from which a step has work for several threads: 600 answers of 2 layers."""
PAIR = ("truth_state_yes", "truth_state_no")


class Ccs(Detector):
    """1 - (p(yes) + 1 - p(no)) / 2, or that from 1, with p = sigmoid(w . z + b) found by CCS.

    z is the state after the model is asked whether its answer is true and replies yes, or no,
    standardised by mean and deviation of that reply's states of the item's OWN domain, among the
    items that are scored, as the authors do: the reply itself cannot be read, nor can a shift of
    the domain be taken for a sign. No label is needed for that; a domain of one item has no
    deviation, and no score. w, b minimise mean[(p(yes) - (1 - p(no)))^2 + min(p(yes), p(no))^2]
    over the train split, without labels: AdamW at 1e-3, weight decay 0.01, 1,000 full-batch steps,
    the lowest loss of 10 starts. The loss is the same for an answer and its negation: which end
    means hallucinated is said by the TRAINING labels (AUROC at least 0.5). The layer has the
    highest validation AUROC (of equal ones: the lowest mean squared distance from y, then the
    lowest layer). NaN where the pair was not measured. Source: Burns et al. (2023), "Discovering
    Latent Knowledge in Language Models Without Supervision", whose pairs end in the two answers to
    a question with two; here the statement is that the model's own answer is true. Their code
    centres without scaling unless told otherwise.
    """

    name, title = "ccs", "CCS"
    family = "trained"
    needs = frozenset({"questions"})
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        material = measured_lesson(train, val, *PAIR)
        y, y_val = (material.labels[at] for at in (material.train, material.val))
        learned, held_out = (
            [material.features[place] for place in at] for at in (material.train, material.val)
        )
        n_layers = len(learned[0][0]) - 1
        probes = search(lambda k: at_layer(learned, k + 1), n_layers, seed=seed)
        ranks = []
        for layer, probe in enumerate(probes, start=1):
            if auroc(y, probe.score(at_layer(learned, layer))) < 0.5:
                probes[layer - 1] = probe = replace(probe, sign=-1)
            own = at_layer(held_out, layer)
            scores = self.normalised(probe, own).score(own)
            ranks.append((auroc(y_val, scores), -float(np.square(scores - y_val).mean())))
        place = ranks.index(max(ranks))
        self._layer, self._probe = place + 1, probes[place]
        self.chosen |= {
            "layer": self._layer,
            "val_auroc": ranks[place][0],
            "loss": self._probe.loss,
            "direction": self._probe.sign,
            "val_auroc_by_layer": [area for area, _ in ranks],
        }

    def score(self, items: Answers) -> np.ndarray:
        known, pairs = measured_rows(items, *PAIR)
        scores = np.full(len(items), np.nan)
        domains = items.domains[known]
        for domain in dict.fromkeys(domains.tolist()):
            own = at_layer(
                [pairs[place] for place in np.flatnonzero(domains == domain)], self._layer
            )
            places = np.flatnonzero(known)[domains == domain]
            scores[places] = self.normalised(self._probe, own).score(own)
        return scores

    @staticmethod
    def normalised(probe: CcsProbe, pairs: np.ndarray) -> CcsProbe:
        """Return the probe as it reads the states [m, 2, H] of one domain; NaN for a single one."""
        mean, scale = normaliser(pairs)
        return replace(probe, mean=mean, scale=scale if len(pairs) > 1 else scale * np.nan)


class CcsCarried(Ccs):
    """CCS (`Ccs`) with the TRAINING domain's means and deviations for every domain.

    What is left when a detector sees one item at a time: where domains' states differ in their
    means, the shift is taken for a sign. Made beside `Ccs` to show what that costs.
    """

    name, title = "ccs_carried", "CCS, carried means"

    @staticmethod
    def normalised(probe: CcsProbe, pairs: np.ndarray) -> CcsProbe:
        return probe


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
        p = 0.5 * (1 + np.tanh(0.5 * (z @ self.weight.astype(np.float64) + self.bias)))  # a sigmoid
        true = (p[:, 0] + 1 - p[:, 1]) / 2
        return 1 - true if self.sign == 1 else true


def at_layer(pairs: Sequence[Sequence[np.ndarray]], layer: int) -> np.ndarray:
    """Return the states [n, 2, H] at one layer of n pairs of arrays [L+1, H]."""
    return np.stack([[one[layer] for one in pair] for pair in pairs])


def search(pairs_at: Callable[[int], np.ndarray], n_layers: int, *, seed: int) -> list[CcsProbe]:
    """Return each layer's best CCS probe for its pairs [n, 2, H], by the loss alone; `pairs_at`
    gives them, from 0 on.

    All starts of several layers take their steps together; a layer's result depends on no other.
    """
    n, _, width = pairs_at(0).shape
    at_once = max(1, CELLS_AT_ONCE // (n * width))
    probes: list[CcsProbe] = []
    for first in range(0, n_layers, at_once):
        layers = range(first, min(first + at_once, n_layers))
        states = np.stack([pairs_at(layer) for layer in layers], axis=2)
        mean, scale = normaliser(states)
        yes, no = ((states - mean) / scale).transpose(1, 2, 0, 3)
        w, b, losses = minimise(yes, no, *starts(layers, width, seed))
        for place, best in enumerate(losses.argmin(axis=1)):
            own = (w[place, :, best], float(b[place, 0, best]), mean[:, place], scale[:, place])
            probes.append(CcsProbe(*own, loss=float(losses[place, best])))
    return probes


def starts(layers: range, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [layers, H, TRIES] and biases [layers, 1, TRIES], uniform within 1/sqrt(H)."""
    drawn = [
        np.random.default_rng(derived_seed(seed, "ccs", layer)).uniform(-1, 1, (width + 1, TRIES))
        for layer in layers
    ]
    both = np.float32(drawn) / np.float32(np.sqrt(width))
    return both[:, :-1].copy(), both[:, -1:].copy()


def minimise(
    yes: np.ndarray, no: np.ndarray, w: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take EPOCHS steps of AdamW from w and b on the states [layers, n, H] of each reply; return w,
    b and the losses [layers, tries] where they end.
    """
    import torch  # here, so that names of methods are known without it

    yes, no, w, b = map(torch.tensor, (yes, no, w, b))
    steps = torch.optim.AdamW(
        [w.requires_grad_(), b.requires_grad_()], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )

    def losses() -> torch.Tensor:
        return ccs_loss(torch.sigmoid(yes @ w + b), torch.sigmoid(no @ w + b))

    threads = min(usable_cores(), 8) if yes.numel() > LARGE else 1
    with limited_threads(threads):
        for _ in range(EPOCHS):
            steps.zero_grad()
            losses().sum().backward()
            steps.step()
    return tuple(found.detach().numpy() for found in (w, b, losses()))


def ccs_loss(p_yes: torch.Tensor, p_no: torch.Tensor) -> torch.Tensor:
    """mean over items of (p_yes - (1 - p_no))^2 + min(p_yes, p_no)^2, Burns et al. (2023).

    [..., n, tries] -> [..., tries]. Low where p is consistent (a statement is as likely as its
    denial is not) and confident.
    """
    return ((p_yes + p_no - 1).square() + p_yes.minimum(p_no).square()).mean(dim=-2)


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
    hallucinated. Source: Du et al. (2024), "HaloScope", NeurIPS. Their code projects the states as
    they are, without taking the mean away, averages the projections before squaring, tries 38
    thresholds and every layer anew for each, and trains by SGD on unscaled states. Here the network
    reads zeta's layer, standardised, and is trained as SAPLMA is.
    """

    name, title = "haloscope", "HaloScope"
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        material = first_answers(train, val)
        layer, k, sign, area = best_subspace(material)
        rows = material.layer(layer)
        zeta = sign * Subspace.of(rows[material.train]).zeta(rows)[:, k - 1]
        # ties may leave a threshold with nothing above it
        cuts = np.unique(np.quantile(zeta[material.train], QUANTILES))
        cuts = cuts[cuts < zeta[material.train].max()]
        if not cuts.size:
            raise UserError(f"the training states of layer {layer} do not differ; check the states")
        fits = [_fit_pseudo(material, layer, zeta > cut, seed) for cut in cuts]
        best = max(range(len(fits)), key=lambda place: fits[place].score)
        self._layer, self._network = layer, as_network(fits[best])
        self.chosen |= {
            "layer": layer,
            "k": k,
            "direction": sign,
            "val_auroc_zeta": area,
            "share_called_hallucinated": float((zeta[material.train] > cuts[best]).mean()),
            "epoch": fits[best].epoch,
            "val_auroc": fits[best].score[0],
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


def _fit_pseudo(material: Lesson, layer: int, called: np.ndarray, seed: int) -> Fit:
    """Train on pseudo-labels; the labels themselves only choose the epoch on validation."""
    target = np.where(np.arange(len(called)) < material.n_train, called, material.labels)
    rows, recipe = material.layer(layer), Recipe("haloscope", (1024,), epochs=5)
    return train_network([rows], [()], material.examples(target), recipe, seed)
