"""Between this project and OpenHalDet (arXiv 2606.06959): its folders in, a submission out.

    python scripts/openhaldet.py import experiments/Qwen/Qwen3-8B/triviaqa_1000samples \\
        --output_dir ./outputs/openhaldet
    python scripts/score_methods.py --data_dir ./outputs/openhaldet --save_path ./scores.pkl \\
        --val_fraction 0.2 --test_fraction 0.2
    python scripts/openhaldet.py submit --scores ./scores.pkl --method saplma --backbone Qwen3-8B \\
        --link https://github.com/me/mine --save_path ./submission.md

`import` makes a pair of one turn of every answer that a folder holds (in its files
03_final_scored_metadata.jsonl and 02_hidden_states.h5, which needs h5py): no model is loaded, and
detectors score what the folder keeps, some layers at the answer's end. Answers without a verdict or
without their states are counted. For SpikeScore, which needs a dialogue, give that JSONL to stage 1
instead, as "dataset_path" with "first_answers": "shipped" (docs/tables.md).

`submit` writes what OpenHalDet's leaderboard asks for in an issue: title, access regime, backbone,
link and the AUROC of each set, of what was trained on that set and tested on its held-out items.
No score is turned round, whatever its AUROC.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.data.openhaldet import read_folder  # noqa: E402
from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.files import make_folder, write_atomic, write_json  # noqa: E402
from spikescore.pairs import find_records, read_record, write_pair  # noqa: E402
from spikescore.runtime import progress  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    read = commands.add_parser("import", help="make pairs of a folder of OpenHalDet")
    read.add_argument("folder", help="experiments/<model>/<set>_<n>samples")
    read.add_argument("--output_dir", required=True, help="where the pairs go, a folder per set")
    write = commands.add_parser("submit", help="write a submission to its leaderboard")
    add = write.add_argument
    add("--scores", required=True, metavar="P.pkl", help="a score book of score_methods.py")
    add("--method", default="spike_score", help="its name (default: %(default)s)")
    add("--backbone", required=True, help="the model, as the leaderboard calls it")
    add("--link", default="", help="your paper or code")
    add("--save_path", required=True, metavar="P.md", help="the text; P.json has it as data")
    return parser.parse_args(arguments)


def import_folder(folder: str, output_dir: str) -> int:
    """Write the pairs of a folder and say what became of its rows.

    A pair that is there already stays as it is, with what stages wrote into it. UserError for one
    of another model or answer, and for two rows of one id.
    """
    counts: Counter[str] = Counter()
    written: set[Path] = set()
    for record, states in progress(read_folder(folder), "rows", unit="row"):
        path = Path(output_dir) / record["domain"] / f"{record['id']}.json"
        if record["nil_label"] is None:
            counts["without a verdict of right or wrong"] += 1
        elif isinstance(states, str):
            counts[states] += 1
        elif path in written:
            raise UserError(f'"{folder}" holds two rows of the id "{record["id"]}"; keep one')
        elif is_there(path, record, first=not written):
            counts["there already"] += 1
        else:
            make_folder(path.parent)
            write_pair(path.parent, record, {1: states}, model=record["model"])
            counts["written"] += 1
            written.add(path)
    if not counts["written"] and not counts["there already"]:
        told = ", ".join(f"{n} {why}" for why, n in counts.items() if n) or "no rows"
        raise UserError(f'no answer of "{folder}" can be scored ({told})')
    print(", ".join(f"{n} {why}" for why, n in counts.items()), f"in {output_dir}")
    return 0


def is_there(path: Path, record: dict[str, Any], *, first: bool) -> bool:
    """Whether a row's pair is there; UserError where that holds another answer or model. Before the
    first is written, pairs beside it are looked at too: one folder, one model.
    """
    beside = path
    if first and not path.exists() and path.parent.is_dir():
        beside = next(iter(find_records(path.parent)), path)
    held = read_record(beside) if beside.exists() else None
    if held is None:
        return False
    said = [one["cot_steps"][0].get("response") for one in (held, record)]
    differs = "model" if held.get("model") != record["model"] else ""
    if not differs and beside == path and said[0] != said[1]:
        differs = "answer"
    if differs:
        raise UserError(f'"{beside}" is of another {differs}; choose another --output_dir')
    return beside == path


def submit(args: argparse.Namespace) -> int:
    """Write one method's submission."""
    if Path(args.save_path).suffix == ".json":
        raise UserError(f'--save_path "{args.save_path}" is where the data go; name the text .md')
    from spikescore.detectors.score_book import load_score_book
    from spikescore.report.comparison import Comparison
    from spikescore.report.main_tables import main_entries
    from spikescore.report.openhaldet import submission, submission_text

    book = load_score_book(args.scores)
    comparison = Comparison(book, draws=1)
    entries = {entry.name: entry for entry in main_entries(comparison)}
    if args.method not in entries:
        raise UserError(
            f'the score book "{args.scores}" has no "{args.method}"; it has {", ".join(entries)}'
        )
    told = submission(comparison, entries[args.method], backbone=args.backbone, link=args.link)
    settings = book.about.get("settings", {})
    notes = [
        "Trained, chosen and tested on splits of each set by question: validation "
        f"{settings.get('val_fraction', '?')}, test {settings.get('test_fraction', '?')}, seed "
        f"{settings.get('seed', '?')}; mean over {settings.get('probe_seeds', '?')} probe seeds.",
        "y = 1 is hallucinated. The score's direction was known or learnt before: it is not "
        "turned round on the test items, so an AUROC below 50 may stand here.",
        f"Answers: {book.model}.",
    ]
    save_path = Path(args.save_path)
    make_folder(save_path.parent)
    write_json(save_path.with_suffix(".json"), {**told, "notes": notes})
    write_atomic(save_path, submission_text(told, notes).encode())
    print(f"wrote {save_path} and {save_path.with_suffix('.json')}")
    return 0


def main() -> int:
    args = parse_arguments()
    if args.command == "import":
        return import_folder(args.folder, args.output_dir)
    return submit(args)


if __name__ == "__main__":
    run_main(main)
