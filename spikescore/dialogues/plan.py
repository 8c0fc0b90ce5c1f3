"""What a run of stage 1 is to do: which questions, where their pairs go, and which are done."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spikescore.data.question import Question, question_from_record
from spikescore.data.reading import QuestionStream, iter_questions
from spikescore.data.selection import sample_questions
from spikescore.dialogues.config import Config
from spikescore.dialogues.leaks import Leak
from spikescore.errors import UserError, redacted
from spikescore.files import read_json, write_json
from spikescore.pairs import iter_records, read_record, setting_differences

log = logging.getLogger("spikescore")


@dataclass
class Item:
    """A question and the folder its pair goes to.

    To replay: `source` is the JSON of the dialogue, or the data set that ships it in the question's
    `meta`, and `replayed_from` says what it holds.
    """

    question: Question
    folder: Path
    n_turns: int
    source: Path | None = None
    replayed_from: dict[str, Any] | None = None
    leak: Leak | None = None  # what the guard found in its first prompt


def load_items(config: Config) -> list[Item]:
    """Read and sample every data set; the same ids whatever the order of the rows."""
    items = []
    for path, folder in config.datasets():
        chosen = _sampled(_questions(path, config), config)
        items.extend(Item(question, folder, config.max_steps) for question in chosen)
    return items


def _questions(path: str, config: Config) -> QuestionStream:
    return iter_questions(
        path,
        dataset_format=config.dataset_format,
        fields=config.fields,
        on_bad_row=config.on_bad_row,
        filters=config.filters,
        answerable_only=config.answerable_only,
    )


def _sampled(questions: Iterable[Question], config: Config) -> list[Question]:
    sampling = config.sampling
    return sample_questions(questions, strategy=sampling.strategy, n=sampling.n, seed=sampling.seed)


# --- dialogues that exist ---------------------------------------------------------------------


def load_recorded(config: Config) -> list[Item]:
    """Find the dialogues to replay: the pairs in a folder, or those that a data set ships.

    Pairs go to the same subfolders of `output_dir`, all of them; of a data set's dialogues the
    questions are chosen as for generation.
    """
    source, output = Path(config.replay), Path(config.output_dir)
    if not source.exists():
        raise UserError(
            f'--replay "{source}" does not exist; give a folder of pairs, or a data set '
            "that ships dialogues"
        )
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f'--replay "{source}" would write among the dialogues that it reads; '
            f'choose an output_dir outside it (it is "{output}")'
        )
    pairs = _pairs(source, output) if source.is_dir() else []
    return pairs or _shipped(source, output, config)


def _pairs(source: Path, output: Path) -> list[Item]:
    items: list[Item] = []
    damaged: list[Path] = []
    for path, record in iter_records(source, damaged):
        texts = [[step.get("prompt"), step.get("response")] for step in record["cot_steps"]]
        items.append(
            Item(
                question_from_record({**record, "id": path.stem}),
                output / path.parent.relative_to(source),
                len(texts),
                path,
                {
                    "model": record.get("model"),
                    "config_hash": record.get("config_hash"),
                    "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12],
                },
            )
        )
    for path in damaged:  # each fails by itself when its turn comes
        nobody = Question(path.stem, "", "")
        items.append(Item(nobody, output / path.parent.relative_to(source), 0, path))
    return items


def _shipped(source: Path, output: Path, config: Config) -> list[Item]:
    questions = _WithDialogue(_questions(str(source), config), config.on_bad_row == "error")
    try:
        chosen = _sampled(questions, config)
    except UserError as error:
        none = "there is no dialogue of stage 1, and as a data set: " if source.is_dir() else ""
        raise UserError(f'--replay "{source}": {none}{error}') from error
    if questions.bare:
        log.warning("%s: %d questions without a dialogue left out", source, questions.bare)
    items = [_shipped_item(question, source, output) for question in chosen]
    longer = sum(item.n_turns > 1 for item in items)
    if longer:
        log.warning(
            "%s: %d dialogues have several answers; their label is about how the whole dialogue "
            "ended, not about its first answer", source, longer,
        )  # fmt: skip
    return items


@dataclass
class _WithDialogue:
    """The questions of a stream that come with a dialogue; `bare` counts those that do not.

    UserError at the end where they are to be errors, or where all are such.
    """

    stream: QuestionStream
    strict: bool
    bare: int = 0

    def __iter__(self) -> Iterator[Question]:
        self.bare, found, first = 0, False, ""
        for question in self.stream:
            if "shipped" in question.meta:
                found = True
                yield question
                continue
            first = first or question.id
            self.bare += 1
        if self.bare and (self.strict or not found):
            raise UserError(
                f'question "{first}" comes without a dialogue; only sets that ship them '
                "(ragtruth, ipw) can be replayed"
            )


def _shipped_item(question: Question, source: Path, output: Path) -> Item:
    shipped = question.meta["shipped"]
    n_turns = sum(message["role"] == "assistant" for message in shipped["messages"])
    content = [shipped["messages"], shipped["hallucinated"], shipped["labels"]]
    origin = {
        "model": shipped["model"],
        "config_hash": None,
        "texts": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12],
    }
    return Item(question, output, n_turns, source, origin)


# --- what is done, and what there is room for -------------------------------------------------


def unfinished(items: list[Item], config: Config) -> list[Item]:
    """Leave out finished pairs; refuse a folder whose pairs were made under another config."""
    return [item for item in items if not is_finished(item, config)]


def is_finished(item: Item, config: Config) -> bool:
    """True when the item's pair is complete and was made from this question under this config."""
    path = item.folder / f"{item.question.id}.json"
    if not path.is_file():
        return False
    record = read_record(path)
    if record is None or not record.get("complete"):
        return False
    if record.get("config_hash") != config.hash():
        differing = setting_differences(record.get("config") or {}, config.resolved())
        raise UserError(
            f'"{path}" was made under configuration {record.get("config_hash")}, this run is '
            f"{config.hash()} ({differing}); choose another output_dir or restore the settings"
        )
    if record["question"] != item.question.question:
        raise UserError(
            f'"{path}" holds another question with the id "{item.question.id}"; '
            "give every data set an output_dir of its own"
        )
    if record.get("replayed_from") != item.replayed_from:
        raise UserError(
            f'"{path}" was read from another dialogue than "{item.source}" holds now; '
            "choose another output_dir"
        )
    return path.with_suffix(".pkl").is_file()


def check_disk(needed: int, config: Config) -> None:
    """Refuse with a UserError when the disk of `output_dir` cannot hold so many bytes."""
    folder = Path(config.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"output_dir needs about {needed / 1e9:.1f} GB and {folder} has "
            f"{free / 1e9:.1f} GB free; lower sampling.n or max_steps, or choose another output_dir"
        )


def write_run_file(config: Config, items: list[Item], command: str) -> None:
    """Keep what was run, which questions were chosen and what the leak guard found, next to the
    pairs.
    """
    for folder in dict.fromkeys(item.folder for item in items):
        folder.mkdir(parents=True, exist_ok=True)
        here = [item for item in items if item.folder == folder]
        write_json(
            folder / "run.json",
            {
                "command": redacted(command),
                "config": config.resolved(),
                "config_hash": config.hash(),
                "ids": [item.question.id for item in here],
                "leaks": [asdict(item.leak) for item in here if item.leak],
            },
        )


def write_speed(config: Config, seconds: float, n_tokens: int) -> None:
    """Add a run's wall-clock seconds and answer tokens to `speed.json` in the output folder.

    A resumed run adds its own part; a killed one leaves nothing, neither seconds nor tokens.
    """
    path = Path(config.output_dir) / "speed.json"
    before = read_json(path) if path.exists() else {"seconds": 0.0, "answer_tokens": 0}
    write_json(
        path,
        {
            "seconds": before["seconds"] + seconds,
            "answer_tokens": before["answer_tokens"] + n_tokens,
        },
    )
