"""Whatever a test starts is gone after it, children that it left behind and all."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.running import LIMIT, ROOT, ended_after, run, start, wait_until

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(7200)"])
print(child.pid, flush=True)
{then}
"""
STARTS = "from tests.helpers.running import start; import sys, time\n"


def runs(pid: int) -> bool:
    """True while a process is there and has not ended (a zombie has)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


needs_proc = pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are read in /proc")


@needs_proc
@pytest.mark.parametrize("then", ["time.sleep(7200)", "sys.exit()"])
def test_a_failing_test_leaves_no_child(then: str) -> None:
    with pytest.raises(KeyError), ended_after():
        process = start([sys.executable, "-c", PARENT.format(then=then)])
        child = int(process.stdout.readline())
        assert runs(child)
        raise KeyError
    wait_until(lambda: not runs(child) and not runs(process.pid))


@needs_proc
def test_killing_the_tests_themselves_leaves_no_child() -> None:
    inner = PARENT.format(then="time.sleep(7200)")
    code = f"{STARTS}p = start([sys.executable, '-c', {inner!r}])\n"
    code += "print(p.pid, p.stdout.readline(), flush=True); time.sleep(7200)"
    tests = start([sys.executable, "-c", code])
    pids = [int(pid) for pid in tests.stdout.readline().split()]
    assert len(pids) == 2 and all(map(runs, pids))
    os.kill(tests.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(runs, pids)))


SCRIPT = """
import json, os, sys
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace")
own = sorted(name for name in sys.modules if name.split(".")[0] in ("spikescore", "tests"))
print(json.dumps([__name__, __file__, sys.argv, sys.path[0], os.getcwd(), os.environ["OWN"], own]))
print(os.getpid() == os.getpgrp(), sys.stdin.read(), __builtins__.__name__, file=sys.stderr)
{end}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("", 0), ("sys.exit(3)", 3), ("1 / 0", 1), ("os.kill(os.getpid(), 15)", -15),
     ("raise SystemExit('no')", 1), ("os._exit(4)", 4)],
)  # fmt: skip
def test_a_forked_script_runs_as_in_a_python_of_its_own(tmp_path, end: str, status: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(end=end))
    command, options = [sys.executable, str(script), "é"], {"env": {"OWN": "x"}, "cwd": tmp_path}
    forked = run(command, **options)
    fresh = run(command, stdin=subprocess.DEVNULL, **options)
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout)
    assert forked.returncode == status and forked.stderr.startswith("True  builtins\n")
    assert forked.stderr.splitlines()[-1] == fresh.stderr.splitlines()[-1]


def test_no_test_starts_a_process_of_its_own() -> None:
    """A process that no helper started would not be ended."""
    words = ("subprocess.run(", "subprocess.Popen(", "os.system(", "check_output(", "check_call(")
    allowed = {"running.py", Path(__file__).name}
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for word in words
        if path.name not in allowed and word in path.read_text(encoding="utf-8")
    ]
    assert found == []
    assert LIMIT >= 1800
