"""Short answers to a question: one at low temperature and N samples, from one encoding.

Semantic entropy is measured on answers that are short and drawn afresh from one prompt (Farquhar,
Kossen, Kuhn and Gal, "Detecting hallucinations in large language models using semantic entropy",
Nature 2024). The low-temperature answer is the one whose truth and hidden states are kept.

All samples are dialogues of one turn for the engine, which encodes their common prompt once, and
what prompts have in common (instruction and examples) once in all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spikescore.data.question import Question, first_message
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.engine import Engine
from spikescore.model.sampling import Sampling
from spikescore.model.turns import BEFORE_GENERATION, LAST, Turn

BRIEF = {
    "default": "Answer each question with as few words as possible, without an explanation.",
    "chat": "Answer each question in a single short but complete sentence.",
    "none": "",
}
"""Instructions before the questions, by the value of --brief_prompt."""


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
        return list(self.chat.tokenizer(self.text(question))["input_ids"])

    def messages(self, question: Question) -> list[Message]:
        """The prompt as chat messages."""
        messages: list[Message] = []
        if self.instruction:
            messages.append({"role": "system", "content": self.instruction})
        for example in self.examples:
            messages.append({"role": "user", "content": self.shown(example)})
            messages.append({"role": "assistant", "content": example.gold_answers[0]})
        return [*messages, {"role": "user", "content": self.shown(question)}]

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


class Sample:
    """One answer to a prompt: a conversation of one turn, with a sampling of its own."""

    def __init__(self, question: Question, number: int, ids: list[int], sampling: Sampling) -> None:
        self.item_id = f"{question.id}#{number}"
        self.question = question
        self.number = number  # 0 is the low-temperature answer
        self.sampling = sampling
        self._ids = ids

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        """Return the prompt once."""
        return self._ids if last is None else None


def draw_answers(
    engine: Engine,
    questions: Iterable[Question],
    prompt: AnswerPrompt,
    *,
    n_samples: int,
    low: Sampling,
    high: Sampling,
) -> Iterator[tuple[Question, list[Turn], str | None]]:
    """Yield each question with its 1 + n_samples answers, low temperature first, when all are done.

    Questions come as they are finished. One that cannot be asked has no answers and its error.
    """

    def samples() -> Iterator[Sample]:
        for question in questions:
            ids = prompt.ids(question)
            for number in range(n_samples + 1):
                yield Sample(question, number, ids, high if number else low)

    found: dict[str, dict[int, Turn | None]] = defaultdict(dict)
    for finished in engine.run(samples()):
        sample: Any = finished.conversation
        answers = found[sample.question.id]
        answers[sample.number] = None if finished.error else finished.turns[0]
        if finished.error:
            answers.setdefault(-1, finished.error)
        if sum(number >= 0 for number in answers) == n_samples + 1:
            error = answers.pop(-1, None)
            del found[sample.question.id]
            turns = [] if error else [answers[number] for number in range(n_samples + 1)]
            yield sample.question, turns, error


def as_entry(question: Question, turns: Sequence[Turn], prompt: AnswerPrompt) -> dict[str, Any]:
    """Return a question's entry in the generations file, accuracies still open (None).

    Log-probabilities are of the raw logits, before temperature; states FP16, `[L+1, 1, H]`, and an
    answer's `embedding` is the last layer's state `[H]` of its last content token.
    """
    first, *others = turns
    text = prompt.chat.text
    return {
        "question": question.question,
        "context": question.context if prompt.use_context else None,
        "choices": list(question.choices) if question.choices else None,
        "history": [list(turn) for turn in question.history],
        "reference": {"answers": {"text": list(question.gold_answers)}, "id": question.id},
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
