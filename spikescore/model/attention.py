"""Attention for a pass in which new tokens of many dialogues lie packed, one after another.

All that is done per token runs on the packed tokens as they are; only attention needs to know whose
they are. `plan_attention` cuts a pass into spans: a span is a rectangle of query tokens `[slots,
width]` over neighbouring slots of the key/value cache, which are read where they lie. Neighbours
share a span where filling up the rectangle costs less than another call of the kernel: on a CPU,
whose kernels take their time for every key, mostly those of about the same length and width.

With grouped-query attention, transformers repeats keys and values for every query head of a group;
here the heads of a group become further query rows of their key/value head, which gives the same
numbers without the copies.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import sdpa_mask

from spikescore.errors import UserError
from spikescore.model.architecture import head_size, key_value_heads, text_config

PACKED = "packed"
KEYS = {"cpu": 16, "cuda": 64}  # a view holds whole blocks of so many keys, as kernels like it
SPAN_COST = {"cpu": 2**16, "cuda": 2**25}  # numbers of keys that are read while a call is set up
ROW_COST = 0.1  # what a row of queries adds to the time of reading a key


@dataclass(frozen=True)
class Part:
    """New tokens of one dialogue: its slot, their ids, and the position of the first."""

    slot: int
    ids: Sequence[int]
    first: int

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.first + len(self.ids)


@dataclass
class Span:
    """Query tokens of the slots `start .. stop - 1`, `[slots, width]`, and what they look at.

    queries: which packed tokens they are, `[slots * width]`, padding included. The results at
    `sources` of them belong to the packed tokens `targets`.
    masks: additive, `[slots, 1, rows, view]`, one for each kind of layer.
    """

    start: int
    stop: int
    view: int
    queries: torch.Tensor | slice
    sources: torch.Tensor | slice
    targets: torch.Tensor | slice
    masks: list[torch.Tensor]

    def to(self, device: torch.device) -> Span:
        """The same span on a device, itself when it is there."""
        if self.masks[0].device == device:
            return self
        moved = {
            name: value.to(device)
            for name in ("queries", "sources", "targets")
            if isinstance(value := getattr(self, name), torch.Tensor)
        }
        return replace(self, masks=[mask.to(device) for mask in self.masks], **moved)


_running: ContextVar[list[Span]] = ContextVar("spans of the pass that is running")


@contextmanager
def attending(spans: list[Span]) -> Iterator[None]:
    """Have the packed attention of the models that run inside use these spans."""
    token = _running.set(spans)
    try:
        yield
    finally:
        _running.reset(token)


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use packed attention inside, by the model's own implementation ("sdpa" or "eager")."""
    before = model.config._attn_implementation
    if before not in ("sdpa", "eager"):
        raise UserError(
            f'attn_implementation "{before}" cannot run packed dialogues; use "sdpa" (the fastest '
            'attention of this machine through torch) or "eager"'
        )
    name = f"{PACKED}_{before}"
    AttentionInterface.register(name, _packed_sdpa if before == "sdpa" else _packed_eager)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def kinds_of_layers(config: PreTrainedConfig) -> dict[str, int | None]:
    """Return {attention type: sliding window or None}, sorted; UserError for any other state."""
    config = text_config(config)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    types = getattr(config, "layer_types", None)
    if types is None:
        types = ["sliding_attention" if window else "full_attention"]
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise UserError(
            f"this engine cannot run layers of type {', '.join(sorted(unknown))} "
            f"({config.model_type}); "
            "use a model with full or sliding-window attention"
        )
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(types))}


def mask_argument(model: PreTrainedModel) -> torch.Tensor | dict[str, torch.Tensor]:
    """What to hand a model as attention_mask: it tells the packed attention which kind of layer
    runs, by its last dimension (1 + place in `kinds_of_layers`).

    transformers passes on a mask of four dimensions, or a dict of such by kind, as it is.
    """
    kinds = kinds_of_layers(model.config)
    device = model.get_input_embeddings().weight.device
    tags = {kind: torch.zeros(1, 1, 1, 1 + n, device=device) for n, kind in enumerate(kinds)}
    return tags if len(tags) > 1 else next(iter(tags.values()))


# --- planning a pass --------------------------------------------------------------------------


def plan_attention(model: PreTrainedModel, parts: Sequence[Part], capacity: int) -> list[Span]:
    """Cut a pass into spans of neighbouring slots; packed tokens are those of the parts in order.

    A part joins the span of the slot before it where both together cost no more than each by
    itself, by what its call, its keys and its rows of queries take.
    """
    device = model.get_input_embeddings().weight.device.type
    config = text_config(model.config)
    heads = key_value_heads(config)
    per_key = heads * head_size(config)
    groups = config.num_attention_heads // heads

    def cost(slots: int, width: int, end: int) -> float:
        return SPAN_COST[device] + slots * end * per_key * (1 + ROW_COST * groups * width)

    firsts = itertools.accumulate((len(part.ids) for part in parts), initial=0)
    spans: list[list[tuple[Part, int]]] = []
    slots = width = end = 0  # of the last span
    for part, first in sorted(zip(parts, firsts, strict=False), key=lambda one: one[0].slot):
        own = 1, len(part.ids), part.end
        if spans:
            joined = part.slot + 1 - spans[-1][0][0].slot, max(width, own[1]), max(end, own[2])
            if cost(*joined) <= cost(slots, width, end) + cost(*own):
                spans[-1].append((part, first))
                slots, width, end = joined
                continue
        spans.append([(part, first)])
        slots, width, end = own
    return [_span(model, group, capacity) for group in spans]


def _span(model: PreTrainedModel, group: list[tuple[Part, int]], capacity: int) -> Span:
    device = model.get_input_embeddings().weight.device
    config = text_config(model.config)
    groups = 1
    if model.config._attn_implementation == f"{PACKED}_sdpa":
        groups = config.num_attention_heads // key_value_heads(config)
    width = max(len(part.ids) for part, _ in group)
    start = min(part.slot for part, _ in group)
    stop = max(part.slot for part, _ in group) + 1
    keys = KEYS[device.type]
    view = min(-(-max(part.end for part, _ in group) // keys) * keys, capacity)
    queries = np.zeros((stop - start, width), np.int64)
    positions = np.full((stop - start, width), -1)
    for part, first in group:
        row, n = part.slot - start, len(part.ids)
        queries[row, :n] = np.arange(first, first + n)
        positions[row, :n] = np.arange(part.first, part.end)
    query = torch.from_numpy(np.tile(positions.clip(min=0), (1, groups))).to(device)
    masks = [_mask(query, view, window, model.dtype) for window in kinds_of_layers(config).values()]
    if len(group) == 1:  # the tokens as they lie
        first = group[0][1]
        tokens = slice(first, first + width)
        return Span(start, stop, view, tokens, slice(width), tokens, masks)
    queries, real = queries.ravel(), np.flatnonzero(positions >= 0)
    where = (torch.from_numpy(one).to(device) for one in (queries, real, queries[real]))
    return Span(start, stop, view, *where, masks)


def _mask(
    positions: torch.Tensor, view: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """A token at p sees entries p - window < j <= p; padding stands at 0, so that it sees one."""
    entry = torch.arange(view, device=positions.device)
    query = positions[:, None, :, None]
    unseen = entry > query
    if window is not None:
        unseen |= entry <= query - window
    mask = torch.zeros(unseen.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(unseen, torch.finfo(dtype).min)


# --- running it -------------------------------------------------------------------------------


def _packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query `[1, heads, tokens, head_dim]`, keys and values of
    all slots `[slots, kv_heads, capacity, head_dim]`; returns `[1, tokens, heads, head_dim]`.
    """

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor):
        batch, heads, width, head_dim = q.shape
        rows = q.reshape(batch, k.shape[1], -1, head_dim)
        output = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scaling)
        return output.reshape(batch, heads, width, -1).transpose(1, 2)

    return _over_spans(attend, query, key, value, attention_mask), None


def _packed_eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """As `_packed_sdpa`, by the eager attention of the model's own code, soft caps included."""
    eager = sys.modules[type(module).__module__].eager_attention_forward

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor):
        return eager(module, q, k, v, mask, **kwargs)[0]

    return _over_spans(attend, query, key, value, attention_mask), None


def _over_spans(
    attend: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kind: torch.Tensor,
) -> torch.Tensor:
    """Take each span's queries, attend, and put the results back where the tokens lie."""
    by_token = query[0].transpose(0, 1)
    output = by_token.new_zeros(*by_token.shape[:2], value.shape[-1])
    for span in (span.to(query.device) for span in _running.get()):
        slots = slice(span.start, span.stop)
        queries = by_token[span.queries].unflatten(0, (span.stop - span.start, -1))
        found = attend(
            queries.transpose(1, 2),
            key[slots, :, : span.view],
            value[slots, :, : span.view],
            span.masks[kind.shape[-1] - 1],
        )
        output[span.targets] = found.flatten(0, 1)[span.sources]
    return output[None]
