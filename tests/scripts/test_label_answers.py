"""scripts/label_answers.py: label pairs again, in place or in copies, killed or not."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path

import pytest

from spikescore.errors import UserError
from spikescore.files import locked
from spikescore.labels.judges import make_judge
from spikescore.labels.relabelling import copy_unlabelled, first_answers, label_pairs
from tests.helpers.factories import make_pairs
from tests.helpers.fault_server import FaultyServer, completion
from tests.helpers.running import run_script, start_script

SCRIPT = "scripts/label_answers.py"


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    make_pairs(folder / "toy", n=4, turns=3)
    (folder / "toy" / "toy-0000.measures.pkl").write_bytes(b"measures")
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("[!.]*.*")}


def test_the_copies_are_labelled_and_the_pairs_stay(pairs, tmp_path):
    before = contents(pairs)
    copies = tmp_path / "copies"
    done = run_script(SCRIPT, "--relabel", pairs, "--judge", "exact", "--to", copies)
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


def test_a_second_run_copies_and_judges_only_what_is_open(pairs, tmp_path):
    copies = tmp_path / "copies"
    copy_unlabelled(pairs, copies)
    assert len(list(label_pairs(make_judge("exact"), first_answers(copies)))) == 4
    (copies / "toy" / "toy-0002.json").unlink()
    copy_unlabelled(pairs, copies)
    assert [one.path.stem for one in first_answers(copies) if one.label is None] == ["toy-0002"]


@pytest.mark.parametrize("task", ["--relabel", "--agreement", "--check"])
def test_an_empty_path_labels_nothing(pairs, task):
    """As of a variable that is not set: "" is the working folder to Python, and no copy to --to."""
    before = contents(pairs)
    given = (pairs, "--to", "") if task == "--relabel" else ("",)
    done = run_script(SCRIPT, task, *given, "--all")
    assert done.returncode == 2 and "not an empty text" in done.stderr
    assert "Traceback" not in done.stderr and contents(pairs) == before


def test_of_a_damaged_pair_there_is_no_copy_and_it_is_named(pairs, tmp_path, caplog):
    (pairs / "toy" / "toy-0001.json").write_text("{")
    copy_unlabelled(pairs, tmp_path / "copies")
    assert len(first_answers(tmp_path / "copies")) == 3
    (line,) = caplog.messages
    assert line.startswith("left out: ") and "toy-0001.json" in line


def test_copies_do_not_go_among_the_pairs(pairs):
    with pytest.raises(UserError, match="inside"):
        copy_unlabelled(pairs, pairs / "copies")


def _pair(folder: Path, name: str, response: str, label: int | None = None) -> Path:
    path = folder / f"{name}.json"
    record = {
        "id": name, "question": "Capital of France?", "context": None, "choices": None,
        "gold_answers": ["Paris"], "domain": "d", "nil_label": label, "nil_judge": None,
        "cot_steps": [{"turn": 1, "response": response}], "metrics": {"kept": 1},
    }  # fmt: skip
    path.write_text(json.dumps(record))
    return path


def label_of(path: Path) -> int | None:
    return json.loads(path.read_text())["nil_label"]


def test_the_command_fills_gaps_and_all_does_it_again(tmp_path):
    run = partial(run_script, SCRIPT, "--relabel", tmp_path)
    empty = run()
    assert empty.returncode == 2 and "holds no pair" in empty.stderr
    right = _pair(tmp_path, "right", "It is Paris.")
    wrong = _pair(tmp_path, "wrong", "It is Lyon.")
    done = _pair(tmp_path, "done", "It is Paris.", label=0)
    filled = run()
    assert filled.returncode == 0 and "3 pairs, 2 to label with auto" in filled.stdout
    assert "labels: 2 of 2 (exact 2)" in filled.stdout
    assert [label_of(path) for path in (right, wrong, done)] == [1, 0, 0]
    record = json.loads(right.read_text())
    assert record["nil_judge"]["judge"] == "exact" and record["metrics"] == {"kept": 1}
    # the command of before says where it went, and does it
    again = run_script("utils.py", "--relabel", tmp_path, "--judge", "exact", "--all")
    assert again.returncode == 0 and SCRIPT in again.stderr and label_of(done) == 1
    assert not any("Traceback" in one.stderr for one in (empty, filled, again))


def test_failures_are_counted_and_take_no_label_away(tmp_path):
    kept = _pair(tmp_path, "kept", "17", label=1)
    open_one = _pair(tmp_path, "open", "17")
    failed = run_script(SCRIPT, "--relabel", tmp_path, "--judge", "numeric", "--all")
    assert failed.returncode == 1 and "labels: 0 of 2, 2 failed" in failed.stdout
    assert "; 1 that failed keep the label they had" in failed.stdout
    assert label_of(kept) == 1 and label_of(open_one) is None
    assert "not one number" in json.loads(open_one.read_text())["nil_judge"]["error"]


def test_an_answer_that_is_unread_now_has_no_label_of_before(tmp_path):
    unread = _pair(tmp_path, "unread", "Here is the answer:", label=1)
    again = run_script(SCRIPT, "--relabel", tmp_path, "--judge", "exact", "--all")
    assert "labels: 0 of 1, 1 unread" in again.stdout and "keep the label" not in again.stdout
    record = json.loads(unread.read_text())
    assert record["nil_label"] is None and record["nil_judge"]["error"].startswith("unread")


def test_killed_it_has_kept_each_reply_and_asks_only_for_the_rest(tmp_path):
    for number in range(12):
        _pair(tmp_path, f"p{number}", f"Answer number {number}.")
    stalled = True

    def reply(body, number):
        if stalled and number > 5:
            time.sleep(5)
        return completion("VERDICT: CONSISTENT")

    command = (SCRIPT, "--relabel", tmp_path, "--judge", "openai")
    with FaultyServer(reply) as server:
        environment = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "x"}
        process = start_script(*command, env=environment)
        labelled = []
        while len(labelled) < 5:
            assert process.poll() is None
            labelled = [path for path in tmp_path.glob("p*.json") if label_of(path) is not None]
            time.sleep(0.05)
        process.kill()
        process.communicate()
        stalled, before = False, len(server.bodies)
        for path in labelled:  # as if it had been killed before the labels were written
            _pair(tmp_path, path.stem, f"Answer number {path.stem[1:]}.")
        again = run_script(*command, env=environment)
        assert again.returncode == 0 and "labels: 12 of 12" in again.stdout
        assert len(server.bodies) - before == 7


def test_the_guides_snippet_in_utils_is_what_judges(tmp_path):
    """Before or after all else in the file; the environment then has no say."""
    text = (Path(__file__).resolve().parents[2] / "utils.py").read_text()
    with FaultyServer(lambda *_: completion("VERDICT: CONSISTENT")) as server:
        made = f'client = OpenAI(\n    api_key="sk-mine",\n    base_url="{server.url}"\n)\n'
        snippet = f"from openai import OpenAI\n\n{made}"
        marker = "import logging\n"
        for number, edited in enumerate((text + snippet, text.replace(marker, marker + snippet))):
            folder = tmp_path / str(number)
            folder.mkdir()
            _pair(folder, "one", "It is Paris.")
            (folder / "utils.py").write_text(edited)
            # run as the script would be, with this utils.py found first
            code = (
                f"import sys; sys.path.insert(0, {str(folder)!r}); import utils; "
                "from pathlib import Path; "
                "from spikescore.labels.judges import make_judge; "
                "from spikescore.labels.relabelling import *; "
                "judge = make_judge('openai', client_factory=utils.make_client); "
                f"answers = first_answers(Path({str(folder)!r})); "
                "print([one.label for _, one in label_pairs(judge, answers)])"
            )
            environment = {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}
            done = run_script("-c", code, env={**os.environ, **environment})
            assert done.stdout.strip() == "[1]", done.stderr
        assert server.keys == ["Bearer sk-mine"] * 2


def test_a_damaged_pair_is_named_and_the_others_are_labelled(tmp_path):
    good = _pair(tmp_path, "good", "It is Paris.")
    (tmp_path / "half.json").write_text('{"id": "half", "cot_steps": [{"turn"')
    done = run_script(SCRIPT, "--relabel", tmp_path)
    assert "half.json" in done.stderr and "Traceback" not in done.stderr
    assert label_of(good) == 1 and done.stdout.count("labels: 1 of 1") == 1


def test_two_at_once_in_one_folder_do_not_meet(tmp_path):
    _pair(tmp_path, "one", "It is Paris.")
    with locked(tmp_path, ".labels.lock"):
        second = run_script(SCRIPT, "--relabel", tmp_path)
    assert second.returncode == 2 and f"process {os.getpid()}" in second.stderr
    nowhere = run_script(SCRIPT, "--relabel", tmp_path / "nowhere")
    assert nowhere.returncode == 2 and "does not exist" in nowhere.stderr


def test_the_check_prints_a_matrix_for_each_rule(tmp_path):
    table = Path(__file__).resolve().parents[1] / "labels" / "answers.jsonl"
    done = run_script(SCRIPT, "--check", table)
    assert done.returncode == 0 and ": 0 wrong labels" in done.stdout.splitlines()[-1]
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"rule": "exact", "gold": ["Paris"], "right": ["Rome"]}\n')
    done = run_script(SCRIPT, "--check", wrong)
    assert done.returncode == 1 and "'Rome'" in done.stdout
    assert run_script(SCRIPT, "--check", tmp_path / "no").returncode == 2
