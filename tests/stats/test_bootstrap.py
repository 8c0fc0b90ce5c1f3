"""Areas with shared draws: against scikit-learn, explicit resampling and the DeLong formula."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from spikescore.stats.bootstrap import Resampler


def make(n=60, seed=0, domains=2):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    domain = np.array([f"d{place % domains}" for place in range(n)])
    scores = np.round(rng.normal(y * 0.8, 1, (3, n)), 1)  # rounded: ties occur
    groups = np.array([f"g{place}" for place in range(n)])
    return y, domain, groups, scores


def everything(y):
    return np.ones(y.size, dtype=bool)


def test_the_area_is_the_mean_of_the_seeds_aurocs():
    y, domain, groups, scores = make()
    area = Resampler(y, domain, groups, draws=50).area(scores, everything(y))
    expected = np.mean([roc_auc_score(y, row) for row in scores])
    assert area.value == pytest.approx(expected)
    assert (area.n, area.n_positive) == (60, y.sum())


def test_each_draw_is_the_auroc_of_the_items_repeated_as_drawn():
    y, domain, groups, scores = make()
    groups = np.array([f"g{place // 3}" for place in range(y.size)])
    resampler = Resampler(y, domain, groups, draws=20, seed=3)
    area = resampler.area(scores, domain == "d0")
    for weights, value in zip(resampler.weights.astype(int), area.draws, strict=True):
        repeated = np.repeat(np.arange(y.size), weights * (domain == "d0"))
        expected = np.mean([roc_auc_score(y[repeated], row[repeated]) for row in scores])
        assert value == pytest.approx(expected, abs=1e-6)


def test_groups_are_drawn_whole_and_each_domain_keeps_its_number_of_groups():
    y, domain, _, _ = make()
    groups = np.array([f"{name}-{place // 6}" for place, name in enumerate(domain)])
    weights = Resampler(y, domain, groups, draws=30).weights
    for name in set(groups):
        assert (np.ptp(weights[:, groups == name], axis=1) == 0).all()
    firsts = np.array([np.flatnonzero(groups == name)[0] for name in sorted(set(groups))])
    for name in ("d0", "d1"):
        chosen = [place for place in firsts if domain[place] == name]
        assert (weights[:, chosen].sum(axis=1) == len(chosen)).all()


def test_a_domains_draws_do_not_depend_on_the_other_domains():
    y, domain, groups, scores = make()
    part = domain == "d1"
    whole = Resampler(y, domain, groups, draws=40).area(scores, part)
    alone = Resampler(y[part], domain[part], groups[part], draws=40)
    assert np.allclose(whole.draws, alone.area(scores[:, part], everything(y[part])).draws)


def test_the_standard_error_is_delongs():
    y, domain, groups, scores = make()
    resampler = Resampler(y, domain, groups, draws=2)
    area = resampler.area(scores[0], everything(y))
    positive, negative = scores[0][y == 1], scores[0][y == 0]
    kernel = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = kernel.mean(1).var(ddof=1) / len(positive) + kernel.mean(0).var(ddof=1) / len(
        negative
    )
    assert area.standard_error(groups) == pytest.approx(np.sqrt(variance))


def test_the_paired_test_is_delongs():
    y, domain, groups, scores = make()
    resampler = Resampler(y, domain, groups, draws=400)
    one, other = (resampler.area(row, everything(y)) for row in scores[:2])
    contrast = resampler.contrast(one, other)
    kernels = []
    for row in scores[:2]:
        positive, negative = row[y == 1], row[y == 0]
        kernels.append((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative))
    variance = 0.0
    for axis in (0, 1):
        covariance = np.cov([kernel.mean(axis) for kernel in kernels])
        variance += covariance @ [1, -1] @ [1, -1] / kernels[0].shape[1 - axis]
    difference = kernels[0].mean() - kernels[1].mean()
    assert contrast.value == pytest.approx(difference)
    expected = 2 * norm.sf(abs(difference) / np.sqrt(variance))
    assert contrast.p_delong == pytest.approx(expected)
    low, high = contrast.low, contrast.high
    assert low < contrast.value < high
    assert (contrast.p_bootstrap < 0.05) == (low > 0 or high < 0)


def test_a_group_repeated_widens_the_error_as_if_its_items_were_one():
    y, domain, groups, scores = make(n=80)
    twice = [np.concatenate([part, part]) for part in (y, domain, groups)]
    once = Resampler(y, domain, groups, draws=2)
    double = Resampler(*twice, draws=2)
    error = once.area(scores, everything(y)).standard_error(groups)
    repeated = double.area(np.hstack([scores, scores]), everything(twice[0]))
    assert repeated.standard_error(twice[2]) == pytest.approx(error, rel=0.02)


def test_means_over_domains_and_their_intervals():
    y, domain, groups, scores = make(n=200)
    resampler = Resampler(y, domain, groups, draws=200)
    areas = [resampler.area(scores, domain == name) for name in ("d0", "d1")]
    macro = resampler.mean(areas, of="domains")
    assert macro.value == pytest.approx((areas[0].value + areas[1].value) / 2)
    assert np.allclose(macro.draws, (areas[0].draws + areas[1].draws) / 2)
    assert macro.n == 200 and macro.n_positive == y.sum() and macro.note == ""
    errors = [area.standard_error(groups) for area in areas]
    assert macro.standard_error(groups) == pytest.approx(np.hypot(*errors) / 2)
    shared = resampler.mean([macro, areas[0]], of="training domains")
    assert shared.n == 200  # an item counts once


def test_too_few_of_a_class_is_not_computable_and_says_the_counts():
    y = np.array([1] * 9 + [0] * 40)
    domain, groups = np.full(49, "d"), np.arange(49)
    resampler = Resampler(y, domain, groups, draws=5)
    area = resampler.area(np.arange(49.0), everything(y))
    assert area.value is None and area.interval is None
    assert area.note.startswith("not computable: 9 hallucinated and 40 consistent")
    assert resampler.mean([area, area], of="domains").note == ("not computable in any of 2 domains")
    assert resampler.contrast(area, area).value is None


def test_items_without_a_score_are_left_out_not_filled():
    y, domain, groups, scores = make()
    missing = scores.copy()
    missing[1, :7] = np.nan
    area = Resampler(y, domain, groups, draws=5).area(missing, everything(y))
    expected = np.mean([roc_auc_score(y[7:], row[7:]) for row in scores])
    assert area.n == 53 and area.value == pytest.approx(expected)


def test_equal_scores_differ_by_nothing():
    y, domain, groups, scores = make()
    resampler = Resampler(y, domain, groups, draws=30)
    area = resampler.area(scores, everything(y))
    contrast = resampler.contrast(area, area)
    assert (contrast.value, contrast.low, contrast.high) == (0, 0, 0)
    assert contrast.p_bootstrap == contrast.p_delong == 1
