"""Plots of the tables, as PNG bytes: they go both to files and into report.html.

Colours are from the Okabe-Ito set, told apart by colour-blind readers too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from spikescore.dialogues.prompts import FORKED
from spikescore.report.comparison import (
    CROSS,
    SPIKE,
    Comparison,
    Entry,
    scorer_title,
    scorers_of,
    trajectory_entry,
)
from spikescore.report.cost_tables import COSTS, CostPoint
from spikescore.report.evaluation import METHODS, Item, View
from spikescore.report.spike_places import Spike, turn_shares
from spikescore.report.text import figure_cell
from spikescore.stats.bootstrap import Area
from spikescore.stats.roc import roc_points
from spikescore.stats.trajectory import FUNCTIONALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spikescore.report.stopping_tables import Stopped
    from spikescore.report.trajectory_tables import TurnsPoint
    from spikescore.report.variant_tables import LayerGrid, VariantResult

DPI = 150
CLASSES = ((1, "hallucinated (y=1)", "#D55E00"), (0, "consistent (y=0)", "#0072B2"))
CURVES = ("spike_score", "first_score", "mean_score", "perplexity")
CURVE_STYLES = (("#000000", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#0072B2", ":"))
COLOURS = {"trajectory": "#D55E00", "training-free": "#0072B2", "trained": "#009E73",
           "control": "#777777"}  # fmt: skip
VIEW_COLOURS = {"macro": "#0072B2", "pooled": "#D55E00"}


# --- frames -----------------------------------------------------------------------------------


def panels(count: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with that many panels, at most three in a row, each width x height inches."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rcParams["text.parse_math"] = False  # a dollar in a name is a dollar
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


def png(figure: Figure, title: str) -> bytes:
    """Return the figure as PNG bytes under its title."""
    figure.suptitle(title, fontsize=11, wrap=True)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    return data.getvalue()


# --- one folder of dialogues ------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """Items of one pool or domain: labels y [n], and scores [n] with name and AUROC, SpikeScore's
    first.
    """

    title: str
    y: np.ndarray
    scores: tuple[tuple[str, np.ndarray, Area], ...]
    threshold: float | None = None

    @property
    def heading(self) -> str:
        """The title over the counts."""
        positive = int(self.y.sum())
        return f"{self.title}\n{positive} hallucinated, {self.y.size - positive} consistent"


def panels_of(views: Sequence[View], *kinds: str) -> list[Panel]:
    """Return the panels of the views of these kinds."""
    return [
        Panel(
            view.title,
            np.array([item.y for item in view.items]),
            tuple(
                (METHODS[name], np.array([getattr(item, name) for item in view.items], float),
                 view.methods[name])
                for name in CURVES
            ),
            view.flags["threshold"][0] if view.flags else None,
        )
        for view in views
        if view.kind in kinds
    ]  # fmt: skip


def roc_png(shown: Sequence[Panel], title: str) -> bytes:
    """Draw the ROC curves of every panel."""
    figure, axes = panels(len(shown), 5.2, 5.0)
    for axis, panel in zip(axes, shown, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", lw=1)
        for place, (name, scores, area) in enumerate(panel.scores):
            if area.value is None:
                continue
            known = np.isfinite(scores)
            false, true = roc_points(panel.y[known], scores[known])
            colour, style = CURVE_STYLES[place % len(CURVE_STYLES)]
            axis.plot(false, true, style, color=colour, lw=1.5 if place else 2.2,
                      label=f"{name}  {figure_cell(area)}")  # fmt: skip
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axis.set_xlabel("false-positive rate (consistent answers flagged)")
        axis.set_ylabel("true-positive rate (hallucinations flagged)")
        axis.set_title(panel.heading, fontsize=10)
        note = panel.scores[0][2].note
        _legend_or_note(axis, note, loc="lower right", title="AUROC [95% interval]")
    return png(figure, title)


def histogram_png(shown: Sequence[Panel], title: str) -> bytes:
    """Draw SpikeScore's distribution by class in every panel."""
    figure, axes = panels(len(shown), 5.6, 4.2)
    for axis, panel in zip(axes, shown, strict=True):
        name, scores, area = panel.scores[0]
        bins = np.linspace(0, np.nanmax(scores, initial=0) or 1.0, 25)
        for y, label, colour in CLASSES:
            values = scores[(panel.y == y) & np.isfinite(scores)]
            if values.size:
                share = np.full(values.size, 100 / values.size)
                label = f"{label}, n={values.size}, median {np.median(values):.3f}"
                axis.hist(values, bins, weights=share, color=colour, alpha=0.35)
                axis.hist(
                    values, bins, weights=share, color=colour, histtype="step", lw=1.6, label=label
                )
        if panel.threshold is not None:
            label = f"lambda {panel.threshold:.3f}"
            axis.axvline(panel.threshold, color="0.2", ls="--", label=label)
        axis.set_xlabel("SpikeScore (largest absolute second difference of probe scores)")
        axis.set_ylabel("share of the class (%)")
        axis.set_title(panel.heading, fontsize=10)
        options = {"loc": "upper right", "fontsize": 8, "title_fontsize": 8, "framealpha": 1}
        axis.legend(title=f"AUROC {figure_cell(area)}", **options)
        axis.set_ylim(0, axis.get_ylim()[1] * 1.3)
    return png(figure, title)


def spike_turns_png(spikes: Sequence[Spike], title: str) -> bytes:
    """Draw at which turn the spikes of each class fall."""
    figure, (axis,) = panels(1, 7.5, 3.4)
    shares = turn_shares(spikes)
    turns = np.arange(1, 1 + max(map(len, shares.values()), default=0))
    for side, (y, name, colour) in zip((-0.2, 0.2), CLASSES, strict=True):
        n = sum(spike.y == y for spike in spikes)
        axis.bar(turns + side, shares[y], 0.4, color=colour, label=f"{name}, n={n}")
    if turns.size > 2:
        chance = 100 / (turns.size - 2)
        axis.plot([1.5, turns.size - 0.5], [chance] * 2, color="0.3", ls="--", label="by chance")
    axis.set_xticks(turns if turns.size <= 30 else turns[::5])
    axis.set_xlabel("turn of the spike")
    axis.set_ylabel("share of the class (%)")
    axis.legend(fontsize=8)
    return png(figure, title)


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
        _legend_or_note(axis, view.methods["spike_score"].note, loc="best")
    return png(figure, f"Mean probe score per turn, 95% band of the mean: {run}")


def spikes_png(items: Sequence[Item], run: str) -> bytes:
    """Draw, for each class, the dialogue of the largest and that of the median SpikeScore.

    The spike, the turn where the second difference is largest, is marked with its height.
    """
    figure, axes = panels(len(CLASSES), 5.2, 3.4, sharey=True)
    for axis, (y, name, colour) in zip(axes, CLASSES, strict=True):
        ranked = sorted((item for item in items if item.y == y), key=lambda one: one.spike_score)
        for item, rank, style in zip(
            (ranked[-1], ranked[len(ranked) // 2]) if ranked else (),
            ("largest", "median"),
            ("-", ":"),
            strict=False,
        ):
            turns = range(1, len(item.scores) + 1)
            axis.plot(turns, item.scores, style, color=colour, marker="o", ms=3,
                      label=f"{rank} SpikeScore: {item.spike_score:.3f}")  # fmt: skip
            at = (item.spike_turn, item.scores[item.spike_turn - 1])
            axis.plot(*at, "o", ms=11, mfc="none", mec="black", mew=1.3)
        axis.set_xlabel("turn (1 = the first answer)")
        axis.set_xticks([1, *range(5, max((len(one.scores) for one in ranked), default=0) + 1, 5)])
        axis.set_title(f"{name}, n={len(ranked)}", fontsize=10)
        axis.margins(y=0.15)
        axis.legend(fontsize=8) if ranked else None
    axes[0].set_ylabel("probe score")
    return png(figure, f"Probe score per turn, the spike circled: {run}")


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


def _legend_or_note(axis: Axes, note: str, **options: Any) -> None:
    """Add the legend; a panel with nothing drawn says why instead."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, title_fontsize=8, **options)
    else:
        note = note.replace("; ", ";\n").replace(", ", ",\n")
        axis.text(0.5, 0.5, note, ha="center", va="center", transform=axis.transAxes, fontsize=9)


# --- an experiment ----------------------------------------------------------------------------


def forest(comparison: Comparison, entries: Sequence[Entry], title: str) -> bytes:
    """Draw every method's mean AUROC with its interval, a panel per cross-domain view."""
    return forest_rows([(entry.title, comparison, entry) for entry in entries], title)


def forest_rows(rows: Sequence[tuple[str, Comparison, Entry]], title: str) -> bytes:
    """Draw each row's mean AUROC with its interval, a panel per cross-domain view."""
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
    if area.parts[0] < area.parts[1]:
        told = f"{area.parts[0]} of {area.parts[1]}"
        axis.text(area.value, place + 0.2, told, fontsize=6, ha="center", va="bottom")


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
    return forest_rows(rows, "Cross-domain AUROC")


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
        known = [(point.k, point.areas[view]) for point in points]
        known = [(k, area) for k, area in known if area.value is not None]
        banded = [(k, *area.interval) for k, area in known if area.interval]
        style = {"color": VIEW_COLOURS[view]}
        if banded:
            left.fill_between(*zip(*banded, strict=True), **style, alpha=0.15, lw=0)
        left.plot([k for k, _ in known], [area.value for _, area in known], **style,
                  marker="o", ms=3, label=view)  # fmt: skip
    left.axhline(0.5, color="0.6", lw=1)
    left.set_xlabel("turns used, K")
    left.set_ylabel("mean AUROC of SpikeScore")
    left.legend(fontsize=8)
    right.plot(
        ks,
        [np.nan if point.tokens is None else point.tokens for point in points],
        color="0.2",
        marker="o",
        ms=3,
    )
    right.set_xlabel("turns used, K")
    right.set_ylabel("answer tokens a dialogue")
    right.set_ylim(0)
    for axis in (left, right):
        axis.set_xticks([*ks[:1], *(k for k in ks[1:] if k % 5 == 0)])
    return png(figure, title)


def cost_plot(points: Sequence[CostPoint], title: str) -> bytes:
    """Draw every method's macro AUROC over each of its costs, the Pareto front as steps.

    SpikeScore at several K is joined by a dotted line, over forked follow-ups by a dashed one; the
    methods on a front are numbered, and named in the panel's legend in the order of what they cost.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = panels(len(COSTS), 5.2, 5.6, sharey=True)
    lines = {"": (":", -13, "follow-ups in a row"), FORKED: ("--", 7, "forked")}
    for axis, (cost, label) in zip(axes, COSTS.items(), strict=True):
        shown = [one for one in points if one.costs[cost] is not None and one.auroc is not None]
        axis.axhline(0.5, color="0.6", lw=1)
        axis.set_xlabel(f"{label} an item")
        if not shown:
            axis.text(0.5, 0.6, "not measured", ha="center", transform=axis.transAxes)
            axis.set_xticks([])
            continue
        for one in shown:
            axis.plot(one.costs[cost], one.auroc, "o", color=COLOURS[one.family], ms=5, alpha=0.75)
        for schedule, (style, below, _) in lines.items():
            spikes = sorted((one.k, one.costs[cost], one.auroc) for one in shown
                            if one.k and one.schedule == schedule)  # fmt: skip
            axis.plot([x for _, x, _ in spikes], [y for *_, y in spikes], style, color="#D55E00")
            for k, *at in spikes:
                axis.annotate(f"K={k}", at, (0, below), textcoords="offset points", fontsize=7)
        front = sorted((one for one in shown if cost in one.front), key=lambda one: one.costs[cost])
        xs, ys = [one.costs[cost] for one in front], [one.auroc for one in front]
        axis.step(xs, ys, where="post", color="0.2", lw=1)
        names = []
        for number, one in enumerate(front, start=1):
            at = (one.costs[cost], one.auroc)
            axis.plot(*at, "o", mfc="none", mec="black", ms=9)
            axis.annotate(str(number), at, (-4, 8), textcoords="offset points", fontsize=8)
            names.append(f"{number} {one.title}")
        if min(one.costs[cost] for one in shown) > 0:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title("Pareto front:\n" + "\n".join(names), fontsize=8, loc="left")
    axes[0].set_ylabel("mean AUROC, macro")
    for family, colour in COLOURS.items():
        axes[0].plot([], [], "o", color=colour, label=family)
    for schedule, (style, _, label) in lines.items():
        if any(one.k and one.schedule == schedule for one in points):
            axes[0].plot([], [], style, color="#D55E00", label=f"SpikeScore, {label}")
    axes[0].legend(fontsize=8)
    return png(figure, title)


def stopping_curve(rules: Sequence[Stopped], title: str) -> bytes:
    """Draw what AUROC, accuracy and flags are lost over the mean number of turns that stopping on
    either side leaves, a line per training domain; the square stops at the threshold alone.
    """
    figure, axes = panels(3, 4.4, 3.8)
    lost = (
        ("AUROC less that of all turns", lambda one: one.difference.value),
        ("accuracy at λ less that of all turns", lambda one: one.accuracy and
         one.accuracy[1] - one.accuracy[0]),
        ("share of all turns' flags lost", lambda one: one.flags_lost),
    )  # fmt: skip
    for axis, (label, value) in zip(axes, lost, strict=True):
        axis.axhline(0, color="0.6", lw=1)
        for domain in dict.fromkeys(one.domain for one in rules):
            own = [one for one in rules if one.domain == domain and value(one) is not None]
            at = [(one.turns, value(one)) for one in own]
            (line,) = axis.plot([x for x, _ in at], [y for _, y in at], "o-", ms=4, label=domain)
            for one, point in zip(own, at, strict=True):
                if one.lost is None:
                    axis.plot(*point, "s", ms=8, mfc="none", color=line.get_color())
        axis.set_xlabel("mean turns a dialogue")
        axis.set_ylabel(label)
    if rules:
        axes[0].legend(fontsize=7, title="trained on", title_fontsize=7)
    return png(figure, title)


def functional_map(comparison: Comparison, title: str) -> bytes:
    """Draw the mean macro AUROC of every functional over every base scorer."""
    book = comparison.book
    scorers = scorers_of(book)
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
    """Draw SpikeScore of every run with its interval, a panel per view; first the reference."""
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
        table = [[np.nan if not area or area.value is None else area.value for area in row]
                 for row in values]  # fmt: skip
        _heat(axis, np.array(table, dtype=np.float64), labels, list(map(str, grid.layers)))
        axis.set_xlabel("layer (0 = embedding output)")
        axis.set_title(name, fontsize=10)
    return png(figure, title)


def _heat(axis: Axes, table: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draw a table of AUROCs with its colour bar; 0.5 is white, so that both directions show."""
    image = axis.imshow(
        np.ma.masked_invalid(table), cmap="PuOr_r", vmin=0.2, vmax=0.8, aspect="auto"
    )
    axis.figure.colorbar(image, ax=axis, extend="both", label="AUROC").ax.tick_params(labelsize=8)
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.grid(False)
    for row, cells in enumerate(table):
        for column, cell in enumerate(cells):
            text = "n/c" if np.isnan(cell) else f"{cell:.3f}".removeprefix("0")
            dark = not np.isnan(cell) and abs(cell - 0.5) > 0.22
            axis.text(column, row, text, ha="center", va="center", fontsize=7.5,
                      color="white" if dark else "black")  # fmt: skip
