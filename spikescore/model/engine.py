"""The dialogue engine: token ids in, token ids and the states at three positions out.

Many dialogues advance together, one slot each. A slot keeps its keys and values from turn to turn,
so only what is new is encoded; what counts as new is decided by the longest common prefix of token
ids, so a chat template that rewrites earlier turns is handled by encoding the rewritten tail
again. A new dialogue copies what another slot already holds of its first prompt, and waits where
another is just encoding it: samples of one prompt come from one encoding. When a dialogue ends its
slot takes the next one, so a long dialogue does not hold the others back.

Each pass feeds every dialogue what is new, its next prompt or its newest token, and a few guesses
of what follows (`drafting`); a guess counts when it is the token that sampling draws there, so a
pass gives a dialogue one token or more, and the same ones as without guesses.

Sampling depends on (seed, item, turn) only. On CPU in float32 the states do not depend on the batch
either, bit for bit: a matrix product over at least 16 rows treats each row alike there, and
attention over whole blocks of keys sums in the same order whatever the other rows hold (`packing`,
`attention`).
"""

from __future__ import annotations

import logging
import math
import time
from array import array
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.errors import UserError
from spikescore.model.attention import Part
from spikescore.model.hidden_states import to_half
from spikescore.model.sampling import (
    Sampling,
    choose_tokens,
    measure_tokens,
    processed,
    turn_uniforms,
)
from spikescore.model.slots import SlotModel
from spikescore.model.turns import (
    LAST,
    SECOND_LAST,
    Conversation,
    Finished,
    Limits,
    Turn,
    common_prefix,
)
from spikescore.pairs import TOKEN_KEYS

ORDERS = (5, 3, 2)  # tokens of context looked up, longest first
MOST_ENTRIES = 200_000  # about 40 MB; the table starts afresh when it is full


class DraftTable:
    """What followed each two, three and five tokens last, in all dialogues of a run.

    Guesses end where one of `stop_ids` is expected.
    """

    def __init__(self, stop_ids: Container[int]) -> None:
        self._stop = stop_ids
        self._next: dict[tuple[int, ...], int] = {}

    def learn(self, ids: Sequence[int], start: int) -> None:
        """Note for each token from index `start` on that it followed the tokens before it."""
        if len(self._next) > MOST_ENTRIES:
            self._next.clear()
        for order in ORDERS:
            for at in range(max(start, order), len(ids)):
                self._next[tuple(ids[at - order : at])] = ids[at]

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that may follow `ids`; fewer where nothing is known."""
        context = tuple(ids[-ORDERS[0] :])
        guesses: list[int] = []
        while len(guesses) < most:
            known = (self._next.get(context[-order:]) for order in ORDERS)
            token = next((token for token in known if token is not None), None)
            if token is None or token in self._stop:
                break
            guesses.append(token)
            context = (*context[1:], token)
        return guesses


log = logging.getLogger("spikescore")

DRAFT_TOKENS = {"cpu": 3, "cuda": 0}  # guesses a pass; what they would save on a GPU is not known


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
        draft_tokens: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.device = model.get_input_embeddings().weight.device
        self.sampling = sampling
        self.limits = limits
        self.batch_size = batch_size
        # advances: how often a pass took a dialogue further, by one token or more
        counted = "turns", "new_tokens", "encoded_tokens", "reused_tokens", "passes", "advances"
        self.stats = dict.fromkeys(counted, 0)
        usual = DRAFT_TOKENS[self.device.type]
        self.draft_tokens = usual if draft_tokens is None else draft_tokens
        self.stop_ids = frozenset(stop_ids)

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
            draft_tokens=0,  # a trial about nothing would be guessed too well
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
        resumed: deque[Row] = deque()
        while True:
            flight = Flight(self, waiting, resumed)
            try:
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


SHARED_TOKENS = 64  # a common beginning of fewer is encoded again rather than waited for
PREFILL_TOKENS = {"cpu": 2048, "cuda": 8192}  # prompt tokens of one pass; bounds its activations


@dataclass
class Row:
    """A dialogue in a slot, and the turn it is at."""

    conversation: Conversation
    started: float
    sampling: Sampling
    turns: list[Turn] = field(default_factory=list)
    turn: Turn | None = None
    ids: array = field(default_factory=lambda: array("i"))  # prompt and answer so far
    cached: int = 0  # how many of them have keys and values in the slot
    uniforms: np.ndarray | None = None
    budget: int = 0  # most tokens of the answer
    closing: bool = False  # a limit cut the answer; its last token is fed once more for its state
    leader: Row | None = None  # is encoding the beginning that this row waits for
    shared: int = 0  # how many tokens that is


@dataclass
class Fed:
    """What a pass fed to a row. Token `first` of the pass is the last known one, of the prompt or
    of the answer; the guesses come after it.
    """

    first: int
    guesses: list[int]
    draws: int  # tokens that may be drawn: after the last known one and after guesses


class Flight:
    """The slots of one engine run, until all is done or memory runs out."""

    def __init__(
        self, engine: Engine, waiting: Iterator[Conversation], resumed: deque[Row]
    ) -> None:
        self.engine = engine
        self.waiting = waiting
        self.resumed = resumed
        self.rows: list[Row | None] = [None] * engine.batch_size
        self.passes = SlotModel(engine.model, engine.batch_size)
        self.drafts = DraftTable(engine.stop_ids)
        # L + 1 tensors [slots, H]: the state of each answer's newest token that was fed
        self.newest: list[torch.Tensor] = []
        # ids whose keys and values a slot still holds after its dialogue
        self.left: list[array] = [array("i")] * engine.batch_size
        self.done: deque[Finished] = deque()
        self.exhausted = False

    # --- the loop -----------------------------------------------------------------------------

    def run(self) -> Iterator[Finished]:
        while True:
            self._fill_slots()
            while self.done:
                yield self.done.popleft()
            if any(self.rows):
                self._advance()
            elif not self.done:
                return

    def salvage(self) -> deque[Row]:
        """Take the dialogues out of their slots so that another flight can redo their current
        turn.
        """
        rows = deque(row for row in self.rows if row)
        for row in rows:
            row.cached = 0
            self._begin(row, row.turn.prompt)
        rows.extend(self.resumed)
        return rows

    def _fill_slots(self) -> None:
        """Give free slots to the next dialogues; when none are left, drop slots that only cost
        time.
        """
        free = [slot for slot, row in enumerate(self.rows) if row is None]
        new: list[Row] = []
        while len(new) < len(free) and (row := self._next_row()):
            new.append(row)
        # neighbours of about the same length read about as many keys
        new.sort(key=lambda row: len(row.ids))
        for slot, row in zip(free, new, strict=False):
            self._share(slot, row)
            self.rows[slot], self.left[slot] = row, array("i")
        busy = [slot for slot, row in enumerate(self.rows) if row]
        if self.exhausted and busy and len(busy) * 2 <= len(self.rows):
            self.passes.cache.keep(busy)
            self.rows = [self.rows[slot] for slot in busy]
            self.left = [self.left[slot] for slot in busy]
            index = torch.tensor(busy)
            self.newest = [state[index.to(state.device)] for state in self.newest]

    @torch.inference_mode()
    def _share(self, slot: int, row: Row) -> None:
        """Give a row that holds nothing what some slot holds of its prompt, or have it wait for the
        row that is encoding more of it.
        """
        most = row.ids[:-1]  # the last token is fed in any case, for its logits
        held, source = 0, slot
        row.leader, row.shared = None, 0
        if len(most) < SHARED_TOKENS:
            return
        for other, there in enumerate(self.rows):
            known = there.ids if there else self.left[other]
            if known[:SHARED_TOKENS] != most[:SHARED_TOKENS]:
                continue
            shared = common_prefix(known, most)
            now = min(shared, there.cached) if there else shared
            if now > held:
                held, source = now, other
            if there and shared > max(row.shared, there.cached) and not _follows(there, row):
                row.leader, row.shared = there, shared
        if row.leader and row.shared - held < SHARED_TOKENS:
            row.leader = None
        if held and not row.leader:
            self.passes.cache.copy(source, slot, held)
            row.cached = row.turn.reused = held
            self.engine.stats["reused_tokens"] += held
            self.engine.stats["encoded_tokens"] -= held

    def _waits(self, slot: int, row: Row) -> bool:
        """Whether the row's leader is still encoding what both begin with."""
        if row.leader is None:
            return False
        if row.leader in self.rows and row.leader.cached < row.shared:
            return True
        self._share(slot, row)
        return row.leader is not None

    def _next_row(self) -> Row | None:
        if self.resumed:
            return self.resumed.popleft()
        if self.exhausted:
            return None
        for conversation in self.waiting:
            sampling = getattr(conversation, "sampling", None) or self.engine.sampling
            row = Row(conversation, time.monotonic(), sampling)
            if self._ask(row):
                return row
        self.exhausted = True
        return None

    def _ask(self, row: Row) -> bool:
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
        self._begin(row, prompt)
        return True

    def _begin(self, row: Row, prompt: Sequence[int]) -> None:
        """Set the row to the start of its next turn, keeping what the cache holds of its prompt."""
        limits, stats = self.engine.limits, self.engine.stats
        turn = row.turn = Turn(len(row.turns) + 1, prompt)
        turn.reused = min(common_prefix(row.ids[: row.cached], turn.prompt), len(prompt) - 1)
        row.ids, row.cached, row.closing = turn.prompt[:], turn.reused, False
        row.budget = min(limits.max_new_tokens, limits.max_context - len(prompt))
        row.uniforms = turn_uniforms(
            row.sampling, row.conversation.item_id, turn.number, row.budget
        )
        self.drafts.learn(row.ids, row.cached)
        stats["encoded_tokens"] += len(prompt) - row.cached
        stats["reused_tokens"] += row.cached

    def _end(self, row: Row, reason: str, error: str | None = None) -> bool:
        self.done.append(Finished(row.conversation, row.turns, reason, error))
        return False

    # --- one pass -----------------------------------------------------------------------------

    @torch.inference_mode()
    def _advance(self) -> None:
        """Feed every row what is new and guesses of what follows, and draw the tokens after it."""
        parts, fed = self._next_parts()
        logits, states = self.passes.feed(
            parts,
            states_of=[one.first + n for one in fed.values() for n in range(1 + len(one.guesses))],
            logits_of=[one.first + n for one in fed.values() for n in range(one.draws)],
            narrow=1 + self.engine.draft_tokens,
        )
        self.engine.stats["passes"] += 1
        self.engine.stats["advances"] += len(fed)
        drawn = self._draw(fed, logits)
        last_known, newest, at = {}, {}, 0
        for slot, one in fed.items():
            if row := self.rows[slot]:
                confirmed = self._take(row, one.guesses, *drawn[slot]) if one.draws else 0
                row.cached += confirmed
                row.closing = row.closing and one.draws > 0
                last_known[slot], newest[slot] = at, at + confirmed
            at += 1 + len(one.guesses)
        self._keep_states(states, last_known, newest)
        for slot in newest:
            row = self.rows[slot]
            if row.turn.finish_reason and not row.closing:
                ids = row.ids[: row.cached]
                if not self._finish_turn(row):
                    self.rows[slot], self.left[slot] = None, ids

    def _next_parts(self) -> tuple[list[Part], dict[int, Fed]]:
        """What the next pass encodes. Rows whose prompt is not fed to its end are not in `Fed`."""
        parts: list[Part] = []
        fed: dict[int, Fed] = {}
        waiting = {slot for slot, row in enumerate(self.rows) if row and self._waits(slot, row)}
        room, total = PREFILL_TOKENS[self.passes.device.type], 0
        for slot, row in enumerate(self.rows):
            if row is None or slot in waiting:
                continue
            answered = len(row.turn.answer_ids)
            new = row.ids[row.cached :]
            if not answered:
                new = new[:room]  # the rest waits for the next pass
                room -= len(new)
            if not new:
                continue
            part = Part(slot, new.tolist(), row.cached)
            row.cached += len(new)
            if row.cached == len(row.ids):
                draws = 0 if row.closing else row.budget - answered
                guesses = self.drafts.guess(row.ids, min(self.engine.draft_tokens, draws))
                first = total + len(new) - 1
                fed[slot] = Fed(first, guesses, min(draws, 1 + len(guesses)))
                part.ids.extend(guesses)
            parts.append(part)
            total += len(part.ids)
        return parts, fed

    def _draw(self, fed: dict[int, Fed], logits: torch.Tensor) -> dict[int, tuple]:
        """Draw a token after each slot's last known one, and on while its guesses are right.

        logits: `[draws of all slots, vocabulary]`. Returns by slot the tokens and what was measured
        of each; a row whose logits are no numbers ends with an error.
        """
        if not len(logits):
            return {}
        logits = logits.float()
        uniforms, contexts = [], []
        by_sampling: dict[int, tuple[Sampling, list[int]]] = {}
        for slot, one in fed.items():
            row = self.rows[slot]
            answered = len(row.turn.answer_ids)
            at = len(uniforms)
            _, places = by_sampling.setdefault(id(row.sampling), (row.sampling, []))
            places.extend(range(at, at + one.draws))
            uniforms.extend(row.uniforms[answered : answered + one.draws])
            if row.sampling.processors:
                contexts.extend(row.ids + array("i", one.guesses[:n]) for n in range(one.draws))
            else:
                contexts.extend([None] * one.draws)
        draws = torch.tensor(np.array(uniforms), device=logits.device)
        chosen = torch.empty(len(uniforms), dtype=torch.long, device=logits.device)
        for sampling, places in by_sampling.values():
            index = torch.tensor(places, dtype=torch.long, device=logits.device)
            adjusted = processed(logits[index], [contexts[at] for at in places], sampling)
            chosen[index] = choose_tokens(adjusted, draws[index], sampling)
        tokens, first = chosen.tolist(), 0
        runs: dict[int, range] = {}
        for slot, one in fed.items():
            end = first + min(1, one.draws)
            while end < first + one.draws and tokens[end - 1] == one.guesses[end - 1 - first]:
                end += 1
            runs[slot] = range(first, end)
            first += one.draws
        kept = torch.tensor([at for run in runs.values() for at in run], device=logits.device)
        measured = iter(measure_tokens(logits[kept], chosen[kept]).tolist())
        drawn = {}
        for slot, run in runs.items():
            drawn[slot] = [tokens[at] for at in run], list(islice(measured, len(run)))
            if not all(math.isfinite(logprob) for logprob, _, _ in drawn[slot][1]):
                row, self.rows[slot] = self.rows[slot], None
                number = row.turn.number
                self._end(row, "error", f"turn {number}: the model's output is not a number")
        return drawn

    def _take(
        self, row: Row, guesses: list[int], tokens: list[int], measured: list[list[float]]
    ) -> int:
        """Append drawn tokens to the row's answer; return how many guesses now belong to it."""
        turn = row.turn
        known = len(row.ids)
        for token, (logprob, entropy, top) in zip(tokens, measured, strict=True):
            if not turn.answer_ids:
                turn.first_token_confidence = math.exp(top)
            if token in self.engine.stop_ids:
                turn.finish_reason = "stop"
                break
            turn.answer_ids.append(token)
            turn.logprobs.append(logprob)
            turn.entropies.append(entropy)
            row.ids.append(token)
        self.drafts.learn(row.ids, known)
        n_new = len(row.ids) - known
        if turn.finish_reason:
            return n_new
        seconds = self.engine.limits.item_seconds
        if len(turn.answer_ids) == row.budget:
            turn.finish_reason = "length"
        elif seconds is not None and time.monotonic() - row.started > seconds:
            turn.finish_reason, turn.ends_dialogue = "timeout", True
        else:
            return n_new - 1
        # unless it was guessed, the last token has not been fed
        row.closing = guesses[n_new - 1 : n_new] != tokens[-1:]
        return n_new - row.closing

    def _keep_states(
        self, states: list[torch.Tensor], last_known: dict[int, int], newest: dict[int, int]
    ) -> None:
        """Keep what a turn's three states need of a pass's states `[tokens, H]`, given by slot the
        place of the last token known before it, and of the last one that is in the answer now.
        """
        turns = {slot: self.rows[slot].turn for slot in newest}
        begun = [slot for slot, turn in turns.items() if not turn.states]
        for slot, state in _halves(states, [last_known[slot] for slot in begun], begun):
            # all there is, should the answer be empty
            turns[slot].states = dict.fromkeys(TOKEN_KEYS, state)
        ended = [
            slot
            for slot, turn in turns.items()
            if turn.answer_ids and turn.finish_reason and not self.rows[slot].closing
        ]
        for slot, state in _halves(states, [newest[slot] for slot in ended], ended):
            turns[slot].states |= {LAST: state, SECOND_LAST: state}
        longer = [slot for slot in ended if len(turns[slot].answer_ids) > 1]
        left = [slot for slot in longer if newest[slot] > last_known[slot]]
        for slot, state in _halves(states, [newest[slot] - 1 for slot in left], left):
            turns[slot].states[SECOND_LAST] = state
        earlier = [slot for slot in longer if newest[slot] == last_known[slot]]
        for slot, state in _halves(self.newest, earlier, earlier):
            turns[slot].states[SECOND_LAST] = state
        if not self.newest:
            n_slots = len(self.rows)
            self.newest = [state.new_zeros(n_slots, state.shape[-1]) for state in states]
        slots = torch.tensor(list(newest), dtype=torch.long)
        places = torch.tensor(list(newest.values()), dtype=torch.long)
        for kept, state in zip(self.newest, states, strict=True):
            kept[slots.to(kept.device)] = state[places.to(state.device)]

    def _finish_turn(self, row: Row) -> bool:
        """Close the turn and get the next prompt; False when the dialogue ends."""
        row.turns.append(row.turn)
        self.engine.stats["turns"] += 1
        self.engine.stats["new_tokens"] += len(row.turn.answer_ids)
        return self._ask(row)


def _follows(row: Row | None, other: Row) -> bool:
    """Whether a row is the other, or waits for it, or waits for one that does."""
    while row is not None and row is not other:
        row = row.leader
    return row is other


def _halves(
    states: list[torch.Tensor], places: list[int], slots: list[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Pair each slot with the FP16 states `[L + 1, H]` at its place."""
    if places:
        yield from zip(slots, to_half(states, torch.tensor(places)), strict=True)
