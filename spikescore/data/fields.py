"""How an adapter reads the fields of a row: by name, so that whatever is wrong ends as a `BadRow`
that names the field.

Three things are alike wherever they stand. A value is missing when its key is, or when it is null,
NaN or blank. A list or an object may be written as text, as a CSV or another text column holds it.
And a set that withholds its answers writes a mark in their place (`is_withheld`), which is no
answer.
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import re
import tokenize
from decimal import Decimal
from typing import Any

from spikescore.data.question import Row, distinct
from spikescore.pairs import file_id

_SHOWN = 120
"""Characters of a value that an error message quotes."""
_NULLS = frozenset({"null", "NULL", "None", "nan", "NaN", "<NA>", "NaT"})
"""What Python, pandas and JSON make of a missing value in a column of texts."""
_WITHHELD = re.compile(
    r"[\[(<{]+\s*(unk|unknown|hidden|withheld|redacted|masked|mask|missing|none|null|n/?a|blank|"
    r"private|secret|open[- ]ended|not (given|available|released|provided|public)|no answer|test)"
    r"\s*[\])>}]+|\?+|-+|_+|\.{3,}|\u2026",
    re.IGNORECASE,
)
_MARKS = frozenset({"tbd", "tba", "n/a", "#n/a", "withheld", "redacted"})
_BRACKETS = re.compile(r"\s*(array\s*\(|\")?\s*[\[{(]")
_QUOTED = re.compile(r"(array\s*\(\s*)?[\[{(]+\s*[\"']")
_SENTENCE, _DESCRIBED = 30, 200
"""Characters of a text that may be part of the content; and of one kept to split results by."""

_NOT_READ = (
    ValueError, SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError,
)  # fmt: skip
"""What reading a text as Python's raises; TypeError where a list is the key of an object."""


class BadRow(ValueError):
    """A row that cannot become a question; `name` is the field at fault, None for the whole row."""

    def __init__(self, name: str | None, what: str) -> None:
        super().__init__(f'field "{shown(name)}": {what}' if name else what)
        self.name = name
        self.what = what


# --- what a value is --------------------------------------------------------------------------


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
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), type(value).__name__)


def is_missing(value: Any) -> bool:
    """True for null, NaN and blank text."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def is_withheld(value: Any) -> bool:
    """True where an answer is missing, or is a mark for one that is not given: "<unk>", "?"."""
    if isinstance(value, str):
        said = value.strip()
        if not said or said.casefold() in _MARKS:
            return True
        return not said[0].isalnum() and bool(_WITHHELD.fullmatch(said))
    if isinstance(value, list | tuple):
        return all(isinstance(one, str) and one.strip() and is_withheld(one) for one in value)
    if isinstance(value, dict):
        return all(is_withheld(part) for part in value.values())
    return is_missing(value)


def parsed(value: Any, name: str) -> Any:
    """Return a value, or the list or object that it holds as text (JSON, Python's, numpy's).

    Any other text comes back as it is, a bracketed one too: [sic], (1, 2). Raises BadRow for a
    list of quoted texts that cannot be read.
    """
    if not isinstance(value, str) or not _BRACKETS.match(value):
        return value
    text = value.strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        inner = parsed(found, name)  # a text may have been written as text again
        return value if isinstance(inner, str) else inner
    if re.fullmatch(r"\[[\d\s.eE+-]+\]", text):  # numpy's numbers
        return text[1:-1].split()
    try:
        found = _literal(ast.parse(_with_commas(text), mode="eval").body)
    except _NOT_READ as error:
        if not _QUOTED.match(text):
            return value
        what = "begins as a list or an object and cannot be read as one, write it as JSON"
        raise BadRow(name, f"{what} ({shown(text)})") from error
    in_place = isinstance(found, list) and text[0] == "(" and not _QUOTED.match(text)
    return found if isinstance(found, list | dict) and not in_place else value


def _with_commas(text: str) -> str:
    """Put commas between texts beside each other: numpy writes none, and Python would join them."""
    parts: list[str] = []
    before = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.NAME, tokenize.NUMBER, tokenize.OP):
            parts += [","] * (before == token.type == tokenize.STRING) + [token.string]
            before = token.type
    return " ".join(parts)


def _literal(node: ast.expr) -> Any:
    """Evaluate a literal; unlike `ast.literal_eval` it knows array(...), nan and null."""
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_literal(one) for one in node.elts]
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        values = map(_literal, node.values)
        return {str(key.value): value for key, value in zip(node.keys, values, strict=True)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
        if node.func.id == "array":
            return _literal(node.args[0])
    if isinstance(node, ast.Name) and node.id in ("nan", "null", "NaN", "true", "false"):
        return {"true": True, "false": False}.get(node.id)
    return ast.literal_eval(node)


# --- fields -----------------------------------------------------------------------------------


def get(row: Row, name: str) -> Any:
    """Return a field that must be there; it may be null."""
    if name not in row:
        near = difflib.get_close_matches(name, map(str, row), n=1)
        hint = f', did you mean "{shown(near[0])}"?' if near else ""
        raise BadRow(name, f"missing (the row has {keys_of(row)}{hint})")
    return row[name]


def optional(row: Row, name: str) -> Any:
    """Return a field's value, None where it is missing or a text column's way to say so."""
    value = row.get(name)
    if isinstance(value, str):
        said = value.strip()
        return None if not said or said in _NULLS else value
    return None if is_missing(value) else value


def text(row: Row, name: str) -> str:
    """Return a field's non-empty text, see `as_text`."""
    return as_text(row[name] if name in row else get(row, name), name)


def as_text(value: Any, name: str) -> str:
    """Return a non-empty string; a number becomes its shortest text (17.0 -> "17")."""
    if not isinstance(value, str):
        return _number_text(value, name)
    value = value.strip()
    if not value:
        raise BadRow(name, "is empty")
    if not value.isascii():
        try:
            value.encode("utf-16")  # refuses what UTF-8 does, in half the time
        except UnicodeEncodeError as error:
            # files are decoded with "surrogateescape": a stray byte arrives as U+DC80 to U+DCFF
            stray = "\udc80" <= value[error.start] <= "\udcff"
            what = "bytes that are not UTF-8, convert the file" if stray else "half of a character"
            raise BadRow(name, f"holds broken Unicode ({what})") from error
    return value


def _number_text(value: Any, name: str) -> str:
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        raise BadRow(name, f"expected text, found {kind(value)}")
    if not isinstance(value, int) and not math.isfinite(value):
        raise BadRow(name, f"{value} is not a number that can be an answer")
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value)) if whole else str(value)


def optional_text(row: Row, name: str) -> str | None:
    """Return a field's text, None where it is missing."""
    value = optional(row, name)
    return None if value is None else as_text(value, name)


def items(row: Row, name: str, *, some: bool = False) -> list[Any]:
    """Return a field that must be a list; with `some`, one that is not empty."""
    value = parsed(get(row, name), name)
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
    value = parsed(get(row, name), name)
    if not isinstance(value, dict):
        raise BadRow(name, f"expected an object, found {kind(value)}")
    return value


def texts(row: Row, name: str, *, some: bool = False, brackets: bool = False) -> tuple[str, ...]:
    """Return a list of non-empty strings; one string or number counts as a list of one.

    With `brackets` a text of numbers in brackets stays one text: an interval, a point.
    """
    value = get(row, name)
    # (1, 2), [0, x], {3}: in brackets, and nothing is quoted
    one = brackets and isinstance(value, str) and not re.search("[\"']", value)
    listed = value if one else parsed(value, name)
    if isinstance(listed, dict):
        raise BadRow(name, f"expected text or a list of texts, found {kind(listed)}")
    if isinstance(listed, str) and listed.strip() in _NULLS:
        raise BadRow(name, f'"{listed}" is a missing value written as text; leave it empty')
    values = listed if isinstance(listed, list) else [listed]
    if some and not values:
        raise BadRow(name, "is empty")
    return tuple(as_text(one, name) for one in values)


def optional_texts(row: Row, name: str) -> tuple[str, ...]:
    """Return a list of texts, () where the field is missing."""
    return () if optional(row, name) is None else texts(row, name)


def joined_texts(row: Row, name: str) -> tuple[str, ...]:
    """Return the parts of one text that joins several by ";", empty ones left out; or of a list."""
    if isinstance(parsed(get(row, name), name), list):
        return distinct(texts(row, name, some=True))
    parts = (part.strip() for part in text(row, name).split(";"))
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
    """Return the row's own id, or a hash of its content where no file could be named by that."""
    own = optional(row, name) if name else None
    content = json.dumps(row, sort_keys=True, default=str)
    if own is None:
        return file_id(None, content)
    stripped = as_text(own, str(name))
    return usable_id(own if isinstance(own, str) else stripped, content)


def usable_id(own: str, content: str) -> str:
    """Return an id as it is where a file can be named after it, else a hash of the content."""
    return own if file_id(own, "") != file_id(None, "") else file_id(None, content)


def described(row: Row, content: list[str], known: Row) -> Row:
    """Return what a row says in short columns (numbers, true/false, short texts), as JSON can.

    Left out are columns that are `known` already, and texts that are the `content` of its question,
    or a long part of it.
    """
    found = {}
    for name, value in row.items():  # of every row of every set: as little as can be done
        if name in known:
            continue
        if isinstance(value, str):
            said = value.strip() if len(value) <= _DESCRIBED else ""
            if not said or said in content:
                continue
            if len(said) <= _SENTENCE or not any(said in text for text in content):
                found[name] = value
        elif isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            found[name] = value
        elif isinstance(value, float | Decimal) and not math.isnan(value):
            found[name] = plain(value)
    return found


_PLAIN = frozenset({str, int, bool, type(None)})
_KEPT = _PLAIN | {tuple}


def make_plain(meta: Row) -> Row:
    """Turn the values of a `meta` into what JSON can hold, in place; tuples of texts stay."""
    odd = [
        name
        for name, value in meta.items()
        # a finite number less itself is 0.0, any other is NaN
        if (known := type(value)) not in _KEPT and (known is not float or value - value)
    ]
    for name in odd:
        meta[name] = plain(meta[name])
    return meta


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN is null, other things are their text."""
    known = type(value)
    if known in _PLAIN or (known is float and math.isfinite(value)):
        return value
    if known is list and _PLAIN.issuperset(map(type, value)):
        return value
    if isinstance(value, str | int):
        return value
    if isinstance(value, float | Decimal):
        number = float(value)
        return number if math.isfinite(number) else None if math.isnan(number) else str(number)
    if isinstance(value, dict):
        return {
            str(key): part if type(part) in _PLAIN else plain(part) for key, part in value.items()
        }
    return [plain(part) for part in value] if isinstance(value, list | tuple) else str(value)
