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
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.report.experiment import Experiment, load_experiment  # noqa: E402
from spikescore.runtime import progress  # noqa: E402

if TYPE_CHECKING:
    from spikescore.report.experiment_report import ModelReport


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
    for report in reports:
        print("\n".join(report.headline()))
    track(experiment, reports, chapters)
    return 0


def track(experiment: Experiment, reports: list[ModelReport], chapters: dict) -> None:
    """Log figures, tables and plots to W&B, where the experiment or the environment says so."""
    from spikescore.report.tracking import log_run

    found = [(name, chapter) for name, own in chapters.items() for chapter in own]
    log_run(
        "tables",
        asdict(experiment),
        {report.model.name: report.figures() for report in reports},
        folder=experiment.report_dir,
        always=experiment.wandb,
        tables={f"{name}/{slug}": each for name, one in found for slug, each in one.tables.items()},
        plots={f"{name}/{slug}": each for name, one in found for slug, each in one.figures.items()},
    )


if __name__ == "__main__":
    run_main(main)
