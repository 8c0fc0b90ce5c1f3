#!/usr/bin/env python3
"""How fast training data for semantic-entropy probes is made, beside a plain synchronous loop.

    python benchmarks/sep_speed.py                       # 20 questions x 10 samples: 90 s
    python benchmarks/sep_speed.py --questions 6 --slow 1

Plain loop: as the original pipelines work. One generation at a time, with the hidden states of
every token of every layer kept; then one blocking judge call at a time: the accuracy of the answer,
and entailment both ways of every pair of samples. Ours: what generate_answers.py runs. Same model,
same questions, as many answers; the judge of both is an HTTP server on loopback that replies after
300 ms, like a hosted model.

The plain loop runs `--slow` questions and is extrapolated to the rest by its time per question;
such figures are marked "extrapolated".
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripts' library is not installed, it lies beside them
sys.path.insert(0, str(ROOT / "semantic-entropy-probes" / "semantic_uncertainty"))

SECONDS = 0.3  # the judge's delay
NEW_TOKENS = 40


def parse_arguments() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=str(ROOT / "models" / "demo"), help="chat model")
    add("--dataset", default=str(ROOT / "datasets" / "demo" / "trivia.json"), help="questions")
    add("--questions", type=int, default=20, help="questions asked (%(default)s)")
    add("--generations", type=int, default=10, help="samples of each (%(default)s)")
    add("--slow", type=int, default=2, help="questions of the plain loop (%(default)s)")
    add("--concurrency", type=int, default=256, help="our judge's calls at a time (%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    ports: Any = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(ports,), daemon=True)
    server.start()
    os.environ["OPENAI_BASE_URL"] = f"http://127.0.0.1:{ports.get(timeout=60)}/v1"
    os.environ["OPENAI_API_KEY"] = "none"
    try:
        ours = run_ours(args)
        plain = run_plain(args, ours["questions"][: args.slow])
    finally:
        server.terminate()
    scale = args.questions / args.slow
    mark = "" if scale == 1 else " (extrapolated)"
    print(
        f"{args.questions} questions x {args.generations} samples, model {args.model}, judge "
        f"replies after {1000 * SECONDS:.0f} ms\nplain loop ran {args.slow} questions{mark}"
    )
    print("part          plain loop s      ours s     ratio")
    total = {"plain": 0.0, "ours": 0.0}
    for part in ("generation", "judging"):
        slow, fast = plain[part] * scale, ours[part]
        total["plain"] += slow
        total["ours"] += fast
        print(f"{part:12s} {slow:13.1f} {fast:11.2f} {slow / fast:9.0f}{mark}")
    ratio = total["plain"] / total["ours"]
    print(f"{'whole':12s} {total['plain']:13.1f} {total['ours']:11.2f} {ratio:9.0f}{mark}")
    asked, needed = ours["asked"], plain["calls"] * scale
    at_once = plain["judging"] * scale / ours["judging"] / (needed / asked)
    print(
        f"judge calls: {needed:.0f} in the plain loop, {asked} of ours: "
        f"{needed / asked:.1f} times fewer; the rest of the judging ratio, {at_once:.0f} times, is "
        f"calls under way at the same time (at most {args.concurrency})"
    )
    print(f"run again with every reply in the cache: judging {ours['again']:.2f} s, 0 calls asked")


# --- the judge's server -----------------------------------------------------------------------


def serve(ports: Any) -> None:
    """Answer chat completions after a delay: answers with one last word mean the same."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(re.search(rb"content-length: *(\d+)", head, re.I)[1])
                body = json.loads(await reader.readexactly(length))
                await asyncio.sleep(SECONDS)
                reply = verdict(body["messages"][-1]["content"])
                choice = {"index": 0, "finish_reason": "stop"}
                choice["message"] = {"role": "assistant", "content": f"VERDICT: {reply}"}
                data = json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]})
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    + f"Content-Length: {len(data)}\r\n\r\n{data}".encode()
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def verdict(text: str) -> str:
    """A stand-in for judgement: the last words of the two answers."""
    pair = re.search(r"<A>\n(.*)\n</A>\n\n<B>\n(.*)\n</B>", text, re.S)
    if pair is None:
        return "CONSISTENT"
    one, two = (re.findall(r"\w+", answer)[-1:] for answer in pair.groups())
    return "ENTAILMENT" if one == two else "NEUTRAL"


# --- the two sides ----------------------------------------------------------------------------


def run_ours(args: Namespace) -> dict[str, Any]:
    """What generate_answers.py does, timed part by part."""
    import generate_answers as script

    from spikescore.labels.entailment import make_entailment
    from spikescore.labels.judges import make_accuracy
    from spikescore.measures.answer_run import AnswerRun
    from spikescore.measures.run_folder import read_run
    from spikescore.measures.run_measures import measure_run
    from spikescore.measures.run_plan import RunSettings, make_plan

    with tempfile.TemporaryDirectory() as folder:
        command = f"--model_name {args.model} --dataset {args.dataset} --num_few_shot 0"
        command += f" --num_samples {args.questions} --num_generations {args.generations}"
        command += f" --no-get_training_set_generations --model_max_new_tokens {NEW_TOKENS}"
        command += f" --max_workers_for_entailment {args.concurrency} --output_dir {folder}/run"
        options = script.parse_settings(RunSettings, "", command.split())
        plan = make_plan(options, ROOT / "datasets")
        run = AnswerRun(plan, Path(options.output_dir))
        _ = run.model, run.engine  # loading is not timed on either side
        started = time.monotonic()
        run.generate()
        generation = time.monotonic() - started

        def judge() -> tuple[float, int]:
            judges = script.judge_options(options, Path(options.output_dir))
            accuracy = make_accuracy("llm_judge", **judges)
            entailment = make_entailment("llm_judge", **judges)
            started = time.monotonic()
            accuracy.judge_many([(q, answers[q.id]) for q in plan.questions["validation"]])
            measure_run(read_run(options.output_dir), entailment, options)
            seconds = time.monotonic() - started
            return seconds, accuracy.asker.stats["asked"] + entailment.asker.stats["asked"]

        entries = run.entries["validation"]
        answers = {name: entry["most_likely_answer"]["response"] for name, entry in entries.items()}
        judging, asked = judge()
        again, asked_again = judge()
        assert asked_again == 0, "a known reply was asked for again"
    questions = plan.questions["validation"]
    return {
        "generation": generation,
        "judging": judging,
        "asked": asked,
        "again": again,
        "questions": questions,
    }


def run_plain(args: Namespace, questions: list[Any]) -> dict[str, Any]:
    """The synchronous loop: nothing batched, nothing reused, nothing left out."""
    import torch
    from openai import OpenAI

    from spikescore.dialogues.config import Config
    from spikescore.labels.entailment import entailment_messages
    from spikescore.labels.judges import judge_messages
    from spikescore.measures.run_plan import BRIEF
    from spikescore.measures.samples import AnswerPrompt
    from spikescore.model.chat import ChatFormat
    from spikescore.model.loading import load_model, load_tokenizer, stop_ids

    config = Config(model_path=args.model)
    model = load_model(config.placement)
    chat = ChatFormat(load_tokenizer(config.placement), enable_thinking=False)
    prompt = AnswerPrompt(chat, BRIEF["default"])
    stops = sorted(stop_ids(model, chat.tokenizer))
    client = OpenAI()
    generation = judging = calls = 0.0
    torch.manual_seed(0)
    for question in questions:
        started = time.monotonic()
        ids = torch.tensor([prompt.ids(question)])
        answers, kept = [], []
        for number in range(args.generations + 1):
            output = model.generate(
                ids,
                max_new_tokens=NEW_TOKENS,
                do_sample=True,
                temperature=1.0 if number else 0.1,
                eos_token_id=stops,
                pad_token_id=0,
                output_hidden_states=True,
                output_scores=True,
                return_dict_in_generate=True,
            )
            kept.append([torch.stack([s[0, -1] for s in step]) for step in output.hidden_states])
            answers.append(chat.text(output.sequences[0, ids.shape[1] :].tolist()))
        generation += time.monotonic() - started
        started = time.monotonic()
        first, *samples = answers
        pairs = itertools.permutations(samples, 2)
        requests = [judge_messages(question=question, answer=first)]
        requests += [entailment_messages((question.question, one, two)) for one, two in pairs]
        for messages in requests:
            client.chat.completions.create(model="judge", temperature=0, messages=messages)
        calls += len(requests)
        judging += time.monotonic() - started
    return {"generation": generation, "judging": judging, "calls": calls}


if __name__ == "__main__":
    main()
