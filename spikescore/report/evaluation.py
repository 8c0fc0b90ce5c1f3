"""From scored dialogues on disk to the figures of a report: items, coverage, score book, views.

The figures are those of `comparison.Comparison`, as in the tables of an experiment: the dialogues
make a score book with one scorer, the probe that scored them. A pool can be won by a score that
knows only the domain, so the pooled views carry that control.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spikescore import pairs
from spikescore.detectors.score_book import BookItem, ScoreBook
from spikescore.errors import Refused, UserError
from spikescore.files import write_json
from spikescore.report.comparison import Comparison, Entry, leaders, static_entries
from spikescore.report.content import Table
from spikescore.report.main_tables import Twins, part_tables, twin_figures
from spikescore.report.settings import Rows, data_sets, dialogue_settings, joined
from spikescore.report.text import whole_characters
from spikescore.report.verdict import verdict
from spikescore.runtime import progress
from spikescore.shards import read_pair_json
from spikescore.stats.bootstrap import Area, Contrast
from spikescore.stats.roc import flag_metrics
from spikescore.stats.trajectory import MIN_SCORES, spike_score, spike_turn

METHODS = {
    "spike_score": "SpikeScore",
    "spike_score_without_first": "SpikeScore without the first answer",
    "first_score": "first-answer probe",
    "mean_score": "mean probe score",
    "perplexity": "perplexity of the first answer",
    "answer_tokens": "first-answer length",
    "dialogue_tokens": "dialogue length",
    "domain_identity": "domain identity (oracle)",
}
"""Every method's direction is fixed beforehand: higher, or longer, counts as more hallucinated."""
CONTROLS = ("spike_score_without_first", "answer_tokens", "dialogue_tokens", "domain_identity")
"""Those of METHODS that nobody would use: they say what else a figure may come from."""
COMPARED = ("first_score", "perplexity")
TRAINING_SPLITS = ("train", "val")
PROBE = "probe"
"""The book's one scorer, and its one training domain, which stands for all that the probe saw."""
MOST_NAMED = 50
"""Files that are named one by one among the warnings."""
MADE_BY = ("model", "identity", "config", "config_hash")
AT_ONCE = 8
"""Files in work at a time: a disk takes milliseconds to confirm a write, but confirms several at
once."""


@dataclass(frozen=True)
class Item:
    """One dialogue: its label, its scores s_1..s_K and what is derived from them.

    `y` is 1 for hallucinated, 0 for consistent, None for unlabelled; `unread` when a judge was
    asked and gave no label. `scores` is empty unless every turn has one. `status` says why the item
    is not evaluated; it is "ready" when it can be. `cut_off` names the limit that ended the first
    answer, if one did. `by` is the value that figures are split by.
    `families` are the kinds of the turns' prompts; `probe_about` says which probe scored it and
    what that learnt from.
    """

    path: Path
    id: str
    folder: str
    domain: str
    group: str
    pair: str
    y: int | None
    unread: bool
    status: str
    scores: tuple[float, ...]
    spike_score: float | None
    spike_turn: int | None
    spike_score_without_first: float | None
    first_score: float | None
    mean_score: float | None
    perplexity: float | None
    answer_tokens: float | None
    dialogue_tokens: float | None
    cut_off: str
    by: str
    probe_split: str | None
    train_domains: tuple[str, ...]
    threshold: float | None
    probe: str
    probe_about: str
    judge: str
    families: tuple[str, ...]
    model: str


# --- items ------------------------------------------------------------------------------------


@dataclass
class Found:
    """The dialogues of a folder: each item once, what was left out and why (a line for each).

    `config` is the resolved configuration that held the dialogues, empty where they have none.
    """

    items: list[Item] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)


def read_and_score(data_dir: Path, *, by: str = "") -> Found:
    """Read all dialogues under a folder and write SpikeScore back into each that can be scored.

    Files in the older public form are read only. A file that already holds the same value is left
    untouched. A damaged file is left out, and so is a copy. `by` is the dotted name of what figures
    are split by, such as "meta.scope". Raises UserError when there is no sound dialogue, when none
    has that name, and where two were not made by one run.
    """
    paths = pairs.find_records(data_dir)
    found, firsts, made_by, known = Found(), {}, [], set()
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        read = pool.map(lambda path: score_file(path, by), paths)
        bar = progress(read, "reading", total=len(paths), unit="file", leave=False)
        for path, one in zip(paths, bar, strict=True):
            if isinstance(one, UserError):
                found.damaged.append(str(one))
            elif one is not None:
                item, key, made = one
                first = firsts.setdefault(key, path)
                if first is not path:
                    found.copies.append(f'"{path}" is a copy of "{first}"')
                    continue
                found.items.append(item)
                made_by.append((path, made))
                known.update(f"meta.{name}" for name in made["meta"])
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C no further file is begun
    if not found.items:
        raise UserError(
            found.damaged[0]
            if found.damaged
            else f'no dialogue (.json with "cot_steps") under "{data_dir}"; '
            "give the output_dir of reasoning_lite.py or a folder above it"
        )
    if by and not any(item.by for item in found.items):
        told = f"known: {', '.join(sorted(known))}" if known else "the dialogues have no meta"
        raise UserError(f'no dialogue under "{data_dir}" has "{by}"; {told}')
    pairs.require_one_run(made_by)
    # folders of one run differ in nothing that counts, but each may name its own data set
    configs = [made.get("config") or {} for _, made in made_by]
    sets = [path for config in configs for path in data_sets(config)]
    found.config = {**configs[0], "dataset_path": list(dict.fromkeys(sets))}
    return found


def score_file(path: Path, by: str) -> tuple[Item, tuple, dict[str, Any]] | UserError | None:
    """Read one dialogue, write SpikeScore back, and return it, what a copy of it shares, and what
    says which run made it.

    None when the file is some other JSON, the error when it is damaged.
    """
    try:
        record = pairs.as_record(read_pair_json(path, ids_as_text=True), path)
        if record is None:
            return None
        item = read_item(record, path, by=by)
        found = {"spike_score": item.spike_score, "spike_turn": item.spike_turn}
        metrics = record.get("metrics") or {}
        known = metrics.items() >= found.items() or record.get("legacy")
        if item.spike_score is not None and not known:
            write_json(path, {**record, "metrics": {**metrics, **found}})
    except Refused:
        raise
    except UserError as error:
        return error
    made = {key: record.get(key) for key in MADE_BY} | {"meta": list(record.get("meta") or ())}
    return item, pairs.copy_key(record, path), made


def read_item(record: dict[str, Any], path: Path, *, by: str = "") -> Item:
    """Read what the evaluation needs from a dialogue, whose fields `pairs.as_record` has checked.

    A missing score is never replaced: the item gets no SpikeScore.
    """
    steps = record["cot_steps"]
    label = record.get("nil_label")
    scores, status = _scores(record)
    lengths = [_float(step.get("n_response_tokens")) for step in steps]
    metrics = record.get("metrics") or {}
    probe = metrics.get("probe") or {}
    judge = (record.get("nil_judge") or {}).get("judge", "none")
    name = path.stem if record.get("id") is None else str(record["id"])
    domain = whole_characters(record.get("domain") or path.resolve().parent.name)
    enough = len(scores) >= MIN_SCORES
    return Item(
        path=path,
        id=name,
        folder=str(path.parent),
        domain=domain,
        # a question met twice (two runs of one domain) is still one question to the bootstrap
        group=f"{domain}/{pairs.group_key(record, name)}",
        pair=pairs.pair_key(record),
        y=None if label is None else 1 - int(label),
        unread=label is None and judge != "none",
        status=status,
        scores=scores,
        spike_score=spike_score(scores) if enough else None,
        spike_turn=spike_turn(scores) if enough else None,
        spike_score_without_first=spike_score(scores[1:]) if len(scores) > MIN_SCORES else None,
        first_score=scores[0] if scores else None,
        mean_score=float(np.mean(scores)) if scores else None,
        perplexity=_float(steps[0].get("perplexity")) if steps else None,
        answer_tokens=lengths[0] if lengths else None,
        dialogue_tokens=sum(lengths) if lengths and None not in lengths else None,
        cut_off=pairs.cut_off(record),
        by=_value(record, by),
        probe_split=metrics.get("probe_split"),
        train_domains=tuple(map(str, probe.get("train_domains") or ())),
        threshold=_float(probe.get("spike_threshold")),
        probe=probe.get("path") or "",
        probe_about=_about(probe),
        judge="" if judge == "none" else str(judge),
        families=tuple(str(step.get("prompt_type") or "") for step in steps),
        model=record.get("model") or "",
    )


def _scores(record: dict[str, Any]) -> tuple[tuple[float, ...], str]:
    """Return the scores of all turns, or none of them, and the item's status."""
    steps = record["cot_steps"]
    if record.get("complete") is False:
        return (), "unfinished"
    found = [(step.get("metrics") or {}).get("probe_pred") for step in steps]
    scores = tuple(float(score) for score in found if score is not None)
    if not scores:
        return (), "unscored"
    turns = [step["turn"] for step in steps]
    if len(scores) < len(steps) or turns != list(range(1, len(steps) + 1)):
        return (), "gaps"  # a second difference across a gap would be a made-up one
    return scores, "ready" if len(scores) >= MIN_SCORES else "short"


def _about(probe: dict[str, Any]) -> str:
    """Return a probe's kind, layers, training domains and file in a few words."""
    layers = dict.fromkeys(probe.get("layer_range") or ())
    domains = probe.get("train_domains") or ()
    parts = [
        str(probe.get("kind") or ""),
        f"layers {'-'.join(map(str, layers))}" if layers else "",
        f"trained on {', '.join(map(str, domains))}" if domains else "",
        str(probe.get("path") or ""),
    ]
    return "; ".join(filter(None, parts))


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _value(record: Any, name: str) -> str:
    """Return the value of a dotted name as text; empty where the record has none."""
    for key in filter(None, name.split(".")):
        record = record.get(key) if isinstance(record, dict) else None
    if not name or record is None:
        return ""
    return record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)


def choose_items(found: Found, *, include_train: bool) -> tuple[list[Item], dict[str, int]]:
    """Return the items to evaluate and the coverage; UserError where there are none."""
    items = found.items
    coverage = {
        "found": len(items) + len(found.copies) + len(found.damaged),
        "copies": len(found.copies),
        "damaged": len(found.damaged),
        "labelled": sum(item.y is not None for item in items),
        "unlabelled": sum(item.y is None for item in items),
        "unread_by_the_judge": sum(item.unread for item in items),
        "unfinished": sum(item.status == "unfinished" for item in items),
        "unscored": sum(item.status == "unscored" for item in items),
        "scored_with_gaps": sum(item.status == "gaps" for item in items),
        "fewer_than_3_scores": sum(item.status == "short" for item in items),
        "first_answers_cut_off": sum(bool(item.cut_off) for item in items),
    }
    if coverage["unscored"] + coverage["unfinished"] == len(items):
        raise UserError(
            f"none of the {len(items)} dialogues has probe scores; run "
            "python metrics_probe.py --json_dir <data> --pkl_dir <data> --probe_path <probe.pkl>"
        )
    if not coverage["labelled"]:
        raise UserError(
            f"none of the {len(items)} dialogues is labelled (nil_label is null everywhere); set a "
            'judge ("judge" in config.json) and run python scripts/label_answers.py --relabel'
        )
    ready = [item for item in items if item.status == "ready" and item.y is not None]
    kept = [item for item in ready if include_train or item.probe_split not in TRAINING_SPLITS]
    coverage["excluded_probe_training"] = len(ready) - len(kept)
    coverage["evaluated"] = len(kept)
    if not kept:
        raise UserError(
            f"no dialogue is left to evaluate: {describe_coverage(coverage)}; score other "
            "dialogues, or keep the probe's own training items with --include_train"
        )
    return kept, coverage


def describe_coverage(coverage: dict[str, int]) -> str:
    """Return the coverage as one line; counts of zero are left out, but for the last one."""
    parts = [
        f"{count} {name.replace('_', ' ')}"
        for name, count in coverage.items()
        if count or name == "evaluated"
    ]
    return ", ".join(parts)


def find_warnings(found: Found, evaluated: Sequence[Item]) -> list[str]:
    """Return what a reader of the figures must know: what is mixed, doubtful or left out."""
    warnings = []
    for told, what in ((found.damaged, "damaged"), (found.copies, "there twice")):
        if told:
            warnings.append(f"{len(told)} files are {what} and left out")
            warnings += told[:MOST_NAMED]
            warnings += [f"... and {len(told) - MOST_NAMED} more"] * (len(told) > MOST_NAMED)
    names = sorted({item.probe for item in evaluated})
    if len(names) > 1:
        warnings.append(f"the pool mixes {len(names)} probes: {', '.join(names)}")
    cut = Counter(item.cut_off for item in evaluated if item.cut_off)
    if cut:
        limits = ", ".join(f"{count} by {limit}" for limit, count in sorted(cut.items()))
        warnings.append(
            f"{cut.total()} of the {len(evaluated)} first answers were cut off ({limits}): their "
            "labels may come from the limit and not from the model; the main figures are given "
            "without them too"
        )
    unknown = sum(item.probe_split is None for item in evaluated)
    if unknown:
        warnings.append(
            f"{unknown} items carry no probe_split: that the probe was not trained on them is "
            "assumed, not known"
        )
    trained = sum(item.probe_split in TRAINING_SPLITS for item in evaluated)
    if trained:
        warnings.append(
            f"{trained} items that the probe was trained on are included: the in-domain figures "
            "are not held-out"
        )
    gaps = [item for item in found.items if item.status == "gaps"]
    if gaps:
        warnings.append(
            f'{len(gaps)} dialogues are scored at some turns only (first: "{gaps[0].path}") and '
            "are left out; score them again with metrics_probe.py"
        )
    for y, name in ((1, "hallucinated"), (0, "consistent")):
        if not any(item.y == y for item in evaluated):
            warnings.append(f"no evaluated item is {name}: no AUROC is computable")
    return warnings


def evaluation_settings(config: Mapping[str, Any], evaluated: Sequence[Item]) -> Rows:
    """Return what the figures are of: model, probe, how dialogues were held, judge."""
    return [
        ("model", joined(item.model for item in evaluated)),
        ("probe", joined(item.probe_about for item in evaluated)),
        *dialogue_settings(config),
        ("judge", joined(item.judge for item in evaluated) or "not said"),
    ]


# --- score book and views ---------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One set of items and every figure on it. `kind`: domain | in-domain | pooled | macro.

    `groups` [n] are those of the score book, which DeLong's figures take. `flags` has the threshold
    carried over from training and F1, accuracy, TPR and FPR at it, a value for each pool. `best`
    are the best method and those not significantly worse (`comparison.leaders`).
    """

    kind: str
    title: str
    in_domain: bool
    items: tuple[Item, ...]
    groups: np.ndarray
    methods: dict[str, Area]
    paired: dict[str, Contrast]
    flags: dict[str, list[float | None]] | None
    best: frozenset[str]

    @property
    def n_hallucinated(self) -> int:
        """How many of the items have a hallucinated first answer."""
        return sum(item.y for item in self.items)

    @property
    def rate(self) -> float:
        """The share of the items evaluated whose first answer is hallucinated."""
        return self.n_hallucinated / len(self.items)

    def told(self) -> dict[str, Any]:
        """Return it as plain JSON data; rates are of the items evaluated, y = 1 hallucinated."""
        areas, pairs = self.methods.items(), self.paired.items()
        flags = self.flags and {
            name: [value for value in values if value is not None]
            for name, values in self.flags.items()
        }
        return {
            "kind": self.kind,
            "title": self.title,
            "in_domain": self.in_domain,
            "domains": sorted({item.domain for item in self.items}),
            "n": len(self.items),
            "n_hallucinated": self.n_hallucinated,
            "hallucination_rate": self.rate,
            "auroc": {name: area.told(area.interval) for name, area in areas},
            "spike_score_minus": {name: c.told(c.interval, c.p_bootstrap) for name, c in pairs},
            "auroc_delong": {
                name: area.told(area.delong_interval(self.groups)) for name, area in areas
            },
            "spike_score_minus_delong": {
                name: c.told(c.delong_interval, c.p_delong) for name, c in pairs
            },
            "at_threshold": flags
            and {name: float(np.mean(own)) if own else None for name, own in flags.items()},
        }


class Evaluation:
    """The evaluated items as a score book of one scorer, and the figures on it.

    A domain is in-domain when the probe names it as its own or any of the `found` items of it, in
    whatever folder, was in the probe's training data.
    """

    def __init__(
        self, found: Sequence[Item], evaluated: Sequence[Item], *, draws: int, seed: int
    ) -> None:
        self.items = evaluated
        self.trained = {item.domain for item in found if item.probe_split not in (None, "unseen")}
        self.trained |= {domain for item in found for domain in item.train_domains}
        self.comparison = Comparison(self._book(), draws=draws, seed=seed)
        self.entries = static_entries(self.comparison.book)
        self.domains = self.comparison.domains
        self.inside = self.comparison.book.splits[PROBE] == "test"

    def _book(self) -> ScoreBook:
        """Return the score book: items of domains that the probe saw are PROBE's test split."""
        domains = np.array([item.domain for item in self.items])
        y = np.array([item.y for item in self.items])
        book = ScoreBook(
            self.items[0].model,
            pairs.DEFAULT_TOKEN_KEY,
            [BookItem(str(one.path), one.id, one.domain, one.group, one.y, (), pair=one.pair)
             for one in self.items],
            splits={PROBE: np.where(np.isin(domains, sorted(self.trained)), "test", "")},
        )  # fmt: skip
        turns = np.full((y.size, max(len(item.scores) for item in self.items)), np.nan)
        for row, item in zip(turns, self.items, strict=True):
            row[: len(item.scores)] = item.scores
        book.turns[PROBE, "", 0] = turns
        for name, title in METHODS.items():
            if name == "domain_identity":
                # constant inside a domain: its own rate, the best that any such score can do
                _, place = np.unique(domains, return_inverse=True)
                scores = (np.bincount(place, weights=y) / np.bincount(place))[place]
            else:
                scores = np.array([getattr(item, name) for item in self.items], dtype=np.float64)
            family = "control" if name in CONTROLS else "trained"
            book.scores[name, "", 0] = scores
            book.methods[name] = {"title": title, "family": family, "needs": []}
        return book

    def verdict(self) -> str:
        """Return in one sentence what the items show."""
        return verdict(self.comparison, self.entries["spike_score"], self.entries["first_score"])

    def views(self) -> list[View]:
        """Return the views that have items: in-domain, pooled, macro, each domain and folder."""
        learnt = any(item.probe_split in TRAINING_SPLITS for item in self.items)
        title = "in-domain, training items included" if learnt else "in-domain, held-out"
        views: list[tuple] = []
        if self.inside.any():
            views.append(("in-domain", self._pool(title, self.inside), self.inside))
        if not self.inside.all():
            views.append(("pooled", self._pool("cross-domain", ~self.inside)))
            several = np.unique(self.domains[~self.inside]).size
            if several > 1:
                views.append(("macro", f"cross-domain, macro over {several}"))
        places = list(dict.fromkeys((item.domain, item.folder) for item in self.items))
        folders = Counter(domain for domain, _ in places)
        for place in places:
            part = np.array([(item.domain, item.folder) == place for item in self.items])
            domain, folder = place
            name = f"{domain} ({folder})" if folders[domain] > 1 else domain
            known = "in-domain" if domain in self.trained else "cross-domain"
            views.append(("domain", f"{name}, {known}", part))
        return [self._view(*one) for one in progress(views, "bootstrap", unit="view", leave=False)]

    def _pool(self, title: str, part: np.ndarray) -> str:
        names = list(dict.fromkeys(self.domains[part].tolist()))
        return f"{title}, {names[0]}" if len(names) == 1 else f"{title}, pooled over {len(names)}"

    def _view(self, kind: str, title: str, part: np.ndarray | None = None) -> View:
        """Return the figures of a part [n] of the items, by default all that are cross-domain."""
        part = ~self.inside if part is None else part
        in_domain = bool(self.inside[part].all())
        view = kind if kind != "domain" else "in-domain" if in_domain else "pooled"
        entries = dict(self.entries)
        if kind in ("domain", "macro") or np.unique(self.domains[part]).size < 2:
            del entries["domain_identity"]
        compare, spike = self.comparison, entries["spike_score"]
        return View(
            kind,
            title,
            in_domain,
            tuple(item for item, there in zip(self.items, part, strict=True) if there),
            compare.book.groups,
            {name: compare.mean(entry, view, part) for name, entry in entries.items()},
            {name: compare.contrast(spike, entries[name], view, part) for name in COMPARED},
            self._flags(spike, [mask & part for mask in compare.items(view, PROBE)]),
            leaders(compare, list(entries.values()), view, part),
        )

    def _flags(
        self, spike: Entry, masks: Sequence[np.ndarray]
    ) -> dict[str, list[float | None]] | None:
        """Return the figures at the threshold; None unless all items carry one and the same."""
        part = np.any(masks, axis=0)
        thresholds = {item.threshold for item, here in zip(self.items, part, strict=True) if here}
        if len(thresholds) != 1 or None in thresholds:
            return None
        (threshold,) = thresholds
        y, scores = self.comparison.y, spike.scores[PROBE][0]
        each = [flag_metrics(y[mask], scores[mask], threshold) for mask in masks]
        return {"threshold": [threshold], **{k: [one[k] for one in each] for k in each[0]}}

    def twins(self) -> list[Twins]:
        """Return every method's paired accuracy where questions have twins (of one domain)."""
        names = [name for name in self.entries if name != "domain_identity"]
        return twin_figures(self.comparison, [self.entries[name] for name in names])

    def splits(self, by: str) -> list[Table]:
        """Return the main figures without the answers that were cut off, and by value of `by`."""
        entries = [self.entries[name] for name in ("spike_score", *COMPARED)]
        cut_off, values = zip(*((item.cut_off, item.by) for item in self.items), strict=True)
        return part_tables(self.comparison, entries, cut_off, by, values)
