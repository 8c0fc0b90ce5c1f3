"""The first answer's tokens read twice: with its question and without, by the last layer and by one
before it. All is measured in teacher-forced passes; logarithms are natural.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.measures.file import FIXED
from spikescore.measures.lens import LENS_CHUNK, Lens, js_divergence
from spikescore.model.attention import Part
from spikescore.model.slots import SlotModel
from spikescore.model.turns import common_prefix

UPPER_FROM = FIXED["contrast"]["upper_from"]
"""The share of a model's layers after which the upper bucket of DoLa begins."""


def premature_layers(n_layers: int) -> list[int]:
    """The even layers of the upper half, the final one left out: 4 of 6, 16, 18 ... 30 of 32."""
    upper = range(min(math.ceil(UPPER_FROM * n_layers), n_layers - 1), n_layers)
    return [layer for layer in upper if layer % 2 == 0] or [upper[-1]]


class ContrastReader:
    """Measures first answers one after another, each in the one slot of a cache.

    answer_logprobs, prior_logprobs: log-probabilities of the answer's tokens after its prompt, and
    after a prompt that asks "?" under the same system prompt.

    dola_divergence: at the position that predicts a token, the largest Jensen-Shannon divergence of
    the final layer's distribution q_N and that of a candidate layer (`premature_layers`).
    dola_contrast: log q_N(x) - log q_M(x) of the token x itself, M the layer of that largest one.

    true_logprobs, wrong_logprobs: log-probabilities of two other answers after the same prompt, the
    reference and one that is known to be wrong; of no tokens where they are not known.

    All are float32, one number per token; an empty answer has none. The detectors that read them
    say what they mean, and their sources.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._lens = Lens(model)
        self._candidates = premature_layers(self._lens.n_layers)
        self._passes = SlotModel(model, slots=1)
        self._cached: list[int] = []

    @torch.inference_mode()
    def read(
        self,
        prompt: list[int],
        answer: list[int],
        bare: list[int],
        true: list[int],
        wrong: list[int],
    ) -> dict[str, np.ndarray]:
        """Measure an answer to a prompt; `bare` is the prompt without the question."""
        self._cached = []
        divergence, contrast, own = self._layers(prompt, answer)
        return {
            "answer_logprobs": own,
            "prior_logprobs": self._logprobs(bare, answer),
            "dola_divergence": divergence,
            "dola_contrast": contrast,
            "true_logprobs": self._logprobs(prompt, true),
            "wrong_logprobs": self._logprobs(prompt, wrong),
        }

    def _logprobs(self, prompt: list[int], answer: list[int]) -> np.ndarray:
        found = [
            _of(self._lens.log_probabilities(states[-1], norm=False), tokens)
            for states, tokens in self._predicting(prompt, answer)
        ]
        return _joined(found)

    def _layers(self, prompt: list[int], answer: list[int]) -> list[np.ndarray]:
        """Return dola_divergence, dola_contrast and the final layer's log-probabilities."""
        found: list[list[torch.Tensor]] = [[], [], []]
        for states, tokens in self._predicting(prompt, answer):
            final = self._lens.log_probabilities(states[-1], norm=False)
            own = _of(final, tokens)
            largest = torch.full_like(own, -1)
            contrast = torch.zeros_like(own)
            for layer in self._candidates:
                log_q = self._lens.log_probabilities(states[layer]).to(final.device)
                divergence = js_divergence(final.exp(), log_q.exp())
                contrast = torch.where(divergence > largest, own - _of(log_q, tokens), contrast)
                largest = torch.maximum(largest, divergence)
            for kept, values in zip(found, (largest, contrast, own), strict=True):
                kept.append(values)
        return [_joined(kept) for kept in found]

    def _predicting(
        self, prompt: list[int], answer: list[int]
    ) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        """Yield, a few rows at a time, the L + 1 states `[rows, H]` that predict an answer's
        tokens, and these tokens. What the cache holds of the prompt is not encoded again.
        """
        if not answer:
            return
        ids = prompt + answer[:-1]
        held = min(common_prefix(self._cached, ids), len(prompt) - 1)
        held = self._passes.reusable(0, held, len(ids))
        for start in range(held, len(ids), LENS_CHUNK):
            part = ids[start : start + LENS_CHUNK]
            first = max(start, len(prompt) - 1)
            wanted = range(first - start, len(part))
            self._cached = ids[: start + len(part)]
            _, states = self._passes.feed([Part(0, part, start)], states_of=wanted, logits_of=[])
            for row in range(0, len(wanted), self._lens.rows):
                rows = slice(row, row + self._lens.rows)
                place = first + row - (len(prompt) - 1)
                few = [state[rows] for state in states]
                yield few, torch.tensor(answer[place : place + len(few[0])])


def _of(log_p: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-probability of each row's token."""
    return log_p.gather(1, tokens.to(log_p.device)[:, None])[:, 0]


def _joined(parts: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.cat([part.cpu() for part in parts] or [torch.empty(0)]).float().numpy()
