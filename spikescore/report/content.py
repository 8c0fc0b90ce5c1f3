"""What stands on a report page. Texts are plain text: nothing in them is read as markup."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of cells that are already text; one that reads as a number is aligned to the right.

    `bold` has the (row, column) of the cells that stand out, both counted from 0. Raises ValueError
    when a row is not as long as the header.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    bold: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        for place, row in enumerate(self.rows, start=1):
            if len(row) != len(self.header):
                raise ValueError(
                    f'table "{self.caption}", row {place}: {len(row)} cells under '
                    f"{len(self.header)} headings"
                )


@dataclass(frozen=True)
class Figure:
    """A plot as the bytes of a PNG; `alt` says in words what it shows."""

    caption: str
    png: bytes
    alt: str = ""

    @classmethod
    def of_tables(cls, png: bytes, caption: str) -> Figure:
        """Return a plot of figures that stand in tables too."""
        return cls(caption, png, alt=f"{caption} The tables give the figures.")


@dataclass(frozen=True)
class Section:
    """A heading, then paragraphs, tables and figures in this order."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """One dialogue to read: `turns` holds (prompt_type, prompt, response) of each turn.

    `y` is 1 for hallucinated, 0 for consistent, None for unlabelled. `scores` are s_1..s_K, empty
    where there are none; `spike_score` and `spike_turn`, counted from 1, are None then. `judge` is
    its name and reply; `evaluated` whether the dialogue is in the report's figures.
    """

    id: str
    domain: str
    y: int | None
    spike_score: float | None
    spike_turn: int | None
    scores: tuple[float, ...]
    question: str
    gold: str
    split: str
    turns: tuple[tuple[str, str, str], ...]
    judge: str = ""
    evaluated: bool = True
