"""The report of one model in an experiment: its sections, from score books to tables and plots.

Every table and plot has a name, which its files and its place in report.html share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from spikescore.detectors.score_book import BookItem, ScoreBook, load_score_book
from spikescore.detectors.scoring import by_reason
from spikescore.dialogues.config import parse_config
from spikescore.dialogues.prompts import FORKED
from spikescore.errors import UserError
from spikescore.files import read_json, write_atomic
from spikescore.report import plots
from spikescore.report.comparison import (
    CROSS,
    SPIKE,
    VIEWS,
    Comparison,
    Entry,
    on_shared_items,
    static_entries,
    trajectories,
    trajectory_entry,
)
from spikescore.report.cost_tables import cost_points, cost_table
from spikescore.report.eval_report import page_dialogue
from spikescore.report.evaluation import TRAINING_SPLITS
from spikescore.report.experiment import MULTI, Experiment, Model, Variant
from spikescore.report.main_tables import (
    ABOUT_SOURCES,
    ABOUT_TWINS,
    MAIN_HEADER,
    TWINS_TITLE,
    main_entries,
    main_rows,
    main_tables,
    multi_source_table,
    operating_table,
    paired_table,
    part_tables,
    seed_table,
    twin_figures,
)
from spikescore.report.openhaldet import beside_table
from spikescore.report.page import Dialogue, Figure, Section, Table, write_page
from spikescore.report.paper import BASE_SCORER
from spikescore.report.settings import dialogue_settings, made_now
from spikescore.report.spike_places import Spike, family_table
from spikescore.report.stopping_tables import decided_table, stopping, stopping_table
from spikescore.report.text import (
    counted,
    csv_table,
    figure_cell,
    headed_table,
    tex_table,
)
from spikescore.report.trajectory_tables import (
    CLAIMS,
    base_scorer_table,
    claim_entries,
    control_entries,
    control_table,
    functional_tables,
    matched_table,
    theory_table,
    turns_sweep,
    turns_table,
)
from spikescore.report.variant_tables import (
    difference_table,
    forked_table,
    judge_note,
    layer_grid,
    layer_table,
    measure_variant,
    on_same_questions,
    order_spread,
    release_results,
    retrieval_note,
    variant_entries,
    variant_table,
)
from spikescore.report.verdict import verdict
from spikescore.shards import is_file, read_pair_json
from spikescore.stats.trajectory import apply, spike_turn

MATRICES = (SPIKE, "saplma", "perplexity")


@dataclass
class Chapter:
    """A section of the report with the names of its tables and plots."""

    title: str
    text: tuple[str, ...] = ()
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)

    def section(self) -> Section:
        """Return it as the page takes it."""
        tables, figures = tuple(self.tables.values()), tuple(self.figures.values())
        return Section(self.title, self.text, tables, figures)


class ModelReport:
    """All chapters of one model."""

    def __init__(self, experiment: Experiment, model: Model, *, by: str = "") -> None:
        self.experiment, self.model, self.by = experiment, model, by
        self.book = load_score_book(experiment.book(model))
        if not self.book.splits:
            raise UserError(
                f'the score book of model "{model.name}" has no training domain, so there is no '
                "cross-domain figure; score a method that learns, such as saplma, too"
            )
        known = sorted({f"meta.{key}" for item in self.book.items for key in item.meta})
        if by and by not in known:
            told = f"known: {', '.join(known)}" if known else "the score book has no meta"
            raise UserError(f'no item of model "{model.name}" has "{by}"; {told}')
        self.comparison = Comparison(self.book, draws=experiment.draws)
        self.entries = main_entries(self.comparison)

    def headline(self) -> list[str]:
        """Return the verdict, then the cross-domain means of SpikeScore and its rivals."""
        wanted = (SPIKE, "saplma", "perplexity", "domain_identity")
        first = trajectory_entry(self.book, "first", BASE_SCORER)
        spike = next((entry for entry in self.entries if entry.name == SPIKE), None)
        found = verdict(self.comparison, spike, first)
        lines = [f"{self.model.name}: {found}"] if found else []
        for view in CROSS:
            parts = []
            for entry in self.entries:
                area = self.comparison.mean(entry, view)
                if entry.name in wanted and area.value is not None:
                    parts.append(f"{entry.title} {figure_cell(area)}")
            lines.append(f"{self.model.name}, mean AUROC, {view}: {'; '.join(parts)}")
        return lines

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Return the mean AUROC of every method by view, `counted`."""
        return {
            view: counted({one.name: self.comparison.mean(one, view) for one in self.entries})
            for view in VIEWS
        }

    def chapters(self) -> Iterator[Chapter]:
        """Yield the chapters in order; one whose data was not made is left out."""
        spike = any(entry.name == SPIKE for entry in self.entries)
        yield self._main()
        yield from self._twins()
        yield from self._multi_source()
        yield from self._matrices()
        yield self._statistics()
        yield self._controls()
        yield from self._parts()
        if self.book.turns:
            yield self._trajectories()
        if spike:
            yield from self._domains()
            yield self._turns()
            yield self._costs()
            yield from self._variants()
        yield from self._layers()
        if spike:
            yield self._theory()
        if tables := left_out(self.book, "left_out"):
            yield Chapter("Left out", (), tables)

    def _main(self) -> Chapter:
        found = main_tables(self.comparison, self.entries, self.model.published)
        tables = dict(zip(("macro", "pooled", "in_domain"), found, strict=True))
        if beside := beside_table(self.comparison, self.entries, self.model.published):
            tables["openhaldet"] = beside
        png = plots.forest(self.comparison, self.entries, f"Cross-domain AUROC, {self.model.name}")
        return Chapter(
            "Main table",
            (
                f"{len(self.book.items)} dialogues of {self.book.model}. y = 1 means hallucinated; "
                "a higher score means more hallucinated. Direction, layer, epoch and threshold "
                "come from the training domain alone.",
                "The three views are never mixed. In a pool a score that knows only the domain can "
                "do well: see domain identity. Published figures do not say which of the two "
                "cross-domain views they are.",
            ),
            tables,
            {"main": Figure.of_tables(png, "Mean AUROC over training domains with 95% intervals.")},
        )

    def _twins(self) -> Iterator[Chapter]:
        """Yield the paired accuracies of dialogues that begin with given answers."""
        entries = [entry for entry in self.entries if entry.name != "domain_identity"]
        found = twin_figures(self.comparison, entries)
        names = (f"twins_{one.view.split(',')[0].replace('-', '_')}" for one in found)
        if found:
            tables = dict(zip(names, (one.table() for one in found), strict=True))
            yield Chapter(TWINS_TITLE, (ABOUT_TWINS,), tables)

    def _multi_source(self) -> Iterator[Chapter]:
        """Yield what training on all domains but the tested one gives, where it was done."""
        if not self.experiment.multi_source:
            return
        book = load_score_book(self.experiment.book(self.model, MULTI))
        several = Comparison(book, draws=self.experiment.draws)
        table = multi_source_table(self.comparison, self.entries, several, main_entries(several))
        tables = {"multi_source": table, **left_out(book, "multi_source_left_out")}
        yield Chapter(table.caption, (ABOUT_SOURCES,), tables)

    def _matrices(self) -> Iterator[Chapter]:
        shown = [entry for entry in self.entries if entry.name in MATRICES]
        if not shown:
            return
        png = plots.matrices(self.comparison, shown, f"Trained on x tested on, {self.model.name}")
        caption = "AUROC by training and test domain; the diagonal is held-out questions."
        tables = {f"matrix_{entry.name}": self._matrix(entry) for entry in shown}
        yield Chapter(
            "Per-domain matrices", (), tables, {"matrices": Figure.of_tables(png, caption)}
        )

    def _matrix(self, entry: Entry) -> Table:
        names = self.book.domain_names()
        rows = []
        cells = self.comparison.matrix(entry)
        for domain, row in zip(self.comparison.training_domains, cells, strict=True):
            shown = ["not computable" if np.isnan(cell) else f"{cell:.3f}" for cell in row]
            rows.append((domain, *shown))
        return Table(f"{entry.title}: trained on (rows), tested on (columns)",
                     ("trained on", *names), tuple(rows))  # fmt: skip

    def _statistics(self) -> Chapter:
        tables = {"paired_tests": paired_table(self.comparison, self.entries)}
        tables["probe_seeds"] = seed_table(self.comparison, self.entries)
        for view in CROSS:
            tables[f"operating_{view}"] = operating_table(self.comparison, self.entries, view)
        return Chapter("Statistics", (), tables)

    def _controls(self) -> Chapter:
        controls = control_entries(self.comparison, self.entries)
        tables = {
            "controls": control_table(self.comparison, controls),
            "claims": paired_table(
                self.comparison, claim_entries(self.comparison, self.entries), CLAIMS
            ),
            "matched_rates": matched_table(self.comparison, draws=self.experiment.draws),
        }
        png = plots.forest(self.comparison, controls, f"Controls, {self.model.name}")
        figures = {"controls": Figure.of_tables(png, "SpikeScore and controls.")}
        return Chapter("Controls", (), tables, figures)

    def _parts(self) -> Iterator[Chapter]:
        items, key = self.book.items, self.by.removeprefix("meta.")
        entries = list(variant_entries(self.book).values())
        cut_off = [item.cut_off for item in items]
        values = [str(item.meta.get(key, "")) for item in items]
        tables = part_tables(self.comparison, entries, cut_off, self.by, values)
        if tables:
            named = {f"parts_{place}": table for place, table in enumerate(tables, start=1)}
            yield Chapter("Parts of the items", (), named)

    def _trajectories(self) -> Chapter:
        tables = dict(
            zip(("functionals_macro", "functionals_pooled"), functional_tables(self.comparison),
                strict=True)
        )  # fmt: skip
        tables["base_scorers"] = base_scorer_table(self.comparison, self.model.published)
        png = plots.functional_map(self.comparison, f"Functionals, macro, {self.model.name}")
        figures = {
            "functionals": Figure.of_tables(png, "Mean macro AUROC: functional x base scorer.")
        }
        return Chapter("Trajectory functionals and base scorers", (), tables, figures)

    def _turns(self) -> Chapter:
        points = turns_sweep(
            self.comparison, seconds_per_token(self.experiment.data_dir(self.model))
        )
        png = plots.turns_curve(points, f"SpikeScore by number of turns, {self.model.name}")
        rules, notes = stopping(self.comparison)
        tables = {
            "turns": turns_table(points),
            "early_stopping": stopping_table(rules, notes),
            "decided": decided_table(rules, notes),
        }
        curve = plots.stopping_curve(rules, f"Stopping once it is decided, {self.model.name}")
        lost = "What stopping on either side loses, over the turns that it leaves."
        figures = {
            "turns": Figure.of_tables(png, "AUROC and cost over the number of turns."),
            "decided": Figure.of_tables(curve, lost),
        }
        return Chapter("Number of turns and early stopping", (), tables, figures)

    def _costs(self) -> Chapter:
        points = cost_points(self.comparison, self.entries, self._forked())
        png = plots.cost_plot(points, f"Accuracy against cost, {self.model.name}")
        tables = {"cost": cost_table(points)}
        caption = "Macro AUROC over the cost of an item; circled: the Pareto front."
        return Chapter(
            "Accuracy against cost", (), tables, {"cost": Figure.of_tables(png, caption)}
        )

    def _forked(self) -> Comparison | None:
        """Return the run with forked follow-ups, on the questions that the main run has too."""
        for variant in self.experiment.variants():
            if variant.title == FORKED:
                book = load_score_book(self.experiment.book(self.model, variant.name))
                shared, _ = on_shared_items(book, self.book)
                return Comparison(shared, draws=self.experiment.draws)
        return None

    def _theory(self) -> Chapter:
        return Chapter(
            "Theory report",
            (
                "The paper's three conditions and its bound, beside the general bound by Cantelli "
                "and the share of (hallucinated, consistent) pairs that SpikeScore orders rightly. "
                "For each test domain, scores are those of the probe of the first other domain.",
            ),
            {"theory": theory_table(*self.theory_scores())},
        )

    def _domains(self) -> Iterator[Chapter]:
        """Yield each domain's ROC, histogram and places of spikes, by another domain's probe."""
        y, items = self.book.y, self.book.items
        perplexity = static_entries(self.book).get("perplexity")
        shown, spikes = [], []
        for domain, here, probe, turns in self._by_other_probes():
            scores = [("SpikeScore", apply("max_abs_d2", turns))]
            scores += [("first-answer probe", apply("first", turns))]
            if perplexity and probe in perplexity.scores:
                scores += [("perplexity", perplexity.scores[probe][0])]
            curves = tuple(
                (name, values[here], self.comparison.resampler.area(values, here))
                for name, values in scores
            )
            shown.append(plots.Panel(f"{domain}, probe of {probe}", y[here], curves))
            for place in np.flatnonzero(here & np.isfinite(scores[0][1])):
                own = turns[place][np.isfinite(turns[place])].tolist()
                families = self._families(items[place])
                spikes.append(Spike(y[place], spike_turn(own), len(own), families))
        if not shown:
            return
        text = (
            "Each domain by the probe of the first other domain, probe seed 0: one of the pairs "
            "whose mean the tables give.",
        )
        figures = {
            "roc_domains": Figure.of_tables(
                plots.roc_png(shown, f"ROC per domain, {self.model.name}"), "ROC curves per domain."
            ),
            "histogram_domains": Figure.of_tables(
                plots.histogram_png(shown, f"SpikeScore per domain, {self.model.name}"),
                "SpikeScore by class, per domain. Each class sums to 100%.",
            ),
        }
        yield Chapter("Distributions and ROC per domain", text, {}, figures)
        table = family_table(spikes)
        png = plots.spike_turns_png(spikes, f"Where spikes fall, {self.model.name}")
        yield Chapter(
            "Where spikes fall",
            text,
            {"spike_families": table} if table else {},
            {"spike_turns": Figure.of_tables(png, "Turns at which the spikes of each class fall.")},
        )

    def _families(self, item: BookItem) -> tuple[str, ...]:
        """Return the families of a dialogue's prompts; none where its file is gone."""
        path = Path(item.path)
        if not is_file(path):
            return ()
        steps = read_pair_json(path, ids_as_text=True)["cot_steps"]
        return tuple(str(step.get("prompt_type") or "") for step in steps)

    def _by_other_probes(self) -> Iterator[tuple[str, np.ndarray, str, np.ndarray]]:
        """Yield each domain, the mask [n] of its items, the first other domain that a probe was
        trained on, and that probe's scores [n, K] under seed 0.
        """
        found = trajectories(self.book, BASE_SCORER)
        for domain in self.book.domain_names():
            probe = next((other for other in found if other != domain), None)
            if probe is not None:
                yield domain, self.book.domains == domain, probe, found[probe][0]

    def theory_scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return y, SpikeScore and domain of the items, each scored by another domain's probe."""
        scores = np.full(len(self.book.items), np.nan)
        for _, here, _, turns in self._by_other_probes():
            scores[here] = apply("max_abs_d2", turns)[here]
        kept = np.isfinite(scores)
        return self.book.y[kept], scores[kept], self.book.domains[kept]

    # --- runs beside the main one ---------------------------------------------------------------

    def _variants(self) -> Iterator[Chapter]:
        kinds: dict[str, list[Variant]] = {}
        for variant in self.experiment.variants():
            kinds.setdefault(variant.table, []).append(variant)
        for kind, variants in kinds.items():
            yield self._variant_chapter(kind, variants)

    def _variant_chapter(self, kind: str, variants: list[Variant]) -> Chapter:
        books = [load_score_book(self.experiment.book(self.model, one.name)) for one in variants]
        draws = self.experiment.draws
        main, *others = on_same_questions([self.book, *books])
        reference = Comparison(main, draws=draws)
        runs = [
            measure_variant(variant.title, Comparison(book, draws=draws))
            for variant, book in zip(variants, others, strict=True)
        ]
        title, note = self._reference_title(kind), ""
        if kind == "release":
            results = release_results(reference, runs, title)
        else:
            results = [measure_variant(title, reference), *runs]
        if kind == "order":
            note = order_spread(runs)
        if kind == "judges":
            pairs = zip(variants, books, strict=True)
            note = " ".join(judge_note(self.book, book, variant) for variant, book in pairs)
        if kind == "retrieval":
            note = retrieval_note(others[0])
        table = variant_table(kind, results, note)
        tables = {kind: table}
        if kind == "retrieval":
            paired = difference_table(kind, books[0], self.book, draws=draws)
            tables["retrieval_paired"] = paired
        for variant, book in zip(variants, books, strict=True):
            if variant.title == FORKED:
                tables["forked"] = forked_table(book, self.book, draws=draws)
        png = plots.variant_plot(results, f"{table.caption}, {self.model.name}")
        caption = "SpikeScore of each run; dashed: the reference, on the same questions."
        return Chapter(table.caption, (), tables, {kind: Figure.of_tables(png, caption)})

    def _reference_title(self, kind: str) -> str:
        settings = self.experiment.stage_config(self.model)
        told = {
            "schedules": settings.get("strategy", "progressive"),
            "order": f"{settings.get('strategy', 'progressive')}, in order",
            "temperature": f"{settings.get('temperature', 0.2):g}",
            "release": "as here",
            "retrieval": "with its own retrieval" if settings.get("context") else "without",
            "judges": str(settings.get("judge", "auto")),
        }
        return f"{told[kind]} (main run)"

    def _layers(self) -> Iterator[Chapter]:
        if not self.experiment.ablations.layers:
            return
        book = load_score_book(self.experiment.book(self.model, "layers"))
        grid = layer_grid(book, draws=1)
        png = plots.layer_heat_map(grid, f"SAPLMA's layer and token, macro, {self.model.name}")
        yield Chapter(
            "Layers and tokens",
            (),
            {"layers": layer_table(grid)},
            {"layers": Figure.of_tables(png, "Mean macro AUROC by SAPLMA's layer and token.")},
        )

    # --- dialogues to read ----------------------------------------------------------------------

    def reading_probe(self) -> str:
        """Return whose scores the dialogues are shown with."""
        domain = next(iter(trajectories(self.book, BASE_SCORER)), "no domain")
        return f"SAPLMA trained on {domain}, probe seed 0"

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield all dialogues of the main run, with the scores of the `reading_probe`."""
        found = trajectories(self.book, BASE_SCORER)
        domain = next(iter(found), None)
        for place, item in enumerate(self.book.items):
            turns = found[domain][0][place] if domain else np.array([])
            split = str(self.book.splits[domain][place]) if domain else ""
            yield page_dialogue(
                read_pair_json(Path(item.path), ids_as_text=True),
                id=item.id,
                domain=item.domain,
                y=item.y,
                scores=tuple(float(score) for score in turns[np.isfinite(turns)]),
                split=split,
                evaluated=split not in TRAINING_SPLITS,
            )


def left_out(book: ScoreBook, name: str) -> dict[str, Table]:
    """Return by its name what a score book says was left out, and why, if anything was."""
    rows = tuple(by_reason(book.about.get("left_out", ())))
    return {name: Table("What has no figure, and why", ("left out", "why"), rows)} if rows else {}


def seconds_per_token(folder: Path) -> float | None:
    """Return a run's seconds per answer token, its parts together; None where it kept none."""
    told = [read_json(path) for path in sorted(folder.glob("**/speed.json"))]
    tokens = sum(one.get("answer_tokens", 0) for one in told)
    return sum(one["seconds"] for one in told) / tokens if tokens else None


# --- files ------------------------------------------------------------------------------------


def write_report(
    experiment: Experiment,
    reports: Sequence[ModelReport],
    chapters: Mapping[str, Sequence[Chapter]],
) -> list[Path]:
    """Write a report (`chapters` by model name); return the files to look at first.

    Tables of a report of before that this one does not make are removed, with plots of their name.
    """
    folder, several = experiment.report_dir, len(reports) > 1
    markdown, latex, rows, sections = [f"# {experiment.name}: main table\n"], [], [], []
    if experiment.note:
        markdown.append(f"{experiment.note}\n")
    files: dict[Path, str | bytes] = {}
    for report in reports:
        name = report.model.name
        title = f"{name}: " if several else ""
        for table in chapters[name][0].tables.values():
            markdown.append(headed_table(table, title))
            latex.append(tex_table(table))
        rows += main_rows(report.comparison, report.entries, name, report.model.published)
        for chapter in chapters[name]:
            for slug, table in chapter.tables.items():
                place = folder / "tables" / name / slug
                files[place.with_suffix(".md")] = headed_table(table)
                files[place.with_suffix(".csv")] = csv_table(table.header, table.rows)
                files[place.with_suffix(".tex")] = tex_table(table)
            for slug, figure in chapter.figures.items():
                files[folder / "plots" / name / f"{slug}.png"] = figure.png
            sections.append(replace(chapter.section(), title=f"{title}{chapter.title}"))
    models = [(report.model.name, report.comparison, report.entries) for report in reports]
    first = {
        "table_main.md": "\n".join(markdown),
        "table_main.csv": csv_table(MAIN_HEADER, rows),
        "table_main.tex": "\n".join(latex),
        "table_main.png": plots.forest_of_models(models),
    }
    files |= {folder / name: data for name, data in first.items()}
    for old in folder.glob("tables/*/*.csv"):
        own = [old.with_suffix(ending) for ending in (".md", ".csv", ".tex")]
        if old not in files and all(path.is_file() for path in own):
            plot = folder / "plots" / old.parent.name / f"{old.stem}.png"
            for path in (*own, *([plot] if plot not in files else [])):
                path.unlink(missing_ok=True)
    headline = [line for report in reports for line in report.headline()]
    for path, data in files.items():
        write_atomic(path, data if isinstance(data, bytes) else data.encode("utf-8", "replace"))
    shown = experiment.dialogues_in_report
    dialogues = (
        replace(one, domain=f"{report.model.name}: {one.domain}") if several else one
        for report in reports
        for one in (report.dialogues() if shown else ())
    )
    reading = f"Dialogues are shown with the scores of {reports[0].reading_probe()}."
    write_page(
        folder / "report.html",
        title=f"SpikeScore: {experiment.name}",
        headline=[*headline, *([experiment.note] if experiment.note else [])],
        sections=sections,
        dialogues=dialogues,
        settings=settings(experiment),
        footer="The commands behind this report are in commands.sh beside it. "
        + (reading if shown else "It is made without the dialogues' texts."),
    )
    return [folder / name for name in (*first, "report.html")]


def settings(experiment: Experiment) -> list[tuple[str, str]]:
    """Return what the figures are of: models, probes, dialogues, judge, date and version."""
    config = experiment.stage_config(experiment.models[0])
    held = asdict(parse_config(config, source=experiment.name))
    return [
        ("model", ", ".join(model.name for model in experiment.models)),
        ("probes", f"trained on each domain in turn, {experiment.probe_seeds} seeds; "
                   f"{experiment.token_key}"),
        *dialogue_settings(held),
        ("judge", str(config.get("judge", "auto"))),
        *made_now(),
    ]  # fmt: skip
