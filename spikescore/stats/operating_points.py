"""Figures beyond the AUROC: average precision, rates at an operating point, calibration.

y = 1 means hallucinated and is the positive class; a higher score means more hallucinated. What is
chosen (the threshold, the map from scores to probabilities) is chosen on the training domain's
validation split and carried over; nothing is chosen on the items evaluated. As for the AUROC,
fewer than 10 items of a class make a figure "not computable".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spikescore.stats.bootstrap import Sample, computable
from spikescore.stats.roc import average_precision, flag_metrics, fpr_at_tpr

BINS = 10
_MAX_STEPS = 100  # Newton's method takes about ten


@dataclass(frozen=True)
class Figure:
    """A figure of n items, n_positive hallucinated; None, with a note, if not computable."""

    value: float | None
    n: int
    n_positive: int
    note: str = ""


@dataclass(frozen=True)
class Calibration:
    """P(hallucinated) = 1 / (1 + exp(-(slope * score + intercept))), as fitted on n items.

    `slope` and `intercept` are None, and `note` says why, where there was too little to fit on.
    """

    slope: float | None
    intercept: float | None
    n: int
    n_positive: int
    note: str = ""

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return P(hallucinated) for each score [n]; ValueError when there was no fit."""
        if self.slope is None or self.intercept is None:
            raise ValueError(self.note)
        return _sigmoid(self.slope * np.asarray(scores, dtype=np.float64) + self.intercept)


def operating_figures(
    samples: Sequence[Sample],
    *,
    threshold: float | None = None,
    calibration: Calibration | None = None,
    are_probabilities: bool = False,
) -> dict[str, Figure]:
    """Return every figure of the samples' first score: the plain mean over computable samples.

    Keys: `auprc`, `fpr_at_95_tpr`; with a threshold also `f1` and `accuracy` of flagging scores >=
    threshold; with a calibration, or for scores that are probabilities of a hallucination already,
    `ece`. One sample is a pool, several are domains of a macro mean.
    """
    figures: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
        "auprc": average_precision,
        "fpr_at_95_tpr": fpr_at_tpr,
    }
    if threshold is not None:
        for name in ("f1", "accuracy"):
            figures[name] = lambda y, scores, name=name: flag_metrics(y, scores, threshold)[name]
    if are_probabilities:
        figures["ece"] = ece
    elif calibration is not None and calibration.slope is not None:
        figures["ece"] = lambda y, scores: ece(y, calibration.probabilities(scores))
    used, note = computable(samples)
    n = sum(sample.y.size for sample in used or samples)
    n_positive = int(sum(sample.y.sum() for sample in used or samples))
    found = {}
    for name, compute in figures.items():
        values = [compute(sample.y, sample.scores[0]) for sample in used]
        found[name] = Figure(float(np.mean(values)) if used else None, n, n_positive, note)
    if "ece" not in found and calibration is not None:
        found["ece"] = Figure(None, n, n_positive, calibration.note)
    return found


def choose_threshold(y: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Return (threshold, balanced accuracy) that best flags y = 1 by score >= threshold.

    Balanced accuracy, (TPR + TNR) / 2, is Youden's J in other units: unlike F1 it does not depend
    on the hallucination rate, which differs between domains. Candidates are the midpoints between
    neighbouring distinct scores, and the lowest score itself (everything flagged); of equals the
    lowest wins. Both classes must be present (ValueError).
    """
    distinct, place = np.unique(scores, return_inverse=True)
    counts = [np.bincount(place[y == label], minlength=distinct.size) for label in (1, 0)]
    if min(count.sum() for count in counts) == 0:
        raise ValueError("a threshold needs items of both classes")
    # between neighbouring floats there is no midpoint: the upper one it is then
    middle = np.maximum((distinct[1:] + distinct[:-1]) / 2, np.nextafter(distinct[:-1], np.inf))
    thresholds = np.concatenate([distinct[:1], middle])
    tpr, fpr = (count[::-1].cumsum()[::-1] / count.sum() for count in counts)
    accuracy = (tpr + 1 - fpr) / 2
    best = int(accuracy.argmax())
    return float(thresholds[best]), float(accuracy[best])


# --- calibration ------------------------------------------------------------------------------


def ece(y: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: sum over bins of (n_b / n) |rate_b - mean p_b|.

    Bins are of equal width on [0, 1], each holding its lower end, the last one both; rate_b is the
    hallucination rate in a bin. Raises ValueError for probabilities outside [0, 1] and for no
    items. Source: Guo et al. (2017), for the probability of one class.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if not p.size or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities from 0 to 1 are needed")
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(place, weights=y - p)).sum() / p.size)


def fit_calibration(y: np.ndarray, scores: np.ndarray) -> Calibration:
    """Return the logistic map from score to P(hallucinated): Platt scaling (Platt, 1999).

    y [n] and scores [n] are those of the training domain's validation split. The targets are
    Platt's, (m + 1) / (m + 2) for the m positives and 1 / (k + 2) for the k negatives, so that
    classes that do not overlap get a finite slope. The slope may come out negative; a constant
    score gets 0. Fewer than 10 items of a class: not computable, with a note.
    """
    sample = Sample.of(y, scores)
    n, positive = sample.y.size, int(sample.y.sum())
    if sample.problem():
        return Calibration(None, None, n, positive, f"{sample.problem()} to calibrate on")
    values = sample.scores[0]
    targets = np.where(sample.y == 1, (positive + 1) / (positive + 2), 1 / (n - positive + 2))
    centre, scale = values.mean(), values.std()
    if np.ptp(values) == 0:
        rate = targets.mean()
        return Calibration(0.0, float(np.log(rate / (1 - rate))), n, positive)
    slope, intercept = _fit_logistic((values - centre) / scale, targets)
    return Calibration(slope / scale, intercept - slope * centre / scale, n, positive)


def _fit_logistic(x: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Minimise the cross-entropy of sigmoid(a x + b) with targets inside (0, 1): (a, b)."""
    design = np.column_stack([x, np.ones_like(x)])
    weights = np.zeros(2)

    def loss(weights: np.ndarray) -> float:
        logits = design @ weights
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    for _ in range(_MAX_STEPS):
        p = _sigmoid(design @ weights)
        gradient = design.T @ (p - targets)
        if np.abs(gradient).max() <= 1e-9 * x.size:
            break
        hessian = design.T @ (design * (p * (1 - p))[:, None])
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while loss(weights - size * step) > loss(weights) and size > 1e-6:
            size /= 2
        weights = weights - size * step
    return float(weights[0]), float(weights[1])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))
