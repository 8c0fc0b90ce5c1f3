"""Made-up score books whose effects are planted, hence known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spikescore.detectors.score_book import BookItem, ScoreBook


def make_book(
    *, n: int = 80, domains: int = 3, seeds: int = 2, turns: int = 8, seed: int = 0
) -> ScoreBook:
    """Return a book of n items per domain, 40% to 60% of them hallucinated.

    SAPLMA's trajectories swing three times as far where the item is hallucinated, and its score of
    the first answer knows nothing. Perplexity knows a little. Rates differ between domains.
    """
    rng = np.random.default_rng(seed)
    items = []
    for domain in range(domains):
        for place in range(n):
            y = int(rng.random() < 0.4 + 0.1 * domain)
            lengths = tuple(int(length) for length in rng.integers(5, 30, turns))
            name = f"d{domain}"
            path = f"{name}/q{place}.json"
            items.append(BookItem(path, f"q{place}", name, f"{name}/q{place}", y, lengths))
    book = ScoreBook("./models/made-up", "last_token_embedding", items)
    y = book.y
    for domain in book.domain_names():
        split = np.full(len(items), "", dtype="<U5")
        own = np.flatnonzero(book.domains == domain)
        split[own] = np.resize(["train", "train", "val", "test", "test"], own.size)
        book.splits[domain] = split
        for number in range(seeds):
            swing = rng.normal(0.5, 0.05 * (1 + 2 * y[:, None]), (y.size, turns))
            book.turns["saplma", domain, number] = swing.astype(np.float32)
            book.scores["saplma", domain, number] = swing[:, 0]
    perplexity = np.exp(rng.normal(y[:, None] * 0.5, 1, (y.size, turns)))
    book.turns["perplexity", "", 0] = perplexity.astype(np.float32)
    book.scores["perplexity", "", 0] = perplexity[:, 0]
    rates = {name: y[book.domains == name].mean() for name in book.domain_names()}
    book.scores["domain_identity", "", 0] = np.array([rates[item.domain] for item in items])
    for name, title, family in (
        ("perplexity", "perplexity", "training-free"),
        ("saplma", "SAPLMA", "trained"),
        ("domain_identity", "domain identity (oracle)", "control"),
    ):
        book.methods[name] = {"title": title, "family": family, "needs": []}
    return book


def trained_on_others(book: ScoreBook) -> ScoreBook:
    """Return a book of the same items and scores, as trained on all domains but the tested one."""
    names = {domain: f"all but {domain}" for domain in book.domain_names()}
    splits = {
        name: np.where(book.domains == domain, "", "train").astype("<U5")
        for domain, name in names.items()
    }
    scores, turns = (
        {(key[0], names.get(key[1], ""), key[2]): values.copy() for key, values in held.items()}
        for held in (book.scores, book.turns)
    )
    return replace(book, splits=splits, scores=scores, turns=turns)
