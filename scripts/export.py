"""Export dialogues, labels and scores, or a probe, in the forms that others publish in.

    python scripts/export.py data --data_dir ./outputs/demo --save_dir ./published/demo \\
        --books ./reports/tiny/scores/tiny.main.pkl --repo_id me/spikescore-demo --license CC-BY-4.0
    python scripts/export.py probe --probe_path ./probe_output/probe.pkl \\
        --save_dir ./published/probe --repo_id me/spikescore-probe --license Apache-2.0

`data` writes Parquet tables of dialogues, turns and the scores of score books (score_methods.py),
with a data card (README.md) and Croissant metadata (croissant.json). With --without_dialogues it
leaves out all texts of questions, references, prompts and answers, for data sets whose rows may
not be shared; ids, labels and figures stay. `probe` writes safetensors with a model card;
metrics_probe.py and detect.py read the file as they read the pickle.

No local path, key or password is written. Nothing is uploaded: look at the new folder first.
--repo_id says where it will be published; the cards name that address and its owner.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import run_main  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    data = tasks.add_parser("data", help="dialogues, labels and scores as Parquet")
    data.add_argument("--data_dir", required=True, type=Path, help="folder of pairs, or of shards")
    data.add_argument(
        "--books", default="", metavar="A,B", help="score books of these dialogues (.pkl)"
    )
    data.add_argument(
        "--without_dialogues",
        action="store_true",
        help="leave out every text of a question, reference, prompt or answer",
    )
    probe = tasks.add_parser("probe", help="a probe as safetensors")
    probe.add_argument("--probe_path", required=True, type=Path, help="the trained probe")
    for task in (data, probe):
        task.add_argument("--save_dir", required=True, type=Path, help="a new folder")
        task.add_argument(
            "--repo_id", required=True, metavar="OWNER/NAME", help="where it will be published"
        )
        task.add_argument(
            "--license",
            required=True,
            help="an SPDX identifier as it is spelled, an address, or other",
        )
    args = parser.parse_args(arguments)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repo_id):
        parser.error(f'--repo_id must be OWNER/NAME, not "{args.repo_id}"')
    if not re.fullmatch(r"https?://\S+|[A-Za-z0-9.+-]+", args.license):
        parser.error(f'--license must be such as CC-BY-4.0 or an address, not "{args.license}"')
    return args


def main() -> int:
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.task == "probe":
        from spikescore.probes.card import publish_probe
        from spikescore.probes.probe import load_probe

        probe = load_probe(args.probe_path)
        for path in publish_probe(probe, args.save_dir, repo_id=args.repo_id, license=args.license):
            print(f"wrote {path}")
        return 0
    return export_data(args)


def export_data(args: argparse.Namespace) -> int:
    """Export dialogues and print what was written; 1 where files could not be read."""
    from spikescore.report.published import publish_data

    found = publish_data(
        args.data_dir,
        [Path(name) for name in args.books.split(",") if name],
        args.save_dir,
        repo_id=args.repo_id,
        license=args.license,
        texts=not args.without_dialogues,
    )
    for table, part in found.files.items():
        print(f"{args.save_dir / part.name}: {found.rows[table]:,} rows, {part.size / 1e6:.1f} MB")
    print(f"wrote {args.save_dir}, with README.md and croissant.json")
    if not found.texts:
        print("no text of a question, reference, prompt or answer is in it")
    for reason, count in found.left_out.items():
        print(f"left out: {count} {reason}")
    if found.hidden:
        print(f"{found.hidden} texts hold *** in the place of what looks like a key or password")
    for path in found.damaged:
        print(f"could not be read, and is left out: {path}", file=sys.stderr)
    return 1 if found.damaged else 0


if __name__ == "__main__":
    run_main(main)
