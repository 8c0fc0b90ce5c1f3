"""Files to rows: JSON, JSONL, CSV, TSV, Parquet and Arrow, compressed or not, and folders of them.

Rows come one at a time and what was read is forgotten, so a file may be larger than memory. What a
file is, is seen from its first bytes (Parquet, Arrow, the compressions) or else from its name; JSON
objects one a line are also found in a file called .json. A place where a file cannot be read is
yielded as a `BadRow` in its place among the rows, so that the caller decides whether the rest is
used.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import logging
import lzma
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from spikescore.data.fields import BadRow, shown, text
from spikescore.data.json_rows import BrokenJson, decoder, json_rows
from spikescore.data.question import Row
from spikescore.errors import UserError

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
_NOT_DATA = re.compile(r"SOURCE\.json|dataset_(infos?|dict)\.json|state\.json|cache-.*\.arrow|\..*")
"""What lies beside the data: our own record, and what the hub and `save_to_disk` put there."""
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "eval"),
}
_COMPRESSED = {  # suffix -> first bytes
    ".gz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ",
    ".zst": b"\x28\xb5\x2f\xfd",
}
_NOT_READ = {  # first bytes -> what they are
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or export it as CSV",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it (git lfs pull)",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"\x89HDF": "an HDF5 file; export it as JSONL or Parquet",
    b"\x93NUMPY": "a numpy array; export the rows as JSONL",
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a pickle, which is never opened; export the rows as JSONL",
    ),
    b"ORC": "an ORC file; export it as Parquet",
    b"Obj\x01": "an Avro file; export it as Parquet",
    b"Rar!": "a RAR archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it",
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet; export it as CSV",
}
_TABLES = {".ndjson", ".jsonlines", ".tab", ".xlsx", ".xls", ".ods", ".zip"}
"""Kinds that may hold rows, of which a folder says that they are left out."""
_OPENING = (b"{", b"[")
_FIRST_LINE = 1 << 24
_BATCH, _ROWS = 1000, 64
"""Rows of Parquet that are decoded together; and those that are turned into Python objects
together, few, so that the processor's cache still holds them when they are used.
"""
_NO_VALUE = (ValueError, OverflowError)
"""What pyarrow raises for a text or a name that is not UTF-8, and for a date beyond Python's."""

log = logging.getLogger("spikescore")

Rows = Iterator[tuple[str, Any]]


# --- which files ------------------------------------------------------------------------------


def data_files(path: Path) -> list[Path]:
    """Return the data files of a path, or all below a folder, sorted; UserError without any."""
    if not path.is_dir():
        return [path]
    found, others, seen = [], set(), set()
    for folder, inner, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [one for one in inner if not one.startswith(".") and real not in seen]
        files = [] if real in seen else [Path(folder, name) for name in names]
        seen.add(real)
        found += [file for file in files if is_data(file)]
        others |= {file.suffix for file in files if not _NOT_DATA.fullmatch(file.name)}
    if found:
        _tell_left_out(path, *sorted(others & _TABLES))
        return sorted(found)
    there = f" (it holds {', '.join(sorted(filter(None, others)))})" if any(others) else ""
    raise UserError(
        f'dataset folder "{path}" holds no .json or .jsonl file, nor .csv, .tsv, .parquet or '
        f'.arrow{there}; check "dataset_path"'
    )


@cache
def _tell_left_out(path: Path, *kinds: str) -> None:
    if kinds:
        log.warning('dataset folder "%s": files of kind %s are not read', path, ", ".join(kinds))


def is_data(file: Path) -> bool:
    """True for a data file of a kind that is read, by its name."""
    named = plain_suffix(file) in SUFFIXES and not _NOT_DATA.fullmatch(file.name)
    return named and file.is_file()


def plain_suffix(path: Path) -> str:
    """Return the suffix that says what a file holds, that of its compression left out; in lower
    case.
    """
    return (Path(path.stem) if path.suffix.lower() in _COMPRESSED else path).suffix.lower()


def plain_name(path: Path) -> str:
    """Return a file's name without what it holds and how it is compressed; a folder's own name."""
    known = plain_suffix(path) in (*SUFFIXES, ".txt") and not path.is_dir()
    stem = Path(path.stem) if path.suffix.lower() in _COMPRESSED else path
    return stem.stem if known else path.name


@cache
def split_of(file: Path, root: Path) -> str | None:
    """Return the publisher's split that a file below a folder belongs to, None if it tells none.

    By a word of the file's name, or of the nearest folder that has one: the hub's layouts
    (data/train-00000-of-00002.parquet, web/test/0000.parquet) and the publishers' own
    (web-dev.json, NQ-open.train.jsonl).
    """
    parts = file.relative_to(root).parts if file != root else (file.name,)
    for part in reversed(parts):
        words = re.split(r"[^a-z]+", part.casefold())
        for split, names in SPLIT_WORDS.items():
            if any(word in names for word in words):
                return split
    return None


# --- one file ---------------------------------------------------------------------------------


def read_rows(path: Path) -> Rows:
    """Yield (where, row or BadRow) of a file; UserError where it is missing or of no known kind."""
    where = "row 1"
    try:
        with _opened(path) as file:
            lines = (one for one in iter(lambda: file.readline(_FIRST_LINE), b"") if one.strip())
            first, more = next(lines, b""), next(lines, b"")
        with _opened(path) as file:
            for one in _plain_rows(path, file, first, more):
                where, _ = one
                yield one
    except FileNotFoundError as error:
        raise UserError(f'dataset "{path}" does not exist; check "dataset_path"') from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        yield f"after {where}", BadRow(None, f"{_CUT} ({shown(error)})")
    except OSError as error:
        if error.errno is not None:
            raise UserError(f'dataset "{path}" cannot be read: {error.strerror}') from error
        yield f"after {where}", BadRow(None, f"{_CUT} ({shown(error)})")  # a decompressor's


_CUT = "the compressed file is cut short or damaged"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read what it holds, whatever it is compressed with."""
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(0)
        if not head:
            raise UserError(f'dataset "{path}" is empty')
        suffix = next((one for one, mark in _COMPRESSED.items() if head.startswith(mark)), "")
        if suffix == ".zst":
            import pyarrow

            yield io.BufferedReader(pyarrow.input_stream(file, compression="zstd"))
        else:
            opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(suffix)
            yield opener(file) if opener else file


def _plain_rows(path: Path, file: BinaryIO, first: bytes, more: bytes) -> Rows:
    """Read an opened file as what its first two lines that are not blank, or else its name, say
    that it is.
    """
    suffix = plain_suffix(path)
    if first.startswith(b"PAR1") or suffix == ".parquet":
        return _column_rows(path, file, "Parquet", _parquet_batches)
    if first.startswith(b"ARROW1") or suffix == ".arrow":
        return _column_rows(path, file, "Arrow", _arrow_batches)
    head = first[:4096]
    what = next((what for mark, what in _NOT_READ.items() if head.startswith(mark)), "")
    if what or head[257:262] == b"ustar":
        raise UserError(f'dataset "{path}" is {what or "a tar archive; unpack it"}')
    if not head.strip():
        raise UserError(f'dataset "{path}" is empty')
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head + more[:4096]:
        raise UserError(
            f'dataset "{path}" is not UTF-8 text; '
            "JSON, JSONL and CSV are read in UTF-8, convert the file first"
        )
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, file, first.decode("utf-8-sig", "replace"))
    if head.lstrip().startswith(b"<"):
        raise UserError(f'dataset "{path}" is HTML or XML; is it the page about the file?')
    if suffix == ".jsonl" or _holds_lines(first, more):
        return _jsonl_rows(file)
    if suffix != ".json" and not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(_OPENING):
        raise UserError(
            f'dataset "{path}" is no JSON; is it a table? Its name must then end in .csv or .tsv'
        )
    return _json_rows(file)


def _text(file: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
    # a stray byte is kept as a lone surrogate, which the field that holds it will name
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=newline)


# --- JSON and JSONL ---------------------------------------------------------------------------


def _holds_lines(first: bytes, more: bytes) -> bool:
    """True when the first line is a JSON object by itself and more follows."""
    try:
        return bool(more.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _unless_twice(row: Any, twice: list[str]) -> Any:
    """Return a row, or what is wrong with it: keys of it that stand `twice`."""
    if not twice:
        return row
    bad = BadRow(twice[0], "stands twice in the row, with different values")
    twice.clear()
    return bad


def _jsonl_rows(file: BinaryIO) -> Rows:
    twice: list[str] = []
    decode = decoder(twice).decode
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            row = _unless_twice(decode(line.decode("utf-8", "surrogateescape")), twice)
        except (ValueError, RecursionError) as error:
            if not line.strip():
                continue
            column = f": column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            row = BadRow(None, f"not valid JSON ({getattr(error, 'msg', error)}{column})")
        yield f"line {number}", row


def _json_rows(file: BinaryIO) -> Rows:
    number, twice = 0, []
    try:
        for number, row in enumerate(json_rows(_text(file), decoder(twice)), start=1):
            yield f"row {number}", _unless_twice(row, twice)
    except BrokenJson as error:
        what = f"not valid JSON ({error}); the file may be cut short, fetch or write it again"
        yield f"row {number + 1}", BadRow(None, what)


# --- CSV --------------------------------------------------------------------------------------


def _csv_rows(path: Path, file: BinaryIO, first: str) -> Rows:
    """Yield rows as {column: text}; the first row names the columns, but in MMLU's own files.

    What separates them is seen from that row: a tab, a semicolon or a bar where there are more of
    it than commas. Excel's own line "sep=;" before it counts.
    """
    csv.field_size_limit(sys.maxsize)  # the whole process's, 128 KB at first; a passage has more
    tabs = plain_suffix(path) == ".tsv"
    told = re.fullmatch(r"sep=(.)\s*", first)
    separator = (
        told[1] if told else max(",\t;|", key=lambda one: (tabs and one == "\t", first.count(one)))
    )
    lines = _text(file, newline="")
    if told:
        next(lines)
    # strict: an open quote at the end is an error, and does not swallow the rest without a word
    reader = csv.reader(lines, delimiter=separator, strict=True)
    names: list[str] | None = None
    twice = False
    more: Row = {}
    while True:
        where = f"line {reader.line_num + 1 + bool(told)}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, BadRow(None, f"not valid CSV ({error})")
            continue
        if not cells:
            continue
        if names is None and _is_mmlu(cells):
            # MMLU names its files by their subject: abstract_algebra_test.csv
            names = ["question", "A", "B", "C", "D", "answer"]
            more = {"subject": re.sub("_(test|dev|val)$", "", plain_name(path))}
        elif names is None:
            names = [name.strip() for name in cells]
            twice = len(set(names)) < len(names)
            continue
        if len(cells) > len(names):
            at = f"column {len(names) + 1} holds {shown(cells[len(names)])!r}"
            mark = _SEPARATORS.get(separator, separator)
            what = f"{len(cells)} cells, but the first line has {len(names)} columns; {at}"
            yield where, BadRow(None, f"{what}; is a quote missing around a {mark}?")
            continue
        row = {**dict(zip(names, cells, strict=False)), **more}
        pairs = zip(names, cells, strict=False) if twice else ()
        yield where, _unless_twice(row, [name for name, own in pairs if name and row[name] != own])


def _is_mmlu(cells: list[str]) -> bool:
    """True for a first line that is a question of MMLU: four options and the right one's letter."""
    letters = list("ABCD")
    answered = len(cells) == 6 and cells[5].strip() in letters
    return answered and letters not in (cells[1:5], cells[2:])


_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


# --- Parquet and Arrow ------------------------------------------------------------------------


def _column_rows(path: Path, file: BinaryIO, what: str, batches: Callable[..., Any]) -> Rows:
    """Yield rows of the record batches that `batches` finds in an opened file."""
    import pyarrow  # here: the other formats need none, and it takes a while to load

    damaged, number = (pyarrow.ArrowException, OSError, *_NO_VALUE), 0
    with _seekable(file) as whole:
        try:
            found = batches(whole)
        except damaged as error:
            raise UserError(
                f'dataset "{path}" is not valid {what} ({shown(error)}); '
                "it may be cut short, fetch it again"
            ) from error
        try:
            parts = (one.slice(at, _ROWS) for one in found for at in range(0, len(one), _ROWS))
            for part in parts:
                for row in _python_rows(part):
                    number += 1
                    yield f"row {number}", row
        except damaged as error:
            yield f"row {number + 1}", BadRow(None, f"damaged {what} ({shown(error)})")


def _parquet_batches(file: BinaryIO) -> Iterable[Any]:
    from pyarrow import parquet

    table = parquet.ParquetFile(file)
    return (  # all row groups at once would take more memory
        batch
        for group in range(table.num_row_groups)
        for batch in table.iter_batches(_BATCH, row_groups=[group])
    )


def _arrow_batches(file: BinaryIO) -> Iterable[Any]:
    """Read an Arrow file, or a stream, as `datasets.save_to_disk` and its cache write it."""
    from pyarrow import ipc

    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    table = ipc.open_file(file) if is_file else ipc.open_stream(file)
    return map(table.get_batch, range(table.num_record_batches)) if is_file else table


@contextmanager
def _seekable(file: BinaryIO) -> Iterator[BinaryIO]:
    """Give a file that can be read anywhere: itself, or an unpacked copy on disk."""
    if isinstance(file, io.BufferedReader) and file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as plain:
        shutil.copyfileobj(file, plain)
        plain.seek(0)
        yield plain


def _python_rows(batch: Any) -> list[Any]:
    """Turn a record batch into dicts; where that fails, row by row to find the field at fault."""
    try:
        # by columns: less to do than in the batch's own `to_pylist`, which gives the same
        names, columns = batch.schema.names, [column.to_pylist() for column in batch.columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    except _NO_VALUE:
        return [_python_row(batch.slice(place, 1)) for place in range(batch.num_rows)]


def _python_row(batch: Any) -> Row | BadRow:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except _NO_VALUE as error:
            return BadRow(name, f"cannot be read ({shown(error)})")
    return row


# --- RAGTruth's two files ---------------------------------------------------------------------

_SOURCES, _RESPONSES = "source_info.jsonl", "response.jsonl"


def ragtruth_rows(path: Path) -> Rows | None:
    """Yield (where, response with its source) of RAGTruth's folder or file; None for another."""
    folder = path if path.is_dir() else path.parent
    sources, responses = folder / _SOURCES, folder / _RESPONSES
    if path not in (folder, responses) or not (sources.is_file() and responses.is_file()):
        return None
    return _joined(sources, responses)


def _joined(sources: Path, responses: Path) -> Rows:
    by_id: dict[str, Row] = {}
    for where, row in read_rows(sources):
        try:
            if isinstance(row, BadRow):
                raise row
            by_id[text(row, "source_id")] = row
        except BadRow as bad:
            yield f'file "{_SOURCES}" {where}', bad
    for where, row in read_rows(responses):
        if isinstance(row, dict):
            try:
                source = text(row, "source_id")
                unknown = BadRow("source_id", f'"{shown(source)}" is not in {_SOURCES}')
                row = {**by_id[source], **row} if source in by_id else unknown
            except BadRow as bad:
                row = bad
        yield f'file "{_RESPONSES}" {where}', row
