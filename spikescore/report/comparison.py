"""Methods compared on one model: each method's scores per training domain, and the tables' cells.

Three views are kept apart. *pooled*: all other domains in one pool. *macro*: the mean of their
AUROCs. *in-domain*: the held-out test split of the training domain. A cell belongs to a view and a
training domain; a method that learns nothing has cells too, measured on the same items. The mean
over training domains has an interval of its own, as all cells share their bootstrap draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from spikescore.detectors.score_book import ScoreBook
from spikescore.report.paper import BASE_SCORER
from spikescore.stats.bootstrap import Area, Contrast, Resampler, contrast_of_draws
from spikescore.stats.trajectory import (
    FUNCTIONALS,
    apply,
    remove_turn_means,
    truncate,
    turn_means,
)

VIEWS = {
    "macro": "cross-domain, macro (mean over the other domains)",
    "pooled": "cross-domain, pooled (the other domains in one pool)",
    "in-domain": "in-domain (held-out questions of the training domain)",
}
CROSS = ("macro", "pooled")
SPIKE = "spike_score"
SCORERS = ("saplma", "sep", "perplexity", "reasoning_score", "sharpness")
"""Base scorers of the paper, in its order; others that were scored per turn follow."""


@dataclass(frozen=True)
class Entry:
    """One method: its scores [seeds, n] for each training domain, on all items of the book.

    `seeds` says which probe seeds the rows are of; without it they are 0, 1, ...
    """

    name: str
    title: str
    family: str
    scores: dict[str, np.ndarray]
    seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def seeds_of(self, domain: str) -> tuple[int, ...]:
        """Return the probe seeds of a training domain's rows."""
        return self.seeds.get(domain) or tuple(range(len(self.scores[domain])))

    @property
    def seeded(self) -> bool:
        """Whether chance has a part in it: a method without it has seed 0 alone, everywhere."""
        return any(self.seeds_of(domain) != (0,) for domain in self.scores)

    def rows(self, domain: str, seeds: set[int]) -> np.ndarray:
        """Return the scores [m, n] of those seeds; all of a method without chance."""
        if not self.seeded:
            return self.scores[domain]
        return self.scores[domain][[seed in seeds for seed in self.seeds_of(domain)]]


# --- entries of a book ------------------------------------------------------------------------


def static_entries(book: ScoreBook) -> dict[str, Entry]:
    """Return the methods that score the first answer, in the book's order."""
    found = {}
    for name, about in book.methods.items():
        keys = {domain: book.seeds_of(name, domain) for domain in book.splits}
        scores = {domain: [book.scores[key] for key in own] for domain, own in keys.items()}
        if entry := _entry(name, about["title"], about["family"], scores, keys):
            found[name] = entry
    return found


def trajectory_entry(
    book: ScoreBook, functional: str, scorer: str, k: int | None = None
) -> Entry | None:
    """Return a functional over a scorer's trajectories, or over their first k turns; None when the
    book has none of them.

    SpikeScore over SAPLMA is called "spike_score", any other "<functional>:<scorer>".
    """
    spike = (functional, scorer) == ("max_abs_d2", BASE_SCORER)
    over = f"{FUNCTIONALS[functional].title} over {scorer_title(book, scorer)}"
    name, title = (SPIKE, "SpikeScore") if spike else (f"{functional}:{scorer}", over)
    if k is not None:
        name, title = f"{name}@{k}", f"{title}, K = {k}"

    def compute(turns: np.ndarray, domain: str) -> np.ndarray:
        return apply(functional, turns if k is None else truncate(turns, k))

    return _turns_entry(book, scorer, name, title, compute)


def without_turn_means(book: ScoreBook) -> Entry | None:
    """Return SpikeScore with each turn's mean removed, the mean being that of the train split.

    A probe trained on first answers moves with the prompt of later turns, whatever the item; this
    takes away what all items share.
    """

    def centred(turns: np.ndarray, domain: str) -> np.ndarray:
        means = turn_means(turns[book.splits[domain] == "train"])
        return apply("max_abs_d2", remove_turn_means(turns, means))

    title = "SpikeScore, each turn's training mean removed"
    name = f"spike_means_removed:{BASE_SCORER}"
    return _turns_entry(book, BASE_SCORER, name, title, centred, family="control")


def _turns_entry(
    book: ScoreBook,
    scorer: str,
    name: str,
    title: str,
    compute: Callable[[np.ndarray, str], np.ndarray],
    family: str = "trajectory",
) -> Entry | None:
    """Return what `compute` makes of a scorer's turns [n, K] and their training domain: [n]."""
    keys = {domain: book.seeds_of(scorer, domain, turns=True) for domain in book.splits}
    scores = {
        domain: [compute(book.turns[key], domain) for key in own] for domain, own in keys.items()
    }
    return _entry(name, title, family, scores, keys)


def _entry(name: str, title: str, family: str, scores: dict, keys: dict) -> Entry | None:
    rows = {domain: np.stack(own) for domain, own in scores.items() if own}
    seeds = {domain: tuple(key[2] for key in keys[domain]) for domain in rows}
    return Entry(name, title, family, rows, seeds) if rows else None


def trajectories(book: ScoreBook, scorer: str) -> dict[str, list[np.ndarray]]:
    """Return a scorer's per-turn scores for each training domain, one [n, K] per seed."""
    found = {
        domain: [book.turns[key] for key in book.seeds_of(scorer, domain, turns=True)]
        for domain in book.splits
    }
    return {domain: rows for domain, rows in found.items() if rows}


def longest(book: ScoreBook, scorer: str) -> int:
    """Return the turns K of a scorer's longest trajectory; 0 when the book has none."""
    return max((turns.shape[1] for key, turns in book.turns.items() if key[0] == scorer), default=0)


def scorers_of(book: ScoreBook) -> list[str]:
    """Return the scorers that the book has trajectories of, the paper's first."""
    held = dict.fromkeys(key[0] for key in book.turns)
    return [one for one in SCORERS if one in held] + [one for one in held if one not in SCORERS]


def scorer_title(book: ScoreBook, scorer: str) -> str:
    """Return a scorer's printed name."""
    return book.methods.get(scorer, {}).get("title", scorer)


# --- two books --------------------------------------------------------------------------------

UNUSED = "other"
"""The split of an item that is not of the same split in both runs: it is in no view."""


def on_shared_items(one: ScoreBook, other: ScoreBook) -> list[ScoreBook]:
    """Return both books with the items alone that both have, in one order, with one's groups.

    An item whose split is not the same in both is UNUSED for that training domain.
    """
    places = {}
    for place, item in enumerate(other.items):
        places.setdefault((item.domain, item.id), place)
    keys = {}
    for place, item in enumerate(one.items):
        if (item.domain, item.id) in places:
            keys.setdefault((item.domain, item.id), place)
    mine = one.take(np.array(list(keys.values()), dtype=int))
    theirs = other.take(np.array([places[key] for key in keys], dtype=int))
    items = [replace(item, group=twin.group)
             for item, twin in zip(theirs.items, mine.items, strict=True)]  # fmt: skip
    books = []
    for book, own in ((mine, mine.items), (theirs, items)):
        splits = {
            domain: np.where(mine.splits[domain] == theirs.splits[domain], split, UNUSED)
            for domain, split in book.splits.items()
        }
        books.append(replace(book, items=own, splits=splits))
    return books


# --- cells ------------------------------------------------------------------------------------


class Comparison:
    """Cells of the tables of one book; every area is computed once.

    `valid` [n], where a function takes it, marks the items that a figure is confined to.
    """

    def __init__(self, book: ScoreBook, *, draws: int, seed: int = 0) -> None:
        self.book = book
        self.y, self.domains = book.y, book.domains
        self.resampler = Resampler(self.y, self.domains, book.groups, draws=draws, seed=seed)
        self.training_domains = list(book.splits)
        self._areas: dict[tuple, Area] = {}

    def items(self, view: str, domain: str) -> list[np.ndarray]:
        """Return the masks [n] that a cell averages over: one, or one per domain for macro."""
        if view == "in-domain":
            return [self.book.splits[domain] == "test"]
        others = self.book.splits[domain] == ""
        if view == "macro":
            names = dict.fromkeys(self.domains[others].tolist())
            return [others & (self.domains == other) for other in names]
        return [others]

    def masks(self, view: str) -> list[np.ndarray]:
        """Return the masks [n] of all cells of a view, those without items left out."""
        return [mask for domain in self.training_domains
                for mask in self.items(view, domain) if mask.any()]  # fmt: skip

    def cell(self, entry: Entry, view: str, domain: str, valid: np.ndarray | None = None) -> Area:
        """Return a method's area in a view for a training domain, on the valid items alone."""
        if domain not in entry.scores:
            return self._missing(view, domain)
        return self._cell(entry.scores[domain], view, domain, valid)

    def mean(self, entry: Entry, view: str, valid: np.ndarray | None = None) -> Area:
        """Return the mean of a method's cells over the training domains."""
        cells = [self.cell(entry, view, domain, valid) for domain in self.training_domains]
        return self.resampler.mean(cells, of="training domains")

    def contrast(
        self, one: Entry, other: Entry, view: str, valid: np.ndarray | None = None
    ) -> Contrast:
        """Return how much one method's mean exceeds another's.

        Both means are over the same training domains (those that both were fitted on), items (those
        that both score) and probe seeds (a method without chance counts for each); the note says
        where some are missing.
        """
        return self._contrast(one, other, view, valid, self)

    def difference(self, one: Entry, beside: Comparison, other: Entry, view: str) -> Contrast:
        """Return how much a method's mean exceeds that of one `beside`: in another run, of the same
        items in the same order (`on_shared_items`), with its own labels.

        As in `contrast`, both means are over the same cells: those computable in both runs.
        """
        return self._contrast(one, other, view, None, beside)

    def _contrast(
        self, one: Entry, other: Entry, view: str, valid: np.ndarray | None, beside: Comparison
    ) -> Contrast:
        pairs, lacking, notes = [], [], []
        sides = (self, beside)
        for domain in self.training_domains:
            fitted = [entry for entry in (one, other) if domain in entry.scores]
            seeds = [set(entry.seeds_of(domain)) for entry in fitted if entry.seeded] or [{0}]
            shared, every = set.intersection(*seeds), set.union(*seeds)
            if len(fitted) < 2 or not shared:
                lacking.append(self._missing(view, domain))
                continue
            rows = [entry.rows(domain, shared) for entry in (one, other)]
            both = np.all([np.isfinite(scores).all(axis=0) for scores in rows], axis=0)
            both = both if valid is None else both & valid
            for mask in self.items(view, domain) if beside is not self else ():
                areas = [side._area(scores, mask & both)
                         for side, scores in zip(sides, rows, strict=True)]  # fmt: skip
                if any(area.value is None for area in areas):
                    both = both & ~mask
            cells = [side._cell(scores, view, domain, both)
                     for side, scores in zip(sides, rows, strict=True)]  # fmt: skip
            if beside is not self and cells[0].value is None:
                lacking.append(cells[0])
                continue
            if shared != every:
                notes.append(f"{len(shared)} of {len(every)} probe seeds ({domain})")
            pairs.append(cells)
        if pairs and lacking:
            notes.append(f"over {len(pairs)} of {len(self.training_domains)} training domains")
        means = [
            self.resampler.mean(cells, of="training domains")
            for cells in (zip(*pairs, strict=True) if pairs else (lacking, lacking))
        ]
        found = (self.resampler.contrast if beside is self else contrast_of_draws)(*means)
        made, of = found.parts
        parts = (made, of + sum(area.parts[1] for area in lacking)) if pairs else found.parts
        return replace(found, note="; ".join(filter(None, [*notes, found.note])), parts=parts)

    def matrix(self, entry: Entry) -> np.ndarray:
        """Return AUROCs, training x test domain, NaN for none; the diagonal is held out."""
        names = self.book.domain_names()
        table = np.full((len(self.training_domains), len(names)), np.nan)
        for row, domain in enumerate(self.training_domains):
            for column, other in enumerate(names):
                view = "in-domain" if other == domain else "pooled"
                value = self.cell(entry, view, domain, self.domains == other).value
                table[row, column] = np.nan if value is None else value
        return table

    def rate(self, view: str, domain: str) -> tuple[int, float | None]:
        """Return number and hallucination rate of the items that a cell is about."""
        items = np.any(self.items(view, domain), axis=0)
        return int(items.sum()), float(self.y[items].mean()) if items.any() else None

    def _missing(self, view: str, domain: str) -> Area:
        nobody, parts = np.zeros(self.y.size, dtype=bool), len(self.items(view, domain))
        return self.resampler.nothing(nobody, f"not scored when trained on {domain}", (0, parts))

    def _cell(self, scores: np.ndarray, view: str, domain: str, valid: np.ndarray | None) -> Area:
        masks = self.items(view, domain)
        areas = [self._area(scores, mask if valid is None else mask & valid) for mask in masks]
        return self.resampler.mean(areas, of="domains")

    def _area(self, scores: np.ndarray, mask: np.ndarray) -> Area:
        # by content: a method that learns nothing has the same scores for every training domain
        key = (hashlib.sha256(np.ascontiguousarray(scores)).digest(), mask.tobytes())
        if key not in self._areas:
            self._areas[key] = self._measure(scores, mask)
        return self._areas[key]

    def _measure(self, scores: np.ndarray, mask: np.ndarray) -> Area:
        return self.resampler.area(scores, mask)


class TwinComparison(Comparison):
    """Cells of paired accuracies instead of AUROCs: how often the wrong given answer to a question
    scores higher than the right one (`Resampler.paired`), on the draws of another comparison.
    """

    def __init__(self, other: Comparison) -> None:
        self.book, self.resampler = other.book, other.resampler
        self.y, self.domains = other.y, other.domains
        self.training_domains = other.training_domains
        self._areas = {}

    def _measure(self, scores: np.ndarray, mask: np.ndarray) -> Area:
        return self.resampler.paired(scores, mask, self.book.pairs)


def leaders(
    comparison: Comparison, entries: Sequence[Entry], view: str, valid: np.ndarray | None = None
) -> frozenset[str]:
    """Return the names of the best entry and of those that are not significantly worse.

    The best has the largest mean of those computable in the most cells; another is not worse where
    the 95% interval of their paired difference, on the items that both score, holds 0. Controls,
    which nobody would use, do not compete.
    """
    means = {
        entry.name: comparison.mean(entry, view, valid)
        for entry in entries
        if entry.family != "control"
    }
    whole = max((area.parts[0] for area in means.values() if area.value is not None), default=0)
    running = [one for one in entries if one.name in means and means[one.name].parts[0] == whole]
    if not whole:
        return frozenset()
    best = max(running, key=lambda entry: means[entry.name].value)
    found = {best.name}
    for entry in running:
        interval = comparison.contrast(best, entry, view, valid).interval
        if interval and interval[0] <= 0:
            found.add(entry.name)
    return frozenset(found)


LEADERS = (
    "Bold (* in Markdown): the best, and all that are not significantly worse (the 95% interval of "
    "the paired difference to the best, on the same items, holds 0); controls do not compete."
)


def seed_means(comparison: Comparison, entry: Entry, view: str) -> list[Area]:
    """Return the mean over training domains for each probe seed by itself."""
    found = []
    for seed in sorted({seed for domain in entry.scores for seed in entry.seeds_of(domain)}):
        rows = {domain: entry.rows(domain, {seed}) for domain in entry.scores}
        alone = {domain: own for domain, own in rows.items() if len(own)}
        found.append(comparison.mean(Entry(entry.name, entry.title, entry.family, alone), view))
    return found


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
