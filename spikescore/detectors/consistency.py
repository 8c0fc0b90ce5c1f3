"""What sampled answers, later turns, or the model asked about its answer, say: training-free.

Samples are N further answers to the same first prompt; measure_answers.py draws them, clusters
those that mean the same and asks the questions. Notation: sample i has log-likelihood ll_i over T_i
tokens, and mll_i = ll_i / T_i.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from typing import Any, ClassVar

import numpy as np

from spikescore.data.question import question_from_record
from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.dialogues.prompts import FORKED
from spikescore.labels.changes import stated, states_same
from spikescore.measures import formulas

EIGENSCORE_ALPHA = 1e-3


class SampleDetector(Detector):
    """A measure of the sampled answers."""

    family = "training-free"
    needs = frozenset({"samples"})

    section: ClassVar[str] = "samples"
    """Which set of answers it measures."""

    def score(self, items: Answers) -> np.ndarray:
        return items.measured_samples(self.of_samples, self.section)

    @staticmethod
    @abstractmethod
    def of_samples(samples: dict[str, Any]) -> float:
        """Return the measure of one item's samples; NaN where it is not computable."""


class RewordedDetector(SampleDetector):
    """A measure of the first answer, which comes first, and those to the question reworded."""

    needs = frozenset({"rewordings"})
    section = "rewordings"


class MeasuredDetector(Detector):
    """A number measured of the first answer under the detector's own name, or its negative."""

    family = "training-free"
    sign: ClassVar[int] = 1

    def score(self, items: Answers) -> np.ndarray:
        return self.sign * items.measured(self.name)


def mean_logliks(samples: dict[str, Any]) -> list[float]:
    """Return mll_i of each sample; NaN for a sample without tokens."""
    pairs = zip(samples["logliks"], samples["n_tokens"], strict=True)
    return [float(total) / int(length) if length else math.nan for total, length in pairs]


# --- likelihood and meaning of samples --------------------------------------------------------


class LengthNormalisedEntropy(SampleDetector):
    """-(1/N) sum_i mll_i, with the probabilities of the sampled tokens.

    Range 0 to infinity; higher = more hallucinated. NaN where a sample is empty. Source: Malinin
    and Gales (2021). The code of INSIDE takes the largest probability of each step instead of the
    sampled token's, another quantity.
    """

    name, title = "ln_entropy", "Length-normalised entropy"

    @staticmethod
    def of_samples(samples: dict[str, Any]) -> float:
        return formulas.length_normalised_entropy(mean_logliks(samples))


class LexicalSimilarity(SampleDetector):
    """Minus the mean over pairs of samples of ROUGE-L F1 (lower-case words, unstemmed).

    Range -1 to 0; samples that agree mean less hallucinated, hence the sign. Source: Fomicheva et
    al. (2020); Lin, Trivedi and Sun (2024).
    """

    name, title = "lexical_similarity", "Lexical similarity"

    @staticmethod
    def of_samples(samples: dict[str, Any]) -> float:
        return -formulas.lexical_similarity(samples["texts"])


class SemanticEntropyDiscrete(SampleDetector):
    """-sum over clusters c of (n_c / N) log(n_c / N), clusters of samples that mean the same.

    Range 0 to log N; higher = more hallucinated. NaN where the samples are not clustered. Source:
    Farquhar et al. (2024), "discrete semantic entropy". A sample stays in the first cluster that it
    fits; in the original code a later cluster takes it over.
    """

    name, title = "semantic_entropy_discrete", "Semantic entropy (discrete)"

    @staticmethod
    def of_samples(samples: dict[str, Any]) -> float:
        return formulas.cluster_assignment_entropy(_clusters(samples))


class SemanticEntropyRao(SampleDetector):
    """-sum over clusters c of w_c log w_c, w_c = sum_{i in c} exp(mll_i) / sum_i exp(mll_i).

    Range 0 to the log of the number of clusters; higher = more hallucinated. NaN where the samples
    are not clustered or one is empty. Source: Farquhar et al. (2024), the Rao-Blackwellised form.
    """

    name, title = "semantic_entropy_rao", "Semantic entropy (Rao)"

    @staticmethod
    def of_samples(samples: dict[str, Any]) -> float:
        means = mean_logliks(samples)
        clusters = _clusters(samples)
        if not clusters or any(map(math.isnan, means)):
            return math.nan
        return formulas.semantic_entropy(clusters, means)


def _clusters(samples: dict[str, Any]) -> list[int]:
    """Cluster ids as ints; empty where the samples were not clustered."""
    found = samples.get("clusters")
    return [] if found is None else [int(cluster) for cluster in found]


# --- states of samples ------------------------------------------------------------------------


class EigenScore(SampleDetector):
    """(1/N) log det(Z J Z^T + alpha I): how widely the samples' states spread.

    Z [N, H] holds the middle-layer state of each sample's last content token; J = I - 11^T / H
    takes each state's own mean over the H features away; alpha = 1e-3; natural log. Higher = more
    hallucinated; log alpha where all states are constant. NaN for fewer than two samples. Source:
    Chen et al. (2024), "INSIDE", ICLR, without its clipping of extreme features.

    The authors' code divides the matrix by H - 1 and takes log10, so that alpha weighs more there
    and rankings can differ; others centre and do not divide. This is the paper's formula.
    """

    name, title = "eigenscore", "EigenScore"

    @staticmethod
    def of_samples(samples: dict[str, Any]) -> float:
        if samples.get("states") is None:
            return math.nan
        states = np.asarray(samples["states"], dtype=np.float64)
        return eigen_score(states) if len(states) > 1 else math.nan


def eigen_score(states: np.ndarray) -> float:
    """Return INSIDE's EigenScore of states [N, H]; see `EigenScore`. NaN if one is not finite."""
    if not np.isfinite(states).all():
        return math.nan
    centred = states - states.mean(axis=1, keepdims=True)
    covariance = centred @ centred.T
    # alpha bounds the eigenvalues from below; rounding may take those of a singular matrix under it
    eigenvalues = np.maximum(np.linalg.eigvalsh(covariance), 0) + EIGENSCORE_ALPHA
    return float(np.log(eigenvalues).mean())


# --- the model, or a judge of entailment, asked about the answer ------------------------------


class SelfCheckNli(MeasuredDetector):
    """Mean over sentences and samples of P(the sample contradicts the answer's sentence).

    P is a softmax over entailment and contradiction of a local entailment model. Range 0 to 1;
    higher = more hallucinated. Source: Manakul et al. (2023), SelfCheckGPT with NLI. The sample is
    the premise and the sentence the hypothesis; their code gives the pair the other way round.
    """

    name, title = "selfcheck_nli", "SelfCheck-NLI"
    needs = frozenset({"samples"})
    remedy = "run measure_answers.py --entailment deberta, or the path of an NLI model"


class SelfCheckPrompt(MeasuredDetector):
    """Mean over samples of P("No") when the model is asked: is the answer supported by this one?

    P is of the next token, of "Yes" and "No" together. Range 0 to 1; higher = more hallucinated.
    Source: Manakul et al. (2023), SelfCheckGPT with prompt, which counts written replies as 0, 1
    or, unclear, 0.5, sentence by sentence.
    """

    name, title = "selfcheck_prompt", "SelfCheck-Prompt"
    needs = frozenset({"samples", "questions"})


class PTrue(MeasuredDetector):
    """-P(True): minus the probability the model gives to its answer being true when asked.

    Range -1 to 0; more probably true means less hallucinated, hence the sign. Source: Kadavath et
    al. (2022), section 4. It sees the samples as other ideas, without the answer it is asked about;
    other code lists that among them.
    """

    name, title = "p_true", "P(True)"
    needs = frozenset({"questions"})
    sign = -1


class InternalConfidence(MeasuredDetector):
    """Minus the confidence of the model's layers that they can answer the question, before they do.

    The P(Yes) of a question about the question, a mean over its last tokens and all layers with
    weights that fall from the last ones (`measures.capability`). Range -1 to 0; higher = less
    confident = more hallucinated. It knows the question alone: all answers to it score the same.
    Source: Chen et al. (2025), "Query-Level Uncertainty in Large Language Models", arXiv
    2506.09669, there asked in other words.
    """

    name, title = "internal_confidence", "Internal confidence"
    needs = frozenset({"capability"})
    sign = -1


class VerbalisedConfidence(MeasuredDetector):
    """Minus the confidence, from 0 to 1, that the model states when asked for it.

    Range -1 to 0; more confident means less hallucinated, hence the sign. NaN where its reply holds
    no such number. Source: Tian et al. (2023), "Just Ask for Calibration"; Lin et al. (2022).
    """

    name, title = "verbalised_confidence", "Verbalised confidence"
    needs = frozenset({"questions"})
    sign = -1


class PTrueChoices(MeasuredDetector):
    """Minus the probability of the first answer's letter when the model chooses among candidates.

    The candidates, in random order, are the answer and up to four samples that mean something else,
    and last "None of the above"; the probability is of the letters shown. Range -1 to 0; more
    probably chosen means less hallucinated, hence the sign. Source: Kadavath et al. (2022),
    "Language Models (Mostly) Know What They Know", whose P(True) with samples and whose multiple
    choice with "none of the above" are two questions; here they are one.
    """

    name, title = "p_true_choices", "P(True) among candidates"
    needs = frozenset({"choices"})
    sign = -1


class PNone(MeasuredDetector):
    """The probability of "None of the above" when the model chooses among candidates.

    As for `PTrueChoices`, of the last letter. Range 0 to 1; higher = the model takes none of its
    answers for right = more hallucinated. Source: Kadavath et al. (2022).
    """

    name, title = "p_none", "None of the above"
    needs = frozenset({"choices"})


class VerbalisedTopK(MeasuredDetector):
    """Minus the probability the model states for its guesses that mean the same as its answer.

    It names four guesses and how probable each is, from 0 to 100, in one greedy reply; those in the
    answer's cluster are added up, at most 1; 0 where none is. Range -1 to 0; more confident means
    less hallucinated, hence the sign. NaN where the reply names no guess with a number. Source:
    Tian et al. (2023), "Just Ask for Calibration", "Verb. 1S top-k", in other words and with an
    example; there the likeliest guess is the answer, here the answer was given before.
    """

    name, title = "verbalised_top_k", "Verbalised confidence, top-k"
    needs = frozenset({"choices"})
    sign = -1


class VerbalisedTwoStage(MeasuredDetector):
    """As `VerbalisedTopK`, but the guesses are named first and rated when the model is asked again.

    Source: Tian et al. (2023), "Just Ask for Calibration", "Verb. 2S top-k", in other words and
    with an example.
    """

    name, title = "verbalised_two_stage", "Verbalised confidence, two stages"
    needs = frozenset({"choices"})
    sign = -1


# --- question or answer in other words --------------------------------------------------------


class SemanticConsistency(RewordedDetector):
    """Minus the share of ordered pairs i != j of answers that mean the same.

    The n answers are the first one and greedy ones to the question as the model itself rewords it:
    -(1 / (n (n - 1))) sum over i != j of [same cluster]. Range -1 to 0; answers that hold under
    rewording mean less hallucinated, hence the sign. NaN without a rewording, or where the answers
    are not clustered. Source: Raj et al. (2022), "Measuring Reliability of Large Language Models
    through Semantic Consistency", arXiv 2211.05853, with agreement by entailment both ways; there
    the questions are paraphrased beforehand, here the model that answers does it.
    """

    name, title = "semantic_consistency", "Semantic consistency"

    @staticmethod
    def of_samples(samples: dict[str, Any]) -> float:
        clusters = _clusters(samples)
        n = len(clusters)
        if n < 2:
            return math.nan
        return -sum(count * (count - 1) for count in Counter(clusters).values()) / (n * (n - 1))


class RewordingAgreement(RewordedDetector):
    """Minus the share of answers to the reworded question that mean the same as the first answer.

    Range -1 to 0; agreement means less hallucinated, hence the sign. NaN as for
    `SemanticConsistency`. Source: Amirizaniani et al. (2024), "LLMAuditor", arXiv 2402.09346, which
    puts several versions of a question to a model and looks for answers that differ; there another
    model words them and people check them, here the model does it itself and nobody checks.
    """

    name, title = "rewording_agreement", "Agreement under rewording"

    @staticmethod
    def of_samples(samples: dict[str, Any]) -> float:
        clusters = _clusters(samples)
        if len(clusters) < 2:
            return math.nan
        return -sum(one == clusters[0] for one in clusters[1:]) / (len(clusters) - 1)


class CounterfactualDrop(RewordedDetector):
    """-(mll_0 - mean over versions i of mll_i): how little a mistake costs in likelihood, negated.

    mll_0 is the mean log-probability of the first answer's tokens after its prompt, mll_i that of a
    version into which the model itself has put a small mistake. Higher = the wrong version is about
    as likely = more hallucinated. NaN where no version differs from the answer. After: Feng (2025),
    "Counterfactual Probing for Hallucination Detection and Mitigation", arXiv 2508.01862, whose
    formula of sensitivity was not to be had: the drop in log-probability and its direction are this
    project's.
    """

    name, title = "counterfactual_drop", "Counterfactual probing"
    section = "counterfactuals"

    @staticmethod
    def of_samples(samples: dict[str, Any]) -> float:
        first, *versions = mean_logliks(samples)
        return -(first - sum(versions) / len(versions)) if versions else math.nan


# --- what later turns state -------------------------------------------------------------------


class MarkovFlip(Detector):
    """flips / (readable - 1): how often the stated answer changes from a turn to the next.

    What each turn states is read by the rule of the labels for the item's kind of answer, with the
    turn before in the gold answer's place (`labels.changes`); no gold answer and no state is seen.
    Turns that state nothing readable are skipped. It is the maximum-likelihood estimate of the
    chance to leave the present answer, in a Markov chain in which that chance is the same at every
    turn. Range 0 to 1; a model that sticks to its answer is taken to know it, so higher = more
    hallucinated. NaN with fewer than two readable turns. Where follow-ups were forked there is no
    turn before: each is held against the first readable one. A baseline of this project.
    """

    name, title = "markov_flip", "Markov flip rate"
    family = "training-free"
    needs = frozenset({"texts"})
    whole_dialogue = True

    def score(self, items: Answers) -> np.ndarray:
        return np.array([flip_rate(record) for record in items.records], dtype=np.float64)


def flip_rate(record: dict[str, Any]) -> float:
    """Return the share of a dialogue's readable answers, but for the first, that state another than
    the one before (forked: than the first); NaN with fewer than two.
    """
    question = question_from_record(record)
    read = [stated(question, step.get("response") or "") for step in record["cot_steps"]]
    said = [one for one in read if one is not None]
    forked = (record.get("config") or {}).get("schedule") == FORKED
    before = said[:1] * (len(said) - 1) if forked else said[:-1]
    flips = [not states_same(question, *pair) for pair in zip(before, said[1:], strict=True)]
    return float(np.mean(flips)) if flips else math.nan
