"""What a run stands on: limits hold inside and are gone after it, also when something fails."""

import asyncio
import base64
import contextlib
import json
import os
import queue
import signal
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import torch
from threadpoolctl import threadpool_info

from spikescore import runtime
from spikescore.errors import UserError, keep_secret, redacted, run_main
from spikescore.runtime import (
    EventLoop,
    derived_seed,
    end_together,
    limited_threads,
    progress,
    this_process,
    without_refused,
)
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
        (400, {"error": {"message": "litellm.UnsupportedParamsError: m does not support "
               "parameters: ['seed']", "type": "None", "param": "None"}}, "seed", None),
        (400, {"error": {"message": "'temperature' does not support 0", "param": ""}},
         "temperature", None),
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
        (
            "GET /?n=1&subscription-key=abc1 /a?X-Amz-Signature=0f",
            "GET /?n=1&subscription-key=*** /a?X-Amz-Signature=***",
        ),
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


def test_what_no_terminal_can_show_is_escaped(capsys):
    """Half of a surrogate pair: a name on disk that is not UTF-8, or a text of a damaged JSON."""

    def main():
        print("wrote caf\udce9", derived_seed(0, "caf\udce9") != derived_seed(0, "caf\udce8"))

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 0
    assert capsys.readouterr().out == "wrote caf\\udce9 True\n"


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


# --- which process of how many ------------------------------------------------------------------

TASK = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
STEP = {**TASK, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "ENVIRONMENT": "BATCH"}


def launched(monkeypatch, environment):
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ENVIRONMENT"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}, (3, 8, 3)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2, 0)),
        ({"RANK": "0"}, (0, 1, 0)),
        ({"WORLD_SIZE": "1", "LOCAL_RANK": ""}, (0, 1, 0)),
        (TASK, (3, 8, 1)),
        (STEP, (3, 8, 1)),
        # a step of fewer tasks than the job has
        ({**STEP, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2, 1)),
        # one task, a batch script, and the shell of salloc, are alone whatever the job has
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}, (0, 1, 0)),
        (BATCH, (0, 1, 0)),
        ({**BATCH, "ENVIRONMENT": "", "SLURM_STEP_ID": "4294967290"}, (0, 1, 0)),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, (0, 1, 0)),
        # what srun starts from a batch script, whose variables it inherits
        ({**BATCH, **STEP}, (3, 8, 1)),
        # torchrun on each of two nodes
        ({**STEP, "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "RANK": "13",
          "WORLD_SIZE": "16", "LOCAL_RANK": "5"}, (13, 16, 5)),
        # a script that gives the number alone
        ({**STEP, "WORLD_SIZE": "8"}, (3, 8, 1)),
    ],
)  # fmt: skip
def test_a_process_knows_its_place(monkeypatch, environment, expected):
    launched(monkeypatch, environment)
    process = this_process()
    assert (process.rank, process.world_size, process.local_rank) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({"RANK": "1"}, "RANK=1, WORLD_SIZE=, LOCAL_RANK="),
        ({"WORLD_SIZE": "8"}, "RANK=, WORLD_SIZE=8"),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}, "LOCAL_RANK=3"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, '"one"; it must be a whole number'),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, '"-1"; it must be a whole number'),
        # every task of srun would take itself for alone, or for one of a launch of its own
        ({**STEP, "RANK": "0", "WORLD_SIZE": "1"}, "SLURM_PROCID=3, SLURM_NTASKS=8"),
        ({**STEP, "RANK": "1", "WORLD_SIZE": "4"}, "WORLD_SIZE=4"),
        ({**STEP, "WORLD_SIZE": "16"}, "WORLD_SIZE=16, LOCAL_RANK=, SLURM_PROCID=3"),
        ({**TASK, "SLURM_PROCID": "8"}, "SLURM_PROCID=8, SLURM_NTASKS=8"),
        ({**TASK, "SLURM_LOCALID": "5"}, "SLURM_LOCALID=5 contradict"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(monkeypatch, environment, words):
    launched(monkeypatch, environment)
    with pytest.raises(UserError) as caught:
        this_process()
    assert words in str(caught.value)


def test_a_process_alone_need_not_wait_for_others(monkeypatch):
    launched(monkeypatch, {"TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert end_together(1) == 1 and end_together(0) == 0


# --- asked to stop ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, "ended by SIGTERM: 7 turns are kept"),
        (signal.SIGUSR1, 143, "ended by SIGUSR1: 7 turns are kept"),
        (signal.SIGINT, 130, "interrupted: 7 turns are kept"),
    ],
)
def test_a_request_to_stop_ends_as_ctrl_c_does(monkeypatch, capsys, number, status, said):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]

    def main():
        try:
            signal.raise_signal(number)
            pytest.fail("went on")
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)  # the same request by another way: no second one
            raise KeyboardInterrupt("7 turns are kept") from None

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == status and capsys.readouterr().err.strip() == said
    after = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    assert after == before


def test_a_request_to_stop_that_was_swallowed_can_be_made_again(monkeypatch):
    monkeypatch.setattr("spikescore.errors.ONE_REQUEST", 0.0)

    def main():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 143


def test_what_a_program_was_told_to_ignore_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as ended:
            run_main(lambda: signal.raise_signal(signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended.value.code == 0


def test_one_with_failed_items_waits_for_the_others_under_torchrun(monkeypatch, capsys):
    """torchrun's own store stands in this process; the other one of two arrives after a while."""
    from torch.distributed import TCPStore

    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port)}
    store["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    launched(monkeypatch, {"RANK": "1", "WORLD_SIZE": "2", **store})
    before = signal.getsignal(signal.SIGTERM)
    asked = []

    def other_arrives(_):
        asked.append(True)
        assert len(asked) < 9, "waits for ever"
        if len(asked) == 3:
            agent.add("ended", 1)

    monkeypatch.setattr(runtime.time, "sleep", other_arrives)
    try:
        assert end_together(1) == 1 and len(asked) == 3
        # what the launcher sends the others then is no reason to say that they were ended
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert runtime.ALL_ENDED in capsys.readouterr().out
