#!/usr/bin/env python3
"""Regenerate the paper's tables: run every stage over models x domains, then make the report.

    python reproduce.py --config configs/tiny.json              # the tiny model, CPU, minutes
    python reproduce.py --config configs/paper.json --dry_run   # the commands, and what they take
    python reproduce.py --config configs/paper.json --only Qwen3-8B
    python reproduce.py --config configs/paper.json --launch "accelerate launch --num_processes 8"
    python reproduce.py --config configs/paper.json --slurm "partition=gpu time=24:00:00"

Each step is a command that could be typed by hand; they are printed as they are run and kept in
reports/<experiment>/commands.sh. A step is skipped where it is done: with the same settings, data,
model and code, after the same runs of the steps before it, and with all that it made still there. A
killed run goes on where it stopped, inside a step too. What a step prints goes to
reports/<experiment>/logs/<step>.log; the last line of its bar is shown once a minute.

--launch stands in the place of "python" before the steps whose script shares its questions among
several processes (stage 1 and measures); each process uses one GPU and its own copy of the model.
--slurm submits an array job with a task for each model and domain, and after it the scores and the
tables; run again, it names what is missing and submits that alone.

Exit status: 0 all done, 1 a step failed (its log is named), 2 a mistake in the input, 143 ended by
SIGTERM or SIGUSR1.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from spikescore.errors import UserError, run_main
from spikescore.report.cost import Cost
from spikescore.report.experiment import load_experiment
from spikescore.report.provenance import write_provenance
from spikescore.report.slurm import Jobs, parse_options
from spikescore.report.steps import Runner, Step, write_commands
from spikescore.runtime import this_process


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the experiment, such as configs/tiny.json")
    add("--dry_run", action="store_true", help="print the commands and what they take; run nothing")
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
    add(
        "--launch",
        metavar="WORDS",
        type=shlex.split,
        default=[],
        help='what starts several processes: "accelerate launch --num_processes 8", "torchrun '
        '--nproc_per_node 8", "srun --ntasks 8 python"',
    )
    add(
        "--slurm",
        nargs="?",
        type=parse_options,
        const="",
        metavar="OPTIONS",
        help="write batch scripts and submit them where there is sbatch; its options, such as "
        '"partition=gpu account=me time=24:00:00 gres=gpu:4", go before the experiment\'s own',
    )
    add(
        "--part",
        metavar="NAME",
        help='make one part alone, as a job does: "model/domain", "model" (its scores) or "tables"',
    )
    add(
        "--tokens_per_second",
        type=float,
        help="with --dry_run: how fast a model generates on your machine, for the hours it takes",
    )
    args = parser.parse_args(arguments)
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {args.jobs}")
    if "" in (args.only, args.redo, args.part):  # as of a variable that is not set
        parser.error("--only, --redo and --part need a name, not an empty text")
    if args.part and (args.only or args.redo):
        parser.error("--part makes a part whole; leave out --only and --redo")
    if args.tokens_per_second is not None and not 0 < args.tokens_per_second < float("inf"):
        parser.error(f"--tokens_per_second must be above 0, not {args.tokens_per_second:g}")
    if args.slurm is not None and (args.only or args.redo or args.part):
        parser.error("--slurm submits all that is missing; leave out --only, --redo and --part")
    return args


def main() -> int:
    args = parse_arguments()
    if this_process().world_size > 1:
        raise UserError("start reproduce.py once; --launch starts the processes of each step")
    experiment = load_experiment(args.config)
    experiment.check_names()
    steps = list(experiment.steps(Path(args.config)))
    chosen = chosen_steps(steps, args)
    if args.dry_run:
        print("\n".join(f"# {step.name}\n{step.line(args.launch)}" for step in chosen))
        cost = Cost(experiment, {step.name for step in chosen})
        print(*cost.lines(args.tokens_per_second), sep="\n")
    else:
        experiment.require_data()
        experiment.write_configs()
    if args.slurm is not None:
        launch = ["--launch", shlex.join(args.launch)] if args.launch else []
        jobs = Jobs(experiment, steps, args.slurm, ["--config", args.config, *launch])
        print(*jobs.shown(), sep="\n") if args.dry_run else jobs.submit()
    if args.dry_run or args.slurm is not None:
        return 0
    if not args.part:
        write_commands(experiment.report_dir, steps, args.config, args.launch)
    runner = Runner(experiment.report_dir, args.redo, n_steps=len(chosen), launch=args.launch)
    for _, phase in groupby(sorted(chosen, key=lambda step: step.phase), lambda step: step.phase):
        if not runner.run(list(phase), args.jobs or experiment.jobs):
            return 1
    if args.part in (None, "tables"):
        write_provenance(experiment, steps, args.config)
        print(f"tables, plots and report.html are in {experiment.report_dir}")
    return 0


def chosen_steps(steps: Sequence[Step], args: argparse.Namespace) -> list[Step]:
    """Return the steps that the command line asks for; UserError where it names none."""
    if args.part:
        every = [one for step in steps for one in (step, *step.parts)]
        found = [step for step in every if args.part == (step.part or "tables")]
        if not found:
            parts = ", ".join(dict.fromkeys(step.part or "tables" for step in every))
            raise UserError(f'--part: there is no "{args.part}"; the parts are {parts}')
        return found
    known = [step.name for step in steps]
    for given in (args.only, args.redo):
        if given and not any(given in name for name in known):
            raise UserError(f'no step is called "{given}"; the steps are {", ".join(known)}')
    return [step for step in steps if not args.only or args.only in step.name]


if __name__ == "__main__":
    run_main(main)
