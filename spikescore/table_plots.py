"""Plots of the tables, as PNG bytes: they go both to files and into report.html.

Colours are from the Okabe-Ito set, told apart by colour-blind readers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spikescore.comparison import SPIKE, Comparison, Entry, scorer_title, trajectory_entry
from spikescore.functionals import FUNCTIONALS
from spikescore.plotting import panels, png
from spikescore.resampling import Area
from spikescore.tables import CROSS
from spikescore.trajectory_tables import TurnsPoint, scorers_of
from spikescore.variant_tables import LayerGrid, VariantResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"trajectory": "#D55E00", "training-free": "#0072B2", "trained": "#009E73",
           "control": "#777777"}  # fmt: skip
VIEW_COLOURS = {"macro": "#0072B2", "pooled": "#D55E00"}


def forest(comparison: Comparison, entries: Sequence[Entry], title: str) -> bytes:
    """Draw every method's mean AUROC with its interval, a panel per cross-domain view."""
    return _forest([(entry.title, comparison, entry) for entry in entries], title)


def _forest(rows: Sequence[tuple[str, Comparison, Entry]], title: str) -> bytes:
    figure, axes = panels(len(CROSS), 4.6, 0.9 + 0.24 * len(rows), sharey=True)
    places = np.arange(len(rows))[::-1]
    for axis, view in zip(axes, CROSS, strict=True):
        axis.axvline(0.5, color="0.6", lw=1)
        for place, (_, comparison, entry) in zip(places, rows, strict=True):
            _whisker(axis, place, comparison.mean(entry, view), COLOURS[entry.family])
        axis.set_yticks(places, [name for name, _, _ in rows], fontsize=8)
        axis.set_xlabel(f"mean AUROC, {view}, with 95% interval")
        axis.set_ylim(-0.8, len(rows) - 0.2)
    return png(figure, title)


def _whisker(axis: Axes, place: float, area: Area | None, colour: str) -> None:
    if area is None or area.value is None:
        axis.text(0.5, place, "not computable", fontsize=7, va="center", ha="center")
        return
    if area.interval:
        axis.plot(area.interval, [place, place], color=colour, lw=1.6)
    axis.plot(area.value, place, "o", color=colour, ms=4.5)


def forest_of_models(models: Sequence[tuple[str, Comparison, Sequence[Entry]]]) -> bytes:
    """Draw the main table: one model's methods, or with several models SpikeScore of each beside
    its first answer and perplexity.
    """
    if len(models) == 1:
        name, comparison, entries = models[0]
        return forest(comparison, entries, f"Cross-domain AUROC, {name}")
    shown = (SPIKE, "saplma", "perplexity")
    rows = [
        (f"{name}: {entry.title}", comparison, entry)
        for name, comparison, entries in models
        for entry in entries
        if entry.name in shown
    ]
    return _forest(rows, "Cross-domain AUROC")


def matrices(comparison: Comparison, entries: Sequence[Entry], title: str) -> bytes:
    """Draw training domain x test domain for each score; the diagonal is held out."""
    figure, axes = panels(len(entries), 4.3, 3.9)
    names = comparison.book.domain_names()
    for axis, entry in zip(axes, entries, strict=True):
        table = comparison.matrix(entry)
        _heat(axis, table, comparison.training_domains, names)
        axis.set_xlabel("tested on")
        axis.set_ylabel("trained on")
        axis.set_title(entry.title, fontsize=10)
    return png(figure, title)


def turns_curve(points: Sequence[TurnsPoint], title: str) -> bytes:
    """Draw AUROC over the number of turns, with intervals, beside the cost."""
    figure, (left, right) = panels(2, 5.0, 3.6)
    ks = [point.k for point in points]
    for view in CROSS:
        known = [point for point in points if point.auroc[view] is not None]
        if not known:
            continue
        at = [point.k for point in known]
        low, high = zip(*[point.interval[view] for point in known], strict=True)
        left.fill_between(at, low, high, color=VIEW_COLOURS[view], alpha=0.15, lw=0)
        left.plot(at, [point.auroc[view] for point in known], color=VIEW_COLOURS[view],
                  marker="o", ms=3, label=view)  # fmt: skip
    left.axhline(0.5, color="0.6", lw=1)
    left.set_xlabel("turns used, K")
    left.set_ylabel("mean AUROC of SpikeScore")
    left.legend(fontsize=8)
    right.plot(ks, [point.tokens for point in points], color="0.2", marker="o", ms=3)
    right.set_xlabel("turns used, K")
    right.set_ylabel("answer tokens a dialogue")
    right.set_ylim(0)
    for axis in (left, right):
        axis.set_xticks([ks[0], *(k for k in ks if k % 5 == 0 and k != ks[0])])
    return png(figure, title)


def functional_map(comparison: Comparison, title: str) -> bytes:
    """Draw the mean macro AUROC of every functional over every base scorer."""
    book = comparison.book
    scorers = scorers_of(comparison)
    table = np.full((len(FUNCTIONALS), len(scorers)), np.nan)
    for row, name in enumerate(FUNCTIONALS):
        for column, scorer in enumerate(scorers):
            entry = trajectory_entry(book, name, scorer)
            value = comparison.mean(entry, "macro").value if entry else None
            table[row, column] = np.nan if value is None else value
    figure, (axis,) = panels(1, 2.8 + 0.95 * len(scorers), 4.2)
    titles = [functional.title for functional in FUNCTIONALS.values()]
    _heat(axis, table, titles, [scorer_title(book, scorer) for scorer in scorers])
    return png(figure, title)


def variant_plot(results: Sequence[VariantResult], title: str) -> bytes:
    """Draw SpikeScore of every run with its interval, a panel per view; the first is the
    reference.
    """
    figure, axes = panels(len(CROSS), 4.6, 1.3 + 0.3 * len(results), sharey=True)
    places = np.arange(len(results))[::-1]
    for axis, view in zip(axes, CROSS, strict=True):
        axis.axvline(0.5, color="0.6", lw=1)
        reference = results[0].areas[SPIKE, view].value
        if reference is not None:
            axis.axvline(reference, color="#D55E00", lw=1, ls="--")
        for place, result in zip(places, results, strict=True):
            colour = "#D55E00" if place == places[0] else "#0072B2"
            _whisker(axis, place, result.areas.get((SPIKE, view)), colour)
        axis.set_yticks(places, [result.title for result in results], fontsize=8)
        axis.set_xlabel(f"mean AUROC of SpikeScore, {view}")
        axis.set_ylim(-0.7, len(results) - 0.3)
    return png(figure, title)


def layer_heat_map(grid: LayerGrid, title: str) -> bytes:
    """Draw the mean macro AUROC over layer x token, SpikeScore beside the first answer."""
    width = max(4.4, 0.62 * len(grid.layers) + 1.6)
    figure, axes = panels(2, width, 2.8)
    for axis, values, name in zip(
        axes, (grid.spike, grid.first), ("SpikeScore", "first answer"), strict=True
    ):
        labels = [token.removesuffix("_embedding") for token in grid.tokens]
        _heat(axis, values, labels, list(map(str, grid.layers)))
        axis.set_xlabel("layer (0 = embedding output)")
        axis.set_title(name, fontsize=10)
    return png(figure, title)


def _heat(axis: Axes, table: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draw a table of AUROCs; 0.5 is white, so that both directions show."""
    axis.imshow(np.ma.masked_invalid(table), cmap="PuOr_r", vmin=0.2, vmax=0.8, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.grid(False)
    for row, cells in enumerate(table):
        for column, cell in enumerate(cells):
            text = "n/c" if np.isnan(cell) else f"{cell:.2f}"
            dark = not np.isnan(cell) and abs(cell - 0.5) > 0.22
            axis.text(column, row, text, ha="center", va="center", fontsize=7.5,
                      color="white" if dark else "black")  # fmt: skip
