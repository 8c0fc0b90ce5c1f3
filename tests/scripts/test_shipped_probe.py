"""The probe that comes with the project: its file, its card, and the script that makes both."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from spikescore.dialogues.config import Config
from spikescore.errors import UserError
from spikescore.files import read_json, write_json
from spikescore.pairs import MODEL_PARTS
from spikescore.probes.probe import Probe, load_probe
from tests.helpers.factories import make_pairs
from tests.helpers.running import ROOT

FOLDER = ROOT / "probes"
FILE = FOLDER / "smollm2-135m-instruct.pkl"


@pytest.fixture(scope="module")
def shipped() -> Probe:
    return load_probe(FILE)


def test_it_says_what_detect_needs(shipped):
    assert set(MODEL_PARTS) <= shipped.identity.keys() and all(shipped.identity.values())
    assert Path(shipped.model).name == FILE.stem
    assert (shipped.n_layers, shipped.hidden_size) == (30, 576)
    assert shipped.spike_threshold > 0
    held = shipped.dialogues
    assert held["several"] == [] and re.fullmatch("[0-9a-f]{16}", held["prompts"])
    assert held["config"]["max_steps"] >= 3


def test_it_is_small_and_holds_no_text_of_a_question(shipped):
    assert FILE.stat().st_size < 2e6
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", key) for key in shipped.training["items"])
    assert all(re.fullmatch(r"[0-9a-f]{12}", key) for key in shipped.training["questions"])
    rest = {key: value for key, value in shipped.training.items() if "question" not in key}
    assert "?" not in str({**rest, "items": None}) + str(shipped.metrics)
    for folder in shipped.training["dirs"]:
        assert not Path(folder).is_absolute()


def test_the_card_says_what_the_file_says(shipped):
    card = (FOLDER / "README.md").read_text("utf-8")
    assert f"{shipped.spike_threshold:.4f}" in card
    assert shipped.identity["weights"][:16] in card
    for split, n in shipped.training["n"].items():
        assert f"{split} {n} (" in card
    assert read_json(FILE.with_suffix(".json"))["spike_threshold"] == shipped.spike_threshold


# --- probes/make.py ------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Run probes/make.py in this process on two domains, its commands too."""
    for domain in ("one", "two"):
        for record in make_pairs(tmp_path / "held" / domain, n=60, turns=5, domain=domain):
            record |= {"config": Config(max_steps=5).resolved()}
            record |= {"identity": {"weights": "ab" * 32, "prompts": "cd" * 8}}
            write_json(tmp_path / "held" / domain / f"{record['id']}.json", record)
    (tmp_path / "probes").mkdir()
    shutil.copyfile(FOLDER / "README.md", tmp_path / "probes" / "README.md")
    monkeypatch.chdir(tmp_path)

    def in_process(command: list) -> str:
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        assert end.value.code == 0
        return "SpikeScore at lambda: as printed\n"

    def make(*arguments: object) -> None:
        script = runpy.run_path(str(FOLDER / "make.py"))
        script["main"].__globals__["run"] = in_process
        monkeypatch.setattr(sys, "argv", ["make.py", *map(str, arguments)])
        assert script["main"]() == 0

    return make


def test_a_probe_is_made_with_its_card(make, tmp_path):
    before = {path: path.read_bytes() for path in (tmp_path / "held").rglob("*.json")}
    make("held", "--train", "one", "--name", "small")
    probe = load_probe(tmp_path / "probes" / "small.pkl")
    assert probe.train_domains == ["one"] and probe.spike_threshold is not None
    card = (tmp_path / "probes" / "README.md").read_text("utf-8")
    assert f"{probe.spike_threshold:.4f}" in card and "K = 5, progressive prompts" in card
    assert "| SpikeScore" in card and "SpikeScore at lambda: as printed" in card
    assert "--save_path probes/small.pkl" in card and "weights `abababababababab`" in card
    assert card.count("# The probe for") == card.count("## Made again") == 1
    assert {path: path.read_bytes() for path in before} == before, "dialogues stay as they are"
    with pytest.raises(UserError, match='"held/three" is not there'):
        make("held", "--train", "three")
