"""What a model makes of the last token of many prompts: logits of the next token, and states.

Prompts come in groups that begin alike. A group is read in one slot of the cache, prompt by prompt,
and only what differs from the prompt before is encoded; many groups are read side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from spikescore.model.attention import Part
from spikescore.model.slots import SlotModel
from spikescore.model.turns import Spent, Stopwatch, common_prefix


@dataclass
class End:
    """The end of prompt `number` of a group: logits `[vocabulary]`, and L + 1 states `[H]`."""

    group: int
    number: int
    logits: torch.Tensor
    states: list[torch.Tensor]


@dataclass
class _Line:
    """A group in its slot: the prompt that is being read, and how much of it the cache holds."""

    group: int
    prompts: Sequence[Sequence[int]]
    number: int = 0
    cached: int = 0


def read_ends(
    model: PreTrainedModel,
    groups: Iterable[Sequence[Sequence[int]]],
    *,
    slots: int,
    spent: Sequence[Spent] = (),
) -> Iterator[End]:
    """Yield the end of every prompt of every group, in any order of groups.

    No prompt may be empty, nor longer than the model's context. Logits are raw, in the model's
    type. `spent`, one of each group, grow by what reading it took.
    """
    reader = _Reader(model, slots, spent)
    waiting = ((number, group) for number, group in enumerate(groups) if group)
    while reader.fill(waiting):
        yield from reader.advance()


class _Reader:
    def __init__(self, model: PreTrainedModel, slots: int, spent: Sequence[Spent]) -> None:
        self._passes = SlotModel(model, slots)
        self._spent = spent
        self._lines: list[_Line | None] = [None] * slots
        # ids whose keys and values a slot holds, also after its group
        self._held: list[list[int]] = [[] for _ in range(slots)]

    def fill(self, waiting: Iterator[tuple[int, Sequence[Sequence[int]]]]) -> bool:
        """Give free slots to the next groups; False when nothing is left to read."""
        for slot, line in enumerate(self._lines):
            if line is None and (following := next(waiting, None)):
                self._lines[slot] = line = _Line(*following)
                if self._spent:
                    self._spent[line.group].asked(line.prompts)
                self._begin(slot)
        return any(self._lines)

    def _begin(self, slot: int) -> None:
        line = self._lines[slot]
        ids = line.prompts[line.number]
        # the last token is fed in any case, for its logits
        line.cached = min(common_prefix(self._held[slot], ids), len(ids) - 1)

    @torch.inference_mode()
    def advance(self) -> list[End]:
        """Encode what is next of every group; return the ends that were reached."""
        clock = Stopwatch(self._passes.device)
        parts, ended, at = [], [], []
        total = 0
        for slot, line in enumerate(self._lines):
            if line is None or total == self._passes.room:
                continue
            ids = list(line.prompts[line.number])
            line.cached = self._passes.reusable(slot, line.cached, len(ids))
            part = ids[line.cached : line.cached + self._passes.room - total]
            parts.append(Part(slot, part, line.cached))
            total += len(part)
            line.cached += len(part)
            self._held[slot] = ids[: line.cached]
            if line.cached == len(ids):
                ended.append(slot)
                at.append(total - 1)
        logits, states = self._passes.feed(parts, states_of=at, logits_of=at)
        if self._spent:
            if logits.is_cuda:
                torch.cuda.synchronize(logits.device)  # the pass, not its launch
            share = clock.seconds() / total
            for part in parts:
                self._spent[self._lines[part.slot].group].seconds += share * len(part.ids)
        return [
            self._end(slot, logits[place], [state[place] for state in states])
            for place, slot in enumerate(ended)
        ]

    def _end(self, slot: int, logits: torch.Tensor, states: list[torch.Tensor]) -> End:
        line = self._lines[slot]
        end = End(line.group, line.number, logits, states)
        line.number += 1
        if line.number == len(line.prompts):
            self._lines[slot] = None
        else:
            self._begin(slot)
        return end
