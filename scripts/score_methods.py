"""Stage 2 for many methods: fit every detector on every domain and score every dialogue.

    python scripts/score_methods.py --data_dir ./outputs/demo --save_path ./reports/try/scores.pkl
    python scripts/score_methods.py --data_dir ./outputs/demo --save_path ./scores.pkl \\
        --detector mine.py:Mine

Reads the finished, labelled pairs of stage 1 under --data_dir (any depth), and what
measure_answers.py wrote beside them. For every training domain its items are split by question into
train, validation and test; each method that learns is fitted on the train split, once per probe
seed if there is chance in it, and scores ALL items of all domains. A method that learns nothing
scores them once. The --turn_scorers score every turn of every dialogue besides. y = 1 means
hallucinated and a higher score more hallucinated.

With --score_dirs the fitted methods score the dialogues of other folders instead, of the same model
(another prompt schedule, say): each gets a book of its own, <save_path without .pkl>.<folder>.pkl.
--multi_source tests every domain by what all others taught together, in a book of its own.
--layer_grid fits SAPLMA on each layer and token instead of choosing, and keeps only what tables of
layers need. --detector adds a detector of your own to the methods: a class in a file that is no
part of the project (docs/add-a-detector.md). It is tried before the others are fitted.

Writes a score book, <save_path>.pkl with the scores and <save_path>.json with items, splits,
methods and what was chosen; tables are made from it alone. A method whose measures are missing, or
a domain with too few items of a class, is left out and named at the end; a method whose results
are not what a detector must return is named at once, as are measures that cannot be read, and the
exit status is 1. Nothing is written to the data folder.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.detectors.answers import read_answers  # noqa: E402
from spikescore.detectors.scoring import (  # noqa: E402
    Settings,
    score_layer_grid,
    score_methods,
    summary,
)
from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.files import make_folder  # noqa: E402
from spikescore.pairs import DEFAULT_TOKEN_KEY, TOKEN_KEYS  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", required=True, help="folder of the pairs of stage 1, recursive")
    add("--save_path", required=True, metavar="P.pkl", help="where to write the score book")
    add("--methods", type=names, metavar="A,B", help="methods, comma between (default: all)")
    add(
        "--detector",
        action="append",
        default=[],
        metavar="FILE.py:CLASS",
        help="a detector of your own, beside the methods; may be repeated",
    )
    add("--probe_seeds", type=int, default=5, help="fits of a method with chance (%(default)s)")
    add(
        "--token_key",
        choices=TOKEN_KEYS,
        default=DEFAULT_TOKEN_KEY,
        metavar="KEY",
        help=f"whose states to read: {', '.join(TOKEN_KEYS)} (default: {DEFAULT_TOKEN_KEY})",
    )
    add("--train_domains", type=names, metavar="A,B", help="domains to train on (default: all)")
    add("--val_fraction", type=float, default=0.2, help="share for choosing (%(default)s)")
    add("--test_fraction", type=float, default=0.3, help="share held out (%(default)s)")
    add("--seed", type=int, default=42, help="seed of the splits (%(default)s)")
    add(
        "--turn_scorers",
        type=names,
        metavar="A,B",
        help="methods that score every turn too (default: all usual ones among the methods)",
    )
    add("--score_dirs", type=names, metavar="A,B", help="score these folders, not --data_dir")
    add("--multi_source", action="store_true", help="train on all domains but the tested one")
    add("--layer_grid", action="store_true", help="SAPLMA at every layer and token, one seed")
    args = parser.parse_args(arguments)
    beside = ("methods", "turn_scorers", "score_dirs", "detector", "multi_source")
    if args.layer_grid and any(getattr(args, name) for name in beside):
        parser.error(f"--layer_grid takes no {', '.join('--' + name for name in beside)}")
    if args.probe_seeds < 1:
        parser.error(f"--probe_seeds must be at least 1, not {args.probe_seeds}")
    return args


def names(text: str) -> list[str] | None:
    """Read a comma-separated list; "all" is None."""
    return None if text == "all" else [name.strip() for name in text.split(",")]


def main() -> int:
    args = parse_arguments()
    save_path = Path(args.save_path)
    started = time.perf_counter()
    settings = Settings(
        methods=args.methods,
        train_domains=args.train_domains,
        turn_scorers=args.turn_scorers,
        detectors=args.detector,
        probe_seeds=args.probe_seeds,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        seed=args.seed,
        multi_source=args.multi_source,
    )
    if save_path.is_dir():
        raise UserError(f'--save_path "{save_path}" is a folder; give a file, such as scores.pkl')
    make_folder(save_path.parent)
    paths = [book_path(save_path, folder) for folder in args.score_dirs or ()]
    if len(set(paths)) < len(paths):
        raise UserError("--score_dirs: two of the folders have one name, as their books would have")
    if args.layer_grid:
        books = {save_path: score_layer_grid(args.data_dir, settings)}
    else:
        items = read_answers(args.data_dir, token_key=args.token_key)
        targets = [read_answers(one, token_key=args.token_key) for one in args.score_dirs or ()]
        found = score_methods(items, settings, targets=targets)
        books = dict(zip(paths or [save_path], found, strict=True))
    for path, book in books.items():
        book.about |= {
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "data_dir": str(args.data_dir),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        written = book.save(path)
        print(summary(book))
        print("wrote " + " and ".join(map(str, written)))
    print(f"{time.perf_counter() - started:.0f} s in all")
    about = [book.about for book in books.values()]
    return 1 if any(one.get("misbehaved") or one.get("unread") for one in about) else 0


def book_path(save_path: Path, folder: str) -> Path:
    """Return where the book of a scored folder goes."""
    return save_path.with_name(f"{save_path.stem}.{Path(folder).resolve().name}.pkl")


if __name__ == "__main__":
    run_main(main)
