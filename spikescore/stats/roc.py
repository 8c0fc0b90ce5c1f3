"""How well a score tells hallucinated answers from consistent ones: AUROC, intervals, paired tests.

Convention everywhere: y = 1 means hallucinated and is the positive class; a higher score means
more hallucinated. No direction is chosen here: a score that points the wrong way gets an AUROC
below 0.5.

Intervals are 95% percentile bootstrap intervals over groups (a group is what was sampled as one: a
question, or a story with all its questions). Groups are drawn with replacement, whatever their
class; a draw that lacks a class has no AUROC and is dropped, not drawn again.
"""

from __future__ import annotations

import numpy as np


def auroc(y: np.ndarray, scores: np.ndarray) -> float:
    """Return P(score of a hallucinated item > score of a consistent one), a tie counting half.

    Shapes [n], [n]; both classes must be present (ValueError).
    """
    positive = np.asarray(y) == 1
    m = int(positive.sum())
    n_pairs = m * (positive.size - m)
    if not n_pairs:
        raise ValueError("AUROC needs items of both classes")
    # the sum of the positives' ranks counts the items below each, other positives included
    wins = midranks(scores)[positive].sum() - m * (m + 1) / 2
    return float(wins / n_pairs)


def midranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value [n], counted from 1; equal ones share the mean of theirs."""
    ranked = np.sort(values)
    below = np.searchsorted(ranked, values, side="left")
    up_to = np.searchsorted(ranked, values, side="right")
    return (below + up_to + 1) / 2


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


def flag_metrics(y: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float | None]:
    """Return F1, accuracy, true- and false-positive rate of flagging scores >= threshold.

    A rate whose denominator is empty is None.
    """
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


TPR = 0.95


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


def fpr_at_tpr(y: np.ndarray, scores: np.ndarray, tpr: float = TPR) -> float:
    """Return the smallest false-positive rate of a threshold with a true-positive rate >= tpr.

    Thresholds lie between distinct scores: tied items are flagged together, and nothing is
    interpolated. Both classes must be present.
    """
    false, true = roc_points(y, scores)
    return float(false[true >= tpr].min())
