"""OpenHalDet's folders: what becomes of rows and states, and damage named with file and row."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from spikescore.data import openhaldet
from spikescore.data.openhaldet import ROWS, STATES, read_folder
from spikescore.errors import UserError
from spikescore.pairs import TOKEN_KEYS, as_record
from tests.helpers.native_rows import openhaldet as make_row
from tests.helpers.openhaldet_states import Group, bfloat16, stored_states

LAST, BEFORE_LAST, PROMPT = TOKEN_KEYS
LAYERS, WIDTH = (10, 11, 12), 5


def value(sample: int, token: int, layer: int) -> np.ndarray:
    """A state that bfloat16 holds exactly and that tells where it belongs."""
    return np.float32([sample, token, layer, 0.5, -2])


def sample(number: int, tokens: list[int], ended: bool = True) -> Group:
    made = {token: {one: value(number, token, one) for one in LAYERS} for token in tokens}
    return stored_states(made, ended=ended)


ROWS_MADE = [make_row(n) | {"model_output_text": "some output"} for n in range(5)]
ROWS_MADE[3]["eval_category"] = "abstention"


def folder(tmp_path: Path, rows: list[str] | None = None) -> Path:
    place = tmp_path / "experiments" / "Qwen" / "Qwen3-8B" / "arc_5samples"
    place.mkdir(parents=True)
    lines = [json.dumps(row) for row in ROWS_MADE] if rows is None else rows
    (place / ROWS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


@pytest.fixture
def states(monkeypatch) -> Group:
    """Five rows' states: ended, ended with the first token saved, cut off, ended, none."""
    names = [row["sample_id"] for row in ROWS_MADE]
    made = Group({
        names[0]: sample(0, [5, 6, 7]),
        names[1]: sample(1, [0, 1]),
        names[2]: sample(2, [5, 6, 7], ended=False),
        names[3]: sample(3, [5, 6, 7]),
    })  # fmt: skip
    made.attrs["layer_config"] = '{"mode": "middle", "count": 3}'
    monkeypatch.setattr(openhaldet, "_open", lambda path: made)
    return made


def test_the_state_at_a_token_is_the_one_kept_for_the_next(tmp_path, states):
    found = list(read_folder(folder(tmp_path)))
    for record, _ in found:
        assert as_record(record, tmp_path / f"{record['id']}.json") is not None
    assert [record["nil_label"] for record, _ in found] == [1, 0, 1, None, 1]
    record, turn = found[0]
    assert (record["domain"], record["model"]) == ("arc", "Qwen/Qwen3-8B (layers 11-13)")
    assert record["cot_steps"][0]["response"] == "some output"
    assert set(turn) == {LAST, BEFORE_LAST}
    for key, kept_for in ((LAST, 7), (BEFORE_LAST, 6)):
        assert turn[key].dtype == np.float16
        expected = [value(0, kept_for, layer) for layer in (LAYERS[0], *LAYERS)]
        np.testing.assert_array_equal(turn[key], expected)
    single = found[1][1]  # one token and the end: the same state twice, and the prompt's
    np.testing.assert_array_equal(single[LAST], single[BEFORE_LAST])
    np.testing.assert_array_equal(single[PROMPT][1], value(1, 0, LAYERS[0]))
    assert found[2][1] == "cut off, so without its last state"
    assert found[4][1] == "without hidden states"


@pytest.mark.parametrize(("last", "cut"), [("<|eot_id|>", False), ("", False), (" put", True),
                                           ("\n\n", True), (" ", True)])  # fmt: skip
def test_an_answer_that_did_not_end_has_no_last_state(tmp_path, states, last, cut):
    states[ROWS_MADE[0]["sample_id"]]["generated_tokens"]["token_007"].attrs["text"] = last
    _, turn = next(read_folder(folder(tmp_path)))
    assert (turn == "cut off, so without its last state") if cut else LAST in turn


def test_the_models_own_name_stands_in_the_states(tmp_path, states):
    states.attrs |= {"llm_model": "meta-llama/Llama-3.2-3B-Instruct", "layer_config": '"all"'}
    record, _ = next(read_folder(folder(tmp_path)))
    assert record["model"] == "meta-llama/Llama-3.2-3B-Instruct"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"sample_id": ', "row 2: no JSON"),
        ("[1]", "row 2: expected an object"),
        (json.dumps({**ROWS_MADE[1], "eval_category": "maybe"}), 'row 2: .*"maybe" is none of'),
        (json.dumps({**ROWS_MADE[1], "structured_data": 3}), "row 2: .*structured_data"),
        (json.dumps({**ROWS_MADE[1], "model_output_text": None}), "row 2: .*model_output_text"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, states, line, what):
    place = folder(tmp_path, [json.dumps(ROWS_MADE[0]), line])
    with pytest.raises(UserError, match=f"{ROWS}.*{what}"):
        list(read_folder(place))


@pytest.mark.parametrize("damage", ["huge", "ragged", "shape", "nameless"])
def test_damaged_states_are_named_with_their_row(tmp_path, states, damage):
    tokens = states[ROWS_MADE[1]["sample_id"]]["generated_tokens"]
    if damage == "huge":
        tokens["token_001"]["layer_11"] = bfloat16(np.full(WIDTH, 1e6))
    elif damage == "ragged":
        del tokens["token_001"]["layer_11"]
    elif damage == "shape":
        tokens["token_001"]["layer_11"] = np.zeros((2, 2), np.float32)
    else:
        tokens["token_001"].attrs.clear()
    with pytest.raises(UserError, match=f'row 2: the states of "arc_test_000001" in {STATES}'):
        list(read_folder(folder(tmp_path)))


def test_a_byte_that_is_no_text_and_settings_that_are_no_json_are_named(tmp_path, states):
    place = folder(tmp_path)
    states.attrs["layer_config"] = "{"
    with pytest.raises(UserError, match="row 1: the states of .* are damaged"):
        list(read_folder(place))
    (place / ROWS).write_bytes(b'{"sample_id": "caf\xe9"}\n')
    with pytest.raises(UserError, match="row 1: no JSON"):
        list(read_folder(place))


def test_what_is_no_folder_of_it_and_what_lacks_states_is_said(tmp_path):
    with pytest.raises(UserError, match=f"has no {ROWS}"):
        next(read_folder(tmp_path))
    with pytest.raises(UserError, match=rf"{STATES}.*(pip install h5py|is missing)"):
        next(read_folder(folder(tmp_path)))


def test_a_real_file_is_read_as_the_stand_in(tmp_path, states, monkeypatch):
    place = folder(tmp_path)
    expected = list(read_folder(place))
    with h5py.File(place / STATES, "w") as file:
        file.attrs.update(states.attrs)
        for name, held in states.items():
            for token, group in held["generated_tokens"].items():
                made = file.create_group(f"{name}/generated_tokens/{token}")
                made.attrs.update(group.attrs)
                for layer, numbers in group.items():
                    made.create_dataset(layer, data=numbers, compression="gzip")
    monkeypatch.undo()
    for (record, turn), (other, found) in zip(expected, read_folder(place), strict=True):
        assert record == other
        if isinstance(turn, str):
            assert turn == found
        else:
            assert set(turn) == set(found)
            for key in turn:
                np.testing.assert_array_equal(turn[key], found[key])
    (place / STATES).write_bytes(b"no HDF5 at all")
    with pytest.raises(UserError, match="could not be read as HDF5"):
        next(read_folder(place))
