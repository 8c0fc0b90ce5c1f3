"""Thresholds and calibration against scikit-learn and by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_curve,
)

from spikescore.stats.operating_points import (
    Calibration,
    choose_threshold,
    ece,
    fit_calibration,
    operating_figures,
)


def random_set(rng, n, levels=None, gap=0.8):
    y = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    scores = rng.normal(size=n) + gap * y
    return y, scores if levels is None else np.round(scores * levels) / levels


def test_threshold_by_hand():
    # 0.1 0.2 | 0.6 0.9 are separable at 0.4; with a stray at 0.15 the best is still 0.4 (5/6)
    y = np.array([0, 0, 1, 1])
    assert choose_threshold(y, np.array([0.1, 0.2, 0.6, 0.9])) == (pytest.approx(0.4), 1.0)
    y = np.array([0, 0, 1, 1, 1])
    threshold, accuracy = choose_threshold(y, np.array([0.1, 0.2, 0.6, 0.9, 0.15]))
    assert (threshold, accuracy) == (pytest.approx(0.4), pytest.approx(5 / 6))
    # two neighbouring floats: the upper one separates them
    close = np.array([1.0, np.nextafter(1.0, 2.0)])
    threshold, accuracy = choose_threshold(np.array([0, 1]), close)
    assert (close >= threshold).tolist() == [False, True] and accuracy == 1.0
    # nothing to choose by: everything is flagged
    assert choose_threshold(y, np.full(5, 2.0)) == (2.0, 0.5)
    with pytest.raises(ValueError, match="both classes"):
        choose_threshold(np.ones(3, int), np.arange(3.0))


@pytest.mark.parametrize("levels", [None, 2])
def test_no_threshold_does_better_on_the_same_items(levels):
    rng = np.random.default_rng(1)
    for _ in range(5):
        y, scores = random_set(rng, 60, levels)
        threshold, best = choose_threshold(y, scores)
        found = balanced_accuracy_score(y, scores >= threshold)
        assert found == pytest.approx(best)
        for other in np.r_[scores, scores + 1e-9]:
            assert balanced_accuracy_score(y, scores >= other) <= best + 1e-12


def test_ece_by_hand():
    # bin [.2, .3): rate 1/2, mean p .22; bin [.9, 1]: rate 1, mean p .95
    y, p = np.array([0, 1, 1, 1]), np.array([0.20, 0.24, 0.90, 1.00])
    assert ece(y, p) == pytest.approx((2 * 0.28 + 2 * 0.05) / 4)
    assert ece(np.array([0, 1]), np.array([0.0, 1.0])) == 0.0
    assert ece(np.array([1, 0]), np.array([0.0, 1.0])) == 1.0
    for bad in ([0.5, 1.2], [np.nan, 0.1], []):
        with pytest.raises(ValueError, match="0 to 1"):
            ece(np.zeros(len(bad)), np.array(bad))


def test_ece_of_true_probabilities_is_small_and_of_a_shift_is_the_shift():
    rng = np.random.default_rng(2)
    p = rng.uniform(0, 0.7, size=100_000)
    y = (rng.random(100_000) < p).astype(int)
    assert ece(y, p) < 0.01
    assert ece(y, p + 0.3) == pytest.approx(0.3, abs=0.01)


def test_calibration_minimises_the_cross_entropy_with_platts_targets():
    rng = np.random.default_rng(3)
    for scale, shift in ((1.0, 0.0), (1e-3, 5.0), (400.0, -7.0)):
        y, scores = random_set(rng, 150)
        scores = scale * scores + shift
        found = fit_calibration(y, scores)
        m, k = y.sum(), (1 - y).sum()
        targets = np.where(y == 1, (m + 1) / (m + 2), 1 / (k + 2))
        unit = (scores - scores.mean()) / scores.std()

        def loss(weights, unit=unit, targets=targets):
            logits = weights[0] * unit + weights[1]
            return (np.logaddexp(0, logits) - targets * logits).sum()

        best = minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-8}).x
        expected = 1 / (1 + np.exp(-(best[0] * unit + best[1])))
        np.testing.assert_allclose(found.probabilities(scores), expected, atol=1e-6)
        assert found.slope > 0 and (found.n, found.n_positive) == (150, m)


def test_calibration_finds_the_logistic_model_that_made_the_data():
    rng = np.random.default_rng(4)
    scores = rng.uniform(0, 2, size=50_000)
    p = 1 / (1 + np.exp(-(3 * scores - 4)))
    y = (rng.random(50_000) < p).astype(int)
    found = fit_calibration(y, scores)
    assert found.slope == pytest.approx(3, abs=0.1)
    assert found.intercept == pytest.approx(-4, abs=0.15)
    assert ece(y, found.probabilities(scores)) < 0.01


def test_calibration_of_separable_constant_and_too_few_items():
    y = np.repeat([0, 1], 20)
    found = fit_calibration(y, y * 1.0)
    # the best fit puts each class on its target: 21/22 and 1/22
    assert found.probabilities(np.array([0.0, 1.0])) == pytest.approx([1 / 22, 21 / 22])
    constant = fit_calibration(y, np.full(40, 0.3))
    assert (constant.slope, constant.intercept) == (0.0, pytest.approx(0.0, abs=1e-12))
    few = fit_calibration(y[:29], np.arange(29.0))
    assert few.slope is None and "9 hallucinated and 20 consistent" in few.note
    with pytest.raises(ValueError, match="9 hallucinated"):
        few.probabilities(np.zeros(2))


def test_figures_of_a_pool_and_of_domains():
    rng = np.random.default_rng(5)
    sets = [random_set(rng, 60), random_set(rng, 300, gap=0.2)]
    calibration = Calibration(1.5, -0.5, 100, 50)
    found = operating_figures(sets, threshold=0.4, calibration=calibration)
    expected = {
        "auprc": average_precision_score,
        "fpr_at_95_tpr": lambda y, s: min(
            f for f, t in zip(*roc_curve(y, s)[:2], strict=True) if t >= 0.95
        ),
        "f1": lambda y, s: f1_score(y, s >= 0.4),
        "accuracy": lambda y, s: accuracy_score(y, s >= 0.4),
        "ece": lambda y, s: ece(y, 1 / (1 + np.exp(0.5 - 1.5 * s))),
    }
    assert found.keys() == expected.keys()
    for name, compute in expected.items():
        assert found[name] == pytest.approx([compute(*pair) for pair in sets]), name
    alone = operating_figures(sets[:1])
    assert alone["auprc"] == pytest.approx([average_precision_score(*sets[0])])
    assert alone["f1"] == alone["accuracy"] == alone["ece"] == [None]


def test_figures_that_are_not_computable():
    few = np.array([1] * 9 + [0] * 50), np.arange(59.0)
    good = np.array([0, 1] * 20), np.arange(40.0)
    fit = fit_calibration(*good)
    assert set(map(tuple, operating_figures([few], threshold=3.0, calibration=fit).values())) == {
        (None,)
    }
    mixed = operating_figures([good, few])
    assert mixed["auprc"] == [*operating_figures([good])["auprc"], None]
    assert operating_figures([good], calibration=fit_calibration(*few))["ece"] == [None]
