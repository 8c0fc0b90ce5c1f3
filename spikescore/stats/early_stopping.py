"""A rule to stop a dialogue early: which dialogues it stops, and with what score.

SpikeScore over the first k turns can only grow with k. So a dialogue can be stopped and flagged as
soon as its running score reaches the threshold: every later turn would leave it flagged. The rule
therefore flags exactly the dialogues that all K turns flag; what it can lose is the order among the
flagged ones, and with it AUROC.
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


def stop_early(turns: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the score [n] that each dialogue is stopped with, and the turn k [n], from 3 to K.

    It stops at the first k whose running SpikeScore reaches the threshold, else at K. A dialogue
    without a score at every turn does not enter: NaN, and 0 turns. The threshold is the one that
    flags dialogues anyway, set on the training domain's validation split.
    """
    running = spike_by_k(turns)
    reached = running >= threshold
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
