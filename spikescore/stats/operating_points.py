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

from spikescore.stats.roc import average_precision, flag_metrics, fpr_at_tpr, not_computable

BINS = 10


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
        logits = self.slope * np.asarray(scores, dtype=np.float64) + self.intercept
        return 0.5 * (1 + np.tanh(0.5 * logits))


def operating_figures(
    samples: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    threshold: float | None = None,
    calibration: Calibration | None = None,
) -> dict[str, list[float | None]]:
    """Return every figure on each sample (y [n], scores [n]); None where it is not computable.

    Keys: `auprc`, `fpr_at_95_tpr`; `f1` and `accuracy` of flagging scores >= threshold; `ece` of
    the calibration. Without a threshold, or a fit, all of its values are None. One sample is a
    pool, several are domains of a macro mean.
    """
    no_fit = calibration is None or calibration.slope is None
    figures: dict[str, Callable[[np.ndarray, np.ndarray], float | None] | None] = {
        "auprc": average_precision,
        "fpr_at_95_tpr": fpr_at_tpr,
        "f1": threshold is not None and (lambda y, s: flag_metrics(y, s, threshold)["f1"]),
        "accuracy": threshold is not None
        and (lambda y, s: flag_metrics(y, s, threshold)["accuracy"]),
        "ece": None if no_fit else (lambda y, s: ece(y, calibration.probabilities(s))),
    }
    return {
        name: [compute(y, s) if compute and not not_computable(y) else None for y, s in samples]
        for name, compute in figures.items()
    }


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


def ece(y: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the expected calibration error: sum over bins of (n_b / n) |rate_b - mean p_b|.

    Ten bins of equal width on [0, 1], each holding its lower end, the last one both; rate_b is the
    hallucination rate in a bin. Raises ValueError for probabilities outside [0, 1] and for no
    items. Source: Guo et al. (2017), for the probability of one class.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if not p.size or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities from 0 to 1 are needed")
    place = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    return float(np.abs(np.bincount(place, weights=y - p)).sum() / p.size)


def fit_calibration(y: np.ndarray, scores: np.ndarray) -> Calibration:
    """Return the logistic map from score to P(hallucinated): Platt scaling (Platt, 1999).

    y [n] and scores [n] are those of the training domain's validation split. The targets are
    Platt's, (m + 1) / (m + 2) for the m positives and 1 / (k + 2) for the k negatives, so that
    classes that do not overlap get a finite slope. The slope may come out negative; a constant
    score gets 0. Fewer than 10 items of a class: not computable, with a note.
    """
    from sklearn.linear_model import LogisticRegression  # a second to import, for tables alone

    n, m = len(y), int(np.sum(y))
    if note := not_computable(y):
        return Calibration(None, None, n, m, f"{note} to calibrate on")
    targets = np.where(y == 1, (m + 1) / (m + 2), 1 / (n - m + 2))
    centre, scale = scores.mean(), scores.std() if np.ptp(scores) else 1.0
    # a soft target is the item twice, once of each class, weighted
    unit = np.tile((scores - centre) / scale, 2)[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    model.fit(unit, np.repeat([1, 0], n), sample_weight=np.concatenate([targets, 1 - targets]))
    slope = float(model.coef_[0, 0]) / scale if np.ptp(scores) else 0.0
    return Calibration(slope, float(model.intercept_[0] - slope * centre), n, m)
