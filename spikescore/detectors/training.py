"""Training of the detectors' networks that have dropout or batch norm, which probes have not."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from spikescore.batched_mlp import Examples, normaliser
from spikescore.evaluation import auroc
from spikescore.seeding import derived_seed


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
