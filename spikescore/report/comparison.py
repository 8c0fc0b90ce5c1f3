"""Methods compared on one model: each method's scores per training domain, and the tables' cells.

Three views are kept apart. *pooled*: all other domains in one pool. *macro*: the mean of their
AUROCs. *in-domain*: the held-out test split of the training domain. A cell belongs to a view and a
training domain; a method that learns nothing has cells too, measured on the same items. The mean
over training domains has an interval of its own, as all cells share their bootstrap draws.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from spikescore.detectors.score_book import ScoreBook
from spikescore.report.paper import BASE_SCORER
from spikescore.stats.bootstrap import Area, Contrast, Resampler
from spikescore.stats.trajectory import FUNCTIONALS, apply, remove_turn_means, turn_means

VIEWS = {
    "macro": "cross-domain, macro (mean over the other domains)",
    "pooled": "cross-domain, pooled (the other domains in one pool)",
    "in-domain": "in-domain (held-out questions of the training domain)",
}
SPIKE = "spike_score"


@dataclass(frozen=True)
class Entry:
    """One method: its scores [seeds, n] for each training domain, on all items of the book."""

    name: str
    title: str
    family: str
    scores: dict[str, np.ndarray]


def static_entries(book: ScoreBook) -> dict[str, Entry]:
    """Return the methods that score the first answer, in the book's order."""
    return {
        name: Entry(name, about["title"], about["family"], _stacked(book, name))
        for name, about in book.methods.items()
        if _stacked(book, name)
    }


def trajectory_entry(book: ScoreBook, functional: str, scorer: str) -> Entry | None:
    """Return a functional over a scorer's trajectories; None when the book has none of them.

    SpikeScore over SAPLMA is called "spike_score", any other "<functional>:<scorer>".
    """
    scores = {
        domain: np.stack([apply(functional, turns) for turns in rows])
        for domain, rows in trajectories(book, scorer).items()
    }
    if not scores:
        return None
    spike = (functional, scorer) == ("max_abs_d2", BASE_SCORER)
    name = SPIKE if spike else f"{functional}:{scorer}"
    title = (
        "SpikeScore"
        if spike
        else f"{FUNCTIONALS[functional].title} over {scorer_title(book, scorer)}"
    )
    return Entry(name, title, "trajectory", scores)


def without_turn_means(book: ScoreBook, scorer: str = BASE_SCORER) -> Entry | None:
    """Return SpikeScore with each turn's mean removed, the mean being that of the train split.

    A probe trained on first answers moves with the prompt of later turns, whatever the item; this
    takes away what all items share.
    """
    scores = {}
    for domain, rows in trajectories(book, scorer).items():
        learnt = book.splits[domain] == "train"
        centred = [remove_turn_means(turns, turn_means(turns[learnt])) for turns in rows]
        scores[domain] = np.stack([apply("max_abs_d2", turns) for turns in centred])
    if not scores:
        return None
    title = "SpikeScore, each turn's training mean removed"
    return Entry(f"spike_means_removed:{scorer}", title, "control", scores)


def trajectories(book: ScoreBook, scorer: str) -> dict[str, list[np.ndarray]]:
    """Return a scorer's per-turn scores for each training domain, one [n, K] per seed."""
    found = {
        domain: [book.turns[key] for key in book.seeds_of(scorer, domain, turns=True)]
        for domain in book.splits
    }
    return {domain: rows for domain, rows in found.items() if rows}


def scorer_title(book: ScoreBook, scorer: str) -> str:
    """Return a scorer's printed name."""
    return book.methods.get(scorer, {}).get("title", scorer)


def _stacked(book: ScoreBook, name: str) -> dict[str, np.ndarray]:
    found = {}
    for domain in book.splits:
        keys = book.seeds_of(name, domain)
        if keys:
            found[domain] = np.stack([book.scores[key] for key in keys])
    return found


class Comparison:
    """Cells of the tables of one book; every area is computed once."""

    def __init__(self, book: ScoreBook, *, draws: int, seed: int = 0) -> None:
        self.book = book
        self.y, self.domains = book.y, book.domains
        self.resampler = Resampler(self.y, self.domains, book.groups, draws=draws, seed=seed)
        self.training_domains = list(book.splits)
        self._areas: dict[tuple, Area] = {}

    def items(self, view: str, domain: str) -> list[np.ndarray]:
        """Return the masks [n] that a cell averages over: one, or one per domain for macro."""
        if view == "in-domain":
            return [(self.domains == domain) & (self.book.splits[domain] == "test")]
        others = [other for other in self.book.domain_names() if other != domain]
        if view == "macro":
            return [(self.domains == other) for other in others]
        return [np.isin(self.domains, others)]

    def cell(self, entry: Entry, view: str, domain: str, valid: np.ndarray | None = None) -> Area:
        """Return a method's area in a view for a training domain, on the valid items alone."""
        key = (entry.name, view, domain, None if valid is None else valid.tobytes())
        if key not in self._areas:
            masks = self.items(view, domain)
            if domain not in entry.scores:
                empty = np.zeros(self.y.size, dtype=bool)
                area = self.resampler.area(np.full(self.y.size, np.nan), empty)
            else:
                scores = entry.scores[domain]
                areas = [
                    self._area(scores, mask if valid is None else mask & valid) for mask in masks
                ]
                area = self.resampler.mean(areas, of="domains")
            self._areas[key] = area
        return self._areas[key]

    def mean(self, entry: Entry, view: str, valid: np.ndarray | None = None) -> Area:
        """Return the mean of a method's cells over the training domains."""
        cells = [self.cell(entry, view, domain, valid) for domain in self.training_domains]
        return self.resampler.mean(cells, of="training domains")

    def matrix(self, entry: Entry) -> np.ndarray:
        """Return the AUROC for training domain (row) x test domain (column), NaN if not computable.

        The diagonal is of the held-out test split.
        """
        names = self.book.domain_names()
        table = np.full((len(self.training_domains), len(names)), np.nan)
        for row, domain in enumerate(self.training_domains):
            for column, other in enumerate(names):
                if domain not in entry.scores:
                    continue
                if other == domain:
                    area = self.cell(entry, "in-domain", domain)
                else:
                    mask = self.domains == other
                    area = self._area(entry.scores[domain], mask)
                table[row, column] = np.nan if area.value is None else area.value
        return table

    def contrast(self, one: Entry, other: Entry, view: str) -> Contrast:
        """Return how much one method's mean exceeds another's, on the items that both score."""
        both = self._scored(one) & self._scored(other)
        valid = None if both.all() else both
        return self.resampler.contrast(self.mean(one, view, valid), self.mean(other, view, valid))

    def rate(self, view: str, domain: str) -> tuple[int, float | None]:
        """Return number and hallucination rate of the items that a cell is about."""
        items = np.any(self.items(view, domain), axis=0)
        return int(items.sum()), float(self.y[items].mean()) if items.any() else None

    def _area(self, scores: np.ndarray, mask: np.ndarray) -> Area:
        # by content: a method that learns nothing has the same scores for every training domain
        key = (hashlib.sha256(np.ascontiguousarray(scores)).digest(), mask.tobytes())
        if key not in self._areas:
            self._areas[key] = self.resampler.area(scores, mask)
        return self._areas[key]

    def _scored(self, entry: Entry) -> np.ndarray:
        rows = [np.isfinite(scores).all(axis=0) for scores in entry.scores.values()]
        return np.all(rows, axis=0) if rows else np.zeros(self.y.size, dtype=bool)


def seed_means(comparison: Comparison, entry: Entry, view: str) -> list[float]:
    """Return the mean over training domains for each probe seed by itself, computable ones only."""
    n_seeds = max(len(scores) for scores in entry.scores.values())
    values = []
    for seed in range(n_seeds):
        one = {
            domain: scores[min(seed, len(scores) - 1)][None]
            for domain, scores in entry.scores.items()
        }
        alone = Entry(f"{entry.name}#{seed}", entry.title, entry.family, one)
        value = comparison.mean(alone, view).value
        if value is not None:
            values.append(value)
    return values


def match_base_rates(y: np.ndarray, domains: np.ndarray, *, seed: int) -> np.ndarray:
    """Return a mask [n] that keeps as many hallucinated as consistent items of every domain.

    Of the larger class a seeded random part is kept, so that a score which knows only the domain
    is worth nothing in the pool.
    """
    rng = np.random.default_rng(seed)
    kept = np.zeros(y.size, dtype=bool)
    for domain in dict.fromkeys(domains.tolist()):
        classes = [np.flatnonzero((domains == domain) & (y == label)) for label in (0, 1)]
        size = min(map(len, classes))
        for members in classes:
            kept[rng.permutation(members)[:size]] = True
    return kept
