"""Areas under the ROC curve that can be averaged and compared: value, bootstrap draws, influence.

A table's cell may be a mean: over probe seeds, over test domains, over training domains. An AUROC
is linear in its kernel, K[i, j] = 1 if hallucinated item i scores above consistent item j (1/2 for
a tie), so the mean over seeds is the AUROC of the mean kernel, and a bootstrap draw with item
weights w is w+' K w- / (sum w+ sum w-): one matrix product for all draws, and no approximation.
All cells see the same draws, so means and differences of cells have intervals of their own.

The kernel's row and column means are DeLong's components: the share of the other class that an
item is ranked rightly against. Their variances give that of the AUROC without a draw (DeLong et
al., 1988); where several items share a group (a story), components are summed by group first
(Obuchowski, 1997). y = 1 means hallucinated and is the positive class. No direction is chosen here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from spikescore.runtime import derived_seed
from spikescore.stats.roc import MIN_PER_CLASS, not_computable

DRAWS = 2000
"""Enough for the 2.5% and 97.5% points to be steady to about 0.002 at n = 200."""
Z = NormalDist().inv_cdf(0.975)
_NOTHING = 1e-9  # a standard error below it is rounding: there is no variance
_KERNEL_CELLS = 2**24  # of a block of the kernel: 64 MB


@dataclass(frozen=True)
class Area:
    """An AUROC, or a mean of several; `items` [n] marks those it is measured on.

    `draws` [B] holds its bootstrap values, NaN where a draw lacks a class or there is a single
    group. `influence` [3, n] says how far each item moves it: the sum of all squared group sums is
    its variance. Means and differences of areas are those of their draws and influences. `value` is
    None, and `note` gives the counts, if not computable. `parts` says how many of the AUROCs that
    it is the mean of are computable: (1, 1) for a single one.
    """

    value: float | None
    draws: np.ndarray
    influence: np.ndarray
    items: np.ndarray
    n_positive: int
    note: str = ""
    parts: tuple[int, int] = (1, 1)

    @property
    def n(self) -> int:
        """Number of items it is measured on, each counted once."""
        return int(self.items.sum())

    @property
    def interval(self) -> tuple[float, float] | None:
        """Central 95% of the bootstrap draws; None without a value or without usable draws."""
        return None if self.value is None else central(self.draws)

    def standard_error(self, groups: np.ndarray) -> float | None:
        """DeLong's standard error, items of one group [n] counted as one observation.

        The groups are those of the resampler. None without a value, and where all items of a class
        are one group.
        """
        return None if self.value is None else _standard_error(self.influence, groups)

    def delong_interval(self, groups: np.ndarray) -> tuple[float, float] | None:
        """DeLong's 95% interval, symmetric on the logit scale, so that it stays within 0 and 1.

        None where the variance is 0: that no error was seen does not make one impossible.
        """
        error = self.standard_error(groups)
        if not error or not 0 < self.value < 1:
            return None
        centre = math.log(self.value / (1 - self.value))
        reach = Z * error / (self.value * (1 - self.value))
        low, high = (1 / (1 + math.exp(-end)) for end in (centre - reach, centre + reach))
        return low, high

    def told(self, interval: tuple[float, float] | None) -> dict[str, Any]:
        """Return it as plain data, with one of its intervals."""
        low, high = interval or (None, None)
        return {"value": self.value, "low": low, "high": high, "n": self.n,
                "n_positive": self.n_positive, "note": self.note}  # fmt: skip


@dataclass(frozen=True)
class Contrast:
    """A difference of two areas on the same items: 95% bootstrap interval and two p values.

    Both p values are two-sided. None, with a note, where the difference has no variance: no finite
    sample proves p = 0. `error` is DeLong's standard error.
    """

    value: float | None
    low: float | None
    high: float | None
    p_bootstrap: float | None
    p_delong: float | None
    n: int
    note: str = ""
    error: float | None = None
    parts: tuple[int, int] = (1, 1)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The bootstrap interval."""
        return None if self.low is None else (self.low, self.high)

    @property
    def delong_interval(self) -> tuple[float, float] | None:
        """DeLong's 95% (Wald) interval; None where it has no variance."""
        if not self.error and self.p_delong is None:
            return None
        return self.value - Z * self.error, self.value + Z * self.error

    def told(self, interval: tuple[float, float] | None, p: float | None) -> dict[str, Any]:
        """Return it as plain data, with one of its intervals and p values."""
        low, high = interval or (None, None)
        return {"value": self.value, "low": low, "high": high, "p": p, "n": self.n,
                "note": self.note}  # fmt: skip


def draw_groups(domains: np.ndarray, groups: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """Return how often each item is in each draw: uint8 [draws, n].

    As many groups as a domain has are drawn with replacement, whatever the class of their items. A
    domain's draws depend on (seed, its name, its groups) alone.
    """
    domains, groups = np.asarray(domains), np.asarray(groups)
    weights = np.zeros((draws, domains.size), dtype=np.uint8)
    for domain in dict.fromkeys(domains.tolist()):
        members = np.flatnonzero(domains == domain)
        _, place = np.unique(groups[members], return_inverse=True)
        n_groups = int(place.max()) + 1
        rng = np.random.default_rng(derived_seed(seed, domain, "bootstrap"))
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)
        weights[:, members] = counts[:, place]
    return weights


class Resampler:
    """Bootstrap draws of one set of items, shared by every score that is measured on them.

    Groups are drawn with replacement within each domain (`draw_groups`): the domains are fixed, the
    questions are what might have been others. Raises ValueError for unequal lengths and for a label
    other than 0 and 1.
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
        self.y, self.domains, self.groups = map(np.asarray, (y, domains, groups))
        if not self.y.shape == self.domains.shape == self.groups.shape == (self.y.size,):
            shapes = f"{self.y.shape}, {self.domains.shape}, {self.groups.shape}"
            raise ValueError(f"lengths differ: y, domains and groups are {shapes}")
        if not np.isin(self.y, (0, 1)).all():
            raise ValueError("y must hold 0 and 1 only")
        self.weights = draw_groups(self.domains, self.groups, draws=draws, seed=seed)

    def area(self, scores: np.ndarray, items: np.ndarray) -> Area:
        """Return the AUROC of scores [seeds, n], the mean over seeds, on the items of a mask [n].

        Items that lack a score under any seed are left out. Not computable with fewer than
        `roc.MIN_PER_CLASS` items of a class left. Raises ValueError for scores of another length.
        """
        scores = np.atleast_2d(scores)
        if scores.shape[1] != self.y.size:
            raise ValueError(f"lengths differ: {scores.shape[1]} scores of {self.y.size} items")
        used = np.asarray(items, bool) & np.isfinite(scores).all(axis=0)
        if note := not_computable(self.y[used]):
            return self.nothing(used, note)
        positive, negative = (np.flatnonzero(used & (self.y == label)) for label in (1, 0))
        heavy, light = (
            self.weights[:, places].astype(np.float32) for places in (positive, negative)
        )
        wins, placement = np.zeros(len(self.weights)), np.zeros(self.y.size)
        step = max(1, _KERNEL_CELLS // negative.size)
        for rows in (slice(start, start + step) for start in range(0, positive.size, step)):
            kernel = _kernel(scores[:, positive[rows]], scores[:, negative])
            wins += np.einsum("bn,bn->b", heavy[:, rows] @ kernel, light)
            placement[positive[rows]] = kernel.mean(axis=1, dtype=np.float64)
            placement[negative] += kernel.sum(axis=0, dtype=np.float64) / positive.size
        value = float(placement[positive].mean())
        pairs = heavy.sum(axis=1, dtype=np.float64) * light.sum(axis=1, dtype=np.float64)
        draws = _ratio(wins, pairs)
        influence = self._influence(placement - value, positive, negative)
        note = ""
        if np.isnan(influence).any():
            note = "no interval: all items of a class are one group"
            if np.unique(self.groups[used]).size == 1:
                draws[:] = np.nan
        return Area(value, draws, influence, used, positive.size, note)

    def rate(self, items: np.ndarray) -> Area:
        """Return the share of hallucinated items in a mask [n], with its draws."""
        used = np.asarray(items, bool)
        if not used.any():
            return self.nothing(used, "no items")
        weights, y = self.weights[:, used].astype(np.float64), self.y[used]
        draws = _ratio(weights @ y, weights.sum(axis=1))
        note = ""
        if np.unique(self.groups[used]).size == 1:
            draws[:], note = np.nan, "no interval: all items are one group"
        return Area(float(y.mean()), draws, np.zeros((3, self.y.size)), used, int(y.sum()), note)

    def paired(self, scores: np.ndarray, items: np.ndarray, pairs: np.ndarray) -> Area:
        """Return the paired accuracy of scores [seeds, n]: how often the hallucinated item of a
        pair scores higher than its consistent twin, a tie counting half.

        `pairs` [n] names each item's pair, "" for none; both twins are of one group. Every pair
        counts once: where several of its items are hallucinated or consistent, as the mean over
        them. Items that lack a score under any seed are left out, pairs without a twin with them.
        `Area.items` marks one item of each pair that is left. Not computable with fewer than
        `roc.MIN_PER_CLASS` pairs.
        """
        scores = np.atleast_2d(scores)
        used = np.asarray(items, bool) & np.isfinite(scores).all(axis=0) & (pairs != "")
        members: dict[str, tuple[list[int], list[int]]] = {}
        for place in np.flatnonzero(used):
            members.setdefault(str(pairs[place]), ([], []))[self.y[place]].append(int(place))
        whole = [(right, wrong) for right, wrong in members.values() if right and wrong]
        marks = np.zeros(self.y.size, dtype=bool)
        first = np.array([wrong[0] for _, wrong in whole], dtype=np.intp)
        marks[first] = True
        if len(whole) < MIN_PER_CLASS:
            return self.nothing(marks, f"{len(whole)} pairs; at least {MIN_PER_CLASS} are needed")
        won = np.array([_kernel(scores[:, wrong], scores[:, right]).mean(dtype=np.float64)
                        for right, wrong in whole])  # fmt: skip
        value, weights = float(won.mean()), self.weights[:, first].astype(np.float64)
        draws = _ratio(weights @ won, weights.sum(axis=1))
        influence, n_groups = np.zeros((3, self.y.size)), np.unique(self.groups[first]).size
        if n_groups == 1:
            note = "no interval: all pairs are one group"
            draws[:], influence[:] = np.nan, np.nan
            return Area(value, draws, influence, marks, len(whole), note)
        influence[0, first] = math.sqrt(n_groups / (n_groups - 1)) * (won - value) / len(whole)
        return Area(value, draws, influence, marks, len(whole))

    def _influence(
        self, centred: np.ndarray, positive: np.ndarray, negative: np.ndarray
    ) -> np.ndarray:
        """Return an area's influence [3, n] from centred placements [n]; NaN for one group alone.

        Obuchowski's variance is, summed over groups with sums a of the positives' and b of the
        negatives' components, f1 a^2 + f0 b^2 + 2 f a b, each f = I / (I - 1) of the number I of
        groups that have a positive, a negative, or either. As f is the smallest, it is the sum of
        squares f (a + b)^2 + (f1 - f) a^2 + (f0 - f) b^2: a row each.
        """
        everyone = np.concatenate([positive, negative])
        sizes = [np.unique(self.groups[items]).size for items in (everyone, positive, negative)]
        both, *own = (size / (size - 1) if size > 1 else np.nan for size in sizes)
        influence = np.zeros((3, self.y.size))
        for row, items, factor in ((1, positive, own[0]), (2, negative, own[1])):
            influence[0, items] = np.sqrt(both) * centred[items] / items.size
            influence[row, items] = np.sqrt(factor - both) * centred[items] / items.size
        return influence

    def mean(self, areas: Sequence[Area], *, of: str) -> Area:
        """Return the plain mean of the areas that are computable; the note says if some are not.

        `of` names what is averaged over, such as "domains".
        """
        used = [area for area in areas if area.value is not None]
        items = np.any([area.items for area in used or areas], axis=0)
        parts = (sum(area.parts[0] for area in areas), sum(area.parts[1] for area in areas))
        if not used:
            alone = areas[0].note if len(areas) == 1 else ""
            note = alone or f"not computable in any of {len(areas)} {of}"
            return self.nothing(items, note, parts)
        notes = [f"mean over {len(used)} of {len(areas)} {of}"] * (len(used) < len(areas))
        inner = [area.note for area in used if area.note]
        for note in dict.fromkeys(inner):
            where = f" in {inner.count(note)} of {len(used)} {of}" if len(used) > 1 else ""
            notes.append(note + where)
        return Area(
            float(np.mean([area.value for area in used])),
            np.mean([area.draws for area in used], axis=0),
            np.mean([area.influence for area in used], axis=0),
            items,
            int(self.y[items].sum()),
            "; ".join(notes),
            parts,
        )

    def contrast(self, one: Area, other: Area) -> Contrast:
        """Return one - other, which must be of the same items, with interval and p values.

        p_bootstrap is from the draws (one added to both counts, as no finite number of draws proves
        p = 0); p_delong is DeLong's test, clustered by group. Two scores that rank all items alike
        differ by 0, and p = 1.
        """
        n, parts = one.n, one.parts
        if one.value is None or other.value is None:
            note = one.note or other.note
            return Contrast(None, None, None, None, None, n, note, parts=parts)
        influence = one.influence - other.influence
        draws = one.draws - other.draws
        value, error = one.value - other.value, _standard_error(influence, self.groups)
        if abs(value) < _NOTHING and error == 0:
            value = 0.0
        notes = [one.note] if one.note else []
        (low, high, p_bootstrap), p_delong = _told_by(draws, value), None
        if error or value == error == 0:
            p_delong = math.erfc(abs(value) / error / math.sqrt(2)) if error else 1.0
            p_delong = max(p_delong, sys.float_info.min)  # erfc is 0 beyond 39 deviations
        elif error == 0:
            notes.append("no p value: the difference has no variance")
        return Contrast(value, low, high, p_bootstrap, p_delong, n, "; ".join(notes), error, parts)

    def nothing(self, items: np.ndarray, note: str, parts: tuple[int, int] = (0, 1)) -> Area:
        """Return the area of items [n] that none can be computed for."""
        draws = np.full(len(self.weights), np.nan)
        n_positive = int(self.y[items].sum())
        return Area(None, draws, np.zeros((3, self.y.size)), items, n_positive, note, parts)


def contrast_of_draws(one: Area, other: Area) -> Contrast:
    """Return one - other by their bootstrap draws alone, each of its own labels.

    The two may be of two resamplers: where those are of the same groups in the same order under one
    seed, the draws are paired; under two seeds they are independent.
    """
    if one.value is None or other.value is None:
        return Contrast(None, None, None, None, None, one.n, one.note or other.note)
    draws, value = one.draws - other.draws, one.value - other.value
    low, high, p_bootstrap = _told_by(draws, value)
    return Contrast(value, low, high, p_bootstrap, None, one.n, one.note, parts=one.parts)


def measure_auroc(
    y: np.ndarray,
    scores: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Area:
    """Return the AUROC of one score [n] of items [n], each its own group unless given."""
    y = np.asarray(y)
    groups = np.arange(y.size) if groups is None else groups
    resampler = Resampler(y, np.zeros(y.size, int), groups, seed=seed)
    return resampler.area(np.asarray(scores, dtype=np.float64), np.ones(y.size, bool))


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


def _kernel(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Share of seeds under which each of m positives beats each of k negatives: [m, k]."""
    kernel = np.zeros((positive.shape[1], negative.shape[1]), dtype=np.float32)
    for one, other in zip(positive[:, :, None], negative, strict=True):
        kernel += one > other
        kernel += np.float32(0.5) * (one == other)
    return kernel / np.float32(len(positive))


def _standard_error(influence: np.ndarray, groups: np.ndarray) -> float | None:
    _, place = np.unique(groups, return_inverse=True)
    sums = [np.bincount(place, weights=row) for row in influence]
    error = float(np.sqrt(np.square(sums).sum()))
    return None if math.isnan(error) else error if error > _NOTHING else 0.0


def central(draws: np.ndarray) -> tuple[float, float] | None:
    """Return the central 95% of the draws that have a value; None where none has."""
    usable = draws[np.isfinite(draws)]
    if not usable.size:
        return None
    low, high = np.percentile(usable, (2.5, 97.5))
    return float(low), float(high)


def _told_by(draws: np.ndarray, value: float) -> tuple[float | None, float | None, float | None]:
    """Return the interval of a difference and its p value, twice the share of draws at or beyond 0
    on the rarer side; None where the draws do not vary.
    """
    usable = draws[np.isfinite(draws)]
    if not usable.size or (value and np.ptp(usable) < _NOTHING):
        return None, None, None
    tail = min((usable <= 0).sum(), (usable >= 0).sum())
    return *central(usable), float(min(1.0, 2 * (tail + 1) / (usable.size + 1)))


def _ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Return parts / wholes [B]; NaN where there is no whole."""
    return np.divide(parts, wholes, out=np.full(len(wholes), np.nan), where=wholes > 0)
