"""A probe as a hub takes it: the same scores from safetensors, a card, and nothing private."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from spikescore.errors import UserError
from spikescore.probes.card import publish_probe
from spikescore.probes.probe import Probe, load_probe
from tests.helpers.running import ROOT

WIDTH = 6


def linear(rng, n_in: int, n_out: int) -> tuple:
    weight, bias = rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out)
    return ("linear", weight.astype(np.float32), bias.astype(np.float32))


def make_probe(**change) -> Probe:
    rng = np.random.default_rng(0)
    probe = Probe(
        "saplma",
        [linear(rng, 2 * WIDTH, 4), ("relu",), linear(rng, 4, 1), ("sigmoid",)],
        model="/data/secret-place/some-model",
        hidden_size=WIDTH,
        n_layers=3,
        token_key="last_token_embedding",
        layer_range=(1, 2),
        mean=rng.standard_normal(2 * WIDTH),
        scale=rng.uniform(1, 2, 2 * WIDTH),
        training={"dirs": ["/home/me/outputs"], "n": {"train": 3}, "items": {"toy/q1": "train"},
                  "questions": {"abcdef012345": "train"}},
        seed=7,
        spike_threshold=0.25,
        identity={"weights": "0123456789abcdef"},
        dialogues={"config": {"max_steps": 20, "prompts_file": "/home/me/prompts.json"},
                   "several": []},
    )  # fmt: skip
    return replace(probe, **change)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"layer_range": (0, 2), "layers": (0, 2)},
        {"mean": None, "scale": None, "spike_threshold": None, "kind": "sep-mlp"},
        {"tried": {2: {"weights": [linear(np.random.default_rng(1), WIDTH, 1)], "mean": None,
                       "scale": None, "val_auroc": 0.5}}},
    ],
    ids=["range", "list of layers", "bare", "tried layers"],
)  # fmt: skip
def test_the_published_file_gives_the_same_probe(tmp_path, change):
    probe = make_probe(**change)
    file, _ = publish_probe(probe, tmp_path / "hub", repo_id="me/p", license="apache-2.0")
    back = load_probe(file)
    features = np.random.default_rng(2).standard_normal((50, 2 * WIDTH))
    np.testing.assert_array_equal(back.score(features), probe.score(features))
    states = list(np.random.default_rng(3).standard_normal((4, 4, WIDTH)).astype(np.float16))
    np.testing.assert_array_equal(back.features(states), probe.features(states))
    for name in ("kind", "token_key", "layer_range", "layers", "seed", "spike_threshold",
                 "identity", "hidden_size", "n_layers"):  # fmt: skip
        assert getattr(back, name) == getattr(probe, name), name
    assert back.tried.keys() == probe.tried.keys()
    for layer, one in probe.tried.items():
        np.testing.assert_array_equal(back.tried[layer]["weights"][0][1], one["weights"][0][1])
    same = back.check(model="some-model", n_layers=3, hidden_size=WIDTH, layer_range=None)
    assert same.layer_range == probe.layer_range


def test_the_shipped_probe_scores_the_same_when_published(tmp_path):
    probe = load_probe(ROOT / "probes" / "smollm2-135m-instruct.pkl")
    file, card = publish_probe(probe, tmp_path / "hub", repo_id="me/p", license="apache-2.0")
    features = np.random.default_rng(0).standard_normal((20, probe.input_dim)) * 10
    np.testing.assert_array_equal(load_probe(file).score(features), probe.score(features))
    told = card.read_text("utf-8")
    assert f"test {probe.training['n']['test']} (" in told and "commonsenseqa, triviaqa" in told
    assert "smollm2-135m-instruct" in told and f"{probe.spike_threshold:.4f}" in told
    assert f"| layers read | {probe.layer_range[0]} (0" in told
    assert '"Answer in one short sentence."' in told


def test_nothing_private_is_published(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "not-to-be-told-42")
    config = {"max_steps": 20, "prompts_file": "/home/me/prompts.json",
              "system_prompt": "Say not-to-be-told-42."}  # fmt: skip
    probe = make_probe(dialogues={"config": config, "several": ["dtype"]})
    for path in publish_probe(probe, tmp_path / "hub", repo_id="me/p", license="mit"):
        data = path.read_bytes()
        for secret in (b"secret-place", b"/home/me", b"not-to-be-told-42"):
            assert secret not in data, path
    assert load_probe(tmp_path / "hub" / "probe.safetensors").model == "some-model"


def test_the_card_says_what_the_probe_is(tmp_path):
    _, card = publish_probe(make_probe(), tmp_path / "hub", repo_id="me/p", license="mit")
    told = card.read_text("utf-8")
    assert told.startswith("---\n") and "\nlicense: mit\n" in told.split("---")[1]
    for row in (
        "| kind | saplma |",
        "| states of | some-model (weights `0123456789abcdef`) |",
        "| token | last_token_embedding |",
        "| layers read | 1 to 2, both included (0 = embedding output) |",
        "| network | linear 12-4, relu, linear 4-1, sigmoid |",
        "| threshold λ of SpikeScore | 0.2500; flag when SpikeScore >= λ |",
        "| max_steps | 20 |",
        '| prompts_file | "prompts.json" |',
    ):
        assert row in told, row
    assert "questions of: toy." in told
    assert "## What it is worth\n\nIts file does not say." in told


def test_anyone_can_read_the_tensors(tmp_path):
    """The file is plain safetensors: arrays by name, all else as JSON in the header."""
    probe = make_probe()
    file, _ = publish_probe(probe, tmp_path / "hub", repo_id="me/p", license="mit")
    with safe_open(file, "np") as opened:
        np.testing.assert_array_equal(opened.get_tensor("weights.0.1"), probe.weights[0][1])
        told = json.loads(opened.metadata()["probe"])
    assert told["format"] == 1 and told["layer_range"] == [1, 2]
    assert told["mean"] == {"tensor": "mean"}


def test_what_is_no_probe_is_refused_in_one_line(tmp_path):
    whole, _ = publish_probe(make_probe(), tmp_path / "hub", repo_id="me/p", license="mit")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:200])
    other = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3)}, other)
    pickled = tmp_path / "pickled.safetensors"
    pickled.write_bytes(pickle.dumps(asdict(make_probe())))
    lying = tmp_path / "lying.safetensors"
    broken = {"format": 1, "kind": "saplma", "weights": [["linear", {"tensor": "none"}]]}
    save_file({"a": np.zeros(3)}, lying, {"probe": json.dumps(broken)})
    odd = tmp_path / "odd.safetensors"
    save_file({"a": np.zeros(3)}, odd, {"probe": json.dumps({**broken, "weights": [["boom"]]})})
    for path in (cut, other, pickled, lying, odd, tmp_path / "missing.safetensors"):
        with pytest.raises(UserError) as caught:
            load_probe(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        publish_probe(make_probe(), tmp_path, repo_id="me/p", license="mit")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
