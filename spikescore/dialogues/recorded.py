"""Dialogues on file, as messages again: pairs of stage 1, and dialogues that a data set ships.

A pair keeps the prompts that this project made; the messages are built from them as they were the
first time. A shipped dialogue keeps its publisher's messages, every role in its place: what the
assistant says are the answers, and a turn's prompt is all that stands between two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spikescore.data.fields import shown
from spikescore.data.question import Question, first_message, question_from_record
from spikescore.dialogues.config import Config
from spikescore.dialogues.dialogue import Recorded, after_first, opening
from spikescore.dialogues.prompts import FORKED, Prompt
from spikescore.errors import UserError
from spikescore.labels.judges import shipped_judgement
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.reading import Exchange
from spikescore.model.turns import token_sequences

_ROLES = ("system", "user", "assistant", "tool")


def recorded_dialogue(
    record: dict[str, Any],
    config: Config,
    chat: ChatFormat | None = None,
    identity: Mapping[str, str] | None = None,
) -> tuple[Recorded, list[Exchange]]:
    """Rebuild the conversation of a record, older public form included, as messages.

    Prompts and responses are the record's own; the first prompt is made from its question where it
    kept none. System prompt and `history` are those of the record's configuration, else of
    `config`; a record with `messages` has them as they were shipped. With a `chat` the answers get
    their stored ids where these fit it, and the prompts theirs where the record was made by the
    same tokenizer and template (`identity`). Raises UserError when a turn lacks its text.
    """
    if record.get("messages") is not None:
        n = len(record["cot_steps"])
        held, exchanges = _from_messages(question_from_record(record), record["messages"], n)
    else:
        held, exchanges = _from_steps(record, config)
    if chat is not None:
        _take_fitting_ids(record, exchanges, chat, _same_prompts(record, config, identity))
    return held, exchanges


def _same_prompts(
    record: dict[str, Any], config: Config, identity: Mapping[str, str] | None
) -> bool:
    """Whether the record's prompts were rendered as this run would render them."""
    made_by, settings = record.get("identity") or {}, record.get("config") or {}
    parts = ("tokenizer", "template")
    known = identity is not None and all(made_by.get(part) == identity[part] for part in parts)
    return known and settings.get("enable_thinking") == config.enable_thinking


def _from_steps(record: dict[str, Any], config: Config) -> tuple[Recorded, list[Exchange]]:
    question = question_from_record(record)
    made_under = record.get("config") or {}
    system = made_under.get("system_prompt", config.system_prompt)
    history = made_under.get("history", config.history)
    held = Recorded(question)
    forked = made_under.get("schedule", config.schedule) == FORKED
    messages: list[Message] = []
    fork: list[Message] = []  # up to the first answer
    exchanges: list[Exchange] = []
    for number, step in enumerate(record["cot_steps"], start=1):
        if not isinstance(step, dict):
            raise UserError(f"turn {number} is no object with a prompt and a response")
        prompt, answer = step.get("prompt"), step.get("response")
        if number == 1:
            prompt = prompt or first_message(question)
            messages = opening(system, prompt)
        elif isinstance(prompt, str):
            begun = fork if forked else messages
            messages = [*begun, {"role": "user", "content": prompt}]
        if not isinstance(prompt, str) or not isinstance(answer, str):
            missing = "prompt" if not isinstance(prompt, str) else "response"
            raise UserError(f'turn {number} holds no "{missing}", so it cannot be read again')
        held.prompts.append(Prompt(str(step.get("prompt_type") or "unknown"), 0, prompt))
        held.answers.append(answer)
        exchanges.append(Exchange(messages, answer, str(step.get("finish_reason") or "stop")))
        if number == 1:
            messages = after_first(messages, question, history)
        messages = [*messages, {"role": "assistant", "content": answer}]
        fork = messages if number == 1 else fork
    if not exchanges:
        raise UserError("the dialogue has no turns")
    return held, exchanges


def shipped_dialogue(question: Question) -> tuple[Recorded, list[Exchange]]:
    """Return the dialogue that came with a question, exactly as it was shipped."""
    return _from_messages(question, question.meta["shipped"]["messages"])


def shipped_fields(question: Question) -> dict[str, Any]:
    """Return what a pair keeps of a shipped dialogue beside its turns: messages and label."""
    shipped = question.meta["shipped"]
    judgement = shipped_judgement(shipped)
    return {
        "seed": None,
        "messages": shipped["messages"],
        "nil_label": judgement.label,
        "nil_judge": judgement.as_dict(),
    }


def given_fields(question: Question) -> dict[str, Any]:
    """Return the label of a dialogue that begins with a given answer, as a pair keeps it."""
    first = question.first_answer
    shipped = {
        "messages": [{"role": "assistant", "content": first.text}],
        "hallucinated": first.hallucinated,
        "labels": first.said.get("labels", []),
    }
    judgement = shipped_judgement(shipped)
    return {"nil_label": judgement.label, "nil_judge": judgement.as_dict()}


def _from_messages(
    question: Question, messages: Any, n: int | None = None
) -> tuple[Recorded, list[Exchange]]:
    """Take a conversation apart into its first n turns (None: all), one for each answer."""
    held, exchanges = Recorded(question), []
    asked: list[str] = []
    for place, message in enumerate(_checked(messages)):
        if message["role"] == "assistant":
            family = "shipped" if exchanges else "initial"
            held.prompts.append(Prompt(family, 0, "\n\n".join(asked)))
            held.answers.append(message["content"])
            exchanges.append(Exchange(messages[:place], message["content"]))
            asked = []
        elif message["role"] != "system":
            asked.append(message["content"])
    if not exchanges:
        raise UserError("the shipped dialogue holds no answer, that is no assistant message")
    if not any(message["role"] == "user" for message in exchanges[0].messages):
        raise UserError("the shipped dialogue answers before a user message has asked anything")
    return held, exchanges[:n]


def _checked(messages: Any) -> list[Message]:
    if not isinstance(messages, list):
        raise UserError("the shipped dialogue is no list of messages")
    for place, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES or not isinstance(message.get("content"), str):
            raise UserError(
                f"message {place} of the shipped dialogue has the role "
                f'"{shown(role)}"; it must be one of {", ".join(_ROLES)}, with a text as content'
            )
    return messages


def _take_fitting_ids(
    record: dict[str, Any], exchanges: Sequence[Exchange], chat: ChatFormat, same_prompts: bool
) -> None:
    """Give each exchange the stored ids of its answer, where they are ids of the local tokenizer.

    They are taken when the stored prompt ids are those that the local template renders, or once
    rendered (`same_prompts`), and the stored response ids read as the stored response. So reading a
    pair again with the model that made it gives what was generated, which tokenising the text need
    not.
    """
    kept = ("n_kept", "prompt_ids", "response_ids")
    if not all(key in step for step in record["cot_steps"] for key in kept):
        return
    for exchange, (prompt, answer) in zip(exchanges, token_sequences(record), strict=True):
        known = all(0 <= token < len(chat.tokenizer) for token in (*answer, *prompt))
        if not known or not (same_prompts or prompt == chat.render(exchange.messages)):
            continue
        exchange.prompt_ids = prompt
        if chat.text(answer) == exchange.answer:
            exchange.answer_ids = answer
