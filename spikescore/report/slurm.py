"""An experiment as jobs of SLURM: batch scripts, and how they are submitted.

docs/cluster.md lists the scripts. A task runs `reproduce.py` on its part and leaves its record
beside those of all others; each model is scored when its own tasks are done, the tables are made
when all models are scored.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spikescore.errors import UserError
from spikescore.files import make_folder, read_json, write_atomic, write_json
from spikescore.report.experiment import Experiment
from spikescore.report.steps import ROOT, Runner, Step

USUAL = {"gres": "gpu:1", "requeue": True, "signal": "B:USR1@120", "open-mode": "append"}
"""Options of all jobs, unless others are given. A job hears that its time is up two minutes before
it is.
"""

_SCRIPT = """\
#!/bin/bash
# {what}; written by reproduce.py --slurm
{options}
cd {root} || exit 2
{lines}{tasks}trap 'kill -TERM "$child"' TERM
trap 'time_is_up=yes; kill -TERM "$child"' USR1
{command} &
child=$!
wait "$child"
status=$?
while kill -0 "$child" 2> /dev/null; do
    wait "$child"
    status=$?
done
# what was finished is kept: the job goes on from there when it gets the machine again
if [ "$time_is_up" ] && [ "$status" -gt 128 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""
_SUBMIT = """\
#!/bin/bash
# Submits what is missing; written by reproduce.py --slurm
set -e
submit() { id=$(sbatch --parsable "$@") && echo "${id%%;*}"; }
"""


def parse_options(text: str) -> dict[str, Any]:
    """Read options of sbatch from a command line: "partition=gpu time=12:00:00 exclusive"."""
    options: dict[str, Any] = {}
    for word in shlex.split(text):
        name, _, value = word.removeprefix("--").partition("=")
        if not name or name.startswith("-"):
            raise UserError(f'--slurm: "{word}" is no option of sbatch; use name=value')
        if not value.isprintable():
            raise UserError(f"--slurm: {word!r} holds a line's end or the like")
        options[name] = value or True
    return options


class Jobs:
    """The jobs of an experiment, and which of its parts are missing.

    options: sbatch's, from the command line. arguments: what each job's reproduce.py gets beside
    its part.
    """

    def __init__(
        self,
        experiment: Experiment,
        steps: Sequence[Step],
        options: Mapping[str, Any],
        arguments: Sequence[str],
    ) -> None:
        own = experiment.slurm
        given = {**own.options, **options}
        usual = dict(USUAL)
        if any(name.startswith("gpus") for name in given):
            del usual["gres"]
        self._experiment, self._arguments = experiment, arguments
        self._options = {**usual, **given}
        # where no model runs: without GPUs, and with options of their own
        self._scoring = {
            name: one
            for name, one in self._options.items()
            if not name.startswith(("gres", "gpus"))
        } | own.scoring
        self.folder = experiment.report_dir / "slurm"
        done = Runner(experiment.report_dir).is_done
        open_steps = [step for step in steps if not done(step)]
        missing = {
            one.part for step in open_steps for one in step.parts or (step,) if not done(one)
        }
        names = [model.name for model in experiment.models]
        self.parts = [f"{name}/{domain}" for name in names for domain in experiment.domains()]
        self.missing = [part for part in self.parts if part in missing]
        behind = {part.split("/")[0] for part in self.missing}
        self.models, self.to_score = names, [n for n in names if n in missing or n in behind]
        self.to_tables = bool(self.to_score) or "" in missing

    def files(self) -> dict[Path, str]:
        """Return every script by its path."""
        what = f"{self._experiment.name}:"
        return {
            self.folder / "generate.sbatch": self._script(
                f"{what} dialogues and measures, a task for each model and domain",
                "generate", self._options, self.parts,
            ),
            self.folder / "score.sbatch": self._script(
                f"{what} the methods' scores, a task for each model",
                "score", self._scoring, self.models,
            ),
            self.folder / "tables.sbatch": self._script(
                f"{what} tables and report", "tables", self._scoring, []
            ),
            self.folder / "submit.sh": self._submit(),
        }  # fmt: skip

    def _script(self, what: str, name: str, given: Mapping[str, Any], tasks: Sequence[str]) -> str:
        log = f"{self.folder.resolve()}/%x-%{'A_%a' if tasks else 'j'}.out"
        options = {"job-name": f"{self._experiment.name}-{name}", "output": log, **given}
        if tasks:
            options = {"array": f"0-{len(tasks) - 1}", **options}
        words = [sys.executable, "reproduce.py", *self._arguments, "--part"]
        part = '"${tasks[$SLURM_ARRAY_TASK_ID]}"' if tasks else "tables"
        return _SCRIPT.format(
            what=what,
            options="\n".join(
                f"#SBATCH --{option}" + ("" if value is True else f"={shlex.quote(str(value))}")
                for option, value in options.items()
                if value is not None and value is not False
            ),
            root=shlex.quote(str(ROOT)),
            lines="".join(f"{line}\n" for line in self._experiment.slurm.lines),
            tasks=tasks and "tasks=(\n{}\n)\n".format("\n".join(map(shlex.quote, tasks))) or "",
            command=f"{shlex.join(words)} {part}",
        )

    def _submit(self) -> str:
        script = {
            name: shlex.quote(str(self.folder.resolve() / f"{name}.sbatch"))
            for name in ("generate", "score", "tables")
        }
        after = "--kill-on-invalid-dep=yes --dependency=afterok"
        lines, scored = [_SUBMIT], ""
        numbers = {part: self.parts.index(part) for part in self.missing}
        if numbers:
            array = ",".join(map(str, numbers.values()))
            lines.append(f"generate=$(submit --array={array} {script['generate']})")
            lines.append(f"echo $generate: {len(numbers)} of {len(self.parts)} parts")
        for name in self.to_score:
            task = self.models.index(name)
            own = [n for part, n in numbers.items() if part.split("/")[0] == name]
            wait = after + "".join(f":${{generate}}_{n}" for n in own) if own else ""
            words = " ".join(filter(None, (f"--array={task}", wait, script["score"])))
            lines.append(f"score_{task}=$(submit {words})")
            lines.append(f"echo $score_{task}: scores of {shlex.quote(name)}")
            scored += f":$score_{task}"
        if self.to_tables:
            words = " ".join(filter(None, (scored and f"{after}{scored}", script["tables"])))
            lines += [f"tables=$(submit {words})", "echo $tables: tables"]
        return "\n".join(lines) + "\n"

    def shown(self) -> Iterator[str]:
        """Yield what would be submitted: what is missing, and every script with its path."""
        yield "\n" + "\n".join(f"# {line}" for line in self.told())
        for path, text in self.files().items():
            yield f"\n# {path}\n{text}"

    def told(self) -> list[str]:
        """Say which parts are missing, where some are there."""
        if not self.to_tables:
            return ["nothing is missing: the tables are made"]
        if not self.missing:
            return [f"all {len(self.parts)} parts are made; the scores or the tables are missing"]
        if len(self.missing) == len(self.parts):
            return [f"{len(self.parts)} parts, of which none is made"]
        return [f"{len(self.missing)} of {len(self.parts)} parts are missing:", *self.missing]

    def submit(self) -> None:
        """Write the scripts and have SLURM run them; where there is no sbatch, say how.

        UserError where jobs of an earlier call are still to run, or sbatch refuses one.
        """
        for path, text in self.files().items():
            make_folder(path.parent)
            write_atomic(path, text.encode())
        print("\n".join(self.told()))
        if not self.to_tables:
            return
        script = self.folder / "submit.sh"
        if shutil.which("sbatch") is None:
            print(f"there is no sbatch here; on a machine that has it: bash {script}")
            return
        self._require_none_queued()
        done = subprocess.run(["bash", str(script)], stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="")
        ids = [line.split(":")[0] for line in done.stdout.splitlines()]
        write_json(self.folder / "jobs.json", ids)
        if done.returncode:
            raise UserError(
                f"sbatch refused a job (see above); mend the options (--slurm, or "
                f'"slurm" in the experiment), and scancel {" ".join(ids) or "nothing"}'
            )
        print(f"logs: {self.folder}; run the same command again to submit what is missing then")

    def _require_none_queued(self) -> None:
        path = self.folder / "jobs.json"
        before = read_json(path) if path.exists() else []
        if not before or shutil.which("squeue") is None:
            return
        words = ["squeue", "--noheader", "--jobs", ",".join(map(str, before))]
        asked = subprocess.run(words, capture_output=True, text=True)
        if asked.returncode == 0 and asked.stdout.strip():
            raise UserError(
                f"jobs of this experiment are still queued or running ({', '.join(before)}); wait "
                f"until they have ended, or scancel {' '.join(before)}"
            )
