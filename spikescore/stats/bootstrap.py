"""Areas under the ROC curve that can be averaged and compared: value, bootstrap draws, influence.

A table's cell may be a mean: over probe seeds, over test domains, over training domains. An AUROC
is linear in its kernel, K[i, j] = 1 if hallucinated item i scores above consistent item j (1/2 for
a tie), so the mean over seeds is the AUROC of the mean kernel, and a bootstrap draw with item
weights w is w+' K w- / (sum w+ sum w-): one matrix product for all draws, and no approximation.
All cells see the same draws, so means and differences of cells have intervals of their own.

y = 1 means hallucinated and is the positive class. No direction is chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from spikescore.runtime import derived_seed, usable_cores
from spikescore.stats.roc import auroc

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


@dataclass(frozen=True)
class Area:
    """An AUROC, or a mean or difference of several; `items` [n] marks those it is measured on.

    `draws` [B] holds its bootstrap values, NaN where a draw lacks a class. `influence` [n] says how
    far each item moves it, so that sqrt(sum over groups of (group sum)^2) is DeLong's standard
    error, clustered by group. `value` is None, and `note` gives the counts, if not computable.
    """

    value: float | None
    draws: np.ndarray
    influence: np.ndarray
    items: np.ndarray
    n_positive: int
    note: str = ""

    @property
    def n(self) -> int:
        """Number of items it is measured on, each counted once."""
        return int(self.items.sum())

    @property
    def interval(self) -> tuple[float, float] | None:
        """Central 95% of the bootstrap draws; None without a value or without usable draws."""
        usable = self.draws[np.isfinite(self.draws)]
        if self.value is None or not usable.size:
            return None
        low, high = np.percentile(usable, (2.5, 97.5))
        return float(low), float(high)

    def standard_error(self, groups: np.ndarray) -> float | None:
        """DeLong's standard error, items of one group [n] counted as one observation.

        Source: DeLong, DeLong and Clarke-Pearson (1988); for groups Obuchowski (1997).
        """
        if self.value is None:
            return None
        _, place = np.unique(groups, return_inverse=True)
        return float(np.sqrt(np.square(np.bincount(place, weights=self.influence)).sum()))


@dataclass(frozen=True)
class Contrast:
    """A difference of two areas on the same items: 95% bootstrap interval and two p values."""

    value: float | None
    low: float | None
    high: float | None
    p_bootstrap: float | None
    p_delong: float | None
    n: int
    note: str = ""


class Resampler:
    """Bootstrap draws of one set of items, shared by every score that is measured on them.

    Groups are drawn with replacement within each domain: the domains are fixed, the questions are
    what might have been others. A domain's draws depend on (seed, its name, its groups) alone.
    """

    def __init__(
        self,
        y: np.ndarray,
        domains: np.ndarray,
        groups: np.ndarray,
        *,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> None:
        self.y = np.asarray(y)
        self.domains = np.asarray(domains)
        self.groups = np.asarray(groups)
        self.weights = np.zeros((draws, self.y.size), dtype=np.float32)
        for domain in dict.fromkeys(self.domains.tolist()):
            members = np.flatnonzero(self.domains == domain)
            _, place = np.unique(self.groups[members], return_inverse=True)
            n_groups = int(place.max()) + 1
            rng = np.random.default_rng(derived_seed(seed, domain, "bootstrap"))
            counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)
            self.weights[:, members] = counts[:, place]

    def area(self, scores: np.ndarray, items: np.ndarray) -> Area:
        """Return the AUROC of scores [seeds, n], the mean over seeds, on the items of a mask [n].

        Items that lack a score under any seed are left out. Not computable with fewer than
        MIN_PER_CLASS items of a class left.
        """
        scores = np.atleast_2d(scores)
        used = np.asarray(items, bool) & np.isfinite(scores).all(axis=0)
        positive, negative = (np.flatnonzero(used & (self.y == label)) for label in (1, 0))
        if min(positive.size, negative.size) < MIN_PER_CLASS:
            note = (
                f"not computable: {positive.size} hallucinated and {negative.size} consistent, "
                f"at least {MIN_PER_CLASS} of each needed"
            )
            return self._nothing(used, note)
        kernel = np.zeros((positive.size, negative.size), dtype=np.float32)
        for row in scores:
            one, other = row[positive][:, None], row[negative]
            kernel += one > other
            kernel += np.float32(0.5) * (one == other)
        kernel /= len(scores)
        value = float(kernel.mean(dtype=np.float64))
        heavy, light = self.weights[:, positive], self.weights[:, negative]
        wins = np.einsum("bn,bn->b", heavy @ kernel, light).astype(np.float64)
        pairs = heavy.sum(axis=1, dtype=np.float64) * light.sum(axis=1, dtype=np.float64)
        draws = np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
        influence = np.zeros(self.y.size)
        for places, axis in ((positive, 1), (negative, 0)):
            placement = kernel.mean(axis=axis, dtype=np.float64)
            influence[places] = (placement - value) / math.sqrt(places.size * (places.size - 1))
        return Area(value, draws, influence, used, positive.size)

    def mean(self, areas: Sequence[Area], *, of: str) -> Area:
        """Return the plain mean of the areas that are computable; the note says if some are not.

        `of` names what is averaged over, such as "domains".
        """
        used = [area for area in areas if area.value is not None]
        items = np.any([area.items for area in used or areas], axis=0)
        if not used:
            alone = areas[0].note if len(areas) == 1 else ""
            return self._nothing(items, alone or f"not computable in any of {len(areas)} {of}")
        return Area(
            float(np.mean([area.value for area in used])),
            np.mean([area.draws for area in used], axis=0),
            np.mean([area.influence for area in used], axis=0),
            items,
            int(self.y[items].sum()),
            f"mean over {len(used)} of {len(areas)} {of}" if len(used) < len(areas) else "",
        )

    def contrast(self, one: Area, other: Area) -> Contrast:
        """Return one - other, which must be of the same items, with interval and p values.

        p_bootstrap is two-sided from the draws (one added to both counts, as no finite number of
        draws proves p = 0); p_delong is DeLong's test, clustered by group.
        """
        if one.value is None or other.value is None:
            return Contrast(None, None, None, None, None, one.n, one.note or other.note)
        value = one.value - other.value
        draws = one.draws - other.draws
        draws = draws[np.isfinite(draws)]
        low = high = p = None
        if draws.size:
            low, high = map(float, np.percentile(draws, (2.5, 97.5)))
            tail = min((draws <= 0).sum(), (draws >= 0).sum())
            p = float(min(1.0, 2 * (tail + 1) / (draws.size + 1)))
        both = Area(value, draws, one.influence - other.influence, one.items, one.n_positive)
        error = both.standard_error(self.groups)
        p_delong = 1.0 if value == 0 else 0.0
        if error:
            p_delong = math.erfc(abs(value) / error / math.sqrt(2))
        return Contrast(value, low, high, p, p_delong, one.n)

    def _nothing(self, items: np.ndarray, note: str) -> Area:
        draws = np.full(len(self.weights), np.nan)
        return Area(None, draws, np.zeros(self.y.size), items, int(self.y[items].sum()), note)


_CELLS_AT_ONCE = 1_280_000  # items x draws of a block: about 30 MB in all


def resample_aurocs(
    y: np.ndarray, scores: np.ndarray, groups: np.ndarray, *, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the AUROC of each of the m scores [m, n] in each draw: [m, draws], NaN where a class
    is absent.

    Groups are numbered from 0 without gaps; as many as there are are drawn with replacement, and
    all m scores see the same draws. Blocks of draws are spread over the cores in threads; neither
    the draws nor the values depend on their number.
    """
    n_groups = int(groups.max()) + 1
    at_once = max(1, _CELLS_AT_ONCE // y.size)
    rankings = [_Ranking.of(y, row, groups) for row in scores]
    values = np.empty((len(rankings), draws))
    blocks = [slice(start, min(start + at_once, draws)) for start in range(0, draws, at_once)]

    def measure(block: slice, counts: np.ndarray) -> None:
        scratch = _Scratch.of(y, counts.shape[1])
        for row, ranking in enumerate(rankings):
            values[row, block] = ranking.aurocs(counts, scratch)

    threads = max(1, min(len(blocks), usable_cores()))
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(blocks), threads):  # no more counts are held than are in use
            ahead = blocks[first : first + threads]
            counts = [_draw(n_groups, block.stop - block.start, rng) for block in ahead]
            list(pool.map(measure, ahead, counts))
    return values


def _draw(n_groups: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each group is drawn when as many are drawn as there are: [groups, draws]."""
    cells = rng.integers(n_groups, size=(draws, n_groups)) * draws + np.arange(draws)[:, None]
    counts = np.bincount(cells.ravel(), minlength=n_groups * draws)
    return counts.reshape(n_groups, draws).astype(np.float64)


@dataclass(frozen=True)
class _Ranking:
    """One score's items in order: groups of the negatives, sorted by score, and of the positives;
    for each positive the number of negatives below it, and below it or tied with it."""

    negatives: np.ndarray
    positives: np.ndarray
    below: np.ndarray
    up_to: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> _Ranking:
        order = np.argsort(scores, kind="stable")
        labels, ranked, groups = y[order], scores[order], groups[order]
        ends = [
            np.searchsorted(ranked[labels == 0], ranked[labels == 1], side=side)
            for side in ("left", "right")
        ]
        return cls(groups[labels == 0], groups[labels == 1], *ends)

    def aurocs(self, counts: np.ndarray, scratch: _Scratch) -> np.ndarray:
        """AUROC of each draw, given counts [groups, draws]; NaN where a class is absent."""
        n = len(self.negatives)
        _take(counts, self.negatives, out=scratch.sums[1 : n + 1])
        weight_below = _sum_up(scratch.sums, n)
        beaten = _take(weight_below, self.below, out=scratch.beaten)
        tied = np.flatnonzero(self.up_to > self.below)
        beaten[tied] = (beaten[tied] + weight_below[self.up_to[tied]]) / 2
        weights = _take(counts, self.positives, out=scratch.weights)
        wins = np.einsum("id,id->d", weights, beaten)
        pairs = weights.sum(axis=0) * weight_below[n]
        return np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs > 0)


@dataclass(frozen=True)
class _Scratch:
    """Arrays used again for every score: to allocate them anew would take half of the time."""

    sums: np.ndarray
    beaten: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, y: np.ndarray, draws: int) -> _Scratch:
        m = int(y.sum())
        side = math.isqrt(y.size - m) + 1
        return cls(*(np.zeros((size, draws)) for size in (side * side, m, m)))


def _take(rows: np.ndarray, places: np.ndarray, *, out: np.ndarray) -> np.ndarray:
    """rows[places] into `out`; all places are valid, and any mode but "raise" writes directly."""
    return np.take(rows, places, axis=0, out=out, mode="clip")


def _sum_up(rows: np.ndarray, n: int) -> np.ndarray:
    """Make row k of [s * s, draws] the sum of rows 0..k, in place, as far as row n; s * s > n.

    Sums run within s stretches side by side and are then chained: numpy's cumsum goes one number at
    a time and would take most of the bootstrap's time.
    """
    side = math.isqrt(len(rows))
    rows[0], rows[n + 1 :] = 0.0, 0.0
    stretches = rows.reshape(side, side, -1)
    for place in range(1, side):
        stretches[:, place] += stretches[:, place - 1]
    for stretch in range(1, side):
        stretches[stretch] += stretches[stretch - 1, -1]
    return rows
