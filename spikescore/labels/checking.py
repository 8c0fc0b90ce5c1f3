"""Hold a judge against answers that people have labelled.

A file has one question a line, as JSON: {"rule", "gold", "right", "wrong", "unread"}, for choices
{"choices"} and if need be {"question"}, where "right", "wrong" and "unread" are lists of answers.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from spikescore.data.question import Question
from spikescore.errors import UserError
from spikescore.labels.judges import Judge, RuleJudge, judge_many
from spikescore.labels.rules import RULES

LABELS = {"right": 1, "wrong": 0, "unread": None}


@dataclass
class Check:
    """`counts` by (rule, label by hand, by the judge); `faults` are the answers that differ."""

    counts: Counter[tuple[str, int | None, int | None]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def n_wrong(self) -> int:
        """Answers whose label is the opposite of the right one, or that should have none."""
        return sum(n for (_, hand, rule), n in self.counts.items() if rule not in (None, hand))

    @property
    def unread_share(self) -> float:
        """The share of the readable answers that the judge leaves unread."""
        readable = {key: n for key, n in self.counts.items() if key[1] is not None}
        return sum(n for key, n in readable.items() if key[2] is None) / max(
            1, sum(readable.values())
        )


def check_rules(path: Path, judge: Judge | None = None) -> Check:
    """Label a file's answers, by rule without a judge; UserError names a line that is none."""
    cases: list[tuple[Question, str, int | None]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'"{path}" cannot be read: {error}') from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if row["rule"] not in RULES:
                raise KeyError(row["rule"])
            question = Question(
                str(number),
                "",
                str(row.get("question", "")),
                choices=tuple(row["choices"]) if row.get("choices") else None,
                gold_answers=tuple(map(str, row["gold"])),
                answer_type=row["rule"],
            )
            answers = [(hand, one) for name, hand in LABELS.items() for one in row.get(name, ())]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            form = '{"rule": "exact", "gold": ["Paris"], "right": [...], "wrong": [...]}'
            raise UserError(f'"{path}", line {number}: {error}; write it as {form}') from error
        cases += [(question, str(answer), hand) for hand, answer in answers]
    check = Check()
    labelled = judge_many(judge or RuleJudge("auto"), [case[:2] for case in cases])
    for (question, answer, hand), found in zip(cases, labelled, strict=True):
        rule = question.answer_type
        check.counts[rule, hand, found.label] += 1
        if found.label != hand:
            why = (
                found.error if found.label is None and not found.unread else f"read {found.reply!r}"
            )
            check.faults.append(
                f"line {question.id} {rule}: {answer!r}, gold {question.gold_answers[0]!r}, by "
                f"hand {hand}, by {found.judge} {found.label} ({why})"
            )
    return check


def check_table(check: Check) -> str:
    """Return each rule's confusion matrix, and a line on all of them, as text."""
    shown = (1, 0, None)
    titles = [f"label {label}" for label in (1, 0)] + ["unread"]
    lines = [f"{'rule':10}{'by hand':>10}" + "".join(f"{title:>10}" for title in titles)]
    for rule in dict.fromkeys(rule for rule, _, _ in check.counts):
        for name, hand in LABELS.items():
            row = "".join(f"{check.counts[rule, hand, label]:>10,}" for label in shown)
            lines.append(f"{rule:10}{name:>10}{row}")
    total = check.counts.total()
    lines.append(
        f"{total:,} answers: {check.n_wrong} wrong labels, {100 * check.unread_share:.1f}% of the "
        "readable ones unread"
    )
    return "\n".join(lines)
