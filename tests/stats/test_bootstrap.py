"""Areas with shared draws: against scikit-learn, explicit resampling, DeLong's and Obuchowski's
formulas written out, a permutation test and simulation; Holm's correction.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from spikescore.stats import bootstrap
from spikescore.stats.bootstrap import Resampler, draw_groups, holm, measure_auroc
from spikescore.stats.roc import MIN_PER_CLASS


def make(n=60, seed=0, domains=2):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    domain = np.array([f"d{place % domains}" for place in range(n)])
    scores = np.round(rng.normal(y * 0.8, 1, (3, n)), 1)  # rounded: ties occur
    groups = np.array([f"g{place}" for place in range(n)])
    return y, domain, groups, scores


def two_scores(rng, n, gaps=(1.0, 1.0), shared=0.5, levels=None):
    """Labels and normal scores, `gaps` apart between classes, correlated by `shared`."""
    y = np.repeat([0, 1], n // 2)
    common = rng.normal(size=n)
    rows = np.array([
        math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal(size=n) + gap * y
        for gap in gaps
    ])  # fmt: skip
    return y, rows if levels is None else np.round(rows * levels) / levels


def everything(y):
    return np.ones(len(y), dtype=bool)


def areas_of(y, rows, groups=None, domains=None, draws=2):
    """The areas of several scores of the same items, and their resampler."""
    n = len(y)
    groups = np.arange(n) if groups is None else np.asarray(groups)
    domains = np.zeros(n) if domains is None else domains
    resampler = Resampler(y, domains, groups, draws=draws)
    return [resampler.area(row, everything(y)) for row in rows], resampler


def components(y, scores):
    """DeLong's components by definition: every pair compared, 1 if right, 1/2 if tied."""
    a, b = scores[y == 1][:, None], scores[y == 0][None, :]
    kernel = (a > b) + 0.5 * (a == b)
    return kernel.mean(axis=1), kernel.mean(axis=0)


def delong_covariance(y, rows):
    """AUROCs [m] and their covariance [m, m], every item by itself (DeLong et al., 1988)."""
    parts = [components(y, row) for row in rows]
    positive, negative = (np.array([part[place] for part in parts]) for place in (0, 1))
    spread = np.cov(positive) / positive.shape[1] + np.cov(negative) / negative.shape[1]
    return positive.mean(axis=1), spread.reshape(len(rows), len(rows))


def obuchowski_variance(y, contrast, groups):
    """Variance of a contrast of components (positives', negatives'), as the paper writes it."""
    own = {1: contrast[0], 0: contrast[1]}
    sums = {label: {} for label in own}
    for label, values in own.items():
        for group, value in zip(groups[y == label], values - values.mean(), strict=True):
            sums[label][group] = sums[label].get(group, 0.0) + value
    m, k, everyone = own[1].size, own[0].size, len(set(groups.tolist()))
    s10, s01 = (
        len(sums[label]) / (len(sums[label]) - 1) / own[label].size
        * sum(value**2 for value in sums[label].values())
        for label in (1, 0)
    )  # fmt: skip
    crossed = sum(sums[1][group] * sums[0][group] for group in sums[1].keys() & sums[0].keys())
    s11 = everyone / (everyone - 1) * crossed
    return s10 / m + s01 / k + 2 * s11 / (m * k)


# --- values and draws -------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [bootstrap._KERNEL_CELLS, 100])
def test_the_area_is_the_mean_of_the_seeds_aurocs_however_it_is_split_into_blocks(
    monkeypatch, cells
):
    y, domain, groups, scores = make()
    whole = Resampler(y, domain, groups, draws=50).area(scores, everything(y))
    monkeypatch.setattr(bootstrap, "_KERNEL_CELLS", cells)
    area = Resampler(y, domain, groups, draws=50).area(scores, everything(y))
    assert area.value == pytest.approx(np.mean([roc_auc_score(y, row) for row in scores]))
    assert (area.n, area.n_positive, area.parts) == (60, y.sum(), (1, 1))
    np.testing.assert_allclose(area.draws, whole.draws, atol=1e-6)
    np.testing.assert_allclose(area.influence, whole.influence, atol=1e-9)


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
    weights = draw_groups(domain, groups, draws=30, seed=0)
    for name in set(groups):
        assert (np.ptp(weights[:, groups == name], axis=1) == 0).all()
    firsts = np.array([np.flatnonzero(groups == name)[0] for name in sorted(set(groups))])
    for name in ("d0", "d1"):
        chosen = [place for place in firsts if domain[place] == name]
        assert (weights[:, chosen].sum(axis=1) == len(chosen)).all()


def test_a_draw_without_a_class_has_no_value():
    # ten positives in one story: absent from about 1 draw in e
    y = np.repeat([1, 0], [10, 30])
    groups = np.r_[np.zeros(10), np.arange(1, 31)]
    (area,), _ = areas_of(y, [y + 0.0], groups, draws=500)
    assert np.isnan(area.draws).mean() == pytest.approx((30 / 31) ** 31, abs=0.08)
    assert (area.draws[np.isfinite(area.draws)] == 1.0).all()


def test_a_domains_draws_do_not_depend_on_the_other_domains():
    y, domain, groups, scores = make()
    part = domain == "d1"
    whole = Resampler(y, domain, groups, draws=40).area(scores, part)
    alone = Resampler(y[part], domain[part], groups[part], draws=40)
    assert np.allclose(whole.draws, alone.area(scores[:, part], everything(y[part])).draws)


def test_same_seed_same_interval():
    y, _, _, scores = make(n=600)
    first = measure_auroc(y, scores[0], seed=7)
    assert first.interval == measure_auroc(y, scores[0], seed=7).interval
    assert first.interval != measure_auroc(y, scores[0], seed=8).interval
    (alone,), _ = areas_of(y, scores[:1], domains=np.zeros(600, int), draws=2000)
    assert measure_auroc(y, scores[0], groups=np.arange(600)).interval == alone.interval


def test_perfect_mirrored_and_constant_scores():
    y = np.array([0, 1] * 50)
    found = [measure_auroc(y, scores) for scores in (y + 0.1, -y, np.zeros(100))]
    assert [area.value for area in found] == [1.0, 0.0, 0.5]
    assert (found[0].interval, found[0].n, found[0].n_positive) == ((1.0, 1.0), 100, 50)
    # no error was seen, which does not make one impossible
    assert [area.delong_interval(np.arange(100)) for area in found] == [None] * 3


def test_bootstrap_interval_covers_the_truth():
    """Two normals one standard deviation apart: the true AUROC is Phi(1 / sqrt 2)."""
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(250):
        y = np.repeat([0, 1], 120)
        resampler = Resampler(y, np.zeros(240), np.arange(240), draws=400, seed=seed)
        low, high = resampler.area(rng.normal(size=240) + y, everything(y)).interval
        hits += low <= truth <= high
    assert 0.92 <= hits / 250 <= 0.98


# --- what is not computable -------------------------------------------------------------------


@pytest.mark.parametrize("positive, negative", [(0, 50), (50, 0), (MIN_PER_CLASS - 1, 50), (0, 0)])
def test_too_few_of_a_class_is_not_computable_and_says_the_counts(positive, negative):
    y = [1] * positive + [0] * negative
    area = measure_auroc(y, np.arange(len(y), dtype=float))
    assert (area.value, area.interval, area.standard_error(np.arange(len(y)))) == (None,) * 3
    assert f"{positive} hallucinated and {negative} consistent" in area.note
    assert area.told(area.interval)["low"] is None and area.parts == (0, 1)
    enough = [1] * MIN_PER_CLASS + [0] * MIN_PER_CLASS
    assert measure_auroc(enough, np.arange(2.0 * MIN_PER_CLASS)).value == 0.0


def test_means_and_differences_of_nothing_are_nothing():
    y = np.array([1] * 9 + [0] * 40)
    (area,), resampler = areas_of(y, [np.arange(49.0)])
    nothing = resampler.mean([area, area], of="domains")
    assert nothing.note == "not computable in any of 2 domains" and nothing.parts == (0, 2)
    assert resampler.contrast(area, area).value is None


def test_items_without_a_score_are_left_out_not_filled():
    y, domain, groups, scores = make()
    missing = scores.copy()
    missing[1, :7] = np.nan
    area = Resampler(y, domain, groups, draws=5).area(missing, everything(y))
    expected = np.mean([roc_auc_score(y[7:], row[7:]) for row in scores])
    assert area.n == 53 and area.value == pytest.approx(expected)


def test_one_group_has_no_interval_and_no_p_value():
    y = np.array([0, 1] * 20)
    rows = [y + np.arange(40) % 3, np.arange(40.0)]
    areas, resampler = areas_of(y, rows, ["story"] * 40, draws=50)
    assert areas[0].value == pytest.approx(roc_auc_score(y, rows[0]))
    assert areas[0].interval is None and "one group" in areas[0].note
    assert areas[0].delong_interval(resampler.groups) is None
    contrast = resampler.contrast(*areas)
    assert (contrast.low, contrast.p_bootstrap, contrast.p_delong) == (None, None, None)
    assert "one group" in contrast.note


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="lengths"):
        measure_auroc([0, 1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="lengths"):
        Resampler(np.array([0, 1]), np.array(["d"]), np.array([1, 2]))
    with pytest.raises(ValueError, match="0 and 1"):
        measure_auroc([0, 2], [0.1, 0.2])


# --- DeLong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 3, 1])
def test_without_groups_error_interval_and_paired_test_are_delongs(levels):
    rng = np.random.default_rng(0)
    for n in (24, 40, 120):
        y, rows = two_scores(rng, n, (1.0, 0.3), levels=levels)
        order = rng.permutation(n)
        y, rows = y[order], rows[:, order]
        areas, resampler = areas_of(y, rows)
        aurocs, spread = delong_covariance(y, rows)
        for area, value, variance in zip(areas, aurocs, np.diag(spread), strict=True):
            assert area.value == pytest.approx(value)
            error = area.standard_error(resampler.groups)
            assert error == pytest.approx(math.sqrt(variance), abs=1e-8)
            # the interval is symmetric on the logit scale
            centre, reach = math.log(value / (1 - value)), 1.959964 * error / (value * (1 - value))
            ends = [
                math.log(end / (1 - end)) for end in area.delong_interval(resampler.groups) or ()
            ]
            assert ends == pytest.approx([centre - reach, centre + reach] if error else [])
        found = resampler.contrast(*areas)
        error = math.sqrt(max(0, spread[0, 0] + spread[1, 1] - 2 * spread[0, 1]))
        assert found.value == pytest.approx(aurocs[0] - aurocs[1])
        assert found.error == pytest.approx(error, abs=1e-8)
        if error > 1e-8:
            assert found.p_delong == pytest.approx(2 * norm.sf(abs(found.value) / error))
            half = 1.959964 * error
            expected = (found.value - half, found.value + half)
            assert found.delong_interval == pytest.approx(expected, rel=1e-5)


def test_two_groups_by_hand():
    """Story A: positives at 3, negatives at 0; B: positives at 1, negatives at 2; five of each.

    Components: A's positives beat all (1), B's half (.5), so the AUROC is .75; A's negatives are
    beaten by all (1), B's by half (.5). Group sums of deviations over 10: A .125 + .125, B minus
    that. Two squares of .25 and the factor 2 / (2 - 1): the variance is .25.
    """
    y = np.repeat([1, 0, 1, 0], 5)
    scores = np.repeat([3.0, 0.0, 1.0, 2.0], 5)
    (area,), resampler = areas_of(y, [scores], np.repeat(["A", "B"], 10))
    assert area.value == 0.75
    assert area.standard_error(resampler.groups) == pytest.approx(0.5)


def test_with_groups_variances_are_obuchowskis():
    """Groups of one class and of both, so that the three factors I / (I - 1) differ."""
    rng = np.random.default_rng(1)
    for n_groups in (6, 15):
        groups = np.r_[np.arange(n_groups), rng.integers(0, n_groups, 60 - n_groups)]
        y = (rng.random(60) < np.linspace(0, 1, n_groups)[groups]).astype(int)
        y[groups == 0], y[groups == n_groups - 1] = 0, 1
        rows = rng.normal(size=(2, 60)) + rng.normal(size=(2, n_groups))[:, groups] + y
        areas, resampler = areas_of(y, rows, groups)
        assert len({len(set(groups[y == label])) for label in (0, 1)} | {n_groups}) > 1
        parts = [components(y, row) for row in rows]
        for area, part in zip(areas, parts, strict=True):
            expected = math.sqrt(obuchowski_variance(y, part, groups))
            assert area.standard_error(groups) == pytest.approx(expected)
        minus = [a - b for a, b in zip(*parts, strict=True)]
        expected = math.sqrt(obuchowski_variance(y, minus, groups))
        assert resampler.contrast(*areas).error == pytest.approx(expected)


def test_grouped_items_count_as_one():
    """Nine copies of every item, each set of copies one group, tell no more than one copy."""
    y, rows = two_scores(np.random.default_rng(4), 60, (1.0, 0.5))
    (one, other), single = areas_of(y, rows, draws=2000)
    nine_y, nine_rows, groups = np.tile(y, 9), np.tile(rows, 9), np.tile(np.arange(60), 9)
    (grouped, second), resampler = areas_of(nine_y, nine_rows, groups, draws=2000)
    error = one.standard_error(np.arange(60))
    assert grouped.standard_error(groups) == pytest.approx(error)
    plain, copied = (r.contrast(*a) for r, a in
                     ((single, (one, other)), (resampler, (grouped, second))))  # fmt: skip
    assert copied.p_delong == pytest.approx(plain.p_delong)
    (copies,), _ = areas_of(nine_y, nine_rows[:1], draws=2000)
    widths = [area.interval[1] - area.interval[0] for area in (one, grouped, copies)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] < 0.5 * widths[0]  # a third, by sqrt(9): what ignoring them would claim
    assert copies.standard_error(np.arange(540)) < 0.4 * error


def test_variance_equals_that_of_repeated_sets_and_the_interval_covers():
    """1,000 sets of two normals: spread of the AUROCs, and the share of intervals that hold."""
    rng = np.random.default_rng(3)
    truth = norm.cdf(1.5 / math.sqrt(2))
    groups, hits, values, variances = np.arange(120), 0, [], []
    for _ in range(1000):
        y, rows = two_scores(rng, 120, (1.5,))
        (area,), _ = areas_of(y, rows)
        low, high = area.delong_interval(groups)
        hits += low <= truth <= high
        values.append(area.value)
        variances.append(area.standard_error(groups) ** 2)
    assert 0.93 <= hits / 1000 <= 0.97  # .95 within three standard errors of 1,000 sets
    assert np.mean(variances) == pytest.approx(np.var(values, ddof=1), rel=0.15)


def test_interval_over_stories_covers_the_truth():
    """Stories of 8 questions of both classes share a shift: only the grouped interval holds."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(40), 8)
    truth = norm.cdf(0.8 / math.sqrt(2) / math.sqrt(1 + 1))
    hits = {"grouped": 0, "items": 0}
    for _ in range(300):
        y = (rng.random(320) < np.repeat(rng.beta(0.5, 0.5, 40), 8)).astype(int)
        scores = rng.normal(size=40)[groups] + rng.normal(size=320) + 0.8 * y
        for name, names in (("grouped", groups), ("items", np.arange(320))):
            (area,), _ = areas_of(y, [scores], names)
            low, high = area.delong_interval(names)
            hits[name] += low <= truth <= high
    assert hits["grouped"] >= 0.91 * 300 > hits["items"] + 20


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
        # AUROC from the sum of the positives' ranks (Mann and Whitney); the constant cancels
        sums = [rankdata(side, axis=1)[:, y == 1].sum(axis=1) for side in (first, second)]
        deltas = (sums[0] - sums[1]) / (n // 2) ** 2
        expected = np.mean(np.abs(deltas) >= abs(observed) - 1e-12)
        areas, resampler = areas_of(y, rows)
        found = resampler.contrast(*areas)
        error = math.sqrt(expected * (1 - expected) / 2000)
        assert found.value == pytest.approx(observed)
        assert abs(found.p_delong - expected) <= 3 * error + 0.02


# --- means and differences --------------------------------------------------------------------


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
    # a constant per domain carries nothing inside one
    constant = (domain == "d0") * 0.7
    parts = [resampler.area(constant, domain == name) for name in ("d0", "d1")]
    assert resampler.mean(parts, of="domains").value == 0.5


def test_a_mean_says_over_how_many_it_is():
    y, domain, groups, scores = make(n=200, domains=3)
    y[domain == "d2"] = 1
    resampler = Resampler(y, domain, groups, draws=20)
    areas = [resampler.area(scores, domain == name) for name in ("d0", "d1", "d2")]
    macro = resampler.mean(areas, of="domains")
    assert macro.value == pytest.approx((areas[0].value + areas[1].value) / 2)
    assert (macro.note, macro.parts) == ("mean over 2 of 3 domains", (2, 3))
    assert macro.n == (domain != "d2").sum()
    of_means = resampler.mean([macro, areas[0], areas[2]], of="training domains")
    assert of_means.parts == (3, 5)
    assert of_means.note == (
        "mean over 2 of 3 training domains; mean over 2 of 3 domains in 1 of 2 training domains"
    )


def test_paired_difference():
    rng = np.random.default_rng(6)
    y = np.repeat([0, 1], 150)
    shared = rng.normal(size=300)
    strong, weak = shared + 1.5 * y, shared + 0.5 * y + 0.1 * rng.normal(size=300)
    (one, other), resampler = areas_of(y, [strong, weak], draws=2000)
    found = resampler.contrast(one, other)
    assert found.value == pytest.approx(roc_auc_score(y, strong) - roc_auc_score(y, weak))
    assert 0 < found.low < found.value < found.high and found.p_bootstrap < 0.01
    # pairing matters: the interval is narrower than that of two independent figures
    widths = [area.interval[1] - area.interval[0] for area in (one, other)]
    assert found.high - found.low < math.hypot(*widths)
    swapped = resampler.contrast(other, one)
    assert (swapped.value, swapped.low) == (-found.value, pytest.approx(-found.high))
    assert swapped.p_delong == found.p_delong


def test_equal_rankings_differ_by_nothing():
    y, _, _, scores = make()
    (one, other, same), resampler = areas_of(y, [scores[0], np.exp(scores[0]), scores[0]], draws=30)
    for found in (resampler.contrast(one, other), resampler.contrast(one, same)):
        assert (found.value, found.low, found.high, found.note) == (0, 0, 0, "")
        assert found.p_bootstrap == found.p_delong == 1 and found.delong_interval == (0, 0)


@pytest.mark.parametrize("other", [0.0, -1.0])
@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(8), 3)])
def test_without_variance_there_is_no_p_value_and_a_note_says_so(other, groups):
    y = np.array([0, 1] * 12)
    areas, resampler = areas_of(y, [y * 1.0, y * other], groups, draws=50)
    found = resampler.contrast(*areas)
    assert found.value == areas[0].value - areas[1].value > 0.4
    assert (found.p_delong, found.p_bootstrap, found.interval) == (None, None, None)
    assert found.delong_interval is None and "no variance" in found.note
    means = [resampler.mean([area, area], of="domains") for area in areas]
    assert resampler.contrast(*means).p_delong is None


def test_no_p_value_is_0_however_far_apart_two_scores_are():
    y = np.repeat([0, 1], 2000)
    rng = np.random.default_rng(8)
    rows = [3 * y + rng.normal(size=4000), -3 * y + rng.normal(size=4000)]
    areas, resampler = areas_of(y, rows, draws=20)
    found = resampler.contrast(*areas)
    assert abs(found.value) / found.error > 40  # where the normal tail is 0 in double precision
    assert 0 < found.p_delong < 1e-300 and found.p_bootstrap == pytest.approx(2 / 21)


def test_holm_by_hand():
    # .005 * 4, .01 * 3, .03 * 2, then .04 * 1 = .04, raised to the .06 before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([None, 0.02, None, 0.01]) == [None, 0.02, None, 0.02]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p value"):
        holm([math.nan])


# --- right and wrong twins ----------------------------------------------------------------------


def test_paired_accuracy_is_what_counting_gives():
    # pair a is won, b lost, c tied; d has two wrong ones, one of which is above its right one
    pairs = np.array([*"aabbccddd", "", "e"] + [f"p{place // 2}" for place in range(20)])
    y = np.array([0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 1] + [0, 1] * 10)
    scores = np.array([1, 2, 4, 3, 5, 5, 2, 1, 3, 9, 9, *range(20)], dtype=float)
    groups = np.array([f"g{name}" if name not in ("a", "b") else "ab" for name in pairs])
    resampler = Resampler(y, np.zeros(y.size), groups, draws=400, seed=3)
    found = resampler.paired(scores, everything(y), pairs)
    assert (found.value, found.n, found.n_positive) == ((1 + 0 + 0.5 + 0.5 + 10) / 14, 14, 14)
    won = dict(zip("abcd", (1, 0, 0.5, 0.5), strict=True))
    for draw in range(5):  # as often as its group was drawn, a pair counts
        times = {name: resampler.weights[draw, place] for place, name in enumerate(pairs) if name}
        del times["e"]
        total = sum(int(n) * won.get(name, 1) for name, n in times.items())
        assert found.draws[draw] == pytest.approx(total / sum(map(int, times.values())))
    assert resampler.weights[:, 0].tolist() == resampler.weights[:, 3].tolist()
    # the error of a mean over groups: a and b are one observation
    residual = {"ab": 1 + 0 - 2 * found.value}
    residual |= {name: won.get(name, 1) - found.value for name in pairs if name not in (*"abe", "")}
    error = math.sqrt(13 / 12 * sum(value**2 for value in residual.values())) / 14
    assert found.standard_error(groups) == pytest.approx(error)
    # a pair of which a twin has no score is left out, and too few make no figure
    scores[1] = np.nan
    assert resampler.paired(scores, everything(y), pairs).n == 13
    few = resampler.paired(scores, np.arange(y.size) < 9, pairs)
    assert (few.value, few.note) == (None, "3 pairs; at least 10 are needed")


def test_paired_accuracy_over_probe_seeds_is_the_mean_over_them():
    rng = np.random.default_rng(5)
    y, pairs = np.arange(60) % 2, np.array([f"p{place // 2}" for place in range(60)])
    scores = rng.normal(size=(3, 60)) + y
    resampler = Resampler(y, np.zeros(60), pairs, draws=200)
    each = [(row[1::2] > row[::2]).mean() for row in scores]
    found = resampler.paired(scores, everything(y), pairs)
    assert found.value == pytest.approx(np.mean(each))
    low, high = found.interval
    # of 30 pairs by the normal approximation
    won = (scores[:, 1::2] > scores[:, ::2]).mean(axis=0)
    reach = 1.96 * won.std() / math.sqrt(30)
    assert (low, high) == pytest.approx((found.value - reach, found.value + reach), abs=0.05)
