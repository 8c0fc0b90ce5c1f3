"""Where the spikes fall: at which turn, and after prompts of which family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from spikescore.report.content import Table


@dataclass(frozen=True)
class Spike:
    """A dialogue's spike: label, turn (from 1), each turn's prompt family (() if unknown)."""

    y: int
    turn: int
    n_turns: int
    families: tuple[str, ...] = ()


def family_table(spikes: Sequence[Spike]) -> Table | None:
    """Return by prompt family how many spikes fall on its turns, beside how many would by chance.

    A spike is at turn 2 to K - 1; by chance it is at any of them alike. None where no families are
    known.
    """
    known = [spike for spike in spikes if len(spike.families) == spike.n_turns > 2]
    if not known:
        return None
    chance: Counter[str] = Counter()
    for spike in known:
        inner = spike.families[1:-1]
        for family in inner:
            chance[family] += 1 / len(inner)
    rows = []
    for family in chance:  # in the order of the turns
        cells = []
        for y in (1, 0):
            own = [spike for spike in known if spike.y == y]
            here = sum(spike.families[spike.turn - 1] == family for spike in own)
            cells.append(f"{here} ({here / len(own):.0%})" if own else "")
        rows.append((family or "(not said)", f"{chance[family] / len(known):.0%}", *cells))
    return Table(
        "Spikes by family of the prompt",
        ("family", "by chance", "hallucinated", "consistent"),
        tuple(rows),
        "The turn of the spike is the middle one of the three scores that make it; by chance it "
        "would fall on all turns but the first and the last alike.",
    )


def turn_shares(spikes: Sequence[Spike]) -> dict[int, list[float]]:
    """Return for y = 1 and y = 0 the percentage of spikes at turn 1, 2, ... K."""
    longest = max((spike.n_turns for spike in spikes), default=0)
    found = {}
    for y in (1, 0):
        turns = Counter(spike.turn for spike in spikes if spike.y == y)
        total = max(1, turns.total())
        found[y] = [100 * turns[turn] / total for turn in range(1, longest + 1)]
    return found
