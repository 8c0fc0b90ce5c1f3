"""What a model says about its own answer when it is asked again: samples, and questions about it.

Every question here is put to the model that gave the answer, in its own chat template, and read
from the probabilities of its next token, its states, or a short greedy reply.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.dialogues.dialogue import opening
from spikescore.errors import UserError
from spikescore.labels.entailment import NLIEntailment, Pair
from spikescore.labels.rules import plain_answer
from spikescore.measures.samples import AnswerPrompt
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.engine import Engine
from spikescore.model.prompt_ends import End, read_ends
from spikescore.model.sampling import Sampling
from spikescore.model.turns import Limits, Turn, common_prefix

T = TypeVar("T")

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


@dataclass(frozen=True)
class Case:
    """A first answer that the model is asked about.

    item_id: names the draws. prompt: the message that was answered; prompt_ids: the whole prompt.
    samples: other answers to the same prompt.
    """

    item_id: str
    system: str | None
    prompt: str
    prompt_ids: tuple[int, ...]
    answer: str
    samples: tuple[str, ...] = ()


# --- samples ----------------------------------------------------------------------------------


class _Draw:
    """A conversation of one turn: one more answer to a prompt."""

    def __init__(self, place: int, item_id: str, ids: Sequence[int], sampling: Sampling) -> None:
        self.place = place
        self.item_id = item_id
        self.sampling = sampling
        self._ids = ids

    def next_prompt(self, last: Turn | None) -> Sequence[int] | None:
        return self._ids if last is None else None


def draw(
    engine: Engine, prompts: Sequence[tuple[str, Sequence[int]]], sampling: Sampling
) -> list[Turn | str]:
    """Return the model's answer to each (name, prompt ids), or the error that it met.

    Names, not places, seed the draws. Prompts that begin alike are best neighbours.
    """
    answers: list[Turn | str] = [""] * len(prompts)
    asked = (_Draw(place, *prompt, sampling) for place, prompt in enumerate(prompts))
    for finished in engine.run(asked):
        place = finished.conversation.place
        answers[place] = finished.error or finished.turns[0]
    return answers


def draw_samples(
    engine: Engine, cases: Sequence[Case], n_samples: int, sampling: Sampling
) -> list[list[Turn] | str]:
    """Return n_samples more answers to each case's prompt, or the error that one of them met.

    Sample n of an item is drawn with a seed of (seed, item, n) alone.
    """
    prompts = [
        (f"{case.item_id}#{number}", case.prompt_ids)
        for case in cases
        for number in range(1, n_samples + 1)
    ]
    drawn = draw(engine, prompts, sampling)
    found: list[list[Turn] | str] = []
    for first in range(0, len(drawn), n_samples):
        own = drawn[first : first + n_samples]
        errors = [answer for answer in own if isinstance(answer, str)]
        found.append(errors[0] if errors else own)
    return found


# --- SelfCheckGPT -----------------------------------------------------------------------------


def sentences(text: str) -> list[str]:
    """Cut a text after . ! or ? where no lower-case letter follows, and at line ends."""
    parts = re.split(r"(?<=[.!?])\s+(?![a-z])|\n+", text)
    return [part.strip() for part in parts if re.search(r"\w", part)]


def selfcheck_nli(judge: NLIEntailment, cases: Sequence[Case]) -> list[float]:
    """SelfCheck-NLI: mean over the answer's sentences of the mean over samples of P(contradiction),
    in {entailment, contradiction}, of the sentence (hypothesis) by the sample (premise).

    Range 0 to 1; higher = the samples contradict the answer = more hallucinated. Empty samples say
    nothing and are left out; NaN without a sentence or a sample. Source: Manakul, Liusie and Gales
    (2023), SelfCheckGPT.
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


class SelfQuestions:
    """Asks a model about its own answers. A prompt beyond `max_context` tokens is not asked."""

    def __init__(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        *,
        stop_ids: set[int],
        max_context: int,
        batch_size: int,
    ) -> None:
        self._model = model
        self._chat = chat
        self._stop_ids = stop_ids
        self._max_context = max_context
        self._batch_size = batch_size
        self._yes_no = reply_tokens(chat, ("Yes", "No"))
        self._a_b = reply_tokens(chat, ("A", "B"))

    def p_true(self, cases: Sequence[Case]) -> list[float]:
        """P(True): the probability of "A", shown question, samples and answer (`p_true`).

        Range 0 to 1; higher = LESS hallucinated. Of all tokens, not of "A" and "B" alone; no
        examples are shown. Source: Kadavath et al. (2022), section 4.
        """
        prompt = AnswerPrompt(self._chat)
        begin, (yes, _) = self._a_b
        entries = [
            {
                "prompt": case.prompt,
                "responses": [(sample,) for sample in case.samples],
                "most_likely_answer": {"response": case.answer},
            }
            for case in cases
        ]
        groups = [[p_true_prompt(entry, [], prompt) + begin] for entry in entries]

        def probability(end: End) -> float:
            return float(torch.softmax(end.logits.float(), dim=-1)[yes])

        return [math.nan if own[0] is None else own[0] for own in self._ends(groups, probability)]

    def selfcheck_prompt(self, cases: Sequence[Case]) -> list[float]:
        """SelfCheck-Prompt: is the answer supported by this sample? The mean over samples of "No".

        A sample counts P(No) / (P(Yes) + P(No)) of the next token, where the source takes a written
        reply as 0, 1 or, unclear, 0.5. Range 0 to 1; higher = more hallucinated. Empty samples are
        left out; NaN when there is no other. Source: Manakul, Liusie and Gales (2023).
        """
        begin, (yes, no) = self._yes_no
        groups = [
            [
                self._render(_SUPPORT, case, sample=sample) + begin
                for sample in case.samples
                if sample.strip()
            ]
            for case in cases
        ]

        def share_of_no(end: End) -> float:
            return float(torch.sigmoid(end.logits[no].double() - end.logits[yes].double()))

        return [math.nan if None in own else _mean(own) for own in self._ends(groups, share_of_no)]

    def truth_states(self, cases: Sequence[Case]) -> list[dict[str, np.ndarray] | None]:
        """States float16 `[L+1, H]` of a prompt that asks whether the answer reflects the truth.

        Under the keys of TRUTH_STATES: at the prompt's last token, features for a probe (PRISM,
        Zhang et al., 2024, "Prompt-Guided Internal States for Hallucination Detection of Large
        Language Models", arXiv 2411.04847); and at the last token of the replies "Yes" and "No" to
        it, a contrast pair (CCS, Burns et al., 2023). None where the prompt is too long.
        """
        begin, decided = self._yes_no
        replies = [[], *([*begin, token] for token in decided)]
        groups = [[self._render(_TRUTH, case) + reply for reply in replies] for case in cases]

        def states(end: End) -> np.ndarray:
            return torch.stack([state.half().cpu() for state in end.states]).numpy()

        found = self._ends(groups, states)
        return [
            None if any(one is None for one in own) else dict(zip(TRUTH_STATES, own, strict=True))
            for own in found
        ]

    def verbalised_confidence(self, cases: Sequence[Case]) -> list[float]:
        """The confidence 0 to 1 that the model names when asked after its answer, decoded greedily.

        Higher = LESS hallucinated. NaN when the reply has no number (`parse_confidence`). Source:
        Lin, Hilton and Evans (2022); Tian et al. (2023), "Just Ask for Calibration".
        """
        greedy = Sampling(temperature=0, top_p=1, seed=0)
        engine = Engine(
            self._model,
            stop_ids=self._stop_ids,
            sampling=greedy,
            limits=Limits(CONFIDENCE_TOKENS, self._max_context),
            batch_size=self._batch_size,
        )
        prompts = [(case.item_id, self._chat.render(confidence_messages(case))) for case in cases]
        return [
            math.nan
            if isinstance(turn, str)
            else parse_confidence(self._chat.text(turn.answer_ids))
            for turn in draw(engine, prompts, greedy)
        ]

    def _render(self, template: str, case: Case, **texts: str) -> list[int]:
        text = template.format(prompt=case.prompt, answer=case.answer, **texts)
        return self._chat.render([{"role": "user", "content": text}])

    def _ends(
        self, groups: list[list[list[int]]], value: Callable[[End], T]
    ) -> list[list[T | None]]:
        """Return the value at the end of each prompt, None of those that are too long."""
        found: list[list[T | None]] = [[None] * len(group) for group in groups]
        places = [
            [n for n, ids in enumerate(group) if len(ids) <= self._max_context] for group in groups
        ]
        asked = [[group[n] for n in own] for group, own in zip(groups, places, strict=True)]
        for end in read_ends(self._model, asked, slots=self._batch_size):
            found[end.group][places[end.group][end.number]] = value(end)
        return found


def confidence_messages(case: Case) -> list[Message]:
    """The conversation so far, and the question how confident the model is."""
    return [
        *opening(case.system, case.prompt),
        {"role": "assistant", "content": case.answer},
        {"role": "user", "content": _CONFIDENCE},
    ]


_INSTRUCTION = (
    "You see a question, answers that were brainstormed for it, and one possible answer. "
    "Say whether the possible answer is true. Reply with A or B alone."
)


def p_true_case(entry: dict[str, Any]) -> str:
    """The question of whether an entry's most likely answer is true."""
    ideas = "\n".join(f"- {response[0]}" for response in entry["responses"])
    return (
        f"{entry['prompt']}\n\nBrainstormed answers:\n{ideas}\n\n"
        f"Possible answer: {entry['most_likely_answer']['response']}\n\n"
        "Is the possible answer:\nA) true\nB) false"
    )


def p_true_prompt(
    entry: dict[str, Any], examples: Sequence[dict[str, Any]], prompt: AnswerPrompt
) -> list[int]:
    """Ids of the prompt whose next token is "A" or "B"; examples need a known accuracy."""
    chat = prompt.chat
    letters = ["A" if one["most_likely_answer"]["accuracy"] else "B" for one in examples]
    if prompt.use_template:
        messages = [{"role": "system", "content": _INSTRUCTION}]
        for example, letter in zip(examples, letters, strict=True):
            messages.append({"role": "user", "content": p_true_case(example)})
            messages.append({"role": "assistant", "content": letter})
        return chat.render([*messages, {"role": "user", "content": p_true_case(entry)}])
    blocks = [
        f"{p_true_case(example)}\nThe possible answer is: {letter}"
        for example, letter in zip(examples, letters, strict=True)
    ]
    blocks.append(f"{p_true_case(entry)}\nThe possible answer is:")
    return list(chat.tokenizer("\n\n".join([_INSTRUCTION, *blocks]))["input_ids"])


def option_id(prompt: AnswerPrompt, letter: str = "A") -> int:
    """The token that answers with this letter, at the start of a reply or after a space."""
    text = letter if prompt.use_template else f" {letter}"
    ids = prompt.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f'the tokenizer has no token for "{letter}", which P(True) needs')
    return ids[-1]


def next_token_log_probabilities(
    model: Any, prompts: Sequence[Sequence[int]], token: int
) -> list[float]:
    """Natural log-probability of a token right after each prompt, from raw logits.

    What a prompt has in common with the one before it is not encoded again.
    """
    found = [
        float(torch.log_softmax(end.logits.float(), dim=-1)[token])
        for end in read_ends(model, [prompts], slots=1)
    ]
    if not all(map(math.isfinite, found)):
        raise UserError("P(True): the model's output is not a number")
    return found
