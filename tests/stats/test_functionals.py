"""Trajectory functionals against hand-worked sequences, plain loops and spike_score itself."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikescore.stats.trajectory import (
    FUNCTIONALS,
    apply,
    remove_turn_means,
    spike_score,
    truncate,
    turn_means,
)

NAN = math.nan
SPIKE = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
ZIGZAG = [0.0, 0.4, 0.0, 0.4, 0.0, 0.4, 0.0, 0.4]


def bends(s):
    return [abs(s[k + 1] - 2 * s[k] + s[k - 1]) for k in range(1, len(s) - 1)]


BY_LOOP = {
    "max_abs_d2": lambda s: max(bends(s)),
    "spike_without_first": lambda s: max(bends(s[1:])),
    "max_abs_d1": lambda s: max(abs(b - a) for a, b in zip(s, s[1:], strict=False)),
    "sum_abs_d2": lambda s: sum(bends(s)),
    "variance": statistics.pvariance,
    "cv": lambda s: statistics.pstdev(s) / abs(statistics.fmean(s)),
    "range": lambda s: max(s) - min(s),
    "mean": statistics.fmean,
    "last": lambda s: s[-1],
    "first": lambda s: s[0],
    "release": lambda s: statistics.pvariance(s) + sum(bends(s)),
}
FEWEST = {"max_abs_d2": 3, "sum_abs_d2": 3, "release": 3, "spike_without_first": 4}
FEWEST |= {"max_abs_d1": 2, "variance": 2, "cv": 2, "range": 2, "mean": 1, "last": 1, "first": 1}


def padded(rows):
    width = max(map(len, rows))
    return np.array([list(row) + [NAN] * (width - len(row)) for row in rows])


def test_by_hand():
    # one isolated spike: bends 1, 2, 1; variance 1/8 - 1/64 = 7/64. Zig-zag: six bends of .8,
    # variance .04. The release ranks the two the other way round.
    turns = np.array([SPIKE, ZIGZAG])
    expected = {
        "max_abs_d2": (2.0, 0.8),
        "spike_without_first": (2.0, 0.8),
        "max_abs_d1": (1.0, 0.4),
        "sum_abs_d2": (4.0, 4.8),
        "variance": (7 / 64, 0.04),
        "cv": (math.sqrt(7), 1.0),
        "range": (1.0, 0.4),
        "mean": (0.125, 0.2),
        "last": (0.0, 0.4),
        "first": (0.0, 0.0),
        "release": (4 + 7 / 64, 4.84),
    }
    assert expected.keys() == FUNCTIONALS.keys()
    for name, values in expected.items():
        assert apply(name, turns) == pytest.approx(values), name


def test_leaving_out_the_first_answer_removes_a_spike_at_its_side():
    # bends .8, .8, 0: the first is at turn 2 and reads turn 1, the second does not
    assert apply("max_abs_d2", [[0.9, 0.1, 0.1, 0.1]]) == pytest.approx([0.8])
    assert apply("spike_without_first", [[0.9, 0.1, 0.1, 0.1]]) == pytest.approx([0.0])


@pytest.mark.parametrize("name", BY_LOOP)
def test_every_functional_equals_a_plain_loop_at_every_length(name):
    rng = np.random.default_rng(0)
    rows = [rng.normal(0.3, 1, size=length).tolist() for length in range(1, 21) for _ in range(5)]
    found = apply(name, padded(rows))
    assert FUNCTIONALS[name].min_turns == FEWEST[name]
    for row, value in zip(rows, found, strict=True):
        if len(row) < FEWEST[name]:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(BY_LOOP[name](row), rel=1e-9)


def test_gaps_infinities_and_empty_rows_have_no_value():
    turns = np.array(
        [
            [0.1, NAN, 0.3, 0.9, 0.2],
            [NAN, 0.1, 0.3, 0.9, 0.2],
            [0.1, 0.5, 0.3, math.inf, NAN],
            [NAN] * 5,
            [0.1, 0.5, 0.3, 0.9, 0.2],
        ]
    )
    for name in FUNCTIONALS:
        found = apply(name, turns)
        assert np.isnan(found[:4]).all() and np.isfinite(found[4]), name
        assert apply(name, np.empty((0, 5))).shape == (0,)
    with pytest.raises(ValueError, match="shape"):
        apply("mean", np.zeros(3))
    assert np.isnan(apply("cv", [[-1.0, 1.0]])[0])


scores = st.floats(-100, 100, allow_nan=False, width=32)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(scores, min_size=3, max_size=20), min_size=1, max_size=6), scores, scores)
def test_spike_score_is_the_same_and_ignores_lines(rows, level, slope):
    turns = padded(rows)
    found = apply("max_abs_d2", turns)
    assert found.tolist() == [spike_score(row) for row in rows]
    line = level + slope * np.arange(turns.shape[1])
    assert apply("max_abs_d2", turns + line) == pytest.approx(found, abs=1e-6)
    assert apply("variance", turns + level) == pytest.approx(apply("variance", turns), abs=1e-6)
    tail = [spike_score(row[1:]) if len(row) > 3 else NAN for row in rows]
    assert apply("spike_without_first", turns) == pytest.approx(tail, nan_ok=True)


def test_turn_means_are_removed_and_taken_over_the_dialogues_that_reach_a_turn():
    training = np.array([[1.0, 2.0, 6.0], [3.0, 4.0, NAN]])
    means = turn_means(training)
    assert means.tolist() == [2.0, 3.0, 6.0]
    assert turn_means(np.array([[1.0, NAN]])).tolist()[0] == 1.0
    other = np.array([[2.5, 3.0, 7.0, 9.0], [2.0, NAN, NAN, NAN]])
    found = remove_turn_means(other, means)
    # turn 4 was never seen in training: nothing to remove, so nothing to report
    np.testing.assert_array_equal(found, [[0.5, 0.0, 1.0, NAN], [0.0, NAN, NAN, NAN]])
    np.testing.assert_array_equal(remove_turn_means(other[:, :2], means), found[:, :2])
    with pytest.raises(ValueError, match="gaps"):
        remove_turn_means(other, np.array([1.0, NAN, 2.0]))


def test_removing_the_prompts_share_reveals_the_item():
    rng = np.random.default_rng(1)
    prompts = rng.normal(size=8)
    prompts[4] += 5  # one prompt moves every item alike
    items = np.zeros((50, 8))
    items[:, 2] = np.linspace(0.1, 1, 50)
    turns = items + prompts
    assert np.ptp(apply("max_abs_d2", turns)) < 0.01  # the prompt hides all
    bare = remove_turn_means(turns, prompts)
    assert apply("max_abs_d2", bare) == pytest.approx(2 * items[:, 2])


def test_truncate():
    turns = padded([SPIKE, ZIGZAG])
    short = truncate(turns, 3)
    assert apply("max_abs_d2", short) == pytest.approx([1.0, 0.8])
    short[:] = 0
    assert turns[0, 2] == 1.0 and truncate(turns, 50).shape == turns.shape
    with pytest.raises(ValueError, match="at least 1"):
        truncate(turns, 0)
