"""`transformers serve` on loopback: a real server with the OpenAI interface, for the tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serve(model: Path, folder: Path) -> Iterator[str]:
    """Serve a model, wait until it answers, and give the address; skip without the extra."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip('the serving extra is not installed: pip install -e ".[serving]"')
    port = closed_port()
    command = [Path(sys.executable).parent / "transformers", "serve", model]
    options = ["--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    log = folder / "log.txt"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*map(str, command), *map(str, options)],
            stdout=output,
            stderr=output,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
        try:
            url, deadline = f"http://127.0.0.1:{port}/v1", time.monotonic() + 120
            while not _completes(url, str(model)):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def _completes(url: str, model: str) -> bool:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    request = urllib.request.Request(
        f"{url}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False
