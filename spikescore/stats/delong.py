"""DeLong's variance of an AUROC: intervals and paired tests without resampling; Holm's correction.

The AUROC is a mean over pairs of a hallucinated and a consistent item. DeLong et al. (1988) split
it into one component per item: the share of the other class that the item is ranked rightly
against. The components' variances give that of the AUROC, and as two scores of the same items have
paired components, also that of their difference. Midranks make this O(n log n) (Sun and Xu, 2014).

Where several items share a group (a story), their components are summed before variances are taken
(Obuchowski, 1997); with every item its own group this is DeLong's variance again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from spikescore.stats.bootstrap import Auroc, Difference, Sample, computable
from spikescore.stats.roc import midranks

Z = NormalDist().inv_cdf(0.975)


def delong_auroc(samples: Sequence[Sample]) -> Auroc:
    """Return the AUROC of the samples' first score with DeLong's 95% interval.

    The interval is symmetric on the logit scale, so that it stays within 0 and 1 and holds its
    level near them better than a plain one. Several samples: the plain mean of their AUROCs,
    with the variances of independent domains added up. What is not computable is treated as in
    `evaluation.macro_auroc`. Perfectly separated or constant scores have variance 0 and hence no
    interval: that no error was seen does not make one impossible. Raises ValueError when a sample
    has groups of several items.
    """
    used, note = computable(samples)
    n = sum(sample.y.size for sample in used or samples)
    n_positive = int(sum(sample.y.sum() for sample in used or samples))
    if not used:
        return Auroc(None, None, None, n, n_positive, note)
    value, variance = _mean_and_variance(used, np.array([1.0]))
    if not variance > 0:
        return Auroc(value, None, None, n, n_positive, _join(note, _why(variance)))
    centre = math.log(value / (1 - value))
    reach = Z * math.sqrt(variance) / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-end)) for end in (centre - reach, centre + reach))
    return Auroc(value, low, high, n, n_positive, note)


def delong_difference(samples: Sequence[Sample]) -> Difference:
    """Return how much the first score's AUROC exceeds the second's on the same items (paired).

    Each sample holds two rows of scores. 95% Wald interval and two-sided p value of the normal
    test that the difference is 0. Several samples: the mean of their differences, with the
    variances of independent domains added up. Two scores that rank all items alike differ by
    exactly 0 (p = 1).
    """
    used, note = computable(samples)
    n = sum(sample.y.size for sample in used or samples)
    if not used:
        return Difference(None, None, None, None, n, note)
    value, variance = _mean_and_variance(used, np.array([1.0, -1.0]))
    if not (variance > 0 or value == variance == 0):
        return Difference(value, None, None, None, n, _join(note, _why(variance)))
    error = math.sqrt(variance)
    p = math.erfc(abs(value) / error / math.sqrt(2)) if error else 1.0
    return Difference(value, value - Z * error, value + Z * error, p, n, note)


def components(y: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the other class that each item is ranked rightly against.

    For scores [m, n]: [m, positives] and [m, negatives], each with the AUROC as its mean; ties
    count half. An item's midrank among all, less that among its own class, counts those of the
    other class below it.
    """
    labels = np.asarray(y) == 1
    m, n = int(labels.sum()), int((~labels).sum())
    if min(m, n) < 2:
        raise ValueError(f"at least two items of each class are needed, got {m} and {n}")
    positive, negative = np.empty((len(scores), m)), np.empty((len(scores), n))
    for row, values in enumerate(scores):
        ranks = midranks(values)
        positive[row] = (ranks[labels] - midranks(values[labels])) / n
        negative[row] = 1 - (ranks[~labels] - midranks(values[~labels])) / m
    return positive, negative


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p values in the order given; all below .05 hold together at .05.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is smaller than the one
    before it, none above 1. A test that was not computable (None) stays None and is not counted.
    Raises ValueError for what is not a probability. Source: Holm (1979).
    """
    for p in p_values:
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"not a p value: {p}")
    made = [place for place, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(made, key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(made) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _mean_and_variance(samples: Sequence[Sample], contrast: np.ndarray) -> tuple[float, float]:
    """Mean over samples of contrast [m] times the AUROCs of their first m scores; its variance."""
    values, variances = [], []
    for sample in samples:
        # combined before taking variances: two equal rankings then differ by exactly 0
        parts = [contrast @ part for part in components(sample.y, sample.scores[: contrast.size])]
        values.append(parts[0].mean())
        variances.append(_variance(*parts, sample))
    return float(np.mean(values)), float(np.sum(variances)) / len(samples) ** 2


def _variance(positive: np.ndarray, negative: np.ndarray, sample: Sample) -> float:
    """Variance of the mean of the components, summed by group; NaN where a class is one group."""
    labels = sample.y == 1
    groups = sample.groups
    n_groups = int(groups.max()) + 1
    sums, factors = [], []
    for part, own in ((positive, groups[labels]), (negative, groups[~labels])):
        holding = np.unique(own).size
        if holding == 1:
            return math.nan
        centred = (part - part.mean()) / part.size
        sums.append(np.bincount(own, weights=centred, minlength=n_groups))
        factors.append(holding / (holding - 1))
    own_share = sum(f * float(s @ s) for f, s in zip(factors, sums, strict=True))
    return own_share + 2 * n_groups / (n_groups - 1) * float(sums[0] @ sums[1])


def _why(variance: float) -> str:
    if math.isnan(variance):
        return "no interval: all items of a class are one group"
    return "no interval: the DeLong variance is 0"


def _join(*notes: str) -> str:
    return "; ".join(filter(None, notes))
