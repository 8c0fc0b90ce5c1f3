"""Which process of a launch this is, and its share of the work.

`accelerate launch` and `torchrun` start the same script several times and number the copies in the
environment. The copies need not talk to each other: each takes every n-th question, and the pairs
on disk say what is left after a failure, whatever the number of processes then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from threadpoolctl import threadpool_limits

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

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items: every world_size-th one. The shares are disjoint and cover all."""
        return list(items[self.rank :: self.world_size])


def this_process() -> Process:
    """Read rank and world size as the launcher set them; alone without a launcher."""
    number = {
        name: int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    }
    return Process(number["RANK"], number["WORLD_SIZE"], number["LOCAL_RANK"])


WIDE = 2**16
"""Bytes of one item's states from which a fit has work for several threads. Below, they wait for
each other: with 7 states of width 256, two threads took SAPLMA 10 s of CPU time on two busy cores,
one thread 0.3 s."""
MOST = 8


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def threads_for(item_bytes: int) -> int:
    """Return how many threads serve a fit on items whose states have this many bytes each."""
    return 1 if item_bytes < WIDE else min(usable_cores(), MOST)


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """Let torch, BLAS and OpenMP use that many threads inside, and as many as before after it."""
    import torch  # before the limits, which reach only libraries that are loaded

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number):
            yield
    finally:
        torch.set_num_threads(before)


def derived_seed(*parts: object) -> int:
    """Return a 63-bit seed, a fixed function of the parts on every machine and in every run."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
