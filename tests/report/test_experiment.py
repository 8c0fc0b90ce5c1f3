"""configs/*.json: what is refused, which commands follow, and what a rerun skips."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path

import pytest

from reproduce import Runner, digests
from spikescore.dialogues.config import load_config, parse_config
from spikescore.errors import UserError
from spikescore.report.experiment import (
    Step,
    load_experiment,
)
from spikescore.report.paper import MODELS, published, published_base_scorer
from tests.helpers.running import LIMIT, ROOT, run_script, start_script, wait_until

SMALL = {
    "models": [{"name": "tiny", "model_path": "./models/demo"}],
    "dialogues": {"dataset_path": ["./datasets/demo/trivia.json", "./datasets/demo/reading.json"]},
}


def write(tmp_path, **change):
    path = tmp_path / "small.json"
    path.write_text(json.dumps({**SMALL, **change}))
    return path


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_the_shipped_experiments_are_sound(name):
    experiment = load_experiment(ROOT / "configs" / f"{name}.json")
    assert experiment.name == name and len(experiment.dialogues["dataset_path"]) == 6
    steps = list(experiment.steps(f"configs/{name}.json"))
    assert len({step.name for step in steps}) == len(steps)


def test_the_papers_experiment_is_the_papers():
    experiment = load_experiment(ROOT / "configs" / "paper.json")
    assert [model.published for model in experiment.models] == list(MODELS)
    settings = experiment.stage_config(experiment.models[0])
    config = parse_config(settings, source="paper")
    assert (config.sampling.n, config.max_steps, config.strategy) == (1000, 20, "progressive")
    assert (config.temperature, config.top_p) == (0.2, 0.7)


def test_the_demos_main_run_is_make_demos_run():
    experiment = load_experiment(ROOT / "configs" / "demo.json")
    settings = experiment.stage_config(experiment.models[0])
    ours = parse_config(settings, source="demo")
    quick = load_config(ROOT / "config.json")
    assert ours.hash() == quick.hash() and ours.sampling == quick.sampling
    assert ours.dataset_path == quick.dataset_path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modles": []}, ['unknown key "modles"', 'did you mean "models"?']),
        ({"models": []}, ['"models" must list']),
        ({"models": [{"name": "a"}]}, ["model_path"]),
        ({"models": [{"name": "a", "path": "x"}]}, ['unknown key "path"', '"model_path"']),
        ({"models": SMALL["models"] * 2}, ["one name"]),
        ({"models": [{**SMALL["models"][0], "published": "GPT"}]}, ["published", "Qwen3-8B"]),
        ({"dialogues": {"max_stpes": 3}}, ["small.json (main)", 'did you mean "max_steps"']),
        ({"dialogues": {"output_dir": "x"}}, ["output_dir is set per model"]),
        ({"dialogues": {"dataset_path": "a.json"}}, ["one file per domain"]),
        ({"ablations": {"schedules": ["progresive"]}}, ["schedule_progresive", "progressive"]),
        ({"ablations": {"temperatures": [-1]}}, ["temperature", "out of range"]),
        ({"ablations": {"shufled": 2}}, ['did you mean "shuffled"']),
        ({"token_key": "last"}, ["token_key", "last_token_embedding"]),
        ({"probe_seeds": 0}, ["probe_seeds", "at least 1"]),
        ({"draws": "many"}, ["draws", "whole number"]),
        ({"measures": 3}, ['"measures" must hold']),
        ({"turn_scorers": "sep,perplexity"}, ['"turn_scorers" must name saplma']),
        ({"methods": "perplexity"}, ['"methods" must name saplma']),
        ({"ablations": {"shuffled": "5"}}, ["ablations", '"shuffled" must be a whole number']),
        ({"ablations": {"judges": "exact"}}, ['"judges" must be a list']),
        ({"wandb": 1}, ['"wandb" must be true or false']),
    ],
)
def test_a_mistake_is_named(tmp_path, change, words):
    with pytest.raises(UserError) as caught:
        load_experiment(write(tmp_path, **change))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_or_broken_file_ends_with_status_2(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for path in (tmp_path / "none.json", broken):
        for script in ("reproduce.py", "scripts/make_tables.py"):
            done = run_script(script, "--config", path)
            assert done.returncode == 2 and str(path) in done.stderr
            assert "Traceback" not in done.stderr


def test_missing_data_is_named_before_anything_is_run(tmp_path):
    dialogues = {"dataset_path": ["./datasets/demo/trivia.json", "./datasets/no_such_set"]}
    path = write(tmp_path, dialogues=dialogues, reports_dir=str(tmp_path / "reports"))
    done = run_script("reproduce.py", "--config", path)
    assert done.returncode == 2 and "datasets/prepare.py no_such_set" in done.stderr
    assert not (tmp_path / "reports").exists()


def test_tables_without_score_books_say_what_to_run(tmp_path):
    path = write(tmp_path, reports_dir=str(tmp_path))
    done = run_script("scripts/make_tables.py", "--config", path)
    assert done.returncode == 2 and f"python reproduce.py --config {path}" in done.stderr


def test_variants_change_one_thing_each(tmp_path):
    ablations = {
        "n": 7, "schedules": ["continue"], "shuffled": 2, "temperatures": [0], "release": True,
        "judges": ["exact"],
    }  # fmt: skip
    experiment = load_experiment(write(tmp_path, ablations=ablations))
    model = experiment.models[0]
    plain = experiment.stage_config(model)
    changed = {}
    for variant in experiment.variants():
        settings = experiment.stage_config(model, variant)
        assert settings.pop("sampling") == {"n": 7}
        assert settings.pop("output_dir").endswith(variant.name)
        changed[variant.name] = {k: v for k, v in settings.items() if plain.get(k) != v}
    assert changed == {
        "schedule_continue": {"strategy": "continue"},
        "shuffled_1": {"strategy": "shuffled", "prompt_seed": 1},
        "shuffled_2": {"strategy": "shuffled", "prompt_seed": 2},
        "temperature_0": {"temperature": 0},
        "release_question_only": {"history": "question_only"},
        "release_leaked_answer": {"leak_answer": True},
        "release_one_more_turn": {"max_steps": 21},
        "judge_exact": {},
    }


def test_a_dry_run_prints_the_commands_and_makes_nothing(tmp_path):
    path = write(tmp_path, reports_dir=str(tmp_path / "reports"))
    done = run_script("reproduce.py", "--config", path, "--dry_run")
    assert done.returncode == 0
    commands = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    scripts = [shlex.split(command)[1] for command in commands]
    names = ["measure_answers", "score_methods", "make_tables"]
    assert scripts == ["reasoning_lite.py", *(f"scripts/{name}.py" for name in names)]
    assert not (tmp_path / "reports").exists()


def test_an_unknown_step_is_refused(tmp_path):
    path = write(tmp_path, reports_dir=str(tmp_path / "reports"))
    done = run_script("reproduce.py", "--config", path, "--redo", "socres")
    assert done.returncode == 2 and 'no step is called "socres"' in done.stderr


# --- running ----------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path):
    return load_experiment(write(tmp_path, reports_dir=str(tmp_path / "reports")))


def python_step(tmp_path, name: str, code: str, phase: int = 1) -> Step:
    script = tmp_path / f"{name}.py"
    script.write_text(code)
    return Step(name, ("python", str(script)), phase)


def test_a_done_step_is_skipped_until_its_settings_change(tmp_path, experiment, capsys):
    counter = tmp_path / "counter.txt"
    code = f"open({str(counter)!r}, 'a').write('x')"
    settings = tmp_path / "settings.json"
    settings.write_text("1")
    step = python_step(tmp_path, "count", code)
    step = Step(step.name, (*step.command, str(settings)), 1)
    for _ in range(2):
        assert Runner(experiment, [step], None).run([step], 1)
    assert counter.read_text() == "x" and "done before: count" in capsys.readouterr().out
    settings.write_text("2")
    assert Runner(experiment, [step], None).run([step], 1)
    assert counter.read_text() == "xx"
    assert Runner(experiment, [step], "coun").run([step], 1)  # --redo
    assert counter.read_text() == "xxx"


def test_a_failed_step_stops_the_run_and_shows_the_end_of_its_log(tmp_path, experiment, capsys):
    step = python_step(tmp_path, "bad", "import sys; print('the reason'); sys.exit(2)")
    assert not Runner(experiment, [step], None).run([step], 1)
    out = capsys.readouterr().out
    assert "failed with status 2" in out and "the reason" in out
    assert not Runner(experiment, [step], None).run([step], 1)  # not taken for done


def running_commands() -> str:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process may end meanwhile
            found.append(path.read_text().replace("\0", " "))
    return "\n".join(found)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the list of processes is in /proc")
def test_a_terminated_run_ends_the_step_that_is_running(tmp_path):
    path = write(
        tmp_path, reports_dir=str(tmp_path / "reports"), outputs_dir=str(tmp_path / "outputs")
    )
    run = start_script("reproduce.py", "--config", path)
    step = str(tmp_path / "reports" / "small" / "configs" / "tiny.main.json")
    wait_until(lambda: f"reasoning_lite.py --config {step}" in running_commands(), run)
    run.terminate()
    assert run.wait(timeout=LIMIT) == 143
    assert step not in running_commands()


def test_what_comes_before_a_step_belongs_to_its_digest():
    first, second = Step("a", ("python", "x"), 1), Step("b", ("python", "y"), 2)
    other = Step("a", ("python", "z"), 1)
    assert digests([first, second])["b"] != digests([other, second])["b"]
    beside = Step("c", ("python", "w"), 2)
    assert digests([first, second])["b"] == digests([first, second, beside])["b"]


def test_published_figures_are_those_of_the_contract():
    assert published("Qwen3-14B", "spike_score") == 0.7874
    assert published("Llama-3.2-3B-Instruct", "icr_probe") == 0.7463
    assert published("Llama-3.1-8B-Instruct", "perplexity") == 0.6425
    assert published(None, "spike_score") is None and published("Qwen3-8B", "mind") is None
    assert published_base_scorer("Llama-3.1-8B-Instruct", "reasoning_score") == 0.7595
    assert published_base_scorer("Qwen3-8B", "saplma") is None
