"""What a reader of an evaluation sees in words and numbers: result lines, tables, one dialogue."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.files import read_json
from spikescore.pairs import as_record
from spikescore.report.evaluation import CONTROLS, METHODS, Item, View
from spikescore.report.page import Dialogue, Figure, Section, Table
from spikescore.report.text import csv_table, markdown_table, p_value
from spikescore.stats.bootstrap import Auroc, Difference
from spikescore.stats.trajectory import second_differences

CONVENTIONS = (
    "y = 1 means hallucinated; a higher score means more hallucinated; intervals are 95% "
    "bootstrap intervals over questions (over groups where the data has them)."
)
DIRECTIONS = (
    "Perplexity and lengths use the direction fixed beforehand: higher or longer counts as "
    "more hallucinated."
)
ORACLE = (
    "Domain identity is an oracle that knows each domain's hallucination rate and nothing of the "
    "item: a pooled figure below it shows nothing about dialogues."
)
FLAGS = {"threshold": "lambda", "f1": "F1", "accuracy": "accuracy", "tpr": "TPR", "fpr": "FPR"}
CSV_FIELDS = (
    "path", "id", "domain", "y", "n_turns", "spike_score", "spike_turn", "first_score",
    "mean_score", "perplexity", "answer_tokens", "dialogue_tokens", "probe_split",
)  # fmt: skip


# --- text -------------------------------------------------------------------------------------


def figure_line(method: str, figure: Auroc, title: str) -> str:
    """Return one result as one line: method, AUROC [interval], n, hallucination rate, view."""
    rate = f" hallucinated {figure.n_positive / figure.n:.0%}" if figure.n else ""
    value = "AUROC " + with_interval(figure, "{:.3f}")
    note = f"; {figure.note}" if figure.note and figure.value is not None else ""
    return f"{METHODS[method]} {value} n={figure.n}{rate} ({title}{note})"


def difference_line(other: str, figure: Difference, title: str) -> str:
    """Return one paired test as one line."""
    value = with_interval(figure, "{:+.3f}")
    p = f" p={figure.p:.3f}" if figure.p is not None else ""
    return f"SpikeScore minus {METHODS[other]} {value}{p} n={figure.n} ({title})"


def with_interval(figure: Auroc | Difference, form: str) -> str:
    """Return a figure as `value [low, high]`, or why there is none."""
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
    lines += [f"{CONVENTIONS} {DIRECTIONS} {ORACLE}", ""]
    for view in views:
        if view.kind != "domain":
            lines += [f"## {view.title[0].upper()}{view.title[1:]}", ""]
            lines += [markdown_table(view_table(view)), "Paired on the same items:", ""]
            lines += [markdown_table(paired_table(view))]
            if view.flags:
                flags = flags_text(view.flags)
                lines += [f"At the threshold carried over from training: {flags}.", ""]
    domains = domain_table([view for view in views if view.kind == "domain"])
    lines += [f"## {domains.caption}", "", markdown_table(domains)]
    return "\n".join([*lines, f"Made by: `{command}`", ""])


def flags_text(flags: dict[str, float | None]) -> str:
    """Return F1, accuracy, TPR and FPR at the fixed threshold as one phrase."""
    return ", ".join(f"{name} {_or_undefined(flags[key])}" for key, name in FLAGS.items())


def _or_undefined(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


# --- tables -----------------------------------------------------------------------------------


def view_table(view: View) -> Table:
    """Return every method's figure on one view, a row each."""
    rows = [
        (METHODS[method], *_cells(figure, "{:.3f}"), _share(figure), _interval(view.delong[method]))
        for method, figure in view.methods.items()
    ]
    header = ("method", "AUROC", "95% interval", "n", "hallucinated", "DeLong's interval")
    return Table(view.title, header, tuple(rows), _notes(view.methods))


def paired_table(view: View) -> Table:
    """Return what SpikeScore has ahead of other methods on the same items of one view."""
    rows = [
        (f"SpikeScore minus {METHODS[other]}", *_cells(figure, "{:+.3f}"),
         p_value(figure.p), p_value(view.paired_delong[other].p))
        for other, figure in view.paired.items()
    ]  # fmt: skip
    header = ("difference", "AUROC", "95% interval", "n", "p, bootstrap", "p, DeLong")
    return Table(view.title, header, tuple(rows), _notes(view.paired))


def main_table(views: Sequence[View], methods: Sequence[str], caption: str) -> Table:
    """Return AUROC with interval of the methods, a row each, by view, a column each.

    The views of single domains are left out. The first row has each view's items; a method measured
    on fewer says so in its cell.
    """
    shown = [view for view in views if view.kind != "domain"]
    first = [f"{len(view.items)} ({_share(view.methods['spike_score'])})" for view in shown]
    rows = [("n (hallucinated)", *first)]
    for method in methods:
        cells = [_cell(view, method) for view in shown]
        rows += [(METHODS[method], *cells)] if any(cells) else []
    return Table(
        caption, ("method", *(view.title for view in shown)), tuple(rows), _notes_of(shown, methods)
    )


def domain_table(views: Sequence[View]) -> Table:
    """Return AUROC with interval of every method, by domain, a row each."""
    shown = [method for method in METHODS if method in views[0].methods]
    rows = [
        (view.title, str(len(view.items)), _share(view.methods[shown[0]]),
         *(_cell(view, method) for method in shown))
        for view in views
    ]  # fmt: skip
    header = ("domain", "n", "hallucinated", *(METHODS[method] for method in shown))
    note = _notes_of(views, shown)
    return Table("Per domain (AUROC with 95% interval)", header, tuple(rows), note)


def threshold_table(views: Sequence[View]) -> Table:
    """Return F1, accuracy, TPR and FPR at the fixed threshold, a row per view that has one."""
    rows = [
        (view.title, *(_or_undefined(view.flags[key]) for key in FLAGS))
        for view in views
        if view.flags
    ]
    return Table("SpikeScore at the fixed threshold", ("view", *FLAGS.values()), tuple(rows))


def coverage_table(coverage: dict[str, int]) -> Table:
    """Return how many dialogues there are, and why some are not evaluated."""
    rows = [(name.replace("_", " "), str(count)) for name, count in coverage.items()]
    return Table("Coverage", ("dialogues", "n"), tuple(rows))


def _cell(view: View, method: str) -> str:
    """Return `value [low, high]` with n where it is not the view's; empty for no such figure."""
    figure = view.methods.get(method)
    if figure is None:
        return ""
    cell = "n/c" if figure.value is None else with_interval(figure, "{:.3f}")
    return cell if figure.n == len(view.items) else f"{cell} (n={figure.n})"


def _notes(figures: dict[str, Auroc] | dict[str, Difference]) -> str:
    """Return what there is to say of a view's figures, each remark once with its methods."""
    methods: dict[str, list[str]] = {}
    for method, figure in figures.items():
        if figure.note:
            methods.setdefault(figure.note, []).append(METHODS[method])
    return ". ".join(f"{', '.join(names)}: {note}" for note, names in methods.items())


def _notes_of(views: Sequence[View], methods: Sequence[str]) -> str:
    """Return the notes on these methods in several views; n/c stands for not computable."""
    notes = []
    for view in views:
        found = _notes({key: view.methods[key] for key in methods if key in view.methods})
        notes += [f"{view.title}: {found}."] if found else []
    return " ".join(notes)


def _cells(figure: Auroc | Difference, form: str) -> tuple[str, str, str]:
    value = "" if figure.value is None else form.format(figure.value)
    return value, _interval(figure, form), str(figure.n)


def _interval(figure: Auroc | Difference, form: str = "{:.3f}") -> str:
    if figure.low is None:
        return ""
    return f"[{form.format(figure.low)}, {form.format(figure.high)}]"


def _share(figure: Auroc) -> str:
    return f"{figure.n_positive / figure.n:.0%}" if figure.n else ""


def figures_csv(views: Sequence[View]) -> str:
    """Return every AUROC of every view as CSV at full precision, one row each."""
    header = ("view", "kind", "method", "auroc", "low", "high", "n", "n_hallucinated", "note")
    rows = [
        (
            view.title,
            view.kind,
            method,
            one.value,
            one.low,
            one.high,
            one.n,
            one.n_positive,
            one.note,
        )
        for view in views
        for method, one in view.methods.items()
    ]
    return csv_table(header, rows)


# --- dialogues --------------------------------------------------------------------------------


def scores_csv(items: Sequence[Item], data_dir: Path) -> str:
    """Return CSV with a row per dialogue found, scored or not; what does not exist is empty."""
    longest = max((len(item.scores) for item in items), default=0)
    names = [f"s_{turn}" for turn in range(1, longest + 1)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*CSV_FIELDS, *names], lineterminator="\n")
    writer.writeheader()
    for item in items:
        row = {name: getattr(item, name) for name in CSV_FIELDS if hasattr(item, name)}
        row |= {"path": item.path.relative_to(data_dir).as_posix(), "n_turns": len(item.scores)}
        writer.writerow(row | dict(zip(names, item.scores, strict=False)))
    return text.getvalue()


def dialogue_markdown(record: dict[str, Any], item: Item) -> str:
    """Return one dialogue to read: question, gold, label, each turn beside its score and bend."""
    label = {1: "hallucinated (y=1)", 0: "consistent (y=0)", None: "not labelled"}[item.y]
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
        f"**Reference answer:** {gold_text(record) or 'not recorded'}",
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


def gold_text(record: dict[str, Any]) -> str:
    """Return a dialogue's reference answers as one line; empty when none is recorded."""
    gold = record.get("gold_answers") or record.get("answer") or ""
    return "; ".join(map(str, gold)) if isinstance(gold, list) else str(gold)


def _quote(text: object) -> str:
    return "\n".join(f"> {line}".rstrip() for line in str(text or "(not recorded)").splitlines())


PLOTS = {
    "roc": "ROC curves: the share of hallucinations flagged against the share of consistent "
    "answers flagged, over all thresholds.",
    "histogram": "SpikeScore by class. Each class sums to 100%.",
    "trajectories": "Mean probe score of every turn by class; the band is the 95% interval of "
    "the mean.",
}
COMPARED_METHODS = tuple(method for method in METHODS if method not in CONTROLS)


def headline(views: Sequence[View], covered: str, warnings: Sequence[str]) -> list[str]:
    """Return the figures of SpikeScore, cross-domain first, then coverage and warnings."""
    first = {"pooled": 0, "macro": 1, "in-domain": 2}
    shown = sorted((v for v in views if v.kind in first), key=lambda view: first[view.kind])
    lines = [figure_line("spike_score", view.methods["spike_score"], view.title) for view in shown]
    return [*lines, f"Dialogues: {covered}.", *(f"Warning: {warning}." for warning in warnings)]


def table_main(views: Sequence[View]) -> Table:
    """Return the main table with the controls below the methods."""
    return main_table(views, (*COMPARED_METHODS, *CONTROLS), "AUROC with 95% interval")


def sections(
    views: Sequence[View], plots: dict[str, bytes], coverage: dict[str, int]
) -> list[Section]:
    """Return the page's sections; `plots` holds PNGs by the names in PLOTS."""
    main = main_table(views, COMPARED_METHODS, "AUROC with 95% interval")
    controls = main_table(views, CONTROLS, "AUROC with 95% interval, controls")
    views_shown = [view for view in views if view.kind != "domain"]
    per_domain = domain_table([view for view in views if view.kind == "domain"])
    found = [
        Section("Main table", (CONVENTIONS, DIRECTIONS), (main,)),
        Section("Plots", figures=tuple(_figure(name, png) for name, png in plots.items())),
        Section("Controls", (_ABOUT_CONTROLS, ORACLE), (controls,)),
        Section("Per domain", tables=(per_domain,)),
        Section("Paired tests", (_ABOUT_PAIRS,), tuple(map(paired_table, views_shown))),
    ]
    flags = threshold_table(views)
    if flags.rows:
        found.append(Section("At the fixed threshold", (_ABOUT_FLAGS,), (flags,)))
    return [*found, Section("Coverage", (_ABOUT_COVERAGE,), (coverage_table(coverage),))]


_ABOUT_CONTROLS = (
    "What else could explain the figures: SpikeScore of the follow-up answers alone, lengths, and "
    "the domain itself."
)
_ABOUT_PAIRS = (
    "Both methods are measured on the same items and resampled together; p is two-sided and not "
    "corrected for the number of tests."
)
_ABOUT_FLAGS = (
    "The threshold lambda was set on the training domain's validation split and carried over; an "
    "answer is flagged when its SpikeScore is at least lambda."
)
_ABOUT_COVERAGE = (
    "Every dialogue found is listed below. Those that are unlabelled, not scored at every turn, or "
    "part of the probe's own training are in no figure above unless it says so."
)


def _figure(name: str, png: bytes) -> Figure:
    return Figure(PLOTS[name], png, alt=f"{PLOTS[name]} The tables give the figures.")


def page_dialogues(items: Sequence[Item]) -> Iterator[Dialogue]:
    """Yield the dialogues to read, one file at a time."""
    for item in items:
        yield page_dialogue(as_record(read_json(item.path, ids_as_text=True), item.path), item)


def page_dialogue(record: dict[str, Any], item: Item) -> Dialogue:
    """Return what the page shows of one dialogue; a text that is not recorded is empty."""
    return Dialogue(
        id=item.id,
        domain=item.domain,
        y=item.y,
        spike_score=item.spike_score,
        spike_turn=item.spike_turn,
        scores=item.scores,
        split=item.probe_split or "",
        **page_texts(record),
    )


def page_texts(record: dict[str, Any]) -> dict[str, Any]:
    """Return a dialogue's question, gold answer and turns as `Dialogue` takes them."""
    fields = ("prompt_type", "prompt", "response")
    turns = [tuple(_text(step.get(field)) for field in fields) for step in record["cot_steps"]]
    return {
        "question": _text(record.get("question")),
        "gold": gold_text(record),
        "turns": tuple(turns),
    }


def _text(value: object) -> str:
    return "" if value is None else str(value)
