#!/usr/bin/env python3
"""How fast stage 2 scores pairs, beside plain reading of the same PKL bytes, on this machine.

    python benchmarks/score_speed.py                # 300 pairs of Llama-3.2-3B size, 3.2 GB
    python benchmarks/score_speed.py --pairs 40     # quicker
    python benchmarks/score_speed.py --methods      # score_methods.py, 600 to 2,400 dialogues

The pairs are made up in a temporary folder, which is removed at the end: 29 x 3072 states in FP16,
three tokens, 20 turns, about 11 MB a PKL, and JSON files with texts (of 20,000 words, by Zipf's
law) and token ids as stage 1 writes them. Plain reading: `path.read_bytes()` of each PKL in turn,
nothing else. Stage 2: `main` of metrics_probe.py, which also reads and rewrites each JSON and
starts worker processes of its own; of a PKL it reads only what the probe needs. Each pass has a
process of its own; its time is that of the work, without Python's start; its memory is that of its
largest process. The two sides take turns, `--repeats` times, and the median counts.

Warm: all files are in the page cache, since each was read just before (as far as memory goes round;
both sides profit alike). Cold: the kernel was asked to drop each PKL and JSON from its cache before
each pass (posix_fadvise, Linux only); a cache below this machine's own, as virtual disks have, is
not reached. At last eval_probe.py evaluates what stage 2 wrote.

--methods times score_methods.py and make_tables.py instead, at the width of an 8B model: 33 x 4096
states, six domains in equal parts, 20 turns, some methods of each kind, fitted on --trained_on of
the domains with one probe seed. The PKLs are links to 24 files, 16 MB each, so that 0.4 GB of disk
stand for 39 GB: what is timed is the work on them, not the disk. Memory is what belongs to the
processes alone (Pss_Anon, all of them together, ten times a second), without the files that are
mapped, which the system drops as it needs room. CPU time is that of all processes too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripts' library is not installed, it lies beside them

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.files import write_json  # noqa: E402
from spikescore.pairs import TOKEN_KEYS, write_pair  # noqa: E402
from spikescore.probes.probe import Probe  # noqa: E402
from spikescore.report.experiment import load_experiment  # noqa: E402
from spikescore.runtime import usable_cores  # noqa: E402

MODEL = "Llama-3.2-3B-shaped"
N_STATES, HIDDEN_SIZE, TURNS = 29, 3072, 20
LAYER = 14
PROMPT_TOKENS, ANSWER_TOKENS = 40, 200  # of one turn; they make the size of the JSON
WORDS = np.array([np.base_repr(1000 + rank, 36).lower() for rank in range(1, 20_001)])
CHANCES = 1 / np.arange(1, 20_001) / np.sum(1 / np.arange(1, 20_001))  # Zipf's law
BYTES_PER_PAIR = 2 * N_STATES * HIDDEN_SIZE * len(TOKEN_KEYS) * TURNS + 200_000
ASKED = 0.6
N_DOMAINS = 6
METHODS = (
    "saplma",
    "mass_mean",
    "linear_probe",
    "all_turn_probe",
    "random_projection",
    "perplexity",
    "tfidf_dialogue",
    "answer_length",
)
EXPERIMENT = {
    "models": [{"name": "wide", "model_path": MODEL}],
    "dialogues": {"dataset_path": ["made-up.json"]},
    "measures": None,
    "methods": ",".join(METHODS),
    "probe_seeds": 1,
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pairs", type=int, default=300, help="pairs to make up, 11 MB each (%(default)s)")
    add("--repeats", type=int, default=3, help="passes of each side (%(default)s)")
    add("--folder", default=tempfile.gettempdir(), help="where the pairs go (%(default)s)")
    add("--methods", action="store_true", help="time score_methods.py on --sizes dialogues")
    add("--sizes", default="600,1200,2400", help="dialogues for --methods (%(default)s)")
    add("--shape", default="33x4096", help="of the states there, layers x width (%(default)s)")
    add("--trained_on", type=int, default=2, help="domains to fit on there (%(default)s)")
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pairs < 10 or args.repeats < 1:
        parser.error("--pairs must be at least 10, --repeats at least 1")
    if not 1 <= args.trained_on <= N_DOMAINS:
        parser.error(f"--trained_on must be 1 to {N_DOMAINS}")
    return args


def main() -> None:
    """Make up the pairs, time both sides warm and cold, then stage 3; print plain lines."""
    args = parse_arguments()
    if args.side:
        print(json.dumps(measured(SIDES[args.side], Path(args.folder), args.trained_on)))
        return
    if args.methods:
        compare_sizes(Path(args.folder), args)
        return
    need, free = int(1.1 * args.pairs * BYTES_PER_PAIR), shutil.disk_usage(args.folder).free
    if free < need:
        raise UserError(
            f'{args.pairs} pairs need {need / 1e9:.1f} GB, "{args.folder}" has {free / 1e9:.1f} GB '
            "free; give fewer --pairs or another --folder"
        )
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="score_speed_") as folder:
        make_up_pairs(Path(folder), args.pairs)
        pkl_bytes = sum(path.stat().st_size for path in Path(folder).glob("*.pkl"))
        json_bytes = sum(path.stat().st_size for path in Path(folder).glob("*.json"))
        print(
            f"{args.pairs} pairs: {pkl_bytes / 1e6:.0f} MB of PKL, {json_bytes / 1e6:.1f} MB of "
            f"JSON; {os.cpu_count()} CPU cores; median of {args.repeats} passes"
        )
        for state in ("warm", "cold") if hasattr(os, "posix_fadvise") else ("warm",):
            compare(Path(folder), state, args, pkl_bytes)
        stage3 = child("evaluate", folder)
        print(f"eval_probe.py: {stage3['seconds']:.2f} s, peak memory {megabytes(stage3)}")


def compare(folder: Path, state: str, args: argparse.Namespace, pkl_bytes: int) -> None:
    """Time both sides in turn with the page cache in the given state, and print their lines."""
    passes: dict[str, list[dict[str, float]]] = {"read": [], "score": []}
    if state == "warm":
        child("read", folder)
    for _ in range(args.repeats):
        for side, done in passes.items():
            if state == "cold":
                drop_from_cache(folder)
            done.append(child(side, folder))
    seconds = {
        side: statistics.median(one["seconds"] for one in done) for side, done in passes.items()
    }
    for side, name in (("read", "plain reading"), ("score", "metrics_probe.py")):
        slowest = max(one["seconds"] for one in passes[side])
        cpu = statistics.median(one["cpu"] for one in passes[side])
        print(
            f"{state}: {name:16s} {pkl_bytes / 1e6 / seconds[side]:6.0f} MB/s "
            f"{args.pairs / seconds[side]:6.0f} pairs/s   {seconds[side]:.2f} s "
            f"(slowest {slowest:.2f} s), CPU {cpu:.2f} s, peak memory {megabytes(*passes[side])}"
        )
    ratio = seconds["read"] / seconds["score"]
    print(f"{state}: stage 2 runs at {ratio:.0%} of plain reading (asked: {ASKED:.0%} or more)")


def compare_sizes(folder: Path, args: argparse.Namespace) -> None:
    """Time score_methods.py, and make_tables.py on its book, on more and more dialogues."""
    print(
        f"{','.join(METHODS)}; fitted on {args.trained_on} of {N_DOMAINS} domains, one probe seed; "
        f"{TURNS} turns, states {args.shape}; {usable_cores()} CPU cores"
    )
    n_states, width = map(int, args.shape.split("x"))
    before: dict[str, tuple[int, dict[str, Any]]] = {}
    for n in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=folder, prefix="score_speed_") as place:
            make_up_domains(Path(place), n, n_states, width)
            for side in ("methods", "tables"):
                done = child(side, place, "--trained_on", args.trained_on)
                line = (
                    f"{n:6d} dialogues, {side:7s} {done['seconds']:6.1f} s, CPU "
                    f"{done['cpu']:6.1f} s, memory {megabytes(done)}"
                )
                if side in before:
                    n_before, other = before[side]
                    times, cpu, memory = (done[k] / other[k] for k in ("seconds", "cpu", "peak"))
                    line += (
                        f"; x {n / n_before:.2f} dialogues: x {times:.2f} time, x {cpu:.2f} CPU, "
                        f"x {memory:.2f} memory"
                    )
                told = ", ".join(f"{what} {spent:.1f}" for what, spent in done["parts"].items())
                print(line + (f"\n        seconds: {told}" if told else ""), flush=True)
                before[side] = n, done


# --- the data ---------------------------------------------------------------------------------


def make_up_pairs(folder: Path, n: int) -> None:
    """Write n pairs, every other one hallucinated, and probe/probe.pkl with random weights."""
    rng = np.random.default_rng(0)
    size = N_STATES * HIDDEN_SIZE
    # windows into one pool of noise: drawing each state anew would take longer than all passes
    pool = rng.standard_normal(3 * size * TURNS + 1000 * n, dtype=np.float32).astype(np.float16)
    for item in range(n):
        states = pool[1000 * item :][: 3 * size * TURNS]
        by_turn = states.reshape(TURNS, len(TOKEN_KEYS), N_STATES, HIDDEN_SIZE)
        write_pair(
            folder,
            make_up_record(f"item-{item:04d}", nil_label=item % 2, rng=rng),
            {turn + 1: dict(zip(TOKEN_KEYS, by_turn[turn], strict=True)) for turn in range(TURNS)},
            model=MODEL,
        )
    weights, width = [], HIDDEN_SIZE
    for out in (256, 128, 64, 1):
        weight = rng.standard_normal((out, width), dtype=np.float32) / width**0.5
        weights += [("linear", weight, np.zeros(out, np.float32)), ("relu",)]
        width = out
    Probe(
        kind="saplma",
        weights=[*weights[:-1], ("sigmoid",)],
        model=MODEL,
        hidden_size=HIDDEN_SIZE,
        n_layers=N_STATES - 1,
        token_key=TOKEN_KEYS[0],
        layer_range=(LAYER, LAYER),
        mean=np.zeros(HIDDEN_SIZE, np.float32),
        scale=np.ones(HIDDEN_SIZE, np.float32),
    ).save(folder / "probe" / "probe.pkl")


def make_up_domains(folder: Path, n: int, n_states: int, width: int) -> None:
    """Write n dialogues with states [n_states, width], half hallucinated, a folder a domain."""
    rng = np.random.default_rng(0)
    size = n_states * width
    pool = rng.standard_normal(3 * size * TURNS + 24_000, dtype=np.float32).astype(np.float16)
    for place in range(24):
        states = pool[1000 * place :][: 3 * size * TURNS].copy()
        by_turn = states.reshape(TURNS, len(TOKEN_KEYS), n_states, width)
        by_turn[:, :, n_states // 2, :16] += place % 2  # a sign of the label, at one layer
        turns = {
            turn + 1: dict(zip(TOKEN_KEYS, by_turn[turn], strict=True)) for turn in range(TURNS)
        }
        record = make_up_record(f"source-{place}", nil_label=1 - place % 2, rng=rng)
        write_pair(folder / "sources", record, turns, model=MODEL)
        (folder / "sources" / f"source-{place}.json").unlink()
    for item in range(n):
        domain, y = f"domain-{item % N_DOMAINS}", item // N_DOMAINS % 2
        record = make_up_record(f"item-{item:05d}", nil_label=1 - y, rng=rng)
        place = folder / "pairs" / domain / f"{record['id']}.json"
        write_json(place, record | {"domain": domain})
        source = folder / "sources" / f"source-{2 * int(rng.integers(12)) + y}.pkl"
        os.link(source, place.with_suffix(".pkl"))


def make_up_record(item_id: str, *, nil_label: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return a dialogue's record with the keys, texts and token ids of stage 1."""
    said = rng.choice(WORDS, (TURNS, PROMPT_TOKENS + ANSWER_TOKENS), p=CHANCES)
    steps = [
        {
            "turn": turn,
            "prompt_type": "initial" if turn == 1 else "encouragement",
            "prompt": " ".join(said[turn - 1, :PROMPT_TOKENS]),
            "response": " ".join(said[turn - 1, PROMPT_TOKENS:]),
            "n_prompt_tokens": (PROMPT_TOKENS + ANSWER_TOKENS) * (turn - 1) + PROMPT_TOKENS,
            "n_response_tokens": ANSWER_TOKENS,
            "finish_reason": "stop",
            "perplexity": 1.5 + float(rng.random()),
            "prompt_ids": rng.integers(128_000, size=PROMPT_TOKENS).tolist(),
            "response_ids": rng.integers(128_000, size=ANSWER_TOKENS).tolist(),
            "metrics": {},
        }
        for turn in range(1, TURNS + 1)
    ]
    return {
        "id": item_id,
        "question": f"What is {item_id}?",
        "domain": "made-up",
        "model": MODEL,
        "nil_label": nil_label,
        "cot_steps": steps,
        "metrics": {},
    }


# --- one pass, in a process of its own ----------------------------------------------------------


def child(side: str, folder: str | Path, *options: object) -> dict[str, Any]:
    """Run one pass in a process of its own; return what `measured` does."""
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, "--folder", folder, *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"the pass {side!r} failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(pass_over: Any, folder: Path, trained_on: int) -> dict[str, Any]:
    """Run a pass; return its seconds, CPU seconds and one process's peak memory in bytes."""
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    found = pass_over(folder, trained_on)
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    return {"seconds": seconds, "cpu": cpu, "peak": peak_memory(), **(found or {})}


def peak_memory() -> int:
    """Return the peak memory in bytes of this process or, if that had more, of one it started."""
    unit = 1 if sys.platform == "darwin" else 1024
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include what the parent used before it started us
        own = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    else:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(own, started)


def read_plainly(folder: Path, *_: object) -> None:
    """Read every PKL once, one after another."""
    for path in sorted(folder.glob("*.pkl")):
        path.read_bytes()


def score(folder: Path, *_: object) -> None:
    """Run stage 2 on the folder."""
    probe = folder / "probe" / "probe.pkl"
    run_script("metrics_probe.py", "--json_dir", folder, "--pkl_dir", folder, "--probe_path", probe)


def evaluate(folder: Path, *_: object) -> None:
    """Run stage 3 on what stage 2 wrote."""
    run_script("eval_probe.py", "--data_dir", folder, "--report_dir", folder / "report")


def score_by_methods(folder: Path, trained_on: int) -> dict[str, Any]:
    """Run score_methods.py; return the seconds of its slowest parts and the peak in bytes."""
    book, taught = book_of(folder), [f"domain-{place}" for place in range(trained_on)]
    with watched() as peaks:
        run_script("scripts/score_methods.py", "--data_dir", folder / "pairs", "--save_path", book,
                   "--methods", ",".join(METHODS), "--probe_seeds", 1,
                   "--train_domains", ",".join(taught))  # fmt: skip
    spent = json.loads(book.with_suffix(".json").read_text())["about"]["seconds"]
    slowest = sorted(spent.items(), key=lambda part: -part[1])[:4]
    return {"parts": dict(slowest), "peak": max(peaks)}


def make_tables(folder: Path, *_: object) -> dict[str, Any]:
    """Run make_tables.py on that book; return the peak memory in bytes."""
    with watched() as peaks:
        run_script("scripts/make_tables.py", "--config", folder / "wide.json")
    return {"parts": {}, "peak": max(peaks)}


def book_of(folder: Path) -> Path:
    """Write the experiment that the book belongs to, and return where the book goes."""
    places = {"outputs_dir": str(folder / "outputs"), "reports_dir": str(folder / "reports")}
    write_json(folder / "wide.json", EXPERIMENT | places)
    experiment = load_experiment(folder / "wide.json")
    return experiment.book(experiment.models[0])


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """Yield what the processes' own memory in bytes was, ten times a second, as it is noted."""
    peaks, ended = [0], threading.Event()
    watch = threading.Thread(target=watch_memory, args=(peaks, ended), daemon=True)
    watch.start()
    yield peaks
    ended.set()
    watch.join()


def watch_memory(peaks: list[int], ended: threading.Event) -> None:
    """Note the memory that is this process's and its children's own, until it has ended."""
    own = os.getpid()
    while not ended.wait(0.1):
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        held = 0
        for process in (own, *children):
            with contextlib.suppress(OSError, IndexError):
                # pages that a fork shares are shared out, and so count once
                status = Path(f"/proc/{process}/smaps_rollup").read_text()
                held += int(status.split("Pss_Anon:")[1].split()[0]) * 1024
        peaks.append(held)


def run_script(name: str, *arguments: object) -> None:
    """Run one of the project's scripts in this process, as `python <name> <arguments>` would."""
    sys.argv = [name, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


SIDES = {
    "read": read_plainly,
    "score": score,
    "evaluate": evaluate,
    "methods": score_by_methods,
    "tables": make_tables,
}


def drop_from_cache(folder: Path) -> None:
    """Ask the kernel to forget the contents of the pairs' files."""
    for path in [*folder.glob("*.pkl"), *folder.glob("*.json")]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # only clean pages can be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def megabytes(*passes: dict[str, float]) -> str:
    """Return the largest peak memory of some passes as text."""
    return f"{max(one['peak'] for one in passes) / 1e6:.0f} MB"


if __name__ == "__main__":
    run_main(main)
