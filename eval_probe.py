"""Stage 3: SpikeScore and AUROC from scored dialogues.

Reads every dialogue JSON under --data_dir (any depth, one folder per domain), computes SpikeScore
from the probe scores that metrics_probe.py wrote, measures how well it tells hallucinated answers
from consistent ones, and writes tables and plots to --report_dir. No .pkl file is opened.

    python eval_probe.py --data_dir ./outputs --report_dir ./reports

What it writes
  <data_dir>/**/<id>.json   metrics.spike_score and metrics.spike_turn, added to each dialogue
  scores.csv                one row per dialogue: label, scores of all turns, SpikeScore
  summary.md, summary.json  AUROC with 95% interval, n and hallucination rate, beside the controls
  table_main.md, .csv, .tex the same figures as one table
  table_twins.md, .csv, .tex  of dialogues that begin with a given answer: does the wrong one of a
                            question score higher than the right one?
  roc.png, histogram.png (and per domain), trajectories.png, spikes.png, spike_turns.png
  report.html               all of it on one page, and every dialogue to read; open it in a browser
  spiky_dialogue.md         the dialogue with the largest SpikeScore, turn by turn

y = 1 means hallucinated, and a higher score means more hallucinated. In-domain, pooled cross-domain
and macro cross-domain figures are separate. Items that the probe was trained on are left out.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from spikescore.errors import run_main


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", required=True, help="folder with scored dialogue .json files")
    add("--report_dir", required=True, help="folder for the report (made if absent)")
    add(
        "--include_train",
        action="store_true",
        help="also evaluate the probe's own training and validation items (not held-out any more)",
    )
    add(
        "--by",
        default="",
        metavar="NAME",
        help='also give the main figures per value of this field, such as "meta.scope"',
    )
    add(
        "--draws", type=int, default=2000, help="bootstrap draws behind each interval (%(default)s)"
    )
    add("--seed", type=int, default=0, help="seed of the bootstrap (%(default)s)")
    add(
        "--without_dialogues",
        action="store_true",
        help="write no text of a dialogue: report.html has none to read, and there is no "
        "spiky_dialogue.md",
    )
    args = parser.parse_args(arguments)
    if args.draws < 1:
        parser.error(f"--draws must be at least 1, not {args.draws}")
    return args


def main() -> int:
    args = parse_arguments()
    data_dir = Path(args.data_dir)

    from spikescore.report.eval_report import EvalReport
    from spikescore.report.evaluation import (
        Evaluation,
        choose_items,
        describe_coverage,
        find_warnings,
        read_and_score,
    )
    from spikescore.report.tracking import log_run

    found = read_and_score(data_dir, by=args.by)
    evaluated, coverage = choose_items(found, include_train=args.include_train)
    warnings = find_warnings(found, evaluated)
    print(f"dialogues: {describe_coverage(coverage)}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    evaluation = Evaluation(found.items, evaluated, draws=args.draws, seed=args.seed)
    report = EvalReport(
        data_dir=data_dir,
        command=shlex.join(["python", *sys.argv]),
        items=found.items,
        evaluated=evaluated,
        coverage=coverage,
        config=found.config,
        warnings=warnings,
        verdict=evaluation.verdict(),
        views=evaluation.views(),
        splits=evaluation.splits(args.by),
        twins=evaluation.twins(),
        draws=args.draws,
        seed=args.seed,
        with_dialogues=not args.without_dialogues,
    )
    for line in report.lines():
        print(line)
    for path in report.write(Path(args.report_dir)):
        print(f"wrote {path}")
    told = {**vars(args), "dialogues": found.config}
    log_run("stage 3", told, report.figures(), folder=Path(args.report_dir))
    return 1 if found.damaged else 0


if __name__ == "__main__":
    run_main(main)
