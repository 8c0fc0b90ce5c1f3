"""Uncertainty measures against values worked out by hand, closed forms and general properties."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikescore.measures.formulas import (
    cluster_assignment_entropy,
    length_normalised_entropy,
    lexical_similarity,
    n_semantic_sets,
    predictive_entropy,
    rouge_l,
    sample_measures,
    semantic_entropy,
)

LN2, LN3, LN10 = math.log(2), math.log(3), math.log(10)

# cluster ids and the entropy worked out on paper
ASSIGNMENTS = [
    ([0], 0.0),
    ([0] * 10, 0.0),
    ([0, 1], LN2),
    ([0, 0, 1, 1], LN2),
    ([0, 1, 2], LN3),
    (list(range(10)), LN10),
    ([0, 0, 0, 1], 2 * LN2 - 0.75 * LN3),  # -(3/4 log 3/4 + 1/4 log 1/4)
    ([0, 0, 1], LN3 - 2 / 3 * LN2),
    ([0, 0, 1, 2], 1.5 * LN2),
    ([0, 1, 1, 2, 2, 3], math.log(6) - 2 / 3 * LN2),
    ([0] * 9 + [1], LN10 - 0.9 * math.log(9)),
    ([0] * 5 + [1] * 3 + [2] * 2, LN10 - 0.5 * math.log(5) - 0.3 * LN3 - 0.2 * LN2),
    ([7, 7, -1, 7], 2 * LN2 - 0.75 * LN3),  # the ids' values do not matter
]


@pytest.mark.parametrize(("ids", "expected"), ASSIGNMENTS)
def test_discrete_semantic_entropy_by_hand(ids: list[int], expected: float) -> None:
    assert cluster_assignment_entropy(ids) == pytest.approx(expected, abs=1e-12)
    assert n_semantic_sets(ids) == len(set(ids))


# likelihoods given as probabilities; the expected value is written out term by term
WEIGHTED = [
    ([0], [0.3], 0.0),
    ([0, 0], [0.9, 0.1], 0.0),
    ([0, 1], [0.4, 0.4], LN2),
    ([0, 1], [0.3, 0.1], 2 * LN2 - 0.75 * LN3),  # weights 3/4 and 1/4
    ([0, 0, 1], [0.1, 0.2, 0.3], LN2),  # the cluster's 0.1 + 0.2 equals the other's 0.3
    ([0, 1, 2], [0.5, 0.25, 0.25], 1.5 * LN2),
    ([0, 1, 0], [0.2, 0.4, 0.6], LN3 - 2 / 3 * LN2),  # 2/3 and 1/3
    ([0, 1, 2, 3], [0.7] * 4, 2 * LN2),
    ([0] * 5 + [1] * 5, [0.1] * 5 + [0.9] * 5, LN10 - 0.9 * math.log(9)),
    ([0, 1, 2], [0.6, 0.3, 0.1], LN10 - 0.6 * math.log(6) - 0.3 * LN3),
    ([0, 1, 1, 2], [0.05, 0.05, 0.05, 0.05], 1.5 * LN2),
    ([0, 1], [1e-300, 1e-300], LN2),
]  # fmt: skip


@pytest.mark.parametrize(("ids", "likelihoods", "expected"), WEIGHTED)
def test_semantic_entropy_by_hand(ids: list[int], likelihoods: list, expected: float) -> None:
    means = [math.log(value) for value in likelihoods]
    assert semantic_entropy(ids, means) == pytest.approx(expected, abs=1e-12)


def test_semantic_entropy_beyond_the_range_of_exp() -> None:
    assert semantic_entropy([0, 1], [-5000.0, -5000.0]) == pytest.approx(LN2)
    assert semantic_entropy([0, 1], [-math.inf, -2.0]) == 0.0
    assert math.isnan(semantic_entropy([0, 1], [-math.inf, -math.inf]))
    with pytest.raises(ValueError, match="2 cluster ids but 1"):
        semantic_entropy([0, 1], [-1.0])


answers_and_ids = st.lists(
    st.tuples(st.integers(0, 4), st.floats(-8, 0, allow_nan=False)), min_size=1, max_size=12
)


@given(answers_and_ids, st.randoms(use_true_random=False))
def test_entropies_keep_their_bounds_and_ignore_order(drawn: list, rng: random.Random) -> None:
    ids, means = map(list, zip(*drawn, strict=True))
    mixed = rng.sample(drawn, len(drawn))
    other_ids, other_means = map(list, zip(*mixed, strict=True))
    discrete, weighted = cluster_assignment_entropy(ids), semantic_entropy(ids, means)
    assert cluster_assignment_entropy(other_ids) == pytest.approx(discrete, abs=1e-9)
    assert semantic_entropy(other_ids, other_means) == pytest.approx(weighted, abs=1e-9)
    for value in (discrete, weighted):
        assert -1e-12 <= value <= math.log(len(set(ids))) + 1e-9 <= math.log(len(ids)) + 2e-9


@given(answers_and_ids)
def test_merging_two_clusters_never_raises_an_entropy(drawn: list) -> None:
    ids, means = map(list, zip(*drawn, strict=True))
    merged = [min(cluster, 3) for cluster in ids]  # clusters 3 and 4 become one
    assert cluster_assignment_entropy(merged) <= cluster_assignment_entropy(ids) + 1e-9
    assert semantic_entropy(merged, means) <= semantic_entropy(ids, means) + 1e-9
    if {3, 4} <= set(ids):
        assert cluster_assignment_entropy(merged) < cluster_assignment_entropy(ids)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.floats(-5, 0))
def test_equal_likelihoods_give_the_discrete_entropy(ids: list[int], mean: float) -> None:
    weighted = semantic_entropy(ids, [mean] * len(ids))
    assert weighted == pytest.approx(cluster_assignment_entropy(ids), abs=1e-9)


def test_likelihood_entropies_by_hand() -> None:
    # two answers: three tokens of probability 1/2, one token of probability 1/4
    tokens = [[-LN2] * 3, [-2 * LN2]]
    assert predictive_entropy([-3 * LN2, -2 * LN2]) == pytest.approx(2.5 * LN2)
    assert length_normalised_entropy([-LN2, -2 * LN2]) == pytest.approx(1.5 * LN2)
    measures = sample_measures(["a b c", "d"], tokens, [0, 1])
    assert measures["predictive_entropy"] == pytest.approx(2.5 * LN2)
    assert measures["regular_entropy"] == pytest.approx(1.5 * LN2)
    # weights 1/2 : 1/4 = 2/3 : 1/3
    assert measures["semantic_entropy"] == pytest.approx(LN3 - 2 / 3 * LN2)
    assert measures["cluster_assignment_entropy"] == pytest.approx(LN2)
    assert measures["n_semantic_sets"] == 2 and measures["lexical_similarity"] == 0


def test_what_is_not_computable_is_nan() -> None:
    for value in (
        cluster_assignment_entropy([]), semantic_entropy([], []), n_semantic_sets([]),
        predictive_entropy([]), length_normalised_entropy([]), lexical_similarity(["alone"]),
    ):  # fmt: skip
        assert math.isnan(value)
    unclustered = sample_measures(["a", "a"], [[-1.0], [-3.0]], None)
    assert unclustered["predictive_entropy"] == 2.0 and unclustered["lexical_similarity"] == 1.0
    for name in ("cluster_assignment_entropy", "semantic_entropy", "n_semantic_sets"):
        assert math.isnan(unclustered[name])
    tokenless = sample_measures(["a", ""], [[-1.0], []], [0, 1])
    assert math.isnan(tokenless["semantic_entropy"]) and math.isnan(tokenless["regular_entropy"])
    assert tokenless["cluster_assignment_entropy"] == pytest.approx(LN2)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat", "the dog sat", 4 / 6),
        ("police killed the gunman", "police kill the gunman", 6 / 8),
        ("police killed the gunman", "the gunman kill police", 4 / 8),
        ("a b c d", "d c b a", 2 / 8),
        ("a b", "c d", 0.0),
        ("Paris", "paris, France!", 2 / 3),  # case and punctuation do not count
        ("", "a", 0.0),
        ("", "", 1.0),
        ("a a a", "a", 2 / 4),
    ],
)
def test_rouge_l_of_a_pair_by_hand(first: str, second: str, expected: float) -> None:
    assert lexical_similarity([first, second]) == pytest.approx(expected)
    assert lexical_similarity([second, first]) == pytest.approx(expected)


def test_lexical_similarity_is_the_mean_over_pairs() -> None:
    # pairs: (the cat sat, the dog sat) 4/6, (the cat sat, a dog) 0, (the dog sat, a dog) 2/5
    expected = (4 / 6 + 0 + 2 / 5) / 3
    assert lexical_similarity(["the cat sat", "the dog sat", "a dog"]) == pytest.approx(expected)


def test_common_subsequence_equals_the_textbook_table() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.choice("abcd") for _ in range(rng.randrange(90))] for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, j in product(range(len(a)), range(len(b))):
            step = table[i][j] + 1 if a[i] == b[j] else max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = step
        total = len(a) + len(b)
        assert rouge_l(a, b) == pytest.approx(2 * table[-1][-1] / total if total else 1.0)
