"""Detectors that are one direction in the space of hidden states."""

from __future__ import annotations

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.lesson import LayerReader, Lesson, first_answers
from spikescore.pairs import gathered
from spikescore.probes.fit import Fit, best_of
from spikescore.probes.linear import fit_logistic
from spikescore.probes.probe import Probe
from spikescore.stats.roc import auroc


class MassMean(LayerReader):
    """(x - m0) . t / |t|^2, with t = m1 - m0 and m1, m0 the mean states of the two classes.

    m1 is the mean over hallucinated, m0 over consistent training answers: a score of 0 lies at m0,
    of 1 at m1. Higher = more hallucinated. Source: Marks and Tegmark (2024), "The Geometry of
    Truth", the mass-mean probe without the covariance; their theta points to the true statements,
    ours the other way, and instead of their sigmoid, which would only saturate, we shift and scale
    so that scores of different layers can be compared. They took one layer by looking at its role
    in patching; here the validation AUROC chooses (of equal ones: the lowest mean squared distance
    of the score from y, then the lowest layer).
    """

    name, title = "mass_mean", "Mass-mean"

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        material = first_answers(train, val)
        y = material.labels[material.val]
        fits = []
        for layers, rows in zip(material.layers, material.by_layer, strict=True):
            found = mass_mean(rows[material.train], material.labels[material.train])
            scores = found.score(rows[material.val]).astype(np.float64)
            rank = (auroc(y, scores), -float(np.square(scores - y).mean()))
            weights = found.weights
            fits.append(Fit(layers, rank, weights, weights, found.mean, found.scale, [rank[0]]))
        self.keep(best_of(fits))


def mass_mean(states: np.ndarray, y: np.ndarray) -> Probe:
    """Return the mass-mean direction of states [n, d], labels [n], as a map; 0 for equal means."""
    hallucinated, consistent = (
        states[y == label].mean(axis=0, dtype=np.float64) for label in (1, 0)
    )
    direction = hallucinated - consistent
    weight = direction / (direction @ direction or 1.0)
    linear = ("linear", weight[None].astype(np.float32), np.zeros(1, np.float32))
    mean = consistent.astype(np.float32)
    return Probe("saplma", [linear], mean=mean, scale=np.ones_like(mean))


class LinearProbe(LayerReader):
    """sigmoid(w . z + b): logistic regression on the standardised state z of one layer.

    w, b minimise |w|^2 / 2 + C * sum of the cross-entropies with C = 1, as in scikit-learn; mean
    and deviation are those of the train split. Higher = more hallucinated. Source: Alain and Bengio
    (2017); as a detector Orgad et al. (2025), who do not standardise. The layer is that of the
    highest validation AUROC (of equal ones: lowest cross-entropy, then the lowest layer).
    """

    name, title = "linear_probe", "Linear probe"

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        material = first_answers(train, val)
        self.keep(fit_logistic(material.by_layer, material.layers, material.examples()))


class AllTurnProbe(LayerReader):
    """sigmoid(w . z + b) as `LinearProbe`, fitted to the answers of ALL turns of the dialogues.

    Each answer has the label of its dialogue's first answer, so that what a follow-up prompt does
    to every state of its turn tells nothing of the label, and cannot be taken for a sign of it.
    Higher = more hallucinated. The layer is the one at which the first answers' linear probe has
    its highest validation AUROC: only this layer of the later turns is read and fitted. `chosen`
    has the validation AUROC on first answers and on all turns. A control of this project, without a
    source.
    """

    name, title = "all_turn_probe", "Probe on all turns"

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        first = first_answers(train, val)
        layer_choice = fit_logistic(first.by_layer, first.layers, first.examples())
        (layer,) = layer_choice.layers
        turns = all_turns(train, val, layer)
        fit = fit_logistic([turns.features], [(layer,)], turns.examples())
        self.keep(fit)
        scores = self.score(val)
        self.chosen |= {
            "val_auroc": auroc(first.labels[first.val], scores),
            "val_auroc_all_turns": fit.score[0],
            "val_auroc_by_layer": [max(areas) for areas in layer_choice.val_auroc.values()],
        }


def all_turns(train: Answers, val: Answers, layer: int) -> Lesson:
    """Return the lesson of all turns' states [m, H] at a layer, with their dialogues' labels."""
    parts = (train, val)
    labels = [np.repeat(part.y, part.n_turns) for part in parts]
    states = gathered(
        row for part in parts for turns in part.turn_states(layers=[layer]) for row in turns[:, 0]
    )
    return Lesson(states, np.concatenate(labels).astype(np.int64), len(labels[0]))
