"""What a reader sees: tables in Markdown and CSV, three plots, and the dialogue that spikes most.

Colours are from the Okabe-Ito set, told apart by colour-blind readers too. Plots are drawn without
pyplot, so no window system and no global state is involved.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spikescore.evaluation import Auroc, Difference, roc_points
from spikescore.pairs import write_atomic
from spikescore.results import METHODS, Item, View
from spikescore.scores import second_differences

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASSES = ((1, "hallucinated (y=1)", "#D55E00"), (0, "consistent (y=0)", "#0072B2"))
CURVES = (
    ("spike_score", "#000000", "-"),
    ("first_score", "#D55E00", "--"),
    ("mean_score", "#009E73", "-."),
    ("perplexity", "#0072B2", ":"),
)
DPI = 150
CSV_FIELDS = (
    "path", "id", "domain", "y", "n_turns", "spike_score", "spike_turn", "first_score",
    "mean_score", "perplexity", "answer_tokens", "dialogue_tokens", "probe_split",
)  # fmt: skip


# --- text -------------------------------------------------------------------------------------


def figure_line(method: str, figure: Auroc, title: str) -> str:
    """Return one result as one line: method, AUROC [interval], n, hallucination rate, view."""
    rate = f" hallucinated {figure.n_positive / figure.n:.0%}" if figure.n else ""
    value = "AUROC " + _with_interval(figure, "{:.3f}")
    note = f"; {figure.note}" if figure.note and figure.value is not None else ""
    return f"{METHODS[method]} {value} n={figure.n}{rate} ({title}{note})"


def difference_line(other: str, figure: Difference, title: str) -> str:
    """Return one paired test as one line."""
    value = _with_interval(figure, "{:+.3f}")
    p = f" p={figure.p:.3f}" if figure.p is not None else ""
    return f"SpikeScore minus {METHODS[other]} {value}{p} n={figure.n} ({title})"


def _with_interval(figure: Auroc | Difference, form: str) -> str:
    if figure.value is None:
        return figure.note
    low, high = figure.low, figure.high
    interval = f" [{form.format(low)}, {form.format(high)}]" if low is not None else ""
    return form.format(figure.value) + interval


def summary_markdown(
    run: str, coverage_line: str, warnings: Sequence[str], views: Sequence[View], command: str
) -> str:
    """Return summary.md: coverage, warnings, a table per domain set, paired tests, fixed flags."""
    lines = [f"# SpikeScore report: {run}", "", f"Dialogues: {coverage_line}.", ""]
    lines += [f"> Warning: {warning}." for warning in warnings] + [""] * bool(warnings)
    lines += [
        "y = 1 means hallucinated; a higher score means more hallucinated; intervals are 95% "
        "bootstrap intervals over questions (over groups where the data has them).",
        "Perplexity and lengths use the direction fixed beforehand: higher or longer counts as "
        "more hallucinated. Domain identity is an oracle that knows each domain's hallucination "
        "rate and nothing of the item: a pooled figure below it shows nothing about dialogues.",
        "",
    ]
    for view in views:
        if view.kind != "domain":
            lines += _view_table(view)
    lines += _domain_table([view for view in views if view.kind == "domain"])
    return "\n".join([*lines, f"Made by: `{command}`", ""])


def _view_table(view: View) -> list[str]:
    rows = [
        (METHODS[method], *_cells(figure, "{:.3f}"), _share(figure), figure.note)
        for method, figure in view.methods.items()
    ]
    lines = [f"## {view.title[0].upper()}{view.title[1:]}", ""]
    lines += _table(("method", "AUROC", "95% interval", "n", "hallucinated", "note"), rows)
    paired = [
        (f"SpikeScore minus {METHODS[other]}", *_cells(figure, "{:+.3f}"),
         "" if figure.p is None else f"{figure.p:.3f}", figure.note)
        for other, figure in view.paired.items()
    ]  # fmt: skip
    lines += ["Paired on the same items:", ""]
    lines += _table(("difference", "AUROC", "95% interval", "n", "p", "note"), paired)
    if view.flags:
        lines += [f"At the threshold carried over from training: {flags_text(view.flags)}.", ""]
    return lines


def flags_text(flags: dict[str, float | None]) -> str:
    """Return F1, accuracy, TPR and FPR at the fixed threshold as one phrase."""
    names = {"threshold": "lambda", "f1": "F1", "accuracy": "accuracy", "tpr": "TPR", "fpr": "FPR"}
    return ", ".join(
        f"{label} {'undefined' if flags[key] is None else format(flags[key], '.3f')}"
        for key, label in names.items()
    )


def _domain_table(views: Sequence[View]) -> list[str]:
    shown = [method for method in METHODS if method in views[0].methods]
    header = ("domain", "n", "hallucinated", *(METHODS[method] for method in shown))
    rows = []
    for view in views:
        figures = [view.methods[method] for method in shown]
        cells = []
        for figure in figures:
            cell = _with_interval(figure, "{:.3f}")
            cells.append(cell if figure.n == len(view.items) else f"{cell} (n={figure.n})")
        rows.append((view.title, len(view.items), _share(figures[0]), *cells))
    return ["## Per domain (AUROC with 95% interval)", "", *_table(header, rows)]


def _cells(figure: Auroc | Difference, form: str) -> tuple[str, str, int]:
    value = "" if figure.value is None else form.format(figure.value)
    interval = ""
    if figure.low is not None:
        interval = f"[{form.format(figure.low)}, {form.format(figure.high)}]"
    return value, interval, figure.n


def _share(figure: Auroc) -> str:
    return f"{figure.n_positive / figure.n:.0%}" if figure.n else ""


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return [f"| {' | '.join(line)} |" for line in escaped] + [""]


def write_scores_csv(path: Path, items: Sequence[Item], data_dir: Path) -> None:
    """Write one row per dialogue found, scored or not; a value that does not exist stays empty."""
    longest = max((len(item.scores) for item in items), default=0)
    names = [f"s_{turn}" for turn in range(1, longest + 1)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*CSV_FIELDS, *names], lineterminator="\n")
    writer.writeheader()
    for item in items:
        row = {name: getattr(item, name) for name in CSV_FIELDS if hasattr(item, name)}
        row |= {"path": item.path.relative_to(data_dir).as_posix(), "n_turns": len(item.scores)}
        writer.writerow(row | dict(zip(names, item.scores, strict=False)))
    write_atomic(path, text.getvalue().encode("utf-8", "replace"))


def dialogue_markdown(record: dict[str, Any], item: Item) -> str:
    """Return one dialogue to read: question, gold, label, each turn beside its score and bend."""
    label = {1: "hallucinated (y=1)", 0: "consistent (y=0)", None: "not labelled"}[item.y]
    gold = record.get("gold_answers") or record.get("answer") or "not recorded"
    gold = "; ".join(map(str, gold)) if isinstance(gold, list) else str(gold)
    bends = np.abs(second_differences(item.scores))
    lines = [
        f"# The dialogue that spikes most: {item.id}",
        "",
        f"Domain {item.domain}; {label}; SpikeScore {item.spike_score:.3f}, reached at turn "
        f"{item.spike_turn}. It is the largest of all evaluated dialogues, whatever its label.",
        "",
        "**Question**",
        "",
        _quote(record.get("question")),
        "",
        f"**Reference answer:** {gold}",
        "",
        "| turn | score | bend (absolute second difference) | |",
        "| ---: | ---: | ---: | :--- |",
    ]
    for turn, (score, bend) in enumerate(zip_longest(item.scores, [None, *bends, None]), start=1):
        mark = " **spike**" if turn == item.spike_turn else ""
        shown = "" if bend is None else f"{bend:.3f}"
        bar = "#" * int(round(20 * float(np.clip(score, 0, 1))))
        lines.append(f"| {turn} | {score:.3f} | {shown}{mark} | `{bar or ' '}` |")
    for step, score in zip(record["cot_steps"], item.scores, strict=True):
        turn = step.get("turn")
        mark = " (the spike)" if turn == item.spike_turn else ""
        kind = f", {step['prompt_type']}" if step.get("prompt_type") else ""
        lines += ["", f"## Turn {turn}{kind}: score {score:.3f}{mark}", ""]
        lines += [_quote(step.get("prompt")), "", str(step.get("response") or "(no text)")]
    return "\n".join(lines) + "\n"


def _quote(text: object) -> str:
    return "\n".join(f"> {line}".rstrip() for line in str(text or "(not recorded)").splitlines())


# --- plots ------------------------------------------------------------------------------------


def plot_roc(path: Path, views: Sequence[View], run: str) -> None:
    """Draw the ROC curves of the pooled views, one panel each, to a PNG."""
    shown = _pooled(views)
    figure, axes = _panels(len(shown), 5.2, 5.0)
    for axis, view in zip(axes, shown, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", lw=1)
        for method, colour, style in CURVES:
            auroc = view.methods[method]
            if auroc.value is None:
                continue
            y, scores = _labels_and(view.items, method)
            false, true = roc_points(y, scores)
            name = f"{METHODS[method]}  {_with_interval(auroc, '{:.2f}')}"
            width = 2.2 if method == "spike_score" else 1.5
            axis.plot(false, true, style, color=colour, lw=width, label=name)
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axis.set_xlabel("false-positive rate (consistent answers flagged)")
        axis.set_ylabel("true-positive rate (hallucinations flagged)")
        axis.set_title(_panel_title(view), fontsize=10)
        _legend_or_note(axis, view, loc="lower right", title="AUROC [95% interval]")
    _save(figure, path, f"ROC: {run}")


def plot_histogram(path: Path, views: Sequence[View], run: str) -> None:
    """Draw SpikeScore's distribution by class in the pooled views, one panel each, to a PNG."""
    shown = _pooled(views)
    figure, axes = _panels(len(shown), 5.6, 4.2)
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
        auroc = _with_interval(view.methods["spike_score"], "{:.2f}")
        axis.set_title(_panel_title(view), fontsize=10)
        options = {"loc": "upper right", "fontsize": 8, "title_fontsize": 8, "framealpha": 1}
        axis.legend(title=f"AUROC {auroc}", **options)
        axis.set_ylim(0, axis.get_ylim()[1] * 1.3)
    _save(figure, path, f"SpikeScore by class: {run}")


def plot_trajectories(path: Path, views: Sequence[View], run: str) -> None:
    """Draw the mean probe score of every turn by class, a panel per domain, to a PNG.

    The band is the mean's 95% interval (1.96 standard errors). A turn reached by fewer than two
    dialogues of a class has no band and is not drawn.
    """
    shown = [view for view in views if view.kind == "domain"]
    figure, axes = _panels(len(shown), 4.4, 3.6, sharey=True)
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
    _save(figure, path, f"Mean probe score per turn, 95% band of the mean: {run}")


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


def _panels(count: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with that many panels, at most three in a row, each width x height inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=11, wrap=True)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    write_atomic(path, data.getvalue())
