"""Questions with options to choose from: CommonsenseQA, Belebele, GPQA, true-false statements."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from spikescore.data.fields import (
    BadRow,
    as_text,
    flag,
    get,
    is_withheld,
    items,
    mapping,
    objects,
    optional,
    optional_text,
    own_id,
    parsed,
    shown,
    text,
)
from spikescore.data.question import GivenAnswer, Question, Row, distinct, option_gold
from spikescore.pairs import file_id
from spikescore.runtime import derived_seed


def shuffled_options(options: Sequence[str], item_id: str) -> tuple[tuple[str, ...], int]:
    """Return the options in an order that the item's id fixes, and where the first of them went.

    For sets that put the right option first: shown so, "A" would always be right.
    """
    order = list(range(len(options)))
    random.Random(derived_seed("options", item_id)).shuffle(order)
    return tuple(options[place] for place in order), order.index(0)


def commonsenseqa(row: Row) -> Iterable[Question]:
    """Both shapes: the publisher's (question: {stem, choices: [{label, text}]}) and the hub's.

    (Talmor et al. 2019.) CommonsenseQA's rows name a concept; without one they are of another set
    in this form (ARC, QASC).
    """
    nested = parsed(get(row, "question"), "question")
    if isinstance(nested, dict):
        stem = text(nested, "stem")
        options = objects(nested, "choices", some=True)
        labels = [text(option, "label") for option in options]
        choices = tuple(text(option, "text") for option in options)
    else:
        nested, stem = row, text(row, "question")
        by_column = mapping(row, "choices")
        labels = [as_text(label, "choices.label") for label in items(by_column, "label")]
        choices = tuple(as_text(choice, "choices.text") for choice in items(by_column, "text"))
    if len(labels) != len(choices):
        raise BadRow("choices", f"{len(labels)} labels and {len(choices)} options")
    concept = optional(nested, "question_concept")
    yield Question(
        id=own_id(row, "id"),
        domain="commonsenseqa" if concept else "",
        question=stem,
        choices=choices,
        gold_answers=_right(row, "answerKey", labels, choices),
        answer_type="choice",
        meta={"question_concept": concept} if concept else {},
    )


def is_asked_with_options(row: Row) -> bool:
    """True for these shapes where no answer is given: their test splits."""
    try:
        nested = parsed(row["question"], "question")
        return "stem" in nested if isinstance(nested, dict) else "label" in mapping(row, "choices")
    except BadRow:
        return False


def _right(row: Row, name: str, labels: Sequence[str], choices: tuple[str, ...]) -> tuple[str, ...]:
    """Return the gold answers of the option that a field names by its label; () if withheld."""
    if is_withheld(row.get(name)) or str(row.get(name)).strip() == "-1":
        return ()
    label = text(row, name)
    if label not in labels:
        raise BadRow(name, f'"{shown(label)}" is not one of the labels {shown(", ".join(labels))}')
    return option_gold(choices, list(labels).index(label))


def belebele(row: Row) -> Iterable[Question]:
    """{flores_passage, question, mc_answer1..4, correct_answer_num} (Bandarkar et al. 2024).

    The set is parallel: a passage is known in all its languages by its link, a question by its
    number there.
    """
    choices = tuple(text(row, f"mc_answer{number}") for number in (1, 2, 3, 4))
    passage, link = text(row, "flores_passage"), optional_text(row, "link")
    number = optional_text(row, "question_number")
    yield Question(
        id=own_id(row, None),
        domain="belebele",
        question=text(row, "question"),
        context=passage,
        choices=choices,
        gold_answers=_right(row, "correct_answer_num", "1234", choices),
        group=file_id(None, link or passage),
        answer_type="choice",
        meta={
            "stratum": optional(row, "dialect"),
            **({"parallel_id": f"belebele {link} {number}"} if link and number else {}),
        },
    )


def gpqa(row: Row) -> Iterable[Question]:
    """The CSV's columns Question, Correct Answer, Incorrect Answer 1 to 3 (Rein et al. 2024)."""
    right = text(row, "Correct Answer")
    wrong = tuple(text(row, f"Incorrect Answer {number}") for number in (1, 2, 3))
    if right in wrong:
        raise BadRow("Correct Answer", "is also one of the incorrect answers")
    item = own_id(row, "Record ID")
    choices, place = shuffled_options((right, *wrong), file_id(item, ""))
    yield Question(
        id=item,
        domain="gpqa",
        question=text(row, "Question"),
        choices=choices,
        gold_answers=option_gold(choices, place),
        answer_type="choice",
        meta={
            "stratum": optional(row, "High-level domain"),
            "subdomain": optional(row, "Subdomain"),
            "incorrect_answers": wrong,
            "solution": optional_text(row, "Explanation") or "",
        },
    )


def truthfulqa_choice(row: Row) -> Iterable[Question]:
    """TruthfulQA's hub form multiple_choice: the options of MC1, one of them true, shuffled.

    All true and false answers of MC2 go with it: the other true ones are gold too. (Lin et al.
    2022.)
    """
    single, several = _targets(row, "mc1_targets"), _targets(row, "mc2_targets")
    true = [choice for choice, is_true in single if is_true]
    false = [choice for choice, is_true in single if not is_true]
    if len(true) != 1 or not false:
        raise BadRow("mc1_targets", f"{len(true)} true and {len(false)} false options")
    item = own_id(row, None)
    choices, place = shuffled_options((*true, *false), item)
    others = [choice for choice, is_true in several if is_true and choice not in choices]
    yield Question(
        id=item,
        domain="truthfulqa",
        question=text(row, "question"),
        choices=choices,
        gold_answers=distinct((*option_gold(choices, place), *others)),
        answer_type="choice",
        meta={
            "incorrect_answers": distinct(
                choice for choice, is_true in (*single, *several) if not is_true
            )
        },
    )


def _targets(row: Row, name: str) -> list[tuple[str, bool]]:
    value = mapping(row, name)
    choices = [as_text(choice, f"{name}.choices") for choice in items(value, "choices")]
    labels = items(value, "labels")
    if len(choices) != len(labels) or not all(label in (0, 1) for label in labels):
        raise BadRow(name, f"{len(choices)} choices and labels {shown(labels)}, expected 0 or 1")
    return [(choice, bool(label)) for choice, label in zip(choices, labels, strict=True)]


def true_false(row: Row) -> Iterable[Question]:
    """{statement, label}: is the statement true? (Azaria and Mitchell 2023, SAPLMA's own sets.)

    A row with more keys is of another set that took the form.
    """
    is_true, statement = flag(row, "label"), text(row, "statement")
    choices = ("True", "False")
    yield Question(
        id=own_id(row, None),
        domain="true_false" if set(row) == {"statement", "label"} else "",
        question=f"Is this statement true or false? {statement}",
        choices=choices,
        gold_answers=option_gold(choices, 0 if is_true else 1),
        answer_type="choice",
        meta={"stratum": str(is_true).lower()},
        given=(GivenAnswer(statement, not is_true, question="State one fact."),),
    )
