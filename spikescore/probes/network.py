"""Train one small network per candidate layer choice, all in step, and keep the best.

The candidates' weights lie in one tensor, so a step costs one product [C, batch, d] x [C, d, out].
Each candidate has a start of its own, its own gradients and its own early stopping: its result does
not depend on which others were tried. Training runs on the CPU: the networks are small and the
result is then the same everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, layer_norm, mish
from tqdm import tqdm

from spikescore.probes.layers import Layers, layers_text
from spikescore.runtime import derived_seed
from spikescore.stats.roc import auroc

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(outputs [C, n], target [n]) -> one loss per candidate [C]."""

MAX_PARAMETERS = 160_000_000
"""Weights trained in step: with gradients and Adam's two moments 2.6 GB. Beyond that the candidates
are trained in several groups, which changes nothing in the result."""


@dataclass(frozen=True)
class Architecture:
    """Hidden layers with their activation ("relu" or "mish"), LayerNorm before it, last sigmoid."""

    name: str
    hidden: tuple[int, ...]
    activation: str
    layer_norm: bool
    sigmoid: bool


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; `patience` None: no early stopping."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    patience: int | None = None


@dataclass
class Examples:
    """What is learned: item numbers per split, labels [n] of 0 and 1 to choose by, targets [n]."""

    train: np.ndarray
    val: np.ndarray
    labels: np.ndarray
    target: np.ndarray


@dataclass
class Fit:
    """The chosen candidate: its layers, its network at the best epoch and where training stopped.

    `score` is (validation AUROC, minus validation loss) at the best epoch. `val_auroc` has every
    candidate's AUROC per epoch, by the text of its layers.
    """

    layers: Layers
    score: tuple[float, float]
    epoch: int
    last_epoch: int
    best: list[tuple]
    last: list[tuple]
    mean: np.ndarray | None
    scale: np.ndarray | None
    val_auroc: dict[str, list[float]] = field(default_factory=dict)


def fit_mlp(
    features: Sequence[np.ndarray],
    candidates: Sequence[Layers],
    examples: Examples,
    *,
    architecture: Architecture,
    loss: Loss,
    schedule: Schedule,
    seed: int,
    standardise: bool = True,
) -> Fit:
    """Train a network per candidate and return the best one on the validation split.

    `features[c]` is [n, d] for candidate c, d the same for all. Best is the highest validation
    AUROC over candidates and epochs (ties: the lowest validation loss). A candidate stops when that
    has not improved for `patience` epochs.
    """
    width = features[0].shape[1]
    sizes = (width, *architecture.hidden, 1)
    each = sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))
    at_once = max(1, MAX_PARAMETERS // each)
    fits = []
    for start in range(0, len(candidates), at_once):
        part = slice(start, start + at_once)
        fits.append(
            _fit_group(
                features[part],
                candidates[part],
                examples,
                architecture,
                loss,
                schedule,
                seed,
                standardise,
            )
        )
    chosen = max(fits, key=lambda fit: fit.score)
    chosen.val_auroc = {key: areas for fit in fits for key, areas in fit.val_auroc.items()}
    return chosen


def _fit_group(
    features: Sequence[np.ndarray],
    candidates: Sequence[Layers],
    examples: Examples,
    architecture: Architecture,
    loss: Loss,
    schedule: Schedule,
    seed: int,
    standardise: bool,
) -> Fit:
    train, val = examples.train, examples.val
    mean, scale = normaliser(features, train, standardise)

    def batch(items: np.ndarray) -> torch.Tensor:
        rows = np.stack([rows[items] for rows in features]).astype(np.float32)
        return torch.from_numpy((rows - mean[:, None]) / scale[:, None])

    parameters = initial_parameters(candidates, features[0].shape[1], architecture, seed)
    optimiser = torch.optim.AdamW(
        parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
    )
    order = torch.Generator().manual_seed(derived_seed(seed, "order"))
    target = torch.from_numpy(examples.target.astype(np.float32))
    history: dict[str, list[float]] = {layers_text(layers): [] for layers in candidates}
    own_best = [(-1.0, 0.0)] * len(candidates)
    best_epochs = [0] * len(candidates)
    chosen, best_weights, last_weights, last_epoch = 0, None, None, 0
    running = set(range(len(candidates)))
    epochs = range(1, schedule.epochs + 1)
    # disable=None: no bar where nobody watches
    for epoch in tqdm(epochs, desc=architecture.name, unit="epoch", leave=False, disable=None):
        shuffled = train[torch.randperm(len(train), generator=order).numpy()]
        for start in range(0, len(train), schedule.batch_size):
            items = shuffled[start : start + schedule.batch_size]
            total = loss(outputs(parameters, batch(items), architecture), target[items]).sum()
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
        with torch.no_grad():
            chunks = np.array_split(val, -(-len(val) // 256))
            given = [outputs(parameters, batch(items), architecture) for items in chunks]
            found = torch.cat(given, dim=1)
            losses = loss(found, target[val])
        scores = (torch.sigmoid(found) if architecture.sigmoid else found).double().numpy()
        for place in sorted(running):
            area = auroc(examples.labels[val], scores[place])
            history[layers_text(candidates[place])].append(area)
            score = (area, -float(losses[place]))
            if score > own_best[place]:
                if best_weights is None or score > own_best[chosen]:
                    chosen, best_weights = place, as_weights(parameters, place, architecture)
                own_best[place], best_epochs[place] = score, epoch
            stale = epoch - best_epochs[place]
            if epoch == schedule.epochs or (schedule.patience and stale >= schedule.patience):
                running.remove(place)
                # a candidate that stopped cannot become the best later: only the best is kept
                if place == chosen:
                    last_weights, last_epoch = as_weights(parameters, place, architecture), epoch
        if not running:
            break
    return Fit(
        layers=candidates[chosen],
        score=own_best[chosen],
        epoch=best_epochs[chosen],
        last_epoch=last_epoch,
        best=best_weights,
        last=last_weights,
        mean=mean[chosen] if standardise else None,
        scale=scale[chosen] if standardise else None,
        val_auroc=history,
    )


def normaliser(
    features: Sequence[np.ndarray], train: np.ndarray, standardise: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [C, d] over the train items; a constant feature keeps scale 1.

    Without `standardise` they are 0 and 1.
    """
    if not standardise:
        shape = (len(features), features[0].shape[1])
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)
    rows = (candidate[train].astype(np.float32) for candidate in features)
    moments = [(x.mean(axis=0), x.std(axis=0)) for x in rows]
    mean, deviation = (np.stack(column) for column in zip(*moments, strict=True))
    return mean, np.where(deviation > 1e-6, deviation, np.float32(1))


# --- the network ------------------------------------------------------------------------------


def initial_parameters(
    candidates: Sequence[Layers], input_dim: int, architecture: Architecture, seed: int
) -> list[torch.Tensor]:
    """Weights [C, in, out] and biases [C, 1, out], uniform within 1/sqrt(in) as in nn.Linear.

    With LayerNorm, its gain and bias [C, 1, out] follow each pair but the last. Each candidate
    draws from a generator of its own, so its start does not depend on the others.
    """
    sizes = (input_dim, *architecture.hidden, 1)
    drawn: list[list[torch.Tensor]] = []
    for layers in candidates:
        own = derived_seed(seed, architecture.name, layers[0], layers[-1])
        generator = torch.Generator().manual_seed(own)
        drawn.append([])
        for place, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
            for rows in (n_in, 1):
                uniform = torch.rand((rows, n_out), generator=generator)
                drawn[-1].append((2 * uniform - 1) / n_in**0.5)
            if architecture.layer_norm and place < len(architecture.hidden):
                drawn[-1] += [torch.ones((1, n_out)), torch.zeros((1, n_out))]
    return [torch.stack(tensors).requires_grad_() for tensors in zip(*drawn, strict=True)]


def outputs(
    parameters: Sequence[torch.Tensor], x: torch.Tensor, architecture: Architecture
) -> torch.Tensor:
    """Forward pass of every candidate at once, without the last sigmoid: x [C, n, d] -> [C, n]."""
    tensors = iter(parameters)
    for width in architecture.hidden:
        weight, bias = next(tensors), next(tensors)
        x = torch.baddbmm(bias, x, weight)
        if architecture.layer_norm:
            x = layer_norm(x, (width,)) * next(tensors) + next(tensors)
        x = mish(x) if architecture.activation == "mish" else x.relu()
    weight, bias = next(tensors), next(tensors)
    return torch.baddbmm(bias, x, weight)[..., 0]


def as_weights(
    parameters: Sequence[torch.Tensor], place: int, architecture: Architecture
) -> list[tuple]:
    """Copy one candidate's network into a probe's list of operations."""
    arrays = iter([tensor.detach()[place].numpy().copy() for tensor in parameters])
    operations: list[tuple] = []
    for _ in architecture.hidden:
        operations.append(("linear", np.ascontiguousarray(next(arrays).T), next(arrays)[0]))
        if architecture.layer_norm:
            operations.append(("layernorm", next(arrays)[0], next(arrays)[0]))
        operations.append((architecture.activation,))
    operations.append(("linear", np.ascontiguousarray(next(arrays).T), next(arrays)[0]))
    return [*operations, ("sigmoid",)] if architecture.sigmoid else operations


@dataclass(frozen=True)
class Recipe:
    """An MLP d-hidden-1 and how Adam trains it; dropout before the first layer and after each."""

    hidden: tuple[int, ...]
    batch_norm: bool = False
    leaky: bool = False
    input_dropout: float = 0.0
    dropout: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 32

    def network(self, width: int) -> nn.Sequential:
        """Return the untrained network on features of this width, one logit out."""
        parts: list[nn.Module] = [nn.Dropout(self.input_dropout)] if self.input_dropout else []
        for n_in, n_out in zip((width, *self.hidden), self.hidden, strict=False):
            parts.append(nn.Linear(n_in, n_out))
            if self.batch_norm:
                parts.append(nn.BatchNorm1d(n_out))
            parts.append(nn.LeakyReLU() if self.leaky else nn.ReLU())
            if self.dropout:
                parts.append(nn.Dropout(self.dropout))
        return nn.Sequential(*parts, nn.Linear(self.hidden[-1], 1))


@dataclass(frozen=True)
class NetworkFit:
    """A network at its best epoch; `rank` is its (validation AUROC, minus validation loss)."""

    network: nn.Sequential
    mean: np.ndarray
    scale: np.ndarray
    epoch: int
    rank: tuple[float, float]

    def score(self, features: np.ndarray) -> np.ndarray:
        """Return the probability of class 1 for features [m, d]: float64 [m]."""
        x = torch.from_numpy((features.astype(np.float32) - self.mean) / self.scale)
        with torch.no_grad():
            return torch.sigmoid(self.network(x)[:, 0].double()).numpy()


def fit_network(
    features: np.ndarray, examples: Examples, recipe: Recipe, *, epochs: int, seed: int
) -> NetworkFit:
    """Train on the train rows of features [n, d] and return the epoch that is best on validation.

    Best is the highest validation AUROC, of equal ones the lowest loss, of those the first epoch.
    Start, order and dropout follow from the seed alone; the caller's random state is left as it is.
    """
    train, val = examples.train, examples.val
    (mean,), (scale,) = normaliser([features], train)
    x = torch.from_numpy((features.astype(np.float32) - mean) / scale)
    y = torch.from_numpy(examples.target.astype(np.float32))
    # fork_rng: layers and dropout draw from torch's one generator, which is not ours to seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "network", *recipe.hidden))
        network = recipe.network(features.shape[1])
        optimiser = torch.optim.Adam(
            network.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,  # one pass over the weights: most of a step's time is here otherwise
        )
        best, best_epoch, best_state = None, 0, None
        for epoch in range(1, epochs + 1):
            _train_one_epoch(network, optimiser, x, y, train, recipe.batch_size)
            with torch.no_grad():
                logits = network.eval()(x[val])[:, 0].double()
            loss = float(binary_cross_entropy_with_logits(logits, y[val].double()))
            rank = (auroc(examples.labels[val], logits.numpy()), -loss)
            if best is None or rank > best:
                best, best_epoch = rank, epoch
                best_state = copy.deepcopy(network.state_dict())
        network.load_state_dict(best_state)
    return NetworkFit(network, mean, scale, best_epoch, best)


def _train_one_epoch(
    network: nn.Sequential,
    optimiser: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    train: np.ndarray,
    batch_size: int,
) -> None:
    network.train()
    for rows in torch.from_numpy(train)[torch.randperm(len(train))].split(batch_size):
        if len(rows) == 1 < len(train):
            continue  # batch norm has no deviation of one row; the next epoch has another order
        loss = binary_cross_entropy_with_logits(network(x[rows])[:, 0], y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
