"""SpikeScore against hand-worked values and against what its formula implies."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikescore.stats.trajectory import second_differences, spike_score, spike_turn

# scores, SpikeScore, its turn: every value worked by hand from |s[k+1] - 2 s[k] + s[k-1]|
BY_HAND = [
    ([0, 0, 0], 0.0, 2),
    ([0, 1, 0], 2.0, 2),
    ([1, 0, 1], 2.0, 2),
    ([0.1, 0.2, 0.3, 0.4], 0.0, None),
    ([0, 0, 1, 0, 0], 2.0, 3),
    ([0, 0, 1, 1, 1], 1.0, 2),
    ([0, 0.25, 1], 0.5, 2),
    ([1, 0.5, 0.5, 0.5, 0], 0.5, 2),
    ([0.5, 0.5, 0.5, 0.75, 0.5], 0.5, 4),
    ([0, 0.5, 0.25, 1, 0.5, 0.5], 1.25, 4),
    ([4, 1, 0, 1, 4, 9], 2.0, 2),
    ([-1, 2, -3, 4], 12.0, 3),
    ([0, 0, 0, 0, 0, 0, 0, 0, 0.875, 0.125], 1.625, 9),
    ([0.5, 0, 0, 0, 0.5, 1, 0.5, 0, 0, 0, 0], 1.0, 6),
]


@pytest.mark.parametrize("scores, expected, turn", BY_HAND)
def test_hand_worked_values(scores, expected, turn):
    assert spike_score(scores) == pytest.approx(expected, abs=1e-12)
    if turn is not None:
        assert spike_turn(scores) == turn


def test_second_differences_keep_sign_and_order():
    assert second_differences([0, 1, 0, 0, 3]).tolist() == [-2, 1, 3]


def test_all_interior_turns_count():
    for turn in range(2, 20):
        scores = [0.5] * 20
        scores[turn - 1] = 1.0
        assert (spike_score(scores), spike_turn(scores)) == (1.0, turn)
    # a spike at an end bends the line at its neighbour only, and half as much
    assert spike_score([1.0] + [0.5] * 19) == spike_score([0.5] * 19 + [1.0]) == 0.5


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 2.0], [[0.0, 1.0, 0.0]]])
def test_too_few_scores_are_refused(scores):
    for function in (second_differences, spike_score, spike_turn):
        with pytest.raises(ValueError, match="at least 3"):
            function(scores)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_and_named(bad):
    with pytest.raises(ValueError, match="turn 4"):
        spike_score([0.1, 0.2, 0.3, bad, 0.5])


relaxed = settings(deadline=None)  # a loaded machine is not a failure
sequences = st.lists(st.floats(-100, 100), min_size=3, max_size=25)


@relaxed
@given(sequences, st.floats(-50, 50), st.floats(-5, 5))
def test_adding_a_straight_line_changes_nothing(scores, start, slope):
    line = start + slope * np.arange(len(scores))
    assert spike_score(np.array(scores) + line) == pytest.approx(spike_score(scores), abs=1e-9)


@relaxed
@given(sequences, st.floats(-10, 10))
def test_scaling_scales_and_sign_and_direction_do_not_matter(scores, factor):
    value = spike_score(scores)
    assert spike_score(factor * np.array(scores)) == pytest.approx(abs(factor) * value, abs=1e-9)
    assert spike_score([-score for score in scores]) == value
    assert spike_score(scores[::-1]) == pytest.approx(value, abs=1e-12)


@relaxed
@given(st.floats(-10, 10), st.floats(-10, 10), st.integers(3, 25))
def test_a_straight_line_has_no_spike(start, slope, n):
    assert spike_score([start + slope * turn for turn in range(n)]) == pytest.approx(0, abs=1e-9)


@relaxed
@given(st.lists(st.floats(0, 1), min_size=3, max_size=25))
def test_range_for_probabilities(scores):
    assert 0 <= spike_score(scores) <= 2
    assert 2 <= spike_turn(scores) <= len(scores) - 1
