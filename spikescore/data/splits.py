"""Which questions generate_answers.py takes: its data set, the two splits, and the examples.

For that script alone; the probes' own splits are in `probes.data` and `detectors.scoring`. A data
set is named by a path or by what lies in the project's `datasets` folder. A folder with files of
its own for training and validation keeps its split; all else is split in two by group (turns of
one story, a question and its translations stay together), the same way whatever the order of its
rows.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spikescore.data.files import data_files, split_of
from spikescore.data.question import Question
from spikescore.data.reading import load_questions
from spikescore.data.selection import sample_questions
from spikescore.errors import UserError
from spikescore.runtime import derived_seed

log = logging.getLogger("spikescore")

NAMES = {"nq": "nq_open", "trivia_qa": "triviaqa", "squad_v2": "squad"}
"""Names that the pipelines this one continues use for a data set, and the one it has here."""


@dataclass
class Splits:
    """The questions to learn from and the questions to measure on; no group is in both."""

    train: list[Question]
    validation: list[Question]


def find_dataset(name: str, root: Path) -> Path:
    """Return the file or folder of a data set; UserError lists what there is when it is unknown."""
    if Path(name).exists():
        return Path(name)
    for candidate in (name, NAMES.get(name, name)):
        for folder in (root, root / "tiny", root / "samples"):
            if (folder / candidate).is_dir():
                return folder / candidate
            files = [path for path in folder.glob(f"{candidate}.*") if path.suffix != ".py"]
            if files:
                return sorted(files)[0]
    table = root / "sources.json"
    fetched = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}
    wanted = NAMES.get(name, name)
    if wanted in fetched:
        raise UserError(
            f'data set "{name}" is not here yet; fetch it with: '
            f"python {root / 'prepare.py'} {wanted}"
        )
    known = sorted(
        {path.stem for path in root.glob("*/*.json*")}
        | {p.name for p in root.glob("*")}
        | {*fetched}
    )
    near = difflib.get_close_matches(name, known, n=3)
    raise UserError(
        f'data set "{name}" is neither a path nor in "{root}"'
        + (f" (did you mean {' or '.join(near)}?)" if near else "")
        + f"; give a file in any known format, or fetch one of {', '.join(fetched)} with "
        f"python {root / 'prepare.py'} NAME"
    )


def load_splits(path: Path, *, seed: int, answerable_only: bool) -> Splits:
    """Read a data set's questions; its test split is the validation split for want of one."""
    theirs = {split_of(file, path) for file in data_files(path)} if path.is_dir() else set()
    held_out = next((split for split in ("validation", "test") if split in theirs), None)
    if "train" in theirs and held_out:
        return Splits(*(_questions(path, answerable_only, one) for one in ("train", held_out)))
    questions = _questions(path, answerable_only, None)
    of_each = _groups(questions)
    groups = sorted(set(of_each))
    order = np.random.default_rng(derived_seed(seed, "splits")).permutation(len(groups))
    train = {groups[place] for place in order[: len(groups) // 2]}
    splits = Splits([], [])
    for question, group in zip(questions, of_each, strict=True):
        (splits.train if group in train else splits.validation).append(question)
    return splits


def _groups(questions: Sequence[Question]) -> list[str]:
    """Return each question's group; translations of one question are in the first of theirs."""
    own = [question.group or question.id for question in questions]
    shared = [
        question.meta.get("parallel_id") or group
        for question, group in zip(questions, own, strict=True)
    ]
    first: dict[str, str] = {}
    for key, group in zip(shared, own, strict=True):
        first[key] = min(group, first.get(key, group))
    return [first[key] for key in shared]


def _questions(path: Path, answerable_only: bool, split: str | None) -> list[Question]:
    loaded = load_questions(path, answerable_only=answerable_only, split=split)
    if loaded.filtered:
        log.info("%s: %d unanswerable questions left out", path, loaded.filtered)
    return loaded.questions


def pick(questions: Sequence[Question], n: int, *, seed: int, what: str) -> list[Question]:
    """Draw n questions, the same ones whatever their order; all, and it is said, when n is more."""
    if n > len(questions):
        log.warning("%s: %d asked for, %d there are: all are taken", what, n, len(questions))
    n = min(n, len(questions))
    salted = derived_seed(seed, what)  # what is drawn for one use says nothing of another's
    return sample_questions(questions, strategy="random", n=n, seed=salted) if n else []
