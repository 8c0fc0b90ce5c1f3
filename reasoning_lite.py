#!/usr/bin/env python3
"""Stage 1: hold a multi-turn dialogue about every question and keep its hidden states.

    python reasoning_lite.py                                    # everything config.json says
    python reasoning_lite.py --dry_run                          # show prompts, judge and disk size
    python reasoning_lite.py --config my.json --set max_steps=5 --set sampling.n=50
    python reasoning_lite.py --set backend=openai --set server_url=http://localhost:8000/v1
    python reasoning_lite.py --replay outputs/demo --set output_dir=outputs/read_by_another

Each question becomes a pair in `output_dir`: <id>.json (the dialogue, its label) and <id>.pkl
(FP16 hidden states of all layers at three tokens of every turn). A finished pair is skipped when
the command is run again, so a killed run goes on where it stopped.

With "backend": "openai" any server with the OpenAI interface holds the dialogues, and the model in
`model_path` reads the hidden states from the transcripts. Keys stand in the environment:
SERVER_API_KEY for a `server_url`, OPENAI_API_KEY for OPENAI_BASE_URL; a local server needs none.
--replay reads the dialogues that a folder already holds, made by any model.

Exit status: 0 all done, 1 some items failed (each left an <id>.error.json), 2 a mistake in the
input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikescore.errors import UserError, run_main

if TYPE_CHECKING:
    from spikescore.config import Config
    from spikescore.dialogue import ChatFormat, Dialogue, Message
    from spikescore.engine import Engine, Finished, Limits, Turn
    from spikescore.judging import Judgement
    from spikescore.labelling import BackgroundLabels
    from spikescore.leaks import Leak
    from spikescore.prompts import Prompt
    from spikescore.questions import Question
    from spikescore.serving import ServedGenerator
    from spikescore.transcripts import Exchange, Recorded, Transcript

log = logging.getLogger("spikescore")

TYPICAL_ANSWER_TOKENS = (
    256  # for the disk and memory estimates; answers seldom reach max_new_tokens
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="config.json", help="settings file (default: config.json)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting; dotted keys reach inside, e.g. sampling.n=50; may be repeated",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="show three rendered prompts per data set with token counts, the judge and the "
        "expected disk size; generate nothing",
    )
    parser.add_argument(
        "--replay",
        metavar="DIR",
        help="read the hidden states of the dialogues in this folder (older public form included) "
        "with model_path and write new pairs; their labels are carried over, nothing is generated",
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    return parser.parse_args(argv)


@dataclass
class Item:
    """A question and the folder its pair goes to.

    To replay: `source` is the JSON of the dialogue and `replayed_from` says what it holds.
    """

    question: Question
    folder: Path
    n_turns: int
    source: Path | None = None
    replayed_from: dict[str, Any] | None = None


@dataclass
class Tally:
    """What happened, for the summary and the exit status."""

    written: int = 0
    skipped: int = 0
    failed: int = 0
    leaks: int = 0
    labels: Counter[str] = field(default_factory=Counter)


def main() -> int:
    args = parse_arguments()
    from spikescore.config import load_config
    from spikescore.processes import this_process
    from utils import configure_logging

    configure_logging(args.verbose)
    replay = [f"replay={json.dumps(args.replay)}"] if args.replay else []
    config = load_config(args.config, args.set + replay)
    process = this_process()
    items = load_recorded(config) if config.replay else load_items(config)
    in_step = config.tp_plan is not None  # all processes hold slices of one model
    todo, tally = unfinished(items if in_step else process.share(items), config)
    share = f" (process {process.rank} of {process.world_size})" if process.world_size > 1 else ""
    origin = f"questions from {len(config.datasets())} data sets"
    if config.replay:
        origin = f"dialogues from {config.replay}"
    print(f"{len(items)} {origin}{share}: {len(todo)} to do, {tally.skipped} done")
    if not todo and not args.dry_run:
        return report(tally, config, started=time.monotonic())

    from spikescore.dialogue import ChatFormat
    from spikescore.loading import load_model, load_tokenizer

    chat = ChatFormat(load_tokenizer(config), enable_thinking=config.enable_thinking)
    served = config.backend == "openai" and not config.replay and not args.dry_run
    server = connect(config, chat) if served else None  # before a large model is loaded
    model = load_model(config)
    check_disk(model, config, todo)
    if args.dry_run:
        return dry_run(items, config, chat)
    if process.is_first:
        write_run_file(config, items)
    started = time.monotonic()
    if in_step and not process.is_first:
        follow(todo, config, chat, model)
        return 0
    generate(todo, config, chat, model, server, tally)
    return report(tally, config, started)


# --- what is to be done -----------------------------------------------------------------------


def load_items(config: Config) -> list[Item]:
    """Read and sample every data set; the same ids whatever the order of the rows."""
    from spikescore.questions import load_questions, sample_questions

    items = []
    for path, folder in config.datasets():
        loaded = load_questions(
            path,
            dataset_format=config.dataset_format,
            fields=config.fields,
            on_bad_row=config.on_bad_row,
        )
        for row in loaded.skipped:
            log.warning("%s: %s left out: %s", path, row.where, row.reason)
        if loaded.skipped:
            print(f"{path}: {len(loaded.skipped)} bad rows left out")
        chosen = sample_questions(
            loaded.questions,
            strategy=config.sampling.strategy,
            n=config.sampling.n,
            seed=config.sampling.seed,
        )
        items.extend(Item(question, folder, config.max_steps) for question in chosen)
    return items


def load_recorded(config: Config) -> list[Item]:
    """Find the dialogues to replay; their pairs go to the same subfolders of `output_dir`."""
    from spikescore.pairs import iter_records
    from spikescore.questions import question_from_record

    source, output = Path(config.replay), Path(config.output_dir)
    if output.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f'--replay "{source}" would write among the dialogues that it reads; '
            f'choose an output_dir outside it (it is "{output}")'
        )
    items = []
    for path, record in iter_records(source):
        steps = [step if isinstance(step, dict) else {} for step in record["cot_steps"]]
        texts = [[step.get("prompt"), step.get("response")] for step in steps]
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
    if not items:
        raise UserError(f'--replay "{source}": there is no dialogue JSON in this folder')
    return items


def unfinished(items: list[Item], config: Config) -> tuple[list[Item], Tally]:
    """Leave out finished pairs; refuse a folder whose pairs were made under another config."""
    tally = Tally()
    todo = []
    for item in items:
        if is_finished(item, config):
            tally.skipped += 1
        else:
            todo.append(item)
    return todo, tally


def is_finished(item: Item, config: Config) -> bool:
    """True when the item's pair is complete and was made from this question under this config."""
    from spikescore.pairs import read_record

    path = item.folder / f"{item.question.id}.json"
    if not path.is_file():
        return False
    record = read_record(path)
    if record is None or not record.get("complete"):
        return False
    if record.get("config_hash") != config.hash():
        differing = differences(record.get("config") or {}, config.resolved())
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


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name the settings that differ, for an error message."""
    keys = [key for key in new if old.get(key) != new[key] and key != "output_dir"]
    return (
        ", ".join(f"{key}: {old.get(key)} -> {new[key]}" for key in keys) or "other file contents"
    )


def check_disk(model: Any, config: Config, todo: list[Item]) -> None:
    """Print how much the run will write, and refuse when the disk cannot hold it."""
    from spikescore.loading import pair_bytes

    needed = pair_bytes(model, sum(item.n_turns for item in todo))
    folder = Path(config.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    print(f"expected size of the hidden states: {needed / 1e6:.0f} MB ({len(todo)} pairs)")
    if needed > free:
        raise UserError(
            f"output_dir needs about {needed / 1e9:.1f} GB and {folder} has "
            f"{free / 1e9:.1f} GB free; lower sampling.n or max_steps, or choose another output_dir"
        )


def write_run_file(config: Config, items: list[Item]) -> None:
    """Keep what was run and which questions were chosen, next to the pairs."""
    from spikescore.pairs import write_json

    for folder in dict.fromkeys(item.folder for item in items):
        folder.mkdir(parents=True, exist_ok=True)
        ids = [item.question.id for item in items if item.folder == folder]
        write_json(
            folder / "run.json",
            {
                "command": " ".join(sys.argv),
                "config": config.resolved(),
                "config_hash": config.hash(),
                "ids": ids,
            },
        )


# --- the work ---------------------------------------------------------------------------------


def connect(config: Config, chat: ChatFormat) -> ServedGenerator:
    """Set up the server that holds the dialogues, and see that it answers."""
    from openai import AsyncOpenAI

    from spikescore.sampling import Sampling
    from spikescore.serving import ServedGenerator, Server

    # a key goes only to the place that it is meant for
    name = "SERVER_API_KEY" if config.server_url else "OPENAI_API_KEY"
    key = os.environ.get(name, "").strip() or "none"
    url = config.server_url or os.environ.get("OPENAI_BASE_URL", "").strip()
    if not url:
        raise UserError(
            'backend "openai" needs the server\'s address: set server_url, for example '
            '"http://localhost:8000/v1", or the environment variable OPENAI_BASE_URL'
        )

    def make_client(*, timeout: float, max_retries: int) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=key, base_url=url, timeout=timeout, max_retries=max_retries)

    generator = ServedGenerator(
        Server(url, config.server_model or config.model_path, make_client, config.max_in_flight),
        chat,
        Sampling(config.temperature, config.top_p, config.sampling.seed),
    )
    generator.check()
    return generator


def make_engine(config: Config, chat: ChatFormat, model: Any, n_items: int) -> Engine:
    """The local engine, its batch size chosen from the free memory unless the config says it."""
    from spikescore.engine import Engine
    from spikescore.loading import auto_batch_size, generation_processors, stop_ids
    from spikescore.sampling import Sampling

    limits = limits_of(config, model)
    batch_size = config.batch_size
    if batch_size == "auto":
        answer = min(config.max_new_tokens, TYPICAL_ANSWER_TOKENS)
        tokens = min(limits.max_context, config.max_steps * (answer + 64))
        batch_size = auto_batch_size(model, tokens_per_dialogue=tokens, n_items=n_items)
    return Engine(
        model,
        stop_ids=stop_ids(model, chat.tokenizer),
        sampling=Sampling(
            config.temperature,
            config.top_p,
            config.sampling.seed,
            generation_processors(model, config),
        ),
        limits=limits,
        batch_size=batch_size,
    )


def limits_of(config: Config, model: Any) -> Limits:
    from spikescore.engine import Limits

    context = min(config.model_max_tokens, model.config.max_position_embeddings)
    # clocks differ between processes that must stay in step
    seconds = None if config.tp_plan else config.generation_timeout
    return Limits(config.max_new_tokens, context, seconds)


def prompt_families(config: Config) -> dict[str, tuple[Prompt, ...]]:
    from spikescore.prompts import FAMILIES, load_prompts

    return load_prompts(config.prompts_file) if config.prompts_file else FAMILIES


def follow(todo: list[Item], config: Config, chat: ChatFormat, model: Any) -> None:
    """Compute this process's slices of the model in step with the first process, which writes."""
    from spikescore.dialogue import Dialogue

    engine = make_engine(config, chat, model, len(todo))
    engine.seconds_per_token()
    families = prompt_families(config)
    dialogues = (Dialogue(item.question, config, chat, families=families) for item in todo)
    for _ in engine.run(dialogues):
        pass


def generate(
    todo: list[Item],
    config: Config,
    chat: ChatFormat,
    model: Any,
    server: ServedGenerator | None,
    tally: Tally,
) -> None:
    """Have all dialogues held (by the local engine or a server) or read from files, and write each
    pair once its label is there.
    """
    from tqdm import tqdm

    from spikescore.dialogue import stop_late
    from spikescore.judging import make_judge
    from spikescore.labelling import BackgroundLabels
    from spikescore.transcripts import read_transcripts
    from utils import make_client

    families = prompt_families(config)
    judge = make_judge("none" if config.replay else config.judge, client_factory=make_client)
    engine = None
    if config.replay:
        print(f"labels are carried over; configuration {config.hash()}")
    else:
        if server:
            how = f"{server.server.model} at {server.server.url}"
        else:
            engine = make_engine(config, chat, model, len(todo))
            how = f"batch size {engine.batch_size}"
            longest = min(config.max_new_tokens, TYPICAL_ANSWER_TOKENS)
            n_tokens = sum(item.n_turns for item in todo) * longest
            minutes = n_tokens * engine.seconds_per_token() / 60
            print(f"about {minutes:.1f} minutes if every answer has {longest} tokens")
        print(f"judge: {judge.name}; {how}; configuration {config.hash()}")

    limits = limits_of(config, model)
    bar = tqdm(
        total=sum(item.n_turns for item in todo), unit="turn", smoothing=0.05, **bar_rhythm()
    )
    with BackgroundLabels(judge) as labels, bar:

        def together() -> str:
            if engine:
                return f"batch {engine.batch_size}, "
            return f"{server.in_flight} in flight, " if server else ""

        progress = Progress(bar, tally, len(todo), together)
        if config.replay:
            transcripts = recorded_jobs(todo, config, chat, tally, progress)
            results = read_transcripts(transcripts, model, chat, max_context=limits.max_context)
        else:
            fresh = jobs(todo, config, chat, families, labels, tally, progress)
            if server:
                transcripts = server.run(fresh, limits)
                results = read_transcripts(transcripts, model, chat, max_context=limits.max_context)
            else:
                results = engine.run(fresh)

        waiting: list[tuple[Job, Finished]] = []
        for finished in results:
            job = finished.conversation
            if server and finished.error is None:
                stop_late(finished, job.dialogue, config)
            progress.ended(job, finished)
            waiting.append((job, finished))
            # a pair is written once its label is there, or at the end
            for pair in [pair for pair in waiting if pair[0].is_labelled()]:
                waiting.remove(pair)
                write_pair_of(*pair, config, chat, server, tally)
        for pair in waiting:
            write_pair_of(*pair, config, chat, server, tally)


def bar_rhythm() -> dict[str, Any]:
    """Redraw twice a second on a terminal; in a log file, a line every half minute will do."""
    return {"mininterval": 0.5 if sys.stderr.isatty() else 30.0}


class Progress:
    """The bar: turns, and after them dialogues, speed and failures. Turns may come from any
    thread.
    """

    def __init__(self, bar: Any, tally: Tally, n_items: int, together: Callable[[], str]) -> None:
        self._bar = bar
        self._tally = tally
        self._n_items = n_items
        self._together = together
        self._tokens = 0
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def turn(self, n_tokens: int) -> None:
        """An answer of so many tokens is there."""
        with self._lock:
            self._tokens += n_tokens
            self._bar.update()
            speed = self._tokens / (time.monotonic() - self._started)
            self._bar.set_postfix_str(
                f"{self._tally.written} of {self._n_items} dialogues, {speed:.0f} tokens/s, "
                f"{self._together()}{self._tally.failed} failed",
                refresh=False,
            )

    def ended(self, job: Job, finished: Finished) -> None:
        """Count the turns that a dialogue did not come to, or that were read in one go."""
        if job.item.source:
            for turn in finished.turns:
                self.turn(len(turn.answer_ids))
        with self._lock:
            self._bar.update(job.item.n_turns - len(finished.turns))


class Job:
    """One item on its way: its dialogue, where it goes, and the label that is being made for it.

    The engine and the server run it as a conversation. `carried` holds fields of the record that
    are known beforehand (of a dialogue from a file: its label and where it comes from).
    """

    def __init__(
        self, item: Item, dialogue: Dialogue | Recorded | None, progress: Progress
    ) -> None:
        self.item = item
        self.item_id = item.question.id
        self.dialogue = dialogue
        self.progress = progress
        self.carried: dict[str, Any] = {}
        self.label: Future[Judgement] | None = None

    def judge_with(self, labels: BackgroundLabels) -> None:
        """Have the first answer judged as soon as it is there."""

        def judge(answer: str) -> None:
            self.label = labels.submit(self.item.question, answer)

        self.dialogue.on_first_answer = judge

    @property
    def messages(self) -> list[Message]:
        return self.dialogue.messages

    def answered(self, text: str, n_tokens: int) -> bool:
        self.progress.turn(n_tokens)
        return self.dialogue.answered(text, n_tokens)

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        if last is not None:
            self.progress.turn(len(last.answer_ids))
        return self.dialogue.next_prompt(last)

    def is_labelled(self) -> bool:
        return self.label is None or self.label.done()


def jobs(
    todo: list[Item],
    config: Config,
    chat: ChatFormat,
    families: Any,
    labels: BackgroundLabels,
    tally: Tally,
    progress: Progress,
) -> Iterator[Job]:
    """Yield the items as there is room for them, skipping what another process finished."""
    from spikescore.dialogue import Dialogue

    for item in still_to_do(todo, config, tally):
        dialogue = Dialogue(item.question, config, chat, families=families)
        warn_of_leak(item.question, dialogue.messages, tally)
        job = Job(item, dialogue, progress)
        job.judge_with(labels)
        yield job


def recorded_jobs(
    todo: list[Item], config: Config, chat: ChatFormat, tally: Tally, progress: Progress
) -> Iterator[Transcript]:
    """Yield the dialogues of files as transcripts to be read."""
    from spikescore.transcripts import Transcript

    for item in still_to_do(todo, config, tally):
        try:
            record, dialogue, exchanges = read_dialogue(item, config, chat)
        except UserError as error:
            yield Transcript(Job(item, None, progress), [], "error", str(error))
            continue
        warn_of_leak(item.question, exchanges[0].messages, tally)
        job = Job(item, dialogue, progress)
        job.carried = {
            "seed": record.get("seed"),
            "nil_label": record.get("nil_label"),
            "nil_judge": record.get("nil_judge"),
            "replayed_from": item.replayed_from,
        }
        yield Transcript(job, exchanges, str(record.get("finish_reason") or "complete"))


def still_to_do(todo: list[Item], config: Config, tally: Tally) -> Iterator[Item]:
    for item in todo:
        # processes that must stay in step do the same items whatever appears on disk
        if not config.tp_plan and is_finished(item, config):
            tally.skipped += 1
        else:
            yield item


def read_dialogue(
    item: Item, config: Config, chat: ChatFormat
) -> tuple[dict[str, Any], Recorded, list[Exchange]]:
    """Read an item's dialogue from its file; UserError naming the file when it lacks something."""
    from spikescore.pairs import read_record
    from spikescore.transcripts import recorded_dialogue

    record = {**read_record(item.source), "id": item.question.id}
    try:
        return record, *recorded_dialogue(record, config, chat)
    except UserError as error:
        raise UserError(f'"{item.source}": {error}') from error


def warn_of_leak(question: Question, messages: list[Message], tally: Tally) -> None:
    leak = find_leak(question, messages)
    if leak is not None:
        tally.leaks += 1
        log.warning("%s: the prompt shows its %s", question.id, leak.kind)


def find_leak(question: Question, messages: list[Message]) -> Leak | None:
    """Do the messages before the first answer show it, outside the passage and the options?"""
    from spikescore.leaks import check_prompt

    boilerplate = [one["content"] for one in messages if one["role"] == "system"]
    shown = "\n\n".join(message["content"] for message in messages)
    return check_prompt(question, shown, boilerplate=boilerplate)


def write_pair_of(
    job: Job,
    finished: Finished,
    config: Config,
    chat: ChatFormat,
    server: ServedGenerator | None,
    tally: Tally,
) -> None:
    """Write one finished dialogue as a pair, or the reason why there is none."""
    from spikescore.dialogue import dialogue_record
    from spikescore.pairs import write_error, write_pair

    item = job.item
    if finished.error is not None:
        tally.failed += 1
        write_error(item.folder, item.question.id, finished.error, config_hash=config.hash())
        return
    record = dialogue_record(finished, job.dialogue, config, chat) | job.carried
    if server:
        record["backend"], record["server_model"] = config.backend, server.server.model
    if job.label is not None:
        judgement = job.label.result()
        record["nil_label"] = judgement.label
        record["nil_judge"] = judgement.as_dict()
    if job.label is not None or job.item.source:
        tally.labels[label_name(record["nil_label"])] += 1
    states = {turn.number: turn.states for turn in finished.turns}
    try:
        write_pair(item.folder, record, states, model=config.model_path)
    except UserError as error:
        tally.failed += 1
        write_error(item.folder, item.question.id, str(error), config_hash=config.hash())
        return
    tally.written += 1


def label_name(label: int | None) -> str:
    return {1: "consistent", 0: "hallucinated", None: "unlabelled"}[label]


# --- reports ----------------------------------------------------------------------------------


def dry_run(items: list[Item], config: Config, chat: ChatFormat) -> int:
    """Show three prompts per data set, as the model gets them; generate nothing."""
    from spikescore.dialogue import Dialogue
    from spikescore.judging import make_judge
    from utils import make_client

    judge = make_judge("none" if config.replay else config.judge, client_factory=make_client)
    leaks = 0
    for folder in dict.fromkeys(item.folder for item in items):
        chosen = [item for item in items if item.folder == folder]
        print(f"\n=== {len(chosen)} questions -> {folder}")
        for place, item in enumerate(chosen):
            if item.source:
                messages = read_dialogue(item, config, chat)[2][0].messages
            else:
                messages = Dialogue(item.question, config, chat).messages
            leaks += find_leak(item.question, messages) is not None
            if place < 3:
                ids = chat.render(messages)
                print(f"--- {item.question.id}: {len(ids)} tokens")
                print(chat.tokenizer.decode(ids))
    print(f"\njudge: {judge.name}; prompts with a leaked answer: {leaks} of {len(items)}")
    print("dry run: nothing was generated")
    return 0


def report(tally: Tally, config: Config, started: float) -> int:
    """Print what happened; exit status 1 when items failed."""
    seconds = time.monotonic() - started
    labels = ", ".join(f"{count} {name}" for name, count in sorted(tally.labels.items()))
    print(
        f"wrote {tally.written} pairs to {config.output_dir} in {seconds:.0f} s "
        f"({labels or 'no new labels'}); {tally.skipped} were done before; {tally.failed} failed; "
        f"{tally.leaks} prompts with a leaked answer"
    )
    if tally.failed:
        print("each failed item left an <id>.error.json that says why; run again to retry them")
    if tally.labels["unlabelled"]:
        print("label the rest with: python utils.py --relabel DIR --judge NAME")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    run_main(main)
