"""SpikeScore by number of turns and the early-stopping rule, against loops and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from spikescore.stats.early_stopping import measure_early_stop, spike_by_k, stop_turns, tokens_by_k
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
    assert stop_turns(HAND, 1.0).tolist() == [3, 5]
    assert stop_turns(HAND, 1.5).tolist() == [4, 5]
    assert stop_turns(HAND, 2.5).tolist() == [5, 5]
    tokens = np.array([[10, 1, 1, 1, 2], [10, 2, 2, 2, 2]])
    assert tokens_by_k(tokens).tolist() == [[12, 13, 15], [14, 16, 18]]
    found = measure_early_stop([1, 0], HAND, 1.0, tokens=tokens)
    # row 1 stops after 3 of 5 turns and 12 of 15 tokens
    assert (found.stopped, found.turns, found.turns_saved) == (0.5, 4.0, pytest.approx(0.2))
    assert found.tokens_saved == pytest.approx(3 / 33)
    assert found.auroc.value is None and "1 hallucinated" in found.f1.note


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 3))
def test_running_scores_and_stops_equal_loops(seed, threshold):
    turns = np.random.default_rng(seed).normal(size=(5, 7))
    running = spike_by_k(turns)
    for row, found, stop in zip(turns, running, stop_turns(turns, threshold), strict=True):
        expected = [spike_score(row[:k]) for k in range(3, 8)]
        assert found.tolist() == expected
        flagged = [k for k, score in enumerate(expected, start=3) if score >= threshold]
        assert stop == (flagged[0] if flagged else 7)


def test_short_dialogues_and_gaps_are_left_out():
    found = spike_by_k([[0.0, 1.0, 0.0, np.nan, np.nan], [0.0, np.nan, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(found, [[2, np.nan, np.nan], [np.nan] * 3])
    rng = np.random.default_rng(0)
    y, turns = planted(rng, 80)
    short = turns.copy()
    short[:20, 6:] = np.nan
    options = {"draws": 50, "seed": 1}
    found = measure_early_stop(y, short, 0.4, **options)
    assert found == measure_early_stop(y[20:], turns[20:], 0.4, **options) and found.n == 60
    for bad in (np.zeros((2, 2)), np.zeros(5)):
        with pytest.raises(ValueError, match="shape"):
            spike_by_k(bad)
    with pytest.raises(ValueError, match="every turn"):
        measure_early_stop(y, np.full(turns.shape, np.nan), 0.4)
    with pytest.raises(ValueError, match="tokens"):
        measure_early_stop(y, turns, 0.4, tokens=np.ones((80, 3)))


def test_rule_flags_the_same_dialogues_and_saves_turns():
    rng = np.random.default_rng(2)
    val_y, val_turns = planted(rng, 200)
    threshold, _ = choose_threshold(val_y, spike_by_k(val_turns)[:, -1])
    y, turns = planted(rng, 400)
    tokens = rng.integers(1, 50, size=turns.shape)
    found = measure_early_stop(y, turns, threshold, tokens=tokens, draws=200)

    scores, used = [], []
    for row in turns:
        k = 3
        while spike_score(row[:k]) < threshold and k < 8:
            k += 1
        scores.append(spike_score(row[:k]))
        used.append(k)
    scores, full = np.array(scores), np.array([spike_score(row) for row in turns])
    np.testing.assert_array_equal(scores >= threshold, full >= threshold)
    assert found.f1.value == pytest.approx(f1_score(y, full >= threshold))
    assert found.accuracy.value == pytest.approx(accuracy_score(y, full >= threshold))
    assert found.auroc.value == pytest.approx(roc_auc_score(y, scores))
    assert found.auroc_all_turns.value == pytest.approx(roc_auc_score(y, full))
    assert found.change.value == pytest.approx(roc_auc_score(y, scores) - roc_auc_score(y, full))
    assert found.turns == pytest.approx(np.mean(used))
    assert found.stopped == pytest.approx(np.mean(np.array(used) < 8))
    paid = sum(row[:k].sum() for row, k in zip(tokens, used, strict=True))
    assert found.tokens_saved == pytest.approx(1 - paid / tokens.sum())
    assert 0.1 < found.turns_saved < 0.5


def test_a_threshold_out_of_reach_changes_nothing_and_zero_stops_at_once():
    y, turns = planted(np.random.default_rng(3), 60)
    never = measure_early_stop(y, turns, 99.0, draws=20)
    assert (never.stopped, never.turns_saved, never.change.value) == (0.0, 0.0, 0.0)
    assert never.f1.value == 0.0 and never.tokens_saved is None
    at_once = measure_early_stop(y, turns, 0.0, draws=20)
    assert (at_once.stopped, at_once.turns) == (1.0, 3.0)
    three = [spike_score(row[:3]) for row in turns]
    assert at_once.auroc.value == pytest.approx(roc_auc_score(y, three))
