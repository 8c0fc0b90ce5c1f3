#!/usr/bin/env python3
"""Stage 3 for an experiment: score books in, tables, plots and report.html out.

    python scripts/make_tables.py --config configs/tiny.json

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
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.report.experiment import Experiment, load_experiment  # noqa: E402
from spikescore.runtime import progress  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the experiment")
    parser.add_argument(
        "--by",
        default="",
        metavar="NAME",
        help='also give the main figures per value of this field, such as "meta.scope"',
    )
    parser.add_argument(
        "--without_dialogues",
        action="store_true",
        help="leave the dialogues, hence all text of the data sets, out of report.html (as "
        '"dialogues_in_report": false in the experiment does)',
    )
    return parser.parse_args(arguments)


def main() -> int:
    args = parse_arguments()
    experiment = load_experiment(args.config)
    if args.without_dialogues:
        experiment = replace(experiment, dialogues_in_report=False)
    from spikescore.report.experiment_report import ModelReport, write_report

    for model in experiment.models:
        if not experiment.book(model).exists():
            raise UserError(
                f'model "{model.name}" has no score book "{experiment.book(model)}"; '
                f"run python reproduce.py --config {args.config}"
            )
    reports = [ModelReport(experiment, model, by=args.by) for model in experiment.models]
    chapters = {
        report.model.name: list(progress(report.chapters(), report.model.name, unit="chapter"))
        for report in reports
    }
    for path in write_report(experiment, reports, chapters):
        print(f"wrote {path}")
    track(experiment, chapters)
    for report in reports:
        print("\n".join(report.headline()))
    return 0


def track(experiment: Experiment, chapters: dict) -> None:
    """Log tables and plots to Weights & Biases, where the experiment says so."""
    if not experiment.wandb:
        return
    from spikescore.report.tracking import Tracker

    told = {"experiment": experiment.name, "command": " ".join(sys.argv)}
    with Tracker("spikescore", experiment.report_dir, told, enabled=True) as tracker:
        for name, found in chapters.items():
            for chapter in found:
                for slug, table in chapter.tables.items():
                    tracker.table(f"{name}/{slug}", table.header, table.rows)
                for slug, figure in chapter.figures.items():
                    tracker.image(f"{name}/{slug}", figure.png, figure.caption)


if __name__ == "__main__":
    run_main(main)
