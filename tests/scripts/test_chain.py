"""The demo's chain on the tiny model, in small."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest

from spikescore.pairs import find_records
from tests.helpers.running import ROOT, run_script

DOMAINS = ("trivia", "commonsense", "reading", "conversation", "arithmetic", "wordproblems")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Run the four commands with 60 trivia questions, 12 of each other domain, and 5 turns."""
    folder = tmp_path_factory.mktemp("chain")
    settings = json.loads((ROOT / "config.json").read_text())
    settings |= {"output_dir": str(folder / "outputs"), "max_steps": 5}
    printed = {}
    for n, domains in ((60, DOMAINS[:1]), (12, DOMAINS[1:])):
        paths = [f"./datasets/tiny/{domain}.json" for domain in domains]
        settings |= {"dataset_path": paths, "sampling": {"strategy": "random", "n": n, "seed": 42}}
        (folder / "config.json").write_text(json.dumps(settings))
        printed["dialogues"] = run_script("reasoning_lite.py", "--config", folder / "config.json")
        assert printed["dialogues"].returncode == 0, printed["dialogues"].stderr
    outputs, probe = folder / "outputs", folder / "probe.pkl"
    trainer = "semantic-entropy-probes/probes_trainer.py"
    for name, command in {
        "train": [trainer, "--data_dirs", outputs / "trivia", "--save_path", probe],
        "score": ["metrics_probe.py", "--json_dir", outputs, "--pkl_dir", outputs]
        + ["--probe_path", probe],
        "evaluate": ["eval_probe.py", "--data_dir", outputs, "--report_dir", folder / "reports"],
    }.items():
        printed[name] = run_script(*command)
        assert printed[name].returncode == 0, printed[name].stderr
    return folder, printed


def test_the_chain_ends_with_its_figures_and_files(chain):
    folder, printed = chain
    assert "SpikeScore" in printed["evaluate"].stdout
    reports = folder / "reports"
    for name in ("summary.md", "summary.json", "scores.csv", "spiky_dialogue.md"):
        assert (reports / name).stat().st_size > 100
    for name in ("roc.png", "histogram.png", "trajectories.png"):
        assert (reports / name).read_bytes().startswith(b"\x89PNG")


def test_every_pair_is_valid_scored_and_labelled(chain):
    folder, _ = chain
    paths = [
        path
        for path in (folder / "outputs").rglob("*.json")
        if path.name not in ("run.json", "speed.json")
    ]
    assert len(paths) == 60 + 5 * 12
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["complete"] and record["nil_label"] in (0, 1)
        scores = record["metrics"]["probe_pred"]
        assert scores == [step["metrics"]["probe_pred"] for step in record["cot_steps"]]
        assert len(scores) == 5 and all(0 <= score <= 1 for score in scores)
        # SpikeScore worked out again, from its definition
        bends = [
            abs(a - 2 * b + c) for a, b, c in zip(scores, scores[1:], scores[2:], strict=False)
        ]
        assert record["metrics"]["spike_score"] == pytest.approx(max(bends))
        with open(path.with_suffix(".pkl"), "rb") as file:
            content = pickle.load(file)
        arrays = [array for by_key in content["turns"].values() for array in by_key.values()]
        assert len(arrays) == 15
        for array in arrays:
            assert array.shape == (7, 256) and array.dtype == np.float16
            assert np.isfinite(array).all()


def test_no_prompt_shows_its_gold_answer_outside_passage_and_options(chain):
    folder, printed = chain
    assert "leak guard: 0 of" in printed["dialogues"].stdout
    for path in find_records(folder / "outputs"):
        record = json.loads(path.read_text(encoding="utf-8"))
        first, *others = (step["prompt"] for step in record["cot_steps"])
        allowed = [record["context"] or "", record["question"], *(record["choices"] or [])]
        allowed += [text for pair in record["history"] for text in pair]
        for text in sorted(allowed, key=len, reverse=True):
            first = first.replace(text, " ")
        for gold in record["gold_answers"]:
            if len(gold) > 1:  # a single letter or digit is in every text
                shown = " ".join([first, *others])
                assert not re.search(rf"\b{re.escape(gold)}\b", shown, re.IGNORECASE), path
