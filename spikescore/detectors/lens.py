"""What the layers say of an answer, read through the output head: training-free, turn by turn.

measure_answers.py computes both; the formulae with all their choices are in spikescore/lens.py.
"""

from __future__ import annotations

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector, TurnDetector


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

    name = "reasoning_score"
    title = "Reasoning score"


class Sharpness(LensDetector):
    """Entropy over the prompt's positions of what a late layer gives the answer's tokens there.

    Mean over tokens v of the entropy of p_i(v) / sum_j p_j(v), p_i at position i. Range 0 to log of
    the prompt's length (nats), so that later turns are higher by themselves. Direction: higher =
    the context is less sharp = more hallucinated. Source: Chen et al. (2024), "In-Context Sharpness
    as Alerts", arXiv 2403.01548.
    """

    name = "sharpness"
    title = "In-Context Sharpness"


DETECTORS: tuple[type[Detector], ...] = (ReasoningScore, Sharpness)
