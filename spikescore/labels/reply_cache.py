"""Replies of a chat server on disk, so that no question is put to it, or paid for, twice.

One SQLite file, in write-ahead mode: several processes may use it at the same time, and every reply
is committed on its own, so that `kill -9` loses none that had arrived. (That mode needs a local
disk: its processes share memory through a file.)
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from spikescore.errors import UserError

_BUSY_SECONDS = 30.0  # how long to wait for another process that is writing
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply BLOB NOT NULL) WITHOUT ROWID"
)


def request_key(endpoint: str, request: dict[str, Any]) -> str:
    """Return the hex sha256 of what decides a reply: endpoint, model, messages, settings."""
    whole = json.dumps({"endpoint": endpoint, "request": request}, sort_keys=True)
    return sha256(whole.encode()).hexdigest()


class ReplyCache:
    """A table of request keys and reply texts in one file; closes as a context manager.

    Belongs to the thread that made it. Raises UserError, naming the file, when it is damaged,
    is no such table or cannot be written. `path` ":memory:" keeps nothing on disk.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        if path != ":memory:":
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f'the reply cache "{path}" cannot be made: {error}') from error
        with self._explained():
            self._table = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            with self._explained():
                self._prepare()
        except UserError:
            self._table.close()
            raise

    def _prepare(self) -> None:
        """Switch to write-ahead mode, for which SQLite does not wait by itself, and make the table.

        "normal" leaves out the flush to disk after each reply: a power cut may then lose the last
        of them, but never damages the file.
        """
        until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._table.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.02)
        self._table.execute("PRAGMA synchronous = NORMAL")
        self._table.execute(_SCHEMA)

    def get(self, key: str) -> str | None:
        """Return the reply that is known under a key, None where there is none."""
        with self._explained():
            query = "SELECT reply FROM replies WHERE key = ?"
            row = self._table.execute(query, (key,)).fetchone()
            # half a surrogate pair, which JSON can carry and UTF-8 cannot, is kept as it came
            return None if row is None else row[0].decode("utf-8", "surrogatepass")

    def put(self, key: str, reply: str) -> None:
        """Keep a reply; when this returns it outlives the process."""
        with self._explained():
            self._table.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?)",
                (key, reply.encode("utf-8", "surrogatepass")),
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, read-only, full disk, another table
            raise UserError(f'the reply cache "{self.path}" cannot be used: {error}') from error
        except (sqlite3.DatabaseError, UnicodeDecodeError, AttributeError) as error:
            raise UserError(
                f'the reply cache "{self.path}" is damaged or no reply cache ({error}); give '
                "another path, or delete it with its -wal and -shm files: its calls are then made "
                "again"
            ) from error

    def close(self) -> None:
        self._table.close()

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
