"""The documentation is true: what it prints runs, in the order printed; what it links to is there.

Commands in fenced bash blocks are run by a shell in a copy of the project, one after the other,
with the changes that ADAPTED names (sizes, and paths that stand for a user's own). Commands in
running text and in the scripts' own docstrings are given to the script's parser.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from zlib import crc32

import pytest

from spikescore.dialogues.config import Config
from spikescore.report.experiment import Ablations, Experiment, Measures, Model, Slurm
from tests.helpers.fault_server import FaultyServer, completion
from tests.helpers.native_rows import ragtruth
from tests.helpers.running import ROOT, run, run_script

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ORDER = ["README.md", "stages.md", "data.md", "own-data.md", "probes.md", "tables.md"]
"""Pages that are read in this order; the others come after them."""

ADAPTED = (
    # sizes
    (r"--epochs 50", "--epochs 5"),
    (r"--num_samples=\d+", "--num_samples=30"),
    (r"--num_generations=10", "--num_generations=3"),
    (r"--model_max_new_tokens=100", "--model_max_new_tokens=8"),
    (r"--p_true_num_fewshot=10", "--p_true_num_fewshot=2"),
    (r"--n_samples 10", "--n_samples 2"),
    (r"sampling\.n=50\b", "sampling.n=4"),
    (r"samples/triviaqa\.json(.*) sampling\.n=150", r"tiny/trivia.json\1 sampling.n=60"),
    # the embedded model, its layers and its data in place of larger ones
    (r"\./models/Llama-3\.2-3B-Instruct", "./models/tiny"),
    (r"13,21", "2,4"),
    (r"--dataset=nq\b", "--dataset=trivia"),
    (r"\./outputs/triviaqa", "./outputs/demo/trivia"),
    (r"(models/fetch\.py) .*", r"\1 --help"),
    (r"--entailment deberta", "--entailment exact"),
    (
        r"^python detect\.py",
        "python detect.py --model_path ./models/tiny --probe ./probe_output/demo.pkl",
    ),
    (r"\./models/smollm2-135m-instruct", "./models/tiny"),
    (r"range\(100\)", "range(40)"),
    (r"randint\(2, 20\), random\.randint\(2, 12\)", "randint(2, 60), random.randint(2, 40)"),
    (r'"max_new_tokens": 48', '"max_new_tokens": 12'),
    # 1: some answers could not be read
    (r"(label_answers\.py --(?:relabel|agreement) \./outputs/quiz.*)", r"\1; [ $? -le 1 ]"),
    # tests/scripts/test_reproduce.py runs them in small, to the last table
    (r"(reproduce\.py --config quiz_tables\.json)$", r"\1 --dry_run"),
    (r"(reproduce\.py --config configs/[\w-]+\.json)$", r"\1 --dry_run"),
    # processes on the CPU where there is no GPU
    (
        r"accelerate launch --multi_gpu --num_processes 4",
        "accelerate launch --cpu --num_processes 2",
    ),
    # what tests/scripts/test_prepare.py fetches from a server of its own
    (r"(datasets/prepare\.py) [a-z].*", r"\1 --list"),
    (r"(pip install .*|conda env .*)", "true"),
    (r"^python3? -m venv .*", "true"),
    (r"^export (\w*KEY|OPENAI_BASE_URL|NIL_MODEL)=.*", "true"),
    (r"^(make \w+)", r"\1 --dry-run"),
    (r"^python -m pytest .*", "python -m pytest --version"),
)
FILES = {"my.json": "config.json"}
"""Files that a command needs and a reader makes: a copy of what they are made from."""


def commands_of(text: str) -> list[str]:
    """Return the commands in a page's bash blocks, continued lines joined, comments gone."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found = []
    for block in blocks:
        # a file that the page brings (<<'END' ... END) belongs to its command as it stands
        for line, file in re.findall(r"((?:.*\\\n)*.*)\n((?<=<<'END'\n)(?:.*\n)*?END\n)?", block):
            command = re.sub(r"(^|\s)#.*", "", line.replace("\\\n", " ")).strip()
            found += [f"{command}\n{file}".strip()] if command else []
    return found


def printed() -> list:
    """Every command of the pages, with the page it stands on, in the order of reading."""
    pages = sorted(PAGES, key=lambda path: (*(name != path.name for name in ORDER), path.name))
    found = [(page, line) for page in pages for line in commands_of(page.read_text("utf-8"))]
    return [
        pytest.param(line, id=f"{page.relative_to(ROOT)}-{place}: {line[:60]}")
        for place, (page, line) in enumerate(found)
    ]


def adapted(command: str) -> str:
    """Return the command as it is run here."""
    for pattern, replacement in ADAPTED:
        command = re.sub(pattern, replacement, command)
    return command


def verdict(body: dict, _: int) -> tuple:
    """A judge's reply to either kind of question: a fixed function of it, as good as a coin."""
    asked = json.dumps(body["messages"])
    kinds = ("ENTAILMENT", "NEUTRAL") if "ENTAILMENT" in asked else ("CONSISTENT", "INCONSISTENT")
    return completion(f"VERDICT: {kinds[crc32(asked.encode()) % 2]}")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A copy of the project, its experiment small; a judge on loopback that says yes."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    tracked = run(["git", "ls-files"]).stdout.splitlines()
    for name in tracked:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target, follow_symlinks=False)
    settings = json.loads((folder / "config.json").read_text())
    settings["dataset_path"] = settings["dataset_path"][:3]
    settings |= {"output_dir": "./outputs/demo", "max_steps": 5, "max_new_tokens": 16}
    settings["sampling"]["n"] = 60
    for name in ("config.json", "config_demo.json"):
        (folder / name).write_text(json.dumps(settings))
    for name, source in FILES.items():
        own = json.loads((folder / source).read_text()) | {"output_dir": "./outputs/my"}
        (folder / name).write_text(json.dumps(own))
    shipped = folder / "RAGTruth" / "dataset" / "response.jsonl"
    shipped.parent.mkdir(parents=True)
    rows = [{**ragtruth(n), "response": f"It takes {n} hours."} for n in range(4)]
    shipped.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with FaultyServer(verdict) as server:
        yield (
            folder,
            {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "OPENAI_API_KEY": "none",
                "OPENAI_BASE_URL": server.url,
                "WANDB_MODE": "disabled",
            },
        )


@pytest.fixture(scope="module")
def ran() -> set[str]:
    """The commands that were run."""
    return set()


@pytest.mark.parametrize("command", printed())
def test_a_printed_command_runs_after_those_before_it(sandbox, ran, command):
    folder, environment = sandbox
    if adapted(command) in ran:
        pytest.skip("ran before, on another page")
    ran.add(adapted(command))
    words = shlex.split(adapted(command))
    if words[0] == "python" and not set(adapted(command)) & set("$|&;<>*?~"):
        done = run_script(*words[1:], cwd=folder, env=environment)
    else:
        done = run(["bash", "-c", adapted(command)], cwd=folder, env=environment)
    assert done.returncode == 0, f"{adapted(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def mentioned() -> list:
    """Commands in running text and tables of the pages, and in the docstrings of scripts."""
    scripts = [
        *ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("datasets/*.py"), *ROOT.glob("semantic-entropy-probes/**/*.py"),
        *ROOT.glob("models/fetch.py"), *ROOT.glob("models/*/train.py"),
    ]  # fmt: skip
    found = []
    for page in [*PAGES, *ROOT.glob("models/**/README.md")]:
        inline = re.findall(r"`(python [^`]+\.py[^`]*)`", page.read_text("utf-8"))
        found += [(page, line) for line in inline]
    for script in sorted(scripts):
        text = (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or "").replace("\\\n", " ")
        lines = re.findall(r"^ +(python .*)$", text, re.MULTILINE)
        found += [(script, re.sub(r"\s#.*", "", line)) for line in lines]
    return [
        pytest.param(re.sub(r"[\[\]]", "", line), id=f"{page.relative_to(ROOT)}: {line[:70]}")
        for page, line in found
    ]


class Parsed(BaseException):
    """The command line was understood."""


@pytest.mark.parametrize("command", mentioned())
def test_a_mentioned_command_is_understood(command, monkeypatch):
    _, script, *arguments = shlex.split(command)
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
    monkeypatch.chdir(ROOT)
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 170


def test_the_readme_prints_what_make_demo_runs():
    text = (ROOT / "Makefile").read_text()
    fetch = re.search(r"python \./models/fetch\.py [\w-]+", text.split("demo: ")[1]).group()
    recipe = text.split("reports/quick/report.html: ")[1].split("\n\n")[0]
    run = [fetch, *(line.strip().replace("$(BIN)/", "") for line in recipe.splitlines()[1:])]
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert any(block.splitlines() == run for block in blocks)
    assert len(run) == 6


def test_every_key_is_documented():
    stages = (ROOT / "docs" / "stages.md").read_text("utf-8")
    missing = [entry.name for entry in fields(Config) if f"`{entry.name}" not in stages]
    assert missing == []
    tables = (ROOT / "docs" / "tables.md").read_text("utf-8")
    for kind in (Experiment, Model, Ablations, Measures, Slurm):
        missing = [entry.name for entry in fields(kind) if f"`{entry.name}`" not in tables]
        assert [name for name in missing if name != "name"] == []
