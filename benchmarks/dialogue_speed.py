#!/usr/bin/env python3
"""How fast stage 1 generates, beside what one would write first, on this machine.

    python benchmarks/dialogue_speed.py                            # the tiny model
    python benchmarks/dialogue_speed.py --model DIR --dtypes float32,bfloat16
    python benchmarks/dialogue_speed.py --model DIR --data my.jsonl --dialogues 32 --turns 5
    python benchmarks/dialogue_speed.py --model DIR --server http://127.0.0.1:8000/v1

Sides, all on the same model, questions and turns, with greedy decoding unless `--temperature`:

    sequential   one dialogue at a time, the whole conversation encoded again at every turn, by
                 transformers' `generate(..., output_hidden_states=True)`
    generate     the same, `--batch` dialogues at a time, padded on the left
    engine       what reasoning_lite.py runs; once for each number of `--drafts`
    server       a serving engine (`--server`, an address), texts without states

Each side has a process of its own, one after the other, and begins with a few uncounted tokens.
Texts are compared with the first sequential loop's: in float32 they must be equal. The slow sides
run only the first `--sequential` and `--batch` dialogues, of each file in turn: what a dialogue
costs them does not depend on how many there are, but a good deal on how long its answers are.

Columns: tokens of answers per second of the clock and per second of processor time (CPU s: of all
threads together, so that other programs' work does not count); how many times the first row's that
is; the peak of memory beyond the model, for the engine beside the keys and values of the longest
dialogue in every slot and the states kept; and the share of the machine's limit, which is the time
that the side's matrix products, its bytes of weights and its bytes of cache would take at the
FLOP/s and at the memory's speed that are measured here in the same type (on a CPU in processor
time).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripts' library is not installed, it lies beside them

TINY = ROOT / "models" / "tiny"
DTYPES = ("float32", "bfloat16", "float16")
SHAPES = {
    "llama-3.2-3b": {
        "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
        "head_dim": 128, "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "tie_word_embeddings": False,
    },
    "small": {
        "vocab_size": 8192, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "tie_word_embeddings": True,
    },
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=str(TINY), help="chat model")
    add("--shape", choices=SHAPES, help="random weights of this shape instead (tokens only)")
    add("--data", nargs="+", help="question files; default: datasets/tiny or datasets/samples")
    add("--dialogues", type=int, default=64)
    add("--turns", type=int, default=20)
    add("--max_new_tokens", type=int, default=32)
    add("--temperature", type=float, default=0.0, help="of the engine and the server; 0 is greedy")
    add("--dtypes", help="of " + ",".join(DTYPES) + "; default: what stage 1 takes")
    add("--sides", default="sequential,generate,engine", help="default: %(default)s")
    add("--sequential", type=int, default=6, help="dialogues of the sequential loop")
    add("--batch", type=int, default=16, help="dialogues that `generate` takes at a time")
    add("--batch_size", type=int, help="of the engine; default: all dialogues at once")
    add("--drafts", help="guesses of the engine's passes, as 0,3; default: the engine's own")
    add("--server", help="address of a server with the OpenAI interface, as http://host:8000/v1")
    add("--server_model", help="its name for the model; default: --model")
    add("--out", type=Path, help="file to append what was measured to, a JSON a line")
    add("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.sides = args.sides.split(",") + (["server"] if args.server else [])
    args.dtypes = (args.dtypes or "auto").split(",")
    args.drafts = [None if n == "own" else int(n) for n in (args.drafts or "own").split(",")]
    if args.data is None:
        folder = "tiny" if args.shape or Path(args.model).resolve() == TINY else "samples"
        args.data = sorted(map(str, (ROOT / "datasets" / folder).glob("*.json*")))
    if unknown := {*args.sides} - {*SIDES} | {*args.dtypes} - {*DTYPES, "auto"}:
        parser.error(f"no such side or dtype: {', '.join(sorted(unknown))}")
    return args


def main() -> None:
    args = parse_arguments()
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return
    how = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"
    print(
        f"model {args.shape or args.model}, {args.turns} turns, at most {args.max_new_tokens} new "
        f"tokens, {how}"
    )
    print(
        f"{'dtype':9s} {'side':18s} dialogues  tokens/s  tokens/CPU s   ratio  CPU ratio   "
        "memory MB (x cache and states)  of limit  texts equal"
    )
    first: dict[str, Any] = {}
    machine = []
    for dtype in args.dtypes:
        limits = child(args, "limits", dtype) if "engine" in args.sides else {}
        machine += [limits] if limits else []
        for side, drafts in rows(args):
            found = child(args, side, dtype, drafts)
            first = first or found
            shown(found, first, limits, side if drafts is None else f"{side}, drafts {drafts}")
            if args.out:
                facts = {key: value for key, value in found.items() if key != "texts"}
                with open(args.out, "a", encoding="utf-8") as file:
                    what = {"model": args.shape or args.model, "side": side, "drafts": drafts}
                    what["temperature"] = args.temperature
                    print(json.dumps({**what, **facts, "machine": limits}), file=file)
    for limits in machine:
        print(
            f"machine, {limits['dtype']}: {limits['device']}, {limits['flops'] / 1e9:.0f} GFLOP/s "
            f"in matrix products, {limits['bandwidth'] / 1e9:.1f} GB/s copied"
        )


def rows(args: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """The sides to run, the engine once for each number of drafts."""
    for side in args.sides:
        for drafts in args.drafts if side == "engine" else [None]:
            yield side, drafts


def shown(found: dict[str, Any], first: dict[str, Any], limits: dict[str, Any], side: str) -> None:
    """Print a row of the table; AssertionError where float32 wrote other texts."""
    speed, own = found["tokens"] / found["seconds"], found["tokens"] / found["cpu_seconds"]
    memory, share = f"{found['memory'] / 1e6:10.0f}", ""
    if found.get("kept"):
        memory += f" ({found['memory'] / found['kept']:.2f} x {found['kept'] / 1e6:.0f})"
        clock = "cpu_seconds" if limits["device"] == "cpu" else "seconds"
        at_best = found["flops"] / limits["flops"] + found["bytes"] / limits["bandwidth"]
        share = f"{at_best / found[clock]:.0%}"
    both = found["texts"].keys() & first["texts"].keys()
    same = sum(found["texts"][name] == first["texts"][name] for name in both)
    print(
        f"{found['dtype']:9s} {side:18s} {found['dialogues']:9d} {speed:9.1f} {own:13.1f} "
        f"{speed * first['seconds'] / first['tokens']:7.1f} "
        f"{own * first['cpu_seconds'] / first['tokens']:10.1f}   {memory:31s} {share:>8s}  "
        f"{f'{same} of {len(both)}' if both else '-':>11s}"
        + (f"   {found['per_advance']:.2f} tokens a pass" if "per_advance" in found else ""),
        flush=True,
    )
    exact = found["dtype"] == first["dtype"] == "float32" and side.startswith("engine")
    assert same == len(both) or not exact, "the engine wrote other texts than the sequential loop"


def child(
    args: argparse.Namespace, side: str, dtype: str, drafts: int | None = None
) -> dict[str, Any]:
    """Run one side in a process of its own and return what it measured."""
    command = [sys.executable, __file__, "--side", side, "--dtypes", dtype]
    command += ["--drafts", drafts] if drafts is not None else []
    names = "model", "shape", "dialogues", "turns", "max_new_tokens", "temperature", "sequential"
    for name in (*names, "batch", "batch_size", "server", "server_model"):
        if (value := getattr(args, name)) is not None:
            command += [f"--{name}", value]
    command += ["--data", *args.data]
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- what the sides share ---------------------------------------------------------------------


def load(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return (config, model, chat format)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from spikescore.model.loading import load_model

    config, chat = set_up(args)
    if args.shape:
        on_gpu = torch.cuda.is_available()
        auto = "float16" if on_gpu else "float32"
        dtype = getattr(torch, auto if args.dtypes == ["auto"] else args.dtypes[0])
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        with torch.device("cuda" if on_gpu else "cpu"):
            shape = LlamaConfig(max_position_embeddings=131072, **SHAPES[args.shape])
            model = LlamaForCausalLM(shape).eval()
        torch.set_default_dtype(torch.float32)
    else:
        model = load_model(config.placement)
    return config, model, chat


def set_up(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return (config, chat format): all that a side without a model of its own needs."""
    from spikescore.dialogues.config import Config, SamplingConfig
    from spikescore.model.chat import ChatFormat
    from spikescore.model.loading import load_tokenizer

    config = Config(
        model_path=args.model,
        sampling=SamplingConfig(seed=1),
        max_steps=args.turns,
        temperature=args.temperature,
        top_p=1,
        max_new_tokens=args.max_new_tokens,
        dtype=args.dtypes[0],
        generation_timeout=None,
        enable_ppl_detection=False,
        server_url=args.server,
        server_model=args.server_model,
    )
    return config, ChatFormat(load_tokenizer(config.placement), enable_thinking=False)


def make_dialogues(args: argparse.Namespace, n: int, config: Any, chat: Any) -> list[Any]:
    """The same for all sides: a question of each file in turn, over again where they are few."""
    from spikescore.data.reading import load_questions
    from spikescore.dialogues.dialogue import Dialogue

    files = [load_questions(path).questions for path in args.data]
    questions = [one for several in zip_longest(*files) for one in several if one is not None]
    dialogues = [Dialogue(questions[at % len(questions)], config, chat) for at in range(n)]
    for at, dialogue in enumerate(dialogues):
        dialogue.item_id = f"{at}:{dialogue.item_id}"
    return dialogues


class Measured:
    """Time from when it was made, and memory (GPU: allocated; CPU: resident) beyond then's."""

    def __init__(self, model: Any = None) -> None:
        self.on_gpu = model is not None and model.device.type == "cuda"
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = _resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.dtype = "" if model is None else str(model.dtype).removeprefix("torch.")
        self.started = time.monotonic(), time.process_time()

    def facts(self, dialogues: int, tokens: int, texts: dict[str, list[str]]) -> dict[str, Any]:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
        seconds, own = time.monotonic() - self.started[0], time.process_time() - self.started[1]
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else _resident("VmHWM")
        return {
            "dtype": self.dtype, "dialogues": dialogues, "tokens": tokens, "texts": texts,
            "seconds": seconds, "cpu_seconds": own, "memory": peak - self.before,
        }  # fmt: skip


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


# --- the sides --------------------------------------------------------------------------------


def run_sequential(args: argparse.Namespace) -> dict[str, Any]:
    """The plain loop, as one would write it first."""
    return run_generate(args, min(args.sequential, args.dialogues), together=1)


def run_generate(
    args: argparse.Namespace, n_dialogues: int = 0, together: int = 0
) -> dict[str, Any]:
    """transformers' `generate` on some dialogues at a time, each turn encoded again."""
    import torch

    from spikescore.model.loading import stop_ids
    from spikescore.model.turns import Turn

    config, model, chat = load(args)
    stops = [] if args.shape else sorted(stop_ids(model, chat))
    together = together or min(args.batch, args.dialogues)
    dialogues = make_dialogues(args, n_dialogues or together, config, chat)

    def generate(prompts: list[list[int]], **options: Any) -> Any:
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.inference_mode():
            return model.generate(
                ids.to(model.device), attention_mask=mask.to(model.device), do_sample=False,
                temperature=None, top_p=None, pad_token_id=0, **options,
            )  # fmt: skip

    generate([[1, 5, 6]], max_new_tokens=8, min_new_tokens=8)
    measured, tokens, texts = Measured(model), 0, {}
    for first in range(0, len(dialogues), together):
        held = {one: one.next_prompt(None) for one in dialogues[first : first + together]}
        while held:
            output = generate(
                list(held.values()), max_new_tokens=args.max_new_tokens,
                eos_token_id=stops or None, output_hidden_states=True, return_dict_in_generate=True,
            )  # fmt: skip
            # the states a user of generate() keeps: three positions, all layers
            for step in (output.hidden_states[0], *output.hidden_states[-2:]):
                torch.stack([state[:, -1] for state in step]).half().cpu()
            width = output.sequences.shape[1] - len(output.hidden_states)
            following = {}
            for (dialogue, prompt), row in zip(held.items(), output.sequences, strict=True):
                answer = row[width:].tolist()
                end = next((at for at, token in enumerate(answer) if token in stops), len(answer))
                tokens += end
                turn = Turn(len(dialogue.answers) + 1, prompt, answer_ids=answer[:end])
                if (ids := dialogue.next_prompt(turn)) is not None:
                    following[dialogue] = ids
            held = following
    texts = {one.item_id: one.answers for one in dialogues}
    return measured.facts(len(dialogues), tokens, texts)


def run_engine(args: argparse.Namespace) -> dict[str, Any]:
    """The engine; the states of dialogues in flight are held, as in stage 1."""
    from spikescore.model.architecture import cache_bytes_per_token, pair_bytes
    from spikescore.model.engine import Engine
    from spikescore.model.loading import stop_ids
    from spikescore.model.memory import GROWTH
    from spikescore.model.sampling import Sampling
    from spikescore.model.turns import Limits

    config, model, chat = load(args)
    engine = Engine(
        model,
        stop_ids=() if args.shape else stop_ids(model, chat),
        sampling=Sampling(args.temperature, 1, 1),
        limits=Limits(args.max_new_tokens, model.config.max_position_embeddings),
        batch_size=args.batch_size or args.dialogues,
        draft_tokens=args.drafts[0],
    )
    dialogues = make_dialogues(args, args.dialogues, config, chat)
    texts, longest, attended = {}, 0, 0
    engine.seconds_per_turn()  # begins with a few uncounted tokens
    measured = Measured(model)
    for finished in engine.run(dialogues):
        assert finished.error is None, finished.error
        texts[finished.conversation.item_id] = [chat.text(t.answer_ids) for t in finished.turns]
        for turn in finished.turns:
            end = len(turn.prompt_ids) + len(turn.answer_ids)
            longest = max(longest, end)
            attended += len(turn.answer_ids) * (len(turn.prompt_ids) + end) // 2
    stats = engine.stats
    facts = measured.facts(args.dialogues, stats["new_tokens"], texts)
    per_token = cache_bytes_per_token(model)
    weights = sum(p.numel() for p in model.parameters())
    slots = min(engine.batch_size, args.dialogues)
    groups = model.config.num_attention_heads / model.config.num_key_value_heads
    return facts | {
        "kept": slots * -(-longest // GROWTH) * GROWTH * per_token
        + slots * pair_bytes(model.config, args.turns),
        # two operations per weight and token, and per cached number attended
        "flops": 2 * weights * (stats["new_tokens"] + stats["encoded_tokens"])
        + 2 * attended * per_token / model.dtype.itemsize * groups,
        # every pass reads all weights once, and the cache of each dialogue that it takes further
        "bytes": stats["passes"] * weights * model.dtype.itemsize
        + attended * per_token * stats["advances"] / stats["new_tokens"],
        "per_advance": stats["new_tokens"] / stats["advances"],  # a turn's end is fed once more
        "longest": longest,
        "stats": stats,
    }


def run_server(args: argparse.Namespace) -> dict[str, Any]:
    """The dialogues held by a server; memory and processor time are this client's."""
    from spikescore.dialogues.running import connect
    from spikescore.model.turns import Limits

    config, chat = set_up(args)
    generator = connect(config, chat)
    measured = Measured()
    texts = {}
    dialogues = make_dialogues(args, args.dialogues, config, chat)
    for ended in generator.run(dialogues, Limits(args.max_new_tokens, config.model_max_tokens)):
        assert ended.error is None, ended.error
        texts[ended.conversation.item_id] = [one.answer for one in ended.exchanges]
    tokens = sum(chat.length(text) for answers in texts.values() for text in answers)
    return measured.facts(args.dialogues, tokens, texts) | {"dtype": "its own"}


def measure_limits(args: argparse.Namespace) -> dict[str, Any]:
    """FLOP/s of a matrix product in the model's type, and bytes read and written per second."""
    import torch

    on_gpu = torch.cuda.is_available()
    auto = "float16" if on_gpu else "float32"
    name = auto if args.dtypes == ["auto"] else args.dtypes[0]
    device, dtype = "cuda" if on_gpu else "cpu", getattr(torch, name)
    size = 8192 if on_gpu else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    big = torch.zeros(2**28 if on_gpu else 2**26, device=device, dtype=torch.float32)
    copy = torch.zeros_like(big)

    def best(work: Any, repeats: int = 10) -> float:
        clock, times = time.perf_counter if on_gpu else time.process_time, []
        for _ in range(repeats):
            started = clock()
            work()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(clock() - started)
        return min(times)

    best(lambda: a @ a, 1)
    return {
        "dtype": name,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "flops": 2 * size**3 / best(lambda: a @ a),
        "bandwidth": 2 * big.nbytes / best(lambda: copy.copy_(big)),
    }


SIDES = {
    "sequential": run_sequential,
    "generate": run_generate,
    "engine": run_engine,
    "server": run_server,
    "limits": measure_limits,
}

if __name__ == "__main__":
    main()
