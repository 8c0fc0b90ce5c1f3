"""Shards: every stage reads them as the folder they were made of, and unpacking gives it back."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from spikescore import packing, shards
from spikescore.detectors.answers import read_answers
from spikescore.errors import UserError
from spikescore.files import read_json, write_json
from spikescore.labels.relabelling import copy_unlabelled, first_answers
from spikescore.measures.file import add_group, empty_measures, texts_digest, write_measures
from spikescore.packing import check, pack, unpack
from spikescore.pairs import (
    DEFAULT_TOKEN_KEY,
    TOKEN_KEYS,
    find_records,
    iter_records,
    pack_states,
    read_record,
    read_states,
    write_error,
)
from spikescore.probes.data import load_training_data
from spikescore.probes.training import Settings, train_probe
from spikescore.report.evaluation import read_and_score
from spikescore.shards import Tensors, is_file, is_folder
from tests.helpers.factories import MODEL, make_pairs, make_record
from tests.helpers.running import ROOT, run, run_script
from tests.scripts.test_metrics_probe import score

N, TURNS = 18, 4
LENS = {"reasoning_score", "sharpness", "sharpness_raw"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two domains of pairs with measures, and all that may lie beside them."""
    folder = tmp_path_factory.mktemp("pairs") / "raw"
    for domain in ("math", "svamp"):
        for record in make_pairs(folder / domain, n=N, turns=TURNS, domain=domain):
            content = empty_measures({"model": MODEL, "identity": {}}, texts_digest(record))
            turns = {name: np.full(TURNS, 0.5, np.float32) for name in LENS}
            add_group(content, "lens", {}, turns=turns, first={"mind": np.ones(16, np.float32)})
            write_measures(folder / domain / f"{record['id']}.measures.pkl", content)
    write_json(folder / "math" / "run.json", {"command": "x"})
    write_error(folder / "math", "lost", "it failed")
    (folder / "svamp" / "judge_cache.sqlite").write_bytes(b"\x00\xff")
    return folder


@pytest.fixture
def packed(source, tmp_path) -> Path:
    pack(source, tmp_path / "packed", shard_bytes=15_000)
    return tmp_path / "packed"


def odd_pairs(folder: Path) -> None:
    """Pairs that others, older versions and accidents leave."""
    states = {1: {key: np.ones((3, 4), np.float16) for key in TOKEN_KEYS}}
    states[2] = {key: np.full((3, 4), n, np.float16) for n, key in enumerate(TOKEN_KEYS)}
    ours = pack_states(states, model=MODEL)
    fewer = {**ours, "turns": {1: states[1], 2: dict(list(states[2].items())[:2])}}
    shared = {**ours, "turns": {1: states[1], 2: states[1]}}
    columns = {1: {"k": np.asfortranarray(states[2][TOKEN_KEYS[0]])}}
    contents = {
        "protocol-2": pickle.dumps(ours, protocol=2),
        "protocol-4": pickle.dumps(ours, protocol=4),
        "fewer-tokens": pickle.dumps(fewer, protocol=5),
        "shared": pickle.dumps(shared, protocol=5),
        "columns": pickle.dumps({**ours, "turns": columns}, protocol=5),
        "no-turns": pickle.dumps({**ours, "turns": {}}, protocol=5),
        "no-model": pickle.dumps({"format": 1, "turns": states}, protocol=5),
        "tensors": pickle.dumps({0: {TOKEN_KEYS[0]: torch.ones(3, 4)}}, protocol=5),
        "damaged": pickle.dumps(ours)[:-9],
        "empty": b"",
    }
    for name, content in contents.items():
        write_json(
            folder / f"{name}.json", make_record(name, y=1, turns=2, domain="d", model=MODEL)
        )
        (folder / f"{name}.pkl").write_bytes(content)
    text = json.dumps(make_record("marked", y=1, turns=1, domain="d", model=MODEL))
    (folder / "marked.json").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    write_json(
        folder / "under-way.json",
        {**read_json(folder / "empty.json"), "id": "under-way", "complete": False},
    )
    (folder / "broken.json").write_bytes(b'{"cot_steps": [\xff')
    (folder / "alone.pkl").write_bytes(b"no pair")
    (folder / "notes.json").write_text("[1]")
    torch.save({0: {TOKEN_KEYS[0]: torch.ones(3, 4)}}, folder / "saved.pkl")
    write_json(
        folder / "saved.json",
        {"reasoning_chain": [{"step": 0, "response": "é"}], "nli_label": 1, "domain": "d"},
    )


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


# --- there and back -----------------------------------------------------------------------------


def test_unpacking_gives_every_file_back_byte_for_byte(source, packed, tmp_path):
    told = check(packed)
    n_shards = len(list(packed.glob("*.safetensors")))
    assert (told.pairs, told.copied, told.beside) == (2 * N, 3, 0)
    assert told.shards == n_shards == len(list(packed.glob("*.parquet"))) and 2 <= n_shards < N
    assert not list(packed.rglob("*.pkl"))
    unpack(packed, tmp_path / "back")
    assert files_in(tmp_path / "back") == files_in(source)


@pytest.mark.parametrize("shard_bytes", [1, 1_000, 10**9])
def test_pairs_of_any_form_come_back_and_read_the_same(tmp_path, shard_bytes):
    odd, packed = tmp_path / "odd", tmp_path / "packed"
    make_pairs(odd / "in" / "it", n=2)
    odd_pairs(odd)
    (odd / ".hidden").write_text("x")
    told = pack(odd, packed, shard_bytes=shard_bytes)
    assert [path.name for path in told.left] == [".hidden"] and told.copied == 3
    unpack(packed, tmp_path / "back")
    assert files_in(tmp_path / "back") == {
        name: data for name, data in files_in(odd).items() if name != ".hidden"
    }

    def read(folder: Path):
        damaged: list[Path] = []
        found = {}
        for path, record in iter_records(folder, damaged):
            try:
                states = read_states(path.with_suffix(".pkl"), TOKEN_KEYS[0])
            except UserError as error:
                states = str(error).replace(str(folder), "")
            found[path.relative_to(folder)] = record, states
        return found, [path.relative_to(folder) for path in damaged]

    np.testing.assert_equal(read(packed), read(odd))


def test_shards_are_what_other_programs_read(source, packed):
    """safetensors' and pyarrow's own readers find states and texts."""
    records = dict(iter_records(source))
    rows = [
        row for path in sorted(packed.glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    assert [row["path"] for row in rows] == [str(path.relative_to(source)) for path in records]
    for row, (path, record) in zip(rows, records.items(), strict=True):
        assert row["json"] == path.read_text() and row["question"] == record["question"]
        assert (row["label"], row["n_turns"]) == (record["nil_label"], TURNS)
    found = {}
    for path in packed.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for path in records:
        name = path.relative_to(source).with_suffix("").as_posix()
        content = pickle.loads(path.with_suffix(".pkl").read_bytes())
        for key in TOKEN_KEYS:
            expected = np.stack([by_key[key] for by_key in content["turns"].values()])
            assert found[f"{name}/{key}"].dtype == np.float16
            np.testing.assert_array_equal(found[f"{name}/{key}"], expected)
        measures = path.with_name(f"{path.stem}.measures.pkl").read_bytes()
        assert found[f"{name}.measures.pkl"].tobytes() == measures


# --- stages read them ---------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [".", "svamp"])
def test_stages_read_shards_as_the_folder(source, packed, inside):
    """A folder within the shards need not even be there."""
    shutil.rmtree(packed / "svamp")
    folder, shard = source / inside, packed / inside
    assert [path.relative_to(packed) for path in find_records(shard)] == [
        path.relative_to(source) for path in find_records(folder)
    ]
    mine, theirs = (read_answers(one, token_key=DEFAULT_TOKEN_KEY) for one in (shard, folder))
    assert list(mine.records) == list(theirs.records) and mine.left_out == theirs.left_out
    np.testing.assert_array_equal(mine.first_states, theirs.first_states)
    np.testing.assert_equal(mine.measures, theirs.measures)
    assert any(mine.measures) and not mine.unread
    for own, other in zip(mine.turn_states([1, 2]), theirs.turn_states([1, 2]), strict=True):
        np.testing.assert_array_equal(own, other)
    one, other = (
        load_training_data([place], token_key=TOKEN_KEYS[1], layers="single")
        for place in (shard, folder)
    )
    np.testing.assert_array_equal(one.features((2,)), other.features((2,)))
    assert len(first_answers(shard)) == len(first_answers(folder))


def test_scores_go_beside_the_shards(source, packed, tmp_path):
    probe = train_probe([source / "math"], Settings(seed=0))[0]
    path = probe.save(tmp_path / "probe.pkl") or tmp_path / "probe.pkl"
    raw = shutil.copytree(source, tmp_path / "raw")
    before = files_in(packed)
    for folder in (raw, packed):
        done = score(folder, path)
        assert done.returncode == 0 and f"scored {2 * N} dialogues" in done.stdout, done.stderr
        assert len(read_and_score(folder).items) == 2 * N
    assert files_in(packed).items() >= before.items()
    for one in find_records(raw):
        mine = packed / one.relative_to(raw)
        assert mine.read_bytes() == one.read_bytes()
        assert read_record(mine)["metrics"]["spike_score"] >= 0
    assert check(packed).beside == 2 * N
    unpack(packed, tmp_path / "back")
    assert files_in(tmp_path / "back") == files_in(raw)


def test_labels_for_copies_are_refused_by_name(packed, tmp_path):
    with pytest.raises(UserError, match="packed in shards.*pack_pairs.py unpack"):
        copy_unlabelled(packed, tmp_path / "copies")


def test_what_is_not_in_the_shards_is_not_there(packed):
    assert is_file(packed / "math" / "math-0001.pkl") and is_folder(packed / "math")
    for name in ("math/other.pkl", "math-0001.pkl", "math/math-0001.pkl/x"):
        assert not is_file(packed / name)
    assert not is_folder(packed / "mat")
    with pytest.raises(UserError, match="nowhere.*does not exist"):
        find_records(packed / "nowhere")
    with pytest.raises(UserError, match="does not exist"):
        read_record(packed / "math" / "other.json")


# --- what is wrong is named ---------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped": (flip, "SHA-256"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-7]), "cut short"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes"),
    "missing": (Path.unlink, "missing"),
}


@pytest.mark.parametrize("shard", ["pairs-00001.parquet", "states-00000.safetensors"])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_shard_is_named_by_whatever_reads_it(packed, tmp_path, name, shard):
    damage, told = DAMAGE[name]
    find_records(packed)  # sound until here, which is remembered
    damage(packed / shard)
    back = tmp_path / "back"
    for read in (find_records, check, lambda folder: unpack(folder, back)):
        with pytest.raises(UserError, match=rf"{shard}.*{told}"):
            read(packed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed"]


def test_a_changed_file_beside_the_shards_is_named_by_check(packed):
    (packed / "math" / "run.json").write_text("{}")
    assert find_records(packed)
    with pytest.raises(UserError, match=r"run\.json"):
        check(packed)


def test_the_script_ends_with_2(packed):
    flip(packed / "states-00000.safetensors")
    done = run_script("scripts/pack_pairs.py", "check", "--data_dir", packed)
    assert done.returncode == 2 and "states-00000.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_script("scripts/pack_pairs.py", "pack", "--data_dir", packed, "--save_dir", "new",
                      "--shard_gb", "inf")  # fmt: skip
    assert done.returncode == 2 and "--shard_gb must be a number above 0, not inf" in done.stderr


def test_sound_shards_are_hashed_once(packed, monkeypatch):
    hashed = []
    monkeypatch.setattr(shards, "require_hash", lambda folder, part: hashed.append(part.name))
    find_records(packed)
    assert hashed == []  # packing has checked them
    os.utime(packed / "states-00000.safetensors", ns=(0, 0))
    find_records(packed)
    find_records(packed)
    assert hashed == ["states-00000.safetensors"]


def lead_out(index: dict) -> None:
    index["shards"][0]["files"][0] = "../outside.json"


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(format=2),
        lambda index: index.pop("shards"),
        lambda index: index["files"].append({"name": "/etc/passwd", "size": 1, "sha256": ""}),
        lambda index: index["shards"].append(index["shards"][0]),
        lambda index: index["shards"][0]["pairs"].update(more=1),
        lead_out,
    ],
)
def test_an_index_that_is_none_is_named(packed, change):
    index = read_json(packed / shards.INDEX)
    change(index)
    write_json(packed / shards.INDEX, index)
    for read in (find_records, check):
        with pytest.raises(UserError, match=r"shards\.json.*is no index"):
            read(packed)


ENTRY = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}
HEADERS = {
    "no JSON": b"{",
    "a list": b"[]",
    "too long": None,
    "outside": {"a": {**ENTRY, "shape": [4, 4], "data_offsets": [0, 32]}},
    "before": {"a": {**ENTRY, "data_offsets": [-8, 0]}},
    "backwards": {"a": {**ENTRY, "shape": [-2, 2], "data_offsets": [8, 0]}},
    "not its size": {"a": {**ENTRY, "shape": [2, 3]}},
    "another type": {"a": {**ENTRY, "dtype": "F99"}},
    "no shape": {"a": {"dtype": "F16"}},
    "no entry": {},
    "a number": {"a": 1},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_fit_its_file_is_named(tmp_path, name):
    header = HEADERS[name]
    text = json.dumps(header).encode() if isinstance(header, dict) else header or b"{}"
    size = 2**62 if header is None else len(text)
    path = tmp_path / "states.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(UserError, match=r"states\.safetensors.*damaged"):
        Tensors(path).array("a")


def test_rows_of_other_pairs_are_not_taken_for_a_pair(packed):
    """With hashes that fit, as only who made the shards can have them."""
    index = read_json(packed / shards.INDEX)
    files = index["shards"][0]["files"]
    files[:] = [*files[3:6], *files[:3], *files[6:]]
    write_json(packed / shards.INDEX, index)
    with pytest.raises(UserError, match=r"pairs-00000\.parquet.*another pair"):
        read_record(packed / files[0])


def test_a_pickle_in_the_shards_that_is_none_of_ours_is_refused(tmp_path):
    """Bytes that would run a command are packed as they are, and refused where they are read."""
    make_pairs(tmp_path / "raw", n=1)
    marker = tmp_path / "ran"
    bomb = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    (tmp_path / "raw" / "toy-0000.pkl").write_bytes(bomb)
    pack(tmp_path / "raw", tmp_path / "packed", shard_bytes=10**6)
    with pytest.raises(UserError, match=r"toy-0000\.pkl.*refused"):
        read_states(tmp_path / "packed" / "toy-0000.pkl")
    assert not marker.exists()


# --- packing again, and being interrupted -------------------------------------------------------


def test_wrong_folders_are_refused(source, packed, tmp_path):
    (tmp_path / "empty").mkdir()
    for one, other, told in (
        (packed, tmp_path / "new", "holds shards already"),
        (packed.parent, tmp_path / "new", "holds shards already"),
        (source, packed, "is there already"),
        (source, source / "math" / "packed", "lies inside"),
        (tmp_path / "empty", tmp_path / "new", "holds no pairs"),
        (tmp_path / "none", tmp_path / "new", "cannot be read"),
    ):
        with pytest.raises(UserError, match=told):
            pack(one, other, shard_bytes=10**9)
    with pytest.raises(UserError, match=r"holds no shards\.json"):
        unpack(source, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "packed"]


KILLED = """
import os, signal, sys
from spikescore import packing
packing.{at} = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
packing.{task}(*sys.argv[1:], **{options})
"""


@pytest.mark.parametrize(
    ("task", "at"), [("pack", "write_json"), ("pack", "check"), ("unpack", "_beside")]
)
def test_what_a_killed_run_leaves_is_not_believed(source, packed, tmp_path, task, at):
    target = tmp_path / "target"
    options = {"shard_bytes": 15_000} if task == "pack" else {}
    given = source if task == "pack" else packed
    code = KILLED.format(task=task, at=at, options=options)
    killed = run([sys.executable, "-c", code, given, target], cwd=ROOT)
    assert killed.returncode == -9, killed.stderr
    (left,) = [path for path in tmp_path.iterdir() if path.name.startswith(".target")]
    assert not target.exists() and any(left.iterdir())
    others = find_records(packed)
    assert find_records(tmp_path) == others  # hidden, so no stage looks there
    getattr(packing, task)(given, target, **options)
    assert not left.exists()
    expected = files_in(packed if task == "pack" else source)
    assert files_in(target) == expected


def test_a_pair_that_changes_while_it_is_packed_is_noticed(source, tmp_path, monkeypatch):
    raw = shutil.copytree(source, tmp_path / "raw")
    write = packing._write_shard

    def changed(*given):
        path = raw / "math" / "math-0000.pkl"
        data = bytearray(path.read_bytes())
        data[-50] ^= 1
        path.write_bytes(data)
        return write(*given)

    monkeypatch.setattr(packing, "_write_shard", changed)
    with pytest.raises(UserError, match=r"math-0000\.pkl.*not what was packed"):
        pack(raw, tmp_path / "packed", shard_bytes=10**9)
    assert not (tmp_path / "packed").exists()


def test_the_hashes_are_those_of_the_files(packed):
    index = read_json(packed / shards.INDEX)
    parts = [one for shard in index["shards"] for one in (shard["pairs"], shard["states"])]
    for part in [*parts, *index["files"]]:
        data = (packed / part["name"]).read_bytes()
        assert (len(data), sha256(data).hexdigest()) == (part["size"], part["sha256"])
