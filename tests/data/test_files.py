"""Files: the same rows in every container, read one at a time, and what breaks off."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from spikescore.data import json_rows as streaming
from spikescore.data.json_rows import BrokenJson, json_rows
from spikescore.data.reading import iter_questions, load_questions
from spikescore.data.selection import sample_questions
from spikescore.errors import UserError
from tests.helpers.native_rows import SHAPES

FLAT = {"truthfulqa": SHAPES["truthfulqa"], "belebele": SHAPES["belebele"], "gpqa": SHAPES["gpqa"],
        "defan": SHAPES["defan"], "true_false": SHAPES["true_false"]}  # fmt: skip


SEPARATORS = {"csv": ",", "tsv": "\t", "tab.csv": "\t", "semi.csv": ";", "bar.csv": "|"}
COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.Codec("zstd").compress(data, asbytes=True),
}


def in_container(folder: Path, container: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows as one of CONTAINERS, a compression's suffix behind it or not."""
    kind = next((container.removesuffix(one) for one in COMPRESS if container.endswith(one)), "")
    compressed = container.removeprefix(kind) if kind else ""
    kind = kind or container
    name = {"data": "data.json", "lines": "lines.json", "stream": "set.arrow"}.get(
        kind, f"set.{kind}"
    )
    path = folder / name
    text = ""
    if kind == "json":
        text = json.dumps(rows, indent=1)
    elif kind == "data":
        text = json.dumps({"version": 1, "data": rows, "more": {"a": [1]}})
    elif kind in ("jsonl", "lines"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    elif kind in SEPARATORS:
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, list(rows[0]), delimiter=SEPARATORS[kind])
        table.writeheader()
        table.writerows(rows)
        text = buffer.getvalue()
    if kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif kind in ("arrow", "stream"):
        table = pyarrow.Table.from_pylist(rows)
        writer = pyarrow.ipc.new_file if kind == "arrow" else pyarrow.ipc.new_stream
        with writer(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=2)
    else:
        path.write_bytes(text.encode())
    if compressed:
        packed = path.with_name(path.name + compressed)
        packed.write_bytes(COMPRESS[compressed](path.read_bytes()))
        path.unlink()
        return packed
    return path


CONTAINERS = ["json", "data", "lines", "jsonl", *SEPARATORS, "parquet", "arrow", "stream"]
PACKED = [f"{name}.gz" for name in ("json", "data", "lines", "jsonl", "csv", "parquet", "arrow")]
PACKED += [f"{name}{suffix}" for name in ("jsonl", "json", "tsv", "parquet", "stream")
           for suffix in (".bz2", ".xz", ".zst")]  # fmt: skip


@pytest.mark.parametrize("container", [*CONTAINERS, *PACKED])
@pytest.mark.parametrize("shape", FLAT)
def test_every_container_gives_the_same_questions(
    tmp_path: Path, container: str, shape: str
) -> None:
    rows = [{key: str(value) for key, value in FLAT[shape].make(n).items()} for n in range(1, 6)]
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = load_questions(plain).questions
    assert len(expected) == 5
    loaded = load_questions(in_container(tmp_path, container, rows))
    assert loaded.questions == expected and loaded.dataset_format == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_parquet_gives_what_json_gives(tmp_path: Path, shape: str) -> None:
    rows = [SHAPES[shape].make(n) for n in range(1, 4)]
    from_json = load_questions(in_container(tmp_path, "jsonl", rows)).questions
    from_parquet = load_questions(in_container(tmp_path, "parquet", rows)).questions
    for ours, other in zip(from_json, from_parquet, strict=True):
        assert (ours.question, ours.context, ours.choices and sorted(ours.choices)) == (
            other.question, other.context, other.choices and sorted(other.choices),
        )  # fmt: skip
        assert ours.history == other.history
        if not ours.choices:
            assert ours.gold_answers == other.gold_answers


def test_a_folder_of_all_kinds_is_one_set(tmp_path: Path) -> None:
    rows = [{key: str(value) for key, value in FLAT["gpqa"].make(n).items()} for n in range(1, 7)]
    for place, container in enumerate(("json", "jsonl.gz", "csv", "parquet")):
        (tmp_path / container).mkdir()
        in_container(tmp_path / container, container, [rows[place]])
    elsewhere = tmp_path.with_name("elsewhere")
    elsewhere.mkdir()
    in_container(elsewhere, "arrow", [rows[4]])
    (tmp_path / "linked").symlink_to(elsewhere, target_is_directory=True)
    (tmp_path / "linked" / "back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "SOURCE.json").write_text('{"url": "x"}')
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / ".hidden.json").write_text("[")
    loaded = load_questions(tmp_path)
    assert {q.id for q in loaded.questions} == {f"rec{n}xyz" for n in range(1, 6)}
    (tmp_path / "csv" / "set.csv").write_text(",".join(rows[0]) + "\n")
    in_container(tmp_path / "csv", "csv", [{**rows[5], "Question": ""}])
    where = 'file "csv/set.csv" line 2, field "Question": is empty'
    with pytest.raises(UserError, match=where):
        load_questions(tmp_path)


def test_what_save_to_disk_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    for place, split in enumerate(("train", "validation")):
        folder = tmp_path / split
        folder.mkdir()
        (folder / "dataset_info.json").write_text("{}")
        (folder / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
        rows = [FLAT["gpqa"].make(10 * place + n) for n in range(3)]
        in_container(folder, "stream", rows).rename(folder / "data-00000-of-00001.arrow")
        in_container(folder, "stream", [FLAT["gpqa"].make(99)]).rename(folder / "cache-1f.arrow")
    found = load_questions(tmp_path).questions
    assert [(q.id, q.meta["split"]) for q in found] == [
        *((f"rec{n}xyz", "train") for n in range(3)),
        *((f"rec{10 + n}xyz", "validation") for n in range(3)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "Git LFS pointer",
        ),
        ("a.xlsx", b"PK\x03\x04 sheet", "zip archive or a spreadsheet"),
        ("a.json.zip", b"PK\x03\x04 [", "zip archive"),
        ("a.db", b"SQLite format 3\0", "SQLite database"),
        ("a.pkl", b"\x80\x04\x95", "pickle, which is never opened"),
        ("a.pt", b"\x80\x02]q\0.", "pickle, which is never opened"),
        ("a.txt", b"question,gold_answers\nWho?,Bo\n", "no JSON; is it a table.* in .csv"),
        ("a.json", b"<!DOCTYPE html><html>", "HTML or XML"),
        ("a.csv", b"\xff\xfeq\0", "not UTF-8 text"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x04\x00", "compressed file is cut short or damaged"),
        ("a.jsonl.xz", b"\xfd7zXZ\0\0", "compressed file is cut short or damaged"),
        ("a.json.bz2", b"BZh91AY", "compressed file is cut short or damaged"),
        ("a.arrow", b"ARROW1\0\0 and no more", "not valid Arrow"),
        ("a.parquet", b"PAR1 and no more", "not valid Parquet"),
        ("a.jsonl", b"\x89HDF\r\n", "HDF5"),
        ("a.jsonl", b"\n \n", "is empty"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_questions(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_loses_no_table_without_a_word(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("spikescore"), "propagate", True)
    row = json.dumps(FLAT["true_false"].make(1))
    (tmp_path / "a.jsonl").write_text(row)
    (tmp_path / "b.ndjson").write_text(row)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "C.CSV").write_text("statement,label\nSnow is white.,1\n")
    for _ in range(2):
        assert len(load_questions(tmp_path).questions) == 2
    assert caplog.text.count("files of kind .ndjson are not read") == 1


def test_a_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"holds no .json .* \(it holds .xlsx\)"):
        load_questions(tmp_path)


def test_a_tar_is_no_json(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as pack:
        pack.add(__file__, "a.json")
    with pytest.raises(UserError, match="is a tar archive; unpack it"):
        load_questions(tmp_path / "a.tar.gz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("questions;answer;type\nWho?;Ann;name\nWhat, if;Bo;name\n", None),
        ("sep=;\nquestions;answer;type\nWho?;Ann;name\nWhat, if;Bo;name\n", None),
        ("questions|answer|type\nWho?|Ann|name\nWhat; if|Bo|name\n", None),
        ("questions,answer,type\nWho?,Ann,name\nWhat, if,Bo,name\n",
         r"line 3, 4 cells, but the first line has 3 columns; column 4 holds 'name'; is a quote "
         "missing around a comma"),
        ("questions;answer;type\nWho?;Ann;name\nWhat; if;Bo;name\n", "around a semicolon"),
        ("sep=;\nquestions;answer;type\nWho?;Ann;name\n\nWhat;;;;\n", "line 5, 5 cells"),
    ],
)  # fmt: skip
def test_what_separates_columns_is_seen(tmp_path: Path, text: str, message: str | None) -> None:
    (tmp_path / "a.csv").write_text(text)
    if message is None:
        assert [q.gold_answers for q in load_questions(tmp_path / "a.csv").questions] == [
            ("Ann",), ("Bo",),
        ]  # fmt: skip
    else:
        with pytest.raises(UserError, match=message):
            load_questions(tmp_path / "a.csv")


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """40 MB of rows are drawn from twice, and the drawing holds a few of them at a time."""
    path, text = tmp_path / "big.jsonl", "The mill stands where the river bends. " * 1000
    with path.open("w") as file:
        for n in range(1000):
            row = {"id": f"q{n}", "question": f"Q {n}?", "context": text, "gold_answers": ["a"]}
            file.write(json.dumps({**row, "tier": str(n % 5)}) + "\n")
    for strategy in ("random", "balanced", "stratified", "sequential"):
        tracemalloc.start()
        drawn = sample_questions(iter_questions(path), strategy=strategy, n=5, seed=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(drawn) == 5 and peak < 8e6 < path.stat().st_size / 4


def test_a_domain_is_named_after_the_file(tmp_path: Path) -> None:
    path = in_container(tmp_path, "jsonl.gz", [{"question": "?", "gold_answers": "a"}])
    assert load_questions(path).questions[0].domain == "set"


def test_csv_cells_may_hold_lines_and_a_million_characters(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    rows = [{"questions": f"a\nb {n}", "answer": long, "type": "name"} for n in range(2)]
    path = in_container(tmp_path, "csv", rows + [{"questions": "c", "answer": "d", "type": ""}])
    with pytest.raises(UserError, match='line 6, field "type": is empty'):
        load_questions(path)
    loaded = load_questions(path, on_bad_row="skip")
    assert loaded.questions[0].gold_answers == (long,)
    path.write_text('questions,answer,type\nWho?,"Ann,name\nWhat?,Bo,name\n')
    with pytest.raises(UserError, match="line 2, not valid CSV"):
        load_questions(path)
    path.write_text("questions,answer,type\nWho?,Ann,name,extra\n")
    with pytest.raises(UserError, match="line 2, 4 cells, but the first line has 3 columns"):
        load_questions(path)


# --- big JSON, piece by piece -----------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(values=st.lists(JSON, max_size=6), window=st.integers(1, 40), indent=st.sampled_from([0, 2]))
def test_a_streamed_list_is_what_json_loads_gives(
    values: list[Any], window: int, indent: int
) -> None:
    text = json.dumps(values, indent=indent or None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_WINDOW", window)
        assert list(json_rows(io.StringIO(text))) == json.loads(text)
        wrapped = f'{{"v": "1", "data": {text}, "after": 12}}\n'
        assert list(json_rows(io.StringIO(wrapped))) == values


@pytest.mark.parametrize("window", [1, 3, 1000])
def test_a_list_cut_anywhere_gives_its_whole_rows_and_then_breaks(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_WINDOW", window)
    rows = [{"a": 'x\\"yé'}, {"b": [1, 2.5e3, None]}, {"c": {}}]
    text = json.dumps({"k": 1, "data": rows})
    for cut in range(2, len(text)):
        found = []
        with pytest.raises(BrokenJson):
            for row in json_rows(io.StringIO(text[:cut])):
                found.append(row)
        assert found == rows[: len(found)]


@pytest.mark.parametrize("window", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[1 2]", (1, 4)),
        ("[1,\n ]", (2, 2)),
        ('{"a" 1}', (1, 6)),
        ('{\n"b": [\n\n1], 1: 2}', (4, 5)),
        ('{"data": [1]', (1, 13)),
        ("[1]\n\n  x", (3, 3)),
        ('[{}, {"a":\n tru}]', (2, 2)),
        ("[1}", (1, 3)),
        ("nul", (1, 1)),
        ('[{"a": "x"},\n{"a": "yé", "b" "z"}]', (2, 17)),
    ],
)
def test_what_is_no_json_breaks_at_its_line_and_column(
    text: str, place: tuple[int, int], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_WINDOW", window)
    with pytest.raises(BrokenJson, match="line {} column {}$".format(*place)):
        list(json_rows(io.StringIO(text)))


@pytest.mark.parametrize(
    "data",
    [b'[{"question": "Who?", "answer": "#### 8"} \xf0]', b'{"a" \xf0: 1}', b"{\xf0}"],
)
def test_a_stray_byte_between_values_is_named_in_plain_characters(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"found '\\udcf0': line 1 column") as caught:
        load_questions(path)
    str(caught.value).encode()  # whatever is in UTF-8, as a test's report, can hold it


def test_values_that_python_writes_are_read_as_json_loads_reads_them() -> None:
    text = '[NaN, -Infinity, 1e400, 123456789012345678901234567890, "\\ud800", 1.0, -0.0]'
    assert repr(list(json_rows(io.StringIO(text)))) == repr(json.loads(text))


@pytest.mark.parametrize("form", ["{}\n{}\n", "[{}, {}]"])
def test_a_key_that_stands_twice_with_different_values_is_named(tmp_path: Path, form: str) -> None:
    same = '{"question": "Who?", "gold_answers": "Ann", "gold_answers": "Ann"}'
    torn = '{"question": "When?", "gold_answers": "1900", "gold_answers": "1901"}'
    path = tmp_path / "set.json"
    path.write_text(form.format(same, torn))
    with pytest.raises(UserError, match=r'(line|row) 2, field "gold_answers": stands twice'):
        load_questions(path)
    kept = load_questions(path, on_bad_row="skip")
    assert [one.question for one in kept.questions] == ["Who?"] and len(kept.skipped) == 1


def test_a_column_that_stands_twice_is_named_where_its_cells_differ(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("question,gold_answers,gold_answers,,\nWho?,Ann,Ann,1,2\nWhen?,1900,1901,,\n")
    with pytest.raises(UserError, match='line 3, field "gold_answers": stands twice'):
        load_questions(path)
    kept = load_questions(path, on_bad_row="skip")
    assert [one.question for one in kept.questions] == ["Who?"]


def test_blank_lines_before_the_columns_hide_no_separator(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("\n\nquestion;gold_answers\nWho, then?;Ann\n")
    (question,) = load_questions(tmp_path / "set.csv").questions
    assert (question.question, question.gold_answers) == ("Who, then?", ("Ann",))


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz", "set.json"])
def test_blank_lines_before_the_first_row_lose_nothing(tmp_path: Path, name: str) -> None:
    rows = [{"question": f"Q{n}?", "gold_answers": "x" * 100} for n in range(100)]
    text = "\n".join(map(json.dumps, rows)) if "jsonl" in name else json.dumps(rows)
    data = f"\n \n{text}\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert len(load_questions(tmp_path / name).questions) == 100


class Counting(io.StringIO):
    """Text that counts the characters read."""

    taken = 0

    def read(self, size: int | None = -1) -> str:
        chunk = super().read(size)
        self.taken += len(chunk)
        return chunk


def test_a_big_list_is_not_read_ahead() -> None:
    file = Counting(json.dumps([{"text": "y" * 1000}] * 5000))
    rows = json_rows(file)
    next(rows)
    assert file.taken <= 1 << 16
    assert sum(1 for _ in rows) == 4999 and file.taken > 5_000_000


@pytest.mark.parametrize("container", ["json", "jsonl", "csv", "parquet", "jsonl.gz"])
def test_random_sampling_from_a_stream_is_that_from_the_list(
    tmp_path: Path, container: str
) -> None:
    rows = [{key: str(value) for key, value in FLAT["gpqa"].make(n).items()} for n in range(50)]
    path = in_container(tmp_path, container, rows)
    for strategy in ("random", "sequential", "balanced"):
        streamed = sample_questions(iter_questions(path), strategy=strategy, n=7, seed=5)
        listed = sample_questions(load_questions(path).questions, strategy=strategy, n=7, seed=5)
        assert streamed == listed and len(streamed) == 7


# --- what breaks off --------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["json", "jsonl", "csv", "json.gz", "csv.gz"])
def test_a_cut_file_names_the_row_and_the_rows_before_can_be_used(
    tmp_path: Path, container: str
) -> None:
    rows = [
        {key: str(value) for key, value in FLAT["belebele"].make(n).items()} for n in range(400)
    ]
    path = in_container(tmp_path, container, rows)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    with pytest.raises(UserError, match=r"set\..*, (after )?(row|line) \d+, ") as caught:
        load_questions(path)
    assert "row" in str(caught.value)
    loaded = load_questions(path, on_bad_row="skip")
    assert 10 < len(loaded.questions) < 400 and len(loaded.skipped) == 1
    contexts = [row["flores_passage"] for row in rows]
    assert [q.context for q in loaded.questions] == contexts[: len(loaded.questions)]


def test_broken_parquet(tmp_path: Path) -> None:
    rows = [SHAPES["gsm8k"].make(n) for n in range(50)]
    path = in_container(tmp_path, "parquet", rows)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="set.parquet.* is not valid Parquet"):
        load_questions(path)
    text = pyarrow.array([b"fine?", b"\xff\xfe?"]).cast(pyarrow.binary())
    broken = pyarrow.StringArray.from_buffers(2, text.buffers()[1], text.buffers()[2])
    answers = pyarrow.array(["#### 1", "#### 2"])
    parquet.write_table(pyarrow.table({"question": broken, "answer": answers}), path)
    with pytest.raises(UserError, match='row 2, field "question": cannot be read'):
        load_questions(path)
    loaded = load_questions(path, on_bad_row="skip")
    assert [q.question for q in loaded.questions] == ["fine?"] and len(loaded.skipped) == 1


@pytest.mark.parametrize("container", ["parquet", "arrow"])
def test_rows_are_counted_through_all_parts_of_a_table(tmp_path: Path, container: str) -> None:
    rows = [SHAPES["gsm8k"].make(n) for n in range(1500)]
    rows[1201]["question"] = ""
    path = in_container(tmp_path, container, rows)
    loaded = load_questions(path, on_bad_row="skip")
    assert [one.where for one in loaded.skipped] == ["row 1202"]
    asked = [row["question"] for row in rows if row["question"]]
    assert [question.question for question in loaded.questions] == asked


@pytest.mark.parametrize("container", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "beyond",
    [
        pyarrow.array([0, 2**31 - 1], pyarrow.date32()),
        pyarrow.array([0, 2**61], pyarrow.timestamp("us")),
        pyarrow.array([0, 2**61], pyarrow.duration("ms")),
    ],
    ids=lambda column: str(column.type),
)
def test_a_date_beyond_pythons_names_row_and_field(
    tmp_path: Path, container: str, beyond: pyarrow.Array
) -> None:
    good = SHAPES["gsm8k"].make(1)
    table = pyarrow.table({**{key: [good[key]] * 2 for key in good}, "asked": beyond})
    path = tmp_path / f"set.{container}"
    if container == "parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table)
    with pytest.raises(UserError, match='row 2, field "asked": cannot be read'):
        load_questions(path)
    loaded = load_questions(path, on_bad_row="skip")
    assert [q.question for q in loaded.questions] == [good["question"]] and len(loaded.skipped) == 1


def test_bytes_that_are_not_utf_8_name_row_and_field(tmp_path: Path) -> None:
    row = {"question": "Café?", "answer": "#### 7"}
    line = json.dumps(row, ensure_ascii=False)
    good = json.dumps({"question": "Who?", "answer": "#### 8"})
    message = 'field "question": holds broken Unicode .bytes that are not UTF-8'
    for name, text, where in (
        ("a.jsonl", f"{good}\n{line}\n", "line 2"),
        ("a.json", f"[{good},\n{line}]", "row 2"),
        ("a.csv", "question,answer\nWho?,#### 8\nCafé?,#### 7\n", "line 3"),
    ):
        path = tmp_path / name
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=f"{where}, {message}"):
            load_questions(path)
        assert len(load_questions(path, on_bad_row="skip").questions) == 1
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match="is not UTF-8 text"):
            load_questions(path)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(load_questions(path).questions) == 2
