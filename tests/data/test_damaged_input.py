"""Damaged input of every kind: one clear error that names file, row and field, or the rest used.

Each example takes six good rows of a native schema, damages one of them or the file's bytes, and
writes them as JSON, JSONL, CSV or Parquet.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from spikescore.data.reading import LoadedQuestions, load_questions
from spikescore.errors import UserError
from tests.helpers.native_rows import SHAPES

N = 6
PLACE = re.compile(r"(row|line) \d+")
WRONG = [
    None, True, 3, -1, 2.5, float("nan"), float("inf"), 10**40, "", "   ", "\n", "x", "\ud800",
    "\udcff", "x" * 1_000_000, [], [None], [[]], [""], {}, {"a": 1}, ["x", 3, {"b": None}],
]  # fmt: skip
FLAT = [name for name, native in SHAPES.items()
        if all(isinstance(value, str) for value in native.make(1).values())]  # fmt: skip


def rows_of(shape: str) -> list[dict[str, Any]]:
    return [copy.deepcopy(SHAPES[shape].make(n)) for n in range(1, N + 1)]


def write(path: Path, container: str, rows: list[Any]) -> Path:
    path = path.with_suffix(f".{container}")
    if container == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
        return path
    if container == "json":
        text = json.dumps(rows)
    elif container == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        text = buffer.getvalue()
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def outcome(path: Path, name: str) -> tuple[LoadedQuestions | None, UserError | None]:
    """Load strictly; any error but a UserError, which names the file, fails the test."""
    try:
        return load_questions(path, dataset_format=name), None
    except UserError as error:
        assert path.name in str(error) and len(str(error)) < 1500
        return None, error


def check_one_bad_row(path: Path, name: str, good: set[str], field: str | None, row: int) -> None:
    """The damaged row is either fine or named, with its field; the other rows are usable."""
    loaded, error = outcome(path, name)
    rest = load_questions(path, dataset_format=name, on_bad_row="skip")
    ids = {question.id for question in rest.questions}
    assert len(ids) == len(rest.questions) and good <= ids
    if error is None:
        assert loaded.questions == rest.questions
        return
    where = PLACE.search(str(error))
    assert where is not None and int(where.group().split()[1]) == row
    assert len(rest.skipped) == 1 and where.group() in rest.skipped[0].where
    assert f'field "{field}"' in str(error) if field else 'field "' in str(error)


def good_ids(folder: Path, shape: str, damaged: int) -> set[str]:
    rows = [row for place, row in enumerate(rows_of(shape)) if place != damaged]
    path = write(folder / "good", "jsonl", rows)
    return {q.id for q in load_questions(path, dataset_format=shape.split()[0]).questions}


damage = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
shapes = st.sampled_from(sorted(SHAPES))
places = st.integers(0, N - 1)


@damage
@given(
    shape=shapes, place=places, container=st.sampled_from(["json", "jsonl"]),
    value=st.sampled_from(WRONG) | st.text(max_size=4) | st.integers() | st.floats(),
    data=st.data(),
)  # fmt: skip
def test_a_wrong_value(
    tmp_path: Path, shape: str, place: int, container: str, value: Any, data: st.DataObject
) -> None:
    rows = rows_of(shape)
    field = data.draw(st.sampled_from(sorted(rows[place])))
    rows[place][field] = value
    path = write(tmp_path / "set", container, rows)
    # a field of several parts may be named by one of them, so the parts are checked further down
    check_one_bad_row(path, shape.split()[0], good_ids(tmp_path, shape, place), None, place + 1)


@damage
@given(shape=shapes, place=places, value=st.sampled_from([None, "", " ", "\ud800", []]),
       missing=st.booleans(), data=st.data())  # fmt: skip
def test_a_needed_field_without_a_value_is_named(
    tmp_path: Path, shape: str, place: int, value: Any, missing: bool, data: st.DataObject
) -> None:
    rows, native = rows_of(shape), SHAPES[shape]
    field = data.draw(st.sampled_from(native.required))
    if missing:
        del rows[place][field]
    else:
        rows[place][field] = value
    path = write(tmp_path / "set", "jsonl", rows)
    name = shape.split()[0]
    check_one_bad_row(path, name, good_ids(tmp_path, shape, place), field, place + 1)
    _, error = outcome(path, name)
    # where the first row gives no answer, the set may be a test split that withholds them
    withheld = place == 0 and (value == [] or missing or not str(value or "").strip())
    if withheld and (name, field) in (("triviaqa", "Answer"), ("triviaqa", "answer"),
                                      ("commonsenseqa", "answerKey"), ("ipw", "ground_truth"),
                                      ("belebele", "correct_answer_num"), ("arc", "answerKey"),
                                      ("hellaswag", "label")):  # fmt: skip
        return
    may_be_empty = {
        ("defan", "answer"),
        ("ragtruth", "labels"),
        *(
            (f"truthfulqa {form}", f"{kind}_answers")
            for form in ("generation", "multi")
            for kind in ("correct", "incorrect")
        ),
    }
    # fmt: skip
    assert error is not None or (shape, field) in may_be_empty


@damage
@given(shape=shapes, container=st.sampled_from(["json", "jsonl", "parquet"]),
       share=st.floats(0.001, 0.999))  # fmt: skip
def test_a_truncated_file(tmp_path: Path, shape: str, container: str, share: float) -> None:
    whole = write(tmp_path / "set", container, rows_of(shape))
    name = shape.split()[0]
    ids = [question.id for question in load_questions(whole, dataset_format=name).questions]
    data = whole.read_bytes()
    path = tmp_path / f"cut.{container}"
    path.write_bytes(data[: max(1, int(len(data) * share))])
    loaded, error = outcome(path, name)
    if error is not None and container != "parquet":
        assert PLACE.search(str(error))
    try:
        loaded = load_questions(path, dataset_format=name, on_bad_row="skip")
    except UserError as nothing:
        assert path.name in str(nothing)
        return
    found = [question.id for question in loaded.questions]
    assert found == ids[: len(found)] and len(loaded.skipped) <= 1


@damage
@given(shape=shapes, container=st.sampled_from(["json", "jsonl", "parquet"]),
       flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
       )  # fmt: skip
@example("gsm8k", "jsonl", [(0.5, 0xE9)])
@example("triviaqa_squad", "parquet", [(0.33203125, 128)])  # a column's name is no UTF-8
def test_changed_bytes(
    tmp_path: Path, shape: str, container: str, flips: list[tuple[float, int]]
) -> None:
    path = write(tmp_path / "set", container, rows_of(shape))
    data = bytearray(path.read_bytes())
    for share, byte in flips:
        data[int(len(data) * share)] = byte
    path.write_bytes(data)
    name = shape.split()[0]
    loaded, error = outcome(path, name)
    try:
        rest = load_questions(path, dataset_format=name, on_bad_row="skip")
    except UserError as nothing:
        assert path.name in str(nothing) and error is not None
    else:
        assert (error is None) == (loaded is not None)
        assert len({q.id for q in rest.questions}) == len(rest.questions)


@damage
@given(shape=shapes, encoding=st.sampled_from(["latin-1", "cp1251", "utf-16", "utf-16-be",
       "utf-32", "shift_jis", "utf-7", "cp500"]), container=st.sampled_from(["json", "jsonl"]),
       place=places, data=st.data())  # fmt: skip
def test_odd_encodings(
    tmp_path: Path, shape: str, encoding: str, container: str, place: int, data: st.DataObject
) -> None:
    rows = rows_of(shape)
    field = data.draw(st.sampled_from(SHAPES[shape].required))
    if isinstance(rows[place][field], str):
        rows[place][field] += " я" if encoding in ("cp1251", "shift_jis") else " é"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if container == "json":
        text = json.dumps(rows, ensure_ascii=False)
    path = tmp_path / f"set.{container}"
    path.write_bytes(text.encode(encoding, "replace"))
    _, error = outcome(path, shape.split()[0])
    single_byte = encoding in ("latin-1", "cp1251")
    if error is not None and single_byte:
        where = PLACE.search(str(error))
        assert where is not None and int(where.group().split()[1]) == place + 1
    if encoding.startswith(("utf-16", "utf-32")):
        assert error is not None and "not UTF-8" in str(error)


@damage
@given(shape=shapes, container=st.sampled_from(["json", "jsonl", "parquet"]), first=places,
       second=places)  # fmt: skip
def test_duplicate_rows(
    tmp_path: Path, shape: str, container: str, first: int, second: int
) -> None:
    rows = rows_of(shape)
    rows.insert(max(first, second) + 1, rows[min(first, second)])
    path = write(tmp_path / "set", container, rows)
    name = shape.split()[0]
    _, error = outcome(path, name)
    loaded = load_questions(path, dataset_format=name, on_bad_row="skip")
    assert len(loaded.questions) == N * SHAPES[shape].per_row
    if name != "project":
        assert error is None and loaded.repeated == SHAPES[shape].per_row
    else:
        place = max(first, second) + 2
        assert re.search(rf'(row|line) {place}, field "id": ".*" is already used by', str(error))


@damage
@given(shape=st.sampled_from(FLAT), place=places, data=st.data(),
       value=st.sampled_from(["", "   ", '"', "a,b", "x" * 200_000, "é\n\n", "NaN", "\x00"]),
       )  # fmt: skip
def test_csv_cells(tmp_path: Path, shape: str, place: int, data: st.DataObject, value: str) -> None:
    rows = rows_of(shape)
    field = data.draw(st.sampled_from(SHAPES[shape].required))
    rows[place][field] = value
    path = write(tmp_path / "set", "csv", rows)
    if value == "\x00":
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    _, error = outcome(path, shape.split()[0])
    if not value.strip() and (shape, field) != ("defan", "answer"):
        assert error is not None and f'field "{field}": is empty' in str(error)
        assert PLACE.search(str(error))
        rest = load_questions(path, dataset_format=shape.split()[0], on_bad_row="skip")
        assert len(rest.questions) == N - 1 and len(rest.skipped) == 1


def asking_field(shape: str) -> str | None:
    """Return the key of the question's text, None where it lies deeper in the row."""
    row = SHAPES[shape].make(1)
    keys = ("question", "Question", "problem", "en", "body", "questions", "statement")
    return next((key for key in keys if isinstance(row.get(key), str)), None)


@pytest.mark.parametrize("shape", [shape for shape in sorted(SHAPES) if asking_field(shape)])
def test_a_long_text_is_read_whole(tmp_path: Path, shape: str) -> None:
    rows = rows_of(shape)
    rows[0][asking_field(shape)] = "w " * 500_000 + "?"
    for container in ("json", "jsonl"):
        loaded = load_questions(write(tmp_path / "set", container, rows))
        assert loaded.questions[0].question.endswith("w ?")
        assert len(loaded.questions[0].question) >= 1_000_001
