"""What you edit: the judge's client and credentials, and how much the scripts log.

The client is set up from the environment, so that no key ever stands in a file:

    export OPENAI_API_KEY=...            required by the judge "openai"
    export OPENAI_BASE_URL=...           optional: any server with the OpenAI interface
    export NIL_MODEL=...                 optional: the judging model, default gpt-4o-mini

Label the pairs of a finished run, or label them again, without generating anything:

    python utils.py --relabel outputs/demo --judge auto
    python utils.py --relabel outputs/demo --judge openai --all

By default only pairs without a label are judged, so an interrupted run goes on where it stopped.
With --to the labels go to copies of the pairs, and the pairs themselves stay as they are:

    python utils.py --relabel outputs/demo --judge exact --to outputs/demo_exact

See how far two judges agree on the same answers, without writing anything:

    python utils.py --agreement outputs/demo --judge auto --judge openai

Exit status: 0 all labelled, 1 some could not be, 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikescore.errors import UserError, run_main

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CHUNK = 200
"""Pairs judged between two writes: what an interrupted relabelling loses at most."""


def make_client(*, timeout: float, max_retries: int) -> AsyncOpenAI:
    """Return the client of the chat judges; UserError when OPENAI_API_KEY is not set."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise UserError(
            'the judge "openai" (or "llm_...") needs the environment variable OPENAI_API_KEY (any '
            "text will do for a local server under OPENAI_BASE_URL); or choose a judge that needs "
            'no network: "auto", "exact", "numeric", "choice", "math"'
        )
    from openai import AsyncOpenAI

    return AsyncOpenAI(
        api_key=key,
        base_url=os.environ.get("OPENAI_BASE_URL") or None,
        timeout=timeout,
        max_retries=max_retries,
    )


def configure_logging(verbose: bool = False) -> None:
    """Log the project's messages to the terminal's error stream; `verbose` adds the details."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log = logging.getLogger("spikescore")
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    logging.getLogger("httpx").setLevel(logging.WARNING)


def relabel(folder: Path, judge_name: str, *, everything: bool = False) -> int:
    """Judge the first answers of the pairs under a folder and write the labels; print coverage.

    Returns the number of pairs left without a label. Pairs in the older public form are read only.
    """
    from spikescore.data.question import question_from_record
    from spikescore.files import write_json
    from spikescore.labels.judges import coverage_line, judge_many, make_judge
    from spikescore.pairs import iter_records

    found = list(iter_records(folder))
    if not found:
        raise UserError(f'folder "{folder}" holds no pair; give the folder that stage 1 wrote to')
    ours = [(path, record) for path, record in found if not record.get("legacy")]
    todo = [pair for pair in ours if everything or pair[1].get("nil_label") is None]
    questions = [question_from_record(record) for _, record in todo]
    judge = make_judge(judge_name, questions=questions, client_factory=make_client)
    print(
        f"{len(found)} pairs, {len(todo)} to label with {judge_name}"
        + (
            f", {len(found) - len(ours)} in the older form left alone"
            if len(ours) < len(found)
            else ""
        )
    )
    judgements = []
    for start in range(0, len(todo), CHUNK):
        chunk = todo[start : start + CHUNK]
        items = [
            (question, _first_answer(record))
            for question, (_, record) in zip(questions[start : start + CHUNK], chunk, strict=True)
        ]
        for (path, record), judgement in zip(chunk, judge_many(judge, items), strict=True):
            judgements.append(judgement)
            if judgement.label is None and record.get("nil_label") is not None:
                continue  # a judge that failed does not take away the label that is there
            write_json(
                path,
                {**record, "nil_label": judgement.label, "nil_judge": judgement.as_dict()},
            )
    print(coverage_line(judgements))
    return sum(judgement.label is None for judgement in judgements)


def copy_unlabelled(source: Path, target: Path) -> None:
    """Copy the pairs under a folder to another one, without their labels, for another judge.

    Copies that are there already are left alone. Files other than JSON are hard links where the
    file system can make them: hidden states are large, and no stage writes into them.
    """
    from spikescore.files import write_json
    from spikescore.pairs import iter_records

    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f'--to "{target}" lies inside "{source}"; choose a folder outside it')
    for path, record in iter_records(source):
        copy = target / path.relative_to(source)
        if copy.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        for beside in path.parent.glob(f"{glob.escape(path.stem)}.*pkl"):
            linked = copy.parent / beside.name
            if not linked.exists():
                _link(beside, linked)
        record = {key: value for key, value in record.items() if key != "legacy"}
        write_json(copy, {**record, "nil_label": None, "nil_judge": None})


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def show_agreement(folder: Path, first: str, second: str) -> int:
    """Judge the first answers under a folder with two judges and print how far they agree.

    Writes nothing. Returns the number of answers that one of them could not label.
    """
    from spikescore.data.question import question_from_record
    from spikescore.labels.judges import coverage_line, judge_many, make_judge
    from spikescore.pairs import iter_records
    from spikescore.stats.agreement import agree, agreement_report

    records = [record for _, record in iter_records(folder)]
    if not records:
        raise UserError(f'folder "{folder}" holds no pair; give the folder that stage 1 wrote to')
    questions = [question_from_record(record) for record in records]
    items = list(zip(questions, map(_first_answer, records), strict=True))
    print(f"{len(records)} pairs, judged by {first} and by {second}")
    labels = []
    for name in (first, second):
        judge = make_judge(name, questions=questions, client_factory=make_client)
        judgements = judge_many(judge, items)
        print(f"{name}: {coverage_line(judgements)}")
        labels.append([judgement.label for judgement in judgements])
    try:
        agreement = agree(*labels, groups=[question.group for question in questions])
    except ValueError as error:
        raise UserError(f'folder "{folder}": {error}; choose judges that fit its items') from error
    print(agreement_report(agreement, first, second))
    return agreement.unlabelled


def _first_answer(record: dict[str, Any]) -> str:
    steps = record["cot_steps"]
    return str(steps[0].get("response") or "") if steps else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--relabel", metavar="DIR", help="folder of pairs, searched recursively")
    task.add_argument("--agreement", metavar="DIR", help="compare two judges on a folder of pairs")
    parser.add_argument(
        "--judge",
        action="append",
        help="auto (by answer type), exact, numeric, choice, math, nli or openai (default: "
        "auto); "
        "for --agreement given twice",
    )
    parser.add_argument(
        "--to", metavar="DIR", help="label copies of the pairs in this folder, not the pairs"
    )
    parser.add_argument("--all", action="store_true", help="judge labelled pairs again, too")
    parser.add_argument("--verbose", action="store_true", help="log details")
    arguments = parser.parse_args()
    configure_logging(arguments.verbose)
    judges = arguments.judge or ["auto"]
    if "none" in judges:
        raise UserError(
            "--judge none labels nothing; use auto, exact, numeric, choice, math, openai"
        )
    if arguments.agreement:
        if len(judges) != 2:
            raise UserError("--agreement compares two judges: give --judge A --judge B")
        return int(show_agreement(Path(arguments.agreement), *judges) > 0)
    if len(judges) != 1:
        raise UserError("--relabel labels by one judge: give --judge once")
    folder = Path(arguments.relabel)
    if arguments.to:
        copy_unlabelled(folder, Path(arguments.to))
        folder = Path(arguments.to)
    return int(relabel(folder, judges[0], everything=arguments.all) > 0)


if __name__ == "__main__":
    run_main(main)
