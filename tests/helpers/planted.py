"""Pairs on disk with a planted effect whose AUROC is known in closed form.

Every state of the signal layer moves along one fixed direction u. The first answer lies at
`first` * u for hallucinated items and at -`first` * u for consistent ones, plus unit noise in all
directions; that is all a probe of first answers can learn. From turn 2 on all items rest at the
origin, but for one swing by h * u, -h * u, h * u at three turns in a row, placed at random. A probe
that rises along u turns a larger h into a larger SpikeScore, whatever its shape, and the swing
outdoes the step from turn 1 to turn 2. Hence SpikeScore's AUROC is P(h of a hallucinated item > h
of a consistent one), with h uniform on [1, 2] for consistent items and on [1 + shift, 2 + shift]
for hallucinated ones: by default evenly spaced there, so that a whole domain's AUROC is the planted
one but for 1 / n, else drawn at random. The other layers hold unit noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spikescore.pairs import TOKEN_KEYS, write_pair
from spikescore.runtime import derived_seed
from tests.helpers.factories import MODEL, make_record

LAYERS, HIDDEN, SIGNAL_LAYER = 2, 8, 1


def planted_auroc(shift: float) -> float:
    """Return P(U + shift > V) for U, V uniform on [0, 1] and shift from 0 to 1."""
    return 1 - (1 - shift) ** 2 / 2


def write_domain(
    folder: Path,
    *,
    n: int,
    first: float,
    shift: float,
    evenly: bool = True,
    turns: int = 7,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Write n dialogues, half of them hallucinated, and return y [n] and the swings h [n].

    The domain's name is that of the folder. At least 7 turns, so that the swing keeps clear of the
    first two.
    """
    rng = np.random.default_rng(derived_seed(seed, folder.name, "planted"))
    direction = np.random.default_rng(HIDDEN).standard_normal(HIDDEN)
    direction /= np.linalg.norm(direction)
    y = rng.permutation(np.arange(n) % 2)
    swings = rng.uniform(1, 2, size=n)
    for label in (0, 1) if evenly else ():
        places = rng.permutation(np.flatnonzero(y == label))
        swings[places] = 1 + (np.arange(places.size) + rng.random()) / places.size
    swings += shift * y
    for item, (label, swing) in enumerate(zip(y.tolist(), swings, strict=True)):
        along = np.zeros(turns)
        along[0] = first * (2 * label - 1)
        middle = rng.integers(4, turns - 1)  # counted from 0: turns 5 to K - 1
        along[middle - 1 : middle + 2] = swing, -swing, swing
        states = rng.standard_normal((turns, LAYERS + 1, HIDDEN))
        states[1:, SIGNAL_LAYER] = 0
        states[:, SIGNAL_LAYER] += along[:, None] * direction
        by_turn = {
            turn: dict.fromkeys(TOKEN_KEYS, state.astype(np.float16))
            for turn, state in enumerate(states, start=1)
        }
        name = f"{folder.name}-{item:04d}"
        record = make_record(name, y=label, turns=turns, domain=folder.name, model=MODEL)
        write_pair(folder, record, by_turn, model=MODEL)
    return y, swings
