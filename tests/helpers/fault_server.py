"""A chat server on loopback that misbehaves as told, for the tests of what calls one."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import AsyncOpenAI

from spikescore.labels.chat_server import Asker, Reply
from spikescore.runtime import EventLoop


def client(url, *, timeout, max_retries):
    """A client of the server at this address; with the address bound, a client factory."""
    return AsyncOpenAI(base_url=url, api_key="none", timeout=timeout, max_retries=max_retries)


def completion(text, ending="stop"):
    """A reply of status 200 with this answer."""
    choice = {"index": 0, "finish_reason": ending, "message": {"role": "assistant"}}
    choice["message"]["content"] = text
    return 200, {}, json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]})


def ab(body) -> tuple[str, str]:
    """The answers A and B of a request for an entailment."""
    return re.search(
        r"<A>\n(.*)\n</A>\n\n<B>\n(.*)\n</B>", body["messages"][-1]["content"]
    ).groups()


class FaultyServer:
    """Answers chat completions on loopback with what `reply(body, number of the request)` gives:
    (status, headers, text), and a question for its models with `models`. Keeps the bodies, times,
    headers and keys of all chat requests, and counts the connections that brought them.
    """

    def __init__(self, reply, models=(404, {}, "{}")) -> None:
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.keys: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.connections: set[tuple[str, int]] = set()
        self.now = self.most = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.times.append(time.monotonic())
                    outer.keys.append(self.headers["Authorization"])
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    outer.connections.add(self.client_address)
                    number = len(outer.bodies)
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                answer = reply(body, number)
                with lock:
                    outer.now -= 1
                self.answer(*answer)

            def do_GET(self):
                self.answer(*models)

            def answer(self, status, headers, text):
                data = text.encode()
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # the client has given up waiting

            def log_message(self, *arguments):
                pass

        class Listener(ThreadingHTTPServer):
            request_queue_size = 256  # else a burst of connections waits a second for the system

        self._server = Listener(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FaultyServer:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


RATES = {"429": 0.20, "500": 0.10, "slow": 0.10, "garbage": 0.05}


def failing(answer, *, seed: int, rates=RATES, slow: float = 0.7):
    """Wrap `answer(body) -> text`: each try of a request may fail instead, at these rates.

    What happens to the n-th try of a request depends on the seed, the request and n alone, however
    the requests interleave. `slow` is how long a time-out lasts, in seconds. `fault` of the
    returned function says what a try met, "" for nothing.
    """
    tries: Counter[str] = Counter()
    lock = threading.Lock()

    def fault(body, number: int) -> str:
        point = random.Random(f"{seed}|{json.dumps(body, sort_keys=True)}|{number}").random()
        for name, rate in rates.items():
            if point < rate:
                return name
            point -= rate
        return ""

    def reply(body, _):
        key = json.dumps(body, sort_keys=True)
        with lock:
            tries[key] += 1
            met = fault(body, tries[key])
        if met in ("429", "500"):
            return int(met), {"retry-after-ms": "5"}, json.dumps({"error": {"message": "busy"}})
        if met == "slow":
            time.sleep(slow)
        if met == "garbage":
            return completion("I would rather talk about the weather.")
        return completion(answer(body))

    reply.fault = fault
    return reply


class WaitingAsker(Asker):
    """An asker that several conversations can be given to, and that waits for the replies."""

    def ask_many(self, conversations, *, parse=None) -> list[Reply]:
        async def all_of_them() -> list[Reply]:
            return await asyncio.gather(*(self.ask(one, parse) for one in conversations))

        with EventLoop() as loop:
            loop.open(self)
            return loop.run(all_of_them())
