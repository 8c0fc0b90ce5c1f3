"""Files: found through links, written whole or not at all, and named when something is wrong."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spikescore import files
from spikescore.errors import Refused, UserError, run_main
from spikescore.files import JsonText, locked, read_json, walk, write_atomic, write_json
from tests.helpers.running import end, run, start


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_links_to_folders_are_followed_once_and_circles_end(tmp_path):
    top, disk = tmp_path / "top", tmp_path / "disk"
    touch(top / "b" / "one.json", top / "z.json", disk / "two.json", disk / "deep" / "three.json")
    (top / "a").symlink_to(top / "b")  # sorts before the folder, which counts all the same
    (top / "c").symlink_to(disk)
    (disk / "deep" / "back").symlink_to(top)
    (disk / "self").symlink_to(disk / "self")
    (top / "file.json").symlink_to(disk / "two.json")
    found = [path.relative_to(top).as_posix() for path in walk(top)]
    linked = ["c/deep/three.json", "c/self", "c/two.json"]
    assert found == ["b/one.json", *linked, "file.json", "z.json"]
    assert len(walk(top / "c")) == len(found)  # from any folder of the circle
    link = tmp_path / "link"
    link.symlink_to(top)
    assert [path.relative_to(link).as_posix() for path in walk(str(link))] == found


def test_a_link_that_leads_nowhere_is_told(tmp_path, caplog):
    (tmp_path / "domain").symlink_to(tmp_path / "gone")
    with caplog.at_level(logging.WARNING):
        assert walk(tmp_path) == [tmp_path / "domain"]
    assert f'"{tmp_path / "domain"}" is a link that leads nowhere' in caplog.text
    with pytest.raises(Refused, match=r"gone\S* cannot be read: No such file"):
        walk(tmp_path / "gone")


def dead_process() -> int:
    return int(run([sys.executable, "-c", "import os; print(os.getpid())"]).stdout)


def test_the_next_write_removes_what_a_killed_run_left_and_nothing_else(tmp_path):
    dead, machine = dead_process(), files._machine()
    other = f"{int(machine, 16) ^ 1:04x}"
    left = [f".a.json.{dead}.{machine}0000.tmp", f".b.pkl.{dead}.{other}0000.tmp"]
    kept = [
        f".a.json.{os.getpid()}.{machine}0000.tmp",  # one that a living run writes
        f".c.pkl.{dead}.{other}1111.tmp",  # of a run on another machine, a moment ago
        f"a.json.{dead}.{machine}0000.tmp", ".cache.tmp", f".{dead}.tmp",
    ]  # fmt: skip
    for name in left + kept:
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / left[1], (0, 0))
    write_json(tmp_path / "a.json", {})
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "a.json"])


WRITER = """
import sys
from pathlib import Path
from spikescore.files import open_atomic
with open_atomic(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_writer_killed_half_way_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    writer = start([sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE)
    assert writer.stdout.readline() == "writing\n"
    files._remove_leftovers.cache_clear()
    write_atomic(tmp_path / "b.bin", b"")
    assert len(os.listdir(tmp_path)) == 3  # it lives, so its temporary file stays
    end(writer)
    files._remove_leftovers.cache_clear()
    write_atomic(tmp_path / "b.bin", b"")
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "b.bin"] and path.read_bytes() == b"old"


def test_a_write_that_fails_is_one_line_with_the_path_and_what_to_do(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(Refused, match=r'folder.json" cannot be written: .*folder stands where'):
        write_json(tmp_path / "folder.json", {})
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "a.json", tmp_path / "file" / "deep" / "a.json"):
        with pytest.raises(Refused, match=r'file\S*" cannot be made: .*file stands where'):
            write_json(path, {})
    code = "from pathlib import Path\nfrom spikescore.files import write_atomic\n"
    code += "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    code += "from spikescore.errors import run_main\n"
    code += f"run_main(lambda: write_atomic(Path({str(tmp_path)!r}) / 'big', bytes(2000)))"
    done = run([sys.executable, "-c", code])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert f'"{tmp_path / "big"}" cannot be written: File too large; the limit' in line
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.json"]


def test_an_error_inside_the_block_is_not_taken_for_one_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="other"), files.open_atomic(tmp_path / "a"):
        open(tmp_path / "other")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("do this"), 2, "error: do this"),
        (KeyboardInterrupt(), 130, "interrupted: what was finished is kept"),
        (KeyboardInterrupt("3 of 4 kept"), 130, "interrupted: 3 of 4 kept"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, '"/x/y" cannot be used'),
        (OSError(errno.EISDIR, "Is a directory", "/x/.t", None, "/x/y"), 2, '"/x/y" cannot be'),
        (ConnectionError("two\nlines"), 2, "ConnectionError two lines"),
        (MemoryError(), 2, "error: there is no memory left"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_how_a_script_ends(capsys, error, status, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == status
    told = capsys.readouterr().err.splitlines()
    assert line in "".join(told) and len(told) <= 1


HOLDER = """
import sys
from pathlib import Path
from spikescore.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_says_who_holds_it_and_a_killed_holder_holds_nothing(tmp_path):
    holder = start([sys.executable, "-c", HOLDER, tmp_path / "run"], stdin=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    told = rf'run" is in use by process {holder.pid} on \S+ since [-0-9]+ [:0-9]+;'
    with pytest.raises(UserError, match=told), locked(tmp_path / "run"):
        pass
    end(holder)
    for _ in range(2):  # taken over, and free again after the block
        with locked(tmp_path / "run"):
            pass


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{\n  "a": 1,\n}', r"line 3, column 1: .*, at '}'; is there a comma too many\?"),
        ('{"a": {, "b": 1}}', r"line 1, column 8: .*, at ','; is there a comma too many\?"),
        ('{"a": [1, 2', r"line 1, column 12: .*the file ends here; it may be cut short"),
        ("", r"line 1, column 1: .*the file ends here"),
        ('{"a": None}', r"line 1, column 7: .*, at 'None}'"),
        ('{"a":' * 30_000 + "1" + "}" * 30_000, "nested too deeply"),
        ("[1" + "0" * 5000 + "]", "4300 digits"),
        (b'{"a": "\xff"}', "is not UTF-8 text: invalid start byte at byte 7"),
    ],
)
def test_damaged_json_is_named_with_its_place_and_the_cause(tmp_path, text, told):
    path = tmp_path / "my.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=told) as error:
        read_json(path)
    assert str(path) in str(error.value)
    assert not {"delete", "restore", "remove"} & set(str(error.value).split())


def test_a_mark_of_byte_order_is_no_damage(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_number_lists_stand_on_one_line_and_text_is_untouched(tmp_path):
    record = {"ids": [1, -2, 3.5e-7], "text": "[\n  1,\n  2\n]", "mixed": [1, "a"], "empty": []}
    write_json(tmp_path / "x.json", record)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == record
    assert "[ 1, -2, 3.5e-07 ]" in text


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def broken(*args):
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(Refused, match=r'x.json" cannot be written: OSError disk gone'):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_half_of_a_surrogate_pair_is_replaced_and_can_be_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"text": "a\ud83db", "\udc00": ["\ud83d\u00e9", "\U0001f600"]})
    assert read_json(tmp_path / "a.json") == {
        "text": "a\ufffdb",
        "\ufffd": ["\ufffd\u00e9", "\U0001f600"],
    }


@pytest.mark.parametrize(
    "value, place",
    [
        (np.nan, "x"),
        ([1.0, np.inf], r"x\[1\]"),
        ({"a": 1, "deep": [[2, -np.inf]]}, r"x.deep\[0\]\[1\]"),
    ],
)
def test_a_number_that_json_cannot_hold_is_refused_naming_its_place(tmp_path, value, place):
    with pytest.raises(UserError, match=rf"a\.json.* {place} is NaN or infinite"):
        write_json(tmp_path / "a.json", {"y": {"z": [0.5]}, "x": value})
    assert os.listdir(tmp_path) == []


def test_the_text_is_that_of_json_dumps_but_for_lists_of_numbers(tmp_path):
    record = {
        "empty": {"list": [], "dict": {}, "text": ""},
        "mixed": [1, None, True, False, 'é\n"', -2.5, [], {"a": ("b", 1)}],
        "nested": [{"deep": [{"x": 1e300}, ["y"]]}],
        1: {None: 0, True: "t", 2.5: -7},
    }
    write_json(tmp_path / "a.json", record)
    expected = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == expected


def test_token_ids_kept_as_text_are_written_back_as_they_were(tmp_path):
    step = {"turn": 1, "prompt_ids": [0, 17], "response_ids": list(range(300)), "scores": [1, 2]}
    decoy = '"response_ids": [ 1, 2 ]'
    record = {
        "question": f"what is {decoy}?",
        decoy: "a key",
        "choices": [1, 2],
        "cot_steps": [step, {"prompt_ids": [], "response_ids": ["a"], "response": "\n" + decoy}],
    }
    path = tmp_path / "a.json"
    write_json(path, record)
    kept = read_json(path, ids_as_text=True)
    first = kept["cot_steps"][0]
    assert type(first["prompt_ids"]) is JsonText and first["prompt_ids"] == "[ 0, 17 ]"
    assert type(first["response_ids"]) is JsonText
    assert json.loads(first["response_ids"]) == list(range(300))
    assert {**first, "prompt_ids": [0, 17], "response_ids": list(range(300))} == step
    assert {**kept, "cot_steps": None} == {**record, "cot_steps": None}
    assert kept["cot_steps"][1] == record["cot_steps"][1]
    write_json(tmp_path / "b.json", kept)
    assert (tmp_path / "b.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("indent", [None, 2])
def test_token_ids_in_another_layout_are_decoded(tmp_path, indent):
    record = {"cot_steps": [{"prompt_ids": [1, 2], "response_ids": [3]}]}
    (tmp_path / "a.json").write_text(json.dumps(record, indent=indent))
    assert read_json(tmp_path / "a.json", ids_as_text=True) == record


def test_a_broken_json_is_named_alike_with_token_ids_kept_as_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"response_ids": [ 1, 2, 3 ], "x": }')
    told = []
    for ids_as_text in (False, True):
        with pytest.raises(UserError, match="line 1, column 36") as error:
            read_json(path, ids_as_text=ids_as_text)
        told.append(str(error.value))
    assert told[0] == told[1]
