"""Stage 2: score every turn of every dialogue on disk with a trained probe.

The scores go back into the JSON and nothing else in it changes: `metrics.probe_pred` of each step
is that turn's score, `metrics.probe_pred` of the dialogue lists them all. One dialogue that cannot
be scored is named and counted, and the others are scored all the same; what ends the run is a
result that cannot be written.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from spikescore.errors import Refused, UserError
from spikescore.files import write_json
from spikescore.pairs import (
    DEFAULT_TOKEN_KEY,
    as_record,
    read_states,
    require_finite,
    turn_states,
)
from spikescore.probes.layers import LayerRange
from spikescore.probes.probe import Probe
from spikescore.runtime import progress, usable_cores, worker_pool
from spikescore.shards import is_file, read_pair_json

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
    `pkl` is None when there is none; `features` [K, d] is None until they are read.
    """

    path: Path
    content: dict[str, Any]
    record: dict[str, Any]
    pkl: Path | None
    features: np.ndarray | None = None

    def turns(self, token_key: str) -> list[np.ndarray]:
        """Return the states [L+1, H] of the dialogue's turns at one token."""
        return turn_states(read_states(self.pkl, token_key), self.record, token_key, self.pkl)

    def described(self, state: np.ndarray) -> dict[str, Any]:
        """Return what `Probe.check` wants to know about a state [L+1, H] and whose it is."""
        n_states, hidden_size = state.shape
        return {
            "model": self.record.get("model"),
            "identity": self.record.get("identity"),
            "n_layers": n_states - 1,
            "hidden_size": hidden_size,
            "where": f'"{self.pkl}"',
        }


@dataclass
class Tally:
    """What became of dialogues: `counts` of those scored, their turns, and those left out by
    reason; one message for each that could not be scored.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.counts.update(other.counts)
        self.failed += other.failed


@dataclass(frozen=True)
class Folders:
    """Where the JSONs are, and where their PKLs."""

    json_dir: Path
    pkl_dir: Path

    def open(self, path: Path) -> Dialogue | None:
        """Read a dialogue's JSON and find its PKL: at the same relative path under pkl_dir, or else
        next to it. None when the file is some other JSON.
        """
        content = read_pair_json(path, ids_as_text=True)
        record = as_record(content, path)
        if record is None:
            return None
        mirrored = (self.pkl_dir / path.relative_to(self.json_dir)).with_suffix(".pkl")
        beside = path.with_suffix(".pkl")
        pkl = next((pkl for pkl in (mirrored, beside) if is_file(pkl)), None)
        return Dialogue(path, content, record, pkl)


def complete_probe(
    probe: Probe,
    paths: Sequence[Path],
    folders: Folders,
    *,
    token_key: str | None,
    layer_range: LayerRange | None,
) -> Probe:
    """Return the probe with what an older file left open, from what the user gave and the first
    dialogue that can be read; UserError when it is not the probe's, or when there is none.
    """
    key = probe.token_key or token_key or DEFAULT_TOKEN_KEY
    if not (probe.token_key or token_key):
        log.warning("the probe file names no token; reading %s (--token_key changes it)", key)
    n_finished, unreadable = 0, []
    for path in paths:
        try:
            dialogue = folders.open(path)
            if dialogue is None or not dialogue.record.get("complete"):
                continue
            n_finished += 1
            if not dialogue.pkl:
                continue
            state = dialogue.turns(key)[0]
        except UserError as error:
            unreadable.append(str(error))
            continue
        told = dialogue.described(state)
        return probe.check(token_key=token_key, layer_range=layer_range, **told)
    if unreadable:
        raise UserError(f"none of {len(unreadable)} dialogues can be read; {unreadable[0]}")
    if not n_finished:
        raise UserError(
            f'no finished dialogues in "{folders.json_dir}"; give the folder stage 1 wrote to'
        )
    raise UserError(
        f'none of the {n_finished} dialogues in "{folders.json_dir}" has its .pkl under '
        f'"{folders.pkl_dir}" or next to it; give the folder that stage 1 wrote the hidden states '
        "to"
    )


def score_all(
    paths: Sequence[Path],
    folders: Folders,
    probe: Probe,
    probe_name: str,
    pool: ProcessPoolExecutor | None,
) -> Tally:
    """Score all dialogues, block by block, with a bar; a write that fails ends the run."""
    blocks = [paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK)]
    tally = Tally()
    work = partial(score_block, folders=folders, probe=probe, probe_name=probe_name)
    try:
        with progress(desc="scoring", total=len(paths), unit="dialogue") as bar:
            for block, done in zip(blocks, (pool.map if pool else map)(work, blocks), strict=True):
                tally.add(done)
                bar.update(len(block))
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was ended from outside, as the system does when memory runs out; "
            "scores written so far are kept, run the same command again"
        ) from error
    return tally


def score_block(paths: Sequence[Path], *, folders: Folders, probe: Probe, probe_name: str) -> Tally:
    """Score some dialogues and write their scores."""
    tally = Tally()

    def readable() -> Iterator[Dialogue]:
        for path in paths:
            try:
                dialogue = folders.open(path)
                if dialogue is None:
                    continue
                if dialogue.record.get("complete") and dialogue.pkl:
                    dialogue.features = read_features(dialogue, probe)
                    yield dialogue
                else:
                    reason = "no .pkl" if dialogue.record.get("complete") else "unfinished"
                    tally.counts[reason] += 1
            except UserError as error:
                tally.failed.append(str(error))

    for chunk in in_chunks(readable()):
        scores = probe.score(np.concatenate([dialogue.features for dialogue in chunk]))
        ends = np.cumsum([len(dialogue.features) for dialogue in chunk])
        for dialogue, own in zip(chunk, np.split(scores, ends[:-1]), strict=True):
            if not np.isfinite(own).all():
                tally.failed.append(
                    f'"{dialogue.pkl}": its states are beyond what the probe can score'
                )
                continue
            try:
                write_scores(dialogue, own, probe, probe_name)
            except Refused:
                raise
            except UserError as error:
                tally.failed.append(str(error))
                continue
            tally.counts.update(dialogues=1, turns=len(own))
    return tally


def read_features(dialogue: Dialogue, probe: Probe) -> np.ndarray:
    """Return the features [K, d] of a dialogue's turns, after checking that the probe fits."""
    turns = dialogue.turns(probe.token_key)
    probe.check(**dialogue.described(turns[0]))
    features = probe.features(turns)
    require_finite(features, dialogue.pkl)
    return features


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


def write_scores(dialogue: Dialogue, scores: np.ndarray, probe: Probe, probe_name: str) -> None:
    """Put the scores [K] and the probe's name and nature into the dialogue's JSON, atomically,
    keeping the form the file has.
    """
    own = scores.astype(float).tolist()
    record = dialogue.content
    steps = record["cot_steps"] if "cot_steps" in record else record["reasoning_chain"]
    for step, score in zip(steps, own, strict=True):
        step["metrics"] = {**(step.get("metrics") or {}), "probe_pred": score}
    before = record.get("metrics") or {}
    if before.get("probe_pred") != own:  # what stage 3 made of other scores goes with them
        before = {key: before[key] for key in before if key not in ("spike_score", "spike_turn")}
    record["metrics"] = {
        **before,
        "probe_pred": own,
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


# --- worker processes ---------------------------------------------------------------------------


@contextmanager
def worker_processes(n_dialogues: int) -> Iterator[ProcessPoolExecutor | None]:
    """Provide processes that score blocks of dialogues, or None where they would not pay.

    Two for each core, as a write waits for the disk to confirm it. To be called before threads are
    started: a fork is safe only then.
    """
    n_workers = min(2 * usable_cores(), n_dialogues // BLOCK, MAX_WORKERS)
    if n_workers < 2:
        yield None
        return
    keep_freed_memory()
    with worker_pool(n_workers, prepare_worker) as pool:
        yield pool


def prepare_worker() -> None:
    """Compute on one core."""
    threadpool_limits(1)


def keep_freed_memory() -> None:
    """Let memory freed after one dialogue serve the next, which saves a tenth of the time.

    Once a block of this size was freed, glibc's malloc no longer returns smaller ones to the
    kernel, which would clear every page anew; forked workers inherit that. Elsewhere this does
    nothing.
    """
    np.empty(24 * 2**20, dtype=np.uint8)
