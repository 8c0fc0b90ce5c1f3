"""Logit-lens measures and ICR scores: the formulae on paper, the reading against plain passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from transformers import GraniteConfig, GraniteForCausalLM

from spikescore.errors import UserError
from spikescore.measures import icr, lens
from spikescore.measures.icr import IcrReader, icr_scores
from spikescore.measures.lens import (
    LensReader,
    context_entropy,
    entropy,
    js_divergence,
    late_layers,
    sharpness_layer,
)
from tests.helpers.models import WINDOW, make_model

# --- formulae ---------------------------------------------------------------------------------


def test_entropy_and_divergence_of_known_distributions():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.3, 0.7]])
    q = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [0.3, 0.7]])
    assert entropy(p).tolist() == pytest.approx([0, 0, math.log(2), 0.6108643])
    # H(3/4, 1/4) - log(2) / 2 = 0.2157616
    expected = [math.log(2), 0.2157616, 0.2157616, 0]
    assert js_divergence(p, q).tolist() == pytest.approx(expected, abs=1e-6)


def test_divergence_equals_scipys():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(50, 0.3), size=(2, 20))
    found = js_divergence(torch.tensor(p).float(), torch.tensor(q).float())
    expected = [jensenshannon(one, other) ** 2 for one, other in zip(p, q, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_context_entropy_is_over_positions_and_per_token():
    # token 0: probabilities 0.1, 0.1, 0.2 -> 1/4, 1/4, 1/2; token 1: one position alone
    p = torch.tensor([[0.1, 1e-30], [0.1, 1e-30], [0.2, 0.9]])
    assert context_entropy(p.log()).tolist() == pytest.approx([1.5 * math.log(2), 0], abs=1e-6)


def test_layers_that_are_read():
    assert [list(late_layers(n)) for n in (1, 2, 3, 6)] == [[0], [1], [2], [4, 5]]
    assert (late_layers(32).start, late_layers(32).stop) == (22, 32)
    assert all(late_layers(n).start == -(-2 * n // 3) for n in range(3, 130))
    assert [sharpness_layer(n) for n in (2, 3, 6, 32, 36)] == [1, 2, 5, 26, 29]


# --- the lens against a plain forward pass ----------------------------------------------------


def make_turns(rewrite: bool) -> list[tuple[list[int], list[int]]]:
    """Four turns over random ids, one answer empty; with `rewrite` a prompt drops earlier ids."""
    rng = np.random.default_rng(5)
    turns, before = [], []
    for length in (6, 0, 9, 3):
        prompt = before + rng.integers(5, 110, 11).tolist()
        if rewrite and len(turns) >= 2:
            del prompt[14:17]
        answer = rng.integers(5, 110, length).tolist()
        turns.append((prompt, answer))
        before = prompt + answer
    return turns


def plain_lens(model, prompt, answer) -> dict[str, float]:
    """Reasoning score and sharpness by loops over layers, tokens and positions, in float64."""
    model = model.double()
    with torch.no_grad():
        output = model(torch.tensor([prompt + answer]), output_hidden_states=True)
    n_layers = len(output.hidden_states) - 1
    cap = getattr(model.config, "final_logit_softcapping", None)

    def distribution(layer: int, position: int, normed: bool = True) -> np.ndarray:
        state = output.hidden_states[layer][0, position]
        with torch.no_grad():
            logits = model.lm_head(model.model.norm(state) if normed else state)
            if cap:
                logits = cap * torch.tanh(logits / cap)
        return torch.softmax(logits, dim=-1).numpy()

    divergences, entropies = [], {True: [], False: []}
    for place, token in enumerate(answer):
        predicting = len(prompt) - 1 + place
        final = torch.softmax(output.logits[0, predicting], dim=-1).numpy()
        for layer in range(-(-2 * n_layers // 3), n_layers):
            divergences.append(jensenshannon(final, distribution(layer, predicting)) ** 2)
        middle = round(n_layers * 0.8125)
        assert 0 < middle < n_layers
        for normed, found in entropies.items():
            read = [distribution(middle, i, normed)[token] for i in range(len(prompt))]
            weights = np.array(read) / sum(read)
            found.append(-sum(w * math.log(w) for w in weights))
    model.float()
    return {
        "reasoning_score": float(np.mean(divergences)),
        "sharpness": float(np.mean(entropies[True])),
        "sharpness_raw": float(np.mean(entropies[False])),
    }


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("rewrite", [False, True])
@pytest.mark.parametrize("chunk", [7, 512])
def test_reading_equals_a_plain_forward_pass(kind, rewrite, chunk, monkeypatch):
    monkeypatch.setattr(lens, "LENS_CHUNK", chunk)
    model, turns = make_model(kind), make_turns(rewrite)
    for layer in model.model.layers:  # else random layers hardly change the distribution
        layer.mlp.down_proj.weight.data *= 30
    model.lm_head.weight.data *= 10
    reader = LensReader(model)
    reader.lens.rows = 4
    for _ in range(2):  # a second dialogue finds the first one's keys in the cache
        found = reader.read(turns)
    for turn, (prompt, answer) in enumerate(turns):
        if not answer:
            assert all(math.isnan(values[turn]) for values in found.turns.values())
            continue
        expected = plain_lens(model, prompt, answer)
        even = math.log(len(prompt))
        assert expected["reasoning_score"] > 0.01
        assert expected["sharpness"] < even - 0.01 and expected["sharpness_raw"] < even - 0.002
        own = {name: values[turn] for name, values in found.turns.items()}
        assert own == pytest.approx(expected, rel=1e-3, abs=1e-5)
        for name in ("sharpness", "sharpness_raw"):
            assert own[name] == pytest.approx(expected[name], rel=1e-4)
    prompt, answer = turns[0]
    with torch.no_grad():
        states = model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
    last = sum(state[0, -1] for state in states[1:]) / (len(states) - 1)
    mean = sum(states[-1][0, i] for i in range(len(prompt), len(prompt + answer))) / len(answer)
    assert found.mind.dtype == np.float32
    np.testing.assert_allclose(found.mind, torch.cat([last, mean]).numpy(), rtol=1e-3, atol=1e-4)


def test_a_first_answer_of_no_tokens_has_no_features():
    found = LensReader(make_model("llama")).read([([5, 6, 7], []), ([5, 6, 7, 8], [9])])
    assert found.mind.shape == (128,) and np.isnan(found.mind).all()
    assert np.isnan(found.turns["sharpness"]).tolist() == [True, False]


def test_a_model_that_scales_its_logits_is_refused():
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=120, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, logits_scaling=8.0, initializer_range=0.5,
    )  # fmt: skip
    with pytest.raises(UserError, match="does more to its last state than norm and output matrix"):
        LensReader(GraniteForCausalLM(config).eval())


# --- ICR --------------------------------------------------------------------------------------


def two_way(first: float) -> float:
    """JSD of (p, 1 - p) and (1 - p, p) for p = exp(first) / (exp(first) + exp(-first))."""
    p = 1 / (1 + math.exp(-2 * first))
    return math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)


def test_icr_of_a_worked_example():
    # of 4 tokens the two most attended count: numbers 0 and 2; token 3 comes later
    attention = torch.tensor([[0.5, 0.1, 0.4, 9.0]] * 3)
    states = torch.tensor([[2.0, 0.0], [9.0, 9.0], [0.0, 5.0], [7.0, 1.0]])
    # projections on them: (3, 1) as the attention has it, (1, 3) the other way round, (2, 2) level
    updates = torch.tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    found = icr_scores(updates, states, attention, torch.tensor([3, 3, 3]))
    # two numbers standardised by their sample deviation are +- sqrt(1/2)
    z = math.sqrt(0.5)
    p = 1 / (1 + math.exp(-2 * z))
    level = jensenshannon([p, 1 - p], [0.5, 0.5]) ** 2
    assert found.tolist() == pytest.approx([0, two_way(z), level], abs=1e-6)


def plain_icr(model, prompt, answer, from_prompt: bool) -> list[float]:
    """ICR scores by loops, from a pass that returns everything, in float64."""
    model = model.double()
    model.set_attn_implementation("eager")
    outputs = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        whole = model(
            torch.tensor([prompt + answer]), output_hidden_states=True, output_attentions=True
        )
    for hook in hooks:
        hook.remove()
    found = []
    for layer, (states, attention, after) in enumerate(
        zip(whole.hidden_states, whole.attentions, outputs, strict=False)
    ):
        if layer + 1 < len(outputs):  # but for the last layer this is the next state as returned
            assert torch.equal(after, whole.hidden_states[layer + 1])
        scores = []
        for token in range(len(prompt), len(prompt + answer)):
            n = max(2, math.ceil(0.1 * (token + 1)))
            weights = attention[0, :, token, : token + 1].mean(dim=0).numpy()
            if not from_prompt:
                weights[: len(prompt)] = 0
            top = np.argsort(-weights, kind="stable")[:n]
            update = (after[0, token] - states[0, token]).numpy()
            held = [states[0, j].numpy() for j in top]
            projections = np.array([update @ h / np.linalg.norm(h) for h in held])
            p, q = (np.exp((v - v.mean()) / v.std(ddof=1)) for v in (projections, weights[top]))
            scores.append(jensenshannon(p, q) ** 2)
        found.append(float(np.mean(scores)))
    model.float()
    return found


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("chunk", [16, 512])
def test_icr_equals_a_plain_pass_that_returns_everything(kind, chunk, monkeypatch):
    monkeypatch.setattr(icr, "TEACHER_CHUNK", chunk)
    model = make_model(kind)
    before = model.config._attn_implementation
    for layer in model.model.layers:  # attention that differs from even
        layer.self_attn.q_proj.weight.data *= 30
    rng = np.random.default_rng(1)
    prompt, answer = rng.integers(5, 110, 40).tolist(), rng.integers(5, 110, 9).tolist()
    assert len(prompt) > WINDOW
    found = IcrReader(model).read(prompt, answer)
    assert model.config._attn_implementation == before
    assert list(found) == ["icr", "icr_answer"]
    for name, scores in found.items():
        assert scores.dtype == np.float32 and scores.shape == (3,)
        expected = plain_icr(model, prompt, answer, from_prompt=name == "icr")
        assert min(expected) > 0.01
        assert scores.tolist() == pytest.approx(expected, rel=1e-3)
    assert np.abs(found["icr"] - found["icr_answer"]).max() > 0.01


def test_icr_of_an_empty_answer_is_missing():
    found = IcrReader(make_model("llama")).read([5, 6], [])
    assert [np.isnan(scores).tolist() for scores in found.values()] == [[True] * 3] * 2
