"""Which process of a launch this is, and its share of the work.

`accelerate launch` and `torchrun` start the same script several times and number the copies in the
environment. The copies need not talk to each other: each takes every n-th question, and the pairs
on disk say what is left after a failure, whatever the number of processes then.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

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
