"""Detectors that learn nothing, and controls: values worked out by hand, and every direction."""

import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score

from spikescore.detectors import REGISTRY
from spikescore.detectors.answers import Answers, read_answers
from spikescore.detectors.base import FAMILIES, NEEDS, TurnDetector
from spikescore.detectors.consistency import eigen_score
from spikescore.detectors.scoring import learns
from spikescore.measures.file import texts_digest
from tests.helpers.factories import MODEL, make_pairs, make_record
from tests.helpers.running import ROOT


def answers(records, measures=None, y=None, domains=None):
    """Answers of records made by hand; the measures are as if read from their files."""
    n = len(records)
    items = Answers(
        paths=tuple(Path(f"{place}.json") for place in range(n)),
        records=tuple(records),
        y=np.array(y if y is not None else [0] * n),
        domains=np.array(domains or ["toy"] * n),
        groups=np.array([str(place) for place in range(n)]),
        model=MODEL,
        token_key="last_token_embedding",
        left_out={},
    )
    items.__dict__["measures"] = list(measures or [{}] * n)
    return items


def record(*turns):
    """A dialogue whose steps hold what is given, and nothing else that a score could be."""
    made = make_record("one", y=None, turns=len(turns), domain="toy", model=MODEL)
    common = ("turn", "prompt", "response")
    steps = [{key: step[key] for key in common} for step in made["cot_steps"]]
    made["cot_steps"] = [{**step, **turn} for step, turn in zip(steps, turns, strict=True)]
    return made


def sampled(**samples):
    return answers([record({})], [{"samples": samples}])


def score_one(name, items):
    (value,) = REGISTRY[name]().score(items)
    return value


# --- tokens, lens -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, sign",
    [
        ("perplexity", 1),
        ("mean_token_entropy", 1),
        ("max_token_entropy", 1),
        ("first_token_confidence", -1),
    ],
)
def test_token_detectors_read_every_turn_and_leave_gaps(name, sign):
    items = answers([record({name: 0.25}, {name: None}, {name: 0.75}), record({name: 0.5})])
    expected = sign * np.array([[0.25, np.nan, 0.75], [0.5, np.nan, np.nan]])
    detector = REGISTRY[name]()
    assert np.array_equal(detector.score_turns(items), expected, equal_nan=True)
    assert np.array_equal(detector.score(items), expected[:, 0])


@pytest.mark.parametrize("name", ["reasoning_score", "sharpness", "sharpness_raw"])
def test_lens_detectors_read_measured_turns(name):
    measures = [{"turns": {name: np.float32([0.5, 0.25])}}, {}, {"turns": {}}]
    items = answers([record({}, {}), record({}, {}), record({})], measures)
    found = REGISTRY[name]().score_turns(items)
    assert np.array_equal(found, [[0.5, 0.25], [np.nan] * 2, [np.nan] * 2], equal_nan=True)
    assert np.array_equal(REGISTRY[name]().score(items), found[:, 0], equal_nan=True)


# --- samples ----------------------------------------------------------------------------------


def test_ln_entropy_is_the_mean_of_minus_log_probability_per_token():
    items = sampled(logliks=np.array([-2.0, -6.0]), n_tokens=[2, 3])
    assert score_one("ln_entropy", items) == pytest.approx((2 / 2 + 6 / 3) / 2)
    assert math.isnan(score_one("ln_entropy", sampled(logliks=[-2.0, 0.0], n_tokens=[2, 0])))


def test_lexical_similarity_is_negated_and_needs_two_samples():
    # common subsequences: "red ball" of 3 + 3 words, none, none
    items = sampled(texts=["a red ball", "Red, ball now", "green"])
    assert score_one("lexical_similarity", items) == pytest.approx(-(2 * 2 / 6) / 3)
    assert score_one("lexical_similarity", sampled(texts=["same", "same"])) == -1
    assert math.isnan(score_one("lexical_similarity", sampled(texts=["alone"])))


def test_semantic_entropies_equal_scipy_on_the_clusters_weights():
    clusters, logliks, n_tokens = [0, 0, 1, 2], np.array([-1.0, -4.0, -3.0, -0.5]), [1, 2, 3, 1]
    items = sampled(clusters=clusters, logliks=logliks, n_tokens=n_tokens)
    assert score_one("semantic_entropy_discrete", items) == pytest.approx(1.5 * math.log(2))
    p = np.exp(logliks / n_tokens)
    weights = [p[0] + p[1], p[2], p[3]]
    assert score_one("semantic_entropy_rao", items) == pytest.approx(entropy(weights))


@pytest.mark.parametrize("name", ["semantic_entropy_discrete", "semantic_entropy_rao"])
def test_semantic_entropy_without_clusters_is_missing(name):
    unclustered = sampled(clusters=None, logliks=[-1.0, -2.0], n_tokens=[1, 1])
    assert math.isnan(score_one(name, unclustered))
    assert math.isnan(score_one(name, answers([record({})])))


def test_an_empty_sample_has_no_likelihood():
    items = sampled(clusters=[0, 1], logliks=[-1.0, 0.0], n_tokens=[1, 0])
    assert math.isnan(score_one("semantic_entropy_rao", items))
    assert score_one("semantic_entropy_discrete", items) == pytest.approx(math.log(2))


def test_eigenscore_of_two_orthogonal_states_in_closed_form():
    states = np.float16([[3, -3, 0, 0], [0, 0, 0.5, -0.5]])  # each of mean 0: gram diag(18, 0.5)
    expected = (math.log(18 + 1e-3) + math.log(0.5 + 1e-3)) / 2
    assert score_one("eigenscore", sampled(states=states)) == pytest.approx(expected)
    # the mean over a state's own features is taken away, so a constant added to a state is nothing
    assert score_one("eigenscore", sampled(states=states + np.float16([[7], [-2]]))) == (
        pytest.approx(expected)
    )


def test_eigenscore_of_equal_states_has_one_eigenvalue_beside_alpha():
    states = np.float16([[1, -1, 2, -2]] * 5)  # squared length 10, so the gram's eigenvalue is 50
    expected = (math.log(50 + 1e-3) + 4 * math.log(1e-3)) / 5
    assert score_one("eigenscore", sampled(states=states)) == pytest.approx(expected)
    constant = np.full((3, 4), 2, dtype=np.float16)
    assert score_one("eigenscore", sampled(states=constant)) == pytest.approx(math.log(1e-3))


def test_eigenscore_equals_the_log_determinant():
    states = np.random.default_rng(0).normal(size=(6, 40))
    n, width = states.shape
    centring = np.eye(width) - np.ones((width, width)) / width
    sign, logdet = np.linalg.slogdet(states @ centring @ states.T + 1e-3 * np.eye(n))
    assert sign == 1
    assert eigen_score(states) == pytest.approx(logdet / n, abs=1e-12)


def test_eigenscore_needs_two_finite_states():
    assert math.isnan(score_one("eigenscore", sampled(states=np.zeros((1, 4), np.float16))))
    assert math.isnan(score_one("eigenscore", sampled(texts=["no", "states"])))
    assert math.isnan(eigen_score(np.array([[1.0, np.inf], [0.0, 1.0]])))


@pytest.mark.parametrize(
    "name, sign",
    [
        ("selfcheck_nli", 1),
        ("selfcheck_prompt", 1),
        ("p_true", -1),
        ("internal_confidence", -1),
        ("verbalised_confidence", -1),
        ("p_true_choices", -1),
        ("p_none", 1),
        ("verbalised_top_k", -1),
        ("verbalised_two_stage", -1),
    ],
)
def test_measured_detectors_pass_the_number_on_with_its_sign(name, sign):
    measures = [{"first": {name: 0.25}}, {"first": {name: math.nan}}, {"first": {}}]
    found = REGISTRY[name]().score(answers([record({})] * 3, measures))
    assert np.array_equal(found, [sign * 0.25, np.nan, np.nan], equal_nan=True)


# --- other words ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clusters, consistency, agreement",
    [
        ([0, 0, 1, 0, 1], -(3 * 2 + 2 * 1) / 20, -2 / 4),
        ([0, 1, 1, 1], -(3 * 2) / 12, 0.0),
        ([0, 0], -1.0, -1.0),
        ([0], math.nan, math.nan),
        (None, math.nan, math.nan),
    ],
)
def test_answers_to_the_reworded_question_are_counted_in_pairs(clusters, consistency, agreement):
    items = answers([record({})], [{"rewordings": {"clusters": clusters}}])
    assert score_one("semantic_consistency", items) == pytest.approx(consistency, nan_ok=True)
    assert score_one("rewording_agreement", items) == pytest.approx(agreement, nan_ok=True)


def test_counterfactual_probing_is_minus_the_drop_per_token():
    kept = {"texts": ["a", "b", "c"], "logliks": np.array([-4.0, -9.0, -10.0])}
    items = answers([record({})], [{"counterfactuals": kept | {"n_tokens": [4, 3, 2]}}])
    assert score_one("counterfactual_drop", items) == pytest.approx(-(-1.0 - (-3.0 - 5.0) / 2))
    alone = {"texts": ["a"], "logliks": np.array([-4.0]), "n_tokens": [4]}
    items = answers([record({})], [{"counterfactuals": alone}])
    assert math.isnan(score_one("counterfactual_drop", items))


# --- the answer read twice --------------------------------------------------------------------

TWICE = {
    "answer_logprobs": [-1.0, -0.5],
    "prior_logprobs": [-4.0, -1.0],
    "dola_divergence": [0.1, 0.4],
    "dola_contrast": [3.0, -1.0],
    "true_logprobs": [-1.0, -2.0, -3.0],
    "wrong_logprobs": [-4.0],
}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("surprisingly_likely", -(3.0 + 0.5)),
        ("dola_divergence", 0.25),
        ("dola_contrast", -1.0),
        ("reference_contrast", -4.0 + 6.0),
    ],
)
def test_contrast_detectors_on_numbers_worked_out_by_hand(name, expected):
    arrays = {key: np.float32(values) for key, values in TWICE.items()}
    empty = {key: np.float32([]) for key in TWICE}
    items = answers([record({})] * 3, [{"first": arrays}, {"first": empty}, {}])
    found = REGISTRY[name]().score(items)
    assert found == pytest.approx([expected, np.nan, np.nan], nan_ok=True)


def with_recorded(answers_recorded, scores):
    made = record({})
    made["meta"] = {
        "bb_answer_rollout_answers": answers_recorded, "bb_answer_rollout_scores": scores,
    }  # fmt: skip
    return made


def test_recorded_answers_of_another_model_are_read_as_samples():
    items = answers(
        [
            with_recorded(["a red ball", "Red, ball now", "green"], [0.5, 1.0, 0.0]),
            with_recorded(None, None),
            with_recorded(["alone"], [0.25]),
            record({}),
        ]
    )
    similarity = REGISTRY["recorded_similarity"]().score(items)
    assert similarity == pytest.approx([-(2 * 2 / 6) / 3, *[np.nan] * 3], nan_ok=True)
    scores = REGISTRY["recorded_score"]().score(items)
    assert scores == pytest.approx([-0.5, np.nan, -0.25, np.nan], nan_ok=True)


# --- controls ---------------------------------------------------------------------------------


def test_domain_identity_is_the_share_of_hallucinated_answers_of_the_domain():
    items = answers([record({})] * 5, y=[1, 0, 1, 0, 0], domains=["b", "b", "b", "a", "a"])
    assert REGISTRY["domain_identity"]().score(items) == pytest.approx([2 / 3] * 3 + [0, 0])


def test_lengths_count_tokens():
    lengths = [4, 10, 1]
    items = answers([record(*({"n_response_tokens": n} for n in lengths))])
    assert score_one("answer_length", items) == 4
    assert score_one("dialogue_length", items) == 15
    assert score_one("dialogue_length_std", items) == pytest.approx(math.sqrt(42 / 3))


def test_lengths_of_a_short_dialogue_ignore_longer_ones():
    long = record(*[{"n_response_tokens": 9}] * 4)
    items = answers([record({"n_response_tokens": 3}), long])
    assert REGISTRY["dialogue_length"]().score(items).tolist() == [3, 36]
    assert REGISTRY["dialogue_length_std"]().score(items).tolist() == [0, 0]


def test_an_unknown_length_is_missing():
    items = answers([record({"n_response_tokens": 3}, {})])
    assert score_one("answer_length", items) == 3
    assert math.isnan(score_one("dialogue_length", items))
    assert math.isnan(score_one("dialogue_length_std", items))


# --- what later turns state -------------------------------------------------------------------


def asked(kind, *responses, choices=None, **config):
    made = record(*({"response": text} for text in responses))
    return made | {"answer_type": kind, "choices": choices, "config": config, "question": "Which?"}


@pytest.mark.parametrize(
    ("kind", "responses", "flips"),
    [
        ("exact", ("Paris.", "The answer is Paris.", "Rome.", "It is Rome.", "Paris"), 2 / 4),
        ("exact", ("Paris", "", "Paris"), 0.0),  # a turn that says nothing is skipped
        ("exact", ("Paris", "I don't know.", "Sorry, I do not know.", "Paris"), 2 / 3),
        ("exact", ("Yes.", "Yes, it is.", "No."), 1 / 2),
        ("numeric", ("12 apples", "The answer is twelve.", "6 x 2 = 12", "So it is 13."), 1 / 3),
        ("math", (r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{2}", "2"), 1 / 3),
        ("choice", ("A", "The answer is (A).", "Berlin", "B. Rome", "Good."), 1 / 3),
        ("squad", ("in the old town hall", "the old town hall", "at sea"), 1 / 2),
        ("list", ("red; blue", "red, blue", "green"), 1 / 2),
        ("free", ("the moon pulls on the sea", "the moon pulls the sea", "wind"), 1 / 2),
    ],
)
def test_markov_flip_counts_changes_of_the_stated_answer(kind, responses, flips):
    choices = ["Berlin", "Rome", "Oslo"] if kind == "choice" else None
    found = score_one("markov_flip", answers([asked(kind, *responses, choices=choices)]))
    assert found == pytest.approx(flips)


def test_markov_flip_sees_no_gold_answer():
    responses = "Paris", "Rome", "Rome"
    one, other = (asked("exact", *responses) | {"gold_answers": [gold]} for gold in responses[:2])
    assert REGISTRY["markov_flip"]().score(answers([one, other])).tolist() == [0.5, 0.5]


def test_markov_flip_holds_forked_answers_against_the_first():
    responses = "Paris", "Rome", "Rome", "Paris"
    one, other = (asked("exact", *responses, schedule=how) for how in ("sequential", "forked"))
    found = REGISTRY["markov_flip"]().score(answers([one, other]))
    assert found.tolist() == pytest.approx([2 / 3, 2 / 3])
    longer = asked("exact", *responses, "Rome", "Rome", schedule="forked")
    assert score_one("markov_flip", answers([longer])) == pytest.approx(4 / 5)


def test_markov_flip_needs_two_answers_that_can_be_read():
    assert math.isnan(score_one("markov_flip", answers([asked("exact", "Paris", "")])))


# --- directions -------------------------------------------------------------------------------


def steps_with(**step):
    return [step, step], {}


def first(name, value):
    return [{}, {}], {"first": {name: value}}


def samples(**values):
    return [{}, {}], {"samples": values}


def lens(name, value):
    return [{}, {}], {"turns": {name: np.float32([value, value])}}


def recorded(doubt):
    texts = ["x " * 20, "x " * round(20 - 19 * doubt) + "y " * round(19 * doubt)]
    scores = [1 - doubt, 1 - doubt]
    meta = {"bb_answer_rollout_answers": texts, "bb_answer_rollout_scores": scores}
    return [{}, {}], {"meta": meta}


def worded(doubt):
    n_away = round(19 * doubt)
    return [{}, {}], {"rewordings": {"clusters": [0] * (20 - n_away) + list(range(1, n_away + 1))}}


def twice(**values):
    return [{}, {}], {"first": {name: np.float32([value] * 3) for name, value in values.items()}}


def spread(doubt):
    """Four states, further apart the greater the doubt."""
    return np.float16(np.eye(4, 8) * (1 + doubt) - np.eye(4, 8, k=4) * (1 + doubt))


# Each entry gives the turns and measures of an item that deserves this much doubt, from 0 to 1.
PLANTS = {
    "perplexity": lambda d: steps_with(perplexity=1 + d),
    "mean_token_entropy": lambda d: steps_with(mean_token_entropy=d),
    "max_token_entropy": lambda d: steps_with(max_token_entropy=d),
    "first_token_confidence": lambda d: steps_with(first_token_confidence=1 - d),
    "reasoning_score": lambda d: lens("reasoning_score", d),
    "sharpness": lambda d: lens("sharpness", d),
    "sharpness_raw": lambda d: lens("sharpness_raw", d),
    "surprisingly_likely": lambda d: twice(answer_logprobs=-2, prior_logprobs=-3 - (1 - d)),
    "dola_divergence": lambda d: twice(dola_divergence=d),
    "dola_contrast": lambda d: twice(dola_contrast=1 - d),
    "recorded_similarity": lambda d: recorded(d),
    "recorded_score": lambda d: recorded(d),
    "reference_contrast": lambda d: twice(true_logprobs=-d, wrong_logprobs=-0.5),
    "ln_entropy": lambda d: samples(logliks=[-10 * d, -10 * d], n_tokens=[5, 5]),
    "lexical_similarity": lambda d: samples(
        texts=["x " * 20, "x " * round(20 - 19 * d) + "y " * round(19 * d)]
    ),
    "semantic_entropy_discrete": lambda d: samples(
        clusters=[min(place, round(9 * d)) for place in range(10)]
    ),
    "semantic_entropy_rao": lambda d: samples(
        clusters=[0, 1], logliks=[0.0, -5 * (1 - d)], n_tokens=[1, 1]
    ),
    "eigenscore": lambda d: samples(states=spread(d)),
    "selfcheck_nli": lambda d: first("selfcheck_nli", d),
    "p_true_choices": lambda d: first("p_true_choices", 1 - d),
    "p_none": lambda d: first("p_none", d),
    "verbalised_top_k": lambda d: first("verbalised_top_k", 1 - d),
    "verbalised_two_stage": lambda d: first("verbalised_two_stage", 1 - d),
    "semantic_consistency": lambda d: worded(d),
    "rewording_agreement": lambda d: worded(d),
    "counterfactual_drop": lambda d: (
        [{}, {}],
        {"counterfactuals": {"logliks": [-1.0, -2.0 - (1 - d)], "n_tokens": [1, 1]}},
    ),
    "selfcheck_prompt": lambda d: first("selfcheck_prompt", d),
    "p_true": lambda d: first("p_true", 1 - d),
    "verbalised_confidence": lambda d: first("verbalised_confidence", 1 - d),
    "internal_confidence": lambda d: first("internal_confidence", 1 - d),
    "answer_length": lambda d: steps_with(n_response_tokens=10 + round(90 * d)),
    "dialogue_length": lambda d: steps_with(n_response_tokens=10 + round(90 * d)),
    "dialogue_length_std": lambda d: (
        [{"n_response_tokens": 100}, {"n_response_tokens": 100 - round(90 * d)}],
        {},
    ),
    "markov_flip": lambda d: (
        [{"response": "Paris." if place % 2 and place <= 40 * d else "Rome."}
         for place in range(41)], {},
    ),
}  # fmt: skip
FREE = [name for name, detector in REGISTRY.items() if not learns(detector)]


def test_every_detector_that_learns_nothing_has_its_direction_tested():
    # an oracle has no mirror image, and NCI reads a checkpoint (test_state_rivals.py)
    assert set(FREE) - {"domain_identity", "nci"} == set(PLANTS)


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_signal_gives_auroc_1_and_its_mirror_image_0(name):
    y = np.arange(40) % 2
    noise = np.random.default_rng(0).uniform(0, 0.3, size=40)
    for doubt, expected in ((0.7 * y + noise, 1.0), (0.7 * (1 - y) + noise, 0.0)):
        turns, measures = zip(*map(PLANTS[name], doubt), strict=True)
        records = [record(*own) for own in turns]
        for made, measured in zip(records, measures, strict=True):
            made["meta"] = measured.pop("meta", {})
        scores = REGISTRY[name]().score(answers(records, measures, y=y))
        assert scores.shape == y.shape and scores.dtype == np.float64
        assert roc_auc_score(y, scores) == expected


def test_the_registry_holds_every_detector_under_its_own_name():
    assert len({detector.title for detector in REGISTRY.values()}) == len(REGISTRY)
    for name, detector in REGISTRY.items():
        assert detector.name == name
        assert detector.family in FAMILIES and detector.needs <= NEEDS
        assert detector.__doc__
    assert issubclass(REGISTRY["perplexity"], TurnDetector)
    methods = [name for name, one in REGISTRY.items() if one.family != "control"]
    told = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"with {len(methods) + 1} methods" in told  # and SpikeScore, which is over one of them


# --- measures on disk -------------------------------------------------------------------------


def measure(folder, content):
    """Write the measures of the second of two pairs; what a file of measures must have is added."""
    record = make_pairs(folder, n=2, turns=3)[1]
    if isinstance(content, dict):
        content = {"format": 1, "settings": {}, "texts": texts_digest(record), **content}
    (folder / "toy-0001.measures.pkl").write_bytes(pickle.dumps(content))
    return read_answers(folder, token_key="last_token_embedding")


def test_measures_are_read_from_beside_the_pair(tmp_path):
    turns = {"sharpness": np.float32([1, 2, 3])}
    items = measure(tmp_path, {"turns": turns, "first": {"p_true": 0.5}})
    assert np.array_equal(REGISTRY["p_true"]().score(items), [np.nan, -0.5], equal_nan=True)
    assert REGISTRY["sharpness"]().score_turns(items)[1].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"texts": "0" * 12}, "measured of another dialogue"),
        ({"format": 2}, "is of format 2"),
        ([1], "holds no measures"),
    ],
)
def test_measures_of_something_else_are_named_and_not_read(tmp_path, caplog, content, message):
    items = measure(tmp_path, content)
    scores = REGISTRY["sharpness"]().score(items)
    assert np.isnan(scores).all() and scores.shape == (2,)
    assert len(items.unread) == 1 and re.search(f"toy-0001.*{message}", items.unread[0])
    assert items.unread[0] in caplog.text
