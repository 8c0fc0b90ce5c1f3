#!/usr/bin/env python3
"""How fast training data for semantic-entropy probes is made, beside a plain synchronous loop.

    python benchmarks/sep_speed.py                       # 20 questions x 10 samples: 4 minutes
    python benchmarks/sep_speed.py --questions 6 --generations 5

Plain loop: as the original pipelines work. One generation at a time, with the hidden states of
every token of every layer kept; then one blocking judge call at a time: the accuracy of the answer,
and entailment both ways of each sample that opens a set and every later one (greedy clustering); a
prompt that was asked before is taken from their cache. Ours: what generate_answers.py runs, at its
default number of calls at a time. Both answer and judge every question, with the same model; the
judge of both is an HTTP server on loopback that replies after 300 ms, like a hosted model. The
samples are drawn by each side for itself, so the number of calls differs a little by chance.
"""

from __future__ import annotations

import argparse
import asyncio
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
    add("--model", default=str(ROOT / "models" / "tiny"), help="chat model")
    add("--dataset", default=str(ROOT / "datasets" / "tiny" / "trivia.json"), help="questions")
    add("--questions", type=int, default=20, help="questions asked (%(default)s)")
    add("--generations", type=int, default=10, help="samples of each (%(default)s)")
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
        plain = run_plain(args, ours["questions"])
    finally:
        server.terminate()
    print(
        f"{args.questions} questions x {args.generations} samples, model {args.model}, judge "
        f"replies after {1000 * SECONDS:.0f} ms, {ours['at_once']} calls at a time\n"
        "part          plain loop s      ours s     ratio"
    )
    rows = {part: (plain[part], ours[part]) for part in ("generation", "judging")}
    rows["whole"] = tuple(map(sum, zip(*rows.values(), strict=True)))
    for part, (slow, fast) in rows.items():
        print(f"{part:12s} {slow:13.1f} {fast:11.2f} {slow / fast:9.1f}")
    print(
        f"judge calls: {plain['calls']} in the plain loop ({plain['cached']} more from its cache), "
        f"{ours['asked']} of ours"
    )
    print(f"run again with every reply in the cache: judging {ours['again']:.2f} s, 0 calls asked")


# --- the judge's server -----------------------------------------------------------------------


def serve(ports: Any) -> None:
    """Answer chat completions after a delay: answers with one last word mean the same."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                sized = re.search(rb"content-length: *(\d+)", head, re.I)
                body = json.loads(await reader.readexactly(int(sized[1]))) if sized else None
                reply = "CONSISTENT"
                if body:  # else it is asked whether it is there
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
        command += f" --no-compute_p_true --output_dir {folder}/run"
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
        "at_once": options.max_workers_for_entailment,
    }


def run_plain(args: Namespace, questions: list[Any]) -> dict[str, Any]:
    """The synchronous loop of the original pipelines: one generation, one call at a time."""
    import torch
    from openai import OpenAI

    from spikescore.labels.entailment import entailment_messages
    from spikescore.labels.judges import judge_messages
    from spikescore.measures.run_plan import BRIEF
    from spikescore.measures.samples import AnswerPrompt
    from spikescore.model.chat import ChatFormat
    from spikescore.model.loading import load_model, load_tokenizer, stop_ids
    from spikescore.model.placement import Placement

    placement = Placement(args.model)
    model = load_model(placement)
    chat = ChatFormat(load_tokenizer(placement), enable_thinking=False)
    prompt = AnswerPrompt(chat, BRIEF["default"])
    stops = sorted(stop_ids(model, chat))
    client = OpenAI()
    replies: dict[str, str] = {}
    cached = 0

    def ask(messages: list[dict[str, str]]) -> str:
        nonlocal cached
        key = json.dumps(messages)
        if key in replies:
            cached += 1
        else:
            reply = client.chat.completions.create(model="judge", temperature=0, messages=messages)
            replies[key] = str(reply.choices[0].message.content)
        return replies[key]

    def same(question: str, one: str, two: str) -> bool:
        pairs = ((question, one, two), (question, two, one))
        verdicts = [ask(entailment_messages(pair)) for pair in pairs]
        return all("ENTAILMENT" in verdict for verdict in verdicts)

    generation = judging = 0.0
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
        ask(judge_messages(question=question, answer=first))
        sets: list[int | None] = [None] * len(samples)
        for opener, one in enumerate(samples):
            if sets[opener] is not None:
                continue
            sets[opener] = opener
            for place, two in enumerate(samples[opener + 1 :], start=opener + 1):
                if same(question.question, one, two):
                    sets[place] = opener
        judging += time.monotonic() - started
    return {
        "generation": generation, "judging": judging, "calls": len(replies), "cached": cached,
    }  # fmt: skip


if __name__ == "__main__":
    main()
