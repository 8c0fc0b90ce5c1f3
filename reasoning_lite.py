#!/usr/bin/env python3
"""Stage 1: hold a multi-turn dialogue about every question and keep its hidden states.

    python reasoning_lite.py                                    # everything config.json says
    python reasoning_lite.py --dry_run                          # prompts, judge, leaks, size, time
    python reasoning_lite.py --config my.json --set max_steps=5 --set sampling.n=50
    python reasoning_lite.py --set backend=openai --set server_url=http://localhost:8000/v1
    python reasoning_lite.py --replay outputs/demo --set output_dir=outputs/read_by_another
    python reasoning_lite.py --replay RAGTruth/dataset/response.jsonl --set output_dir=outputs/rag

Each question becomes a pair in `output_dir`: <id>.json (the dialogue, its label) and <id>.pkl
(FP16 hidden states of all layers at three tokens of every turn). A finished pair is skipped when
the command is run again, and a run that was killed or interrupted goes on from the last finished
turn of every dialogue. A folder takes one run at a time, and pairs of one run only: other settings,
another model (by content) or another data set are refused with what differs.

With "backend": "openai" any server with the OpenAI interface holds the dialogues, and the model in
`model_path`, or with "states": "server" that server, reads their hidden states (docs/cluster.md).
Keys are in the environment: SERVER_API_KEY for a `server_url`, OPENAI_API_KEY for OPENAI_BASE_URL.
--replay reads dialogues that exist, made by any model: the pairs in a folder, or those that a data
set ships with its items (RAGTruth, ipw trajectories), message by message, with the set's labels.

Exit status: 0 all done, 1 some items failed (each left an <id>.error.json), 2 a mistaken input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from spikescore.errors import run_main

if TYPE_CHECKING:
    from spikescore.dialogues.config import Config
    from spikescore.dialogues.plan import Item
    from spikescore.labels.judges import Judge


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="config.json", help="settings file (default: config.json)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one setting; dotted keys reach inside, e.g. sampling.n=50; may be repeated",
    )
    add(
        "--dry_run",
        action="store_true",
        help="show three rendered prompts per domain with token counts and gold answers, judge, "
        "leaks, and what the run takes: disk, tokens, judge calls, time (measured with weights of "
        "up to 4 GB); generate and write nothing",
    )
    add(
        "--replay",
        metavar="PATH",
        help="read the hidden states of the dialogues in this folder (older public form included) "
        "or data set (one that ships dialogues) with model_path and write new pairs; their labels "
        "are carried over, nothing is generated",
    )
    add("--verbose", action="store_true", help="log more")
    return parser.parse_args(argv)


def main() -> int:
    args = parse_arguments()
    from spikescore.dialogues import plan
    from spikescore.dialogues.config import load_config
    from spikescore.runtime import end_together, this_process
    from utils import configure_logging

    configure_logging(args.verbose)
    if args.replay:
        args.set.append(f"replay={json.dumps(args.replay)}")
    config = load_config(args.config, args.set)
    plan.check_start(config)
    items = plan.load_recorded(config) if config.replay else plan.load_items(config)
    judge = chosen_judge(config, items, args.dry_run)
    plan.refuse_other_run(config, items)
    if args.dry_run:
        return run(config, items, judge, dry=True)
    with plan.alone_in(items, this_process()):
        return end_together(run(config, items, judge, dry=False))


def run(config: Config, items: list[Item], judge: Judge, dry: bool) -> int:
    """Do what is not done yet of the items, or with `dry` show what that would be."""
    from spikescore.dialogues import keeping, plan, running
    from spikescore.dialogues.preview import needs, preview
    from spikescore.model.architecture import pair_bytes
    from spikescore.model.chat import ChatFormat
    from spikescore.model.loading import load_architecture, load_tokenizer
    from spikescore.report.tracking import log_run
    from spikescore.runtime import this_process

    process = this_process()
    in_step = config.tp_plan is not None  # all processes hold slices of one model
    chat = ChatFormat(load_tokenizer(config.placement), enable_thinking=config.enable_thinking)
    if not dry:  # which reads no weights, and may fetch none
        server = running.connect(config, chat) if config.states == "server" else None
        identity = running.identity_of(config, chat, server)
        plan.refuse_other_run(config, items, identity)
    mine = items if in_step else process.share(items)
    todo = plan.unfinished(mine, config)
    done = len(mine) - len(todo)
    print(f"{len(items)} {config.origin}{process.place}: {len(todo)} to do, {done} done")
    if not todo and not dry:
        keeping.sweep(config)
        print(f"nothing to do: {done} were done before")
        return 0
    needed = pair_bytes(load_architecture(config.placement), sum(item.n_turns for item in todo))
    print(f"expected size of the hidden states: {needed / 1e6:.1f} MB ({len(todo)} pairs)")
    plan.check_disk(needed, config)
    if dry:
        print(*preview(items, config, chat), sep="\n", flush=True)  # what follows takes seconds
        print(*needs(items, todo, config, chat), sep="\n")
        return 0
    server, model = running.who_answers(config, chat, server)
    tally = running.Tally(skipped=done)
    if process.is_first:
        tally.guard = running.guard_report(items, config, chat)
        plan.write_run_file(config, items, identity, " ".join(sys.argv))
    started = time.monotonic()
    if in_step and not process.is_first:
        running.follow(todo, config, chat, model, identity)
        return 0
    running.hold(todo, config, chat, model, judge, server, identity, tally)
    seconds = time.monotonic() - started
    print(*running.summary(tally, config, seconds), sep="\n")
    if process.is_first:
        plan.write_speed(config, seconds, tally.n_tokens)
        log_run("stage 1", config.resolved(), tally.figures(seconds))
    return 1 if tally.failed else 0


def chosen_judge(config: Config, items: list[Item], dry_run: bool) -> Judge:
    """Set the judge up; a mistake in its name or a missing key shows at once."""
    from spikescore.labels.judges import make_judge
    from utils import make_client

    known = config.replay or config.first_answers == "shipped"
    # nli would load, perhaps fetch, its model
    name = "none" if known or (dry_run and "nli" in config.judge) else config.judge
    questions = [item.question for item in items]
    cache = Path(config.output_dir) / "judge_cache.sqlite"
    return make_judge(name, questions=questions, client_factory=make_client, cache=cache)


if __name__ == "__main__":
    run_main(main)
