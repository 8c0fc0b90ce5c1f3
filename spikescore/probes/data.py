"""What a probe is trained on: first answers, their states and labels, split by question.

They come from stage-1 pairs (label: `nil_label`) or from run folders of generate_answers.py (label:
accuracy of the most likely answer; semantic entropy of the samples).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError
from spikescore.measures.run_folder import RunFolder, accuracy_of, is_run_folder, read_run
from spikescore.pairs import (
    MODEL_PARTS,
    find_records,
    gathered,
    group_key,
    iter_records,
    model_difference,
    question_digests,
    read_states,
    stack_turns,
    unusable,
)
from spikescore.probes.layers import LayerRange, Layers, candidate_layers, is_contiguous
from spikescore.runtime import derived_seed
from spikescore.stats.roc import MIN_PER_CLASS, questions_needed


@dataclass
class Task:
    """What is to be learned: labels [n] 0 or 1 to choose and measure by, target [n] of the loss.

    `gamma` is the entropy above which a label is 1, None for SAPLMA.
    """

    labels: np.ndarray
    target: np.ndarray
    classes: str
    gamma: float | None = None


SPLITS = ("train", "val", "test")
ENTROPY = "cluster_assignment_entropy"
"""The measure a semantic entropy probe learns: discrete semantic entropy."""


@dataclass
class TrainingData:
    """First answers: states [n, layers kept, H] float16, y [n] and entropy [n].

    y is 1 for a hallucinated answer, 0 for a consistent one, NaN where nobody judged it; entropy is
    NaN where there is none. `pkl_paths` holds None for items that have no dialogue.
    """

    records: list[dict[str, Any]]
    pkl_paths: list[Path | None]
    datasets: list[str]
    states: np.ndarray
    kept: Layers
    y: np.ndarray
    entropy: np.ndarray
    model: str | None
    identity: dict[str, str]
    n_layers: int
    hidden_size: int
    left_out: dict[str, int]

    @cached_property
    def groups(self) -> np.ndarray:
        """Group of each item [n]; items of one group must not be split."""
        return question_groups(self.records)

    def features(self, layers: Layers) -> np.ndarray:
        """Return the states of the given layers, one after another: float16 [n, d]."""
        places = [self.kept.index(layer) for layer in layers]
        # a slice needs no copy of a single layer's states
        read = slice(places[0], places[-1] + 1) if is_contiguous(places) else places
        return self.states[:, read].reshape(len(self.y), -1)


@dataclass
class _Item:
    """One first answer as it comes from a folder; `state` is [L+1, H], `made_by` names the model
    and says by content what it is.
    """

    record: dict[str, Any]
    state: np.ndarray
    made_by: dict[str, Any]
    path: Path
    y: float = math.nan
    entropy: float = math.nan
    has_dialogue: bool = False


def load_training_data(
    folders: Sequence[str | Path],
    *,
    token_key: str,
    layers: str = "single",
    layer_range: LayerRange | None = None,
    dataset_names: Sequence[str] | None = None,
    needs_entropy: bool = False,
    swapped_positions: bool = False,
) -> TrainingData:
    """Read states and labels of the first answers under the folders, of either sort.

    The states of one token, and of the layers that may be chosen, are kept. Items without a label,
    or with `needs_entropy` without semantic entropy, are counted and left out. Raises UserError
    when nothing is left, or when the answers come from different models.
    """
    if dataset_names is not None and len(dataset_names) != len(folders):
        raise UserError(
            f"{len(folders)} directories but {len(dataset_names)} dataset_names; give one name each"
        )
    items: list[_Item] = []
    datasets: list[str] = []
    left_out: Counter[str] = Counter()
    kept: Layers = ()

    def read() -> Iterator[np.ndarray]:
        """Yield the states of the layers kept of each item, which is noted with all but these."""
        nonlocal kept, first, shape
        for place, folder in enumerate(folders):
            for item in _read_folder(folder, token_key, needs_entropy, swapped_positions, left_out):
                if not items:
                    first, shape = item, item.state.shape
                    candidates = candidate_layers(layers, layer_range, shape[0] - 1)
                    kept = tuple(sorted({layer for chosen in candidates for layer in chosen}))
                _require_same_model(item, first, shape)
                first = first if first.made_by["identity"] else item
                items.append(replace(item, state=np.empty(0)))
                name = dataset_names[place] if dataset_names else item.record.get("domain")
                datasets.append(str(name))
                yield item.state[list(kept)]

    first, shape = None, (0, 0)
    states = gathered(read())
    if not items:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
        raise UserError(
            f"no usable answers in {', '.join(map(str, folders))} (left out: {counts}); run "
            "stage 1 with a judge, or generate_answers.py with --metric and --entailment_model, "
            "first"
        )
    return TrainingData(
        records=[item.record for item in items],
        pkl_paths=[item.path if item.has_dialogue else None for item in items],
        datasets=datasets,
        states=states,
        kept=kept,
        y=np.array([item.y for item in items]),
        entropy=np.array([item.entropy for item in items]),
        model=next((item.made_by["model"] for item in items if item.made_by["model"]), None),
        identity=first.made_by["identity"],
        n_layers=shape[0] - 1,
        hidden_size=shape[1],
        left_out=dict(left_out),
    )


def _require_same_model(item: _Item, first: _Item, shape: tuple[int, int]) -> None:
    difference = model_difference(item.made_by, first.made_by)
    if item.state.shape != shape or difference:
        raise UserError(
            f'"{item.path}" holds states {list(item.state.shape)} of the model '
            f'"{item.made_by["model"]}", the files before it {list(shape)} of '
            f'"{first.made_by["model"]}"'
            + (f" (they differ: {difference})" if difference else "")
            + "; train one probe per model"
        )


def _read_folder(
    folder: str | Path,
    token_key: str,
    needs_entropy: bool,
    swapped_positions: bool,
    left_out: Counter[str],
) -> Iterator[_Item]:
    """Yield the usable first answers of a folder of either sort, counting the others."""
    if is_run_folder(folder):
        run = read_run(folder, swapped_positions=swapped_positions)
        yield from _run_items(run, token_key, needs_entropy, left_out)
        return
    if not find_records(folder):
        raise UserError(
            f'"{folder}" holds neither pairs of stage 1 nor train_generations.pkl or '
            "validation_generations.pkl of generate_answers.py; give a folder that one of them "
            "wrote"
        )
    if needs_entropy:
        raise UserError(
            f'"{folder}" holds pairs of stage 1, which have no semantic entropy for a probe to '
            "learn; run semantic_uncertainty/generate_answers.py and give its folder, or train "
            "with --probe saplma"
        )
    yield from _pair_items(folder, token_key, left_out)


def _pair_items(folder: str | Path, token_key: str, left_out: Counter[str]) -> Iterator[_Item]:
    for json_path, record in iter_records(folder):
        path = json_path.with_suffix(".pkl")
        reason = unusable(json_path, record)
        if reason:
            left_out[reason] += 1
            continue
        opening = {**record, "cot_steps": record["cot_steps"][:1]}
        state = stack_turns(read_states(path, token_key), opening, token_key, path)[0]
        y = float(1 - record["nil_label"])
        record = {key: value for key, value in record.items() if key != "metrics"}
        yield _Item(record, state, _made_by(record, record), path, y=y, has_dialogue=True)


def _run_items(
    run: RunFolder, token_key: str, needs_entropy: bool, left_out: Counter[str]
) -> Iterator[_Item]:
    entropies = run.measure(ENTROPY)
    if needs_entropy and not entropies:
        raise UserError(
            f'"{run.path}" has no {ENTROPY} (uncertainty_measures.pkl); run '
            "semantic_uncertainty/compute_uncertainty_measures.py on it first"
        )
    for split, question_id, entry in run.items():
        accuracy = accuracy_of(entry)
        entropy = entropies.get((split, question_id), math.nan)
        state = run.state(split, question_id, token_key)
        reason = "no state" if state is None else None
        if needs_entropy and math.isnan(entropy):
            reason = "no semantic entropy"
        elif not needs_entropy and accuracy is None:
            reason = "unjudged"
        if reason:
            left_out[reason] += 1
            continue
        y = math.nan if accuracy is None else float(accuracy < 0.5)
        asked = ("question", "context", "choices", "history", "group")
        record = {
            "id": str(question_id),
            "domain": entry.get("domain") or run.dataset,
            **{key: entry.get(key) for key in asked},
        }
        made_by = _made_by({"model": run.model}, run.details)
        yield _Item(record, state, made_by, run.path, y=y, entropy=entropy)


def _made_by(named: Mapping[str, Any], identified: Mapping[str, Any]) -> dict[str, Any]:
    identity = identified.get("identity")
    known = identity if isinstance(identity, dict) else {}
    parts = {part: known[part] for part in MODEL_PARTS if known.get(part)}
    return {"model": named.get("model"), "identity": parts}


# --- splits -----------------------------------------------------------------------------------


def question_groups(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the group of each record [n]: what may not be torn apart by a split.

    Records belong together that share a `group` (CoQA: the story) or an id within a domain, or that
    ask the same question word for word, or in translation; and so on, from one to the next.
    """
    parent: dict[str, str] = {}
    asked: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    names = [f"{r.get('domain')}/{group_key(r, r['id'])}" for r in records]
    for name, record in zip(names, records, strict=True):
        for key in question_digests(record):
            parent[root(name)] = root(asked.setdefault(key, name))
    return np.array([root(name) for name in names])


def require_fractions(val: float, test: float) -> None:
    """Raise UserError unless these shares of the items leave some to train on."""
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise UserError(
            f"val_fraction {val:g} and test_fraction {test:g} must be positive and leave a train "
            "split; give fractions whose sum is below 1"
        )


def split_by_group(
    groups: Sequence[str],
    *,
    strata: Sequence[str],
    y: np.ndarray,
    fractions: tuple[float, float],
    seed: int,
) -> np.ndarray:
    """Assign each item to "train", "val" or "test" [n]; items of one group stay together.

    Stratified on (stratum, majority label of the group) as far as groups allow: within each stratum
    the groups come in seeded random order, and each goes where most items are still owed.
    """
    val, test = fractions
    require_fractions(val, test)
    shares = np.array([1 - val - test, val, test])
    members: dict[str, list[int]] = defaultdict(list)
    for item, group in enumerate(groups):
        members[group].append(item)
    by_stratum: dict[tuple, list[str]] = defaultdict(list)
    for group in sorted(members):
        items = members[group]
        by_stratum[(strata[items[0]], bool(np.mean(y[items]) > 0.5))].append(group)
    rng = np.random.default_rng(derived_seed(seed, "split"))
    splits = np.empty(len(groups), dtype="<U5")
    for _, names in sorted(by_stratum.items()):
        counts = np.zeros(3)
        for place in rng.permutation(len(names)):
            items = members[names[place]]
            owed = shares * (counts.sum() + len(items)) - counts
            chosen = int(owed.argmax())
            counts[chosen] += len(items)
            splits[items] = SPLITS[chosen]
    return splits


def class_counts(labels: np.ndarray, splits: np.ndarray) -> dict[str, tuple[int, int]]:
    """Return how many labels [n] of each of SPLITS are 1, and how many 0."""
    own = {split: labels[splits == split] for split in SPLITS}
    return {split: (int((y == 1).sum()), int((y == 0).sum())) for split, y in own.items()}


def require_both_classes(
    labels: np.ndarray, splits: np.ndarray, names: str = "hallucinated / consistent"
) -> None:
    """Raise UserError with the counts unless every split holds both classes."""
    counts = class_counts(labels, splits)
    if min(map(min, counts.values())) == 0:
        told = "; ".join(f"{split} {one} / {zero}" for split, (one, zero) in counts.items())
        n, rate, more = labels.size, float((labels == 1).mean()), "more questions"
        if 0 < rate < 1:
            needed = questions_needed(rate, min(map(sum, counts.values())) / n)
            more = f"about {needed - n} questions more ({MIN_PER_CLASS} of each at this rate)"
        raise UserError(
            f"every split needs both classes; {names} items: "
            f"{told}. Use {more}, other data, or larger val and test fractions"
        )
