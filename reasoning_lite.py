#!/usr/bin/env python3
"""Stage 1: hold a multi-turn dialogue about every question and keep its hidden states.

    python reasoning_lite.py                                    # everything config.json says
    python reasoning_lite.py --dry_run                          # show prompts, judge and disk size
    python reasoning_lite.py --config my.json --set max_steps=5 --set sampling.n=50

Each question becomes a pair in `output_dir`: <id>.json (the dialogue, its label) and <id>.pkl
(FP16 hidden states of all layers at three tokens of every turn). A finished pair is skipped when
the command is run again, so a killed run goes on where it stopped.

Exit status: 0 all done, 1 some items failed (each left an <id>.error.json), 2 a mistake in the
input.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
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
    from spikescore.dialogue import ChatFormat, Dialogue
    from spikescore.engine import Finished, Turn
    from spikescore.judging import Judgement
    from spikescore.labelling import BackgroundLabels
    from spikescore.leaks import Leak
    from spikescore.questions import Question

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
    parser.add_argument("--verbose", action="store_true", help="log more")
    return parser.parse_args(argv)


@dataclass
class Item:
    """A question and the folder its pair goes to."""

    question: Question
    folder: Path


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
    config = load_config(args.config, args.set)
    process = this_process()
    items = load_items(config)
    todo, tally = unfinished(process.share(items), config)
    share = f" (process {process.rank} of {process.world_size})" if process.world_size > 1 else ""
    print(
        f"{len(items)} questions from {len(config.datasets())} data sets{share}: "
        f"{len(todo)} to do, {tally.skipped} done"
    )
    if not todo and not args.dry_run:
        return report(tally, config, started=time.monotonic())

    from spikescore.dialogue import ChatFormat
    from spikescore.loading import load_model, load_tokenizer

    chat = ChatFormat(load_tokenizer(config), enable_thinking=config.enable_thinking)
    model = load_model(config)
    check_disk(model, config, len(todo))
    if args.dry_run:
        return dry_run(items, config, chat, model)
    if process.is_first:
        write_run_file(config, items)
    started = time.monotonic()
    generate(todo, config, chat, model, tally)
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
        items.extend(Item(question, folder) for question in chosen)
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
    return path.with_suffix(".pkl").is_file()


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name the settings that differ, for an error message."""
    keys = [key for key in new if old.get(key) != new[key] and key != "output_dir"]
    return (
        ", ".join(f"{key}: {old.get(key)} -> {new[key]}" for key in keys) or "other file contents"
    )


def check_disk(model: Any, config: Config, n_items: int) -> None:
    """Print how much the run will write, and refuse when the disk cannot hold it."""
    from spikescore.loading import pair_bytes

    needed = n_items * pair_bytes(model, config.max_steps)
    folder = Path(config.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    print(f"expected size of the hidden states: {needed / 1e6:.0f} MB ({n_items} pairs)")
    if needed > free:
        raise UserError(
            f"output_dir needs about {needed / 1e9:.1f} GB and {folder} has "
            f"{free / 1e9:.1f} GB free; lower sampling.n or max_steps, or choose another output_dir"
        )


def write_run_file(config: Config, items: list[Item]) -> None:
    """Keep what was run and which questions were chosen, next to the pairs."""
    from spikescore.pairs import write_json

    for _, folder in config.datasets():
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


def generate(todo: list[Item], config: Config, chat: ChatFormat, model: Any, tally: Tally) -> None:
    """Run all dialogues through the engine and write each pair once its label is there."""
    from tqdm import tqdm

    from spikescore.engine import Engine, Limits
    from spikescore.judging import make_judge
    from spikescore.labelling import BackgroundLabels
    from spikescore.loading import auto_batch_size, report_generation_config, stop_ids
    from spikescore.prompts import FAMILIES, load_prompts
    from spikescore.sampling import Sampling
    from utils import make_client

    context = min(config.model_max_tokens, model.config.max_position_embeddings)
    batch_size = config.batch_size
    if batch_size == "auto":
        answer = min(config.max_new_tokens, TYPICAL_ANSWER_TOKENS)
        tokens = min(context, config.max_steps * (answer + 64))
        batch_size = auto_batch_size(model, tokens_per_dialogue=tokens, n_items=len(todo))
    report_generation_config(model)
    engine = Engine(
        model,
        stop_ids=stop_ids(model, chat.tokenizer),
        sampling=Sampling(config.temperature, config.top_p, config.sampling.seed),
        limits=Limits(config.max_new_tokens, context, config.generation_timeout),
        batch_size=batch_size,
    )
    families = load_prompts(config.prompts_file) if config.prompts_file else FAMILIES
    judge = make_judge(config.judge, client_factory=make_client)
    print(f"judge: {judge.name}; batch size {batch_size}; configuration {config.hash()}")

    bar = tqdm(total=len(todo) * config.max_steps, unit="turn", smoothing=0.05)
    with BackgroundLabels(judge) as labels, bar:
        started = time.monotonic()

        def show() -> None:
            bar.update()
            speed = engine.stats["new_tokens"] / (time.monotonic() - started)
            bar.set_postfix_str(
                f"{tally.written} of {len(todo)} dialogues, {speed:.0f} tokens/s, "
                f"batch {engine.batch_size}, {tally.failed} failed",
                refresh=False,
            )

        waiting: list[tuple[Job, Finished]] = []
        for finished in engine.run(jobs(todo, config, chat, families, labels, tally, show)):
            job = finished.conversation
            bar.update(config.max_steps - len(finished.turns))
            waiting.append((job, finished))
            # a pair is written once its label is there, or at the end
            for pair in [pair for pair in waiting if pair[0].is_labelled()]:
                waiting.remove(pair)
                write_pair_of(*pair, config, chat, tally)
        for pair in waiting:
            write_pair_of(*pair, config, chat, tally)


class Job:
    """One item on its way: its dialogue, where it goes, and the label that is being made for it.

    The engine runs it as a conversation.
    """

    def __init__(
        self,
        item: Item,
        dialogue: Dialogue,
        labels: BackgroundLabels,
        on_turn: Callable[[], None],
    ) -> None:
        self.item = item
        self.on_turn = on_turn
        self.item_id = dialogue.item_id
        self.dialogue = dialogue
        self.label: Future[Judgement] | None = None
        dialogue.on_first_answer = lambda answer: self._judge(labels, answer)

    def _judge(self, labels: BackgroundLabels, answer: str) -> None:
        self.label = labels.submit(self.item.question, answer)

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        if last is not None:
            self.on_turn()
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
    on_turn: Callable[[], None],
) -> Iterator[Job]:
    """Yield the items as the engine has room for them, skipping what another process finished."""
    from spikescore.dialogue import Dialogue

    for item in todo:
        if is_finished(item, config):
            tally.skipped += 1
            continue
        dialogue = Dialogue(item.question, config, chat, families=families)
        leak = find_leak(dialogue, config)
        if leak is not None:
            tally.leaks += 1
            log.warning("%s: the prompt shows its %s", item.question.id, leak.kind)
        yield Job(item, dialogue, labels, on_turn)


def find_leak(dialogue: Dialogue, config: Config) -> Leak | None:
    """Does the first prompt show the answer, outside the passage and the options?"""
    from spikescore.leaks import check_prompt

    boilerplate = [config.system_prompt] if config.system_prompt else []
    shown = dialogue.shown_at_first()
    return check_prompt(dialogue.question, shown, boilerplate=boilerplate)


def write_pair_of(
    job: Job, finished: Finished, config: Config, chat: ChatFormat, tally: Tally
) -> None:
    """Write one finished dialogue as a pair, or the reason why there is none."""
    from spikescore.dialogue import dialogue_record
    from spikescore.pairs import write_error, write_pair

    item = job.item
    if finished.error is not None:
        tally.failed += 1
        write_error(item.folder, item.question.id, finished.error, config_hash=config.hash())
        return
    record = dialogue_record(finished, job.dialogue, config, chat)
    if job.label is not None:
        judgement = job.label.result()
        record["nil_label"] = judgement.label
        record["nil_judge"] = judgement.as_dict()
        tally.labels[label_name(judgement.label)] += 1
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


def dry_run(items: list[Item], config: Config, chat: ChatFormat, model: Any) -> int:
    """Show three prompts per data set, as the model gets them; generate nothing."""
    from spikescore.dialogue import Dialogue
    from spikescore.judging import make_judge
    from utils import make_client

    judge = make_judge(config.judge, client_factory=make_client)
    leaks = 0
    for path, folder in config.datasets():
        chosen = [item for item in items if item.folder == folder]
        print(f"\n=== {path}: {len(chosen)} questions -> {folder}")
        for place, item in enumerate(chosen):
            dialogue = Dialogue(item.question, config, chat)
            leaks += find_leak(dialogue, config) is not None
            if place < 3:
                ids = dialogue.next_prompt(None)
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
