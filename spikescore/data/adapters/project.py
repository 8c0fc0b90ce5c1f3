"""The project's own form, and any flat form whose field names the user gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from spikescore.data.adapters.shipped import own_dialogue
from spikescore.data.fields import BadRow, as_text, get, items, own_id, shown, text, texts
from spikescore.data.question import Adapter, Question, Row, distinct, gold_option
from spikescore.pairs import ANSWER_TYPES

FIELDS = ("id", "domain", "question", "context", "choices", "gold_answers", "answer_type", "group",
          "history")  # fmt: skip


def project(row: Row) -> Iterable[Question]:
    """Read the project's own form: names of `Question`; `tier` and other keys go to meta.

    `shipped` may hold a dialogue about the question, to be replayed.
    """
    choices = texts(row, "choices") if row.get("choices") is not None else None
    answer_type = row.get("answer_type") or ("choice" if choices else "exact")
    if answer_type not in ANSWER_TYPES:
        known = ", ".join(ANSWER_TYPES)
        raise BadRow("answer_type", f'"{shown(answer_type)}" is not one of {known}')
    meta = {key: value for key, value in row.items() if key not in FIELDS}
    if "tier" in meta:
        meta["stratum"] = meta["tier"]
    if meta.get("shipped") is not None:
        meta["shipped"] = own_dialogue(row)
    else:
        meta.pop("shipped", None)
    golds = row.get("gold_answers")
    question = Question(
        id=own_id(row, "id"),
        domain=_optional(row, "domain") or "",
        question=text(row, "question"),
        context=_optional(row, "context"),
        choices=choices,
        gold_answers=distinct(texts(row, "gold_answers")) if golds is not None else (),
        group=_optional(row, "group"),
        history=_history(row),
        answer_type=answer_type,
        meta=meta,
    )
    if answer_type == "choice" and not choices:
        raise BadRow("choices", 'missing, but answer_type is "choice"')
    if answer_type == "choice" and question.gold_answers and gold_option(question) is None:
        raise BadRow("gold_answers", "no gold answer is an option's text or letter")
    yield question


def generic(fields: Mapping[str, str]) -> Adapter:
    """Return the adapter for rows whose fields are named by the user: {our name: the file's}."""
    return lambda row: _renamed(row, fields)


def _renamed(row: Row, fields: Mapping[str, str]) -> Iterable[Question]:
    ours = {name: get(row, theirs) for name, theirs in fields.items()}
    try:
        yield from project(ours)
    except BadRow as bad:  # the user's file has another name for the field
        raise BadRow(fields.get(bad.name or "", bad.name), bad.what) from bad


def _optional(row: Row, name: str) -> str | None:
    return text(row, name) if row.get(name) is not None else None


def _history(row: Row) -> tuple[tuple[str, str], ...]:
    if row.get("history") is None:
        return ()
    turns = items(row, "history")
    if not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise BadRow("history", "expected a list of [question, answer]")
    return tuple((as_text(ask, "history"), as_text(answer, "history")) for ask, answer in turns)
