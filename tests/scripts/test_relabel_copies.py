"""utils.py --relabel DIR --to OTHER: another judge's labels, the pairs themselves untouched."""

from __future__ import annotations

import json

import pytest

import utils
from spikescore.errors import UserError
from tests.helpers.factories import make_pairs
from tests.helpers.running import run_script


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    make_pairs(folder / "toy", n=4, turns=3)
    (folder / "toy" / "toy-0000.measures.pkl").write_bytes(b"measures")
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}


def test_the_copies_are_labelled_and_the_pairs_stay(pairs, tmp_path):
    before = contents(pairs)
    copies = tmp_path / "copies"
    done = run_script("utils.py", "--relabel", pairs, "--judge", "exact", "--to", copies)
    assert done.returncode == 0 and "labels: 4 of 4 (exact 4)" in done.stdout
    assert contents(pairs) == before
    copied = contents(copies)
    assert set(copied) == set(before)
    for path, data in copied.items():
        if path.suffix == ".json":
            # gold is "gold", no answer holds it
            record = json.loads(data)
            assert record["nil_label"] == 0 and record["nil_judge"]["judge"] == "exact"
        else:
            assert data == before[path]


def test_a_second_run_judges_only_what_is_open(pairs, tmp_path, capsys):
    copies = tmp_path / "copies"
    utils.copy_unlabelled(pairs, copies)
    utils.relabel(copies, "exact")
    (copies / "toy" / "toy-0002.json").unlink()
    utils.copy_unlabelled(pairs, copies)
    capsys.readouterr()
    assert utils.relabel(copies, "exact") == 0
    assert "4 pairs, 1 to label" in capsys.readouterr().out


def test_copies_do_not_go_among_the_pairs(pairs):
    with pytest.raises(UserError, match="inside"):
        utils.copy_unlabelled(pairs, pairs / "copies")
