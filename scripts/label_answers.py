#!/usr/bin/env python3
"""Between the stages: label the first answers of finished pairs, or label them again.

    python scripts/label_answers.py --relabel outputs/demo --judge auto
    python scripts/label_answers.py --relabel outputs/demo --judge auto,openai --all

Nothing is generated. By default only pairs without a label are judged, and each label is written
when it is there, so an interrupted run goes on where it stopped. With --to the labels go to copies
of the pairs, and the pairs themselves stay as they are:

    python scripts/label_answers.py --relabel outputs/demo --judge exact --to outputs/demo_exact

See how far two judges agree on the same answers, without writing a label:

    python scripts/label_answers.py --agreement outputs/demo --judge auto --judge openai

See how well a judge reads answers that were labelled by hand, one question a line:

    python scripts/label_answers.py --check tests/labels/answers.jsonl

Several judges joined by commas are asked in turn, each for what the one before left unread. Replies
of a server are kept in judge_cache.sqlite in the folder of pairs. All about it: docs/own-judge.md.

Exit status: 0 all labelled, 1 some not labelled (--check: wrongly), 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import UserError, run_main  # noqa: E402

if TYPE_CHECKING:
    from spikescore.labels.judges import Judge
    from spikescore.labels.relabelling import FirstAnswer


def relabel(folder: Path, judge_name: str, *, everything: bool = False) -> int:
    """Label the pairs under a folder; print coverage; return how many are left without a label."""
    from spikescore.labels.judges import coverage_line
    from spikescore.labels.relabelling import first_answers, label_pairs, to_label

    found = first_answers(folder)
    todo, alone = to_label(found, everything=everything)
    judge = the_judge(judge_name, folder, todo)
    print(f"{len(found)} pairs, {len(todo)} to label with {judge_name}{alone}")
    labelled = list(label_pairs(judge, todo))
    judgements = [judgement for _, judgement in labelled]
    kept = sum(
        answer.label is not None and judgement.label is None and not judgement.unread
        for answer, judgement in labelled
    )
    earlier = f"; {kept} that failed keep the label they had" if kept else ""
    print(coverage_line(judgements) + earlier)
    return sum(judgement.label is None for judgement in judgements)


def show_agreement(folder: Path, first: str, second: str) -> int:
    """Print how far two judges agree on first answers; return how many lack one of the labels."""
    from spikescore.labels.judges import coverage_line, judge_many
    from spikescore.labels.relabelling import first_answers
    from spikescore.stats.agreement import agree, agreement_report

    found = first_answers(folder)
    print(f"{len(found)} pairs, judged by {first} and by {second}")
    labels = []
    for name in (first, second):
        judge = the_judge(name, folder, found)
        judgements = judge_many(judge, [(one.question, one.answer) for one in found], desc=name)
        print(f"{name}: {coverage_line(judgements)}")
        labels.append([judgement.label for judgement in judgements])
    try:
        agreement = agree(*labels, groups=[one.question.group for one in found])
    except ValueError as error:
        raise UserError(f'folder "{folder}": {error}; choose judges that fit its items') from error
    print(agreement_report(agreement, first, second))
    return agreement.unlabelled


def the_judge(name: str, folder: Path, answers: list[FirstAnswer]) -> Judge:
    """Set a judge up; a mistake in its name or a missing key shows before anything is judged."""
    from spikescore.labels.judges import make_judge
    from utils import make_client

    return make_judge(
        name,
        questions=[one.question for one in answers],
        client_factory=make_client,
        cache=folder / "judge_cache.sqlite",
    )


def check(path: Path, judge_name: str) -> int:
    """Print how a judge labels what people labelled; return how many wrongly."""
    from spikescore.labels.checking import check_rules, check_table

    found = check_rules(path, the_judge(judge_name, path.parent, []))
    print("\n".join((*found.faults, check_table(found))))
    return found.n_wrong


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--relabel", metavar="DIR", help="folder of pairs, searched recursively")
    task.add_argument("--agreement", metavar="DIR", help="compare two judges on a folder of pairs")
    task.add_argument("--check", metavar="FILE", help="hold rules or --judge against hand labels")
    parser.add_argument(
        "--judge",
        action="append",
        help="auto (by answer type), exact, numeric, choice, math, nli, openai, llm_<model> or "
        "your own, file.py:function; several joined by commas; default: auto (--agreement: two)",
    )
    parser.add_argument("--to", metavar="DIR", help="label copies of the pairs in this folder")
    parser.add_argument("--all", action="store_true", help="judge labelled pairs again, too")
    parser.add_argument("--verbose", action="store_true", help="log details")
    args = parser.parse_args()
    args.judge = args.judge or ["auto"]
    if "" in (args.relabel, args.agreement, args.check, args.to):  # a variable that is not set
        raise UserError("--relabel, --agreement, --check and --to need a path, not an empty text")
    if "none" in args.judge:
        raise UserError("--judge none labels nothing; use auto, exact, numeric, math, openai")
    if args.agreement and len(args.judge) != 2:
        raise UserError("--agreement compares two judges: give --judge A --judge B")
    if args.relabel and len(args.judge) != 1:
        raise UserError("--relabel takes --judge once: join several judges by commas, auto,openai")
    return args


def main() -> int:
    args = parse_arguments()
    from spikescore.files import locked
    from spikescore.labels.relabelling import copy_unlabelled
    from utils import configure_logging

    configure_logging(args.verbose)
    if args.check:
        return int(check(Path(args.check), args.judge[0]) > 0)
    if args.agreement:
        return int(show_agreement(Path(args.agreement), *args.judge) > 0)
    folder = Path(args.relabel)
    if args.to:
        copy_unlabelled(folder, Path(args.to))
        folder = Path(args.to)
    elif not folder.is_dir():
        raise UserError(f'folder "{folder}" does not exist')
    with locked(folder, ".labels.lock"):
        return int(relabel(folder, args.judge[0], everything=args.all) > 0)


if __name__ == "__main__":
    run_main(main)
