"""A table of a report as text: Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from spikescore.page import Table

_TEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def markdown_table(table: Table) -> str:
    """Return the table in Markdown, its note below it; no caption. It ends with an empty line."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    escaped = [[_one_line(cell).replace("|", "\\|") for cell in line] for line in lines]
    shown = [f"| {' | '.join(line)} |" for line in escaped]
    return "\n".join([*shown, *(["", _one_line(table.note)] if table.note else []), ""])


def tex_table(table: Table) -> str:
    """Return a LaTeX table; it needs the package booktabs. The caption stands above, as usual."""
    rows = [_tex_row(row) for row in table.rows]
    note = [rf"\par\smallskip\footnotesize {_tex(table.note)}"] if table.note else []
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        _tex_row(table.header),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *note,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    # {} keeps a cell that begins with "[" from being read as an option of the \\ before it
    return " & ".join("{}" * cell.startswith("[") + _tex(cell) for cell in cells) + r" \\"


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
