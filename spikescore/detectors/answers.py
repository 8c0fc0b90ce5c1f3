"""The dialogues that detectors learn from and score: labels, texts, states and measures in step.

Entry i of everything is the same item. What is large stays on disk until a detector asks for it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError, refused
from spikescore.measures.file import measures_path, read_measures, texts_digest
from spikescore.pairs import (
    as_record,
    find_records,
    gathered,
    read_states,
    require_finite,
    require_one_run,
    turn_states,
    unusable,
)
from spikescore.probes.data import question_groups
from spikescore.shards import is_file, read_pair_json

log = logging.getLogger("spikescore")

BLOCK_BYTES = 2**26
"""States of answers that are at work at a time: bounds memory whatever the model and the data."""
LARGE = 2**14
"""Bytes of an array of measures from which on it is kept in a file."""


class Records(Sequence[dict[str, Any]]):
    """Dialogues that are read anew each time they are asked for: those at some places of more."""

    def __init__(self, read: Callable[[int], dict[str, Any]], places: Sequence[int]) -> None:
        self._read, self._places = read, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, item: Any) -> Any:
        places = self._places[item]
        return Records(self._read, places) if isinstance(item, slice) else self._read(places)

    @classmethod
    def in_file(cls, records: Iterable[dict[str, Any]]) -> Records:
        """Put dialogues, without their token ids, as JSON into a nameless temporary file (in
        TMPDIR): thousands of them are not in memory together. UserError where it cannot be had.
        """
        ends = [0]
        try:
            with tempfile.TemporaryFile(prefix="records_") as file:
                for record in records:
                    for step in record["cot_steps"]:
                        step.pop("prompt_ids", None)
                        step.pop("response_ids", None)
                    ends.append(ends[-1] + file.write(json.dumps(record).encode()))
                file.flush()
                held = np.memmap(file, np.uint8, "r") if ends[-1] else None
        except OSError as error:
            raise refused(error, tempfile.gettempdir(), "cannot hold the dialogues") from error
        return cls(
            lambda place: json.loads(held[ends[place] : ends[place + 1]].tobytes()),
            range(len(ends) - 1),
        )


@dataclass(frozen=True)
class Answers:
    """Finished, labelled dialogues of one model.

    y [n] is 1 for a hallucinated first answer, 0 for a consistent one. `records` are the dialogue
    JSONs, without their token ids; `read_answers` leaves them in a file, so that nothing written
    into one is kept. `domains` [n] and `groups` [n] are text; items of one group (a story, a
    question asked twice) belong together. `left_out` counts what the folder holds besides.
    """

    paths: tuple[Path, ...]
    records: Sequence[dict[str, Any]]
    y: np.ndarray
    domains: np.ndarray
    groups: np.ndarray
    model: str
    token_key: str
    left_out: dict[str, int]
    identity: dict[str, str] = field(default_factory=dict)
    """What the model is by content, where the dialogues say it."""
    unread: list[str] = field(default_factory=list)
    """One message for each file of measures that could not be read, once they were asked for."""

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, items: np.ndarray) -> Answers:
        """Return the items that a mask [n] or an array of places picks.

        What was read of them is shared: measures, and first states, of which nothing is copied
        before it is asked for.
        """
        places = np.arange(len(self))[items]
        part = replace(
            self,
            paths=tuple(self.paths[place] for place in places),
            records=Records(self.records.__getitem__, places),
            y=self.y[places],
            domains=self.domains[places],
            groups=self.groups[places],
        )
        if "measures" in self.__dict__:  # they were asked for already
            part.__dict__["measures"] = [self.measures[place] for place in places]
        part.__dict__["_of"] = self, places
        return part

    @cached_property
    def first_states(self) -> np.ndarray:
        """States of the first answers at the token key: float16 [n, L+1, H], all finite.

        Many of them lie in a file (`pairs.gathered`). Whoever needs one layer, or one block of
        items at a time, takes it from `first_rows` or `first_blocks`.
        """
        if self._read_states():
            return gathered(self.first_rows())
        return gathered(turns[0] for turns in self.turn_states(first_only=True))

    def first_rows(self) -> list[np.ndarray]:
        """Return `first_states` item by item, [L+1, H] each, where they lie: nothing is copied."""
        whole, places = self._first_states()
        return [whole[place] for place in places.tolist()]

    def first_blocks(self) -> Iterator[np.ndarray]:
        """Yield `first_states` in blocks [m, L+1, H] of BLOCK_BYTES at most, or of one item."""
        whole, places = self._first_states()
        n = max(1, BLOCK_BYTES // whole[0].nbytes)
        for start in range(0, len(self), n):
            here = slice(start, start + n)  # which copies nothing
            yield whole[here] if "first_states" in self.__dict__ else whole[places[here]]

    def _first_states(self) -> tuple[np.ndarray, np.ndarray]:
        """States that hold those of the first answers, read now if need be, and where they do."""
        return self._read_states() or (self.first_states, np.arange(len(self)))

    def _read_states(self) -> tuple[np.ndarray, np.ndarray] | None:
        """States that were read already, of these items or of what they were selected from, and
        the places [n] of these items among them.
        """
        if "first_states" in self.__dict__:
            return self.first_states, np.arange(len(self))
        whole, places = self.__dict__.get("_of", (None, None))
        found = whole._read_states() if whole else None
        return found and (found[0], found[1][places])

    def turn_states(
        self, layers: Sequence[int] | None = None, *, first_only: bool = False
    ) -> Iterator[np.ndarray]:
        """Yield each item's states, turn after turn: float16 [K, layers, H] (all L+1 if None).

        Every PKL is read anew, and only the layers asked for. UserError when a turn has no state.
        """
        for path, record in zip(self.paths, self.records, strict=True):
            pkl = path.with_suffix(".pkl")
            shown = {**record, "cot_steps": record["cot_steps"][:1]} if first_only else record
            turns = turn_states(read_states(pkl, self.token_key), shown, self.token_key, pkl)
            states = np.stack([turn if layers is None else turn[list(layers)] for turn in turns])
            require_finite(states, pkl)
            yield states

    @cached_property
    def n_turns(self) -> np.ndarray:
        """Turns of each dialogue [n]."""
        return np.array([len(record["cot_steps"]) for record in self.records], dtype=np.int64)

    def once(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return what `compute` returns, worked out the first time that this name is asked for."""
        kept = self.__dict__.setdefault("_once", {})
        if name not in kept:
            kept[name] = compute()
        return kept[name]

    @cached_property
    def measures(self) -> list[dict[str, Any]]:
        """What measure_answers.py found for each item; {} where it was not run, and where its file
        is damaged or of another dialogue, which is told and kept in `unread`.

        Arrays of LARGE bytes or more lie, read-only, in a nameless temporary file (in TMPDIR), as
        many first states do.
        """
        found: list[dict[str, Any]] = []
        moved: list[tuple[dict[str, Any], str, np.dtype, tuple[int, ...], int]] = []
        try:
            with tempfile.TemporaryFile(prefix="measures_") as file:
                for path, record in zip(self.paths, self.records, strict=True):
                    found.append(self._measures_of(path, record))
                    for section in filter(lambda one: isinstance(one, dict), found[-1].values()):
                        for name, value in section.items():
                            if isinstance(value, np.ndarray) and value.nbytes >= LARGE:
                                file.write(bytes(-file.tell() % 8))
                                moved.append((section, name, value.dtype, value.shape, file.tell()))
                                file.write(np.ascontiguousarray(value).data)
                                section[name] = None
                file.flush()
                held = np.memmap(file, np.uint8, "r") if moved else None
        except OSError as error:
            raise refused(error, tempfile.gettempdir(), "cannot hold the measures") from error
        for section, name, dtype, shape, start in moved:
            section[name] = np.ndarray(shape, dtype, held, start)
        return found

    def _measures_of(self, path: Path, record: dict[str, Any]) -> dict[str, Any]:
        try:
            return measures_of(path, record)
        except UserError as error:
            log.error("error: %s", error)
            self.unread.append(str(error))
            return {}

    def per_turn(self, name: str) -> np.ndarray:
        """Return a number that every step of the JSON has: float64 [n, K], NaN where it lacks it.

        `name` is e.g. "perplexity" or "n_response_tokens"; K is the longest dialogue's.
        """
        return padded([[step.get(name) for step in r["cot_steps"]] for r in self.records])

    def measured_turns(self, name: str) -> np.ndarray:
        """Return a per-turn measure, such as "reasoning_score": float64 [n, K], NaN if absent."""
        rows = [found.get("turns", {}).get(name, ()) for found in self.measures]
        return padded(rows, width=max(self.n_turns, default=0))

    def measured(self, name: str) -> np.ndarray:
        """Return a number measured of the first answer, such as "p_true": float64 [n]."""
        values = [found.get("first", {}).get(name) for found in self.measures]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def measured_arrays(self, name: str) -> list[np.ndarray | None]:
        """Return an array measured of each first answer, such as "icr"; None where it is absent."""
        return [found.get("first", {}).get(name) for found in self.measures]

    def measured_samples(
        self, measure: Callable[[dict[str, Any]], float], section: str = "samples"
    ) -> np.ndarray:
        """Return a measure of each item's sampled answers: float64 [n], NaN where none were drawn.

        `measure` is given what measure_answers.py wrote of them: texts, logliks, n_tokens ...;
        `section` names another set of answers than the samples.
        """
        drawn = [found.get(section) for found in self.measures]
        return np.array([measure(one) if one else np.nan for one in drawn], dtype=np.float64)


def measures_of(pair: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Read what measure_answers.py wrote beside a dialogue; {} when it wrote nothing.

    Raises UserError when the file is none of its own, or was made of another dialogue's texts.
    """
    path = measures_path(pair)
    if not is_file(path):
        return {}
    found = read_measures(path, record)
    if found.get("texts") != texts_digest(record):
        raise UserError(
            f'"{path}" was measured of another dialogue than "{pair.name}" holds now; '
            "run measure_answers.py --redo"
        )
    return found


def padded(rows: Sequence[Sequence[float | None]], width: int = 0) -> np.ndarray:
    """Return rows of different lengths as float64 [n, K], the ends and every None as NaN."""
    longest = max([width, *map(len, rows)], default=width)
    table = np.full((len(rows), longest), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = [np.nan if value is None else value for value in values]
    return table


def read_answers(folder: str | Path, *, token_key: str) -> Answers:
    """Read the finished, labelled dialogues under a folder; the others are counted in `left_out`.

    Raises UserError when nothing is left, or when the dialogues come from several models.
    """
    paths, y, domains = [], [], []
    left_out: Counter[str] = Counter()

    def usable() -> Iterator[dict[str, Any]]:
        for path in find_records(folder):
            record = as_record(read_pair_json(path, ids_as_text=True), path)
            if record is None:
                continue
            if reason := unusable(path, record):
                left_out[reason] += 1
                continue
            paths.append(path)
            y.append(1 - record["nil_label"])
            domains.append(str(record.get("domain") or path.resolve().parent.name))
            yield record

    records = Records.in_file(usable())
    if not paths:
        counts = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "none found"
        raise UserError(
            f'no finished, labelled dialogue with hidden states under "{folder}" ({counts}); '
            "give the output_dir of reasoning_lite.py, and label it with "
            "scripts/label_answers.py --relabel"
        )
    require_one_run(zip(paths, records, strict=True))
    return Answers(
        paths=tuple(paths),
        records=records,
        y=np.array(y, dtype=np.int64),
        domains=np.array(domains),
        groups=question_groups(records),
        model=str(records[0].get("model") or ""),
        token_key=token_key,
        left_out=dict(left_out),
        identity=next((one for record in records if (one := record.get("identity"))), {}),
    )
