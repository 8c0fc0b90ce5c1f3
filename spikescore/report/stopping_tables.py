"""Stopping a dialogue once it is decided: what it saves and what it loses, from the book.

All is learnt on a training domain (λ and bounds on its validation split) and measured on the other
domains in one pool, with probe seed 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spikescore.report.comparison import Comparison, trajectories
from spikescore.report.content import Table
from spikescore.report.paper import BASE_SCORER
from spikescore.report.text import MISSING, figure_cell, number
from spikescore.stats.bootstrap import Area, Contrast
from spikescore.stats.early_stopping import stop_early, tokens_saved, truthful_bounds
from spikescore.stats.operating_points import choose_threshold
from spikescore.stats.roc import flag_metrics, not_computable
from spikescore.stats.trajectory import apply

LOST = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Shares of the validation split's flagged dialogues that may be stopped as truthful."""


@dataclass(frozen=True)
class Stopped:
    """A rule on the pool of other domains. `lost`: the share that its bounds may lose of the
    `learnt_from` dialogues of the validation split that all turns flag; None: it has none, and
    stops at λ alone.
    """

    domain: str
    lost: float | None
    learnt_from: int
    n: int
    threshold: float
    flagged: float
    truthful: float
    flags_lost: float | None
    turns: float
    saved: float | None
    all_turns: Area
    with_rule: Area
    difference: Contrast
    accuracy: tuple[float, float] | None
    f1: float | None


def stopping(comparison: Comparison) -> tuple[list[Stopped], list[str]]:
    """Return every rule for every training domain, and why a domain has none."""
    found: list[Stopped] = []
    notes: list[str] = []
    book = comparison.book
    for domain, (turns, *_) in trajectories(book, BASE_SCORER).items():
        spikes = apply("max_abs_d2", turns)
        val = (book.splits[domain] == "val") & np.isfinite(spikes)
        if not 0 < book.y[val].sum() < val.sum():
            notes.append(f"{domain}: one class only in the validation split, so there is no λ")
            continue
        threshold, _ = choose_threshold(book.y[val], spikes[val])
        whole = (book.domains != domain) & np.isfinite(turns).all(axis=1)
        if not whole.any():
            notes.append(f"{domain}: no dialogue has all turns")
            continue
        found += _rules(comparison, domain, turns, val, whole, threshold)
    return found, notes


def _rules(
    comparison: Comparison,
    domain: str,
    turns: np.ndarray,
    val: np.ndarray,
    whole: np.ndarray,
    threshold: float,
) -> Iterator[Stopped]:
    book, resampler = comparison.book, comparison.resampler
    y, spikes = book.y[whole], apply("max_abs_d2", turns)
    lengths = [item.turn_tokens[: turns.shape[1]]
               for item, there in zip(book.items, whole, strict=True) if there]  # fmt: skip
    known = all(len(own) == turns.shape[1] for own in lengths)
    tokens = np.array(lengths, dtype=np.float64) if known else None
    all_turns = resampler.area(spikes, whole)
    for lost in (None, *LOST):
        bounds = None if lost is None else truthful_bounds(turns[val], threshold, lost)
        scores, stops = stop_early(turns, threshold, bounds)
        with_rule = resampler.area(scores, whole)
        early, flags = stops[whole] < turns.shape[1], scores[whole] >= threshold
        due = spikes[whole] >= threshold
        told = not not_computable(y)
        yield Stopped(
            domain=domain,
            lost=lost,
            learnt_from=int((spikes[val] >= threshold).sum()),
            n=int(whole.sum()),
            threshold=threshold,
            flagged=float((early & flags).mean()),
            truthful=float((early & ~flags).mean()),
            flags_lost=float((due & ~flags).sum() / due.sum()) if due.any() else None,
            turns=float(stops[whole].mean()),
            saved=None if tokens is None else tokens_saved(tokens, stops[whole]),
            all_turns=all_turns,
            with_rule=with_rule,
            difference=resampler.contrast(with_rule, all_turns),
            accuracy=(float((due == y).mean()), float((flags == y).mean())) if told else None,
            f1=flag_metrics(y, scores[whole], threshold)["f1"] if told else None,
        )


def stopping_table(rules: Sequence[Stopped], notes: Sequence[str]) -> Table:
    """Return what stopping a dialogue at λ alone saves."""
    rows = [
        (
            one.domain, str(one.n), f"{one.threshold:.3f}", f"{one.flagged + one.truthful:.0%}",
            f"{one.turns:.1f}", number(one.saved, ".0%"), number(one.all_turns.value),
            number(one.with_rule.value), figure_cell(one.difference, "+.3f"), number(one.f1),
        )
        for one in rules
        if one.lost is None
    ]  # fmt: skip
    return Table(
        "Stopping a dialogue once its running SpikeScore reaches λ",
        (
            "trained on", "n", "λ", "stopped early", "mean turns", "tokens saved",
            "AUROC, all turns", "AUROC, with the rule", "difference", "F1 at λ",
        ),
        tuple(rows),
        "The running maximum only grows, so the rule flags exactly the dialogues that all turns "
        "would flag; what it can lose is their order. " + "; ".join(notes),
    )  # fmt: skip


def decided_table(rules: Sequence[Stopped], notes: Sequence[str]) -> Table:
    """Return what stopping on both sides saves and loses, a row for each domain and bound."""
    rows = []
    for one in rules:
        before, after = one.accuracy or (None, None)
        less = None if before is None else after - before
        rows.append((
            one.domain, "flags only" if one.lost is None else f"{one.lost:.0%}",
            "" if one.lost is None else str(one.learnt_from), str(one.n),
            f"{one.flagged:.0%}", f"{one.truthful:.0%}", number(one.flags_lost, ".1%"),
            f"{one.turns:.1f}", number(one.saved, ".0%"), figure_cell(one.with_rule),
            figure_cell(one.difference, "+.3f"), number(after), number(less, "+.3f"),
        ))  # fmt: skip
    return Table(
        "Stopping a dialogue once it is decided, either way",
        (
            "trained on", "may lose", "of", "n", "stopped as flagged", "stopped as truthful",
            "flags lost", "mean turns", "tokens saved", "AUROC", "less all turns",
            "accuracy at λ", "less all turns",
        ),
        tuple(rows),
        "A dialogue is flagged once its running SpikeScore reaches λ, and stopped as truthful once "
        "it is below a bound for that turn. The bounds are learnt on the training domain's "
        "validation split: the highest, of one rank at every turn, that would have stopped at most "
        "the share that they may lose of the dialogues which all turns flag there; from few of "
        "these, bounds are too high. Flags lost is "
        "that share on the other domains, for which nothing is guaranteed: the split is small and "
        f"of another domain. {'; '.join(notes)} {MISSING}".strip(),
    )  # fmt: skip
