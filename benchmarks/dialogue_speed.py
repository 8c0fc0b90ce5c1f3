#!/usr/bin/env python3
"""How fast stage 1 generates, beside the plain sequential loop, on this machine.

    python benchmarks/dialogue_speed.py                            # the tiny model, growth table
    python benchmarks/dialogue_speed.py --dialogues 32 --turns 5   # one setting, quicker
    python benchmarks/dialogue_speed.py --shape llama-3.2-3b --max_new_tokens 256 --sequential 1

Sequential: one dialogue at a time, the whole conversation encoded again at every turn,
transformers' `generate(..., output_hidden_states=True)`. Engine: what reasoning_lite.py runs. Same
model, questions, turns and greedy decoding; each side has a process of its own, one after the
other, begins with a few uncounted tokens, and the texts are compared. The sequential side runs only
`--sequential` dialogues, since its cost per dialogue does not depend on how many there are; its
tokens/s stand for the whole.

The last lines set the engine's time against what the machine could do at best: the matrix products
and the bytes of weights and cache that the work needs, at the FLOP/s and the memory bandwidth
measured here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripts' library is not installed, it lies beside them

DOMAINS = ("trivia", "commonsense", "reading", "conversation", "arithmetic", "wordproblems")
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
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "models" / "tiny"), help="chat model")
    parser.add_argument(
        "--shape", choices=SHAPES, help="random weights of this shape, FP16 on a GPU (tokens only)"
    )
    parser.add_argument("--dialogues", type=int, help="one setting instead of the growth table")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--max_new_tokens", type=int, default=32)
    parser.add_argument("--batch_size", type=int, help="default: all dialogues at once")
    parser.add_argument("--sequential", type=int, default=8, help="dialogues of the slow side")
    parser.add_argument(
        "--side", choices=("sequential", "engine", "limits"), help=argparse.SUPPRESS
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
        return
    settings = [(128, 5), (128, 10), (8, 20), (32, 20), (128, 20)]
    if args.dialogues:
        settings = [(args.dialogues, args.turns)]
    n_slow = min(args.sequential, settings[0][0])
    sequential = {turns: child(args, "sequential", n_slow, turns) for _, turns in settings}
    print(f"model {args.shape or args.model}, greedy, at most {args.max_new_tokens} new tokens")
    print("dialogues  turns   sequential tok/s   engine tok/s   ratio   engine s   memory MB")
    for dialogues, turns in settings:
        engine = child(args, "engine", dialogues, turns)
        slow = sequential[turns]
        same = sum(engine["texts"][name] == text for name, text in slow["texts"].items())
        assert args.shape or same == len(slow["texts"]), "the two sides wrote different texts"
        kept = engine["cache_bytes"] + engine["state_bytes"]
        print(
            f"{dialogues:9d} {turns:6d} {slow['speed']:18.0f} {engine['speed']:14.0f} "
            f"{engine['speed'] / slow['speed']:7.1f} {engine['seconds']:10.1f} "
            f"{engine['memory'] / 1e6:8.0f} ({engine['memory'] / kept:.2f} x {kept / 1e6:.0f})"
        )
    print(
        f"sequential side: {n_slow} dialogues each, peak memory beyond the model "
        f"{max(side['memory'] for side in sequential.values()) / 1e6:.0f} MB; "
        f"texts equal on all {n_slow} compared"
        if not args.shape
        else "texts not compared: random weights in FP16 turn rounding into other words"
    )
    limits = child(args, "limits", 1, 1)
    at_best = engine["flops"] / limits["flops"] + engine["bytes"] / limits["bandwidth"]
    print(
        f"machine: {limits['flops'] / 1e9:.0f} GFLOP/s in matrix products, "
        f"{limits['bandwidth'] / 1e9:.1f} GB/s; the last line needs "
        f"{engine['flops'] / 1e9:.0f} GFLOP "
        f"and {engine['bytes'] / 1e9:.0f} GB, {at_best:.1f} s at best, "
        f"so the engine reaches {at_best / engine['seconds']:.0%} of the machine's limit"
    )


def child(args: argparse.Namespace, side: str, dialogues: int, turns: int) -> dict[str, Any]:
    """Run one side in a process of its own and return what it measured."""
    command = [sys.executable, __file__, "--side", side, "--model", args.model]
    command += ["--dialogues", dialogues, "--turns", turns, "--max_new_tokens", args.max_new_tokens]
    command += ["--shape", args.shape] if args.shape else []
    command += ["--batch_size", args.batch_size] if args.batch_size else []
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- what both sides share --------------------------------------------------------------------


def load(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return (config, model, chat format)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from spikescore.dialogues.config import Config, SamplingConfig
    from spikescore.model.chat import ChatFormat
    from spikescore.model.loading import load_model, load_tokenizer

    config = Config(
        model_path=args.model,
        sampling=SamplingConfig(seed=1),
        max_steps=args.turns,
        temperature=0,
        top_p=1,
        max_new_tokens=args.max_new_tokens,
        generation_timeout=None,
        enable_ppl_detection=False,
    )
    if args.shape:
        with torch.device("cuda"):
            torch.manual_seed(0)
            torch.set_default_dtype(torch.float16)
            shape = LlamaConfig(max_position_embeddings=131072, **SHAPES[args.shape])
            model = LlamaForCausalLM(shape).eval()
            torch.set_default_dtype(torch.float32)
    else:
        model = load_model(config.placement)
    chat = ChatFormat(load_tokenizer(config.placement), enable_thinking=False)
    return config, model, chat


def pick_questions(n: int) -> list[Any]:
    """The same questions for both sides, domain after domain."""
    from spikescore.data.reading import load_questions

    by_domain = [load_questions(ROOT / "datasets/tiny" / f"{d}.json").questions for d in DOMAINS]
    rounds = zip(*by_domain, strict=False)
    return [question for several in rounds for question in several][:n]


class Memory:
    """Peak memory beyond what was held when it was made (GPU: allocated; CPU: resident)."""

    def __init__(self, device: Any) -> None:
        self.device = device
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = _resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def peak(self) -> int:
        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() - self.before
        return _resident("VmHWM") - self.before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


# --- the two sides ----------------------------------------------------------------------------


def run_sequential(args: argparse.Namespace) -> dict[str, Any]:
    """The plain loop, as one would write it first."""
    import torch

    from spikescore.dialogues.dialogue import Dialogue
    from spikescore.model.loading import stop_ids
    from spikescore.model.turns import Turn

    config, model, chat = load(args)
    stops = [] if args.shape else sorted(stop_ids(model, chat))
    dialogues = [Dialogue(question, config, chat) for question in pick_questions(args.dialogues)]
    memory, tokens, texts = Memory(model.device), 0, {}
    model.generate(torch.tensor([[1, 5, 6]], device=model.device), max_new_tokens=8, min_length=8)
    started = time.monotonic()
    for dialogue in dialogues:
        last, answers = None, []
        while (ids := dialogue.next_prompt(last)) is not None:
            with torch.inference_mode():
                output = model.generate(
                    torch.tensor([ids], device=model.device),
                    max_new_tokens=args.max_new_tokens,
                    do_sample=False,
                    temperature=None,
                    top_p=None,
                    eos_token_id=stops or None,
                    pad_token_id=0,
                    output_hidden_states=True,
                    return_dict_in_generate=True,
                )
            # the states a user of generate() keeps: three positions, all layers
            for step in (output.hidden_states[0], *output.hidden_states[-2:]):
                torch.stack([state[0, -1] for state in step]).half().cpu()
            answer = output.sequences[0, len(ids) :].tolist()
            answer = answer[:-1] if answer and answer[-1] in stops else answer
            tokens += len(answer)
            answers.append(chat.text(answer))
            last = Turn(len(answers), ids, answer_ids=answer)
        texts[dialogue.item_id] = answers
    seconds = time.monotonic() - started
    return {"speed": tokens / seconds, "memory": memory.peak(), "texts": texts}


def run_engine(args: argparse.Namespace) -> dict[str, Any]:
    """The engine; the states of dialogues in flight are held, as in stage 1."""
    import torch

    from spikescore.dialogues.dialogue import Dialogue
    from spikescore.model.architecture import cache_bytes_per_token, pair_bytes
    from spikescore.model.engine import Engine
    from spikescore.model.loading import stop_ids
    from spikescore.model.sampling import Sampling
    from spikescore.model.slots import GROWTH
    from spikescore.model.turns import Limits

    config, model, chat = load(args)
    stops = () if args.shape else stop_ids(model, chat)
    engine = Engine(
        model,
        stop_ids=stops,
        sampling=Sampling(0, 1, 1),
        limits=Limits(args.max_new_tokens, model.config.max_position_embeddings),
        batch_size=args.batch_size or args.dialogues,
    )
    dialogues = [Dialogue(question, config, chat) for question in pick_questions(args.dialogues)]
    texts, longest, attended = {}, 0, 0
    memory = Memory(model.device)
    engine.seconds_per_token()  # the trial that stage 1 begins with
    started = time.monotonic()
    for finished in engine.run(dialogues):
        assert finished.error is None, finished.error
        texts[finished.conversation.item_id] = [chat.text(t.answer_ids) for t in finished.turns]
        for turn in finished.turns:
            end = len(turn.prompt_ids) + len(turn.answer_ids)
            longest = max(longest, end)
            attended += len(turn.answer_ids) * (len(turn.prompt_ids) + end) // 2
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - started
    stats = engine.stats
    per_token = cache_bytes_per_token(model)
    weights = sum(p.numel() for p in model.parameters())
    blocks = -(-longest // GROWTH) * GROWTH
    return {
        "speed": stats["new_tokens"] / seconds,
        "seconds": seconds,
        "memory": memory.peak(),
        "texts": texts,
        "cache_bytes": engine.batch_size * blocks * per_token,
        "state_bytes": min(engine.batch_size, args.dialogues)
        * pair_bytes(model.config, args.turns),
        # two operations per weight and token, and per cached number attended
        "flops": 2 * weights * (stats["new_tokens"] + stats["encoded_tokens"])
        + 2 * attended * per_token / model.dtype.itemsize * _query_groups(model),
        # every pass reads all weights once, and the cache of each dialogue that it takes further
        "bytes": stats["passes"] * weights * model.dtype.itemsize
        + attended * per_token * stats["advances"] / stats["new_tokens"],
    }


def _query_groups(model: Any) -> float:
    config = model.config
    return config.num_attention_heads / config.num_key_value_heads


def measure_limits(args: argparse.Namespace) -> dict[str, Any]:
    """FLOP/s of a matrix product in the model's type, and bytes read and written per second."""
    import torch

    on_gpu = args.shape or torch.cuda.is_available()
    device, dtype = ("cuda", torch.float16) if on_gpu else ("cpu", torch.float32)
    size = 8192 if on_gpu else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    big = torch.empty(2**28 if on_gpu else 2**26, device=device, dtype=torch.float32)

    def best(work: Any, repeats: int = 10) -> float:
        times = []
        for _ in range(repeats):
            if on_gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)

    copy = torch.empty_like(big)
    return {
        "flops": 2 * size**3 / best(lambda: a @ a),
        "bandwidth": 2 * big.nbytes / best(lambda: copy.copy_(big)),
    }


SIDES = {"sequential": run_sequential, "engine": run_engine, "limits": measure_limits}

if __name__ == "__main__":
    main()
