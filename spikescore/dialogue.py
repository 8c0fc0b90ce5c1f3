"""One dialogue: a message list that is only ever appended to, rendered by the model's chat
template.

The engine asks for token ids and returns token ids; here they become messages, steps and the
record on disk (DESIGN: the pair).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from spikescore.config import Config
from spikescore.engine import Finished, Turn, common_prefix
from spikescore.prompts import FAMILIES, Prompt, first_message, follow_up
from spikescore.questions import Question

log = logging.getLogger("spikescore")

Message = dict[str, str]


class ChatFormat:
    """Turns messages into token ids with the model's chat template, and answers back into text.

    Without a template a plain format is used ("User: ... Assistant: ..."), with a warning; a
    template that refuses or drops the system role gets the system prompt at the head of the first
    user message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, enable_thinking: bool) -> None:
        self.tokenizer = tokenizer
        self._options = {"enable_thinking": enable_thinking}
        self._plain = tokenizer.chat_template is None
        if self._plain:
            log.warning("the tokenizer has no chat template; using plain User:/Assistant: turns")
        self._fold_system = not self._plain and not self._accepts_system()

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

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the messages plus the opening of the assistant's turn; one BOS at
        most.
        """
        if self._fold_system and messages[0]["role"] == "system":
            system, first, *rest = messages
            folded = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
            messages = [folded, *rest]
        if self._plain:
            return self.tokenizer(_plain_text(messages))["input_ids"]
        rendered = self.tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self._options,
        )
        return list(rendered["input_ids"])

    def text(self, answer_ids: Sequence[int]) -> str:
        """The answer as text, special tokens left out."""
        return self.tokenizer.decode(list(answer_ids), skip_special_tokens=True).strip()


def _plain_text(messages: Sequence[Message]) -> str:
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    turns = [f"{names[message['role']]}: {message['content']}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


class Dialogue:
    """The conversation about one question, as the engine runs it.

    `on_first_answer` is called with the text of the initial answer as soon as it is known, so that
    it can be judged while the dialogue goes on.
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
        self.prompts = [Prompt("initial", 0, first_message(question))]
        self.stopped = ""  # a reason of our own to end early
        self.on_first_answer: Callable[[str], None] | None = None
        self._config = config
        self._chat = chat
        self._families = families
        system = (
            [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
        )
        self._messages: list[Message] = [
            *system,
            {"role": "user", "content": self.prompts[0].text},
        ]

    def shown_at_first(self) -> str:
        """All text the model sees before its first answer, for the leak guard."""
        return "\n\n".join(message["content"] for message in self._messages)

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        """Return the ids of the next turn's prompt; None after `max_steps` turns or at a stop
        rule.
        """
        if last is None:
            return self._chat.render(self._messages)
        answer = self._chat.text(last.answer_ids)
        if last.number == 1:
            if self.on_first_answer:
                self.on_first_answer(answer)
            if self._config.history == "question_only":
                # the public release's behaviour, kept as a switch to measure what it does
                self._messages = [{"role": "user", "content": self.question.question}]
        if last.number >= self._config.max_steps:
            return None
        if high_perplexity(last, self._config) and self._config.ppl_action == "stop":
            self.stopped = "perplexity"
            return None
        prompt = follow_up(
            self._config.strategy,
            last.number + 1,
            seed=self._config.sampling.seed,
            item_id=self.item_id,
            last_answer_tokens=len(last.answer_ids),
            families=self._families,
        )
        self.prompts.append(prompt)
        self._messages.append({"role": "assistant", "content": answer})
        self._messages.append({"role": "user", "content": prompt.text})
        return self._chat.render(self._messages)


def high_perplexity(turn: Turn, config: Config) -> bool:
    """The perplexity check: on, and the answer's perplexity is above `ppl_bound`."""
    above = turn.perplexity is not None and turn.perplexity > config.ppl_bound
    return config.enable_ppl_detection and above


def dialogue_record(
    finished: Finished, dialogue: Dialogue, config: Config, chat: ChatFormat
) -> dict[str, Any]:
    """The JSON of a finished dialogue, label still open.

    Token ids: a turn's prompt is the first `n_kept` ids of the turn before (its prompt and
    response) followed by `prompt_ids`; then come `response_ids`. So the whole dialogue can be
    encoded again.
    """
    question = dialogue.question
    steps, before = [], []
    for turn, prompt in zip(finished.turns, dialogue.prompts, strict=False):
        kept = common_prefix(before, turn.prompt_ids)
        step = {
            "turn": turn.number,
            "prompt_type": prompt.family,
            "prompt": prompt.text,
            "response": chat.text(turn.answer_ids),
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
        if high_perplexity(turn, config):
            step["high_perplexity"] = True
        steps.append(step)
        before = turn.prompt_ids + turn.answer_ids
    return {
        "id": question.id,
        "domain": question.domain,
        "question": question.question,
        "context": question.context,
        "choices": list(question.choices) if question.choices else None,
        "history": [list(pair) for pair in question.history],
        "gold_answers": list(question.gold_answers),
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


def token_sequences(record: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Rebuild (prompt ids, response ids) of every turn from a record."""
    sequences, before = [], []
    for step in record["cot_steps"]:
        prompt = before[: step["n_kept"]] + step["prompt_ids"]
        sequences.append((prompt, step["response_ids"]))
        before = prompt + step["response_ids"]
    return sequences


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
