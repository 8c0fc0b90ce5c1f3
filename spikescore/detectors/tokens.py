"""What the probabilities of the answer's own tokens say: training-free, from the JSON alone.

All are of the model's raw logits, before temperature, top-k and top-p. A turn with an empty answer
has none of them (NaN).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import TurnDetector


class TokenDetector(TurnDetector):
    """A number that stage 1 keeps of every turn under the detector's name, or its negative."""

    family = "training-free"
    needs = frozenset({"logprobs"})
    sign: ClassVar[int] = 1

    def score_turns(self, items: Answers) -> np.ndarray:
        return self.sign * items.per_turn(self.name)


class Perplexity(TokenDetector):
    """exp(-(1/T) sum_t l_t) over the answer's T tokens with log-probabilities l_t.

    The token that ends the answer is not among them; other code counts it in. Range 1 to infinity;
    higher = more hallucinated. Exponentiated: some implementations leave the exponential out, which
    is monotone, so that the ranking of answers and the AUROC are the same; differences from turn to
    turn (SpikeScore over perplexity) are not. Source: e.g. Ren et al. (2023), "Out-of-Distribution
    Detection and Selective Generation".
    """

    name, title = "perplexity", "Perplexity"


class MeanTokenEntropy(TokenDetector):
    """Mean over the answer's tokens of the entropy of the next-token distribution, in nats.

    Range 0 to log V; higher = more hallucinated. Source: Malinin and Gales (2021); as a baseline
    Fomicheva et al. (2020), "Unsupervised Quality Estimation".
    """

    name, title = "mean_token_entropy", "Mean token entropy"


class MaxTokenEntropy(TokenDetector):
    """The largest of the answer's next-token entropies, in nats: its one most doubtful place.

    Range 0 to log V; higher = more hallucinated. Source: Manakul et al. (2023), SelfCheckGPT's
    grey-box baseline Max(H).
    """

    name, title = "max_token_entropy", "Max token entropy"


class FirstTokenConfidence(TokenDetector):
    """-max_v p(v): the probability of the likeliest first token of the answer, negated.

    Range -1 to 0; a confident start means less hallucinated, hence the sign. Source: maximum
    softmax probability, Hendrycks and Gimpel (2017), at the first token.
    """

    name, title = "first_token_confidence", "First-token confidence"
    sign = -1


class LensDetector(TurnDetector):
    """A per-turn measure of the same name as the detector."""

    family = "training-free"
    needs = frozenset({"lens"})

    def score_turns(self, items: Answers) -> np.ndarray:
        return items.measured_turns(self.name)


class ReasoningScore(LensDetector):
    """Mean over the answer's tokens and the late layers of JSD(final distribution, the layer's).

    Range 0 to log 2 (nats). Direction: higher = more hallucinated, as the late layers still change
    what is said; it is set here beforehand, since the source combines the score with others and
    fits how. Source: Sun et al. (2025), arXiv 2505.12886.
    """

    name, title = "reasoning_score", "Reasoning score"


class Sharpness(LensDetector):
    """Entropy over the prompt's positions of what a late layer gives the answer's tokens there.

    Mean over tokens v of the entropy of p_i(v) / sum_j p_j(v), p_i at position i, read through the
    model's final norm. Range 0 to log of the prompt's length (nats), so that later turns are higher
    by themselves. Direction: higher = the context is less sharp = more hallucinated. Source: Chen
    et al. (2024), "In-Context Sharpness as Alerts", arXiv 2403.01548.
    """

    name, title = "sharpness", "In-Context Sharpness"


class SharpnessRaw(LensDetector):
    """In-Context Sharpness (`Sharpness`) of the late layer's states without the final norm."""

    name, title = "sharpness_raw", "In-Context Sharpness, no final norm"
