"""Accuracy against cost: every method's macro AUROC beside what an item costs it, from the book.

Costs are those of scoring one new item, its first answer included: training, and the work of other
models (one that judges entailment), are not in them. A method that scores the first answer costs
that answer and the groups of measures that it reads; SpikeScore over K turns costs turns 1 to K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from spikescore.detectors import REGISTRY
from spikescore.detectors.costs import groups_read
from spikescore.detectors.score_book import BookItem, ScoreBook
from spikescore.dialogues.prompts import FORKED
from spikescore.report.comparison import SPIKE, Comparison, Entry, longest, trajectory_entry
from spikescore.report.content import Table
from spikescore.report.paper import BASE_SCORER
from spikescore.report.text import MISSING, figure_cell, number, share
from spikescore.stats.bootstrap import Area
from spikescore.stats.pareto import pareto_front

COSTS = {"generated": "tokens generated", "encoded": "tokens encoded", "seconds": "seconds"}
SPIKE_TURNS = (3, 5, 10)
"""Turns that SpikeScore is shown at, beside all of them."""


@dataclass(frozen=True)
class CostPoint:
    """A method: macro AUROC, and its mean cost an item by the names of COSTS, None where unknown.

    `k`: the turns that SpikeScore is of, else 0, and `schedule`: how they were asked, where not in
    a row. `front`: the costs by which it is on the front. `known`: over how many of the items each
    mean cost is.
    """

    title: str
    family: str
    area: Area
    costs: dict[str, float | None]
    k: int = 0
    schedule: str = ""
    front: frozenset[str] = frozenset()
    known: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def auroc(self) -> float | None:
        """The macro AUROC; None where it is not computable."""
        return self.area.value


def item_cost(item: BookItem, turns: int | None, needs: Sequence[str]) -> list[float | None]:
    """Return generated tokens, encoded tokens and seconds of an item's first `turns` (None: all)
    and of what was measured for `needs`; None where a part is not known.
    """
    spent = [
        float(sum(one[:turns])) if one else None
        for one in (item.turn_tokens, item.turn_encoded, item.turn_seconds)
    ]
    for need in needs:
        extra = [*item.measured.get(need, ()), None, None, None]  # older books lack the time
        spent = [None if None in pair else sum(pair) for pair in zip(spent, extra, strict=False)]
    return spent


def known_costs(book: ScoreBook, turns: int | None, needs: Sequence[str]) -> dict[str, list[float]]:
    """Return each `item_cost` of the items of which it is known."""
    rows = [item_cost(item, turns, needs) for item in book.items]
    known = [[one for one in column if one is not None] for column in zip(*rows, strict=True)]
    return dict(zip(COSTS, known, strict=True))


def mean_cost(book: ScoreBook, turns: int | None, needs: Sequence[str]) -> dict[str, float | None]:
    """Return the mean of each of the `known_costs`; None where it is known of no item."""
    return _costs(book, turns, needs)["costs"]


def _costs(book: ScoreBook, turns: int | None, needs: Sequence[str]) -> dict[str, dict]:
    """Return a point's mean `costs` and over how many items they are `known`."""
    known = known_costs(book, turns, needs)
    means = {name: float(np.mean(own)) if own else None for name, own in known.items()}
    return {
        "costs": means,
        "known": {name: (len(own), len(book.items)) for name, own in known.items()},
    }


def cost_points(
    comparison: Comparison, entries: Sequence[Entry], forked: Comparison | None = None
) -> list[CostPoint]:
    """Return every method, SpikeScore at several K first, with the fronts marked.

    `forked` is the run whose follow-ups were asked side by side: its SpikeScore is shown too.
    Controls, which nobody would use, do not compete.
    """
    book = comparison.book
    points = _spike_points(comparison, "")
    if forked:
        points += _spike_points(forked, FORKED)
    for entry in entries:
        if entry.name == SPIKE:
            continue
        about = book.methods[entry.name]
        usual = getattr(REGISTRY.get(entry.name), "whole_dialogue", False)
        needs = about.get("measured", groups_read(about["needs"]))
        costs = _costs(book, None if about.get("whole_dialogue", usual) else 1, needs)
        area = comparison.mean(entry, "macro")
        points.append(CostPoint(entry.title, entry.family, area, **costs))
    return with_fronts(points)


def _spike_points(comparison: Comparison, schedule: str) -> list[CostPoint]:
    """Return SpikeScore at several K, of turns that were asked by this schedule ("": in a row)."""
    book, told = comparison.book, f", {schedule}" if schedule else ""
    most, points = longest(book, BASE_SCORER), []
    for k in (*(k for k in SPIKE_TURNS if k < most), most):
        if entry := trajectory_entry(book, "max_abs_d2", BASE_SCORER, k):
            area = comparison.mean(entry, "macro")
            title, costs = f"SpikeScore{told}, K = {k}", _costs(book, k, ())
            points.append(CostPoint(title, entry.family, area, k=k, schedule=schedule, **costs))
    return points


def with_fronts(points: Sequence[CostPoint]) -> list[CostPoint]:
    """Return the points with the Pareto front of each cost marked."""
    values = [None if one.family == "control" else one.auroc for one in points]
    fronts = {
        name: pareto_front(
            np.array([one.costs[name] for one in points], float), np.array(values, float)
        )
        for name in COSTS
    }
    return [
        replace(one, front=frozenset(name for name in COSTS if fronts[name][place]))
        for place, one in enumerate(points)
    ]


def cost_table(points: Sequence[CostPoint]) -> Table:
    """Return the points as a table; bold are those on a front."""
    unknown = {"generated": "not known", "encoded": "not known", "seconds": "not measured"}
    forms = {"generated": ",.0f", "encoded": ",.0f", "seconds": ",.3f"}

    def cell(one: CostPoint, name: str) -> str:
        if one.costs[name] is None:
            return unknown[name]
        return number(one.costs[name], forms[name]) + share(*one.known.get(name, (1, 1)))

    some = any(0 < made < of for one in points for made, of in one.known.values())
    of_items = " Behind a cost: the mean is over a of b items." if some else ""
    rows = [
        (
            one.title,
            figure_cell(one.area),
            *(cell(one, name) for name in COSTS),
            ", ".join(COSTS[name] for name in COSTS if name in one.front),
        )
        for one in points
    ]
    return Table(
        "Accuracy against cost",
        ("method", "AUROC, macro", *(f"{label} an item" for label in COSTS.values()),
         "on the Pareto front by"),
        tuple(rows),
        "Bold (* in Markdown): on the Pareto front by some cost, as nothing that costs no more has "
        "an AUROC as high. The front is of point estimates: neighbours on it need not differ "
        "significantly. Costs are of scoring one new item, its first answer included; training and "
        "the work of other models, such as a judge of entailment, are not in them, nor are "
        "controls on the front. Encoded: tokens of prompts that no earlier prompt about the item "
        "had. Seconds: the item's share of the passes, on a CPU of their processor time. A method "
        "by measures is charged its first answer and whole groups of measures, also for what only "
        "other methods read of them, and the samples where a group shows them to the model. "
        f"{MISSING}{of_items}",
        frozenset((row, 0) for row, one in enumerate(points) if one.front),
    )  # fmt: skip
