"""From a dialogue as text to the same turns that the engine gives: ids, states, log-probabilities.

Whoever wrote the answers (a server, another model, a person), the local model reads the transcript
in a teacher-forced pass. Its prompts are rendered by the local chat template, and the answers are
the token ids that this template gives them (`ChatFormat.answer_ids`), unless the transcript brings
ids of its own. Log-probabilities are the local model's, from raw logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from spikescore.errors import UserError
from spikescore.model.attention import Part
from spikescore.model.chat import ChatFormat, Message, Rendering
from spikescore.model.hidden_states import TEACHER_CHUNK, beyond_half, to_half
from spikescore.model.sampling import measure_tokens
from spikescore.model.slots import SlotModel
from spikescore.model.turns import (
    BEFORE_GENERATION,
    LAST,
    SECOND_LAST,
    Finished,
    Turn,
    common_prefix,
    runs,
)

LOGIT_ROWS = 64  # rows of float32 logits measured at once; bounds them to rows x vocabulary


@dataclass
class Exchange:
    """One turn as text: all messages before the answer, and the answer.

    `answer_ids` and `prompt_ids` are ids of the answer, and of the whole prompt before it, that are
    known to be right for the local tokenizer.
    """

    messages: list[Message]
    answer: str
    finish_reason: str = "stop"
    answer_ids: list[int] | None = None
    prompt_ids: list[int] | None = None


@dataclass
class Transcript:
    """A dialogue that was held elsewhere, and why it ended; `turns` where its states were read."""

    conversation: Any
    exchanges: list[Exchange]
    reason: str
    error: str | None = None
    turns: list[Turn] | None = None


def read_transcripts(
    transcripts: Iterable[Transcript],
    model: PreTrainedModel | None,
    chat: ChatFormat,
    *,
    max_context: int,
) -> Iterator[Finished]:
    """Yield each transcript as a finished dialogue with states, as `Engine.run` does, in order.

    A dialogue longer than `max_context` tokens keeps the turns that fit and ends with `context`;
    one that cannot be read is yielded with its error and the others go on. The model may be None
    where every transcript without an error brings its turns.
    """
    for transcript in transcripts:
        turns = transcript.turns or []
        reason, error = transcript.reason, transcript.error
        if error is None:
            try:
                if transcript.turns is None:
                    turns = encode_transcript(model, chat, transcript.exchanges, max_context)
            except UserError as problem:
                error = str(problem)
            except torch.OutOfMemoryError:
                error = "out of memory while reading the states; lower model_max_tokens"
            if error is None and len(turns) < len(transcript.exchanges):
                reason = "context"
                if not turns:
                    error = f"the first turn has more tokens than the context of {max_context}"
        yield Finished(transcript.conversation, turns, reason, error)


def encode_transcript(
    model: PreTrainedModel,
    chat: ChatFormat,
    exchanges: Sequence[Exchange],
    max_context: int | None = None,
) -> list[Turn]:
    """Return a `Turn` for every exchange that fits into `max_context` tokens, all fields filled.

    Only the states and logits that are asked for are kept. While each prompt begins with the turn
    before it, the whole dialogue is one pass; where a template rewrote earlier turns, only what
    differs is encoded again.
    """
    turns = turns_of(chat, exchanges, max_context)
    read_turns(model, turns)
    return turns


def turns_of(
    chat: ChatFormat, exchanges: Sequence[Exchange], max_context: int | None = None
) -> list[Turn]:
    """Return a `Turn` with its ids for every exchange that fits into `max_context` tokens."""
    turns: list[Turn] = []
    rendered: Rendering | None = None
    for exchange in exchanges:
        prompt, answer = exchange.prompt_ids, exchange.answer_ids
        if not prompt or answer is None:
            rendered = chat.rendering(exchange.messages, rendered)
        if answer is None:
            answer = chat.answer_ids(exchange.messages, exchange.answer, rendered)
        if not prompt:
            prompt = rendered.ids
        if max_context is not None and len(prompt) + max(1, len(answer)) > max_context:
            break
        turn = Turn(len(turns) + 1, prompt, answer_ids=answer)
        turn.finish_reason = exchange.finish_reason
        turns.append(turn)
    return turns


def read_turns(model: PreTrainedModel, turns: Sequence[Turn]) -> None:
    """Fill in what is measured of turns of one dialogue, in order, whose ids are known: states,
    and log-probabilities and entropies where they have none.
    """
    reader = _Reader(model)
    for together in passes(turns):
        reader.read(together)


def passes(turns: Sequence[Turn]) -> Iterator[Sequence[Turn]]:
    """Yield turns in the `runs` that one pass reads each."""
    return runs(turns, lambda turn: (turn.prompt_ids, turn.answer_ids))


def places(turn: Turn) -> dict[str, int]:
    """Where in its prompt and answer a turn's states stand, for each token key."""
    last_of_prompt = len(turn.prompt) - 1
    last = last_of_prompt + len(turn.answer_ids)
    second = last - 1 if len(turn.answer_ids) > 1 else last
    return {LAST: last, SECOND_LAST: second, BEFORE_GENERATION: last_of_prompt}


def reread(model: PreTrainedModel, finished: Finished) -> None:
    """Fill in the states of turns of which an earlier run kept ids alone, or set the error."""
    known = [turn for turn in finished.turns if not turn.states]
    try:
        if known and finished.error is None:
            read_turns(model, known)
    except UserError as error:
        finished.error = str(error)
    except torch.OutOfMemoryError:
        finished.error = "out of memory while reading the states; lower model_max_tokens"


class _Reader:
    """A teacher-forced pass over one dialogue, in the one slot of a cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.passes = SlotModel(model, slots=1)
        self.cached: list[int] = []

    @torch.inference_mode()
    def read(self, turns: Sequence[Turn]) -> None:
        """Fill in turns of which each prompt begins with the whole turn before."""
        ids = turns[-1].prompt_ids + turns[-1].answer_ids
        states_of: dict[int, list[tuple[Turn, str]]] = {}
        logits_of: dict[int, Turn] = {}
        for turn in turns:
            at = places(turn)
            for key, position in at.items():
                states_of.setdefault(position, []).append((turn, key))
            if not turn.logprobs:
                for position in range(at[BEFORE_GENERATION], max(at[LAST], len(turn.prompt))):
                    logits_of[position] = turn
        self.cached = self.cached[: min(common_prefix(self.cached, ids), len(turns[0].prompt) - 1)]
        # up to where positions are turned otherwise (LongRoPE), and what is beyond
        switch = self.passes.switch or len(ids)
        for end in sorted({min(switch, len(ids)), len(ids)}):
            if not any(position < end for position in states_of):
                continue
            held = self.passes.reusable(0, len(self.cached), end)
            self.cached = self.cached[:held]
            for start in range(held, end, TEACHER_CHUNK):
                part = ids[start : min(start + TEACHER_CHUNK, end)]
                self._read_part(part, start, states_of, logits_of)

    def _read_part(
        self,
        part: list[int],
        start: int,
        states_of: dict[int, list[tuple[Turn, str]]],
        logits_of: dict[int, Turn],
    ) -> None:
        """Encode tokens from a position on, and keep what is wanted there for the first time."""
        inside = range(start, start + len(part))
        wanted = sorted(position for position in states_of if position in inside)
        predicting = [position for position in inside if position in logits_of]
        logits, layers = self.passes.feed(
            [Part(0, part, start)],
            states_of=[position - start for position in wanted],
            logits_of=[position - start for position in predicting],
        )
        self.cached.extend(part)
        states = to_half(layers, torch.arange(len(wanted)))
        for position, state in zip(wanted, states, strict=True):
            for turn, key in states_of.pop(position):
                if problem := beyond_half(state):
                    raise UserError(f"turn {turn.number}: {problem}")
                turn.states[key] = state
        predicted = [(position, logits_of.pop(position)) for position in predicting]
        for first in range(0, len(predicted), LOGIT_ROWS):
            few = slice(first, first + LOGIT_ROWS)
            _measure(logits[few].float(), predicted[few])


def _measure(logits: torch.Tensor, predicted: list[tuple[int, Turn]]) -> None:
    """Take log-probability and entropy of the tokens that rows of raw logits predict."""
    # place of the predicted token in its answer; an empty answer predicts none
    places = [position - len(turn.prompt) + 1 for position, turn in predicted]
    tokens = [
        turn.answer_ids[place] if turn.answer_ids else 0
        for place, (_, turn) in zip(places, predicted, strict=True)
    ]
    index = torch.tensor(tokens, device=logits.device)
    measured = measure_tokens(logits, index).tolist()
    for (logprob, entropy, highest), place, (_, turn) in zip(
        measured, places, predicted, strict=True
    ):
        if not math.isfinite(highest):
            raise UserError(f"turn {turn.number}: the model's output is not a number")
        if place == 0:
            turn.first_token_confidence = math.exp(highest)
        if turn.answer_ids:
            turn.logprobs.append(logprob)
            turn.entropies.append(entropy)
