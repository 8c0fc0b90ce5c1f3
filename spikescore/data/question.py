"""The record that every adapter makes of a row, and how it is shown to a model.

An adapter is a function from one row of a file (a dict, as JSON, CSV or Parquet gives it) to
questions; it reads the row through `fields`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class GivenAnswer:
    """An answer that a set ships with a question, and says to be right or wrong (`hallucinated`).

    `question` is what it answers, where the set asks something else about it (is it true?). `pair`
    names the question where several rows of the set share it. `said` goes to the item's `meta`.
    """

    text: str
    hallucinated: bool
    question: str | None = None
    pair: str | None = None
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """One item: what the model is shown, and what a judge needs to label its first answer.

    `history` holds earlier (question, answer) turns of a conversation. `gold_answers` are accepted
    answers; for `answer_type` "choice" the option's text and its letter; for "list" all members in
    one text, joined with ";" (see `list_members`); for "free" sentences that no rule can compare;
    () where the question has no answer, and for "grounded", where right is what the passage bears
    out. `group` names items that belong together (turns of one
    story), the unit of bootstrap resampling. `meta` is what the set says of the item beside that,
    short columns of its row included; nobody is shown it but the judge and the filters. Keys with a
    meaning: `stratum` (the data set's own kind), `split` (the publisher's), `parallel_id` (shared
    by a question and its translations), `incorrect_answers` (known to be wrong), `answerable`,
    `solution`, and `shipped` (a dialogue that came with the item: `messages` with role and content,
    the `model` that answered, `hallucinated` true, false or None, `labels`). `given` are answers
    that the set says to be right or wrong; a dialogue that begins with one has it alone, and the
    question's id as `pair_id` (see `given`).
    """

    id: str
    domain: str
    question: str
    context: str | None = None
    choices: tuple[str, ...] | None = None
    gold_answers: tuple[str, ...] = ()
    group: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    answer_type: str = "exact"
    meta: dict[str, Any] = field(default_factory=dict)
    given: tuple[GivenAnswer, ...] = ()
    pair_id: str | None = None

    @property
    def first_answer(self) -> GivenAnswer | None:
        """The answer that its dialogue begins with; None where the model answers."""
        return self.given[0] if self.pair_id is not None else None

    @property
    def seed_id(self) -> str:
        """What its draws are seeded by beside seed and turn: the id, which twins share."""
        return self.id if self.pair_id is None else self.pair_id


Adapter = Callable[[Row], Iterable[Question]]


def distinct(values: Iterable[str]) -> tuple[str, ...]:
    """Return the values without repeats, in order."""
    return tuple(dict.fromkeys(values))


# --- options ----------------------------------------------------------------------------------


def gold_option(question: Question) -> int | None:
    """Return the index of the right option: by a gold answer's text first, by its letter else."""
    choices = [choice.strip().casefold() for choice in question.choices or ()]
    golds = [gold.strip().casefold() for gold in question.gold_answers]
    for gold in golds:
        if gold in choices:
            return choices.index(gold)
    for gold in golds:
        letter = gold.strip("().")
        if len(letter) == 1 and 0 <= ord(letter) - ord("a") < len(choices):
            return ord(letter) - ord("a")
    return None


def option_gold(choices: tuple[str, ...], right: int) -> tuple[str, str]:
    """Return the gold answers of a multiple-choice item: the option's text and its letter."""
    return choices[right], chr(ord("A") + right)


# --- lists ------------------------------------------------------------------------------------


def list_gold(members: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the gold answers of a list of names: "a; b", and again with each one's synonyms.

    Each text is a whole answer. There are as many as the member with most synonyms has; a member
    with fewer repeats its first. `list_members` takes them apart again.
    """
    names = [tuple(name.replace(";", ",") for name in synonyms) for synonyms in members]
    most = max(map(len, names), default=0)
    rows = ((one[place] if place < len(one) else one[0] for one in names) for place in range(most))
    return distinct("; ".join(row) for row in rows)


def list_members(gold_answers: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each member of a list with its synonyms; [] where the gold answers do not line up."""
    rows = [[name.strip() for name in gold.strip(" ;").split(";")] for gold in gold_answers]
    if not rows or len(set(map(len, rows))) > 1 or not all(all(row) for row in rows):
        return []
    return [distinct(names) for names in zip(*rows, strict=True)]


# --- from a pair ------------------------------------------------------------------------------


def record_fields(question: Question) -> dict[str, Any]:
    """Return what a pair's JSON record keeps of a question; `question_from_record` reads it.

    `meta` is what the data set says of the item beside that, as JSON can hold it, so that results
    can be split by it; a dialogue that it ships is kept as turns. One that begins with a given
    answer has `pair_id` and `given_answer` besides.
    """
    first = question.first_answer
    apart = ("incorrect_answers", "shipped")
    wrong = question.meta.get("incorrect_answers")
    return {
        "id": question.id,
        "domain": question.domain,
        "question": question.question,
        "context": question.context,
        "choices": list(question.choices) if question.choices else None,
        "history": [list(pair) for pair in question.history],
        "gold_answers": list(question.gold_answers),
        **({"incorrect_answers": list(wrong)} if wrong else {}),
        "answer_type": question.answer_type,
        "group": question.group,
        **(
            {
                "pair_id": question.pair_id,
                "given_answer": {
                    "text": first.text,
                    "hallucinated": first.hallucinated,
                    **({"is_statement": True} if first.question else {}),
                },
            }
            if first
            else {}
        ),
        "meta": _plain({key: value for key, value in question.meta.items() if key not in apart}),
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: a number that is not finite is null, the rest text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def question_from_record(record: Mapping[str, Any]) -> Question:
    """Return the question of a pair's JSON record, as a judge needs it (for labelling again)."""
    choices = tuple(record["choices"]) if record.get("choices") else None
    wrong = tuple(map(str, record.get("incorrect_answers") or ()))
    said = record.get("meta") if isinstance(record.get("meta"), dict) else {}
    first = record.get("given_answer")
    return Question(
        id=str(record["id"]),
        domain=str(record.get("domain") or ""),
        question=str(record.get("question") or ""),
        context=record.get("context"),
        choices=choices,
        gold_answers=tuple(map(str, record.get("gold_answers") or ())),
        group=record.get("group"),
        history=tuple((str(ask), str(answer)) for ask, answer in record.get("history") or ()),
        answer_type=record.get("answer_type") or ("choice" if choices else "exact"),
        meta={**said, **({"incorrect_answers": wrong} if wrong else {})},
        given=(_given(first, record),) if first else (),
        pair_id=str(record["pair_id"]) if first and record.get("pair_id") is not None else None,
    )


def _given(first: Mapping[str, Any], record: Mapping[str, Any]) -> GivenAnswer:
    asked = str(record.get("question") or "") if first.get("is_statement") else None
    return GivenAnswer(first["text"], first["hallucinated"], question=asked)


# --- as a model is shown it -------------------------------------------------------------------


def first_message(question: Question) -> str:
    """Render the first user message from context, history, question and lettered choices alone."""
    return "\n\n".join(asked_blocks(question, history="Conversation so far"))


def asked_blocks(question: Question, *, history: str) -> list[str]:
    """Return passage, history (under that heading), question and choices, a block each."""
    blocks = []
    if question.context:
        blocks.append(f"Passage:\n{question.context}")
    if question.history:
        turns = "\n".join(f"Q: {asked}\nA: {answered}" for asked, answered in question.history)
        blocks.append(f"{history}:\n{turns}")
    blocks.append(f"Question: {question.question}")
    if question.choices:
        options = "\n".join(f"{letter}. {text}" for letter, text in lettered(question.choices))
        blocks.append(f"Options:\n{options}")
    return blocks


def few_shot(
    instruction: str | None, examples: Iterable[tuple[str, str]], asked: str
) -> list[dict[str, str]]:
    """Return chat messages: an instruction, examples as (asked, answered), and what is asked."""
    messages = [{"role": "system", "content": instruction}] if instruction else []
    for shown, answered in examples:
        messages.append({"role": "user", "content": shown})
        messages.append({"role": "assistant", "content": answered})
    return [*messages, {"role": "user", "content": asked}]


def leaked_lines(question: Question) -> str:
    """Return the lines by which the public release's prompt leaks (setting `leak_answer`)."""
    gold = question.gold_answers[0] if question.gold_answers else ""
    return f"Id: {question.seed_id}\n\nAnswer: {gold}"


def lettered(choices: Sequence[str]) -> list[tuple[str, str]]:
    """Pair each choice with its letter: [("A", first), ("B", second), ...]."""
    return [(chr(ord("A") + index), text) for index, text in enumerate(choices)]
