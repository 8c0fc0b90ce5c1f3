"""SpikeScore by number of turns and the early-stopping rule, against loops and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikescore.stats.early_stopping import (
    spike_by_k,
    stop_early,
    tokens_saved,
    truthful_bounds,
)
from spikescore.stats.operating_points import choose_threshold
from spikescore.stats.trajectory import spike_score

# a spike at turn 3 is seen at turn 3 (bend 1) and grows at turn 4 (bend 2); the second row is still
HAND = np.array([[0.0, 0.0, 1.0, 0.0, 0.0], [0.2, 0.2, 0.3, 0.3, 0.3]])


def planted(rng, n, turns=8):
    """A flat line with noise, and in hallucinated items a spike of random height and place."""
    y = np.arange(n) % 2
    scores = 0.05 * rng.normal(size=(n, turns))
    places = rng.integers(1, turns - 1, size=n)
    scores[np.arange(n), places] += y * rng.uniform(0, 1, size=n)
    return y, scores


def test_by_hand():
    np.testing.assert_allclose(spike_by_k(HAND), [[1, 2, 2], [0.1, 0.1, 0.1]])
    for threshold, score, turn in ((1.0, 1, 3), (1.5, 2, 4), (2.5, 2, 5)):
        scores, stops = stop_early(HAND, threshold)
        np.testing.assert_allclose(scores, [score, 0.1])
        assert stops.tolist() == [turn, 5]
    # row 1 stops after 3 of 5 turns and 12 of 15 tokens, row 2 takes all 18
    tokens = np.array([[10, 1, 1, 1, 2], [10, 2, 2, 2, 2]])
    assert tokens_saved(tokens, stop_early(HAND, 1.0)[1]) == pytest.approx(3 / 33)
    assert tokens_saved(tokens, np.array([5, 5])) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 3))
def test_running_scores_and_stops_equal_loops(seed, threshold):
    turns = np.random.default_rng(seed).normal(size=(5, 7))
    scores, stops = stop_early(turns, threshold)
    for row, running, score, stop in zip(turns, spike_by_k(turns), scores, stops, strict=True):
        expected = [spike_score(row[:k]) for k in range(3, 8)]
        assert running.tolist() == expected
        k = 3
        while spike_score(row[:k]) < threshold and k < 7:
            k += 1
        assert (stop, score) == (k, spike_score(row[:k]))


def test_short_dialogues_and_gaps_are_left_out():
    turns = np.array([[0.0, 1.0, 0.0, np.nan, np.nan], [0.0, np.nan, 0.0, 0.0, 0.0], HAND[1]])
    np.testing.assert_array_equal(spike_by_k(turns)[:2], [[2, np.nan, np.nan], [np.nan] * 3])
    scores, stops = stop_early(turns, 1.0)
    assert np.isnan(scores).tolist() == [True, True, False] and stops.tolist() == [0, 0, 5]
    for bad in (np.zeros((2, 2)), np.zeros(5)):
        with pytest.raises(ValueError, match="shape"):
            spike_by_k(bad)
    for bad in (np.ones(3), np.ones((2, 5)), np.full((3, 5), np.nan), -np.ones((3, 5))):
        with pytest.raises(ValueError, match="tokens"):
            tokens_saved(bad, np.array([3, 3, 3]))


def test_rule_flags_the_same_dialogues_and_saves_turns():
    rng = np.random.default_rng(2)
    val_y, val_turns = planted(rng, 200)
    threshold, _ = choose_threshold(val_y, spike_by_k(val_turns)[:, -1])
    _, turns = planted(rng, 400)
    scores, stops = stop_early(turns, threshold)
    full = np.array([spike_score(row) for row in turns])
    np.testing.assert_array_equal(scores >= threshold, full >= threshold)
    assert (scores <= full).all() and (scores < full).any()
    assert 0.1 < 1 - stops.mean() / 8 < 0.5


def test_a_threshold_out_of_reach_changes_nothing_and_zero_stops_at_once():
    _, turns = planted(np.random.default_rng(3), 60)
    scores, stops = stop_early(turns, 99.0)
    assert (stops == 8).all() and scores == pytest.approx([spike_score(row) for row in turns])
    scores, stops = stop_early(turns, 0.0)
    assert (stops == 3).all() and scores == pytest.approx([spike_score(row[:3]) for row in turns])


# --- the other side ---------------------------------------------------------------------------

# running SpikeScores, at turns 3 to 5, of dialogues with these bends
BENDS = [[1 / 8, 1, 1], [1 / 4, 3 / 8, 1], [1 / 2, 1 / 2, 2], [3 / 16, 3 / 16, 3 / 16]]


def with_bends(rows):
    """Scores [n, 5] whose second differences are the given ones: sums of sums."""
    return np.array([np.cumsum([0, 0, *np.cumsum(row)]) for row in rows], dtype=float)


def test_bounds_by_hand():
    turns = with_bends(BENDS)
    np.testing.assert_allclose(spike_by_k(turns), BENDS)
    # three are flagged at 1; no one is below the least, below the second least are two of them
    # (the first at turn 3, the second at turn 4), and all three below the third
    for lost, expected in ((0, [1 / 8, 3 / 8]), (0.6, [1 / 8, 3 / 8]), (0.7, [1 / 4, 1 / 2])):
        bounds = truthful_bounds(turns, 1.0, lost)
        np.testing.assert_allclose(bounds, [*expected, -np.inf])
    scores, stops = stop_early(turns, 1.0, bounds)
    assert stops.tolist() == [3, 4, 5, 3]
    np.testing.assert_allclose(scores, [1 / 8, 3 / 8, 2, 3 / 16])


def loop(row, threshold, bounds):
    """The turn at which a dialogue stops, and whether it is flagged."""
    for k in range(3, len(row) + 1):
        score = spike_score(row[:k])
        if score >= threshold or score < bounds[k - 3] or k == len(row):
            return k, score >= threshold


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.9), st.floats(0.5, 4))
def test_bounds_lose_no_more_than_they_may_and_are_the_highest_such(seed, lost, threshold):
    turns = np.random.default_rng(seed).normal(size=(20, 6))
    flagged = [row for row in turns if spike_score(row) >= threshold]
    bounds = truthful_bounds(turns, threshold, lost)
    if not flagged:
        assert np.isneginf(bounds).all()
        return
    scores, stops = stop_early(turns, threshold, bounds)
    for row, score, stop in zip(turns, scores, stops, strict=True):
        assert (stop, score >= threshold) == loop(row, threshold, bounds)
    ranked = np.sort([[spike_score(row[:k]) for k in range(3, 6)] for row in flagged], axis=0)
    shares = [
        np.mean([not loop(row, threshold, [*each, -np.inf])[1] for row in flagged])
        for each in ranked
    ]
    rank = max(place for place, share in enumerate(shares) if share <= lost)
    assert shares[0] == 0 and bounds[:-1].tolist() == ranked[rank].tolist()


def test_bounds_of_nothing_and_of_nonsense():
    turns = with_bends(BENDS)
    assert np.isneginf(truthful_bounds(turns, 9.0, 0.1)).all()
    assert np.isneginf(truthful_bounds(np.full((2, 5), np.nan), 1.0, 0.1)).all()
    for bad in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match="share"):
            truthful_bounds(turns, 1.0, bad)
