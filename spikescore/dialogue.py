"""One dialogue: a message list that is only ever appended to, rendered by the model's chat
template.

The core speaks messages and texts, so the same dialogue can be held by the local engine, which
asks for token ids and returns token ids, by a server, or be read from a file. Here it becomes
steps and the record on disk (DESIGN: the pair).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jinja2
from transformers import PreTrainedTokenizerBase

from spikescore.config import Config
from spikescore.errors import UserError
from spikescore.prompts import FAMILIES, Prompt, first_message, follow_up, leaked_lines
from spikescore.questions import Question
from spikescore.turns import Finished, Turn, common_prefix

log = logging.getLogger("spikescore")

Message = dict[str, str]


@dataclass(frozen=True)
class Rendering:
    """A conversation as the chat template writes it, and the ids of that text."""

    text: str
    ids: list[int]


class ChatFormat:
    """Turns messages into token ids with the model's chat template, and answers back into text.

    Without a template a plain format is used ("User: ... Assistant: ..."), with a warning. A
    template that refuses or drops the system role gets the system prompt at the head of the first
    user message; one that refuses or drops the tool role gets what tools said as user messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, enable_thinking: bool) -> None:
        self.tokenizer = tokenizer
        self.enable_thinking = enable_thinking
        self._options = {"enable_thinking": enable_thinking}
        self._plain = tokenizer.chat_template is None
        if self._plain:
            log.warning("the tokenizer has no chat template; using plain User:/Assistant: turns")
        self._fold_system = not self._plain and not self._accepts_system()
        # special tokens part the text before anything else is done to it
        added = tokenizer.added_tokens_decoder if tokenizer.is_fast else {}
        self._dividers = {n: token.content for n, token in added.items() if token.special}

    def _accepts_system(self) -> bool:
        probe = "system role probe"
        messages = [{"role": "system", "content": probe}, {"role": "user", "content": "x"}]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **self._options)
        except (jinja2.TemplateError, ValueError):
            text = ""
        if probe not in text:
            log.warning("the chat template takes no system role; folding it into the first message")
        return probe in text

    @cached_property
    def _takes_tools(self) -> bool:
        probe = "tool role probe"
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y"},
            {"role": "tool", "name": "z", "content": probe},
        ]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **self._options)
        except (jinja2.TemplateError, ValueError):
            text = ""
        if probe not in text:
            log.warning("the chat template takes no tool role; showing tool results as the user's")
        return probe in text

    @property
    def knows_thinking(self) -> bool:
        """True when the template looks at `enable_thinking`, so that a server must be told too."""
        return "enable_thinking" in str(self.tokenizer.chat_template)

    def accepted(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template takes them: without a system or tool role where it has
        none.
        """
        messages = list(messages)
        if self._fold_system and messages[0]["role"] == "system" and len(messages) > 1:
            system, first, *rest = messages
            folded = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
            messages = [folded, *rest]
        tools = any(message["role"] == "tool" for message in messages)
        if tools and not self._plain and not self._takes_tools:
            return _tools_as_user(messages)
        return messages

    def render(self, messages: Sequence[Message], *, closed: bool = False) -> list[int]:
        """Return the ids of the messages; one BOS at most.

        The opening of the assistant's next turn follows, unless they are the `closed` end.
        """
        return self.rendering(messages, closed=closed).ids

    def rendering(
        self,
        messages: Sequence[Message],
        before: Rendering | None = None,
        *,
        closed: bool = False,
    ) -> Rendering:
        """As `render`, with the text; UserError when the template refuses the messages.

        Where the text goes on from that of an earlier rendering, `before`, only what follows the
        last special token that both hold is tokenised: a special token parts the text first of
        all, so the ids are the same.
        """
        messages = self.accepted(messages)
        if self._plain:
            text = _plain_text(messages, closed)
            return Rendering(text, self.tokenizer(text)["input_ids"])
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=not closed, tokenize=False, **self._options
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses these messages: {error}") from error
        kept, start = self._shared(before, text) if before else (0, 0)
        rest = self.tokenizer(text[start:], add_special_tokens=False)["input_ids"]
        return Rendering(text, [*before.ids[:kept], *rest] if before else rest)

    def _shared(self, before: Rendering, text: str) -> tuple[int, int]:
        """How many ids of `before` stand for the start of the text, and how much of it that is: up
        to the last special token, which is left to what follows.
        """
        if text.startswith(before.text):
            for place in range(len(before.ids) - 1, 0, -1):
                divider = self._dividers.get(before.ids[place])
                if divider is not None and (start := before.text.rfind(divider)) > 0:
                    return place, start
        return 0, 0

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Return the ids of an answer that is known as text only, given the messages before it.

        They are the ids that the template itself gives the answer inside the conversation, so a
        space that the template puts before an answer belongs to its first token. Where the closed
        conversation does not begin with the prompt, or text of the template's own closes the
        answer, the answer is tokenised by itself.
        """
        prompt = self.render(messages)
        whole = self.render([*messages, {"role": "assistant", "content": answer}], closed=True)
        if whole[: len(prompt)] == prompt:
            found = whole[len(prompt) :]
            wanted = self.text(found)
            # the template's closing tokens are those that the text does not need
            while found and self.text(found[:-1]) == wanted:
                found.pop()
            if wanted == answer.strip():
                return found
        return list(self.tokenizer(answer, add_special_tokens=False)["input_ids"])

    def text(self, answer_ids: Sequence[int]) -> str:
        """The answer as text, special tokens left out."""
        return self.tokenizer.decode(list(answer_ids), skip_special_tokens=True).strip()


def _plain_text(messages: Sequence[Message], closed: bool) -> str:
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join(turns if closed else [*turns, "Assistant:"])


def _tools_as_user(messages: Sequence[Message]) -> list[Message]:
    """Give the user what tools said; user messages in a row become one, as templates want it."""
    shown: list[Message] = []
    for message in messages:
        if message["role"] not in ("user", "tool"):
            shown.append(message)
        elif shown and shown[-1]["role"] == "user":
            together = f"{shown[-1]['content']}\n\n{message['content']}"
            shown[-1] = {"role": "user", "content": together}
        else:
            shown.append({"role": "user", "content": message["content"]})
    return shown


class Dialogue:
    """The conversation about one question, whoever answers it.

    `messages` is what to send now; `answered` takes the answer and says whether there is a next
    turn. `prompts` and `answers` are the texts so far. `on_first_answer` is called with the text of
    the initial answer as soon as it is known, so that it can be judged while the dialogue goes on.
    """

    def __init__(
        self,
        question: Question,
        config: Config,
        chat: ChatFormat,
        *,
        families: dict[str, tuple[Prompt, ...]] = FAMILIES,
    ) -> None:
        self.item_id = question.id
        self.question = question
        first = first_message(question)
        if config.leak_answer:
            first = f"{first}\n\n{leaked_lines(question)}"
        self.prompts = [Prompt("initial", 0, first)]
        self.answers: list[str] = []
        self.messages = opening(config.system_prompt, self.prompts[0].text)
        self.stopped = ""  # a reason of our own to end early
        self.on_first_answer: Callable[[str], None] | None = None
        self._config = config
        self._chat = chat
        self._families = families
        self._rendered: Rendering | None = None

    def answered(self, text: str, n_tokens: int, perplexity: float | None = None) -> bool:
        """Append the answer and the next follow-up.

        False after `max_steps` turns or at a stop rule: the dialogue is over.
        """
        self.answers.append(text)
        number = len(self.answers)
        if number == 1:
            if self.on_first_answer:
                self.on_first_answer(text)
            self.messages = after_first(self.messages, self.question, self._config.history)
        if number >= self._config.max_steps:
            return False
        if high_perplexity(perplexity, self._config) and self._config.ppl_action == "stop":
            self.stopped = "perplexity"
            return False
        prompt = follow_up(
            self._config.strategy,
            number + 1,
            seed=self._config.sampling.seed,
            item_id=self.item_id,
            last_answer_tokens=n_tokens,
            order=self._config.prompt_seed,
            families=self._families,
        )
        self.prompts.append(prompt)
        self.messages.append({"role": "assistant", "content": text})
        self.messages.append({"role": "user", "content": prompt.text})
        return True

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        """Return the ids of the next turn's prompt, for the engine; None when the dialogue is
        over.
        """
        if last is not None:
            text = self._chat.text(last.answer_ids)
            if not self.answered(text, len(last.answer_ids), last.perplexity):
                return None
        self._rendered = self._chat.rendering(self.messages, self._rendered)
        return self._rendered.ids


def opening(system_prompt: str | None, first: str) -> list[Message]:
    """The messages before the first answer."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": first}]


def after_first(messages: list[Message], question: Question, history: str) -> list[Message]:
    """What of the opening stays in the conversation once the first answer is there.

    `question_only` is the public release's behaviour, kept as a switch to measure what it does.
    """
    if history == "question_only":
        return [{"role": "user", "content": question.question}]
    return messages


def high_perplexity(perplexity: float | None, config: Config) -> bool:
    """The perplexity check: on, and the answer's perplexity is above `ppl_bound`."""
    above = perplexity is not None and perplexity > config.ppl_bound
    return config.enable_ppl_detection and above


def stop_late(finished: Finished, dialogue: Dialogue, config: Config) -> None:
    """Cut a served dialogue after its first turn of high perplexity, where `ppl_action` is stop.

    A server's answers get their perplexity afterwards, from the local model; what is kept is what
    would have been there had the dialogue ended then.
    """
    if config.ppl_action != "stop":
        return
    for turn in finished.turns[: config.max_steps - 1]:
        if high_perplexity(turn.perplexity, config):
            del finished.turns[turn.number :]
            dialogue.stopped = "perplexity"
            return


class Held(Protocol):
    """What a record is written from: the question and the texts of a dialogue that was held.

    `stopped` is the reason of its end, "" for the one that the turns' maker gives.
    """

    question: Question
    prompts: list[Prompt]
    answers: list[str]
    stopped: str


def dialogue_record(
    finished: Finished, dialogue: Held, config: Config, chat: ChatFormat
) -> dict[str, Any]:
    """The JSON of a finished dialogue, label still open.

    Token ids: a turn's prompt is the first `n_kept` ids of the turn before (its prompt and
    response) followed by `prompt_ids`; then come `response_ids`. So the whole dialogue can be
    encoded again.
    """
    question = dialogue.question
    # an answer cut by a time-out ends a dialogue that is not told of it
    cut = finished.turns[len(dialogue.answers) :]
    answers = dialogue.answers + [chat.text(turn.answer_ids) for turn in cut]
    steps, before = [], []
    for turn, prompt, answer in zip(finished.turns, dialogue.prompts, answers, strict=False):
        kept = common_prefix(before, turn.prompt_ids)
        step = {
            "turn": turn.number,
            "prompt_type": prompt.family,
            "prompt": prompt.text,
            "response": answer,
            "n_prompt_tokens": len(turn.prompt_ids),
            "n_response_tokens": len(turn.answer_ids),
            "finish_reason": turn.finish_reason,
            "perplexity": turn.perplexity,
            "mean_logprob": _mean(turn.logprobs),
            "mean_token_entropy": _mean(turn.entropies),
            "max_token_entropy": max(turn.entropies, default=None),
            "first_token_confidence": turn.first_token_confidence,
            "n_kept": kept,
            "prompt_ids": turn.prompt_ids[kept:],
            "response_ids": turn.answer_ids,
            "metrics": {},
        }
        if high_perplexity(turn.perplexity, config):
            step["high_perplexity"] = True
        steps.append(step)
        before = turn.prompt_ids + turn.answer_ids
    known_wrong = question.meta.get("incorrect_answers")
    return {
        "id": question.id,
        "domain": question.domain,
        "question": question.question,
        "context": question.context,
        "choices": list(question.choices) if question.choices else None,
        "history": [list(pair) for pair in question.history],
        "gold_answers": list(question.gold_answers),
        **({"incorrect_answers": list(known_wrong)} if known_wrong else {}),
        "answer_type": question.answer_type,
        "group": question.group,
        "model": config.model_path,
        "seed": config.sampling.seed,
        "config": config.resolved(),
        "config_hash": config.hash(),
        "finish_reason": dialogue.stopped or finished.reason,
        "cot_steps": steps,
        "nil_label": None,
        "nil_judge": None,
        "metrics": {},
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
