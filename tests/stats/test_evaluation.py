"""AUROC, its intervals and the paired test against scikit-learn, closed forms and simulation."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from spikescore.stats import bootstrap
from spikescore.stats.bootstrap import (
    MIN_PER_CLASS,
    Sample,
    bootstrap_aurocs,
    compare_aurocs,
    macro_auroc,
    measure_auroc,
    measure_table,
)
from spikescore.stats.roc import auroc, flag_metrics, roc_points


def random_set(rng, n, levels=None):
    y = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    scores = rng.normal(size=n) + 0.7 * y
    return y, scores if levels is None else np.round(scores * levels) / levels


@pytest.mark.parametrize("levels", [None, 4, 1])
def test_auroc_equals_scikit_learn_with_and_without_ties(levels):
    rng = np.random.default_rng(0)
    for n in (5, 20, 101, 400):
        for _ in range(20):
            y, scores = random_set(rng, n, levels)
            expected = roc_auc_score(y, scores)
            assert auroc(y, scores) == pytest.approx(expected, abs=1e-12)
            false, true = roc_points(y, scores)
            assert np.trapezoid(true, false) == pytest.approx(expected, abs=1e-12)
            assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)


def test_planted_perfect_mirrored_and_constant_scores():
    y = np.array([0, 1] * 50)
    assert measure_auroc(y, y + 0.1).value == 1.0
    assert measure_auroc(y, -y).value == 0.0
    assert measure_auroc(y, np.zeros(100)).value == 0.5
    perfect = measure_auroc(y, y)
    assert (perfect.low, perfect.high, perfect.n, perfect.n_positive) == (1.0, 1.0, 100, 50)


def test_bootstrap_equals_scikit_learn_on_the_drawn_items():
    rng = np.random.default_rng(1)
    y, scores = random_set(rng, 60, levels=3)
    groups = np.repeat(np.arange(20), 3)
    sample = Sample.of(y, scores, -scores, groups=groups)
    found = bootstrap_aurocs(sample, draws=30, rng=np.random.default_rng(5))
    drawn = np.random.default_rng(5).integers(20, size=(30, 20))
    for draw, stories in enumerate(drawn):
        items = np.concatenate([np.flatnonzero(groups == story) for story in stories])
        expected = roc_auc_score(y[items], scores[items])
        assert found[0, draw] == pytest.approx(expected, abs=1e-12)
        assert found[1, draw] == pytest.approx(1 - expected, abs=1e-12)


def test_draws_without_a_class_are_dropped():
    sample = Sample.of([1, 0, 0], [3.0, 1.0, 2.0])
    found = bootstrap_aurocs(sample, draws=500, rng=np.random.default_rng(0))[0]
    # item 0 alone is positive: absent from 8/27 of the draws, alone in 1/27
    assert np.isnan(found).mean() == pytest.approx(9 / 27, abs=0.08)
    assert (found[np.isfinite(found)] == 1.0).all()


@pytest.mark.parametrize("cells, cores", [(1, 1), (700, 2), (3000, 5)])
def test_bootstrap_does_not_depend_on_blocks_and_cores(monkeypatch, cells, cores):
    rng = np.random.default_rng(11)
    y, scores = random_set(rng, 90, levels=2)
    sample = Sample.of(y, scores, rng.normal(size=90), groups=np.arange(90) % 40)
    expected = bootstrap_aurocs(sample, draws=60, rng=np.random.default_rng(1))
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", cells)
    monkeypatch.setattr(bootstrap, "usable_cores", lambda: cores)
    found = bootstrap_aurocs(sample, draws=60, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(found, expected)


def test_a_table_holds_the_figures_that_come_one_by_one():
    rng = np.random.default_rng(12)
    samples = []
    for n in (60, 140):
        y = rng.integers(0, 2, n)
        rows = rng.normal(size=(4, n)) + np.outer([1.0, 0.5, 0.0, -1.0], y)
        samples.append(Sample.of(y, *rows, groups=np.arange(n) // 2))
    aurocs, differences = measure_table(samples, draws=100, seed=3)
    assert len(aurocs) == 4 and len(differences) == 3
    for row, figure in enumerate(aurocs):
        alone = [Sample.of(s.y, s.scores[row], groups=s.groups) for s in samples]
        assert macro_auroc(alone, draws=100, seed=3) == figure
    for row, difference in enumerate(differences, start=1):
        pair = [Sample.of(s.y, s.scores[0], s.scores[row], groups=s.groups) for s in samples]
        assert compare_aurocs(pair, draws=100, seed=3) == difference
    broken = Sample.of([1] * 20, *rng.normal(size=(4, 20)))
    aurocs, differences = measure_table([broken])
    assert [a.value for a in aurocs] == [None] * 4 and [d.p for d in differences] == [None] * 3
    assert macro_auroc([]).note == "not computable: no items"


def test_interval_covers_the_truth():
    """Two normals one standard deviation apart: the true AUROC is Phi(1 / sqrt 2)."""
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(500):
        y = np.repeat([0, 1], 120)
        figure = measure_auroc(y, rng.normal(size=240) + y, draws=400, seed=seed)
        hits += figure.low <= truth <= figure.high
    assert 0.93 <= hits / 500 <= 0.97


def test_groups_widen_the_interval_when_items_repeat():
    rng = np.random.default_rng(3)
    y, scores = random_set(rng, 80)
    one = measure_auroc(y, scores)
    copies = measure_auroc(np.tile(y, 9), np.tile(scores, 9))
    grouped = measure_auroc(np.tile(y, 9), np.tile(scores, 9), groups=np.tile(np.arange(80), 9))
    assert grouped.high - grouped.low == pytest.approx(one.high - one.low, rel=0.1)
    assert copies.high - copies.low < 0.5 * (one.high - one.low)  # a third, by sqrt(9)


def test_same_seed_same_interval_and_large_sets_are_quick():
    rng = np.random.default_rng(4)
    y, scores = random_set(rng, 6000)
    first = measure_auroc(y, scores, draws=200, seed=7)
    assert first == measure_auroc(y, scores, draws=200, seed=7)
    assert first != measure_auroc(y, scores, draws=200, seed=8)


@pytest.mark.parametrize("positive, negative", [(0, 50), (50, 0), (MIN_PER_CLASS - 1, 50), (0, 0)])
def test_too_few_of_a_class_is_not_computable(positive, negative):
    y = [1] * positive + [0] * negative
    figure = measure_auroc(y, np.arange(len(y), dtype=float))
    assert (figure.value, figure.low, figure.high) == (None, None, None)
    assert f"{positive} hallucinated and {negative} consistent" in figure.note
    enough = [1] * MIN_PER_CLASS + [0] * MIN_PER_CLASS
    assert measure_auroc(enough, np.arange(2.0 * MIN_PER_CLASS)).value == 0.0


def test_one_group_has_no_interval():
    figure = measure_auroc([0, 1] * 20, [0.0, 1.0] * 20, groups=["story"] * 40)
    assert (figure.value, figure.low) == (1.0, None) and "one group" in figure.note


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="lengths"):
        measure_auroc([0, 1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="finite"):
        measure_auroc([0, 1], [0.1, math.nan])
    with pytest.raises(ValueError, match="0 and 1"):
        measure_auroc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="both classes"):
        auroc(np.ones(3, int), np.arange(3.0))


def test_macro_is_the_mean_of_domains_and_a_pool_is_not():
    rng = np.random.default_rng(5)
    y1, s1 = random_set(rng, 40)
    y2, s2 = random_set(rng, 400)
    both = [Sample.of(y1, s1), Sample.of(y2, s2)]
    figure = macro_auroc(both)
    expected = (roc_auc_score(y1, s1) + roc_auc_score(y2, s2)) / 2
    assert figure.value == pytest.approx(expected, abs=1e-12)
    assert (figure.n, figure.n_positive) == (440, y1.sum() + y2.sum())
    # a constant per domain carries nothing inside one: exactly 0.5
    constants = [Sample.of(y1, np.full(40, 0.2)), Sample.of(y2, np.full(400, 0.9))]
    assert macro_auroc(constants).value == 0.5
    with_broken = macro_auroc([*both, Sample.of([1] * 30, np.arange(30.0))])
    assert with_broken.value == pytest.approx(expected, abs=1e-12)
    assert "2 of 3 domains" in with_broken.note and with_broken.n == 440


def test_paired_difference():
    rng = np.random.default_rng(6)
    y = np.repeat([0, 1], 150)
    shared = rng.normal(size=300)
    strong, weak = shared + 1.5 * y, shared + 0.5 * y + 0.1 * rng.normal(size=300)
    found = compare_aurocs([Sample.of(y, strong, weak)])
    assert found.value == pytest.approx(roc_auc_score(y, strong) - roc_auc_score(y, weak))
    assert 0 < found.low < found.value < found.high and found.p < 0.01
    # pairing matters: the interval is narrower than that of two independent figures
    alone = measure_auroc(y, strong), measure_auroc(y, weak)
    assert found.high - found.low < math.hypot(*(figure.high - figure.low for figure in alone))
    same = compare_aurocs([Sample.of(y, strong, strong)])
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    swapped = compare_aurocs([Sample.of(y, weak, strong)])
    assert (swapped.value, swapped.low) == (-found.value, pytest.approx(-found.high))
    assert compare_aurocs([Sample.of([1] * 20, np.ones(20), np.ones(20))]).value is None


def test_flag_metrics_equal_scikit_learn():
    rng = np.random.default_rng(7)
    y, scores = random_set(rng, 100, levels=4)
    found = flag_metrics(y, scores, 0.5)
    flagged = (scores >= 0.5).astype(int)
    assert (scores == 0.5).any()  # the threshold itself is flagged
    assert found["f1"] == pytest.approx(f1_score(y, flagged))
    assert found["accuracy"] == pytest.approx(accuracy_score(y, flagged))
    assert found["tpr"] == pytest.approx(recall_score(y, flagged))
    assert found["fpr"] == pytest.approx(1 - recall_score(y, flagged, pos_label=0))
    assert flag_metrics(np.zeros(5), np.zeros(5), 1.0)["tpr"] is None
