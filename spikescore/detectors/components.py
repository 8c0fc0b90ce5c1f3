"""Detectors on single attention heads and single neurons, at the first answer's last token.

measure_answers.py --groups components keeps them: 2 bytes for each head's dimension and neuron of
each layer. Which of them count is chosen on the training domain's validation split alone.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.detectors.lesson import measured_lesson
from spikescore.errors import UserError
from spikescore.probes.linear import solve
from spikescore.stats.roc import auroc

MOST_HEADS = 64
MOST_NEURONS = 1024


def best_number(scores: np.ndarray, y: np.ndarray) -> tuple[int, float]:
    """Return how many of the columns of scores [n, k], best first, to average, and the AUROC of it.

    1, 2, 4, 8 ... columns are tried; of equal ones the fewest are taken.
    """
    best, sums = (0, -1.0), np.cumsum(scores, axis=1)
    number = 1
    while number <= scores.shape[1]:
        area = auroc(y, sums[:, number - 1])
        if area > best[1]:
            best = number, area
        number *= 2
    return best


class ComponentDetector(Detector):
    """A mean over the components that were chosen; NaN where they were not measured."""

    family = "trained"
    needs = frozenset({"components"})
    _array: ClassVar[str]

    def score(self, items: Answers) -> np.ndarray:
        found = items.measured_arrays(self._array)
        return np.array([np.nan if one is None else self._of(one) for one in found], np.float64)

    @abstractmethod
    def _of(self, array: np.ndarray) -> float:
        """Return the score of one answer's array."""


@dataclass(frozen=True)
class HeadProbe:
    """A logistic regression on one head's output, and how well it does on validation."""

    layer: int
    head: int
    weights: np.ndarray
    bias: float
    accuracy: float
    loss: float
    val_scores: np.ndarray

    def logit(self, outputs: np.ndarray) -> np.ndarray:
        """Of outputs `[..., D]` of this head."""
        return outputs.astype(np.float64) @ self.weights + self.bias


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits)))


class ItiHeads(ComponentDetector):
    """Mean over the best K attention heads of sigmoid(w . x + b), x a head's output.

    Each head's w, b are a logistic regression (L2, C = 1, features unscaled) fitted to the train
    split; heads are ranked by validation accuracy (of equal ones: the lowest cross-entropy), and K
    is the number of 1, 2, 4 ... 64 with the highest validation AUROC (of equal ones: the fewest).
    Higher = more hallucinated. Source: Li et al. (2023), "Inference-Time Intervention: Eliciting
    Truthful Answers from a Language Model", arXiv 2306.03341: probes and ranking are theirs, on
    question and answer as they are. They move the activations of the chosen heads (48 for a model
    of 1,024) and detect nothing; the mean of the probes is this project's.
    """

    name, title = "iti_heads", "ITI head probes"
    _array = "heads"

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        material = measured_lesson(train, val, "heads")  # [n, L, A, D]
        labels = material.labels
        y = labels[material.val]
        probes = []
        for layer in range(material.n_states):
            of_layer = material.layer(layer)  # [n, A, D]
            for head in range(of_layer.shape[1]):
                rows = of_layer[:, head].astype(np.float64)
                weights, bias = solve(rows[material.train], labels[material.train])
                logits = rows[material.val] @ weights + bias
                loss = float((np.logaddexp(0, logits) - y * logits).mean())
                accuracy = float(((logits > 0) == y).mean())
                scores = sigmoid(logits)
                probes.append(HeadProbe(layer, head, weights, bias, accuracy, loss, scores))
        probes.sort(key=lambda probe: (-probe.accuracy, probe.loss))
        ranked = np.stack([probe.val_scores for probe in probes[:MOST_HEADS]], axis=1)
        number, area = best_number(ranked, y)
        self._probes = probes[:number]
        self.chosen |= {
            "heads": [[probe.layer + 1, probe.head] for probe in self._probes],
            "val_accuracy": [probe.accuracy for probe in self._probes],
            "val_auroc": area,
        }

    def _of(self, array: np.ndarray) -> float:
        logits = [probe.logit(array[probe.layer, probe.head]) for probe in self._probes]
        return float(sigmoid(np.array(logits)).mean())


class NeuronProbe(ComponentDetector):
    """Mean over the N most telling neurons of s (a - m) / d, with a a neuron's activation.

    m, d are its mean and deviation over the train split; s is the sign of t, Student's two-sample t
    of hallucinated against consistent training answers, and neurons are ranked by |t|. N is the
    number of 1, 2, 4 ... 1024 with the highest validation AUROC (of equal ones: the fewest). Higher
    = more hallucinated. After: Li et al. (2025), "Truth Neurons", arXiv 2505.12182, and NOT their
    measure: they test the difference of each neuron's integrated gradients between a right and a
    wrong answer to one question, and suppress what is significant. A detector has one answer, whose
    truth is not known, and no attribution to set against another; so activations are tested, and
    between questions. They detect nothing; the mean is this project's.
    """

    name, title = "neuron_probe", "Neuron probe (after truth neurons)"
    _array = "neurons"

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        material = measured_lesson(train, val, "neurons")  # [n, L, M]
        features, labels = material.features, material.labels
        layers = [
            layer_t(
                material.layer(layer)[material.train].astype(np.float64), labels[material.train]
            )
            for layer in range(material.n_states)
        ]
        t = np.stack([one for one, _, _ in layers])
        order = np.argsort(-np.abs(t), axis=None, kind="stable")[:MOST_NEURONS]
        order = order[t.ravel()[order] != 0]
        if not order.size:
            raise UserError("no neuron differs between the training classes; check the measures")
        self._layers, self._neurons = np.unravel_index(order, t.shape)
        self._mean, self._scale = (
            np.stack([one[place] for one in layers])[self._layers, self._neurons]
            for place in (1, 2)
        )
        self._signs = np.sign(t[self._layers, self._neurons])
        held_out = np.stack([self._columns(features[place]) for place in material.val])
        number, area = best_number(held_out, labels[material.val])
        for name in ("_layers", "_neurons", "_mean", "_scale", "_signs"):
            setattr(self, name, getattr(self, name)[:number])
        counts = np.bincount(self._layers, minlength=len(t))
        self.chosen |= {
            "n_neurons": number,
            "per_layer": counts.tolist(),
            "val_auroc": area,
        }

    def _columns(self, array: np.ndarray) -> np.ndarray:
        values = array[self._layers, self._neurons].astype(np.float64)
        return self._signs * (values - self._mean) / self._scale

    def _of(self, array: np.ndarray) -> float:
        return float(self._columns(array).mean())


def layer_t(rows: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return Student's t of the columns of rows [n, M], class 1 against 0, their means and their
    deviations; t is 0, and the deviation 1, where a column does not vary within the classes.
    """
    one, zero = rows[y == 1], rows[y == 0]
    squares = ((one - one.mean(axis=0)) ** 2).sum(axis=0)
    squares += ((zero - zero.mean(axis=0)) ** 2).sum(axis=0)
    pooled = squares / max(1, len(rows) - 2)
    varies = pooled > 0
    error = np.sqrt(np.where(varies, pooled, 1) * (1 / len(one) + 1 / len(zero)))
    t = np.where(varies, (one.mean(axis=0) - zero.mean(axis=0)) / error, 0.0)
    return t, rows.mean(axis=0), np.where(varies, rows.std(axis=0), 1.0)
