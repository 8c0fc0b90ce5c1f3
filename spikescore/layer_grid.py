"""SAPLMA at every layer and token, none chosen: what a table of layers x tokens is made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spikescore.detectors.answers import Answers, read_answers
from spikescore.detectors.layers import first_answers
from spikescore.detectors.networks import Saplma
from spikescore.errors import UserError
from spikescore.functionals import apply
from spikescore.method_scoring import Settings, book_items, chosen, score_turns, split_domains
from spikescore.pairs import TOKEN_KEYS
from spikescore.score_book import Key, ScoreBook
from spikescore.threads import limited_threads, threads_for

WHAT = {"spike": "max_abs_d2", "first": "first"}
"""What is kept of the trajectories of each probe: SpikeScore, and the first answer's score."""


def score_layer_grid(folder: str | Path, settings: Settings) -> ScoreBook:
    """Fit SAPLMA on each training domain at each layer (0 to L) and token, and score all items.

    The scores are named "<spike or first>@<token key>@<layer>"; one probe seed. Raises UserError
    when no domain can be trained on.
    """
    book = None
    for token_key in TOKEN_KEYS:
        items = read_answers(folder, token_key=token_key)
        domains = list(dict.fromkeys(items.domains.tolist()))
        domains = chosen("training domain", settings.train_domains, domains)
        splits, left_out = split_domains(items, domains, settings)
        if not splits:
            raise UserError("; ".join(f"{what}: {why}" for what, why in left_out))
        if book is None:
            book = ScoreBook(items.model, "all", book_items(items), splits=splits)
            book.about = {
                "items_left_out": items.left_out, "left_out": left_out, "unscored": {},
                "seconds": {}, "settings": {"probe_seeds": 1},
            }  # fmt: skip
        with limited_threads(threads_for(items.first_states[0].nbytes)):
            readers = dict(_fit(items, splits, token_key))
        for (name, domain, seed), turns in score_turns(items, readers).items():
            for what, functional in WHAT.items():
                key = f"{what}@{name}"
                book.scores[key, domain, seed] = apply(functional, turns)
                book.methods[key] = {"title": key, "family": "trained", "needs": ["states"]}
    return book


def _fit(
    items: Answers, splits: dict[str, np.ndarray], token_key: str
) -> Iterator[tuple[Key, Saplma]]:
    for domain, split in splits.items():
        material = first_answers(*(items.select(split == part) for part in ("train", "val")))
        for layer in range(material.features.shape[1]):
            detector = Saplma()
            detector.fit_layer(material, layer, seed=0)
            yield (f"{token_key}@{layer}", domain, 0), detector
