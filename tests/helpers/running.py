"""Run the project's scripts as a user would, and make small tokenizers.

Whatever a test starts heads its own process group and is ended with it. No limit here says how fast
a machine must be: `LIMIT` ends what hangs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "models" / "tiny"
LIMIT = 3600.0
"""Seconds after which what a test waits for counts as hanging, however slow the machine."""
PUBLIC_DATA = ROOT.parent / "shared" / "data"
"""Real data sets' samples, which are not part of the project."""
needs_public_data = pytest.mark.skipif(
    not PUBLIC_DATA.is_dir(), reason="the folder of real data set samples is not here"
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(**options):
    """A byte-level BPE tokenizer over a few sentences, with special tokens and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<bos>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(["the question and the answer of the passage"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<end>", pad_token="<pad>"
    )
    tokenizer.chat_template = options.get("chat_template", CHAT_TEMPLATE)
    return tokenizer


def start(command: Sequence[object], **options) -> subprocess.Popen | Forked:
    """Start a command in the project's root as the head of its own process group, which is ended
    when the test ends, however it does, and when pytest itself is killed (see `_guard`).

    A plain Python script is forked from a process that has the heavy libraries (`warm.py`).
    """
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **options.pop("env", {})}
    words = [*map(str, command)]
    options = {"cwd": ROOT, "env": environment, **options}
    is_script = words[0] == sys.executable and words[1].endswith(".py") and len(options) == 2
    if is_script and (warm := _warm()) and warm.state == _read_at_import(environment):
        process = Forked(warm.channel, words, **options)
    else:
        options = {**piped, **options}
        process = subprocess.Popen(words, start_new_session=True, **options)
    _started.append(process)
    _tell_guard("+", process)
    return process


def end(process: subprocess.Popen | Forked) -> None:
    """Kill a started process with all of its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    _started.remove(process)
    _tell_guard("-", process)


@contextmanager
def ended_after() -> Iterator[None]:
    """End whatever was started within the block and still runs, or has left a child behind."""
    before = len(_started)
    try:
        yield
    finally:
        for process in _started[before:]:
            end(process)


def run(command: Sequence[object], **options) -> subprocess.CompletedProcess:
    """Run a command to its end, and end what it leaves; return its status, output and errors."""
    with ended_after():
        process = start(command, **options)
        out, err = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_script(*arguments: object, **options) -> subprocess.Popen | Forked:
    """Start one of the project's scripts as a user would, from the project's root."""
    return start([sys.executable, *arguments], **options)


def run_script(*arguments: object, **options) -> subprocess.CompletedProcess:
    """Run a script to its end and return its status, output and errors."""
    return run([sys.executable, *arguments], **options)


def wait_until(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Wait for something that a running process brings about; fail when it ends before."""
    until = time.monotonic() + LIMIT
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)


class Forked:
    """A script in a process that `warm.py` forked, with what the tests use of `subprocess.Popen`.

    It is a child of this process and the head of a session; its input is empty.
    """

    stdin = None

    def __init__(
        self, channel: socket.socket, args: list[str], env: dict[str, str], cwd: Path
    ) -> None:
        self.args, self.returncode = args, None
        out, err = os.pipe(), os.pipe()
        self.stdout, self.stderr = (os.fdopen(read, encoding="utf-8") for read, _ in (out, err))
        empty = os.open(os.devnull, os.O_RDONLY)
        request = json.dumps({"argv": args[1:], "env": env, "cwd": str(cwd)})
        _adopt(True)
        try:
            socket.send_fds(channel, [b"+"], [empty, out[1], err[1]])
            channel.sendall(f"{request}\n".encode())
            self.pid = int(channel.makefile().readline())
        finally:
            _adopt(False)
            for number in (empty, out[1], err[1]):
                os.close(number)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = LIMIT) -> int:
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float = LIMIT) -> tuple[str, str]:
        texts = ["", ""]

        def read(place: int, stream) -> None:
            texts[place] = stream.read()

        streams = enumerate((self.stdout, self.stderr))
        readers = [threading.Thread(target=read, args=one, daemon=True) for one in streams]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class _Warm(NamedTuple):
    """The process that forks scripts: its socket, and the environment that its imports saw."""

    channel: socket.socket
    state: dict[str, str]


def _adopt(orphans: bool) -> int:
    """Have grandchildren whose parent ends become this process's children, or no longer; 0 where
    that could be done.
    """
    set_child_subreaper = 36  # in linux/prctl.h
    return ctypes.CDLL(None).prctl(set_child_subreaper, int(orphans))


@cache
def _warm() -> _Warm | None:
    """Start the process that forks scripts; None where there is no such thing (not on Linux)."""
    if not sys.platform.startswith("linux") or _adopt(False):
        return None
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ours, theirs = socket.socketpair()
    _, pipe = os.pipe()  # as scripts have: Python asks once what kind of file its streams are
    with theirs:
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("warm.py"), str(theirs.fileno())],
            cwd=ROOT,
            env=environment,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
        )
    os.close(pipe)
    return _Warm(ours, _read_at_import(environment))


def _read_at_import(environment: dict[str, str]) -> dict[str, str]:
    """The variables that Python and the heavy libraries read when they are imported."""
    names = ("PYTHON", "LD_", "OMP_", "MKL_", "HF_", "TRANSFORMERS", "TORCH", "CUDA")
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(names) and name != "PYTHONPATH"  # which warm.py sees to
    }


_started: list[subprocess.Popen | Forked] = []
_GUARD = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


@cache
def _guard() -> subprocess.Popen:
    """A process that outlives pytest by a moment: it reads the living groups from a pipe, and ends
    them when the pipe closes, as it does even after kill -9.
    """
    return subprocess.Popen(
        [sys.executable, "-S", "-c", _GUARD],
        stdin=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def _tell_guard(sign: str, process: subprocess.Popen) -> None:
    pipe = _guard().stdin
    pipe.write(f"{sign}{process.pid}\n")
    pipe.flush()
