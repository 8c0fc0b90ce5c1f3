"""Train a small network by a recipe, on each choice of layers, and keep the best.

Training runs on the CPU: the networks are small, and a GPU would not be faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from spikescore.probes.fit import Examples, Fit, Recipe, best_of, normaliser
from spikescore.probes.layers import Layers
from spikescore.probes.losses import LOSSES
from spikescore.runtime import derived_seed, progress
from spikescore.stats.roc import auroc

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "mish": nn.Mish}
NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def fit_network(
    features: Iterable[np.ndarray],
    candidates: Sequence[Layers],
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    standardise: bool = True,
) -> Fit:
    """Train a network per candidate and return the one that is best on the validation split.

    `features` gives [n, d] for each candidate in turn; where they come from no layers, the
    candidate is (). One candidate's features, and two candidates' networks, are held at a time.
    Best is the highest validation AUROC over candidates and epochs, of equal ones the lowest loss.
    All follows from the seed alone, and the caller's random state is left as it is.
    """
    pairs = zip(features, candidates, strict=True)
    bar = progress(pairs, recipe.name, total=len(candidates), unit="fit", leave=False)
    return best_of(_fit(rows, own, examples, recipe, seed, standardise) for rows, own in bar)


def _fit(
    rows: np.ndarray,
    layers: Layers,
    examples: Examples,
    recipe: Recipe,
    seed: int,
    standardise: bool,
) -> Fit:
    train, val = examples.train, examples.val
    mean, scale = normaliser(rows, train) if standardise else (None, None)
    target = torch.from_numpy(examples.target.astype(np.float32))
    loss_of = LOSSES[recipe.loss]

    def batch(items: np.ndarray) -> torch.Tensor:
        x = rows[items].astype(np.float32)
        return torch.from_numpy(x if mean is None else (x - mean) / scale)

    best: Fit | None = None
    aurocs: list[float] = []
    # fork_rng: layers and dropout draw from torch's one generator, which is not ours to seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "network", *recipe.hidden))
        network, order = build(recipe, rows.shape[1]), None
        if layers:  # then start and order are the layers' own, by name
            start_at(network, derived_seed(seed, recipe.name, layers[0], layers[-1]))
            order = torch.Generator().manual_seed(derived_seed(seed, "order"))
        optimiser = (torch.optim.AdamW if recipe.decoupled else torch.optim.Adam)(
            network.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,  # one pass over the weights: most of a step's time is here otherwise
        )
        for epoch in range(1, recipe.epochs + 1):
            network.train()
            shuffled = train[torch.randperm(len(train), generator=order).numpy()]
            for first in range(0, len(train), recipe.batch_size):
                items = shuffled[first : first + recipe.batch_size]
                if len(items) == 1 and recipe.norm == "batch":
                    continue  # one row has no deviation; the next epoch has another order
                loss = loss_of(network(batch(items))[:, 0], target[items])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            network.eval()
            with torch.no_grad():
                found = network(batch(val))[:, 0]
                loss = float(loss_of(found.double(), target[val].double()))
            scores = (torch.sigmoid(found) if recipe.sigmoid else found).double().numpy()
            aurocs.append(auroc(examples.labels[val], scores))
            score = (aurocs[-1], -loss)
            if best is None or score > best.score:
                weights = operations(network, recipe)
                best = Fit(layers, score, weights, weights, mean, scale, aurocs, epoch)
            if recipe.patience and epoch - best.epoch >= recipe.patience:
                break
    best.last, best.last_epoch = operations(network, recipe), epoch
    return best


def build(recipe: Recipe, width: int) -> nn.Sequential:
    """Return the untrained network on features of this width: one output, no sigmoid."""
    parts: list[nn.Module] = [nn.Dropout(recipe.input_dropout)] if recipe.input_dropout else []
    for n_in, n_out in pairwise((width, *recipe.hidden)):
        parts.append(nn.Linear(n_in, n_out))
        if recipe.norm:
            parts.append(NORMS[recipe.norm](n_out))
        parts.append(ACTIVATIONS[recipe.activation]())
        if recipe.dropout:
            parts.append(nn.Dropout(recipe.dropout))
    return nn.Sequential(*parts, nn.Linear(recipe.hidden[-1], 1))


def start_at(network: nn.Sequential, seed: int) -> None:
    """Draw weights and biases anew, uniform within 1/sqrt(inputs) as in nn.Linear, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for linear in (part for part in network if isinstance(part, nn.Linear)):
            n_out, n_in = linear.weight.shape
            for parameter, rows in ((linear.weight, n_in), (linear.bias, 1)):
                uniform = torch.rand((rows, n_out), generator=generator)
                parameter.copy_(((2 * uniform - 1) / n_in**0.5).T.reshape(parameter.shape))


def operations(network: nn.Sequential, recipe: Recipe) -> list[tuple]:
    """Copy a network into a probe's list of operations, as it is when it scores.

    Dropout does nothing then, and batch norm, a fixed scaling, goes into the linear layer before.
    """
    found: list[tuple] = []
    for part in network:
        arrays = {name: value.numpy().copy() for name, value in part.state_dict().items()}
        if isinstance(part, nn.Linear):
            found.append(("linear", arrays["weight"], arrays["bias"]))
        elif isinstance(part, nn.LayerNorm):
            found.append(("layernorm", arrays["weight"], arrays["bias"]))
        elif isinstance(part, nn.BatchNorm1d):
            _, weight, bias = found.pop()
            gain = arrays["weight"] / np.sqrt(arrays["running_var"] + part.eps)
            bias = (bias - arrays["running_mean"]) * gain + arrays["bias"]
            found.append(("linear", weight * gain[:, None], bias))
        elif not isinstance(part, nn.Dropout):
            found.append((recipe.activation,))
    return [*found, ("sigmoid",)] if recipe.sigmoid else found
