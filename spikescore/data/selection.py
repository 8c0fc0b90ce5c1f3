"""Which questions of a set are used: all, the first n, or n drawn by a seed."""

from __future__ import annotations

import heapq
import logging
from collections import defaultdict
from collections.abc import Iterable
from itertools import islice
from typing import Any

from spikescore.data.question import Question
from spikescore.errors import UserError
from spikescore.runtime import derived_seed

log = logging.getLogger("spikescore")

STRATEGIES = ("all", "random", "sequential", "balanced", "stratified")


def sample_questions(
    questions: Iterable[Question], *, strategy: str, n: int | None, seed: int
) -> list[Question]:
    """Choose n questions; all strategies but `all` and `sequential` ignore the order of the file.

    `random` draws uniformly; `balanced` takes equal numbers of each stratum (domain, and the data
    set's own kinds in `meta["stratum"]`); `stratified` takes them in proportion. `all` ignores n;
    an n above the number of questions takes all of them. From an iterator `random` keeps only n
    questions in memory, and `sequential` stops reading after the n-th.
    """
    if strategy not in STRATEGIES:
        raise UserError(
            f'config key "sampling.strategy": unknown strategy "{strategy}"; '
            f"use one of {', '.join(STRATEGIES)}"
        )
    if n is not None and n < 1:
        raise UserError(f'config key "sampling.n": {n} is not a positive number')
    if strategy == "all":
        return list(questions)
    if strategy == "sequential":
        return _checked(list(islice(questions, n)), n)

    def shuffled_place(one: Question) -> tuple[int, str]:
        # a seeded hash of the id is a shuffle that does not know the order of rows
        return derived_seed(seed, "sample", one.id), one.id

    if n is None:
        return sorted(questions, key=shuffled_place)
    if strategy == "random":
        return _checked(heapq.nsmallest(n, questions, key=shuffled_place), n)
    shuffled = sorted(questions, key=shuffled_place)
    n = len(_checked(shuffled[:n], n))
    strata: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in shuffled:
        strata[(question.domain, str(question.meta.get("stratum") or ""))].append(question)
    sizes = {key: len(members) for key, members in sorted(strata.items())}
    share = _equal_shares(sizes, n) if strategy == "balanced" else _proportional_shares(sizes, n)
    chosen = {one.id for key, members in strata.items() for one in members[: share[key]]}
    return [question for question in shuffled if question.id in chosen]


def _checked(chosen: list[Question], n: int | None) -> list[Question]:
    if n is not None and len(chosen) < n:
        log.warning("sampling.n is %d, the data set has %d: taking all", n, len(chosen))
    return chosen


def _equal_shares(sizes: dict[Any, int], n: int) -> dict[Any, int]:
    """Split n as evenly as the sizes allow; what a short stratum lacks goes to the others."""
    share = dict.fromkeys(sizes, 0)
    while n:
        room = [key for key in sizes if share[key] < sizes[key]]
        each = max(1, n // len(room))
        for key in room[:n]:
            taken = min(each, sizes[key] - share[key])
            share[key] += taken
            n -= taken
    return share


def _proportional_shares(sizes: dict[Any, int], n: int) -> dict[Any, int]:
    """Split n in proportion to the sizes, the left-over seats by largest remainder."""
    total = sum(sizes.values())
    share = {key: n * size // total for key, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda key: (-(n * sizes[key] % total), key))
    for key in by_remainder[: n - sum(share.values())]:
        share[key] += 1
    return share
