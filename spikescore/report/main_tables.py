"""The tables of a report that compare methods on the main run of one model.

Each function returns tables to read; `main_rows` has the same cells as numbers, for CSV.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spikescore.detectors.base import FAMILIES
from spikescore.report.comparison import (
    CROSS,
    LEADERS,
    SPIKE,
    VIEWS,
    Comparison,
    Entry,
    TwinComparison,
    leaders,
    seed_means,
    static_entries,
    trajectory_entry,
)
from spikescore.report.content import Table
from spikescore.report.paper import BASE_SCORER, published
from spikescore.report.text import MISSING, figure_cell, mean_cell, number, p_value, share
from spikescore.stats.bootstrap import Area, Contrast, contrast_of_draws, holm
from spikescore.stats.operating_points import (
    choose_threshold,
    fit_calibration,
    operating_figures,
)
from spikescore.stats.roc import MIN_PER_CLASS

ORDER = ("trajectory", *FAMILIES)
MAIN_HEADER = (
    "model", "view", "training_domain", "method", "family", "auroc", "low", "high", "n",
    "n_hallucinated", "hallucination_rate", "published", "difference", "note",
)  # fmt: skip


def main_entries(comparison: Comparison) -> list[Entry]:
    """Return SpikeScore and all methods that score the first answer, in the order of the tables."""
    spike = trajectory_entry(comparison.book, "max_abs_d2", BASE_SCORER)
    entries = [spike] if spike else []
    entries += static_entries(comparison.book).values()
    return sorted(entries, key=lambda entry: ORDER.index(entry.family))


def main_tables(comparison: Comparison, entries: Sequence[Entry], model: str | None) -> list[Table]:
    """Return the main table, one per view: methods x training domains and their mean.

    The figure published for `model`, and ours less it, stand beside the cross-domain means; None:
    there is none. In the pool the score that knows only the domain stands next to SpikeScore.
    """
    domains = comparison.training_domains
    tables, identity = [], [entry for entry in entries if entry.name == "domain_identity"]
    for view, title in VIEWS.items():
        beside = ("published", "difference") if model and view in CROSS else ()
        sizes = ["n, hallucinated", *[""] * (1 + len(beside))]
        for domain in domains:
            n, rate = comparison.rate(view, domain)
            sizes.append(f"{n}, {number(rate, '.0%')}")
        rows = [tuple(sizes)]
        shown = list(entries)
        if view == "pooled" and identity:
            shown = [*entries[:1], *identity, *(one for one in entries[1:] if one not in identity)]
        best = leaders(comparison, entries, view)
        bold = {(row, 1) for row, entry in enumerate(shown, start=1) if entry.name in best}
        for entry in shown:
            mean = comparison.mean(entry, view)
            cells = [figure_cell(mean)]
            if beside:
                paper = published(model, entry.name)
                less = None if paper is None or mean.value is None else mean.value - paper
                cells += [number(paper, ".4f"), number(less, "+.3f")]
            cells += [_cell(comparison, entry, view, domain) for domain in domains]
            rows.append((entry.title, *cells))
        header = ("method", "mean over training domains", *beside, *domains)
        caption = f"AUROC, {title}, by training domain"
        tables.append(Table(caption, header, tuple(rows), NOTE, frozenset(bold)))
    return tables


NOTE = (
    "95% bootstrap intervals over questions; the spread over probe seeds has a table of its own. "
    f"{LEADERS} {MISSING}"
)


def _cell(comparison: Comparison, entry: Entry, view: str, domain: str) -> str:
    area = comparison.cell(entry, view, domain)
    n, _ = comparison.rate(view, domain)
    fewer = area.value is not None and area.n < n
    return figure_cell(area) + (f" (n={area.n})" if fewer else "")


def main_rows(
    comparison: Comparison, entries: Sequence[Entry], name: str, model: str | None
) -> list[tuple]:
    """Return every cell of the main table as numbers, under MAIN_HEADER."""
    rows = []
    for view in VIEWS:
        for entry in entries:
            cells = [
                (domain, comparison.cell(entry, view, domain))
                for domain in comparison.training_domains
            ]
            for domain, area in [*cells, ("mean", comparison.mean(entry, view))]:
                low, high = area.interval or (None, None)
                rate = area.n_positive / area.n if area.n else None
                paper = published(model, entry.name) if domain == "mean" and view in CROSS else None
                less = area.value - paper if None not in (paper, area.value) else None
                rows.append((
                    name, view, domain, entry.name, entry.family, area.value, low, high, area.n,
                    area.n_positive, rate, paper, less, area.note,
                ))  # fmt: skip
    return rows


def paired_table(
    comparison: Comparison,
    entries: Sequence[Entry],
    caption: str = "Paired tests: SpikeScore against every other method",
) -> Table:
    """Return SpikeScore less every other entry on the same items, Holm-corrected per view."""
    spike = next((entry for entry in entries if entry.name == SPIKE), None)
    others = [entry for entry in entries if spike and entry.name != SPIKE]
    columns = []
    for view in CROSS:
        contrasts = [comparison.contrast(spike, other, view) for other in others]
        adjusted = holm([contrast.p_delong for contrast in contrasts])
        columns.append(list(zip(contrasts, adjusted, strict=True)))
    rows, notes = [], {}
    for place, other in enumerate(others):
        cells = []
        for view, column in zip(CROSS, columns, strict=True):
            found, corrected = column[place]
            cells.append(figure_cell(found, "+.3f"))
            if found.value is not None and found.note:
                notes.setdefault(f"{view}, {found.note}", []).append(other.title)
            cells += [p_value(found.p_bootstrap), p_value(found.p_delong), p_value(corrected)]
        rows.append((other.title, *cells))
    header = ["SpikeScore minus"]
    for view in CROSS:
        header += [f"{view}: difference", "p, bootstrap", "p, DeLong", "p, Holm"]
    return Table(
        caption,
        tuple(header),
        tuple(rows),
        "Means over the training domains, items and probe seeds that both have. DeLong's test "
        "counts a group (story) as one observation; Holm's correction is of its p values over "
        f"{len(others)} comparisons, each view by itself. "
        + " ".join(f"{reason}: {', '.join(titles)}." for reason, titles in notes.items()),
    )


def seed_table(comparison: Comparison, entries: Sequence[Entry]) -> Table:
    """Return how the means over training domains vary with the probe seed."""
    rows = []
    for entry in entries:
        if max(len(scores) for scores in entry.scores.values()) < 2:
            continue
        cells = []
        for view in CROSS:
            areas = seed_means(comparison, entry, view)
            values = [area.value for area in areas if area.value is not None]
            if not values:
                cells += ["not computable", "", ""]
                continue
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            parts = [sum(column) for column in zip(*(area.parts for area in areas), strict=True)]
            cells += [number(float(np.mean(values))) + share(*parts), number(spread)]
            cells.append(f"{min(values):.3f} to {max(values):.3f}")
        rows.append((entry.title, str(max(map(len, entry.scores.values()))), *cells))
    header = ["method", "seeds"]
    for view in CROSS:
        header += [f"{view}: mean", "standard deviation", "range"]
    return Table("Probe seeds: spread of the mean AUROC", tuple(header), tuple(rows), MISSING)


# --- parts of the items -----------------------------------------------------------------------

MOST_VALUES = 30


def by_value(values: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the mask [n] of the items with each value, the most frequent first.

    "" is an item of which nothing is said; beyond MOST_VALUES, values are "all others" together.
    """
    counts = Counter(values)
    shown = [value for value, _ in counts.most_common(MOST_VALUES)]
    all_values = np.array(values, dtype=object)
    parts = {value or "(not said)": all_values == value for value in shown}
    if len(counts) > len(shown):
        parts["(all others)"] = ~np.any(list(parts.values()), axis=0)
    return parts


def part_tables(
    comparison: Comparison,
    entries: Sequence[Entry],
    cut_off: Sequence[str],
    by: str,
    values: Sequence[str],
) -> list[Table]:
    """Return the main figures without the answers that were cut off, where there are any, and by
    the `values` [n] of a field `by`, where one is asked for.
    """
    cut, tables = np.array([bool(limit) for limit in cut_off]), []
    if cut.any():
        parts = {"all": np.ones(cut.size, bool), "without those cut off": ~cut}
        caption = f"With and without the {cut.sum()} first answers cut off"
        tables += split_tables(comparison, entries, {**parts, "those cut off": cut}, caption)
    if by:
        tables += split_tables(comparison, entries, by_value(values), f"By {by}")
    return tables


def split_tables(
    comparison: Comparison,
    entries: Sequence[Entry],
    parts: Mapping[str, np.ndarray],
    caption: str,
) -> list[Table]:
    """Return the entries' means on each part [n] of the items, a table for each view with items."""
    tables = []
    for view, title in VIEWS.items():
        masks = comparison.masks(view)
        if not masks or view == "macro" and len(masks) < 2:
            continue
        rows = []
        for name, part in parts.items():
            items = np.any(masks, axis=0) & part
            if items.any():
                size = f"{items.sum()}, {comparison.y[items].mean():.0%}"
                cells = [figure_cell(comparison.mean(entry, view, part)) for entry in entries]
                rows.append((name, size, *cells))
        header = ("items", "n, hallucinated", *(entry.title for entry in entries))
        note = f"Not computable: fewer than {MIN_PER_CLASS} items of a class. {MISSING}"
        tables.append(Table(f"{caption}: {title}", header, tuple(rows), note))
    return tables


# --- several training domains -----------------------------------------------------------------

SOURCES_TITLE = "Trained on all domains but the tested one"
ABOUT_SOURCES = (
    "Each column is a test domain, all of whose items are scored by what the train and validation "
    "splits of all other domains taught together. No figure of it enters another table."
)


def multi_source_table(
    single: Comparison, entries: Sequence[Entry], several: Comparison, taught: Sequence[Entry]
) -> Table:
    """Return the AUROCs of methods trained on all domains but the tested one, by test domain.

    Beside their mean stands that of training on one domain (the macro mean of the main table), and
    what the one exceeds the other by, on the test domains that both have and on paired draws, where
    the books hold the same items; not of a method that learns nothing, which has one figure.
    """
    before = {entry.name: entry for entry in entries}
    names = [domain.removeprefix("all but ") for domain in several.training_domains]
    sizes = [several.rate("pooled", domain) for domain in several.training_domains]
    rows = [("n, hallucinated", "", "", "", *(f"{n}, {number(rate, '.0%')}" for n, rate in sizes))]
    paired = [item.path for item in single.book.items] == [item.path for item in several.book.items]
    for entry in taught:
        mean, one = several.mean(entry, "pooled"), before.get(entry.name)
        learnt = several.book.methods.get(entry.name, {}).get("learns", True)
        alone = one and single.mean(one, "macro")
        more = _more(several, entry, single, one) if one and paired and learnt else None
        cells = [_cell(several, entry, "pooled", domain) for domain in several.training_domains]
        told = (figure_cell(mean), figure_cell(alone), figure_cell(more, "+.3f"))
        rows.append((entry.title, *told, *cells))
    header = ("method", "mean over test domains", "trained on one domain, macro", "difference")
    return Table(SOURCES_TITLE, (*header, *names), tuple(rows),
                 f"95% bootstrap intervals over questions. {MISSING}")  # fmt: skip


def _more(several: Comparison, taught: Entry, single: Comparison, entry: Entry) -> Contrast:
    """Return what training on several domains exceeds training on one by: the mean over the test
    domains that both have, of which the single side is its mean over training domains.
    """
    pairs = []
    for name in several.training_domains:
        (tested,) = several.items("pooled", name)
        each = [single.cell(entry, "pooled", one, tested) for one in single.training_domains]
        alone = single.resampler.mean(each, of="training domains")
        pairs.append((several.cell(taught, "pooled", name), alone))
    whole = [both for both in pairs if None not in (both[0].value, both[1].value)]
    sides = zip(*(whole or pairs), strict=True)
    means = [several.resampler.mean(areas, of="test domains") for areas in sides]
    return replace(contrast_of_draws(*means), parts=(len(whole), len(pairs)))


# --- right and wrong twins --------------------------------------------------------------------

TWINS_TITLE = "Right and wrong answers to one question"
ABOUT_TWINS = (
    "Both dialogues of a pair are about one question and differ in the answer that they were made "
    "to begin with: a right one, or a wrong one. The paired accuracy is the share of questions of "
    "which the wrong twin scores higher; a tie counts half, and 0.5 is chance."
)
TWIN_HEADER = ("view", "domain", "method", "accuracy", "low", "high", "n_pairs", "note")


@dataclass(frozen=True)
class Twins:
    """Paired accuracies on one view: `cells[method][column]`, the mean over test domains where
    there are several, and each of them; `pairs` says how many pairs a column has.
    """

    view: str
    pairs: dict[str, int]
    cells: dict[str, dict[str, Area]]

    def table(self) -> Table:
        """Return it as a table, a row for each method."""
        rows = [("pairs", *map(str, self.pairs.values()))]
        for title, cells in self.cells.items():
            fewer = (f" (n={area.n})" * (area.value is not None and area.n < self.pairs[name])
                     for name, area in cells.items())  # fmt: skip
            told = map(figure_cell, cells.values())
            rows.append((title, *map("".join, zip(told, fewer, strict=True))))
        note = f"95% bootstrap intervals over questions. {_twin_notes(self.cells)}{MISSING}"
        return Table(
            f"Paired accuracy, {self.view}", ("method", *self.pairs), tuple(rows), note.strip()
        )

    def rows(self) -> list[tuple]:
        """Return every cell as numbers, under TWIN_HEADER."""
        return [
            (self.view, name, title, area.value, *(area.interval or (None, None)), area.n,
             area.note)
            for title, cells in self.cells.items()
            for name, area in cells.items()
        ]  # fmt: skip


def _twin_notes(cells: Mapping[str, Mapping[str, Area]]) -> str:
    notes = {f"{name}: {area.note}. " for row in cells.values() for name, area in row.items()
             if area.value is None and area.note}  # fmt: skip
    return "".join(sorted(notes))


def twin_figures(comparison: Comparison, entries: Sequence[Entry]) -> list[Twins]:
    """Return the entries' paired accuracies by view, cross-domain and in-domain, as far as there
    are twins in it: the mean over domains, and each domain.
    """
    compare, found = TwinComparison(comparison), []
    same = np.zeros((1, compare.y.size))
    everyone = Entry("", "", "", dict.fromkeys(compare.training_domains, same))
    for view, title in (("pooled", "cross-domain"), ("in-domain", "in-domain, held-out")):
        columns: dict[str, tuple[list[str], np.ndarray]] = {}
        for name in compare.book.domain_names():
            own = compare.domains == name
            trained = [
                domain
                for domain in compare.training_domains
                if any((mask & own).any() for mask in compare.items(view, domain))
            ]
            if trained and _twins_of(compare, everyone, view, trained, own).n:
                columns[name] = (trained, own)
        if not columns:
            continue
        cells = {
            one.title: _twin_cells(compare, one, view, columns) for one in (everyone, *entries)
        }
        pairs = {name: area.n for name, area in cells.pop("").items()}
        found.append(Twins(title, pairs, cells))
    return found


def _twin_cells(
    compare: TwinComparison,
    entry: Entry,
    view: str,
    columns: Mapping[str, tuple[list[str], np.ndarray]],
) -> dict[str, Area]:
    parts = {name: _twins_of(compare, entry, view, *of) for name, of in columns.items()}
    if len(parts) == 1:
        return parts
    mean = compare.resampler.mean([*parts.values()], of="domains")
    return {f"macro over {len(parts)}": mean, **parts}


def _twins_of(
    compare: TwinComparison, entry: Entry, view: str, trained: Sequence[str], own: np.ndarray
) -> Area:
    """Return an entry's accuracy on one test domain, the mean over these training domains."""
    each = [compare.cell(entry, view, domain, own) for domain in trained]
    return compare.resampler.mean(each, of="training domains")


# --- operating points -------------------------------------------------------------------------

FIGURES = {
    "auprc": "AUPRC",
    "fpr_at_95_tpr": "FPR at 95% TPR",
    "f1": "F1 at λ",
    "accuracy": "accuracy at λ",
    "ece": "ECE",
}


def operating_table(comparison: Comparison, entries: Sequence[Entry], view: str) -> Table:
    """Return AUPRC, FPR at 95% TPR, F1 and accuracy at the carried-over λ, calibration error.

    Means over seeds and training domains. λ and the map from scores to probabilities come from the
    training domain's validation split.
    """
    rows = []
    for entry in entries:
        found: dict[str, list[list[float | None]]] = {name: [] for name in FIGURES}
        nothing = np.full((1, comparison.y.size), np.nan)
        for domain in comparison.training_domains:
            for one in entry.scores.get(domain, nothing):
                for name, values in _figures(comparison, view, domain, one).items():
                    found[name].append(values)
        rows.append((entry.title, *map(mean_cell, found.values())))
    return Table(
        f"Operating points, {VIEWS[view]}",
        ("method", *FIGURES.values()),
        tuple(rows),
        "Means over training domains and probe seeds. λ maximises balanced accuracy on the "
        "training domain's validation split; the calibration error (10 bins) is that of a "
        "logistic map fitted there. The AUPRC of chance is the hallucination rate.",
    )


def _figures(
    comparison: Comparison, view: str, domain: str, scores: np.ndarray
) -> dict[str, list[float | None]]:
    """Return the figures of one seed's scores [n] on each set of items of a cell."""
    known = np.isfinite(scores)
    val = (comparison.book.splits[domain] == "val") & known
    y, chosen_on = comparison.y[val], scores[val]
    both = 0 < y.sum() < y.size
    used = [mask & known for mask in comparison.items(view, domain)]
    return operating_figures(
        [(comparison.y[items], scores[items]) for items in used],
        threshold=choose_threshold(y, chosen_on)[0] if both else None,
        calibration=fit_calibration(y, chosen_on),
    )
