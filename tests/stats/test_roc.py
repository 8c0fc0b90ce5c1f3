"""Figures and curves of one score against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from spikescore.stats.roc import (
    MIN_PER_CLASS,
    auroc,
    average_precision,
    flag_metrics,
    fpr_at_tpr,
    questions_needed,
    roc_points,
)


def random_set(rng, n, levels=None, gap=0.7):
    y = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    scores = rng.normal(size=n) + gap * y
    return y, scores if levels is None else np.round(scores * levels) / levels


@pytest.mark.parametrize("levels", [None, 4, 1])
def test_every_figure_equals_scikit_learns_with_and_without_ties(levels):
    rng = np.random.default_rng(0)
    for n in (5, 20, 101, 400):
        for _ in range(20):
            y, scores = random_set(rng, n, levels)
            expected = roc_auc_score(y, scores)
            assert auroc(y, scores) == pytest.approx(expected, abs=1e-12)
            false, true = roc_points(y, scores)
            assert np.trapezoid(true, false) == pytest.approx(expected, abs=1e-12)
            assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
            assert average_precision(y, scores) == pytest.approx(average_precision_score(y, scores))
            false, true, _ = roc_curve(y, scores, drop_intermediate=False)
            assert fpr_at_tpr(y, scores) == pytest.approx(false[true >= 0.95].min())


def test_by_hand():
    # ranked 1 0 1 | 1 0 tied: precision 1, 2/3, 3/5 at recall 1/3, 2/3, 1
    y, scores = np.array([1, 0, 1, 1, 0]), np.array([5.0, 4.0, 3.0, 2.0, 2.0])
    assert average_precision(y, scores) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # pairs won: 2, 1, and 0.5 of 2 each
    assert auroc(y, scores) == pytest.approx(3.5 / 6)
    # all positives are needed for 95%, and the tied negative is flagged with the last of them
    assert fpr_at_tpr(y, scores) == 1.0
    # 19 of 20 positives are exactly 95%
    y = np.r_[np.ones(20, int), np.zeros(4, int)]
    scores = np.r_[np.full(19, 3.0), 0.0, 4.0, 1.0, 1.0, 1.0]
    assert fpr_at_tpr(y, scores) == 0.25


def test_perfect_mirrored_and_constant_scores():
    y = np.array([0, 1] * 50)
    assert (auroc(y, y + 0.1), auroc(y, -y), auroc(y, np.zeros(100))) == (1.0, 0.0, 0.5)
    assert (average_precision(y, y), fpr_at_tpr(y, y), fpr_at_tpr(y, -y)) == (1.0, 0.0, 1.0)
    assert average_precision(y[:99], np.zeros(99)) == pytest.approx(49 / 99)
    with pytest.raises(ValueError, match="hallucinated"):
        average_precision(np.zeros(3, int), np.zeros(3))
    with pytest.raises(ValueError, match="both classes"):
        auroc(np.ones(3, int), np.arange(3.0))


def test_flag_metrics_equal_scikit_learn():
    y, scores = random_set(np.random.default_rng(7), 100, levels=4)
    found = flag_metrics(y, scores, 0.5)
    flagged = (scores >= 0.5).astype(int)
    assert (scores == 0.5).any()  # the threshold itself is flagged
    assert found["f1"] == pytest.approx(f1_score(y, flagged))
    assert found["accuracy"] == pytest.approx(accuracy_score(y, flagged))
    assert found["tpr"] == pytest.approx(recall_score(y, flagged))
    assert found["fpr"] == pytest.approx(1 - recall_score(y, flagged, pos_label=0))
    assert flag_metrics(np.zeros(5), np.zeros(5), 1.0)["tpr"] is None


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("share", [0.2, 0.25, 1.0])
def test_the_questions_needed_are_the_fewest_that_hold_enough_of_both_classes(rate, share):
    def rarer(n):
        return n * share * min(rate, 1 - rate) + 1e-9

    needed = questions_needed(rate, share)
    assert rarer(needed) >= MIN_PER_CLASS > rarer(needed - 1)
