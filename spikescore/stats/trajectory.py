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


def bends(turns: np.ndarray) -> np.ndarray:
    """Return |s[k+1] - 2 s[k] + s[k-1]| [n, K-2] of turns [n, K], NaN where a turn is missing."""
    return np.abs(turns[:, 2:] - 2.0 * turns[:, 1:-1] + turns[:, :-2])


def _total_bend(turns: np.ndarray) -> np.ndarray:
    return np.nansum(bends(turns), axis=1)


def _variance(turns: np.ndarray) -> np.ndarray:
    return np.nanvar(turns, axis=1)  # divided by k (ddof = 0)


def _coefficient_of_variation(turns: np.ndarray) -> np.ndarray:
    """Deviation / |mean|, so that a scorer with negative values keeps its direction."""
    size = np.abs(np.nanmean(turns, axis=1))
    nothing = np.full(len(turns), np.nan)
    return np.divide(np.nanstd(turns, axis=1), size, out=nothing, where=size > 0)


def _last(turns: np.ndarray) -> np.ndarray:
    return turns[np.arange(len(turns)), np.isfinite(turns).sum(axis=1) - 1]


@dataclass(frozen=True)
class Functional:
    """A functional: `compute` maps [n, K] to [n]; rows with fewer than `min_turns` scores get NaN.

    `compute` expects float64 without gaps and may return anything on rows that are too short; use
    `apply`, which sees to both. The title is for tables.
    """

    title: str
    compute: Callable[[np.ndarray], np.ndarray]
    min_turns: int


FUNCTIONALS = {
    # Deng et al. (ICLR 2026): the same number as `spike_score`, for many rows
    "max_abs_d2": Functional(
        "SpikeScore, max|Δ²|", lambda s: np.nanmax(bends(s), axis=1), MIN_SCORES
    ),
    # a control of this project: the probe is trained on first answers, so its score falls or rises
    # from turn 1 to turn 2 for every item
    "spike_without_first": Functional(
        "SpikeScore without the first answer",
        lambda s: np.nanmax(bends(s[:, 1:]), axis=1),
        MIN_SCORES + 1,
    ),
    # ablations named by Deng et al.; the sum grows with the number of turns
    "max_abs_d1": Functional("max|Δ|", lambda s: np.nanmax(np.abs(np.diff(s, axis=1)), axis=1), 2),
    "sum_abs_d2": Functional("Σ|Δ²|", _total_bend, MIN_SCORES),
    "variance": Functional("variance", _variance, 2),
    # the comparator of Deng et al.: the CV score of Sun et al. (2025, arXiv 2505.12886), there over
    # the steps of one reasoning chain
    "cv": Functional("coefficient of variation", _coefficient_of_variation, 2),
    "range": Functional("range", lambda s: np.nanmax(s, axis=1) - np.nanmin(s, axis=1), 2),
    # controls: level, where the dialogue ends up, and the scorer by itself
    "mean": Functional("mean over turns", lambda s: np.nanmean(s, axis=1), 1),
    "last": Functional("last turn", _last, 1),
    "first": Functional("first answer", lambda s: s[:, 0], 1),
    # what the public release computes (TianYaDY/SpikeScore, eval_probe.py), not the paper's score
    "release": Functional(
        "public release, variance + Σ|Δ²|", lambda s: _variance(s) + _total_bend(s), MIN_SCORES
    ),
}


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
