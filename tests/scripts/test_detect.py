"""detect.py from the command line: what it prints, and how it fails."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

import detect
from spikescore.detectors.spike import Detection
from spikescore.errors import run_main
from spikescore.files import write_json
from tests.detectors.test_spike import random_probe
from tests.helpers.running import ROOT, run_script

HELD = {"max_steps": 4, "max_new_tokens": 6, "temperature": 1.0, "top_p": 0.9}


@pytest.fixture(scope="module")
def probe(tmp_path_factory, tiny_model) -> Path:
    """A probe of the tiny model whose threshold every dialogue reaches at turn 3."""
    path = tmp_path_factory.mktemp("detect") / "probe.pkl"
    told = {"config": HELD, "several": [], "prompts": None}
    worth = {"spike_threshold": {"balanced_accuracy": 0.625, "n": 40}}
    own = {"model": str(tiny_model), "spike_threshold": 0.0, "metrics": worth}
    random_probe(**own, dialogues=told).save(path)
    return path


@pytest.fixture
def ask(probe, tiny_model, monkeypatch, capsys):
    """Run detect.py in this process; return its status and what it printed."""

    def ask(*arguments: object, probe: Path = probe, model: object = tiny_model):
        command = ["detect.py", "--model_path", model, "--probe", probe, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as end:
            run_main(detect.main)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return end.value.code, printed.out, printed.err

    return ask


def test_a_question(ask):
    status, out, err = ask("Who wrote Hamlet?")
    assert status == 0
    assert out.startswith("question  Who wrote Hamlet?\n  answer  ")
    assert "FLAGGED: SpikeScore" in out and "stopped after turn 3 of 4" in out
    assert "probe score, by turn" in out and "\x1b" not in out
    assert "threshold 0.0000: balanced accuracy 0.625 on the 40 validation dialogues" in err
    assert "K = 4, progressive prompts, temperature 1, at most 6 tokens" in err


def test_json_is_one_object_a_line_and_nothing_else(ask, tmp_path):
    (tmp_path / "q.txt").write_text("Which town?\n\nWho is it?\n", encoding="utf-8")
    status, out, err = ask("--questions", tmp_path / "q.txt", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [row["question"] for row in rows] == ["Which town?", "Who is it?"]
    assert [row.keys() for row in rows] == [
        {one.name: 0 for one in fields(Detection) if one.name != "record"}.keys()
    ] * 2
    status, out, _ = ask("Who is it?", "--json", "--whole", "--set", "max_steps=3")
    assert json.loads(out)["scores"] == pytest.approx(rows[1]["scores"], abs=2e-3)
    assert json.loads(out)["comparable"] is False


def test_a_file_of_which_one_question_cannot_be_scored(ask, tmp_path):
    write_json(tmp_path / "q.json", [{"question": "word " * 999}, {"question": "Who is it?"}])
    status, out, err = ask("--questions", tmp_path / "q.json", "--set", "model_max_tokens=900")
    assert status == 1
    assert "not scored: the first prompt has" in out and "FLAGGED" in out
    assert out.rstrip().endswith("1 of 2 questions flagged, 1 not scored; 3 turns held, 1 saved by "
                                 "stopping 1 dialogues early")  # fmt: skip
    assert "note: the threshold was set on dialogues that were held otherwise" not in err


def test_a_given_answer(ask):
    status, out, _ = ask("Who wrote Hamlet?", "--answer", "Christopher Marlowe.", "--whole")
    assert status == 0 and "given answer  Christopher Marlowe." in out
    assert "stopped" not in out


def test_no_threshold_is_told(ask, tmp_path):
    random_probe(dialogues={"config": HELD}).save(tmp_path / "none.pkl")
    status, out, err = ask("Who?", probe=tmp_path / "none.pkl")
    assert status == 0 and "no threshold in this probe" in err
    assert "so nothing is flagged" in out


def test_an_older_probe_is_told_its_layers(ask, tmp_path):
    older = replace(random_probe(dialogues={"config": HELD}), layer_range=None, token_key=None)
    older.save(tmp_path / "older.pkl")
    status, _, err = ask("Who?", probe=tmp_path / "older.pkl")
    assert status == 2 and "give --layer_range a,b" in err
    assert ask("Who?", "--layer_range", "2,2", probe=tmp_path / "older.pkl")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a question"),
        (["Who?", "--questions", "a.txt"], "give a question"),
        ([" "], "the question is empty"),
        (["Who?", "--answer", ""], "--answer is empty"),
        (["--questions", ""], "--questions is empty"),
        (["--questions", "a.txt", "--answer", "I"], "--answer goes with a single question"),
        (["--questions", "nowhere.txt"], '"nowhere.txt" cannot be read'),
        (["--questions", "nowhere.csv"], '"nowhere.csv" does not exist'),
        (["Who?", "--set", "max_steps=2"], "at least 3 turns"),
        (["Who?", "--set", "max_steps"], "write it as key=value"),
        (["Who?", "--probe", "nowhere.pkl"], 'the probe "nowhere.pkl" is not here'),
        (["Who?", "--model_path", "./nowhere"], 'model_path "./nowhere" is not a folder'),
        (["word " * 900, "--set", "model_max_tokens=500"], "cannot be scored: the first prompt"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(ask, arguments, message):
    status, out, err = ask(*arguments)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and message in line and out == ""


def test_a_probe_of_another_model_is_named(ask, tmp_path):
    random_probe(model="./models/Other-8B", identity={"weights": "0" * 64}).save(tmp_path / "o.pkl")
    status, out, err = ask("Who?", probe=tmp_path / "o.pkl")
    assert status == 2 and out == "" and 'of the model "./models/Other-8B"' in err


def test_without_the_model_it_says_how_to_get_it(tmp_path):
    done = run_script(ROOT / "detect.py", "Who wrote Hamlet?", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert "python models/fetch.py smollm2-135m-instruct" in done.stderr


PAGE = (ROOT / "docs" / "detect.md").read_text("utf-8")


def test_the_page_names_every_field():
    described = PAGE.split("## What `--json` prints")[1]
    missing = [one.name for one in fields(Detection) if f"`{one.name}`" not in described]
    assert missing == ["record"]


def test_the_code_on_the_page_runs(probe, tiny_model, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = code.replace("./models/smollm2-135m-instruct", str(tiny_model))
    code = code.replace("./probes/smollm2-135m-instruct.pkl", str(probe))
    names: dict = {}
    exec(code, names)
    assert names["found"].flagged and len(names["several"]) == 2 and names["given"].given
    assert "True 3" in capsys.readouterr().out
