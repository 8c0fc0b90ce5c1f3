#!/usr/bin/env python3
"""How long stage 3 takes on a full-size experiment, on this machine.

    python benchmarks/eval_speed.py                     # 6,000 dialogues of 20 turns, 2,000 draws
    python benchmarks/eval_speed.py --dialogues 600     # quicker
    python benchmarks/eval_speed.py --keep ./made_up    # leave the dialogues and the report there

The dialogues are made up in a temporary folder, six domains, in the form that stages 1 and 2 leave
them: texts of about 60 words an answer, token ids, one probe score per turn, a spike planted in the
hallucinated ones. eval_probe.py then runs twice as a user runs it, Python's start included: the
first run writes SpikeScore into every JSON, the second finds it there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripts' library is not installed, it lies beside them

from spikescore.files import write_json  # noqa: E402

DOMAINS = ("trivia", "commonsense", "reading", "conversation", "arithmetic", "wordproblems")
ANSWER_WORDS, ANSWER_TOKENS, PROMPT_TOKENS = 60, 80, 30
ASKED = 30.0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dialogues", type=int, default=6000, help="dialogues in all (%(default)s)")
    add("--turns", type=int, default=20, help="turns of each (%(default)s)")
    add("--draws", type=int, default=2000, help="bootstrap draws (%(default)s)")
    add("--keep", metavar="FOLDER", help="make the dialogues here, unless there, and keep them")
    args = parser.parse_args()
    if args.dialogues < 120 or args.turns < 4:
        parser.error("--dialogues must be at least 120, --turns at least 4")
    return args


def main() -> None:
    """Make up the dialogues, run stage 3 on them twice, print plain lines."""
    args = parse_arguments()
    with working_folder(args.keep) as folder:
        data, report = folder / "outputs", folder / "report"
        if not data.exists():
            make_up_dialogues(data, args.dialogues, args.turns)
        paths = list(data.rglob("*.json"))
        size = sum(path.stat().st_size for path in paths)
        print(
            f"{len(paths)} dialogues, {size / 1e6:.0f} MB of JSON, {args.draws} draws, "
            f"{os.cpu_count()} CPU cores"
        )
        for state in ("SpikeScore to be written", "nothing to be written"):
            seconds = evaluate(data, report, args.draws)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            verdict = f" (asked: {ASKED:.0f} s at most)" if len(paths) == 6000 else ""
            print(f"eval_probe.py, {state}: {seconds:.1f} s{verdict}, peak memory {peak:.0f} MB")
        print(f"report.html: {(report / 'report.html').stat().st_size / 1e6:.1f} MB")


@contextlib.contextmanager
def working_folder(keep: str | None) -> Iterator[Path]:
    """Yield the folder to work in: the one to keep, or a temporary one."""
    if keep:
        yield Path(keep)
        return
    with tempfile.TemporaryDirectory(prefix="eval_speed_") as folder:
        yield Path(folder)


def make_up_dialogues(folder: Path, n: int, turns: int) -> None:
    """Write n scored dialogues, a folder per domain, two in five of them hallucinated."""
    rng = np.random.default_rng(0)
    words = made_up_words(rng)
    prompts = [sentence(rng, words, 20) for _ in range(30)]
    for domain in DOMAINS:
        (folder / domain).mkdir(parents=True)
    for place in range(n):
        domain = DOMAINS[place % len(DOMAINS)]
        record = made_up_record(f"{domain}-{place:05d}", domain, turns, rng, words, prompts)
        write_json(folder / domain / f"{record['id']}.json", record)


def made_up_words(rng: np.random.Generator) -> np.ndarray:
    """Return 4,000 pronounceable words of one to four syllables."""
    syllables = [first + vowel for first in "bcdfglmnprstv" for vowel in "aeiou"]
    lengths = rng.integers(1, 5, size=4000)
    return np.array(["".join(rng.choice(syllables, length)) for length in lengths])


def sentence(rng: np.random.Generator, words: np.ndarray, n: int) -> str:
    """Return n words, the frequent ones as frequent as in English (Zipf's law)."""
    return " ".join(words[(words.size ** rng.random(n)).astype(int) - 1]).capitalize() + "."


def made_up_record(
    item_id: str,
    domain: str,
    turns: int,
    rng: np.random.Generator,
    words: np.ndarray,
    prompts: list[str],
) -> dict[str, Any]:
    """Return one dialogue in the form of stages 1 and 2; a hallucinated one spikes higher."""
    y = int(rng.random() < 0.4)
    level = 0.35 + 0.05 * y + 0.12 * rng.standard_normal()
    scores = np.clip(level + 0.07 * rng.standard_normal(turns), 0, 1)
    spike = rng.integers(1, turns - 1)
    scores[spike] = np.clip(scores[spike] + abs(rng.normal(0.15 + 0.12 * y, 0.15)), 0, 1)
    question = sentence(rng, words, 12)[:-1] + "?"
    steps = [
        {
            "turn": turn,
            "prompt_type": "question" if turn == 1 else "critical",
            "prompt": question if turn == 1 else prompts[rng.integers(len(prompts))],
            "response": sentence(rng, words, ANSWER_WORDS),
            "n_prompt_tokens": (PROMPT_TOKENS + ANSWER_TOKENS) * turn,
            "n_response_tokens": ANSWER_TOKENS + int(rng.integers(-20, 20)),
            "finish_reason": "stop",
            "perplexity": 1.2 + float(rng.random()) + 0.1 * y,
            "prompt_ids": rng.integers(128_000, size=PROMPT_TOKENS).tolist(),
            "response_ids": rng.integers(128_000, size=ANSWER_TOKENS).tolist(),
            "metrics": {"probe_pred": float(scores[turn - 1])},
        }
        for turn in range(1, turns + 1)
    ]
    split = ("train", "val", "test", "test")[rng.integers(4)] if domain == DOMAINS[0] else "unseen"
    return {
        "id": item_id,
        "question": question,
        "gold_answers": [sentence(rng, words, 2)[:-1]],
        "domain": domain,
        "group": item_id,
        "model": "made-up",
        "nil_label": 1 - y,
        "metrics": {
            "probe_pred": scores.tolist(),
            "probe": {"path": "saplma.pkl", "kind": "saplma", "train_domains": [DOMAINS[0]],
                      "spike_threshold": 0.5},
            "probe_split": split,
        },
        "complete": True,
        "cot_steps": steps,
    }  # fmt: skip


def evaluate(data: Path, report: Path, draws: int) -> float:
    """Run stage 3 in a process of its own and return its wall-clock seconds."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, str(ROOT / "eval_probe.py"), "--data_dir", str(data),
         "--report_dir", str(report), "--draws", str(draws)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
