"""Files to rows: JSON, JSONL, CSV, Parquet, any of them gzipped, and folders of such files.

Rows come one at a time and what was read is forgotten, so a file may be larger than memory. What a
file is, is seen from its first bytes (Parquet, gzip) or else from its name; JSON objects one a line
are also found in a file called .json. A place where a file cannot be read is yielded as a `BadRow`
in its place among the rows, so that the caller decides whether the rest is used.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from spikescore.data.fields import BadRow, shown, text
from spikescore.data.json_rows import BrokenJson, json_rows
from spikescore.data.question import Row
from spikescore.errors import UserError

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_NOT_DATA = ("SOURCE.json", "dataset_info.json", "dataset_infos.json")
_FIRST_LINE = 1 << 24
_BATCH = 1000
"""Rows of Parquet that are turned into Python objects together."""

Columns = Callable[[Sequence[str]], list[str] | None]
Rows = Iterator[tuple[str, Any]]


def read_rows(path: Path, columns: Columns = lambda names: None) -> Rows:
    """Yield (where, row) for each row of a file or folder; the row is a BadRow where it is broken.

    `columns` is given the names of a Parquet file's columns and returns those to read, None for
    all. Raises UserError for a path that is missing, empty, unreadable or no text.
    """
    if not path.is_dir():
        yield from _file_rows(path, columns)
        return
    files = sorted(file for file in path.rglob("*") if is_data(file))
    if not files:
        raise UserError(
            f'dataset folder "{path}" holds no .json or .jsonl file, nor .csv or .parquet; '
            'check "dataset_path"'
        )
    for file in files:
        for where, row in _file_rows(file, columns):
            yield f'file "{file.relative_to(path)}" {where}', row


def plain_suffix(path: Path) -> str:
    """Return the suffix that says what a file holds, .gz left out."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def is_data(file: Path) -> bool:
    """True for a data file of a kind that is read, by its name."""
    hidden = file.name.startswith(".") or file.name in _NOT_DATA
    return plain_suffix(file) in SUFFIXES and not hidden and file.is_file()


def _file_rows(path: Path, columns: Columns) -> Rows:
    where = "row 1"
    try:
        with open(path, "rb") as file:
            for where, row in _plain_rows(path, _uncompressed(path, file), columns):
                yield where, row
    except FileNotFoundError as error:
        raise UserError(f'dataset "{path}" does not exist; check "dataset_path"') from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        yield f"after {where}", BadRow(None, f"the gzip file is cut short or damaged ({error})")
    except OSError as error:
        raise UserError(f'dataset "{path}" cannot be read: {error.strerror or error}') from error


def _uncompressed(path: Path, file: BinaryIO) -> BinaryIO:
    head = file.read(2)
    file.seek(0)
    if not head:
        raise UserError(f'dataset "{path}" is empty')
    return gzip.GzipFile(fileobj=file) if head == b"\x1f\x8b" else file


def _plain_rows(path: Path, file: BinaryIO, columns: Columns) -> Rows:
    head = file.read(4096)
    file.seek(0)
    suffix = plain_suffix(path)
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return _parquet_rows(path, file, columns)
    if not head.strip():
        raise UserError(f'dataset "{path}" is empty')
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise UserError(
            f'dataset "{path}" is not UTF-8 text; '
            "JSON, JSONL and CSV are read in UTF-8, convert the file first"
        )
    if suffix == ".csv":
        return _csv_rows(file)
    if suffix == ".jsonl" or _holds_lines(file):
        return _jsonl_rows(file)
    return _json_rows(file)


def _text(file: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
    # a stray byte is kept as a lone surrogate, which the field that holds it will name
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=newline)


# --- JSON and JSONL ---------------------------------------------------------------------------


def _holds_lines(file: BinaryIO) -> bool:
    """True when the first line is a JSON object by itself and more follows."""
    line = file.readline(_FIRST_LINE)
    more = file.readline(_FIRST_LINE)
    file.seek(0)
    try:
        return bool(more.strip()) and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _jsonl_rows(file: BinaryIO) -> Rows:
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            row = json.loads(line.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            if not line.strip():
                continue
            column = f": column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            row = BadRow(None, f"not valid JSON ({getattr(error, 'msg', error)}{column})")
        yield f"line {number}", row


def _json_rows(file: BinaryIO) -> Rows:
    number = 0
    try:
        for number, row in enumerate(json_rows(_text(file)), start=1):
            yield f"row {number}", row
    except BrokenJson as error:
        what = f"not valid JSON ({error}); the file may be cut short, fetch or write it again"
        yield f"row {number + 1}", BadRow(None, what)


# --- CSV --------------------------------------------------------------------------------------


def _csv_rows(file: BinaryIO) -> Rows:
    """Yield rows as {column: text}; the first row names the columns."""
    csv.field_size_limit(sys.maxsize)  # the whole process's, 128 KB at first; a passage has more
    # strict: an open quote at the end is an error, and does not swallow the rest without a word
    reader = csv.reader(_text(file, newline=""), strict=True)
    names: list[str] | None = None
    while True:
        where = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, BadRow(None, f"not valid CSV ({error})")
            continue
        if not cells:
            continue
        if names is None:
            names = [name.strip() for name in cells]
        elif len(cells) > len(names):
            what = f"{len(cells)} cells, but the first line names {len(names)} columns"
            yield where, BadRow(None, f"{what}; is a quote missing?")
        else:
            yield where, dict(zip(names, cells, strict=False))


# --- Parquet ----------------------------------------------------------------------------------


def _parquet_rows(path: Path, file: BinaryIO, columns: Columns) -> Rows:
    # imported here: the other formats need no pyarrow, and it takes a while to load
    import pyarrow
    from pyarrow import parquet

    damaged = (pyarrow.ArrowException, OSError, ValueError)  # ValueError: names not in UTF-8
    with tempfile.TemporaryFile() as plain:
        if isinstance(file, gzip.GzipFile):  # Parquet is read from its end
            shutil.copyfileobj(file, plain)
            file = plain
        try:
            table = parquet.ParquetFile(file)
            wanted = columns(table.schema_arrow.names)
        except damaged as error:
            raise UserError(
                f'dataset "{path}" is not valid Parquet ({shown(error)}); '
                "it may be cut short, fetch it again"
            ) from error
        number = 0
        try:
            for group in range(table.num_row_groups):  # all at once would take more memory
                for batch in table.iter_batches(_BATCH, row_groups=[group], columns=wanted):
                    for row in _python_rows(batch):
                        number += 1
                        yield f"row {number}", row
        except damaged as error:
            yield f"row {number + 1}", BadRow(None, f"damaged Parquet ({shown(error)})")


def _python_rows(batch: Any) -> list[Any]:
    """Turn a record batch into dicts; where that fails, row by row to find the field at fault."""
    try:
        return batch.to_pylist()
    except ValueError:  # text that is not UTF-8, a date beyond Python's
        return [_python_row(batch.slice(place, 1)) for place in range(batch.num_rows)]


def _python_row(batch: Any) -> Row | BadRow:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except ValueError as error:
            return BadRow(name, f"cannot be read ({shown(error)})")
    return row


_SOURCES, _RESPONSES = "source_info.jsonl", "response.jsonl"


def ragtruth_rows(path: Path) -> Rows | None:
    """Yield (where, response joined with its source), or None where the path is not RAGTruth's.

    The path is the folder of the two files, or the file of responses.
    """
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
                row = _join(row, by_id)
            except BadRow as bad:
                row = bad
        yield f'file "{_RESPONSES}" {where}', row


def _join(response: Row, sources: dict[str, Row]) -> Row:
    source = text(response, "source_id")
    if source not in sources:
        raise BadRow("source_id", f'"{shown(source)}" is not in {_SOURCES}')
    return {**sources[source], **response}
