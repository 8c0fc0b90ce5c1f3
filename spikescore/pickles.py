"""Reading pickles: a pickle may choose nothing but data.

No unpickler runs here. A small machine of our own reads the opcodes, and all that it can make is
dicts, lists, tuples, sets, texts, bytes, numbers, and arrays of plain numbers, which are made here,
of a type from a fixed list, over bytes of the file whose number was checked before. A name in a
pickle selects one of a few ways to make these (`_MAKERS`); any other name refuses the file, and so
does a type with a state, a shape that does not fit its bytes, an object inside itself, or more
content than `_BYTES_PER_BYTE` allows for a file of that size. So neither time nor memory depends on
anything but the size of the file.

`load_pickle` copies the arrays. `map_pickle` leaves them where they are, so that a reader who needs
one layer of one token touches a hundredth of the file; and it keeps the layout of files that it has
read. A file that equals one of these in every byte outside its arrays is read no second time: the
machine would do with it what it did, as it never looks into an array (`_Layout`).

torch's tensors (the public release's files) become arrays; bfloat16 becomes float32.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError, refused

_BYTES_PER_BYTE = 6  # a float in a list takes 32 bytes of memory and 9 of the file
_BYTES_AT_LEAST = 2**26
_DEEPEST = 64
_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_STORAGES = {
    "HalfStorage": "<f2", "FloatStorage": "<f4", "DoubleStorage": "<f8", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "|i1",
    "ByteStorage": "|u1", "BoolStorage": "|b1",
}  # fmt: skip
_FORBIDDEN_HELP = (
    "only numpy arrays, torch tensors and plain containers are loaded; "
    "do not load this file by other means unless you trust who made it"
)


class _Refusal(Exception):
    """The content is not mere data, or more than a file of its size may hold."""


def load_pickle(path: str | Path) -> Any:
    """Return what a file of arrays, tensors and plain containers holds, with arrays of its own.

    A pickle of protocol 2 to 5, or what `torch.save` writes. Raises UserError for a file that is
    missing, broken or refused; nothing in it is run.
    """
    return _read_file(Path(path), copy=True)


def map_pickle(path: str | Path) -> Any:
    """Return what `load_pickle` does, with arrays as read-only views of the mapped file.

    The views stay valid when the file is deleted or replaced; nobody may cut it short in place
    while they are in use.
    """
    return _read_file(Path(path), copy=False)


def read_pickle(data: memoryview, path: Path, *, copy: bool) -> Any:
    """Return what `load_pickle` (copy) or `map_pickle` would of a file that holds these bytes.

    `path` is what the UserError names.
    """
    try:
        if not len(data):
            raise UserError(f'"{path}" is not a readable pickle: it is empty')
        layout = None if copy else _LAYOUTS.get(len(data))
        if layout and layout.fits(data):
            return layout.content_of(data)
        machine = _Machine(data, _Budget(len(data)), copy=copy)
        if data[:4] == b"PK\x03\x04":
            return _read_torch_zip(machine)
        content = machine.run()
        if not copy and machine.names <= _ARRAY_NAMES:
            _keep_layout(data, content)
        return content
    except _Refusal as error:
        raise UserError(f'"{path}" was refused: {error}; {_FORBIDDEN_HELP}') from error
    except UserError:
        raise
    except Exception as error:  # damage shows as nearly anything
        raise UserError(
            f'"{path}" is not a readable pickle ({type(error).__name__}: {error}); '
            "it may be cut short"
        ) from error


def take_apart(path: str | Path) -> tuple[Any, bytes, list[tuple[int, np.ndarray]]] | None:
    """Return what a pickle of dicts, plain values and arrays of floats holds, all of its bytes that
    are outside the arrays, and each array with its place in the file, in order of place.

    The file is these bytes with each array's put in at its place (`put_together`). None for a
    pickle of anything else. Raises UserError as `load_pickle` does.
    """
    data = _mapped(Path(path))
    content = read_pickle(data, Path(path), copy=False)
    layout = _LAYOUTS.get(len(data))
    if layout is None or not layout.fits(data):
        return None
    arrays = [(one.start, one.view(data)) for one in layout.arrays()]
    ends = [start + array.nbytes for start, array in arrays]
    if any(start < end for (start, _), end in zip(arrays[1:], ends, strict=False)):
        return None  # one array is shown twice
    return content, layout.frame, arrays


def put_together(frame: bytes, arrays: Iterable[tuple[int, np.ndarray]]) -> Iterator[bytes]:
    """Yield the bytes of a file in the parts that `take_apart` returned them in, in order."""
    done = taken = 0
    for start, array in arrays:
        yield frame[taken : taken + start - done]
        yield array.tobytes("A")
        done, taken = start + array.nbytes, taken + start - done
    yield frame[taken:]


def _read_file(path: Path, *, copy: bool) -> Any:
    return read_pickle(_mapped(path), path, copy=copy)


def _mapped(path: Path) -> memoryview:
    """Return a file's bytes, mapped; UserError when there is none that can be."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
            raise UserError(f'"{path}" is no file that can be read in any order')
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return memoryview(b"")
            if hasattr(os, "posix_fadvise") and not _is_in_memory(file.fileno(), size):
                # else touching a page would wait for the disk alone
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise UserError(f'"{path}" does not exist') from error
    except OSError as error:
        raise refused(error, path, "cannot be read") from error


def _is_in_memory(file: int, size: int) -> bool:
    """Whether the page cache holds a file, by a few samples: to ask for all of it takes longer."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        places = range(0, size, size // 8 + 1)
        return all(os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT) for place in places)
    except OSError:  # it would wait, or the file system cannot tell
        return False


class _Budget:
    """How many bytes of memory may still be used for a file of this size."""

    def __init__(self, size: int) -> None:
        self.left = _BYTES_AT_LEAST + _BYTES_PER_BYTE * size

    def spend(self, size: int) -> None:
        """Take so many bytes, before they are used."""
        self.left -= size
        if self.left < 0:
            raise _Refusal("it would take far more memory than its size can mean")


# --- files that differ in their arrays alone -----------------------------------------------------


@dataclass(frozen=True)
class _Array:
    """Where in a file an array's bytes lie, and what they are."""

    start: int
    dtype: np.dtype
    shape: tuple[int, ...]
    order: str

    def view(self, data: memoryview) -> np.ndarray:
        """Return the array as a view of a file."""
        return np.ndarray(self.shape, self.dtype, data, self.start, order=self.order)


@dataclass(frozen=True)
class _Layout:
    """A file's content, with an `_Array` for each array, and all bytes outside of these."""

    content: Any
    outside: list[slice]
    frame: bytes

    def fits(self, data: memoryview) -> bool:
        """Whether a file of the same size has the same bytes outside the arrays."""
        return b"".join(map(data.__getitem__, self.outside)) == self.frame

    def content_of(self, data: memoryview) -> Any:
        """Return what such a file holds, its arrays as views of it."""

        def fill(value: Any) -> Any:
            if type(value) is dict:
                return {key: fill(one) for key, one in value.items()}
            return value.view(data) if type(value) is _Array else value

        return fill(self.content)

    def arrays(self) -> list[_Array]:
        """Return where the arrays are, in order of place; one that is held twice, twice."""

        def found(value: Any) -> Iterator[_Array]:
            if type(value) is dict:
                for one in value.values():
                    yield from found(one)
            elif type(value) is _Array:
                yield value

        return sorted(found(self.content), key=lambda array: array.start)


_LAYOUTS: dict[int, _Layout] = {}  # by the file's size; a cache, on which no result depends
_MOST_LAYOUTS = 64
_LARGEST_FRAME = 2**18


def _keep_layout(data: memoryview, content: Any) -> None:
    """Remember the layout of a file of dicts, plain values and arrays of floats, as pairs are.

    With no other names in it than those that make arrays, the bytes of an array have no part in
    anything else that stays: texts, numbers and keys are read from elsewhere, and bytes themselves
    are not among what is kept.
    """
    base = np.frombuffer(data, np.uint8).ctypes.data

    def placed(value: Any) -> Any:
        if type(value) is dict and all(type(key) in _PLAIN for key in value):
            return {key: placed(one) for key, one in value.items()}
        if type(value) is np.ndarray and value.dtype.kind == "f" and value.size:
            order = "C" if value.flags.c_contiguous else "F"
            array = _Array(value.ctypes.data - base, value.dtype, value.shape, order)
            if not 0 <= array.start <= len(data) - value.nbytes:
                raise LookupError("its numbers lie elsewhere")
            return array
        if type(value) in _PLAIN:
            return value
        raise LookupError("it holds something else")

    try:
        layout = _Layout(placed(content), [], b"")
    except LookupError:
        return
    ends, outside = 0, []
    for array in layout.arrays():
        outside.append(slice(ends, max(ends, array.start)))
        ends = max(ends, array.start + array.dtype.itemsize * math.prod(array.shape))
    outside.append(slice(ends, len(data)))
    if sum(part.stop - part.start for part in outside) > _LARGEST_FRAME:
        return
    while len(_LAYOUTS) >= _MOST_LAYOUTS:
        _LAYOUTS.pop(next(iter(_LAYOUTS)), None)
    frame = b"".join(map(data.__getitem__, outside))
    _LAYOUTS[len(data)] = replace(layout, outside=outside, frame=frame)


# --- what is on the machine's stack beside data -------------------------------------------------


class _Name(str):
    """A name that the file gives, "module.name"."""


class _Unmade:
    """An array, or an array's type, that waits for its state; `value` is what there is of it."""

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.made = False


class _Settings(dict):
    """Stands for a settings object of the public release: what it holds, by name."""


@dataclass
class _Storage:
    """The numbers of a type that torch tensors are views of."""

    kind: str
    count: int
    payload: memoryview

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(_STORAGES[self.kind])


# --- arrays -------------------------------------------------------------------------------------


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _shape(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 8 or not all(map(_is_whole, value)):
        raise _Refusal("an array's shape is no shape")
    if 0 in value and max(value) > 2**16 or math.prod(value) >= 2**48:
        raise _Refusal("an array's shape is out of proportion")
    return value


def _dtype(kind: Any, *_: Any) -> _Unmade:
    kind = kind[1:] if type(kind) is str and kind[:1] in ("<", "|") else kind
    if type(kind) is not str or kind not in _KINDS:
        raise _Refusal(f"an array is of type {str(kind)[:20]!r}")
    return _Unmade(np.dtype(kind))


def _dtype_state(dtype: np.dtype, state: Any) -> np.dtype:
    """Return the type with the order of bytes that the state gives, which may give nothing else."""
    plain = (None, None, None, -1, -1, 0)
    if type(state) is not tuple or state[:1] != (3,) or tuple(state[2:]) != plain:
        raise _Refusal("an array's type carries a state")
    if state[1] not in ("<", ">", "|", "="):
        raise _Refusal("an array's type has an order of bytes that is none")
    return dtype.newbyteorder(state[1])


class _Machine:
    """Reads one pickle from a buffer.

    `storage`: how to find a torch storage by key and number of bytes, in a file of torch's. Values
    that are data go into containers by `_admit`, which knows all that may be there. A container may
    grow until it is put into another or had again from the memo, so that none gets into itself.
    What is had again costs as much as if it were copied: a reader may copy it.
    """

    def __init__(self, data: memoryview, budget: _Budget, *, copy: bool) -> None:
        self.data, self.place = data, 0
        self.budget = budget
        self.copy = copy
        self.storage: Callable[[str, int], memoryview] | None = None

    def run(self, *, data: bool = True) -> Any:
        """Read the pickle that begins at `place`, and return the data that it holds."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.open: set[int] = set()
        self.depths: dict[int, int] = {}  # of containers of containers
        self.sizes: dict[int, int] = {}  # of what was had again
        self.names: set[str] = set()
        buffer, stack, memo, budget = self.data, self.stack, self.memo, self.budget
        while True:
            code = buffer[self.place]
            self.place += 1
            if code == _GET:  # these few are nearly all there is in a pair's file
                value = memo[buffer[self.place]]
                self.place += 1
                stack.append(value)
                budget.left -= 32 if type(value) in _LIGHT else self._again(value)
            elif code == _MEMOIZE:
                self._put()
            elif code == _SMALL:
                stack.append(buffer[self.place])
                self.place += 1
                budget.left -= 16
            elif code == _STOP:
                break
            elif operation := _OPERATIONS.get(code):
                operation(self)
            else:
                first = self.place == 1
                what = "is no pickle: it begins with" if first else "holds the opcode"
                raise _Refusal(f"it {what} {bytes([code])!r}")
            if budget.left < 0:
                budget.spend(0)
        if len(self.stack) != 1 or self.marks:
            raise ValueError("it ends in the middle")
        return self._admit(self.stack[0]) if data else self.stack[0]

    # --- bytes ----------------------------------------------------------------------------------

    def _number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _take(self, size: int) -> memoryview:
        """Return the next bytes, as many as the file still has."""
        end = self.place + size
        if end > len(self.data):
            raise EOFError(f"{size} bytes are announced and {len(self.data) - self.place} are left")
        taken = self.data[self.place : end]
        self.place = end
        return taken

    def _line(self) -> str:
        for end in range(self.place, min(self.place + 200, len(self.data))):
            if self.data[end] == 10:
                line = bytes(self.data[self.place : end]).decode()
                self.place = end + 1
                return line
        raise ValueError("a name does not end")

    def _push(self, value: Any, size: int = 32) -> None:
        self.budget.left -= size
        self.stack.append(value)

    # --- plain values ---------------------------------------------------------------------------

    def _protocol(self) -> None:
        self.budget.left -= 32
        if self._number(1) > 5:
            raise ValueError("it is of an unknown protocol")

    def _frame(self) -> None:
        self.budget.left -= 32
        self._take(8)  # frames mean nothing where the whole file is at hand

    def _text(self, width: int) -> None:
        size = self._number(width)
        self.budget.spend(size + 64)
        text = str(self._take(size), "utf-8", "surrogatepass")
        self.budget.left -= 0 if text.isascii() else 3 * size
        self.stack.append(text)

    def _bytes(self, width: int) -> None:
        self._push(self._take(self._number(width)), 128)

    def _integer(self, size: int, signed: bool = True) -> None:
        if size > 16:
            raise _Refusal("it holds a whole number of more than 16 bytes")
        self._push(self._number(size, signed=signed))

    def _float(self) -> None:
        ahead = len(self.data) - self.place + 1
        if ahead < 90 or self.data[self.place + 8] != _FLOAT:
            self._push(struct.unpack(">d", self._take(8))[0])
            return
        rows = np.frombuffer(self.data, np.uint8, min(ahead // 9, 4096) * 9, self.place - 1)
        rows = rows.reshape(-1, 9)  # many in a row, as in a list of log-probabilities
        others = np.flatnonzero(rows[:, 0] != _FLOAT)
        run = rows[: others[0] if others.size else len(rows), 1:]
        self.budget.spend(32 * len(run))
        self.stack.extend(np.ascontiguousarray(run).view(">f8")[:, 0].tolist())
        self.place += 9 * len(run) - 1

    # --- containers -----------------------------------------------------------------------------

    def _new(self, container: Any) -> None:
        self.depths.pop(id(container), None)
        self.sizes.pop(id(container), None)
        self.open.add(id(container))
        self._push(container, 128)

    def _mark(self) -> None:
        self.marks.append(len(self.stack))
        self.budget.left -= 16

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _pop(self) -> Any:
        if self.marks and self.marks[-1] >= len(self.stack):
            raise ValueError("a mark is used as a value")
        return self.stack.pop()

    def _tuple(self, size: int) -> None:
        start = len(self.stack) - size
        if start < 0 or self.marks and self.marks[-1] > start:
            raise ValueError("a tuple lacks a value")
        made = self._new_tuple(self.stack[start:])
        del self.stack[start:]
        self._push(made, 64 + 8 * size)

    def _tuple_since_mark(self) -> None:
        items = self._since_mark()
        self._push(self._new_tuple(items), 64 + 8 * len(items))

    def _new_tuple(self, items: list[Any]) -> tuple:
        made = tuple(items)
        self.depths.pop(id(made), None)
        self.sizes.pop(id(made), None)
        self._deepen(made, items)
        return made

    def _append(self, items: list[Any]) -> None:
        target = self._growing(list)
        target.extend(self._all_admitted(target, items))
        self.budget.left -= 8 * len(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._growing(dict)
        if len(items) % 2:
            raise ValueError("a key has no value")
        keys = list(map(self._key, items[::2]))
        self.budget.spend(64 * len(items))
        target.update(zip(keys, self._all_admitted(target, items[1::2]), strict=True))

    def _add(self, items: list[Any]) -> None:
        self.budget.spend(64 * len(items))
        self._growing(set).update(map(self._key, items))

    def _growing(self, kind: type) -> Any:
        target = self.stack[-1] if self.stack and not self._at_mark() else None
        if not isinstance(target, kind) or id(target) not in self.open:
            raise _Refusal("it puts something into what cannot hold it, or into itself")
        return target

    def _at_mark(self) -> bool:
        return bool(self.marks) and self.marks[-1] >= len(self.stack)

    def _key(self, value: Any) -> Hashable:
        """Return a value as a key: text, number, or a few of them of which one at most is a number,
        since the hashes of several can be made to collide.
        """
        parts = value if type(value) is tuple else (value,)
        numbers = sum(type(part) is not str for part in parts)
        plain = all(
            type(part) in (str, bool, type(None)) or type(part) is int and abs(part) < 2**60
            for part in parts
        )
        if plain and len(parts) <= 8 and numbers <= 1:
            return value
        if type(value) is float:  # hashes of floats collide only by the dozen
            return value
        if type(value) is memoryview and len(value) <= 256:
            return bytes(value)
        raise _Refusal("it holds a key that is neither text nor a number")

    def _all_admitted(self, target: Any, items: list[Any]) -> list[Any]:
        if _PLAIN.issuperset(map(type, items)):
            return items
        admitted = list(map(self._admit, items))
        self._deepen(target, admitted)
        return admitted

    def _deepen(self, container: Any, items: list[Any]) -> None:
        """Note how deep a container is once these are in it."""
        if _FLAT.issuperset(map(type, items)):
            return
        inner = [self.depths.get(id(one), 1) for one in items if isinstance(one, _CONTAINERS)]
        if not inner:
            return
        depth = max(self.depths.get(id(container), 1), 1 + max(inner))
        if depth > _DEEPEST:
            raise _Refusal(f"it is nested more than {_DEEPEST} deep")
        self.depths[id(container)] = depth
        self.budget.left -= 128

    def _size(self, value: Any) -> int:
        """Return about how many bytes a deep copy takes; each container is looked through once."""
        if isinstance(value, _CONTAINERS):
            if id(value) not in self.sizes:
                inner = [*value, *value.values()] if isinstance(value, dict) else value
                self.sizes[id(value)] = 128 + sum(map(self._size, inner))
            return self.sizes[id(value)]
        if isinstance(value, (str, memoryview, bytes)):
            return 16 + len(value)
        return 16 + getattr(getattr(value, "value", value), "nbytes", 16)

    def _admit(self, value: Any) -> Any:
        """Return a value as the data that it is; refuse what is none."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, _Unmade) and value.made and isinstance(value.value, np.ndarray):
            return value.value
        if type(value) is memoryview:
            self.budget.spend(len(value))
            return bytes(value)
        if type(value) is tuple:
            self.budget.spend(8 * len(value))
            return self._new_tuple(list(map(self._admit, value)))
        if isinstance(value, (list, dict, set)):
            self.open.discard(id(value))
            return value
        if isinstance(value, (np.ndarray, np.generic)):
            return value
        raise _Refusal(f"it holds {_told(value)} where data should be")

    # --- memory of what was read ----------------------------------------------------------------

    def _put(self, index: int | None = None) -> None:
        if not self.stack or self.marks and self.marks[-1] >= len(self.stack):
            raise ValueError("there is nothing to keep")
        if index not in (None, len(self.memo)):
            raise ValueError("what it keeps is out of order")
        self.budget.left -= 16
        self.memo.append(self.stack[-1])

    def _get_far(self) -> None:
        value = self.memo[self._number(4)]
        self._push(value, self._again(value))

    def _again(self, value: Any) -> int:
        """Return what it costs to have a value again; a container grows no more from then on."""
        self.open.discard(id(value))
        return self._size(value)

    # --- names and what they make -----------------------------------------------------------------

    def _global(self) -> None:
        self._name(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        full = f"{_SAME_MODULES.get(module, module)}.{name}"
        if name == "TrainingConfig" or full == "argparse.Namespace":
            full = _SETTINGS  # whatever module it names, that module is not imported
        elif module == "torch" and name in _STORAGES:
            pass
        elif full not in _MAKERS and full != "numpy.ndarray":
            raise _Refusal(f"it names {full[:100]}")
        self.names.add(full)
        self._push(_Name(full))

    def _reduce(self) -> None:
        arguments, name = self._pop(), self._pop()
        if type(name) is not _Name or type(arguments) is not tuple or name not in _MAKERS:
            raise _Refusal("it calls something")
        arguments = [one.value if isinstance(one, _Unmade) else one for one in arguments]
        made = _MAKERS[name](self, *arguments)
        (self._new if isinstance(made, (dict, set)) else self._push)(made)

    def _new_object(self) -> None:
        arguments, name = self._pop(), self._pop()
        if name != _SETTINGS or arguments != ():
            raise _Refusal(f"it makes {_told(name)}")
        self._new(_Settings())

    def _build(self) -> None:
        state, target = self._pop(), self._pop()
        self.stack.append(target)
        if isinstance(target, _Unmade) and not target.made:
            target.made = True
            if target.value is not None:
                target.value = _dtype_state(target.value, state)
                return
            if type(state) is not tuple or len(state) != 5 or state[0] != 1:
                raise _Refusal("an array's state is none")
            _, shape, dtype, by_columns, payload = state
            order = "F" if by_columns is True else "C"
            target.value = self._array(payload, getattr(dtype, "value", None), shape, order)
        elif isinstance(target, dict) and type(state) is dict and id(target) in self.open:
            if isinstance(target, _Settings):  # else torch's note of versions, not needed
                self._deepen(target, list(state.values()))
                target.update(state)
        else:
            raise _Refusal("it sets the state of something")

    def _array(self, payload: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
        """Make an array [shape] of a type from the list over bytes of the file."""
        if type(payload) is bytes:
            payload = memoryview(payload)
        if type(payload) is not memoryview or not isinstance(dtype, np.dtype):
            raise _Refusal("an array is not made of bytes and a type")
        shape = _shape(shape)
        if math.prod(shape) * dtype.itemsize != len(payload) or order not in ("C", "F"):
            raise _Refusal("an array's shape does not fit its bytes")
        self.budget.spend(len(payload) + 128)
        array = np.ndarray(shape, dtype, payload if len(payload) else None, order=order)
        return self._checked(array)

    def _checked(self, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
            raise _Refusal("a truth value is neither true nor false")
        return array.copy(order="K") if self.copy else array

    def _scalar(self, dtype: Any, payload: Any) -> np.generic:
        return self._array(payload, dtype, ())[()]

    def _encoded(self, text: Any, codec: Any) -> memoryview:
        """Bytes as protocol 2 keeps them: a text of the first 256 characters."""
        if type(text) is not str or codec != "latin1":
            raise _Refusal("it encodes something")
        self.budget.spend(len(text))
        return memoryview(text.encode("latin1"))

    def _set(self, items: Any = ()) -> set:
        if type(items) is not list and items != ():
            raise _Refusal("it makes a set of something")
        self.budget.spend(64 * len(items))
        return set(map(self._key, items))

    # --- torch ----------------------------------------------------------------------------------

    def _persistent(self) -> None:
        told = self._pop()
        if type(told) is not tuple or len(told) < 5 or told[0] != "storage" or not self.storage:
            raise _Refusal("it refers to something outside")
        kind, key, _, size = told[1:5]
        kind = str(kind).rpartition(".")[2]
        if type(key) is not str or kind not in _STORAGES or not _is_whole(size) or any(told[5:]):
            raise _Refusal("it refers to something outside")
        payload = self.storage(key, size * np.dtype(_STORAGES[kind]).itemsize)
        self._push(_Storage(kind, size, payload), 128)

    def _storage_from_bytes(self, payload: Any) -> _Storage:
        """Read a storage in the form of `torch.save` before its zip files: three pickles that say
        what wrote it, one that names the storage, one with the keys, then count and numbers.
        """
        if type(payload) is not memoryview:
            raise _Refusal("a storage is not made of bytes")
        inner = _Machine(payload, self.budget, copy=False)
        inner.storage = lambda key, size: payload[:0]
        if inner.run() != _TORCH_MAGIC:
            raise _Refusal("a storage is in an unknown form")
        inner.run()
        inner.run()
        storage = inner.run(data=False)
        inner.run()
        if type(storage) is not _Storage or inner._number(8) != storage.count:
            raise _Refusal("a storage is in an unknown form")
        return replace(storage, payload=inner._take(storage.count * storage.dtype.itemsize))

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        """Make an array of the numbers of a storage that a tensor shows."""
        size, stride = _shape(size), _shape(stride)
        if type(storage) is not _Storage or not _is_whole(offset) or len(size) != len(stride):
            raise _Refusal("a tensor is in an unknown form")
        dtype = storage.dtype
        if 0 in size:
            return np.zeros(size, dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= storage.count or math.prod(size) > storage.count:
            raise _Refusal("a tensor shows more than its storage holds")
        self.budget.spend(2 * math.prod(size) * dtype.itemsize + 128)
        steps = tuple(step * dtype.itemsize for step in stride)
        array = np.ndarray(size, dtype, storage.payload, offset * dtype.itemsize, steps)
        if storage.kind == "BFloat16Storage":  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return self._checked(array)

    def _parameter(self, tensor: Any, *_: Any) -> np.ndarray:
        if not isinstance(tensor, np.ndarray):
            raise _Refusal("a parameter is no tensor")
        return tensor


def _told(value: Any) -> str:
    return f"the name {value[:100]}" if type(value) is _Name else f"a {type(value).__name__}"


_PLAIN = frozenset({str, int, float, bool, type(None)})
_CONTAINERS = (list, dict, tuple, set)
_LIGHT = frozenset({_Name, _Unmade, int, float, bool, type(None)})
_FLAT = _LIGHT | {str, memoryview, bytes, np.ndarray}
_SETTINGS = _Name("settings")
_STOP, _GET, _MEMOIZE, _SMALL, _FLOAT = ord("."), ord("h"), 0x94, ord("K"), ord("G")
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_SAME_MODULES = {
    "numpy._core.multiarray": "numpy.core.multiarray", "numpy._core.numeric": "numpy.core.numeric",
    "__builtin__": "builtins",
}  # fmt: skip
_ARRAY_NAMES = {
    "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray._reconstruct",
    "numpy.core.numeric._frombuffer",
}  # fmt: skip
_MAKERS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": lambda machine, *given: _dtype(*given),
    "numpy.core.multiarray._reconstruct": lambda machine, *given: _Unmade(),
    "numpy.core.multiarray.scalar": _Machine._scalar,
    "numpy.core.numeric._frombuffer": _Machine._array,
    "_codecs.encode": _Machine._encoded,
    "builtins.bytes": lambda machine: memoryview(b""),
    "builtins.set": _Machine._set,
    "builtins.frozenset": _Machine._set,
    "collections.OrderedDict": lambda machine: {},
    "torch.Size": lambda machine, size: _shape(size),
    "torch.storage._load_from_bytes": _Machine._storage_from_bytes,
    "torch._utils._rebuild_tensor_v2": _Machine._tensor,
    "torch._utils._rebuild_parameter": _Machine._parameter,
}
_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    ord(code): operation
    for code, operation in {
        "\x80": _Machine._protocol,
        "\x95": _Machine._frame,
        "(": _Machine._mark,
        "}": lambda m: m._new({}),
        "]": lambda m: m._new([]),
        "\x8f": lambda m: m._new(set()),
        ")": lambda m: m._tuple(0),
        "\x85": lambda m: m._tuple(1),
        "\x86": lambda m: m._tuple(2),
        "\x87": lambda m: m._tuple(3),
        "t": _Machine._tuple_since_mark,
        "N": lambda m: m._push(None),
        "\x88": lambda m: m._push(True),
        "\x89": lambda m: m._push(False),
        "M": lambda m: m._integer(2, signed=False),
        "J": lambda m: m._integer(4),
        "\x8a": lambda m: m._integer(m._number(1)),
        "\x8b": lambda m: m._integer(m._number(4)),
        "G": _Machine._float,
        "\x8c": lambda m: m._text(1),
        "X": lambda m: m._text(4),
        "\x8d": lambda m: m._text(8),
        "C": lambda m: m._bytes(1),
        "B": lambda m: m._bytes(4),
        "\x8e": lambda m: m._bytes(8),
        "\x96": lambda m: m._bytes(8),
        "a": lambda m: m._append([m._pop()]),
        "e": lambda m: m._append(m._since_mark()),
        "s": lambda m: m._set_items([m._pop(), m._pop()][::-1]),
        "u": lambda m: m._set_items(m._since_mark()),
        "\x90": lambda m: m._add(m._since_mark()),
        "\x91": lambda m: m._push(m._set(m._since_mark())),
        "q": lambda m: m._put(m._number(1)),
        "r": lambda m: m._put(m._number(4)),
        "j": _Machine._get_far,
        "c": _Machine._global,
        "\x93": _Machine._stack_global,
        "R": _Machine._reduce,
        "\x81": _Machine._new_object,
        "b": _Machine._build,
        "Q": _Machine._persistent,
    }.items()
}


def _read_torch_zip(machine: _Machine) -> Any:
    """Read what `torch.save` wrote: a pickle, and the storages that it refers to, uncompressed."""
    ends = bytes(machine.data[-(2**16 + 22) :])
    found = ends.rfind(b"PK\x05\x06")
    if found < 0 or int.from_bytes(ends[found + 10 : found + 12], "little") > 20_000:
        raise _Refusal("it is no archive of torch, or one of too many parts")
    parts: dict[str, memoryview] = {}
    with zipfile.ZipFile(io.BytesIO(machine.data)) as archive:
        for part in archive.infolist():
            machine.budget.spend(1024)
            if part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1:
                raise _Refusal("it is an archive of compressed parts, which torch does not write")
            start = part.header_offset
            header = machine.data[start : start + 30]
            start += 30 + sum(struct.unpack("<HH", header[26:30]))
            if start + part.file_size > len(machine.data):
                raise EOFError(f"{part.file_size} bytes are announced")
            name = part.filename.partition("/")[2]
            parts[name] = machine.data[start : start + part.file_size]
    if bytes(parts.get("byteorder", b"little")) != b"little":
        raise _Refusal("its numbers begin with the upper byte")

    def storage(key: str, size: int) -> memoryview:
        payload = parts.get(f"data/{key}", machine.data[:0])
        if len(payload) < size:
            raise EOFError(f"{size} bytes are announced and {len(payload)} are there")
        return payload[:size]

    inner = _Machine(parts["data.pkl"], machine.budget, copy=machine.copy)
    inner.storage = storage
    return inner.run()
