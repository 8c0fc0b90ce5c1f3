"""What becomes of a first answer when the model words its question anew, or the answer wrongly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.data.question import few_shot
from spikescore.dialogues.dialogue import opening
from spikescore.errors import UserError
from spikescore.labels.entailment import normalised
from spikescore.labels.statements import plain_answer
from spikescore.measures.samples import replies
from spikescore.measures.self_questions import Case
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.engine import Engine
from spikescore.model.reading import read_turns
from spikescore.model.sampling import GREEDY, Sampling
from spikescore.model.turns import Spent, Turn

_REWORD = (
    "Say the following question in other words. Keep what it asks, and every name and number in "
    "it. Do not answer it. Reply with the new question and nothing else.\n\nQuestion: {question}"
)
_FALSIFY = (
    "Question:\n{prompt}\n\nAnswer:\n{answer}\n\n"
    "Write this answer again with one small mistake put into it: change a single name, number, "
    "place or claim so that it still sounds right but is wrong. Keep all other words. Reply with "
    "the changed answer and nothing else."
)
_EXAMPLE = {
    "question": "Which river flows through Cairo?",
    "prompt": "Question: Which river flows through Cairo?",
    "answer": "The river Nile flows through Cairo.",
}
_EXAMPLE_REPLIES = {
    _REWORD: "What is the name of the river that runs through Cairo?",
    _FALSIFY: "The river Niger flows through Cairo.",
}
"""One turn that shows what is wanted, without which small models do not do it."""


@dataclass(frozen=True)
class Worded:
    """A first answer and what was asked: the question by itself, and the ids of its exchange.

    `name` seeds the draws.
    """

    name: str
    case: Case
    question: str
    prompt_ids: list[int]
    answer_ids: list[int]


def written(reply: str) -> str:
    """Return the text that a reply was asked for: without thoughts, label and quotation marks."""
    text = re.sub(r"^\s*(?:new )?(?:question|answer)\s*:\s*", "", plain_answer(reply), flags=re.I)
    return text.strip().strip('"\u201c\u201d').strip()


def others(texts: Iterable[str], than: str) -> list[str]:
    """Return the texts that are neither empty nor `than`, each once (see `normalised`)."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(normalised(text), text)
    return [text for form, text in found.items() if form and form != normalised(than)]


@dataclass
class Rewordings:
    """Asks a model to word questions and answers anew.

    engine: makes one that draws with a sampling. n_rewordings, n_counterfactuals: how often each
    is asked, with `sampling`. The answer to a new question is greedy, so that it differs by the
    wording alone.
    """

    model: PreTrainedModel
    chat: ChatFormat
    engine: Callable[[Sampling], Engine]
    sampling: Sampling
    _: KW_ONLY
    n_rewordings: int
    n_counterfactuals: int
    max_context: int

    def ask(self, items: Sequence[Worded]) -> Iterator[dict[str, dict[str, Any]] | str]:
        """Yield the sections of each item in order, or why it has none.

        rewordings: the question and the first answer, then each new wording that is not the same,
        with the answer to it. The new question stands where the old one stood in the prompt; where
        the prompt does not hold that as it is, there are no new wordings.

        counterfactuals: the first answer, then each version of it with a mistake that is not the
        same text; the log-likelihood of each after the first prompt, and its number of tokens.
        """
        worded = self._answered(items)
        prompts = [
            (
                f"{item.name}/mistake",
                _asked(_FALSIFY, prompt=item.case.prompt, answer=item.case.answer),
            )
            for item in items
        ]
        spent = [item.case.spent for item in items]
        mistakes = self._drawn(prompts, self.n_counterfactuals, spent)
        for item, pairs, texts in zip(items, worded, mistakes, strict=True):
            try:
                counterfactuals = self._likelihoods(
                    item, others(map(written, texts), item.case.answer)
                )
            except (UserError, torch.OutOfMemoryError) as error:
                yield str(error)
                continue
            pairs = [(item.question, item.case.answer), *pairs]
            questions, answers = (list(texts) for texts in zip(*pairs, strict=True))
            rewordings = {"questions": questions, "answers": answers}
            yield {"rewordings": rewordings, "counterfactuals": counterfactuals}

    def _answered(self, items: Sequence[Worded]) -> list[list[tuple[str, str]]]:
        """The new wordings of each item's question, and the answers to them."""
        asked = [
            n for n, item in enumerate(items) if item.question and item.question in item.case.prompt
        ]
        prompts = [
            (f"{items[place].name}/question", _asked(_REWORD, question=items[place].question))
            for place in asked
        ]
        spent = [items[place].case.spent for place in asked]
        reworded = self._drawn(prompts, self.n_rewordings, spent)
        new = [
            (place, text)
            for place, texts in zip(asked, reworded, strict=True)
            for text in others(map(written, texts), items[place].question)
        ]
        prompts = []
        for place, text in new:
            case = items[place].case
            before, _, after = case.prompt.rpartition(items[place].question)
            prompts.append((items[place].name, opening(case.system, before + text + after)))
        found: list[list[tuple[str, str]]] = [[] for _ in items]
        spent = [items[place].case.spent for place, _ in new]
        answers = replies(self.engine(GREEDY), self.chat, prompts, GREEDY, spent=spent)
        for (place, text), answered in zip(new, answers, strict=True):
            found[place] += [(text, answer) for answer in answered]
        return found

    def _drawn(
        self, prompts: Sequence[tuple[str, list[Message]]], n: int, spent: Sequence[Spent]
    ) -> list[list[str]]:
        engine = self.engine(self.sampling)
        return replies(engine, self.chat, prompts, self.sampling, n, spent=spent)

    def _likelihoods(self, item: Worded, rewritten: Sequence[str]) -> dict[str, Any]:
        before = opening(item.case.system, item.case.prompt)
        texts, answers = [item.case.answer], [item.answer_ids]
        for text in rewritten:
            ids = self.chat.answer_ids(before, text)
            if len(item.prompt_ids) + len(ids) <= self.max_context:
                texts.append(text)
                answers.append(ids)
        turns = [
            Turn(number, item.prompt_ids, answer_ids=ids) for number, ids in enumerate(answers, 1)
        ]
        with item.case.spent.reading(self.model):
            read_turns(self.model, turns)
        logliks = np.array([sum(turn.logprobs) for turn in turns], dtype=np.float64)
        return {"texts": texts, "logliks": logliks, "n_tokens": [len(ids) for ids in answers]}


def _asked(template: str, **texts: str) -> list[Message]:
    """The example and its reply, then what is asked."""
    shown = template.format(**{name: _EXAMPLE[name] for name in texts})
    return few_shot(None, [(shown, _EXAMPLE_REPLIES[template])], template.format(**texts))
