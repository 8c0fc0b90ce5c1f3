"""Choosing the next token: temperature and top-p as transformers applies them, seeded per dialogue
and turn; and guessing what will be chosen.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessorList

from spikescore.model.memory import cached_rows
from spikescore.runtime import derived_seed

_FIRST_LOOK = 64  # tokens; the nucleus nearly always lies among the most probable few

DRAFT_ORDERS = (5, 3, 2)  # tokens of context looked up, longest first
DRAFT_ENTRIES = 200_000  # about 40 MB; the table starts afresh when it is full


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p 1 keeps the whole distribution.

    `processors` are applied to the logits first: what the checkpoint's own generation_config asks
    for and the user allowed.
    """

    temperature: float
    top_p: float
    seed: int
    processors: LogitsProcessorList | None = None


GREEDY = Sampling(temperature=0, top_p=1, seed=0)


def turn_uniforms(sampling: Sampling, item_id: str, turn: int, n: int) -> np.ndarray:
    """Return the n uniforms in [0, 1) that draw a turn's tokens: a function of names only."""
    seed = derived_seed(sampling.seed, item_id, turn, "tokens")
    return np.random.Generator(np.random.Philox(seed)).random(n)


def processed(logits: torch.Tensor, rows: Sequence[list[int]], sampling: Sampling) -> torch.Tensor:
    """Apply the processors to logits `[n, vocabulary]`; `rows` are the ids each row has so far."""
    if not sampling.processors:
        return logits
    # one row at a time: a repetition penalty must not see another row's padding
    adjusted = [
        sampling.processors(torch.tensor([ids], device=logits.device), logits[place : place + 1])
        for place, ids in enumerate(rows)
    ]
    return torch.cat(adjusted)


def measure_tokens(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Measure rows of raw logits `[n, vocabulary]` (float32) at the token each row is followed by.

    Returns `[n, 3]`, natural logarithms: the token's log-probability, the entropy of the row, and
    the log-probability of its most probable token.
    """
    few = cached_rows(logits.device, logits.shape[-1])
    pairs = zip(logits.split(few), tokens.split(few), strict=True)
    return torch.cat([_measure(*pair) for pair in pairs])


def _measure(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    logprobs = torch.log_softmax(logits, dim=-1)
    # softmax works row by row, exp over all numbers at once: so rows do not depend on each other
    entropies = -(torch.softmax(logits, dim=-1) * logprobs.clamp(min=-1e4)).sum(dim=-1)
    chosen = logprobs.gather(1, tokens[:, None])[:, 0]
    return torch.stack([chosen, entropies, logprobs.amax(dim=-1)], dim=1)


def choose_tokens(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draw one token per row of `logits` `[n, vocabulary]` (float32) by inverse CDF with the row's
    uniform.

    Top-p keeps the smallest set of most probable tokens whose mass reaches top_p: token i stays
    when the mass before it is below top_p, at least one token. A row's choice depends on that row
    alone.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    few = cached_rows(logits.device, logits.shape[-1])
    parts = zip(logits.split(few), uniforms.split(few), strict=True)
    return torch.cat([_choose(*part, sampling) for part in parts])


def _choose(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p >= 1:
        return _draw(probabilities, uniforms, sampling.top_p)
    k = min(_FIRST_LOOK, probabilities.shape[-1])
    head, order = probabilities.topk(k, dim=-1)
    chosen = order.gather(1, _draw(head, uniforms, sampling.top_p)[:, None])[:, 0]
    wide = head.double().sum(dim=-1) < sampling.top_p + 1e-6
    if bool(wide.any()):
        full, order = probabilities[wide].sort(dim=-1, descending=True, stable=True)
        drawn = _draw(full, uniforms[wide], sampling.top_p)
        chosen[wide] = order.gather(1, drawn[:, None])[:, 0]
    return chosen


def _draw(probabilities: torch.Tensor, uniforms: torch.Tensor, top_p: float) -> torch.Tensor:
    """Index drawn from each row's nucleus; rows are in descending order unless top_p is 1."""
    mass = probabilities.double()
    if top_p < 1:
        before = mass.cumsum(dim=-1) - mass
        mass = torch.where(before < top_p, mass, 0.0)
    upto = mass.cumsum(dim=-1)
    target = uniforms.double()[:, None] * upto[:, -1:]
    last_possible = (mass > 0).sum(dim=-1) - 1 if top_p < 1 else mass.shape[-1] - 1
    return torch.searchsorted(upto, target, right=True)[:, 0].clamp(max=last_possible)


class DraftTable:
    """What followed each two, three and five tokens last, in all dialogues of a run.

    Guesses end where one of `stop_ids` is expected.
    """

    def __init__(self, stop_ids: Container[int]) -> None:
        self._stop = stop_ids
        self._next: dict[tuple[int, ...], int] = {}

    def learn(self, ids: Sequence[int], start: int) -> None:
        """Note for each token from index `start` on that it followed the tokens before it."""
        if len(self._next) > DRAFT_ENTRIES:
            self._next.clear()
        for order in DRAFT_ORDERS:
            for at in range(max(start, order), len(ids)):
                self._next[tuple(ids[at - order : at])] = ids[at]

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that may follow `ids`; fewer where nothing is known."""
        context = tuple(ids[-DRAFT_ORDERS[0] :])
        guesses: list[int] = []
        while len(guesses) < most:
            known = (self._next.get(context[-order:]) for order in DRAFT_ORDERS)
            token = next((token for token in known if token is not None), None)
            if token is None or token in self._stop:
                break
            guesses.append(token)
            context = (*context[1:], token)
        return guesses
