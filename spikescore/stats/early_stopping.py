"""Rules to stop a dialogue early: which dialogues they stop, and with what score.

SpikeScore over the first k turns can only grow with k. So a dialogue can be stopped and flagged as
soon as its running score reaches the threshold: every later turn would leave it flagged. That rule
flags exactly the dialogues that all K turns flag; what it can lose is the order among the flagged
ones, and with it AUROC.

The other side has no such certainty: a quiet dialogue may still spike. It is stopped as truthful
where its running score is below a bound for that turn, which is learnt: `truthful_bounds`.
"""

from __future__ import annotations

import numpy as np

from spikescore.stats.trajectory import MIN_SCORES, bends


def spike_by_k(turns: np.ndarray) -> np.ndarray:
    """Return SpikeScore over the first k turns for k = 3..K: [n, K-2] from turns [n, K].

    NaN from the first missing turn on. Raises ValueError for fewer than three columns.
    """
    matrix = np.asarray(turns, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] < MIN_SCORES:
        raise ValueError(f"expected scores [n, K >= {MIN_SCORES}], got shape {matrix.shape}")
    # a NaN stays in the running maximum: nothing is known beyond a gap
    return np.maximum.accumulate(bends(matrix), axis=1)


def truthful_bounds(turns: np.ndarray, threshold: float, lost: float) -> np.ndarray:
    """Return the bounds [K-2] for k = 3..K below which a running score stops as truthful.

    Learnt from the turns [n, K] of the training domain's validation split. Of its m dialogues that
    all turns flag, the bound of turn k is the (j + 1)-th smallest running score at k, with one j
    for all turns: the largest with which no more than the share `lost` of the m would have been
    stopped as truthful at any turn. j = 0 loses none of them. What that says of others: a dialogue
    that is exchangeable with the m and that all turns flag falls below the smallest of them at a
    given turn with a probability of at most 1 / (m + 1), hence at any with at most (K - 3) / (m +
    1); for j > 0, which is chosen by what it loses, and for another domain nothing is guaranteed.
    All -inf (never stop) where the split has no dialogue that is flagged. Raises ValueError for a
    share outside [0, 1).
    """
    if not 0 <= lost < 1:
        raise ValueError(f"the share of flagged dialogues lost must be in [0, 1), not {lost}")
    running = spike_by_k(turns)
    running = running[np.isfinite(turns).all(axis=1) & (running[:, -1] >= threshold)]
    bounds = np.full(running.shape[1], -np.inf)
    ranked = np.sort(running, axis=0)
    for candidate in ranked[:, :-1]:
        open_still = np.logical_and.accumulate(running[:, :-1] < threshold, axis=1)
        if ((running[:, :-1] < candidate) & open_still).any(axis=1).mean() > lost:
            break
        bounds[:-1] = candidate
    return bounds


def stop_early(
    turns: np.ndarray, threshold: float, bounds: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score [n] that each dialogue is stopped with, and the turn k [n], from 3 to K.

    It stops at the first k whose running SpikeScore reaches the threshold, or is below the bound
    of k where bounds [K-2] are given, else at K. A dialogue without a score at every turn does not
    enter: NaN, and 0 turns. The threshold is the one that flags dialogues anyway, set on the
    training domain's validation split.
    """
    running = spike_by_k(turns)
    reached = running >= threshold
    if bounds is not None:
        reached |= running < bounds
    stop = np.where(reached.any(axis=1), reached.argmax(axis=1), reached.shape[1] - 1)
    whole = np.isfinite(turns).all(axis=1)
    scores = running[np.arange(len(running)), stop]
    return np.where(whole, scores, np.nan), np.where(whole, stop + MIN_SCORES, 0)


def tokens_saved(tokens: np.ndarray, stops: np.ndarray) -> float:
    """Return the share of all tokens [n, K] that stopping after so many turns [n] saves.

    Raises ValueError for another shape and for a count that is negative or missing.
    """
    spent = np.asarray(tokens, dtype=np.float64)
    if spent.ndim != 2 or len(spent) != len(stops) or not (spent >= 0).all():
        raise ValueError("tokens must be given for every turn of every dialogue")
    used = np.arange(spent.shape[1]) < np.asarray(stops)[:, None]
    return float(1 - (spent * used).sum() / spent.sum())
