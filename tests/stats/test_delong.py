"""DeLong's variance and tests against the O(n^2) kernel, permutation and simulation; Holm."""

import math

import numpy as np
import pytest
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from spikescore.stats.bootstrap import Sample
from spikescore.stats.delong import components, delong_auroc, delong_difference, holm
from spikescore.stats.roc import midranks


def covariance(y: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the AUROCs [m] of the scores [m, n] and their DeLong covariance matrix [m, m].

    At least two items of each class are needed (ValueError); ties count half.
    """
    positive, negative = components(y, scores)
    spread = np.cov(positive) / positive.shape[1] + np.cov(negative) / negative.shape[1]
    return positive.mean(axis=1), spread.reshape(len(scores), len(scores))


def two_scores(rng, n, gaps=(1.0, 1.0), shared=0.5, levels=None):
    """Labels and two normal scores, `gaps` apart between classes, correlated by `shared`."""
    y = np.repeat([0, 1], n // 2)
    common = rng.normal(size=n)
    rows = [
        math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal(size=n) + gap * y
        for gap in gaps
    ]
    rows = np.array(rows)
    return y, rows if levels is None else np.round(rows * levels) / levels


def kernel_components(y, scores):
    """The same by definition: every pair compared, 1 if right, 1/2 if tied."""
    a, b = scores[y == 1][:, None], scores[y == 0][None, :]
    kernel = (a > b) + 0.5 * (a == b)
    return kernel.mean(axis=1), kernel.mean(axis=0)


@pytest.mark.parametrize("levels", [None, 3, 1])
def test_covariance_equals_the_kernel_computation(levels):
    rng = np.random.default_rng(0)
    for n in (8, 40, 120):
        y, rows = two_scores(rng, n, (1.0, 0.3), levels=levels)
        order = rng.permutation(n)
        y, rows = y[order], rows[:, order]
        fast = components(y, rows)
        slow = [kernel_components(y, row) for row in rows]
        for place in (0, 1):
            np.testing.assert_allclose(fast[place], [pair[place] for pair in slow], atol=1e-12)
        aurocs, spread = covariance(y, rows)
        assert aurocs == pytest.approx([roc_auc_score(y, row) for row in rows])
        (a1, a0), (b1, b0) = slow
        half = n // 2
        expected = np.cov(a1, b1) / half + np.cov(a0, b0) / half
        np.testing.assert_allclose(spread, expected, atol=1e-12)
        # the tests below go another way, by differences of components
        found = delong_difference([Sample.of(np.tile(y, 5), *np.tile(rows, 5))])
        _, five = covariance(np.tile(y, 5), np.tile(rows, 5))
        error = math.sqrt(five[0, 0] + five[1, 1] - 2 * five[0, 1])
        assert found.high - found.low == pytest.approx(2 * 1.959964 * error, rel=1e-6, abs=1e-7)


def test_midranks_equal_scipys():
    values = np.random.default_rng(1).integers(0, 10, size=50).astype(float)
    np.testing.assert_array_equal(midranks(values), rankdata(values))


def test_interval_is_symmetric_on_the_logit_scale():
    y, rows = two_scores(np.random.default_rng(2), 100)
    found = delong_auroc([Sample.of(y, rows[0])])
    (value,), spread = covariance(y, rows[:1])
    centre = math.log(value / (1 - value))
    reach = 1.959964 * math.sqrt(spread[0, 0]) / (value * (1 - value))
    assert found.value == pytest.approx(value)
    for end, expected in ((found.low, centre - reach), (found.high, centre + reach)):
        assert math.log(end / (1 - end)) == pytest.approx(expected)
    assert (found.n, found.n_positive) == (100, 50)


def test_variance_equals_that_of_repeated_sets_and_the_interval_covers():
    """1,000 sets of two normals: spread of the AUROCs, and the share of intervals that hold."""
    rng = np.random.default_rng(3)
    truth = norm.cdf(1.5 / math.sqrt(2))
    sets = [two_scores(rng, 120, (1.5,)) for _ in range(1000)]
    found = [delong_auroc([Sample.of(y, *rows)]) for y, rows in sets]
    hits = sum(figure.low <= truth <= figure.high for figure in found)
    assert 0.93 <= hits / 1000 <= 0.97  # .95 within three standard errors of 1,000 sets
    mean_variance = np.mean([covariance(y, rows)[1][0, 0] for y, rows in sets])
    assert mean_variance == pytest.approx(np.var([f.value for f in found], ddof=1), rel=0.15)


@pytest.mark.parametrize(
    "n, gaps, shared, levels",
    [
        (120, (1.0, 1.0), 0.5, None),
        (200, (1.0, 0.7), 0.5, None),
        (200, (0.5, 0.9), 0.0, None),
        (160, (1.2, 0.9), 0.9, None),
        (240, (0.3, 0.6), 0.3, 2),
        (300, (0.0, 0.0), 0.5, None),
    ],
)
def test_paired_test_agrees_with_a_permutation_test(n, gaps, shared, levels):
    """Each item's two ranks change places at random (Bandos et al., 2005): same p values."""
    rng = np.random.default_rng(n)
    for _ in range(4):
        y, rows = two_scores(rng, n, gaps, shared, levels)
        ranks = rankdata(rows, axis=1)
        observed = roc_auc_score(y, rows[0]) - roc_auc_score(y, rows[1])
        swapped = rng.random((2000, n)) < 0.5
        first = np.where(swapped, ranks[1], ranks[0])
        second = np.where(swapped, ranks[0], ranks[1])
        half = n // 2
        # AUROC from the sum of the positives' ranks (Mann and Whitney); the constant cancels
        sums = [rankdata(side, axis=1)[:, y == 1].sum(axis=1) for side in (first, second)]
        deltas = (sums[0] - sums[1]) / half**2
        expected = np.mean(np.abs(deltas) >= abs(observed) - 1e-12)
        found = delong_difference([Sample.of(y, *rows)])
        error = math.sqrt(expected * (1 - expected) / 2000)
        assert found.value == pytest.approx(observed)
        assert abs(found.p - expected) <= 3 * error + 0.02


def test_grouped_items_count_as_one():
    """Nine copies of every item, each set of copies one group, tell no more than one copy."""
    y, rows = two_scores(np.random.default_rng(4), 60, (1.0, 0.5))
    one = delong_auroc([Sample.of(y, rows[0])])
    groups = np.tile(np.arange(60), 9)
    nine = [Sample.of(np.tile(y, 9), *np.tile(rows, 9), groups=groups)]
    assert delong_auroc(nine).low == pytest.approx(one.low)
    assert delong_difference(nine).p == pytest.approx(delong_difference([Sample.of(y, *rows)]).p)
    copies = delong_auroc([Sample.of(np.tile(y, 9), np.tile(rows[0], 9))])
    assert copies.high - copies.low < 0.4 * (one.high - one.low)  # what ignoring them would claim


def test_interval_over_stories_covers_the_truth():
    """Stories of 8 questions of both classes share a shift: only the grouped interval holds."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(40), 8)
    truth = norm.cdf(0.8 / math.sqrt(2) / math.sqrt(1 + 1))
    hits = {"grouped": 0, "items": 0}
    for _ in range(300):
        y = (rng.random(320) < np.repeat(rng.beta(0.5, 0.5, 40), 8)).astype(int)
        scores = rng.normal(size=40)[groups] + rng.normal(size=320) + 0.8 * y
        for name, names in (("grouped", groups), ("items", None)):
            found = delong_auroc([Sample.of(y, scores, groups=names)])
            hits[name] += found.low <= truth <= found.high
    assert hits["grouped"] >= 0.91 * 300 > hits["items"] + 20


def test_macro_adds_variances_of_independent_domains():
    rng = np.random.default_rng(6)
    sets = [two_scores(rng, n, gaps) for n, gaps in ((60, (1.0, 0.2)), (200, (0.5, 0.4)))]
    samples = [Sample.of(y, *rows) for y, rows in sets]
    figures = [covariance(y, rows) for y, rows in sets]
    value = np.mean([a[0] - a[1] for a, _ in figures])
    error = math.sqrt(sum(s[0, 0] + s[1, 1] - 2 * s[0, 1] for _, s in figures)) / 2
    found = delong_difference(samples)
    assert found.value == pytest.approx(value) and found.n == 260
    assert found.high - found.value == pytest.approx(1.959964 * error, rel=1e-6)
    assert found.p == pytest.approx(2 * norm.sf(abs(value) / error))
    assert delong_auroc(samples).value == pytest.approx(np.mean([a[0] for a, _ in figures]))
    with_broken = delong_auroc([*samples, Sample.of([1] * 30, np.arange(30.0))])
    assert with_broken.value == delong_auroc(samples).value
    assert "2 of 3 domains" in with_broken.note


def test_direction_and_degenerate_scores():
    y = np.repeat([0, 1], 20)
    rng = np.random.default_rng(7)
    noise = rng.normal(size=40)
    perfect = delong_auroc([Sample.of(y, y + 0.0)])
    assert (perfect.value, perfect.low) == (1.0, None) and "variance is 0" in perfect.note
    assert delong_auroc([Sample.of(y, -y)]).value == 0.0
    constant = delong_auroc([Sample.of(y, np.zeros(40))])
    assert (constant.value, constant.low) == (0.5, None)
    same = delong_difference([Sample.of(y, noise, np.exp(noise))])  # one ranking
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    better = delong_difference([Sample.of(y, y + 0.1 * noise, noise)])
    worse = delong_difference([Sample.of(y, noise, y + 0.1 * noise)])
    assert better.low > 0 and worse.value == -better.value and worse.p == better.p
    opposite = delong_difference([Sample.of(y, y, -y)])
    assert (opposite.value, opposite.p) == (1.0, None)


def test_not_computable():
    few = Sample.of([1] * 9 + [0] * 50, np.arange(59.0), np.arange(59.0))
    for figure in (delong_auroc([few]), delong_difference([few])):
        assert figure.value is None and "9 hallucinated and 50 consistent" in figure.note
    assert delong_auroc([]).note == "not computable: no items"
    one_story = Sample.of([0, 1] * 20, np.arange(40.0), groups=["story"] * 40)
    assert delong_auroc([one_story]).low is None
    with pytest.raises(ValueError, match="two items"):
        covariance(np.array([1, 0, 0]), np.zeros((1, 3)))


def test_holm_by_hand():
    # .005 * 4, .01 * 3, .03 * 2, then .04 * 1 = .04, raised to the .06 before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([None, 0.02, None, 0.01]) == [None, 0.02, None, 0.02]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p value"):
        holm([math.nan])
