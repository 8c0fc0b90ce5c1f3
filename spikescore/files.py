"""The pair on disk: `<id>.json` with the dialogue and `<id>.pkl` with its hidden states.

Everything that reads or writes a pair goes through here, so that the promises are kept in one
place: loading a pickle never runs code from it, a write is atomic, the PKL is written before the
JSON, and a JSON with `"complete": true` marks a finished pair. The older public form of both files
is read, never written.

States are a dict `{turn: {token_key: array}}`, turn counted from 1, each array FP16 of shape
`[L+1, H]` (index 0 = embedding output, last = the final entry of `output_hidden_states`).
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from spikescore.errors import UserError

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Inside a JSON string the quotes would have backslashes, so this is a key and its value.
_TOKEN_IDS = re.compile(r'"((?:prompt|response)_ids)": (\[ [0-9, ]+ \])')


class JsonText(str):
    """A JSON value as text, which `write_json` writes as it stands."""

    __slots__ = ()


# --- writing ----------------------------------------------------------------------------------


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file to write so that the path holds either its old content or, once the block
    has ended without an error, all of the new, even after kill -9.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes as `open_atomic` does."""
    with open_atomic(path) as file:
        file.write(data)


def write_json(path: Path, record: Any) -> None:
    """Write UTF-8 JSON, indented, atomically; NaN and infinity, not JSON, are a ValueError.

    Half of a surrogate pair, which UTF-8 cannot hold, is written as U+FFFD.
    """
    text = _indented(record) + "\n"
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = _LONE_SURROGATE.sub("\ufffd", text).encode()
    write_atomic(path, data)


def _indented(value: Any, line: str = "\n") -> str:
    """Return JSON indented by two spaces, but a list of numbers (token ids) on one line.

    `line` begins a new line at the value's own indentation. `json.dumps(indent=2)` gives the same
    but for those lists, and walks them in Python: most of the time that scoring a pair would take.
    """
    if isinstance(value, JsonText):
        return value
    if not isinstance(value, dict | list | tuple) or not value:
        return repr(value) if type(value) is int else _encode(value)
    inner = line + "  "
    if isinstance(value, dict):
        entries = [f"{_key(key)}: {_indented(entry, inner)}" for key, entry in value.items()]
        return "{" + inner + f",{inner}".join(entries) + line + "}"
    if all(issubclass(kind, int | float) and kind is not bool for kind in set(map(type, value))):
        return f"[ {_encode(value)[1:-1]} ]"
    entries = [_indented(entry, inner) for entry in value]
    return "[" + inner + f",{inner}".join(entries) + line + "]"


def _key(key: Any) -> str:
    """Return a key of a JSON object, which is always a string there."""
    return _encode(key) if isinstance(key, str) else _encode({key: 0})[1:-4]


# --- reading ----------------------------------------------------------------------------------


def read_json(path: Path, *, ids_as_text: bool = False) -> Any:
    """Read a JSON file; UserError with file, line and column when it is missing or broken.

    With ids_as_text, a dialogue's lists of token ids stay text, unchecked (`JsonText`), where they
    have the form that `write_json` gives them: to decode and encode them takes longer than all else
    in the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return _decode_sparing_ids(text) if ids_as_text else json.loads(text)
    except FileNotFoundError as error:
        raise UserError(f'"{path}" does not exist') from error
    except OSError as error:
        raise UserError(f'"{path}" cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise UserError(
            f'"{path}" is not valid JSON ({error}); restore or delete the file'
        ) from error


def _decode_sparing_ids(text: str) -> Any:
    """Decode JSON but for lists of token ids, each of which becomes a JsonText.

    An object with a fresh random key, which no file can hold, keeps each list's place.
    """
    mark = secrets.token_hex(16)
    lists: list[JsonText] = []

    def set_aside(match: re.Match[str]) -> str:
        lists.append(JsonText(match[2]))
        return f'"{match[1]}": {{"{mark}": {len(lists) - 1}}}'

    def put_back(entry: dict[str, Any]) -> Any:
        return lists[entry[mark]] if mark in entry else entry

    try:
        return json.loads(_TOKEN_IDS.sub(set_aside, text), object_hook=put_back)
    except ValueError:
        return json.loads(text)  # whose error names the place in the text as it is
