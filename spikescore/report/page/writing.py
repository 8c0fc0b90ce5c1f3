"""One self-contained HTML file, written as the dialogues come.

The file holds the frame with tables and plots, then the dialogues' texts in chunks (JSON, gzip,
base64), then an index of what the list shows, then the script. A browser parses chunks as opaque
text and the script unpacks the one that it needs, so thousands of dialogues cost little to open.

Nothing in a dialogue can become markup: base64 has no `<`, the index has it as an escape, and the
script puts text into the page as text. Besides, the page's own policy forbids the browser to run
any other script and to fetch anything at all.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, BinaryIO

from spikescore.files import open_atomic
from spikescore.report.content import Dialogue, Figure, Section, Table
from spikescore.report.text import csv_table, tex_table

CHUNK = 50
"""Dialogues unpacked together: about 0.5 MB of text, a few milliseconds in a browser."""
LONGEST = {"id": 200, "domain": 200, "split": 200, "question": 4_000, "gold": 4_000,
           "judge": 4_000, "turn": 20_000}  # fmt: skip
"""Characters of each text that are shown: a browser stands still over a paragraph of megabytes."""
LONGEST_DIALOGUE = 400_000
MOST_TURNS = 500
_FIELDS = ("id", "domain", "split", "y", "spike", "turn", "scores", "question", "evaluated")
_DIALOGUES_HERE = "<!-- dialogues -->"
_NUMBER = re.compile(r"(?=.*\d)(?:[\d\s.,:+\-\u2212\u2013\u00b1%\[\]()<>=/*]|n=| of |\de[+-])+")
_REMARK = re.compile(r"(?<=\]) (\(.+\))$")  # such as "(n=74)" behind an interval
_NO_NUMBER = {"n/c", "not computable", "n/a", "-", "\u2013", "\u2014", "undefined"}
_UNSAFE_IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def write_page(
    path: Path,
    *,
    title: str,
    headline: Sequence[str],
    sections: Sequence[Section],
    dialogues: Iterable[Dialogue] = (),
    settings: Sequence[tuple[str, str]] = (),
    footer: str = "",
) -> None:
    """Write the page: headline, box of settings, sections in order, browser of dialogues, footer.

    The first line of the headline stands out. Dialogues are taken one at a time and only CHUNK of
    them are held; without any, the page has no browser. The file appears when it is whole. Raises
    OSError when it cannot be written.
    """
    coming = iter(dialogues)
    first = list(itertools.islice(coming, 1))
    style, script = _asset("page.css"), _asset("page.js")
    top, bottom = _asset("page.html").split(_DIALOGUES_HERE)
    top = Template(top).substitute(
        policy=_policy(style, script),
        title=escape(title),
        style=style,
        headline=_paragraphs(headline),
        settings=_settings(settings),
        contents=_contents(sections, with_dialogues=bool(first)),
        sections="\n".join(_section(number, each) for number, each in enumerate(sections, 1)),
        footer=escape(footer),
    )
    bottom = Template(bottom).substitute(script=script)
    with open_atomic(path) as file:
        file.write(_utf8(top))
        file.write(_utf8(_data("tables", _copies(sections))))
        if first:
            _write_dialogues(file, itertools.chain(first, coming))
        file.write(_utf8(bottom))


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # half of a surrogate pair is no character


def _policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy: our own style and script, embedded images, nothing else."""

    def source(text: str) -> str:
        return f"'sha256-{b64encode(sha256(_utf8(text)).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


# --- tables and figures -----------------------------------------------------------------------


def _contents(sections: Sequence[Section], *, with_dialogues: bool) -> str:
    targets = [(f"section-{number}", each.title) for number, each in enumerate(sections, start=1)]
    targets += [("dialogues", "Dialogues")] if with_dialogues else []
    return "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in targets)


def _settings(settings: Sequence[tuple[str, str]]) -> str:
    rows = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in settings
    ]
    return f'<dl class="settings" aria-label="Settings">{"".join(rows)}</dl>' if rows else ""


def _copies(sections: Sequence[Section]) -> dict[str, tuple[str, str]]:
    """Return what the buttons beside each table copy: LaTeX and CSV."""
    return {
        _table_name(number, place): (tex_table(table), csv_table(table.header, table.rows))
        for number, section in enumerate(sections, start=1)
        for place, table in enumerate(section.tables, start=1)
    }


def _table_name(section: int, place: int) -> str:
    return f"section-{section}-table-{place}"


def _section(number: int, section: Section) -> str:
    name = f"section-{number}"
    parts = [f'<section id="{name}" aria-labelledby="{name}-title">']
    parts += [f'<h2 id="{name}-title">{escape(section.title)}</h2>', _paragraphs(section.text)]
    parts += [
        _table(table, _table_name(number, place)) for place, table in enumerate(section.tables, 1)
    ]
    parts += [_figure(figure) for figure in section.figures]
    return "\n".join([*parts, "</section>"])


def _paragraphs(texts: Iterable[str]) -> str:
    return "\n".join(f"<p>{escape(text)}</p>" for text in texts)


def _table(table: Table, name: str) -> str:
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    heads = [
        f'<th scope="col"{_alignment(column)}>{escape(text)}</th>'
        for text, column in zip(table.header, columns, strict=True)
    ]
    rows = []
    for row, (label, *cells) in enumerate(table.rows):
        data = [
            f"<td{_alignment((cell,), bold=(row, column) in table.bold)}>{_cell(cell)}</td>"
            for column, cell in enumerate(cells, start=1)
        ]
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{"".join(data)}</tr>')
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<figure class="table"><figcaption id="{name}">{escape(table.caption)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}">'
        f'<table aria-labelledby="{name}"><thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>{chr(10).join(rows)}</tbody></table></div>{note}</figure>"
    )


def _cell(text: str) -> str:
    """Return a cell whose remark can stand below its interval where the page is narrow."""
    return _REMARK.sub(r' <span class="remark">\1</span>', escape(text))


def _alignment(cells: Sequence[str], *, bold: bool = False) -> str:
    """Return the classes of cells: a number where all read as numbers, intervals included, or stand
    for one that is missing (empty ones do not count), and whether they stand out.
    """
    filled = [cell for cell in cells if cell]
    numeric = filled and all(cell in _NO_NUMBER or _NUMBER.fullmatch(cell) for cell in filled)
    names = ["number"] * bool(numeric) + ["best"] * bold
    return f' class="{" ".join(names)}"' if names else ""


def _figure(figure: Figure) -> str:
    source = f"data:image/png;base64,{b64encode(figure.png).decode()}"
    caption = escape(figure.caption)
    return (
        f'<figure class="plot"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{caption}"><img src="{source}" alt="{escape(figure.alt or figure.caption)}">'
        f"</div><figcaption>{caption}</figcaption></figure>"
    )


# --- dialogues --------------------------------------------------------------------------------


def _write_dialogues(file: BinaryIO, dialogues: Iterable[Dialogue]) -> None:
    """Write the texts, chunk by chunk, and after them the index."""
    index = _Index()
    for number, chunk in enumerate(_in_chunks(dialogues)):
        chunk = [_shortened(dialogue) for dialogue in chunk]
        for dialogue in chunk:
            index.add(dialogue)
        texts = [[one.gold, one.turns, one.judge] for one in chunk]
        # a fixed time makes the same dialogues the same bytes
        packed = b64encode(gzip.compress(_utf8(_json(texts)), compresslevel=6, mtime=0))
        head = f'<script type="application/octet-stream" id="chunk-{number}">'
        file.write(head.encode() + packed + b"</script>\n")
    file.write(_utf8(_data("index", index.content())))


def _data(name: str, content: Any) -> str:
    """Return data for the script, from which no markup can be made."""
    text = _json(content).translate(_UNSAFE_IN_SCRIPT)
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _in_chunks(dialogues: Iterable[Dialogue]) -> Iterator[list[Dialogue]]:
    coming = iter(dialogues)
    while chunk := list(itertools.islice(coming, CHUNK)):
        yield chunk


def _shortened(dialogue: Dialogue) -> Dialogue:
    """Return a dialogue with texts, and so many of them, as a browser can show at once; what is cut
    says how long it is.
    """
    turns, left = [], LONGEST_DIALOGUE
    for kind, *said in dialogue.turns[:MOST_TURNS]:
        said = [_cut(text, min(LONGEST["turn"], max(left // 8, 200))) for text in said]
        left -= sum(map(len, said))
        turns.append((_cut(kind, 200), *said))
    if len(dialogue.turns) > MOST_TURNS:
        more = f"{len(dialogue.turns) - MOST_TURNS:,} more turns are not shown here"
        turns.append(("cut", f"[{more}; the dialogue's JSON file has them]", ""))
    names = ("id", "domain", "split", "question", "gold", "judge")
    texts = {name: _cut(getattr(dialogue, name), LONGEST[name]) for name in names}
    return replace(dialogue, **texts, turns=tuple(turns))


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return (
        f"{text[:longest]} [cut here: {longest:,} of {len(text):,} characters are shown; "
        "the dialogue's JSON file has them all]"
    )


class _Index:
    """What the list shows, sorts and searches: a column per field, names numbered."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in _FIELDS}
        self.names: dict[str, dict[str, int]] = {"domain": {}, "split": {}}

    def add(self, dialogue: Dialogue) -> None:
        row = {
            "id": dialogue.id,
            "domain": self._number("domain", dialogue.domain),
            "split": self._number("split", dialogue.split),
            "y": dialogue.y,
            "spike": _rounded(dialogue.spike_score, 6),  # which the list is sorted by
            "turn": dialogue.spike_turn,
            "scores": [_rounded(score) for score in dialogue.scores],
            "question": dialogue.question,
            "evaluated": int(dialogue.evaluated),
        }
        for name, value in row.items():
            self.columns[name].append(value)

    def content(self) -> dict[str, Any]:
        names = {f"{field}s": list(numbers) for field, numbers in self.names.items()}
        return {"chunk": CHUNK, **names, **self.columns}

    def _number(self, field: str, name: str) -> int:
        return self.names[field].setdefault(name, len(self.names[field]))


def _rounded(value: float | None, digits: int = 3) -> float | None:
    """Return a score to as many decimals as are shown; None for one that is missing."""
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
