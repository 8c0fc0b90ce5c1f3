"""Stage 2: score every turn of every dialogue with a trained probe.

    python ./metrics_probe.py --json_dir ./outputs --pkl_dir ./outputs \\
        --probe_path ./probe_output/probe.pkl

Each JSON under --json_dir, subfolders included, is scored from the PKL of the same relative path
under --pkl_dir, or else from the one next to it. The scores go back into the JSON and nothing else
in it changes: `metrics.probe_pred` of each step is that turn's score, `metrics.probe_pred` of the
dialogue lists them all. A higher score means more hallucinated. Files of the older public form
(`reasoning_chain`) keep their form. Running the stage again replaces the scores.

The probe file says which token and layers it was trained on; --token_key and --layer_range are only
needed for older files that do not, and are refused where they contradict it. A missing PKL is
reported and the run goes on. Exit status: 0 all scored, 1 some dialogues had no PKL, 2 an error.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from spikescore.errors import UserError, run_main
from spikescore.pairs import TOKEN_KEYS, iter_records, read_json, read_states, write_json
from spikescore.probes import DEFAULT_TOKEN_KEY, Probe, load_probe, parse_layer_range, stack_turns

log = logging.getLogger("spikescore")

MAX_FEATURE_BYTES = 256 * 2**20
"""Features held at a time: bounds memory whatever the model, yet makes large matrix products."""


@dataclass
class Dialogue:
    """One dialogue on its way to being scored: its JSON's path and record, features [K, d]."""

    path: Path
    record: dict[str, Any]
    features: np.ndarray


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


def find_pkl(json_path: Path, json_dir: Path, pkl_dir: Path) -> Path | None:
    """Return the PKL of a JSON: same relative path under pkl_dir, else next to it, else None."""
    mirrored = (pkl_dir / json_path.relative_to(json_dir)).with_suffix(".pkl")
    return next((p for p in (mirrored, json_path.with_suffix(".pkl")) if p.exists()), None)


def find_dialogues(json_dir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return (path, record) of the finished dialogues; the count of the others is printed."""
    records = list(iter_records(json_dir))
    finished = [(path, record) for path, record in records if record.get("complete")]
    if len(finished) < len(records):
        print(f"left out: {len(records) - len(finished)} unfinished dialogues (resume stage 1)")
    if not finished:
        raise UserError(f'no finished dialogues in "{json_dir}"; give the folder stage 1 wrote to')
    return finished


def in_chunks(dialogues: Iterator[Dialogue]) -> Iterator[list[Dialogue]]:
    """Group dialogues so that each group's features stay within MAX_FEATURE_BYTES."""
    chunk: list[Dialogue] = []
    held = 0
    for dialogue in dialogues:
        if chunk and held + dialogue.features.nbytes > MAX_FEATURE_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(dialogue)
        held += dialogue.features.nbytes
    if chunk:
        yield chunk


def write_scores(dialogue: Dialogue, scores: list[float], probe: Probe, probe_name: str) -> None:
    """Put the scores into the dialogue's JSON, atomically, keeping the form the file has."""
    record = read_json(dialogue.path)
    steps = record["cot_steps"] if "cot_steps" in record else record["reasoning_chain"]
    for step, score in zip(steps, scores, strict=True):
        step["metrics"] = {**(step.get("metrics") or {}), "probe_pred": score}
    record["metrics"] = {
        **(record.get("metrics") or {}),
        "probe_pred": scores,
        "probe": {
            "path": probe_name,
            "kind": probe.kind,
            "token_key": probe.token_key,
            "layer_range": list(probe.layer_range),
            "model": probe.model,
            "train_domains": probe.train_domains,
            "spike_threshold": probe.spike_threshold,
        },
        "probe_split": probe.split_of(dialogue.record),
    }
    write_json(dialogue.path, record)


def read_dialogue(path: Path, record: dict[str, Any], pkl: Path, probe: Probe) -> Dialogue:
    """Return a dialogue with the features of all its turns, after checking that the probe fits."""
    states = stack_turns(read_states(pkl), record, probe.token_key, pkl)
    checked = probe.check(where=f'"{pkl}"', **described(states, record))
    return Dialogue(path, record, checked.features(states))


def described(states: np.ndarray, record: dict[str, Any]) -> dict[str, Any]:
    """Return what `Probe.check` wants to know about states [K, L+1, H] and whose they are."""
    _, n_states, hidden_size = states.shape
    return {
        "model": record.get("model"),
        "n_layers": n_states - 1,
        "hidden_size": hidden_size,
    }


def complete_probe(
    probe: Probe, record: dict[str, Any], pkl: Path, args: argparse.Namespace
) -> Probe:
    """Return the probe with what an older file left open, from the arguments and one dialogue."""
    key = probe.token_key or args.token_key or DEFAULT_TOKEN_KEY
    if not (probe.token_key or args.token_key):
        log.warning("the probe file names no token; reading %s (--token_key changes it)", key)
    return probe.check(
        token_key=args.token_key,
        layer_range=parse_layer_range(args.layer_range),
        where=f'"{pkl}"',
        **described(stack_turns(read_states(pkl), record, key, pkl), record),
    )


def main() -> int:
    """Score all dialogues; return 1 when some had no PKL."""
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    json_dir, pkl_dir = Path(args.json_dir), Path(args.pkl_dir)
    if not pkl_dir.is_dir():
        raise UserError(f'--pkl_dir "{pkl_dir}" does not exist; give the folder of the .pkl files')
    probe = load_probe(args.probe_path)
    dialogues = find_dialogues(json_dir)
    found = [
        (path, record, pkl)
        for path, record in dialogues
        if (pkl := find_pkl(path, json_dir, pkl_dir)) is not None
    ]
    n_missing = len(dialogues) - len(found)
    if not found:
        raise UserError(
            f'none of the {len(dialogues)} dialogues in "{json_dir}" has its .pkl under '
            f'"{pkl_dir}" or next to it; give the folder that stage 1 wrote the hidden states to'
        )
    probe = complete_probe(probe, *found[0][1:], args)
    bar = tqdm(found, desc="scoring", unit="dialogue")
    n_turns = 0
    for chunk in in_chunks(read_dialogue(*entry, probe) for entry in bar):
        scores = probe.score(np.concatenate([dialogue.features for dialogue in chunk]))
        n_turns += len(scores)
        ends = np.cumsum([len(dialogue.features) for dialogue in chunk])
        for dialogue, own in zip(chunk, np.split(scores, ends[:-1]), strict=True):
            write_scores(dialogue, own.astype(float).tolist(), probe, args.probe_path)
    first, last = probe.layer_range
    print(
        f"scored {len(found)} dialogues, {n_turns} turns with {probe.kind} probe {args.probe_path} "
        f"({probe.token_key}, layers {first},{last}); written into {json_dir}"
    )
    if n_missing:
        print(
            f"warning: {n_missing} of {len(dialogues)} dialogues have no .pkl and were not scored"
        )
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
