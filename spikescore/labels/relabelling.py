"""Label pairs that are on disk: in place, in copies, or twice to see how far two judges agree."""

from __future__ import annotations

import glob
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikescore.data.question import Question, question_from_record
from spikescore.errors import UserError
from spikescore.files import write_json
from spikescore.labels.judges import Judge, Judgement, judge_each
from spikescore.pairs import iter_records, read_record
from spikescore.shards import holding

log = logging.getLogger("spikescore")


@dataclass(frozen=True)
class FirstAnswer:
    """A pair's question and first answer. A pair in the `legacy` form is read only."""

    path: Path
    question: Question
    answer: str
    label: int | None
    legacy: bool


def first_answers(folder: Path) -> list[FirstAnswer]:
    """Return every readable pair's first answer; UserError without any, a warning for the rest."""
    damaged: list[Path] = []
    found = [_first_answer(path, record) for path, record in iter_records(folder, damaged)]
    _tell_of(damaged)
    if not found:
        raise UserError(f'folder "{folder}" holds no pair; give the folder that stage 1 wrote to')
    return found


def _tell_of(damaged: Sequence[Path]) -> None:
    for path in damaged:
        try:
            read_record(path)
        except UserError as error:
            log.warning("left out: %s", error)


def _first_answer(path: Path, record: dict[str, Any]) -> FirstAnswer:
    steps = record["cot_steps"]
    return FirstAnswer(
        path=path,
        question=question_from_record(record),
        answer=str(steps[0].get("response") or "") if steps else "",
        label=record.get("nil_label"),
        legacy=bool(record.get("legacy")),
    )


def to_label(answers: Sequence[FirstAnswer], *, everything: bool) -> tuple[list[FirstAnswer], str]:
    """Return the answers that a judge is to label, those without a label or `everything`, and which
    are left alone, to be printed: files that are read only, and given answers with their labels.
    """
    asked = [one for one in answers if everything or one.label is None]
    unknown = [one for one in asked if one.label is None or one.question.first_answer is None]
    left = sum(one.legacy for one in answers)
    alone = f", {left} in the older form left alone" if left else ""
    if known := len(asked) - len(unknown):
        alone += f", {known} of given answers keep the label that their data set ships"
    return [one for one in unknown if not one.legacy], alone


def label_pairs(
    judge: Judge, answers: Sequence[FirstAnswer]
) -> Iterator[tuple[FirstAnswer, Judgement]]:
    """Judge first answers; write each label into its pair when it is there, and yield both.

    A judge that failed does not take away the label that is there; one that finds the answer
    unread does, as that label may be of rules that read it wrongly.
    """
    items = [(one.question, one.answer) for one in answers]
    for place, judgement in judge_each(judge, items, desc="labels"):
        answer = answers[place]
        if judgement.label is not None or judgement.unread or answer.label is None:
            record = read_record(answer.path)  # again: another stage may have written to it
            label = {"nil_label": judgement.label, "nil_judge": judgement.as_dict()}
            write_json(answer.path, {**record, **label})
        yield answer, judgement


def copy_unlabelled(source: Path, target: Path) -> None:
    """Copy the pairs under a folder to another one, without their labels, for another judge.

    Copies that are there already are left alone; of what cannot be read none is made, with a
    warning. Files other than JSON are hard links where the file system can make them: hidden states
    are large, and no stage writes into them.
    """
    damaged: list[Path] = []
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f'--to "{target}" lies inside "{source}"; choose a folder outside it')
    for path, record in iter_records(source, damaged):
        if holding(path):
            raise UserError(
                f'"{path}" is packed in shards, of which --to can make no copies; unpack them with '
                "scripts/pack_pairs.py unpack, or label without --to: labels go beside the shards"
            )
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
    _tell_of(damaged)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
