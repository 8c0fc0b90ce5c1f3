"""Do two judges agree? Cohen's kappa of their labels with a 95% interval, and the table behind it.

kappa = (p_o - p_e) / (1 - p_e): the observed share of equal labels p_o, less what two judges that
label at random with the same frequencies would reach, p_e (Cohen, 1960, "A coefficient of agreement
for nominal scales", Educational and Psychological Measurement 20).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikescore.stats.bootstrap import DRAWS, Z, central, draw_groups


@dataclass(frozen=True)
class Agreement:
    """Two judges' labels of the same answers.

    `table` [2, 2] counts answers, rows the first judge's label (0, 1), columns the second's.
    `kappa` is NaN where it is not defined (both judges gave one and the same label throughout), the
    `interval` is (NaN, NaN) where the labels hold nothing to measure its width by. `unlabelled`
    answers lack a label of one judge or of both and are not in the table.
    """

    table: np.ndarray
    observed: float
    expected: float
    kappa: float
    interval: tuple[float, float]
    interval_by: str
    unlabelled: int

    @property
    def n(self) -> int:
        return int(self.table.sum())


def agree(
    first: Sequence[int | None],
    second: Sequence[int | None],
    *,
    groups: Sequence[str | None] | None = None,
) -> Agreement:
    """Return the agreement of two judges' labels [n] (1, 0, None) of the same n answers.

    The interval is kappa +- 1.96 large-sample standard errors, or, where `groups` [n] says that
    some answers belong together (turns of one story; None: on its own), a percentile bootstrap over
    groups. Raises ValueError when the lengths differ or no answer has both labels.
    """
    if groups is None:
        groups = [None] * len(first)
    if not len(first) == len(second) == len(groups):
        raise ValueError(f"{len(first)}, {len(second)} and {len(groups)} labels, labels, groups")
    both = [
        (int(a), int(b), f"group {group}" if group is not None else f"item {place}")
        for place, (a, b, group) in enumerate(zip(first, second, groups, strict=True))
        if a is not None and b is not None
    ]
    if not both:
        raise ValueError("no answer has a label of both judges")
    tables = _tables_by_group(both)
    table = tables.sum(axis=0)
    if len(tables) < len(both):
        interval, by = _bootstrap(tables), f"bootstrap over {len(tables)} groups"
    else:
        interval, by = _normal_interval(table), "standard error"
    observed, expected = _shares(table)
    return Agreement(
        table, observed, expected, cohen_kappa(table), interval, by, len(first) - len(both)
    )


def cohen_kappa(table: np.ndarray) -> float:
    """Return Cohen's kappa of a square table of counts, NaN when both judges gave one label only.

    Unweighted, for any number of labels: rows the first judge's, columns the second's.
    """
    observed, expected = _shares(table)
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def standard_error(table: np.ndarray) -> float:
    """Return the large-sample standard error of kappa; NaN where kappa is not defined.

    Fleiss, Cohen and Everitt (1969), "Large sample standard errors of kappa and weighted kappa",
    Psychological Bulletin 72, for the unweighted kappa, not under the hypothesis that it is 0.
    """
    share = np.asarray(table, dtype=float) / np.sum(table)
    kappa, (_, expected) = cohen_kappa(table), _shares(table)
    if math.isnan(kappa):
        return math.nan
    rows, columns = share.sum(axis=1), share.sum(axis=0)
    equal = np.diag(share) @ (1 - (rows + columns) * (1 - kappa)) ** 2
    crossed = share * (columns[:, None] + rows[None, :]) ** 2
    unequal = (1 - kappa) ** 2 * (crossed.sum() - np.trace(crossed))
    variance = equal + unequal - (kappa - expected * (1 - kappa)) ** 2
    if variance < 1e-12:  # exactly zero, but for rounding
        return 0.0
    return math.sqrt(variance / np.sum(table)) / (1 - expected)


def _normal_interval(table: np.ndarray) -> tuple[float, float]:
    kappa, error = cohen_kappa(table), standard_error(table)
    if not error > 0:  # nothing varied in the sample, which does not mean that kappa is exact
        return math.nan, math.nan
    return max(-1.0, kappa - Z * error), min(1.0, kappa + Z * error)


def agreement_report(agreement: Agreement, first: str, second: str) -> str:
    """Return the 2 x 2 table of two named judges and, below, agreement and kappa, as text."""
    names = ("not consistent", "consistent")
    width = max(len(names[0]), len(first)) + 2
    lines = [
        f"{'':{width}}{second}",
        f"{first:{width}}{names[0]:>16}{names[1]:>16}",
        *(
            f"{name:{width}}{int(row[0]):>16,}{int(row[1]):>16,}"
            for name, row in zip(names, agreement.table, strict=True)
        ),
        f"agreement {agreement.observed:.3f} of {agreement.n:,} answers "
        f"(by chance {agreement.expected:.3f})"
        + (f", {agreement.unlabelled:,} without both labels" if agreement.unlabelled else ""),
        _kappa_line(agreement),
    ]
    return "\n".join(lines)


def _kappa_line(agreement: Agreement) -> str:
    if math.isnan(agreement.kappa):
        return "Cohen's kappa: not defined, both judges gave one and the same label throughout"
    low, high = agreement.interval
    if math.isnan(low):
        return f"Cohen's kappa {agreement.kappa:.3f}, no interval: the labels leave no variance"
    return (
        f"Cohen's kappa {agreement.kappa:.3f}, 95% interval {low:.3f} to {high:.3f} "
        f"({agreement.interval_by})"
    )


def _shares(table: np.ndarray) -> tuple[float, float]:
    """Return the observed share of equal labels and the share expected by chance."""
    table = np.asarray(table)
    n = int(table.sum())
    crossed = int(table.sum(axis=1) @ table.sum(axis=0))
    return int(np.trace(table)) / n, crossed / n**2


def _tables_by_group(both: Sequence[tuple[int, int, str]]) -> np.ndarray:
    """Return one table of counts for each group, [groups, 2, 2]."""
    place = {group: index for index, group in enumerate(dict.fromkeys(one[2] for one in both))}
    tables = np.zeros((len(place), 2, 2), dtype=np.int64)
    for a, b, group in both:
        tables[place[group], a, b] += 1
    return tables


def _bootstrap(tables: np.ndarray) -> tuple[float, float]:
    """Return the 2.5% and 97.5% points of kappa over tables drawn with replacement."""
    groups = np.arange(len(tables))
    weights = draw_groups(np.zeros(len(tables)), groups, draws=DRAWS, seed=0)
    kappas = np.array([cohen_kappa(table) for table in np.einsum("dg,gab->dab", weights, tables)])
    interval = central(kappas)
    return interval if interval and np.ptp(kappas[~np.isnan(kappas)]) else (math.nan, math.nan)
