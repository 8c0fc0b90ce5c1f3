"""Stage 2 from the command line: what it writes, what it leaves alone, and how it fails."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import metrics_probe
from benchmarks import score_speed
from spikescore import runtime
from spikescore.errors import Refused, run_main
from spikescore.files import read_json, write_json
from spikescore.pairs import find_records, read_states
from spikescore.probes import scoring
from spikescore.probes.probe import Probe, load_probe
from spikescore.probes.training import Settings, train_probe
from tests.helpers.factories import make_pairs
from tests.helpers.running import run_script, start_script, wait_until
from tests.probes.test_probe import released_probe

KEY = "last_token_embedding"


def arguments_of(json_dir: Path, probe: Path, *more: object, pkl_dir: Path | None = None) -> list:
    pkl_dir = pkl_dir or json_dir
    return ["--json_dir", json_dir, "--pkl_dir", pkl_dir, "--probe_path", probe, *more]


def score(json_dir: Path, probe: Path, *more: object, pkl_dir: Path | None = None):
    """Run stage 2 in this process, a start of Python saved; return its status and outputs."""
    arguments = arguments_of(json_dir, probe, *more, pkl_dir=pkl_dir)
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        patch.setattr(sys, "argv", ["metrics_probe.py", *map(str, arguments)])
        run_main(metrics_probe.main)
    return subprocess.CompletedProcess(arguments, end.value.code, out.getvalue(), err.getvalue())


def score_as_script(json_dir: Path, probe: Path, *more: object):
    """Run stage 2 as its user does; return the finished process, which must show no traceback."""
    done = run_script("metrics_probe.py", *arguments_of(json_dir, probe, *more))
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """outputs/toy (40 pairs), outputs/deep/other (3 pairs) and probe.pkl trained on toy."""
    folder = tmp_path_factory.mktemp("stage2")
    make_pairs(folder / "outputs" / "toy", n=40, turns=4)
    make_pairs(folder / "outputs" / "deep" / "other", n=3, turns=3, domain="other")
    train_probe([folder / "outputs" / "toy"], Settings())[0].save(folder / "probe.pkl")
    return folder


@pytest.fixture
def work(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "w")
    return tmp_path / "w"


def expected_scores(probe: Probe, pkl: Path) -> list[float]:
    """Score a pair turn by turn with torch, from the probe's weights."""
    scores = []
    for by_key in read_states(pkl).values():
        first, last = probe.layer_range
        x = by_key[probe.token_key][first : last + 1].reshape(-1).astype(np.float64)
        x = torch.from_numpy((x - probe.mean) / probe.scale)
        linears = [op[1:] for op in probe.weights if op[0] == "linear"]
        for place, (weight, bias) in enumerate(linears):
            x = torch.from_numpy(weight).double() @ x + torch.from_numpy(bias).double()
            x = torch.relu(x) if place < len(linears) - 1 else torch.sigmoid(x)
        scores.append(x.item())
    return scores


def test_scores_every_turn_and_changes_nothing_else(work: Path) -> None:
    before = {path: read_json(path) for path in find_records(work / "outputs")}
    pkls = {path: path.read_bytes() for path in work.rglob("outputs/**/*.pkl")}
    done = score_as_script(work / "outputs", work / "probe.pkl")
    assert done.returncode == 0, done.stderr
    assert "scored 43 dialogues, 169 turns" in done.stdout.splitlines()[-1]  # 40 * 4 + 3 * 3
    probe = load_probe(work / "probe.pkl")
    splits = set()
    for path, old in before.items():
        new = read_json(path)
        scores = new["metrics"].pop("probe_pred")
        np.testing.assert_allclose(
            scores, expected_scores(probe, path.with_suffix(".pkl")), atol=1e-5
        )
        assert [step["metrics"].pop("probe_pred") for step in new["cot_steps"]] == scores
        assert new["metrics"].pop("probe") == {
            "path": str(work / "probe.pkl"),
            "kind": "saplma",
            "token_key": KEY,
            "layer_range": list(probe.layer_range),
            "model": "./models/synthetic",
            "train_domains": ["toy"],
            "spike_threshold": probe.spike_threshold,
        }
        split = new["metrics"].pop("probe_split")
        splits.add(split)
        assert split == probe.training["items"].get(f"{old['domain']}/{old['id']}", "unseen")
        assert new == old
    assert splits == {"train", "val", "test", "unseen"}
    assert {path: path.read_bytes() for path in pkls} == pkls


def test_running_again_gives_the_same_files(work: Path) -> None:
    score(work / "outputs", work / "probe.pkl")
    first = {path: path.read_bytes() for path in find_records(work / "outputs")}
    again = score(work / "outputs", work / "probe.pkl", "--token_key", KEY)
    assert again.returncode == 0
    assert {path: path.read_bytes() for path in first} == first


def test_what_stage_three_made_of_scores_goes_with_them(work: Path) -> None:
    toy = work / "outputs" / "toy"
    score(toy, work / "probe.pkl")
    path = toy / "toy-0000.json"
    record = read_json(path)
    record["metrics"] |= {"spike_score": 0.5, "spike_turn": 2, "mine": 3}
    write_json(path, record)
    score(toy, work / "probe.pkl")
    assert read_json(path) == record
    probe = load_probe(work / "probe.pkl")
    replace(probe, scale=probe.scale * 3).save(work / "other.pkl")
    score(toy, work / "other.pkl")
    metrics = read_json(path)["metrics"]
    assert metrics["probe_pred"] != record["metrics"]["probe_pred"] and metrics["mine"] == 3
    assert not {"spike_score", "spike_turn"} & metrics.keys()


def test_pkls_in_a_mirrored_folder_and_missing_ones_are_counted(work: Path) -> None:
    (work / "states" / "deep" / "other").mkdir(parents=True)
    for path in sorted((work / "outputs" / "deep" / "other").glob("*.pkl")):
        shutil.move(path, work / "states" / "deep" / "other" / path.name)
    (work / "states" / "deep" / "other" / "other-0001.pkl").unlink()
    done = score(work / "outputs" / "deep", work / "probe.pkl", pkl_dir=work / "states" / "deep")
    assert done.returncode == 1
    assert "1 of 3 dialogues have no .pkl" in done.stdout
    other = work / "outputs" / "deep" / "other"
    assert len(read_json(other / "other-0000.json")["metrics"]["probe_pred"]) == 3
    assert read_json(other / "other-0001.json")["metrics"] == {}


def test_all_pkls_missing_is_an_error(work: Path) -> None:
    for path in (work / "outputs").rglob("*.pkl"):
        path.unlink()
    done = score(work / "outputs", work / "probe.pkl")
    assert done.returncode == 2
    assert "none of the 43 dialogues" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--token_key", "sec_last_token_embedding"],
            'trained on the token "last_token_embedding"',
        ),
        (["--layer_range", "0,4"], "--layer_range says 0,4"),
        (["--layer_range", "4,0"], "13,21"),
        (["--token_key", "nonsense"], "invalid choice"),
    ],
)
def test_contradicting_arguments_are_refused(work: Path, arguments: list, told: str) -> None:
    done = score(work / "outputs", work / "probe.pkl", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert read_json(work / "outputs" / "toy" / "toy-0000.json")["metrics"] == {}


def test_a_probe_for_another_token_needs_no_argument(work: Path) -> None:
    key = "last_tok_bef_gen_embedding"
    settings = Settings(token_key=key, layer_range=(2, 2), epochs=1)
    train_probe([work / "outputs" / "toy"], settings)[0].save(work / "other.pkl")
    done = score(work / "outputs", work / "other.pkl")
    assert done.returncode == 0, done.stderr
    assert key in done.stdout
    assert score(work / "outputs", work / "other.pkl", "--token_key", KEY).returncode == 2


def test_states_of_another_width_or_model_are_refused(work: Path) -> None:
    make_pairs(work / "wide", n=1, turns=3, hidden=16)
    done = score(work / "wide", work / "probe.pkl")
    assert done.returncode == 2
    assert "width 8" in done.stderr and "width 16" in done.stderr
    make_pairs(work / "named", n=1, turns=3, model="./models/other")
    done = score(work / "named", work / "probe.pkl")
    assert done.returncode == 2
    assert "models/synthetic" in done.stderr and "models/other" in done.stderr


def lose_a_turn(path: Path) -> None:
    content = pickle.loads(path.read_bytes())
    del content["turns"][3]
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("place", [0, 21, 39], ids=["first", "middle", "last"])
@pytest.mark.parametrize(
    ("file", "damage", "told"),
    [
        ("pkl", lambda path: path.write_bytes(b""), "not a readable pickle"),
        ("pkl", lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a readable pickle"),
        ("pkl", lose_a_turn, "turn 3"),
        ("json", lambda path: path.write_text('{"id": 1,'), "line 1"),
        (
            "json",
            lambda path: write_json(path, {**read_json(path), "model": "./models/other"}),
            "models/other",
        ),
        (
            "json",
            lambda path: path.write_text(
                path.read_text().replace("{", '{"a": {"b": [1, NaN]},', 1)
            ),
            "a.b[1] is NaN",
        ),
        (
            "json",
            lambda path: path.write_text(path.read_text().replace('"turn": 3', '"turn": 2')),
            '"turn" of two steps',
        ),
    ],
    ids=["empty", "cut", "turn", "json", "model", "nan", "twice"],
)
def test_one_bad_file_is_named_and_the_others_are_scored(
    work: Path, place: int, file: str, damage, told: str
) -> None:
    if told == "models/other" and place == 0:
        pytest.skip("the first dialogue says what model the probe is compared with")
    bad = work / "outputs" / "toy" / f"toy-{place:04d}.{file}"
    damage(bad)
    before = bad.read_bytes()
    done = score(work / "outputs", work / "probe.pkl")
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("not scored: "))
    assert f"toy-{place:04d}.pkl" in line.replace(".json", ".pkl") and told in line
    assert "scored 42 dialogues" in done.stdout and "1 of 43 dialogues cannot be" in done.stdout
    paths = [path for path in find_records(work / "outputs") if path.stem != bad.stem]
    assert all("probe_pred" in read_json(path)["metrics"] for path in paths) and len(paths) == 42
    assert bad.read_bytes() == before


def test_nothing_that_can_be_read_is_an_error(work: Path) -> None:
    for path in (work / "outputs").rglob("*.pkl"):
        path.write_bytes(b"")
    done = score(work / "outputs", work / "probe.pkl")
    assert done.returncode == 2 and "none of 43 dialogues can be read" in done.stderr


def test_unfinished_dialogues_are_left_alone_and_counted(work: Path) -> None:
    path = work / "outputs" / "toy" / "toy-0000.json"
    write_json(path, {**read_json(path), "complete": False})
    done = score(work / "outputs", work / "probe.pkl")
    assert done.returncode == 0
    assert "1 unfinished" in done.stdout and "scored 42 dialogues" in done.stdout
    assert read_json(path)["metrics"] == {}


def test_missing_folders_and_probes_are_one_clear_message(work: Path) -> None:
    (work / "empty").mkdir()
    for json_dir, probe, told in (
        (work / "nowhere", work / "probe.pkl", "does not exist"),
        (work / "empty", work / "probe.pkl", "no finished dialogues"),
        (work / "outputs", work / "none.pkl", "does not exist"),
        (work / "outputs", work / "outputs" / "toy" / "toy-0000.pkl", "not a probe"),
    ):
        done = score(json_dir, probe, pkl_dir=work / "outputs")
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and told in done.stderr
        assert len(done.stderr.splitlines()) == 1


class _Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_hostile_probe_and_states_are_refused_and_nothing_ran(work: Path) -> None:
    mark = work / "was-here"
    (work / "bomb.pkl").write_bytes(pickle.dumps(_Hostile(f"touch {mark}")))
    done = score(work / "outputs", work / "bomb.pkl")
    assert done.returncode == 2 and "refused" in done.stderr
    shutil.copy(work / "bomb.pkl", work / "outputs" / "toy" / "toy-0007.pkl")
    done = score(work / "outputs", work / "probe.pkl")
    assert done.returncode == 1 and "toy-0007.pkl" in done.stdout and "refused" in done.stdout
    assert not mark.exists()


def test_released_probe_and_older_pairs(tmp_path: Path) -> None:
    """The public release's own forms on both sides, with its half-open "13,21" convention."""
    network = released_probe(tmp_path / "sep.pkl", 2 * 8)
    folder = tmp_path / "old"
    folder.mkdir()
    states = {
        step: {KEY: torch.randn(5, 8, generator=torch.Generator().manual_seed(step))}
        for step in range(3)
    }
    (folder / "a1.pkl").write_bytes(pickle.dumps(states))
    chain = [{"step": step, "answer": f"answer {step}", "metrics": None} for step in range(3)]
    record = {"question": "Q?", "nli_label": 1, "reasoning_chain": chain}
    (folder / "a1.json").write_text(json.dumps(record))
    (folder / "progress.json").write_text("{}")

    assert "--layer_range" in score(folder, tmp_path / "sep.pkl").stderr
    done = score_as_script(folder, tmp_path / "sep.pkl", "--layer_range", "1,3")
    assert done.returncode == 0, done.stderr
    assert "layers 1 to 2" in done.stderr and "last_token_embedding" in done.stderr
    new = read_json(folder / "a1.json")
    x = torch.stack([states[step][KEY][1:3].half().float().reshape(-1) for step in range(3)])
    scores = new["metrics"]["probe_pred"]
    np.testing.assert_allclose(scores, network(x).detach().numpy(), atol=1e-4)
    assert [step["metrics"]["probe_pred"] for step in new["reasoning_chain"]] == scores
    assert new["metrics"]["probe"]["layer_range"] == [1, 2]
    assert new["metrics"]["probe_split"] == "unseen"
    assert {k: v for k, v in new.items() if k not in ("metrics", "reasoning_chain")} == {
        "question": "Q?",
        "nli_label": 1,
    }


def test_trainer_from_the_command_line(work: Path) -> None:
    script = "semantic-entropy-probes/probes_trainer.py"
    done = run_script(
        script, "--data_dirs", work / "outputs" / "toy", "--save_path", work / "new" / "p.pkl",
        "--probe", "saplma", "--token_key", KEY, "--layer_range", "2,3", "--seed", 42,
        "--epochs", 3, "--val_fraction", 0.25, "--test_fraction", 0.25,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "train 20 (50% hallucinated), val 10 (50% hallucinated), test 10" in done.stdout
    assert "layers 2,3 of 0..4" in done.stdout and "test        AUROC" in done.stdout
    assert load_probe(work / "new" / "p.pkl").layer_range == (2, 3)
    told = read_json(work / "new" / "p.json")
    assert told["training"]["n"] == {"train": 20, "val": 10, "test": 10}
    assert told["metrics"]["test"]["n"] == 10 and told["metrics"]["test"]["n_positive"] == 5

    for arguments, message in (
        (["--data_dirs", work / "none", "--save_path", work / "p.pkl"], "does not exist"),
        (["--data_dirs", work / "outputs", "--save_path", work / "p.bin"], ".pkl"),
    ):
        done = run_script(script, *arguments)
        assert done.returncode == 2
        assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "script", ["metrics_probe.py", "semantic-entropy-probes/probes_trainer.py"]
)
def test_help_reads_like_documentation_without_heavy_imports(script: str) -> None:
    done = run_script(script, "--help")
    assert done.returncode == 0 and "--layer_range" in done.stdout
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'sklearn', 'matplotlib'} & sys.modules.keys()"
    )
    done = run_script("-c", code, script)
    assert done.returncode == 0, done.stderr


def test_an_infinite_state_matters_only_where_the_probe_looks(work: Path) -> None:
    path = work / "outputs" / "toy" / "toy-0000.pkl"
    probe = load_probe(work / "probe.pkl")
    layer = probe.layer_range[1]
    content = pickle.loads(path.read_bytes())
    content["turns"][2][KEY][layer - 1, 0] = np.inf
    content["turns"][2]["sec_last_token_embedding"][layer, 0] = np.nan
    path.write_bytes(pickle.dumps(content))
    assert score(work / "outputs", work / "probe.pkl").returncode == 0
    content["turns"][2][KEY][layer, 0] = np.inf
    path.write_bytes(pickle.dumps(content))
    done = score(work / "outputs", work / "probe.pkl")
    assert done.returncode == 1 and "toy-0000.pkl" in done.stdout and "not finite" in done.stdout


def test_many_small_chunks_give_the_same_scores(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(work / "outputs", work / "probe.pkl")
    whole = {path: read_json(path) for path in find_records(work / "outputs")}
    monkeypatch.setattr(scoring, "MAX_FEATURE_BYTES", 1)
    assert "scored 43 dialogues" in score(work / "outputs", work / "probe.pkl").stdout
    for path, record in whole.items():
        ours = read_json(path)["metrics"]["probe_pred"]
        np.testing.assert_allclose(ours, record["metrics"]["probe_pred"], atol=1e-6)


MANY = 70  # more than two blocks, so that worker processes score them


@pytest.fixture
def many(work: Path) -> Path:
    """A folder of 70 pairs, in subfolders; the probe is beside it."""
    make_pairs(work / "many", n=MANY - 10, turns=3, seed=5)
    make_pairs(work / "many" / "deep", n=10, turns=4, domain="other")
    return work / "many"


def test_worker_processes_score_as_one_process_does(
    many: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (many / "toy-0003.pkl").unlink()
    unfinished = {"id": "toy-0065", "complete": False}
    write_json(many / "toy-0065.json", {**read_json(many / "toy-0005.json"), **unfinished})
    processes = score_as_script(many, work / "probe.pkl")
    assert processes.returncode == 1
    assert "scored 69 dialogues, 217 turns" in processes.stdout  # 59 * 3 + 10 * 4
    assert "1 of 70 dialogues have no .pkl" in processes.stdout
    assert "1 unfinished" in processes.stdout
    told = {path: read_json(path) for path in find_records(many)}
    probe = load_probe(work / "probe.pkl")
    for path, record in told.items():
        if "probe_pred" in record["metrics"]:
            expected = expected_scores(probe, path.with_suffix(".pkl"))
            np.testing.assert_allclose(record["metrics"]["probe_pred"], expected, atol=1e-5)
    assert sum("probe_pred" in record["metrics"] for record in told.values()) == 69

    monkeypatch.setattr(scoring, "MAX_WORKERS", 1)
    monkeypatch.setattr(scoring, "prepare_worker", None)
    monkeypatch.setattr(runtime, "LOG_RHYTHM", 0.0)  # the bar's lines in a log, however soon done
    alone = score(many, work / "probe.pkl")
    assert alone.returncode == 1 and alone.stdout == processes.stdout and "71/71" in alone.stderr
    for path, record in told.items():
        ours, theirs = (one["metrics"].pop("probe_pred", []) for one in (read_json(path), record))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_bad_file_in_a_worker_process_is_named(many: Path, work: Path) -> None:
    mark = work / "was-here"
    (many / "toy-0050.pkl").write_bytes(pickle.dumps(_Hostile(f"touch {mark}")))
    done = score_as_script(many, work / "probe.pkl")
    assert done.returncode == 1 and not mark.exists()
    assert "toy-0050.pkl" in done.stdout and "refused" in done.stdout
    assert "scored 69 dialogues" in done.stdout and not list(many.rglob("*.tmp"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_process_outlives_stage_two(many: Path, work: Path, ended_by: int) -> None:
    def living(group: int) -> set[int]:
        found = set()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, own = path.read_text().rpartition(")")[2].split()[:3]
                if int(own) == group and state != "Z":
                    found.add(int(path.parent.name))
        return found

    # the first dialogue can be read; at the others the workers wait, however busy the machine is
    for path in many.glob("*.json"):
        path.unlink()
        os.mkfifo(path)
    process = start_script("metrics_probe.py", *arguments_of(many, work / "probe.pkl"))
    wait_until(lambda: len(living(process.pid)) > 2, process)
    os.kill(process.pid, ended_by)
    process.wait()
    wait_until(lambda: not living(process.pid))


@pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="the patch reaches forked workers only"
)
def test_a_killed_worker_process_is_one_clear_message(
    many: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, record: dict) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(scoring, "write_json", killed)
    done = score(many, work / "probe.pkl")
    assert done.returncode == 2 and "memory runs out" in done.stderr.splitlines()[-1]


def test_a_failed_write_ends_the_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, record: dict) -> None:
        raise Refused(f"{path.name}: no space")

    monkeypatch.setattr(scoring, "write_json", full)
    done = score(work / "outputs", work / "probe.pkl")
    assert done.returncode == 2 and "no space" in done.stderr and "scored" not in done.stdout


def test_speed_benchmark_runs_and_refuses_a_full_disk(tmp_path: Path) -> None:
    script = "benchmarks/score_speed.py"
    done = run_script(script, "--pairs", 10, "--repeats", 1, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warm: stage 2 runs at" in done.stdout and "eval_probe.py: " in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = run_script(script, "--pairs", 10**9, "--folder", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "fewer --pairs" in done.stderr


def test_speed_benchmark_compares_sizes_of_score_methods(tmp_path: Path) -> None:
    done = run_script(
        "benchmarks/score_speed.py", "--methods", "--sizes", "120", "--shape", "3x32",
        "--trained_on", 1, "--folder", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert "saplma" in head and "fitted on 1 of 6 domains" in head and "states 3x32" in head
    assert [line.split()[0] for line in lines if "dialogues, " in line] == ["120"] * 2
    assert list(tmp_path.iterdir()) == []


def test_speed_benchmark_says_how_the_cost_grows(tmp_path, monkeypatch, capsys) -> None:
    taken = iter((2.0, 1.0, 3.0, 4.0))
    monkeypatch.setattr(score_speed, "make_up_domains", lambda *_: None)
    monkeypatch.setattr(
        score_speed,
        "child",
        lambda *_: {"seconds": next(taken), "cpu": 5.0, "peak": 2**30, "parts": {}},
    )
    sizes = SimpleNamespace(sizes="120,144", shape="3x32", trained_on=1)
    score_speed.compare_sizes(tmp_path, sizes)
    grown = [line.partition("; ")[2] for line in capsys.readouterr().out.splitlines()[3:]]
    assert grown == [
        f"x 1.20 dialogues: x {times} time, x 1.00 CPU, x 1.00 memory" for times in ("1.50", "4.00")
    ]
