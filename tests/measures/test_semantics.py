"""A text encoder's vectors, and the mean states of an answer, against plain passes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from spikescore.errors import UserError
from spikescore.measures import semantics
from spikescore.measures.semantics import SemanticsReader, SentenceEncoder
from tests.helpers.models import LABELS, bert_tokenizer, make_model, save_bert

RNG = np.random.default_rng(9)
PROMPT, ANSWER = RNG.integers(5, 110, 14).tolist(), RNG.integers(5, 110, 8).tolist()
TEXT = "which town is it ? paris"


@pytest.fixture
def folder(tmp_path):
    return save_bert(tmp_path / "encoder", LABELS)


def pool(folder, **modes: bool) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    said = {f"pooling_mode_{name}": on for name, on in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))


@pytest.mark.parametrize("modes", [None, {"mean_tokens": True}, {"cls_token": True}])
def test_a_text_is_pooled_as_the_folder_says_and_has_length_1(folder, modes):
    if modes:
        pool(folder, **modes)
    found = SentenceEncoder(str(folder)).encode(TEXT)
    tokens = bert_tokenizer()(TEXT, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0].numpy()
    vector = states[0] if modes == {"cls_token": True} else states.sum(axis=0)
    np.testing.assert_allclose(found, vector / np.sqrt((vector**2).sum()), atol=1e-5)
    assert found.dtype == np.float32


def test_a_long_text_is_cut_where_the_folder_says(folder):
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    encoder = SentenceEncoder(str(folder))
    one, other = (encoder.encode(f"which town is it {rest}") for rest in ("paris a b", "rome"))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_what_is_no_encoder_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="is no text encoder"):
        SentenceEncoder(str(tmp_path / "nothing"))
    pool(folder, mean_tokens=True, max_tokens=True)
    with pytest.raises(UserError, match="pools by .*mean_tokens and .*max_tokens"):
        SentenceEncoder(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        SentenceEncoder(str(folder))


@pytest.mark.parametrize("chunk", [5, 512])
def test_states_are_the_means_over_the_answers_tokens(folder, chunk, monkeypatch):
    monkeypatch.setattr(semantics, "LENS_CHUNK", chunk)
    model, encoder = make_model("llama"), SentenceEncoder(str(folder))
    reader = SemanticsReader(model, encoder)
    reader.read(ANSWER, PROMPT, TEXT)
    found = reader.read(PROMPT, ANSWER, TEXT)
    with torch.no_grad():
        states = model(torch.tensor([PROMPT + ANSWER]), output_hidden_states=True).hidden_states
    expected = [state[0, len(PROMPT) :].mean(dim=0).numpy() for state in states]
    np.testing.assert_allclose(found["answer_states"], np.stack(expected), rtol=4e-3, atol=4e-3)
    assert found["answer_states"].dtype == np.float16
    assert np.array_equal(found["answer_embedding"], encoder.encode(TEXT))
    assert np.isnan(reader.read(PROMPT, [], "")["answer_states"]).all()
