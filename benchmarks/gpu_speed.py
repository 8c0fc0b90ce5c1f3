#!/usr/bin/env python3
"""What stage 1's engine does on a GPU, in at most eight minutes: one command, one file of results.

    python benchmarks/gpu_speed.py --out gpu.jsonl
    python benchmarks/gpu_speed.py --out try.jsonl --shapes small --dialogues 8   # on a CPU, to try

Random weights of each shape in FP16; the sequential loop holds one dialogue, the engine 128. Three
rows of the engine for each shape: without guesses; with guesses that are nearly all right, for
random weights decoded greedily soon repeat themselves; and with guesses that are nearly all wrong,
at temperature 1. A real model lies between the last two. Runs are ordered so that a clock that
runs out costs the last ones alone, and those are named.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SPEED = Path(__file__).with_name("dialogue_speed.py")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="file of results, a JSON a line; must not exist")
    add("--shapes", default="llama-3.2-3b,llama-3.1-8b", help="default: %(default)s")
    add("--dialogues", type=int, default=128)
    add("--turns", type=int, default=6)
    add("--max_new_tokens", type=int, default=96)
    add("--seconds", type=float, default=480, help="for everything (default: %(default)s)")
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} is there already")
    ends = time.monotonic() + args.seconds
    greedy = ["--sides", "sequential,engine", "--drafts", "0,3"]
    drawn = ["--sides", "engine", "--drafts", "3", "--temperature", "1"]
    shapes = args.shapes.split(",")
    runs = [(shape, greedy) for shape in shapes] + [(shape, drawn) for shape in shapes]
    cut = [" ".join([shape, *more]) for shape, more in runs if not run(args, shape, more, ends)]
    if args.out.exists():
        summary([json.loads(line) for line in args.out.read_text().splitlines()])
    for one in cut:
        print(f"not finished in time, or failed: {one}")
    return 1 if cut else 0


def run(args: argparse.Namespace, shape: str, more: list[str], ends: float) -> bool:
    """Run a part in what is left of the time; whether it came to its end."""
    left = ends - time.monotonic()
    if left < 20:  # a process takes so long to begin
        return False
    command = [sys.executable, SPEED, "--shape", shape, "--sequential", 1, *more]
    for name in ("dialogues", "turns", "max_new_tokens", "out"):
        command += [f"--{name}", getattr(args, name)]
    process = subprocess.Popen([*map(str, command)], start_new_session=True)
    try:
        return process.wait(left) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the side that it waits for
            process.wait()


def summary(rows: list[dict]) -> None:
    """Print bytes per second beside the card's, and what guesses did."""
    print("\nmodel          side        drafts  temperature  tokens/s   ratio  GB/s  of the copy's")
    first = {row["model"]: row for row in rows if row["side"] == "sequential"}
    for row in rows:
        speed, slow = row["tokens"] / row["seconds"], first.get(row["model"])
        ratio = speed * slow["seconds"] / slow["tokens"] if slow else float("nan")
        moved = row.get("bytes", 0) / row["seconds"]
        share = moved / row["machine"]["bandwidth"]
        drafts = "" if row["drafts"] is None else row["drafts"]
        print(
            f"{row['model']:14s} {row['side']:11s} {drafts:>6} "
            f"{row['temperature']:12g} {speed:9.1f} {ratio:7.1f} "
            + (f"{moved / 1e9:5.0f} {share:8.0%}" if moved else "")
            + (f"   {row['per_advance']:.2f} tokens a pass" if "per_advance" in row else "")
        )


if __name__ == "__main__":
    sys.exit(main())
