"""Train a probe on first answers: choose layers and epoch, measure it, set its spike threshold.

`saplma` (Azaria and Mitchell, 2023) learns whether an answer is hallucinated, with the network and
the training of `fit.SAPLMA`. `sep-logistic` (`linear`) and `sep-mlp` (`fit.SEP_MLP`) learn how far
sampled answers disagree.

Layers and epoch are chosen on the validation split, by the AUROC of the classes the probe is to
tell apart; what splits entropy into classes is fitted on the train split; the test split is looked
at once, at the end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError
from spikescore.measures.run_folder import is_run_folder
from spikescore.pairs import DEFAULT_TOKEN_KEY, item_key, question_digests
from spikescore.probes.data import (
    SPLITS,
    Task,
    TrainingData,
    load_training_data,
    require_both_classes,
    require_fractions,
    split_by_group,
)
from spikescore.probes.fit import SAPLMA, SEP_MLP, Examples, Fit, Recipe
from spikescore.probes.layers import (
    LayerRange,
    Layers,
    best_window,
    candidate_layers,
    is_contiguous,
)
from spikescore.probes.linear import best_split, fit_logistic
from spikescore.probes.measuring import measure, set_thresholds, validation_dialogues
from spikescore.probes.probe import Probe
from spikescore.runtime import limited_threads
from spikescore.stats.roc import auroc

log = logging.getLogger("spikescore")

LOSS_NAMES = ("huber", "mse", "mae", "correlation", "neural_ndcg")
"""What a sep-mlp may learn by; see `losses`."""
RECIPES = {"saplma": SAPLMA, "sep-mlp": SEP_MLP}


@dataclass(frozen=True)
class Settings:
    """What a training run is made of. None: as the recipe of the kind of probe has it.

    `layers` is `single` (the best layer by itself), `auto` (that or the best window of 5 or more
    adjacent layers), `last_n`, `first_n` or a list such as `5,7,9`; `layer_range` (inclusive)
    replaces it. `standardise` shifts and scales each feature by its mean and standard deviation on
    the train split: a few features of a transformer are a hundred times larger than the rest, and
    training would otherwise be spent on them. `seeds` networks are trained from as many starts, and
    the best on the validation split is kept. `loss`, `hidden_sizes` and `weight_decay` are for
    `sep-mlp`.
    """

    probe: str | None = None
    token_key: str = DEFAULT_TOKEN_KEY
    layers: str = "single"
    layer_range: LayerRange | None = None
    seed: int = 42
    seeds: int = 1
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float = SEP_MLP.weight_decay
    patience: int | None = None
    loss: str = SEP_MLP.loss
    hidden_sizes: tuple[int, ...] = SEP_MLP.hidden
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    standardise: bool = True
    swapped_positions: bool = False

    @property
    def recipe(self) -> Recipe:
        """The recipe of the kind of probe, with what was given in its place."""
        names = ("epochs", "batch_size", "learning_rate", "patience")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.probe == "sep-mlp":
            given |= {"loss": self.loss, "hidden": self.hidden_sizes}
            given["weight_decay"] = self.weight_decay
        return replace(RECIPES[self.probe], **given)


def choose_probe(folders: Sequence[str | Path]) -> tuple[str, str]:
    """Return the kind of probe for these folders, and why, for users who name none."""
    if folders and all(is_run_folder(folder) for folder in folders):
        return "sep-logistic", "the folders hold runs of generate_answers.py"
    return "saplma", "dialogues of stage 1 are among the folders"


def train_probe(
    folders: Sequence[str | Path],
    settings: Settings,
    *,
    dataset_names: Sequence[str] | None = None,
) -> tuple[Probe, Probe]:
    """Train on the folders; return the probe of the best epoch and the one where training ended.

    The best epoch, and the layers among several candidates, have the highest validation AUROC
    (ties: the lowest validation loss). Both probes carry their own figures. Raises UserError when
    there is nothing to learn from or a split has one class only.
    """
    _check(folders, settings)
    if settings.probe is None:
        kind, reason = choose_probe(folders)
        log.info("probe %s: %s", kind, reason)
        settings = replace(settings, probe=kind)
    entropy_is_learned = settings.probe != "saplma"
    data = load_training_data(
        folders,
        token_key=settings.token_key,
        layers=settings.layers,
        layer_range=settings.layer_range,
        dataset_names=dataset_names,
        needs_entropy=entropy_is_learned,
        swapped_positions=settings.swapped_positions,
    )
    # only how evenly the splits are filled depends on this, so the median may see all items
    classes = data.entropy > np.median(data.entropy) if entropy_is_learned else data.y
    splits = split_by_group(
        data.groups,
        strata=data.datasets,
        y=classes,
        fractions=(settings.val_fraction, settings.test_fraction),
        seed=settings.seed,
    )
    task = make_task(settings.probe, data, splits)
    require_both_classes(task.labels, splits, task.classes)
    # logistic regression has one solution, wherever one starts
    n_starts = 1 if settings.probe == "sep-logistic" else settings.seeds
    seeds = [settings.seed + place for place in range(n_starts)]
    with limited_threads():
        fits = [search_layers(data, task, splits, settings, seed) for seed in seeds]
    chosen = max(range(n_starts), key=lambda place: fits[place].score)
    training = _describe(data, splits, folders, task)
    starts = [
        _describe_start(fit, data, task, splits, settings, seed)
        for fit, seed in zip(fits, seeds, strict=True)
    ]
    best, last = (
        _as_probe(which, fits[chosen], data, settings, seeds[chosen]) for which in ("best", "last")
    )
    for probe in (best, last):
        probe.training = training
        measure(probe, data, task, splits)
    set_thresholds((best, last), list(validation_dialogues(data, splits)))
    for probe in (best, last):
        probe.metrics["starts"] = starts
    return best, last


def _check(folders: Sequence[str | Path], settings: Settings) -> None:
    if not folders:
        raise UserError("no folders to train on: give one or more as --data_dirs A,B")
    if settings.layer_range is not None and settings.layers != "single":
        raise UserError("give --layers or --layer_range, not both")
    if settings.loss not in LOSS_NAMES:
        raise UserError(f'unknown --loss "{settings.loss}"; use one of {", ".join(LOSS_NAMES)}')
    require_fractions(settings.val_fraction, settings.test_fraction)
    for name, least in (("learning_rate", 1e-12), ("weight_decay", 0), ("patience", 0)):
        value = getattr(settings, name)
        if value is not None and not least <= value < math.inf:
            raise UserError(f"--{name} {value:g}: at least {least:g} is needed")
    if settings.seeds < 1:
        raise UserError(f"--seeds {settings.seeds}: at least 1 is needed")


def make_task(kind: str, data: TrainingData, splits: np.ndarray) -> Task:
    """Return the classes and targets of a kind of probe; gamma is fitted on the train split."""
    if kind == "saplma":
        return Task(data.y.astype(np.int64), data.y, "hallucinated / consistent")
    gamma = best_split(data.entropy[splits == "train"])
    labels = (data.entropy > gamma).astype(np.int64)
    return Task(labels, data.entropy, "high / low entropy", gamma)


# --- layers and fits --------------------------------------------------------------------------


def search_layers(
    data: TrainingData, task: Task, splits: np.ndarray, settings: Settings, seed: int
) -> Fit:
    """Fit every candidate choice of layers and return the best on the validation split.

    For `auto` the window whose single layers are best on average is fitted too, and wins if its
    AUROC is higher than that of the best layer.
    """
    train, val = (np.flatnonzero(splits == split) for split in ("train", "val"))
    examples = Examples(train, val, task.labels, task.target)

    def fit(candidates: Sequence[Layers]) -> Fit:
        features = map(data.features, candidates)
        standardise = settings.standardise
        if settings.probe == "sep-logistic":
            return fit_logistic(features, candidates, examples, standardise=standardise)
        from spikescore.probes.network import fit_network  # torch: --help need not wait for it

        return fit_network(
            features, candidates, examples, settings.recipe, seed=seed, standardise=standardise
        )

    candidates = candidate_layers(settings.layers, settings.layer_range, data.n_layers)
    best = fit(candidates)
    if settings.layers != "auto" or settings.layer_range is not None:
        return best
    window = best_window([max(best.val_auroc[str(layer)]) for (layer,) in candidates])
    if window is None:
        return best
    wide = fit([tuple(range(window[0], window[1] + 1))])
    chosen = wide if wide.score[0] > best.score[0] else best
    chosen.val_auroc, chosen.tried = best.val_auroc | wide.val_auroc, best.tried
    return chosen


def _as_probe(which: str, fit: Fit, data: TrainingData, settings: Settings, seed: int) -> Probe:
    probe = Probe(
        kind=settings.probe,
        weights=fit.best if which == "best" else fit.last,
        model=data.model,
        hidden_size=data.hidden_size,
        n_layers=data.n_layers,
        token_key=settings.token_key,
        layer_range=(fit.layers[0], fit.layers[-1]),
        layers=None if is_contiguous(fit.layers) else fit.layers,
        mean=fit.mean,
        scale=fit.scale,
        seed=seed,
        identity=data.identity,
        tried={
            one.layers[0]: {
                "weights": one.best, "mean": one.mean, "scale": one.scale, "val_auroc": one.score[0]
            }
            for one in (fit.tried if len(fit.tried) > 1 else ())
        },
    )  # fmt: skip
    epoch = fit.epoch if which == "best" else fit.last_epoch
    probe.metrics |= {"which": which, "epoch": epoch, "val_auroc_by_layers": fit.val_auroc}
    if settings.probe == "sep-mlp":
        probe.metrics["loss"] = settings.loss
    return probe


def _describe_start(
    fit: Fit, data: TrainingData, task: Task, splits: np.ndarray, settings: Settings, seed: int
) -> dict[str, Any]:
    """Return the layers, epoch and figures of one start, so that their spread can be seen."""
    test = splits == "test"
    scores = _as_probe("best", fit, data, settings, seed).score(data.features(fit.layers)[test])
    return {
        "seed": seed,
        "layers": list(fit.layers),
        "epoch": fit.epoch,
        "val_auroc": fit.score[0],
        "test_auroc": auroc(task.labels[test], scores.astype(np.float64)),
    }


def _describe(
    data: TrainingData, splits: np.ndarray, folders: Sequence[str | Path], task: Task
) -> dict[str, Any]:
    """Return what the probe file says of its training data; a rate of no items is None."""
    questions: dict[str, str] = {}
    items: dict[str, str] = {}
    for record, split in zip(data.records, splits.tolist(), strict=True):
        # a question asked twice counts as the more compromised of its splits
        for key in question_digests(record):
            questions[key] = min(split, questions.get(key, split), key=SPLITS.index)
        key = item_key(record)
        items[key] = min(split, items.get(key, split), key=SPLITS.index)
    rates = {}
    for split in SPLITS:
        judged = data.y[(splits == split) & np.isfinite(data.y)]
        rates[split] = float(judged.mean()) if judged.size else None
    told = {
        "dirs": [str(folder) for folder in folders],
        "datasets": sorted(set(data.datasets)),
        "n": {split: int((splits == split).sum()) for split in SPLITS},
        "hallucination_rate": rates,
        "left_out": data.left_out,
        "items": items,
        "questions": questions,
    }
    if task.gamma is not None:
        told["entropy_threshold"] = task.gamma
        told["high_entropy_rate"] = {
            split: float(task.labels[splits == split].mean()) for split in SPLITS
        }
    return told
