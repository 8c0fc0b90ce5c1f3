"""One dialogue: a message list, rendered by the model's chat template. It is only ever appended to,
unless the follow-ups are forked: then each stands right behind the first answer.

The core speaks messages and texts, so the same dialogue can be held by the local engine, which
asks for token ids and returns token ids, by a server, or be read from a file. Here it becomes
steps and the record on disk (docs/design.md, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spikescore.data.question import Question, first_message, leaked_lines, record_fields
from spikescore.dialogues.config import Config
from spikescore.dialogues.prompts import FAMILIES, FORKED, Families, Prompt, follow_up
from spikescore.errors import UserError
from spikescore.model.chat import ChatFormat, Message, Rendering
from spikescore.model.turns import Finished, Turn, common_prefix
from spikescore.pairs import cut_off


class Dialogue:
    """The conversation about one question, whoever answers it.

    `messages` is what to send now, a list of its own for every turn; `answered` takes the answer
    and says whether there is a next turn. `prompts` and `answers` are the texts so far.
    """

    def __init__(
        self,
        question: Question,
        config: Config,
        chat: ChatFormat,
        families: Families = FAMILIES,
    ) -> None:
        self.item_id = question.seed_id
        self.question = question
        self.given_text = question.first_answer and question.first_answer.text
        first = first_message(question)
        if config.leak_answer:
            first = f"{first}\n\n{leaked_lines(question)}"
        self.prompts = [Prompt("initial", 0, first)]
        self.answers: list[str] = []
        self.messages = opening(config.system_prompt, self.prompts[0].text)
        self._fork: list[Message] = []  # up to the first answer, where forked follow-ups begin
        self._first_tokens = 0
        self.stopped = ""  # a reason of our own to end early
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
            self.messages = after_first(self.messages, self.question, self._config.history)
            self._fork = [*self.messages, {"role": "assistant", "content": text}]
            self._first_tokens = n_tokens
        if number >= self._config.max_steps:
            return False
        if high_perplexity(perplexity, self._config) and self._config.ppl_action == "stop":
            self.stopped = "perplexity"
            return False
        forked = self._config.schedule == FORKED
        prompt = follow_up(
            self._config.strategy,
            number + 1,
            seed=self._config.sampling.seed,
            item_id=self.item_id,
            last_answer_tokens=self._first_tokens if forked else n_tokens,
            order=self._config.prompt_seed,
            families=self._families,
        )
        self.prompts.append(prompt)
        before = [*self.messages, {"role": "assistant", "content": text}]
        asked: Message = {"role": "user", "content": prompt.text}
        self.messages = [*(self._fork if forked else before), asked]
        return True

    def given_ids(self) -> list[int] | None:
        """The ids of the answer that the dialogue begins with, as the model's template gives them
        to its turn; None where the model answers. UserError for an answer without a word.
        """
        if self.given_text is None:
            return None
        ids = self._chat.answer_ids(self.messages, self.given_text, self._rendered)
        if not self._chat.text(ids):
            raise UserError("the given answer is empty")
        return ids

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        """Return the ids of the next turn's prompt; None when the dialogue is over."""
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
    """What of the opening stays after the first answer: all, or (public release) the question."""
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


@dataclass
class Recorded:
    """A dialogue that was held before, in the shape that a record is written from."""

    question: Question
    prompts: list[Prompt] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    stopped: str = ""  # the transcript says why it ended


def dialogue_record(
    finished: Finished, dialogue: Dialogue | Recorded, config: Config, chat: ChatFormat
) -> dict[str, Any]:
    """The JSON of a finished dialogue, label still open.

    Token ids: a turn's prompt is the first `n_kept` ids of the turn before (its prompt and
    response) followed by `prompt_ids`; then come `response_ids`. So the whole dialogue can be
    encoded again.
    """
    # an answer cut by a time-out ends a dialogue that is not told of it
    cut = finished.turns[len(dialogue.answers) :]
    answers = dialogue.answers + [chat.text(turn.answer_ids) for turn in cut]
    steps, before = [], []
    for turn, prompt, answer in zip(finished.turns, dialogue.prompts, answers, strict=False):
        asked = turn.prompt_ids
        kept = common_prefix(before, asked)
        step = {
            "turn": turn.number,
            "prompt_type": prompt.family,
            "prompt": prompt.text,
            "response": answer,
            "n_prompt_tokens": len(asked),
            "n_response_tokens": len(turn.answer_ids),
            "finish_reason": turn.finish_reason,
            "perplexity": turn.perplexity,
            "mean_logprob": _mean(turn.logprobs),
            "mean_token_entropy": _mean(turn.entropies),
            "max_token_entropy": max(turn.entropies, default=None),
            "first_token_confidence": turn.first_token_confidence,
            "n_kept": kept,
            "prompt_ids": asked[kept:],
            "response_ids": turn.answer_ids,
            "metrics": {},
        }
        if turn.seconds:
            step["seconds"] = round(turn.seconds, 6)
        if high_perplexity(turn.perplexity, config):
            step["high_perplexity"] = True
        steps.append(step)
        before = asked + turn.answer_ids
    return {
        **record_fields(dialogue.question),
        "model": config.model_path,
        "seed": config.sampling.seed,
        "config": config.resolved(),
        "config_hash": config.hash(),
        "finish_reason": dialogue.stopped or finished.reason,
        "first_answer_cut_off": bool(cut_off({"cot_steps": steps})),
        "cot_steps": steps,
        "nil_label": None,
        "nil_judge": None,
        "metrics": {},
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
