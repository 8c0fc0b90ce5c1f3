"""What a probe is trained on: labelled first answers, read from pairs and split by question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError
from spikescore.pairs import iter_records, read_states
from spikescore.probes import LayerRange, stack_turns
from spikescore.seeding import derived_seed

SPLITS = ("train", "val", "test")


@dataclass
class TrainingData:
    """The labelled first answers: y [n], states [n, layers kept, H] float16 from first_layer."""

    records: list[dict[str, Any]]
    pkl_paths: list[Path]
    datasets: list[str]
    states: np.ndarray
    first_layer: int
    y: np.ndarray
    model: str
    n_layers: int
    hidden_size: int
    left_out: dict[str, int]

    @property
    def groups(self) -> np.ndarray:
        """Group of each item [n]: its record's `group` (CoQA: the story) or its id, by domain."""
        return np.array([f"{r.get('domain')}/{r.get('group') or r['id']}" for r in self.records])

    def features(self, layers: LayerRange) -> np.ndarray:
        """Return the features of the first answers for an inclusive layer range: float16 [n, d]."""
        first, last = (layer - self.first_layer for layer in layers)
        return self.states[:, first : last + 1].reshape(len(self.y), -1)


def load_training_data(
    folders: Sequence[str | Path],
    *,
    token_key: str,
    layer_range: LayerRange | None,
    dataset_names: Sequence[str] | None = None,
) -> TrainingData:
    """Read the first answer's states and the label of every finished pair under the folders.

    The states of one token, and of the layers in the range alone, are kept. Unlabelled and
    unfinished items and items without a PKL are counted and left out. Raises UserError when nothing
    is left, or when the pairs come from different models.
    """
    if dataset_names is not None and len(dataset_names) != len(folders):
        raise UserError(
            f"{len(folders)} directories but {len(dataset_names)} dataset_names; give one name each"
        )
    records, paths, datasets, states = [], [], [], []
    left_out = dict.fromkeys(("unfinished", "unlabelled", "no PKL"), 0)
    first, last = layer_range or (0, None)
    shape = model = None
    for place, folder in enumerate(folders):
        for json_path, record in iter_records(folder):
            pkl_path = json_path.with_suffix(".pkl")
            reason = _reason_to_leave_out(record, pkl_path)
            if reason:
                left_out[reason] += 1
                continue
            opening = {**record, "cot_steps": record["cot_steps"][:1]}
            array = stack_turns(read_states(pkl_path, token_key), opening, token_key, pkl_path)[0]
            shape, model = shape or array.shape, model or record.get("model")
            if array.shape != shape or record.get("model") != model:
                raise UserError(
                    f'"{pkl_path}" holds states {list(array.shape)} of the model '
                    f'"{record.get("model")}", the files before it {list(shape)} of "{model}"; '
                    "train one probe per model"
                )
            if last is not None and last >= shape[0]:
                raise UserError(
                    f"--layer_range {first},{last}: the model has layers 0 to {shape[0] - 1} "
                    "(0 = embedding output); give a range inside that"
                )
            records.append({key: value for key, value in record.items() if key != "metrics"})
            paths.append(pkl_path)
            datasets.append(dataset_names[place] if dataset_names else str(record.get("domain")))
            states.append(array[first : None if last is None else last + 1].copy())
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    if not records:
        raise UserError(
            f"no labelled pairs in {', '.join(map(str, folders))} (left out: {counts}); "
            "run stage 1 with a judge first"
        )
    y = np.array([1 - record["nil_label"] for record in records])
    return TrainingData(
        records,
        paths,
        datasets,
        np.stack(states),
        first,
        y,
        model,
        shape[0] - 1,
        shape[1],
        left_out,
    )


def _reason_to_leave_out(record: dict[str, Any], pkl_path: Path) -> str | None:
    if not record.get("complete"):
        return "unfinished"
    if record.get("nil_label") not in (0, 1):
        return "unlabelled"
    return None if pkl_path.exists() else "no PKL"


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
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise UserError(
            f"val_fraction {val:g} and test_fraction {test:g} must be positive and leave a train "
            "split; give fractions whose sum is below 1"
        )
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


def require_both_classes(y: np.ndarray, splits: np.ndarray) -> None:
    """Raise UserError with the counts unless every split holds both classes."""
    counts = {
        split: (int((y[splits == split] == 1).sum()), int((y[splits == split] == 0).sum()))
        for split in SPLITS
    }
    if min(min(pair) for pair in counts.values()) == 0:
        told = "; ".join(f"{split} {bad} / {good}" for split, (bad, good) in counts.items())
        raise UserError(
            "every split needs both classes; hallucinated / consistent items: "
            f"{told}. Use more questions, other data, or larger val and test fractions"
        )
