"""What a run stands on: limits hold inside and are gone after it, also when something fails."""

import asyncio
import base64
import json
import os
import queue
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import torch
from threadpoolctl import threadpool_info

from spikescore import runtime
from spikescore.errors import keep_secret, redacted, run_main
from spikescore.runtime import EventLoop, limited_threads, progress, without_refused
from tests.helpers.running import ROOT, ended_after, start_script, wait_until


def test_threads_are_limited_inside_alone():
    before = torch.get_num_threads()
    pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    with pytest.raises(KeyError), limited_threads():
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        raise KeyError
    assert torch.get_num_threads() == before
    assert {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()} == pools


def test_an_event_loop_ends_what_is_under_way_and_then_closes_what_it_opened():
    happened, reports = [], queue.SimpleQueue()

    @asynccontextmanager
    async def resource():
        yield "open"
        happened.append("closed")

    async def forever():
        try:
            await asyncio.sleep(10_000)
        except asyncio.CancelledError:
            happened.append("cancelled")
            raise

    async def value(number):
        return 1 / number

    with pytest.raises(KeyError, match="mine"):
        with EventLoop() as loop:
            assert loop.open(resource()) == "open"
            assert loop.run(value(2)) == 0.5
            with pytest.raises(ZeroDivisionError):
                loop.run(value(0))
            loop.start(value(4), reports.put)
            assert reports.get() == 0.25
            loop.start(value(0), reports.put)
            assert isinstance(reports.get(), ZeroDivisionError)
            loop.start(forever(), reports.put)
            loop.run(asyncio.sleep(0))
            raise KeyError("mine")
    assert happened == ["cancelled", "closed"] and reports.empty()


def refusal(status, body):
    response = SimpleNamespace(status_code=status, text=body if isinstance(body, str) else "")
    if not isinstance(body, str):
        response.text = json.dumps(body)
    return SimpleNamespace(response=response)


SENT = {"model": "m", "messages": [], "temperature": 0, "top_p": 1, "max_tokens": 64, "seed": 3}


@pytest.mark.parametrize(
    ("status", "body", "left_out", "added"),
    [
        (400, {"error": {"message": "Unsupported value: 'temperature' does not support 0 with this "
               "model.", "param": "temperature"}}, "temperature", None),
        (422, {"message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}},
         "seed", None),
        (400, {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with "
               "this model. Use 'max_completion_tokens' instead.", "param": "max_tokens"}},
         "max_tokens", "max_completion_tokens"),
        (400, "unknown field `seed`", "seed", None),
        (422, "Input validation error: `temperature` must be strictly positive", "temperature",
         None),
        (400, "top_p cannot be set together with top_k", "top_p", None),
        (400, "Unrecognized request argument supplied: max_tokens", "max_tokens", None),
        # complaints of another kind, and of what cannot go
        (422, "`inputs` tokens + `max_new_tokens` must be <= 2048", None, None),
        (400, "max_tokens (64) should not exceed 32", None, None),
        (400, {"error": {"message": "The model `m` does not exist", "param": "model"}}, None, None),
        (400, "messages: the content was filtered", None, None),
        (429, "temperature", None, None),
    ],
)  # fmt: skip
def test_a_parameter_that_the_server_refuses_by_name_goes(status, body, left_out, added):
    changed = without_refused(SENT, refusal(status, body))
    if left_out is None:
        assert changed is None
    else:
        expected = {key: value for key, value in SENT.items() if key != left_out}
        assert changed == expected | ({added: 64} if added else {})


def test_no_secret_of_environment_or_address_is_shown(monkeypatch):
    basic = base64.b64encode(b"bob:pass/word1").decode()
    monkeypatch.setenv("SERVER_API_KEY", "canary-0123456789")
    monkeypatch.setenv("WANDB_API_KEY", "0f" * 20)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://bob:pass%2Fword1@host:8000/v1")
    keep_secret("https://eve:other-pass@elsewhere/v1")
    keep_secret("none")
    for said, shown in (
        ("at https://bob:pass%2Fword1@host:8000/v1, 400", "at https://***@host:8000/v1, 400"),
        ("http://who:ever@host/v1 and http://host/@me", "http://***@host/v1 and http://host/@me"),
        (f"you sent Authorization: Basic {basic}", "you sent Authorization: Basic ***"),
        (f"login {basic}", "login ***"),
        ("wrong password pass/word1 or other-pass", "wrong password *** or ***"),
        ("key canary-0123456789!", "key ***!"),
        ("wandb " + "0f" * 20, "wandb ***"),
        ("sk-proj-abcdef123456 and hf_" + "Ab1" * 10, "*** and ***"),
        ("GET /v1?api_key=abc123&n=1", "GET /v1?api_key=***&n=1"),
        ("there is none, hf_hub_download failed, Basic English, task-related", None),
    ):
        assert redacted(said) == (said if shown is None else shown)


def test_a_fault_of_ours_shows_its_traceback_without_secrets(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "canary-0123456789")

    def main():
        raise ValueError("sent canary-0123456789")

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" in said and "sent ***" in said
    assert "canary" not in said


def test_a_script_ends_with_the_one_that_started_it(tmp_path):
    """Even where that is killed, so that it can end nothing itself."""
    (tmp_path / "child.py").write_text(
        "import os, pathlib, time\n"
        "from spikescore.errors import run_main\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "def main():\n"
        "    (folder / 'pid.tmp').write_text(str(os.getpid()))\n"
        "    os.replace(folder / 'pid.tmp', folder / 'pid')\n"
        "    time.sleep(7200)\n"
        "run_main(main)\n"
    )
    (tmp_path / "parent.py").write_text(
        "import os, sys\n"
        "from subprocess import call\n"
        "from spikescore.errors import STARTER\n"
        "environment = {**os.environ, STARTER: str(os.getpid())}\n"
        f"call([sys.executable, {str(tmp_path / 'child.py')!r}], env=environment)\n"
    )
    with ended_after():
        parent = start_script(tmp_path / "parent.py", env={"PYTHONPATH": str(ROOT)})
        wait_until((tmp_path / "pid").exists, parent)
        child = int((tmp_path / "pid").read_text())
        os.kill(child, 0)  # it lives
        parent.kill()
        parent.wait()
        wait_until(lambda: not lives(child))


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_bar_is_silent_in_a_log_until_its_time_has_come(capsys, monkeypatch):
    assert list(progress(range(3), "short")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(runtime, "LOG_RHYTHM", 0.0)
    with progress(desc="long", total=2, unit="fit") as bar:
        bar.update()
        bar.update()
    out, err = capsys.readouterr()
    lines = [line for line in err.replace("\n", "\r").split("\r") if line]
    assert out == "" and lines[-1].startswith("long: 100%") and "2/2" in lines[-1]
