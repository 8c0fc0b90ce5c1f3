"""What goes into the engine and comes out of it: conversations, their turns, limits."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch

from spikescore.pairs import TOKEN_KEYS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
LAST, SECOND_LAST, BEFORE_GENERATION = TOKEN_KEYS


@dataclass
class Turn:
    """One answer and what was measured while it was generated (raw logits, before temperature and
    top-p).

    `states` maps each token key to FP16 `[L+1, H]`. An empty answer has the state of the last
    prompt token under all three keys. Log-probabilities are natural; lists have one entry per
    answer token.
    """

    number: int
    prompt: Sequence[int]  # kept as an array: lists of ids would outweigh the states
    answer_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    first_token_confidence: float | None = None
    finish_reason: str = ""
    states: dict[str, np.ndarray] = field(default_factory=dict)
    ends_dialogue: bool = False
    seconds: float = 0.0  # the dialogue's share of the passes that made it (`Limits`)

    def __post_init__(self) -> None:
        self.prompt = array("i", self.prompt)

    @property
    def prompt_ids(self) -> list[int]:
        """The ids of the turn's whole prompt."""
        return self.prompt.tolist()

    @property
    def perplexity(self) -> float | None:
        """exp of the mean negative log-probability of the answer's tokens; None if it has none."""
        if not self.logprobs:
            return None
        return math.exp(min(-sum(self.logprobs) / len(self.logprobs), 700.0))


class Conversation(Protocol):
    """What the engine runs: it asks for the whole prompt of each turn, and is told each answer.

    One that has a `sampling` is sampled so; the others as the engine says. One that has `turns`, of
    an earlier run, goes on after them; their states stay as they are. One that has `given`, ids of
    an answer, once it was asked for its first prompt, begins with that answer, which is read
    instead of drawn.
    """

    item_id: str

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        """Return the ids of the next turn's whole prompt, or None when the dialogue is over."""


@dataclass
class Finished:
    """A dialogue that ended: its turns and why (complete, context, timeout), or its error."""

    conversation: Conversation
    turns: list[Turn]
    reason: str
    error: str | None = None


@dataclass
class Spent:
    """What was spent on an item: tokens generated, tokens encoded as if no other item were there,
    and its share of the seconds of the passes, as in `Limits`.
    """

    generated: int = 0
    encoded: int = 0
    seconds: float = 0.0

    def answered(self, turns: Sequence[Turn]) -> None:
        """Add answers to one prompt, which is encoded once."""
        self.encoded += len(turns[0].prompt)
        self.generated += sum(len(turn.answer_ids) for turn in turns)
        self.seconds += sum(turn.seconds for turn in turns)

    def asked(self, prompts: Sequence[Sequence[int]]) -> None:
        """Add prompts that are read one after another, the last token of each in any case."""
        for before, ids in zip(([], *prompts), prompts, strict=False):
            self.encoded += len(ids) - min(common_prefix(before, ids), len(ids) - 1)

    @contextmanager
    def reading(self, model: PreTrainedModel) -> Iterator[None]:
        """Add all tokens that a model is given inside, and the time that passes."""

        def count(_: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
            self.encoded += args[0].numel()

        embeddings = model.get_input_embeddings()
        clock = Stopwatch(embeddings.weight.device)
        hook = embeddings.register_forward_pre_hook(count)
        try:
            yield
        finally:
            hook.remove()
            self.seconds += clock.seconds()


@dataclass(frozen=True)
class Limits:
    """max_context: tokens of prompt and answer together. item_seconds: time per dialogue.

    A dialogue is charged its share of the time of each pass, or of the time that its requests share
    with others at a server, so that the limit means the same whatever runs beside it.
    """

    max_new_tokens: int
    max_context: int
    item_seconds: float | None = None


class Stopwatch:
    """Seconds since it was made; on CPU of this process's own work alone, if that is less."""

    def __init__(self, device: torch.device) -> None:
        self._on_cpu = device.type == "cpu"
        self._started = time.monotonic(), time.process_time()

    def seconds(self) -> float:
        wall, own = time.monotonic() - self._started[0], time.process_time() - self._started[1]
        return min(wall, own) if self._on_cpu else wall


def token_sequences(record: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Rebuild (prompt ids, response ids) of every turn from a record."""
    sequences, before = [], []
    for step in record["cot_steps"]:
        prompt = before[: step["n_kept"]] + step["prompt_ids"]
        sequences.append((prompt, step["response_ids"]))
        before = prompt + step["response_ids"]
    return sequences


def runs(
    turns: Sequence[T], ids: Callable[[T], tuple[list[int], list[int]]]
) -> Iterator[Sequence[T]]:
    """Cut turns, whose (prompt ids, answer ids) `ids` gives, into runs of which each prompt begins
    with the whole turn before.
    """
    start = 0
    for end in range(1, len(turns) + 1):
        prompt, answer = ids(turns[end - 1])
        whole = prompt + answer
        if end == len(turns) or ids(turns[end])[0][: len(whole)] != whole:
            yield turns[start:end]
            start = end


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix of two id lists."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # equal up to low, not beyond high
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low
