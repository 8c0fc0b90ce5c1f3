"""Values worked out another way, for tests to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel


@torch.inference_mode()
def states_at(
    model: PreTrainedModel,
    token_ids: Sequence[int],
    positions: Sequence[int],
    *,
    chunk: int = 512,
    dtype: torch.dtype = torch.float16,
) -> np.ndarray:
    """Teacher-forced states of one token sequence at the given positions: `[positions, L + 1,
    hidden]`.

    A plain forward pass over stored ids, `chunk` tokens at a time with transformers' own cache; it
    shares no code with the engine's capture, so each checks the other.
    """
    if not all(0 <= position < len(token_ids) for position in positions):
        raise ValueError(
            f"positions {list(positions)} outside a sequence of {len(token_ids)} tokens"
        )
    cache = DynamicCache(config=model.config)
    found: dict[int, torch.Tensor] = {}
    for start in range(0, max(positions) + 1, chunk):
        ids = torch.tensor([token_ids[start : start + chunk]], device=model.device)
        at = torch.arange(start, start + ids.shape[1], device=model.device)[None]
        output = model.get_decoder()(
            input_ids=ids,
            position_ids=at,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        for position in positions:
            if start <= position < start + ids.shape[1]:
                layers = [state[0, position - start].cpu() for state in output.hidden_states]
                found[position] = torch.stack(layers).to(dtype)
    return torch.stack([found[position] for position in positions]).numpy()
