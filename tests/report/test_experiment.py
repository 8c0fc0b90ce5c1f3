"""configs/*.json: what is refused, which commands follow, and what a rerun skips."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import reproduce
from spikescore.dialogues.config import load_config, parse_config
from spikescore.errors import UserError
from spikescore.report.experiment import load_experiment
from spikescore.report.paper import MODELS, published, published_base_scorer
from spikescore.report.slurm import Jobs, parse_options
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
from spikescore.runtime import ALL_ENDED
from tests.helpers.running import LIMIT, run_script, start, start_script, wait_until

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
        ({"slurm": {"partition": "gpu"}}, ['unknown key "partition"', "options"]),
        ({"slurm": {"options": ["gpu"]}}, ['"options" must hold options of sbatch by name']),
        ({"slurm": {"scoring": {"mem": [1]}}}, ['"scoring" must hold options']),
        ({"slurm": {"lines": "module load"}}, ['"lines" must be a list']),
        ({"slurm": {"lines": [1]}}, ['"lines" must hold lines of text']),
        ({"slurm": {"options": {"comment": "a\nexit"}}}, ['"options" must hold options']),
        ({"val_fraction": 0.9, "test_fraction": 0.2}, ["val_fraction", "below 1"]),
        ({"test_fraction": float("nan")}, ["test_fraction"]),
        ({"name": ""}, ['"name"', "fit for a folder"]),
        ({"name": "../mine"}, ['"name"', "fit for a folder"]),
        ({"models": [{"name": "a\nb", "model_path": "m"}]}, ["fit for a folder"]),
        ({"detectors": [1]}, ['"detectors" must be a list of texts']),
        ({"ablations": {"temperatures": ["a"]}}, ['"temperatures" must be a list of numbers']),
        ({"ablations": {"temperatures": [1, 1.0]}}, ['"temperature_1" twice']),
        ({"ablations": {"schedules": ["mixed", "mixed"]}}, ['"schedule_mixed" twice']),
        ({"ablations": {"shuffled": -1}}, ["shuffled", "0 or more"]),
        ({"dialogues": {"max_steps": "5"}, "ablations": {"release": True}}, ['"max_steps" must']),
    ],
)
def test_a_mistake_is_named(tmp_path, change, words):
    with pytest.raises(UserError) as caught:
        load_experiment(write(tmp_path, **change))
    assert all(word in str(caught.value) for word in words), caught.value


def test_names_may_have_blanks_between_them(tmp_path):
    names = {"methods": "perplexity, saplma", "turn_scorers": "sep, saplma"}
    assert load_experiment(write(tmp_path, **names)).turn_scorers == "sep, saplma"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": "saplma,sapmla"}, "sapmla"),
        ({"turn_scorers": "saplma,nothing"}, "nothing"),
        ({"turn_scorers": "saplma,answer_length"}, "first answers only"),
    ],
)
def test_a_method_that_there_is_not_is_named_before_anything_is_run(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        load_experiment(write(tmp_path, **change)).check_names()


@pytest.mark.parametrize(
    "given",
    [("--part", ""), ("--only", ""), ("--redo", ""), ("--part", "tables", "--only", "main"),
     ("--tokens_per_second", "nan"), ("--tokens_per_second", "-5")],
)  # fmt: skip
def test_an_option_that_says_nothing_runs_nothing(given, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduce.parse_arguments(["--config", "configs/tiny.json", *given])
    assert ended.value.code == 2 and given[0] in capsys.readouterr().err


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


def test_several_training_domains_are_a_book_of_their_own(tmp_path):
    steps = {step.name: step for step in
             load_experiment(write(tmp_path, multi_source=True)).steps("x.json")}  # fmt: skip
    one, several = steps["tiny.scores"], steps["tiny.multi_source"]
    assert several.needs == one.needs and "tiny.multi_source" in steps["tables"].needs
    words = [word for word in several.command if word not in one.command]
    assert words == ["--multi_source", "reports/small/scores/tiny.multi_source.pkl"]


def test_published_figures_are_those_of_the_contract():
    assert published("Qwen3-14B", "spike_score") == 0.7874
    assert published("Llama-3.2-3B-Instruct", "icr_probe") == 0.7463
    assert published("Llama-3.1-8B-Instruct", "perplexity") == 0.6425
    assert published(None, "spike_score") is None and published("Qwen3-8B", "mind") is None
    assert published_base_scorer("Llama-3.1-8B-Instruct", "reasoning_score") == 0.7595
    assert published_base_scorer("Qwen3-8B", "saplma") is None


# --- several processes --------------------------------------------------------------------------

LAUNCHER = """
import os, subprocess, sys
n = int(sys.argv[1])
for rank in range(n):
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(n)}
    status = subprocess.call([sys.executable, *sys.argv[2:]], env=environment)
if status:
    print("Traceback (most recent call last):\\nChildFailedError", file=sys.stderr)
sys.exit(status)
"""


class Shared(Step):
    shares_work = counts_failures = True


def test_a_launcher_starts_the_steps_that_share_their_work_and_no_others(tmp_path, capsys):
    launcher, note = tmp_path / "launch.py", tmp_path / "note"
    launcher.write_text(LAUNCHER)
    code = f"import os; open({str(note)!r}, 'a').write(os.environ.get('RANK', 'alone') + ' ')"
    steps = [python_step(tmp_path, name, code, phase) for phase, name in enumerate(("a", "b"), 1)]
    steps[0] = Shared(steps[0].name, steps[0].command, 1)
    launch = ("python", str(launcher), "3")
    runner = Runner(tmp_path / "reports", n_steps=2, launch=launch)
    assert all(runner.run([step], 2) for step in steps)
    assert note.read_text() == "0 1 2 alone "
    out = capsys.readouterr().out
    assert f"[1 of 2] a: python {launcher} 3 {tmp_path / 'a.py'}" in out
    assert f"[2 of 2] b: python {tmp_path / 'b.py'}" in out
    # how a step was started is no part of what it made
    assert Runner(tmp_path / "reports").run(steps, 1) and note.read_text() == "0 1 2 alone "


@pytest.mark.parametrize(
    ("says", "goes_on"), [(f"print({ALL_ENDED!r})", True), ("print('error: no model')", False)]
)
def test_failed_items_of_one_process_are_no_failure_of_the_launch(tmp_path, says, goes_on):
    """The launcher has a traceback of its own for whatever fails."""
    launcher = tmp_path / "launch.py"
    launcher.write_text(LAUNCHER)
    step = python_step(tmp_path, "a", f"import sys; {says}; sys.exit(1)")
    step = Shared(step.name, step.command, 1)
    runner = Runner(tmp_path / "reports", launch=("python", str(launcher), "1"))
    assert runner.run([step], 1) is goes_on
    assert not runner.is_done(step)


def test_a_launcher_that_is_not_there_is_named():
    step = Step("main", ("python", "reasoning_lite.py"), 1)
    with pytest.raises(UserError, match='no program "acelerate"'):
        step.words(["acelerate", "launch"])
    words = step.words(["torchrun", "--nproc_per_node", "2"])
    assert words[0].endswith("/torchrun") and words[1:] == [
        "--nproc_per_node",
        "2",
        step.command[1],
    ]
    assert step.line(["srun", "-n", "2", "python"]) == "srun -n 2 python reasoning_lite.py"


def test_the_launched_steps_are_those_that_a_model_runs_in(tmp_path):
    path = write(tmp_path, ablations={"judges": ["exact"], "layers": True})
    steps = list(load_experiment(path).steps(path))
    launched = {step.name for step in steps if step.line(["torchrun"]).startswith("torchrun ")}
    assert launched == {"tiny.main", "tiny.measures"}


# --- parts made by jobs of their own ------------------------------------------------------------


def in_parts(tmp_path, name: str, phase: int, after: str = "") -> Step:
    """A step that notes what it does, and two parts of it that do so too and make half of it."""

    def one(name: str, needs: str, *made: str, **more) -> Step:
        code = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + ' ')\n"
        code += "".join(f"open({path!r}, 'w').write('x')\n" for path in made)
        more["makes"] = tuple((path, "") for path in made)
        return python_step(tmp_path, name, code, phase, needs=(needs,) if needs else (), **more)

    halves = {domain: str(tmp_path / f"made-{name}-{domain}") for domain in "ab"}
    parts = tuple(
        one(f"{name}.{domain}", after and f"{after}.{domain}", half, part=f"m/{domain}")
        for domain, half in halves.items()
    )
    return one(name, after, *halves.values(), part="m", parts=parts)


def test_what_jobs_made_in_parts_is_not_made_again_and_what_is_missing_is_made_alone(
    tmp_path, capsys
):
    steps = [in_parts(tmp_path, "main", 1), in_parts(tmp_path, "more", 2, after="main")]
    score = python_step(tmp_path, "score", "pass", 3, needs=("main", "more"), part="m")
    ran = tmp_path / "ran"

    def job(part: str) -> None:
        runner = Runner(tmp_path)
        for step in steps:
            assert runner.run([one for one in step.parts if one.part == part], 1)

    def whole() -> str:
        ran.write_text("")
        runner = Runner(tmp_path, n_steps=3)
        assert all(runner.run([step], 1) for step in (*steps, score))
        return ran.read_text()

    job("m/a")
    assert ran.read_text() == "main.a more.a "
    capsys.readouterr()
    assert whole() == "main.b more.b "
    out = capsys.readouterr().out
    assert "[1 of 3] main: 1 of 2 parts were made by jobs; missing: m/b\n" in out
    assert "[2 of 3] more: 1 of 2 parts were made by jobs; missing: m/b\n" in out
    assert whole() == "" and capsys.readouterr().out.count("done before: ") == 3
    (tmp_path / "made-main-a").unlink()
    assert whole() == "main.a "
    # without any part a step is made whole, as ever
    for record in (tmp_path / "done").glob("*.json"):
        record.unlink()
    assert whole() == "main more "


def test_each_domain_is_a_part_of_each_model(tmp_path):
    models = [{"name": name, "model_path": "./models/tiny"} for name in ("a", "b")]
    path = write(tmp_path, models=models, ablations={"schedules": ["continue"]})
    experiment = load_experiment(path)
    steps = {step.name: step for step in experiment.steps(path)}
    assert [part.name for part in steps["a.main"].parts] == ["a.main.trivia", "a.main.reading"]
    part = steps["b.measures"].parts[1]
    assert (part.part, part.needs) == ("b/reading", ("b.main.reading",))
    assert part.command[3] == str(experiment.data_dir(experiment.models[1]) / "reading")
    # a part's dialogues are those of the whole run, in the same place
    _, data, _, output = steps["a.schedule_continue"].parts[0].command[4:]
    config = experiment.config_file(experiment.models[0], "schedule_continue")
    settings = experiment.stage_config(experiment.models[0], experiment.variants()[0])
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(settings))
    whole, one = load_config(config), load_config(config, [data, output])
    assert one.hash() == whole.hash()
    assert [folder for _, folder in one.datasets()] == [whole.datasets()[0][1]]


# --- SLURM --------------------------------------------------------------------------------------

SBATCH = """#!/bin/bash
# Notes how it was called, and runs the tasks of the first script that $TASKS names.
echo "$@" >> "$FAKE/calls"
id=$(wc -l < "$FAKE/calls")
for word in "$@"; do
    case $word in --array=*) tasks=${word#--array=};; *.sbatch) script=$word;; esac
done
[ "${script##*/}" = "$REFUSED" ] && { echo "sbatch: error: invalid partition" >&2; exit 1; }
if [ "${script##*/}" = generate.sbatch ]; then
    for task in ${tasks//,/ }; do
        [[ " $TASKS " == *" $task "* ]] || continue
        SLURM_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task SLURM_PROCID=0 SLURM_NTASKS=1 \\
            ENVIRONMENT=BATCH bash "$script" > "$FAKE/$id.out" 2>&1 || touch "$FAKE/failed"
    done
fi
echo "$id;cluster"
"""


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Put a stand-in for sbatch on the PATH; return the file of its calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH)
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    return tmp_path / "calls"


def jobs_of(path, text="", arguments=("--config", "x.json")) -> Jobs:
    experiment = load_experiment(path)
    return Jobs(experiment, list(experiment.steps(path)), parse_options(text), arguments)


def options_in(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line}


def test_batch_scripts_map_tasks_to_models_and_domains(tmp_path):
    models = [{"name": name, "model_path": "./models/tiny"} for name in ("a", "b 2")]
    slurm = {
        "options": {"partition": "gpu", "time": "1:00:00", "requeue": None},
        "scoring": {"partition": "cpu", "cpus-per-task": 8},
        "lines": ["module load cuda"],
    }
    path = write(tmp_path, models=models, slurm=slurm, reports_dir=str(tmp_path))
    files = jobs_of(path, "time=2:00:00 --exclusive gpus-per-node=4").files()
    generate, score, tables, submit = (
        files[tmp_path / "small" / "slurm" / name]
        for name in ("generate.sbatch", "score.sbatch", "tables.sbatch", "submit.sh")
    )
    log = f"output={(tmp_path / 'small' / 'slurm').resolve()}/%x-%"
    common = {"--time=2:00:00", "--exclusive", "--open-mode=append", "--signal=B:USR1@120"}
    assert options_in(generate) == common | {
        "--partition=gpu", "--gpus-per-node=4", "--array=0-3", "--job-name=small-generate",
        f"--{log}A_%a.out",
    }  # fmt: skip
    scoring = common | {"--partition=cpu", "--cpus-per-task=8"}
    more = {"--array=0-1", "--job-name=small-score", f"--{log}A_%a.out"}
    assert options_in(score) == scoring | more
    assert options_in(tables) == scoring | {"--job-name=small-tables", f"--{log}j.out"}
    names = "tasks=(\na/trivia\na/reading\n'b 2/trivia'\n'b 2/reading'\n)\n"
    assert names in generate and "tasks=(\na\n'b 2'\n)" in score and "tasks=(" not in tables
    for script in (generate, score, tables):
        assert "\nmodule load cuda\n" in script and f"cd {ROOT} " in script
    assert "--gres=gpu:1" in options_in(
        jobs_of(path).files()[path.parent / "small/slurm/generate.sbatch"]
    )
    waits = "--dependency=afterok:${generate}_2:${generate}_3"
    assert (
        "--array=0,1,2,3 " in submit and f"--array=1 --kill-on-invalid-dep=yes {waits} " in submit
    )
    assert "--dependency=afterok:$score_0:$score_1 " in submit


@pytest.mark.parametrize(
    ("signum", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False), (None, False)]
)
def test_a_job_whose_time_is_up_is_queued_again(tmp_path, signum, requeued):
    """The script as it stands, with a command in the place of reproduce.py that takes its time."""
    script = jobs_of(write(tmp_path, reports_dir=str(tmp_path))).files()
    (text,) = (one for path, one in script.items() if path.name == "tables.sbatch")
    python = f"{sys.executable} reproduce.py --config x.json --part tables"
    assert python in text
    wait = "sleep 3600" if signum else "exit 3"
    text = text.replace(python, f"bash -c 'trap \"exit 143\" TERM; touch ready; {wait} & wait'")
    text = text.replace(f"cd {ROOT} ", f"cd {tmp_path} ")
    text = f"scontrol() {{ echo $* > requeued; }}\n{text}"
    process = start(["bash", "-c", text], env={"SLURM_JOB_ID": "17"})
    wait_until((tmp_path / "ready").exists, process)
    if signum:
        process.send_signal(signum)
    process.wait(timeout=LIMIT)
    assert (process.returncode > 128) is bool(signum)
    assert (tmp_path / "requeued").exists() is requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"


def test_jobs_make_their_parts_and_only_what_is_missing_is_submitted_again(
    tmp_path, sbatch, monkeypatch
):
    """Of two tasks the second is lost at first; the scores and tables are submitted after both."""
    dialogues = {**SMALL["dialogues"], "max_steps": 3, "max_new_tokens": 4, "sampling": {"n": 2}}
    places = {"reports_dir": str(tmp_path / "r"), "outputs_dir": str(tmp_path / "o")}
    path = write(tmp_path, dialogues=dialogues, measures=None, **places)
    command = ("reproduce.py", "--config", path, "--slurm", "partition=gpu")
    first = run_script(*command, env={"TASKS": "0"})
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 parts, of which none is made\n1: 2 of 2 parts\n2: scores of tiny\n3: tables" in (
        first.stdout
    )
    assert not (tmp_path / "failed").exists(), (tmp_path / "1.out").read_text()
    again = run_script(*command, env={"TASKS": "1"})
    assert "1 of 2 parts are missing:\ntiny/reading\n4: 1 of 2 parts\n5: scores" in again.stdout
    assert not (tmp_path / "failed").exists(), (tmp_path / "4.out").read_text()
    assert len(list((tmp_path / "o").rglob("*.pkl"))) == 4
    calls = [line.rpartition(" ") for line in sbatch.read_text().splitlines()]
    wait = "--parsable --array=0 --kill-on-invalid-dep=yes --dependency=afterok:"
    assert [options for options, _, _ in calls] == [
        "--parsable --array=0,1", f"{wait}1_0:1_1",
        "--parsable --kill-on-invalid-dep=yes --dependency=afterok:2",
        "--parsable --array=1", f"{wait}4_1",
        "--parsable --kill-on-invalid-dep=yes --dependency=afterok:5",
    ]  # fmt: skip
    jobs = jobs_of(path)
    shown = "\n".join(jobs.shown())
    assert "# all 2 parts are made" in shown and "generate=$(submit" not in shown
    assert jobs.missing == [] and jobs.to_score == ["tiny"]
    assert "all 2 parts are made" in jobs.told()[0]
    # what the jobs made is the whole step
    runner = Runner(tmp_path / "r" / "small")
    (main,) = (step for step in load_experiment(path).steps(path) if step.name == "tiny.main")
    monkeypatch.setattr(runner, "_run_whole", None)
    assert runner.run([main], 1) and runner.is_done(main)


def test_a_refused_job_is_told_and_what_was_submitted_before_it_is_named(tmp_path, sbatch, capfd):
    path = write(tmp_path, reports_dir=str(tmp_path))
    os.environ["REFUSED"] = "score.sbatch"
    try:
        with pytest.raises(UserError, match="refused a job.*scancel 1$"):
            jobs_of(path).submit()
    finally:
        del os.environ["REFUSED"]
    assert "invalid partition" in capfd.readouterr().err
    # squeue knows of it still
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\necho 1 PENDING")
    squeue.chmod(0o755)
    with pytest.raises(UserError, match="still queued or running"):
        jobs_of(path).submit()
    squeue.write_text("#!/bin/sh\nexit 1")  # as for jobs that it has forgotten
    jobs_of(path).submit()
    assert "tables" in capfd.readouterr().out


def test_where_there_is_no_slurm_the_scripts_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    jobs_of(write(tmp_path, reports_dir=str(tmp_path))).submit()
    script = tmp_path / "small" / "slurm" / "submit.sh"
    assert (
        script.is_file()
        and f"there is no sbatch here; on a machine that has it: bash {script}"
        in (capsys.readouterr().out)
    )


def test_a_value_of_several_words_stays_one_option(tmp_path):
    files = jobs_of(write(tmp_path), "comment='two words'").files().values()
    assert all("--comment='two words'" in text for text in files if "#SBATCH" in text)
    with pytest.raises(UserError, match="line's end"):
        parse_options("comment='a\nexit'")


@pytest.mark.parametrize("text", ["-p gpu", "---x=1", "=3"])
def test_options_that_are_none_of_sbatchs_are_refused(text):
    with pytest.raises(UserError, match="name=value"):
        parse_options(text)
