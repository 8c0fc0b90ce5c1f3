"""W&B is optional: whatever goes wrong with it is one warning, and the run goes on."""

from __future__ import annotations

import json

import pytest

from tests.helpers.fault_server import FaultyServer
from tests.helpers.running import run_script

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the right form, of no account
NOWHERE = "http://127.0.0.1:9"
RUN = """
import sys
from pathlib import Path
from spikescore.report import tracking
tracking.PATIENCE = 3.0
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
