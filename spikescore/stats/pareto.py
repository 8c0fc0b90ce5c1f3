"""Which of several choices nobody would give up: none is cheaper and at least as good."""

from __future__ import annotations

import numpy as np


def pareto_front(costs: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mask [n] of the choices on the Pareto front of costs [n] (low is good) and values
    [n] (high is good).

    A choice is off it where another costs no more and is worth no less, and is better in one of the
    two; equal ones stay together. One whose cost or value is NaN does not enter. Raises ValueError
    for other shapes.
    """
    cost, value = np.asarray(costs, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if cost.ndim != 1 or cost.shape != value.shape:
        raise ValueError(f"expected two lists of one length, got {cost.shape} and {value.shape}")
    known = np.isfinite(cost) & np.isfinite(value)
    front = np.zeros(cost.size, dtype=bool)
    best, best_cost = -np.inf, np.nan
    for place in np.lexsort((-value, cost)):  # by cost, the best of equal cost first
        if not known[place]:
            continue
        same = value[place] == best and cost[place] == best_cost
        if value[place] > best or same:
            front[place], best, best_cost = True, value[place], cost[place]
    return front
