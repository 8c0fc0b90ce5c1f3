"""Stage 2 for many methods: every detector fitted on every domain, and every item scored by it.

A method that learns nothing scores once. A method that learns is fitted on the train split of each
training domain, chooses on its validation split, and scores all items of all domains. What cannot
be done (a measure is missing, a domain has too few items of a class) is left out and the reason
kept; nothing is made up for it. What a detector returns is checked where it is called.
`score_layer_grid` does the same for one probe at every layer and token, for the tables of layers.
"""

from __future__ import annotations

import difflib
import json
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.detectors import REGISTRY
from spikescore.detectors.answers import BLOCK_BYTES, Answers, read_answers
from spikescore.detectors.base import (
    MEASURED,
    Detector,
    Misbehaved,
    StateDetector,
    TurnDetector,
    checked,
    load_detector,
)
from spikescore.detectors.costs import groups_read, measured_costs, turn_costs
from spikescore.detectors.lesson import LayerReader, first_answers
from spikescore.detectors.networks import Saplma
from spikescore.detectors.score_book import BookItem, Key, ScoreBook
from spikescore.errors import Refused, UserError
from spikescore.pairs import (
    DEFAULT_TOKEN_KEY,
    TOKEN_KEYS,
    cut_off,
    model_difference,
    pair_key,
    question_digests,
    short_meta,
)
from spikescore.plugins import fault_place, own_faults, plugin_digest, said
from spikescore.probes.data import SPLITS, class_counts, require_fractions, split_by_group
from spikescore.runtime import limited_threads, progress, usable_cores, worker_pool
from spikescore.stats.trajectory import apply

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


@dataclass(frozen=True)
class Settings:
    """What is scored by what. None: all methods, all domains, the usual scorers of turns.

    `detectors` are a user's own, "path/to/file.py:Class" each: they are added to the methods, and
    to the scorers of turns where they score turns. `seed` is that of the splits; the probe seeds
    are 0 .. probe_seeds - 1. With `multi_source` every domain is tested by what all others taught
    together (`all_but_one`).
    """

    methods: Sequence[str] | None = None
    train_domains: Sequence[str] | None = None
    turn_scorers: Sequence[str] | None = None
    detectors: Sequence[str] = ()
    probe_seeds: int = 5
    val_fraction: float = 0.2
    test_fraction: float = 0.3
    seed: int = 42
    multi_source: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for what can be seen to be wrong before anything is read."""
        require_fractions(self.val_fraction, self.test_fraction)
        for name in chosen("turn scorer among the methods", self.turn_scorers or (), self.names):
            if not issubclass(self.known[name], StateDetector | TurnDetector):
                raise UserError(
                    f'"{name}" scores first answers only, not turns; leave it out of the turn '
                    "scorers"
                )

    @cached_property
    def own(self) -> dict[str, type[Detector]]:
        """The user's own detectors by name; UserError for one that is none, or has a taken name."""
        found: dict[str, type[Detector]] = {}
        for spec in dict.fromkeys(self.detectors):
            detector = load_detector(spec)
            if detector.name in {**REGISTRY, **found}:
                raise UserError(
                    f'detector "{spec}" has the name "{detector.name}" of another one; change it'
                )
            found[detector.name] = detector
        return found

    @cached_property
    def known(self) -> dict[str, type[Detector]]:
        """All detectors by name."""
        return {**REGISTRY, **self.own}

    @property
    def names(self) -> list[str]:
        """The methods asked for, or all."""
        asked = self.methods
        return chosen("method", None if asked is None else [*asked, *self.own], self.known)

    @property
    def readers(self) -> list[str]:
        """Those of them that score every turn."""
        usual = [name for name in TURN_SCORERS if name in self.names]
        asked = usual if self.turn_scorers is None else self.turn_scorers
        kinds = (StateDetector, TurnDetector)
        own = [name for name, detector in self.own.items() if issubclass(detector, kinds)]
        return list(dict.fromkeys([*asked, *own]))


def score_methods(
    items: Answers, settings: Settings, *, targets: Sequence[Answers] | None = None
) -> list[ScoreBook]:
    """Fit on the items and score every target (default: the items themselves); a book for each.

    `about` gets settings, seconds per method, what was left out and why, and how many items a
    method could not score. Raises UserError for an unknown name, or when nothing could be scored.
    The same items and settings give the same scores; those of a method do not depend on which
    other methods run. In a target's book a question that a probe was fitted on keeps its split,
    whatever became of its answer; one that the fit never saw is in "test".
    """
    for target in targets or ():
        difference = model_difference(vars(target), vars(items))
        if difference:
            raise UserError(
                f'"{target.paths[0].parent}" holds dialogues of another model than those that the '
                f"methods are fitted on ({difference}); give folders of one model"
            )
    scoring = _Scoring(items, settings)
    fitted = scoring.fit()
    return [scoring.score(target, fitted) for target in targets or [items]]


def learns(detector: type[Detector]) -> bool:
    """Whether `fit` does anything."""
    return detector.fit is not Detector.fit


class _Scoring:
    """One run: what was chosen, what is fitted, and what was left out."""

    def __init__(self, items: Answers, settings: Settings) -> None:
        self.items, self.settings = items, settings
        self.known = settings.known
        self.methods, self.turn_scorers = settings.names, settings.readers
        self.domains = training_domains(items, settings)
        self.splits: dict[str, np.ndarray] = {}
        self.left_out: list[tuple[str, str]] = []
        self.misbehaved: list[str] = []
        self.seconds: Counter[str] = Counter()
        self._parts: tuple[str, Any] = "", None

    # --- fits -------------------------------------------------------------------------------

    def fit(self) -> dict[Key, Detector]:
        """Split the training domains and return every detector, those that learn fitted."""
        learning = [name for name in self.methods if learns(self.known[name])]
        learning = [name for name in learning if self._has_measures(name)]
        if learning:
            self.splits, reasons = split_domains(self.items, self.domains, self.settings)
            self.left_out += reasons
            if self.settings.multi_source:
                self.splits = all_but_one(self.items, self.splits)
        learning.sort(key=lambda name: name not in self.settings.own)  # faults show soon
        free = [name for name in self.methods if not learns(self.known[name])]
        fitted: dict[Key, Detector] = {(name, "", 0): self.known[name]() for name in free}
        for key, detector in fitted.items():
            self._try_own(key, detector)
        n_fits = sum(self._n_seeds(name) for name in learning) * len(self.splits)
        if not n_fits:
            return fitted
        if any("states" in self.known[name].needs for name in learning):
            _ = self.items.first_states  # read once: what is selected from the items shares them
        if any(self.known[name].needs & MEASURED for name in learning):
            _ = self.items.measures
        keys = [
            (name, domain, seed)
            for domain in self.splits
            for name in learning
            for seed in range(self._n_seeds(name))
        ]
        with limited_threads(), progress(desc="fitting", total=n_fits, unit="fit") as bar:
            for key, result in self._results(keys):
                name, domain, _ = key
                bar.set_postfix_str(f"{name} on {domain}", refresh=False)
                with self._leaving_out(name, domain):
                    detector, spent = result()
                    self.seconds[name] += spent
                    fitted[key] = detector
                    self._try_own(key, detector)
                bar.update()
        return fitted

    def _results(self, keys: Sequence[Key]) -> Iterator[tuple[Key, Callable[[], Fitted]]]:
        """Yield every key with what gives its fitted detector, or raises why there is none.

        The project's own detectors are fitted in forked processes, one a core, where there are
        several cores and fits; a user's own, which other processes need not know, in this one.
        """
        ours = [key for key in keys if self.known[key[0]].__module__.startswith("spikescore.")]
        n_workers = min(usable_cores(), len(ours) // FITS_EACH, MAX_WORKERS)
        if n_workers < 2:
            yield from ((key, partial(_fit_one, self, key)) for key in keys)
            return
        import sklearn.linear_model  # noqa: F401 - which most fits use: once, not in each process

        fork = multiprocessing.get_context("fork")  # which shares all that was read
        with worker_pool(n_workers, _scoring.append, (self,), fork) as pool:
            started = {key: pool.submit(_fit_in_worker, key) for key in ours}
            for key in keys:
                here = partial(_fit_one, self, key)
                yield key, started[key].result if key in started else here

    def parts(self, domain: str) -> tuple[Answers, Answers]:
        """Return a domain's train and validation items; the last domain's stay in memory."""
        if self._parts[0] != domain:
            split = self.splits[domain]
            train, val = (self.items.select(split == part) for part in ("train", "val"))
            self._parts = domain, (train, val)
        return self._parts[1]

    def _n_seeds(self, name: str) -> int:
        return self.settings.probe_seeds if self.known[name].seeded else 1

    def _has_measures(self, name: str) -> bool:
        detector = self.known[name]
        if not detector.needs & MEASURED or any(self.items.measures):
            return True
        self._leave_out(name, f"nothing was measured; {_remedy(detector)}")
        return False

    def _leave_out(self, what: str, why: str) -> None:
        if (what, why) not in self.left_out:  # every probe seed fails alike
            self.left_out.append((what, why))

    @contextmanager
    def _leaving_out(self, name: str, domain: str) -> Iterator[None]:
        """Leave out what fails inside with a UserError, and keep the reason; tell at once of what
        a detector did wrong. A fault of a user's own detector ends the run, told in one line.
        """
        what = f"{name} on {domain}" if domain else name
        try:
            yield
        except BrokenProcessPool as error:
            raise Refused(
                "a process that fitted methods was ended from outside, as the system does when "
                "memory runs out; run the same command again with fewer --methods"
            ) from error
        except UserError as error:
            if isinstance(error, Misbehaved):
                if name in self.settings.own:
                    raise
                if what not in self.misbehaved:
                    self.misbehaved.append(what)
                    log.error("error: %s; it is left out", error)
            self._leave_out(what, str(error))
        except Exception as error:
            if where := fault_place(error):
                raise Misbehaved(f"{where}: {said(error)} (in the detector {what})") from error
            error.add_note(f"in the detector {what}")
            raise

    # --- scores -----------------------------------------------------------------------------

    def score(self, target: Answers, fitted: Mapping[Key, Detector]) -> ScoreBook:
        """Return the book of a target: the scores of all items, and of all turns by the readers."""
        book = ScoreBook(target.model, target.token_key, [], identity=target.identity)
        book.splits = self._splits_in(target)
        readers: dict[Key, StateDetector] = {}
        for key, detector in fitted.items():
            name, domain, _ = key
            with self._leaving_out(name, domain), timed(self.seconds, name):
                self._score(book, target, key, detector)
                if name in self.turn_scorers and isinstance(detector, StateDetector):
                    readers[key] = detector
        with own_faults():
            book.turns |= score_turns(target, readers, self.seconds)
        if not book.scores:
            raise UserError("nothing could be scored: " + "; ".join(told(self.left_out)))
        book.items = book_items(target)  # measures are there by now, where a method needs them
        self._tell_about(book, target)
        return book

    def _try_own(self, key: Key, detector: Detector) -> None:
        """Score once with a user's own detector, before the many fits of the others."""
        if key[0] in self.settings.own and key[2] == 0:
            with self._leaving_out(*key[:2]):
                checked(key[0], "score", detector.score(self.items), (len(self.items),))
                plain(key, detector.chosen)

    def _score(self, book: ScoreBook, target: Answers, key: Key, detector: Detector) -> None:
        """Keep the scores of all items, and of computed turns; UserError when no item has one."""
        scores = checked(key[0], "score", detector.score(target), (len(target),))
        if not np.isfinite(scores).any():
            raise UserError(f"no item has a score; {_remedy(type(detector))}")
        chosen = plain(key, detector.chosen)
        if key[0] in self.turn_scorers and isinstance(detector, TurnDetector):
            turns, shape = detector.score_turns(target), (len(target), int(target.n_turns.max()))
            book.turns[key] = checked(key[0], "score_turns", turns, shape, np.float32)
        book.scores[key] = scores
        if learns(type(detector)):
            book.chosen["/".join(map(str, key))] = chosen

    def _splits_in(self, target: Answers) -> dict[str, np.ndarray]:
        """Return the splits of a target's items, by what each item asks."""
        if target is self.items:
            return self.splits
        fitted, asked = (
            [question_digests(record) for record in part.records] for part in (self.items, target)
        )
        found = {}
        for domain, split in self.splits.items():
            known = {
                key: part
                for keys, part in zip(fitted, split.tolist(), strict=True)
                for key in keys
                if part in SPLITS
            }
            parts = [next((known[key] for key in keys if key in known), "test") for keys in asked]
            taught = np.isin(target.domains, self.items.domains[np.isin(split, SPLITS)])
            out = np.isin(target.domains, self.items.domains[split == OUT])
            elsewhere = np.where(out, OUT, "")
            found[domain] = np.where(taught, np.array(parts, dtype="<U5"), elsewhere)
        return found

    # --- the book ---------------------------------------------------------------------------

    def _tell_about(self, book: ScoreBook, target: Answers) -> None:
        unscored: Counter[str] = Counter()
        for (name, _, _), scores in book.scores.items():
            unscored[name] = max(unscored[name], int(np.isnan(scores).sum()))
        scored = {key[0] for key in book.scores}
        book.methods = {
            name: _described(self.known[name]) for name in self.methods if name in scored
        }
        book.about = {
            "settings": asdict(self.settings),
            "own_detectors": {spec: plugin_digest(spec) for spec in self.settings.detectors},
            "items_left_out": target.left_out,
            "left_out": self.left_out,
            "misbehaved": self.misbehaved,
            "unread": target.unread,
            "unscored": {name: count for name, count in unscored.items() if count},
            "seconds": {name: round(spent, 3) for name, spent in self.seconds.items()},
        }


Fitted = tuple[Detector, float]
"""A detector that was fitted, and the seconds that it took."""
FITS_EACH = 4
"""Fits for each process at least: fewer are done sooner than a process begins."""
MAX_WORKERS = 16


def _fit_one(scoring: _Scoring, key: Key) -> Fitted:
    """Fit a method on the train and validation split of a domain."""
    name, domain, seed = key
    train, val = scoring.parts(domain)
    detector = scoring.known[name]()
    start = time.perf_counter()
    detector.fit(train, val, seed=seed)
    return detector, time.perf_counter() - start


_scoring: list[_Scoring] = []  # in a worker process: what it works for


def _fit_in_worker(key: Key) -> Fitted:
    with limited_threads():
        return _fit_one(_scoring[0], key)


def training_domains(items: Answers, settings: Settings) -> list[str]:
    """Return the domains to train on: those asked for, or all; UserError for an unknown one."""
    known = list(dict.fromkeys(items.domains.tolist()))
    return chosen("training domain", settings.train_domains, known)


def split_domains(
    items: Answers, domains: Sequence[str], settings: Settings
) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """Split each training domain's items by group, and tell which domains lack items of a class.

    Returns domain -> [n] ("train", "val", "test", and "" for items of other domains), and what was
    left out, why.
    """
    splits, left_out = {}, []
    for domain in domains:
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
            left_out.append((f"training domain {domain}", lacking))
            continue
        splits[domain] = split
        elsewhere = int(np.isin(items.groups[~own], items.groups[own]).sum())
        if elsewhere:
            log.warning("%d items outside %s ask what an item of it asks", elsewhere, domain)
    return splits, left_out


OUT = "out"
"""The part of a split that neither teaches nor is tested."""


def all_but_one(items: Answers, splits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return for each domain, as "all but <domain>", the splits [n] of all others together.

    Items of the domain itself are "", those of a domain that cannot teach are OUT. UserError where
    fewer than two others can: that is what training on one domain does already.
    """
    found = {}
    for tested in dict.fromkeys(items.domains.tolist()):
        taught = [split for domain, split in splits.items() if domain != tested]
        if len(taught) < 2:
            continue
        joined = np.where(items.domains == tested, "", OUT).astype("<U5")
        for split in taught:
            joined[split != ""] = split[split != ""]
        found[f"all but {tested}"] = joined
    if not found:
        raise UserError(
            f"training on all domains but one needs two others, and {len(splits)} of the "
            f"{len(set(items.domains.tolist()))} domains can teach; give more of them"
        )
    return found


def score_turns(
    items: Answers, readers: Mapping[Key, StateDetector], seconds: Counter[str]
) -> dict[Key, np.ndarray]:
    """Return every turn's score by each fitted reader of states: float32 [n, K], NaN after the end.

    One pass over the PKL files serves all readers; a block of dialogues is in memory at a time, and
    where each reader knows its layer, of these layers alone. `seconds` grows by what each method
    took.
    """
    if not readers:
        return {}
    n_turns = items.n_turns
    known = [LayerReader.score_states is type(one).score_states for one in readers.values()]
    layers = sorted({one.read_layer for one in readers.values()}) if all(known) else None
    n_states, width = next(items.first_blocks()).shape[1:]
    # as it is read, and what scoring at one layer makes of it in float32
    sizes = n_turns * width * (2 * (n_states if layers is None else len(layers)) + 12)
    tables = {
        key: np.full((len(items), n_turns.max()), np.nan, dtype=np.float32) for key in readers
    }
    with progress(desc="turns", total=len(items), unit="dialogue") as bar:
        for places in _blocks(sizes):
            states = np.concatenate(list(items.select(places).turn_states(layers)))
            filled = np.arange(n_turns.max()) < n_turns[places, None]
            for key, detector in readers.items():
                with timed(seconds, key[0]):
                    if layers is None:
                        found = detector.score_states(states)
                    else:
                        found = detector.score_layer(states[:, layers.index(detector.read_layer)])
                    block = np.full(filled.shape, np.nan, dtype=np.float32)
                    block[filled] = checked(key[0], "score_states", found, (len(states),))
                    tables[key][places] = block
            bar.update(len(places))
    return tables


def plain(key: Key, chosen: object) -> dict[str, Any]:
    """Return what a fit chose as plain values that a JSON file can hold; Misbehaved if it can't."""
    try:
        if not isinstance(chosen, dict):
            raise TypeError(f"it is {type(chosen).__name__}, not a dict")
        return json.loads(json.dumps(chosen, default=lambda value: value.tolist()))
    except (AttributeError, TypeError, ValueError) as error:
        raise Misbehaved(
            f'detector "{key[0]}": what fit puts into `chosen` must be plain values ({error})'
        ) from error


@contextmanager
def timed(seconds: Counter[str], name: str) -> Iterator[None]:
    """Add the seconds that pass inside to a method's."""
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start


def chosen(what: str, asked: Sequence[str] | None, known: Collection[str]) -> list[str]:
    """Return the names asked for, or all known; UserError, with the nearest, for an unknown one."""
    for name in asked or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"? Known' if near else "known"
            raise UserError(f'unknown {what} "{name}"; {hint}: {", ".join(known)}')
    return list(known if asked is None else dict.fromkeys(asked))


def by_reason(left_out: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Return (all that was left out for it, the reason) of each reason, from (what, reason)."""
    reasons = dict.fromkeys(why for _, why in left_out)
    return [(", ".join(what for what, own in left_out if own == why), why) for why in reasons]


def told(left_out: Sequence[Sequence[str]]) -> list[str]:
    """Return one line per reason: what was left out for it, and the reason."""
    return [f"{what}: {why}" for what, why in by_reason(left_out)]


def summary(book: ScoreBook) -> str:
    """Return in lines what was scored by what, where the time went, and what was left out."""
    about = book.about
    without = ", ".join(f"{n} {why}" for why, n in about["items_left_out"].items())
    families = Counter(method["family"] for method in book.methods.values())
    shown = ", ".join(f"{n} {family}" for family, n in families.items())
    lines = [
        f"items: {len(book.items)} dialogues in {len(book.domain_names())} domains, "
        f"{int(book.y.sum())} hallucinated" + (f"; left out: {without}" if without else ""),
        f"methods: {len(book.methods)} ({shown}); scores of turns: "
        + (", ".join(sorted({key[0] for key in book.turns})) or "none"),
    ]
    if book.splits:
        shown = ", ".join(
            f"{domain} " + "/".join(str(int((split == part).sum())) for part in SPLITS)
            for domain, split in book.splits.items()
        )
        seeds = about["settings"]["probe_seeds"]
        lines.append(f"trained on (train/val/test): {shown}; {seeds} probe seeds")
    lines += [
        f"{name}: {count} of {len(book.items)} items have no score"
        for name, count in about["unscored"].items()
    ]
    lines += [f"left out: {line}" for line in told(about["left_out"])]
    slowest = Counter(about["seconds"]).most_common(5)
    lines.append("seconds: " + ", ".join(f"{name} {spent:.1f}" for name, spent in slowest))
    return "\n".join(lines)


def too_few(y: np.ndarray, split: np.ndarray) -> str:
    """Return why a split [n] has too few items of a class to learn from; empty when it has not."""
    counts = class_counts(y, split)
    if all(min(counts[part]) >= least for part, least in LEAST.items()):
        return ""
    shown = ", ".join(f"{part} {one} / {zero}" for part, (one, zero) in counts.items())
    return (
        f"too few items of a class (hallucinated / consistent: {shown}); at least "
        + " and ".join(f"{least} of each in {part}" for part, least in LEAST.items())
        + " are needed"
    )


def book_items(items: Answers) -> list[BookItem]:
    """Return the items as the book keeps them, with what each cost as far as that is known; of
    measures only where a method has asked for them.
    """
    found = []
    measures = items.__dict__.get("measures") or [{}] * len(items)
    for place, record in enumerate(items.records):
        generated, encoded, seconds = turn_costs(record["cot_steps"])
        found.append(
            BookItem(
                path=str(items.paths[place]),
                id=str(record["id"]),
                domain=str(items.domains[place]),
                group=str(items.groups[place]),
                y=int(items.y[place]),
                turn_tokens=generated,
                cut_off=cut_off(record),
                meta=short_meta(record),
                pair=pair_key(record),
                turn_encoded=encoded,
                turn_seconds=seconds,
                measured=measured_costs(record["cot_steps"][0], measures[place]),
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
    if detector.remedy:
        return detector.remedy
    needs = ", ".join(sorted(detector.needs)) or "nothing"
    script = "reasoning_lite.py"
    if groups := detector.needs & MEASURED:
        named = sorted(
            group.removesuffix("s") if group == "attentions" else group for group in groups
        )
        script = f"scripts/measure_answers.py --groups {','.join(named)}"
    return f"it needs {needs}, which {script} writes: run that on the data folder"


def _described(detector: type[Detector]) -> dict[str, object]:
    return {
        "title": detector.title,
        "family": detector.family,
        "needs": sorted(detector.needs),
        "seeded": detector.seeded,
        "learns": learns(detector),
        "whole_dialogue": detector.whole_dialogue,
        # a probe of states needs measures to learn from alone
        "measured": [] if issubclass(detector, StateDetector) else groups_read(detector.needs),
    }


WHAT = {"spike": "max_abs_d2", "first": "first"}
"""What is kept of the trajectories of each probe: SpikeScore, and the first answer's score."""


def score_layer_grid(folder: str | Path, settings: Settings) -> ScoreBook:
    """Fit SAPLMA on each training domain at each layer (0 to L) and token, and score all items.

    The scores are named "<spike or first>@<token key>@<layer>"; one probe seed. Raises UserError
    when no domain can be trained on.
    """
    items = read_answers(folder, token_key=DEFAULT_TOKEN_KEY)
    splits, left_out = split_domains(items, training_domains(items, settings), settings)
    if not splits:
        raise UserError("; ".join(f"{what}: {why}" for what, why in left_out))
    book = ScoreBook(items.model, "all", book_items(items), splits=splits, identity=items.identity)
    book.about = {
        "items_left_out": items.left_out, "left_out": left_out, "unscored": {},
        "seconds": {}, "settings": {"probe_seeds": 1},
    }  # fmt: skip
    for token_key in TOKEN_KEYS:
        at_token = replace(items, token_key=token_key)  # the same dialogues, other states
        with limited_threads():
            readers = dict(_fit(at_token, splits))
        for (name, domain, seed), turns in score_turns(at_token, readers, Counter()).items():
            for what, functional in WHAT.items():
                key = f"{what}@{name}"
                book.scores[key, domain, seed] = apply(functional, turns)
                book.methods[key] = {"title": key, "family": "trained", "needs": ["states"]}
    return book


def _fit(items: Answers, splits: dict[str, np.ndarray]) -> Iterator[tuple[Key, Saplma]]:
    _ = items.first_states  # read once, as in _Scoring.fit
    bar = progress(desc=f"fitting at {items.token_key}", unit="fit", leave=False)
    for domain, split in splits.items():
        material = first_answers(*(items.select(split == part) for part in ("train", "val")))
        for layer in range(material.n_states):
            detector = Saplma()
            detector.fit_layer(material, layer, seed=0)
            bar.update()
            yield (f"{items.token_key}@{layer}", domain, 0), detector
    bar.close()
