"""The dialogue engine: token ids in, token ids and the states at three positions out.

Many dialogues advance together, one slot each. A slot keeps its keys and values from turn to turn,
so only what is new is encoded; what counts as new is decided by the longest common prefix of token
ids, so a chat template that rewrites earlier turns is handled by encoding the rewritten tail
again. When a dialogue ends its slot takes the next one, so a long dialogue does not hold the
others back.

Sampling depends on (seed, item, turn) only. On CPU in float32 the states do not depend on the batch
either, bit for bit: a matrix product over at least 16 rows treats each row alike there, and
attention over whole blocks of 512 keys sums in the same order whatever the other rows hold. So no
pass is narrower than that.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.attention import (
    MIN_ROWS,
    attention_masks,
    grouped_attention,
    layer_windows,
    width_multiple,
)
from spikescore.errors import UserError
from spikescore.hidden_states import StateTap, to_half
from spikescore.kv_cache import GROWTH, SlotCache, text_config
from spikescore.pairs import TOKEN_KEYS
from spikescore.sampling import (
    Sampling,
    choose_tokens,
    measure_tokens,
    processed,
    turn_uniforms,
)

log = logging.getLogger("spikescore")

LAST, SECOND_LAST, BEFORE_GENERATION = TOKEN_KEYS
PREFILL_TOKENS = {"cpu": 1024, "cuda": 8192}  # of one encoding pass; bounds its activations
REFILL_SHARE = 8  # encode waiting rows as soon as they are one in this many


@dataclass
class Turn:
    """One answer and what was measured while it was generated (raw logits, before temperature and
    top-p).

    `states` maps each token key to FP16 `[L+1, H]`. An empty answer has the state of the last
    prompt token under all three keys. Log-probabilities are natural; lists have one entry per
    answer token.
    """

    number: int
    prompt_ids: list[int]
    reused: int = 0
    answer_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    first_token_confidence: float | None = None
    finish_reason: str = ""
    states: dict[str, np.ndarray] = field(default_factory=dict)
    ends_dialogue: bool = False

    @property
    def perplexity(self) -> float | None:
        """exp of the mean negative log-probability of the answer's tokens; None for an empty
        answer.
        """
        if not self.logprobs:
            return None
        return math.exp(min(-sum(self.logprobs) / len(self.logprobs), 700.0))


class Conversation(Protocol):
    """What the engine runs: it asks for the whole prompt of each turn, and is told each answer."""

    item_id: str

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        """Return the ids of the next turn's whole prompt, or None when the dialogue is over."""


@dataclass
class Finished:
    """A dialogue that ended: its turns and why (complete | context | timeout), or the error it
    met.
    """

    conversation: Conversation
    turns: list[Turn]
    reason: str
    error: str | None = None


@dataclass(frozen=True)
class Limits:
    """max_context: tokens of prompt and answer together. item_seconds: wall-clock time per
    dialogue.
    """

    max_new_tokens: int
    max_context: int
    item_seconds: float | None = None


@dataclass
class _Row:
    """A dialogue in a slot."""

    conversation: Conversation
    started: float
    turns: list[Turn] = field(default_factory=list)
    turn: Turn | None = None
    cached: list[int] = field(default_factory=list)  # ids whose keys and values the slot holds
    uniforms: np.ndarray | None = None
    budget: int = 0
    closing: bool = False  # the last token was cut off by a limit; it is fed once for its state


class Engine:
    """Runs conversations on one model. `stats` counts what was done since the engine was made."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_ids: Iterable[int],
        sampling: Sampling,
        limits: Limits,
        batch_size: int,
    ) -> None:
        self.model = model.eval()
        self.device = model.get_input_embeddings().weight.device
        self.sampling = sampling
        self.limits = limits
        self.batch_size = batch_size
        self.stats = {"turns": 0, "new_tokens": 0, "encoded_tokens": 0, "reused_tokens": 0}
        self._stop = frozenset(stop_ids)
        self._windows = layer_windows(model.config)
        self._block = GROWTH if self.device.type == "cpu" else 64
        on_cpu = self.device.type == "cpu"
        self._min_width = MIN_ROWS if on_cpu else 1
        self._width_multiple = width_multiple(model) if on_cpu else 1

    def seconds_per_token(self) -> float:
        """Time a full batch of throw-away dialogues: seconds per new token, for an estimate.

        Takes about two seconds at most, or 8 steps where processes must stay in step (no time
        limit of ours then).
        """
        timed = self.limits.item_seconds is not None
        trial = Engine(
            self.model,
            stop_ids=(),
            sampling=Sampling(temperature=0, top_p=1, seed=0),
            limits=Limits(32 if timed else 8, self.limits.max_context, 2.0 if timed else None),
            batch_size=self.batch_size,
        )
        started = time.monotonic()
        for _ in trial.run(_Trial() for _ in range(self.batch_size)):
            pass
        return (time.monotonic() - started) / trial.stats["new_tokens"]

    def run(self, conversations: Iterable[Conversation]) -> Iterator[Finished]:
        """Run all conversations, at most `batch_size` at a time; yield each when it ends, in any
        order.

        A conversation that fails is yielded with its error and the others go on. On out-of-memory
        the batch is halved and the turns in flight are done again; with a batch of one it is an
        error.
        """
        waiting = iter(conversations)
        resumed: deque[_Row] = deque()
        while True:
            flight = _Flight(self, waiting, resumed)
            try:
                with grouped_attention(self.model):
                    yield from flight.run()
                return
            except torch.OutOfMemoryError as error:
                if self.batch_size == 1:
                    raise UserError(
                        "out of memory with a single dialogue; lower max_new_tokens or "
                        "model_max_tokens, or set device_map and max_memory so that part of the "
                        "model is offloaded"
                    ) from error
                self.batch_size = max(1, self.batch_size // 2)
                log.warning("out of memory: going on with batch size %d", self.batch_size)
                yield from flight.done
                resumed = flight.salvage()
            torch.cuda.empty_cache()


class _Trial:
    """One turn about nothing."""

    item_id = "trial"

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        return [0] * 8 if last is None else None


class _Flight:
    """The slots of one engine run, until all is done or memory runs out."""

    def __init__(
        self, engine: Engine, waiting: Iterator[Conversation], resumed: deque[_Row]
    ) -> None:
        self.engine = engine
        self.model = engine.model
        self.device = engine.device
        self.waiting = waiting
        self.resumed = resumed
        n_slots = engine.batch_size
        if self.device.type == "cpu":
            n_slots = max(n_slots, MIN_ROWS)
        self.rows: list[_Row | None] = [None] * n_slots
        self.cache = SlotCache(n_slots, text_config(self.model.config).num_hidden_layers)
        self.last_steps: deque[list[torch.Tensor]] = deque(maxlen=2)
        self.done: deque[Finished] = deque()
        self.exhausted = False

    # --- the loop -----------------------------------------------------------------------------

    def run(self) -> Iterator[Finished]:
        while True:
            self._fill_slots()
            while self.done:
                yield self.done.popleft()
            to_encode = [slot for slot, row in enumerate(self.rows) if row and not row.budget]
            generating = sum(1 for row in self.rows if row and row.budget)
            if to_encode and len(to_encode) * REFILL_SHARE >= generating:
                self._encode(to_encode)
            elif generating:
                self._step()
            elif not self.done:
                return

    def salvage(self) -> deque[_Row]:
        """Take the dialogues out of their slots so that another flight can redo their current
        turn.
        """
        rows = deque(row for row in self.rows if row)
        for row in rows:
            row.cached, row.budget, row.closing = [], 0, False
            row.turn = Turn(row.turn.number, row.turn.prompt_ids)
        rows.extend(self.resumed)
        return rows

    def _fill_slots(self) -> None:
        """Give free slots to the next dialogues; when none are left, drop slots that only cost
        time.
        """
        in_use = sum(1 for row in self.rows if row)
        for slot, row in enumerate(self.rows):
            while row is None and in_use < self.engine.batch_size and not self.exhausted:
                row = self.rows[slot] = self._next_row()
                in_use += row is not None
        floor = MIN_ROWS if self.device.type == "cpu" else 1
        if self.exhausted and in_use and max(in_use, floor) * 4 <= len(self.rows) * 3:
            busy = [slot for slot, row in enumerate(self.rows) if row]
            idle = [slot for slot, row in enumerate(self.rows) if not row]
            slots = busy + idle[: max(0, floor - len(busy))]
            self.cache.keep(slots)
            self.rows = [self.rows[slot] for slot in slots]
            for step in self.last_steps:
                step[:] = [state[torch.tensor(slots, device=state.device)] for state in step]

    def _next_row(self) -> _Row | None:
        if self.resumed:
            return self.resumed.popleft()
        for conversation in self.waiting:
            row = _Row(conversation, time.monotonic())
            if self._ask(row):
                return row
        self.exhausted = True
        return None

    def _ask(self, row: _Row) -> bool:
        """Get the row's next prompt; False, with the dialogue in `done`, when there is none."""
        last = row.turns[-1] if row.turns else None
        if last is not None and last.ends_dialogue:
            return self._end(row, last.finish_reason)
        try:
            prompt = row.conversation.next_prompt(last)
        except UserError as error:
            return self._end(row, "error", str(error))
        if prompt is None:
            return self._end(row, "complete")
        if len(prompt) + 1 > self.engine.limits.max_context:
            if not row.turns:
                text = f"the first prompt has {len(prompt)} tokens, more than the context of "
                return self._end(row, "error", f"{text}{self.engine.limits.max_context} allows")
            return self._end(row, "context")
        row.turn = Turn(len(row.turns) + 1, prompt)
        return True

    def _end(self, row: _Row, reason: str, error: str | None = None) -> bool:
        self.done.append(Finished(row.conversation, row.turns, reason, error))
        return False

    # --- encoding a prompt --------------------------------------------------------------------

    @torch.inference_mode()
    def _encode(self, slots: list[int]) -> None:
        """Encode what is new in these slots' prompts and draw the first token of each answer."""
        todo: dict[int, list[int]] = {}
        for slot in slots:
            row = self.rows[slot]
            limits = self.engine.limits
            prompt = row.turn.prompt_ids
            row.turn.reused = min(common_prefix(row.cached, prompt), len(prompt) - 1)
            row.cached = row.cached[: row.turn.reused]
            todo[slot] = prompt[row.turn.reused :]
            row.budget = min(limits.max_new_tokens, limits.max_context - len(prompt))
            row.uniforms = turn_uniforms(
                self.engine.sampling, row.conversation.item_id, row.turn.number, row.budget
            )
            self.engine.stats["encoded_tokens"] += len(todo[slot])
            self.engine.stats["reused_tokens"] += row.turn.reused
        most = PREFILL_TOKENS[self.device.type]
        # of similar length together: less padding
        order = sorted(slots, key=lambda slot: len(todo[slot]))
        while order:
            width = min(len(todo[order[-1]]), most)
            group = order[-max(1, most // width) :]
            del order[-len(group) :]
            while any(len(todo[slot]) > most for slot in group):  # then the group is that slot
                self._encode_part(group, {s: todo[s][:most] for s in group})
                todo.update({s: todo[s][most:] for s in group})
            logits, states = self._encode_part(group, {slot: todo[slot] for slot in group})
            halves = to_half(states, torch.arange(len(group)))
            for place, slot in enumerate(group):
                self.rows[slot].turn.states[BEFORE_GENERATION] = halves[place]
            self._draw(group, logits)

    def _encode_part(
        self, slots: list[int], parts: dict[int, list[int]]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One pass over new tokens, padded on the left: every row ends in the last column."""
        multiple, least = self.engine._width_multiple, self.engine._min_width
        longest = max(least, *(len(parts[slot]) for slot in slots))
        width = -(-longest // multiple) * multiple
        ids = torch.zeros(len(slots), width, dtype=torch.long)
        positions = torch.full((len(slots), width), -1)
        for place, slot in enumerate(slots):
            row, part = self.rows[slot], parts[slot]
            first = len(row.cached)
            ids[place, width - len(part) :] = torch.tensor(part)
            positions[place, width - len(part) :] = torch.arange(first, first + len(part))
            row.cached.extend(part)
        # enough columns for the head's matrix product to have MIN_ROWS rows on CPU
        return self._forward(ids, positions, torch.tensor(slots), keep=-(-least // len(slots)))

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor | None, keep: int = 1
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the model over `[batch, width]` ids at their positions; -1 marks padding.

        Returns the logits `[batch, vocabulary]` and the L + 1 states `[batch, H]` of the last
        column.
        """
        longest = int(positions.max()) + 1
        self.cache.reserve(longest)
        view = -(-longest // self.engine._block) * self.engine._block
        view = min(view, self.cache.capacity)
        ids, positions = ids.to(self.device), positions.to(self.device)
        at = torch.where(positions < 0, self.cache.capacity, positions)
        self.cache.aim(rows=None if slots is None else slots.to(self.device), at=at, view=view)
        masks = attention_masks(self.engine._windows, positions, view, self.model.dtype)
        with StateTap(self.model) as tap:
            output = self.model(
                input_ids=ids,
                position_ids=positions.clamp(min=0),
                attention_mask=masks,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        return output.logits[:, -1].float(), tap.states

    # --- generating ---------------------------------------------------------------------------

    @torch.inference_mode()
    def _step(self) -> None:
        """Feed every generating row its newest token, in one pass over all slots, and draw the
        next.
        """
        ids = torch.zeros(len(self.rows), 1, dtype=torch.long)
        positions = torch.full((len(self.rows), 1), -1)
        fed = []
        for slot, row in enumerate(self.rows):
            if row and row.budget:
                token = row.turn.answer_ids[-1]
                ids[slot, 0], positions[slot, 0] = token, len(row.cached)
                row.cached.append(token)
                fed.append(slot)
        logits, states = self._forward(ids, positions, None)
        self.last_steps.append(states)
        closing = [slot for slot in fed if self.rows[slot].closing]
        drawing = [slot for slot in fed if not self.rows[slot].closing]
        self._finish_turns(closing)
        if drawing:
            self._draw(drawing, logits[torch.tensor(drawing, device=logits.device)])

    def _draw(self, slots: list[int], logits: torch.Tensor) -> None:
        """Draw a token for each slot from its row of logits; rows that stop end their turn."""
        drawn = [self.rows[slot].uniforms[len(self.rows[slot].turn.answer_ids)] for slot in slots]
        uniforms = torch.tensor(drawn, device=logits.device, dtype=torch.float64)
        so_far = [self.rows[s].turn.prompt_ids + self.rows[s].turn.answer_ids for s in slots]
        adjusted = processed(logits, so_far, self.engine.sampling)
        tokens = choose_tokens(adjusted, uniforms, self.engine.sampling)
        measured = measure_tokens(logits, tokens).tolist()
        now = time.monotonic()
        stopped, failed = [], []
        for slot, token, (logprob, entropy, top) in zip(
            slots, tokens.tolist(), measured, strict=True
        ):
            row = self.rows[slot]
            turn = row.turn
            if not math.isfinite(logprob):
                failed.append(slot)
                continue
            if not turn.answer_ids:
                turn.first_token_confidence = math.exp(top)
            if token in self.engine._stop:
                turn.finish_reason = "stop"
                stopped.append(slot)
                continue
            turn.answer_ids.append(token)
            turn.logprobs.append(logprob)
            turn.entropies.append(entropy)
            seconds = self.engine.limits.item_seconds
            if seconds is not None and now - row.started > seconds:
                turn.finish_reason, turn.ends_dialogue, row.closing = "timeout", True, True
            elif len(turn.answer_ids) == row.budget:
                turn.finish_reason, row.closing = "length", True
        for slot in failed:
            row, self.rows[slot] = self.rows[slot], None
            self._end(row, "error", f"turn {row.turn.number}: the model's output is not a number")
        self._finish_turns(stopped)

    def _finish_turns(self, slots: list[int]) -> None:
        """Take the states of the answers' last two tokens, and ask each dialogue for its next
        prompt.
        """
        if not slots:
            return
        with_answer = [slot for slot in slots if self.rows[slot].turn.answer_ids]
        index = torch.tensor(with_answer, dtype=torch.long)
        if with_answer:
            newest = to_half(self.last_steps[-1], index)
            before = to_half(self.last_steps[0], index)
            for place, slot in enumerate(with_answer):
                turn = self.rows[slot].turn
                turn.states[LAST] = newest[place]
                turn.states[SECOND_LAST] = (before if len(turn.answer_ids) > 1 else newest)[place]
        for slot in slots:
            row = self.rows[slot]
            turn, row.turn = row.turn, None
            if not turn.answer_ids:
                prompt_state = turn.states[BEFORE_GENERATION]
                turn.states[LAST] = turn.states[SECOND_LAST] = prompt_state
            row.turns.append(turn)
            row.budget, row.closing = 0, False
            self.engine.stats["turns"] += 1
            self.engine.stats["new_tokens"] += len(turn.answer_ids)
            if not self._ask(row):
                self.rows[slot] = None


def common_prefix(one: list[int], other: list[int]) -> int:
    """Length of the longest common prefix of two id lists."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(n for n in range(shorter) if one[n] != other[n])
