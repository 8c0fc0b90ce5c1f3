"""The record that every adapter makes, and how an adapter reads the fields of a row.

An adapter is a function from one row of a file (a dict, as JSON, CSV or Parquet gives it) to
questions. It reads fields by name through the functions here, so that whatever is wrong with a row
ends as a `BadRow` that names the field.
"""

from __future__ import annotations

import json
import math
from typing import Any

from spikescore.data.question import Row, distinct
from spikescore.pairs import file_id

_SHOWN = 120
"""Characters of a value that an error message quotes."""


class BadRow(ValueError):
    """A row that cannot become a question; `name` is the field at fault, None for the whole row."""

    def __init__(self, name: str | None, what: str) -> None:
        super().__init__(f'field "{shown(name)}": {what}' if name else what)
        self.name = name
        self.what = what


# --- fields -----------------------------------------------------------------------------------


def shown(value: object) -> str:
    """Return a value as an error message quotes it: on one line, and not at full length."""
    text = " ".join(str(value)[: _SHOWN + 1].split())
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def keys_of(row: Row) -> str:
    """Return the row's first keys for an error message."""
    return shown(", ".join(sorted(map(str, row))[:12]))


def kind(value: Any) -> str:
    """Return what a value is, in the words of JSON."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "null"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), type(value).__name__)


def get(row: Row, name: str) -> Any:
    """Return a field that must be there; it may be null."""
    if name not in row:
        raise BadRow(name, f"missing (the row has {keys_of(row)})")
    return row[name]


def text(row: Row, name: str) -> str:
    """Return a field's non-empty text, see `as_text`."""
    return as_text(get(row, name), name)


def as_text(value: Any, name: str) -> str:
    """Return a non-empty string; a number becomes its shortest text (17.0 -> "17")."""
    if not isinstance(value, str):
        return _number_text(value, name)
    value = value.strip()
    if not value:
        raise BadRow(name, "is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # files are decoded with "surrogateescape": a stray byte arrives as U+DC80 to U+DCFF
            stray = "\udc80" <= value[error.start] <= "\udcff"
            what = "bytes that are not UTF-8, convert the file" if stray else "half of a character"
            raise BadRow(name, f"holds broken Unicode ({what})") from error
    return value


def _number_text(value: Any, name: str) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadRow(name, f"expected text, found {kind(value)}")
    if not math.isfinite(value):
        raise BadRow(name, f"{value} is not a number that can be an answer")
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value)) if whole else str(value)


def optional_text(row: Row, name: str) -> str | None:
    """Return a field's text, None where it is missing, null or empty."""
    value = row.get(name)
    return None if value is None or value == "" else as_text(value, name)


def items(row: Row, name: str, *, some: bool = False) -> list[Any]:
    """Return a field that must be a list; with `some`, one that is not empty."""
    value = get(row, name)
    if not isinstance(value, list):
        raise BadRow(name, f"expected a list, found {kind(value)}")
    if some and not value:
        raise BadRow(name, "is empty")
    return value


def objects(row: Row, name: str, *, some: bool = False) -> list[Row]:
    """Return a field that must be a list of objects; with `some`, one that is not empty."""
    values = items(row, name, some=some)
    for place, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise BadRow(name, f"entry {place}: expected an object, found {kind(value)}")
    return values


def mapping(row: Row, name: str) -> Row:
    """Return a field that must be an object."""
    value = get(row, name)
    if not isinstance(value, dict):
        raise BadRow(name, f"expected an object, found {kind(value)}")
    return value


def texts(row: Row, name: str, *, some: bool = False) -> tuple[str, ...]:
    """Return a list of non-empty strings; one string or number counts as a list of one."""
    value = get(row, name)
    values = value if isinstance(value, list) else [value]
    if some and not values:
        raise BadRow(name, "is empty")
    return tuple(as_text(one, name) for one in values)


def joined_texts(row: Row, name: str, separator: str) -> tuple[str, ...]:
    """Return the parts of one text that joins several, empty ones left out."""
    parts = (part.strip() for part in text(row, name).split(separator))
    return distinct(part for part in parts if part)


def flag(row: Row, name: str) -> bool:
    """Return a field that says yes or no: true/false, 1/0, or these as text."""
    value = get(row, name)
    known = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    answer = known.get(str(value).strip().casefold())
    if answer is None and isinstance(value, str):
        value = as_text(value, name)
    if answer is None:
        raise BadRow(name, f'"{shown(value)}" is neither 1 nor 0, true nor false')
    return answer


def own_id(row: Row, name: str | None) -> str:
    """Return the row's own id made safe for a file name, or else a hash of the row's content."""
    own = row.get(name) if name else None
    if own is not None and (isinstance(own, bool) or not isinstance(own, str | int)):
        raise BadRow(str(name), f"expected text or a whole number, found {kind(own)}")
    if own is not None:
        safe = file_id(own, "")
        if safe != file_id(None, ""):  # else the id cannot be a file name
            return safe
    return file_id(None, json.dumps(row, sort_keys=True, default=str))
