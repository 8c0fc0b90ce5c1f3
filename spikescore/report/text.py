"""A table of a report as text for other programs: Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from spikescore.report.content import Table
from spikescore.stats.bootstrap import Area, Contrast

_TEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u2212": "--",
    **{sign: rf"\ensuremath{{{name}}}" for sign, name in {
        "\u0394": r"\Delta", "\u03a3": r"\Sigma", "\u03ba": r"\kappa", "\u03bb": r"\lambda",
        "\u03bc": r"\mu", "\u03c3": r"\sigma", "\u00b2": "^2", "\u00b1": r"\pm",
        "\u2264": r"\leq", "\u2265": r"\geq", "\u00d7": r"\times",
    }.items()},
}  # fmt: skip


def markdown_table(table: Table) -> str:
    """Return the table in Markdown, its note below it; no caption. It ends with an empty line.

    A cell that stands out ends in an asterisk: it begins with its figure, as all others do.
    """
    rows = _marked(table, "{} *".format, lambda cell: _one_line(cell).replace("|", "\\|"))
    lines = [[_one_line(cell).replace("|", "\\|") for cell in table.header]]
    lines += [["---"] * len(table.header), *rows]
    shown = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*shown, *(["", _one_line(table.note)] if table.note else []), ""])


def headed_table(table: Table, before: str = "") -> str:
    """Return the table in Markdown under its caption; `before` stands in front of the caption."""
    return f"## {before}{table.caption}\n\n{markdown_table(table)}"


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return header and rows as CSV (RFC 4180, but lines end with a line feed); None is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def tex_table(table: Table) -> str:
    """Return a LaTeX table; it needs the package booktabs. The caption stands above, as usual."""
    rows = [_tex_row(row) for row in _marked(table, r"\textbf{{{}}}".format, _tex)]
    note = [rf"\par\smallskip\footnotesize {_tex(table.note)}"] if table.note else []
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        _tex_row([_tex(cell) for cell in table.header]),
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
    return " & ".join("{}" * cell.startswith("[") + cell for cell in cells) + r" \\"


def _marked(
    table: Table, mark: Callable[[str], str], escape: Callable[[str], str]
) -> list[list[str]]:
    """Return the escaped cells of a table, those that stand out marked."""
    return [
        [mark(escape(cell)) if (row, column) in table.bold and cell else escape(cell)
         for column, cell in enumerate(cells)]
        for row, cells in enumerate(table.rows)
    ]  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in _one_line(text))


def whole_characters(text: str) -> str:
    """Return a text that can be drawn and written: "?" for each half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number as text; empty when there is none."""
    return "" if value is None else format(value, form)


def with_interval(
    value: float | None, interval: tuple[float, float] | None, form: str = ".3f"
) -> str:
    """Return "value [low, high]"; "not computable" without a value."""
    if value is None:
        return "not computable"
    if interval is None:
        return format(value, form)
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def figure_cell(figure: Area | Contrast | None, form: str = ".3f") -> str:
    """Return "value [low, high] (a of b)", the last where some AUROCs are missing; "" for None."""
    if figure is None:
        return ""
    told = with_interval(figure.value, figure.interval, form)
    return told + (share(*figure.parts) if figure.value is not None else "")


def share(made: int, of: int) -> str:
    """Return " (a of b)" where a mean lacks some of what it is over; empty where it lacks none."""
    return "" if made == of else f" ({made} of {of})"


def mean_cell(cells: Sequence[Sequence[float | None]]) -> str:
    """Return the mean of the cells' means, and over how many values where some are missing."""
    known = [[value for value in cell if value is not None] for cell in cells]
    means = [sum(cell) / len(cell) for cell in known if cell]
    if not means:
        return "not computable"
    made, of = (sum(map(len, values)) for values in (known, cells))
    return f"{sum(means) / len(means):.3f}{share(made, of)}"


def counted(areas: Mapping[str, Area]) -> dict[str, float | None]:
    """Return AUROCs by name, and for means of several, "<name> (AUROCs)", how many they are of."""
    over = {f"{name} (AUROCs)": one.parts[0] for name, one in areas.items() if one.parts[1] > 1}
    return {name: one.value for name, one in areas.items()} | over


MISSING = "(a of b): the mean is over a of b AUROCs; the others are not computable or not scored."


def p_value(p: float | None) -> str:
    """Return a p value as text: three digits, or "< 0.001"."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
