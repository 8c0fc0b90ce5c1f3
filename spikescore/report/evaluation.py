"""From scored dialogues on disk to the figures of a report: items, coverage, score book, views.

Three views are kept apart and never mixed: *in-domain* (domains the probe was trained on, held-out
items only), *cross-domain pooled* (all other domains in one pool) and *cross-domain macro* (the
mean of their AUROCs). A pool can be won by a score that knows only the domain, so the pooled views
carry that control. The figures are those of `comparison.Comparison`, as in the tables of an
experiment: the dialogues make a score book with one scorer, the probe that scored them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikescore import pairs
from spikescore.detectors.score_book import BookItem, ScoreBook
from spikescore.errors import UserError
from spikescore.files import read_json, write_json
from spikescore.report.comparison import Comparison, static_entries
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
AT_ONCE = 8
"""Files in work at a time: a disk takes milliseconds to confirm a write, but confirms several at
once."""


@dataclass(frozen=True)
class Item:
    """One dialogue: its label, its scores s_1..s_K and what is derived from them.

    `y` is 1 for hallucinated, 0 for consistent, None for unlabelled. `scores` is empty unless every
    turn has one. `status` says why the item is not evaluated; it is "ready" when it can be.
    """

    path: Path
    id: str
    folder: str
    domain: str
    group: str
    y: int | None
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
    probe_split: str | None
    train_domains: tuple[str, ...]
    threshold: float | None
    probe: str
    model: str


@dataclass(frozen=True)
class View:
    """One set of items and every figure on it. `kind`: domain | in-domain | pooled | macro.

    `groups` [n] are those of the score book, which DeLong's figures take.
    """

    kind: str
    title: str
    in_domain: bool
    items: tuple[Item, ...]
    groups: np.ndarray
    methods: dict[str, Area]
    paired: dict[str, Contrast]
    flags: dict[str, float | None] | None


# --- items ------------------------------------------------------------------------------------


def read_and_score(data_dir: Path) -> list[Item]:
    """Read all dialogues under a folder and write SpikeScore back into each that can be scored.

    Files in the older public form are read only. A file that already holds the same value is left
    untouched. Raises UserError when there is no dialogue.
    """
    from tqdm import tqdm

    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(
            f'--data_dir "{data_dir}" is not a folder; give the folder of the .json files'
        )
    paths = pairs.find_records(data_dir)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        read = pool.map(score_file, paths)
        bar = tqdm(read, desc="reading", unit="file", total=len(paths), disable=None)
        items = [item for item in bar if item is not None]
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C no further file is begun
    if not items:
        raise UserError(
            f'no dialogue (.json with "cot_steps") under "{data_dir}"; '
            "give the output_dir of reasoning_lite.py or a folder above it"
        )
    return items


def score_file(path: Path) -> Item | None:
    """Read one dialogue and write SpikeScore back; None when the file is some other JSON."""
    record = pairs.as_record(read_json(path, ids_as_text=True), path)
    if record is None:
        return None
    item = read_item(record, path)
    found = {"spike_score": item.spike_score, "spike_turn": item.spike_turn}
    metrics = record.get("metrics") or {}
    if item.spike_score is None or record.get("legacy") or metrics.items() >= found.items():
        return item
    record["metrics"] = {**metrics, **found}
    write_json(path, record)
    return item


def read_item(record: dict[str, Any], path: Path) -> Item:
    """Read what the evaluation needs from a dialogue JSON.

    Raises UserError, naming file and turn, for a score that is not a finite number and for a label
    other than 1, 0 and null. A missing score is never replaced: the item gets no SpikeScore.
    """
    steps = record["cot_steps"]
    if not all(isinstance(step, dict) for step in steps):
        raise UserError(f'"{path}": every entry of cot_steps must be an object; restore the file')
    label = record.get("nil_label")
    if label not in (0, 1, None):
        raise UserError(
            f'"{path}": the label is {label!r}; expected 1 (consistent), 0 (not) or null'
        )
    scores, status = _scores(record, steps, path)
    lengths = [_number(step.get("n_response_tokens")) for step in steps]
    known = bool(steps) and None not in lengths
    metrics = record.get("metrics") or {}
    probe = metrics.get("probe") or {}
    domain = str(record.get("domain") or path.resolve().parent.name)
    enough = len(scores) >= MIN_SCORES
    return Item(
        path=path,
        id=str(record.get("id", path.stem)),
        folder=str(path.parent),
        domain=domain,
        # a question met twice (two runs of one domain) is still one question to the bootstrap
        group=f"{domain}/{record.get('group') or record.get('id', path.stem)}",
        y=None if label is None else 1 - int(label),
        status=status,
        scores=scores,
        spike_score=spike_score(scores) if enough else None,
        spike_turn=spike_turn(scores) if enough else None,
        spike_score_without_first=spike_score(scores[1:]) if len(scores) > MIN_SCORES else None,
        first_score=scores[0] if scores else None,
        mean_score=float(np.mean(scores)) if scores else None,
        perplexity=_number(steps[0].get("perplexity")) if steps else None,
        answer_tokens=lengths[0] if lengths else None,
        dialogue_tokens=sum(lengths) if known else None,
        probe_split=metrics.get("probe_split"),
        train_domains=tuple(probe.get("train_domains") or ()),
        threshold=_number(probe.get("spike_threshold")),
        probe=str(probe.get("path", "")),
        model=str(record.get("model") or ""),
    )


def _scores(
    record: dict[str, Any], steps: Sequence[dict[str, Any]], path: Path
) -> tuple[tuple[float, ...], str]:
    """Return the scores of all turns, or none of them, and the item's status."""
    if record.get("complete") is False:
        return (), "unfinished"
    scores: list[float] = []
    for place, step in enumerate(steps, start=1):
        score = (step.get("metrics") or {}).get("probe_pred")
        if score is None:
            continue
        if _number(score) is None:
            raise UserError(
                f'"{path}", turn {step.get("turn", place)}: probe_pred is {score!r}, not a finite '
                "number; score the dialogue again with metrics_probe.py"
            )
        scores.append(float(score))
    turns = [step.get("turn", place) for place, step in enumerate(steps, start=1)]
    if not scores:
        return (), "unscored"
    if len(scores) < len(steps) or turns != list(range(1, len(steps) + 1)):
        return (), "gaps"  # a second difference across a gap would be a made-up one
    return tuple(scores), "ready" if len(scores) >= MIN_SCORES else "short"


def _number(value: Any) -> float | None:
    """Return a finite number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def choose_items(items: Sequence[Item], *, include_train: bool) -> tuple[list[Item], dict]:
    """Return the items to evaluate and the coverage: how many were found, and why others are out.

    Raises UserError when nothing is scored or nothing is labelled.
    """
    coverage = {
        "found": len(items),
        "labelled": sum(item.y is not None for item in items),
        "unlabelled": sum(item.y is None for item in items),
        "unfinished": sum(item.status == "unfinished" for item in items),
        "unscored": sum(item.status == "unscored" for item in items),
        "scored_with_gaps": sum(item.status == "gaps" for item in items),
        "fewer_than_3_scores": sum(item.status == "short" for item in items),
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


def find_warnings(items: Sequence[Item], evaluated: Sequence[Item]) -> list[str]:
    """Return what a reader of the figures must know: mixed probes, training items, gaps."""
    warnings = []
    for what in ("model", "probe"):
        names = sorted({getattr(item, what) for item in evaluated})
        if len(names) > 1:
            warnings.append(f"the pool mixes {len(names)} {what}s: {', '.join(names)}")
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
    gaps = [item for item in items if item.status == "gaps"]
    if gaps:
        warnings.append(
            f'{len(gaps)} dialogues are scored at some turns only (first: "{gaps[0].path}") and '
            "are left out; score them again with metrics_probe.py"
        )
    for y, name in ((1, "hallucinated"), (0, "consistent")):
        if not any(item.y == y for item in evaluated):
            warnings.append(f"no evaluated item is {name}: no AUROC is computable")
    return warnings


# --- score book and views ---------------------------------------------------------------------


def make_book(evaluated: Sequence[Item], trained: set[str]) -> ScoreBook:
    """Return the evaluated items as a score book of one scorer, beside what the files hold.

    Its one training domain is the `trained` ones together: their items are its test split.
    """
    y = np.array([item.y for item in evaluated])
    domains = np.array([item.domain for item in evaluated])
    known = np.isin(domains, sorted(trained))
    book = ScoreBook(
        evaluated[0].model,
        pairs.DEFAULT_TOKEN_KEY,
        [BookItem(str(one.path), one.id, one.domain, one.group, one.y, ()) for one in evaluated],
        splits={PROBE: np.where(known, "test", "")},
    )
    longest = max(len(item.scores) for item in evaluated)
    turns = np.full((len(evaluated), longest), np.nan)
    for row, item in zip(turns, evaluated, strict=True):
        row[: len(item.scores)] = item.scores
    book.turns[PROBE, "", 0] = turns
    for name, title in METHODS.items():
        if name == "domain_identity":
            # constant inside a domain: its own hallucination rate, the best any such score can do
            _, place = np.unique(domains, return_inverse=True)
            scores = (np.bincount(place, weights=y) / np.bincount(place))[place]
        else:
            scores = np.array([getattr(item, name) for item in evaluated], dtype=np.float64)
        family = "control" if name in CONTROLS else "trained"
        book.scores[name, "", 0] = scores
        book.methods[name] = {"title": title, "family": family, "needs": []}
    return book


def build_views(
    items: Sequence[Item], evaluated: Sequence[Item], *, draws: int, seed: int
) -> list[View]:
    """Return the views of the evaluated items: in-domain, pooled, macro, then one per domain.

    A domain is in-domain when the probe names it as its own or any of its items, in whatever
    folder, was in the probe's training data. Views without items are left out. A domain spread over
    several folders gets one row per folder.
    """
    trained = {item.domain for item in items if item.probe_split not in (None, "unseen")}
    trained |= {domain for item in items for domain in item.train_domains}
    book = make_book(evaluated, trained)
    comparison = Comparison(book, draws=draws, seed=seed)
    inside, outside = book.splits[PROBE] == "test", book.splits[PROBE] == ""

    def pooled(title: str, part: np.ndarray) -> str:
        names = list(dict.fromkeys(book.domains[part].tolist()))
        return f"{title}, {names[0]}" if len(names) == 1 else f"{title}, pooled over {len(names)}"

    views = []
    if inside.any():
        learnt = any(item.probe_split in TRAINING_SPLITS for item in evaluated)
        title = "in-domain, training items included" if learnt else "in-domain, held-out"
        views.append(_view(comparison, evaluated, "in-domain", pooled(title, inside), inside))
    if outside.any():
        title = pooled("cross-domain", outside)
        views.append(_view(comparison, evaluated, "pooled", title, outside))
        several = np.unique(book.domains[outside]).size
        if several > 1:
            title = f"cross-domain, macro over {several}"
            views.append(_view(comparison, evaluated, "macro", title, outside))
    places = list(dict.fromkeys((item.domain, item.folder) for item in evaluated))
    folders = Counter(domain for domain, _ in places)
    for domain, folder in places:
        part = np.array([(item.domain, item.folder) == (domain, folder) for item in evaluated])
        name = f"{domain} ({folder})" if folders[domain] > 1 else domain
        title = f"{name}, {'in-domain' if domain in trained else 'cross-domain'}"
        views.append(_view(comparison, evaluated, "domain", title, part))
    return views


def _view(
    comparison: Comparison, evaluated: Sequence[Item], kind: str, title: str, part: np.ndarray
) -> View:
    """Return the figures of a part [n] of the items, all in-domain or all cross-domain."""
    in_domain = bool((comparison.book.splits[PROBE][part] == "test").all())
    view = kind if kind != "domain" else "in-domain" if in_domain else "pooled"
    entries = static_entries(comparison.book)
    if kind in ("domain", "macro") or np.unique(comparison.domains[part]).size < 2:
        del entries["domain_identity"]
    masks = [mask & part for mask in comparison.items(view, PROBE)]
    spike = entries["spike_score"]
    return View(
        kind,
        title,
        in_domain,
        tuple(item for item, there in zip(evaluated, part, strict=True) if there),
        comparison.book.groups,
        {name: comparison.mean(entry, view, part) for name, entry in entries.items()},
        {name: comparison.contrast(spike, entries[name], view, part) for name in COMPARED},
        _flags(evaluated, spike.scores[PROBE][0], masks),
    )


def _flags(
    evaluated: Sequence[Item], spikes: np.ndarray, masks: Sequence[np.ndarray]
) -> dict[str, float | None] | None:
    """Return F1 and rates at the threshold carried over from training, the mean over the masks.

    None unless all items carry one and the same threshold.
    """
    part = np.any(masks, axis=0)
    thresholds = {item.threshold for item, there in zip(evaluated, part, strict=True) if there}
    if len(thresholds) != 1 or None in thresholds:
        return None
    (threshold,) = thresholds
    y = np.array([item.y for item in evaluated])
    each = [flag_metrics(y[mask], spikes[mask], threshold) for mask in masks]
    means: dict[str, float | None] = {"threshold": threshold}
    for name in each[0]:
        values = [metrics[name] for metrics in each if metrics[name] is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def view_summary(view: View) -> dict[str, Any]:
    """Return a view as plain JSON data; rates are of the items evaluated, y = 1 hallucinated."""
    n_positive = sum(item.y for item in view.items)
    return {
        "kind": view.kind,
        "title": view.title,
        "in_domain": view.in_domain,
        "domains": sorted({item.domain for item in view.items}),
        "n": len(view.items),
        "n_hallucinated": n_positive,
        "hallucination_rate": n_positive / len(view.items),
        "auroc": {name: area.told(area.interval) for name, area in view.methods.items()},
        "spike_score_minus": {
            name: found.told(found.interval, found.p_bootstrap)
            for name, found in view.paired.items()
        },
        "auroc_delong": {
            name: area.told(area.delong_interval(view.groups))
            for name, area in view.methods.items()
        },
        "spike_score_minus_delong": {
            name: found.told(found.delong_interval, found.p_delong)
            for name, found in view.paired.items()
        },
        "at_threshold": view.flags,
    }
