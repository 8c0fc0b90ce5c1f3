"""Pairs: what is written comes back, nothing in a pickle runs, damage is named."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from spikescore import pairs
from spikescore.errors import UserError
from spikescore.files import write_json
from spikescore.pairs import (
    TOKEN_KEYS,
    file_id,
    find_records,
    iter_records,
    read_record,
    read_states,
    write_pair,
)
from spikescore.pickles import load_pickle
from tests.helpers.factories import make_record


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


@pytest.mark.parametrize(("value", "layer"), [(np.inf, 2), (np.nan, 1)])
def test_a_state_beyond_fp16_is_refused_with_its_layer(tmp_path, value, layer):
    states = make_states()
    states[2][TOKEN_KEYS[1]][layer, 3] = value
    with pytest.raises(UserError, match=rf"turn 2, {TOKEN_KEYS[1]}: the state of layer {layer}"):
        write_pair(tmp_path, {"id": "a"}, states, model="m")
    assert not list(tmp_path.glob("*.json"))


def test_an_error_file_holds_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "canary-0123456789")
    pairs.write_error(tmp_path, "a", "the server said canary-0123456789")
    assert json.loads((tmp_path / "a.error.json").read_text())["error"] == "the server said ***"


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_pickle(tmp_path / "no.pkl")
    with pytest.raises(UserError, match="does not exist"):
        find_records(tmp_path / "nowhere")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"a\.json\" is not a folder"):
        find_records(tmp_path / "a.json")
    (tmp_path / "x.json").write_text('{"cot_steps": [')
    with pytest.raises(UserError, match="line 1, column"):
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


@pytest.mark.parametrize("turns", [None, [], {"one": {}}, {b"1": {}}, {1.5: {}}])
def test_turns_in_an_unknown_form_are_named(tmp_path, turns):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"format": 1, "turns": turns}, protocol=5))
    with pytest.raises(UserError, match=r"a\.pkl.*no hidden states in a known form"):
        read_states(path)


def pair_of(path="a/x.json", **changes):
    record = {"model": "m/final", "config_hash": "h", "config": {"max_steps": 2}, "nil_label": 1}
    return Path(path), {**record, "cot_steps": [{"turn": 1}], "complete": True, **changes}


def content(**changes):
    parts = dict.fromkeys(("weights", "architecture", "tokenizer", "template"), "1")
    return {**parts, "prompts": "p", **changes}


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ({}, {}, ""),
        ({}, {"model": "elsewhere/final"}, ""),
        ({}, {"model": "m/other"}, 'models: "m/final" and "m/other"'),
        ({}, {"model": None}, ""),
        ({"identity": content()}, {"identity": content(), "model": "m/renamed"}, ""),
        ({"identity": content()}, {"identity": content(weights="2")}, "models: weights of"),
        ({"identity": content()}, {"identity": content(template="2")}, "models: template of"),
        ({"identity": content()}, {"identity": content(generation="2")}, ""),
        ({"identity": content()}, {"identity": None}, ""),
        ({"identity": content()}, {"identity": content(prompts="q")}, "in their prompts"),
        ({}, {"config_hash": "i", "config": {"max_steps": 3}}, "max_steps: 2 -> 3"),
        ({}, {"config_hash": None}, ""),
    ],
)
def test_what_does_not_belong_together_is_named(one, other, says):
    pairs_found = [pair_of(**one), pair_of("a/y.json", **other)]
    if not says:
        pairs.require_one_run(pairs_found)
        return
    with pytest.raises(UserError, match=re.escape(says)) as error:
        pairs.require_one_run(pairs_found)
    assert "x.json" in str(error.value) and "y.json" in str(error.value)


def test_folders_may_have_other_settings_but_not_another_model():
    pairs.require_one_run([pair_of(), pair_of("b/y.json", config_hash="i")])
    with pytest.raises(UserError, match="one model"):
        pairs.require_one_run([pair_of(), pair_of("b/y.json", model="m/other")])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"complete": False}, "unfinished"),
        ({"cot_steps": []}, "without turns"),
        ({"nil_label": None}, "unlabelled"),
        ({"nil_label": "1"}, "unlabelled"),
    ],
)
def test_a_pair_that_is_of_no_use_says_why(tmp_path, change, reason):
    path, record = pair_of(tmp_path / "x.json", **change)
    assert pairs.unusable(path, record) == (reason or "without PKL")
    path.with_suffix(".pkl").touch()
    assert pairs.unusable(path, record) == reason


@pytest.mark.parametrize(
    ("step", "says"),
    [({"finish_reason": "length"}, "length"), ({"finish_reason": "timeout"}, "timeout"),
     ({"finish_reason": "stop"}, ""), ({}, ""), (None, "")],
)  # fmt: skip
def test_a_first_answer_that_was_cut_off_says_by_what(step, says):
    later = {"finish_reason": "length"}
    assert pairs.cut_off({"cot_steps": [step, later]}) == says
    assert pairs.cut_off({"cot_steps": []}) == ""


# --- damaged records ----------------------------------------------------------------------------

WHOLE = make_record("bad", y=1, turns=3, domain="d", model="m")
HUGE = 10**400
DAMAGED = [
    (("id",), [1]), (("question",), 7), (("context",), ["a"]), (("domain",), {}), (("group",), []),
    (("model",), 2.5), (("config",), "x"), (("config_hash",), 3), (("answer_type",), "1e400"),
    (("answer_type",), ["exact"]), (("choices",), 2.5), (("choices",), "ab"),
    (("choices",), {"A": "x"}), (("gold_answers",), [["a"]]), (("gold_answers",), {"a": 1}),
    (("incorrect_answers",), [None]), (("history",), ["a"]), (("history",), [["a"]]),
    (("history",), [["a", None]]), (("nil_label",), 2), (("nil_label",), "1"), (("nil_label",), []),
    (("nil_judge",), [0]), (("complete",), "no"), (("meta",), "x"), (("identity",), 1),
    (("metrics",), "x"), (("metrics", "probe"), "x"), (("metrics", "probe_split"), 0),
    (("metrics", "probe", "train_domains"), [["a"]]), (("metrics", "probe", "path"), 1),
    (("metrics", "probe", "spike_threshold"), "high"), (("cot_steps",), "text"),
    (("metrics", "probe", "layer_range"), 5), (("metrics", "probe", "layer_range"), [[1], [2]]),
    (("metrics", "spike_score"), "high"), (("nil_judge", "judge"), ["exact"]),
    (("config", "sampling"), "all"),
    (("config", "sampling", "n"), "all"), (("config", "context"), "wiki"),
    (("config", "context", "from"), 3), (("config", "dataset_path"), 5),
    (("config", "dataset_path"), [None]), (("config", "dataset_path"), [["a.json"]]),
    (("cot_steps",), {"1": {}}), (("cot_steps", 1), None), (("cot_steps", 1), "a"),
    (("cot_steps", 1, "turn"), [[]]),
    (("cot_steps", 1, "turn"), "2"), (("cot_steps", 1, "turn"), 0), (("cot_steps", 1, "turn"), 1.0),
    (("cot_steps", 1, "turn"), True), (("cot_steps", 1, "metrics"), "x"),
    (("cot_steps", 1, "metrics", "probe_pred"), HUGE),
    (("cot_steps", 1, "metrics", "probe_pred"), "0.5"),
    (("cot_steps", 1, "metrics", "probe_pred"), float("inf")),
    (("cot_steps", 1, "perplexity"), float("nan")), (("cot_steps", 1, "mean_logprob"), []),
    (("cot_steps", 1, "n_response_tokens"), HUGE), (("cot_steps", 1, "n_response_tokens"), -1),
    (("cot_steps", 1, "seconds"), -0.5), (("cot_steps", 1, "seconds"), "1"),
    (("cot_steps", 1, "n_prompt_tokens"), 1.5), (("cot_steps", 1, "n_kept"), False),
    (("cot_steps", 1, "response"), ["a"]), (("cot_steps", 1, "prompt"), {}),
    (("cot_steps", 1, "prompt_ids"), [1, "2"]), (("cot_steps", 1, "response_ids"), [-1]),
    (("cot_steps", 1, "response_ids"), [2**40]), (("cot_steps", 1, "response_ids"), "12"),
    (("cot_steps", 1, "finish_reason"), 0),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), DAMAGED)
def test_a_damaged_field_is_named_with_its_file(tmp_path, place, value):
    record = copy.deepcopy(WHOLE)
    record["metrics"]["probe"] = {"path": "p", "train_domains": ["t"]}
    record["config"] = {"sampling": {}, "context": {}}
    holder = record
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError) as error:
        read_record(path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f'"{path}": ') and len(line) < len(str(path)) + 250
    assert all(str(key) in line for key in place if key != 1)
    assert "entry 2 of cot_steps" in line or 1 not in place


def test_a_sound_field_of_every_kind_is_read(tmp_path):
    record = copy.deepcopy(WHOLE)
    record |= {
        "id": 7, "group": None, "gold_answers": ["a", 2], "choices": ["x", "y"],
        "history": [["who?", "he"]], "meta": {"scope": "any"}, "nil_label": None, "unknown": [[[]]],
        "metrics": {"probe_pred": "anything", "probe": None},
        "config": {"sampling": {"n": None}, "context": None, "dataset_path": ["a.json"]},
    }  # fmt: skip
    record["cot_steps"][1].pop("turn")
    record["cot_steps"][0] |= {"perplexity": 3, "response_ids": [], "metrics": None}
    path = tmp_path / "7.json"
    path.write_text(json.dumps(record))
    record["cot_steps"][1]["turn"] = 2  # its place
    assert read_record(path) == record


def test_an_id_that_is_too_long_for_a_files_name_is_an_id(tmp_path):
    for name in ("x" * 300, "\u6f22" * 100):
        path = tmp_path / "hashed.json"
        path.write_text(json.dumps(WHOLE | {"id": name}))
        assert read_record(path)["id"] == name


def test_copies_count_once_and_are_told(tmp_path, caplog):
    for name in ("a", "b"):
        write_json(tmp_path / "d" / f"{name}.json", make_record(name, y=0, turns=1, domain="d",
                                                                model="m"))  # fmt: skip
    text = (tmp_path / "d" / "a.json").read_bytes()
    checkpoints = tmp_path / "d" / ".ipynb_checkpoints"
    (tmp_path / "e").mkdir()
    checkpoints.mkdir()
    (checkpoints / "a-checkpoint.json").write_bytes(text)
    (tmp_path / "d" / "a (conflicted copy).json").write_bytes(text)
    (tmp_path / "e" / "a.json").write_bytes(text)
    other = json.loads(text) | {"config_hash": "1" * 12}
    write_json(tmp_path / "hotter" / "a.json", other)
    with caplog.at_level(logging.WARNING):
        found = [path.relative_to(tmp_path).as_posix() for path, _ in iter_records(tmp_path)]
    assert found == ["d/a.json", "d/b.json", "hotter/a.json"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert 'copy).json" is a copy of "a.json"' in caplog.text
    assert "hold the same dialogue; it counts once" in caplog.text
