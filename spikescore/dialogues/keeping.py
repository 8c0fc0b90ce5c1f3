"""What stage 1 keeps of dialogues that are under way: every turn, from the moment it has ended.

The journal lies in `output_dir`. A run that was killed goes on from it: the dialogue is played
again with the answers that are there, so its prompts come out as they were, and a turn whose prompt
does not is dropped with all after it. The states of such turns are read again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spikescore.dialogues.config import Config
from spikescore.journal import Entry, Journal, left_in

NAME = "turns"


class KeptTurns:
    """The turns that earlier runs left, and those of this one; `run` stands for settings, model and
    prompts, so that no turn of another run is taken.
    """

    def __init__(self, config: Config, run: str) -> None:
        self._output = Path(config.output_dir)
        self._run = run
        self._journal = Journal(self._output, NAME, _key)
        self._left: dict[tuple[str, str], dict[int, Entry]] = {}
        for entry in self._entries():
            self._left.setdefault(_key(entry), {})[entry["turn"]] = entry

    def take(self, folder: Path, item_id: str) -> list[Entry]:
        """Return what is left of an item's turns, in order, up to the first that is missing."""
        left = self._left.pop(self._name(folder, item_id), {})
        turns = []
        while entry := left.get(len(turns) + 1):
            turns.append(entry)
        return turns

    def add(self, folder: Path, item_id: str, turn: int, prompt: str, **answer: Any) -> None:
        """Keep a turn that has just ended: a digest of its prompt, and the answer as plain data."""
        where = dict(zip(("folder", "id"), self._name(folder, item_id), strict=True))
        self._journal.append({"run": self._run, **where, "turn": turn, "prompt": prompt, **answer})

    def count(self, items: Iterable[tuple[Path, str]]) -> tuple[int, int]:
        """How many turns lie on disk of those of these items (folder and id) that have no pair yet,
        and of how many items they are.

        Read from the files: a run may be interrupted after a turn was written and before it was
        told so.
        """
        wanted = {self._name(*item) for item in items}
        kept = {
            (*_key(entry), entry["turn"])
            for entry in self._entries()
            if _key(entry) in wanted and not self._is_done(_key(entry))
        }
        return len(kept), len({turn[:2] for turn in kept})

    def close(self) -> None:
        """Remove the journals of which all pairs are written."""
        self._journal.close(self._is_done)

    def _entries(self) -> Iterator[Entry]:
        for entry in self._journal.entries():
            if entry.get("run") == self._run and isinstance(entry.get("turn"), int):
                yield entry

    def _is_done(self, key: tuple[str, str]) -> bool:
        return (self._output / key[0] / f"{key[1]}.json").is_file()

    def _name(self, folder: Path, item_id: str) -> tuple[str, str]:
        return os.path.relpath(folder, self._output), item_id


def _key(entry: Entry) -> tuple[str, str]:
    return entry["folder"], entry["id"]


def digest(value: Any) -> str:
    """Return 16 hex digits that stand for plain data."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def sweep(config: Config) -> None:
    """Remove journals that outlived their pairs: of a run that was killed after its last pair."""
    KeptTurns(config, "").close()


def has_turns(config: Config) -> bool:
    """Whether a run has left turns of unfinished dialogues in `output_dir`."""
    return bool(left_in(Path(config.output_dir), NAME))
