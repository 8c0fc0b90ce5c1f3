"""Which questions of a set are used: those that pass the filters, and of them all, or n."""

from __future__ import annotations

import heapq
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from spikescore.data.fields import is_missing
from spikescore.data.question import Question
from spikescore.errors import UserError
from spikescore.runtime import derived_seed

log = logging.getLogger("spikescore")

STRATEGIES = ("all", "random", "sequential", "balanced", "stratified")
FILTERED_FIELDS = ("domain", "group", "answer_type", "id")
"""What of a question itself can be filtered by, beside its `meta` and the columns of its row."""
_BOUNDS = ("min", "max", "below")


# --- filters ----------------------------------------------------------------------------------


def check_filters(filters: Mapping[str, Any]) -> None:
    """Raise UserError for a filter of unknown form."""
    for name, wanted in filters.items():
        if not isinstance(wanted, Mapping):
            continue
        numbers = (value for value in wanted.values() if not isinstance(value, bool))
        if not set(wanted) <= set(_BOUNDS) or not wanted:
            raise UserError(
                f'config key "filters", "{name}": use {" and ".join(_BOUNDS)} as keys, '
                'e.g. {"min": 0.1, "below": 0.4}'
            )
        if sum(isinstance(value, int | float) for value in numbers) < len(wanted):
            raise UserError(f'config key "filters", "{name}": the bounds must be numbers')


def fits(question: Question, row: Mapping[str, Any], name: str, wanted: Any) -> bool:
    """True when a question passes one filter.

    By a value ({"scope": "word"}), one of several (["word", "lens"]), null for what is missing, or
    bounds of a number ({"min": 0.1, "below": 0.4}: "min" and "max" include the bound, "below" does
    not; what is missing fits none). A number written as text, as in a CSV, counts as the number.
    """
    if name in FILTERED_FIELDS:
        values = [getattr(question, name)]
    else:
        values = [question.meta[name] if name in question.meta else row.get(name)]
    if name == "id" and "id" in row:  # as a pair's file is named, or as the row has it
        values.append(row["id"])
    return any(_value_fits(None if is_missing(value) else value, wanted) for value in values)


def _value_fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        number = _number(value)
        return (
            number is not None
            and number >= wanted.get("min", -math.inf)
            and number <= wanted.get("max", math.inf)
            and number < wanted.get("below", math.inf)
        )
    return any(_same(value, one) for one in (wanted if isinstance(wanted, list) else [wanted]))


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(value, bool):
        return str(value).strip().casefold() == str(wanted).strip().casefold()
    if isinstance(wanted, int | float):
        return _number(value) == wanted
    return value == wanted or (isinstance(wanted, str) and str(value) == wanted)


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


# --- samples ----------------------------------------------------------------------------------


def sample_questions(
    questions: Iterable[Question], *, strategy: str, n: int | None, seed: int
) -> list[Question]:
    """Choose n questions; all strategies but `all` and `sequential` ignore the order of the file.

    `random` draws uniformly; `balanced` takes equal numbers of each stratum (domain, and the data
    set's own kinds in `meta["stratum"]`); `stratified` takes them in proportion. `all` ignores n;
    an n above the number of questions takes all of them. From an iterator `random` keeps only n
    questions in memory, and `sequential` stops reading after the n-th; an iterable that can be read
    anew, as a stream of questions can, is read twice for `balanced` and `stratified`, which then
    keep ids and strata alone.
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

    def shuffled_place(item: str) -> tuple[int, str]:
        # a seeded hash of the id is a shuffle that does not know the order of rows
        return derived_seed(seed, "sample", item), item

    if n is None:
        return sorted(questions, key=lambda one: shuffled_place(one.id))
    if strategy == "random":
        drawn = heapq.nsmallest(n, questions, key=lambda one: shuffled_place(one.id))
        return _checked(drawn, n)
    if iter(questions) is questions:
        questions = list(questions)
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in questions:
        strata[(one.domain, str(one.meta.get("stratum") or ""))].append(one.id)
    sizes = {key: len(members) for key, members in sorted(strata.items())}
    n_all = sum(sizes.values())
    split = _equal_shares if strategy == "balanced" else _proportional_shares
    share = split(sizes, min(n, n_all))
    chosen = {
        item
        for key, members in strata.items()
        for item in heapq.nsmallest(share[key], members, key=shuffled_place)
    }
    drawn = (one for one in questions if one.id in chosen)
    return _checked(sorted(drawn, key=lambda one: shuffled_place(one.id)), n)


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
