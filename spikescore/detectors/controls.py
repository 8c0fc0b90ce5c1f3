"""Scores that know nothing of truth: what a detector must beat before its AUROC means anything.

The direction of a length is fixed: longer = more hallucinated.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector

TOKENS = "n_response_tokens"


class DomainIdentity(Detector):
    """The share of hallucinated answers among the scored items of the item's domain.

    An ORACLE: it looks at the labels of the very items it scores, and at nothing but their domain
    besides. It is a control, not a method: in a pool of domains, what it reaches can be had from
    telling domains apart, without telling one answer from another; within a domain it is constant.
    """

    name = "domain_identity"
    title = "Domain identity (oracle)"
    family = "control"
    needs = frozenset()

    def score(self, items: Answers) -> np.ndarray:
        _, place = np.unique(items.domains, return_inverse=True)
        return (np.bincount(place, weights=items.y) / np.bincount(place))[place]


class LengthControl(Detector):
    """A length in tokens: of an answer, of the dialogue, or how much it varies over turns."""

    family = "control"
    needs = frozenset({"texts"})

    def score(self, items: Answers) -> np.ndarray:
        whole = items.per_turn(TOKENS)
        return np.array(
            [
                self.of_turns(lengths[: len(record["cot_steps"])])
                for lengths, record in zip(whole, items.records, strict=True)
            ]
        )

    @staticmethod
    @abstractmethod
    def of_turns(lengths: np.ndarray) -> float:
        """Return the score of a dialogue whose answers have these lengths [K]; NaN is passed on."""


class AnswerLength(LengthControl):
    """Tokens of the first answer."""

    name = "answer_length"
    title = "Answer length"

    @staticmethod
    def of_turns(lengths: np.ndarray) -> float:
        return float(lengths[0])


class DialogueLength(LengthControl):
    """Tokens of all answers of the dialogue together."""

    name = "dialogue_length"
    title = "Dialogue length"

    @staticmethod
    def of_turns(lengths: np.ndarray) -> float:
        return float(lengths.sum())


class DialogueLengthStd(LengthControl):
    """Standard deviation of the lengths of a dialogue's answers (divided by K), in tokens.

    0 for a single answer. The natural confound of a score that looks at changes between turns.
    """

    name = "dialogue_length_std"
    title = "Std of turn lengths"

    @staticmethod
    def of_turns(lengths: np.ndarray) -> float:
        return float(lengths.std())


DETECTORS: tuple[type[Detector], ...] = (
    DomainIdentity,
    AnswerLength,
    DialogueLength,
    DialogueLengthStd,
)
