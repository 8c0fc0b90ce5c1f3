"""Packing a folder of pairs into shards, and unpacking them, both checked by hash.

A hub refuses ten thousand small pickles. `pack` puts the pairs of a folder, with what was measured
of them, into a few Parquet and safetensors files (`shards` says what is in them and reads them),
and copies all other files. `unpack` gives every file back, byte for byte.

Each works in a hidden folder beside the one that it makes, which takes its name when it is whole
and has been checked: a run that was killed leaves nothing that is believed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from spikescore.errors import Refused, UserError, refused
from spikescore.files import file_sha256, locked, make_folder, walk, write_json
from spikescore.pairs import find_records, read_record
from spikescore.pickles import put_together, take_apart
from spikescore.runtime import progress
from spikescore.shards import FORMAT, INDEX, Packed, Part, packed_above, packed_at, require_hash

ROWS = 16
"""Pairs in a row group of Parquet: what is read at least."""
MEASURES = ".measures.pkl"
_MOST_PAIRS = 20_000  # of a shard, whose header is read whole
_MOST_JSON = 2**28  # bytes of a shard's JSON, which wait in memory until it is written
_SHOWN = ("id", "domain", "model", "question")
_PICKLES = {".pkl": "pkl", MEASURES: "measures"}


@dataclass
class Told:
    """What was packed, unpacked or checked: numbers of files."""

    pairs: int = 0
    shards: int = 0
    copied: int = 0
    beside: int = 0
    """Files beside shards that stages wrote there: they come before what was packed."""
    left: list[Path] = field(default_factory=list)
    """Hidden files, which stay behind."""


# --- packing ------------------------------------------------------------------------------------


@dataclass
class _Tensor:
    """A tensor on its way into a shard: where its bytes come from, read when it is their turn."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Path
    key: str = ""
    """The token whose states these are; "" for a pickle as it is."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * (2 if self.dtype == "F16" else 1)

    def write(self, out: BinaryIO) -> None:
        if not self.key:
            with open(self.source, "rb") as file:
                shutil.copyfileobj(file, out, 2**24)
            return
        content, _, _ = take_apart(self.source)
        for by_key in content["turns"].values():
            out.write(np.ascontiguousarray(by_key[self.key]).data)


@dataclass
class _Pair:
    """A pair on its way into a shard: its name without ending, its row, its tensors."""

    name: str
    row: dict[str, Any]
    tensors: list[_Tensor]
    turns: dict[str, list] | None
    files: list[str]

    @property
    def size(self) -> int:
        return sum(tensor.size for tensor in self.tensors)


def pack(source: str | Path, target: str | Path, *, shard_bytes: int) -> Told:
    """Pack the pairs under a folder into shards of about so many bytes in a new folder.

    Every file of them is read back from the shards and compared by hash before the folder gets its
    name. Raises UserError when there is no pair, when the source is packed, or the target is there.
    """
    source, target = Path(source), Path(target)
    if packed_above(source) or any(path.name == INDEX for path in walk(source)):
        raise UserError(f'"{source}" holds shards already; unpack them to pack them anew')
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f'"{target}" lies inside "{source}"; choose a folder outside it')
    with made_whole(target, "packing") as work:
        told = Told()
        pairs = _pairs(source)
        index: dict[str, Any] = {"format": FORMAT, "shards": [], "files": []}
        taken: set[str] = set()
        for shard in _shards(pairs, shard_bytes):
            index["shards"].append(_write_shard(work, told.shards, shard))
            taken.update(index["shards"][-1]["files"])
            told.pairs, told.shards = told.pairs + len(shard), told.shards + 1
        if not told.pairs:
            raise UserError(f'"{source}" holds no pairs; give the folder that stage 1 wrote to')
        for path in walk(source):
            name = path.relative_to(source)
            if any(part.startswith(".") for part in name.parts):
                told.left.append(path)
            elif name.as_posix() not in taken:
                index["files"].append(asdict(_copied(path, work / name, name.as_posix())))
                told.copied += 1
        write_json(work / INDEX, index)
        check(work)
    return told


def _pairs(source: Path) -> Iterator[_Pair]:
    paths = find_records(source)
    for path in progress(paths, desc="packing", unit="pair"):
        try:
            record = read_record(path)
        except Refused:
            raise
        except UserError:  # damaged: copied as it is, and told of by whatever stage reads it
            continue
        if record is not None:
            yield _pair(source, path, record)


def _pair(source: Path, path: Path, record: dict[str, Any]) -> _Pair:
    name = path.relative_to(source).with_suffix("").as_posix()
    data = path.read_bytes()
    row: dict[str, Any] = {"path": f"{name}.json", "sha256": sha256(data).hexdigest()}
    row |= {"json": data.decode(), "pkl_frame": None, "pkl_places": None}
    row |= {key: _text(record.get(key)) for key in _SHOWN}
    steps = record["cot_steps"]
    row |= {"answer": _text(steps[0].get("response")) if steps else None}
    label = record.get("nil_label")
    row |= {"label": None if label is None else int(label), "n_turns": len(steps)}
    pair = _Pair(name, row, [], None, [f"{name}.json"])
    for ending, column in _PICKLES.items():
        beside = path.with_name(path.stem + ending)
        row[f"{column}_sha256"] = None
        if not beside.is_file():
            continue
        row[f"{column}_sha256"] = file_sha256(beside)
        pair.files.append(name + ending)
        if column != "pkl" or not _add_states(pair, beside):
            size = (beside.stat().st_size,)
            pair.tensors.append(_Tensor(name + ending, "U8", size, beside))
    return pair


def _add_states(pair: _Pair, pkl: Path) -> bool:
    """Add the states of a PKL to a pair, one tensor a token key; False for a PKL of another form
    than stage 1 writes, which is packed as it is.
    """
    try:
        apart = take_apart(pkl)
    except Refused:
        raise
    except UserError:
        return False
    if apart is None:
        return False
    content, frame, arrays = apart
    turns = content.get("turns") if content.get("format") == 1 else None
    if not isinstance(turns, dict) or not turns or not all(type(turn) is int for turn in turns):
        return False
    by_turn = list(turns.values())
    keys = list(by_turn[0]) if isinstance(by_turn[0], dict) else []
    if not keys or any(not isinstance(one, dict) or list(one) != keys for one in by_turn):
        return False
    states = [one[key] for one in by_turn for key in keys]
    kinds = {(type(one), getattr(one, "dtype", None), np.shape(one)) for one in states}
    ((kind, dtype, shape), *others) = kinds
    fits = kind is np.ndarray and dtype == np.dtype("<f2") and len(shape) == 2 and not others
    plain = all(isinstance(key, str) and key and "/" not in key for key in keys)
    # the places say which bytes of the file each state is, so they must come in the same order
    begin = states[0].ctypes.data - arrays[0][0]
    in_order = [start for start, _ in arrays] == [one.ctypes.data - begin for one in states]
    if not (fits and plain and in_order and all(one.flags.c_contiguous for one in states)):
        return False
    pair.row |= {"pkl_frame": frame, "pkl_places": [start for start, _ in arrays]}
    pair.turns = {"turns": list(turns), "keys": keys}
    stacked = (len(turns), *shape)
    pair.tensors += [_Tensor(f"{pair.name}/{key}", "F16", stacked, pkl, key) for key in keys]
    return True


def _text(value: Any) -> str | None:
    return None if value is None else str(value).encode("utf-8", "replace").decode()


def _shards(pairs: Iterable[_Pair], shard_bytes: int) -> Iterator[list[_Pair]]:
    """Cut pairs into shards, each of one pair at least."""
    shard: list[_Pair] = []
    held = texts = 0
    for pair in pairs:
        full = held + pair.size > shard_bytes or texts > _MOST_JSON or len(shard) == _MOST_PAIRS
        if shard and full:
            yield shard
            shard, held, texts = [], 0, 0
        shard.append(pair)
        held, texts = held + pair.size, texts + len(pair.row["json"])
    if shard:
        yield shard


def _write_shard(folder: Path, number: int, pairs: list[_Pair]) -> dict[str, Any]:
    """Write a shard's two files and return what the index says of them."""
    rows, states = f"pairs-{number:05d}.parquet", f"states-{number:05d}.safetensors"
    _write_rows(folder / rows, [pair.row for pair in pairs])
    tensors = [tensor for pair in pairs for tensor in pair.tensors]
    # numbers of two bytes first, so that each begins at an even place
    tensors.sort(key=lambda tensor: tensor.dtype != "F16")
    turns = {pair.name: pair.turns for pair in pairs if pair.turns}
    header: dict[str, Any] = {"__metadata__": {"format": "np", "turns": json.dumps(turns)}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        told = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
        header[tensor.name] = told
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / states, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            tensor.write(out)
        if out.tell() != 8 + len(text) + end:
            raise UserError(f'the pairs changed while "{states}" was written; pack them again')
    return {
        "pairs": asdict(part_of(folder, rows)),
        "states": asdict(part_of(folder, states)),
        "files": [name for pair in pairs for name in pair.files],
    }


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"pkl_frame": pa.binary(), "pkl_places": pa.list_(pa.int64())}
    kinds |= {"label": pa.int8(), "n_turns": pa.int32()}
    first = ("path", *_SHOWN, "answer", "label", "n_turns", "json")
    names = [*first, *(name for name in rows[0] if name not in first)]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for start in range(0, len(rows), ROWS):
            out.write_table(pa.Table.from_pylist(rows[start : start + ROWS], schema))


def part_of(folder: Path, name: str) -> Part:
    """Return a file's name, size and SHA-256."""
    return Part(name, (folder / name).stat().st_size, file_sha256(folder / name))


def _copied(path: Path, to: Path, name: str) -> Part:
    make_folder(to.parent)
    shutil.copyfile(path, to)
    return replace(part_of(to.parent, to.name), name=name)


@contextmanager
def made_whole(target: Path, doing: str) -> Iterator[Path]:
    """Provide a folder to work in, which becomes the target when the block ends without an error.

    What a killed run left there is removed. UserError when the target is there and not empty, or
    another run is making it.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f'"{target}" is there already; choose a new folder')
    target = target.absolute()
    work = target.with_name(f".{target.name}.{doing}")
    with locked(work):
        for path in work.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield work
            (work / ".lock").unlink()
            os.sync()
            os.replace(work, target)
        except BaseException as error:
            shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, OSError):
                raise refused(error, target, "cannot be written") from error
            raise


# --- unpacking and checking ---------------------------------------------------------------------


def unpack(source: str | Path, target: str | Path) -> Told:
    """Write the files that were packed to a new folder, those beside the shards in their place.

    Raises UserError naming a shard, or a file in one, that is not what was packed.
    """
    packed = _packed(source)
    told = Told()
    with made_whole(Path(target), "unpacking") as work:
        for name, data in _restored(packed, told):
            if not (packed.folder / name).exists():
                make_folder((work / name).parent)
                (work / name).write_bytes(data)
        for path in _beside(packed):
            name = packed.name_of(path)
            _copied(path, work / name, name)
            told.beside += name not in {part.name for part in packed.copied}
    return told


def check(folder: str | Path) -> Told:
    """Read everything in a packed folder and compare it by hash; UserError as `unpack`."""
    packed = _packed(folder)
    told = Told()
    for _ in _restored(packed, told):
        pass
    copied = {part.name for part in packed.copied}
    told.beside = sum(packed.name_of(path) not in copied for path in _beside(packed))
    return told


def _packed(folder: str | Path) -> Packed:
    packed = packed_at(Path(folder))
    if packed is None:
        raise UserError(f'"{folder}" holds no {INDEX}; give a folder that pack has made')
    return packed


def _beside(packed: Packed) -> Iterator[Path]:
    """Yield the files of a packed folder that are no shards."""
    own = {part.name for shard in packed.shards for part in shard} | {INDEX}
    for path in walk(packed.folder):
        name = path.relative_to(packed.folder)
        if name.as_posix() not in own and not any(part.startswith(".") for part in name.parts):
            yield path


def _restored(packed: Packed, told: Told) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of every packed file, after comparing them and the shards by hash."""
    packed.require_sound(again=True)
    for part in packed.copied:
        require_hash(packed.folder, part)
    told.copied, told.shards = len(packed.copied), len(packed.shards)
    columns = ("json", "sha256", "pkl_sha256", "measures_sha256", "pkl_frame", "pkl_places")
    records = [name for name in packed.places if name.endswith(".json")]
    for name in progress(records, desc="reading shards", unit="pair"):
        row, pair = packed.row(name, columns), name.removesuffix(".json")
        told.pairs += 1
        yield name, _proved(packed, name, row["json"].encode(), row["sha256"])
        for ending, column in _PICKLES.items():
            if pair + ending in packed.places:
                data = _pickle_bytes(packed, pair + ending, row)
                yield pair + ending, _proved(packed, pair + ending, data, row[f"{column}_sha256"])


def _pickle_bytes(packed: Packed, name: str, row: dict[str, Any]) -> bytes:
    tensors = packed.tensors(name)
    if name in tensors:
        return tensors.array(name).tobytes()
    _, states = packed.turns(name)
    in_order = (one[turn] for turn in range(len(row["pkl_places"])) for one in states.values())
    return b"".join(put_together(row["pkl_frame"], zip(row["pkl_places"], in_order, strict=False)))


def _proved(packed: Packed, name: str, data: bytes, digest: str | None) -> bytes:
    if sha256(data).hexdigest() != digest:
        raise UserError(
            f'"{name}" in the shards of "{packed.folder}" is not what was packed; fetch them again'
        )
    return data
