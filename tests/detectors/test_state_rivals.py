"""Detectors that need stored states and the checkpoint alone, against values worked out by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import entropy
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from spikescore.detectors.answers import Answers, read_answers
from spikescore.detectors.depth import (
    TEMPERATURES,
    Fepoid,
    LayerDivergence,
    divergence_maps,
    first_effective_peak,
    intrinsic_dimension,
)
from spikescore.detectors.geometry import (
    CANDIDATES,
    Fdbd,
    Harp,
    Nci,
    boundary_distances,
    proximity,
    quiet_basis,
)
from spikescore.detectors.scoring import Settings, score_methods
from spikescore.errors import UserError
from spikescore.model.loading import model_identity
from spikescore.model.output_matrix import OutputMatrix, output_matrix
from spikescore.pairs import TOKEN_KEYS, write_pair
from tests.helpers.factories import make_pairs, make_record
from tests.helpers.running import ROOT

LAST, BEFORE, PROMPT = TOKEN_KEYS
VOCABULARY, WIDTH, LAYERS = 40, 20, 3
RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((VOCABULARY, WIDTH)) * np.linspace(2, 0.05, WIDTH)
BIAS = RNG.standard_normal(VOCABULARY)


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


def checkpoint(folder: Path, **tensors: np.ndarray) -> str:
    """A folder that holds these tensors, dots for two underscores, and no more."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {key.replace("__", "."): torch.tensor(one).float() for key, one in tensors.items()}
    save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return str(folder)


def matrix(bias: bool = True) -> OutputMatrix:
    return OutputMatrix(torch.tensor(WEIGHT).float(), torch.tensor(BIAS) if bias else None)


# --- the output matrix ----------------------------------------------------------------------------


def test_highest_logits_are_those_of_a_plain_product(monkeypatch):
    monkeypatch.setattr("spikescore.model.output_matrix.NUMBERS", 7 * WIDTH)  # parts of 7 rows
    states = np.random.default_rng(0).standard_normal((9, WIDTH))
    values, tokens = matrix().highest(torch.tensor(states).float(), 5)
    logits = states @ WEIGHT.T + BIAS
    order = np.argsort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(tokens.numpy(), order)
    np.testing.assert_allclose(values.numpy(), np.take_along_axis(logits, order, 1), atol=1e-4)


def test_quiet_directions_are_the_last_of_a_singular_value_decomposition():
    _, _, vectors = np.linalg.svd(WEIGHT)
    basis = quiet_basis(matrix())
    assert basis.shape == (WIDTH, 1)  # 5% of 20
    np.testing.assert_allclose(np.abs(vectors[-1:] @ basis), np.eye(1), atol=1e-4)


def test_the_neutral_state_is_where_logits_vary_least():
    centred, target = WEIGHT - WEIGHT.mean(axis=0), BIAS.mean() - BIAS
    expected = np.linalg.lstsq(centred, target, rcond=None)[0]
    np.testing.assert_allclose(matrix().neutral.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert not matrix(bias=False).neutral.any()


def test_output_matrix_gives_the_models_own_logits():
    from transformers import AutoModelForCausalLM

    path = str(ROOT / "models" / "tiny")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        out = model(torch.arange(5, 25)[None], output_hidden_states=True)
    values, tokens = output_matrix(path).highest(out.hidden_states[-1][0], 3)
    expected = out.logits[0].topk(3, dim=1)
    torch.testing.assert_close(values, expected.values, rtol=1e-4, atol=1e-3)
    assert torch.equal(tokens, expected.indices)


def test_a_head_of_its_own_comes_before_the_embeddings(tmp_path):
    tied = checkpoint(tmp_path / "tied", model__embed_tokens__weight=WEIGHT)
    own = checkpoint(
        tmp_path / "own",
        model__embed_tokens__weight=np.zeros((3, 2)),
        lm_head__weight=WEIGHT,
        lm_head__bias=BIAS,
    )
    for path, bias in ((tied, np.zeros(VOCABULARY)), (own, BIAS)):
        found = output_matrix(path)
        np.testing.assert_allclose(found.weight.numpy(), WEIGHT, rtol=1e-6)
        np.testing.assert_allclose(found.bias.numpy(), bias, rtol=1e-6)


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path):
    path = checkpoint(tmp_path / "m", model__embed_tokens__weight=WEIGHT)
    identity = model_identity(path)
    assert output_matrix(path, identity).shape == (VOCABULARY, WIDTH)
    with pytest.raises(UserError, match="another model now.*weights"):
        output_matrix(path, {**identity, "weights": "f" * 64})
    with pytest.raises(UserError, match="no output matrix"):
        output_matrix(checkpoint(tmp_path / "n", model__norm__weight=np.ones(4)))
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors file"):
        output_matrix(path)
    for name in (str(tmp_path / "nowhere"), "Qwen/Qwen3-8B (layers 6-7)"):
        with pytest.raises(UserError, match=re.escape(name)):
            output_matrix(name)


# --- NCI and fDBD ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory) -> tuple[Answers, list[list[dict[str, np.ndarray]]]]:
    """40 dialogues of one to three turns, every fifth first answer of one token, and their last
    states by turn and token."""
    top = tmp_path_factory.mktemp("rivals")
    model = checkpoint(top / "model", lm_head__weight=WEIGHT, lm_head__bias=BIAS)
    rng = np.random.default_rng(1)
    kept = []
    for place in range(40):
        turns = 1 + place % 3
        record = make_record(f"i{place:02d}", y=place % 2, turns=turns, domain="d", model=model)
        states = {}
        for turn in range(1, turns + 1):
            own = {
                key: rng.standard_normal((LAYERS + 1, WIDTH)).astype(np.float16)
                for key in TOKEN_KEYS
            }
            if place % 5 == 0 and turn == 1:
                own[BEFORE] = own[LAST]
            states[turn] = own
        write_pair(top / "d", record, states, model=model)
        kept.append([{key: one[-1].astype(float) for key, one in own.items()}
                     for own in states.values()])  # fmt: skip
    return read_answers(top / "d", token_key=LAST), kept


def by_hand(turn: dict[str, np.ndarray], value) -> np.ndarray:
    single = np.array_equal(turn[LAST], turn[BEFORE])
    return np.mean([value(turn[key]) for key in ([PROMPT] if single else [PROMPT, BEFORE])], axis=0)


NEUTRAL = np.linalg.lstsq(WEIGHT - WEIGHT.mean(axis=0), BIAS.mean() - BIAS, rcond=None)[0]


def nci_by_hand(z: np.ndarray) -> float:
    w = WEIGHT[np.argmax(WEIGHT @ z + BIAS)]
    cosine = w @ (z - NEUTRAL) / np.linalg.norm(w) / np.linalg.norm(z - NEUTRAL)
    return -cosine * np.linalg.norm(w)


def fdbd_by_hand(z: np.ndarray) -> list[float]:
    logits = WEIGHT @ z + BIAS
    said, *others = np.argsort(-logits)
    apart = [
        abs(logits[said] - logits[c]) / np.linalg.norm(WEIGHT[said] - WEIGHT[c]) for c in others
    ]
    return [-np.mean(apart[:k]) / np.linalg.norm(z - NEUTRAL) for k in CANDIDATES]


@pytest.mark.parametrize("at_once", [3, 512])
def test_nci_is_the_formula_at_the_stored_predictions(dialogues, monkeypatch, at_once):
    monkeypatch.setattr("spikescore.detectors.geometry.TURNS_AT_ONCE", at_once)
    items, kept = dialogues
    expected = np.full((40, 3), np.nan)
    for place, turns in enumerate(kept):
        expected[place, : len(turns)] = [by_hand(turn, nci_by_hand) for turn in turns]
    np.testing.assert_allclose(Nci().score_turns(items), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Nci().score(items), expected[:, 0], rtol=1e-4, atol=1e-5)


def test_doubt_is_a_state_that_points_at_no_token_and_lies_between_two():
    head = matrix(bias=False)
    sure, other = WEIGHT[3], WEIGHT[8]
    states = torch.tensor(np.stack([sure * 3, (sure + other) * 2])).float()
    near, far = proximity(head, states)[:, 0], boundary_distances(head, states)
    assert near[0] > near[1] and (far[0] > far[1]).all() and 0 <= far.min() <= far.max() <= 1


def test_fdbd_takes_the_number_of_rivals_that_validation_likes(dialogues):
    items, kept = dialogues
    expected = np.array([by_hand(turns[0], fdbd_by_hand) for turns in kept])
    train, val = items.select(np.arange(20)), items.select(np.arange(20, 40))
    made = Fdbd()
    made.fit(train, val, seed=0)
    areas = [roc_auc_score(val.y, scores) for scores in expected[20:].T]
    assert made.chosen["val_auroc_by_k"] == pytest.approx(areas)
    place = int(np.argmax(areas))
    assert made.chosen["k"] == CANDIDATES[place]
    np.testing.assert_allclose(made.score(items), expected[:, place], rtol=1e-4, atol=1e-6)
    turns = np.array([by_hand(turns[-1], fdbd_by_hand)[place] for turns in kept])
    found = made.score_turns(items)
    np.testing.assert_allclose(
        [row[np.isfinite(row)][-1] for row in found], turns, rtol=1e-4, atol=1e-6
    )


def test_without_the_checkpoint_they_are_left_out_and_the_others_go_on(tmp_path):
    make_pairs(tmp_path / "a", n=40, turns=3, domain="a")
    items = read_answers(tmp_path / "a", token_key=LAST)
    methods = ["nci", "fdbd", "harp", "mass_mean"]
    (book,) = score_methods(items, Settings(methods=methods, turn_scorers=[], probe_seeds=1))
    assert set(book.methods) == {"mass_mean"}
    reasons = dict(tuple(pair) for pair in book.about["left_out"])
    assert set(reasons) == {"nci", "fdbd on a", "harp on a"}
    assert all("./models/synthetic" in why for why in reasons.values())


# --- HARP -----------------------------------------------------------------------------------------


def of_states(states: np.ndarray, y: np.ndarray, model: str = "m") -> Answers:
    """Answers in memory with these first states [n, L+1, H]."""
    names = [f"i{place}" for place in range(len(y))]
    items = Answers(
        paths=tuple(Path(f"{name}.json") for name in names),
        records=tuple(
            make_record(name, y=int(one), turns=1, domain="d", model=model)
            for name, one in zip(names, y, strict=True)
        ),
        y=np.asarray(y), domains=np.array(["d"] * len(y)), groups=np.array(names),
        model=model, token_key=LAST, left_out={},
    )  # fmt: skip
    items.__dict__["first_states"] = states.astype(np.float16)
    return items


def halves(items: Answers) -> tuple[Answers, Answers]:
    late = np.arange(len(items)) >= 2 * len(items) // 3
    return items.select(~late), items.select(late)


def test_harp_reads_what_the_output_does_not_see(tmp_path):
    model = checkpoint(tmp_path, model__embed_tokens__weight=WEIGHT)
    _, _, vectors = np.linalg.svd(WEIGHT)
    rng = np.random.default_rng(2)

    def sample(n: int) -> Answers:
        y = np.arange(n) % 2
        states = rng.standard_normal((n, LAYERS + 1, WIDTH))
        states[:, -1] += 6 * (2 * y[:, None] - 1) * vectors[-1]
        return of_states(states, y, model)

    train, other = sample(60), sample(30)
    made = Harp()
    made.fit(*halves(train), seed=0)
    scores = made.score(other)
    assert made.chosen["dimensions"] == 1
    assert roc_auc_score(other.y, scores) == 1.0
    moved = other.first_states.astype(float)
    moved[:, -1] += 3 * vectors[0]  # what every logit sees
    moved[:, :-1] += 5  # other layers
    np.testing.assert_allclose(made.score_states(moved), scores, atol=0.02)
    moved[:, -1] -= 12 * (2 * other.y[:, None] - 1) * vectors[-1]
    assert roc_auc_score(other.y, made.score_states(moved)) == 0.0


# --- the layers' intrinsic dimension --------------------------------------------------------------


def test_intrinsic_dimension_is_twonn_by_scikit_learn():
    states = np.random.default_rng(4).standard_normal((300, 6)).astype(np.float16)
    points = states.astype(float)
    distances, _ = NearestNeighbors(n_neighbors=3).fit(points).kneighbors(points)
    logs = np.sort(np.log(distances[:, 2] / distances[:, 1]))[:270]
    heights = -np.log(1 - np.arange(270) / 300)
    line = LinearRegression(fit_intercept=False).fit(logs[:, None], heights)
    doubled = np.concatenate([states, states[:50]])  # a point on another has no ratio
    for given in (states, doubled):
        assert intrinsic_dimension(given) == pytest.approx(line.coef_[0], rel=1e-6)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_intrinsic_dimension_is_that_of_the_surface(dimension):
    rng = np.random.default_rng(dimension)
    flat = rng.uniform(size=(1500, dimension)) @ rng.standard_normal((dimension, 30)) + 100
    assert intrinsic_dimension(flat) == pytest.approx(dimension, rel=0.12)


def test_equal_states_have_no_dimension():
    with pytest.raises(UserError, match="do not differ"):
        intrinsic_dimension(np.ones((9, 4)))


@pytest.mark.parametrize(
    ("curve", "layer"),
    [
        ([1, 5, 3, 2, 4, 9, 8], 2),  # falls first, so later rises do not matter
        ([1, 5, 4, 6, 7, 8, 9, 10, 11, 8], 9),  # what rises on for 7 layers makes it none
        ([1, 5, 4, 6, 7, 8, 9, 10, 11], 2),  # but there is no other
        ([1, 5, 4, 4.2, 4.4, 4.6, 4.8, 4.9, 4.95, 4.97, 6, 5], 2),  # beyond the horizon
        ([1, 2, 3, 4], 4),  # no peak
        ([4, 3, 2, 1], 1),
    ],
)
def test_first_effective_peak(curve, layer):
    assert first_effective_peak(curve) == layer


def test_fepoid_reads_the_layer_of_its_peak_whatever_the_labels_say():
    rng = np.random.default_rng(6)
    n, y = 90, np.arange(90) % 3 == 0
    states = np.empty((n, 5, 8))
    for layer, dimension in enumerate([8, 2, 6, 2, 3]):
        flat = rng.standard_normal((n, dimension)) @ rng.standard_normal((dimension, 8))
        states[:, layer] = flat
    states[:, 2] += 12 * y[:, None] * np.eye(8)[0]
    made = Fepoid()
    made.fit(*halves(of_states(states, y.astype(int))), seed=0)
    curve = made.chosen["intrinsic_dimensions"]
    assert curve[1] > max(curve[0], curve[2]) and len(curve) == 4
    assert made.chosen["layer"] == 2
    assert roc_auc_score(y, made.score_states(states)) == 1.0


# --- divergences between layers -------------------------------------------------------------------


def test_divergence_maps_are_scipys_relative_entropies():
    states = np.random.default_rng(7).standard_normal((5, LAYERS + 1, WIDTH)) * 4
    for temperature in TEMPERATURES:
        p = np.exp(states / temperature)
        p /= p.sum(axis=2, keepdims=True)
        expected = [
            [entropy(one[i], one[j]) for i in (1, 2, 3) for j in (1, 2, 3) if i != j] for one in p
        ]
        np.testing.assert_allclose(divergence_maps(states, temperature), expected, rtol=1e-4)


def test_layers_far_apart_are_told_in_states_turned_another_way():
    """The map does not know directions: shuffled coordinates give the same scores."""
    rng = np.random.default_rng(8)

    def sample(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(n) % 2
        states = np.repeat(rng.standard_normal((n, 1, WIDTH)), LAYERS + 1, axis=1)
        states[:, 2] += rng.standard_normal((n, WIDTH)) * (0.3 + 2 * y[:, None])
        return states, y

    states, y = sample(90)
    made = LayerDivergence()
    made.fit(*halves(of_states(states, y)), seed=0)
    other, labels = sample(60)
    scores = made.score_states(other)
    assert roc_auc_score(labels, scores) > 0.9
    assert made.chosen["temperature"] in TEMPERATURES and 1 <= made.chosen["trees"] <= 100
    turned = other[..., np.random.default_rng(9).permutation(WIDTH)]
    np.testing.assert_allclose(made.score_states(turned), scores, atol=1e-9)
    json.dumps(made.chosen)
