"""Heads and neurons of the last token, against what a plain pass makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spikescore.errors import UserError
from spikescore.measures import components
from spikescore.measures.components import ComponentReader
from tests.helpers.models import SHAPE, make_model

RNG = np.random.default_rng(7)
PROMPT, ANSWER = RNG.integers(5, 110, 25).tolist(), RNG.integers(5, 110, 6).tolist()


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("chunk", [9, 512])
def test_mixed_and_read_they_are_what_a_plain_pass_gives(kind, chunk, monkeypatch):
    """The output of each attention is its heads' times o_proj, of each network neurons' times
    down_proj, as the architectures define them.
    """
    monkeypatch.setattr(components, "LENS_CHUNK", chunk)
    model = make_model(kind)
    for layer in model.model.layers:  # else random networks hardly add anything
        layer.mlp.up_proj.weight.data *= 30
    reader = ComponentReader(model)
    reader.read(ANSWER, PROMPT)  # what was read before leaves no trace
    found = reader.read(PROMPT, ANSWER)
    n_layers, n_heads = SHAPE["num_hidden_layers"], SHAPE["num_attention_heads"]
    assert found["heads"].shape == (n_layers, n_heads, SHAPE["head_dim"])
    assert found["neurons"].shape == (n_layers, SHAPE["intermediate_size"])
    assert all(array.dtype == np.float16 for array in found.values())
    kept = {}

    def keep(key):
        def hook(module, args, output):
            kept[key] = (output[0] if isinstance(output, tuple) else output)[0, -1].numpy()

        return hook

    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(keep(("heads", number)))
        layer.mlp.register_forward_hook(keep(("neurons", number)))
    with torch.no_grad():
        model(torch.tensor([PROMPT + ANSWER]))
    for number, layer in enumerate(model.model.layers):
        modules = {"heads": layer.self_attn.o_proj, "neurons": layer.mlp.down_proj}
        for name, module in modules.items():
            array = found[name][number].astype(np.float32).ravel()
            mixed = module.weight.detach().numpy() @ array
            largest = np.abs(kept[name, number]).max()
            assert largest > 1e-3
            np.testing.assert_allclose(mixed, kept[name, number], rtol=0.02, atol=0.01 * largest)


def test_an_answer_of_no_tokens_has_no_numbers():
    found = ComponentReader(make_model("llama")).read(PROMPT, [])
    assert all(np.isnan(array).all() for array in found.values())


def test_a_mixture_of_experts_is_refused():
    model = make_model("llama")
    model.model.layers[1].mlp = nn.Identity()
    with pytest.raises(UserError, match='leave "components" out'):
        ComponentReader(model)
