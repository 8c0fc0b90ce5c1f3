#!/usr/bin/env python3
"""How fast training data for semantic-entropy probes is made, beside a plain synchronous loop.

    python benchmarks/sep_speed.py                                       # 6 minutes
    python benchmarks/sep_speed.py --judging-questions 64 --questions 8 --model DIR   # 40 minutes

Plain loop: as the original pipelines work. One generation at a time, with the hidden states of
every token of every layer kept; then one blocking judge call at a time: the accuracy of the answer,
and entailment both ways of each sample that opens a set and every later one (greedy clustering); a
prompt that was asked before is taken from their cache. Ours: what generate_answers.py does, at its
default number of calls at a time. The judge of both is a server on loopback, a process of its own,
that replies after 300 ms, like a hosted model. Both sides do all of the work; no time is guessed.

Judging: both judge the same answers, --judging-questions of them with --generations samples each,
drawn by our engine from --judging-model before the clocks start; the sets they find are compared.
Whole run: both answer --questions with --model and judge what they drew, ours at the same time.
Waiting costs no CPU, so that the plain loop's judging is as fast on a busy machine as on an idle
one, while all else here takes longer there: CPU seconds are printed beside.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripts' library is not installed, it lies beside them
sys.path.insert(0, str(ROOT / "semantic-entropy-probes" / "semantic_uncertainty"))

SECONDS = 0.3  # the judge's delay
NEW_TOKENS = 40
TINY = ROOT / "models" / "tiny"
TRIVIA = ROOT / "datasets" / "tiny" / "trivia.json"


def parse_arguments() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=str(TINY), help="chat model of the whole run (%(default)s)")
    add("--dataset", default=str(TRIVIA), help="questions (%(default)s)")
    add("--questions", type=int, default=4, help="questions of the whole run (%(default)s)")
    add("--generations", type=int, default=10, help="samples of each (%(default)s)")
    add("--dtype", default="auto", help="of the model, on both sides (%(default)s)")
    add("--judging-model", default=str(TINY), help="draws the answers to judge (%(default)s)")
    add("--judging-questions", type=int, default=8, help="questions judged; 0: none (%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    import openai.types.chat  # noqa: F401  imports are timed on neither side
    import sklearn.linear_model  # noqa: F401

    pipe, other = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(other,), daemon=True)
    server.start()
    os.environ["OPENAI_BASE_URL"] = f"http://127.0.0.1:{pipe.recv()}/v1"
    os.environ["OPENAI_API_KEY"] = "none"
    judge = Judge(pipe)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if args.judging_questions:
                compare_judging(args, Path(folder) / "judging", judge)
            if args.questions:
                compare_whole(args, Path(folder) / "whole", judge)
    finally:
        server.terminate()


# --- the judge's server -----------------------------------------------------------------------


def serve(pipe: Any) -> None:
    """Answer chat completions after a delay; tell how many, and in how much CPU time, when asked.

    Answers with one last word mean the same.
    """
    loop = asyncio.new_event_loop()
    replies = 0

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.data = transport, b""

        def data_received(self, data: bytes) -> None:
            self.data += data
            head, found, rest = self.data.partition(b"\r\n\r\n")
            sized = re.search(rb"content-length: *(\d+)", head, re.I)
            size = int(sized[1]) if sized else 0
            if not found or len(rest) < size:
                return
            self.data = rest[size:]
            if size:
                loop.call_later(SECONDS, self.answer, rest[:size])
            else:
                self.reply({"object": "list", "data": []})  # it is asked whether it is there

        def answer(self, body: bytes) -> None:
            nonlocal replies
            replies += 1
            text = f"VERDICT: {verdict(json.loads(body)['messages'][-1]['content'])}"
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
            choice["finish_reason"] = "stop"
            self.reply({"id": "1", "object": "chat.completion", "choices": [choice]})

        def reply(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
            )

    def tell() -> None:
        pipe.recv()
        pipe.send((replies, time.process_time()))

    listening = loop.create_server(Connection, "127.0.0.1", 0, backlog=2048)
    server = loop.run_until_complete(listening)
    pipe.send(server.sockets[0].getsockname()[1])
    loop.add_reader(pipe.fileno(), tell)
    loop.run_forever()


def verdict(text: str) -> str:
    """A stand-in for judgement: the last words of the two answers."""
    pair = re.search(r"<A>\n(.*)\n</A>\n\n<B>\n(.*)\n</B>", text, re.S)
    if pair is None:
        return "CONSISTENT"
    one, two = (re.findall(r"\w+", answer)[-1:] for answer in pair.groups())
    return "ENTAILMENT" if one == two else "NEUTRAL"


class Judge:
    """What the judge's server says of itself."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._before = (0, 0.0)

    def since(self) -> tuple[int, float]:
        """Return replies and CPU seconds since this was last asked."""
        self._pipe.send(None)
        now = self._pipe.recv()
        found = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        return found

    def capacity(self, connections: int = 2048) -> float:
        """Return the replies a second that it gives to a client that does nothing but count."""

        async def ask(request: bytes, times: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(times):
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.findall(rb"Length: (\d+)", head)[0]))
            writer.close()

        async def all_of_them() -> None:
            await asyncio.gather(*(ask(request, 3) for _ in range(connections)))

        port = int(re.findall(r":(\d+)/", os.environ["OPENAI_BASE_URL"])[0])
        from spikescore.labels.entailment import entailment_messages

        messages = entailment_messages(("A question?", "One answer.", "Another answer."))
        body = json.dumps({"model": "judge", "messages": messages, "temperature": 0}).encode()
        request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        _, (seconds, _) = timed(partial(asyncio.run, all_of_them()))
        self.since()
        return 3 * connections / seconds


# --- the two comparisons ----------------------------------------------------------------------


def timed(work: Any) -> tuple[Any, tuple[float, float]]:
    """Return what a function returns, and the seconds and CPU seconds that it took."""
    wall, cpu = time.monotonic(), time.process_time()
    result = work()
    return result, (time.monotonic() - wall, time.process_time() - cpu)


def compare_judging(args: Namespace, folder: Path, judge: Judge) -> None:
    """Judge the same answers by both sides."""
    from spikescore.measures.run_folder import read_run

    settings, run = our_run(args, folder, args.judging_model, args.judging_questions)
    run.generate(lambda question, entry: None)
    drawn, questions = run.entries["validation"], run.plan.questions["validation"]
    capacity = judge.capacity()

    run = resumed(settings)
    _, (seconds, cpu) = timed(lambda: run_ours(settings, run))
    ours = read_run(folder).measures["semantic_ids"]
    calls, server_cpu = judge.since()
    run = resumed(settings)
    _, (again, _) = timed(lambda: run_ours(settings, run))
    repeated, _ = judge.since()
    assert repeated == 0, "a known reply was asked for again"

    loop = PlainJudging()
    plain, (plain_seconds, plain_cpu) = timed(
        lambda: [loop.judge(question, *texts_of(drawn[question.id])) for question in questions]
    )
    plain_calls, _ = judge.since()
    differing = sum(not same_sets(one, two) for one, two in zip(ours, plain, strict=True))
    ratio = plain_seconds / seconds
    print(
        f"judging: {len(drawn)} questions x {args.generations} samples of {args.judging_model}, "
        f"replies after {1000 * SECONDS:.0f} ms, "
        f"at most {settings.max_workers_for_entailment} calls at a time\n"
        f"  plain loop {plain_seconds:8.1f} s  {plain_calls} calls ({loop.cached} more from its "
        f"cache), CPU {1000 * plain_cpu / plain_calls:.2f} ms a call\n"
        f"  ours       {seconds:8.2f} s  {calls} calls, {calls / seconds:.0f} a second, CPU "
        f"{1000 * cpu / calls:.2f} ms a call, the run folder's writing included\n"
        f"  ratio      {ratio:8.0f}\n"
        f"  the judge's server: {1000 * server_cpu / calls:.2f} ms of CPU a reply; a bare client "
        f"has {capacity:.0f} replies a second of it\n"
        f"  sets of {differing} questions differ; again with all replies known: {again:.2f} s"
    )
    at_once = math.ceil(1000 * calls / plain_calls)
    longest = max(map(max, ours)) * SECONDS  # each set's first answer is held against the others
    needed = math.ceil(1000 * longest * len(drawn) / plain_seconds)
    print(
        f"  1,000 times would be {plain_seconds / 1000:.2f} s: with {calls / plain_calls:.2f} of "
        f"the plain loop's calls, {at_once} under way at any time; and {needed} such questions or "
        f"more, as one alone has calls that wait for each other for {longest:.1f} s"
    )


def compare_whole(args: Namespace, folder: Path, judge: Judge) -> None:
    """Answer and judge by both sides."""
    settings, run = our_run(args, folder, args.model, args.questions)
    _ = run.model, run.engine  # loading is not timed on either side
    judge.since()
    _, (seconds, cpu) = timed(lambda: run_ours(settings, run))
    calls, _ = judge.since()
    questions = run.plan.questions["validation"]
    generator, loop = PlainGeneration(run), PlainJudging()
    drawn, (generation, generation_cpu) = timed(
        lambda: [generator.answers(question, args.generations) for question in questions]
    )
    _, (judging, judging_cpu) = timed(
        lambda: [
            loop.judge(question, first, samples)
            for question, (first, *samples) in zip(questions, drawn, strict=True)
        ]
    )
    plain_calls, _ = judge.since()
    plain_cpu = generation_cpu + judging_cpu
    print(
        f"whole run: {len(questions)} questions x {args.generations} samples of {args.model}, "
        f"{run.model.dtype}\n"
        f"  plain loop {generation + judging:8.1f} s  {generation:.1f} generation + {judging:.1f} "
        f"judging, {plain_calls} calls, CPU {plain_cpu:.1f} s\n"
        f"  ours       {seconds:8.1f} s  both at the same time, {calls} calls, CPU {cpu:.1f} s\n"
        f"  ratio      {(generation + judging) / seconds:8.1f}  of CPU time {plain_cpu / cpu:.1f}"
    )


def same_sets(one: Sequence[int], two: Sequence[int]) -> bool:
    """Whether two numberings put the same answers together."""
    return len(set(zip(one, two, strict=True))) == len(set(one)) == len(set(two))


def texts_of(entry: dict[str, Any]) -> tuple[str, list[str]]:
    return entry["most_likely_answer"]["response"], [text for text, *_ in entry["responses"]]


# --- ours -------------------------------------------------------------------------------------


def our_run(args: Namespace, folder: Path, model: str, questions: int) -> tuple[Any, Any]:
    """Return the settings and the run of generate_answers.py, nothing asked yet."""
    import generate_answers as script

    from spikescore.measures.run_plan import RunSettings

    command = (
        f"--model_name {model} --dataset {args.dataset} --num_samples {questions} --num_few_shot 0 "
        f"--num_generations {args.generations} --model_max_new_tokens {NEW_TOKENS} --no-wandb "
        "--no-get_training_set_generations --no-compute_p_true --metric llm_judge "
        f"--entailment_model llm_judge --dtype {args.dtype} --output_dir {folder}"
    )
    settings = script.parse_settings(RunSettings, "", command.split())
    return settings, resumed(settings)


def resumed(settings: Any) -> Any:
    from spikescore.measures.answer_run import AnswerRun
    from spikescore.measures.run_plan import make_plan

    return AnswerRun(make_plan(settings, ROOT / "datasets"), settings.folder())


def run_ours(settings: Any, run: Any) -> None:
    """Do what generate_answers.py does with a run."""
    import generate_answers as script

    settings.folder().mkdir(parents=True, exist_ok=True)
    with redirect_stdout(io.StringIO()):
        status = script.answer(settings, run)
    assert status == 0, "some questions or judgements failed"


# --- the plain loop ---------------------------------------------------------------------------


class PlainGeneration:
    """One generation at a time, with the hidden states of every token of every layer kept."""

    def __init__(self, run: Any) -> None:
        import torch

        from spikescore.model.loading import stop_ids

        self._model, self._prompt = run.model, run.prompt
        self._stops = sorted(stop_ids(run.model, run.prompt.chat))
        torch.manual_seed(0)

    def answers(self, question: Any, n_samples: int) -> list[str]:
        """Return the answer at low temperature, then the samples."""
        import torch

        ids = torch.tensor([self._prompt.ids(question)])
        answers, kept = [], []
        for number in range(n_samples + 1):
            output = self._model.generate(
                ids,
                max_new_tokens=NEW_TOKENS,
                do_sample=True,
                temperature=1.0 if number else 0.1,
                eos_token_id=self._stops,
                pad_token_id=0,
                output_hidden_states=True,
                output_scores=True,
                return_dict_in_generate=True,
            )
            kept.append([torch.stack([s[0, -1] for s in step]) for step in output.hidden_states])
            answers.append(self._prompt.chat.text(output.sequences[0, ids.shape[1] :].tolist()))
        return answers


class PlainJudging:
    """One blocking call at a time; a prompt that was asked before is taken from the cache."""

    def __init__(self) -> None:
        from openai import OpenAI

        self._client = OpenAI()
        self._replies: dict[str, str] = {}
        self.cached = 0

    def judge(self, question: Any, first: str, samples: list[str]) -> list[int | None]:
        """Judge a question's answer, and return the sets of its samples."""
        from spikescore.labels.judges import judge_messages

        self._ask(judge_messages(question=question, answer=first))
        sets: list[int | None] = [None] * len(samples)
        for opener, one in enumerate(samples):
            if sets[opener] is not None:
                continue
            sets[opener] = opener
            for place, two in enumerate(samples[opener + 1 :], start=opener + 1):
                if self._same(question.question, one, two):
                    sets[place] = opener
        return sets

    def _same(self, question: str, one: str, two: str) -> bool:
        from spikescore.labels.entailment import entailment_messages

        pairs = ((question, one, two), (question, two, one))
        verdicts = [self._ask(entailment_messages(pair)) for pair in pairs]
        return all("ENTAILMENT" in verdict for verdict in verdicts)

    def _ask(self, messages: list[dict[str, str]]) -> str:
        key = json.dumps(messages)
        if key in self._replies:
            self.cached += 1
        else:
            reply = self._client.chat.completions.create(
                model="judge", temperature=0, messages=messages
            )
            self._replies[key] = str(reply.choices[0].message.content)
        return self._replies[key]


if __name__ == "__main__":
    main()
