"""Answers that mean the same, put together: the semantic sets of semantic entropy.

Two answers mean the same when each follows from the other (strict), or, loosely, when neither
contradicts the other and one at least follows. An answer joins the first set whose first member
means the same, and no other (Kuhn, Gal and Farquhar, "Semantic Uncertainty", ICLR 2023). Where an
answer fits two sets the original code overwrites the earlier one, so that it ends in the later, and
the earlier set may be left with its first member alone; here it stays where it joined first.

That needs no answer to wait for the one before it. The first answer opens a set and all others are
held against it; the first of those that are left opens the next, and so on. All questions take
their steps beside each other, so that hundreds of judgements are under way at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from itertools import chain

from spikescore.labels.entailment import (
    CONTRADICTION,
    ENTAILMENT,
    Entailment,
    LLMEntailment,
    Pair,
    normalised,
)
from spikescore.runtime import progress

AT_ONCE = 512
"""Questions whose answers are judged by a server at the same time."""

Verdicts = list[int | None]
_Steps = Generator[list[Pair], Verdicts, list[int] | None]


def cluster_many(
    items: Sequence[tuple[str | None, Sequence[str]]], entailment: Entailment, *, strict: bool
) -> list[list[int] | None]:
    """Return the set of each answer, for each (question or None, answers).

    Sets are numbered from 0 in order of first appearance; equal answers (see
    `entailment.normalised`) share one without a judgement. None where a judgement that is needed
    failed: rather no sets than wrong ones.
    """
    if isinstance(entailment, LLMEntailment):
        return entailment.run(_cluster_all(items, entailment, strict))
    found: list[list[int] | None] = [None] * len(items)
    steps = {
        index: _sets(question, answers, strict) for index, (question, answers) in enumerate(items)
    }
    verdicts: dict[int, Verdicts | None] = dict.fromkeys(steps)
    while verdicts:
        needed: dict[int, list[Pair]] = {}
        for index, given in verdicts.items():
            try:
                needed[index] = steps[index].send(given)
            except StopIteration as end:
                found[index] = end.value
        verdicts = _judge(needed, entailment)
    return found


async def _cluster_all(
    items: Sequence[tuple[str | None, Sequence[str]]], entailment: LLMEntailment, strict: bool
) -> list[list[int] | None]:
    room = asyncio.Semaphore(AT_ONCE)
    with progress(desc="clustering", total=len(items), unit="question", leave=False) as bar:

        async def one(question: str | None, answers: Sequence[str]) -> list[int] | None:
            async with room:
                found = await cluster(question, answers, entailment, strict=strict)
            bar.update()
            return found

        return await asyncio.gather(*(one(*item) for item in items))


async def cluster(
    question: str | None, answers: Sequence[str], entailment: LLMEntailment, *, strict: bool
) -> list[int] | None:
    """As `cluster_many` for one question, each step as soon as the one before it is judged."""
    steps = _sets(question, answers, strict)
    verdicts: Verdicts | None = None
    while True:
        try:
            pairs = steps.send(verdicts)
        except StopIteration as end:
            return end.value
        verdicts = await entailment.entail(pairs)


def _judge(needed: dict[int, list[Pair]], entailment: Entailment) -> dict[int, Verdicts | None]:
    """Have all pairs of a round judged in one call."""
    if not needed:
        return {}
    judged = iter(entailment.entail_many(list(chain.from_iterable(needed.values()))))
    return {index: [next(judged) for _ in pairs] for index, pairs in needed.items()}


def _sets(question: str | None, answers: Sequence[str], strict: bool) -> _Steps:
    """Yield the pairs to be judged, get their verdicts, and return the answers' sets."""
    forms = [normalised(answer) for answer in answers]
    spelling: dict[str, str] = {}
    for form, answer in zip(forms, answers, strict=True):
        spelling.setdefault(form, answer)
    set_of: dict[str, int] = {}
    n_sets, left = 0, list(spelling)
    while left:
        head, *left = left
        set_of[head] = n_sets
        same = yield from _same_as(head, left, spelling, question, strict)
        if same is None:
            return None
        set_of.update(dict.fromkeys(same, n_sets))
        left = [form for form in left if form not in same]
        n_sets += 1
    return [set_of[form] for form in forms]


def _same_as(
    head: str, others: list[str], spelling: dict[str, str], question: str | None, strict: bool
) -> Generator[list[Pair], Verdicts, set[str] | None]:
    """Return those that mean the same as `head`; None when a judgement failed.

    The way back is asked only of those that the way there leaves open.
    """
    if not others:
        return set()
    there = yield [(question, spelling[head], spelling[other]) for other in others]
    hopeful = {
        other: verdict
        for other, verdict in zip(others, there, strict=True)
        if verdict is not None and (verdict == ENTAILMENT if strict else verdict != CONTRADICTION)
    }
    back: Verdicts = []
    if hopeful:
        back = yield [(question, spelling[other], spelling[head]) for other in hopeful]
    if None in there or None in back:
        return None
    return {
        other
        for (other, one_way), way_back in zip(hopeful.items(), back, strict=True)
        if _mean_the_same(one_way, way_back, strict)
    }


def _mean_the_same(there: int, back: int, strict: bool) -> bool:
    if strict:
        return there == back == ENTAILMENT
    return CONTRADICTION not in (there, back) and ENTAILMENT in (there, back)
