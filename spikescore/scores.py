"""SpikeScore: how abruptly a dialogue's scores bend at their worst place. Pure numpy.

Scores are one number per answer, in order of turns: s_1 is the first answer's, s_K the last one's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MIN_SCORES = 3
"""A second difference needs three neighbouring turns; a shorter dialogue has no SpikeScore."""


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
