"""Pearson and Spearman correlation of two columns, with 95% bootstrap intervals over groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikescore.stats.bootstrap import DRAWS, central, draw_groups

MIN_ITEMS = 10
"""With fewer items a bootstrap interval promises too much: the figure is not reported."""
_CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Correlation:
    """A correlation with its 95% interval; `value` is None, and `note` says why, if it has none."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""


def measure_correlation(
    x: Sequence[float],
    y: Sequence[float],
    *,
    ranks: bool,
    groups: Sequence | None = None,
    seed: int = 0,
) -> Correlation:
    """Return the Pearson correlation of x and y [n], or with `ranks` Spearman's, by group.

    Spearman's is Pearson's of midranks; each draw ranks its own items. Groups are drawn with
    replacement, every item its own group unless given. Not computable for fewer than MIN_ITEMS
    items or a constant column; a draw with a constant column is dropped.
    """
    columns = [np.asarray(values, dtype=np.float64) for values in (x, y)]
    n = columns[0].size
    if n < MIN_ITEMS:
        note = f"not computable: {n} items, at least {MIN_ITEMS} needed"
        return Correlation(None, None, None, n, note)
    if any(np.ptp(values) == 0 for values in columns):
        return Correlation(None, None, None, n, "not computable: all values are equal")
    names = np.arange(n) if groups is None else np.asarray(groups)
    value = float(_weighted(*columns, np.ones((1, n)), ranks)[0])
    weights = draw_groups(np.zeros(n, int), names, draws=DRAWS, seed=seed)
    at_once = max(1, _CELLS_AT_ONCE // n)
    resampled = [
        _weighted(*columns, weights[start : start + at_once].astype(np.float64), ranks)
        for start in range(0, DRAWS, at_once)
    ]
    interval = central(np.concatenate(resampled))
    if np.unique(names).size == 1 or interval is None:
        return Correlation(value, None, None, n, "no interval: all items are one group")
    return Correlation(value, *interval, n)


def _weighted(x: np.ndarray, y: np.ndarray, weights: np.ndarray, ranks: bool) -> np.ndarray:
    """Correlation of x and y [n] under each row of weights [draws, n]; NaN for a constant one."""
    columns = [
        _midranks(v, weights) if ranks else np.broadcast_to(v, weights.shape) for v in (x, y)
    ]
    total = weights.sum(axis=1, keepdims=True)
    a, b = (v - (weights * v).sum(axis=1, keepdims=True) / total for v in columns)
    spread = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    product = (weights * a * b).sum(axis=1)
    return np.divide(product, spread, out=np.full(len(weights), np.nan), where=spread > 1e-12)


def _midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Midrank of each value among the values repeated as often as each row's weights say."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    up_to = np.zeros((len(weights), values.size + 1))
    np.cumsum(weights[:, order], axis=1, out=up_to[:, 1:])
    below = up_to[:, np.searchsorted(ranked, values, side="left")]
    through = up_to[:, np.searchsorted(ranked, values, side="right")]
    return (below + through + 1) / 2
