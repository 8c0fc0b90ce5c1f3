"""Train a SAPLMA probe on the first answers of stage-1 dialogues, and set its spike threshold.

SAPLMA (Azaria and Mitchell, 2023): an MLP d-256-128-64-1 with ReLU and a sigmoid, trained with Adam
at 1e-3 on the binary cross-entropy of y (1 = hallucinated), 5 epochs, batches of 32. Layer and
epoch are chosen on the validation split, the threshold is set there too, and the test split is
looked at once, at the end.

All candidate layers are trained at the same time as one batched MLP; each has its own seed and its
own gradients, so that the result for a layer does not depend on which others were tried. Training
runs on the CPU: the networks are small and the result is then the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spikescore.evaluation import auroc, measure_auroc
from spikescore.pairs import read_states
from spikescore.probe_data import (
    SPLITS,
    TrainingData,
    load_training_data,
    require_both_classes,
    split_by_group,
)
from spikescore.probes import (
    DEFAULT_TOKEN_KEY,
    LayerRange,
    Probe,
    item_key,
    question_digest,
    stack_turns,
)
from spikescore.scores import spike_score
from spikescore.seeding import derived_seed

if TYPE_CHECKING:
    import torch


HIDDEN_SIZES = (256, 128, 64)
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Settings:
    """What a SAPLMA training run is made of; published defaults where there are any.

    `layer_range` None tries every single layer but the embedding output, which knows only the last
    token itself. `standardise` shifts and scales each feature by its mean and standard deviation on
    the train split: a few features of a transformer are a hundred times larger than the rest, and
    five epochs would otherwise be spent on them.
    """

    token_key: str = DEFAULT_TOKEN_KEY
    layer_range: LayerRange | None = None
    seed: int = 42
    epochs: int = 5
    batch_size: int = 32
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    standardise: bool = True


@dataclass
class Fit:
    """The chosen candidate: its layers, best epoch, network at that epoch and at the last one."""

    layers: LayerRange
    epoch: int
    best: list[tuple]
    last: list[tuple]
    mean: np.ndarray | None
    scale: np.ndarray | None
    val_auroc: dict[str, list[float]]


def train_saplma(
    folders: Sequence[str | Path],
    settings: Settings,
    *,
    dataset_names: Sequence[str] | None = None,
) -> tuple[Probe, Probe]:
    """Train on the pairs under the folders; return the probe of the best epoch and of the last one.

    The best epoch, and the layer when none is given, have the highest validation AUROC (ties: the
    lowest validation loss). Both probes carry their own validation and test figures and threshold.
    Raises UserError when there is nothing to learn from or a split has one class only.
    """
    data = load_training_data(
        folders,
        token_key=settings.token_key,
        layer_range=settings.layer_range,
        dataset_names=dataset_names,
    )
    splits = split_by_group(
        data.groups,
        strata=data.datasets,
        y=data.y,
        fractions=(settings.val_fraction, settings.test_fraction),
        seed=settings.seed,
    )
    require_both_classes(data.y, splits)
    if settings.layer_range:
        candidates = [settings.layer_range]
    else:
        candidates = [(layer, layer) for layer in range(1, data.n_layers + 1)]
    fit = fit_saplma(data, candidates, splits, settings)
    training = _describe(data, splits, folders)
    dialogues = list(_validation_dialogues(data, splits, settings.token_key))
    probes = []
    for name, weights, epoch in (
        ("best", fit.best, fit.epoch),
        ("last", fit.last, settings.epochs),
    ):
        probe = Probe(
            kind="saplma",
            weights=weights,
            model=data.model,
            hidden_size=data.hidden_size,
            n_layers=data.n_layers,
            token_key=settings.token_key,
            layer_range=fit.layers,
            mean=fit.mean,
            scale=fit.scale,
            training=training,
            seed=settings.seed,
        )
        _measure(probe, data, splits, dialogues)
        probe.metrics |= {"which": name, "epoch": epoch, "val_auroc_by_layer": fit.val_auroc}
        probes.append(probe)
    return probes[0], probes[1]


# --- the batched network ----------------------------------------------------------------------


def fit_saplma(
    data: TrainingData, candidates: Sequence[LayerRange], splits: np.ndarray, settings: Settings
) -> Fit:
    """Train one MLP per candidate range, all in step, and keep the best on the validation split.

    The candidates must be of one width. A step costs one product [C, batch, d] x [C, d, 256].
    """
    import torch

    features = [data.features(candidate) for candidate in candidates]
    train, val = (np.flatnonzero(splits == split) for split in ("train", "val"))
    mean, scale = _normaliser(features, train)
    if not settings.standardise:
        mean, scale = np.zeros_like(mean), np.ones_like(scale)

    def batch(items: np.ndarray) -> torch.Tensor:
        rows = np.stack([rows[items] for rows in features]).astype(np.float32)
        return torch.from_numpy((rows - mean[:, None]) / scale[:, None])

    parameters = _initial_parameters(candidates, features[0].shape[1], settings.seed)
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    order = torch.Generator().manual_seed(derived_seed(settings.seed, "order"))
    y = torch.from_numpy(data.y.astype(np.float32))
    history: dict[str, list[float]] = {f"{a},{b}": [] for a, b in candidates}
    best: tuple[float, float] = (-1.0, 0.0)
    for epoch in range(1, settings.epochs + 1):
        shuffled = train[torch.randperm(len(train), generator=order).numpy()]
        for start in range(0, len(train), settings.batch_size):
            items = shuffled[start : start + settings.batch_size]
            loss = _losses(_logits(parameters, batch(items)), y[items]).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            chunks = np.array_split(val, -(-len(val) // 256))
            logits = torch.cat([_logits(parameters, batch(items)) for items in chunks], dim=1)
            losses = _losses(logits, y[val])
        for place, (a, b) in enumerate(candidates):
            area = auroc(data.y[val], torch.sigmoid(logits[place]).double().numpy())
            history[f"{a},{b}"].append(area)
            if (area, -float(losses[place])) > best:
                best = (area, -float(losses[place]))
                chosen, best_epoch = place, epoch
                best_weights = _as_weights(parameters, place)
    return Fit(
        layers=candidates[chosen],
        epoch=best_epoch,
        best=best_weights,
        last=_as_weights(parameters, chosen),
        mean=mean[chosen] if settings.standardise else None,
        scale=scale[chosen] if settings.standardise else None,
        val_auroc=history,
    )


def _normaliser(features: list[np.ndarray], train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [C, d] over the train items; a constant feature keeps scale 1."""
    rows = (candidate[train].astype(np.float32) for candidate in features)
    moments = [(x.mean(axis=0), x.std(axis=0)) for x in rows]
    mean, deviation = (np.stack(column) for column in zip(*moments, strict=True))
    return mean, np.where(deviation > 1e-6, deviation, np.float32(1))


def _initial_parameters(
    candidates: Sequence[LayerRange], input_dim: int, seed: int
) -> list[torch.Tensor]:
    """Weights [C, in, out] and biases [C, 1, out], uniform within 1/sqrt(in) as in nn.Linear.

    Each candidate draws from a generator of its own, so its start does not depend on the others.
    """
    import torch

    sizes = (input_dim, *HIDDEN_SIZES, 1)
    drawn = []
    for first, last in candidates:
        generator = torch.Generator().manual_seed(derived_seed(seed, "saplma", first, last))
        drawn.append([])
        for n_in, n_out in zip(sizes, sizes[1:], strict=False):
            for rows in (n_in, 1):
                uniform = torch.rand((rows, n_out), generator=generator)
                drawn[-1].append((2 * uniform - 1) / n_in**0.5)
    return [torch.stack(tensors).requires_grad_() for tensors in zip(*drawn, strict=True)]


def _logits(parameters: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Forward pass of every candidate at once: x [C, n, d] -> [C, n]."""
    import torch

    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = torch.baddbmm(bias, x, weight).relu()
    return torch.baddbmm(parameters[-1], x, parameters[-2])[..., 0]


def _losses(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of each candidate: [C, n], [n] -> [C]."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    target = y.expand_as(logits)
    return binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)


def _as_weights(parameters: list[torch.Tensor], place: int) -> list[tuple]:
    """Copy one candidate's network into a probe's list of operations."""
    arrays = [tensor.detach()[place].numpy().copy() for tensor in parameters]
    operations: list[tuple] = []
    for weight, bias in zip(arrays[::2], arrays[1::2], strict=True):
        operations += [("linear", np.ascontiguousarray(weight.T), bias[0]), ("relu",)]
    return [*operations[:-1], ("sigmoid",)]


# --- held-out figures and threshold -----------------------------------------------------------


def _validation_dialogues(
    data: TrainingData, splits: np.ndarray, token_key: str
) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Yield (y, path, record) of the validation dialogues long enough to have a SpikeScore."""
    for item in np.flatnonzero(splits == "val"):
        if len(data.records[item]["cot_steps"]) >= 3:
            yield int(data.y[item]), data.pkl_paths[item], data.records[item]


def _measure(
    probe: Probe,
    data: TrainingData,
    splits: np.ndarray,
    dialogues: Sequence[tuple[int, Path, dict[str, Any]]],
) -> None:
    """Fill in the probe's validation and test AUROC and its spike threshold."""
    features = data.features(probe.layer_range)
    for name in ("val", "test"):
        chosen = splits == name
        area = measure_auroc(
            data.y[chosen],
            probe.score(features[chosen]),
            groups=data.groups[chosen],
            seed=probe.seed,
        )
        probe.metrics[name] = asdict(area)
    spikes = []
    for _, path, record in dialogues:
        states = stack_turns(read_states(path, probe.token_key), record, probe.token_key, path)
        spikes.append(spike_score(probe.score(probe.features(states))))
    y = np.array([label for label, _, _ in dialogues])
    threshold = {"value": None, "balanced_accuracy": None, "n": len(spikes), "note": ""}
    if len(set(y.tolist())) == 2:
        threshold["value"], threshold["balanced_accuracy"] = best_threshold(y, np.array(spikes))
        threshold["note"] = "best balanced accuracy of SpikeScore on the validation dialogues"
    else:
        threshold["note"] = (
            "not set: needs validation dialogues of both classes with 3 turns or more"
        )
    probe.spike_threshold = threshold["value"]
    probe.metrics["spike_threshold"] = threshold


def best_threshold(y: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Return (threshold, balanced accuracy) that best flags y = 1 by score >= threshold.

    Candidates are the midpoints between neighbouring distinct scores, and the lowest score itself
    (everything flagged); of equals the lowest wins. Both classes must be present.
    """
    distinct = np.unique(scores)
    thresholds = np.concatenate([distinct[:1], (distinct[1:] + distinct[:-1]) / 2])
    flagged = scores[None, :] >= thresholds[:, None]
    accuracy = (flagged[:, y == 1].mean(axis=1) + 1 - flagged[:, y == 0].mean(axis=1)) / 2
    place = int(accuracy.argmax())
    return float(thresholds[place]), float(accuracy[place])


def _describe(
    data: TrainingData, splits: np.ndarray, folders: Sequence[str | Path]
) -> dict[str, Any]:
    """Return what the probe file says about its training data; plain values only."""
    questions: dict[str, str] = {}
    for record, split in zip(data.records, splits.tolist(), strict=True):
        digest = question_digest(record)
        # a question asked twice counts as the more compromised of its splits
        questions[digest] = min(split, questions.get(digest, split), key=SPLITS.index)
    return {
        "dirs": [str(folder) for folder in folders],
        "datasets": sorted(set(data.datasets)),
        "n": {split: int((splits == split).sum()) for split in SPLITS},
        "hallucination_rate": {split: float(data.y[splits == split].mean()) for split in SPLITS},
        "left_out": data.left_out,
        "items": {
            item_key(record): split
            for record, split in zip(data.records, splits.tolist(), strict=True)
        },
        "questions": questions,
    }
