"""What a model says about its own answer when it is asked again: samples, and questions about it.

Every question here is put to the model that gave the answer, in its own chat template, and read
from the probabilities of its next token, its states, or a short greedy reply.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.data.question import few_shot
from spikescore.dialogues.dialogue import opening
from spikescore.errors import UserError
from spikescore.labels.entailment import NLIEntailment, Pair
from spikescore.labels.statements import plain_answer
from spikescore.measures.samples import AnswerPrompt, fitting, replies
from spikescore.model.architecture import text_config
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.engine import Engine
from spikescore.model.prompt_ends import End, read_ends
from spikescore.model.sampling import GREEDY
from spikescore.model.turns import Limits, Spent, common_prefix

CONFIDENCE_TOKENS = 32  # of the reply that names a number
_CONFIDENCE = (
    "How confident are you that your answer is right? Reply with one number from 0 (certainly "
    "wrong) to 100 (certainly right) and nothing else."
)
_SUPPORT = (
    "Question:\n{prompt}\n\nAnswer:\n{answer}\n\nAnother reply to the same question:\n{sample}\n\n"
    "Is the answer supported by the other reply? Say Yes or No and nothing else."
)
TRUTH_STATES = ("truth_state", "truth_state_yes", "truth_state_no")
_TRUTH = (
    "Question:\n{prompt}\n\nAnswer:\n{answer}\n\n"
    "Does this answer to the question reflect the truth?"
)
_JUDGE_IDEAS = (
    "You see a question, answers that were brainstormed for it, and one possible answer. "
    "Say whether the possible answer is true. Reply with A or B alone."
)


@dataclass(frozen=True)
class Case:
    """A first answer that the model is asked about.

    item_id: names the draws. prompt: the message that was answered. samples: other answers to the
    same prompt. spent: grows by what asking takes.
    """

    item_id: str
    system: str | None
    prompt: str
    answer: str
    samples: tuple[str, ...] = ()
    spent: Spent = field(default_factory=Spent, compare=False)


# --- SelfCheckGPT -----------------------------------------------------------------------------


def sentences(text: str) -> list[str]:
    """Cut a text after . ! or ? where no lower-case letter follows, and at line ends."""
    parts = re.split(r"(?<=[.!?])\s+(?![a-z])|\n+", text)
    return [part.strip() for part in parts if re.search(r"\w", part)]


def selfcheck_nli(judge: NLIEntailment, cases: Sequence[Case]) -> list[float]:
    """SelfCheck-NLI: mean over the answer's sentences of the mean over samples of P(contradiction),
    in {entailment, contradiction}, of the sentence (hypothesis) by the sample (premise). Empty
    samples say nothing and are left out; NaN without a sentence or a sample.
    """
    pairs: list[list[list[Pair]]] = [
        [
            [(None, sample, sentence) for sample in case.samples if sample.strip()]
            for sentence in sentences(case.answer)
        ]
        for case in cases
    ]
    flat = [pair for case in pairs for sentence in case for pair in sentence]
    known = dict(zip(flat, judge.contradiction_probabilities(flat), strict=True))
    return [
        _mean([_mean([known[pair] for pair in sentence]) for sentence in case]) for case in pairs
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


# --- questions --------------------------------------------------------------------------------


def reply_tokens(chat: ChatFormat, replies: tuple[str, str]) -> tuple[list[int], tuple[int, int]]:
    """Return the tokens that both replies begin with, and the token in which each goes its own way.

    They are the tokens that the chat template itself gives the replies, so a space that it puts
    before an answer belongs to them.
    """
    one, other = (chat.answer_ids([{"role": "user", "content": "?"}], text) for text in replies)
    shared = common_prefix(one, other)
    if shared in (len(one), len(other)):
        raise UserError(
            f'the tokenizer cannot tell a reply "{replies[0]}" from "{replies[1]}"; '
            'leave "questions" out of --groups'
        )
    return one[:shared], (one[shared], other[shared])


def parse_confidence(reply: str) -> float:
    """Return the confidence that a reply names, 0 to 1; NaN when it names none.

    The first number from 0 to 100 counts, one with a percent sign before all others; the scale
    itself ("0 to 100", "out of 100") and the model's thoughts do not. A bare decimal between 0 and
    1 may mean either scale, so it is none.
    """
    reply = re.sub(
        r"\b0\s*(?:to|and|-|\u2013)\s*100\b|(?:/|\bout of)\s*100\b", " ", plain_answer(reply)
    )
    found = []
    for match in re.finditer(r"(?<![\w.,\-\u2212])(\d+(?:[.,]\d+)?)(?!\w)(\s*%)?", reply):
        text, percent = match[1], bool(match[2])
        thousands = re.fullmatch(r"\d+,\d{3}", text)
        value = float(text.replace(",", "" if thousands else "."))
        if value <= 100 and (percent or not 0 < value < 1):
            found.append((not percent, len(found), value))
    return min(found)[2] / 100 if found else math.nan


@dataclass
class SelfQuestions:
    """Asks a model about its own answers. A prompt beyond `max_context` tokens is not asked."""

    model: PreTrainedModel
    chat: ChatFormat
    _: KW_ONLY
    stop_ids: set[int]
    max_context: int
    batch_size: int

    def __post_init__(self) -> None:
        self._prompt = AnswerPrompt(self.chat)
        self._before_a, self._a = option_tokens(self._prompt)
        self._before_yes, (self._yes, self._no) = reply_tokens(self.chat, ("Yes", "No"))
        self._read = {"p_true": self._p_true, "selfcheck_prompt": self._share_of_no, "truth": _half}

    def ask(self, cases: Sequence[Case]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (place, values by name) of each case as soon as all its questions are answered.

        p_true: the probability of "A", shown question, samples and answer (`p_true_prompt`), with
        no examples; of all tokens, not of "A" and "B" alone.

        selfcheck_prompt: is the answer supported by this sample? Mean of P(No) / (P(Yes) + P(No))
        of the next token over the samples that are not empty.

        truth_state, truth_state_yes, truth_state_no: float16 `[L+1, H]` at the end of a prompt that
        asks whether the answer reflects the truth, and of the replies "Yes" and "No" to it.

        verbalised_confidence: 0 to 1, what the model names when asked after its answer, decoded
        greedily (`parse_confidence`).

        The detectors that read these say what they mean, and their sources.
        What could not be asked or read is NaN, as are states of which one is beyond FP16.
        """
        confidences = self._confidences(cases)
        asked = [self._prompts(case) for case in cases]
        kinds = [[kind for kind, prompts in own.items() for _ in prompts] for own in asked]
        groups = [list(chain.from_iterable(own.values())) for own in asked]
        read: list[list[Any]] = [[] for _ in cases]  # a group's ends come in their order
        for place in (place for place, group in enumerate(groups) if not group):
            yield place, self._values([], [], confidences[place])
        spent = [case.spent for case in cases]
        for end in read_ends(self.model, groups, slots=self.batch_size, spent=spent):
            place = end.group
            read[place].append(self._read[kinds[place][end.number]](end))
            if len(read[place]) == len(groups[place]):
                yield place, self._values(kinds[place], read[place], confidences[place])

    def _prompts(self, case: Case) -> dict[str, list[list[int]]]:
        """The prompts of each kind of question; a kind of which one is too long is left out."""
        entry = {
            "prompt": case.prompt,
            "responses": [(sample,) for sample in case.samples],
            "most_likely_answer": {"response": case.answer},
        }
        truth = self._render(_TRUTH, case)
        prompts = {
            "p_true": [p_true_prompt(entry, [], self._prompt) + self._before_a],
            "selfcheck_prompt": [
                self._render(_SUPPORT, case, sample=sample) + self._before_yes
                for sample in case.samples
                if sample.strip()
            ],
            "truth": [
                truth, *([*truth, *self._before_yes, token] for token in (self._yes, self._no))
            ],
        }  # fmt: skip
        most = self.max_context
        return {kind: own for kind, own in prompts.items() if max(map(len, own), default=0) <= most}

    def _render(self, template: str, case: Case, **texts: str) -> list[int]:
        text = template.format(prompt=case.prompt, answer=case.answer, **texts)
        return self.chat.render([{"role": "user", "content": text}])

    def _p_true(self, end: End) -> float:
        return probability(end, self._a)

    def _share_of_no(self, end: End) -> float:
        no, yes = end.logits[self._no].double(), end.logits[self._yes].double()
        return float(torch.sigmoid(no - yes))

    def _values(self, kinds: list[str], read: list[Any], confidence: float) -> dict[str, Any]:
        found: dict[str, list[Any]] = {kind: [] for kind in self._read}
        for kind, value in zip(kinds, read, strict=True):
            found[kind].append(value)
        config = text_config(self.model.config)
        shape = config.num_hidden_layers + 1, config.hidden_size
        states = found["truth"] or [np.full(shape, np.nan, np.float16)] * len(TRUTH_STATES)
        return {
            **dict(zip(TRUTH_STATES, states, strict=True)),
            "p_true": _mean(found["p_true"]),
            "verbalised_confidence": confidence,
            "selfcheck_prompt": _mean(found["selfcheck_prompt"]),
        }

    def _confidences(self, cases: Sequence[Case]) -> list[float]:
        engine = Engine(
            self.model,
            stop_ids=self.stop_ids,
            sampling=GREEDY,
            limits=Limits(CONFIDENCE_TOKENS, self.max_context),
            batch_size=self.batch_size,
        )
        asked = [(case.item_id, confidence_messages(case)) for case in cases]
        spent = [case.spent for case in cases]
        said = replies(engine, self.chat, asked, GREEDY, spent=spent)
        return [parse_confidence("".join(one)) for one in said]


def _half(end: End) -> np.ndarray:
    return fitting(torch.stack([state.half().cpu() for state in end.states]).numpy())


def confidence_messages(case: Case) -> list[Message]:
    """The conversation so far, and the question how confident the model is."""
    return [
        *opening(case.system, case.prompt),
        {"role": "assistant", "content": case.answer},
        {"role": "user", "content": _CONFIDENCE},
    ]


# --- P(True) ----------------------------------------------------------------------------------


def p_true_prompt(
    entry: dict[str, Any], examples: Sequence[dict[str, Any]], prompt: AnswerPrompt
) -> list[int]:
    """Ids of the prompt that ends where "A" (true) or "B" (false) is to follow.

    P(True) is the probability of the letter "A" there: 0 to 1, higher = LESS uncertain. The model
    is shown the question, its own samples as ideas, and its most likely answer. Examples, entries
    with a known accuracy, come before it with their letter. Source: Kadavath et al. (2022), section
    4. The semantic-uncertainty scripts list the most likely answer among the ideas as well, and
    stored the log-probability under this name.
    """
    shown = [
        (_idea_of(one), "A" if one["most_likely_answer"]["accuracy"] else "B") for one in examples
    ]
    if prompt.use_template:
        return prompt.chat.render(few_shot(_JUDGE_IDEAS, shown, _idea_of(entry)))
    blocks = [f"{idea}\nThe possible answer is: {letter}" for idea, letter in shown]
    text = "\n\n".join([_JUDGE_IDEAS, *blocks, f"{_idea_of(entry)}\nThe possible answer is:"])
    return prompt.chat.plain_ids(text)


def _idea_of(entry: dict[str, Any]) -> str:
    ideas = "\n".join(f"- {response[0]}" for response in entry["responses"])
    return (
        f"{entry['prompt']}\n\nBrainstormed answers:\n{ideas}\n\n"
        f"Possible answer: {entry['most_likely_answer']['response']}\n\n"
        "Is the possible answer:\nA) true\nB) false"
    )


def option_tokens(prompt: AnswerPrompt) -> tuple[list[int], int]:
    """Return what a reply to `p_true_prompt` begins with, and the token of "A" after it."""
    if prompt.use_template:
        begin, (token, _) = reply_tokens(prompt.chat, ("A", "B"))
        return begin, token
    tokenizer = prompt.chat.tokenizer
    one, other = (tokenizer(f" {x}", add_special_tokens=False)["input_ids"] for x in "AB")
    shared = common_prefix(one, other)
    return one[:shared], one[shared]


def probability(end: End, token: int) -> float:
    """The probability of a token right after a prompt; UserError where that is no number."""
    found = float(torch.softmax(end.logits.float(), dim=-1)[token])
    if not math.isfinite(found):
        raise UserError("P(True): the model's output is not a number; run it in float32")
    return found
