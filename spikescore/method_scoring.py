"""Stage 2 for many methods: every detector fitted on every domain, and every item scored by it.

A method that learns nothing scores once. A method that learns is fitted on the train split of each
training domain, chooses on its validation split, and scores all items of all domains. What cannot
be done (a measure is missing, a domain has too few items of a class) is left out and the reason
kept; nothing is made up for it.
"""

from __future__ import annotations

import difflib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from spikescore.detectors import REGISTRY
from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector, StateDetector, TurnDetector
from spikescore.errors import UserError
from spikescore.probe_data import SPLITS, split_by_group
from spikescore.score_book import BookItem, Key, ScoreBook

log = logging.getLogger("spikescore")

TURN_SCORERS = (
    "saplma",
    "sep",
    "perplexity",
    "reasoning_score",
    "sharpness",
    "all_turn_probe",
    "random_projection",
    "linear_probe",
    "mass_mean",
)
"""The per-turn scorers whose trajectories the tables compare."""
LEAST = {"train": 3, "val": 1}
"""Items of each class below which a split has nothing to teach, or to choose by."""
BLOCK_BYTES = 2**26
"""FP16 states of dialogues scored at a time: bounds memory whatever the model and the data."""
MEASURED = frozenset({"lens", "attentions", "samples", "questions"})
"""Needs that measure_answers.py provides for."""


@dataclass(frozen=True)
class Settings:
    """What is scored by what. None: all methods, all domains, the usual scorers of turns.

    `seed` is that of the splits; the probe seeds are 0 .. probe_seeds - 1.
    """

    methods: Sequence[str] | None = None
    train_domains: Sequence[str] | None = None
    turn_scorers: Sequence[str] | None = None
    probe_seeds: int = 5
    val_fraction: float = 0.2
    test_fraction: float = 0.3
    seed: int = 42


def score_methods(
    items: Answers, settings: Settings, registry: Mapping[str, type[Detector]] = REGISTRY
) -> ScoreBook:
    """Fit and score everything that the settings ask for, and return the score book.

    `about` gets settings, seconds per method, what was left out and why, and how many items a
    method could not score. Raises UserError for an unknown name, or when nothing could be scored.
    The same items and settings give the same scores; those of a method do not depend on which
    other methods run.
    """
    return _Scoring(items, settings, registry).run()


def learns(detector: type[Detector]) -> bool:
    """Whether `fit` does anything."""
    return detector.fit is not Detector.fit


class _Scoring:
    """One run: what was chosen, and the book as it grows."""

    def __init__(
        self, items: Answers, settings: Settings, registry: Mapping[str, type[Detector]]
    ) -> None:
        known_domains = list(dict.fromkeys(items.domains.tolist()))
        self.items, self.settings, self.registry = items, settings, registry
        self.methods = chosen("method", settings.methods, registry)
        self.domains = chosen("training domain", settings.train_domains, known_domains)
        self.turn_scorers = _turn_scorers(settings.turn_scorers, self.methods, registry)
        self.left_out: list[tuple[str, str]] = []
        self.seconds: Counter[str] = Counter()
        self.book = ScoreBook(items.model, items.token_key, book_items(items))

    def run(self) -> ScoreBook:
        start = time.perf_counter()
        free = [name for name in self.methods if not learns(self.registry[name])]
        learning = [name for name in self.methods if learns(self.registry[name])]
        learning = [name for name in learning if self._has_measures(name)]
        if learning:
            self.book.splits = self._splits()
        n_fits = sum(self._n_seeds(name) for name in learning) * len(self.book.splits)
        readers: dict[Key, StateDetector] = {}
        with tqdm(total=len(free) + n_fits, desc="methods", unit="fit") as bar:
            for name in free:
                self._run_free(name)
                bar.update()
            for domain in self.book.splits:
                readers |= self._run_domain(domain, learning, bar)
        self._score_turns(readers)
        if not self.book.scores:
            raise UserError("nothing could be scored: " + "; ".join(told(self.left_out)))
        self._tell_about(time.perf_counter() - start)
        return self.book

    # --- fits -------------------------------------------------------------------------------

    def _run_free(self, name: str) -> None:
        """Score all items by a method that learns nothing."""
        with self._timed(name):
            self._score(self.registry[name](), (name, "", 0), name)

    def _run_domain(self, domain: str, names: Sequence[str], bar: tqdm) -> dict[Key, StateDetector]:
        """Fit the methods on a domain and score all items; return those that shall score turns."""
        if any("states" in self.registry[name].needs for name in names):
            _ = self.items.first_states  # read once, and shared by all that is selected
        split = self.book.splits[domain]
        train, val = (self.items.select(split == part) for part in ("train", "val"))
        readers: dict[Key, StateDetector] = {}
        for name in names:
            for seed in range(self._n_seeds(name)):
                bar.set_postfix_str(f"{name} on {domain}", refresh=False)
                with self._timed(name):
                    detector = self.registry[name]()
                    fitted = self._fit(detector, (name, domain, seed), train, val)
                bar.update()
                if fitted and name in self.turn_scorers and isinstance(detector, StateDetector):
                    readers[name, domain, seed] = detector
        return readers

    def _fit(self, detector: Detector, key: Key, train: Answers, val: Answers) -> bool:
        """Fit and score; False, and the reason kept, where that cannot be done."""
        name, domain, seed = key
        try:
            detector.fit(train, val, seed=seed)
            scored = self._score(detector, key, f"{name} on {domain}")
        except UserError as error:
            self._leave_out(f"{name} on {domain}", str(error))
            return False
        if scored:
            self.book.chosen["/".join(map(str, key))] = detector.chosen
        return scored

    def _score(self, detector: Detector, key: Key, what: str) -> bool:
        """Keep the scores of all items, and of computed turns; False when no item has one."""
        scores = np.asarray(detector.score(self.items), dtype=np.float64)
        if not np.isfinite(scores).any():
            self._leave_out(what, f"no item has a score; {_remedy(type(detector))}")
            return False
        self.book.scores[key] = scores
        if key[0] in self.turn_scorers and isinstance(detector, TurnDetector):
            self.book.turns[key] = detector.score_turns(self.items).astype(np.float32)
        return True

    def _n_seeds(self, name: str) -> int:
        return self.settings.probe_seeds if self.registry[name].seeded else 1

    def _has_measures(self, name: str) -> bool:
        detector = self.registry[name]
        if not detector.needs & MEASURED or any(self.items.measures):
            return True
        self._leave_out(name, f"nothing was measured; {_remedy(detector)}")
        return False

    def _leave_out(self, what: str, why: str) -> None:
        if (what, why) not in self.left_out:  # every probe seed fails alike
            self.left_out.append((what, why))

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    # --- splits and turns -------------------------------------------------------------------

    def _splits(self) -> dict[str, np.ndarray]:
        """Split each training domain's items; one that lacks items of a class is left out."""
        items, settings, splits = self.items, self.settings, {}
        for domain in self.domains:
            own = items.domains == domain
            split = np.full(len(items), "", dtype="<U5")
            split[own] = split_by_group(
                items.groups[own],
                strata=items.domains[own],
                y=items.y[own],
                fractions=(settings.val_fraction, settings.test_fraction),
                seed=settings.seed,
            )
            lacking = too_few(items.y, split)
            if lacking:
                self._leave_out(f"training domain {domain}", lacking)
                continue
            splits[domain] = split
            elsewhere = int(np.isin(items.groups[~own], items.groups[own]).sum())
            if elsewhere:
                log.warning("%d items outside %s ask what an item of it asks", elsewhere, domain)
        return splits

    def _score_turns(self, readers: Mapping[Key, StateDetector]) -> None:
        """Score every turn by all fitted readers of states, in one pass over the PKL files."""
        if not readers:
            return
        items = self.items
        n_turns = np.array([len(record["cot_steps"]) for record in items.records])
        tables = {
            key: np.full((len(items), n_turns.max()), np.nan, dtype=np.float32) for key in readers
        }
        with tqdm(total=len(items), desc="turns", unit="dialogue") as bar:
            for places in _blocks(n_turns * items.first_states[0].nbytes):
                states = np.concatenate(list(items.select(places).turn_states()))
                filled = np.arange(n_turns.max()) < n_turns[places, None]
                for key, detector in readers.items():
                    with self._timed(key[0]):
                        block = np.full(filled.shape, np.nan, dtype=np.float32)
                        block[filled] = detector.score_states(states)
                        tables[key][places] = block
                bar.update(len(places))
        self.book.turns |= tables

    # --- the book ---------------------------------------------------------------------------

    def _tell_about(self, seconds: float) -> None:
        book, unscored = self.book, Counter()
        for (name, _, _), scores in book.scores.items():
            unscored[name] = max(unscored[name], int(np.isnan(scores).sum()))
        scored = {key[0] for key in book.scores}
        book.methods = {
            name: _described(self.registry[name]) for name in self.methods if name in scored
        }
        book.about = {
            "settings": asdict(self.settings),
            "items_left_out": self.items.left_out,
            "left_out": self.left_out,
            "unscored": {name: count for name, count in unscored.items() if count},
            "seconds": {name: round(spent, 3) for name, spent in self.seconds.items()},
            "seconds_in_all": round(seconds, 3),
        }


def chosen(what: str, asked: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Return the names asked for, or all known; UserError, with the nearest, for an unknown one."""
    for name in asked or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise UserError(f'unknown {what} "{name}"{hint} Known: {", ".join(known)}')
    return list(known if asked is None else dict.fromkeys(asked))


def told(left_out: Sequence[tuple[str, str]]) -> list[str]:
    """Return one line per reason: what was left out for it, and the reason."""
    reasons = dict.fromkeys(why for _, why in left_out)
    return [", ".join(what for what, own in left_out if own == why) + f": {why}" for why in reasons]


def _turn_scorers(
    asked: Sequence[str] | None, methods: Sequence[str], registry: Mapping[str, type[Detector]]
) -> list[str]:
    if asked is None:
        return [name for name in TURN_SCORERS if name in methods]
    names = chosen("turn scorer among the methods", asked, methods)
    for name in names:
        if not issubclass(registry[name], StateDetector | TurnDetector):
            raise UserError(
                f'"{name}" scores first answers only, not turns; leave it out of the turn scorers'
            )
    return names


def too_few(y: np.ndarray, split: np.ndarray) -> str:
    """Return why a split [n] has too few items of a class to learn from; empty when it has not."""
    counts = {
        part: (int(y[split == part].sum()), int((1 - y[split == part]).sum())) for part in SPLITS
    }
    if all(min(counts[part]) >= least for part, least in LEAST.items()):
        return ""
    shown = ", ".join(f"{part} {one} / {zero}" for part, (one, zero) in counts.items())
    return (
        f"too few items of a class (hallucinated / consistent: {shown}); at least "
        + " and ".join(f"{least} of each in {part}" for part, least in LEAST.items())
        + " are needed"
    )


def book_items(items: Answers) -> list[BookItem]:
    """Return the items as the book keeps them: without `turn_tokens` if a length is unknown."""
    found = []
    for place, record in enumerate(items.records):
        lengths = [step.get("n_response_tokens") for step in record["cot_steps"]]
        found.append(
            BookItem(
                path=str(items.paths[place]),
                id=str(record["id"]),
                domain=str(items.domains[place]),
                group=str(items.groups[place]),
                y=int(items.y[place]),
                turn_tokens=() if None in lengths else tuple(map(int, lengths)),
            )
        )
    return found


def _blocks(sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Cut items of these sizes [n] in bytes into blocks of at most BLOCK_BYTES, or of one item."""
    start = 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sizes[start : end + 1].sum() > BLOCK_BYTES:
            yield np.arange(start, end)
            start = end


def _remedy(detector: type[Detector]) -> str:
    """What to do about a detector that has nothing to read."""
    needs = ", ".join(sorted(detector.needs)) or "nothing"
    script = "measure_answers.py" if detector.needs & MEASURED else "reasoning_lite.py"
    return f"it needs {needs}, which {script} writes: run that on the data folder"


def _described(detector: type[Detector]) -> dict[str, object]:
    return {
        "title": detector.title,
        "family": detector.family,
        "needs": sorted(detector.needs),
        "seeded": detector.seeded,
        "learns": learns(detector),
    }
