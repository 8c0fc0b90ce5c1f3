"""Files: what is under a folder, and reading and writing so that nothing is ever half there.

`walk` finds files, links to folders followed. `open_atomic` and what stands on it (`write_atomic`,
`write_json`) make a file appear whole or not at all, even after kill -9. `read_json` names file,
line and column of what is wrong. `locked` keeps a folder to one run. Whatever the operating system
refuses is a `Refused` that names the path.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, BinaryIO

from spikescore.errors import UserError, refused
from spikescore.runtime import Process

log = logging.getLogger("spikescore")

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Inside a JSON string the quotes would have backslashes, so this is a key and its value.
_TOKEN_IDS = re.compile(r'"((?:prompt|response)_ids)": (\[ [0-9, ]+ \])')


class JsonText(str):
    """A JSON value as text, which `write_json` writes as it stands."""

    __slots__ = ()


def walk(folder: str | Path) -> list[Path]:
    """Return all files under a folder, sorted, as if each link to a folder were that folder.

    A folder to which several ways lead is walked once, by a way without links if there is one, so
    that a circle ends. Raises Refused, naming it, for a folder that is missing or cannot be read; a
    link that leads nowhere is warned of and counts as a file.
    """
    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    inside, linked = [os.fspath(folder)], []
    while inside or linked:
        here = inside.pop() if inside else linked.pop(0)
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise refused(error, here, "cannot be read") from error
        for entry in entries:
            if not os.path.isdir(entry.path) if entry.is_symlink() else not entry.is_dir():
                files.append(entry.path)
                if entry.is_symlink() and not os.path.exists(entry.path):
                    log.warning('"%s" is a link that leads nowhere', entry.path)
            else:
                (linked if entry.is_symlink() else inside).append(entry.path)
    return sorted(map(Path, files))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as it is now, in hex."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


@cache
def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of all names and contents under a folder; "" for neither."""
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        return ""
    parts = [f"{file.relative_to(path)} {content_digest(file)}" for file in walk(path)]
    return sha256("\n".join(parts).encode()).hexdigest()


# --- writing ----------------------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    """Make a folder and those above it, if need be, and return it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(error, folder, "cannot be made") from error
    return folder


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file to write so that the path holds either its old content or, once the block
    has ended without an error, all of the new, even after kill -9. Its folder is made if need be.

    The first write into a folder removes what killed runs have left there.
    """
    _remove_leftovers(make_folder(path.parent))
    mark = f"{os.getpid()}.{_machine()}{secrets.token_hex(2)}"
    temporary = path.with_name(f".{path.name}.{mark}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise refused(error, path, "cannot be written") from error
        raise


_LEFTOVER = re.compile(r"\..+\.([0-9]+)\.([0-9a-f]{4})[0-9a-f]{4}\.tmp")
_STRANGE_AGE = 3600  # seconds without a write after which no run on another machine is at it


@cache
def _machine() -> str:
    """Return 4 hex digits for the machine, or the container in it, that process ids belong to."""
    space = "/proc/self/ns/pid"
    inner = os.readlink(space) if os.path.exists(space) else ""
    return sha256(f"{socket.gethostname()} {inner}".encode()).hexdigest()[:4]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True


@cache
def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of runs that were killed; once a folder and process is enough."""
    with os.scandir(folder) as entries:
        marks = [(entry, match) for entry in entries if (match := _LEFTOVER.fullmatch(entry.name))]
    for entry, match in marks:
        with suppress(OSError):  # another run removes it too, or may not
            ours = match[2] == _machine() or time.time() - entry.stat().st_mtime > _STRANGE_AGE
            if ours and not _lives(int(match[1])):
                os.unlink(entry.path)


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes as `open_atomic` does."""
    with open_atomic(path) as file:
        file.write(data)


def write_json(path: Path, record: Any) -> None:
    """Write UTF-8 JSON, indented, atomically; NaN and infinity, not JSON, are a UserError.

    Half of a surrogate pair, which UTF-8 cannot hold, is written as U+FFFD.
    """
    try:
        text = _indented(record) + "\n"
    except ValueError as error:
        raise UserError(
            f'"{path}" cannot be written: {_not_finite(record)} is NaN or infinite, which JSON '
            "cannot hold; correct or remove it"
        ) from error
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = _LONE_SURROGATE.sub("\ufffd", text).encode()
    write_atomic(path, data)


def _not_finite(value: Any, where: str = "") -> str:
    """Return where in a value a number is NaN or infinite, such as `meta.x` or `cot_steps[3]`."""
    if isinstance(value, float) and not math.isfinite(value):
        return where or "it"
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list | tuple) else inner
    parts = (
        _not_finite(one, f"{where}[{key}]" if type(key) is int else f"{where}.{key}".lstrip("."))
        for key, one in inner
    )
    return next(filter(None, parts), "")


def _indented(value: Any, line: str = "\n") -> str:
    """Return JSON indented by two spaces, but a list of numbers (token ids) on one line.

    `line` begins a new line at the value's own indentation. `json.dumps(indent=2)` gives the same
    but for those lists, and walks them in Python: most of the time that scoring a pair would take.
    """
    if isinstance(value, JsonText):
        return value
    if not isinstance(value, dict | list | tuple) or not value:
        return repr(value) if type(value) is int else _encode(value)
    inner = line + "  "
    if isinstance(value, dict):
        entries = [f"{_key(key)}: {_indented(entry, inner)}" for key, entry in value.items()]
        return "{" + inner + f",{inner}".join(entries) + line + "}"
    if all(issubclass(kind, int | float) and kind is not bool for kind in set(map(type, value))):
        return f"[ {_encode(value)[1:-1]} ]"
    entries = [_indented(entry, inner) for entry in value]
    return "[" + inner + f",{inner}".join(entries) + line + "]"


def _key(key: Any) -> str:
    """Return a key of a JSON object, which is always a string there."""
    return _encode(key) if isinstance(key, str) else _encode({key: 0})[1:-4]


# --- reading ----------------------------------------------------------------------------------


def read_json(
    path: Path, *, ids_as_text: bool = False, text: str | None = None, by_hand: bool = False
) -> Any:
    """Read a JSON file; UserError with file, line and column when it is missing or broken. What it
    holds may be given as `text`. In one that is written `by_hand`, no key may stand twice.

    With ids_as_text, a dialogue's lists of token ids stay text, unchecked (`JsonText`), where they
    have the form that `write_json` gives them: to decode and encode them takes longer than all else
    in the file.
    """
    try:
        if text is None:
            text = path.read_text(encoding="utf-8")
        text = text.removeprefix("\ufeff")  # editors of some systems begin with a mark
        if ids_as_text:
            return _decode_sparing_ids(text)
        return json.loads(text, object_pairs_hook=partial(_each_once, path) if by_hand else None)
    except FileNotFoundError as error:
        raise UserError(f'"{path}" does not exist') from error
    except OSError as error:
        raise refused(error, path, "cannot be read") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f'"{path}" is not UTF-8 text: {error.reason} at byte {error.start}; '
            "it is damaged, or was saved in another encoding"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(f'"{path}" is not valid JSON: {_place_of(error)}') from error
    except RecursionError as error:
        raise UserError(f'"{path}" is no JSON of ours: its values are nested too deeply') from error
    except ValueError as error:  # a whole number of thousands of digits
        raise UserError(f'"{path}" cannot be read as JSON: {error}') from error


def _each_once(path: Path, entries: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in entries:
        if key in found:
            raise UserError(f'"{path}": "{key}" stands twice; keep one of them')
        found[key] = value
    return found


def _place_of(error: json.JSONDecodeError) -> str:
    """Return where JSON goes wrong, what stands there, and the usual slip if it is that."""
    place = f"line {error.lineno}, column {error.colno}: {error.msg}"
    rest = error.doc[error.pos :].strip()
    if not rest:
        return f"{place}, but the file ends here; it may be cut short"
    before = error.doc[: error.pos].rstrip()
    comma = "; is there a comma too many?" if before.endswith(",") or rest[0] == "," else ""
    return f"{place}, at {rest.split(maxsplit=1)[0][:20]!r}{comma}"


def _decode_sparing_ids(text: str) -> Any:
    """Decode JSON but for lists of token ids, each of which becomes a JsonText.

    An object with a fresh random key, which no file can hold, keeps each list's place.
    """
    mark = secrets.token_hex(16)
    lists: list[JsonText] = []

    def set_aside(match: re.Match[str]) -> str:
        lists.append(JsonText(match[2]))
        return f'"{match[1]}": {{"{mark}": {len(lists) - 1}}}'

    def put_back(entry: dict[str, Any]) -> Any:
        return lists[entry[mark]] if mark in entry else entry

    try:
        return json.loads(_TOKEN_IDS.sub(set_aside, text), object_hook=put_back)
    except ValueError:
        return json.loads(text)  # whose error names the place in the text as it is


# --- a folder in use --------------------------------------------------------------------------


def in_use(path: Path) -> bool:
    """Whether a living process has locked a file, as far as the file system can tell."""
    with suppress(OSError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def locked_by_launch(folder: Path, process: Process, name: str = ".lock") -> Iterator[None]:
    """Keep a folder to the processes of one launch while the block runs; UserError saying who holds
    it where a process of another does.

    The first process of any launch holds the file `name`, the others one each of their own, whose
    name says of how many: those of a launch of another number are seen too.
    """
    of = f"-of-{process.world_size}"
    own = name if process.is_first else f"{name}-{process.rank}{of}"
    with locked(folder, own):
        for path in sorted(folder.glob(f"{name}-*")):
            if not path.name.endswith(of) and in_use(path):
                raise _held(folder, path.read_text(encoding="utf-8"))
        yield


def _held(folder: Path, holder: str) -> UserError:
    return UserError(
        f'"{folder}" is in use by {holder.strip() or "another process"}; wait until it has ended, '
        "or give another folder"
    )


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Keep a folder to one run while the block runs; UserError saying who holds it (host, process,
    since when) where another does.

    The lock is the system's own on a file in the folder: it ends with the process that holds it,
    however that ends, so that none is ever left behind.
    """
    path = make_folder(folder) / name
    try:
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise refused(error, path, "cannot be written") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _held(folder, file.read()) from error
        except OSError as error:
            log.warning('"%s" cannot be locked (%s): start no second run on it', folder, error)
            yield
            return
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        file.flush()
        yield
        file.truncate(0)
