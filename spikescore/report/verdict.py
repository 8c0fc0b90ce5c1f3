"""What a report shows, in one sentence: the console, summary.md and the page begin with it."""

from __future__ import annotations

import math

import numpy as np

from spikescore.report.comparison import Comparison, Entry
from spikescore.report.text import figure_cell
from spikescore.stats.bootstrap import Contrast
from spikescore.stats.roc import MIN_PER_CLASS

DIFFERENCE = 0.05
"""The smallest difference of AUROCs that is worth finding."""
REACH = 1.96 + 0.84
"""Standard errors that a true difference must be away from 0 to be found at 5% with 80% power."""
WHERE = {
    "macro": ("on unseen domains", "macro AUROC"),
    "pooled": ("on unseen items", "pooled AUROC"),
    "in-domain": ("inside its training domain", "in-domain AUROC"),
}


def verdict(comparison: Comparison, spike: Entry | None, first: Entry | None) -> str:
    """Return whether SpikeScore beats the first-answer probe, as one sentence; "" without both.

    It is the paired test on the first view there is: cross-domain macro, pooled, in-domain. A
    difference holds when its 95% bootstrap interval leaves out 0. Where it does not and the items
    could not have shown a difference of DIFFERENCE either, they are too few, and the sentence says
    about how many more would do. A difference without an interval is told as such.
    """
    if spike is None or first is None:
        return ""
    view = _view(comparison)
    where, name = WHERE[view]
    found = comparison.contrast(spike, first, view)
    if found.value is None:
        return (
            f"Too few items to compare SpikeScore with the first-answer probe {where}: "
            f"{_lacking(comparison, view) or found.note}."
        )
    areas = [comparison.mean(entry, view) for entry in (spike, first)]
    count = np.unique(comparison.domains[areas[0].items]).size
    told = (
        f"{name} {figure_cell(areas[0])} against {figure_cell(areas[1])}, difference "
        f"{figure_cell(found, '+.3f')}, n = {found.n:,} in {count} domain{'s' * (count > 1)}"
    )
    if found.interval is None and found.value and found.error is not None:
        side = "above" if found.value > 0 else "below"
        return (
            f"SpikeScore is {side} the first-answer probe {where}, but no draw differs from the "
            f"others, so that there is no interval to say whether that holds: {told}."
        )
    low, high = found.interval or (-math.inf, math.inf)
    more = _more(found)
    if low > 0:
        chance = areas[0].interval and areas[0].interval[0] <= 0.5
        but = "; but SpikeScore's own interval reaches 0.5, which is chance" if chance else ""
        return f"SpikeScore beats the first-answer probe {where}: {told}{but}."
    if high < 0:
        return f"SpikeScore does worse than the first-answer probe {where}: {told}."
    if more == 0:
        return f"SpikeScore and the first-answer probe do not differ {where}: {told}."
    needs = f"; a difference of {DIFFERENCE} needs about {more:,} more" if more else ""
    return (
        f"Too few items to say whether SpikeScore beats the first-answer probe {where}: "
        f"{told}{needs}."
    )


def _view(comparison: Comparison) -> str:
    """Return the first view that has items: macro needs two unseen domains."""
    sets = {
        view: [len(comparison.items(view, domain)) for domain in comparison.training_domains
               if np.any(comparison.items(view, domain))]
        for view in WHERE
    }  # fmt: skip
    if max(sets["macro"], default=0) > 1:
        return "macro"
    return "pooled" if sets["pooled"] else "in-domain"


def _more(found: Contrast) -> int | None:
    """Return about how many more items would show DIFFERENCE; None without an error."""
    if found.error is None:
        return None
    wanted = found.n * (REACH * found.error / DIFFERENCE) ** 2 - found.n
    return _rounded(wanted) if wanted > 0 else 0


def _lacking(comparison: Comparison, view: str) -> str:
    """Return what sets of items lack for an AUROC, and how many more would mend it, or ""."""
    unique = {mask.tobytes(): mask for mask in comparison.masks(view)}.values()
    counts = [(int(comparison.y[mask].sum()), int(mask.sum())) for mask in unique]
    told = ", ".join(f"{positive} and {n - positive}" for positive, n in counts)
    what = "no unseen domain has" if view == "macro" else "there must be"
    text = f"{what} {MIN_PER_CLASS} hallucinated and {MIN_PER_CLASS} consistent answers ({told})"
    rarer = [(min(positive, n - positive), n) for positive, n in counts]
    short = [(few, n) for few, n in rarer if few < MIN_PER_CLASS]
    if not short:
        return ""
    if any(few == 0 for few, _ in short):
        return text
    more = _rounded(sum(n * MIN_PER_CLASS / few - n for few, n in short))
    return f"{text}; needs about {more:,} more"


def _rounded(value: float) -> int:
    """Return a number to two digits, upwards."""
    step = 10 ** max(0, math.floor(math.log10(value)) - 1) if value >= 1 else 1
    return math.ceil(value / step) * step
