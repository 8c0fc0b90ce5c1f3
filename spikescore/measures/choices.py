"""The first answer among others: the model chooses between them, or names its best guesses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.data.question import few_shot
from spikescore.labels.entailment import Entailment
from spikescore.labels.statements import plain_answer
from spikescore.measures.clustering import cluster_many
from spikescore.measures.rewordings import others
from spikescore.measures.samples import replies
from spikescore.measures.self_questions import Case, parse_confidence, reply_tokens
from spikescore.model.chat import ChatFormat
from spikescore.model.engine import Engine
from spikescore.model.prompt_ends import read_ends
from spikescore.model.sampling import GREEDY
from spikescore.runtime import derived_seed

N_CANDIDATES = 5
"""The first answer and at most four others; the letter after theirs is none of them."""
N_GUESSES = 4
"""As many as the source asks for in its larger setting."""
GUESS_TOKENS = 192
NONE_OF_THESE = "None of the above"
LETTERS = "PQRSTU"
"""Of the candidates: not those that the options of a question have."""
_CHOOSE = (
    "Question:\n{prompt}\n\nProposed answers:\n{options}\n\n"
    "Which proposed answer is right? Reply with its letter and nothing else."
)
_GUESS_AND_RATE = (
    "{prompt}\n\nName your {n} best guesses at the answer, the likeliest first, and for each how "
    "probable it is, from 0 to 100, that it is right. Write two lines for each guess and nothing "
    "else:\nG1: your first guess\nP1: its number from 0 to 100"
)
_GUESS = (
    "{prompt}\n\nName your {n} best guesses at the answer, the likeliest first. Write one line for "
    "each and nothing else:\nG1: your first guess"
)
_RATE = (
    "How probable is it, from 0 to 100, that each of these guesses is right? Write one line for "
    "each and nothing else:\nP1: the number of your first guess"
)
_EXAMPLE = "Question: Which metal melts in a warm hand?"
_EXAMPLE_GUESSES = "G1: gallium", "G2: caesium", "G3: mercury", "G4: sodium"
_EXAMPLE_RATINGS = "P1: 80", "P2: 12", "P3: 5", "P4: 1"
"""One turn that shows the form, without which small models do not keep to it."""


def parse_guesses(reply: str) -> dict[int, str]:
    """Return the guesses that lines "G1: ..." name, by number; the first of a number counts."""
    return _numbered(reply, "G")


def parse_ratings(reply: str) -> dict[int, float]:
    """Return the probabilities, 0 to 1, that lines "P1: ..." name, by number."""
    found = {number: parse_confidence(text) for number, text in _numbered(reply, "P").items()}
    return {number: value for number, value in found.items() if not math.isnan(value)}


def _numbered(reply: str, letter: str) -> dict[int, str]:
    lines = re.sub(r"[\s;,|]*\b(?=[GP]\d+\s*:)", "\n", plain_answer(reply))
    found: dict[int, str] = {}
    for number, text in re.findall(rf"^{letter}(\d+)[ \t]*:(.*\S)", lines, flags=re.MULTILINE):
        found.setdefault(int(number), text.strip())
    return found


@dataclass
class Choices:
    """Puts a first answer among others. A prompt beyond the context is not asked.

    engine: makes a greedy one for replies of GUESS_TOKENS. judge: who says which texts mean the
    same (strictly, see `clustering`).
    """

    model: PreTrainedModel
    chat: ChatFormat
    engine: Callable[[], Engine]
    judge: Entailment
    _: KW_ONLY
    seed: int
    max_context: int
    batch_size: int

    def __post_init__(self) -> None:
        self._begin, self._letters = letter_tokens(self.chat, LETTERS)

    def ask(self, cases: Sequence[Case], questions: Sequence[str]) -> list[dict[str, Any]]:
        """Return the values of each case by name; `questions` are the questions by themselves.

        p_true_choices, p_none: the first answer and up to four samples that mean something else,
        in a random order, and last "None of the above", stand under letters; the probability of the
        first answer's letter, and of the last one, among the letters shown.

        verbalised_top_k, verbalised_two_stage: the model names its best guesses and how probable
        each is, in one reply, or the guesses first and their probabilities when asked for them;
        the sum of the probabilities of guesses that mean the same as the first answer, at most 1,
        and 0 where none does.

        The detectors of these names say what they mean, and their sources.
        What could not be asked or read is NaN.
        """
        chosen = self._chosen(cases, questions)
        rated = self._rated(cases, questions)
        return [one | other for one, other in zip(chosen, rated, strict=True)]

    # --- one letter among several ---------------------------------------------------------------

    def _chosen(self, cases: Sequence[Case], questions: Sequence[str]) -> list[dict[str, float]]:
        options = self._options(cases, questions)
        prompts = []
        for case, texts in zip(cases, options, strict=True):
            ids = self._prompt(case, texts) if texts else []
            prompts.append([ids] if 0 < len(ids) <= self.max_context else [])
        found = [{"p_true_choices": math.nan, "p_none": math.nan} for _ in cases]
        spent = [case.spent for case in cases]
        for end in read_ends(self.model, prompts, slots=self.batch_size, spent=spent):
            texts = options[end.group]
            shown = torch.tensor(self._letters[: len(texts)], device=end.logits.device)
            p = torch.softmax(end.logits[shown].double(), dim=-1).tolist()
            own = texts.index(cases[end.group].answer)
            found[end.group] = {"p_true_choices": p[own], "p_none": p[-1]}
        return found

    def _options(self, cases: Sequence[Case], questions: Sequence[str]) -> list[list[str] | None]:
        """The texts under the letters, the last one none of them; None where a judge failed."""
        texts = [[case.answer, *others(case.samples, case.answer)] for case in cases]
        clusters = cluster_many(list(zip(questions, texts, strict=True)), self.judge, strict=True)
        found: list[list[str] | None] = []
        for case, own, ids in zip(cases, texts, clusters, strict=True):
            if ids is None or not case.answer.strip():
                found.append(None)
                continue
            firsts = [own[ids.index(cluster)] for cluster in dict.fromkeys(ids)][:N_CANDIDATES]
            order = np.random.default_rng(derived_seed(self.seed, case.item_id, "choices"))
            found.append([firsts[place] for place in order.permutation(len(firsts))])
            found[-1].append(NONE_OF_THESE)
        return found

    def _prompt(self, case: Case, texts: Sequence[str]) -> list[int]:
        options = "\n".join(
            f"{letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False)
        )
        asked = _CHOOSE.format(prompt=case.prompt, options=options)
        return self.chat.render([{"role": "user", "content": asked}]) + self._begin

    # --- guesses and their probabilities ----------------------------------------------------------

    def _rated(self, cases: Sequence[Case], questions: Sequence[str]) -> list[dict[str, float]]:
        lines = zip(_EXAMPLE_GUESSES, _EXAMPLE_RATINGS, strict=True)
        in_one = [(_asked(_GUESS_AND_RATE, _EXAMPLE), "\n".join(chain.from_iterable(lines)))]
        in_two = [
            (_asked(_GUESS, _EXAMPLE), "\n".join(_EXAMPLE_GUESSES)),
            (_RATE, "\n".join(_EXAMPLE_RATINGS)),
        ]
        together = self._replies(cases, _GUESS_AND_RATE, [in_one] * len(cases))
        named = self._replies(cases, _GUESS, [in_two] * len(cases))
        said = [
            [*in_two, (_asked(_GUESS, case.prompt), reply)]
            for case, reply in zip(cases, named, strict=True)
        ]
        rated = self._replies(cases, _RATE, said)
        found: list[dict[str, float]] = [{} for _ in cases]
        for name, guesses, ratings in (
            ("verbalised_top_k", together, together),
            ("verbalised_two_stage", named, rated),
        ):
            read = [
                [(guess, p[n]) for n, guess in parse_guesses(one).items() if n in p]
                for one, p in zip(guesses, map(parse_ratings, ratings), strict=True)
            ]
            texts = [
                [case.answer, *(guess for guess, _ in own)]
                for case, own in zip(cases, read, strict=True)
            ]
            judged = cluster_many(list(zip(questions, texts, strict=True)), self.judge, strict=True)
            for values, own, ids in zip(found, read, judged, strict=True):
                values[name] = math.nan
                if own and ids is not None:
                    same = (p for (_, p), one in zip(own, ids[1:], strict=True) if one == ids[0])
                    values[name] = float(min(1.0, sum(same)))
        return found

    def _replies(
        self, cases: Sequence[Case], template: str, examples: Sequence[list[tuple[str, str]]]
    ) -> list[str]:
        """The greedy reply to each case after its examples; "" where they are too long."""
        asked = [
            (case.item_id, few_shot(case.system, shown, _asked(template, case.prompt)))
            for case, shown in zip(cases, examples, strict=True)
        ]
        spent = [case.spent for case in cases]
        found = replies(self.engine(), self.chat, asked, GREEDY, spent=spent)
        return ["".join(one) for one in found]


def _asked(template: str, prompt: str) -> str:
    return template.format(prompt=prompt, n=N_GUESSES)


def letter_tokens(chat: ChatFormat, letters: str) -> tuple[list[int], list[int]]:
    """Return what a reply of one letter begins with, and each letter's token (`reply_tokens`)."""
    first, *rest = letters
    pairs = [reply_tokens(chat, (first, letter)) for letter in rest]
    return pairs[0][0], [pairs[0][1][0], *(token for _, (_, token) in pairs)]
