"""The dialogue engine: token ids in, token ids and the states at three positions out.

Many dialogues advance together, one slot each. A slot keeps its keys and values from turn to turn,
so only what is new is encoded; what counts as new is decided by the longest common prefix of token
ids, so a chat template that rewrites earlier turns is handled by encoding the rewritten tail
again. A new dialogue copies what another slot already holds of its first prompt, and waits where
another is just encoding it: samples of one prompt come from one encoding. When a dialogue ends its
slot takes the next one, so a long dialogue does not hold the others back.

Each pass feeds every dialogue what is new, its next prompt or its newest token, and a few guesses
of what follows, looked up in what was said before. A guess counts when it is the
token that sampling draws there, so a pass gives a dialogue one token or more, and the same ones as
without guesses.

Sampling depends on (seed, item, turn) only, so on CPU in float32 tokens are the same whatever runs
beside a dialogue; what is measured of them differs by rounding.

Read `Engine.run`, then `_advance`: a pass and what becomes of it.
"""

from __future__ import annotations

import logging
import math
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.errors import UserError
from spikescore.model.attention import Part
from spikescore.model.hidden_states import beyond_half, rows_of, to_half
from spikescore.model.memory import DRAFT_TOKENS
from spikescore.model.sampling import (
    GREEDY,
    DraftTable,
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
    Stopwatch,
    Turn,
    common_prefix,
)
from spikescore.pairs import TOKEN_KEYS

log = logging.getLogger("spikescore")

GIVEN_TOKENS = 256  # of given answers, of all dialogues, that a pass reads ahead; bounds its logits
TRIAL_TOKENS = 5  # of the answer of a throw-away dialogue that is timed
SHARED_TOKENS = 16  # a common beginning of fewer is encoded again rather than waited for


@dataclass(eq=False)
class Row:
    """A dialogue in a slot, and the turn it is at."""

    conversation: Conversation
    sampling: Sampling
    turns: list[Turn]
    turn: Turn | None = None
    ids: array = field(default_factory=lambda: array("i"))  # prompt and answer so far
    cached: int = 0  # how many of them have keys and values in the slot
    uniforms: np.ndarray | None = None
    budget: int = 0  # most tokens of the answer
    given: list[int] | None = None  # the answer, where it is read and not drawn
    reach: int = 2  # most guesses of its next pass
    closing: bool = False  # a limit cut the answer; its last token is fed once more for its state
    leader: Row | None = None  # is encoding the beginning that this row waits for
    shared: int = 0  # how many tokens that is

    def follows(self, other: Row) -> bool:
        """Whether this is the other row, or waits for it, or for one that does."""
        return self is other or (self.leader is not None and self.leader.follows(other))


@dataclass
class Fed:
    """What a pass fed to a row. Token `first` of the pass is the last known one, of the prompt or
    of the answer; the guesses come after it.
    """

    row: Row
    first: int
    guesses: list[int]
    draws: int  # tokens that may be drawn: after the last known one and after guesses
    tokens: list[int] = field(default_factory=list)  # drawn: as far as guesses were right, and on
    measured: list[list[float]] = field(default_factory=list)
    confirmed: int = 0  # guesses that belong to the answer now


class Engine:
    """Runs conversations on one model, one run at a time; `stats` counts what was done so far."""

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
        self.stop_ids = frozenset(stop_ids)
        self.sampling = sampling  # of conversations that bring none
        self.limits = limits
        self.batch_size = batch_size
        usual = DRAFT_TOKENS[model.get_input_embeddings().weight.device.type]
        self.draft_tokens = usual if draft_tokens is None else draft_tokens
        # advances: how often a pass took a dialogue further, by one token or more
        counted = "turns", "new_tokens", "encoded_tokens", "reused_tokens", "passes", "advances"
        self.stats = dict.fromkeys(counted, 0)

    def seconds_per_turn(self, *, held: int = 0, prompt: int = 8, answer: int = 1) -> float:
        """Time throw-away dialogues: a dialogue's seconds for a turn whose prompt has so many new
        tokens, and its answer, after `held` tokens of earlier turns; takes about two seconds.

        Batches of growing size are timed, two of them at least, and where that takes too long to
        come to the whole batch, the line through the last two gives its time. Where processes must
        stay in step (no time limit of ours then), it is the whole batch at once. Nothing is
        guessed in them, so real dialogues may be faster.
        """
        size = 1 if self.limits.item_seconds is not None else self.batch_size
        started, before = time.monotonic(), None
        while True:
            # the difference leaves out what reading the prompts takes
            short, long = (self._time_trial(size, held, prompt, n) for n in (1, TRIAL_TOKENS))
            step = (long - short if long > short else long) / (TRIAL_TOKENS - 1)
            seconds = short + (answer - 1) * step
            if before and time.monotonic() - started > 2.0:
                more = (seconds - before[1]) / (size - before[0]) * (self.batch_size - size)
                return (seconds + max(0.0, more)) / self.batch_size
            if size == self.batch_size:
                return seconds / size
            before, size = (size, seconds), min(8 * size, self.batch_size)

    def _time_trial(self, size: int, held: int, prompt: int, n_tokens: int) -> float:
        """Return the seconds that so many dialogues of one answer of so many tokens take."""
        trial = Engine(
            self.model,
            stop_ids=(),
            sampling=GREEDY,
            limits=Limits(n_tokens, held + prompt + n_tokens, None),
            batch_size=size,
            draft_tokens=0,  # a trial about nothing would be guessed too well
        )
        trials = (_Trial(number, held, prompt) for number in range(size))
        started = time.monotonic()
        for _ in trial.run(trials):
            pass
        return time.monotonic() - started

    def run(self, conversations: Iterable[Conversation]) -> Iterator[Finished]:
        """Run all conversations, at most `batch_size` at a time; yield each when it ends, in any
        order.

        A conversation that fails is yielded with its error and the others go on. On out-of-memory
        the batch is halved and the turns in flight are done again; with a batch of one it is an
        error.
        """
        self._waiting = iter(conversations)
        self._unfinished: deque[Row] = deque()
        self._drafts = DraftTable(self.stop_ids)
        self._done: deque[Finished] = deque()
        self._make_slots()
        while True:
            try:
                self._fill_slots()
                while self._done:
                    yield self._done.popleft()
                if any(self._rows):
                    self._advance()
                elif not self._done:
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
                self._unfinished.extendleft(reversed([row for row in self._rows if row]))
                self._make_slots()
            else:
                continue
            torch.cuda.empty_cache()  # out of the handler, which keeps the tensors of the pass

    def _make_slots(self) -> None:
        """Make empty slots; what was in them is begun anew, each at the turn that it is at."""
        self._slots = SlotModel(self.model, self.batch_size)
        self._rows: list[Row | None] = [None] * self.batch_size
        # ids whose keys and values a slot still holds after its dialogue
        self._left: list[array] = [array("i")] * self.batch_size
        # L + 1 tensors [slots, H]: the state of each answer's newest token that was fed
        self._newest: list[torch.Tensor] = []
        for row in self._unfinished:
            row.cached = 0
            self._begin(row, row.turn.prompt)

    # --- dialogues come and go ------------------------------------------------------------------

    def _fill_slots(self) -> None:
        """Give free slots to the next dialogues; without any, drop slots that only cost time."""
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        new = list(islice(iter(self._next_row, None), len(free)))
        # neighbours of about the same length read about as many keys
        new.sort(key=lambda row: len(row.ids))
        for slot, row in zip(free, new, strict=False):
            self._share(slot, row)
            self._rows[slot], self._left[slot] = row, array("i")
        busy = [slot for slot, row in enumerate(self._rows) if row]
        if len(new) < len(free) and busy and len(busy) * 2 <= len(self._rows):
            self._slots.cache.keep(busy)
            self._rows = [self._rows[slot] for slot in busy]
            self._left = [self._left[slot] for slot in busy]
            self._newest = rows_of(self._newest, torch.tensor(busy))

    def _next_row(self) -> Row | None:
        if self._unfinished:
            return self._unfinished.popleft()
        for conversation in self._waiting:
            sampling = getattr(conversation, "sampling", None) or self.sampling
            row = Row(conversation, sampling, list(getattr(conversation, "turns", ())))
            if isinstance(conversation, _Trial):
                row.ids, row.cached = array("i", conversation.ids), conversation.held
            if self._ask(row):
                return row
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
        row.given = None if row.turns else getattr(row.conversation, "given", None)
        first = f"the first prompt has {len(prompt)} tokens"
        if row.given:
            first += f" and the given answer {len(row.given)}"
        if len(prompt) + len(row.given or [0]) > self.limits.max_context:
            return self._end_by_context(row, first)
        self._begin(row, prompt)
        return True

    def _end_by_context(self, row: Row, first: str) -> bool:
        """End a dialogue whose next turn does not fit: what it has is kept, if it has something."""
        if row.turns:
            return self._end(row, "context")
        return self._end(row, "error", f"{first}; the context allows {self.limits.max_context}")

    def _begin(self, row: Row, prompt: Sequence[int]) -> None:
        """Set the row to the start of its next turn, keeping what the cache holds of its prompt."""
        limits = self.limits
        turn = row.turn = Turn(len(row.turns) + 1, prompt)
        held = min(common_prefix(row.ids[: row.cached], turn.prompt), len(prompt) - 1)
        row.ids, row.cached, row.closing = turn.prompt[:], held, False
        row.budget = min(limits.max_new_tokens, limits.max_context - len(prompt))
        if row.given:
            row.budget = len(row.given)
        row.uniforms = turn_uniforms(
            row.sampling, row.conversation.item_id, turn.number, row.budget
        )
        self._learn(row, row.cached)
        self.stats["encoded_tokens"] += len(prompt) - row.cached
        self.stats["reused_tokens"] += row.cached

    def _learn(self, row: Row, start: int) -> None:
        """Note what the row said from a token on, where guesses are made of it."""
        if self.draft_tokens:
            self._drafts.learn(row.ids, start)

    def _end(self, row: Row, reason: str, error: str | None = None) -> bool:
        self._done.append(Finished(row.conversation, row.turns, reason, error))
        return False

    @torch.inference_mode()
    def _share(self, slot: int, row: Row) -> None:
        """Give an empty row what a slot holds of its prompt, or have it wait for more of it."""
        most = row.ids[:-1]  # the last token is fed in any case, for its logits
        held, source = 0, slot
        row.leader, row.shared = None, 0
        if len(most) < SHARED_TOKENS:
            return
        for other, there in enumerate(self._rows):
            known = there.ids if there else self._left[other]
            if known[:SHARED_TOKENS] != most[:SHARED_TOKENS]:
                continue
            shared = common_prefix(known, most)
            now = min(shared, there.cached) if there else shared
            if now > held:
                held, source = now, other
            if there and shared > max(row.shared, there.cached) and not there.follows(row):
                row.leader, row.shared = there, shared
        if row.leader and row.shared - held < SHARED_TOKENS:
            row.leader = None
        if held and not row.leader:
            self._slots.cache.copy(source, slot, held)
            row.cached = held
            self.stats["reused_tokens"] += held
            self.stats["encoded_tokens"] -= held

    def _waits(self, slot: int, row: Row) -> bool:
        """Whether the row's leader is still encoding what both begin with."""
        if row.leader is None:
            return False
        if row.leader in self._rows and row.leader.cached < row.shared:
            return True
        self._share(slot, row)
        return row.leader is not None

    # --- one pass -------------------------------------------------------------------------------

    @torch.inference_mode()
    def _advance(self) -> None:
        """Feed every row what is new and guesses of what follows, and draw the tokens after it."""
        clock = Stopwatch(self._slots.device)
        parts, fed = self._next_parts()
        logits, states = self._slots.feed(
            parts,
            states_of=[one.first + n for one in fed.values() for n in range(1 + len(one.guesses))],
            logits_of=[one.first + n for one in fed.values() for n in range(one.draws)],
        )
        self.stats["passes"] += 1
        self.stats["advances"] += len(fed)
        self._draw(fed, logits)
        share = clock.seconds() / sum(len(part.ids) for part in parts)
        for part in parts:
            if row := self._rows[part.slot]:
                row.turn.seconds += share * len(part.ids)
        for slot, one in fed.items():
            if self._rows[slot]:
                one.row.closing = one.row.closing and one.draws > 0
                self._take(one)
                one.row.cached += one.confirmed
        self._keep_states(fed, states)
        for slot, one in fed.items():
            row = one.row
            if self._rows[slot] and row.turn.finish_reason and not row.closing:
                ids = row.ids[: row.cached]
                if not self._finish_turn(row):
                    self._rows[slot], self._left[slot] = None, ids

    def _finish_turn(self, row: Row) -> bool:
        """Keep the turn and get the next prompt; False when the dialogue ends."""
        turn = row.turn
        self.stats["turns"] += 1
        self.stats["new_tokens"] += len(turn.answer_ids)
        if turn.finish_reason == "length" and len(turn.answer_ids) < self.limits.max_new_tokens:
            # a stump: the context left less room than an answer may have
            first = f"the first prompt and answer have {len(row.ids)} tokens and no end yet"
            return self._end_by_context(row, first)
        row.turns.append(turn)
        return self._ask(row)

    def _next_parts(self) -> tuple[list[Part], dict[int, Fed]]:
        """What the next pass encodes, and by slot what it feeds up to the last known token."""
        parts: list[Part] = []
        fed: dict[int, Fed] = {}
        waiting = {slot for slot, row in enumerate(self._rows) if row and self._waits(slot, row)}
        room, total = self._slots.room, 0
        given_room = GIVEN_TOKENS
        for slot, row in enumerate(self._rows):
            if row is None or slot in waiting:
                continue
            answered, length = len(row.turn.answer_ids), len(row.ids)
            row.cached = self._slots.reusable(slot, row.cached, length)
            new = row.ids[row.cached :]
            if not answered or len(new) > 1:
                new = new[:room]  # the rest waits for the next pass
                room -= len(new)
            if not new:
                continue
            part = Part(slot, new.tolist(), row.cached)
            row.cached += len(new)
            if row.cached == len(row.ids):
                draws = 0 if row.closing else row.budget - answered
                most = self._slots.most_more(length)
                if row.given:
                    guesses = row.given[answered : answered + min(given_room, draws, most)]
                    given_room -= len(guesses)
                else:
                    reach = min(row.reach, self.draft_tokens, draws, most)
                    guesses = self._drafts.guess(row.ids, reach)
                first = total + len(new) - 1
                fed[slot] = Fed(row, first, guesses, min(draws, 1 + len(guesses)))
                part.ids.extend(guesses)
            parts.append(part)
            total += len(part.ids)
        return parts, fed

    def _draw(self, fed: dict[int, Fed], logits: torch.Tensor) -> None:
        """Draw a token after each row's last known one, and on while its guesses are right, and
        measure them; a row whose logits are no numbers ends with an error.

        logits: `[draws of all rows, vocabulary]`.
        """
        if not len(logits):
            return
        logits = logits.float()
        uniforms, contexts = [], []
        by_sampling: dict[int, tuple[Sampling, list[int]]] = {}
        given: dict[int, list[int]] = {}  # place of the first draw -> tokens that need no drawing
        for one in fed.values():
            row, answered = one.row, len(one.row.turn.answer_ids)
            if row.given:
                given[len(uniforms)] = row.given[answered : answered + one.draws]
            else:
                _, places = by_sampling.setdefault(id(row.sampling), (row.sampling, []))
                places.extend(range(len(uniforms), len(uniforms) + one.draws))
            uniforms.extend(row.uniforms[answered : answered + one.draws])
            for n in range(one.draws):
                known = row.sampling.processors and row.ids + array("i", one.guesses[:n])
                contexts.append(known)
        draws = torch.tensor(np.array(uniforms), device=logits.device)
        chosen = torch.empty(len(uniforms), dtype=torch.long, device=logits.device)
        for sampling, places in by_sampling.values():
            index = torch.tensor(places, dtype=torch.long, device=logits.device)
            # a processor may write into what it gets
            whole = len(places) == len(logits) and not sampling.processors
            rows = logits if whole else logits[index]
            adjusted = processed(rows, [contexts[at] for at in places], sampling)
            chosen[index] = choose_tokens(adjusted, draws[index], sampling)
        for place, ids in given.items():
            chosen[place : place + len(ids)] = torch.tensor(ids, device=logits.device)
        tokens, first, kept = chosen.tolist(), 0, []
        for one in fed.values():
            n = min(1, one.draws)
            while n < one.draws and tokens[first + n - 1] == one.guesses[n - 1]:
                n += 1
            one.tokens = tokens[first : first + n]
            if one.guesses and n:  # twice as far where all were right, else as far as they were
                one.row.reach = n if n < one.draws else 2 * len(one.guesses)
            kept.extend(range(first, first + n))
            first += one.draws
        index = torch.tensor(kept, device=logits.device)
        measured = iter(measure_tokens(logits[index], chosen[index]).tolist())
        for slot, one in fed.items():
            one.measured = list(islice(measured, len(one.tokens)))
            if not all(math.isfinite(logprob) for logprob, _, _ in one.measured):
                self._rows[slot] = None
                text = f"turn {one.row.turn.number}: the model's output is not a number"
                self._end(one.row, "error", text)

    def _take(self, one: Fed) -> None:
        """Append what was drawn to the row's answer, and see whether it ends."""
        row, turn = one.row, one.row.turn
        known = len(row.ids)
        for token, (logprob, entropy, top) in zip(one.tokens, one.measured, strict=True):
            if not turn.answer_ids:
                turn.first_token_confidence = math.exp(top)
            if token in self.stop_ids and not row.given:
                turn.finish_reason = "stop"
                break
            turn.answer_ids.append(token)
            turn.logprobs.append(logprob)
            turn.entropies.append(entropy)
            row.ids.append(token)
        self._learn(row, known)
        n_new = one.confirmed = len(row.ids) - known
        if turn.finish_reason or not one.draws:
            return
        # a given answer is known, and never cut
        seconds = None if row.given else self.limits.item_seconds
        if len(turn.answer_ids) == row.budget:
            turn.finish_reason = "stop" if row.given else "length"
        elif seconds is not None and sum(one.seconds for one in (*row.turns, turn)) > seconds:
            turn.finish_reason, turn.ends_dialogue = "timeout", True
        # unless it was guessed, the last token has not been fed
        unfed = one.guesses[n_new - 1 : n_new] != one.tokens[-1:]
        row.closing = bool(turn.finish_reason) and unfed
        one.confirmed -= row.closing or not turn.finish_reason

    def _keep_states(self, fed: dict[int, Fed], states: list[torch.Tensor]) -> None:
        """Keep what each turn's three states need of a pass's states `[tokens, H]`: those of each
        row's last known token and of its guesses, in order.
        """
        n_slots = len(self._rows)
        if not self._newest:
            self._newest = [state.new_zeros(n_slots, state.shape[-1]) for state in states]
        both = [torch.cat(pair) for pair in zip(self._newest, states, strict=True)]
        wanted: list[tuple[int, Sequence[str], int]] = []  # slot, keys, and place in both
        newest, at = list(range(n_slots)), n_slots
        for slot, one in fed.items():
            if row := self._rows[slot]:
                turn, place = row.turn, at + one.confirmed
                if not turn.states:  # all there is, should the answer be empty
                    wanted.append((slot, TOKEN_KEYS, at))
                if turn.finish_reason and turn.answer_ids and not row.closing:
                    wanted.append((slot, (LAST, SECOND_LAST), place))
                    if len(turn.answer_ids) > 1:
                        wanted.append((slot, (SECOND_LAST,), place - 1 if place > at else slot))
                newest[slot] = place
            at += 1 + len(one.guesses)
        if wanted:
            halves = to_half(both, torch.tensor([place for _, _, place in wanted]))
            for (slot, keys, _), state in zip(wanted, halves, strict=True):
                if row := self._rows[slot]:
                    row.turn.states |= dict.fromkeys(keys, state)
                    if problem := beyond_half(state):
                        self._rows[slot] = None
                        self._end(row, "error", f"turn {row.turn.number}: {problem}")
        self._newest = rows_of(both, torch.tensor(newest))


class _Trial:
    """One turn about nothing; its first `held` tokens count as encoded, their keys as zeros."""

    def __init__(self, number: int, held: int, prompt: int) -> None:
        self.item_id = f"trial {number}"
        self.held = held
        # no two begin alike, or one would be copied from the other: lowest digits first
        digits = f"{number:b}"[::-1].ljust(held + prompt, "0")
        self.ids = [int(digit) for digit in digits[: held + prompt]]

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        return self.ids if last is None else None
