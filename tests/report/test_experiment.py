"""configs/*.json: what is refused, which commands follow, and what a rerun skips."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from spikescore.dialogues.config import load_config, parse_config
from spikescore.errors import UserError
from spikescore.report.experiment import load_experiment
from spikescore.report.paper import MODELS, published, published_base_scorer
from spikescore.report.steps import (
    ROOT,
    Runner,
    Step,
    _code,
    _imported,
    _tree,
    _wait,
    source_digest,
)
from tests.helpers.running import LIMIT, run_script, start_script, wait_until

SMALL = {
    "models": [{"name": "tiny", "model_path": "./models/tiny"}],
    "dialogues": {"dataset_path": ["./datasets/tiny/trivia.json", "./datasets/tiny/reading.json"]},
}


def write(tmp_path, **change):
    path = tmp_path / "small.json"
    path.write_text(json.dumps({**SMALL, **change}))
    return path


@pytest.mark.parametrize("name", ["tiny", "paper"])
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


def test_the_tiny_main_run_is_the_demos_where_nothing_can_be_fetched():
    experiment = load_experiment(ROOT / "configs" / "tiny.json")
    settings = experiment.stage_config(experiment.models[0])
    ours = parse_config(settings, source="tiny")
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
        ({"ablations": {"retrieval": {"from": "no/docs"}}}, ["retrieval", "no/docs"]),
        ({"wandb": 1}, ['"wandb" must be true or false']),
        ({"models": [{"name": 3, "model_path": "m"}]}, ['"name" must be a text']),
        ({"models": [{"name": "a/b", "model_path": "m"}]}, ['without "/"']),
        ({"models": [{"name": "a", "model_path": None}]}, ['"model_path" must be a text']),
        ({"note": "\0"}, ["a character of code 0"]),
        ({"dialogues": {"sampling": [1]}}, ["sampling"]),
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
    dialogues = {"dataset_path": ["./datasets/tiny/trivia.json", "./datasets/no_such_set"]}
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
        "n": 7, "schedules": ["continue", "forked"], "shuffled": 2, "temperatures": [0],
        "release": True, "judges": ["exact"], "retrieval": {"from": str(tmp_path), "top_k": 2},
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
        "schedule_forked": {"schedule": "forked"},
        "shuffled_1": {"strategy": "shuffled", "prompt_seed": 1},
        "shuffled_2": {"strategy": "shuffled", "prompt_seed": 2},
        "temperature_0": {"temperature": 0},
        "release_question_only": {"history": "question_only"},
        "release_leaked_answer": {"leak_answer": True},
        "release_one_more_turn": {"max_steps": 21},
        "retrieval": {"context": {"from": str(tmp_path), "top_k": 2}},
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


def python_step(folder, name: str, code: str, phase: int = 1, **more) -> Step:
    script = folder / f"{name}.py"
    script.write_text(code)
    return Step(name, ("python", str(script)), phase, **more)


class Chain:
    """Pairs, scores of them, something of its own, and a table; each step notes that it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "ran.txt"
        (folder / "pairs").mkdir()
        (folder / "data.json").write_text("1")
        (folder / "helper.py").write_text("def value():\n    return 1\n")
        self.code = (
            f"import helper\nopen({str(self.log)!r}, 'a').write(NAME + ' ')\n"
            "open(OUT, 'w').write(str(helper.value() // 10))\n"
        )

    def step(self, name: str, out: str, phase: int, **more) -> Step:
        code = f"NAME, OUT = {name!r}, {str(self.folder / out)!r}\n{self.code}"
        return python_step(self.folder, name, code, phase, **more)

    def run(self, redo: str | None = None) -> str:
        """Return which steps were run."""
        pairs, book = str(self.folder / "pairs"), str(self.folder / "book")
        data = str(self.folder / "data.json")
        steps = [
            self.step("main", "pairs/a.json", 1, reads=(data,), makes=((pairs, ".json"),)),
            self.step("scores", "book", 2, needs=("main",), makes=((book, ""),)),
            self.step("other", "other", 2),
            self.step("tables", "tables", 3, needs=("scores",)),
        ]
        self.log.write_text("")
        runner = Runner(self.folder / "reports", redo)
        assert all(runner.run([step], 1) for step in steps)
        return self.log.read_text().strip()


def test_only_what_depends_on_a_change_is_made_again(tmp_path, capsys):
    chain = Chain(tmp_path)
    everything = "main scores other tables"
    assert chain.run() == everything and "done before" not in capsys.readouterr().out
    assert chain.run() == ""
    assert capsys.readouterr().out.count("done before: ") == 4
    assert chain.run(redo="scores") == "scores tables"
    (tmp_path / "data.json").write_text("2")  # the same pairs come out
    assert chain.run() == "main"
    assert chain.run() == ""
    helper = tmp_path / "helper.py"
    helper.write_text('"""Other words."""\n# and a comment\ndef value():\n    return 1\n')
    _tree.cache_clear(), _code.cache_clear(), _imported.cache_clear()
    assert chain.run() == ""
    helper.write_text("def value():\n    return 20\n")
    _tree.cache_clear(), _code.cache_clear(), _imported.cache_clear()
    assert chain.run() == everything
    (tmp_path / "pairs" / "a.measures.pkl").write_text("another step's")
    assert chain.run() == ""
    (tmp_path / "pairs" / "a.json").write_text("labelled by hand")
    assert chain.run() == "main"  # which makes it as it was
    (tmp_path / "pairs" / "b.json").write_text("one more")
    assert chain.run() == "main scores"  # whose book is the same
    (tmp_path / "book").unlink()
    assert chain.run() == "scores"
    (tmp_path / "reports" / "done" / "scores.json").write_text('{"digest": "an older form"}')
    assert chain.run() == "scores tables"


def test_the_source_of_a_step_is_all_that_its_script_imports():
    files, todo = set(), [ROOT / "scripts" / "score_methods.py"]
    while todo:
        path = todo.pop()
        if path not in files:
            files.add(path)
            todo += _imported(path, path.parent)
    found = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"spikescore/detectors/tokens.py", "spikescore/stats/roc.py"} <= found
    assert not {"spikescore/report/page/writing.py", "reproduce.py"} & found
    assert source_digest(ROOT / "reasoning_lite.py") != source_digest(ROOT / "eval_probe.py")


class Partly(Step):
    counts_failures = True


def test_failed_items_are_tried_again_and_what_needs_them_follows(tmp_path, capsys):
    pair, note = tmp_path / "pair.json", tmp_path / "note"
    code = (
        "import sys\nfrom pathlib import Path\n"
        f"found = Path({str(tmp_path / 'mended')!r}).exists()\n"
        f"Path({str(pair)!r}).write_text(str(found))\nsys.exit(not found)"
    )
    first = python_step(tmp_path, "first", code)
    first = Partly(first.name, first.command, 1, makes=((str(pair), ""),))
    code = f"open({str(note)!r}, 'a').write('x')"
    after = python_step(tmp_path, "after", code, 2, needs=("first",))

    def run() -> tuple[str, int]:
        runner = Runner(tmp_path / "reports")
        assert runner.run([first], 1) and runner.run([after], 1)
        return note.read_text(), capsys.readouterr().out.count("some items failed")

    assert [run(), run()] == [("x", 1), ("x", 1)]  # tried again, and nothing came of it
    (tmp_path / "mended").touch()
    assert [run(), run()] == [("xx", 0), ("xx", 0)]


def test_a_failed_step_stops_the_run_and_shows_the_end_of_its_log(tmp_path, capsys):
    step = python_step(tmp_path, "bad", "import sys; print('the reason'); sys.exit(2)")
    assert not Runner(tmp_path / "reports").run([step], 1)
    out = capsys.readouterr().out
    assert "failed with status 2" in out and "the reason" in out
    assert not Runner(tmp_path / "reports").run([step], 1)  # not taken for done


class Slow:
    """A process that ends at the third look."""

    looks = 0

    def wait(self, timeout):
        self.looks += 1
        if self.looks < 3:
            raise subprocess.TimeoutExpired("slow", timeout)
        return 7


@pytest.mark.parametrize(
    "text, shown",
    [
        (
            "loading\r 10%|█   | 1/10\r 20%|██   | 2/10 [00:30<02:00, 15.0s/it]\x1b[A\nWARNING\n",
            "20%|██   | 2/10 [00:30<02:00, 15.0s/it]",
        ),
        ("one\ntwo\n", "two"),
        ("", "it has said nothing yet"),
    ],
)
def test_a_running_step_says_where_it_is(tmp_path, capsys, text, shown):
    log = tmp_path / "slow.log"
    log.write_text("x" * 20_000 + "\n" + text if text else "")
    assert _wait(Slow(), "slow", log) == 7
    assert capsys.readouterr().out.splitlines() == [f"    slow, 0 min: {shown}"] * 2


def test_each_step_is_announced_with_its_place_command_and_log(tmp_path, capsys):
    steps = [python_step(tmp_path, name, "pass") for name in ("one", "two")]
    for part in (steps[:1], steps):
        assert Runner(tmp_path / "reports", n_steps=2).run(part, 1)
    out = capsys.readouterr().out
    assert f"[1 of 2] one: {steps[0]}\n    log: {tmp_path / 'reports' / 'logs' / 'one.log'}" in out
    assert "[1 of 2] done before: one" in out and "[2 of 2] two: " in out


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


def test_each_step_needs_what_its_figures_come_from(tmp_path):
    ablations = {"schedules": ["continue"], "judges": ["exact"], "layers": True}
    models = [{"name": name, "model_path": "./models/tiny"} for name in ("a", "b")]
    experiment = load_experiment(write(tmp_path, models=models, ablations=ablations))
    needs = {step.name: set(step.needs) for step in experiment.steps("x.json")}
    assert needs["a.main"] == needs["a.schedule_continue"] == set()
    assert needs["a.judge_exact"] == needs["a.measures"] == needs["a.layers"] == {"a.main"}
    assert needs["a.scores"] == {"a.main", "a.measures"}
    assert needs["a.variant_scores"] == {"a.main", "a.measures", "a.schedule_continue"}
    assert needs["b.judge_exact_scores"] == {"b.judge_exact"}
    assert needs["tables"] == needs.keys() - {"tables"}


def test_published_figures_are_those_of_the_contract():
    assert published("Qwen3-14B", "spike_score") == 0.7874
    assert published("Llama-3.2-3B-Instruct", "icr_probe") == 0.7463
    assert published("Llama-3.1-8B-Instruct", "perplexity") == 0.6425
    assert published(None, "spike_score") is None and published("Qwen3-8B", "mind") is None
    assert published_base_scorer("Llama-3.1-8B-Instruct", "reasoning_score") == 0.7595
    assert published_base_scorer("Qwen3-8B", "saplma") is None
