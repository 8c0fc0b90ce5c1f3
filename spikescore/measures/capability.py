"""Whether the model's layers hold that it can answer the question, before it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.measures.file import FIXED
from spikescore.measures.self_questions import Case, reply_tokens
from spikescore.model.chat import ChatFormat
from spikescore.model.prompt_ends import End, read_ends

N_TOKENS = int(FIXED["capability"]["tokens"])
"""Last tokens of the prompt whose states are read, as the authors do of Llama and Qwen."""
LOCALITY = FIXED["capability"]["locality"]
_CAPABLE = (
    "Question:\n{prompt}\n\nCan you answer this question rightly? Say Yes or No and nothing else."
)


@dataclass
class Capability:
    """Asks a model whether it can answer. A prompt beyond `max_context` tokens is not asked."""

    model: PreTrainedModel
    chat: ChatFormat
    _: KW_ONLY
    max_context: int
    batch_size: int

    def __post_init__(self) -> None:
        self._begin, self._pair = reply_tokens(self.chat, ("Yes", "No"))

    def ask(self, cases: Sequence[Case]) -> list[dict[str, float]]:
        """Return the values of each case by name.

        internal_confidence: sum over the prompt's last tokens n and all layers l, the embeddings
        included, of u_n v_l P(Yes | state), P of "Yes" against "No" alone, read by the output
        matrix, with the final norm at the last layer only; the weights u and v fall by exp(-d^2)
        over the distance d from the last token and layer, and sum to 1 each, as in the authors'
        code; NaN where it was not asked. Its source: the detector of that name.
        """
        prompts = []
        for case in cases:
            text = _CAPABLE.format(prompt=case.prompt)
            ids = self.chat.render([{"role": "user", "content": text}]) + self._begin
            fits = N_TOKENS <= len(ids) <= self.max_context
            # up to each of its last tokens: each prompt begins with the one before
            ends = range(len(ids) - N_TOKENS + 1, len(ids) + 1)
            prompts.append([ids[:end] for end in ends] if fits else [])
        shares: list[list[np.ndarray]] = [[] for _ in cases]
        spent = [case.spent for case in cases]
        for end in read_ends(self.model, prompts, slots=self.batch_size, spent=spent):
            shares[end.group].append(self._shares(end))
        return [{"internal_confidence": weighted(own)} for own in shares]

    def _shares(self, end: End) -> np.ndarray:
        """P(Yes) against P(No) that each layer's state gives: float64 [L+1]."""
        head, pair = self.model.get_output_embeddings(), list(self._pair)
        if head.weight.is_meta:  # offloaded: its own pass brings the whole matrix
            logits = head(torch.stack([state.cpu() for state in end.states]))[:, pair].double()
        else:
            states = torch.stack([state.to(head.weight.device) for state in end.states])
            bias = 0 if getattr(head, "bias", None) is None else head.bias[pair].double()
            logits = states.double() @ head.weight[pair].double().T + bias
        return torch.sigmoid(logits[:, 0] - logits[:, 1]).detach().cpu().numpy()


def weighted(shares: Sequence[np.ndarray]) -> float:
    """The weighted mean of P(Yes) [L+1] at the last tokens, in their order; NaN without any."""
    if not shares:
        return math.nan
    table = np.stack(shares)[::-1, ::-1]  # from the last token and the last layer on
    of_tokens, of_layers = (np.exp(-LOCALITY * np.arange(n) ** 2.0) for n in table.shape)
    return float(of_tokens @ table @ of_layers / of_tokens.sum() / of_layers.sum())
