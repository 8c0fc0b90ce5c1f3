"""The steps of an experiment, run so that nothing is made twice and no table outlives its code.

A step is a command that could be typed by hand. It is done when a run of it is on record with the
same key and the same runs of the steps that it needs, and what it made is still there as it was.
The key holds its command, the settings files that the command names, what it reads from outside
(data sets, models), and the source of its script with all that this imports from the project.
"""

from __future__ import annotations

import ast
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from spikescore.errors import STARTER, UserError
from spikescore.files import make_folder, read_json, walk, write_atomic, write_json
from spikescore.runtime import ALL_ENDED

ROOT = Path(__file__).resolve().parents[2]
LOOK_EVERY = 60.0
"""Seconds between what is told of a step that runs."""
_READ_WHOLE = 2**20  # a larger file is known by its size and time


@dataclass(frozen=True)
class Step:
    """One command and what it is called; those of a phase need nothing of each other.

    `needs` names steps of earlier phases. `reads` lists files and folders that no step makes, a
    user's own code (.py) among them.
    `makes` lists what the step makes, as (file or folder, how the names of its files end).
    `part` says which part of the experiment it is of, that a job of its own can make: a model, or
    "model/domain". `parts` are the steps, one for each domain, that together make what this makes.
    """

    name: str
    command: tuple[str, ...]
    phase: int
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    makes: tuple[tuple[str, str], ...] = ()
    part: str = ""
    parts: tuple[Step, ...] = ()

    @property
    def counts_failures(self) -> bool:
        """Whether exit status 1 means that some items failed and the others are there."""
        scripts = ("scripts/measure_answers.py", "scripts/label_answers.py")
        return self.command[1] in ("reasoning_lite.py", *scripts)

    @property
    def shares_work(self) -> bool:
        """Whether several processes of its script share the items, so that a launcher helps."""
        return self.command[1] in ("reasoning_lite.py", "scripts/measure_answers.py")

    def __str__(self) -> str:
        return shlex.join(self.command)

    def line(self, launch: Sequence[str] = ()) -> str:
        """Return the command as it is typed, started by a launcher where that helps."""
        return shlex.join(self._words(launch))

    def words(self, launch: Sequence[str] = ()) -> list[str]:
        """Return the command as it is run here: by this Python, or a launcher beside it."""
        words = self._words(launch)
        head = len(words) - len(self.command) + 1
        first = [sys.executable if word == "python" else word for word in words[:head]]
        return [_found(first[0]), *first[1:], *words[head:]]

    def _words(self, launch: Sequence[str]) -> list[str]:
        return [*launch, *self.command[1:]] if launch and self.shares_work else [*self.command]

    def key(self) -> str:
        """Return what the result depends on, beside the steps that it needs, as a digest."""
        settings = [word for word in self.command if word.endswith(".json")]
        scripts = [ROOT / self.command[1], *(ROOT / p for p in self.reads if p.endswith(".py"))]
        data = [path for path in self.reads if not path.endswith(".py")]
        parts = [str(self), _content((path, "") for path in (*settings, *data))]
        return _digest([*parts, *map(source_digest, scripts)])


def _found(program: str) -> str:
    """Return where a program is: beside this Python, or on the PATH; UserError if nowhere."""
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    if (path := shutil.which(program, path=places)) is None:
        raise UserError(f'--launch: there is no program "{program}"; install it, or give its path')
    return path


class Runner:
    """Runs steps, skipping those that are done, and keeps the record in `<report_dir>/done`.

    `redo`: steps whose name holds this text are run again, and with them all that need them. Each
    step is announced as one of `n_steps` with its command and log, and tells once a minute where
    it is. `launch` are the words that start several processes of the steps that share work.

    A step of which jobs of their own have made parts is done when all are: what is missing is named
    and made alone.
    """

    def __init__(
        self,
        report_dir: Path,
        redo: str | None = None,
        *,
        n_steps: int = 0,
        launch: Sequence[str] = (),
    ) -> None:
        self._logs, self._done = report_dir / "logs", report_dir / "done"
        self._redo = redo
        self._launch = launch
        self._n_steps, self._n_told = n_steps, 0
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def run(self, steps: Sequence[Step], jobs: int) -> bool:
        """Run the steps of one phase, `jobs` at a time; False when one failed.

        Where a launcher starts several processes, they have the machine to themselves.
        """
        for folder in (self._logs, self._done):
            make_folder(folder)
        todo = [step for step in steps if not self.is_done(step)]
        for step in steps:
            if step not in todo:
                print(f"{self._place()}done before: {step.name}")
        if self._launch and any(step.shares_work for step in todo):
            jobs = 1
        jobs = min(jobs, max(len(todo), 1))
        with ThreadPoolExecutor(jobs) as pool:
            try:
                running = [pool.submit(self._run, step, jobs) for step in todo]
                # a wait without an end can miss a signal that comes just as it begins
                while (waited := wait(running, 1.0, FIRST_EXCEPTION)).not_done:
                    if any(step.exception() for step in waited.done):
                        break
                results = [step.result() for step in running]
            except BaseException:  # Ctrl-C and SIGTERM too
                self._stop()
                raise
        return all(results)

    def _run(self, step: Step, jobs: int) -> bool:
        place = self._place()
        if self._stopping:
            return False
        missing = [part for part in step.parts if not self.is_done(part)]
        if len(missing) == len(step.parts):
            return self._run_whole(step, jobs, place)
        names = ", ".join(part.part for part in missing)
        n_made = len(step.parts) - len(missing)
        told = f"; missing: {names}" if names else ""
        print(f"{place}{step.name}: {n_made} of {len(step.parts)} parts were made by jobs{told}")
        started, key, needed = time.monotonic(), step.key(), self._runs(step.needs)
        if not all([self._run_whole(part, jobs, "    ") for part in missing]):
            return False
        whole = all(self._record(part.name).get("whole") for part in step.parts)
        self._note(step, key, needed, time.monotonic() - started, whole)
        return True

    def _run_whole(self, step: Step, jobs: int, place: str) -> bool:
        log = self._logs / f"{step.name}.log"
        line, words = step.line(self._launch), step.words(self._launch)
        print(f"{place}{step.name}: {line}\n    log: {log}", flush=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        is_launched = bool(self._launch) and step.shares_work
        if not is_launched:  # else it is the launcher that is started here
            environment[STARTER] = str(os.getpid())
        if jobs > 1:
            threads = str(max(1, (os.cpu_count() or 1) // jobs))
            environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        key, needed, started = step.key(), self._runs(step.needs), time.monotonic()
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                process_group=0 if is_launched else None,
            )  # fmt: skip
            with self._lock:
                self._processes.add(process)
                if self._stopping:  # the request came while the step was being started
                    _end(process)
            status = _wait(process, step.name, log)
        seconds = time.monotonic() - started
        text = log.read_text(encoding="utf-8", errors="replace")
        came_to_the_end = ALL_ENDED in text or "Traceback (most recent" not in text
        some = status == 1 and step.counts_failures and came_to_the_end
        if status and not some:
            tail = "\n".join(f"    {line}" for line in text.splitlines()[-8:])
            print(f"{step.name}: failed with status {status}; {log} ends:\n{tail}", flush=True)
            return False
        if some:  # the others are there
            print(f"{step.name}: some items failed, see {log}; run again to retry them", flush=True)
        else:
            print(f"{step.name}: done in {seconds:.0f} s", flush=True)
        self._note(step, key, needed, seconds, not some)
        return True

    def _note(
        self, step: Step, key: str, needed: dict[str, str | None], seconds: float, whole: bool
    ) -> None:
        """Keep the record of a step that has just been made."""
        made, before = _content(step.makes), self._record(step.name)
        same = made == before.get("made") and not self._is_redone(step)
        write_json(
            self._marker(step.name),
            {
                "command": str(step), "key": key, "needed": needed, "made": made,
                "seconds": seconds, "whole": whole,
                # what came out as it was needs nothing after it to be made again
                "run": before["run"] if same and step.makes else secrets.token_hex(8),
            },
        )  # fmt: skip

    def _place(self) -> str:
        """Return "[3 of 14] " for the next step."""
        with self._lock:
            self._n_told += 1
            return f"[{self._n_told} of {self._n_steps}] " if self._n_steps else ""

    def is_done(self, step: Step) -> bool:
        """Whether a run of the step is on record, and nothing that it depends on has changed."""
        record = self._record(step.name)
        return bool(
            not self._is_redone(step)
            and record.get("whole")
            and record.get("needed") == self._runs(step.needs)
            and record.get("made") == _content(step.makes)
            and record.get("key") == step.key()
        )

    def _is_redone(self, step: Step) -> bool:
        return bool(self._redo) and self._redo in step.name

    def _runs(self, names: Iterable[str]) -> dict[str, str | None]:
        return {name: self._record(name).get("run") for name in names}

    def _marker(self, name: str) -> Path:
        return self._done / f"{name}.json"

    def _record(self, name: str) -> dict:
        record = read_json(self._marker(name)) if self._marker(name).exists() else {}
        return record if isinstance(record, dict) and "run" in record else {}

    def _stop(self) -> None:
        """End the running steps, and all that a launcher started; what is finished is on disk."""
        with self._lock:
            self._stopping, processes = True, list(self._processes)
            for process in processes:
                _end(process)
        for process in processes:
            process.wait()


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)  # a group where a launcher heads it


def _wait(process: subprocess.Popen, name: str, log: Path) -> int:
    """Wait for a step's end, saying once a minute where it is; return its status."""
    started = time.monotonic()
    while True:
        try:
            return process.wait(timeout=LOOK_EVERY)
        except subprocess.TimeoutExpired:
            minutes = (time.monotonic() - started) / 60
            print(f"    {name}, {minutes:.0f} min: {last_line(log)}", flush=True)


def last_line(log: Path) -> str:
    """Return the last line of a log's bar, or where it has none its last line of any kind."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        text = file.read().decode("utf-8", errors="replace")
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)  # how bars below each other move the cursor
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    bars = [line for line in lines if re.search(r"\d+%\||\d+(?:it|\w+)/s\b|\ds/\w+\b", line)]
    return (bars or lines or ["it has said nothing yet"])[-1]


def write_commands(
    report_dir: Path, steps: Sequence[Step], config: str, launch: Sequence[str]
) -> None:
    """Write commands.sh: the exact commands behind the tables, in order."""
    head = (
        "#!/bin/sh\n"
        f"# The commands behind this report, as python reproduce.py --config {config} runs them,\n"
        "# from the project's root.\n"
        "set -e\n"
    )
    body = "".join(f"\n# {step.name}\n{step.line(launch)}\n" for step in steps)
    write_atomic(report_dir / "commands.sh", (head + body).encode())


# --- digests ------------------------------------------------------------------------------------


def _digest(parts: Iterable[str]) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:16]


def _content(places: Iterable[tuple[str, str]]) -> str:
    """Return a digest of files, and of those in folders whose names end so ("": all).

    ".pkl" leaves out measures, which another step puts beside the pairs.
    """

    def told() -> Iterator[str]:
        for place, ending in places:
            path = Path(place)
            for file in walk(path) if path.is_dir() else [path]:
                measures = file.name.endswith(".measures.pkl") and ending != ".measures.pkl"
                if path.is_file() or file.name.endswith(ending) and not measures:
                    yield f"{file} {_file_content(file)}"

    return _digest(told())


def _file_content(path: Path) -> str:
    try:
        status = path.stat()
        if status.st_size > _READ_WHOLE:
            return f"{status.st_size} {status.st_mtime_ns}"
        return sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return "missing"


def source_digest(script: Path) -> str:
    """Return a digest of a script and of all that it imports from the project, in functions too.

    Comments, docstrings and layout are no part of it; what lies beside a package's `__init__` and
    is no Python (a page's style) is.
    """
    found: set[Path] = set()
    todo = [script]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += _imported(path, path.parent)
    parts = []
    for path in sorted(found):
        parts += [path.name, _code(path)]
        if path.name == "__init__.py":
            others = sorted(other for other in path.parent.glob("*.*") if other.suffix != ".py")
            parts += [_file_content(other) for other in others]
    return _digest(parts)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _code(path: Path) -> str:
    tree = _tree(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


@cache
def _imported(path: Path, beside: Path) -> list[Path]:
    """Return the project's files that a file imports, with the packages that they lie in."""
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    prefixes = {tuple(one[: end + 1]) for one in parts for end in range(len(one))}
    candidates = [
        base.joinpath(*prefix[:-1], last)
        for prefix in sorted(prefixes)
        for base in (ROOT, beside)
        for last in (f"{prefix[-1]}.py", f"{prefix[-1]}/__init__.py")
    ]
    return [path for path in candidates if path.is_file() and ".venv" not in path.parts]
