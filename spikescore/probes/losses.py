"""Losses for regressing semantic entropy: (prediction [C, n], target [n]) -> one per candidate [C].

Huber, squared and absolute error learn the entropy itself; correlation and NeuralNDCG only its
order, so their probes' scores have no unit.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss

HUBER_DELTA = 0.5
"""Nats; beyond it errors count linearly, as in the public release's training script."""
MAX_SCALINGS = 50
"""Sinkhorn rounds; Pobrotyn and Bialobrzeski stop there too."""
SCALING_TOLERANCE = 1e-6


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of sigmoid(logits)."""
    target = target.expand_as(logits)
    return binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)


def huber(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of e^2 / 2 for |e| <= delta, else delta * (|e| - delta / 2)."""
    target = target.expand_as(prediction)
    return huber_loss(prediction, target, reduction="none", delta=HUBER_DELTA).mean(dim=1)


def mse(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error."""
    return (prediction - target).square().mean(dim=1)


def mae(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error."""
    return (prediction - target).abs().mean(dim=1)


def correlation(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - Pearson correlation, in 0 to 2; 1 where prediction or target is constant."""
    x = prediction - prediction.mean(dim=1, keepdim=True)
    y = target - target.mean()
    spread = (x.square().sum(dim=1) * y.square().sum() + 1e-12).sqrt()
    return 1 - (x * y).sum(dim=1) / spread


def neural_ndcg(
    prediction: torch.Tensor, target: torch.Tensor, *, temperature: float = 1.0
) -> torch.Tensor:
    """1 - NeuralNDCG: NDCG of the predicted order, with a soft permutation in place of sorting.

    NeuralSort (Grover et al., 2019) gives row i of the soft permutation that sorts scores s in
    falling order: softmax(((n + 1 - 2 i) s - A 1) / temperature), A_jk = |s_j - s_k|. Scaled by
    Sinkhorn until columns sum to one as well, it sorts the gains 2^target - 1, which are discounted
    by 1 / log2(i + 1) and divided by the best possible sum (Pobrotyn and Bialobrzeski, 2021). Tends
    to 1 - NDCG as the temperature tends to 0. Targets are at least 0; all 0: the loss is 1.
    """
    n = prediction.shape[1]
    ranks = torch.arange(1, n + 1, dtype=prediction.dtype, device=prediction.device)
    distances = (prediction[:, :, None] - prediction[:, None, :]).abs().sum(dim=2)
    pull = (n + 1 - 2 * ranks)[:, None] * prediction[:, None, :]
    permutation = torch.softmax((pull - distances[:, None, :]) / temperature, dim=2)
    gains = torch.exp2(target) - 1
    discounts = 1 / torch.log2(ranks + 1)
    reached = ((_doubly_stochastic(permutation) @ gains) * discounts).sum(dim=1)
    best = (gains.sort(descending=True).values * discounts).sum()
    return 1 - reached / best.clamp_min(1e-12)


def _doubly_stochastic(matrices: torch.Tensor) -> torch.Tensor:
    """Scale columns and rows of [C, n, n] in turn until both sum to one (Sinkhorn)."""
    for _ in range(MAX_SCALINGS):
        columns = matrices.sum(dim=1, keepdim=True)
        if ((columns - 1).abs() < SCALING_TOLERANCE).all():
            break
        matrices = matrices / columns.clamp_min(1e-10)
        matrices = matrices / matrices.sum(dim=2, keepdim=True).clamp_min(1e-10)
    return matrices


LOSSES = {
    "huber": huber,
    "mse": mse,
    "mae": mae,
    "correlation": correlation,
    "neural_ndcg": neural_ndcg,
}
