"""How well a score tells hallucinated answers from consistent ones: AUROC, intervals, paired tests.

Convention everywhere: y = 1 means hallucinated and is the positive class; a higher score means
more hallucinated. No direction is chosen here: a score that points the wrong way gets an AUROC
below 0.5.

Intervals are 95% percentile bootstrap intervals over groups (a group is what was sampled as one: a
question, or a story with all its questions). Groups are drawn with replacement, whatever their
class; a draw that lacks a class has no AUROC and is dropped, not drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikescore.bootstrap import resample_aurocs

MIN_PER_CLASS = 10
"""With fewer items in a class, each of them carries more than a tenth of the AUROC and a bootstrap
interval promises too much: the figure is reported as not computable."""
DRAWS = 2000
"""Enough for the 2.5% and 97.5% points to be steady to about 0.002 at n = 200."""


@dataclass(frozen=True)
class Auroc:
    """An AUROC with its 95% interval; `value` is None, and `note` says why, if not computable."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_positive: int
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """AUROC(a) - AUROC(b) on the same items: 95% interval and two-sided bootstrap p value."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """The items of one domain: labels y [n], m scores of each [m, n], group number of each [n]."""

    y: np.ndarray
    scores: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, y: Sequence[int], *scores: Sequence[float], groups: Sequence | None = None):
        """Check and pack the items; every item is its own group unless groups are given."""
        labels = np.asarray(y, dtype=np.int64)
        rows = np.asarray(scores, dtype=np.float64).reshape(len(scores), -1)
        names = np.arange(labels.size) if groups is None else np.asarray(groups)
        if labels.ndim != 1 or rows.shape[1] != labels.size or names.shape != labels.shape:
            raise ValueError(f"lengths differ: y {labels.shape}, {rows.shape}, {names.shape}")
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("y must hold 0 and 1 only")
        if not np.isfinite(rows).all():
            raise ValueError("scores must be finite; leave out the items that have none")
        return cls(labels, rows, np.unique(names, return_inverse=True)[1])

    def only(self, m: int) -> Sample:
        """Return the same items with their first m scores."""
        return Sample(self.y, self.scores[:m], self.groups)

    def problem(self) -> str:
        """Return why no AUROC can be computed here, with the counts; empty when one can."""
        positive = int(self.y.sum())
        negative = self.y.size - positive
        if min(positive, negative) >= MIN_PER_CLASS:
            return ""
        return (
            f"not computable: {positive} hallucinated and {negative} consistent, "
            f"at least {MIN_PER_CLASS} of each needed"
        )


def measure_auroc(
    y: Sequence[int],
    scores: Sequence[float],
    *,
    groups: Sequence | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Auroc:
    """Return the AUROC of scores [n] for labels y [n] with its 95% bootstrap interval over groups.

    Ties count half. With one class only, or fewer than MIN_PER_CLASS items of a class, the value is
    None and the note gives the counts: never 0.5. Raises ValueError for unequal lengths, a label
    other than 0 and 1, or a score that is not finite.
    """
    return macro_auroc([Sample.of(y, scores, groups=groups)], draws=draws, seed=seed)


def macro_auroc(samples: Sequence[Sample], *, draws: int = DRAWS, seed: int = 0) -> Auroc:
    """Return the plain mean of the domains' AUROCs of their first score, with its 95% interval.

    Every domain weighs the same. Domains are fixed and resampled each on its own, so the interval
    speaks of other questions from these domains, not of other domains. A domain that is not
    computable is left out, and the note says how many were; with none left the value is None.
    """
    return _measure(samples, 1, draws, seed)[0][0]


def compare_aurocs(samples: Sequence[Sample], *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Return how much the first score's AUROC exceeds the second's on the same items (paired).

    Each sample holds two rows of scores. Both are evaluated on the same bootstrap draws, so what
    makes a question easy for both cancels out. Several samples: the mean of their differences.
    """
    return _measure(samples, 2, draws, seed)[1][0]


def measure_table(
    samples: Sequence[Sample], *, draws: int = DRAWS, seed: int = 0
) -> tuple[list[Auroc], list[Difference]]:
    """Return `macro_auroc` of each of the m scores, and `compare_aurocs` of the first with each of
    the others: m and m - 1 figures.

    The same figures as one by one, from one set of draws: all methods of a table at once. There
    must be a sample (ValueError), and all must have equally many scores.
    """
    (m,) = {len(sample.scores) for sample in samples}
    return _measure(samples, m, draws, seed)


def _measure(
    samples: Sequence[Sample], m: int, draws: int, seed: int
) -> tuple[list[Auroc], list[Difference]]:
    """Figures of the first m scores, and of the first one's differences from the others."""
    used, note = computable([sample.only(m) for sample in samples])
    n = sum(sample.y.size for sample in used or samples)
    n_positive = int(sum(sample.y.sum() for sample in used or samples))
    if not used:
        lone = Auroc(None, None, None, n, n_positive, note)
        return [lone] * m, [Difference(None, None, None, None, n, note)] * (m - 1)
    values = np.mean([[auroc(part.y, row) for row in part.scores] for part in used], axis=0)
    resampled = bootstrap_many(used, draws=draws, seed=seed)
    aurocs = []
    for value, row in zip(values, resampled, strict=True):
        low, high, few = _interval(row, used)
        aurocs.append(Auroc(float(value), low, high, n, n_positive, _join(note, few)))
    differences = []
    for value, row in zip(values[1:], resampled[1:], strict=True):
        delta = resampled[0] - row
        low, high, few = _interval(delta, used)
        p = None if low is None else _two_sided(delta[np.isfinite(delta)])
        found = Difference(float(values[0] - value), low, high, p, n, _join(note, few))
        differences.append(found)
    return aurocs, differences


def _two_sided(delta: np.ndarray) -> float:
    """Bootstrap p value: twice the share of differences at or beyond 0 on the rarer side."""
    # one is added to numerator and denominator: no finite number of draws can prove p = 0
    tail = min((delta <= 0).sum(), (delta >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (delta.size + 1)))


def _join(*notes: str) -> str:
    return "; ".join(filter(None, notes))


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


def bootstrap_many(samples: Sequence[Sample], *, draws: int, seed: int) -> np.ndarray:
    """Return the mean over samples of each score's AUROC in each draw: [m, draws].

    All m scores of a sample see the same draws; every sample has its own stream of them. NaN where
    a sample lacks a class. All samples must be computable.
    """
    streams = np.random.SeedSequence(seed).spawn(len(samples))
    parts = [
        bootstrap_aurocs(sample, draws=draws, rng=np.random.default_rng(stream))
        for sample, stream in zip(samples, streams, strict=True)
    ]
    return np.mean(parts, axis=0)


def bootstrap_aurocs(sample: Sample, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return the AUROC of each of the m scores in each draw: [m, draws], NaN if a class is absent.

    All m scores see the same draws.
    """
    return resample_aurocs(sample.y, sample.scores, sample.groups, draws=draws, rng=rng)


def computable(samples: Sequence[Sample]) -> tuple[list[Sample], str]:
    """Return the samples that have an AUROC, and a note: why there is none, or how many have."""
    problems = [sample.problem() for sample in samples]
    used = [sample for sample, problem in zip(samples, problems, strict=True) if not problem]
    if not samples:
        return [], "not computable: no items"
    if len(samples) == 1:
        return used, problems[0]
    left_out = len(samples) - len(used)
    if not used:
        return [], f"not computable in any of the {len(samples)} domains"
    return used, f"mean over {len(used)} of {len(samples)} domains" if left_out else ""


def _interval(
    values: np.ndarray, samples: Sequence[Sample]
) -> tuple[float | None, float | None, str]:
    """Central 95% of the draws that have a value; none where a sample is a single group."""
    if any(sample.groups.max() == 0 for sample in samples):
        return None, None, "no interval: all items are one group"
    values = values[np.isfinite(values)]
    if not values.size:
        return None, None, "no interval: every draw lacked a class"
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high), ""
