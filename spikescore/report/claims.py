"""The claims ledger: each claim of the paper, the command that tests it, and what came out.

RULES, which stand above the ledger, say what a verdict means and where the claims are from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from spikescore.report.comparison import (
    CROSS,
    SPIKE,
    Comparison,
    Entry,
    longest,
    trajectory_entry,
)
from spikescore.report.content import Table
from spikescore.report.experiment_report import ModelReport
from spikescore.report.main_tables import twin_figures
from spikescore.report.paper import (
    BASE_SCORER,
    MODELS,
    PAPER_METHODS,
    published,
    published_base_scorer,
)
from spikescore.report.text import figure_cell, headed_table
from spikescore.report.verdict import DIFFERENCE
from spikescore.stats.bootstrap import Area, Contrast
from spikescore.stats.theory import POOLED, STD_RATIO, Theory, paper_bound, theory_report

TOLERANCE = 0.03
"""How far a mean AUROC may be from the published one: two standard errors of 1,000 questions a
domain, and what the notes leave open of the recipe."""
HOLDS, FAILS, UNTESTED = "holds", "does not", "not tested"
PAPER_RUN = "python reproduce.py --config configs/paper.json"
GIVEN_RUN = "python reproduce.py --config configs/smollm2-given.json"
CV_OF_PAPER = 0.2
"""The largest coefficient of variation of consistent items' SpikeScore that the paper measured."""


@dataclass(frozen=True)
class Outcome:
    """What one report says of a claim: figures, how far they are from it, and a verdict."""

    told: str
    deviation: str = ""
    verdict: str = UNTESTED


@dataclass(frozen=True)
class Claim:
    """A claim, the models it is about (all of them where it is about none), and what tests it.

    `measure` returns None where a report has nothing to say; without it no command here tests the
    claim, or the claim needs no report (`settled`).
    """

    text: str
    command: str
    models: tuple[str, ...] = MODELS
    measure: Callable[[ModelReport], Outcome | None] | None = None
    settled: Outcome | None = None
    given: bool = False
    """Whether it is about dialogues that begin with given answers."""


# --- from figures to outcomes -------------------------------------------------------------------


def _judge(views: Mapping[str, tuple[float, float] | None], *, wide: float) -> str:
    """Return whether intervals of differences that should exceed 0 say so: holds where one view's
    lies above and none below, does not where one lies below or all that are narrow hold 0.
    """
    known = [interval for interval in views.values() if interval]
    above = any(low > 0 for low, _ in known)
    below = any(high < 0 for _, high in known)
    narrow = any(high - low <= 2 * wide for low, high in known)
    if above and not below:
        return HOLDS
    return FAILS if below and not above or narrow and not above else UNTESTED


def _difference(
    compare: Comparison, one: Entry | None, other: Entry | None, paper: float | None = None
) -> Outcome | None:
    """Return the outcome of "one is better than the other" on both cross-domain views."""
    if one is None or other is None:
        return None
    found = {view: compare.contrast(one, other, view) for view in CROSS}
    if all(contrast.value is None for contrast in found.values()):
        return None
    told = "; ".join(f"{view} {figure_cell(found[view], '+.3f')}" for view in CROSS)
    verdict = _judge({view: found[view].interval for view in CROSS}, wide=DIFFERENCE)
    return Outcome(f"difference {told}", _less(found, paper), verdict)


def _less(found: Mapping[str, Area | Contrast], paper: float | None) -> str:
    """Return each figure less the published one."""
    if paper is None:
        return ""
    known = {view: one.value - paper for view, one in found.items() if one.value is not None}
    return ", ".join(f"{view} {value:+.3f}" for view, value in known.items())


def _figure(compare: Comparison, entry: Entry | None, paper: float | None) -> Outcome | None:
    """Return the outcome of "its mean cross-domain AUROC is this"; the notes do not say in which of
    the two views, so one that fits is enough. Without a published figure there is no verdict.
    """
    if entry is None:
        return None
    found = {view: compare.mean(entry, view) for view in CROSS}
    known = [area for area in found.values() if area.value is not None and area.interval]
    if not known:
        return None
    told = "; ".join(f"{view} {figure_cell(found[view])}" for view in CROSS)
    if paper is None:
        return Outcome(told)
    verdict = FAILS
    if any(abs(area.value - paper) <= TOLERANCE for area in known):
        verdict = HOLDS
    elif any(area.interval[0] <= paper <= area.interval[1] for area in known):
        verdict = UNTESTED  # too few items to be told from the published figure
    return Outcome(told, _less(found, paper), verdict)


# --- what a report is asked ---------------------------------------------------------------------


def _entry(report: ModelReport, name: str) -> Entry | None:
    return next((entry for entry in report.entries if entry.name == name), None)


def _beats(rival: str, report: ModelReport) -> Outcome | None:
    ours, theirs = (published(report.model.published, name) for name in (SPIKE, rival))
    paper = None if ours is None or theirs is None else ours - theirs
    return _difference(report.comparison, _entry(report, SPIKE), _entry(report, rival), paper)


def _has_figure(method: str, report: ModelReport) -> Outcome | None:
    paper = published(report.model.published, method)
    return _figure(report.comparison, _entry(report, method), paper)


def _over_scorer(scorer: str, paper: float, report: ModelReport) -> Outcome | None:
    return _figure(report.comparison, _spikes(report, scorer), paper)


def _spikes(report: ModelReport, scorer: str) -> Entry | None:
    return trajectory_entry(report.book, "max_abs_d2", scorer)


def _spikes_beat_level(report: ModelReport) -> Outcome | None:
    model = report.model.published
    spikes = published_base_scorer(model, "perplexity")
    level = published(model, "perplexity")
    paper = None if spikes is None or level is None else spikes - level
    first = trajectory_entry(report.book, "first", "perplexity")
    return _difference(report.comparison, _spikes(report, "perplexity"), first, paper)


def _saplma_is_best(report: ModelReport) -> Outcome | None:
    best, found = _spikes(report, BASE_SCORER), {}
    for scorer in ("sep", "reasoning_score", "perplexity"):
        if outcome := _difference(report.comparison, best, _spikes(report, scorer)):
            found[scorer] = outcome
    if not found:
        return None
    told = "<br>".join(f"minus {name}: {one.told}" for name, one in found.items())
    verdicts = {one.verdict for one in found.values()}
    whole = len(found) == 3
    verdict = FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} and whole else UNTESTED
    return Outcome(told, "", verdict)


def _beats_variation(report: ModelReport) -> Outcome | None:
    other = trajectory_entry(report.book, "cv", BASE_SCORER)
    return _difference(report.comparison, _entry(report, SPIKE), other)


def _saturates(report: ModelReport) -> Outcome | None:
    """K = 20 is worth no more than K = 15, and K = 15 more than K = 5."""
    book, compare = report.book, report.comparison
    if longest(book, BASE_SCORER) < 20:
        return None
    at = {k: trajectory_entry(book, "max_abs_d2", BASE_SCORER, k) for k in (5, 15, 20)}
    grown = _difference(compare, at[15], at[5])
    late = {view: compare.contrast(at[20], at[15], view) for view in CROSS}
    if grown is None or not all(one.interval for one in late.values()):
        return None
    level = all(-DIFFERENCE < low and high < DIFFERENCE
                for low, high in (one.interval for one in late.values()))  # fmt: skip
    told = "; ".join(f"{view} {figure_cell(late[view], '+.3f')}" for view in CROSS)
    verdict = HOLDS if level and grown.verdict == HOLDS else FAILS
    if UNTESTED == grown.verdict or not level and grown.verdict == HOLDS:
        verdict = UNTESTED
    return Outcome(f"K 20 minus 15: {told}<br>K 15 minus 5: {grown.told}", "", verdict)


def _theory(
    tell: Callable[[Theory], str], holds: Callable[[Theory], bool | None], report: ModelReport
) -> Outcome | None:
    """Ask something of each domain, scored by another domain's probe: it holds where it holds in
    all domains of which it can be said.
    """
    parts = [one for one in theory_report(*report.theory_scores())
             if not one.note and one.domain != POOLED]  # fmt: skip
    if not parts:
        return None
    known = [answer for answer in map(holds, parts) if answer is not None]
    told = ", ".join(f"{one.domain} {tell(one)}" for one in parts)
    if not known:
        return Outcome(f"nowhere: {told}")
    where = f"in {sum(known)} of {len(known)} domains: "
    return Outcome(where + told, "", HOLDS if all(known) else FAILS)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _bound_holds(found: Theory) -> bool | None:
    return found.p_greater >= found.paper_bound if found.paper_bound_applies else None


def _bound_told(found: Theory) -> str:
    if not found.paper_bound_applies:
        return "(conditions fail)"
    return f"{found.p_greater:.3f} against {found.paper_bound:.3f}"


def _premise(report: ModelReport) -> Outcome | None:
    """With the question held fixed, a wrong first answer makes larger spikes than the right one."""
    spike = _entry(report, SPIKE)
    found = twin_figures(report.comparison, [spike]) if spike else []
    cells = next((one.cells for one in found if one.view == "cross-domain"), {})
    areas = list(next(iter(cells.values()), {}).items())
    if not areas or areas[0][1].value is None:
        return None
    told = "; ".join(f"{name} {figure_cell(area)}" for name, area in areas)
    interval = areas[0][1].interval
    shifted = interval and (interval[0] - 0.5, interval[1] - 0.5)
    return Outcome(f"paired accuracy {told}", "", _judge({"": shifted}, wide=DIFFERENCE))


# --- the claims ---------------------------------------------------------------------------------


def statements() -> list[Claim]:
    """Return the claims that say how things stand to each other."""
    llama = ("Llama-3.1-8B-Instruct",)
    rivals = (
        ("saplma", "its own scorer on the first answer (SAPLMA)"),
        ("perplexity", "perplexity of the first answer"),
        ("prism", "PRISM"),
        ("icr_probe", "ICR Probe"),
    )
    cv = f"at most {CV_OF_PAPER:g}"
    return [
        *(Claim(f"{title} has a mean cross-domain AUROC of {_range(name)}.", PAPER_RUN,
                measure=partial(_has_figure, name))
          for name, title in ((SPIKE, "SpikeScore (K = 20, over SAPLMA)"),
                              ("saplma", "SAPLMA on the first answer"))),
        *(Claim(f"Across domains SpikeScore is better than {title}.", PAPER_RUN,
                measure=partial(_beats, name)) for name, title in rivals),
        Claim("SAPLMA is the best scorer under SpikeScore, before SEP, reasoning score and "
              "perplexity.", PAPER_RUN, llama, _saplma_is_best),
        Claim("SpikeScore over perplexity is better than perplexity itself.", PAPER_RUN, llama,
              _spikes_beat_level),
        Claim("The largest second difference is better than the coefficient of variation over the "
              "same scores.", PAPER_RUN, measure=_beats_variation),
        Claim("Performance saturates at 15 to 20 turns.", PAPER_RUN, measure=_saturates),
        Claim("A wrong first answer makes the later scores swing more than a right one (the "
              "premise, with the question held fixed).", GIVEN_RUN, measure=_premise, given=True),
        Claim("(i) The mean SpikeScore of hallucinated answers is more than twice that of truthful "
              "ones.", PAPER_RUN,
              measure=partial(_theory, lambda one: _number(one.mean_ratio),
                              lambda one: one.gap_holds)),
        Claim(f"(ii) The ratio of their standard deviations lies between {STD_RATIO[0]:g} and "
              f"{STD_RATIO[1]:g}.", PAPER_RUN,
              measure=partial(_theory, lambda one: _number(one.std_ratio),
                              lambda one: one.spread_holds)),
        Claim(f"(iii) The coefficient of variation of truthful answers' SpikeScore is {cv} in "
              "every domain.", PAPER_RUN,
              measure=partial(_theory, lambda one: _number(one.cv_t), lambda one: None
                              if one.cv_t is None else one.cv_t <= CV_OF_PAPER)),
        Claim("Where (i) to (iii) hold, P(H > T) is at least 1 / (1 + 0.0725 t²).", PAPER_RUN, (),
              partial(_theory, _bound_told, _bound_holds)),
        Claim(f"With (iii) {cv} (t = 2), SpikeScore's AUROC is at least "
              f"{paper_bound(CV_OF_PAPER / 0.1):.3f} in every domain.",
              "arithmetic on the published means", settled=_by_arithmetic()),
        Claim("With retrieved passages SpikeScore reaches .8697 on TriviaQA and .8535 on RAGTruth, "
              "and is better than ICR Probe (it takes \"retrieval\" among the ablations).",
              PAPER_RUN, ("Qwen3-14B",)),
        Claim("Trained on CoQA, MATH, Belebele, CommonsenseQA it reaches .8584, .8157, .7719, "
              ".7563 (the notes do not name the model).", PAPER_RUN, ()),
    ]  # fmt: skip


def _range(method: str) -> str:
    values = [value for model in MODELS if (value := published(model, method)) is not None]
    return f"{min(values):.4f} to {max(values):.4f}"


def _by_arithmetic() -> Outcome:
    """A mean over domains of AUROCs that are all at least the bound is at least the bound."""
    bound, told, gaps = paper_bound(CV_OF_PAPER / 0.1), [], []
    for model in MODELS:
        value = published(model, SPIKE)
        if value is not None and value < bound:
            told.append(f"{model} {value:.4f}")
            gaps.append(f"{value - bound:+.3f}")
    verdict = f"{FAILS}, if the published means are over domains" if told else UNTESTED
    return Outcome(
        f"published means below it: {', '.join(told) or 'none'}", ", ".join(gaps), verdict
    )


def figures() -> list[Claim]:
    """Return the claims that are published figures: mean cross-domain AUROCs."""
    found = []
    for model in MODELS:
        for method in PAPER_METHODS:
            paper = published(model, method)
            text = f"{model}, {method}: {paper:.4f}"
            found.append(Claim(text, PAPER_RUN, (model,), partial(_has_figure, method)))
        for scorer in ("sep", "reasoning_score", "perplexity"):
            if (paper := published_base_scorer(model, scorer)) is not None:
                text = f"{model}, SpikeScore over {scorer}: {paper:.4f}"
                found.append(Claim(text, PAPER_RUN, (model,), partial(_over_scorer, scorer, paper)))
    return found


# --- the ledger ---------------------------------------------------------------------------------

HEADER = ("claim", "tested by", "what came out", "deviation", "verdict")
RULES = (
    "A line for each claim of the paper (Deng et al., ICLR 2026, arXiv 2601.19245), as public "
    "notes on it give them; its PDF was not read. A verdict comes only from a report of the models "
    "that the claim is about. **Tried on** another model is no verdict: what a small model does "
    "says nothing about the paper's. *Deviation* is our figure less the published one.",
    f"A figure *holds* when ours is within {TOLERANCE:g} in one of the two cross-domain views (the "
    "notes do not say which one is meant), and is *not tested* when it is not but lies in the 95% "
    "interval. A difference *holds* when its 95% interval lies above 0 in one view and in none "
    "below; it *does not* when one lies below and none above, or when none lies above and one that "
    f"holds 0 is no wider than {DIFFERENCE:g} to each side; otherwise the items are too few, and "
    "it is *not tested*. Of a claim about several models one that fails decides. A condition on "
    "domains holds when it does in all of them.",
)


def ledger(reports: Sequence[ModelReport], command: str) -> str:
    """Return docs/evidence/claims.md: rules, the reports that were read, two tables."""
    rows = [_about(report) for report in reports]
    columns = ("experiment", "model", "dialogues", "methods left out, in part or whole", "note")
    read = Table("Reports that were read", columns, tuple(rows))
    tables = [
        Table(title, HEADER, tuple(_row(claim, reports, tried) for claim in claims))
        for title, claims, tried in (
            ("What the paper says", statements(), True),
            ("Its figures: mean cross-domain AUROC", figures(), False),
        )
    ]
    counts = {verdict: sum(row[-1].startswith(verdict) for table in tables for row in table.rows)
              for verdict in (HOLDS, FAILS, UNTESTED)}  # fmt: skip
    told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    return "\n".join([
        "# Claims of the paper, and what came out here\n",
        *(f"{rule}\n" for rule in RULES),
        f"{sum(counts.values())} claims: {told}. Made by\n",
        f"```text\n{command}\n```\n",
        *map(headed_table, (read, *tables)),
    ])  # fmt: skip


def _about(report: ModelReport) -> tuple[str, ...]:
    name = f"{report.experiment.name}{' (answers given)' if _given(report) else ''}"
    left_out = dict.fromkeys(
        what.partition(" on ")[0] for what, _ in report.book.about.get("left_out", ())
    )
    size = f"{len(report.book.items):,}"
    return name, report.model.name, size, ", ".join(left_out), report.experiment.note


def _given(report: ModelReport) -> bool:
    return any(item.pair for item in report.book.items)


def _row(claim: Claim, reports: Sequence[ModelReport], tried: bool) -> tuple[str, ...]:
    if claim.settled:
        one = claim.settled
        return claim.text, claim.command, one.told, one.deviation, one.verdict
    tests, others = {}, {}
    for report in reports:
        if claim.measure is None or _given(report) != claim.given:
            continue
        own = not claim.models or report.model.published in claim.models
        if (own or tried) and (outcome := claim.measure(report)):
            of = tests if own else others
            name = report.model.name
            of[f"{name} ({report.experiment.name})" if name in of else name] = outcome
    told = [f"{name}: {one.told}" for name, one in tests.items()]
    told += [f"tried on {name}: {one.told}" for name, one in others.items()]
    gaps = [f"{name}: {one.deviation}" for name, one in tests.items() if one.deviation]
    verdicts = [one.verdict for one in tests.values()]
    verdict = next((one for one in (FAILS, HOLDS) if one in verdicts), UNTESTED)
    of = len(claim.models)
    if verdict == HOLDS and verdicts.count(HOLDS) < of:
        verdict += f" ({verdicts.count(HOLDS)} of {of} models)"
    elif verdict == FAILS and of > 1:
        verdict += f" ({verdicts.count(FAILS)} of {of} models)"
    return claim.text, f"`{claim.command}`", "<br>".join(told), "<br>".join(gaps), verdict
