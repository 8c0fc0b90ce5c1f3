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
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.hidden_states import TEACHER_CHUNK, to_half
from spikescore.model.sampling import measure_tokens
from spikescore.model.slots import SlotModel
from spikescore.model.turns import (
    BEFORE_GENERATION,
    LAST,
    SECOND_LAST,
    Finished,
    Turn,
    common_prefix,
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
    """A dialogue that was held elsewhere: its exchanges and why it ended (as in `Finished`)."""

    conversation: Any
    exchanges: list[Exchange]
    reason: str
    error: str | None = None


def read_transcripts(
    transcripts: Iterable[Transcript],
    model: PreTrainedModel,
    chat: ChatFormat,
    *,
    max_context: int,
) -> Iterator[Finished]:
    """Yield each transcript as a finished dialogue with states, as `Engine.run` does, in order.

    A dialogue longer than `max_context` tokens keeps the turns that fit and ends with `context`;
    one that cannot be read is yielded with its error and the others go on.
    """
    for transcript in transcripts:
        turns: list[Turn] = []
        reason, error = transcript.reason, transcript.error
        if error is None:
            try:
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
    *,
    chunk: int = TEACHER_CHUNK,
) -> list[Turn]:
    """Return a `Turn` for every exchange that fits into `max_context` tokens, all fields filled.

    `chunk` tokens are encoded at a time and only the states and logits that are asked for are
    kept. While each prompt begins with the turn before it, the whole dialogue is one pass; where a
    template rewrote earlier turns, only what differs is encoded again.
    """
    turns: list[Turn] = []
    for exchange in exchanges:
        answer = exchange.answer_ids
        if answer is None:
            answer = chat.answer_ids(exchange.messages, exchange.answer)
        prompt = exchange.prompt_ids or chat.render(exchange.messages)
        if max_context is not None and len(prompt) + max(1, len(answer)) > max_context:
            break
        turn = Turn(len(turns) + 1, prompt, answer_ids=answer)
        turn.finish_reason = exchange.finish_reason
        turns.append(turn)
    _read_all(_Reader(model, chunk), turns)
    return turns


def _read_all(reader: _Reader, turns: Sequence[Turn]) -> None:
    """Read turns in as few passes as their prompts allow."""
    start = 0
    while start < len(turns):
        end = start + 1
        while end < len(turns) and _continues(turns[end - 1], turns[end]):
            end += 1
        reader.read(turns[start:end])
        start = end


def reread(model: PreTrainedModel, finished: Finished) -> None:
    """Fill in the states of turns that an earlier run generated, of which only ids are kept; where
    that cannot be done, the dialogue gets its error.
    """
    known = [turn for turn in finished.turns if not turn.states]
    try:
        if known and finished.error is None:
            _read_all(_Reader(model, TEACHER_CHUNK, measures=False), known)
    except torch.OutOfMemoryError:
        finished.error = "out of memory while reading the states; lower model_max_tokens"


def _continues(before: Turn, turn: Turn) -> bool:
    whole = before.prompt_ids + before.answer_ids
    return turn.prompt_ids[: len(whole)] == whole


class _Reader:
    """A teacher-forced pass over one dialogue, in the one slot of a cache; without `measures` for
    the states alone.
    """

    def __init__(self, model: PreTrainedModel, chunk: int, measures: bool = True) -> None:
        self.chunk = chunk
        self.measures = measures
        self.passes = SlotModel(model, slots=1)
        self.cached: list[int] = []

    @torch.inference_mode()
    def read(self, turns: Sequence[Turn]) -> None:
        """Fill in turns of which each prompt begins with the whole turn before."""
        ids = turns[-1].prompt_ids + turns[-1].answer_ids
        states_of: dict[int, list[tuple[Turn, str]]] = {}
        logits_of: dict[int, Turn] = {}
        for turn in turns:
            last_of_prompt = len(turn.prompt_ids) - 1
            last = last_of_prompt + len(turn.answer_ids)
            second = last - 1 if len(turn.answer_ids) > 1 else last
            for position, key in (
                (last, LAST),
                (second, SECOND_LAST),
                (last_of_prompt, BEFORE_GENERATION),
            ):
                states_of.setdefault(position, []).append((turn, key))
            predicting = range(last_of_prompt, max(last, last_of_prompt + 1))
            logits_of.update(dict.fromkeys(predicting if self.measures else (), turn))
        reused = min(common_prefix(self.cached, ids), len(turns[0].prompt_ids) - 1)
        self.cached = self.cached[:reused]
        turns[0].reused = reused
        for start in range(reused, len(ids), self.chunk):
            part = ids[start : start + self.chunk]
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
            for place, position in enumerate(wanted):
                for turn, key in states_of[position]:
                    turn.states[key] = states[place]
            for rows, positions in zip(
                logits.split(LOGIT_ROWS), _batches(predicting, LOGIT_ROWS), strict=False
            ):
                _measure(rows.float(), [(position, logits_of[position]) for position in positions])


def _batches(values: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _measure(logits: torch.Tensor, predicted: list[tuple[int, Turn]]) -> None:
    """Take log-probability and entropy of the tokens that rows of raw logits predict."""
    # place of the predicted token in its answer; an empty answer predicts none
    places = [position - len(turn.prompt_ids) + 1 for position, turn in predicted]
    tokens = [
        turn.answer_ids[place] if turn.answer_ids else 0
        for place, (_, turn) in zip(places, predicted, strict=True)
    ]
    index = torch.tensor(tokens, device=logits.device)
    measured = measure_tokens(logits[: len(predicted)], index).tolist()
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
