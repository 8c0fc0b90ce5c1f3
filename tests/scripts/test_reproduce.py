"""The whole experiment in small, on the embedded model: one command, every table, the report."""

from __future__ import annotations

import csv
import json

import pytest

from tests.helpers.running import ROOT, run_script

DOMAINS = ("trivia", "arithmetic", "reading")
MODEL_TABLES = {
    "macro", "pooled", "in_domain", "paired_tests", "probe_seeds", "operating_macro",
    "operating_pooled", "controls", "matched_rates", "functionals_macro", "functionals_pooled",
    "base_scorers", "turns", "early_stopping", "release",
    "judges", "layers", "theory", "matrix_spike_score", "matrix_perplexity",
}  # fmt: skip


OWN_DETECTOR = """
import numpy as np
from spikescore.detectors.base import TurnDetector
from spikescore.detectors.answers import padded

class Letters(TurnDetector):
    name, title, family, needs = "letters", "Letters", "training-free", frozenset({"texts"})

    def score_turns(self, items):
        return padded([[len(s["response"]) for s in r["cot_steps"]] for r in items.records])
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Run reproduce.py on three domains of 40 questions, 5 turns, with ablations."""
    folder = tmp_path_factory.mktemp("experiment")
    settings = {
        "models": [
            {"name": "tiny", "model_path": "./models/tiny", "published": "Qwen3-8B"},
        ],
        "note": "A made-up world.",
        "outputs_dir": str(folder / "outputs"),
        "reports_dir": str(folder / "reports"),
        "dialogues": {
            "dataset_path": [f"./datasets/tiny/{domain}.json" for domain in DOMAINS],
            "sampling": {"strategy": "random", "n": 40, "seed": 42},
            "max_steps": 5,
            "max_new_tokens": 16,
        },
        "measures": {"n_samples": 3},
        "probe_seeds": 2,
        "test_fraction": 0.3,
        "draws": 100,
        "ablations": {
            "n": 26, "release": True, "judges": ["exact"], "layers": True,
        },
        "detectors": [f"{folder / 'mine.py'}:Letters"],
        "jobs": 2,
        "wandb": True,
    }  # fmt: skip
    (folder / "mine.py").write_text(OWN_DETECTOR)
    path = folder / "small.json"
    path.write_text(json.dumps(settings))
    done = run_script("reproduce.py", "--config", path, env={"WANDB_MODE": "offline"})
    logs = "".join(log.read_text()[-1500:] for log in folder.glob("reports/small/logs/*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return path, folder / "reports" / "small", done.stdout


def test_every_table_and_plot_is_there(experiment):
    _, reports, _ = experiment
    for name in ("table_main.md", "table_main.csv", "table_main.tex", "commands.sh", "report.html"):
        assert (reports / name).stat().st_size > 500
    assert (reports / "table_main.png").read_bytes().startswith(b"\x89PNG")
    tables = reports / "tables" / "tiny"
    for name in MODEL_TABLES:
        for suffix in (".md", ".csv", ".tex"):
            assert (tables / f"{name}{suffix}").stat().st_size > 50, name
    plots = {path.stem for path in (reports / "plots" / "tiny").glob("*.png")}
    assert plots >= {"main", "matrices", "controls", "functionals", "turns", "release",
                     "judges", "layers"}  # fmt: skip


def test_the_main_table_holds_all_methods_with_numbers(experiment):
    _, reports, _ = experiment
    with open(reports / "table_main.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    methods = {row["method"] for row in rows}
    assert {"spike_score", "perplexity", "reasoning_score", "sharpness", "p_true", "eigenscore",
            "semantic_entropy_rao", "saplma", "sep", "ccs", "haloscope", "prism", "icr_probe",
            "mind", "mass_mean", "linear_probe", "all_turn_probe", "tfidf_answer",
            "domain_identity", "letters"} <= methods  # fmt: skip
    pooled = {row["method"]: row for row in rows
              if (row["view"], row["training_domain"]) == ("pooled", "mean")}  # fmt: skip
    computed = [row for row in pooled.values() if row["auroc"]]
    assert len(computed) >= len(pooled) - 1  # SelfCheck-NLI needs a model that is not here
    for row in computed:
        assert 0 <= float(row["low"]) <= float(row["auroc"]) <= float(row["high"]) <= 1
    spike = pooled["spike_score"]
    assert float(spike["difference"]) == pytest.approx(float(spike["auroc"]) - 0.7473)


def test_a_detector_of_ones_own_is_in_all_tables(experiment):
    _, reports, _ = experiment
    tables = reports / "tables" / "tiny"
    for name in ("macro", "pooled", "in_domain", "paired_tests", "operating_macro", "base_scorers"):
        assert "Letters" in (tables / f"{name}.md").read_text(), name
    assert "Letters" in (reports / "report.html").read_text()


def test_a_first_answer_does_not_depend_on_what_follows(experiment):
    """So with the passage dropped after turn 1 the first answer's scores are the reference's."""
    _, reports, _ = experiment
    with open(reports / "tables" / "tiny" / "release.csv", encoding="utf-8") as file:
        header, reference, dropped, leaked, *_ = list(csv.reader(file))
    first = ("first-answer probe", "perplexity")
    same = [place for place, name in enumerate(header) if name in first]
    assert len(same) == 4 and all(reference[place] == dropped[place] for place in same)
    assert reference[2] != dropped[2]  # SpikeScore does depend on it
    assert any(reference[place] != leaked[place] for place in same)


def test_the_commands_behind_the_tables_are_kept(experiment):
    path, reports, printed = experiment
    commands = [line for line in (reports / "commands.sh").read_text().splitlines()
                if line.startswith("python ")]  # fmt: skip
    assert commands[-1] == f"python scripts/make_tables.py --config {path}"
    assert all(command in printed for command in commands)


def test_tables_and_plots_are_logged_where_the_experiment_says_so(experiment):
    _, reports, _ = experiment
    (run,) = (reports / "wandb").glob("offline-run-*")
    logged = {path.suffix for path in (run / "files" / "media").rglob("*.*")}
    assert logged == {".json", ".png"}


def test_a_second_run_has_nothing_to_do(experiment):
    path, reports, _ = experiment
    before = (reports / "report.html").stat().st_mtime_ns
    again = run_script("reproduce.py", "--config", path)
    assert again.returncode == 0
    steps = len((reports / "commands.sh").read_text().split("\n# ")) - 1
    assert again.stdout.count("done before: ") == len(list((reports / "done").iterdir())) > 10
    assert steps and (reports / "report.html").stat().st_mtime_ns == before


def test_the_report_opens_and_its_dialogues_can_be_read(experiment, browser):
    _, reports, _ = experiment
    complaints = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((reports / "report.html").as_uri())
    assert "A made-up world." in page.inner_text("body")
    for title in ("Main table", "Controls", "Theory report", "Layers and tokens"):
        page.get_by_role("heading", name=title, exact=True).wait_for()
    assert "SAPLMA trained on arithmetic, probe seed 0" in page.inner_text("body")
    rows = page.locator("#list [role=option]")
    rows.first.click()
    page.locator(".turn").nth(4).wait_for()  # five turns
    assert page.locator(".turn").count() == 5
    page.select_option("#domain", label="reading")
    assert "reading" in rows.first.inner_text()
    page.select_option("#sort", "id")
    assert "reading-" in rows.first.inner_text()
    page.close()
    assert complaints == []


def test_make_tables_runs_the_tiny_experiment(experiment):
    assert "reproduce.py --config ./configs/tiny.json" in (ROOT / "Makefile").read_text()
