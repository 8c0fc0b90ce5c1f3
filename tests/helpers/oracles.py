"""Values worked out another way, for tests to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from spikescore.pairs import find_records, read_record, read_states


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


def assert_same_pairs(one: Path, other: Path, *, n: int) -> None:
    """Two folders hold n pairs of the same dialogues: ids, texts and labels alike, and what is
    measured within what another order of summing may change.
    """
    names = sorted(path.relative_to(one) for path in find_records(one))
    assert names == sorted(path.relative_to(other) for path in find_records(other))
    assert len(names) == n
    for name in names:
        left, right = read_record(one / name), read_record(other / name)
        for key in ("id", "question", "finish_reason", "nil_label", "complete"):
            assert left[key] == right[key], (name, key)
        for mine, theirs in zip(left["cot_steps"], right["cot_steps"], strict=True):
            for step in (mine, theirs):
                step.pop("seconds", None)  # how long it took is no part of what was said
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                if isinstance(value, float):
                    assert value == pytest.approx(theirs[key], abs=1e-4, rel=1e-4), (name, key)
                else:
                    assert value == theirs[key], (name, key)
        states = [read_states((folder / name).with_suffix(".pkl")) for folder in (one, other)]
        assert states[0].keys() == states[1].keys()
        for turn, by_key in states[0].items():
            for key, mine in by_key.items():
                theirs = states[1][turn][key].astype(np.float32)
                assert np.allclose(mine.astype(np.float32), theirs, rtol=4e-3, atol=4e-3)
