"""What an item cost: tokens generated, tokens encoded and seconds, read from what is on disk.

Generated are the tokens of answers. Encoded are those of prompts that no earlier pass over the same
dialogue had encoded: of a turn, its prompt beyond the `n_kept` ids that it shares with the turn
before; of measures, what their file says (`Spent`). What was not kept is not known, and stays so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from spikescore.detectors.base import MEASURED
from spikescore.measures.file import ON_SAMPLES


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


def measured_costs(first: dict[str, Any], found: dict[str, Any]) -> dict[str, list[float]]:
    """Return need -> [generated tokens, encoded tokens, seconds] of the measures that provide for
    it, as far as these are known.

    `first` is the dialogue's first step, `found` its measures. Of the lens, which reads all turns,
    it is the first exchange's part.
    """
    costs = {}
    for group, cost in found.get("costs", {}).items():
        need = "attentions" if group == "attention" else group
        costs[need] = [cost["generated"], cost["encoded"], cost["seconds"]]
    if lens := costs.pop("lens", None):
        exchange = [first.get("n_prompt_tokens"), first.get("n_response_tokens")]
        if None not in exchange and lens[1] >= sum(exchange):
            costs["lens"] = [0, sum(exchange), lens[2] * sum(exchange) / lens[1]]
    return costs


def groups_read(needs: Iterable[str]) -> list[str]:
    """Return the needs among these that measures provide for, the samples that they are about
    with them.
    """
    measured = MEASURED.intersection(needs)
    return sorted(measured | ({"samples"} if measured.intersection(ON_SAMPLES) else set()))
