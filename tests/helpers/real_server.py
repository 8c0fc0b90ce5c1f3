"""`transformers serve` on loopback: a real server with the OpenAI interface, for the tests."""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.running import end, start, wait_until


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
        process = start(
            [*command, *options], stdout=output, stderr=output, env={"OMP_NUM_THREADS": "1"}
        )
        try:
            url = f"http://127.0.0.1:{port}/v1"
            wait_until(lambda: process.poll() is not None or _completes(url, str(model)))
            assert process.poll() is None, log.read_text()
            yield url
        finally:
            end(process)


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
