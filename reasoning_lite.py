#!/usr/bin/env python3
"""Stage 1: hold a multi-turn dialogue about every question and keep its hidden states.

    python reasoning_lite.py                                    # everything config.json says
    python reasoning_lite.py --dry_run                          # prompts, judge, disk size, leaks
    python reasoning_lite.py --config my.json --set max_steps=5 --set sampling.n=50
    python reasoning_lite.py --set backend=openai --set server_url=http://localhost:8000/v1
    python reasoning_lite.py --replay outputs/demo --set output_dir=outputs/read_by_another
    python reasoning_lite.py --replay RAGTruth/dataset/response.jsonl --set output_dir=outputs/rag

Each question becomes a pair in `output_dir`: <id>.json (the dialogue, its label) and <id>.pkl
(FP16 hidden states of all layers at three tokens of every turn). A finished pair is skipped when
the command is run again, so a killed run goes on where it stopped.

With "backend": "openai" any server with the OpenAI interface holds the dialogues, and the model in
`model_path` reads the hidden states from the transcripts. Keys stand in the environment:
SERVER_API_KEY for a `server_url`, OPENAI_API_KEY for OPENAI_BASE_URL; a local server needs none.
--replay reads dialogues that exist, made by any model: the pairs in a folder, or those that a data
set ships with its items (RAGTruth, ipw trajectories), message by message, with the set's labels.

Exit status: 0 all done, 1 some items failed (each left an <id>.error.json), 2 a mistake in the
input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spikescore.errors import UserError, redacted, run_main

if TYPE_CHECKING:
    from spikescore.dialogues.config import Config
    from spikescore.dialogues.plan import Item, Tally
    from spikescore.dialogues.prompts import Prompt
    from spikescore.dialogues.running import Job
    from spikescore.labels.judges import Judge
    from spikescore.model.chat import ChatFormat
    from spikescore.model.engine import Engine
    from spikescore.model.serving import ServedGenerator
    from spikescore.model.turns import Finished, Limits

# for the time and memory estimates; answers seldom reach max_new_tokens
TYPICAL_ANSWER_TOKENS = 256


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
        help="show three rendered prompts per domain with token counts, the judge, the expected "
        "disk size and what the leak guard finds; load no weights, generate and write nothing",
    )
    parser.add_argument(
        "--replay",
        metavar="PATH",
        help="read the hidden states of the dialogues in this folder (older public form included) "
        "or data set (one that ships dialogues) with model_path and write new pairs; their labels "
        "are carried over, nothing is generated",
    )
    parser.add_argument("--verbose", action="store_true", help="log more")
    return parser.parse_args(argv)


def main() -> int:
    args = parse_arguments()
    from spikescore.dialogues import plan as work
    from spikescore.dialogues.config import load_config
    from spikescore.runtime import this_process
    from utils import configure_logging

    configure_logging(args.verbose)
    replay = [f"replay={json.dumps(args.replay)}"] if args.replay else []
    config = load_config(args.config, args.set + replay)
    process = this_process()
    items = work.load_recorded(config) if config.replay else work.load_items(config)
    in_step = config.tp_plan is not None  # all processes hold slices of one model
    mine = items if in_step else process.share(items)
    todo = work.unfinished(mine, config)
    tally = work.Tally(skipped=len(mine) - len(todo))
    share = f" (process {process.rank} of {process.world_size})" if process.world_size > 1 else ""
    origin = f"questions from {len(config.datasets())} data sets"
    if config.replay:
        origin = f"dialogues from {config.replay}"
    print(f"{len(items)} {origin}{share}: {len(todo)} to do, {tally.skipped} done")
    if not todo and not args.dry_run:
        return report(tally, config, started=time.monotonic())

    from spikescore.dialogues.running import guard_report
    from spikescore.model.architecture import pair_bytes
    from spikescore.model.chat import ChatFormat
    from spikescore.model.loading import load_architecture, load_model, load_tokenizer

    chat = ChatFormat(load_tokenizer(config.placement), enable_thinking=config.enable_thinking)
    needed = pair_bytes(load_architecture(config.placement), sum(item.n_turns for item in todo))
    print(f"expected size of the hidden states: {needed / 1e6:.1f} MB ({len(todo)} pairs)")
    work.check_disk(needed, config)
    if args.dry_run:
        return dry_run(items, config, chat)
    # a server is reached before a large model is loaded
    server = connect(config, chat) if config.backend == "openai" and not config.replay else None
    model = load_model(config.placement)
    if process.is_first:
        tally.guard = guard_report(items, config, chat)
        work.write_run_file(config, items, " ".join(sys.argv))
    started = time.monotonic()
    if in_step and not process.is_first:
        follow(todo, config, chat, model)
        return 0
    n_tokens = generate(todo, config, chat, model, server, tally)
    if process.is_first:
        work.write_speed(config, time.monotonic() - started, n_tokens)
    return report(tally, config, started)


# --- the work ---------------------------------------------------------------------------------


def connect(config: Config, chat: ChatFormat) -> ServedGenerator:
    """Set up the server that holds the dialogues, and see that it answers."""
    from openai import AsyncOpenAI

    from spikescore.model.sampling import Sampling
    from spikescore.model.serving import ServedGenerator, Server

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
    from spikescore.model.engine import Engine
    from spikescore.model.loading import auto_batch_size, generation_processors, stop_ids
    from spikescore.model.sampling import Sampling

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
            generation_processors(model, apply=config.use_model_generation_config),
        ),
        limits=limits,
        batch_size=batch_size,
    )


def limits_of(config: Config, model: Any) -> Limits:
    from spikescore.model.turns import Limits

    context = min(config.model_max_tokens, model.config.max_position_embeddings)
    # clocks differ between processes that must stay in step
    seconds = None if config.tp_plan else config.generation_timeout
    return Limits(config.max_new_tokens, context, seconds)


def prompt_families(config: Config) -> dict[str, tuple[Prompt, ...]]:
    from spikescore.dialogues.prompts import FAMILIES, load_prompts

    return load_prompts(config.prompts_file) if config.prompts_file else FAMILIES


def follow(todo: list[Item], config: Config, chat: ChatFormat, model: Any) -> None:
    """Compute this process's slices of the model in step with the first process, which writes."""
    from spikescore.dialogues.dialogue import Dialogue

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
) -> int:
    """Have all dialogues held (by the local engine or a server) or read from files, and write each
    pair once its label is there; return the number of answer tokens.
    """
    from tqdm import tqdm

    from spikescore.dialogues.dialogue import stop_late
    from spikescore.dialogues.running import jobs, recorded_jobs, write_pair_of
    from spikescore.labels.judges import BackgroundLabels, describe_judge
    from spikescore.model.reading import read_transcripts

    families = prompt_families(config)
    judge = chosen_judge(todo, config)
    engine = None
    if config.replay:
        print(f"labels are carried over; configuration {config.hash()}")
    else:
        if server:
            how = f"{server.server.model} at {redacted(server.server.url)}"
        else:
            engine = make_engine(config, chat, model, len(todo))
            how = f"batch size {engine.batch_size}"
            longest = min(config.max_new_tokens, TYPICAL_ANSWER_TOKENS)
            n_tokens = sum(item.n_turns for item in todo) * longest
            minutes = n_tokens * engine.seconds_per_token() / 60
            print(f"about {minutes:.1f} minutes if every answer has {longest} tokens")
        who = describe_judge(config.judge, [item.question for item in todo])
        print(f"judge: {who}; {how}; configuration {config.hash()}")

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
    return progress.n_tokens


def chosen_judge(items: list[Item], config: Config) -> Judge:
    """Set the judge up; a mistake in its name or a missing key shows at once."""
    from pathlib import Path

    from spikescore.labels.judges import make_judge
    from utils import make_client

    if config.replay:
        return make_judge("none")
    questions = [item.question for item in items]
    cache = Path(config.output_dir) / "judge_cache.sqlite"
    return make_judge(config.judge, questions=questions, client_factory=make_client, cache=cache)


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
        self.n_tokens = 0
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def turn(self, n_tokens: int) -> None:
        """An answer of so many tokens is there."""
        with self._lock:
            self.n_tokens += n_tokens
            self._bar.update()
            speed = self.n_tokens / (time.monotonic() - self._started)
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


# --- reports ----------------------------------------------------------------------------------


def dry_run(items: list[Item], config: Config, chat: ChatFormat) -> int:
    """Show what would be done; generate and write nothing."""
    from spikescore.dialogues.preview import preview

    if config.judge != "nli":  # which would load, perhaps fetch, its model
        chosen_judge(items, config)
    for line in preview(items, config, chat):
        print(line)
    print("dry run: nothing was generated, nothing written")
    return 0


def report(tally: Tally, config: Config, started: float) -> int:
    """Print what happened; exit status 1 when items failed."""
    from spikescore.labels.judges import coverage_line

    seconds = time.monotonic() - started
    labels = ", ".join(f"{count} {name}" for name, count in sorted(tally.labels.items()))
    print(
        f"wrote {tally.written} pairs to {config.output_dir} in {seconds:.0f} s "
        f"({labels or 'no new labels'}); {tally.skipped} were done before; {tally.failed} failed"
    )
    if tally.judgements:
        print(coverage_line(tally.judgements))
    if tally.guard:
        print(tally.guard)
    if tally.failed:
        print("each failed item left an <id>.error.json that says why; run again to retry them")
    if tally.labels["unlabelled"]:
        print("label the rest with: python scripts/label_answers.py --relabel DIR --judge NAME")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    run_main(main)
