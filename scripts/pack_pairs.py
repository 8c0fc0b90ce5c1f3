"""Pack a folder of pairs into a few shards, unpack them again, or check them by hash.

    python scripts/pack_pairs.py pack --data_dir ./outputs/demo --save_dir ./packed/demo
    python scripts/pack_pairs.py check --data_dir ./packed/demo
    python scripts/pack_pairs.py unpack --data_dir ./packed/demo --save_dir ./unpacked/demo

A hub refuses ten thousand small pickles. `pack` puts each dialogue's JSON into Parquet files, its
hidden states into safetensors files, what measure_answers.py wrote beside it too, and copies all
other files. Every stage reads the packed folder as it reads the folder itself, and writes what it
finds (scores, labels) beside the shards, which never change. `unpack` gives all files back, byte
for byte, those that stages wrote in the place of the packed ones.

`pack` reads everything back and compares it by SHA-256 before the new folder gets its name. A shard
that is missing, cut short or changed is named by whatever reads it (exit status 2).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import run_main  # noqa: E402
from spikescore.packing import check, pack, unpack  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("pack", "unpack", "check"), help="what to do")
    add = parser.add_argument
    add("--data_dir", required=True, help="folder of the pairs (pack) or of the shards")
    add("--save_dir", help="the new folder of pack and unpack")
    add("--shard_gb", type=float, default=4.0, help="size of a shard of states (%(default)s)")
    args = parser.parse_args(arguments)
    if (args.save_dir is None) != (args.task == "check"):
        parser.error("pack and unpack need --save_dir, and check takes none")
    if not 0 < args.shard_gb < float("inf"):
        parser.error(f"--shard_gb must be a number above 0, not {args.shard_gb:g}")
    return args


def main() -> int:
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.task == "pack":
        told = pack(args.data_dir, args.save_dir, shard_bytes=int(args.shard_gb * 1e9))
    elif args.task == "unpack":
        told = unpack(args.data_dir, args.save_dir)
    else:
        told = check(args.data_dir)
    print(
        f"{told.pairs} pairs in {told.shards} shards, {told.copied} other files: "
        "each has the hash that it was packed with"
    )
    if told.beside:
        print(f"{told.beside} files were written beside the shards since, and come before them")
    if told.left:
        print(f"left behind: {len(told.left)} hidden files, such as {told.left[0]}")
    if args.save_dir:
        print(f"wrote {args.save_dir}")
    return 0


if __name__ == "__main__":
    run_main(main)
