"""Questions with options to choose from: CommonsenseQA, ARC, MMLU, HellaSwag, SciQ, Belebele, GPQA,
true-false statements.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

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
    texts,
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
    in this form (QASC).
    """
    nested = parsed(get(row, "question"), "question")
    concept = optional(nested if isinstance(nested, dict) else row, "question_concept")
    yield _labelled(
        row,
        "commonsenseqa" if concept else "",
        {"question_concept": concept} if concept else {},
    )


_ARC_ID = re.compile(
    r"(Mercury|MCAS|MDSA|MEA|MEAP|MSA|NAEP|NCEOGA|NYSEDREGENTS|ACTAAP|AIMS|AKDE&ED|CSZ|FCAT|LEAP|"
    r"OHAT|TAKS|TIMSS|VASoL|WASL)_?[_A-Za-z]*\d.*"
)
"""ARC's ids: the examination that a question was taken from, and its number there."""


def is_arc(row: Row) -> bool:
    """True where the id is one of ARC's, whose rows else look like CommonsenseQA's."""
    return bool(_ARC_ID.fullmatch(str(row.get("id"))))


def arc(row: Row) -> Iterable[Question]:
    """AI2's ARC in these two shapes (Clark et al. 2018); the path tells Easy from Challenge."""
    yield _labelled(row, "arc", {"parallel_id": f"arc {row['id']}"} if is_arc(row) else {})


def _labelled(row: Row, domain: str, meta: dict[str, object]) -> Question:
    """Return the question of a row whose options carry labels."""
    nested = parsed(get(row, "question"), "question")
    if isinstance(nested, dict):
        stem = text(nested, "stem")
        options = objects(nested, "choices", some=True)
        labels = [text(option, "label") for option in options]
        choices = tuple(text(option, "text") for option in options)
    else:
        stem = text(row, "question")
        by_column = mapping(row, "choices")
        labels = [as_text(label, "choices.label") for label in items(by_column, "label")]
        choices = tuple(as_text(choice, "choices.text") for choice in items(by_column, "text"))
    if len(labels) != len(choices):
        raise BadRow("choices", f"{len(labels)} labels and {len(choices)} options")
    if len(set(labels)) < len(labels):
        raise BadRow("choices", f"two options have one label ({shown(', '.join(labels))})")
    return Question(
        id=own_id(row, "id"),
        domain=domain,
        question=stem,
        choices=_several(choices, "choices"),
        gold_answers=_right(row, "answerKey", labels, choices),
        answer_type="choice",
        meta=meta,
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
    known = list(labels)
    if label not in known:
        raise BadRow(name, f'"{shown(label)}" is not one of the labels {shown(", ".join(known))}')
    return option_gold(choices, known.index(label))


# --- MMLU, HellaSwag, SciQ --------------------------------------------------------------------


def mmlu(row: Row) -> Iterable[Question]:
    """The hub's {question, subject, choices, answer: 0 to 3}; (Hendrycks et al. 2021.)"""
    yield _mmlu(row, "question", texts(row, "choices", some=True), "answer", "0123", "subject")


def mmlu_table(row: Row) -> Iterable[Question]:
    """The publisher's CSV files, to which `files` gives columns and the subject."""
    yield _mmlu(row, "question", _lettered(row), "answer", "ABCD", "subject")


def mmmlu_table(row: Row) -> Iterable[Question]:
    """The CSV files of simple-evals and MMMLU: Question, A, B, C, D, Answer, Subject."""
    yield _mmlu(row, "Question", _lettered(row), "Answer", "ABCD", "Subject")


def mmlu_pro(row: Row) -> Iterable[Question]:
    """{question_id, question, options, answer: A to J, answer_index, category} (Wang 2024)."""
    choices = texts(row, "options", some=True)
    question = _mmlu(row, "question", choices, "answer", "ABCDEFGHIJ", "category")
    yield replace(question, id=own_id(row, "question_id"), domain="mmlu_pro")


def _lettered(row: Row) -> tuple[str, ...]:
    return tuple(text(row, letter) for letter in "ABCD")


def _mmlu(
    row: Row, asked: str, choices: tuple[str, ...], answer: str, labels: str, subject: str
) -> Question:
    text(row, answer)  # no split of it withholds its answers
    return Question(
        id=own_id(row, None),
        domain="mmlu",
        question=text(row, asked),
        choices=_several(choices, "choices"),
        gold_answers=_right(row, answer, labels[: len(choices)], choices),
        answer_type="choice",
        meta={"stratum": optional(row, subject), "subject": optional(row, subject)},
    )


def _several(choices: tuple[str, ...], name: str) -> tuple[str, ...]:
    if len(choices) < 2:
        raise BadRow(name, "expected a list of two options or more")
    return choices


def hellaswag(row: Row) -> Iterable[Question]:
    """{ind, activity_label, ctx, endings, source_id, split_type, label} (Zellers et al. 2019).

    The ending is asked for in this project's words. Texts of one video or article are one group.
    """
    endings = _several(texts(row, "endings", some=True), "endings")
    labels = [str(place) for place in range(len(endings))]
    source, number = optional_text(row, "source_id"), optional_text(row, "ind")
    yield Question(
        id=own_id(row, None),
        domain="hellaswag",
        question=f"Which ending continues this text best?\n\n{text(row, 'ctx')}",
        choices=endings,
        gold_answers=_right(row, "label", labels, endings),
        group=source,
        answer_type="choice",
        meta={
            "stratum": optional(row, "activity_label"),
            **({"parallel_id": f"hellaswag {source} {number}"} if source and number else {}),
        },
    )


def sciq(row: Row) -> Iterable[Question]:
    """{question, correct_answer, distractor1..3, support} (Welbl et al. 2017); no support shown."""
    right = text(row, "correct_answer")
    wrong = tuple(text(row, f"distractor{number}") for number in (1, 2, 3))
    if right in wrong:
        raise BadRow("correct_answer", "is also one of the distractors")
    item = own_id(row, None)
    choices, place = shuffled_options((right, *wrong), item)
    yield Question(
        id=item,
        domain="sciq",
        question=text(row, "question"),
        choices=choices,
        gold_answers=option_gold(choices, place),
        answer_type="choice",
        meta={"support": optional_text(row, "support") or "", "incorrect_answers": wrong},
    )


# --- Belebele, GPQA, TruthfulQA, statements ---------------------------------------------------


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
    single, several = (
        _targets(mapping(row, f"{name}_targets"), "choices", "labels") for name in ("mc1", "mc2")
    )
    yield _one_true(row, single, several, "mc1_targets")


def truthfulqa_flat(row: Row) -> Iterable[Question]:
    """The same with its targets in columns of their own, as the translations of Okapi ship it:
    mc1_targets_choices, mc1_targets_labels, and so for mc2.
    """
    single, several = (
        _targets(row, f"{name}_targets_choices", f"{name}_targets_labels")
        for name in ("mc1", "mc2")
    )
    yield _one_true(row, single, several, "mc1_targets_labels")


_Targets = list[tuple[str, bool]]


def _one_true(row: Row, single: _Targets, several: _Targets, name: str) -> Question:
    true = [choice for choice, is_true in single if is_true]
    false = [choice for choice, is_true in single if not is_true]
    if len(true) != 1 or not false:
        raise BadRow(name, f"{len(true)} true and {len(false)} false options")
    item = own_id(row, None)
    choices, place = shuffled_options((*true, *false), item)
    others = [choice for choice, is_true in several if is_true and choice not in choices]
    return Question(
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


def _targets(row: Row, choices: str, labels: str) -> _Targets:
    """Return the options of a field, each with whether it is true."""
    options = [as_text(choice, choices) for choice in items(row, choices, some=True)]
    marks = items(row, labels, some=True)
    if len(options) != len(marks) or not all(mark in (0, 1) for mark in marks):
        raise BadRow(labels, f"{len(options)} choices and labels {shown(marks)}, expected 0 or 1")
    return [(option, bool(mark)) for option, mark in zip(options, marks, strict=True)]


def true_false(row: Row) -> Iterable[Question]:
    """{statement, label} (Azaria and Mitchell 2023, SAPLMA's own sets); more keys are another's."""
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
