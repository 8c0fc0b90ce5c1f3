"""Chat completions over plain connections: what an openai client sends, for less of the CPU.

The client's layers take over a millisecond of CPU for a call, nearly all of it for what a small
JSON reply does not need, so that one process asks some hundred times a second. A `Lane` has the
client render its request once, which goes nowhere, and then writes that head with each body to
HTTP/1.1 connections that it keeps alive. Only a reply of status 200 is read here. All else, another
status, a time-out, a lost connection, is handed to the client as what its first try has met, and
the client goes on from there: its retries, its waiting as Retry-After says, its errors.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PATH = "/chat/completions"
CROWDED = frozenset({429, 503, 529})
"""What servers say that have more calls than they can take."""

_OWN_HEADERS = {b"content-length", b"accept-encoding", b"connection", b"transfer-encoding"}
_met: ContextVar[Callable[[], Any] | None] = ContextVar("met", default=None)


class Received(NamedTuple):
    """A whole HTTP response; `headers` have lower-case names, `lasting` whether more may follow."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    lasting: bool


def read_response(data: bytes, *, ended: bool = False) -> Received | None:
    """Return the response that `data` holds, None while it is not whole.

    `ended`: no more will come. ValueError where it is no HTTP/1 response.
    """
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.split(b"\r\n")
    version, status = first.split(b" ", 2)[:2]
    if not version.startswith(b"HTTP/1."):
        raise ValueError(f"no HTTP/1 response: {first[:80]!r}")
    if status.startswith(b"1"):
        return read_response(rest, ended=ended)
    pairs = [line.partition(b":")[::2] for line in lines]
    headers = [(name.strip().lower(), value.strip()) for name, value in pairs]
    one = dict(headers)
    lasting = version == b"HTTP/1.1" and b"close" not in one.get(b"connection", b"").lower()
    if status in (b"204", b"304"):
        body: bytes | None = b""
    elif b"chunked" in one.get(b"transfer-encoding", b"").lower():
        body = _joined_chunks(rest)
    elif b"content-length" in one:
        size = int(one[b"content-length"])
        body = rest[:size] if len(rest) >= size else None
    else:
        body, lasting = (rest if ended else None), False
    return None if body is None else Received(int(status), headers, body, lasting)


def _joined_chunks(data: bytes) -> bytes | None:
    """Return the body that its chunks make up, None where the last one is not there yet."""
    chunks: list[bytes] = []
    while True:
        size, found, data = data.partition(b"\r\n")
        if not found:
            return None
        n = int(size.partition(b";")[0], 16)
        if n == 0:  # after it, an empty line ends what may follow
            return b"".join(chunks) if b"\r\n\r\n" in b"\r\n" + data else None
        if len(data) < n + 2:
            return None
        chunks.append(data[:n])
        data = data[n + 2 :]


class _Line(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._data = b""
        self._reply: asyncio.Future[Received] | None = None
        self.open = True

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def ask(self, request: bytes) -> Received:
        """Send a request and return its response; ConnectionError, TimeoutError or ValueError when
        there is none. `patience` seconds may pass without a byte.
        """
        self._reply = self._loop.create_future()
        self._transport.write(request)
        self._watch()
        try:
            reply = await self._reply
        except BaseException:  # the response might still come, and be taken for the next one
            self.close()
            raise
        finally:
            self._alarm.cancel()
        if not reply.lasting:
            self.close()
        return reply

    def close(self) -> None:
        self.open = False
        self._transport.abort()

    def _watch(self) -> None:
        self._alarm = self._loop.call_later(self._patience, self._fail, TimeoutError())

    def _fail(self, error: Exception) -> None:
        if self._reply and not self._reply.done():
            self._reply.set_exception(error)

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._look(ended=False)

    def _look(self, ended: bool) -> None:
        if self._reply is None or self._reply.done():
            self.close()  # nothing was asked: what comes is no answer
            return
        try:
            reply = read_response(self._data, ended=ended)
        except ValueError as error:
            self._fail(error)
            return
        if reply:
            self._data = b""
            self._reply.set_result(reply)
        elif not ended:
            self._alarm.cancel()
            self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._reply and not self._reply.done():
            self._look(ended=True)
            self._fail(ConnectionError("the server closed the connection without a whole reply"))


class Lane:
    """The quick way to a client's server, a context; `timeout` seconds between two bytes."""

    def __init__(self, client: AsyncOpenAI, timeout: float) -> None:
        import openai

        # httpx2, or httpx below an older openai
        name = openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]
        self._http = importlib.import_module(name)
        self._asked = client
        self._timeout = timeout
        self._lines: list[_Line] = []
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Lane:
        """Have the client render a request, which goes nowhere."""
        seen: list[Any] = []

        def keep(request: Any) -> Any:
            seen.append(request)
            return self._http.Response(200, json={})

        async with self._with_transport(self._http.MockTransport(keep)) as client:
            await client.post(PATH, body={}, cast_to=object)
        url, headers = seen[0].url, seen[0].headers.raw
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        context = self._http.create_ssl_context() if url.scheme == "https" else None
        self._address = {"host": url.host, "port": port, "ssl": context}
        lines = [b"POST " + url.raw_path + b" HTTP/1.1"]
        lines += [b": ".join(pair) for pair in headers if pair[0].lower() not in _OWN_HEADERS]
        self._head = b"\r\n".join([*lines, b"Accept-Encoding: identity", b"Content-Length: "])
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for line in self._lines:
            line.close()
        self._lines.clear()
        await self._opened.aclose()

    def _with_transport(self, transport: Any) -> AsyncOpenAI:
        import openai

        return self._asked.copy(http_client=openai.DefaultAsyncHttpxClient(transport=transport))

    @cached_property
    def _client(self) -> AsyncOpenAI:
        """The client, whose requests may meet what is handed over in place of the network."""

        class Replaying(self._http.AsyncHTTPTransport):
            async def handle_async_request(self, request: Any) -> Any:
                met = _met.get()
                _met.set(None)
                return met() if met else await super().handle_async_request(request)

        client = self._with_transport(Replaying())
        self._opened.push_async_callback(client.close)
        return client

    async def post(self, body: dict[str, Any], *, crowded: Callable[[], None]) -> Any:
        """Return the JSON of the reply; raises what the client's `post` raises, and ValueError for
        what is no JSON. `crowded` is called when the server has too many calls.
        """
        try:
            line = await self._line()
        except OSError:  # nothing was asked yet: the client has all of its tries
            return await self._client.post(PATH, body=body, cast_to=object)
        data = json.dumps(body).encode()
        try:
            reply = await line.ask(b"%s%d\r\n\r\n%s" % (self._head, len(data), data))
        except TimeoutError as error:
            crowded()
            return await self._mended(body, self._http.ReadTimeout("no reply in time"), error)
        except (ConnectionError, ValueError) as error:
            return await self._mended(body, self._http.RemoteProtocolError(str(error)), error)
        if line.open:
            self._lines.append(line)
        encoded = any(name == b"content-encoding" for name, _ in reply.headers)
        if reply.status == 200 and not encoded:
            return json.loads(reply.body)
        if reply.status in CROWDED:
            crowded()
        return await self._mended(body, reply)

    async def _line(self) -> _Line:
        """Return a connection that waits for a request; OSError where none can be had."""
        while self._lines:
            line = self._lines.pop()
            if line.open:
                return line
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            _, line = await loop.create_connection(lambda: _Line(self._timeout), **self._address)
        return line

    async def _mended(
        self, body: dict[str, Any], met: Received | Exception, cause: Exception | None = None
    ) -> Any:
        """Have the client go on from what its first try has met."""

        def replay() -> Any:
            if isinstance(met, Exception):
                raise met from cause
            return self._http.Response(met.status, headers=met.headers, content=met.body)

        _met.set(replay)
        return await self._client.post(PATH, body=body, cast_to=object)


def has_lane(client: AsyncOpenAI) -> bool:
    """Whether a `Lane` reaches this client's server as the client itself would: not through a proxy
    or an HTTP client of the user's, and with a key that stays the same.
    """
    import openai

    url = client.base_url
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return (
        type(client) is openai.AsyncOpenAI
        and type(getattr(client, "_client", None)).__name__ == "AsyncHttpxClientWrapper"
        and bool(client.api_key)
        and url.scheme in ("http", "https")
        and not (proxy and not proxy_bypass(url.host))
    )
