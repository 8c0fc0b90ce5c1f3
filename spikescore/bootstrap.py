"""AUROCs of many scores in many bootstrap draws, fast.

A draw is a count per group, so each score is sorted once, and its AUROCs in a whole block of draws
take one prefix sum down its sorted items. All sums are of whole and half numbers, hence exact.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from spikescore.threads import usable_cores

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
