#!/usr/bin/env python3
"""Regenerate the paper's tables: run every stage over models x domains, then make the report.

    python reproduce.py --config configs/tiny.json              # the tiny model, CPU, minutes
    python reproduce.py --config configs/paper.json --dry_run   # print the commands, run nothing
    python reproduce.py --config configs/paper.json --only Qwen3-8B

Each step is a command that could be typed by hand; they are printed as they are run and kept in
reports/<experiment>/commands.sh. A step is skipped where it is done: with the same settings, data,
model and code, after the same runs of the steps before it, and with all that it made still there. A
killed run goes on where it stopped, inside a step too. What a step prints goes to
reports/<experiment>/logs/<step>.log; the last line of its bar is shown once a minute.

Exit status: 0 all done, 1 a step failed (its log is named), 2 a mistake in the input.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from spikescore.errors import UserError, run_main
from spikescore.files import write_atomic
from spikescore.report.experiment import Experiment, load_experiment
from spikescore.report.provenance import write_provenance
from spikescore.report.steps import Runner, Step


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the experiment, such as configs/tiny.json")
    add("--dry_run", action="store_true", help="print the commands and run nothing")
    add("--only", metavar="NAME", help="run only the steps whose name holds this text")
    add(
        "--redo",
        metavar="NAME",
        help="run the steps whose name holds this text again, and those that need them",
    )
    add(
        "--jobs",
        type=int,
        help="steps of one phase to run side by side, each with its share of the cores (default: "
        "the experiment's own, 1 unless it says otherwise); 1 where models need the whole GPU",
    )
    args = parser.parse_args(arguments)
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {args.jobs}")
    return args


def main() -> int:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that running steps end too
    experiment = load_experiment(args.config)
    experiment.check_plugins()
    steps = list(experiment.steps(Path(args.config)))
    if args.dry_run:
        print("\n".join(f"# {step.name}\n{step}" for step in steps))
        return 0
    known = [step.name for step in steps]
    for given in (args.only, args.redo):
        if given and not any(given in name for name in known):
            raise UserError(f'no step is called "{given}"; the steps are {", ".join(known)}')
    require_data(experiment)
    experiment.write_configs()
    write_commands(experiment, steps, args.config)
    chosen = [step for step in steps if not args.only or args.only in step.name]
    runner = Runner(experiment.report_dir, args.redo, n_steps=len(chosen))
    for _, phase in groupby(sorted(chosen, key=lambda step: step.phase), lambda step: step.phase):
        if not runner.run(list(phase), args.jobs or experiment.jobs):
            return 1
    write_provenance(experiment, steps, args.config)
    print(f"tables, plots and report.html are in {experiment.report_dir}")
    return 0


def require_data(experiment: Experiment) -> None:
    """Raise UserError naming the data sets that are not there, before anything is run."""
    missing = [path for path in experiment.dialogues["dataset_path"] if not Path(path).exists()]
    if missing:
        names = " ".join(Path(path).stem for path in missing)
        raise UserError(
            f"there is no {', '.join(missing)}; fetch the sets with "
            f"python datasets/prepare.py {names}, or mend dataset_path"
        )


def write_commands(experiment: Experiment, steps: Sequence[Step], config: str) -> None:
    """Write commands.sh: the exact commands behind the tables, in order."""
    head = (
        "#!/bin/sh\n"
        f"# The commands behind this report, as python reproduce.py --config {config} runs them,\n"
        "# from the project's root.\n"
        "set -e\n"
    )
    body = "".join(f"\n# {step.name}\n{step}\n" for step in steps)
    write_atomic(experiment.report_dir / "commands.sh", (head + body).encode())


if __name__ == "__main__":
    run_main(main)
