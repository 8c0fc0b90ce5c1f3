"""What a trained probe is worth: its held-out figures, and a SpikeScore threshold to go with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.dialogues.config import dialogue_keys
from spikescore.pairs import read_states, stack_turns
from spikescore.probes.data import Task, TrainingData
from spikescore.probes.probe import Probe
from spikescore.stats.bootstrap import measure_auroc
from spikescore.stats.correlation import measure_correlation
from spikescore.stats.operating_points import choose_threshold
from spikescore.stats.trajectory import spike_score


def measure(probe: Probe, data: TrainingData, task: Task, splits: np.ndarray) -> None:
    """Fill in the probe's validation and test figures.

    AUROC on the probe's own classes; for a semantic entropy probe also as a detector of wrong
    answers, and wherever entropies are known the correlation with them.
    """
    first, last = probe.layer_range
    features = data.features(probe.layers or tuple(range(first, last + 1)))
    for split in ("val", "test"):
        chosen = splits == split
        scores = np.full(len(splits), np.nan)
        scores[chosen] = probe.score(features[chosen])

        def area(items: np.ndarray, labels: np.ndarray, scores: np.ndarray = scores) -> dict:
            groups = data.groups[items]
            held_out = measure_auroc(labels[items], scores[items], groups=groups, seed=probe.seed)
            found = held_out.told(held_out.interval)
            if labels is task.labels and task.gamma is not None:
                # its note names the classes of a detector of hallucinations
                note = found["note"].replace("hallucinated", "high")
                found["note"] = note.replace("consistent", "low entropies")
            return found

        probe.metrics[split] = area(chosen, task.labels)
        if task.gamma is not None:
            judged = chosen & np.isfinite(data.y)
            probe.metrics.setdefault("against_accuracy", {})[split] = area(judged, data.y)
        known = chosen & np.isfinite(data.entropy)
        for figure in ("pearson", "spearman") if known.any() else ():
            found = measure_correlation(
                scores[known],
                data.entropy[known],
                ranks=figure == "spearman",
                groups=data.groups[known],
                seed=probe.seed,
            )
            probe.metrics.setdefault(figure, {})[split] = asdict(found)


def validation_dialogues(
    data: TrainingData, splits: np.ndarray
) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Yield (y, path, record) of the validation dialogues long enough to have a SpikeScore."""
    for item in np.flatnonzero(splits == "val"):
        if data.pkl_paths[item] and len(data.records[item]["cot_steps"]) >= 3:
            yield int(data.y[item]), data.pkl_paths[item], data.records[item]


def set_thresholds(
    probes: Sequence[Probe], dialogues: Sequence[tuple[int, Path, dict[str, Any]]]
) -> None:
    """Set the spike thresholds of probes of one token on the validation dialogues, where there are
    any, and keep with them how these were held.
    """
    token_key = probes[0].token_key
    spikes: list[list[float]] = [[] for _ in probes]
    for _, path, record in dialogues:
        states = stack_turns(read_states(path, token_key), record, token_key, path)
        for probe, own in zip(probes, spikes, strict=True):
            own.append(spike_score(probe.score(probe.features(states))))
    y = np.array([label for label, _, _ in dialogues])
    for probe, own in zip(probes, spikes, strict=True):
        probe.metrics["spike_threshold"] = _threshold(y, np.array(own))
        probe.spike_threshold = probe.metrics["spike_threshold"]["value"]
        probe.dialogues = _how_held([record for _, _, record in dialogues])


def _how_held(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return `Probe.dialogues` of these records; empty where one does not say how it was held."""
    configs = [record.get("config") for record in records]
    if not configs or not all(configs):
        return {}
    prompts = {(record.get("identity") or {}).get("prompts") for record in records}
    held = {key: [config.get(key) for config in configs] for key in dialogue_keys()}
    same = {
        key: values[0] for key, values in held.items() if values.count(values[0]) == len(values)
    }
    return {
        "config": {key: value for key, value in same.items() if key in configs[0]},
        "several": sorted(held.keys() - same.keys()),
        "prompts": prompts.pop() if len(prompts) == 1 else None,
    }


def _threshold(y: np.ndarray, spikes: np.ndarray) -> dict[str, Any]:
    threshold = {"value": None, "balanced_accuracy": None, "n": len(spikes), "note": ""}
    if len(set(y.tolist())) == 2:
        threshold["value"], threshold["balanced_accuracy"] = choose_threshold(y, spikes)
        threshold["note"] = "best balanced accuracy of SpikeScore on the validation dialogues"
    else:
        threshold["note"] = (
            "not set: needs validation dialogues of both classes with 3 turns or more"
            if len(spikes)
            else "not set: there are no dialogues of stage 1 to set it on"
        )
    return threshold
