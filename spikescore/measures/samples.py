"""Short answers to a question: one at low temperature and N samples, from one encoding.

Semantic entropy is measured on answers that are short and drawn afresh from one prompt (Farquhar,
Kossen, Kuhn and Gal, "Detecting hallucinations in large language models using semantic entropy",
Nature 2024). The low-temperature answer is the one whose truth and hidden states are kept.

All samples are dialogues of one turn for the engine, which encodes their common prompt once, and
what prompts have in common (instruction and examples) once in all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spikescore.data.question import Question, few_shot, first_message
from spikescore.model.turns import BEFORE_GENERATION, LAST, Spent, Turn

if TYPE_CHECKING:  # a command is checked before these, and torch with them, are loaded
    from spikescore.model.chat import ChatFormat, Message
    from spikescore.model.engine import Engine
    from spikescore.model.sampling import Sampling


@dataclass(frozen=True)
class AnswerPrompt:
    """How a question is asked: an instruction, examples with their answers, then the question.

    With `use_template` the examples are earlier turns in the model's chat template; without it the
    prompt is plain text, for models that only continue text, and an answer ends with its line.
    """

    chat: ChatFormat
    instruction: str = ""
    examples: tuple[Question, ...] = ()
    use_context: bool = False
    use_template: bool = True

    def shown(self, question: Question) -> str:
        """The question as the model sees it; passage and earlier turns only with `use_context`."""
        if not self.use_context:
            question = replace(question, context=None, history=())
        return first_message(question)

    def ids(self, question: Question) -> list[int]:
        """The whole prompt of a question as token ids."""
        if self.use_template:
            return self.chat.render(self.messages(question))
        return self.chat.plain_ids(self.text(question))

    def messages(self, question: Question) -> list[Message]:
        """The prompt as chat messages."""
        examples = [(self.shown(one), one.gold_answers[0]) for one in self.examples]
        return few_shot(self.instruction, examples, self.shown(question))

    def text(self, question: Question) -> str:
        """The prompt as plain text that the answer continues."""
        blocks = [self.instruction] if self.instruction else []
        for example in self.examples:
            blocks.append(f"{self.shown(example)}\nAnswer: {example.gold_answers[0]}")
        return "\n\n".join([*blocks, f"{self.shown(question)}\nAnswer:"])

    def stop_ids(self) -> set[int]:
        """Token ids that end an answer beside the model's own: line ends, in a plain prompt."""
        if self.use_template:
            return set()
        tokenizer = self.chat.tokenizer
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        return {
            number
            for number, token in enumerate(tokens)
            if token and "\n" in tokenizer.convert_tokens_to_string([token])
        }


class _Asking:
    """One answer to a prompt: a conversation of one turn, with a sampling of its own."""

    def __init__(
        self, place: int, number: int, name: str, ids: Sequence[int], sampling: Sampling
    ) -> None:
        self.place = place
        self.number = number
        self.item_id = f"{name}#{number}"
        self.sampling = sampling
        self._ids = ids

    def next_prompt(self, last: Turn | None) -> Sequence[int] | None:
        """Return the prompt once."""
        return self._ids if last is None else None


def draw(
    engine: Engine,
    prompts: Iterable[tuple[str, Sequence[int]]],
    samplings: Mapping[int, Sampling],
    spent: Sequence[Spent] = (),
) -> Iterator[tuple[int, list[Turn] | str]]:
    """Answer each (name, prompt ids) once by every sampling; yield (its place, its answers).

    A prompt comes as soon as all of its answers are there, in the order of `samplings`; one that
    could not be answered comes with the error. What is drawn depends on (seed, name, number of the
    sampling) alone. Prompts that begin alike are best neighbours: what they share is encoded once.
    `spent`, one of each prompt, grow by what its answers took.
    """
    found: dict[int, dict[int, Turn | str]] = defaultdict(dict)
    asked = (
        _Asking(place, number, name, ids, sampling)
        for place, (name, ids) in enumerate(prompts)
        for number, sampling in samplings.items()
    )
    for finished in engine.run(asked):
        one: Any = finished.conversation
        found[one.place][one.number] = finished.error or finished.turns[0]
        if len(found[one.place]) == len(samplings):
            answers = found.pop(one.place)
            turns = [answers[number] for number in samplings]
            errors = [answer for answer in turns if isinstance(answer, str)]
            if spent and not errors:
                spent[one.place].answered(turns)
            yield one.place, errors[0] if errors else turns


def replies(
    engine: Engine,
    chat: ChatFormat,
    prompts: Sequence[tuple[str, list[Message]]],
    sampling: Sampling,
    n: int = 1,
    spent: Sequence[Spent] = (),
) -> list[list[str]]:
    """Return the n replies to each (name, messages); none where the messages are too long.

    `spent` grow as those of `draw` do.
    """
    found: list[list[str]] = [[] for _ in prompts]
    rendered = ((name, chat.render(messages)) for name, messages in prompts)
    for place, turns in draw(engine, rendered, dict.fromkeys(range(1, n + 1), sampling), spent):
        if not isinstance(turns, str):
            found[place] = [chat.text(turn.answer_ids) for turn in turns]
    return found


def fitting(states: np.ndarray) -> np.ndarray:
    """FP16 states as they are, or NaN where one of them is beyond its range: never infinite."""
    return states if np.isfinite(states).all() else np.full_like(states, np.nan)


def asked_of(question: Question) -> dict[str, Any]:
    """What of a question stands in its entry, and must not change while a run goes on."""
    return {
        "question": question.question,
        "choices": list(question.choices) if question.choices else None,
        "history": [list(turn) for turn in question.history],
        "reference": {"answers": {"text": list(question.gold_answers)}, "id": question.id},
    }


def as_entry(question: Question, turns: Sequence[Turn], prompt: AnswerPrompt) -> dict[str, Any]:
    """Return a question's entry in the generations file, accuracies still open (None).

    Log-probabilities are of the raw logits, before temperature; states FP16, `[L+1, 1, H]`, and an
    answer's `embedding` is the last layer's state `[H]` of its last content token.
    """
    first, *others = turns
    text = prompt.chat.text
    return {
        **asked_of(question),
        "context": question.context if prompt.use_context else None,
        "domain": question.domain,
        "group": question.group,
        "prompt": prompt.shown(question),
        "most_likely_answer": {
            "response": text(first.answer_ids),
            "token_log_likelihoods": first.logprobs,
            "embedding": first.states[LAST][-1],
            "accuracy": None,
            "emb_last_tok_before_gen": first.states[BEFORE_GENERATION][:, None],
            "emb_tok_before_eos": first.states[LAST][:, None],
        },
        "responses": [
            (text(turn.answer_ids), turn.logprobs, turn.states[LAST][-1], None) for turn in others
        ],
    }
