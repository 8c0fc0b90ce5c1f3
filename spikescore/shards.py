"""Pairs in shards: read where they are, as if each file lay where it lay before it was packed.

    shards.json                the index, written last: the shards with size and SHA-256, what they
                               hold, and the files that were copied as they are
    pairs-00000.parquet        a row for each pair: its JSON, hashes, and what a viewer shows
    states-00000.safetensors   `<id>/<token key>`: float16 [K, L+1, H], its turns in the header;
                               any other pickle as its bytes, under its own name

`packing` writes and unpacks them. A path below such a folder stands for a file that was packed;
nothing need lie there. What does lie there comes first: stages write their results beside the
shards, which are never changed.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np

from spikescore.errors import UserError, refused
from spikescore.files import file_sha256, read_json, write_json
from spikescore.pickles import load_pickle, map_pickle, read_pickle

log = logging.getLogger("spikescore")

INDEX = "shards.json"
CHECKED = ".checked.json"
"""Which shards had the right hash, when they were of which size and age: no stage reads them
whole only to hash them again."""
FORMAT = 1
_DTYPES = {"F16": np.dtype("<f2"), "U8": np.dtype("u1")}
_LONGEST_HEADER = 10**8  # as safetensors itself has it


@dataclass(frozen=True)
class Part:
    """A file of a packed folder, by its path there, with what it must be."""

    name: str
    size: int
    sha256: str


class Tensors:
    """A safetensors file, of which only what is used is read."""

    def __init__(self, path: Path) -> None:
        """Raise UserError naming the file when its header does not fit it."""
        self.path = path
        try:
            with open(path, "rb") as file:
                self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self._start = 8 + int.from_bytes(self._data[:8], "little")
            if self._start > min(len(self._data), _LONGEST_HEADER):
                raise ValueError("its header does not end")
            self._entries = json.loads(bytes(self._data[8 : self._start]))
            self.turns = json.loads(self._entries.pop("__metadata__", {}).get("turns", "{}"))
        except OSError as error:
            raise refused(error, path, "cannot be read") from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(error) from error

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def array(self, name: str) -> np.ndarray:
        """Return a tensor as a read-only view of the file."""
        try:
            entry = self._entries[name]
            dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
            begin, end = (self._start + offset for offset in entry["data_offsets"])
            if not self._start <= begin <= end <= len(self._data) or min(shape, default=0) < 0:
                raise ValueError(f"{name} lies outside of it")
            if math.prod(shape) * dtype.itemsize != end - begin:
                raise ValueError(f"{name} is not of its size")
            return np.ndarray(shape, dtype, self._data[begin:end])
        except (KeyError, ValueError, TypeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f'the shard "{self.path}" is damaged ({type(error).__name__}: {error}); fetch it again'
        )


class Packed:
    """A folder of shards, by its index. Names are relative to the folder, with "/" between."""

    def __init__(self, folder: Path) -> None:
        """Raise UserError when the index is damaged, or leads out of the folder."""
        self.folder = folder
        self._tensors: dict[int, Tensors] = {}
        self._groups: dict[tuple[int, int], dict[str, Any]] = {}
        self._lock = Lock()
        index = read_json(folder / INDEX)
        try:
            if index["format"] != FORMAT:
                raise ValueError(f"format {index['format']}, this version reads {FORMAT}")
            self.shards = [
                tuple(Part(**told[kind]) for kind in ("pairs", "states"))
                for told in index["shards"]
            ]
            self.held = [told["files"] for told in index["shards"]]
            self.copied = [Part(**told) for told in index["files"]]
            parts = [part for shard in self.shards for part in shard] + self.copied
            names = [part.name for part in parts] + [name for held in self.held for name in held]
            outside = [name for name in names if not _is_inside(name)]
            if outside or len(set(names)) < len(names):
                raise ValueError(f"it names {(outside or ['a file twice'])[0]!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f'"{folder / INDEX}" is no index of shards ({type(error).__name__}: {error}); '
                "fetch it again"
            ) from error

    @cached_property
    def places(self) -> dict[str, tuple[int, int]]:
        """Shard of each packed file, and the row of its pair there."""
        found = {}
        for shard, names in enumerate(self.held):
            row = -1
            for name in names:  # a pair's JSON comes first, then what lies beside it
                row += name.endswith(".json")
                found[name] = (shard, row)
        return found

    def name_of(self, path: Path) -> str:
        """Return the name of a path below the folder."""
        return path.relative_to(self.folder).as_posix()

    def records(self) -> list[Path]:
        """Return the paths of all packed JSON files."""
        return [self.folder / name for name in self.places if name.endswith(".json")]

    # --- reading --------------------------------------------------------------------------------

    def row(self, name: str, columns: tuple[str, ...] = ("json",)) -> dict[str, Any]:
        """Return these columns of a packed JSON's row; a few rows around it are kept in memory."""
        shard, row = self.places[name]
        path = self.folder / self.shards[shard][0].name
        try:
            with self._lock:
                table, first = self._group(path, shard, row, columns)
            found = {column: table[column][row - first] for column in columns}
            if table["path"][row - first] != name:
                raise ValueError(f"another pair stands in the place of {name}")
            return found
        except OSError as error:
            raise refused(error, path, "cannot be read") from error
        except (ValueError, KeyError, IndexError) as error:  # pyarrow's own are ValueErrors
            raise UserError(f'the shard "{path}" is damaged ({error}); fetch it again') from error

    def _group(
        self, path: Path, shard: int, row: int, columns: tuple[str, ...]
    ) -> tuple[dict[str, list], int]:
        """Return the rows that were written together with a row, and the first one's number."""
        import pyarrow.parquet as pq  # here, so that who reads no shards need not wait for it

        for (of, first), table in self._groups.items():
            held = table.keys() >= set(columns)
            if of == shard and held and first <= row < first + len(table["path"]):
                return table, first
        first = 0
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if row < first + count:
                    break
                first += count
            # without threads: stages fork workers after the first reading
            table = file.read_row_group(group, columns=["path", *columns], use_threads=False)
        while len(self._groups) >= 4:
            self._groups.pop(next(iter(self._groups)))
        self._groups[shard, first] = table.to_pydict()
        return self._groups[shard, first], first

    def tensors(self, name: str) -> Tensors:
        """Return the shard of states that a packed file is in."""
        shard = self.places[name][0]
        if shard not in self._tensors:
            self._tensors[shard] = Tensors(self.folder / self.shards[shard][1].name)
        return self._tensors[shard]

    def turns(self, name: str) -> tuple[list[int], dict[str, np.ndarray]] | None:
        """Return a pair's turns, and states by token key [K, L+1, H]; None of a pickle as such."""
        tensors, pair = self.tensors(name), name.removesuffix(".pkl")
        if name in tensors:
            return None
        try:
            turns, keys = tensors.turns[pair]["turns"], tensors.turns[pair]["keys"]
            found = {key: tensors.array(f"{pair}/{key}") for key in keys}
            if any(len(states) != len(turns) for states in found.values()):
                raise ValueError(f"the turns of {pair} are not as many as its states")
        except (KeyError, TypeError, ValueError) as error:
            raise tensors._damaged(error) from error
        return turns, found

    # --- checking -------------------------------------------------------------------------------

    def require_sound(self, *, again: bool = False) -> None:
        """Raise UserError, naming the first shard that is missing, cut short or of another hash.

        A shard that has had the right hash, and is of the same size and age still, is not read
        again, unless that is asked for.
        """
        stamp = self.folder / CHECKED
        known: Any = {}
        with suppress(UserError):
            known = read_json(stamp) if stamp.exists() and not again else {}
        known = known if isinstance(known, dict) else {}
        marks, todo = {}, []
        for part in (part for shard in self.shards for part in shard):
            marks[part.name] = [part.sha256, part.size, age_of(self.folder, part)]
            if known.get(part.name) != marks[part.name]:
                todo.append(part)
        if todo:
            size = sum(part.size for part in todo) / 1e9
            log.info('checking %d shards of "%s" by hash, %.1f GB', len(todo), self.folder, size)
        for part in todo:
            require_hash(self.folder, part)
        if marks != known:
            with suppress(UserError):  # a folder that is only read is checked each time
                write_json(stamp, marks)


def age_of(folder: Path, part: Part) -> int:
    """Return a file's time of change in ns; UserError when it is missing or not of its size."""
    path = folder / part.name
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f'"{path}" is missing, which "{folder / INDEX}" names; fetch it again'
        ) from error
    if status.st_size != part.size:
        raise UserError(
            f'"{path}" has {status.st_size} bytes, not the {part.size} that it was packed with; '
            "it may be cut short: fetch it again"
        )
    return status.st_mtime_ns


def require_hash(folder: Path, part: Part) -> None:
    """Raise UserError naming a file that is not what was packed."""
    age_of(folder, part)
    path = folder / part.name
    try:
        found = file_sha256(path)
    except OSError as error:
        raise refused(error, path, "cannot be read") from error
    if found != part.sha256:
        raise UserError(
            f'"{path}" is not what was packed: its SHA-256 is {found[:12]}..., '
            f"not {part.sha256[:12]}...; fetch it again"
        )


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return str(path) == name != "." and not path.is_absolute() and ".." not in path.parts


# --- paths that stand for packed files ----------------------------------------------------------


@lru_cache(16)
def _opened(folder: Path, age: int) -> Packed:
    return Packed(folder)


def packed_at(folder: Path) -> Packed | None:
    """Return the shards of a folder that holds an index; None for any other."""
    try:
        age = (folder / INDEX).stat().st_mtime_ns
    except OSError:
        return None
    return _opened(folder, age)


def packed_above(path: Path) -> Packed | None:
    """Return the shards of the nearest folder at or above a path that has any."""
    return next(filter(None, map(packed_at, (path, *path.parents))), None)


def holding(path: Path) -> Packed | None:
    """Return the shards that hold a file of which none lies at its path; None without such."""
    if path.exists():
        return None
    packed = packed_above(path.parent)
    return packed if packed and packed.name_of(path) in packed.places else None


def is_file(path: Path) -> bool:
    """Whether a file is there, by itself or in shards."""
    return path.is_file() or holding(path) is not None


def is_folder(path: Path) -> bool:
    """Whether a folder is there, by itself or in shards."""
    packed = None if path.is_dir() else packed_above(path)
    return path.is_dir() or bool(
        packed and any(name.startswith(f"{packed.name_of(path)}/") for name in packed.places)
    )


def read_pair_json(path: Path, *, ids_as_text: bool = False) -> Any:
    """Read a pair's JSON as `files.read_json` does, from its file or from its shard."""
    packed = holding(path)
    text = packed.row(packed.name_of(path))["json"] if packed else None
    return read_json(path, ids_as_text=ids_as_text, text=text)


def read_beside(path: Path, *, copy: bool) -> Any:
    """Read a pickle as `load_pickle` (copy) or `map_pickle` does, from its file or its shard."""
    packed = holding(path)
    if packed is None:
        return load_pickle(path) if copy else map_pickle(path)
    name = packed.name_of(path)
    return read_pickle(packed.tensors(name).array(name).data, path, copy=copy)
