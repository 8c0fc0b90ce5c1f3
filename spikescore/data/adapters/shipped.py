"""Sets that ship dialogues with their items: RAGTruth, ipw trajectories, OpenHalDet's answers.

The dialogue goes to `meta["shipped"]`, from where it is replayed without generating: its `messages`
(role and content, a tool's name), the `model` that answered, `hallucinated` (true, false, or None
where the set does not say) and `labels` (RAGTruth's spans).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from spikescore.data.fields import (
    BadRow,
    as_text,
    flag,
    get,
    is_missing,
    is_withheld,
    items,
    kind,
    mapping,
    objects,
    optional,
    optional_text,
    optional_texts,
    own_id,
    shown,
    text,
    texts,
)
from spikescore.data.question import GivenAnswer, Question, Row, option_gold
from spikescore.pairs import file_id

# --- RAGTruth ---------------------------------------------------------------------------------

_TASKS = {
    "Summary": "Summarize the passage. Use only what it says.",
    "Data2txt": "Write an overview of the business that the passage describes. "
    "Use only what it says.",
}


def ragtruth(row: Row) -> Iterable[Question]:
    """A source, with a model's response and its span labels where they ship (Niu et al. 2024).

    A response with any labelled span is hallucinated. The questions' passages, the article to
    summarize, or the business data are the passage; there is no gold answer.
    """
    if "source_info" not in row:
        raise BadRow("source_info", "missing; put source_info.jsonl beside response.jsonl")
    task, source = text(row, "task_type"), text(row, "source_id")
    if task == "QA":
        info = mapping(row, "source_info")
        question, passage = text(info, "question"), text(info, "passages")
    elif task in _TASKS:
        question = _TASKS[task]
        passage = text(row, "source_info") if task == "Summary" else _as_data(row)
    else:
        raise BadRow("task_type", f'"{shown(task)}" is not one of QA, {", ".join(_TASKS)}')
    has_response = "response" in row
    meta = {"stratum": task, "task_type": task}
    given: tuple[GivenAnswer, ...] = ()
    pair = file_id(source, source)
    if has_response:
        meta |= {name: optional(row, name) for name in ("model", "split", "quality")}
        shipped = meta["shipped"] = _shipped_response(row)
        answer, labels = shipped["messages"][-1]["content"], shipped["labels"]
        given = (GivenAnswer(answer, bool(labels), pair=pair, said={"labels": labels}),)
    yield Question(
        id=own_id(row, "id" if has_response else "source_id"),
        domain="ragtruth",
        question=question,
        context=passage,
        group=pair,
        answer_type="grounded",
        meta=meta,
        given=given,
    )


def _as_data(row: Row) -> str:
    return json.dumps(mapping(row, "source_info"), ensure_ascii=False, indent=1)


def _shipped_response(row: Row) -> dict[str, Any]:
    labels = objects(row, "labels")
    messages = [
        {"role": "user", "content": text(row, "prompt")},
        {"role": "assistant", "content": text(row, "response")},
    ]
    return {
        "messages": messages,
        "model": optional(row, "model"),
        "hallucinated": bool(labels),
        "labels": labels,
    }


# --- ipw trajectories -------------------------------------------------------------------------


def ipw(row: Row) -> Iterable[Question]:
    """A trajectory of mai-ll/ipw-sft-trajectories: the first user message is the question.

    When the question is asked anew, system message, tool calls and the teacher's turns are shown
    to no model. `success` says whether the teacher's final answer was right: it labels the shipped
    dialogue as a whole, not its first answer. Trajectories of several teachers share a `sample_id`
    and are one group.
    """
    messages = list(_messages(row, "conversations"))
    question = next((one for one in messages if one["role"] == "user"), None)
    if question is None or not question["content"].strip():
        raise BadRow("conversations", "holds no user message with a text")
    success = flag(row, "success") if optional(row, "success") is not None else None
    category, teacher = optional(row, "category"), optional(row, "teacher_model")
    mathematics = isinstance(category, str) and "math" in category.casefold()
    golds = (
        ()
        if is_withheld(row.get("ground_truth"))
        else texts(row, "ground_truth", some=True, brackets=mathematics)
    )
    yield Question(
        id=own_id(row, "sample_id"),
        domain="ipw",
        question=text(question, "content"),
        gold_answers=golds,
        group=optional_text(row, "sample_id"),
        answer_type="math" if mathematics else "exact" if golds else "free",
        meta={
            "stratum": category,
            "category": category,
            "teacher_model": teacher,
            "success": success,
            "shipped": {
                "messages": messages,
                "model": teacher,
                "hallucinated": None if success is None else not success,
                "labels": [],
            },
        },
    )


# --- OpenHalDet -------------------------------------------------------------------------------

_VERDICTS = {"correct": False, "hallucination": True, "abstention": None}
_SAMPLE = re.compile(r"(.+)_[^_]+_\d+")


def openhaldet(row: Row) -> Iterable[Question]:
    """An item of OpenHalDet, with its model's answer and verdict where the row has them.

    Li et al. (2026), arXiv 2606.06959: 01_structured_data.jsonl, or 03_final_scored_metadata.jsonl
    with `model_output_text` and `eval_category`. An abstention is neither right nor wrong, so it is
    no given answer. The set's name begins the `sample_id`; its instruction comes before the
    question.
    """
    asked, sample = mapping(row, "structured_data"), text(row, "sample_id")
    told = [optional_text(asked, "system_instruction"), text(asked, "question")]
    golds = texts(asked, "ground_truths", some=True)
    options = optional(asked, "choices") or {}
    if not isinstance(options, dict):
        raise BadRow("structured_data", f"choices: expected an object, found {kind(options)}")
    choices = tuple(as_text(one, "choices") for one in options.values()) or None
    if choices and golds[0] in options:
        golds = option_gold(choices, list(options).index(golds[0]))
    task = optional_text(asked, "task_type")
    given: tuple[GivenAnswer, ...] = ()
    if optional(row, "eval_category") is not None:
        category = text(row, "eval_category")
        if category not in _VERDICTS:
            known = ", ".join(_VERDICTS)
            raise BadRow("eval_category", f'"{shown(category)}" is none of {known}')
        if _VERDICTS[category] is not None:
            given = (GivenAnswer(text(row, "model_output_text"), _VERDICTS[category]),)
    named = _SAMPLE.fullmatch(sample)
    yield Question(
        id=own_id(row, "sample_id"),
        domain=named[1] if named else "openhaldet",
        question="\n\n".join(filter(None, told)),
        context=optional_text(asked, "context"),
        choices=choices,
        gold_answers=golds,
        answer_type="choice" if choices else "exact" if task == "qa" else "free",
        meta={
            **({"stratum": task} if task else {}),
            "incorrect_answers": optional_texts(asked, "incorrect_answers"),
        },
        given=given,
    )


# --- any set ----------------------------------------------------------------------------------


def own_dialogue(row: Row) -> dict[str, Any]:
    """Return the dialogue that a row in this project's form ships, as the other sets' adapters do.

    {"shipped": {"messages": [{"role", "content"}], "hallucinated": true, "labels": [], "model"}};
    all but the messages may be missing.
    """
    given = mapping(row, "shipped")
    told = optional(given, "hallucinated") is not None
    return {
        "messages": list(_messages(given, "messages")),
        "model": optional_text(given, "model"),
        "hallucinated": flag(given, "hallucinated") if told else None,
        "labels": items(given, "labels") if optional(given, "labels") is not None else [],
    }


def _messages(row: Row, field: str) -> Iterator[dict[str, str]]:
    for place, message in enumerate(objects(row, field), start=1):
        content = get(message, "content")
        if not isinstance(content, str) and not is_missing(content):
            raise BadRow(field, f"message {place} has a content that is no text")
        named = {"name": text(message, "name")} if optional(message, "name") else {}
        yield {
            "role": text(message, "role"),
            **named,
            "content": content if isinstance(content, str) else "",
        }
