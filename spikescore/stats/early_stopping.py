"""A rule to stop a dialogue early, what it saves and what it costs.

SpikeScore over the first k turns can only grow with k. So a dialogue can be stopped and flagged as
soon as its running score reaches the threshold: every later turn would leave it flagged. The rule
therefore flags exactly the dialogues that all K turns flag; what it can lose is the order among the
flagged ones, and with it AUROC.

Scores are `turns` [n, K] as in `trajectory`, NaN after a dialogue's last turn; tokens are what
each turn cost, in the same shape. Only dialogues with all K turns enter; n says how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikescore.stats.bootstrap import DRAWS, Auroc, Difference, Sample, measure_table
from spikescore.stats.operating_points import Figure, operating_figures
from spikescore.stats.trajectory import MIN_SCORES


@dataclass(frozen=True)
class EarlyStop:
    """What stopping at a threshold saves and costs, on n dialogues of K turns.

    `stopped` is the share stopped before turn K; `turns` the mean number of turns used,
    `turns_saved` and `tokens_saved` shares of what all K turns cost (tokens None when not known).
    `change` is AUROC(with the rule) - AUROC(all turns), paired. F1 and accuracy, at the threshold,
    are the same with the rule as with all turns, so there is one figure of each.
    """

    threshold: float
    n: int
    stopped: float
    turns: float
    turns_saved: float
    tokens_saved: float | None
    auroc: Auroc
    auroc_all_turns: Auroc
    change: Difference
    f1: Figure
    accuracy: Figure


def spike_by_k(turns: np.ndarray) -> np.ndarray:
    """Return SpikeScore over the first k turns for k = 3..K: [n, K-2] from turns [n, K].

    NaN from the first missing turn on. Raises ValueError for fewer than three columns.
    """
    matrix = np.asarray(turns, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] < MIN_SCORES:
        raise ValueError(f"expected scores [n, K >= {MIN_SCORES}], got shape {matrix.shape}")
    bends = np.abs(matrix[:, 2:] - 2.0 * matrix[:, 1:-1] + matrix[:, :-2])
    # a NaN stays in the running maximum: nothing is known beyond a gap
    return np.maximum.accumulate(bends, axis=1)


def tokens_by_k(tokens: np.ndarray) -> np.ndarray:
    """Return the tokens spent over the first k turns for k = 3..K: [n, K-2] from tokens [n, K]."""
    return np.cumsum(np.asarray(tokens, dtype=np.float64), axis=1)[:, MIN_SCORES - 1 :]


def stop_turns(turns: np.ndarray, threshold: float) -> np.ndarray:
    """Return the turn k, from 3 to K, at which each dialogue stops: int [n].

    The first k whose running SpikeScore reaches the threshold, else K. All turns must be finite.
    """
    reached = spike_by_k(turns) >= threshold
    last = reached.shape[1] - 1
    return np.where(reached.any(axis=1), reached.argmax(axis=1), last) + MIN_SCORES


def measure_early_stop(
    y: Sequence[int],
    turns: np.ndarray,
    threshold: float,
    *,
    tokens: np.ndarray | None = None,
    groups: Sequence | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> EarlyStop:
    """Return what the rule saves and costs; the threshold comes from the training domain.

    It is the one that flags dialogues anyway, set on the training domain's validation split
    (`operating_points.choose_threshold`). A stopped dialogue keeps the score it was stopped with.
    """
    labels, matrix, spent, names = _complete(y, turns, tokens, groups)
    n, n_turns = matrix.shape
    running = spike_by_k(matrix)
    used = stop_turns(matrix, threshold)
    stopped_scores = running[np.arange(n), used - MIN_SCORES]
    sample = Sample.of(labels, stopped_scores, running[:, -1], groups=names)
    (with_rule, all_turns), (change,) = measure_table([sample], draws=draws, seed=seed)
    flags = operating_figures([sample], threshold=threshold)
    saved = None
    if spent is not None:
        paid = tokens_by_k(spent)[np.arange(n), used - MIN_SCORES]
        saved = float(1 - paid.sum() / spent.sum())
    return EarlyStop(
        threshold=threshold,
        n=n,
        stopped=float((used < n_turns).mean()),
        turns=float(used.mean()),
        turns_saved=float(1 - used.mean() / n_turns),
        tokens_saved=saved,
        auroc=with_rule,
        auroc_all_turns=all_turns,
        change=change,
        f1=flags["f1"],
        accuracy=flags["accuracy"],
    )


def _complete(
    y: Sequence[int], turns: np.ndarray, tokens: np.ndarray | None, groups: Sequence | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Keep the dialogues with all K scores; ValueError if none is left or a token count is bad."""
    labels, matrix = np.asarray(y), np.asarray(turns, dtype=np.float64)
    kept = np.isfinite(matrix).all(axis=1)
    if not kept.any():
        raise ValueError("no dialogue has a score at every turn")
    spent = None
    if tokens is not None:
        spent = np.asarray(tokens, dtype=np.float64)
        if spent.shape != matrix.shape or not (spent[kept] >= 0).all():
            raise ValueError("tokens must be given for every turn that has a score")
        spent = spent[kept]
    return labels[kept], matrix[kept], spent, None if groups is None else np.asarray(groups)[kept]
