"""SpikeScore, how abruptly a dialogue's scores bend at their worst place, and its rivals.

Scores are one number per answer, in order of turns: s_1 is the first answer's, s_K the last one's.
Many dialogues are a matrix [n, K], NaN after a dialogue's last turn. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MIN_SCORES = 3
"""A second difference needs three neighbouring turns; a shorter dialogue has no SpikeScore."""


# --- one dialogue -----------------------------------------------------------------------------


def second_differences(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return s[k+1] - 2 s[k] + s[k-1] for every interior turn k.

    Shape [K] -> [K-2], float64, signed; entry 0 belongs to turn 2. Raises ValueError for fewer than
    three scores and for a score that is not finite: a missing score has no honest stand-in, and
    dropping it would let a difference span the gap.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size < MIN_SCORES:
        raise ValueError(
            f"expected at least {MIN_SCORES} scores in a row, got shape {values.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"the score of turn {bad[0] + 1} is not finite: {values[bad[0]]}")
    return values[2:] - 2.0 * values[1:-1] + values[:-2]


def spike_score(scores: Sequence[float] | np.ndarray) -> float:
    """Return the largest local bend of a dialogue's scores: max over interior k of

        | s[k+1] - 2 s[k] + s[k-1] |

    over all K-2 interior turns, without weights or smoothing. Unit: that of the scores. Range: at
    least 0 (a straight line); at most 2 when the scores lie in [0, 1]. Adding a constant or a
    straight line to the scores changes nothing. Raises ValueError as `second_differences` does.
    Source: Deng et al., "Beyond In-Domain Detection: SpikeScore for Cross-Domain Hallucination
    Detection" (ICLR 2026), definition of SpikeScore.
    """
    return float(np.abs(second_differences(scores)).max())


def spike_turn(scores: Sequence[float] | np.ndarray) -> int:
    """Return the turn k, counted from 1, where `spike_score` is reached; the earliest one on a tie.

    It is the middle of the three turns, so it lies in 2..K-1. Raises ValueError as
    `second_differences` does.
    """
    return int(np.abs(second_differences(scores)).argmax()) + 2


# --- many dialogues ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Functional:
    """A functional: `compute` maps [n, K] to [n]; rows with fewer than `min_turns` scores get NaN.

    `compute` expects float64 without gaps and may return anything on rows that are too short; use
    `apply`, which sees to both.
    """

    name: str
    title: str
    compute: Callable[[np.ndarray], np.ndarray]
    min_turns: int


def apply(name: str, turns: np.ndarray) -> np.ndarray:
    """Return the named functional of each row of turns [n, K]: float64 [n].

    NaN where a row has fewer than the functional's `min_turns` scores, or a gap. Raises KeyError
    for an unknown name and ValueError for what is not a matrix.
    """
    functional = FUNCTIONALS[name]
    matrix = _as_matrix(turns)
    lengths, whole = _lengths(matrix)
    usable = whole & (lengths >= functional.min_turns)
    values = np.full(len(matrix), np.nan)
    if usable.any():
        values[usable] = functional.compute(matrix[usable])
    return values


def truncate(turns: np.ndarray, k: int) -> np.ndarray:
    """Return the first k turns of every dialogue: a copy [n, min(k, K)]; k must be at least 1."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return _as_matrix(turns)[:, :k].copy()


def turn_means(turns: np.ndarray) -> np.ndarray:
    """Return the mean score of each turn [K] over the dialogues that reach it, NaN where none does.

    To be taken from the training domain and handed to `remove_turn_means`.
    """
    matrix = _as_matrix(turns)
    known = np.isfinite(matrix)
    sums, counts = np.where(known, matrix, 0.0).sum(axis=0), known.sum(axis=0)
    return np.divide(sums, counts, out=np.full(matrix.shape[1], np.nan), where=counts > 0)


def remove_turn_means(turns: np.ndarray, turn_means: np.ndarray) -> np.ndarray:
    """Return turns [n, K] less each turn's mean [K]: what a turn's prompt does to every item alike.

    The means must come from the training domain, never from the items evaluated. A turn beyond the
    known means has no mean to remove: its scores become NaN, the dialogue ends before it. Raises
    ValueError when the means have a gap before a later one.
    """
    matrix, means = _as_matrix(turns), np.asarray(turn_means, dtype=np.float64)
    if means.ndim != 1 or not _lengths(means[None])[1][0]:
        raise ValueError(f"expected turn means [K] without gaps, got {means}")
    padded = np.full(matrix.shape[1], np.nan)
    size = min(means.size, padded.size)
    padded[:size] = means[:size]
    return matrix - padded


def _as_matrix(turns: np.ndarray) -> np.ndarray:
    matrix = np.asarray(turns, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"expected scores [n, K], got shape {matrix.shape}")
    return matrix


def _lengths(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of leading finite scores [n], and whether nothing but NaN padding follows them [n]."""
    finite = np.isfinite(matrix)
    lengths = np.logical_and.accumulate(finite, axis=1).sum(axis=1)
    return lengths, np.isnan(matrix).sum(axis=1) == matrix.shape[1] - lengths


# --- the functionals: rows here have no gaps and are long enough ------------------------------


def bends(turns: np.ndarray) -> np.ndarray:
    """Return |s[k+1] - 2 s[k] + s[k-1]| [n, K-2], NaN where a turn is missing."""
    return np.abs(turns[:, 2:] - 2.0 * turns[:, 1:-1] + turns[:, :-2])


def max_abs_d2(turns: np.ndarray) -> np.ndarray:
    """SpikeScore: max_k |s[k+1] - 2 s[k] + s[k-1]| over the interior turns. At least 3 turns.

    Source: Deng et al., "Beyond In-Domain Detection: SpikeScore for Cross-Domain Hallucination
    Detection" (ICLR 2026). The same number as `spike_score`, for many rows.
    """
    return np.nanmax(bends(turns), axis=1)


def spike_without_first(turns: np.ndarray) -> np.ndarray:
    """SpikeScore of turns 2 to K: max|second difference| with the first answer left out.

    At least 4 turns. A control of this project: the probe is trained on first answers, so its
    score falls or rises from turn 1 to turn 2 for every item.
    """
    return max_abs_d2(turns[:, 1:])


def max_abs_d1(turns: np.ndarray) -> np.ndarray:
    """Largest step: max_k |s[k+1] - s[k]|. At least 2 turns. Ablation named by Deng et al."""
    return np.nanmax(np.abs(np.diff(turns, axis=1)), axis=1)


def sum_abs_d2(turns: np.ndarray) -> np.ndarray:
    """Total bend: sum_k |s[k+1] - 2 s[k] + s[k-1]|; grows with the number of turns. At least 3.

    Half of what the public release of SpikeScore ranks by, see `release`.
    """
    return np.nansum(bends(turns), axis=1)


def variance(turns: np.ndarray) -> np.ndarray:
    """Population variance of the scores: mean of (s - mean)^2, divided by k (ddof = 0).

    At least 2 turns. Ablation named by Deng et al.
    """
    return np.nanvar(turns, axis=1)


def cv(turns: np.ndarray) -> np.ndarray:
    """Coefficient of variation: population standard deviation / |mean|; NaN where the mean is 0.

    At least 2 turns. Source: the CV score of Sun et al. (2025, arXiv 2505.12886), there over the
    steps of one reasoning chain; the comparator of Deng et al. The mean's size is taken so that a
    scorer with negative values keeps the direction.
    """
    size = np.abs(np.nanmean(turns, axis=1))
    return np.divide(
        np.nanstd(turns, axis=1), size, out=np.full(len(turns), np.nan), where=size > 0
    )


def score_range(turns: np.ndarray) -> np.ndarray:
    """Range of the scores: max - min. At least 2 turns. Ablation named by Deng et al."""
    return np.nanmax(turns, axis=1) - np.nanmin(turns, axis=1)


def mean(turns: np.ndarray) -> np.ndarray:
    """Mean score over all turns. At least 1 turn. Control: level, not movement."""
    return np.nanmean(turns, axis=1)


def last(turns: np.ndarray) -> np.ndarray:
    """Score of the last turn. At least 1 turn. Control: where the dialogue ends up."""
    ends = np.isfinite(turns).sum(axis=1) - 1
    return turns[np.arange(len(turns)), ends]


def first(turns: np.ndarray) -> np.ndarray:
    """Score of the first answer alone, s_1. At least 1 turn. Control: the scorer by itself."""
    return turns[:, 0]


def release(turns: np.ndarray) -> np.ndarray:
    """What the public release computes: population variance + sum of |second differences|.

    At least 3 turns. Source: TianYaDY/SpikeScore, eval_probe.py; not the paper's definition.
    """
    return variance(turns) + sum_abs_d2(turns)


FUNCTIONALS: dict[str, Functional] = {
    functional.name: functional
    for functional in (
        Functional("max_abs_d2", "SpikeScore, max|Δ²|", max_abs_d2, MIN_SCORES),
        Functional("spike_without_first", "SpikeScore without the first answer",
                   spike_without_first, MIN_SCORES + 1),
        Functional("max_abs_d1", "max|Δ|", max_abs_d1, 2),
        Functional("sum_abs_d2", "Σ|Δ²|", sum_abs_d2, MIN_SCORES),
        Functional("variance", "variance", variance, 2),
        Functional("cv", "coefficient of variation", cv, 2),
        Functional("range", "range", score_range, 2),
        Functional("mean", "mean over turns", mean, 1),
        Functional("last", "last turn", last, 1),
        Functional("first", "first answer", first, 1),
        Functional("release", "public release, variance + Σ|Δ²|", release, MIN_SCORES),
    )
}  # fmt: skip
"""All functionals by name; the titles are for tables."""
