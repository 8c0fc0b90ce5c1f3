"""Tables about runs beside the main one: prompts, temperature, the release's choices, judges.

A generated variant has fewer questions than the main run, a part of the same ones, and is scored by
what was learnt from the main run. All rows of a table, the main run's as well, are of the questions
that each of its runs has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spikescore.detectors.score_book import ScoreBook
from spikescore.report.comparison import (
    CROSS,
    SPIKE,
    Comparison,
    Entry,
    longest,
    on_shared_items,
    static_entries,
    trajectory_entry,
)
from spikescore.report.content import Table
from spikescore.report.cost_tables import SPIKE_TURNS, mean_cost
from spikescore.report.experiment import Variant
from spikescore.report.paper import BASE_SCORER
from spikescore.report.text import MISSING, figure_cell, number, p_value, share, with_interval
from spikescore.stats.agreement import agree
from spikescore.stats.bootstrap import Area, Contrast, contrast_of_draws
from spikescore.stats.trajectory import FUNCTIONALS

SHOWN = (SPIKE, f"first:{BASE_SCORER}", "perplexity")
SHOWN_TITLES = ("SpikeScore", "first-answer probe", "perplexity")
CAPTIONS = {
    "schedules": ("Prompt schedules", "schedule"),
    "order": ("Order of the prompts", "order"),
    "temperature": ("Temperature", "temperature"),
    "release": ("The public release's choices, one at a time", "choice"),
    "retrieval": ("With and without retrieved passages", "run"),
    "judges": ("Judges", "judge"),
}


@dataclass(frozen=True)
class VariantResult:
    """A row of a variants' table: mean areas by (score, view), n and rate of the items."""

    title: str
    areas: dict[tuple[str, str], Area]
    n: int
    rate: float


def measure_variant(title: str, comparison: Comparison) -> VariantResult:
    """Return the row of one run."""
    book = comparison.book
    entries = variant_entries(book)
    areas = {
        (name, view): comparison.mean(entries[name], view)
        for name in SHOWN
        for view in CROSS
        if name in entries
    }
    return VariantResult(title, areas, book.y.size, float(book.y.mean()))


def variant_entries(book: ScoreBook) -> dict[str, Entry]:
    """Return the scores that variants are compared by, those that the book has."""
    spike = trajectory_entry(book, "max_abs_d2", BASE_SCORER)
    first = trajectory_entry(book, "first", BASE_SCORER)
    perplexity = static_entries(book).get("perplexity")
    return {entry.name: entry for entry in (spike, first, perplexity) if entry}


def on_same_questions(books: Sequence[ScoreBook]) -> list[ScoreBook]:
    """Return the books of runs, each with the items alone that all of them have."""
    asked = [[(item.domain, item.id) for item in book.items] for book in books]
    common = set.intersection(*map(set, asked))
    return [
        book.subset(np.array([one in common for one in own], dtype=bool))
        for book, own in zip(books, asked, strict=True)
    ]


def variant_table(kind: str, results: Sequence[VariantResult], note: str = "") -> Table:
    """Return the runs of one kind as rows, the reference first."""
    caption, column = CAPTIONS[kind]
    rows = []
    for result in results:
        cells = [figure_cell(result.areas.get((name, view))) for view in CROSS for name in SHOWN]
        rows.append((result.title, f"{result.n}, {result.rate:.0%}", *cells))
    header = [column, "n, hallucinated"]
    for view in CROSS:
        header += [f"{view}: {SHOWN_TITLES[0]}", *SHOWN_TITLES[1:]]
    return Table(caption, tuple(header), tuple(rows), f"{note} {MISSING}".strip())


def order_spread(results: Sequence[VariantResult]) -> str:
    """Return how far SpikeScore moves over the shuffled orders, as one sentence."""
    told = []
    for view in CROSS:
        found = [result.areas[SPIKE, view].value for result in results]
        values = [value for value in found if value is not None]
        if len(values) > 1:
            spread = float(np.std(values, ddof=1))
            mean = f"{np.mean(values):.3f}{share(len(values), len(found))}"
            told.append(f"{view} {mean}, standard deviation {spread:.3f}")
    return f"SpikeScore over {len(results)} orders: {'; '.join(told)}." if told else ""


def release_results(
    reference: Comparison, generated: Sequence[VariantResult], title: str
) -> list[VariantResult]:
    """Return ours, the release's generated choices, its score and its sign, one at a time."""
    book = reference.book
    rows = [measure_variant(title, reference), *generated]
    spike = trajectory_entry(book, "max_abs_d2", BASE_SCORER)
    inverted = spike and replace(spike, scores={name: -own for name, own in spike.scores.items()})
    for label, scores in (
        ("variance + Σ|Δ²| in place of max|Δ²|", trajectory_entry(book, "release", BASE_SCORER)),
        ("correct answers as the positive class", inverted),
    ):
        if scores:
            areas = {(SPIKE, view): reference.mean(scores, view) for view in CROSS}
            rows.append(VariantResult(label, areas, book.y.size, float(book.y.mean())))
    return rows


def difference_table(kind: str, one: ScoreBook, other: ScoreBook, *, draws: int) -> Table:
    """Return one run minus another on the questions that both have: hallucination rates, overall
    and by domain, and AUROCs.

    The same draws of questions measure both, so that what is common to them leaves the interval;
    each run has its own labels.
    """
    sides = [Comparison(book, draws=draws) for book in on_shared_items(one, other)]
    entries = [variant_entries(side.book) for side in sides]
    rows, bold = [], set()

    def add(about: str, what: str, areas: Sequence[Area], found: Contrast) -> None:
        if found.interval and not found.interval[0] <= 0 <= found.interval[1]:
            bold.add((len(rows), 4))
        cells = (*map(figure_cell, areas), figure_cell(found, "+.3f"))
        rows.append((what, about, *cells, p_value(found.p_bootstrap)))

    domains = sides[0].domains
    parts = {"all": np.ones(domains.size, dtype=bool)}
    parts |= {name: domains == name for name in sides[0].book.domain_names()}
    for name, mask in parts.items():
        rates = [side.resampler.rate(mask) for side in sides]
        add(name, "hallucinated", rates, contrast_of_draws(*rates))
    for view in CROSS:
        for name, title in zip(SHOWN, SHOWN_TITLES, strict=True):
            if all(name in own for own in entries):
                one, other = (own[name] for own in entries)
                areas = [sides[0].mean(one, view), sides[1].mean(other, view)]
                found = sides[0].difference(one, sides[1], other, view)
                add(view, f"AUROC, {title}", areas, found)
    header = ("figure", "of", "with", "without", "with minus without", "p, bootstrap")
    return Table(
        f"{CAPTIONS[kind][0]}, paired",
        header,
        tuple(rows),
        f"On the {sides[0].y.size} questions that both runs have, drawn together, each run "
        f"with its own labels; in bold (* in Markdown) the differences whose 95% interval leaves "
        f"out 0. {MISSING}",
        frozenset(bold),
    )


def forked_table(forked: ScoreBook, sequential: ScoreBook, *, draws: int) -> Table:
    """Return functionals over K forked scores, in the order of the ladder, less those over
    sequential ones: at equal K, and at equal tokens, on the questions that both runs have.

    At equal tokens the sequential dialogue has the most turns whose tokens, encoded and generated,
    are on average no more than those of K forked turns. The same draws of questions measure both.
    """
    sides = [Comparison(book, draws=draws) for book in on_shared_items(forked, sequential)]
    longest_of = [longest(side.book, BASE_SCORER) for side in sides]
    most = min(longest_of)
    ks = dict.fromkeys(k for k in (*SPIKE_TURNS, most) if 0 < k <= most)
    spent = [[_tokens(side.book, k) for k in range(1, turns + 1)]
             for side, turns in zip(sides, longest_of, strict=True)]  # fmt: skip
    rows, bold = [], set()
    for name, functional in FUNCTIONALS.items():
        for k in ks:
            paid = spent[0][k - 1]
            fitting = [place for place, cost in enumerate(spent[1], start=1)
                       if None not in (cost, paid) and cost <= paid]  # fmt: skip
            one = _over_turns(sides[0], name, k)
            if one is None:
                continue
            fits = max(fitting, default=0)
            area = sides[0].mean(one, "macro")
            cells = [functional.title, str(k), number(paid, ",.0f"), figure_cell(area)]
            for turns, told in ((k, number(spent[1][k - 1], ",.0f")), (fits, str(fits or ""))):
                other = _over_turns(sides[1], name, turns)
                found = other and sides[0].difference(one, sides[1], other, "macro")
                area = other and sides[1].mean(other, "macro")
                cells += [told, figure_cell(area), figure_cell(found, "+.3f")]
                if found and found.interval and not found.interval[0] <= 0 <= found.interval[1]:
                    bold.add((len(rows), len(cells) - 1))
            rows.append(tuple(cells))
    return Table(
        "Forked and sequential follow-ups, paired",
        (
            "functional", "K", "tokens, forked", "forked",
            "tokens, sequential", "sequential, equal K", "forked minus sequential",
            "turns at equal tokens", "sequential, equal tokens", "forked minus sequential",
        ),
        tuple(rows),
        f"Mean macro AUROC over SAPLMA's scores, on the {sides[0].y.size} questions that both runs "
        "have, drawn together, each run with its own labels; in bold (* in Markdown) the "
        "differences whose 95% interval leaves out 0. The probes are the main run's, which learnt "
        "from first answers: these are the same in both. Tokens: those that K turns encode and "
        "generate, on average. Equal tokens: the most sequential turns that take no more than K "
        f"forked ones. {MISSING}",
        frozenset(bold),
    )  # fmt: skip


def _over_turns(side: Comparison, functional: str, k: int) -> Entry | None:
    """Return a functional over k turns; None where they are too few."""
    if k < FUNCTIONALS[functional].min_turns:
        return None
    return trajectory_entry(side.book, functional, BASE_SCORER, k)


def _tokens(book: ScoreBook, k: int) -> float | None:
    """Return the mean number of tokens, encoded and generated, of k turns; None where unknown."""
    costs = mean_cost(book, k, ())
    parts = (costs["generated"], costs["encoded"])
    return None if None in parts else sum(parts)


def retrieval_note(book: ScoreBook) -> str:
    """Return how often a gold answer stood in the passages, and how often they held none."""
    held = [item.meta["gold_in_passage"] for item in book.items if "gold_in_passage" in item.meta]
    if not held:
        return "No question of it was given passages."
    return (
        f"{len(held)} of {book.y.size} questions got passages; a gold answer stands in those of "
        f"{sum(held)}."
    )


def judge_note(main: ScoreBook, judged: ScoreBook, variant: Variant) -> str:
    """Return how far another judge's labels agree with the main run's, as one sentence."""
    labels = {(item.domain, item.id): item.y for item in judged.items}
    pairs = [
        (1 - item.y, 1 - labels[item.domain, item.id], item.group)
        for item in main.items
        if (item.domain, item.id) in labels
    ]
    first, second, groups = zip(*pairs, strict=True)
    found = agree(first, second, groups=groups)
    kappa = "not defined, one of them gives every answer the same label"
    if np.isfinite(found.kappa):
        kappa = with_interval(
            found.kappa, found.interval if np.isfinite(found.interval[0]) else None
        )
    return f"{variant.title}: agreement with the main labels, Cohen's κ {kappa} (n = {len(pairs)})."


# --- layers and tokens ------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerGrid:
    """Mean macro AUROC of SpikeScore and of the first answer, [tokens, layers] each."""

    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    spike: list[list[Area | None]]
    first: list[list[Area | None]]


def layer_grid(book: ScoreBook, *, draws: int) -> LayerGrid:
    """Return the grid from the book that `score_methods.py --layer_grid` writes."""
    comparison = Comparison(book, draws=draws)
    cells: dict[tuple[str, str, int], Area] = {}
    for name, entry in static_entries(book).items():
        what, token, layer = name.split("@")
        cells[what, token, int(layer)] = comparison.mean(entry, "macro")
    tokens = tuple(dict.fromkeys(token for _, token, _ in cells))
    layers = tuple(sorted({layer for _, _, layer in cells}))

    def table(what: str) -> list[list[Area | None]]:
        return [[cells.get((what, token, one)) for one in layers] for token in tokens]

    return LayerGrid(tokens, layers, table("spike"), table("first"))


def layer_table(grid: LayerGrid) -> Table:
    """Return the grid as a table, SpikeScore above the first answer."""
    rows = []
    for what, values in (("SpikeScore", grid.spike), ("first answer", grid.first)):
        for token, cells in zip(grid.tokens, values, strict=True):
            shown = [number(area.value) + share(*area.parts) if area else "" for area in cells]
            rows.append((f"{what}, {token}", *shown))
    return Table(
        "SAPLMA's layer and token",
        ("score and token", *(f"layer {layer}" for layer in grid.layers)),
        tuple(rows),
        "Mean macro AUROC over training domains, one probe seed. The main run chooses its layer on "
        f"each training domain's validation split; nothing is chosen from this table. {MISSING}",
    )
