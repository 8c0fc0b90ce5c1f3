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
  roc.png, histogram.png, trajectories.png
  report.html               all of it on one page, and every dialogue to read; open it in a browser
  spiky_dialogue.md         the dialogue with the largest SpikeScore, turn by turn

y = 1 means hallucinated, and a higher score means more hallucinated. In-domain, pooled cross-domain
and macro cross-domain figures are separate. Items that the probe was trained on are left out.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from spikescore.errors import UserError, run_main

AT_ONCE = 8
"""Files in work at a time: a disk takes milliseconds to confirm a write, but confirms several at
once."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="folder with scored dialogue .json files")
    parser.add_argument(
        "--report_dir", required=True, help="folder for the report (made if absent)"
    )
    parser.add_argument(
        "--include_train",
        action="store_true",
        help="also evaluate the probe's own training and validation items (not held-out any more)",
    )
    parser.add_argument(
        "--draws", type=int, default=2000, help="bootstrap draws behind each interval (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (%(default)s)")
    args = parser.parse_args(arguments)
    if args.draws < 1:
        parser.error(f"--draws must be at least 1, not {args.draws}")
    return args


def main() -> int:
    args = parse_arguments()
    data_dir, report_dir = Path(args.data_dir), Path(args.report_dir)

    from spikescore.report import eval_report, evaluation
    from spikescore.report.text import markdown_table, tex_table

    items = read_and_score(data_dir)
    evaluated, coverage = evaluation.choose_items(items, include_train=args.include_train)
    covered = evaluation.describe_coverage(coverage)
    warnings = evaluation.find_warnings(items, evaluated)
    print(f"dialogues: {covered}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)

    views = evaluation.build_views(items, evaluated, draws=args.draws, seed=args.seed)
    for view in views:
        if view.kind == "domain":
            print(eval_report.figure_line("spike_score", view.methods["spike_score"], view.title))
            continue
        for method, figure in view.methods.items():
            print(eval_report.figure_line(method, figure, view.title))
        for other, difference in view.paired.items():
            print(eval_report.difference_line(other, difference, view.title))
        if view.flags:
            print(f"SpikeScore at {eval_report.flags_text(view.flags)} ({view.title})")

    run = run_name(data_dir, evaluated)
    command = shlex.join(["python", *sys.argv])
    summary = {
        "command": command,
        "run": run,
        "coverage": coverage,
        "warnings": warnings,
        "draws": args.draws,
        "seed": args.seed,
        "views": [evaluation.view_summary(view) for view in views],
        "versions": versions(),
    }
    tables = {
        "summary.md": eval_report.summary_markdown(run, covered, warnings, views, command),
        "table_main.md": markdown_table(eval_report.table_main(views)),
        "table_main.csv": eval_report.figures_csv(views),
        "table_main.tex": tex_table(eval_report.table_main(views)),
        "scores.csv": eval_report.scores_csv(items, data_dir),
    }
    for path in write_report(report_dir, tables, items, evaluated, views, summary):
        print(f"wrote {path}")
    return 0


def read_and_score(data_dir: Path) -> list[Any]:
    """Read all dialogues under a folder and write SpikeScore back into each that can be scored.

    Files in the older public form are read only. A file that already holds the same value is left
    untouched.
    """
    from tqdm import tqdm

    from spikescore import pairs

    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(
            f'--data_dir "{data_dir}" is not a folder; give the folder of the .json files'
        )
    paths = pairs.find_records(data_dir)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        read = pool.map(score_file, paths)
        bar = tqdm(read, desc="reading", unit="file", total=len(paths), disable=None)
        items = [item for item in bar if item is not None]
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C no further file is begun
    if not items:
        raise UserError(
            f'no dialogue (.json with "cot_steps") under "{data_dir}"; '
            "give the output_dir of reasoning_lite.py or a folder above it"
        )
    return items


def score_file(path: Path) -> Any:
    """Read one dialogue and write SpikeScore back; None when the file is some other JSON."""
    from spikescore import files, pairs
    from spikescore.report import evaluation

    record = pairs.as_record(files.read_json(path, ids_as_text=True), path)
    if record is None:
        return None
    item = evaluation.read_item(record, path)
    found = {"spike_score": item.spike_score, "spike_turn": item.spike_turn}
    metrics = record.get("metrics") or {}
    if item.spike_score is None or record.get("legacy") or metrics.items() >= found.items():
        return item
    record["metrics"] = {**metrics, **found}
    try:
        files.write_json(path, record)
    except OSError as error:
        raise UserError(
            f'SpikeScore cannot be written into "{path}": {error.strerror}; '
            "make the folder writable or evaluate a copy of it"
        ) from error
    return item


def run_name(data_dir: Path, evaluated: list[Any]) -> str:
    """Return what the plots call this run: the folder, and model and probe where there is one."""
    parts = [data_dir.resolve().name]
    for what in ("model", "probe"):
        names = {Path(getattr(item, what)).name for item in evaluated} - {""}
        parts += [f"{what} {names.pop()}"] if len(names) == 1 else []
    return ", ".join(parts)


def write_report(
    report_dir: Path,
    tables: dict[str, str],
    items: list[Any],
    evaluated: list[Any],
    views: list[Any],
    summary: dict[str, Any],
) -> list[Path]:
    """Write every file of the report and return their paths: tables, plots, dialogues."""
    from spikescore.files import write_atomic, write_json
    from spikescore.pairs import read_record
    from spikescore.report import eval_report, evaluation, page
    from spikescore.report.plots import histogram_png, roc_png, trajectories_png

    run = summary["run"]
    plots = {
        "roc": roc_png(views, run),
        "histogram": histogram_png(views, run),
        "trajectories": trajectories_png(views, run),
    }
    spikiest = max(evaluated, key=lambda item: item.spike_score)
    dialogue = eval_report.dialogue_markdown(read_record(spikiest.path), spikiest)
    texts = {**tables, "spiky_dialogue.md": dialogue}
    files = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    files |= {f"{name}.png": png for name, png in plots.items()}
    covered = evaluation.describe_coverage(summary["coverage"])
    try:
        report_dir.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomic(report_dir / name, data)
        write_json(report_dir / "summary.json", summary)
        page.write_page(
            report_dir / "report.html",
            title=f"SpikeScore report: {run}",
            headline=eval_report.headline(views, covered, summary["warnings"]),
            sections=eval_report.sections(views, plots, summary["coverage"]),
            dialogues=eval_report.page_dialogues(items),
            footer=made_by(summary),
        )
    except OSError as error:
        raise UserError(
            f'the report cannot be written to "{report_dir}": {error.strerror}; '
            "choose another --report_dir"
        ) from error
    return [report_dir / name for name in (*files, "summary.json", "report.html")]


def made_by(summary: dict[str, Any]) -> str:
    """Return the command and the versions behind a report."""
    names = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return f"Made by: {summary['command']}\n{names}; {summary['draws']} bootstrap draws"


def versions() -> dict[str, str]:
    """Return the versions that the figures and plots depend on."""
    import matplotlib
    import numpy

    return {
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "matplotlib": matplotlib.__version__,
    }


if __name__ == "__main__":
    run_main(main)
