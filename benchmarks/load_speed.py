#!/usr/bin/env python3
"""How fast a big set is read, beside plain parsing of the same file, on this machine.

    python benchmarks/load_speed.py                  # 590,000 rows of synthweb size, 6 GB of JSONL
    python benchmarks/load_speed.py --rows 20000     # quicker

The rows are made up in a temporary folder, which is removed at the end: all 35 columns of
cds-jb/synthweb-qwen3.5-9b-multiscale-inference, 16 probes a document, about 10 KB a row as its card
says, as JSONL and as Parquet (zstd, 1,000 rows a row group). Plain parsing is `json.loads` of each
line, and `ParquetFile.iter_batches` with `to_pylist`, all columns: both give Python rows. Arrow
columns that never become Python objects are timed as well, for comparison. Ours is
`iter_questions`: rows checked, made into questions, their ids compared. Nothing is kept on either
side.

Each pass has a process of its own; its time is that of the work, without Python's start; its memory
is the peak of the process. The sides take turns, `--repeats` times, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripts' library is not installed, it lies beside them

from spikescore.data.reading import iter_questions  # noqa: E402

PROBES = ["word"] * 5 + ["lens"] * 5 + ["sentence"] * 3 + ["paragraph"] * 2 + ["whole"]
DOCUMENT_CHARACTERS = 5400
ROW_GROUP = BATCH = 1000
ASKED = 0.5


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=590_000, help="rows to make up (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="passes a side (%(default)s)")
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- rows of the size --------------------------------------------------------------------------


def made_up_rows(n: int) -> Iterator[dict[str, Any]]:
    """Yield n probes; every document is a text of its own, every answer stands in it."""
    draw = random.Random(7)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(5000)]
    for start in range(0, n, len(PROBES)):
        text = " ".join(draw.choices(words, k=DOCUMENT_CHARACTERS // 6))[:DOCUMENT_CHARACTERS]
        paragraphs = (text[at : at + 600] for at in range(0, len(text), 600))
        document = '.\n\nAs "they" say — '.join(paragraphs)
        for slot in range(min(len(PROBES), n - start)):
            yield probe(document, start // len(PROBES), slot, draw)


def probe(document: str, number: int, slot: int, draw: random.Random) -> dict[str, Any]:
    """Return one row in the card's schema."""
    split = draw.randrange(len(document) // 4, 3 * len(document) // 4)
    scope = PROBES[slot]
    long = scope not in ("word", "lens")
    at = draw.randrange(split)
    answer = document[at : at + (200 if long else 20)].strip() or "answer"
    scores = [round(draw.random(), 1) for _ in range(5)] if long else None
    note = document[at : at + 180] if long else None
    return {
        "doc": document, "scope": scope,
        "verbalizer_prompt": f"What stands {draw.randint(1, 90)} words before the split?",
        "context": document[split:], "atom_text": answer, "target_response": answer,
        "incorrect_plausible_answer": answer[::-1],
        "bb_answer_rollout_answers": [answer] * 5 if long else None,
        "bb_answer_rollout_scores": scores,
        "bb_answer_score_mean": statistics.fmean(scores) if scores else None,
        "bb_answer_score_max": max(scores) if scores else None,
        "bb_answer_score_min": min(scores) if scores else None,
        "row_seed": number, "doc_id": f"<urn:uuid:{number:032x}>",
        "doc_source": f"https://example.org/{number}", "doc_idx": 0, "split_char_offset": split,
        "row_splits": {"word_lens": split, "sentence": split, "paragraph": split, "whole": split},
        "doc_choice_rationale": document[:150], "split_rationale": document[150:300],
        "slot_idx": float(slot), "target": "prefix", "typicality": None, "abs_index": 4.0,
        "signed_index": -4.0, "signed_index_hint": -4.0, "actual_word_distance_from_split": 4.0,
        "synergy_check": note, "distribution_check": note, "difficulty_check": note,
        "source": "haiku" if long else "python_template",
        "n_tokens_actual": 9.0 if scope == "lens" else None,
        "tokenizer": "Qwen3-8B" if scope == "lens" else None,
        "generator_model": "made-up", "source_model": "made-up",
    }  # fmt: skip


def schema() -> pyarrow.Schema:
    """Return the card's column types."""
    text, real, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    types = {
        "bb_answer_rollout_answers": pyarrow.list_(text),
        "bb_answer_rollout_scores": pyarrow.list_(real),
        "row_splits": pyarrow.struct(
            [(name, whole) for name in ("word_lens", "sentence", "paragraph", "whole")]
        ),
    }
    types |= dict.fromkeys(("row_seed", "doc_idx", "split_char_offset"), whole)
    for name in next(made_up_rows(1)):
        number = "index" in name or "score_" in name or name.startswith(("slot", "n_", "actual"))
        types.setdefault(name, real if number else text)
    return pyarrow.schema([(name, types[name]) for name in next(made_up_rows(1))])


def write_files(folder: Path, n: int) -> None:
    """Write the same rows as rows.jsonl and rows.parquet."""
    columns = schema()
    group: list[dict[str, Any]] = []
    with (
        open(folder / "rows.jsonl", "w", encoding="utf-8") as lines,
        parquet.ParquetWriter(folder / "rows.parquet", columns, compression="zstd") as table,
    ):
        for row in tqdm(made_up_rows(n), total=n, desc="making rows", unit="row"):
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            group.append(row)
            if len(group) == ROW_GROUP:
                table.write_table(pyarrow.Table.from_pylist(group, columns))
                group.clear()
        if group:
            table.write_table(pyarrow.Table.from_pylist(group, columns))


# --- the sides --------------------------------------------------------------------------------


def plain_json(path: Path) -> int:
    """Parse each line and drop it."""
    with open(path, encoding="utf-8") as file:
        return sum(1 for line in file if json.loads(line))


def plain_parquet(path: Path) -> int:
    """Read all columns, batch by batch, and drop them."""
    return sum(batch.num_rows for batch in parquet.ParquetFile(path).iter_batches(BATCH))


def plain_parquet_rows(path: Path) -> int:
    """Read all columns, batch by batch, as Python rows."""
    return sum(len(batch.to_pylist()) for batch in parquet.ParquetFile(path).iter_batches(BATCH))


def ours(path: Path) -> int:
    """Read the questions and drop them."""
    return sum(1 for _ in iter_questions(path))


SIDES = {
    "json.loads": plain_json,
    "iter_questions JSONL": ours,
    "pyarrow columns": plain_parquet,
    "pyarrow rows": plain_parquet_rows,
    "iter_questions Parquet": ours,
}


def measure(side: str, path: Path) -> None:
    """Run one pass in this process; print rows, seconds, CPU seconds and peak memory as JSON."""
    begun, cpu = time.perf_counter(), time.process_time()
    rows = SIDES[side](path)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print(json.dumps({"rows": rows, "seconds": seconds, "cpu": cpu, "peak": peak_memory()}))


def peak_memory() -> int:
    """Return this process's peak in bytes.

    From /proc where there is one: Linux counts the parent's peak in a child's ru_maxrss.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_side(side: str, path: Path) -> dict[str, float]:
    """Run one pass in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--file", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> int:
    """Make the files, run the sides in turn, print the table; 1 when slower than asked."""
    arguments = parse_arguments()
    if arguments.side:
        measure(arguments.side, Path(arguments.file))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_files(Path(folder), arguments.rows)
        files = {side: Path(folder) / "rows.parquet" for side in SIDES}
        files |= {side: Path(folder) / "rows.jsonl" for side in list(SIDES)[:2]}
        for name in ("rows.jsonl", "rows.parquet"):
            print(f"{name}: {(Path(folder) / name).stat().st_size / 1e9:.2f} GB")
        passes = [
            {side: run_side(side, path) for side, path in files.items()}
            for _ in range(arguments.repeats)
        ]
    return report(passes, arguments.rows)


def report(passes: list[dict[str, dict[str, float]]], n: int) -> int:
    """Print the medians and the ratios of speeds, by CPU time too: other work does not slow it."""
    seconds, cpu = (
        {side: statistics.median(one[side][kind] for one in passes) for side in SIDES}
        for kind in ("seconds", "cpu")
    )
    for side in SIDES:
        assert all(one[side]["rows"] == n for one in passes), f"{side} did not read {n} rows"
        peak = max(one[side]["peak"] for one in passes) / 1e6
        rate = f"{n / seconds[side]:9.0f} rows/s"
        print(f"{side:<24} {seconds[side]:7.1f} s {rate} {cpu[side]:7.2f} CPU s {peak:6.0f} MB")
    missed = 0
    for plain, side, asked in (
        ("json.loads", "iter_questions JSONL", ASKED),
        ("pyarrow rows", "iter_questions Parquet", ASKED),
        ("pyarrow columns", "iter_questions Parquet", None),
    ):
        ratio, cpu_ratio = seconds[plain] / seconds[side], cpu[plain] / cpu[side]
        missed += asked is not None and cpu_ratio < asked
        note = f" (asked: {asked})" if asked else ""
        print(f"{side} at {ratio:.2f} of the speed of {plain}, by CPU time {cpu_ratio:.2f}{note}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
