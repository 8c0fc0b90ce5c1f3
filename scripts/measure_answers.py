#!/usr/bin/env python3
"""Between the stages: ask the model what detectors other than probes need.

    python scripts/measure_answers.py --data_dir ./outputs/demo
    python scripts/measure_answers.py --data_dir ./outputs/demo --groups lens,attention
    python scripts/measure_answers.py --data_dir ./outputs/demo --entailment deberta --n_samples 10

Each finished pair of stage 1 under --data_dir gets a file <id>.measures.pkl beside it, made with
the model that the pairs name. The groups:

    lens       reasoning score and in-context sharpness of every turn, MIND's features
    attention  ICR scores of the first answer
    samples    N more answers to the first prompt, their clusters, SelfCheck-NLI
    questions  P(True), verbalised confidence, SelfCheck-Prompt, the states of PRISM and CCS
               (needs the samples)

An item whose file holds what is asked for is skipped, so a killed run goes on where it stopped, and
groups can be added later. SelfCheck-NLI needs an NLI model (--entailment deberta or a path). With
--entailment llm_NAME a chat model judges; keys stand in the environment (OPENAI_API_KEY).

Exit status: 0 all is there, 1 some items or judgements failed, 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import UserError, run_main  # noqa: E402

if TYPE_CHECKING:
    from spikescore.dialogues.config import Config
    from spikescore.measures.file import Item

log = logging.getLogger("spikescore")

BLOCK = 64  # items measured together; a run that is killed loses at most these
# settings of the dialogues that must be the same for all pairs of a run
SHARED = ("dtype", "enable_thinking", "model_max_tokens", "max_new_tokens")
# settings of the machine that stage 1 ran on, taken from the first pair
PLACEMENT = ("device_map", "max_memory", "attn_implementation")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    from spikescore.measures.file import GROUPS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", required=True, help="folder of the pairs of stage 1, recursive")
    add("--model_path", help="the model's folder or hub id (default: the one the pairs name)")
    add("--groups", type=_groups, default=GROUPS, metavar="A,B",
        help=f"what to measure, of {', '.join(GROUPS)} (default: all)")  # fmt: skip
    add("--n_samples", type=_positive, default=10, help="samples of an item (%(default)s)")
    add("--temperature", type=_temperature, default=1.0, help="of the samples (%(default)s)")
    add("--seed", type=int, default=42, help="of the samples (%(default)s)")
    add("--entailment", default="exact", metavar="NAME",
        help="who says which samples mean the same: exact, deberta, an NLI model's path, or "
        "llm_MODEL (%(default)s)")  # fmt: skip
    add("--batch_size", type=_size, default="auto", help="prompts at a time, or auto (%(default)s)")
    add("--redo", action="store_true", help="measure the groups anew and replace what is there")
    return parser.parse_args(arguments)


def _groups(text: str) -> tuple[str, ...]:
    from spikescore.measures.file import GROUPS

    named = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in named if name not in GROUPS]
    if unknown or not named:
        said = f"unknown group {', '.join(unknown)}; " if unknown else ""
        raise argparse.ArgumentTypeError(f"{said}choose from {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if group in named)  # samples before questions


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError("must be from 0 (greedy) to 100")
    return value


def _size(text: str) -> int | str:
    return text if text == "auto" else _positive(text)


# --- what is to do ----------------------------------------------------------------------------


@dataclass
class Work:
    """The pairs to be measured, and what is common to them."""

    config: Config
    settings: dict[str, dict[str, Any]]
    todo: list[Path] = field(default_factory=list)
    n_groups: int = 0  # groups that are missing, over all items
    n_pairs: int = 0
    unfinished: int = 0


def survey(args: argparse.Namespace) -> Work:
    """Find the finished pairs and what they lack."""
    from spikescore.measures.file import open_item
    from spikescore.pairs import iter_records

    work: Work | None = None
    first, unfinished = None, 0
    for path, record in iter_records(args.data_dir):
        if not record.get("complete"):
            unfinished += 1
            continue
        config = config_of(record, args)
        if work is None:
            work, first = Work(config, settings_of(config, args)), path
        for name in ("model_path", *SHARED):
            one, other = getattr(work.config, name), getattr(config, name)
            if one != other:
                raise UserError(
                    f'"{first}" was made with {name} {one}, "{path}" with {other}; give a '
                    "--data_dir whose pairs were made alike"
                )
        item = open_item(path, record, **opening(work, args))
        work.n_pairs += 1
        work.n_groups += len(item.groups)
        if item.groups:
            work.todo.append(path)
    if work is None:
        raise UserError(
            f'no finished pairs in "{args.data_dir}" ({unfinished} unfinished); give the folder '
            "that reasoning_lite.py wrote to"
        )
    work.unfinished = unfinished
    return work


def config_of(record: dict[str, Any], args: argparse.Namespace) -> Config:
    """What of a pair's configuration its model is loaded and asked with."""
    from spikescore.dialogues.config import Config

    made_under = record.get("config") or {}
    kept = {name: made_under[name] for name in (*SHARED, *PLACEMENT) if name in made_under}
    model = args.model_path or record.get("model")
    if not model:
        raise UserError(f'the pair "{record.get("id")}" names no model; give --model_path')
    return Config(model_path=model, batch_size=args.batch_size, **kept)


def settings_of(config: Config, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The settings of each group that is asked for, as they go into the files."""
    from spikescore.measures.icr import ICR_SETTINGS
    from spikescore.measures.lens import LENS_SETTINGS

    samples = {
        "n_samples": args.n_samples,
        "temperature": args.temperature,
        "top_p": 1.0,
        "seed": args.seed,
        "max_new_tokens": config.max_new_tokens,
    }
    known = {
        "lens": LENS_SETTINGS,
        "attention": ICR_SETTINGS,
        "samples": {**samples, "entailment": args.entailment},
        "questions": {"samples": samples},
    }
    return {group: known[group] for group in args.groups}


def opening(work: Work, args: argparse.Namespace) -> dict[str, Any]:
    """How `measures.open_item` is to open the items of this run."""
    return {"model": work.config.model_path, "settings": work.settings, "redo": args.redo}


# --- the work ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """What happened, for the summary and the exit status."""

    measured: int = 0
    failed: int = 0
    unjudged: int = 0
    missing: Counter[str] = field(default_factory=Counter)


def measure_all(work: Work, args: argparse.Namespace, todo: Sequence[Path], tally: Tally) -> None:
    """Measure all items, block by block, and write each one's file."""
    from tqdm import tqdm

    from spikescore.labels.entailment import make_entailment
    from spikescore.measures.file import GROUPS
    from spikescore.measures.groups import Measurer
    from spikescore.model.chat import ChatFormat
    from spikescore.model.loading import load_model, load_tokenizer
    from utils import make_client

    chat = ChatFormat(
        load_tokenizer(work.config.placement), enable_thinking=work.config.enable_thinking
    )
    entailment = None
    if "samples" in work.settings:
        cache = Path(args.data_dir) / "judge_cache.sqlite"
        entailment = make_entailment(args.entailment, client_factory=make_client, cache=cache)
    model = load_model(work.config.placement)
    measurer = Measurer(model, chat, work.config, work.settings, entailment)
    rhythm = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm(total=len(todo), unit="item", mininterval=rhythm, smoothing=0.05) as bar:
        for block in blocks(todo, work, args):
            for item in block:
                measurer.open(item)
            for group in GROUPS:
                asked = [item for item in block if group in item.groups]
                bar.set_postfix_str(
                    f"{group}; {tally.measured} measured, {tally.failed} failed", refresh=False
                )
                measurer.measure(group, asked)
            for item in block:
                close(item, tally)
                bar.update()


def blocks(todo: Sequence[Path], work: Work, args: argparse.Namespace) -> Iterator[list[Item]]:
    """Open the items again, a block at a time: all of them at once need not fit into memory."""
    from spikescore.measures.file import open_item
    from spikescore.pairs import read_record

    for start in range(0, len(todo), BLOCK):
        yield [
            open_item(path, read_record(path), **opening(work, args))
            for path in todo[start : start + BLOCK]
        ]


def close(item: Item, tally: Tally) -> None:
    """Write an item's file, or say why it has none."""
    from spikescore.measures.file import measures_path, not_computed, write_measures

    if item.error:
        log.warning('"%s" failed: %s', item.path, item.error)
        tally.failed += 1
        return
    write_measures(measures_path(item.path), item.content)
    missing = not_computed(item.content, item.groups)
    tally.measured += 1
    tally.missing.update(missing)
    tally.unjudged += "clusters" in missing


def report(work: Work, args: argparse.Namespace, tally: Tally, seconds: float) -> int:
    """Print what happened; exit status 1 when items or judgements failed."""
    left_out = f", {work.unfinished} unfinished" if work.unfinished else ""
    print(
        f"{work.n_pairs} items ({', '.join(args.groups)}): {tally.measured} measured, "
        f"{work.n_pairs - len(work.todo)} skipped (done before), {tally.failed} failed{left_out}; "
        f"{seconds:.0f} s"
    )
    for name, count in sorted(tally.missing.items()):
        by_rule = args.entailment == "exact" or args.entailment.startswith("llm_")
        needs_nli = name == "selfcheck_nli" and by_rule
        why = " (needs an NLI model: --entailment deberta or a path)" if needs_nli else ""
        print(f"not computed: {name} in {count} of {tally.measured} items{why}")
    if tally.failed or tally.unjudged:
        print("run the same command again to measure what failed")
    return int(tally.failed + tally.unjudged > 0)


def main() -> int:
    args = parse_arguments()
    from spikescore.runtime import this_process
    from utils import configure_logging

    configure_logging()
    started = time.monotonic()
    work = survey(args)
    process = this_process()
    mine = process.share(work.todo)
    share = f" (process {process.rank} of {process.world_size})" if process.world_size > 1 else ""
    print(f"{work.n_pairs} finished pairs: {len(work.todo)} to measure{share}")
    tally = Tally()
    if mine:
        measure_all(work, args, mine, tally)
    return report(work, args, tally, time.monotonic() - started)


if __name__ == "__main__":
    run_main(main)
