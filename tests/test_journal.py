"""The journal: what was appended is there after a kill; a file goes when its results are there."""

from __future__ import annotations

import os
import threading

import pytest

from spikescore.errors import Refused
from spikescore.journal import Journal


def journal(folder) -> Journal:
    return Journal(folder, "turns", lambda entry: entry["id"])


def entry(item, n=1):
    return {"id": item, "n": n, "text": "é\ud800"}


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_entries_of_all_files_come_back_in_order_and_what_is_no_entry_is_passed_over(tmp_path):
    folder = tmp_path / "new"
    for names in ("ab", "bc"):
        writing = journal(folder)
        for n, name in enumerate(names):
            writing.append(entry(name, n))
    torn = folder / ".turns.0-0.journal"
    torn.write_bytes(b'{"n": 1}\n[]\n\xff\xfe\n7\n\n{"id": "d"}\n{"id": "e"')
    found = list(journal(folder).entries())
    assert sorted(one["id"] for one in found) == ["a", "b", "b", "c", "d"]
    assert {one["id"]: one["n"] for one in found if one["id"] in "ac"} == {"a": 0, "c": 1}
    assert all(one == entry(one["id"], one["n"]) for one in found if one["id"] != "d")
    assert list(Journal(folder, "other", str).entries()) == []


def test_a_file_goes_when_all_its_results_are_there_and_nobody_writes_it(tmp_path):
    first = journal(tmp_path)
    first.append(entry("a"))
    first.append(entry("b"))
    second = journal(tmp_path)
    assert len(list(second.entries())) == 2
    second.append(entry("c"))
    second.close({"a", "b"}.__contains__)
    assert len(left(tmp_path)) == 2  # the first is still being written, the second lacks a result
    first.close({"a"}.__contains__)
    assert len(left(tmp_path)) == 2
    third = journal(tmp_path)
    list(third.entries())
    third.close({"a", "b"}.__contains__)
    assert len(left(tmp_path)) == 1
    third.close({"a", "b", "c"}.__contains__)
    assert left(tmp_path) == []


def test_threads_append_whole_lines(tmp_path):
    writing = journal(tmp_path)
    threads = [
        threading.Thread(target=lambda n=n: [writing.append(entry(f"{n}", i)) for i in range(50)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(journal(tmp_path).entries())) == 400


def test_what_the_system_refuses_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="file"):
        journal(tmp_path / "file" / "below").append(entry("a"))
    os.mkdir(tmp_path / ".turns.1-1.journal")
    with pytest.raises(Refused, match="turns.1-1.journal.*cannot be read"):
        list(journal(tmp_path).entries())
