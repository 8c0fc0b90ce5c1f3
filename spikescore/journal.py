"""Work that was done is on disk before its result is: a journal, lines that are appended.

A run appends what it has just finished; when it was killed, the next one reads what all runs before
it have left, and goes on from there. One file for each process, so that no two write into one; it
goes when the results are written.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from spikescore.errors import refused
from spikescore.files import in_use, make_folder

log = logging.getLogger("spikescore")

SYNC_SECONDS = 5.0
"""What a machine that loses power may lose; a process that is killed loses nothing it appended."""

Entry = dict[str, Any]


def left_in(folder: Path, name: str) -> list[Path]:
    """The journals of one kind that runs have left in a folder."""
    return sorted(folder.glob(f".{name}.*.journal"))


class Journal:
    """The journals of one kind in a folder: those that were left are read, one is written.

    `key` names what an entry is part of; a file goes when the results of all its keys are there.
    """

    def __init__(self, folder: Path, name: str, key: Callable[[Entry], Any]) -> None:
        self.folder = folder
        self.name = name
        self._key = key
        self._path = folder / f".{name}.{os.getpid()}-{secrets.token_hex(4)}.journal"
        self._file: int | None = None
        self._synced = 0.0
        self._lock = threading.Lock()  # a server's answers come from a thread of their own
        self._left: dict[Path, set[Any]] = {}  # what each file is about

    def entries(self) -> Iterator[Entry]:
        """Yield what earlier runs left: of each file, one after another, in the order it was done.

        A line that is no JSON object, as a kill may leave the last, is passed over; so is one
        without a key.
        """
        for path in left_in(self.folder, self.name):
            about = self._left.setdefault(path, set())
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    for line in file:
                        with suppress(ValueError, KeyError, TypeError):
                            entry = json.loads(line)
                            about.add(self._key(entry))
                            yield entry
            except OSError as error:
                raise refused(error, path, "cannot be read") from error

    def append(self, entry: Entry) -> None:
        """Put an entry on disk, whole; Refused where that cannot be done."""
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            try:
                if self._file is None:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                    self._file = os.open(make_folder(self.folder) / self._path.name, flags, 0o666)
                    with suppress(OSError):  # where nothing can be locked
                        fcntl.flock(self._file, fcntl.LOCK_EX)
                while line:
                    line = line[os.write(self._file, line) :]
                if time.monotonic() - self._synced > SYNC_SECONDS:
                    os.fsync(self._file)
                    self._synced = time.monotonic()
            except OSError as error:
                raise refused(error, self._path, "cannot be written") from error
            self._left.setdefault(self._path, set()).add(self._key(entry))

    def close(self, is_done: Callable[[Any], bool]) -> None:
        """End the run: remove each file whose results are all there and nobody still writes."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        for path, about in self._left.items():
            if all(map(is_done, about)) and not in_use(path):
                path.unlink(missing_ok=True)
