"""How many cores there are, and how many threads a fit may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

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
