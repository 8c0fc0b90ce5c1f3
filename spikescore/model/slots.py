"""One forward pass over new tokens of many dialogues, packed without padding.

Whoever feeds a model, the engine, which generates, or those that are given the tokens (`reading`,
`prompt_ends`), does so through `SlotModel`: tokens and slots in, logits and states of chosen tokens
out. Its key/value cache has one slot per dialogue, written in place and kept from turn to turn.

Slot b holds the tokens of one dialogue at indices 0 .. n_b - 1, so a token's index is its position
and there are no holes. Forgetting a rewritten tail is setting n_b lower: what lies beyond is
overwritten before it can be attended.

With LongRoPE a token's state depends on how long the sequence is that it ends: up to a length all
positions are turned in one way, beyond it in another. A slot holds keys of one of the two ways, and
is filled anew when its dialogue grows beyond that length (`SlotModel.reusable`).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from spikescore.errors import UserError
from spikescore.model.architecture import (
    cache_bytes_per_token,
    decoder_of,
    rotation_switch,
    size_of,
)
from spikescore.model.attention import (
    Part,
    attending,
    mask_argument,
    packed_attention,
    plan_attention,
)
from spikescore.model.hidden_states import StateTap
from spikescore.model.memory import GROWTH, PASS_TOKENS, free_memory


class SlotCache(Cache):
    """Keys and values of all layers, `[slots, kv_heads, capacity, head_dim]` each, grown in place.

    Before a forward pass over packed tokens `aim` says whose they are and where they go; during it
    every attention layer calls `update`.
    """

    def __init__(self, slots: int, n_layers: int, bytes_per_token: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self._bytes_per_token = bytes_per_token
        self.capacity = 0
        self.late = [False] * slots  # whose keys are turned as beyond the model's switch
        self._keys: list[torch.Tensor | None] = [None] * n_layers
        self._values: list[torch.Tensor | None] = [None] * n_layers
        self._of = self._at = torch.empty(0, dtype=torch.long)

    def reserve(self, tokens: int, device: torch.device) -> None:
        """Make room for `tokens` tokens in every slot, layer by layer: the peak is one more.

        torch.OutOfMemoryError where the machine would have to swap for it, as on a GPU.
        """
        if tokens <= self.capacity:
            return
        capacity = max(tokens, self.capacity + self.capacity // 8)
        capacity = -(-capacity // GROWTH) * GROWTH
        if device.type == "cpu":
            more = self.slots * self._bytes_per_token * (capacity - self.capacity)
            if more > (free := free_memory(device)):
                raise torch.OutOfMemoryError(
                    f"the cache needs {more / 1e9:.1f} GB more of memory, {free / 1e9:.1f} are free"
                )
        self.capacity = capacity
        for kept in (self._keys, self._values):
            for layer, old in enumerate(kept):
                if old is not None:
                    kept[layer] = self._allocate(old)
                    kept[layer][:, :, : old.shape[2]].copy_(old)

    def _allocate(self, like: torch.Tensor) -> torch.Tensor:
        # zeros: what a mask hides is still multiplied by 0, and 0 * garbage could be NaN
        shape = (self.slots, like.shape[1], self.capacity, like.shape[3])
        if like.device.type != "cpu":
            return like.new_zeros(shape)
        # pages of its own, which the system takes back when the cache grows or shrinks; malloc
        # may keep them
        pages = mmap.mmap(-1, math.prod(shape) * like.dtype.itemsize)
        return torch.frombuffer(pages, dtype=like.dtype).view(shape)

    def aim(self, *, slots: torch.Tensor, positions: torch.Tensor) -> None:
        """Prepare one forward pass: the slot and the position of each packed token, `[tokens]`."""
        self._of, self._at = slots, positions

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values `[1, kv_heads, tokens, head_dim]`; return all slots'."""
        return (
            self._store(self._keys, key_states, layer_idx),
            self._store(self._values, value_states, layer_idx),
        )

    def _store(
        self, kept: list[torch.Tensor | None], new: torch.Tensor, layer: int
    ) -> torch.Tensor:
        if kept[layer] is None:
            kept[layer] = self._allocate(new)
        whole = kept[layer]
        # indices on both sides of the head axis put it second: [tokens, kv_heads, head_dim]
        whole[self._of.to(whole.device), :, self._at.to(whole.device)] = new[0].transpose(0, 1)
        return whole

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give one slot the first keys and values of another."""
        self.late[target] = self.late[source]
        if source != target:
            for whole in (*self._keys, *self._values):
                whole[target, :, :tokens] = whole[source, :, :tokens]

    def keep(self, slots: list[int]) -> None:
        """Shrink to these slots, in this order."""
        self.slots = len(slots)
        self.late = [self.late[slot] for slot in slots]
        for kept in (self._keys, self._values):
            for layer, old in enumerate(kept):
                if old is not None:
                    kept[layer] = self._allocate(old)
                    for place, slot in enumerate(slots):
                        kept[layer][place].copy_(old[slot])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Of no meaning with slots of different lengths; positions are always passed explicitly."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.capacity, 0


class SlotModel:
    """A model with a key/value cache of one slot per dialogue."""

    def __init__(self, model: PreTrainedModel, slots: int) -> None:
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        n_layers = size_of(model.config, "num_hidden_layers")
        self.cache = SlotCache(slots, n_layers, cache_bytes_per_token(model))
        self.room = PASS_TOKENS[self.device.type]
        self.switch = rotation_switch(model.config)
        self._kind = mask_argument(model)

    def reusable(self, slot: int, cached: int, length: int) -> int:
        """How many of a slot's `cached` tokens serve a sequence of `length` tokens: all, or none.

        To be asked before tokens of such a sequence are fed. No part may begin at or before the
        switch and end beyond it, unless it is part of a sequence beyond it.
        """
        late = self.switch is not None and length > self.switch
        if cached and self.cache.late[slot] != late:
            cached = 0
        self.cache.late[slot] = late
        return cached

    def most_more(self, length: int) -> int:
        """How many more tokens may be fed with the last ones of a sequence of `length` tokens."""
        return self.switch - length if self.switch and length <= self.switch else length

    def feed(
        self, parts: Sequence[Part], *, states_of: Sequence[int], logits_of: Sequence[int]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode the parts, at most about `room` tokens, and keep their keys and values.

        `states_of` and `logits_of` count tokens through the parts in order. Returns logits
        `[logits_of, vocabulary]` in the model's type, and L + 1 states `[states_of, H]`.
        """
        self.cache.reserve(max(part.end for part in parts), self.device)
        ids = self._tensor([token for part in parts for token in part.ids])
        at = self._tensor([place for part in parts for place in range(part.first, part.end)])
        self.cache.aim(
            slots=self._tensor([part.slot for part in parts for _ in part.ids]), positions=at
        )
        late = [self.cache.late[part.slot] for part in parts for _ in part.ids]
        with (
            packed_attention(self.model),
            self._turned(torch.tensor(late)),
            attending(plan_attention(self.model, parts, self.cache.capacity)),
            StateTap(self.model, states_of) as tap,
        ):
            output = self.model(
                input_ids=ids[None],
                position_ids=at[None],
                attention_mask=self._kind,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=self._tensor(logits_of),
            )
        return output.logits[0], tap.states

    @contextmanager
    def _turned(self, late: torch.Tensor) -> Iterator[None]:
        """Have each token of the pass, `[tokens]`, turned as its slot's sequence asks.

        transformers would turn all as the pass's furthest position asks.
        """
        rotations = []
        if self.switch is not None:
            modules = decoder_of(self.model).modules()
            rotations = [one for one in modules if type(one).__name__.endswith("RotaryEmbedding")]

        def both_ways(rotation: torch.nn.Module):
            def forward(x: torch.Tensor, position_ids: torch.Tensor, *args, **kwargs):
                whole = type(rotation).forward
                last = position_ids.new_full((1, 1), self.switch)  # asks for the late way
                after = whole(rotation, x, torch.cat([position_ids, last], dim=1), *args, **kwargs)
                early = position_ids.clamp(max=self.switch - 1)
                before = whole(rotation, x, early, *args, **kwargs)
                chosen = late.to(x.device)[None, :, None]
                return tuple(
                    torch.where(chosen, one[:, :-1], two)
                    for one, two in zip(after, before, strict=True)
                )

            return forward

        try:
            for rotation in rotations:
                rotation.forward = both_ways(rotation)
            yield
        finally:
            for rotation in rotations:
                del rotation.forward

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


@torch.inference_mode()
def require_packable(model: PreTrainedModel) -> None:
    """Hold two short dialogues, packed and in two parts, against plain passes over their ids.

    UserError where that fails or the states differ: so a model that needs more than to know whose
    tokens they are and where they stand is refused, and never read wrongly.
    """
    vocabulary = size_of(model.config, "vocab_size")
    dialogues = [[(7 * n + seed) % vocabulary for n in range(12)] for seed in (3, 5)]
    try:
        passes = SlotModel(model, slots=2)
        for start, stop in ((0, 5), (5, 12)):
            parts = [Part(slot, ids[start:stop], start) for slot, ids in enumerate(dialogues)]
            last = [stop - start - 1, 2 * (stop - start) - 1]
            _, packed = passes.feed(parts, states_of=last, logits_of=last)
        if len({state.shape[-1] for state in packed}) > 1:
            raise ValueError("its layers' states differ in width")
        for slot, ids in enumerate(dialogues):
            plain = decoder_of(model)(
                input_ids=passes._tensor([ids]), use_cache=False, output_hidden_states=True
            ).hidden_states
            apart = [
                float((one[slot] - two[0, -1]).float().norm() / two[0, -1].float().norm())
                for one, two in zip(packed, plain, strict=True)
            ]
            # half types round, and may send a token to another expert
            if sum(apart) / len(apart) > (1e-3 if model.dtype == torch.float32 else 0.1):
                raise ValueError("its states are not those of a plain pass")
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever an unknown architecture does
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f'models of type "{model.config.model_type}" ({type(model).__name__}) cannot be run '
            f"here ({said}); use a decoder-only model such as Llama, Qwen, Mistral or Gemma"
        ) from error
