"""What a run of stage 1 is to do: which questions, where their pairs go, and which are done."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from spikescore.data.given import sampled_twins
from spikescore.data.question import Question, question_from_record, record_fields
from spikescore.data.reading import QuestionStream, iter_questions
from spikescore.data.retrieval import with_passages
from spikescore.data.selection import sample_questions
from spikescore.dialogues.config import Config
from spikescore.dialogues.keeping import digest, has_turns
from spikescore.dialogues.leaks import Leak, holds_gold
from spikescore.errors import Refused, UserError, redacted
from spikescore.files import content_digest, locked_by_launch, read_json, write_json
from spikescore.model.placement import check_placement
from spikescore.pairs import (
    TOKEN_KEYS,
    find_records,
    iter_records,
    read_record,
    read_states,
    setting_differences,
    turn_states,
)
from spikescore.runtime import Process, unreachable
from spikescore.shards import is_file, is_folder

log = logging.getLogger("spikescore")

ASKED = ("question", "context", "choices", "history", "gold_answers", "given_answer")
"""Fields of a pair that must be those of the question that it is taken for."""


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
        questions = _questions(path, config)
        if config.first_answers == "shipped":
            chosen = sampled_twins(questions, partial(_sampled, config=config), path)
        else:
            chosen = _sampled(questions, config)
            _warn_of_repeats(chosen, path)
        if config.context:
            chosen = _with_passages(chosen, path, config)
        items.extend(Item(question, folder, config.max_steps) for question in chosen)
    return items


def _warn_of_repeats(questions: list[Question], path: str) -> None:
    """RAGTruth's responses name their source; each would be asked about it anew."""
    pairs = [one.given[0].pair for one in questions if one.given and one.given[0].pair]
    if len(set(pairs)) < len(pairs):
        log.warning(
            "%s: %d questions are about %d sources, each asked once for every response that the "
            "set ships; give source_info.jsonl to ask each once", path, len(pairs), len(set(pairs)),
        )  # fmt: skip


def _with_passages(questions: list[Question], path: str, config: Config) -> list[Question]:
    """Give the questions the passages that are found for them, and say how many have which."""
    found = with_passages(questions, Path(config.context["from"]), config.top_k)
    log.info("%s: passages of %s: %s", path, config.context["from"], found)
    return [
        replace(one, meta={**one.meta, "gold_in_passage": holds_gold(one)})
        if one.meta.get("retrieved")
        else one
        for one in found.questions
    ]


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
    if not (source.exists() or is_folder(source)):
        raise UserError(
            f'--replay "{source}" does not exist; give a folder of pairs, or a data set '
            "that ships dialogues"
        )
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f'--replay "{source}" would write among the dialogues that it reads; '
            f'choose an output_dir outside it (it is "{output}")'
        )
    pairs = _pairs(source, output) if is_folder(source) else []
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
                    "texts": digest(texts)[:12],
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
    origin = {"model": shipped["model"], "config_hash": None, "texts": digest(content)[:12]}
    return Item(question, output, n_turns, source, origin)


# --- what is done, and what there is room for -------------------------------------------------


def unfinished(items: list[Item], config: Config) -> list[Item]:
    """Leave out finished pairs; refuse a folder whose pairs were made under another config."""
    return [item for item in items if not is_finished(item, config)]


def is_finished(item: Item, config: Config) -> bool:
    """True when a pair can be read and is of this question and config; a damaged one is named."""
    path = item.folder / f"{item.question.id}.json"
    if not is_file(path):
        return False
    try:
        record = read_record(path)
    except Refused:
        raise
    except UserError as error:
        log.warning("%s; this pair is made again", error)
        return False
    if record is None or not record.get("complete"):
        return False
    if record.get("config_hash") != config.hash():
        raise _other_settings(path, record, config)
    question = item.question
    changed = [
        key
        for key, value in record_fields(question).items()
        # older pairs are compared by the question alone
        if key in (ASKED if record.get("identity") else ASKED[:1]) and record.get(key) != value
    ]
    if changed:
        raise UserError(
            f'"{path}" holds another question with the id "{question.id}" (other: '
            f"{', '.join(changed)}); give every data set, and each version of it, an output_dir of "
            "its own"
        )
    if record.get("replayed_from") != item.replayed_from:
        raise UserError(
            f'"{path}" was read from another dialogue than "{item.source}" holds now; '
            "choose another output_dir"
        )
    pkl = path.with_suffix(".pkl")
    try:
        states = read_states(pkl) if is_file(pkl) else {}
        for token_key in TOKEN_KEYS if states else ():
            turn_states(states, record, token_key, pkl)
    except Refused:
        raise
    except UserError as error:
        log.warning("%s; this pair is made again", error)
        return False
    return bool(states)


# --- one folder, one run ------------------------------------------------------------------------


@contextmanager
def alone_in(items: list[Item], process: Process) -> Iterator[None]:
    """Keep the items' folders to one launch while the block runs; UserError names who holds one."""
    with ExitStack() as held:
        for folder in dict.fromkeys(item.folder for item in items):
            held.enter_context(locked_by_launch(folder, process))
        yield


def refuse_other_run(
    config: Config, items: list[Item], identity: Mapping[str, str] | None = None
) -> None:
    """Raise UserError, naming what differs, where the items' folders hold dialogues of another run.

    Compared are settings, the data set by content, and, once they are known, model and prompts
    (`identity`). A folder without dialogues, finished or under way, belongs to nobody.
    """
    for folder in dict.fromkeys(item.folder for item in items):
        found = find_records(folder) if is_folder(folder) else []
        pairs = [path for path in found if path.parent == folder]
        if not pairs and not has_turns(config):
            continue
        path = folder / "run.json"
        held = read_json(path) if path.is_file() else None
        if not isinstance(held, dict):  # made before there were such, or copied without it
            path, held = next(((path, read_record(path)) for path in pairs), (path, None))
        if not held or not held.get("config_hash"):
            continue
        if held["config_hash"] != config.hash():
            raise _other_settings(folder, held, config)
        known = held.get("identity") or {}
        differ = [part for part, now in (identity or {}).items() if known.get(part, now) != now]
        if differ:
            raise UserError(
                f'"{folder}" was made by another model or from other prompts than "'
                f'{config.model_path}" gives now (other: {", ".join(differ)}); choose another '
                "output_dir, or restore the model"
            )
        data = held.get("data") or {}
        if identity is None and not config.replay and data.get("sha256"):
            _refuse_other_data(folder, data, {path.stem for path in pairs}, items, config)


def _refuse_other_data(
    folder: Path, data: dict[str, Any], there: set[str], items: list[Item], config: Config
) -> None:
    """A data set may have grown; but what the folder holds must be among what is asked now."""
    now = data_identity(config, folder)
    gone = there - {item.question.id for item in items if item.folder == folder}
    if now["sha256"] != data["sha256"] and gone:
        raise UserError(
            f'"{folder}" was made from another data set: "{data.get("path")}", whose content '
            f'differs from "{now["path"]}" now, and {len(gone)} of its dialogues ("{min(gone)}") '
            "are not among the questions of this run; choose another output_dir"
        )


def data_identity(config: Config, folder: Path) -> dict[str, str]:
    """The data set whose pairs go to a folder: its path, and a digest of its content."""
    path = next(path for path, target in config.datasets() if target == folder)
    return {"path": path, "sha256": content_digest(Path(path))}


def _other_settings(path: Path, held: Mapping[str, Any], config: Config) -> UserError:
    differing = setting_differences(held.get("config") or {}, config.resolved())
    return UserError(
        f'"{path}" was made under configuration {held.get("config_hash")}, this run is '
        f"{config.hash()} ({differing}); choose another output_dir or restore the settings"
    )


def check_start(config: Config) -> None:
    """Raise UserError for what can be known to be wrong before anything is read or loaded: a model
    folder, device or server that is not there, an output folder that cannot be written to.
    """
    check_placement(config.placement)
    if config.needs_server:
        url = server_url(config)
        if problem := unreachable(url):
            raise UserError(
                f'server "{redacted(url)}" cannot be reached ({problem}); start it, or set '
                "server_url (or the environment's OPENAI_BASE_URL) to where it listens"
            )
    folder = Path(config.output_dir)
    above = _existing(folder)
    if not above.is_dir():
        raise UserError(
            f'output_dir "{folder}" cannot be made: "{above}" is a file; choose another output_dir'
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f'output_dir "{folder}" cannot be written to: no permission for "{above}"; choose '
            "another output_dir, or change its permissions"
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())


def server_url(config: Config) -> str:
    """Where the server of the dialogues listens; UserError when nothing says so."""
    url = config.server_url or os.environ.get("OPENAI_BASE_URL", "").strip()
    if not url:
        raise UserError(
            'backend "openai", or "states": "server", needs the server\'s address: set server_url, '
            'for example "http://localhost:8000/v1", or the environment variable OPENAI_BASE_URL'
        )
    return url


def check_disk(needed: int, config: Config) -> None:
    """Refuse with a UserError when the disk of `output_dir` cannot hold so many bytes."""
    folder = _existing(Path(config.output_dir).absolute())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"output_dir needs about {needed / 1e9:.1f} GB and {folder} has "
            f"{free / 1e9:.1f} GB free; lower sampling.n or max_steps, or choose another output_dir"
        )


def write_run_file(
    config: Config, items: list[Item], identity: Mapping[str, str], command: str
) -> None:
    """Keep next to the pairs what was run, by which model, on what, and the leak guard's finds."""
    for folder in dict.fromkeys(item.folder for item in items):
        here = [item for item in items if item.folder == folder]
        write_json(
            folder / "run.json",
            {
                "command": redacted(command),
                "config": config.resolved(),
                "config_hash": config.hash(),
                "model": config.model_path,
                "identity": dict(identity),
                "data": None if config.replay else data_identity(config, folder),
                "ids": [item.question.id for item in here],
                "leaks": [asdict(item.leak) for item in here if item.leak],
            },
        )


def write_speed(config: Config, seconds: float, n_tokens: int) -> None:
    """Add a run's seconds and answer tokens to `speed.json`; a killed run leaves neither."""
    path = Path(config.output_dir) / "speed.json"
    before = read_json(path) if path.exists() else {"seconds": 0.0, "answer_tokens": 0}
    write_json(
        path,
        {
            "seconds": before["seconds"] + seconds,
            "answer_tokens": before["answer_tokens"] + n_tokens,
        },
    )
