#!/usr/bin/env python3
"""Two evaluated runs side by side on one page: settings, figures, and differences with intervals.

    python scripts/compare_reports.py ./outputs/one ./outputs/two --report_dir ./reports/compared

A run is a folder of dialogues that metrics_probe.py scored, an experiment (configs/<name>.json) or
a score book (.pkl). Items that both have are paired: the interval of a difference is of the same
questions. Writes compare.md, .csv, .tex and report.html; no text of a dialogue is in them. Exit
status: 0, 1 where files of dialogues could not be read (they are named), 2 an error.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import run_main  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs=2, metavar="RUN", help="dialogues, experiment or score book")
    add("--report_dir", required=True, help="folder for the page (made if absent)")
    add(
        "--draws", type=int, default=2000, help="bootstrap draws behind each interval (%(default)s)"
    )
    args = parser.parse_args(arguments)
    if args.draws < 1:
        parser.error(f"--draws must be at least 1, not {args.draws}")
    return args


def main() -> int:
    args = parse_arguments()
    from spikescore.report.side_by_side import SideBySide, read_run

    compared = SideBySide(*map(read_run, args.runs), draws=args.draws)
    for line in compared.lines():
        print(line)
    for path in compared.write(Path(args.report_dir), shlex.join(["python", *sys.argv])):
        print(f"wrote {path}")
    return 1 if any(run.damaged for run in compared.runs) else 0


if __name__ == "__main__":
    run_main(main)
