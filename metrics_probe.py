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
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from spikescore.errors import UserError, run_main
from spikescore.files import read_json, write_json
from spikescore.pairs import (
    DEFAULT_TOKEN_KEY,
    TOKEN_KEYS,
    as_record,
    find_records,
    read_states,
    require_finite,
    turn_states,
)
from spikescore.probes.layers import parse_layer_range
from spikescore.probes.probe import Probe, load_probe
from spikescore.runtime import usable_cores

log = logging.getLogger("spikescore")

MAX_FEATURE_BYTES = 8 * 2**20
"""Features scored at a time: bounds memory whatever the model, yet makes large matrix products."""
BLOCK = 32
"""Dialogues that a worker process is given at a time; fewer than two blocks need no workers."""
MAX_WORKERS = 16
"""More would hardly help: the disk is the limit."""


@dataclass
class Dialogue:
    """One dialogue on its way to being scored.

    `content` is what its JSON holds, in the file's own form, `record` the same in today's form.
    `pkl` is None when there is none; `features` [K, d] is None until `read_features`.
    """

    path: Path
    content: dict[str, Any]
    record: dict[str, Any]
    pkl: Path | None
    features: np.ndarray | None = None

    @property
    def complete(self) -> bool:
        """Whether stage 1 has finished it."""
        return bool(self.record.get("complete"))


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


def open_dialogue(path: Path, json_dir: Path, pkl_dir: Path) -> Dialogue | None:
    """Read a dialogue's JSON and find its PKL; None when the file is some other JSON."""
    content = read_json(path, ids_as_text=True)
    record = as_record(content, path)
    if record is None:
        return None
    return Dialogue(path, content, record, find_pkl(path, json_dir, pkl_dir))


def first_to_score(paths: Sequence[Path], json_dir: Path, pkl_dir: Path) -> Dialogue:
    """Return the first dialogue that can be scored; UserError when there is none."""
    n_finished = 0
    for path in paths:
        dialogue = open_dialogue(path, json_dir, pkl_dir)
        if dialogue is None or not dialogue.complete:
            continue
        if dialogue.pkl:
            return dialogue
        n_finished += 1
    if not n_finished:
        raise UserError(f'no finished dialogues in "{json_dir}"; give the folder stage 1 wrote to')
    raise UserError(
        f'none of the {n_finished} dialogues in "{json_dir}" has its .pkl under '
        f'"{pkl_dir}" or next to it; give the folder that stage 1 wrote the hidden states to'
    )


def read_turns(dialogue: Dialogue, token_key: str) -> list[np.ndarray]:
    """Return the states [L+1, H] of a dialogue's turns at one token."""
    states = read_states(dialogue.pkl, token_key)
    return turn_states(states, dialogue.record, token_key, dialogue.pkl)


def read_features(dialogue: Dialogue, probe: Probe) -> np.ndarray:
    """Return the features [K, d] of a dialogue's turns, after checking that the probe fits."""
    turns = read_turns(dialogue, probe.token_key)
    probe.check(where=f'"{dialogue.pkl}"', **described(turns[0], dialogue.record))
    features = probe.features(turns)
    require_finite(features, dialogue.pkl)
    return features


def described(state: np.ndarray, record: dict[str, Any]) -> dict[str, Any]:
    """Return what `Probe.check` wants to know about a state [L+1, H] and whose it is."""
    n_states, hidden_size = state.shape
    return {
        "model": record.get("model"),
        "n_layers": n_states - 1,
        "hidden_size": hidden_size,
    }


def complete_probe(probe: Probe, dialogue: Dialogue, args: argparse.Namespace) -> Probe:
    """Return the probe with what an older file left open, from the arguments and one dialogue."""
    key = probe.token_key or args.token_key or DEFAULT_TOKEN_KEY
    if not (probe.token_key or args.token_key):
        log.warning("the probe file names no token; reading %s (--token_key changes it)", key)
    return probe.check(
        token_key=args.token_key,
        layer_range=parse_layer_range(args.layer_range),
        where=f'"{dialogue.pkl}"',
        **described(read_turns(dialogue, key)[0], dialogue.record),
    )


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


def probe_entry(probe: Probe, probe_name: str) -> dict[str, Any]:
    """Return what each scored dialogue says about the probe."""
    return {
        "path": probe_name,
        "kind": probe.kind,
        "token_key": probe.token_key,
        "layer_range": list(probe.layer_range),
        "model": probe.model,
        "train_domains": probe.train_domains,
        "spike_threshold": probe.spike_threshold,
    }


def write_scores(
    dialogue: Dialogue, scores: np.ndarray, *, probe: Probe, entry: dict[str, Any]
) -> None:
    """Put the scores [K] into the dialogue's JSON, atomically, keeping the form the file has.

    `entry` is the `probe_entry`.
    """
    own = scores.astype(float).tolist()
    record = dialogue.content
    steps = record["cot_steps"] if "cot_steps" in record else record["reasoning_chain"]
    for step, score in zip(steps, own, strict=True):
        step["metrics"] = {**(step.get("metrics") or {}), "probe_pred": score}
    record["metrics"] = {
        **(record.get("metrics") or {}),
        "probe_pred": own,
        "probe": entry,
        "probe_split": probe.split_of(dialogue.record),
    }
    write_json(dialogue.path, record)


def score_block(
    paths: Sequence[Path], *, json_dir: Path, pkl_dir: Path, probe: Probe, probe_name: str
) -> Counter[str]:
    """Score dialogues and write the scores; return how many dialogues and turns were scored, and
    how many dialogues were left out why.
    """
    counts: Counter[str] = Counter()
    entry = probe_entry(probe, probe_name)

    def to_score() -> Iterator[Dialogue]:
        for dialogue in (open_dialogue(path, json_dir, pkl_dir) for path in paths):
            if dialogue is None:
                continue
            if dialogue.complete and dialogue.pkl:
                dialogue.features = read_features(dialogue, probe)
                yield dialogue
            else:
                counts["no .pkl" if dialogue.complete else "unfinished"] += 1

    for chunk in in_chunks(to_score()):
        scores = probe.score(np.concatenate([dialogue.features for dialogue in chunk]))
        ends = np.cumsum([len(dialogue.features) for dialogue in chunk])
        for dialogue, own in zip(chunk, np.split(scores, ends[:-1]), strict=True):
            write_scores(dialogue, own, probe=probe, entry=entry)
        counts.update(dialogues=len(chunk), turns=len(scores))
    return counts


# --- worker processes ---------------------------------------------------------------------------


@contextmanager
def worker_processes(n_dialogues: int) -> Iterator[ProcessPoolExecutor | None]:
    """Provide processes that score blocks of dialogues, or None where they would not pay.

    Two for each core, as a write waits for the disk to confirm it.
    """
    n_workers = min(2 * usable_cores(), n_dialogues // BLOCK, MAX_WORKERS)
    if n_workers < 2:
        yield None
        return
    pool = ProcessPoolExecutor(n_workers, initializer=prepare_worker)
    pool.submit(int)  # the first task starts them
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C no further block begins


def prepare_worker() -> None:
    """Leave Ctrl-C to the main process, and compute on one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)


def keep_freed_memory() -> None:
    """Let memory freed after one dialogue serve the next, which saves a tenth of the time.

    Once a block of this size was freed, glibc's malloc no longer returns smaller ones to the
    kernel, which would clear every page anew; forked workers inherit that. Elsewhere this does
    nothing.
    """
    np.empty(24 * 2**20, dtype=np.uint8)


def score_all(
    paths: Sequence[Path], pool: ProcessPoolExecutor | None, **settings: Any
) -> Counter[str]:
    """Score the dialogues of all JSONs, block by block, with a progress bar; return the counts.

    A read or a write that fails ends the run; what is written stays. `settings` are those of
    `score_block`.
    """
    blocks = [paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK)]
    counts: Counter[str] = Counter()
    work = partial(score_block, **settings)
    try:
        with tqdm(total=len(paths), desc="scoring", unit="dialogue") as bar:
            for block, done in zip(blocks, (pool.map if pool else map)(work, blocks), strict=True):
                counts.update(done)
                bar.update(len(block))
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was ended from outside, as the system does when memory runs out; "
            "scores written so far are kept, run the same command again"
        ) from error
    return counts


def main() -> int:
    """Score all dialogues; return 1 when some had no PKL."""
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory()
    json_dir, pkl_dir = Path(args.json_dir), Path(args.pkl_dir)
    if not pkl_dir.is_dir():
        raise UserError(f'--pkl_dir "{pkl_dir}" does not exist; give the folder of the .pkl files')
    paths = find_records(json_dir)
    # before all else: a fork is safe while torch, which reads older files, has no threads yet
    with worker_processes(len(paths)) as pool:
        probe = load_probe(args.probe_path)
        probe = complete_probe(probe, first_to_score(paths, json_dir, pkl_dir), args)
        counts = score_all(
            paths, pool, json_dir=json_dir, pkl_dir=pkl_dir, probe=probe, probe_name=args.probe_path
        )
    if counts["unfinished"]:
        print(f"left out: {counts['unfinished']} unfinished dialogues (resume stage 1)")
    first, last = probe.layer_range
    print(
        f"scored {counts['dialogues']} dialogues, {counts['turns']} turns "
        f"with {probe.kind} probe {args.probe_path} "
        f"({probe.token_key}, layers {first},{last}); written into {json_dir}"
    )
    n_missing = counts["no .pkl"]
    if n_missing:
        n_finished = counts["dialogues"] + n_missing
        print(f"warning: {n_missing} of {n_finished} dialogues have no .pkl and were not scored")
        return 1
    return 0


if __name__ == "__main__":
    run_main(main)
