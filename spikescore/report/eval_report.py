"""The report of one folder of scored dialogues: result lines, tables, files, page."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.files import write_atomic, write_json
from spikescore.pairs import as_record, read_record
from spikescore.report import plots
from spikescore.report.comparison import LEADERS
from spikescore.report.evaluation import (
    CONTROLS,
    METHODS,
    Item,
    View,
    describe_coverage,
    evaluation_settings,
)
from spikescore.report.main_tables import ABOUT_TWINS, TWIN_HEADER, TWINS_TITLE, Twins
from spikescore.report.page import Dialogue, Figure, Section, Table, write_page
from spikescore.report.settings import made_now
from spikescore.report.spike_places import Spike, family_table
from spikescore.report.text import (
    counted,
    csv_table,
    figure_cell,
    headed_table,
    markdown_table,
    mean_cell,
    number,
    p_value,
    tex_table,
    whole_characters,
)
from spikescore.shards import read_pair_json
from spikescore.stats.bootstrap import Area, Contrast
from spikescore.stats.roc import MIN_PER_CLASS
from spikescore.stats.trajectory import (
    MIN_SCORES,
    second_differences,
    spike_score,
    spike_turn,
)

CONVENTIONS = (
    "y = 1 means hallucinated; a higher score means more hallucinated; intervals are 95% "
    "bootstrap intervals over questions (over groups where the data has them), drawn within each "
    "domain."
)
DIRECTIONS = (
    "Perplexity and lengths use the direction fixed beforehand: higher or longer counts as "
    "more hallucinated."
)
ORACLE = (
    "Domain identity is an oracle that knows each domain's hallucination rate and nothing of the "
    "item: a pooled figure below it shows nothing about dialogues."
)
ABOUT_CONTROLS = (
    "What else could explain the figures: SpikeScore of the follow-up answers alone, lengths, and "
    "the domain itself."
)
ABOUT_PAIRS = (
    "Both methods are measured on the same items and resampled together; p is two-sided and not "
    "corrected for the number of tests."
)
ABOUT_FLAGS = (
    "The threshold lambda was set on the training domain's validation split and carried over; an "
    "answer is flagged when its SpikeScore is at least lambda."
)
ABOUT_COVERAGE = (
    "Dialogues that are unlabelled, not scored at every turn, or part of the probe's own training "
    "are in no figure above unless it says so."
)
PLOTS = {
    "roc": "ROC curves: the share of hallucinations flagged against the share of consistent "
    "answers flagged, over all thresholds.",
    "histogram": "SpikeScore by class. Each class sums to 100%.",
    "roc_domains": "ROC curves per domain.",
    "histogram_domains": "SpikeScore by class, per domain.",
    "trajectories": "Mean probe score of every turn by class; the band is the 95% interval of "
    "the mean.",
    "spikes": "Of each class, the dialogue of the largest and that of the median SpikeScore; the "
    "spike is circled.",
    "spike_turns": "Turns at which the spikes of each class fall.",
}
FLAGS = {"threshold": "lambda", "f1": "F1", "accuracy": "accuracy", "tpr": "TPR", "fpr": "FPR"}
SPIKIEST = "spiky_dialogue.md"
TWINS = ("table_twins.md", "table_twins.csv", "table_twins.tex")
ORDER = {"macro": 0, "pooled": 1, "in-domain": 2}
COMPARED_METHODS = tuple(method for method in METHODS if method not in CONTROLS)
MAIN_METHODS = (COMPARED_METHODS[0], "domain_identity", *COMPARED_METHODS[1:])
"""Those of the main table: in a pool, what knows only the domain stands next to SpikeScore."""
OTHER_METHODS = tuple(method for method in METHODS if method not in MAIN_METHODS)
CSV_FIELDS = (
    "path", "id", "domain", "y", "n_turns", "spike_score", "spike_turn", "first_score",
    "mean_score", "perplexity", "answer_tokens", "dialogue_tokens", "probe_split",
    "pair",
)  # fmt: skip


@dataclass(frozen=True)
class EvalReport:
    """All that a report is made of: the items found, those evaluated, and the figures."""

    data_dir: Path
    command: str
    items: Sequence[Item]
    evaluated: Sequence[Item]
    coverage: dict[str, int]
    config: Mapping[str, Any]
    warnings: Sequence[str]
    verdict: str
    views: Sequence[View]
    splits: Sequence[Table]
    twins: Sequence[Twins]
    draws: int
    seed: int
    with_dialogues: bool = True

    @property
    def run(self) -> str:
        """What the plots call this run: the folder, and model and probe where there is one."""
        parts = [self.data_dir.resolve().name]
        for what in ("model", "probe"):
            names = {Path(getattr(item, what)).name for item in self.evaluated} - {""}
            parts += [f"{what} {names.pop()}"] if len(names) == 1 else []
        return whole_characters(", ".join(parts))

    def lines(self) -> Iterator[str]:
        """Yield the result lines of all views, and last the verdict."""
        missing = [view for view in self.views if _lacks_questions(view)]
        for view in self.views:
            if _lacks_questions(view):
                continue
            shown = view.methods if view.kind != "domain" else ("spike_score",)
            for method in shown:
                yield figure_line(method, view.methods[method], view.title)
            if view.kind == "domain":
                continue
            for other, difference in view.paired.items():
                yield difference_line(other, difference, view.title)
            if view.flags:
                yield f"SpikeScore at {flags_text(view.flags)} ({view.title})"
        for table in self.splits:
            for name, size, cell, *_ in table.rows:
                if missing and cell == "not computable":
                    continue
                yield f"{table.header[2]} {cell} n={size} ({table.caption}, {name})"
        for found in self.twins:
            for method, cells in found.cells.items():
                spike = method == METHODS["spike_score"]
                for name, area in islice(cells.items(), None if spike else 1):
                    if spike or area.value is not None:
                        yield (
                            f"{method} paired accuracy {_or_why(area)} pairs={area.n} "
                            f"({found.view}, {name})"
                        )
        if missing:  # how many it would take, the verdict says
            by_items = {tuple(one.path for one in view.items): view for view in reversed(missing)}
            each = []
            for view in reversed(by_items.values()):
                n = view.n_hallucinated
                each.append(f"{view.title} ({n} and {len(view.items) - n})")
            yield (
                f"no AUROC for want of {MIN_PER_CLASS} hallucinated and {MIN_PER_CLASS} consistent "
                f"first answers: {'; '.join(each)}"
            )
        yield self.verdict

    def figures(self) -> dict[str, Any]:
        """Return coverage, the rate of hallucinations, and AUROC by view and method (`counted`)."""
        areas = {
            view.title if view.kind == "domain" else view.kind: counted(view.methods)
            for view in self.views
        }
        rate = float(np.mean([item.y for item in self.evaluated]))
        return {"auroc": areas, "hallucination_rate": rate, "coverage": self.coverage}

    def summary(self) -> dict[str, Any]:
        """Return summary.json."""
        return {
            "command": self.command,
            "run": self.run,
            "verdict": self.verdict,
            "coverage": self.coverage,
            "warnings": self.warnings,
            "draws": self.draws,
            "seed": self.seed,
            "views": [view.told() for view in self.views],
            "splits": [
                {"caption": table.caption, "header": table.header, "rows": table.rows}
                for table in self.splits
            ],
            "twins": [dict(zip(TWIN_HEADER, row, strict=True)) for row in self._twin_rows()],
            "versions": versions(),
        }

    def _twin_rows(self) -> list[tuple]:
        return [row for found in self.twins for row in found.rows()]

    def write(self, folder: Path) -> list[Path]:
        """Write every file of the report and return their paths.

        Without dialogues no file holds a text of theirs. What a report of before has and this one
        lacks is removed.
        """
        plots = self.plots()
        main = main_table(self.views, (*MAIN_METHODS, *OTHER_METHODS), "AUROC with 95% interval")
        spikiest = max(self.evaluated, key=lambda item: item.spike_score)
        texts = {
            "summary.md": self.markdown(),
            "table_main.md": markdown_table(main),
            "table_main.csv": figures_csv(self.views),
            "table_main.tex": tex_table(main),
            "scores.csv": scores_csv(self.items, self.data_dir),
        }
        if self.twins:
            tables = [found.table() for found in self.twins]
            twins = (
                "\n".join(map(headed_table, tables)),
                csv_table(TWIN_HEADER, self._twin_rows()),
                "\n".join(map(tex_table, tables)),
            )
            texts |= dict(zip(TWINS, twins, strict=True))
        if self.with_dialogues:
            texts[SPIKIEST] = dialogue_markdown(read_record(spikiest.path), spikiest)
        files = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
        files |= {f"{name}.png": png for name, png in plots.items()}
        for name, data in files.items():
            write_atomic(folder / name, data)
        for name in {SPIKIEST, *TWINS} - texts.keys():
            (folder / name).unlink(missing_ok=True)
        write_json(folder / "summary.json", self.summary())
        write_page(
            folder / "report.html",
            title=f"SpikeScore report: {self.run}",
            headline=self.headline(),
            settings=[*evaluation_settings(self.config, self.evaluated), *made_now()],
            sections=self.sections(plots),
            dialogues=self.dialogues() if self.with_dialogues else (),
            footer=self.made_by(),
        )
        return [folder / name for name in (*files, "summary.json", "report.html")]

    def plots(self) -> dict[str, bytes]:
        """Return the PNGs by their names in PLOTS."""
        pools = plots.panels_of(self.views, "pooled", "in-domain")
        domains = plots.panels_of(self.views, "domain")
        return {
            "roc": plots.roc_png(pools, f"ROC: {self.run}"),
            "histogram": plots.histogram_png(pools, f"SpikeScore by class: {self.run}"),
            "roc_domains": plots.roc_png(domains, f"ROC per domain: {self.run}"),
            "histogram_domains": plots.histogram_png(domains, f"SpikeScore per domain: {self.run}"),
            "trajectories": plots.trajectories_png(self.views, self.run),
            "spikes": plots.spikes_png(self.evaluated, self.run),
            "spike_turns": plots.spike_turns_png(self.spikes(), f"Where spikes fall: {self.run}"),
        }

    def spikes(self) -> list[Spike]:
        """Return the spike of every evaluated dialogue."""
        return [
            Spike(item.y, item.spike_turn, len(item.scores), item.families)
            for item in self.evaluated
        ]

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues to read, one file at a time."""
        evaluated = {item.path for item in self.evaluated}
        for item in self.items:
            yield page_dialogue(
                as_record(read_pair_json(item.path, ids_as_text=True), item.path),
                id=item.id,
                domain=item.domain,
                y=item.y,
                scores=item.scores,
                split=item.probe_split or "",
                evaluated=item.path in evaluated,
            )

    def markdown(self) -> str:
        """Return summary.md: coverage, warnings, a table per view, paired tests, fixed flags."""
        lines = [f"# SpikeScore report: {self.run}", "", self.verdict, ""]
        lines += [f"Dialogues: {describe_coverage(self.coverage)}.", ""]
        lines += [f"> Warning: {warning}." for warning in self.warnings]
        about = f"{CONVENTIONS} {DIRECTIONS} {ORACLE} {LEADERS}"
        lines += [""] * bool(self.warnings) + [about, ""]
        for view in self.views:
            if view.kind != "domain":
                lines += [f"## {view.title[0].upper()}{view.title[1:]}", ""]
                lines += [markdown_table(view_table(view)), "Paired on the same items:", ""]
                lines += [markdown_table(paired_table(view))]
                if view.flags:
                    flags = flags_text(view.flags)
                    lines += [f"At the threshold carried over from training: {flags}.", ""]
        domains = domain_table([view for view in self.views if view.kind == "domain"])
        twins = [found.table() for found in self.twins]
        lines += [f"## {TWINS_TITLE}\n\n{ABOUT_TWINS}\n"] * bool(twins)
        lines += map(headed_table, (*twins, domains, *self.splits))
        return "\n".join([*lines, f"Made by: `{self.command}`", ""])

    def headline(self) -> list[str]:
        """Return the verdict, SpikeScore's figures, cross-domain first, coverage and warnings."""
        lines = []
        for view in _in_order(self.views):
            lines.append(figure_line("spike_score", view.methods["spike_score"], view.title))
            if identity := view.methods.get("domain_identity"):
                lines[-1] += f"; domain identity alone {_or_why(identity)}"
        lines.append(f"Dialogues: {describe_coverage(self.coverage)}.")
        return [self.verdict, *lines, *(f"Warning: {warning}." for warning in self.warnings)]

    def sections(self, plots: Mapping[str, bytes]) -> list[Section]:
        """Return the page's sections; `plots` holds PNGs by the names in PLOTS."""
        main = main_table(self.views, MAIN_METHODS, "AUROC with 95% interval")
        controls = main_table(self.views, OTHER_METHODS, "AUROC with 95% interval, controls")
        shown = [view for view in self.views if view.kind != "domain"]
        per_domain = domain_table([view for view in self.views if view.kind == "domain"])
        figures = {name: Figure.of_tables(png, PLOTS[name]) for name, png in plots.items()}
        spike_turns = figures.pop("spike_turns")
        families = family_table(self.spikes())
        found = [
            Section("Main table", (CONVENTIONS, DIRECTIONS, LEADERS, ORACLE), (main,)),
            Section("Plots", figures=tuple(figures.values())),
            Section("Where spikes fall", (), (families,) if families else (), (spike_turns,)),
            Section("Controls", (ABOUT_CONTROLS,), (controls,)),
            Section("Per domain", tables=(per_domain,)),
            Section("Paired tests", (ABOUT_PAIRS,), tuple(map(paired_table, shown))),
        ]
        if self.splits:
            found.append(Section("Parts of the items", (), tuple(self.splits)))
        if self.twins:
            tables = tuple(twins.table() for twins in self.twins)
            found.insert(1, Section(TWINS_TITLE, (ABOUT_TWINS,), tables))
        flags = threshold_table(self.views)
        if flags.rows:
            found.append(Section("At the fixed threshold", (ABOUT_FLAGS,), (flags,)))
        coverage = [(name.replace("_", " "), str(n)) for name, n in self.coverage.items()]
        table = Table("Coverage", ("dialogues", "n"), tuple(coverage))
        return [*found, Section("Coverage", (ABOUT_COVERAGE,), (table,))]

    def made_by(self) -> str:
        """Return the command and the versions behind the report."""
        names = ", ".join(f"{name} {version}" for name, version in versions().items())
        return f"Made by: {self.command}\n{names}; {self.draws} bootstrap draws"


def versions() -> dict[str, str]:
    """Return the versions that the figures and plots depend on."""
    import matplotlib

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
    }


# --- lines ------------------------------------------------------------------------------------


def figure_line(method: str, area: Area, title: str) -> str:
    """Return one result as one line: method, AUROC [interval], n, hallucination rate, view."""
    rate = f" hallucinated {_rate(area)}" if area.n else ""
    note = f"; {area.note}" if area.note and area.value is not None else ""
    return f"{METHODS[method]} AUROC {_or_why(area)} n={area.n}{rate} ({title}{note})"


def difference_line(other: str, contrast: Contrast, title: str) -> str:
    """Return one paired test as one line."""
    p = p_value(contrast.p_bootstrap)
    p = f" p{'' if p.startswith('<') else '='}{p}" if p else ""
    note = f"; {contrast.note}" if contrast.note and contrast.value is not None else ""
    told = _or_why(contrast, "+.3f")
    return f"SpikeScore minus {METHODS[other]} {told}{p} n={contrast.n} ({title}{note})"


def flags_text(flags: Mapping[str, list[float | None]]) -> str:
    """Return F1, accuracy, TPR and FPR at the fixed threshold as one phrase."""
    return ", ".join(f"{name} {_flag(flags[key])}" for key, name in FLAGS.items())


def _flag(values: list[float | None]) -> str:
    return mean_cell([values]).replace("not computable", "undefined")


def _or_why(figure: Area | Contrast, form: str = ".3f") -> str:
    return figure.note if figure.value is None else figure_cell(figure, form)


def _rate(area: Area) -> str:
    return f"{area.n_positive / area.n:.0%}" if area.n else ""


# --- tables -----------------------------------------------------------------------------------


def view_table(view: View) -> Table:
    """Return every method's figure on one view, a row each."""
    rows = [
        (METHODS[method], number(area.value), _interval(area.interval), str(area.n), _rate(area),
         _interval(area.delong_interval(view.groups)))
        for method, area in view.methods.items()
    ]  # fmt: skip
    header = ("method", "AUROC", "95% interval", "n", "hallucinated", "DeLong's interval")
    bold = frozenset((row, 1) for row, name in enumerate(view.methods) if name in view.best)
    return Table(view.title, header, tuple(rows), _notes(view.methods), bold)


def paired_table(view: View) -> Table:
    """Return what SpikeScore has ahead of other methods on the same items of one view."""
    rows = [
        (f"SpikeScore minus {METHODS[other]}", number(found.value, "+.3f"),
         _interval(found.interval, "+.3f"), str(found.n), p_value(found.p_bootstrap),
         p_value(found.p_delong))
        for other, found in view.paired.items()
    ]  # fmt: skip
    header = ("difference", "AUROC", "95% interval", "n", "p, bootstrap", "p, DeLong")
    return Table(view.title, header, tuple(rows), _notes(view.paired))


def main_table(views: Sequence[View], methods: Sequence[str], caption: str) -> Table:
    """Return AUROC with interval of the methods, a row each, by view, a column each.

    The views of single domains are left out, and macro comes first. The first row has each view's
    items; a method measured on fewer says so in its cell.
    """
    shown = _in_order(views)
    first = [f"{len(view.items)} ({view.rate:.0%})" for view in shown]
    rows = [("n (hallucinated)", *first)]
    bold = set()
    for method in methods:
        cells = [_cell(view, method) for view in shown]
        if any(cells):
            bold |= {(len(rows), place) for place, v in enumerate(shown, 1) if method in v.best}
            rows.append((METHODS[method], *cells))
    header = ("method", *(view.title for view in shown))
    return Table(caption, header, tuple(rows), _notes_of(shown, methods), frozenset(bold))


def domain_table(views: Sequence[View]) -> Table:
    """Return AUROC with interval of every method, by domain, a row each."""
    shown = list(views[0].methods)
    rows = [
        (view.title, str(len(view.items)), f"{view.rate:.0%}",
         *(_cell(view, method) for method in shown))
        for view in views
    ]  # fmt: skip
    header = ("domain", "n", "hallucinated", *(METHODS[method] for method in shown))
    note = _notes_of(views, shown)
    bold = frozenset(
        (row, place) for row, view in enumerate(views)
        for place, method in enumerate(shown, start=3) if method in view.best
    )  # fmt: skip
    return Table("Per domain (AUROC with 95% interval)", header, tuple(rows), note, bold)


def threshold_table(views: Sequence[View]) -> Table:
    """Return F1, accuracy, TPR and FPR at the fixed threshold, a row per view that has one."""
    rows = [
        (view.title, *(_flag(view.flags[key]) for key in FLAGS)) for view in views if view.flags
    ]
    return Table("SpikeScore at the fixed threshold", ("view", *FLAGS.values()), tuple(rows))


def _in_order(views: Sequence[View]) -> list[View]:
    """Return the views but for those of single domains, macro first."""
    return sorted((view for view in views if view.kind in ORDER), key=lambda v: ORDER[v.kind])


def _cell(view: View, method: str) -> str:
    """Return `value [low, high]` with n where it is not the view's; empty for no such figure."""
    area = view.methods.get(method)
    if area is None:
        return ""
    cell = "n/c" if area.value is None else figure_cell(area)
    return cell if area.n == len(view.items) else f"{cell} (n={area.n})"


def _interval(interval: tuple[float, float] | None, form: str = ".3f") -> str:
    return "" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def _lacks_questions(view: View) -> bool:
    """Whether no figure of a view has enough items of both classes."""
    return all(area.value is None for area in view.methods.values())


def _notes(figures: Mapping[str, Area | Contrast]) -> str:
    """Return a view's notes, each once, with its methods where it is not about all."""
    methods: dict[str, list[str]] = {}
    for method, figure in figures.items():
        if figure.note:
            methods.setdefault(figure.note, []).append(METHODS[method])
    return ". ".join(
        note if len(names) == len(figures) else f"{', '.join(names)}: {note}"
        for note, names in methods.items()
    )


def _notes_of(views: Sequence[View], methods: Sequence[str]) -> str:
    """Return the notes on these methods in several views; n/c stands for not computable."""
    notes = []
    for view in views:
        found = _notes({key: view.methods[key] for key in methods if key in view.methods})
        notes += [f"{view.title}: {found}."] if found else []
    return " ".join(notes)


def figures_csv(views: Sequence[View]) -> str:
    """Return every AUROC of every view as CSV at full precision, one row each."""
    header = ("view", "kind", "method", "auroc", "low", "high", "n", "n_hallucinated", "note")
    rows = [
        (view.title, view.kind, method, *one.told(one.interval).values())
        for view in views
        for method, one in view.methods.items()
    ]
    return csv_table(header, rows)


# --- dialogues --------------------------------------------------------------------------------


def scores_csv(items: Sequence[Item], data_dir: Path) -> str:
    """Return CSV with a row per dialogue found, scored or not; what does not exist is empty."""
    longest = max((len(item.scores) for item in items), default=0)
    rows = []
    for item in items:
        own = {"path": item.path.relative_to(data_dir).as_posix(), "n_turns": len(item.scores)}
        empty = [None] * (longest - len(item.scores))
        told = [own[name] if name in own else getattr(item, name) for name in CSV_FIELDS]
        rows.append([*told, *item.scores, *empty])
    return csv_table([*CSV_FIELDS, *(f"s_{turn}" for turn in range(1, longest + 1))], rows)


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


def page_dialogue(record: dict[str, Any], *, scores: tuple[float, ...], **about: Any) -> Dialogue:
    """Return what the page shows of a dialogue; `about` are further fields of `Dialogue`."""
    judged = record.get("nil_judge") or {}
    reply = " ".join(_text(judged.get(key)) for key in ("reply", "error")).strip()
    fields = ("prompt_type", "prompt", "response")
    turns = [tuple(_text(step.get(field)) for field in fields) for step in record["cot_steps"]]
    if record.get("given_answer") and turns:
        kind, *said = turns[0]
        turns[0] = (f"{kind}, answer given", *said)
    enough = len(scores) >= MIN_SCORES
    return Dialogue(
        spike_score=spike_score(scores) if enough else None,
        spike_turn=spike_turn(scores) if enough else None,
        scores=scores,
        question=_text(record.get("question")),
        gold=gold_text(record),
        turns=tuple(turns),
        judge=f"{_text(judged.get('judge'))}: {reply}" if judged else "",
        **about,
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)
