"""Logistic regression on a hidden state, and where semantic entropy is split for it to learn.

A semantic entropy probe (Kossen et al., 2024, arXiv 2406.15927) reads from the hidden state of one
answer how widely the meanings of many sampled answers spread. Its target is discrete semantic
entropy, split into high and low at the value that leaves the least squared error on the train
split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from spikescore.errors import UserError
from spikescore.probes.fit import Examples, Fit, best_of, in_blocks, normaliser
from spikescore.probes.layers import Layers
from spikescore.runtime import progress
from spikescore.stats.roc import auroc


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


def fit_logistic(
    features: Iterable[np.ndarray],
    candidates: Sequence[Layers],
    examples: Examples,
    *,
    standardise: bool = True,
) -> Fit:
    """Fit L2 logistic regression to each candidate's features [n, d], and return the best `Fit`.

    The labels are learned; targets are not looked at. Best is the highest validation AUROC, of
    equal ones the lowest validation cross-entropy. There are no epochs: `best` and `last` are the
    same probe. Many rows are read block by block (`fit.BLOCK_BYTES`).
    """
    fits = []
    labels, train, val = examples.labels, examples.train, examples.val
    pairs = zip(features, candidates, strict=True)
    bar = progress(pairs, "logistic", total=len(candidates), unit="fit", leave=False)
    for rows, layers in bar:
        mean, scale = normaliser(rows, train) if standardise else (np.float32(0), np.float32(1))
        read = partial(standardised, rows, mean=mean, scale=scale)
        cut = partial(in_blocks, width=rows.shape[1])
        w, b = solve_in_blocks(read, list(cut(train)), labels)
        logits = np.concatenate([read(some) @ w for some in cut(val)]) + b
        loss = np.logaddexp(0, logits) - labels[val] * logits
        area = auroc(labels[val], logits)
        weights = [("linear", w[None].astype(np.float32), np.array([b], np.float32)), ("sigmoid",)]
        own = (mean, scale) if standardise else (None, None)
        fits.append(Fit(layers, (area, -float(loss.mean())), weights, weights, *own, [area]))
    best = best_of(fits)
    best.tried = fits
    return best


def standardised(
    rows: np.ndarray, items: np.ndarray, *, mean: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Return (rows - mean) / scale of the items named, worked out in float32: float64 [m, d]."""
    found = np.empty((len(items), rows.shape[1]))
    for start in range(0, len(items), 256):  # nothing else of its size is made
        some = slice(start, start + 256)
        found[some] = (rows[items[some]].astype(np.float32) - mean) / scale
    return found


def solve_in_blocks(
    read: Callable[[np.ndarray], np.ndarray], blocks: Sequence[np.ndarray], labels: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return what `solve` does of the rows that `read` gives of items, and of their labels.

    A single block of items is given to `solve`; of several the rows of one are in memory at a time,
    and the same minimum is looked for by the same method (L-BFGS).
    """
    if len(blocks) == 1:
        return solve(read(blocks[0]), labels[blocks[0]])
    from scipy.optimize import minimize
    from scipy.special import expit

    n = sum(map(len, blocks))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = weights[:-1], weights[-1]
        value, gradient = w @ w / 2, np.append(w, 0.0)
        for items in blocks:
            x, y = read(items), labels[items]
            logits = x @ w + b
            value += float((np.logaddexp(0, logits) - y * logits).sum())
            residuals = expit(logits) - y
            gradient += np.append(residuals @ x, residuals.sum())
            del x  # before the next block is read
        return value / n, gradient / n

    options = {"maxiter": 10_000, "gtol": 1e-8, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    start = np.zeros(read(blocks[0][:1]).shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return found[:-1], float(found[-1])


def solve(rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights w [d] and intercept b of logits x . w + b for rows [n, d], labels [n] 0 or 1.

    They minimise |w|^2 / 2 + C * sum of cross-entropies with C = 1, scikit-learn's default, which
    Kossen et al. used; the intercept is not penalised.
    """
    from sklearn.linear_model import LogisticRegression  # a second, which --help need not wait for

    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000)
    model.fit(np.asarray(rows, np.float64), labels)
    return model.coef_[0], float(model.intercept_[0])
