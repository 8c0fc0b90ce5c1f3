"""The project's own form, and any flat form whose field names the user gives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from spikescore.data.adapters.shipped import own_dialogue
from spikescore.data.fields import (
    BadRow,
    as_text,
    get,
    is_missing,
    is_withheld,
    items,
    optional,
    optional_text,
    optional_texts,
    own_id,
    parsed,
    plain,
    shown,
    text,
    texts,
)
from spikescore.data.question import Adapter, GivenAnswer, Question, Row, distinct, gold_option
from spikescore.pairs import ANSWER_TYPES

_UNQUOTED = re.compile(r"\s*[\[{]\s*[^\W\d][^\[\]{},]*,[^\[\]{}]*[\]}]\s*")
"""[a, b] or {a, b}, as Java, Spark and Postgres write lists of texts."""
FIELDS = ("id", "domain", "question", "context", "choices", "gold_answers", "answer_type", "group",
          "history", "right_answer", "wrong_answer")  # fmt: skip


def project(row: Row) -> Iterable[Question]:
    """Read the project's own form: names of `Question`; `tier` and other keys go to meta.

    `shipped` may hold a dialogue about the question, to be replayed; `right_answer` and
    `wrong_answer` answers, a text or a list of them, that a dialogue can begin with. Where there is
    no gold answer the right ones are.
    """
    choices = texts(row, "choices") if optional(row, "choices") is not None else None
    if choices is not None and len(choices) < 2:
        raise BadRow("choices", "expected a list of two options or more")
    answer_type = optional(row, "answer_type") or ("choice" if choices else "exact")
    if answer_type not in ANSWER_TYPES:
        known = ", ".join(ANSWER_TYPES)
        raise BadRow("answer_type", f'"{shown(answer_type)}" is not one of {known}')
    meta = {key: plain(value) for key, value in row.items() if key not in FIELDS}
    if "tier" in meta:
        meta["stratum"] = meta["tier"]
    if optional(row, "shipped") is not None:
        meta["shipped"] = own_dialogue(row)
    else:
        meta.pop("shipped", None)
    given = (*_given(row, "right_answer", False), *_given(row, "wrong_answer", True))
    known_wrong = (one.text for one in given if one.hallucinated and one.text)
    wrong = distinct((*optional_texts(row, "incorrect_answers"), *known_wrong))
    if wrong:
        meta["incorrect_answers"] = wrong
    question = Question(
        id=own_id(row, "id"),
        domain=optional_text(row, "domain") or "",
        question=text(row, "question"),
        context=optional_text(row, "context"),
        choices=choices,
        gold_answers=_golds(row, answer_type)
        or distinct(one.text for one in given if one.text and not one.hallucinated),
        group=optional_text(row, "group"),
        history=_history(row),
        answer_type=answer_type,
        meta=meta,
        given=given,
    )
    if answer_type == "choice" and not choices:
        raise BadRow("choices", 'missing, but answer_type is "choice"')
    if answer_type == "choice" and question.gold_answers and gold_option(question) is None:
        raise BadRow("gold_answers", "no gold answer is an option's text or letter")
    yield question


def _golds(row: Row, answer_type: str) -> tuple[str, ...]:
    value = row.get("gold_answers")
    if is_withheld(value):
        return ()
    if isinstance(value, str) and answer_type != "math" and _UNQUOTED.fullmatch(value):
        raise BadRow("gold_answers", f"a list without quotes, write it as JSON ({shown(value)})")
    return distinct(texts(row, "gold_answers", brackets=answer_type == "math"))


def _given(row: Row, name: str, hallucinated: bool) -> tuple[GivenAnswer, ...]:
    """Return the given answers of a field; a blank one is the fault of its item alone."""
    value = row.get(name)
    if not isinstance(value, str) and is_missing(value):
        return ()
    value = parsed(value, name)
    listed = value if isinstance(value, list) else [value]
    answers = ("" if is_missing(one) else as_text(one, name) for one in listed)
    return tuple(GivenAnswer(answer, hallucinated) for answer in answers)


def generic(fields: Mapping[str, str]) -> Adapter:
    """Return the adapter for rows whose fields are named by the user: {our name: the file's}."""
    return lambda row: _renamed(row, fields)


def _renamed(row: Row, fields: Mapping[str, str]) -> Iterable[Question]:
    ours = {name: get(row, theirs) for name, theirs in fields.items()}
    try:
        yield from project(ours)
    except BadRow as bad:  # the user's file has another name for the field
        raise BadRow(fields.get(bad.name or "", bad.name), bad.what) from bad


def _history(row: Row) -> tuple[tuple[str, str], ...]:
    if optional(row, "history") is None:
        return ()
    turns = [parsed(turn, "history") for turn in items(row, "history")]
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise BadRow("history", "expected a list of [question, answer]")
    return tuple((as_text(ask, "history"), as_text(answer, "history")) for ask, answer in turns)
