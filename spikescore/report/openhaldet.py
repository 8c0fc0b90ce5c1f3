"""OpenHalDet beside our figures: what it publishes, and a result in the form that it takes.

Li et al. (2026), "OpenHalDet", arXiv 2606.06959, train and test each detector on one set at a time
(60% train, 20% validation, 20% test), so its figures stand beside our in-domain view. Its Table 9
is kept in `openhaldet.csv`, AUROC in percent, as the project's public leaderboard gives it. Its
evaluator turns a score round where the test items say that it is the wrong way (AUROC below 50
becomes 100 less it); ours never is, so an AUROC below 0.5 stays one.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from spikescore.report.comparison import Comparison, Entry
from spikescore.report.content import Table
from spikescore.report.text import MISSING, figure_cell, markdown_table, number

TITLE = "In-domain, beside OpenHalDet"
_CALLED = {
    "csqa": "commonsenseqa", "trivia_qa": "triviaqa", "truthful_qa": "truthfulqa", "gsm": "gsm8k",
    "arc_challenge": "arc", "arcchallenge": "arc", "squad_v2": "squad", "squadv2": "squad",
    "hotpot_qa": "hotpotqa", "halueval_qa": "halueval", "haluevalqa": "halueval",
    "xlam_agent": "xlam",
}  # fmt: skip
"""What else the sets are called, here and there."""
BLACK = frozenset({
    "lexical_similarity", "selfcheck_nli", "semantic_entropy_discrete", "verbalised_confidence",
    "verbalised_top_k", "verbalised_two_stage", "semantic_consistency", "rewording_agreement",
    "domain_identity",
})  # fmt: skip
"""Methods that read texts alone, beside those whose needs say so."""
GRAY = frozenset({
    "perplexity", "mean_token_entropy", "max_token_entropy", "first_token_confidence", "ln_entropy",
    "semantic_entropy_rao", "p_true", "p_true_choices", "p_none", "selfcheck_prompt",
    "surprisingly_likely", "counterfactual_drop", "reference_contrast",
})  # fmt: skip
"""Methods that read probabilities of tokens. All others read the model's inside."""


@cache
def _published() -> dict[tuple[str, str], dict[str, float]]:
    with open(Path(__file__).with_suffix(".csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (row.pop("model"), row.pop("method")): {
            name: float(value) / 100 for name, value in row.items()
        }
        for row in rows
    }


def sets() -> list[str]:
    """Return the sets of OpenHalDet's Table 9, in its order."""
    return list(next(iter(_published().values())))


def set_of(domain: str) -> str:
    """Return the set of OpenHalDet that a domain is; the domain's own name where it is none."""
    plain = domain.casefold().replace("-", "_")
    return _CALLED.get(plain, plain)


def published(model: str | None, method: str, domain: str) -> float | None:
    """Return the AUROC, 0 to 1, that Table 9 gives for a method on a set, else None."""
    return _published().get((model or "", method), {}).get(set_of(domain))


def beside_table(
    comparison: Comparison, entries: Sequence[Entry], model: str | None
) -> Table | None:
    """Return our in-domain AUROC, theirs and the difference where both have one, else None."""
    rows = []
    for entry in entries:
        for domain in comparison.training_domains:
            theirs = published(model, entry.name, domain)
            if theirs is None:
                continue
            ours = comparison.cell(entry, "in-domain", domain)
            less = None if ours.value is None else ours.value - theirs
            cells = (figure_cell(ours), str(ours.n), number(theirs, ".4f"), number(less, "+.3f"))
            rows.append((entry.title, domain, *cells))
    if not rows:
        return None
    note = (
        "Theirs: OpenHalDet, Table 9 (arXiv 2606.06959), other prompts, judge and splits. Their "
        "evaluator turns a score round where the test items ask for it, so theirs are never below "
        f"0.5; ours are not turned. {MISSING}"
    )
    header = ("method", "domain", "ours", "n", "OpenHalDet", "difference")
    return Table(TITLE, header, tuple(rows), note)


def access(method: str, needs: Collection[str] = ()) -> str:
    """Return what a method with these needs, () where they are not known, has to see of the model,
    in their words.
    """
    name = method.split(":")[-1]
    known = set(needs) or {"states"}
    if name in BLACK or known <= {"texts"}:
        return "black-box"
    return "gray-box" if name in GRAY or known <= {"texts", "logprobs"} else "white-box"


# --- a submission --------------------------------------------------------------------------------


def submission(comparison: Comparison, entry: Entry, *, backbone: str, link: str) -> dict[str, Any]:
    """Return one method's results as OpenHalDet's leaderboard asks for them.

    AUROC in percent on the held-out items of each domain, of what was trained on that domain; null
    where it is not computable.
    """
    results, others = {}, {}
    for domain in comparison.training_domains:
        area = comparison.cell(entry, "in-domain", domain)
        told = {
            "auroc": None if area.value is None else round(100 * area.value, 2),
            "n_test": area.n,
            "n_hallucinated": area.n_positive,
        }
        (results if set_of(domain) in sets() else others)[set_of(domain)] = told
    known = [one["auroc"] for one in results.values() if one["auroc"] is not None]
    return {
        "title": f"[Leaderboard] {entry.title} \u2014 {backbone}",
        "method": entry.title,
        "access": access(entry.name, comparison.book.methods.get(entry.name, {}).get("needs", ())),
        "backbone": backbone,
        "link": link,
        "results": results,
        "average": round(sum(known) / len(known), 2) if known else None,
        "missing": [name for name in sets() if name not in results],
        "other_sets": others,
    }


def submission_text(told: dict[str, Any], notes: Sequence[str]) -> str:
    """Return a submission as the text of an issue in Markdown."""
    lines = [
        f"# {told['title']}",
        "",
        f"- Method: {told['method']}",
        f"- Access regime: {told['access']}",
        f"- Backbone: {told['backbone']}",
        f"- Link: {told['link']}",
        "",
    ]
    rows = []
    for name, one in {**told["results"], **told["other_sets"]}.items():
        area = "not computable" if one["auroc"] is None else f"{one['auroc']:.2f}"
        extra = " (not in OpenHalDet)" if name in told["other_sets"] else ""
        rows.append((name + extra, area, str(one["n_test"]), str(one["n_hallucinated"])))
    header = ("dataset", "AUROC (%)", "test items", "hallucinated")
    lines.append(markdown_table(Table("", header, tuple(rows))))
    average = "not computable" if told["average"] is None else f"{told['average']:.2f}"
    known = sum(one["auroc"] is not None for one in told["results"].values())
    lines += [f"Average over {known} of {len(sets())} sets: {average}."]
    if told["missing"]:
        lines.append(f"Not run: {', '.join(told['missing'])}.")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"
