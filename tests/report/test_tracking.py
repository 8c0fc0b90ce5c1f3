"""W&B is optional: whatever goes wrong with it is one warning, and the run goes on."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from spikescore.report import tracking
from spikescore.report.content import Table
from tests.helpers.factories import make_pairs
from tests.helpers.fault_server import FaultyServer
from tests.helpers.running import run_script

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the right form, of no account
NOWHERE = "http://127.0.0.1:9"
RUN = """
import sys
from pathlib import Path
from spikescore.report import tracking
tracking.PATIENCE = tracking.ANSWER = 3.0
with tracking.Tracker("p", Path(sys.argv[1]), {"a": 1}, enabled=True) as tracker:
    print("mode", tracker._run and tracker._run.settings.mode)
    tracker.log({"x": 1.0})
    tracker.table("t", ["a"], [[1]])
    tracker.image("i", b"no picture", "c")
    tracker.log({"x": 2.0})
print("the run goes on")
"""


def refuse(body, number):
    return 401, {}, json.dumps({"errors": [{"message": "no such key"}]})


def break_down(body, number):
    return 500, {}, "oops"


@pytest.mark.parametrize(
    ("environment", "server", "mode", "warning"),
    [
        ({}, None, "offline", ""),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, None, "offline", ""),
        ({"WANDB_MODE": "online"}, None, "offline", "no key is set"),
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": NOWHERE}, None, "offline", "cannot be reached"),
        ({"WANDB_API_KEY": "your-wandb-api-key"}, refuse, "offline", "40"),
        ({"WANDB_API_KEY": KEY}, refuse, "offline", "no such key"),
        ({"WANDB_API_KEY": KEY}, break_down, "offline", "HTTP 500"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "onlin"}, None, "offline", 'WANDB_MODE is "onlin"'),
    ],
)
def test_without_an_account_or_a_network_a_run_is_logged_offline(
    tmp_path, environment, server, mode, warning
):
    clear = dict.fromkeys(("WANDB_MODE", "WANDB_BASE_URL", "WANDB_API_KEY"), "")
    with FaultyServer(server or refuse) as listening:
        if server:
            environment = {**environment, "WANDB_BASE_URL": listening.url.removesuffix("/v1")}
        done = run_script(
            "-c", RUN, tmp_path / "run", env={**clear, "HOME": str(tmp_path), **environment}
        )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert f"mode {mode}" in done.stdout and "the run goes on" in done.stdout
    told = [line for line in done.stderr.splitlines() if line.startswith("W&B:")]
    broken = [line for line in told if "the log ends here" in line]
    assert len(broken) == 1  # the picture that is none
    begun = [line for line in told if line not in broken]
    assert len(begun) == bool(warning) and all(warning in line for line in begun), told
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("broken", ["library", "folder"])
def test_where_nothing_can_be_logged_the_run_goes_on(tmp_path, broken):
    if broken == "library":
        (tmp_path / "wandb.py").write_text("raise OSError('a library that cannot be loaded')")
    else:
        (tmp_path / "run").write_text("a file")
    path = str(tmp_path) if broken == "library" else ""
    done = run_script("-c", RUN, tmp_path / "run", env={"PYTHONPATH": path, "HOME": str(tmp_path)})
    assert done.returncode == 0 and "mode None\nthe run goes on" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("W&B: ") and line.endswith("; nothing is logged")


class Wandb:
    """In wandb's place: keeps what it is given."""

    def __init__(self):
        self.begun, self.logged, self.finished = {}, {}, False
        self.Table = lambda columns, data: (columns, data)
        self.Image = lambda picture, caption: (picture.size, caption)

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(base_url="http://127.0.0.1:9"))

    def Settings(self, **settings):  # noqa: N802, as wandb calls it
        return settings

    def init(self, **begun):
        self.begun = begun
        run = SimpleNamespace(disabled=False, offline=True, url=None, dir=f"{begun['dir']}/r/files")
        run.log, run.finish = self.logged.update, lambda: setattr(self, "finished", True)
        return run


def test_a_job_that_is_done_is_logged_with_every_number_and_where_it_is(
    tmp_path, monkeypatch, capsys
):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")
    figures = {
        "auroc": {"macro": {"spike_score": 0.7, "none": None}},
        "n": 3,
        "name": "x",
        "b": True,
    }
    table = Table("t", ("a",), (("1",),))
    assert not tracking.wanted()
    tracking.log_run("stage 3", {"K": 8}, figures, folder=tmp_path)
    assert not wandb.begun and capsys.readouterr().out == ""  # nobody asked for it
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert not tracking.wanted()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking.wanted()
    tracking.log_run("stage 3", {"K": 8}, figures, folder=tmp_path, tables={"m/t": table})
    assert wandb.begun["mode"] == "offline" and wandb.begun["config"]["K"] == 8
    assert wandb.begun["config"]["job"] == "stage 3"
    told = {"auroc/macro/spike_score": 0.7, "n": 3, "m/t": (["a"], [["1"]])}
    assert wandb.logged == told and wandb.finished
    assert f"`wandb sync {tmp_path}/r`" in capsys.readouterr().out


FAKE = """
import atexit, json, os
told = {"config": {}, "logged": {}}
class Run:
    disabled, offline, url, dir = False, True, None, "/nowhere/files"
    def log(self, found): told["logged"].update(found)
    def finish(self): open(os.environ["TOLD"], "w").write(json.dumps(told, default=str))
class Settings:
    base_url = "http://127.0.0.1:9"
    def __init__(self, **given): pass
def init(config, **given):
    told["config"] = config
    return Run()
class setup:
    settings = Settings()
"""


def test_stages_and_trainer_log_their_figures_and_settings(tmp_path):
    """All stages on one small folder, with a wandb that writes down what it is given."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "wandb.py").write_text(FAKE)
    pairs, probe = tmp_path / "pairs", tmp_path / "probe.pkl"
    make_pairs(pairs / "a", n=120, turns=4, domain="a")
    make_pairs(pairs / "b", n=40, turns=4, domain="b")
    env = {
        "PYTHONPATH": str(tmp_path / "lib"), "TOLD": str(tmp_path / "told.json"),
        "WANDB_MODE": "offline", "WANDB_API_KEY": "", "HOME": str(tmp_path),
    }  # fmt: skip

    def told(*command):
        done = run_script(*command, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().splitlines()[-1].startswith("W&B: logged offline into")
        return json.loads((tmp_path / "told.json").read_text())

    trainer = "semantic-entropy-probes/probes_trainer.py"
    found = told(trainer, "--data_dirs", pairs / "a", "--save_path", probe, "--epochs", 2)
    assert found["config"]["job"] == "probe" and found["config"]["epochs"] == 2
    assert found["logged"]["metrics/test/value"] > 0.5
    found = told("metrics_probe.py", "--json_dir", pairs, "--pkl_dir", pairs,
                 "--probe_path", probe)  # fmt: skip
    assert found["logged"]["dialogues"] == 160 and found["logged"]["turns"] == 640
    assert found["config"]["probe"]["kind"] == "saplma"
    found = told("eval_probe.py", "--data_dir", pairs, "--report_dir", tmp_path / "r",
                 "--draws", 20)  # fmt: skip
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    pooled = next(view for view in summary["views"] if view["kind"] == "pooled")
    value = found["logged"]["auroc/pooled/spike_score"]
    assert value == pooled["auroc"]["spike_score"]["value"] and found["config"]["draws"] == 20
    whole = [view for view in summary["views"] if view["kind"] != "domain"]
    wrong, n = (sum(view[name] for view in whole) for name in ("n_hallucinated", "n"))
    assert found["logged"]["hallucination_rate"] == pytest.approx(wrong / n)
