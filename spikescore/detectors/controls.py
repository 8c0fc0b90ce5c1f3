"""Scores that know nothing of truth: what a detector must beat before its AUROC means anything.

The direction of a length is fixed: longer = more hallucinated.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.detectors.lesson import LayerReader, first_answers, some_at_a_time
from spikescore.detectors.networks import fit_saplma
from spikescore.errors import UserError
from spikescore.probes.fit import normaliser
from spikescore.probes.probe import Probe
from spikescore.runtime import derived_seed

TOKENS = "n_response_tokens"


class DomainIdentity(Detector):
    """The share of hallucinated answers among the scored items of the item's domain.

    An ORACLE: it looks at the labels of the very items it scores, and at nothing but their domain
    besides. It is a control, not a method: in a pool of domains, what it reaches can be had from
    telling domains apart, without telling one answer from another; within a domain it is constant.
    """

    name, title = "domain_identity", "Domain identity (oracle)"
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
        lengths = zip(items.per_turn(TOKENS), items.n_turns, strict=True)
        return np.array([self.of_turns(own[:n]) for own, n in lengths])

    @staticmethod
    @abstractmethod
    def of_turns(lengths: np.ndarray) -> float:
        """Return the score of a dialogue whose answers have these lengths [K]; NaN is passed on."""


class AnswerLength(LengthControl):
    """Tokens of the first answer."""

    name, title = "answer_length", "Answer length"
    of_turns = staticmethod(lambda lengths: lengths[0])


class DialogueLength(LengthControl):
    """Tokens of all answers of the dialogue together."""

    name, title = "dialogue_length", "Dialogue length"
    whole_dialogue = True
    of_turns = staticmethod(np.sum)


class DialogueLengthStd(LengthControl):
    """Standard deviation of the lengths of a dialogue's answers (divided by K), in tokens.

    0 for a single answer. The natural confound of a score that looks at changes between turns.
    """

    name, title = "dialogue_length_std", "Std of turn lengths"
    whole_dialogue = True
    of_turns = staticmethod(np.std)


MAX_TERMS = 50_000
"""Most frequent words and pairs of words that are kept: bounds memory on long dialogues."""


class TextControl(Detector):
    """sigmoid(w . x + b) of the TF-IDF vector x of a text of the item.

    Words and pairs of words of the training texts, lower-case, weighted tf * (ln((1 + n) / (1 +
    df)) + 1) and scaled to length 1; words not seen in training count for nothing. Logistic
    regression with C = 1. Higher = more hallucinated. Nothing is left to choose on the validation
    split.
    """

    family = "control"
    needs = frozenset({"texts"})

    @staticmethod
    @abstractmethod
    def text_of(record: dict[str, Any]) -> str:
        """Return the text that the control may read."""

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        if len(set(train.y.tolist())) < 2:
            raise UserError("the train split needs both classes; use more questions")
        self._model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), max_features=MAX_TERMS),
            LogisticRegression(C=1.0, max_iter=1000),
        )
        try:
            self._model.fit([self.text_of(record) for record in train.records], train.y)
        except ValueError as error:  # no text has a word in it
            raise UserError(f"no words to learn from in the training texts ({error})") from error
        self.chosen["n_terms"] = len(self._model[0].vocabulary_)

    def score(self, items: Answers) -> np.ndarray:
        parts = (part for _, part in some_at_a_time(items))
        texts = (map(self.text_of, part.records) for part in parts)
        return np.concatenate([self._model.predict_proba(some)[:, 1] for some in texts])


class TfidfAnswer(TextControl):
    """TF-IDF and logistic regression (`TextControl`) on the question and the first answer."""

    name, title = "tfidf_answer", "TF-IDF, question + answer"

    @staticmethod
    def text_of(record: dict[str, Any]) -> str:
        return f"{record.get('question') or ''}\n{record['cot_steps'][0].get('response') or ''}"


class TfidfDialogue(TextControl):
    """TF-IDF and logistic regression (`TextControl`) on the answers of all turns, no prompts."""

    name, title = "tfidf_dialogue", "TF-IDF, dialogue"
    whole_dialogue = True

    @staticmethod
    def text_of(record: dict[str, Any]) -> str:
        return "\n".join(step.get("response") or "" for step in record["cot_steps"])


class LabelShuffle(LayerReader):
    """SAPLMA trained, and its layer and epoch chosen, with the labels dealt out at random.

    Labels are permuted within the train and within the validation split, anew for each seed. The
    AUROC must be 0.5 but for chance; a pipeline that gives more looks at what it should not see.
    """

    name, title = "label_shuffle", "SAPLMA, shuffled labels"
    family = "control"
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        rng = np.random.default_rng(derived_seed(seed, "label_shuffle"))
        y_train, y_val = rng.permutation(train.y), rng.permutation(val.y)
        self.keep(fit_saplma(first_answers(train, val, (y_train, y_val)), seed))


class RandomProjection(LayerReader):
    """sigmoid(w . z) of the standardised state z at the middle layer, w random.

    w ~ N(0, I / H) from the seed, so that w . z has a variance of about 1 on the train split, whose
    mean and deviation standardise. No label is used and nothing is chosen: the layer is L // 2. It
    has no direction, so its AUROC is on either side of 0.5 by chance; over a dialogue it asks
    whether any reading of the hidden states spikes where a trained one does.
    """

    name, title = "random_projection", "Random projection"
    family = "control"
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        rows = train.first_rows()
        self._layer = max(1, (len(rows[0]) - 1) // 2)
        states = np.stack([row[self._layer] for row in rows])
        mean, scale = normaliser(states)
        rng = np.random.default_rng(derived_seed(seed, "random_projection"))
        weight = rng.standard_normal(states.shape[1]) / np.sqrt(states.shape[1])
        linear = ("linear", weight[None].astype(np.float32), np.zeros(1, np.float32))
        self._network = Probe("saplma", [linear, ("sigmoid",)], mean=mean, scale=scale)
        self.chosen["layer"] = self._layer
