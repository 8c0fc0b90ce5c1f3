"""Pairs: what is written comes back, nothing in a pickle runs, damage is named."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from spikescore.errors import UserError
from spikescore.pairs import (
    TOKEN_KEYS,
    file_id,
    find_records,
    load_pickle,
    read_json,
    read_record,
    read_states,
    write_json,
    write_pair,
)


def make_states(turns=3, layers=4, hidden=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        turn: {key: rng.normal(size=(layers, hidden)).astype(np.float16) for key in TOKEN_KEYS}
        for turn in range(1, turns + 1)
    }


def test_a_pair_comes_back_as_it_was_written(tmp_path):
    states = make_states()
    record = {"id": "a", "question": "q?", "cot_steps": [{"turn": 1, "response_ids": [1, 22, 333]}]}
    write_pair(tmp_path / "new", record, states, model="m")
    back = read_record(tmp_path / "new" / "a.json")
    assert back == {**record, "complete": True}
    with open(tmp_path / "new" / "a.pkl", "rb") as file:
        content = pickle.load(file)
    assert {k: content[k] for k in content if k != "turns"} == {
        "format": 1,
        "model": "m",
        "n_layers": 3,
        "hidden_size": 8,
        "dtype": "float16",
    }
    loaded = read_states(tmp_path / "new" / "a.pkl")
    for turn, by_key in states.items():
        for key, array in by_key.items():
            assert loaded[turn][key].dtype == np.float16
            assert np.array_equal(loaded[turn][key], array)
    assert sorted(os.listdir(tmp_path / "new")) == ["a.json", "a.pkl"]


def test_number_lists_stand_on_one_line_and_text_is_untouched(tmp_path):
    record = {"ids": [1, -2, 3.5e-7], "text": "[\n  1,\n  2\n]", "mixed": [1, "a"], "empty": []}
    write_json(tmp_path / "x.json", record)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == record
    assert "[ 1, -2, 3.5e-07 ]" in text


@pytest.mark.parametrize(("value", "layer"), [(np.inf, 2), (np.nan, 1)])
def test_a_state_beyond_fp16_is_refused_with_its_layer(tmp_path, value, layer):
    states = make_states()
    states[2][TOKEN_KEYS[1]][layer, 3] = value
    with pytest.raises(UserError, match=rf"turn 2, {TOKEN_KEYS[1]}: the state of layer {layer}"):
        write_pair(tmp_path, {"id": "a"}, states, model="m")
    assert not list(tmp_path.glob("*.json"))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def broken(*args):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


class _Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def hostile_pickles(marker):
    """Several ways to run a command on loading; each would create `marker`."""
    command = f"touch {marker}"
    yield "os.system", pickle.dumps(_Hostile(command))
    yield "inside a pair", pickle.dumps({"format": 1, "turns": {1: {"k": _Hostile(command)}}})
    yield (
        "builtins.eval",
        f'cbuiltins\neval\n(S\'__import__("os").system("{command}")\'\ntR.'.encode(),
    )
    yield "dotted name", b"\x80\x04\x8c\x08builtins\x8c\x0cdict.__init__\x93."
    # torch's own storage loader unpickles what it is given without any restriction
    inner = pickle.dumps(_Hostile(command))
    outer = b"ctorch.storage\n_load_from_bytes\n(B" + len(inner).to_bytes(4, "little") + inner
    yield "torch storage", outer + b"tR."


@pytest.mark.parametrize("case", range(5))
def test_a_hostile_pickle_is_refused_and_its_command_does_not_run(tmp_path, case):
    marker = tmp_path / "ran"
    name, data = list(hostile_pickles(marker))[case]
    path = tmp_path / "bad.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match="bad.pkl"):
        read_states(path)
    assert not marker.exists(), name


def test_the_hostile_pickles_would_run_without_the_restriction(tmp_path):
    marker = tmp_path / "ran"
    name, data = next(hostile_pickles(marker))
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize("cut", [0, 1, 10, 200])
def test_a_cut_or_empty_pickle_is_named(tmp_path, cut):
    write_pair(tmp_path, {"id": "a"}, make_states(), model="m")
    path = tmp_path / "a.pkl"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="a.pkl"):
        read_states(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_pickle(tmp_path / "no.pkl")
    with pytest.raises(UserError, match="does not exist"):
        find_records(tmp_path / "nowhere")
    (tmp_path / "x.json").write_text('{"cot_steps": [')
    with pytest.raises(UserError, match="line 1 column"):
        read_record(tmp_path / "x.json")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("save", ["pickle", "torch"])
def test_the_older_tensor_form_is_read(tmp_path, dtype, save):
    torch.manual_seed(0)
    tensors = {
        step: OrderedDict(
            last_token_embedding=torch.randn(5, 8).to(dtype),
            sec_last_token_embedding=torch.randn(1, 8).to(dtype),
        )
        for step in range(3)
    }
    path = tmp_path / "old.pkl"
    if save == "torch":
        torch.save(tensors, path)
    else:
        path.write_bytes(pickle.dumps(tensors))
    states = read_states(path)
    assert sorted(states) == [1, 2, 3]
    first = states[1]["last_token_embedding"]
    assert first.dtype == np.float16 and first.shape == (5, 8)
    expected = tensors[0]["last_token_embedding"].float().numpy().astype(np.float16)
    assert np.array_equal(first, expected)
    assert states[3]["sec_last_token_embedding"].shape == (1, 8)


def test_a_bfloat16_state_beyond_fp16_is_refused(tmp_path):
    tensor = torch.zeros(4, 8, dtype=torch.bfloat16)
    tensor[2, 1] = 1e6
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps({0: {"last_token_embedding": tensor}}))
    with pytest.raises(UserError, match="layer 2"):
        read_states(path)


def test_the_older_json_form_is_read(tmp_path):
    old = {
        "question": "q",
        "nli_label": 1,
        "reasoning_chain": [
            {"step": 0, "response": "a", "metrics": {"probe_pred": 0.2}},
            {"step": 1, "response": "b"},
        ],
    }
    (tmp_path / "old.json").write_text(json.dumps(old))
    record = read_record(tmp_path / "old.json")
    assert [step["turn"] for step in record["cot_steps"]] == [1, 2]
    assert record["nil_label"] == 1 and record["legacy"] and record["id"] == "old"


def test_other_json_files_are_no_records(tmp_path):
    for name in ("run.json", "x.error.json", "x_error.json", ".hidden.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "sub").mkdir()
    write_json(tmp_path / "sub" / "a.json", {"cot_steps": []})
    write_json(tmp_path / "b.json", {"something": "else"})
    assert [p.name for p in find_records(tmp_path)] == ["b.json", "a.json"]
    assert read_record(tmp_path / "b.json") is None


def test_file_id():
    assert file_id("chal-3", "x") == "chal-3"
    assert file_id("test/algebra/1.json", "x") == "test_algebra_1.json"
    assert file_id("../../etc/passwd", "x") == "etc_passwd"
    hashed = file_id(None, "content")
    assert len(hashed) == 12 and hashed == file_id("///", "content")


def test_half_of_a_surrogate_pair_is_replaced_and_can_be_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"text": "a\ud83db", "\udc00": ["\ud83d\u00e9", "\U0001f600"]})
    assert read_json(tmp_path / "a.json") == {
        "text": "a\ufffdb",
        "\ufffd": ["\ufffd\u00e9", "\U0001f600"],
    }


@pytest.mark.parametrize("value", [np.nan, [1.0, np.inf], {"deep": [[-np.inf]]}])
def test_a_number_that_json_cannot_hold_is_refused(tmp_path, value):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": value})
    assert os.listdir(tmp_path) == []


def test_the_text_is_that_of_json_dumps_but_for_lists_of_numbers(tmp_path):
    record = {
        "empty": {"list": [], "dict": {}, "text": ""},
        "mixed": [1, None, True, False, 'é\n"', -2.5, [], {"a": ("b", 1)}],
        "nested": [{"deep": [{"x": 1e300}, ["y"]]}],
        1: {None: 0, True: "t", 2.5: -7},
    }
    write_json(tmp_path / "a.json", record)
    expected = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    "chain", [["text"], [{"step": 0}, None], [{"step": "one"}], [{"step": 1.5}], [{"step": None}]]
)
def test_damaged_steps_of_the_older_form_are_named(tmp_path, chain):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"question": "q", "reasoning_chain": chain}))
    with pytest.raises(UserError, match=rf"old\.json.*entry {len(chain)} of reasoning_chain"):
        read_record(path)


def test_one_token_can_be_read_alone(tmp_path):
    states = make_states()
    write_pair(tmp_path, {"id": "a"}, states, model="m")
    alone = read_states(tmp_path / "a.pkl", TOKEN_KEYS[1])
    assert [list(by_key) for by_key in alone.values()] == [[TOKEN_KEYS[1]]] * 3
    assert np.array_equal(alone[2][TOKEN_KEYS[1]], states[2][TOKEN_KEYS[1]])
