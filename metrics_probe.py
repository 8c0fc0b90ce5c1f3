"""Stage 2: score every turn of every dialogue with a trained probe.

    python ./metrics_probe.py --json_dir ./outputs --pkl_dir ./outputs \\
        --probe_path ./probe_output/probe.pkl

Each JSON under --json_dir, subfolders included, is scored from the PKL of the same relative path
under --pkl_dir, or else from the one next to it. The scores go back into the JSON and nothing else
in it changes: `metrics.probe_pred` of each step is that turn's score, `metrics.probe_pred` of the
dialogue lists them all. A higher score means more hallucinated. Files of the older public form
(`reasoning_chain`) keep their form. Running the stage again replaces the scores, and takes what
stage 3 made of other ones away.

The probe file says which token and layers it was trained on; --token_key and --layer_range are only
needed for older files that do not, and are refused where they contradict it. A dialogue whose PKL
is missing or broken is named, and the run goes on. Exit status: 0 all scored, 1 some dialogues
could not be, 2 an error.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from spikescore.errors import UserError, run_main
from spikescore.pairs import DEFAULT_TOKEN_KEY, TOKEN_KEYS, find_records
from spikescore.probes.layers import parse_layer_range
from spikescore.probes.probe import load_probe
from spikescore.probes.report import report
from spikescore.probes.scoring import Folders, complete_probe, score_all, worker_processes
from spikescore.report.tracking import log_run
from spikescore.shards import is_folder

SHOWN = 20
"""Dialogues that are named when they could not be scored; more are only counted."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--json_dir", required=True, help="folder of the .json results of stage 1, recursive")
    add("--pkl_dir", required=True, help="folder of their .pkl hidden states")
    add("--probe_path", required=True, help="the trained probe, a .pkl file")
    add(
        "--token_key",
        choices=TOKEN_KEYS,
        metavar="KEY",
        help=f"hidden-state key to use: {', '.join(TOKEN_KEYS)} (default: the probe's own, or "
        f"{DEFAULT_TOKEN_KEY} if its file names none)",
    )
    add(
        "--layer_range",
        metavar="a,b",
        help="inclusive layer range, such as 13,21 for nine states; 0 is the embedding output "
        "(default: the probe's own)",
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Score all dialogues; return 1 when some could not be scored."""
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folders = Folders(Path(args.json_dir), Path(args.pkl_dir))
    if not is_folder(folders.pkl_dir):
        raise UserError(f'--pkl_dir "{args.pkl_dir}" does not exist; give the folder of the .pkl')
    paths = find_records(folders.json_dir)
    # before all else: a fork is safe while torch, which reads older files, has no threads yet
    with worker_processes(len(paths)) as pool:
        probe = complete_probe(
            load_probe(args.probe_path),
            paths,
            folders,
            token_key=args.token_key,
            layer_range=parse_layer_range(args.layer_range),
        )
        done = score_all(paths, folders, probe, args.probe_path, pool)
    for message in done.failed[:SHOWN]:
        print(f"not scored: {message}")
    if done.counts["unfinished"]:
        print(f"left out: {done.counts['unfinished']} unfinished dialogues (resume stage 1)")
    first, last = probe.layer_range
    print(
        f"scored {done.counts['dialogues']} dialogues, {done.counts['turns']} turns "
        f"with {probe.kind} probe {args.probe_path} "
        f"({probe.token_key}, layers {first},{last}); written into {args.json_dir}"
    )
    missing, failed = done.counts["no .pkl"], len(done.failed)
    n_finished = done.counts["dialogues"] + missing + failed
    if missing:
        print(f"warning: {missing} of {n_finished} dialogues have no .pkl and were not scored")
    if failed:
        print(f"warning: {failed} of {n_finished} dialogues cannot be read and were not scored")
    figures = {**done.counts, "failed": len(done.failed), "lambda": probe.spike_threshold}
    log_run("stage 2", vars(args) | {"probe": report(probe)}, figures)
    return 1 if missing or failed else 0


if __name__ == "__main__":
    run_main(main)
