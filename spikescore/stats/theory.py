"""The paper's theory against measured moments: conditions, bounds and what is observed.

H and T are the SpikeScores of a random hallucinated and a random consistent (truthful) item, drawn
independently, and D = H - T. Cantelli's inequality gives

    P(H > T) >= mean_D^2 / (mean_D^2 + var_H + var_T)        if mean_D > 0.

The paper (Deng et al., ICLR 2026) puts three conditions into it: (i) mean_H > 2 mean_T; (ii) the
ratio of standard deviations std_H / std_T lies between 1 and 2.5; (iii) the coefficient of
variation std_T / mean_T is at most 0.1 t. Then mean_D > mean_T and var_D <= (1 + 2.5^2) (0.1 t
mean_T)^2, so P(H > T) >= 1 / (1 + 0.0725 t^2).

Moments are those of the items themselves (ddof = 0). For a random pair of these items the bounds
are theorems then, not estimates; P(H > T) with half of the ties is the AUROC.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikescore.stats.roc import auroc, not_computable

MEAN_RATIO = 2.0
STD_RATIO = (1.0, 2.5)
CV_UNIT = 0.1
PAPER_CONSTANT = CV_UNIT**2 * (1 + STD_RATIO[1] ** 2)
"""0.0725 in the paper's bound."""
POOLED = "pooled"


@dataclass(frozen=True)
class Theory:
    """Moments, conditions, bounds and the observed P(H > T) of one domain, or of all pooled.

    All figures are None, and `note` gives the counts, with fewer than 10 items of a class.
    `mean_ratio`, `cv_t` and `t` are None where mean_T is 0, `std_ratio` where std_T is.
    `t` is the smallest that satisfies condition (iii). `paper_bound` is the paper's with that t; it
    is a bound only where `gap_holds` (i) and `spread_holds` (ii) do: `paper_bound_applies`.
    `cantelli` is None where mean_H <= mean_T: there is no bound then.
    """

    domain: str
    n_h: int
    n_t: int
    note: str = ""
    mean_h: float | None = None
    mean_t: float | None = None
    std_h: float | None = None
    std_t: float | None = None
    mean_ratio: float | None = None
    std_ratio: float | None = None
    cv_t: float | None = None
    t: float | None = None
    gap_holds: bool | None = None
    spread_holds: bool | None = None
    paper_bound: float | None = None
    paper_bound_applies: bool | None = None
    cantelli: float | None = None
    p_greater: float | None = None
    auroc: float | None = None


def theory_report(
    y: Sequence[int], spike_scores: Sequence[float], domains: Sequence[str]
) -> list[Theory]:
    """Return one entry per domain, in order of their names, and with several one for the pool.

    y, spike_scores and domains are [n]. The pool's moments are those of all items together, which
    is what a pooled AUROC's bound rests on. Raises ValueError for unequal lengths, a label other
    than 0 and 1, or a score that is not finite.
    """
    labels, scores, names = map(np.asarray, (y, spike_scores, domains))
    if not labels.shape == scores.shape == names.shape:
        raise ValueError(f"lengths differ: {labels.shape}, {scores.shape}, {names.shape}")
    if not (np.isin(labels, (0, 1)).all() and np.isfinite(scores).all()):
        raise ValueError("y must hold 0 and 1 only, and scores must be finite")
    parts = [(str(name), names == name) for name in np.unique(names)]
    if len(parts) > 1:
        parts.append((POOLED, np.ones(labels.size, bool)))
    return [measure_theory(labels[part], scores[part], name) for name, part in parts]


def measure_theory(y: np.ndarray, spike_scores: np.ndarray, domain: str) -> Theory:
    """Return the entry of one set of items, y [n] and SpikeScores [n]."""
    h, t = spike_scores[y == 1], spike_scores[y == 0]
    if note := not_computable(y):
        return Theory(domain, h.size, t.size, note)
    (mean_h, std_h), (mean_t, std_t) = _moments(h), _moments(t)
    std_ratio = std_h / std_t if std_t > 0 else None
    cv_t = std_t / mean_t if mean_t > 0 else None
    smallest_t = None if cv_t is None else cv_t / CV_UNIT
    gap = mean_h > MEAN_RATIO * mean_t
    spread = std_ratio is not None and STD_RATIO[0] <= std_ratio <= STD_RATIO[1]
    beaten = np.searchsorted(np.sort(t), h, side="left")
    return Theory(
        domain,
        h.size,
        t.size,
        mean_h=mean_h,
        mean_t=mean_t,
        std_h=std_h,
        std_t=std_t,
        mean_ratio=mean_h / mean_t if mean_t > 0 else None,
        std_ratio=std_ratio,
        cv_t=cv_t,
        t=smallest_t,
        gap_holds=gap,
        spread_holds=spread,
        paper_bound=None if smallest_t is None else paper_bound(smallest_t),
        paper_bound_applies=gap and spread and smallest_t is not None,
        cantelli=cantelli_bound(mean_h - mean_t, math.hypot(std_h, std_t)),
        p_greater=float(beaten.mean() / t.size),
        auroc=auroc(y, spike_scores),
    )


def paper_bound(t: float) -> float:
    """Return the paper's lower bound of P(H > T), 1 / (1 + 0.0725 t^2)."""
    return 1 / (1 + PAPER_CONSTANT * t**2)


def cantelli_bound(mean: float, std: float) -> float | None:
    """Return the lower bound of P(D > 0) for D of this mean and deviation; None for mean <= 0."""
    if mean <= 0:
        return None
    return (mean / math.hypot(mean, std)) ** 2


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation; of equal values exactly their value and 0."""
    if np.ptp(values) == 0:
        return float(values[0]), 0.0
    return float(values.mean()), float(values.std())
