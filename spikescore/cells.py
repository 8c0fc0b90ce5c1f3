"""Cells of tables: numbers as the text that a reader sees."""

from __future__ import annotations


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


def p_value(p: float | None) -> str:
    """Return a p value as text: three digits, or "< 0.001"."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
