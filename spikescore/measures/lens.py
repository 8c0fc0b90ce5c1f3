"""What the layers of a model say on the way to its answer: numbers read through the logit lens.

The logit lens (nostalgebraist, 2020) reads a state of the residual stream as a distribution over
the vocabulary: the model's final norm, then its output matrix. All is measured in a teacher-forced
pass over the token ids that a dialogue keeps. Layers are numbered as `output_hidden_states` does;
logarithms are natural.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.errors import UserError
from spikescore.measures.file import FIXED
from spikescore.model.architecture import final_norm_of, text_config
from spikescore.model.attention import Part
from spikescore.model.memory import cached_rows
from spikescore.model.slots import SlotModel
from spikescore.model.turns import common_prefix, runs

Exchange = tuple[list[int], list[int]]
"""Ids of one turn: its whole prompt, and its answer."""

LENS_CHUNK = 1024  # tokens per forward pass; bounds memory to chunk x layers x hidden
LATE_FROM = FIXED["lens"]["late_from"]
"""The share of a model's layers after which the late ones begin."""
SHARPNESS_DEPTH = FIXED["lens"]["sharpness_depth"]
"""In-Context Sharpness reads layer 26 of the 32 of its authors' 7B models."""
SHARPNESS = {"sharpness": True, "sharpness_raw": False}
"""Its two ways: whether the layer's states get the final norm."""
LENS_NUMBERS = {"cpu": 2**23, "cuda": 2**26}
"""Numbers of one matrix [rows, vocabulary] of a lens; bounds memory."""
_TINY = torch.finfo(torch.float32).tiny  # a probability below it adds nothing to an entropy


@dataclass
class LensMeasures:
    """What a dialogue's layers say: `turns` by name float32 `[K]`, and MIND's float32 `[2H]`."""

    turns: dict[str, np.ndarray]
    mind: np.ndarray


def late_layers(n_layers: int) -> range:
    """Layers of the last third, the final one left out: 4, 5 of 6 and 22 to 31 of 32."""
    return range(min(math.ceil(LATE_FROM * n_layers), n_layers - 1), n_layers)


def sharpness_layer(n_layers: int) -> int:
    """The layer whose states in-context sharpness reads: 5 of 6, 26 of 32."""
    return min(max(1, round(SHARPNESS_DEPTH * n_layers)), n_layers - 1)


# --- formulae ---------------------------------------------------------------------------------


def entropy(p: torch.Tensor) -> torch.Tensor:
    """-sum_i p_i log p_i over the last dimension; 0 log 0 = 0."""
    return -(p * p.clamp(min=_TINY).log()).sum(dim=-1)


def js_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence of distributions over the last dimension, between 0 and log 2.

    JSD(p, q) = H(m) - (H(p) + H(q)) / 2 with m = (p + q) / 2, which is half of KL(p, m) + KL(q, m).
    """
    return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).clamp(min=0)


def context_entropy(log_p: torch.Tensor) -> torch.Tensor:
    """Entropy over positions of log-probabilities `[positions, tokens]`, normed: `[tokens]`."""
    return entropy(torch.softmax(log_p, dim=0).T)


# --- the lens ---------------------------------------------------------------------------------


class Lens:
    """Reads states as distributions over the vocabulary, as the model itself does at its end.

    Raises UserError for a model whose own logits are not what the lens gives for its last state.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._norm, self._head = final_norm_of(model), model.get_output_embeddings()
        if self._norm is None or self._head is None:
            raise UserError(
                f"{type(model).__name__} keeps its final norm or output matrix in no known place, "
                'which the logit lens needs; leave "lens" and "contrast" out of --groups'
            )
        config = text_config(model.config)
        self._cap = getattr(config, "final_logit_softcapping", None)
        self.n_layers: int = config.num_hidden_layers
        self.rows = max(1, LENS_NUMBERS[model.device.type] // config.vocab_size)
        self._few = cached_rows(model.device, config.vocab_size)
        self._check(model)

    @torch.inference_mode()
    def _check(self, model: PreTrainedModel) -> None:
        ids = [1, 2, 3]
        logits, states = SlotModel(model, slots=1).feed(
            [Part(0, ids, 0)], states_of=range(len(ids)), logits_of=range(len(ids))
        )
        own = torch.log_softmax(logits.float(), dim=-1)
        lens = self.log_probabilities(states[-1], norm=False)
        if not torch.allclose(own, lens.to(own.device), rtol=0.02, atol=0.05):
            raise UserError(
                f"{type(model).__name__} does more to its last state than norm and output matrix, "
                'so the logit lens cannot read it; leave "lens" and "contrast" out of --groups'
            )

    def log_probabilities(self, states: torch.Tensor, *, norm: bool = True) -> torch.Tensor:
        """Log-probabilities `[rows, vocabulary]` (float32) that states `[rows, H]` give.

        They get the final norm here, which the last layer's states have had already (`norm` false).
        """
        return torch.cat([torch.log_softmax(few, dim=-1) for few in self._logits(states, norm)])

    def log_probabilities_of(
        self, states: torch.Tensor, tokens: torch.Tensor, *, norm: bool
    ) -> torch.Tensor:
        """The columns of `log_probabilities` that belong to these tokens, `[rows, tokens]`."""
        found = [
            few[:, tokens] - torch.logsumexp(few, dim=-1, keepdim=True)
            for few in self._logits(states, norm)
        ]
        return torch.cat(found)

    def _logits(self, states: torch.Tensor, norm: bool) -> tuple[torch.Tensor, ...]:
        """Logits of all states in float32, cut into few rows each."""
        logits = self._head(self._norm(states) if norm else states)
        if self._cap:
            logits = torch.tanh(logits.float() / self._cap) * self._cap
        return tuple(few.float() for few in logits.split(self._few))

    def divergences(self, states: Sequence[torch.Tensor], layers: Sequence[int]) -> torch.Tensor:
        """Mean over layers of JSD(final, layer's): `[rows]`, given L + 1 states `[rows, H]`."""
        final = [torch.softmax(few, dim=-1) for few in self._logits(states[-1], norm=False)]
        entropies = [entropy(p) for p in final]
        total = torch.zeros(len(states[-1]), device=final[0].device)
        for layer in layers:
            found = []
            own = self._logits(states[layer], norm=True)
            for p, of_p, few in zip(final, entropies, own, strict=True):
                log_q = torch.log_softmax(few.to(p.device), dim=-1).clamp(min=-1e4)
                q = log_q.exp()
                of_q = -(q * log_q).sum(dim=-1)
                found.append((entropy((p + q) / 2) - (of_p + of_q) / 2).clamp(min=0))
            total += torch.cat(found)
        return total / len(layers)


class LensReader:
    """Measures dialogues one after another, each in the one slot of a cache.

    reasoning_score: for each answer token, at the position that predicts it, the JSD of the final
    layer's distribution and each late layer's (`late_layers`); mean over these layers, then over
    the answer's tokens. SpikeScore's public release leaves the final norm out for all layers but
    the last; here every layer gets it.

    sharpness: for each answer token v, p_i = the probability of v that the state of one late layer
    (`sharpness_layer`) gives at position i of the turn's prompt, earlier turns and template tokens
    included; the entropy of p_i / sum_j p_j over these positions; mean over the answer's tokens.
    The authors' code takes the softmax of v's logits over the positions instead. sharpness_raw: the
    same from the state as it is, without the final norm.

    mind: of the first answer, the mean over layers 1 .. L of its last token's state, then the mean
    over its tokens of the last layer's state, after the final norm.

    The detectors of these names say what they mean, and their sources.
    An empty answer has no value: NaN.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.lens = Lens(model)
        self.late = late_layers(self.lens.n_layers)
        self.sharp = sharpness_layer(self.lens.n_layers)
        self._passes = SlotModel(model, slots=1)

    @torch.inference_mode()
    def read(self, turns: Sequence[Exchange]) -> LensMeasures:
        """Measure a dialogue.

        While each prompt begins with the turn before it, the whole dialogue is one pass; where a
        template rewrote earlier turns, only what differs is encoded again.
        """
        reading = _Reading(turns)
        for run in runs(turns, lambda turn: turn):
            self._read_run(run, reading)
            for prompt, answer in run:
                reading.close_turn(len(prompt), answer)
        return reading.result()

    def _read_run(self, run: Sequence[Exchange], reading: _Reading) -> None:
        ids = run[-1][0] + run[-1][1]
        start = reading.begin(ids, min(common_prefix(reading.ids, ids), len(run[0][0]) - 1))
        predicting = torch.zeros(len(ids), dtype=torch.bool)
        for prompt, answer in run:
            predicting[len(prompt) - 1 : len(prompt) - 1 + len(answer)] = True
        while start < len(ids):
            part = ids[start : start + LENS_CHUNK]
            _, states = self._passes.feed(
                [Part(0, part, start)], states_of=range(len(part)), logits_of=[]
            )
            reading.keep_first_answer(states, start)
            for first in range(0, len(part), self.lens.rows):
                rows = states[self.sharp][first : first + self.lens.rows]
                for name, norm in SHARPNESS.items():
                    tokens = reading.tokens.to(rows.device)
                    log_p = self.lens.log_probabilities_of(rows, tokens, norm=norm)
                    reading.keep_context(name, log_p, start + first)
            places = predicting[start : start + len(part)].nonzero()[:, 0]
            for few in places.split(self.lens.rows):
                chosen = [state[few.to(state.device)] for state in states]
                reading.divergence[start + few] = self.lens.divergences(chosen, self.late).cpu()
            start += len(part)


class _Reading:
    """What is known of a dialogue while it is read.

    context: by name of a sharpness, log-probabilities `[positions, tokens]` of every token that
    some answer holds, by the states of the positions read so far.
    """

    def __init__(self, turns: Sequence[Exchange]) -> None:
        self.ids: list[int] = []
        self.divergence = torch.empty(0)
        known = sorted({token for _, answer in turns for token in answer})
        self.tokens = torch.tensor(known, dtype=torch.long)  # that some answer holds
        self._column = {token: place for place, token in enumerate(known)}
        self._context = dict.fromkeys(SHARPNESS, torch.empty(0, len(self._column)))
        prompt, answer = turns[0]
        self._first = range(len(prompt), len(prompt) + len(answer))
        self._last_token: list[torch.Tensor] = []  # the L + 1 states of the first answer's last
        self._last_layer: list[torch.Tensor] = []  # the last layer's states of the first answer
        self._scores: list[list[float]] = []
        self._width = 0

    def begin(self, ids: list[int], reused: int) -> int:
        """Go on with these ids, of which `reused` are known; return that number."""
        for name, context in self._context.items():
            grown = torch.empty(len(ids), len(self._column), device=context.device)
            grown[:reused] = context[:reused]
            self._context[name] = grown
        self.ids = ids
        self.divergence = torch.empty(len(ids))
        return reused

    def keep_context(self, name: str, log_p: torch.Tensor, start: int) -> None:
        """Keep what the positions from `start` on give the answers' tokens."""
        context = self._context[name] = self._context[name].to(log_p.device)
        context[start : start + len(log_p)] = log_p

    def keep_first_answer(self, states: Sequence[torch.Tensor], start: int) -> None:
        """Keep what MIND needs of a pass's states, which begin at position `start`."""
        self._width = states[-1].shape[-1]
        inside = range(max(self._first.start, start), min(self._first.stop, start + len(states[0])))
        if inside and len(self.ids) >= self._first.stop and not self._scores:
            self._last_layer.append(states[-1][inside.start - start : inside.stop - start].float())
            if inside[-1] == self._first[-1]:
                self._last_token = [state[inside[-1] - start].float() for state in states]

    def close_turn(self, n_prompt: int, answer: list[int]) -> None:
        """Average over the tokens of an answer that has been read."""
        if not answer:
            self._scores.append([math.nan] * (1 + len(SHARPNESS)))
            return
        predicting = slice(n_prompt - 1, n_prompt - 1 + len(answer))
        columns = torch.tensor([self._column[token] for token in answer])
        own = [float(self.divergence[predicting].mean())]
        for context in self._context.values():
            log_p = context[:n_prompt, columns.to(context.device)]
            own.append(float(context_entropy(log_p).mean()))
        self._scores.append(own)

    def result(self) -> LensMeasures:
        scores = np.array(self._scores, dtype=np.float32).T
        mind = np.full(2 * self._width, np.nan, dtype=np.float32)
        if self._last_token:
            over_layers = torch.stack([state.cpu() for state in self._last_token[1:]]).mean(dim=0)
            over_tokens = torch.cat(self._last_layer).mean(dim=0).cpu()
            mind = torch.cat([over_layers, over_tokens]).numpy()
        names = ("reasoning_score", *SHARPNESS)
        return LensMeasures(dict(zip(names, scores, strict=True)), mind)
