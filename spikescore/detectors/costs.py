"""What an item cost: tokens generated, tokens encoded and seconds, read from what is on disk.

Generated are the tokens of answers. Encoded are those of prompts that no earlier pass over the same
dialogue had encoded: of a turn, its prompt beyond the `n_kept` ids that it shares with the turn
before. What was not kept is not known, and stays so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RE_READ = frozenset({"lens", "attentions", "components"})
"""Needs that a second pass over the first prompt and answer provides for, nothing generated."""


def turn_costs(
    steps: Sequence[dict[str, Any]],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Return generated and encoded tokens, and seconds, of each turn; () where one is unknown."""
    generated = [step.get("n_response_tokens") for step in steps]
    parts = [(step.get("n_prompt_tokens"), step.get("n_kept")) for step in steps]
    # more kept than asked is damage, and no cost
    encoded = [None if None in pair or pair[1] > pair[0] else pair[0] - pair[1] for pair in parts]
    seconds = [step.get("seconds") for step in steps]
    return _known(generated, int), _known(encoded, int), _known(seconds, float)


def _known(values: Sequence[Any], kind: type) -> tuple:
    return () if None in values else tuple(map(kind, values))


def measured_costs(first: dict[str, Any], found: dict[str, Any]) -> dict[str, list[int]]:
    """Return need -> [generated, encoded] tokens of what measure_answers.py did for a first answer
    beyond generating it; a need whose ids were not kept is absent.

    `first` is the dialogue's first step, `found` its measures. N samples share one encoding of
    their prompt. The work of another model, such as one that judges entailment, is not counted.
    """
    asked, answered = first.get("n_prompt_tokens"), first.get("n_response_tokens")
    if asked is None or answered is None:
        return {}
    costs = {need: [0, int(asked) + int(answered)] for need in sorted(RE_READ)}
    if samples := found.get("samples"):
        costs["samples"] = [int(sum(samples["n_tokens"])), int(asked)]
    return costs
