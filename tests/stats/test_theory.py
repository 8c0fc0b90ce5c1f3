"""The theory report against closed forms, two-point distributions and the theorems themselves."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikescore.stats.theory import cantelli_bound, measure_theory, paper_bound, theory_report


def labelled(h, t):
    return np.r_[np.ones(len(h), int), np.zeros(len(t), int)], np.r_[h, t].astype(float)


def test_two_point_distribution_where_cantelli_is_exact():
    # T is always 1; H is 0 in 1 of 5 and 6 in the others: mean_D 3.8, var 5.76
    found = measure_theory(*labelled([0, 6, 6, 6, 6] * 4, [1] * 10), "toy")
    assert (found.n_h, found.n_t, found.mean_h, found.mean_t) == (20, 10, 4.8, 1.0)
    assert found.cantelli == pytest.approx(3.8**2 / (3.8**2 + 5.76))
    assert found.p_greater == found.auroc == 0.8
    assert (found.cv_t, found.t, found.std_ratio, found.spread_holds) == (0, 0, None, False)
    # Cantelli's own extreme case: D is 0 with q = var / (mean^2 + var), else one value above
    tight = measure_theory(*labelled([1, 6, 6, 6, 6] * 4, [1] * 10), "toy")
    assert tight.cantelli == pytest.approx(tight.p_greater) == pytest.approx(0.8)
    assert tight.auroc == pytest.approx(0.9)  # half of the ties


def test_conditions_one_by_one_and_the_papers_bound():
    t = np.array([9.0, 11.0] * 10)  # mean 10, sd 1: cv .1, t = 1
    found = measure_theory(*labelled([18.5, 22.5] * 10, t), "toy")  # mean 20.5, sd 2
    assert found.gap_holds and found.spread_holds and found.paper_bound_applies
    assert (found.mean_ratio, found.std_ratio) == (2.05, 2.0)
    assert (found.cv_t, found.t) == (pytest.approx(0.1), pytest.approx(1.0))
    assert found.paper_bound == pytest.approx(1 / 1.0725)
    assert paper_bound(2) == pytest.approx(0.775, abs=0.001)  # as printed in the paper
    no_gap = measure_theory(*labelled([18, 22] * 10, t), "toy")  # exactly twice is not more
    assert (no_gap.gap_holds, no_gap.spread_holds, no_gap.paper_bound_applies) == (0, 1, 0)
    for h, holds in (([29, 31], True), ([27.5, 32.5], True), ([29.5, 30.5], False)):
        assert measure_theory(*labelled(h * 10, t), "x").spread_holds is holds
    assert measure_theory(*labelled([27, 33] * 10, t), "x").spread_holds is False


def test_gaussian_moments_and_p():
    rng = np.random.default_rng(0)
    h, t = rng.normal(3, 0.8, 20_000), rng.normal(1, 0.4, 20_000)
    found = measure_theory(*labelled(h, t), "toy")
    assert found.mean_h == pytest.approx(3, abs=0.02) and found.std_h == pytest.approx(
        0.8, rel=0.02
    )
    assert found.mean_t == pytest.approx(1, abs=0.02) and found.std_t == pytest.approx(
        0.4, rel=0.02
    )
    assert found.t == pytest.approx(4, rel=0.03)
    assert found.cantelli == pytest.approx(4 / (4 + 0.8), rel=0.02)
    # D is normal with mean 2 and variance .8: P(D > 0) = Phi(2 / sqrt .8)
    assert found.p_greater == pytest.approx(
        statistics.NormalDist().cdf(2 / math.sqrt(0.8)), abs=0.005
    )


def test_no_bound_where_the_means_are_the_wrong_way_round():
    found = measure_theory(*labelled(np.arange(10), np.arange(10) + 3), "toy")
    assert found.cantelli is None and not found.gap_holds and found.auroc < 0.5
    assert cantelli_bound(0.0, 1.0) is None and cantelli_bound(1.0, 0.0) == 1.0
    silent = measure_theory(*labelled(np.ones(10), np.zeros(10)), "toy")  # a probe that never moves
    assert (silent.cv_t, silent.t, silent.paper_bound, silent.mean_ratio) == (None,) * 4
    same = measure_theory(*labelled([0.1] * 10, [0.1] * 11), "toy")  # no trace of rounding
    assert (same.std_h, same.std_ratio, same.cantelli) == (0.0, None, None)
    assert silent.cantelli == silent.p_greater == 1.0 and not silent.paper_bound_applies


def test_domains_and_pool():
    rng = np.random.default_rng(1)
    y = np.tile([0, 1], 60)
    scores = rng.gamma(2, size=120) + y
    domains = ["b"] * 40 + ["a"] * 62 + ["c"] * 18
    a, b, c, pool = theory_report(y, scores, domains)
    assert [entry.domain for entry in (a, b, c, pool)] == ["a", "b", "c", "pooled"]
    assert b == measure_theory(y[:40], scores[:40], "b") and a.n_h == 31
    assert c.mean_h is None and "9 hallucinated and 9 consistent" in c.note
    assert pool == measure_theory(y, scores, "pooled") and pool.n_h + pool.n_t == 120
    assert len(theory_report(y[:40], scores[:40], domains[:40])) == 1
    with pytest.raises(ValueError, match="lengths"):
        theory_report(y, scores, domains[:3])
    with pytest.raises(ValueError, match="finite"):
        theory_report(y, np.where(y == 1, np.nan, scores), domains)


values = st.floats(0, 2, allow_nan=False)
samples = st.lists(values, min_size=10, max_size=30)


@settings(max_examples=300, deadline=None)
@given(samples, samples, st.floats(0, 3))
def test_bounds_are_theorems_for_the_items_themselves(h, t, shift):
    found = measure_theory(*labelled(np.array(h) + shift, t), "any")
    pairs = np.array(h)[:, None] + shift - np.array(t)[None, :]
    assert found.p_greater == pytest.approx((pairs > 0).mean())
    assert found.auroc == pytest.approx((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    if found.mean_h - found.mean_t > 1e-9:  # nearer to 0 the means differ by rounding alone
        assert found.cantelli <= found.p_greater + 1e-9
    if found.paper_bound_applies and found.mean_t > 1e-9:
        assert found.paper_bound <= found.cantelli + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(2.01, 4), st.floats(1, 2.5), st.floats(0.01, 0.5))
def test_papers_bound_holds_where_its_conditions_do(seed, mean_ratio, std_ratio, cv):
    """Random items moved to moments that meet the conditions: the premise is not empty."""
    rng = np.random.default_rng(seed)
    raw = rng.standard_exponential((2, 40))
    h, t = (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
    found = measure_theory(*labelled(mean_ratio + std_ratio * cv * h, 1 + cv * t), "any")
    if 1.0001 < std_ratio < 2.4999:
        assert found.paper_bound_applies
        assert found.t == pytest.approx(10 * cv)
        assert found.paper_bound <= found.cantelli + 1e-9 <= found.p_greater + 2e-9
