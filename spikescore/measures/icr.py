"""ICR: where a layer's update of a token comes from, held against where its attention looks.

For layer l and answer token i, let u = h_{l+1,i} - h_{l,i} be what the layer adds to the residual
stream, A the share `TOP_P` of the tokens up to i that the layer attends to most (mean over heads),
a_j the attention and w_j = u . h_{l,j} / |h_{l,j}| the projection for j in A. Both vectors are
standardised and sent through a softmax; the score is the Jensen-Shannon divergence of the two, mean
over the answer's tokens: one number per layer, between 0 and log 2. No direction: features for a
classifier. Source: Zhang et al. (2025), "ICR Probe: Tracking Hidden State Dynamics for Reliable
Hallucination Detection in LLMs", ACL 2025.

Two ways of it: `icr_answer` leaves the prompt's attention out, its weights are 0, as in the
authors' code, whose figures are published; `icr` lets an answer's attention to its prompt count.

Where both differ from the authors' code: the last layer's update is the layer's own, not mixed with
the final norm that `output_hidden_states` applies there; the share is taken of the tokens that can
be seen, where they take it of the whole sequence, and is at least `LEAST` tokens, as the divergence
of fewer is always 0; all heads count; of equal weights those of earlier tokens are taken first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from spikescore.errors import UserError
from spikescore.measures.file import FIXED
from spikescore.measures.lens import js_divergence
from spikescore.model.architecture import decoder_of, layers_of
from spikescore.model.hidden_states import TEACHER_CHUNK

TOP_P = FIXED["attention"]["top_p"]
LEAST = 2


def icr_scores(
    updates: torch.Tensor,
    states: torch.Tensor,
    attention: torch.Tensor,
    visible: torch.Tensor,
) -> torch.Tensor:
    """Score the answer tokens of one layer: `[A]`, float32.

    updates `[A, H]` of the answer tokens, states `[n, H]` that entered the layer, attention
    `[A, n]`, mean over heads; token i sees the first `visible[i]` of the n.
    """
    updates, states, attention = updates.float(), states.float(), attention.float()
    counts = torch.clamp((visible * TOP_P - 1e-6).ceil().long(), min=LEAST)
    counts = torch.minimum(counts, visible)
    ahead = torch.arange(attention.shape[1], device=visible.device) >= visible[:, None]
    ranked = attention.masked_fill(ahead, -1.0).sort(dim=1, descending=True, stable=True)
    chosen, places = (part[:, : int(counts.max())] for part in ranked)
    directions = states / states.norm(dim=1, keepdim=True).clamp(min=1e-8)
    projections = (updates @ directions.T).gather(1, places)
    taken = torch.arange(chosen.shape[1], device=counts.device) < counts[:, None]
    return js_divergence(_soft(projections, taken), _soft(chosen, taken))


def _soft(values: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """Softmax of the standardised values of each row, over those that are taken."""
    n = taken.sum(dim=1, keepdim=True)
    mean = values.where(taken, 0).sum(dim=1, keepdim=True) / n
    squares = (values - mean).where(taken, 0).square().sum(dim=1, keepdim=True)
    deviation = (squares / (n - 1).clamp(min=1)).sqrt().clamp(min=1e-8)
    return torch.softmax(((values - mean) / deviation).masked_fill(~taken, -math.inf), dim=1)


def _attention_of(layer: nn.Module) -> nn.Module:
    attention = getattr(layer, "self_attn", None) or getattr(layer, "attn", None)
    if attention is None:
        raise UserError(
            f"{type(layer).__name__} keeps its attention in no known place; "
            'leave "attention" out of --groups'
        )
    return attention


class IcrReader:
    """Measures first exchanges, a chunk of tokens at a time, with the model's eager attention, the
    only one that gives its weights.

    Of the weights only the answer's rows are kept, averaged over heads, so memory is bounded by
    heads x chunk x tokens for one layer and by tokens x layers states.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @torch.inference_mode()
    def read(self, prompt: list[int], answer: list[int]) -> dict[str, np.ndarray]:
        """Return the ICR scores of an answer, both ways float32 `[L]`; NaN for an empty one."""
        decoder = decoder_of(self._model)
        if not answer:
            none = np.full(len(layers_of(decoder)), np.nan, dtype=np.float32)
            return {"icr": none, "icr_answer": none}
        ids = prompt + answer
        cache = DynamicCache(config=self._model.config)
        with _eager(self._model), _LayerTap(self._model, len(prompt)) as tap:
            for start in range(0, len(ids), TEACHER_CHUNK):
                part = torch.tensor([ids[start : start + TEACHER_CHUNK]], device=self._model.device)
                at = torch.arange(start, start + part.shape[1], device=self._model.device)[None]
                tap.start = start
                decoder(input_ids=part, position_ids=at, past_key_values=cache, use_cache=True)
        visible = torch.arange(len(prompt) + 1, len(ids) + 1)
        found: dict[str, list[float]] = {"icr": [], "icr_answer": []}
        for inputs, outputs, rows in tap.layers():
            updates, seen = outputs - inputs[len(prompt) :], visible.to(inputs.device)
            found["icr"].append(float(icr_scores(updates, inputs, rows, seen).mean()))
            rows[:, : len(prompt)] = 0
            found["icr_answer"].append(float(icr_scores(updates, inputs, rows, seen).mean()))
        return {name: np.array(values, dtype=np.float32) for name, values in found.items()}


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class _LayerTap(AbstractContextManager):
    """Collects for each layer its input states, the answer's output states, and the answer's
    attention, mean over heads. `start` is the position of the running pass's first token.
    """

    def __init__(self, model: PreTrainedModel, n_prompt: int) -> None:
        self.start = 0
        self._n_prompt = n_prompt
        self._modules = layers_of(decoder_of(model))
        self._inputs: list[list[torch.Tensor]] = [[] for _ in self._modules]
        self._outputs: list[list[torch.Tensor]] = [[] for _ in self._modules]
        self._rows: list[list[torch.Tensor]] = [[] for _ in self._modules]
        self._hooks: list = []

    def __enter__(self) -> _LayerTap:
        attentions = [_attention_of(layer) for layer in self._modules]
        for number, (layer, attention) in enumerate(zip(self._modules, attentions, strict=True)):
            self._hooks += [
                layer.register_forward_pre_hook(partial(self._before, number), with_kwargs=True),
                attention.register_forward_hook(partial(self._attended, number)),
                layer.register_forward_hook(partial(self._after, number)),
            ]
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def layers(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield input states `[n, H]`, the answer's output states `[A, H]`, attention `[A, n]`."""
        for inputs, outputs, rows in zip(self._inputs, self._outputs, self._rows, strict=True):
            states = torch.cat(inputs)
            attention = states.new_zeros(sum(map(len, rows)), len(states), dtype=torch.float32)
            first = 0
            for block in rows:
                attention[first : first + len(block), : block.shape[1]] = block
                first += len(block)
            yield states, torch.cat(outputs), attention

    def _answers(self, hidden: torch.Tensor) -> slice:
        """Which rows of a pass are the answer's."""
        return slice(max(0, self._n_prompt - self.start), hidden.shape[1])

    def _before(self, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._inputs[number].append(hidden[0])

    def _after(self, number: int, layer: nn.Module, args: tuple, output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._outputs[number].append(hidden[0, self._answers(hidden)])

    def _attended(self, number: int, attention: nn.Module, args: tuple, output: tuple) -> None:
        weights = output[1]
        if weights is None:
            raise UserError(
                f"{type(attention).__name__} gives no attention weights; "
                'leave "attention" out of --groups'
            )
        rows = weights[0, :, self._answers(output[0])].float().mean(dim=0)
        # a layer with a sliding window may have forgotten the oldest tokens
        forgotten = self.start + output[0].shape[1] - rows.shape[1]
        self._rows[number].append(nn.functional.pad(rows, (forgotten, 0)))
