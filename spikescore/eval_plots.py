"""The plots of a report as PNG bytes: ROC curves, histograms by class, mean trajectories.

Colours are from the Okabe-Ito set, told apart by colour-blind readers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from spikescore.evaluation import roc_points
from spikescore.plotting import panels, png
from spikescore.report import with_interval
from spikescore.results import METHODS, Item, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASSES = ((1, "hallucinated (y=1)", "#D55E00"), (0, "consistent (y=0)", "#0072B2"))
CURVES = (
    ("spike_score", "#000000", "-"),
    ("first_score", "#D55E00", "--"),
    ("mean_score", "#009E73", "-."),
    ("perplexity", "#0072B2", ":"),
)


def roc_png(views: Sequence[View], run: str) -> bytes:
    """Draw the ROC curves of the pooled views, one panel each."""
    shown = _pooled(views)
    figure, axes = panels(len(shown), 5.2, 5.0)
    for axis, view in zip(axes, shown, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", lw=1)
        for method, colour, style in CURVES:
            auroc = view.methods[method]
            if auroc.value is None:
                continue
            y, scores = _labels_and(view.items, method)
            false, true = roc_points(y, scores)
            name = f"{METHODS[method]}  {with_interval(auroc, '{:.2f}')}"
            width = 2.2 if method == "spike_score" else 1.5
            axis.plot(false, true, style, color=colour, lw=width, label=name)
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axis.set_xlabel("false-positive rate (consistent answers flagged)")
        axis.set_ylabel("true-positive rate (hallucinations flagged)")
        axis.set_title(_panel_title(view), fontsize=10)
        _legend_or_note(axis, view, loc="lower right", title="AUROC [95% interval]")
    return png(figure, f"ROC: {run}")


def histogram_png(views: Sequence[View], run: str) -> bytes:
    """Draw SpikeScore's distribution by class in the pooled views, one panel each."""
    shown = _pooled(views)
    figure, axes = panels(len(shown), 5.6, 4.2)
    for axis, view in zip(axes, shown, strict=True):
        top = max(item.spike_score for item in view.items) or 1.0
        bins = np.linspace(0, top, 25)
        for y, name, colour in CLASSES:
            values = [item.spike_score for item in view.items if item.y == y]
            if values:
                share = np.full(len(values), 100 / len(values))
                label = f"{name}, n={len(values)}, median {np.median(values):.2f}"
                axis.hist(values, bins, weights=share, color=colour, alpha=0.35)
                axis.hist(
                    values, bins, weights=share, color=colour, histtype="step", lw=1.6, label=label
                )
        if view.flags:
            threshold = view.flags["threshold"]
            axis.axvline(threshold, color="0.2", ls="--", label=f"lambda {threshold:.2f}")
        axis.set_xlabel("SpikeScore (largest absolute second difference of probe scores)")
        axis.set_ylabel("share of the class (%)")
        auroc = with_interval(view.methods["spike_score"], "{:.2f}")
        axis.set_title(_panel_title(view), fontsize=10)
        options = {"loc": "upper right", "fontsize": 8, "title_fontsize": 8, "framealpha": 1}
        axis.legend(title=f"AUROC {auroc}", **options)
        axis.set_ylim(0, axis.get_ylim()[1] * 1.3)
    return png(figure, f"SpikeScore by class: {run}")


def trajectories_png(views: Sequence[View], run: str) -> bytes:
    """Draw the mean probe score of every turn by class, a panel per domain.

    The band is the mean's 95% interval (1.96 standard errors). A turn reached by fewer than two
    dialogues of a class has no band and is not drawn.
    """
    shown = [view for view in views if view.kind == "domain"]
    figure, axes = panels(len(shown), 4.4, 3.6, sharey=True)
    for place, (axis, view) in enumerate(zip(axes, shown, strict=True)):
        for y, name, colour in CLASSES:
            rows = [item.scores for item in view.items if item.y == y]
            if len(rows) < 2:
                continue
            turns, mean, error = _mean_by_turn(rows)
            axis.fill_between(
                turns, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0
            )
            axis.plot(turns, mean, color=colour, marker="o", ms=3, label=f"{name}, n={len(rows)}")
        axis.set_xlabel("turn (1 = the first answer)")
        if place % 3 == 0:
            axis.set_ylabel("mean probe score")
        longest = max(len(item.scores) for item in view.items)
        axis.set_xticks([1, *range(5, longest + 1, 5)] if longest >= 5 else range(1, longest + 1))
        axis.set_title(view.title, fontsize=10)
        axis.margins(y=0.15)
        _legend_or_note(axis, view, loc="best")
    return png(figure, f"Mean probe score per turn, 95% band of the mean: {run}")


def _mean_by_turn(rows: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn numbers, means and 1.96 standard errors over the dialogues that reach each turn."""
    turns, means, errors = [], [], []
    for turn, column in enumerate(zip_longest(*rows), start=1):
        values = np.array([value for value in column if value is not None])
        if values.size >= 2:
            turns.append(turn)
            means.append(values.mean())
            errors.append(1.96 * values.std(ddof=1) / np.sqrt(values.size))
    return np.array(turns), np.array(means), np.array(errors)


def _pooled(views: Sequence[View]) -> list[View]:
    return [view for view in views if view.kind in ("in-domain", "pooled")]


def _panel_title(view: View) -> str:
    positive = sum(item.y for item in view.items)
    return f"{view.title}\n{positive} hallucinated, {len(view.items) - positive} consistent"


def _labels_and(items: Sequence[Item], method: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(item.y, getattr(item, method)) for item in items]
    y, scores = zip(*[pair for pair in pairs if pair[1] is not None], strict=True)
    return np.array(y), np.array(scores)


def _legend_or_note(axis: Axes, view: View, **options: Any) -> None:
    """Add the legend; a panel with nothing drawn says why instead."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, title_fontsize=8, **options)
    else:
        note = view.methods["spike_score"].note.replace("; ", ";\n").replace(", ", ",\n")
        axis.text(0.5, 0.5, note, ha="center", va="center", transform=axis.transAxes, fontsize=9)
