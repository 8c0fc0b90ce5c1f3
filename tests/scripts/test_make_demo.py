"""`make demo`: which commands it runs, where the model can be fetched and where it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.running import ROOT, run

# what `make test` says to the commands it runs is not for this make
MAKE_DEMO = ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", "demo"]
PYTHON = """#!/bin/sh
echo "$*" >> commands.log
case "$*" in
*models/fetch.py*) exit $(cat fetch_status);;
*reasoning_lite.py*) exit $(cat stage_status);;
*--report_dir*) for last; do :; done; mkdir -p $last; touch $last/report.html
    printf '# SpikeScore report\\n\\nThe verdict.\\n' > $last/summary.md;;
esac
"""


@pytest.fixture
def project(tmp_path):
    """The Makefile in a folder where "python" writes down what it is asked to do."""
    for name in ("Makefile", "config.json", "config_demo.json", "requirements.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "spikescore").mkdir()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    (tmp_path / ".venv" / ".run").touch()  # the requirements are installed
    (tmp_path / "fetch_status").write_text("0")
    (tmp_path / "stage_status").write_text("0")
    return tmp_path


def commands(project: Path) -> list[str]:
    """What python was asked since the last call of this."""
    log = project / "commands.log"
    found = log.read_text().splitlines()
    log.unlink()
    return found


def scripts(asked: list[str]) -> list[str]:
    return [Path(line.split()[0]).name for line in asked]


CHAIN = ["fetch.py", "reasoning_lite.py", "probes_trainer.py", "reasoning_lite.py",
         "metrics_probe.py", "eval_probe.py"]  # fmt: skip
TINY_CHAIN = [*CHAIN[:3], *CHAIN[4:]]


def test_it_ends_with_the_verdict_and_the_page_and_runs_once(project):
    first = run(MAKE_DEMO, cwd=project)
    assert first.returncode == 0, first.stderr
    asked = commands(project)
    assert scripts(asked) == CHAIN
    assert all("--config ./config_demo.json" in asked[place] for place in (1, 3))
    assert first.stdout.splitlines()[-2:] == ["The verdict.", "open reports/quick/report.html"]
    second = run(MAKE_DEMO, cwd=project)
    assert second.returncode == 0 and "is up to date" in second.stdout
    assert scripts(commands(project)) == ["fetch.py"]
    assert second.stdout.splitlines()[-2:] == first.stdout.splitlines()[-2:]


def test_without_the_model_it_runs_on_the_tiny_one(project):
    (project / "fetch_status").write_text("1")
    done = run(MAKE_DEMO, cwd=project)
    assert done.returncode == 0, done.stderr
    asked = commands(project)
    assert scripts(asked) == TINY_CHAIN and asked[1] == "./reasoning_lite.py"
    assert not any("outputs/demo" in line for line in asked)
    assert "on the tiny model instead" in done.stdout
    assert done.stdout.splitlines()[-1] == "open reports/quick_tiny/report.html"


@pytest.mark.parametrize(("status", "script"), [("fetch_status", 1), ("stage_status", 2)])
def test_what_fails_ends_it(project, status, script):
    (project / status).write_text("2")
    done = run(MAKE_DEMO, cwd=project)
    assert done.returncode != 0 and "open reports" not in done.stdout
    assert scripts(commands(project)) == CHAIN[:script]
