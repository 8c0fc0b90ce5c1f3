"""Uncertainty of N sampled answers to one question, one function per measure.

Notation: answer i has the token log-probabilities l_i1 ... l_iT, their sum ll_i and their mean
mll_i = ll_i / T; its cluster id says which answers mean the same. Logarithms are natural, so
entropies are in nats. A measure of no answers at all is NaN: not computable, which is not 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

_WORD = re.compile(r"\w+")


def cluster_assignment_entropy(ids: Sequence[int]) -> float:
    """Discrete semantic entropy: -sum over clusters c of (n_c / N) log(n_c / N).

    Range 0 (one meaning) to log N (every answer its own); higher = more uncertain. Needs no
    likelihoods. Source: Farquhar, Kossen, Kuhn and Gal (2024), Nature 630, "discrete semantic
    entropy"; the target of semantic entropy probes (Kossen et al., 2024).
    """
    n = len(ids)
    return _entropy([count / n for count in Counter(ids).values()]) if n else math.nan


def semantic_entropy(ids: Sequence[int], mean_logliks: Sequence[float]) -> float:
    """Semantic entropy (Rao): -sum over c of w_c log w_c, w_c = sum_{i in c} exp(mll_i) / sum_i.

    Range 0 to log of the number of clusters; higher = more uncertain. Likelihoods are
    length-normalised, and the clusters' weights sum to one over the answers drawn. Source: Farquhar
    et al. (2024), the "Rao-Blackwellised" estimate. It is not the Monte Carlo estimate of Kuhn et
    al. (2023), which has another scale. NaN where no answer has a positive likelihood.
    """
    if len(ids) != len(mean_logliks):
        raise ValueError(f"{len(ids)} cluster ids but {len(mean_logliks)} log-likelihoods")
    highest = max(mean_logliks, default=-math.inf)
    if not math.isfinite(highest):
        return math.nan
    weights: Counter[int] = Counter()
    for cluster, mean_loglik in zip(ids, mean_logliks, strict=True):
        weights[cluster] += math.exp(mean_loglik - highest)  # the largest term is 1: no underflow
    total = sum(weights.values())
    return _entropy([weight / total for weight in weights.values()])


def predictive_entropy(logliks: Sequence[float]) -> float:
    """Predictive entropy, Monte Carlo: -(1/N) sum_i ll_i, with whole-answer log-likelihoods.

    Range 0 to infinity; higher = more uncertain, and longer answers are higher by themselves.
    Source: Kadavath et al. (2022), Malinin and Gales (2021).
    """
    return -sum(logliks) / len(logliks) if logliks else math.nan


def length_normalised_entropy(mean_logliks: Sequence[float]) -> float:
    """Length-normalised entropy (LN-entropy): -(1/N) sum_i mll_i, with per-token means.

    Range 0 to infinity; higher = more uncertain. Source: Malinin and Gales (2021). Stored as
    `regular_entropy`, the name the semantic-uncertainty scripts gave it.
    """
    return -sum(mean_logliks) / len(mean_logliks) if mean_logliks else math.nan


def n_semantic_sets(ids: Sequence[int]) -> float:
    """Number of semantic sets: how many clusters the N answers fall into.

    Range 1 to N; higher = more uncertain. Source: Lin, Trivedi and Sun (2024), with clusters by
    bidirectional entailment as in Kuhn et al. (2023).
    """
    return float(len(set(ids))) if len(ids) else math.nan


def lexical_similarity(answers: Sequence[str]) -> float:
    """Lexical similarity: mean over the pairs i < j of ROUGE-L F1(answer_i, answer_j).

    Range 0 to 1; higher = more alike, that is LESS uncertain, as with P(True). NaN for fewer than
    two answers. Source: Fomicheva et al. (2020); ROUGE-L: Lin (2004). Words are compared lower-case
    and unstemmed.
    """
    words = [_WORD.findall(answer.lower()) for answer in answers]
    scores = [rouge_l(first, second) for first, second in combinations(words, 2)]
    return sum(scores) / len(scores) if scores else math.nan


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L F1 of two word sequences: 2 LCS / (len + len), 0 to 1; two empty ones are equal."""
    total = len(first) + len(second)
    return 2 * _common_subsequence(first, second) / total if total else 1.0


def sample_measures(
    answers: Sequence[str],
    token_log_likelihoods: Sequence[Sequence[float]],
    ids: Sequence[int] | None,
) -> dict[str, float]:
    """All measures of one question's sampled answers, by the names of `uncertainty_measures.pkl`.

    `ids` None: clustering failed, and what needs clusters is NaN. An answer of no tokens has no
    mean log-likelihood; the measures that need one are then NaN.
    """
    logliks = [sum(tokens) for tokens in token_log_likelihoods]
    means = [
        total / len(tokens) if len(tokens) else math.nan
        for total, tokens in zip(logliks, token_log_likelihoods, strict=True)
    ]
    known = not any(map(math.isnan, means))
    return {
        "cluster_assignment_entropy": cluster_assignment_entropy(ids or ()),
        "semantic_entropy": semantic_entropy(ids, means) if ids and known else math.nan,
        "n_semantic_sets": n_semantic_sets(ids or ()),
        "regular_entropy": length_normalised_entropy(means),
        "predictive_entropy": predictive_entropy(logliks) if known else math.nan,
        "lexical_similarity": lexical_similarity(answers),
    }


def _entropy(probabilities: Sequence[float]) -> float:
    # adding 0.0 turns the -0.0 of a certain outcome into 0.0
    return -sum(p * math.log(p) for p in probabilities if p > 0) + 0.0


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the usual table held in one integer.

    Bit i of `row` is 0 where the table's row steps up at word i of `first` (Hyyro, 2004): a row
    costs a few operations on integers instead of one per word.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(first)) - 1
    row = whole
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & whole
    return len(first) - row.bit_count()
