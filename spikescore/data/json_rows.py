"""Rows of a big JSON file, one at a time: the file is never held as a whole.

Publishers ship sets of gigabytes as one JSON list, or as an object with the list under "data". The
standard library parses a whole text only; here its decoder is given a window of the file that grows
just as far as the next value needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_WINDOW = 1 << 16
_SPACE = re.compile(r"[ \t\n\r]*")
_TAIL = 16
"""A value cut off at the window's end fails within so many characters of it (a \\uXXXX pair)."""
_LISTS = ("data", "Data")

_decode = json.JSONDecoder().raw_decode


class BrokenJson(ValueError):
    """The text is not JSON from here on."""


class JsonReader:
    """Reads one token or value after the other and forgets what it has read."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0

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
            wanted = " or ".join(f'"{one}"' for one in allowed)
            raise BrokenJson(f"expected {wanted}, found " + (f'"{found}"' if found else "the end"))
        self._at += 1
        return found

    def value(self) -> Any:
        """Return the next value, whatever its size."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _TAIL or error.msg.startswith("Unterminated")
                if not (cut and self._more()):
                    raise BrokenJson(error.msg) from error
            except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
                raise BrokenJson(str(error)) from error
            else:
                # a number may go on after the window: "1", "1.", "1e+" are all read as 1
                if end < len(self._text) - len("e+") or not self._more():
                    self._at = end
                    return value

    def _more(self) -> bool:
        rest = self._text[self._at :]
        # twice as much each time, so that a long value costs no more than a few times its length
        chunk = self._file.read(max(_WINDOW, len(rest)))
        if chunk:
            self._text, self._at = rest + chunk, 0
        return bool(chunk)


def json_rows(file: TextIO) -> Iterator[Any]:
    """Yield the entries of a JSON list, of the list under "data", or else the whole object.

    An object {"questions": [...]} that is no story of CoQA is BioASQ's way to hold a list, and is
    held in memory. Raises BrokenJson where the text stops being JSON, after the rows before it, and
    yields any other value (a text, a number) as it stands.
    """
    reader = JsonReader(file)
    opening = reader.peek()
    if opening == "[":
        yield from _entries(reader)
    elif opening == "{":
        yield from _object(reader)
    else:
        yield reader.value()
    if reader.peek():
        raise BrokenJson("there is more after the end of the list or object")


def _entries(reader: JsonReader) -> Iterator[Any]:
    reader.take("[")
    if reader.peek() == "]":
        reader.take("]")
        return
    while True:
        yield reader.value()
        if reader.take(",]") == "]":
            return


def _object(reader: JsonReader) -> Iterator[Any]:
    reader.take("{")
    record: dict[str, Any] = {}
    streamed = False
    more = reader.peek() != "}"
    if not more:
        reader.take("}")
    while more:
        if reader.peek() != '"':
            raise BrokenJson("expected a key in double quotes")
        key = reader.value()
        reader.take(":")
        if key in _LISTS and reader.peek() == "[":
            streamed = True
            yield from _entries(reader)
        else:
            record[key] = reader.value()
        more = reader.take(",}") == ","
    if streamed:
        return
    asked = record.get("questions")
    if isinstance(asked, list) and "story" not in record:
        yield from asked
    else:
        yield record
