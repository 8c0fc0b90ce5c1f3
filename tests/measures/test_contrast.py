"""The first answer read twice: with and without its question, layer against layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from spikescore.measures import contrast
from spikescore.measures.contrast import ContrastReader, premature_layers
from tests.helpers.models import make_model

RNG = np.random.default_rng(3)
PROMPT, ANSWER, BARE, TRUE, WRONG = (RNG.integers(5, 110, n).tolist() for n in (12, 7, 3, 4, 2))


def test_candidates_are_the_even_layers_of_the_upper_half():
    assert premature_layers(32) == list(range(16, 32, 2))
    assert [premature_layers(n) for n in (1, 2, 3, 6, 30)] == [
        [0], [1], [2], [4], [16, 18, 20, 22, 24, 26, 28],
    ]  # fmt: skip


def plain_logprobs(model, prompt: list[int], answer: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    log_p = torch.log_softmax(logits.double(), dim=-1)
    return np.array([float(log_p[len(prompt) - 1 + n, token]) for n, token in enumerate(answer)])


def plain_layers(model, layers: list[int]) -> tuple[list[float], list[float]]:
    """DoLa's divergence and contrast of each token, by loops in float64."""
    model = model.double()
    with torch.no_grad():
        output = model(torch.tensor([PROMPT + ANSWER]), output_hidden_states=True)
        cap = getattr(model.config, "final_logit_softcapping", None)
        largest, contrasts = [], []
        for place, token in enumerate(ANSWER):
            at = len(PROMPT) - 1 + place
            final = torch.softmax(output.logits[0, at], dim=-1).numpy()
            found = []
            for layer in layers:
                logits = model.lm_head(model.model.norm(output.hidden_states[layer][0, at]))
                logits = cap * torch.tanh(logits / cap) if cap else logits
                q = torch.softmax(logits, dim=-1).numpy()
                found.append((jensenshannon(final, q) ** 2, np.log(final[token] / q[token])))
            divergence, value = max(found)
            largest.append(divergence)
            contrasts.append(value)
    model.float()
    return largest, contrasts


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("chunk", [5, 512])
def test_reading_equals_plain_passes(kind, chunk, monkeypatch):
    monkeypatch.setattr(contrast, "LENS_CHUNK", chunk)
    monkeypatch.setattr(contrast, "premature_layers", lambda n: [0, 1, 2])
    model = make_model(kind)
    for layer in model.model.layers:  # else random layers hardly change the distribution
        layer.mlp.down_proj.weight.data *= 30
    model.lm_head.weight.data *= 10
    reader = ContrastReader(model)
    reader._lens.rows = 3
    for _ in range(2):  # the second time the cache holds another prompt
        found = reader.read(PROMPT, ANSWER, BARE, TRUE, WRONG)
    expected = {
        "answer_logprobs": plain_logprobs(model, PROMPT, ANSWER),
        "prior_logprobs": plain_logprobs(model, BARE, ANSWER),
        "true_logprobs": plain_logprobs(model, PROMPT, TRUE),
        "wrong_logprobs": plain_logprobs(model, PROMPT, WRONG),
    }
    expected["dola_divergence"], expected["dola_contrast"] = plain_layers(model, [0, 1, 2])
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=2e-3, err_msg=name)
    assert len(set(np.round(expected["dola_divergence"], 4))) > 3


def test_an_answer_of_no_tokens_has_no_numbers():
    found = ContrastReader(make_model("llama")).read(PROMPT, [], BARE, [], WRONG)
    assert {name: values.shape for name, values in found.items()} == {
        "answer_logprobs": (0,), "prior_logprobs": (0,), "dola_divergence": (0,),
        "dola_contrast": (0,), "true_logprobs": (0,), "wrong_logprobs": (2,),
    }  # fmt: skip
