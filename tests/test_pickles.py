"""Pickles: sound ones come back, and nothing but data comes out of any bytes, within bounds."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spikescore import pairs, pickles
from spikescore.errors import UserError
from spikescore.pairs import TOKEN_KEYS, read_states, write_pair
from spikescore.pickles import load_pickle, map_pickle
from tests.test_pairs import make_states

# --- what is data comes back ------------------------------------------------------------------

SHARED = [1, 2]
SOUND = {
    "plain": {
        "a": [1, 2.5, None, True, False, "é", "\ud800", "x" * 300],
        -1: 2**40,
        None: -(2**63),
    },
    "keys": {("saplma", "math", 0): 1, True: 2, 0.5: 3, b"k": 4},
    "containers": ((), (1,), (1, (2, "x")), [], {}, {"s": {1, "a"}, "e": set()}),
    "shared": {"a": SHARED, "b": SHARED, "c": [SHARED, SHARED]},
    "floats": [[float(n) for n in range(5000)], [0.5] * 11 + [1] + [float("inf")]],
    "bytes": [b"", b"abc", b"\xff" * 1000],
    "arrays": {
        "half": np.arange(6).reshape(2, 3).astype(np.float16),
        "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "every other": np.arange(20)[::2],
        "upper byte first": np.arange(5, dtype=">i4"),
        "empty": np.zeros((0, 7), np.float32),
        "none": np.array(5.0),
        "truth": np.array([True, False]),
        "large": np.arange(50_000, dtype=np.int64),
    },
    "numbers": [np.float64(3.5), np.int32(-1), np.bool_(True), np.float16(0.5)],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", SOUND)
def test_sound_content_comes_back(tmp_path, name, protocol):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(SOUND[name], protocol=protocol))
    for found in (load_pickle(path), map_pickle(path)):
        np.testing.assert_equal(found, SOUND[name])
        assert type(found) is type(SOUND[name])
        if name == "arrays":
            for key, array in SOUND[name].items():
                assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
    if name == "arrays":
        assert load_pickle(path)["half"].flags.writeable
        assert not found["large"].flags.owndata  # a view of the file


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("save", ["pickle", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64,
                                   torch.bool, torch.int64, torch.uint8])  # fmt: skip
def test_tensors_become_arrays(tmp_path, dtype, save, protocol):
    whole = (3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))).abs().to(dtype)
    state = torch.nn.Linear(3, 2).state_dict()
    content = {
        "whole": whole, "columns": whole.t(), "part": whole[1:, 2:4], "one": whole[2, 3],
        "none": whole[:0], "weights": OrderedDict(state), "size": whole.shape,
        "parameter": torch.nn.Parameter(whole.float()),
    }  # fmt: skip
    path = tmp_path / "t.pkl"
    if save == "torch":
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    for found in (load_pickle(path), map_pickle(path)):
        for key in ("whole", "columns", "part", "one", "none", "parameter"):
            expected = content[key].detach().double().numpy()
            np.testing.assert_array_equal(found[key].astype(np.float64), expected)
        assert found["size"] == (4, 6)
        np.testing.assert_array_equal(found["weights"]["bias"], state["bias"].numpy())


class TrainingConfig:
    """As the public release's probes hold one."""


def test_settings_objects_become_what_they_hold(tmp_path):
    config = TrainingConfig()
    config.width = 3
    path = tmp_path / "x.pkl"
    for protocol in (2, 4):
        content = {"c": config, "n": argparse.Namespace(layers=[1, 2])}
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        assert load_pickle(path) == {"c": {"width": 3}, "n": {"layers": [1, 2]}}


# --- what is not, is refused ------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value: int) -> bytes:
    size = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def call(name: str, *arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def array_of(dtype: bytes, shape: bytes, payload: bytes) -> bytes:
    """An array in the older form: an empty one whose state is set."""
    made = call(
        "numpy._core.multiarray._reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", b"C\x01b"
    )
    data = b"B" + struct.pack("<I", len(payload)) + payload
    return made + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


def dtype_of(code: str, state: bytes) -> bytes:
    return call("numpy.dtype", text(code), b"\x89", b"\x88") + state


PLAIN_STATE = b"(K\x03" + text("<") + b"NNN" + whole(-1) * 2 + b"K\x00tb"
OBJECT_FLAG = b"(K\x03" + text("|") + b"NNN" + b"K\x08K\x08K\x00tb"  # which says: no object here
FIELD = call("numpy.dtype", text("f8")) + b"J\x00\xe1\xf5\x05\x86"  # at byte 100,000,000
FIELDS = b"(K\x03" + text("|") + b"N" + text("a") + b"\x85}" + text("a") + FIELD
FIELDS += b"sK\x08K\x01K\x10tb"
F8 = dtype_of("f8", PLAIN_STATE)
FILE = b"\x80\x04"
SHAPE_2 = b"K\x02\x85"


def frombuffer(payload: bytes, dtype: bytes, shape: bytes) -> bytes:
    data = b"B" + struct.pack("<I", len(payload)) + payload
    return call("numpy._core.numeric._frombuffer", data, dtype, shape, text("C"))


def tensor_of(numbers: int, offset: bytes, size: bytes, stride: bytes) -> bytes:
    typed = io.BytesIO()
    stored = torch.zeros(numbers).__reduce_ex__(2)[1][0]
    torch.save(stored, typed, _use_new_zipfile_serialization=False)
    data = typed.getvalue()
    stored = call("torch.storage._load_from_bytes", b"B" + struct.pack("<I", len(data)) + data)
    return call("torch._utils._rebuild_tensor_v2", stored, offset, size, stride, b"\x89",
                call("collections.OrderedDict"))  # fmt: skip


HOSTILE = {
    # types and states
    "an object type without its flag": array_of(dtype_of("O8", OBJECT_FLAG), SHAPE_2, b"A" * 16),
    "objects over bytes": frombuffer(b"A" * 16, dtype_of("O8", OBJECT_FLAG), SHAPE_2),
    "a field far outside": array_of(dtype_of("V8", FIELDS), SHAPE_2, b"A" * 16),
    "a number's type with fields": array_of(dtype_of("f8", FIELDS), SHAPE_2, b"A" * 16),
    "a number's type with flags": array_of(dtype_of("f8", OBJECT_FLAG), SHAPE_2, b"A" * 16),
    "a size of its own": array_of(dtype_of("U1", PLAIN_STATE), SHAPE_2, b"A" * 16),
    "fields by name": frombuffer(b"A" * 16, dtype_of("f8,O", PLAIN_STATE), SHAPE_2),
    "dates": array_of(dtype_of("M8[s]", PLAIN_STATE), SHAPE_2, b"A" * 16),
    "a type alone": F8,
    "a name alone": b"cnumpy\nndarray\n",
    "an array without a state": call("numpy._core.multiarray._reconstruct", b"N"),
    "an array set twice": array_of(F8, SHAPE_2, b"A" * 16) + b"(K\x01" + SHAPE_2 + F8 + b"\x89Ntb",
    "the state of a list": b"]" + b"}b",
    # shapes
    "more than its bytes": array_of(F8, b"K\x03\x85", b"A" * 16),
    "less than its bytes": array_of(F8, b"K\x01\x85", b"A" * 16),
    "a negative shape": array_of(F8, whole(-2) + b"\x85", b"A" * 16),
    "a shape that runs over": array_of(F8, whole(2**61) + whole(8) + b"\x86", b""),
    "a billion rows of nothing": array_of(F8, whole(10**9) + b"K\x00\x86", b""),
    "truth that is neither": array_of(dtype_of("b1", b"(K\x03" + text("|") + b"NNN" + whole(-1) * 2
                                               + b"K\x00tb"), SHAPE_2, b"\x01\x07"),
    "a shape of floats": array_of(F8, b"G" + struct.pack(">d", 2.0) + b"\x85", b"A" * 16),
    # tensors
    "a tensor behind its storage": tensor_of(4, b"K\x02", b"K\x03\x85", b"K\x01\x85"),
    "a tensor before its storage": tensor_of(4, whole(-1), b"K\x02\x85", b"K\x01\x85"),
    "a tensor that is walked backwards": tensor_of(4, b"K\x03", b"K\x02\x85", whole(-1) + b"\x85"),
    "one number a billion times": tensor_of(4, b"K\x00", whole(10**9) + b"\x85", b"K\x00\x85"),
    "strides for another shape": tensor_of(4, b"K\x00", b"K\x02\x85", b"K\x01K\x01\x86"),
    # time and memory
    "a key that is hashed for ever": b"})" + b"2\x86" * 40 + b"Ns",
    "the same without DUP": b"})\x94" + b"".join(b"h%c" % n * 2 + b"\x86\x94" for n in range(40))
    + b"Ns",
    "a tuple of tuples as often": b")\x94" + b"".join(b"h%c" % n * 2 + b"\x86\x94"
                                                     for n in range(40)),
    "a list from a range": call("builtins.list", call("builtins.range", whole(10**8))),
    "integers with one hash": b"}(" + b"".join(whole(k * (2**61 - 1)) + b"N" for k in range(1, 999))
    + b"u",
    "pairs of integers": b"}K\x01K\x02\x86Ns",
    "a list within itself": b"]\x94h\x00a",
    "a list within its tuple": b"]\x94h\x00\x85a",
    "a dict within itself": b"}\x94" + text("a") + b"h\x00s",
    "a thousand levels": b"]" * 1000 + b"a" * 999,
    "a thousand tuples": b")" + b"\x85" * 1000,
    "a place in memory": b"Nr\xff\xff\xff\x7f",
    "an integer of a megabyte": b"\x8b" + struct.pack("<I", 2**20) + b"\x01" * 2**20,
    "many empty dicts": b"(" + b"}" * 1_000_000 + b"t",
    "one long text over and over": text("x" * 100_000) + b"\x94(" + b"h\x00" * 20_000 + b"t",
    "one array over and over": frombuffer(b"A" * 80_000, F8, whole(10_000) + b"\x85") + b"\x94("
    + b"h\x00" * 20_000 + b"t",
    "bytes by another codec": call("_codecs.encode", text("eJw="), text("zip")),
    # names and calls
    "a call of a number": b"K\x01)R",
    "a call of a text": text("os.system") + b")R",
    "a name with dots": b"\x8c\x05numpy\x8c\x0edtype.__init__\x93",
    "an object of an admitted name": b"ccollections\nOrderedDict\n)\x81",
    "something outside": text("storage") + b"Q",
    "an older protocol": b"I1\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_mere_data_is_refused_within_bounds(tmp_path, name):
    """Peak memory is counted where Python and numpy allocate; that it ends at all bounds time."""
    path = tmp_path / "sent.pkl"
    path.write_bytes(FILE + HOSTILE[name] + b".")
    for read in (load_pickle, map_pickle):
        tracemalloc.start()
        with pytest.raises(UserError) as error:
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        (line,) = str(error.value).splitlines()
        assert str(path) in line and len(line) < len(str(path)) + 300
        assert peak < 2**27 + 6 * path.stat().st_size


def test_the_hostile_types_are_what_they_say(tmp_path):
    """The same bytes with a plain type are an array, so that it is the type that is refused."""
    path = tmp_path / "x.pkl"
    for made in (array_of(F8, SHAPE_2, b"A" * 16), frombuffer(b"A" * 16, F8, SHAPE_2)):
        path.write_bytes(FILE + made + b".")
        expected = np.frombuffer(b"A" * 16, np.float64)
        np.testing.assert_array_equal(load_pickle(path), expected)
        np.testing.assert_array_equal(pickle.loads(path.read_bytes()), expected)
    path.write_bytes(FILE + tensor_of(4, b"K\x01", b"K\x03\x85", b"K\x01\x85") + b".")
    assert load_pickle(path).shape == pickle.loads(path.read_bytes()).shape == (3,)


@pytest.mark.parametrize("damage", ["compressed", "cut", "no pickle", "short storage"])
def test_an_archive_that_torch_does_not_write_is_refused(tmp_path, damage):
    path, other = tmp_path / "t.pt", tmp_path / "sent.pt"
    torch.save({0: {"k": torch.zeros(4, 1000)}}, path)
    if damage == "cut":
        other.write_bytes(path.read_bytes()[:-40])
    else:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
            for part in old.infolist():
                content = old.read(part)
                if damage == "no pickle" and part.filename.endswith("data.pkl"):
                    continue
                if damage == "short storage" and part.filename.endswith("data/0"):
                    content = content[:-8]
                deflated = damage == "compressed" and part.filename.endswith("data/0")
                kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
                new.writestr(part.filename, content, kind)
    with pytest.raises(UserError, match=r"sent\.pt"):
        load_pickle(other)


def test_what_is_no_file_or_no_pickle_is_named(tmp_path):
    (tmp_path / "empty.pkl").touch()
    (tmp_path / "json.pkl").write_text('{"layer": 3}')
    (tmp_path / "folder.pkl").mkdir()
    os.mkfifo(tmp_path / "pipe.pkl")
    expected = {"empty": "is empty", "folder": "cannot be read", "pipe": "no file"}
    expected["json"] = r"no pickle: it begins with b'\{'"
    for name, told in expected.items():
        for read in (load_pickle, map_pickle):
            with pytest.raises(UserError, match=rf"{name}\.pkl.*{told}"):
                read(tmp_path / f"{name}.pkl")


def is_data(value, left: list[int]) -> bool:
    left[0] -= 1
    assert left[0] > 0, "it expands without end"
    if isinstance(value, dict):
        return all(is_data(one, left) for entry in value.items() for one in entry)
    if isinstance(value, list | tuple | set):
        return all(is_data(one, left) for one in value)
    if isinstance(value, np.ndarray):
        with np.errstate(all="ignore"):
            value.astype(float).sum()
        return value.dtype.kind in "biuf"
    return value is None or isinstance(value, str | bytes | int | float | np.number | np.bool_)


SEEDS = [pickle.dumps(content, protocol) for content in SOUND.values() for protocol in (2, 5)]
SEEDS += [FILE + code + b"." for code in HOSTILE.values() if len(code) < 2000]


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(
        st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=6)), max_size=6
    ),
    cut=st.integers(0, 2**20),
)
def test_any_bytes_are_data_or_one_clear_error(tmp_path, seed, changes, cut):
    data = bytearray(seed[:4000])
    for place, new in changes:
        place %= len(data) + 1
        data[place : place + (len(new) if cut % 2 else 0)] = new
    path = tmp_path / "x.pkl"
    path.write_bytes(bytes(data if cut % 3 else data[: cut % (len(data) + 1)]))
    for read in (load_pickle, map_pickle):
        try:
            assert is_data(read(path), [10**7])
        except UserError as error:
            assert str(path) in str(error)


KIN = {
    "pair": pairs.pack_states(make_states(turns=2, layers=2, hidden=4), model="m"),
    "columns": {"a": {1: np.asfortranarray(np.arange(6.0).reshape(2, 3)), "b": [1.0]}},
    "shared": dict.fromkeys("ab", np.arange(6, dtype=np.float32)),
    "truth": {"a": np.array([True, False]), "b": np.arange(3.0)},
    "payload as a key": {np.arange(2.0).tobytes(): 1, "a": np.arange(2.0)},
}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(sorted(KIN)),
    protocol=st.sampled_from([3, 4, 5]),
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4),
)
def test_a_file_like_one_read_before_gives_what_it_would_give_alone(
    tmp_path, name, protocol, changes
):
    """`load_pickle` keeps no layouts, so it is the oracle, for any bytes changed anywhere."""
    path = tmp_path / "x.pkl"
    data = bytearray(pickle.dumps(KIN[name], protocol=protocol))
    path.write_bytes(data)
    np.testing.assert_equal(map_pickle(path), load_pickle(path))
    for place, new in changes:
        data[place % len(data)] = new
    path.unlink()
    path.write_bytes(data)
    try:
        expected = load_pickle(path)
    except UserError as error:
        with pytest.raises(UserError) as found:
            map_pickle(path)
        assert str(found.value) == str(error)
    else:
        np.testing.assert_equal(map_pickle(path), expected)


def test_a_layout_serves_the_next_pair_and_no_hostile_one(tmp_path, monkeypatch):
    """The machine does not run for a second pair of the same shape, and does for any other."""
    path, old = write_large(tmp_path, seed=1)
    assert_same_states(read_states(path), old)
    new = write_large(tmp_path, seed=2)[1]
    with monkeypatch.context() as patch:
        patch.setattr(pickles._Machine, "run", None)
        assert_same_states(read_states(path), new)
        data = path.read_bytes()
        assert data.count(b"_frombuffer") == 1
        path.write_bytes(data.replace(b"_frombuffer", b"_fromstring"))
        with pytest.raises(UserError, match="NoneType"):
            read_states(path)
    with pytest.raises(UserError, match="refused: it names"):
        read_states(path)


# --- and does not run ---------------------------------------------------------------------------


class _Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def hostile_pickles(marker):
    """Several ways to run a command on loading; each would create `marker`."""
    command = f"touch {marker}"
    yield "os.system", pickle.dumps(_Hostile(command))
    yield "inside a pair", pickle.dumps({"format": 1, "turns": {1: {"k": _Hostile(command)}}})
    yield (
        "builtins.eval",
        f'cbuiltins\neval\n(S\'__import__("os").system("{command}")\'\ntR.'.encode(),
    )
    yield "dotted name", b"\x80\x04\x8c\x08builtins\x8c\x0cdict.__init__\x93."
    # torch's own storage loader unpickles what it is given without any restriction
    inner = pickle.dumps(_Hostile(command))
    outer = b"ctorch.storage\n_load_from_bytes\n(B" + len(inner).to_bytes(4, "little") + inner
    yield "torch storage", outer + b"tR."


@pytest.mark.parametrize("case", range(5))
def test_a_hostile_pickle_is_refused_and_its_command_does_not_run(tmp_path, case):
    marker = tmp_path / "ran"
    name, data = list(hostile_pickles(marker))[case]
    path = tmp_path / "bad.pkl"
    path.write_bytes(data)
    with pytest.raises(UserError, match="bad.pkl"):
        read_states(path)
    assert not marker.exists(), name


def test_the_hostile_pickles_would_run_without_the_restriction(tmp_path):
    marker = tmp_path / "ran"
    name, data = next(hostile_pickles(marker))
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize("cut", [0, 1, 10, 200])
def test_a_cut_or_empty_pickle_is_named(tmp_path, cut):
    write_pair(tmp_path, {"id": "a"}, make_states(), model="m")
    path = tmp_path / "a.pkl"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="a.pkl"):
        read_states(path)


# --- mapped instead of copied -------------------------------------------------------------------

LARGE = {"layers": 5, "hidden": 8192}  # 80 KB an array: large enough for a pickle of its own frame


def write_large(folder, seed=0):
    states = make_states(turns=2, **LARGE, seed=seed)
    write_pair(folder, {"id": "a"}, states, model="m")
    return folder / "a.pkl", states


def assert_same_states(found, expected):
    assert list(found) == list(expected)
    for turn, by_key in expected.items():
        assert list(found[turn]) == list(by_key)
        for key, array in by_key.items():
            assert found[turn][key].dtype == np.float16
            np.testing.assert_array_equal(found[turn][key], array)


def test_large_states_are_views_of_the_file_and_equal_what_was_written(tmp_path):
    path, states = write_large(tmp_path)
    assert_same_states(load_pickle(path)["turns"], states)
    mapped = read_states(path)
    assert_same_states(mapped, states)
    data = path.read_bytes()
    assert data.count(states[2][TOKEN_KEYS[2]].tobytes()) == 1
    for by_key in mapped.values():
        for array in by_key.values():
            assert not array.flags.owndata and not array.flags.writeable
    with pytest.raises(ValueError):
        mapped[1][TOKEN_KEYS[0]][0, 0] = 1


def test_views_outlive_the_replaced_and_the_deleted_file(tmp_path):
    path, old = write_large(tmp_path, seed=1)
    views = read_states(path)
    new = write_large(tmp_path, seed=2)[1]
    assert_same_states(read_states(path), new)
    assert_same_states(views, old)
    path.unlink()
    assert_same_states(views, old)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pairs_of_older_pickle_protocols_are_read(tmp_path, protocol):
    states = make_states(turns=2, **LARGE)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(pairs.pack_states(states, model="m"), protocol=protocol))
    assert_same_states(read_states(path), states)


def test_older_tensors_too_large_for_a_frame_are_read(tmp_path):
    tensor = torch.randn(5, 40_000, generator=torch.Generator().manual_seed(0)).half()
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps({0: {"last_token_embedding": tensor}}, protocol=5))
    assert np.array_equal(read_states(path)[1]["last_token_embedding"], tensor.numpy())


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.99999])
def test_a_large_pickle_cut_short_is_named(tmp_path, part):
    path = write_large(tmp_path)[0]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UserError, match=r"a\.pkl.*cut short"):
        read_states(path)


def test_a_payload_that_claims_more_than_the_file_holds_is_named(tmp_path):
    path = write_large(tmp_path)[0]
    size = 2 * 5 * 8192
    data = path.read_bytes().replace(size.to_bytes(8, "little"), (2**40).to_bytes(8, "little"), 1)
    assert data != path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pkl"):
        read_states(path)


@pytest.mark.parametrize("inside", [0, 4, 100])
def test_a_frame_that_ends_inside_a_payload_gives_the_right_values(tmp_path, inside):
    """No pickler frames a large payload, but a pickle may."""
    array = np.arange(100_000, dtype=np.int32)
    data = pickle.dumps(array, protocol=5)
    start = data.index(b"\x96" + array.nbytes.to_bytes(8, "little"))  # the opcode BYTEARRAY8
    frame = b"\x95" + (9 + inside).to_bytes(8, "little")
    path = tmp_path / "x.pkl"
    path.write_bytes(data[:start] + frame + data[start:])
    assert np.array_equal(load_pickle(path), array)
    assert np.array_equal(map_pickle(path), array)


@pytest.mark.parametrize("place", ["before", "after", "in place of an array"])
def test_a_hostile_object_among_large_states_does_not_run(tmp_path, place):
    marker = tmp_path / "ran"
    bomb = _Hostile(f"touch {marker}")
    content = pairs.pack_states(make_states(turns=2, **LARGE), model="m")
    if place == "before":
        content = {"first": bomb, **content}
    elif place == "after":
        content["turns"][2]["more"] = bomb
    else:
        content["turns"][2][TOKEN_KEYS[0]] = bomb
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(content, protocol=5))
    with pytest.raises(UserError, match=r"bad\.pkl.*refused.*system"):
        read_states(path)
    assert not marker.exists()
