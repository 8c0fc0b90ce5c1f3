"""What a run stands on: processes and their shares, threads, seeds, bars, calls to servers.

`accelerate launch`, `torchrun` and `srun` start the same script several times and number the copies
in the environment. The copies need not talk to each other: each takes every n-th question, and the
pairs on disk say what is left after a failure, whatever the number of processes then.

Everything that waits for a server does so on an `EventLoop`.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from spikescore.errors import UserError, redacted

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """rank: 0 .. world_size - 1 over all machines; local_rank: number on this machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """True for the one process that prints and writes what is common to all."""
        return self.rank == 0

    @property
    def place(self) -> str:
        """ " (process 3 of 8)" for messages; "" for a process alone."""
        return f" (process {self.rank} of {self.world_size})" if self.world_size > 1 else ""

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items: every world_size-th one. The shares are disjoint and cover all."""
        return list(items[self.rank :: self.world_size])


_NO_STEP = 0xFFFFFFF0
"""From here on SLURM numbers what is no step of `srun`: a batch script, an interactive shell."""


def this_process() -> Process:
    """Read which of how many processes this is, as torchrun, accelerate or srun say it; alone
    without a launcher, in a batch script and in an interactive shell.

    RANK, WORLD_SIZE and LOCAL_RANK go before SLURM's own variables, as torchrun may be what srun
    starts. UserError where they contradict each other: some questions would be nobody's.
    """
    tasks = _slurm_task()
    given = {name: _number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    rank, size, local = given.values()
    if rank is None and (size is None or size == tasks.world_size):
        rank, size = tasks.rank, tasks.world_size
    if rank is None and size == 1:
        rank = 0
    if size is None and rank == 0:
        size = 1
    if local is None:
        local = min(tasks.local_rank, rank or 0)
    fits = rank is not None and size is not None and 0 <= local <= rank < size
    if not fits or size < tasks.world_size:
        told = {**given, "SLURM_PROCID": tasks.rank, "SLURM_NTASKS": tasks.world_size}
        names = list(told)[: 5 if tasks.world_size > 1 else 3]
        said = ", ".join(f"{name}={'' if told[name] is None else told[name]}" for name in names)
        raise UserError(
            f"the environment does not say which process of how many this is ({said}); start the "
            "script by torchrun, accelerate launch or srun, or unset RANK, WORLD_SIZE and "
            "LOCAL_RANK"
        )
    return Process(rank, size, local)


def _slurm_task() -> Process:
    """What srun says of its task; alone elsewhere, as in a batch script of many tasks."""
    rank, step = _number("SLURM_PROCID"), _number("SLURM_STEP_ID")
    size = _number("SLURM_STEP_NUM_TASKS")
    if size is None and (step is not None or os.environ.get("ENVIRONMENT") != "BATCH"):
        size = _number("SLURM_NTASKS")
    if rank is None or size in (None, 1) or (step or 0) >= _NO_STEP:
        return Process()
    local = _number("SLURM_LOCALID") or 0
    if not 0 <= local <= rank < size:
        raise UserError(
            f"SLURM_PROCID={rank}, SLURM_NTASKS={size} and SLURM_LOCALID={local} contradict each "
            "other; start the script by srun, or unset them"
        )
    return Process(rank, size, local)


def _number(name: str) -> int | None:
    """A variable of the environment that counts something; None where it is not set."""
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise UserError(f'the environment variable {name} is "{text}"; it must be a whole number')
    return int(text) if text else None


ALL_ENDED = "all processes have come to their end; items of some failed"
"""What a process with failed items says under torchrun; see `end_together`."""


def end_together(status: int) -> int:
    """Return a script's exit status when it may be given.

    torchrun, and accelerate by it, ends all processes as soon as one ends with another status than
    0: one failed item would stop what the others are at. So such a process waits for them.
    """
    process = this_process()
    # the agent that starts the processes has a store for them, which outlives each
    if process.world_size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return status
    import torch.distributed as distributed

    if distributed.is_initialized():  # slices of one model are in step, and the first ends last
        return status
    store, *_ = next(distributed.rendezvous("env://"))
    ended = store.add("ended", 1)
    while status and ended < process.world_size:
        time.sleep(0.5)
        ended = store.add("ended", 0)
    if status:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the first of us brings the others
        print(ALL_ENDED, flush=True)
    return status


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def end_with_parent() -> None:
    """End this process, started by `multiprocessing`, when its parent has ended, however it did.

    Nothing tells a worker when its parent is killed: it would wait for work for ever.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def worker_pool(
    n_workers: int,
    prepare: Callable[..., None] | None = None,
    arguments: Sequence[Any] = (),
    context: Any = None,
) -> Iterator[ProcessPoolExecutor]:
    """Provide worker processes, started at once, that leave Ctrl-C to this one and end with it.

    `prepare(*arguments)` runs first in each. A request to stop ends them; after another error no
    further task begins.
    """
    pool = ProcessPoolExecutor(n_workers, context, _prepare_worker, (prepare, arguments))
    try:
        # Python's own hooks around a fork swallow what a signal's handler raises
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            gc.freeze()  # else the first collection in a worker would copy all that they share
            pool.submit(int)  # the first task starts them
        finally:
            gc.unfreeze()
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        yield pool
    except KeyboardInterrupt:  # nobody waits for a task; a file is written whole or not at all
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker(prepare: Callable[..., None] | None, arguments: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    end_with_parent()
    if prepare:
        prepare(*arguments)


@contextmanager
def limited_threads(number: int = 1) -> Iterator[None]:
    """Let torch, BLAS and OpenMP use that many threads inside, and as many as before after it.

    One for many small fits: threads wait for each other. At the paper's size (28 layers of width
    3072, 800 answers) two threads on a busy machine took SAPLMA 534 s, one took 104 s.
    """
    import torch  # before the limits, which reach only libraries that are loaded

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number):
            yield
    finally:
        torch.set_num_threads(before)


LOG_RHYTHM = 30.0
"""Seconds between the lines that a bar writes into a log."""


def progress(
    steps: Iterable[T] | None = None, desc: str | None = None, *, leave: bool = True, **options: Any
) -> tqdm:
    """Return a tqdm bar on the error stream, over `steps` or counted by its `update`.

    On a terminal it moves twice a second, and appears at once, or where it is not to stay (`leave`)
    after a second. In a log it writes a line every half minute, and none for what is done sooner.
    `options` are tqdm's `total`, `unit`, `disable` ...
    """
    live = sys.stderr.isatty()
    rhythm = 0.5 if live else LOG_RHYTHM
    return tqdm(
        steps,
        desc,
        leave=leave,
        delay=(0.0 if leave else 1.0) if live else rhythm,
        mininterval=rhythm,
        maxinterval=max(10.0, rhythm),
        smoothing=0.05,
        **options,
    )


def derived_seed(*parts: object) -> int:
    """Return a 63-bit seed, a fixed function of the parts on every machine and in every run."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class EventLoop:
    """An event loop on a thread of its own, for calls to servers; works below any other loop.

    Used as a context manager, which opens the `resources`. Leaving it, after Ctrl-C or an error
    too, cancels what is still under way and then closes what was opened on it.
    """

    def __init__(self, *resources: AbstractAsyncContextManager[Any]) -> None:
        self._resources = resources

    def __enter__(self) -> EventLoop:
        self._loop = asyncio.new_event_loop()
        self._opened = AsyncExitStack()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            for resource in self._resources:
                self.open(resource)
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine beside others; return its future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; return what it returns, or raise what it raises."""
        return self.begin(work).result()

    def start(self, work: Coroutine[Any, Any, T], report: Callable[[T | Exception], None]) -> None:
        """Run a coroutine beside others; `report` gets its result, or the exception it died of."""

        async def reported() -> None:
            try:
                result = await work
            except Exception as error:  # handed over: the caller's thread raises it
                result = error
            report(result)

        self.begin(reported())

    def open(self, resource: AbstractAsyncContextManager[T]) -> T:
        """Enter an asynchronous context, a client for instance, until the loop is left."""
        return self.run(self._opened.enter_async_context(resource))

    def __exit__(self, *exc_info: object) -> None:
        self.run(self._wind_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _wind_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._opened.aclose()


def brief(error: Exception) -> str:
    """One line: what kind of error, and the server's own words where it said some; no secret."""
    response = getattr(error, "response", None)
    text = f"status {response.status_code}: {response.text}" if response is not None else str(error)
    return f"{type(error).__name__}: {redacted(' '.join(text.split()))[:300]}"


_RENAMED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_NOT_KNOWN = re.compile(
    r"unsupported|not (?:be )?(?:support|permitted|allowed|recogni|accepted|known)|unrecogni"
    r"|unknown|unexpected|extra[_ ]|no longer|deprecated|instead|invalid (?:parameter|field)",
    re.IGNORECASE,
)


def without_refused(request: dict[str, Any], error: Exception) -> dict[str, Any] | None:
    """Return a chat request without the parameter that the server's error (400, 422) refuses, or
    with its other name; None when it refuses none that can go.

    Reasoning models take no temperature but their own, some servers no seed, and max_tokens has two
    names. Of temperature and top_p, where a server takes but one of them, top_p goes. A limit on
    tokens goes only where the server does not know its name: "too many" is another complaint.
    """
    response = getattr(error, "response", None)
    if response is None or response.status_code not in (400, 422):
        return None
    text = response.text
    # the field that the error is about, where it says so apart from its words ("None" is LiteLLM's)
    fields = re.findall(r'"(?:param|loc)"\s*:\s*(\[[^\]]*\]|"(?!None")[^"]+")', text)
    names = sorted(request.keys() - {"model", "messages"}, key=len, reverse=True)
    if "top_p" in names and re.search(r"\b(?:both|only one|at most one)\b", text):
        names = ["top_p", *names]
    for name in names:
        word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
        if not (any(map(word.search, fields)) if fields else word.search(text)):
            continue
        rest = {key: value for key, value in request.items() if key != name}
        if name not in _RENAMED:
            return rest
        if _NOT_KNOWN.search(text):
            other = _RENAMED[name]
            return {**rest, other: request[name]} if re.search(rf"\b{other}\b", text) else rest
    return None


def unreachable(url: str, seconds: float = 1.5) -> str:
    """Say why nobody listens at a server's address; "" when somebody does, or it cannot be told at
    once (a proxy stands between, or the host is slow to answer).
    """
    try:
        address = urlsplit(url)
    except ValueError as error:  # a bracket without its end
        return brief(error)
    host = address.hostname or ""
    if getproxies().get(address.scheme) and not proxy_bypass(host):
        return ""
    try:
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        with socket.create_connection((host, port), timeout=seconds):
            return ""
    except TimeoutError:
        return ""
    except (OSError, ValueError, KeyError) as error:
        return brief(error)
