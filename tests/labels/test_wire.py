"""Plain connections: responses in all forms, and requests equal to the client's own."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from functools import partial

import openai
import pytest

import utils
from spikescore.labels.chat_server import Reply
from spikescore.labels.wire import PATH, Lane, has_lane, read_response
from tests.helpers.fault_server import FaultyServer, WaitingAsker, client, completion
from tests.helpers.running import LIMIT

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("data", "body", "lasting"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", b"hello", True),
        (OK + b"content-length:0\r\n\r\n", b"", True),
        (OK + b"Content-Length: 5\r\nConnection: Close\r\n\r\nhello", b"hello", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n", b"hello",
         True),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nA\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\nT: 1\r\n\r\n",
         b"0\r\n\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi", b"hi", True),
    ],
)  # fmt: skip
def test_a_response_is_read_when_it_is_whole_and_not_before(data, body, lasting) -> None:
    assert all(read_response(data[:n]) is None for n in range(len(data)))
    found = read_response(data)
    assert (found.status, found.body, found.lasting) == (200, body, lasting)


def test_other_responses() -> None:
    open_ended = OK + b"\r\nhello"
    assert read_response(open_ended) is None
    assert read_response(open_ended, ended=True).body == b"hello"
    assert read_response(b"HTTP/1.1 204 No Content\r\n\r\n").body == b""
    assert read_response(b"HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n").status == 503
    for noise in (b"SSH-2.0-x y\r\n\r\n", OK + b"Content-Length: x\r\n\r\n", b"hello\r\n\r\n"):
        with pytest.raises(ValueError):
            read_response(noise)


def talk(text: str = "a") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def echo(body, _=None):
    return completion(f"you said {body['messages'][-1]['content']}")


def never() -> None:
    raise AssertionError("nothing is crowded here")


def test_a_lane_sends_what_the_client_sends_on_connections_that_stay(monkeypatch) -> None:
    body = {"model": "m", "messages": talk("é \ud83d"[:1]), "temperature": 0}
    with FaultyServer(echo) as server:
        address = server.url.replace("//", "//user:pass@") + "?version=1"
        monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-test")
        monkeypatch.setenv("OPENAI_ORG_ID", "org")
        own = openai.AsyncOpenAI(base_url=address, default_headers={"X-Mine": "1"}, timeout=600.0)
        assert has_lane(own)

        async def both():
            async with Lane(own, 600.0) as lane:
                found = [await lane.post(body, crowded=never) for _ in range(5)]
            return [*found, await own.post(PATH, body=body, cast_to=object)]

        replies = asyncio.run(both())
        assert len(server.connections) == 2  # the lane's, and the client's
    assert all(reply == replies[0] for reply in replies) and len(replies) == 6
    assert all(one == body for one in server.bodies)
    hop = {"accept-encoding", "content-length", "connection"}
    sent = [{k: v for k, v in one.items() if k not in hop} for one in server.headers]
    assert all(one == sent[-1] for one in sent) and sent[0]["x-mine"] == "1"


def test_what_has_no_lane(monkeypatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://example.invalid/v1")
    make = partial(utils.make_client, timeout=1.0, max_retries=0)
    assert has_lane(make())
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    assert not has_lane(make())
    monkeypatch.setenv("no_proxy", "example.invalid")
    assert has_lane(make())

    async def key() -> str:
        return "fresh"

    class Own(openai.AsyncOpenAI):
        pass

    others = [
        openai.AsyncOpenAI(http_client=openai.DefaultAsyncHttpxClient()),
        openai.AsyncOpenAI(api_key=key),
        Own(),
    ]
    assert not any(map(has_lane, others))


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"], ids=["silent", "told"])
def test_a_connection_that_the_server_closes_costs_no_reply(last) -> None:
    """A server that gives one reply a connection, and says so or does not."""
    data = completion("hello")[2].encode()
    closed = []

    def serve(listener) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                request = b""
                while not request.endswith(b"}") and (more := connection.recv(65536)):
                    request += more
                connection.sendall(OK + last + b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
            closed.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        asker = WaitingAsker(partial(client, url), "m", cache=None, concurrency=1, timeout=LIMIT)
        replies = asker.ask_many([talk(str(n)) for n in range(4)])
        listener.shutdown(socket.SHUT_RDWR)
    assert replies == [Reply("hello")] * 4
    assert len(closed) == 4 if last else len(closed) >= 4  # what was not told is tried, and retried


def test_a_packed_reply_and_one_on_the_way_when_the_work_ends() -> None:
    text = completion("hello")[2]

    def packed(body, _):
        return 200, {"Content-Encoding": "gzip"}, gzip.compress(text.encode()).decode("latin-1")

    class Latin(str):
        def encode(self, *_):
            return super().encode("latin-1")

    with FaultyServer(lambda *given: (*packed(*given)[:2], Latin(packed(*given)[2]))) as server:
        asker = WaitingAsker(partial(client, server.url), "m", cache=None)
        assert asker.ask_many([talk()]) == [Reply("hello")]
        assert len(server.bodies) == 1 and json.loads(text)["choices"]
