"""Tables about trajectories: functionals, base scorers, number of turns, controls.

All are made from the per-turn scores of the main run; nothing is generated for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikescore.report.comparison import (
    CROSS,
    SPIKE,
    Comparison,
    Entry,
    longest,
    match_base_rates,
    scorer_title,
    scorers_of,
    trajectory_entry,
    without_turn_means,
)
from spikescore.report.content import Table
from spikescore.report.main_tables import main_entries
from spikescore.report.paper import BASE_SCORER, published_base_scorer
from spikescore.report.text import MISSING, figure_cell, number, share
from spikescore.stats.bootstrap import Area
from spikescore.stats.theory import theory_report
from spikescore.stats.trajectory import FUNCTIONALS, MIN_SCORES


def functional_tables(comparison: Comparison) -> list[Table]:
    """Return functionals (rows) x base scorers (columns), one table per cross-domain view."""
    scorers = scorers_of(comparison.book)
    header = ("functional", *(scorer_title(comparison.book, scorer) for scorer in scorers))
    tables = []
    for view in CROSS:
        rows = []
        for name, functional in FUNCTIONALS.items():
            cells = [_mean_cell(comparison, trajectory_entry(comparison.book, name, scorer), view)
                     for scorer in scorers]  # fmt: skip
            rows.append((functional.title, *cells))
        tables.append(Table(
            f"Functionals over per-turn scores, {view}", header, tuple(rows),
            f"Means over training domains; higher is more hallucinated in every cell. {MISSING}",
        ))  # fmt: skip
    return tables


def base_scorer_table(comparison: Comparison, model: str | None) -> Table:
    """Return SpikeScore beside the first answer's own score, for every base scorer."""
    rows = []
    for scorer in scorers_of(comparison.book):
        spike = trajectory_entry(comparison.book, "max_abs_d2", scorer)
        first = trajectory_entry(comparison.book, "first", scorer)
        cells = []
        for view in CROSS:
            cells += [_mean_cell(comparison, spike, view), _mean_cell(comparison, first, view)]
            cells.append(figure_cell(comparison.contrast(spike, first, view), "+.3f"))
        paper = published_base_scorer(model, scorer)
        rows.append((scorer_title(comparison.book, scorer), *cells, number(paper, ".4f")))
    header = ["base scorer"]
    for view in CROSS:
        header += [f"{view}: SpikeScore", "first answer", "difference"]
    header = (*header, "published")
    return Table("Base scorers under SpikeScore", header, tuple(rows), MISSING)


# --- number of turns --------------------------------------------------------------------------


@dataclass(frozen=True)
class TurnsPoint:
    """SpikeScore from the first k turns: mean AUROC per view, and the cost of a dialogue."""

    k: int
    areas: dict[str, Area]
    tokens: float | None
    seconds: float | None
    known: tuple[int, int]
    """Of how many of the dialogues the tokens are known."""


def turns_sweep(comparison: Comparison, seconds_per_token: float | None) -> list[TurnsPoint]:
    """Return SpikeScore over SAPLMA from the first k turns, k from 3 to all of them.

    `tokens` is the mean number of answer tokens of k turns, over the dialogues whose lengths are
    known (None: of none); `seconds` that times the run's seconds
    per answer token, None where the run did not keep its time.
    """
    points = []
    for k in range(MIN_SCORES, longest(comparison.book, BASE_SCORER) + 1):
        entry = trajectory_entry(comparison.book, "max_abs_d2", BASE_SCORER, k)
        known = [sum(item.turn_tokens[:k]) for item in comparison.book.items if item.turn_tokens]
        tokens = float(np.mean(known)) if known else None
        seconds = tokens * seconds_per_token if seconds_per_token and known else None
        areas = {view: comparison.mean(entry, view) for view in CROSS}
        over = len(known), len(comparison.book.items)
        points.append(TurnsPoint(k, areas, tokens, seconds, over))
    return points


def turns_table(points: Sequence[TurnsPoint]) -> Table:
    """Return the sweep over K as a table."""
    some = any(0 < made < of for made, of in (point.known for point in points))
    rows = [
        (
            str(point.k),
            *(figure_cell(point.areas[view]) for view in CROSS),
            *(
                cost and cost + share(*point.known)
                for cost in (number(point.tokens, ".0f"), number(point.seconds, ".3f"))
            ),
        )
        for point in points
    ]
    return Table(
        "SpikeScore by number of turns",
        ("K", *CROSS, "answer tokens a dialogue", "seconds a dialogue"),
        tuple(rows),
        "Seconds: share of the run's wall-clock time, dialogues being generated in batches. "
        + MISSING
        + (" Behind a cost: the mean is over a of b dialogues." if some else ""),
    )


def theory_table(y: np.ndarray, spike_scores: np.ndarray, domains: np.ndarray) -> Table:
    """Return moments, conditions and bounds of SpikeScore per domain, beside what is observed."""
    rows = []
    for found in theory_report(y, spike_scores, domains):
        counts = f"{found.n_h} / {found.n_t}"
        if found.note:
            rows.append((str(found.domain), counts, found.note, *[""] * 9))
            continue
        bound = number(found.paper_bound)
        if not found.paper_bound_applies:
            bound = f"{bound} (conditions fail)" if bound else ""
        rows.append((
            str(found.domain),
            counts,
            f"{found.mean_h:.3f} ± {found.std_h:.3f}",
            f"{found.mean_t:.3f} ± {found.std_t:.3f}",
            f"{number(found.mean_ratio, '.2f')} {_yes(found.gap_holds)}",
            f"{number(found.std_ratio, '.2f')} {_yes(found.spread_holds)}",
            number(found.cv_t, ".2f"),
            number(found.t, ".1f"),
            bound,
            number(found.cantelli) or "none: mean H ≤ mean T",
            number(found.p_greater),
            number(found.auroc),
        ))  # fmt: skip
    return Table(
        "Moments of SpikeScore, the paper's conditions and bounds",
        (
            "domain", "H / T items", "mean ± std, H", "mean ± std, T", "(i) mean ratio > 2",
            "(ii) std ratio in 1 to 2.5", "CV of T", "(iii) smallest t", "paper's bound",
            "Cantelli bound", "P(H > T)", "AUROC",
        ),
        tuple(rows),
        "H: hallucinated, T: consistent (truthful). The paper's bound is 1 / (1 + 0.0725 t²) with "
        "the smallest t that satisfies (iii); Cantelli's is μ² / (μ² + σ_H² + σ_T²) with μ the "
        "difference of the means. P(H > T) leaves ties out, the AUROC counts them half.",
    )  # fmt: skip


def _yes(holds: bool | None) -> str:
    return "" if holds is None else "(yes)" if holds else "(no)"


# --- controls ---------------------------------------------------------------------------------

CONTROLS = (
    "domain_identity", "answer_length", "dialogue_length", "dialogue_length_std", "tfidf_answer",
    "tfidf_dialogue", "label_shuffle", "random_projection",
)  # fmt: skip


def control_entries(comparison: Comparison, entries: Sequence[Entry]) -> list[Entry]:
    """Return SpikeScore, then what it must beat to mean anything, those that the book has."""
    book = comparison.book
    by_name = {entry.name: entry for entry in entries}
    shown = [by_name[name] for name in (SPIKE, "perplexity", *CONTROLS) if name in by_name]
    others = (
        trajectory_entry(book, "first", BASE_SCORER),
        trajectory_entry(book, "mean", BASE_SCORER),
        trajectory_entry(book, "spike_without_first", BASE_SCORER),
        without_turn_means(book),
        trajectory_entry(book, "max_abs_d2", "random_projection"),
        trajectory_entry(book, "max_abs_d2", "all_turn_probe"),
    )
    return shown + [entry for entry in others if entry]


CLAIMS = "Paired tests: SpikeScore against what it must beat"


def claim_entries(comparison: Comparison, entries: Sequence[Entry]) -> list[Entry]:
    """Return SpikeScore and its four plainest rivals, those that the book has.

    Its scorer on the first answer; perplexity, which costs nothing; any readout of the states (a
    random projection) in the probe's place; and itself without each turn's mean, which no item has
    for itself.
    """
    by_name = {entry.name: entry for entry in entries}
    projected = trajectory_entry(comparison.book, "max_abs_d2", "random_projection")
    found = (by_name.get(SPIKE), by_name.get(BASE_SCORER), by_name.get("perplexity"))
    others = (projected, without_turn_means(comparison.book))
    return [entry for entry in (*found, *others) if entry]


def control_table(comparison: Comparison, controls: Sequence[Entry]) -> Table:
    """Return the `control_entries` as a table."""
    rows = [
        (entry.title, *(_mean_cell(comparison, entry, view) for view in CROSS))
        for entry in controls
    ]
    return Table(
        "Controls",
        ("score", *CROSS),
        tuple(rows),
        "Domain identity is an oracle that knows each domain's hallucination rate and nothing of "
        "the item; a pooled figure below it says nothing about dialogues. Label shuffle must be "
        "near .5. A random projection in place of the probe shows what any readout of the states "
        f"would give. {MISSING}",
    )


def matched_table(comparison: Comparison, *, draws: int) -> Table:
    """Return the main scores on items with as many hallucinated as consistent ones per domain."""
    book = comparison.book
    kept = match_base_rates(book.y, book.domains, seed=0)
    matched = Comparison(book.subset(kept), draws=draws)
    wanted = (SPIKE, "saplma", "perplexity", "domain_identity")
    entries = [{entry.name: entry for entry in main_entries(one)} for one in (comparison, matched)]
    rows = []
    for name in (name for name in wanted if name in entries[0]):
        pairs = zip((comparison, matched), entries, strict=True)
        cells = [_mean_cell(one, own[name], "pooled") for one, own in pairs]
        rows.append((entries[0][name].title, *cells))
    return Table(
        "Matched base rates, pooled",
        ("score", "all items", "as many hallucinated as consistent in every domain"),
        tuple(rows),
        f"{int(kept.sum())} of {kept.size} items are kept; a score that knows only the domain is "
        f"then at .5. {MISSING}",
    )


def _mean_cell(comparison: Comparison, entry: Entry | None, view: str) -> str:
    return figure_cell(entry and comparison.mean(entry, view))
