"""What single attention heads and single neurons give at the last token of a first answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from spikescore.errors import UserError
from spikescore.measures.lens import LENS_CHUNK
from spikescore.measures.samples import fitting
from spikescore.model.architecture import decoder_of, layers_of, size_of
from spikescore.model.attention import Part
from spikescore.model.slots import SlotModel

# where a layer keeps what mixes its heads, and what reads its neurons
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
_MIXERS = ("o_proj", "out_proj", "dense", "c_proj")
_NETWORKS = ("mlp", "feed_forward", "")
_READERS = ("down_proj", "fc2", "dense_4h_to_h", "c_proj", "w2")


def _part(layer: nn.Module, holders: Sequence[str], names: Sequence[str]) -> nn.Module:
    for holder in holders:
        place = getattr(layer, holder, None) if holder else layer
        for name in names:
            if isinstance(found := getattr(place, name, None), nn.Module):
                return found
    raise UserError(
        f"{type(layer).__name__} keeps none of {', '.join(names)} in a known place (a mixture of "
        'experts has no neurons that all tokens pass); leave "components" out of --groups'
    )


class ComponentReader:
    """Measures first answers one after another, each in the one slot of a cache.

    heads: float16 `[L, A, D]`, the output of each of A attention heads before the matrix that mixes
    them. neurons: float16 `[L, M]`, the activations that the last matrix of each layer's network is
    given. Both are of the pass that reads the answer's last token. NaN for an empty answer, and
    where one value is beyond FP16.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layers = layers_of(decoder_of(model))
        self._mixers = [_part(layer, _ATTENTIONS, _MIXERS) for layer in layers]
        self._readers = [_part(layer, _NETWORKS, _READERS) for layer in layers]
        self._n_heads = size_of(model.config, "num_attention_heads")
        self._passes = SlotModel(model, slots=1)

    @torch.inference_mode()
    def read(self, prompt: list[int], answer: list[int]) -> dict[str, np.ndarray]:
        """Measure an answer to a prompt."""
        ids = prompt + answer
        self._passes.reusable(0, 0, len(ids))
        with _given_to(self._mixers) as heads, _given_to(self._readers) as neurons:
            for start in range(0, len(ids), LENS_CHUNK):
                part = ids[start : start + LENS_CHUNK]
                self._passes.feed([Part(0, part, start)], states_of=[], logits_of=[])
        mixed = _stacked(heads)
        mixed = mixed.reshape(len(mixed), self._n_heads, -1)
        found = {"heads": mixed, "neurons": _stacked(neurons)}
        return found if answer else {name: np.full_like(x, np.nan) for name, x in found.items()}


def _stacked(rows: Sequence[torch.Tensor]) -> np.ndarray:
    if len({len(row) for row in rows}) > 1:
        raise UserError(
            'the layers differ in their number of neurons; leave "components" out of --groups'
        )
    return fitting(torch.stack([row.half().cpu() for row in rows]).numpy())


@contextmanager
def _given_to(modules: Sequence[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collect what each module is given for the last token of a pass; a later pass replaces it."""
    kept = [torch.empty(0)] * len(modules)

    def keep(number: int, module: nn.Module, args: tuple) -> None:
        kept[number] = args[0].reshape(-1, args[0].shape[-1])[-1]

    hooks = [
        module.register_forward_pre_hook(partial(keep, number))
        for number, module in enumerate(modules)
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
