"""From scored dialogues on disk to the figures of a report: items, coverage, views.

Three views are kept apart and never mixed: *in-domain* (domains the probe was trained on, held-out
items only), *cross-domain pooled* (all other domains in one pool) and *cross-domain macro* (the
mean of their AUROCs). A pool can be won by a score that knows only the domain, so the pooled views
carry that control.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError
from spikescore.stats.bootstrap import Auroc, Difference, Sample, compare_aurocs, macro_auroc
from spikescore.stats.delong import delong_auroc, delong_difference
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

    `methods` and `paired` have bootstrap intervals, `delong` and `paired_delong` the same figures
    with DeLong's.
    """

    kind: str
    title: str
    in_domain: bool
    items: tuple[Item, ...]
    methods: dict[str, Auroc]
    paired: dict[str, Difference]
    delong: dict[str, Auroc]
    paired_delong: dict[str, Difference]
    flags: dict[str, float | None] | None


# --- items ------------------------------------------------------------------------------------


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


# --- views ------------------------------------------------------------------------------------


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
    places = Counter(domain for _, domain in {(item.folder, item.domain) for item in evaluated})
    parts: dict[str, list[Item]] = {}
    for item in evaluated:
        several = places[item.domain] > 1
        name = f"{item.domain} ({item.folder})" if several else item.domain
        parts.setdefault(name, []).append(item)
    inside = [part for part in parts.values() if part[0].domain in trained]
    outside = [part for part in parts.values() if part[0].domain not in trained]

    def view(kind: str, title: str, groups: Sequence[Sequence[Item]], in_domain: bool) -> View:
        return _measure(kind, title, groups, in_domain=in_domain, draws=draws, seed=seed)

    def pooled(title: str, groups: Sequence[Sequence[Item]]) -> str:
        one = len(groups) == 1
        return f"{title}, {groups[0][0].domain}" if one else f"{title}, pooled over {len(groups)}"

    views = []
    if inside:
        learnt = any(item.probe_split in TRAINING_SPLITS for part in inside for item in part)
        title = "in-domain, training items included" if learnt else "in-domain, held-out"
        views.append(view("in-domain", pooled(title, inside), inside, True))
    if outside:
        views.append(view("pooled", pooled("cross-domain", outside), outside, False))
    if len(outside) > 1:
        views.append(view("macro", f"cross-domain, macro over {len(outside)}", outside, False))
    for name, part in parts.items():
        known = part[0].domain in trained
        kind = "in-domain" if known else "cross-domain"
        views.append(view("domain", f"{name}, {kind}", [part], known))
    return views


def _measure(
    kind: str,
    title: str,
    parts: Sequence[Sequence[Item]],
    *,
    in_domain: bool,
    draws: int,
    seed: int,
) -> View:
    items = tuple(item for part in parts for item in part)
    # macro keeps the domains apart; every other view is one pool
    pools = list(parts) if kind == "macro" else [items]
    options = {"draws": draws, "seed": seed}
    samples = {
        method: [_sample(pool, method) for pool in pools]
        for method in METHODS
        if method != "domain_identity"
    }
    if kind in ("in-domain", "pooled") and len(parts) > 1:
        # constant inside a domain: its own hallucination rate, the best any such score can do
        rates = [float(np.mean([item.y for item in part])) for part in parts]
        constant = [rate for rate, part in zip(rates, parts, strict=True) for _ in part]
        sample = Sample.of(
            [item.y for item in items], constant, groups=[item.group for item in items]
        )
        samples["domain_identity"] = [sample]
    pairs = {other: [_sample(pool, "spike_score", other) for pool in pools] for other in COMPARED}
    return View(
        kind,
        title,
        in_domain,
        items,
        methods={method: macro_auroc(own, **options) for method, own in samples.items()},
        paired={other: compare_aurocs(own, **options) for other, own in pairs.items()},
        delong={method: delong_auroc(own) for method, own in samples.items()},
        paired_delong={other: delong_difference(own) for other, own in pairs.items()},
        flags=_flags(pools),
    )


def _sample(items: Sequence[Item], *methods: str) -> Sample:
    """Pack the items that have all the named scores; one lacking any is left out, not patched."""
    rows = [[getattr(item, method) for method in methods] for item in items]
    kept = [(item, row) for item, row in zip(items, rows, strict=True) if None not in row]
    columns = [[row[place] for _, row in kept] for place in range(len(methods))]
    return Sample.of(
        [item.y for item, _ in kept], *columns, groups=[item.group for item, _ in kept]
    )


def _flags(pools: Sequence[Sequence[Item]]) -> dict[str, float | None] | None:
    """Return F1 and rates at the threshold carried over from training, the mean over the pools.

    None unless all items carry one and the same threshold.
    """
    thresholds = {item.threshold for pool in pools for item in pool}
    if len(thresholds) != 1 or None in thresholds:
        return None
    (threshold,) = thresholds
    samples = [_sample(pool, "spike_score") for pool in pools]
    each = [flag_metrics(sample.y, sample.scores[0], threshold) for sample in samples]
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
        "auroc": {method: asdict(figure) for method, figure in view.methods.items()},
        "spike_score_minus": {other: asdict(figure) for other, figure in view.paired.items()},
        "auroc_delong": {method: asdict(figure) for method, figure in view.delong.items()},
        "spike_score_minus_delong": {
            other: asdict(figure) for other, figure in view.paired_delong.items()
        },
        "at_threshold": view.flags,
    }
