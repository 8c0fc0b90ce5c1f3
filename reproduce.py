#!/usr/bin/env python3
"""Regenerate the paper's tables: run every stage over models x domains, then make the report.

    python reproduce.py --config configs/demo.json              # six demo domains, CPU, minutes
    python reproduce.py --config configs/paper.json --dry_run   # print the commands, run nothing
    python reproduce.py --config configs/paper.json --only Qwen3-8B

Each step is a command that could be typed by hand; they are printed as they are run and kept in
reports/<experiment>/commands.sh. A step that is done, with the same settings, is skipped; a killed
run goes on where it stopped, inside a step too. What a step prints goes to
reports/<experiment>/logs/<step>.log.

Exit status: 0 all done, 1 a step failed (its log is named), 2 a mistake in the input.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from spikescore.errors import STARTER, UserError, run_main
from spikescore.files import read_json, write_atomic, write_json
from spikescore.report.experiment import Experiment, Step, load_experiment

ROOT = Path(__file__).resolve().parent


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="the experiment, such as configs/demo.json")
    add("--dry_run", action="store_true", help="print the commands and run nothing")
    add("--only", metavar="NAME", help="run only the steps whose name holds this text")
    add(
        "--redo", metavar="NAME", help="run the steps whose name holds this text again, done or not"
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
    runner = Runner(experiment, steps, args.redo)
    chosen = [step for step in steps if not args.only or args.only in step.name]
    for _, phase in groupby(sorted(chosen, key=lambda step: step.phase), lambda step: step.phase):
        if not runner.run(list(phase), args.jobs or experiment.jobs):
            return 1
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


class Runner:
    """Runs steps, skipping those done before with the same settings; remembers what is done."""

    def __init__(self, experiment: Experiment, steps: Sequence[Step], redo: str | None) -> None:
        self._logs = experiment.report_dir / "logs"
        self._done = experiment.report_dir / "done"
        for folder in (self._logs, self._done):
            folder.mkdir(parents=True, exist_ok=True)
        self._redo = redo
        self._digests = digests(steps)
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()

    def run(self, steps: Sequence[Step], jobs: int) -> bool:
        """Run the steps of one phase, `jobs` at a time; False when one failed."""
        todo = [step for step in steps if not self._is_done(step)]
        for step in steps:
            if step not in todo:
                print(f"done before: {step.name}")
        jobs = min(jobs, max(len(todo), 1))
        threads = max(1, (os.cpu_count() or 1) // jobs)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                results = list(pool.map(lambda step: self._run(step, threads, jobs), todo))
            except BaseException:  # Ctrl-C and SIGTERM too
                self._stop()
                raise
        return all(results)

    def _run(self, step: Step, threads: int, jobs: int) -> bool:
        log = self._logs / f"{step.name}.log"
        print(f"{step.name}: {step}", flush=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", STARTER: str(os.getpid())}
        if jobs > 1:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        started = time.monotonic()
        with open(log, "w", encoding="utf-8") as file:
            words = [sys.executable, *step.command[1:]]
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
            with self._lock:
                self._processes.add(process)
            status = process.wait()
        seconds = time.monotonic() - started
        text = log.read_text(encoding="utf-8", errors="replace")
        if status == 1 and step.counts_failures and "Traceback (most recent call last)" not in text:
            print(f"{step.name}: some items failed, see {log}; run again to retry them", flush=True)
            return True  # the others are there; not marked as done
        if status:
            tail = "\n".join(f"    {line}" for line in text.splitlines()[-8:])
            print(f"{step.name}: failed with status {status}; {log} ends:\n{tail}", flush=True)
            return False
        print(f"{step.name}: done in {seconds:.0f} s", flush=True)
        entry = {"command": str(step), "digest": self._digests[step.name], "seconds": seconds}
        write_json(self._done / f"{step.name}.json", entry)
        return True

    def _is_done(self, step: Step) -> bool:
        marker = self._done / f"{step.name}.json"
        if not marker.exists() or (self._redo and self._redo in step.name):
            return False
        return read_json(marker).get("digest") == self._digests[step.name]

    def _stop(self) -> None:
        """End the steps that are running; what they have finished is on disk."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


def digests(steps: Sequence[Step]) -> dict[str, str]:
    """Return what each step's result depends on: its command, its configuration file, and all of
    that for the steps of earlier phases.
    """
    found: dict[str, str] = {}
    before = ""
    for _, phase in groupby(sorted(steps, key=lambda step: step.phase), lambda step: step.phase):
        members = list(phase)
        for step in members:
            files = [Path(word) for word in step.command if word.endswith(".json")]
            texts = [file.read_text(encoding="utf-8") for file in files if file.exists()]
            whole = "\n".join([before, str(step), *texts])
            found[step.name] = hashlib.sha256(whole.encode()).hexdigest()[:12]
        before += "".join(found[step.name] for step in members)
    return found


if __name__ == "__main__":
    run_main(main)
