"""Dialogues that begin with an answer which the data set ships, known to be right or wrong.

A question becomes one item for each of its given answers: `<id>.right`, `<id>.wrong`, numbered
where several are right or wrong. These twins keep the question's id as `pair_id`, stay in its
group, and share the seed of every draw, so that they differ in their first answer alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from spikescore.data.question import Question
from spikescore.errors import UserError

log = logging.getLogger("spikescore")

SETS = "halueval, truthfulqa (not its multiple choice), true_false, ragtruth, openhaldet"
"""Formats whose rows ship answers known to be right or wrong."""


def twins(question: Question) -> list[Question]:
    """Return one question for each given answer, which is then the only one that it has."""
    names = ["wrong" if one.hallucinated else "right" for one in question.given]
    counts, place = Counter(names), Counter()
    found = []
    for name, answer in zip(names, question.given, strict=True):
        place[name] += 1
        number = place[name] if counts[name] > 1 else ""
        pair = answer.pair or question.id
        twin = replace(
            question,
            id=f"{question.id}.{name}{number}",
            group=question.group or pair,
            meta={**question.meta, **answer.said},
            given=(answer,),
            pair_id=pair,
        )
        if answer.question:  # no reference and no options belong to it
            twin = replace(
                twin, question=answer.question, choices=None, gold_answers=(), answer_type="free"
            )
        found.append(twin)
    return found


def sampled_twins(
    questions: Iterable[Question], sample: Callable[[Sequence[Question]], list[Question]], path: str
) -> list[Question]:
    """Return the twins of the questions that `sample` chooses, so that none is without the others.

    Questions without a given answer are left out, and those of which one text is said to be right
    and to be wrong; a warning counts them. Raises UserError when all are such.
    """
    by_pair: dict[str, list[Question]] = {}
    bare = torn = 0
    for question in questions:
        bare += not question.given
        right, wrong = (
            {one.text.strip().casefold() for one in question.given if one.hallucinated is verdict}
            for verdict in (False, True)
        )
        if right & wrong:
            torn += 1
            continue
        for twin in twins(question):
            by_pair.setdefault(str(twin.pair_id), []).append(twin)
    if not by_pair:
        raise UserError(
            f'dataset "{path}" ships no answers known to be right or wrong, which "first_answers": '
            f'"shipped" needs; {SETS} do, and rows of your own in the fields "right_answer" and '
            '"wrong_answer" (or what "fields" names so)'
            + f"; of {torn} questions one text is given as both"
            * bool(torn)
        )
    if torn:
        log.warning(
            "%s: %d questions left out: one text is given as right and as wrong", path, torn
        )
    if bare:
        log.warning("%s: %d questions without a given answer left out", path, bare)
    asked = [replace(some[0], id=pair) for pair, some in by_pair.items()]
    return [twin for one in sample(asked) for twin in by_pair[one.id]]
