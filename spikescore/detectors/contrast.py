"""What the first answer's tokens say when they are read twice: training-free, and controls.

l_t is the log-probability of the answer's token t after the prompt, p_t after a prompt that asks
"?" in place of the question; measure_answers.py --groups contrast reads both.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.measures import formulas


class ContrastDetector(Detector):
    """A number made of arrays that were measured of the first answer, one value per token."""

    family = "training-free"
    needs = frozenset({"contrast"})
    arrays: ClassVar[tuple[str, ...]]
    """What measure_answers.py calls them."""

    def score(self, items: Answers) -> np.ndarray:
        known = zip(*(items.measured_arrays(name) for name in self.arrays), strict=True)
        return np.array([self._score(arrays) for arrays in known], dtype=np.float64)

    def _score(self, arrays: tuple[np.ndarray | None, ...]) -> float:
        if any(array is None or not array.size for array in arrays):
            return np.nan
        return float(self.of_tokens(*(array.astype(np.float64) for array in arrays)))

    @staticmethod
    @abstractmethod
    def of_tokens(*arrays: np.ndarray) -> float:
        """Return the score of one answer, whose arrays hold at least one token each."""


class SurprisinglyLikely(ContrastDetector):
    """-sum over the answer's tokens of (l_t - p_t): minus log P(answer | question) / P(answer | ?).

    An answer that the question makes no likelier is taken as hallucinated, hence the sign. Source:
    Goel (2023), "On the Truthfulness of 'Surprisingly Likely' Responses of Large Language Models",
    arXiv 2311.07692, where the ratio ranks several answers to one question; here it is held against
    that of answers to other questions, so that longer answers are lower by themselves. System
    prompt and chat template stand in both prompts; the passage, earlier turns and options go with
    the question.
    """

    name, title = "surprisingly_likely", "Surprisingly likely"
    arrays = ("answer_logprobs", "prior_logprobs")

    @staticmethod
    def of_tokens(answer: np.ndarray, prior: np.ndarray) -> float:
        return -float((answer - prior).sum())


class DolaDivergence(ContrastDetector):
    """Mean over the answer's tokens of the largest JSD(q_N, q_j) over the candidate layers j.

    q_N is the final layer's distribution at the position that predicts the token, q_j that of an
    even layer of the upper half through the final norm. Range 0 to log 2. Direction, set here
    beforehand: higher = the last layers still change what is said = more hallucinated, as for the
    reasoning score. Source: Chuang et al. (2024), "DoLa", arXiv 2309.03883, which uses the
    divergence to choose the layer to contrast and scores no answers by it; there the bucket of
    candidates is chosen by validation, and their states get no final norm.
    """

    name, title = "dola_divergence", "DoLa divergence"
    arrays = ("dola_divergence",)
    of_tokens = staticmethod(np.mean)


class DolaContrast(ContrastDetector):
    """-mean over the answer's tokens x of log q_N(x) - log q_M(x), M the layer of the largest JSD.

    DoLa's F of the tokens that were said: one that the last layers made likelier counts as known,
    hence the sign. Source: Chuang et al. (2024), "DoLa", arXiv 2309.03883, with candidates as in
    `DolaDivergence`. There F is made a distribution by a softmax over the tokens of at least a
    tenth of the largest probability, and all others get none; here both are left out: an answer
    that was drawn holds such tokens, and one would decide its score.
    """

    name, title = "dola_contrast", "DoLa contrast"
    arrays = ("dola_contrast",)

    @staticmethod
    def of_tokens(contrast: np.ndarray) -> float:
        return -float(contrast.mean())


class ReferenceContrast(ContrastDetector):
    """log P(wrong | question) - log P(reference | question), of the sums over their tokens.

    A control: it is told the reference and an answer that the data set says to be wrong, and not
    what the model answered. Higher = the model would rather say the wrong one. NaN where the set
    has no wrong answer. Source: the data card of synthweb-multiscale-inference, whose
    `incorrect_plausible_answer` is made for it; answers of one length are meant, as they are there.
    Of several references or wrong answers the first is read.
    """

    name, title = "reference_contrast", "Reference against wrong answer (oracle)"
    family = "control"
    remedy = (
        "run scripts/measure_answers.py --groups contrast on items whose data set has wrong answers"
    )
    arrays = ("true_logprobs", "wrong_logprobs")

    @staticmethod
    def of_tokens(true: np.ndarray, wrong: np.ndarray) -> float:
        return float(wrong.sum() - true.sum())


class RecordedDetector(Detector):
    """Reads the answers that a data set recorded of another model, and their scores by a judge."""

    needs = frozenset({"texts"})
    remedy = "the data set has no recorded answers (`bb_answer_rollout_answers`, as synthweb has)"
    column: ClassVar[str]

    def score(self, items: Answers) -> np.ndarray:
        found = [(record.get("meta") or {}).get(self.column) for record in items.records]
        return np.array(
            [self.of_recorded(one) if isinstance(one, list) and one else np.nan for one in found],
            dtype=np.float64,
        )

    @staticmethod
    @abstractmethod
    def of_recorded(values: list) -> float:
        """Return the score of one item's recorded values."""


class RecordedSimilarity(RecordedDetector):
    """Lexical similarity, negated, of the answers that another model gave to the same question.

    Minus the mean over pairs of ROUGE-L F1, as `LexicalSimilarity` has it for the model's own
    samples. Range -1 to 0; a question on which they disagree is taken for one that is answered
    wrongly. Source: Fomicheva et al. (2020), over the five blind rollouts of the data card of
    synthweb-multiscale-inference. NaN where the set has none.
    """

    name, title = "recorded_similarity", "Lexical similarity of recorded answers"
    family = "training-free"
    column = "bb_answer_rollout_answers"

    @staticmethod
    def of_recorded(values: list) -> float:
        return -formulas.lexical_similarity([str(value) for value in values])


class RecordedScore(RecordedDetector):
    """Minus the mean of the judge's scores, 0 to 1, of another model's recorded answers.

    A control: the judge saw the reference, and not what the model here answered, so it tells how
    hard the question is. Range -1 to 0. Source: the data card of synthweb-multiscale-inference.
    """

    name, title = "recorded_score", "Judge's scores of recorded answers (oracle)"
    family = "control"
    column = "bb_answer_rollout_scores"

    @staticmethod
    def of_recorded(values: list) -> float:
        return -float(np.mean([np.nan if value is None else value for value in values]))
