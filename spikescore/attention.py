"""Attention over slots of different lengths: masks, and grouped-query attention without copies.

transformers repeats keys and values for every query head of a group unless one query token is fed.
Here the heads of a group become further query rows of their key/value head instead, which gives the
same numbers from the cache as it lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

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
from spikescore.kv_cache import key_value_heads, text_config

GROUPED = "grouped_sdpa"
MIN_ROWS = 16
"""Rows from which this CPU's matrix products treat each row alike, bit for bit."""


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query `[batch, heads, width, head_dim]`, keys and values
    `[batch, kv_heads, view, head_dim]`; returns `[batch, width, heads, head_dim]`.
    """
    batch, heads, width, head_dim = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None:
        # without a mask the whole sequence is one causal pass; no cache is involved
        causal = width > 1 if is_causal is None else is_causal
        output = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=causal, enable_gqa=True
        )
        return output.transpose(1, 2), None
    packed = query.reshape(batch, key.shape[1], groups * width, head_dim)
    mask = attention_mask if width == 1 else attention_mask.repeat(1, 1, groups, 1)
    output = F.scaled_dot_product_attention(
        packed, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
    )
    output = output.reshape(batch, heads, width, -1)
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use `grouped_sdpa` inside, where the model would use transformers' own sdpa."""
    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    AttentionInterface.register(GROUPED, grouped_sdpa)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    model.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def width_multiple(model: PreTrainedModel) -> int:
    """Smallest step of a pass's width for which its query rows come in whole blocks of MIN_ROWS."""
    config = text_config(model.config)
    groups = config.num_attention_heads // key_value_heads(config)
    packed = groups if model.config._attn_implementation in ("sdpa", GROUPED) else 1
    return MIN_ROWS // math.gcd(MIN_ROWS, packed)


def layer_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """Return {attention type: sliding window or None} of a model's layers.

    Raises UserError for attention types whose state is not a plain key/value cache.
    """
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


def attention_masks(
    windows: dict[str, int | None], positions: torch.Tensor, view: int, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive masks `[batch, 1, width, view]`: a token at position p sees entries p - window < j
    <= p.

    A row of padding (position -1) sees entry 0, so that no softmax is over nothing. One kind of
    layer gives a tensor, several give a dict by kind, as the models of transformers expect them.
    """
    entry = torch.arange(view, device=positions.device)
    query = positions.clamp(min=0)[:, None, :, None]
    masks = {}
    for kind, window in windows.items():
        seen = entry <= query
        if window is not None:
            seen &= entry > query - window
        mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
        masks[kind] = mask.masked_fill_(~seen, torch.finfo(dtype).min)
    return masks if len(masks) > 1 else next(iter(masks.values()))
