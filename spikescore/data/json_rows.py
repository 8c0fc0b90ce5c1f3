"""Rows of a big JSON file, one at a time: the file is never held as a whole.

Publishers ship sets of gigabytes as one JSON list, or as an object with the list under "data". The
standard library's decoder is given a window of the file that grows just as far as the next value
needs, so that a row is what `json.loads` makes of it. A parser of events would lose rows that are
in use: yajl (ijson) ends at the NaN that pandas writes, at a whole number beyond 64 bits and at a
byte that is not UTF-8, and reads half of a surrogate pair as "?".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

_WINDOW = 1 << 16
_SPACE = re.compile(r"[ \t\n\r]*")
_TAIL = 16
"""A value cut off at the window's end fails within so many characters of it (a \\uXXXX pair)."""
_LISTS = ("data", "Data")


def decoder(twice: list[str]) -> json.JSONDecoder:
    """Return a decoder that puts each key which an object holds twice, with values that differ,
    into a list: which of them is meant, only who wrote the file knows.
    """

    def read(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(entries)
        if len(found) < len(entries):
            twice.extend(key for key, value in entries if value != found[key])
        return found

    return json.JSONDecoder(object_pairs_hook=read)


class BrokenJson(ValueError):
    """The text is not JSON from here on; the message ends with line and column."""


class _Reader:
    """Reads one token or value after the other and forgets what it has read."""

    def __init__(self, file: TextIO, decode: Callable[[str, int], tuple[Any, int]]) -> None:
        self._decode = decode
        self._file, self._text, self._at = file, "", 0
        self._line = self._column = 1  # where the window begins

    def peek(self) -> str:
        """Return the next character that is not white space, "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, allowed: str) -> str:
        """Step over the next character, which must be one of those allowed."""
        found = self.peek()
        if not found or found not in allowed:
            wanted = " or ".join(f"'{one}'" for one in allowed) or "the end of the file"
            shown = repr(found) if found else "the end of the file"
            raise self._broken(f"expected {wanted}, found {shown}", self._at)
        self._at += 1
        return found

    def value(self) -> Any:
        """Return the next value, whatever its size."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _TAIL or error.msg.startswith("Unterminated")
                if not (cut and self._more()):
                    raise self._broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
                raise self._broken(str(error), self._at) from error
            else:
                # a number may go on after the window: "1", "1.", "1e+" are all read as 1
                if end < len(self._text) - len("e+") or not self._more():
                    self._at = end
                    return value

    def entries(self) -> Iterator[Any]:
        """Yield the entries of the list that comes next."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def _more(self) -> bool:
        rest = self._text[self._at :]
        # twice as much each time, so that a long value costs no more than a few times its length
        chunk = self._file.read(max(_WINDOW, len(rest)))
        if chunk:
            self._line, self._column = self._place(self._at)
            self._text, self._at = rest + chunk, 0
        return bool(chunk)

    def _place(self, at: int) -> tuple[int, int]:
        """Return line and column of a place in the window, counted from 1 in the whole file."""
        last = self._text.rfind("\n", 0, at)
        column = self._column + at if last < 0 else at - last
        return self._line + self._text.count("\n", 0, at), column

    def _broken(self, what: str, at: int) -> BrokenJson:
        line, column = self._place(at)
        return BrokenJson(f"{what}: line {line} column {column}")


def json_rows(file: TextIO, decoder: json.JSONDecoder | None = None) -> Iterator[Any]:
    """Yield the entries of a JSON list, of the list under "data", or else the whole object.

    An object {"questions": [...]} that is no story of CoQA is BioASQ's way to hold a list, and is
    held in memory. Raises BrokenJson where the text stops being JSON, after the rows before it, and
    yields any other value (a text, a number) as it stands.
    """
    reader = _Reader(file, (decoder or json.JSONDecoder()).raw_decode)
    opening = reader.peek()
    if opening == "[":
        yield from reader.entries()
    elif opening == "{":
        yield from _object(reader)
    else:
        yield reader.value()
    if reader.peek():
        reader.take("")


def _object(reader: _Reader) -> Iterator[Any]:
    record: dict[str, Any] = {}
    streamed = False
    reader.take("{")
    more = reader.peek() != "}" or not reader.take("}")
    while more:
        if reader.peek() != '"':
            reader.take('"')
        key = reader.value()
        reader.take(":")
        if key in _LISTS and reader.peek() == "[":
            streamed = True
            yield from reader.entries()
        else:
            record[key] = reader.value()
        more = reader.take(",}") == ","
    asked = record.get("questions")
    if isinstance(asked, list) and "story" not in record:
        yield from [] if streamed else asked
    elif not streamed:
        yield record
