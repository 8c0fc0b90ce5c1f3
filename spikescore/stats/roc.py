"""How well a score tells hallucinated answers from consistent ones, one number or curve at a time.

Convention everywhere: y = 1 means hallucinated and is the positive class; a higher score means
more hallucinated. No direction is chosen here: a score that points the wrong way gets an AUROC
below 0.5. Intervals and tests are in `bootstrap`.
"""

from __future__ import annotations

import math

import numpy as np

MIN_PER_CLASS = 10
"""With fewer items in a class, each of them carries more than a tenth of the AUROC and an interval
promises too much: the figure is reported as not computable."""
TPR = 0.95


def not_computable(y: np.ndarray) -> str:
    """Return why no figure can be given for labels y [n], with the counts; empty when one can."""
    positive = int(np.sum(y))
    negative = len(y) - positive
    if min(positive, negative) >= MIN_PER_CLASS:
        return ""
    return (
        f"not computable: {positive} hallucinated and {negative} consistent, "
        f"at least {MIN_PER_CLASS} of each needed"
    )


def questions_needed(rate: float, share: float = 1.0) -> int:
    """Return how many questions give `MIN_PER_CLASS` of each class to a split of a `share` of them,
    where `rate`, inside 0 and 1, of the answers are of one class.
    """
    return math.ceil(MIN_PER_CLASS / (share * min(rate, 1 - rate)) - 1e-9)


def auroc(y: np.ndarray, scores: np.ndarray) -> float:
    """Return P(score of a hallucinated item > score of a consistent one), a tie counting half.

    Shapes [n], [n]; both classes must be present (ValueError).
    """
    labels, scores = np.asarray(y) == 1, np.asarray(scores)
    positive, negative = scores[labels], np.sort(scores[~labels])
    if not positive.size or not negative.size:
        raise ValueError("AUROC needs items of both classes")
    beaten = [np.searchsorted(negative, positive, side=side) for side in ("left", "right")]
    return float(np.mean(beaten) / negative.size)


def roc_points(y: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ROC curve as (false-positive rate, true-positive rate), from (0, 0) to (1, 1).

    One point per distinct score, flagged when score >= threshold; both classes must be present.
    """
    order = np.argsort(-scores, kind="stable")
    labels, ranked = y[order], scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), y.size - 1)
    true = np.cumsum(labels)[ends] / labels.sum()
    false = np.cumsum(1 - labels)[ends] / (1 - labels).sum()
    return np.append(0.0, false), np.append(0.0, true)


def fpr_at_tpr(y: np.ndarray, scores: np.ndarray) -> float:
    """Return the smallest false-positive rate of a threshold with a true-positive rate >= 95%.

    Thresholds lie between distinct scores: tied items are flagged together, and nothing is
    interpolated. Both classes must be present.
    """
    false, true = roc_points(y, scores)
    return float(false[true >= TPR].min())


def average_precision(y: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under precision over recall as a sum of steps: sum of (R_k - R_k-1) P_k.

    One step per distinct score, highest first, without interpolation; a constant score gets the
    hallucination rate. At least one positive is needed (ValueError).
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), y.size - 1)
    hits = np.cumsum(y[order])[ends]
    if not y.size or hits[-1] == 0:
        raise ValueError("average precision needs a hallucinated item")
    precision, recall = hits / (ends + 1), hits / hits[-1]
    return float(np.diff(recall, prepend=0.0) @ precision)


def flag_metrics(y: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Return F1, accuracy, TPR and FPR of flagging scores >= threshold; None for x / 0."""
    flagged = scores >= threshold
    positive = y == 1
    hits, alarms = int((flagged & positive).sum()), int((flagged & ~positive).sum())
    misses, clear = int((~flagged & positive).sum()), int((~flagged & ~positive).sum())

    def rate(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "f1": rate(2 * hits, 2 * hits + alarms + misses),
        "accuracy": rate(hits + clear, y.size),
        "tpr": rate(hits, hits + misses),
        "fpr": rate(alarms, alarms + clear),
    }
