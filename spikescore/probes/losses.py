"""What networks are trained to lower: losses of predictions [n] against targets [n].

Cross-entropy is for labels. The others regress semantic entropy: Huber, squared and absolute error
learn the entropy itself; correlation and NeuralNDCG only its order, so that their probes' scores
have no unit.
"""

from __future__ import annotations

import torch
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    huber_loss,
    l1_loss,
    mse_loss,
)

HUBER_DELTA = 0.5
"""Nats; beyond it errors count linearly, as in the public release's training script."""
MAX_SCALINGS = 50
"""Sinkhorn rounds; Pobrotyn and Bialobrzeski stop there too."""
SCALING_TOLERANCE = 1e-6


def huber(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of e^2 / 2 for |e| <= delta, else delta * (|e| - delta / 2)."""
    return huber_loss(prediction, target, delta=HUBER_DELTA)


def correlation(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - Pearson correlation, in 0 to 2; 1 where prediction or target is constant."""
    x, y = prediction - prediction.mean(), target - target.mean()
    return 1 - (x * y).sum() / (x.square().sum() * y.square().sum() + 1e-12).sqrt()


def neural_ndcg(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - NeuralNDCG: NDCG of the predicted order, with a soft permutation in place of sorting.

    NeuralSort (Grover et al., 2019) gives row i of the soft permutation that sorts scores s in
    falling order: softmax((n + 1 - 2 i) s - A 1), A_jk = |s_j - s_k|. Scaled by Sinkhorn until
    columns sum to one as well, it sorts the gains 2^target - 1, which are discounted by
    1 / log2(i + 1) and divided by the best possible sum (Pobrotyn and Bialobrzeski, 2021, at
    temperature 1). Tends to 1 - NDCG as the scores grow. Targets are at least 0; all 0: the loss is
    1.
    """
    n = len(prediction)
    ranks = torch.arange(1, n + 1, dtype=prediction.dtype)
    distances = (prediction[:, None] - prediction).abs().sum(dim=1)
    permutation = torch.softmax((n + 1 - 2 * ranks)[:, None] * prediction - distances, dim=1)
    gains = torch.exp2(target) - 1
    discounts = 1 / torch.log2(ranks + 1)
    reached = ((_doubly_stochastic(permutation) @ gains) * discounts).sum()
    best = (gains.sort(descending=True).values * discounts).sum()
    return 1 - reached / best.clamp_min(1e-12)


def _doubly_stochastic(matrix: torch.Tensor) -> torch.Tensor:
    """Scale columns and rows of [n, n] in turn until both sum to one (Sinkhorn)."""
    for _ in range(MAX_SCALINGS):
        columns = matrix.sum(dim=0, keepdim=True)
        if ((columns - 1).abs() < SCALING_TOLERANCE).all():
            break
        matrix = matrix / columns.clamp_min(1e-10)
        matrix = matrix / matrix.sum(dim=1, keepdim=True).clamp_min(1e-10)
    return matrix


LOSSES = {
    "cross_entropy": binary_cross_entropy_with_logits,
    "huber": huber,
    "mse": mse_loss,
    "mae": l1_loss,
    "correlation": correlation,
    "neural_ndcg": neural_ndcg,
}
