"""What the report page of one evaluation holds: headline, sections, and its dialogues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spikescore import report
from spikescore.page import Dialogue, Figure, Section, Table
from spikescore.pairs import as_record, read_json
from spikescore.results import CONTROLS, METHODS, Item, View

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
    lines = [
        report.figure_line("spike_score", view.methods["spike_score"], view.title) for view in shown
    ]
    return [*lines, f"Dialogues: {covered}.", *(f"Warning: {warning}." for warning in warnings)]


def table_main(views: Sequence[View]) -> Table:
    """Return the main table with the controls below the methods."""
    return report.main_table(views, (*COMPARED_METHODS, *CONTROLS), "AUROC with 95% interval")


def sections(
    views: Sequence[View], plots: dict[str, bytes], coverage: dict[str, int]
) -> list[Section]:
    """Return the page's sections; `plots` holds PNGs by the names in PLOTS."""
    main = report.main_table(views, COMPARED_METHODS, "AUROC with 95% interval")
    controls = report.main_table(views, CONTROLS, "AUROC with 95% interval, controls")
    views_shown = [view for view in views if view.kind != "domain"]
    per_domain = report.domain_table([view for view in views if view.kind == "domain"])
    found = [
        Section("Main table", (report.CONVENTIONS, report.DIRECTIONS), (main,)),
        Section("Plots", figures=tuple(_figure(name, png) for name, png in plots.items())),
        Section("Controls", (_ABOUT_CONTROLS, report.ORACLE), (controls,)),
        Section("Per domain", tables=(per_domain,)),
        Section("Paired tests", (_ABOUT_PAIRS,), tuple(map(report.paired_table, views_shown))),
    ]
    flags = report.threshold_table(views)
    if flags.rows:
        found.append(Section("At the fixed threshold", (_ABOUT_FLAGS,), (flags,)))
    return [*found, Section("Coverage", (_ABOUT_COVERAGE,), (report.coverage_table(coverage),))]


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
        "gold": report.gold_text(record),
        "turns": tuple(turns),
    }


def _text(value: object) -> str:
    return "" if value is None else str(value)
