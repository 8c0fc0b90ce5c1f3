"""Semantic entropy probes: what is learned, and the two ways of learning it.

A semantic entropy probe (Kossen et al., 2024, arXiv 2406.15927) reads from the hidden state of one
answer how widely the meanings of many sampled answers spread. Its target is discrete semantic
entropy, for `sep-logistic` split into high and low at the value that leaves the least squared error
on the train split, for `sep-mlp` the entropy itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import LogisticRegression

from spikescore.errors import UserError
from spikescore.probes.layers import Layers, layers_text
from spikescore.stats.roc import auroc

if TYPE_CHECKING:
    from spikescore.probes.network import Examples, Fit


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, *, c: float = 1.0
) -> tuple[np.ndarray, float]:
    """Fit L2 logistic regression to features [n, d] and labels [n] (0 or 1, both present).

    Returns weights w [d] and intercept b of logits x . w + b, at the minimum of
    |w|^2 / 2 + c * cross-entropy; the intercept is not penalised (scikit-learn's lbfgs).
    """
    model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000)
    model.fit(features.astype(np.float64), labels)
    return model.coef_[0], float(model.intercept_[0])


LOSS_NAMES = ("huber", "mse", "mae", "correlation", "neural_ndcg")
INVERSE_PENALTY = 1.0
"""C of the logistic regression: scikit-learn's default, which Kossen et al. used."""


def best_split(entropies: Sequence[float]) -> float:
    """Return the threshold that splits entropies into two groups with the least squared error.

    gamma* = argmin over gamma of sum_{E < gamma} (E - mean)^2 + sum_{E > gamma} (E - mean)^2, over
    the midpoints between neighbouring distinct values; of equals the lowest. Kossen et al. (2024),
    section 4. Raises UserError when all entropies are equal.
    """
    values = np.sort(np.asarray(entropies, dtype=np.float64))
    ends = np.flatnonzero(np.diff(values) > 1e-9) + 1  # sizes of the lower group at each cut
    if not ends.size:
        known = (
            f"all {values.size} entropies are {values[0]:.3g}" if values.size else "no entropies"
        )
        raise UserError(
            f"semantic entropy cannot be split into high and low: {known} on the train split; "
            "generate with a higher --temperature, more --num_generations or more questions"
        )
    centred = values - values.mean()  # the error is a difference of large sums otherwise
    sums = np.cumsum(centred)[ends - 1]
    # the squared error within the groups is the total one less what the groups' means explain
    explained = sums**2 / ends + (centred.sum() - sums) ** 2 / (values.size - ends)
    # sums rounded differently may break a tie the wrong way round
    cut = ends[int(np.flatnonzero(explained >= explained.max() * (1 - 1e-12))[0])]
    return float((values[cut - 1] + values[cut]) / 2)


def fit_sep_logistic(
    features: Sequence[np.ndarray],
    candidates: Sequence[Layers],
    examples: Examples,
    *,
    standardise: bool = True,
) -> Fit:
    """Fit one L2 logistic regression per candidate, all together; return the best `Fit`.

    Best is the highest validation AUROC (ties: the lowest validation cross-entropy). There are no
    epochs: `best` and `last` are the same probe.
    """
    from spikescore.probes.network import Fit, normaliser

    train, val = examples.train, examples.val
    mean, scale = normaliser(features, train, standardise)
    scaled = [
        (rows[train].astype(np.float32) - mean[place]) / scale[place]
        for place, rows in enumerate(features)
    ]
    labels = examples.labels[train]
    solved = [fit_logistic(rows, labels, c=INVERSE_PENALTY) for rows in scaled]
    best, history = None, {}
    for place, (layers, (w, b)) in enumerate(zip(candidates, solved, strict=True)):
        rows = (features[place][val].astype(np.float32) - mean[place]) / scale[place]
        logits = rows.astype(np.float64) @ w + b
        area = auroc(examples.labels[val], logits)
        losses = np.logaddexp(0, logits) - examples.labels[val] * logits
        history[layers_text(layers)] = [area]
        score = (area, -float(losses.mean()))
        if best is None or score > best.score:
            weights = [("linear", w[None].astype(np.float32), np.array([b], np.float32))]
            weights.append(("sigmoid",))
            best = Fit(layers, score, 0, 0, weights, weights, mean[place], scale[place], history)
    if not standardise:
        best.mean = best.scale = None
    return best
