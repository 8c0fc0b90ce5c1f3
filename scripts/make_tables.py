#!/usr/bin/env python3
"""Stage 3 for an experiment: score books in, tables, plots and report.html out.

    python scripts/make_tables.py --config configs/demo.json

Reads the score books that score_methods.py wrote for each model of the experiment, and its
dialogues' texts; no model and no hidden state. reproduce.py runs it as its last step.

What it writes to reports/<experiment>/
  table_main.md, .csv, .tex, .png   methods x training domains: pooled, macro and in-domain apart
  tables/<model>/*.md, .csv, .tex   matrices, paired tests, operating points, ablations, controls
  plots/<model>/*.png
  report.html                       all of it, and a browser of the dialogues, in one file
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.report.experiment import Experiment, load_experiment  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the experiment")
    return parser.parse_args(arguments)


def main() -> int:
    args = parse_arguments()
    experiment = load_experiment(args.config)
    from spikescore.report.experiment_report import ModelReport

    reports = []
    for model in experiment.models:
        if not experiment.book(model).exists():
            raise UserError(
                f'model "{model.name}" has no score book "{experiment.book(model)}"; '
                f"run python reproduce.py --config {args.config}"
            )
        reports.append(ModelReport(experiment, model))
    chapters = {
        report.model.name: list(tqdm(report.chapters(), desc=report.model.name, unit="chapter"))
        for report in reports
    }
    try:
        for path in write_report(experiment, reports, chapters):
            print(f"wrote {path}")
    except OSError as error:
        raise UserError(
            f'the report cannot be written to "{experiment.report_dir}": {error.strerror}'
        ) from error
    track(experiment, chapters)
    for report in reports:
        print("\n".join(report.headline()))
    return 0


def write_report(experiment: Experiment, reports: Sequence, chapters: dict) -> list[Path]:
    """Write every file and return the paths of those to look at first."""
    from spikescore.files import write_atomic
    from spikescore.report.main_tables import MAIN_HEADER, main_rows
    from spikescore.report.page import Section, Table, write_page
    from spikescore.report.text import csv_table, markdown_table, tex_table

    folder = experiment.report_dir

    def write(path: Path, text: str | bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
        return path

    def text_of(title: str, table: Table) -> str:
        return f"## {title}{table.caption}\n\n{markdown_table(table)}"

    markdown, latex, rows = [f"# {experiment.name}: main table\n"], [], []
    if experiment.note:
        markdown.append(f"{experiment.note}\n")
    several = len(reports) > 1
    for report in reports:
        name = report.model.name
        title = f"{name}: " if several else ""
        for table in chapters[name][0].tables.values():
            markdown.append(text_of(title, table))
            latex.append(tex_table(table))
        rows += main_rows(report.comparison, report.entries, name, report.model.published)
        for chapter in chapters[name]:
            for slug, table in chapter.tables.items():
                place = folder / "tables" / name / slug
                write(place.with_suffix(".md"), text_of("", table))
                write(place.with_suffix(".csv"), csv_table(table.header, table.rows))
                write(place.with_suffix(".tex"), tex_table(table))
            for slug, figure in chapter.figures.items():
                write(folder / "plots" / name / f"{slug}.png", figure.png)
    written = [
        write(folder / "table_main.md", "\n".join(markdown)),
        write(folder / "table_main.csv", csv_table(MAIN_HEADER, rows)),
        write(folder / "table_main.tex", "\n".join(latex)),
        write(folder / "table_main.png", main_plot(reports)),
    ]
    sections = []
    for report in reports:
        name = report.model.name
        for chapter in chapters[name]:
            section = chapter.section()
            shown = f"{name}: {section.title}" if several else section.title
            sections.append(Section(shown, section.text, section.tables, section.figures))
    headline = [line for report in reports for line in report.headline()]
    write_page(
        folder / "report.html",
        title=f"SpikeScore: {experiment.name}",
        headline=[*headline, *([experiment.note] if experiment.note else [])],
        sections=sections,
        dialogues=itertools.chain.from_iterable(report.dialogues() for report in reports),
        footer="The commands behind this report are in commands.sh beside it. Dialogues are shown "
        f"with the scores of {reports[0].reading_probe()}.",
    )
    return [*written, folder / "report.html"]


def main_plot(reports: Sequence) -> bytes:
    """Return the main table's plot: that of the first model, or all models' SpikeScore."""
    from spikescore.report.plots import forest_of_models

    return forest_of_models([(r.model.name, r.comparison, r.entries) for r in reports])


def track(experiment: Experiment, chapters: dict) -> None:
    """Log tables and plots to Weights & Biases, where the experiment says so."""
    if not experiment.wandb:
        return
    from spikescore.report.tracking import Tracker

    tracker = Tracker(
        enabled=True,
        project="spikescore",
        folder=experiment.report_dir,
        settings={"experiment": experiment.name, "command": " ".join(sys.argv)},
    )
    for name, found in chapters.items():
        for chapter in found:
            for slug, table in chapter.tables.items():
                tracker.table(f"{name}/{slug}", table.header, table.rows)
            for slug, figure in chapter.figures.items():
                tracker.image(f"{name}/{slug}", figure.png, figure.caption)
    tracker.finish()


if __name__ == "__main__":
    run_main(main)
