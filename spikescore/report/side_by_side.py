"""Two evaluated runs on one page: what differs in their settings, and in their figures.

Questions that both have are paired: the same bootstrap draws measure both runs, so the interval of
a difference leaves out what is common to them. The labels are each run's own: another model gives
other answers to the same questions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spikescore.detectors.score_book import ScoreBook, load_score_book
from spikescore.errors import UserError
from spikescore.files import write_atomic
from spikescore.report.comparison import SPIKE, VIEWS, Comparison, Entry, on_shared_items
from spikescore.report.content import Figure, Section, Table
from spikescore.report.evaluation import (
    Evaluation,
    choose_items,
    evaluation_settings,
    find_warnings,
    read_and_score,
)
from spikescore.report.experiment import load_experiment
from spikescore.report.experiment_report import settings as settings_of
from spikescore.report.main_tables import main_entries
from spikescore.report.page import write_page
from spikescore.report.plots import forest_rows
from spikescore.report.settings import Rows, made_now
from spikescore.report.text import (
    MISSING,
    csv_table,
    figure_cell,
    headed_table,
    p_value,
    tex_table,
)
from spikescore.stats.bootstrap import Area, Contrast, contrast_of_draws

log = logging.getLogger("spikescore")


@dataclass(frozen=True)
class Run:
    """One run: its name, its settings, its score book; how many files of it could not be read."""

    name: str
    settings: Rows
    book: ScoreBook
    damaged: int = 0


def read_run(path: str) -> Run:
    """Read a folder of scored dialogues, a single-model experiment (.json) or a book (.pkl).

    What a reader of the figures must know of the folder is warned of, as in stage 3.
    """
    place = Path(path)
    if place.suffix == ".pkl":
        book = load_score_book(place)
        return Run(place.stem, [("model", book.model)], book)
    if place.suffix == ".json":
        experiment = load_experiment(place)
        books = [experiment.book(model) for model in experiment.models]
        if len(books) > 1:
            told = ", ".join(f'"{book}"' for book in books)
            raise UserError(f'"{path}" has {len(books)} models; give one score book of {told}')
        return Run(experiment.name, settings_of(experiment), load_score_book(books[0]))
    found = read_and_score(place)
    evaluated, _ = choose_items(found, include_train=False)
    for warning in find_warnings(found, evaluated):
        log.warning("%s: %s", path, warning)
    book = Evaluation(found.items, evaluated, draws=1, seed=0).comparison.book
    settings = evaluation_settings(found.config, evaluated)
    return Run(place.resolve().name, settings, book, len(found.damaged))


class SideBySide:
    """The figures of two runs. Raises UserError where no training domain is common to them."""

    def __init__(self, one: Run, other: Run, *, draws: int) -> None:
        if one.name == other.name:
            one, other = (replace(run, name=f"{run.name} ({which})")
                          for run, which in ((one, "A"), (other, "B")))  # fmt: skip
        self.runs, names = (one, other), [list(run.book.splits) for run in (one, other)]
        common = [domain for domain in names[0] if domain in names[1]]
        if not common:
            told = " and ".join(", ".join(own) or "none" for own in names)
            raise UserError(
                f"the probes of {one.name} and {other.name} have no training domain in common "
                f"({told}): give two folders of dialogues, or two experiments"
            )
        books = [
            replace(run.book, splits={domain: run.book.splits[domain] for domain in common})
            for run in self.runs
        ]
        # two seeds: draws of one seed would pair items that have nothing in common
        self.whole = [Comparison(book, draws=draws, seed=k) for k, book in enumerate(books)]
        self.paired = [Comparison(book, draws=draws) for book in on_shared_items(*books)]
        self.n = self.paired[0].y.size
        self.sides = self.paired if self.n else self.whole

    def entries(self, comparisons: Sequence[Comparison]) -> list[tuple[Entry, Entry]]:
        """Return the methods that both runs have."""
        mine, theirs = ({entry.name: entry for entry in main_entries(one)} for one in comparisons)
        return [(entry, theirs[name]) for name, entry in mine.items() if name in theirs]

    def views(self) -> list[str]:
        """Return the views that have items in both runs."""
        return [
            view for view in VIEWS if all(one.masks(view) for one in (*self.whole, *self.sides))
        ]

    def difference(self, entries: tuple[Entry, Entry], view: str) -> tuple[list[Area], Contrast]:
        """Return both runs' means and their difference: on the items that both have, over the
        AUROCs that are computable in both, or where there are none, each on its own.
        """
        areas = [one.mean(entry, view) for one, entry in zip(self.sides, entries, strict=True)]
        if not self.n:
            return areas, contrast_of_draws(*areas)
        return areas, self.sides[0].difference(entries[0], self.sides[1], entries[1], view)

    def tables(self) -> list[Table]:
        """Return methods x runs with the difference, a table per view that has items."""
        names = [run.name for run in self.runs]
        whole, both, note = self.entries(self.whole), self.entries(self.sides), self.note()
        tables = []
        for view in self.views():
            rows, bold = [], set()
            for entries, shared in zip(whole, both, strict=True):
                own = [one.mean(entry, view)
                       for one, entry in zip(self.whole, entries, strict=True)]  # fmt: skip
                areas, found = self.difference(shared, view)
                cells = [figure_cell(found, "+.3f"), p_value(found.p_bootstrap)]
                if self.n:
                    cells += [*map(figure_cell, areas), str(found.n or areas[0].n)]
                cells += [f"{figure_cell(area)} (n={area.n})" for area in own]
                if found.interval and not found.interval[0] <= 0 <= found.interval[1]:
                    bold.add((len(rows), 1))
                rows.append((entries[0].title, *cells))
            header = ["method", "difference", "p, bootstrap"]
            if self.n:
                header += [*(f"{name}, the same items" for name in names), "n of both"]
            header += [f"{name}, all items" for name in names]
            title = f"AUROC, {VIEWS[view]}"
            tables.append(Table(title, tuple(header), tuple(rows), note, frozenset(bold)))
        return tables

    def note(self) -> str:
        """Return how the differences are made."""
        if self.n:
            how = (
                f"The difference is on the {self.n:,} items that both runs have, those that are of "
                "the same split in both, drawn together; each run with its own labels."
            )
        else:
            how = "The runs have no item in common: each is drawn by itself."
        names = " minus ".join(run.name for run in self.runs)
        return f"{names}, 95% intervals; those in bold (* in Markdown) leave out 0. {how} {MISSING}"

    def settings(self) -> Table:
        """Return both runs' settings, those that differ in bold."""
        mine, theirs = (dict(run.settings) for run in self.runs)
        names = list(dict.fromkeys([*mine, *theirs]))
        rows = [(name, mine.get(name, ""), theirs.get(name, "")) for name in names]
        bold = {(row, column) for row, (_, one, two) in enumerate(rows)
                for column in (1, 2) if one != two}  # fmt: skip
        header = ("setting", *(run.name for run in self.runs))
        return Table(
            "Settings", header, tuple(rows), "Bold (* in Markdown): what differs.", frozenset(bold)
        )

    def lines(self) -> list[str]:
        """Return SpikeScore's difference in every view, a line each."""
        spike = next((both for both in self.entries(self.sides) if both[0].name == SPIKE), None)
        lines = []
        for view in self.views() if spike else ():
            areas, found = self.difference(spike, view)
            told = " and ".join(
                f"{run.name} {figure_cell(area)}"
                for run, area in zip(self.runs, areas, strict=True)
            )
            lines.append(
                f"SpikeScore, {view} AUROC: {told}; difference {figure_cell(found, '+.3f')}, "
                f"n = {found.n or areas[0].n:,}{'' if self.n else f' and {areas[1].n:,}'}"
            )
        return lines or ["The runs have no SpikeScore in common, or no view of it."]

    def write(self, folder: Path, command: str) -> list[Path]:
        """Write compare.md, .csv, .tex and report.html; return their paths."""
        tables = [self.settings(), *self.tables()]
        rows = [
            (f"{run.name}: {entry.title}", comparison, entry)
            for both in self.entries(self.whole)
            for run, comparison, entry in zip(self.runs, self.whole, both, strict=True)
        ]
        title = " and ".join(run.name for run in self.runs)
        caption = "Mean AUROC of each run on all its items, with 95% intervals."
        plot = Figure.of_tables(forest_rows(rows, title), caption)
        files = {
            "compare.md": "\n".join(map(headed_table, tables)),
            "compare.csv": "\n".join(csv_table(one.header, one.rows) for one in tables),
            "compare.tex": "\n".join(map(tex_table, tables)),
        }
        for name, text in files.items():
            write_atomic(folder / name, text.encode("utf-8", "replace"))
        write_page(
            folder / "report.html",
            title=f"SpikeScore: {title}",
            headline=self.lines(),
            settings=made_now(),
            sections=[
                Section("Figures", (), tuple(tables[1:]), (plot,)),
                Section("What differs", (), (tables[0],)),
            ],
            footer=f"Made by: {command}",
        )
        return [folder / name for name in (*files, "report.html")]
