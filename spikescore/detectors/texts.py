"""Controls that read only the words: what they reach, no hidden state is needed for."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.errors import UserError

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
        texts = [self.text_of(record) for record in items.records]
        return self._model.predict_proba(texts)[:, 1]


class TfidfAnswer(TextControl):
    """TF-IDF and logistic regression (`TextControl`) on the question and the first answer."""

    name = "tfidf_answer"
    title = "TF-IDF, question + answer"

    @staticmethod
    def text_of(record: dict[str, Any]) -> str:
        return f"{record.get('question') or ''}\n{record['cot_steps'][0].get('response') or ''}"


class TfidfDialogue(TextControl):
    """TF-IDF and logistic regression (`TextControl`) on the answers of all turns, no prompts."""

    name = "tfidf_dialogue"
    title = "TF-IDF, dialogue"

    @staticmethod
    def text_of(record: dict[str, Any]) -> str:
        return "\n".join(step.get("response") or "" for step in record["cot_steps"])


DETECTORS: tuple[type[Detector], ...] = (TfidfAnswer, TfidfDialogue)
