"""Questions to a chat server, many at once, each distinct one asked once, ever.

The server is any with the OpenAI interface. Its client, whose quick side is `wire`, retries 429,
5xx, lost connections and time-outs, with exponential back-off and jitter or as the server's
Retry-After says. A reply that cannot be used is asked for again a few times. What still fails is a
`Reply` with its error and is not remembered, so that running again asks exactly what failed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import re
import resource
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikescore.errors import UserError, redacted
from spikescore.labels.reply_cache import ReplyCache, request_key
from spikescore.labels.statements import plain_answer
from spikescore.labels.wire import PATH, Lane, has_lane
from spikescore.runtime import EventLoop, brief, without_refused

if TYPE_CHECKING:
    from openai import AsyncOpenAI


log = logging.getLogger("spikescore")

Message = dict[str, str]
Parse = Callable[[str], object | None]

LLM_PREFIX = "llm_"
DEFAULT_MODEL = "gpt-4o-mini"
GIVE_UP_AFTER = 50  # failures in a row: the server, or the model, is not fit for the task
REST = 60.0  # seconds after which a server that was given up is tried again
CHECK_SECONDS = 5.0  # for a first answer of a server; it may be slow, and is then believed
AT_ONCE = 512  # calls at a time that a server is put to, if it proves quick enough
_AT_FIRST = 128
_SETTINGS = {"temperature": 0}
_ATTEMPTS = 3  # at a reply that can be used
_CALLS_PER_CLIENT = 64  # where there is no lane: a client looks at all its connections each time
_PAUSE = 0.25  # seconds before the second attempt, doubled before each further one
_BACK_OFF_ROOM = 30.0  # seconds per try that the client may spend waiting to try again


@dataclass(frozen=True)
class Reply:
    """What came back: the text, or the error why there is none; exactly one of them is not None."""

    text: str | None
    error: str | None = None


class Slots:
    """How many calls may be under way: few at first, up to `most` while replies are quick.

    A reply that came within `quick` seconds makes room for two more calls. A server that is crowded
    halves the room, after which it grows by one with each round, as TCP does (RFC 5681): a server's
    limits are found in use, and one that is slow is not buried in calls that would all time out.
    """

    def __init__(self, most: int, quick: float) -> None:
        self._most = most
        self._quick = quick
        self._size = self._free = min(_AT_FIRST, most)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._debt = 0  # slots in use that are not to be free again
        self._known, self._credit = math.inf, 0.0  # a size that was too large; part of a slot
        self._cut = 0.0

    async def __aenter__(self) -> float:
        """Take a slot; return when."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was given the slot already
                    self._give()
                raise
        return time.monotonic()

    async def __aexit__(self, *exc_info: object) -> None:
        self._give()

    def _give(self) -> None:
        if self._debt:
            self._debt -= 1
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def replied(self, since: float) -> None:
        """A reply came to a call that began at `since`."""
        if time.monotonic() - since > self._quick:
            return
        self._credit += 2 if self._size < self._known else 1 / self._size
        while self._credit >= 1 and self._size < self._most:
            self._credit -= 1
            self._size += 1
            self._give()
        self._credit %= 1

    def crowded(self, since: float) -> None:
        """The server had too many calls at one that began at `since`: once for all of that time."""
        if since < self._cut:
            return
        self._cut = time.monotonic()
        less = self._size // 2
        self._size -= less
        unused = min(self._free, less)
        self._free -= unused
        self._debt += less - unused
        self._known = self._size


class UnusableReply(ValueError):
    """The server answered, but not with a chat completion that the parser accepts."""


class Asker:
    """Asks one model of one server, at temperature 0, at most `concurrency` calls at a time; fewer
    where the server is slow or refuses so many (see `Slots`).

    `client_factory(timeout=, max_retries=)` makes an AsyncOpenAI client; it is called at once, so
    that a missing key shows before any work is done. `timeout` is in seconds, per try. `cache` is
    the file of known replies, which several askers and processes may share; None keeps none.
    `stats` counts conversations: those `asked` of the server, those `from_cache`, those
    `deduplicated` (equal to another one under way) and those that `failed` to get a reply.

    `ask` is for coroutines, between `__aenter__` and `__aexit__` (see `EventLoop.open`), all on one
    loop, on which it may be entered several times.
    """

    def __init__(
        self,
        client_factory: Callable[..., AsyncOpenAI],
        model: str,
        *,
        cache: Path | None,
        concurrency: int = AT_ONCE,
        timeout: float = 30.0,
        max_retries: int = 6,
    ) -> None:
        if concurrency < 1:
            raise UserError(f"the number of calls at a time is {concurrency}; give at least 1")
        self.model = model
        self.stats = dict.fromkeys(("asked", "from_cache", "deduplicated", "failed"), 0)
        # each call has a connection, and each connection is an open file
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._concurrency = min(concurrency, max(1, files // 2)) if files > 0 else concurrency
        self._timeout = timeout
        self._factory = client_factory
        self._make_client = partial(client_factory, timeout=timeout, max_retries=max_retries)
        # the client's time-out begins anew with every byte; this one ends a reply that only drips
        self._patience = (max_retries + 1) * (timeout + _BACK_OFF_ROOM)
        self._client = self._make_client()
        self._endpoint = redacted(str(self._client.base_url))
        self._n_entered = 0
        self._cache_file: Path | str = cache if cache is not None else ":memory:"
        if cache is not None and Path(cache).exists():
            ReplyCache(cache).close()  # a damaged file shows now, not after hours of generating

    def check(self) -> None:
        """Ask for the server's list of models, which costs nothing: UserError when it refuses the
        key, or nobody is there and no reply is known from before. Whatever else it says is no
        fault: not every server keeps such a list.
        """
        with EventLoop() as loop:
            client = loop.open(self._factory(timeout=CHECK_SECONDS, max_retries=1))
            loop.run(self._check(client))

    async def _check(self, client: AsyncOpenAI) -> None:
        import openai

        try:
            await client.get("/models", cast_to=object)
        except openai.APITimeoutError:
            pass
        except openai.APIConnectionError as error:
            fault = (
                f'server "{self._endpoint}" cannot be reached ({brief(error.__cause__ or error)}); '
                "start it, or set OPENAI_BASE_URL to where it listens"
            )
            if not Path(self._cache_file).exists():
                raise UserError(fault) from error
            log.warning("%s; what it said before is known", fault)
        except openai.AuthenticationError as error:
            raise UserError(self._refusal(error)) from error
        except (openai.OpenAIError, ValueError):
            pass

    async def __aenter__(self) -> Asker:
        self._n_entered += 1
        if self._n_entered > 1:
            return self
        async with AsyncExitStack() as opened:
            self._cache = opened.enter_context(ReplyCache(self._cache_file))
            self._post = await self._way(opened)
            self._opened = opened.pop_all()
        self._slots = Slots(self._concurrency, quick=self._timeout / 4)
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._failed_in_a_row, self._last_error, self._rest_until = 0, "", 0.0
        self._options = _SETTINGS
        self._refused: UserError | None = None
        return self

    async def _way(self, opened: AsyncExitStack) -> Callable[..., Awaitable[Any]]:
        """Return what posts a request: a lane where the client has one, else the client itself."""
        if has_lane(self._client):
            lane = await opened.enter_async_context(Lane(self._client, self._timeout))
            return lane.post
        clients = [
            await opened.enter_async_context(self._make_client())
            for _ in range(math.ceil(self._concurrency / _CALLS_PER_CLIENT))
        ]
        turns = itertools.cycle(clients)

        async def post(body: dict[str, Any], *, crowded: Callable[[], None]) -> Any:
            # as chat.completions.create, less its walk through the messages, half its time
            return await next(turns).post(PATH, body=body, cast_to=object)

        return post

    async def __aexit__(self, *exc_info: object) -> None:
        self._n_entered -= 1
        if not self._n_entered:
            await self._opened.aclose()

    async def ask(self, messages: list[Message], parse: Parse | None = None) -> Reply:
        """Return the reply to one conversation; a good one is on disk by then.

        `parse`, where given, returns None for a text that cannot be used. UserError when the server
        refuses the key or does not know the model: then nothing can be asked.
        """
        request = {"model": self.model, "messages": messages}
        key = request_key(self._endpoint, {**request, **_SETTINGS})
        task = self._under_way.get(key)
        if task:
            self.stats["deduplicated"] += 1
        else:
            known = self._cache.get(key)
            if known is not None and _fits(parse, known):
                self.stats["from_cache"] += 1
                return Reply(known)
            task = asyncio.create_task(self._fresh(key, request, parse))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key))
        return await asyncio.shield(task)

    async def _fresh(self, key: str, request: dict[str, Any], parse: Parse | None) -> Reply:
        """Ask the server and keep the reply, on disk at once when it is a good one."""
        async with self._slots as since:
            reply = await self._ask(request, parse, partial(self._slots.crowded, since))
        if reply.text is not None:
            self._slots.replied(since)
            self._failed_in_a_row = 0
            self._cache.put(key, reply.text)
            return reply
        self.stats["failed"] += 1
        self._failed_in_a_row += 1
        self._last_error = reply.error or ""
        if self._failed_in_a_row == GIVE_UP_AFTER:
            log.error(
                "%d calls in a row failed, giving up; the last: %s", GIVE_UP_AFTER, reply.error
            )
            self._rest_until = time.monotonic() + REST
        return reply

    async def _ask(
        self, request: dict[str, Any], parse: Parse | None, crowded: Callable[[], None]
    ) -> Reply:
        import openai

        if self._refused:
            raise self._refused
        if time.monotonic() < self._rest_until:
            return Reply(None, f"not asked after too many failures: {self._last_error}")
        self.stats["asked"] += 1
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_PAUSE * 2 ** (attempt - 1) * random.uniform(1, 1.5))
            try:
                async with asyncio.timeout(self._patience):
                    completion = await self._post({**request, **self._options}, crowded=crowded)
                return Reply(_text(completion, parse))
            except (openai.AuthenticationError, openai.NotFoundError) as error:
                self._refused = UserError(self._refusal(error))
                raise self._refused from error
            except TimeoutError:
                return Reply(None, f"no whole reply within {self._patience:g} s")
            except openai.APIResponseValidationError as error:
                reply = Reply(None, brief(error))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                reply = Reply(None, brief(error))
                options = without_refused(request | self._options, error)
                if options is None:
                    return reply
                self._options = {name: options[name] for name in options.keys() - request.keys()}
                log.info("the server refuses a setting, so calls go without it: %s", reply.error)
            except openai.OpenAIError as error:
                return Reply(None, brief(error))
            except ValueError as error:  # of ours, or JSON that is none
                reply = Reply(None, brief(error))
        return reply

    def _refusal(self, error: Exception) -> str:
        return (
            f'server "{self._endpoint}" refuses to answer for model "{self.model}" '
            f"({brief(error)}); check OPENAI_API_KEY, the model's name and OPENAI_BASE_URL, which "
            "usually ends in /v1"
        )


def _text(completion: Any, parse: Parse | None) -> str:
    """Return the text of a chat completion; UnusableReply if the parser accepts none."""
    try:
        text = completion["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        shown = redacted(str(completion))[:200]
        raise UnusableReply(f"no chat completion: {shown!r}") from error
    if not isinstance(text, str) or not text.strip():
        raise UnusableReply("the reply has no text")
    if not _fits(parse, text):
        raise UnusableReply(f"the reply is not of the form asked for: {text[:200]!r}")
    return text


def _fits(parse: Parse | None, text: str) -> bool:
    return parse is None or parse(text) is not None


@lru_cache(maxsize=1024)  # judges say the same few lines again and again
def read_verdict(reply: str, words: tuple[str, ...]) -> str | None:
    """Return which of the words a reply gives as "VERDICT: word" or stands for alone; None where it
    gives none, or two.

    A reasoning model's verdict is what it says after its thoughts, where a line of its own counts
    before what is only mentioned; a thought that was cut off is none.
    """
    text = plain_answer(reply)
    any_word = "|".join(sorted(words, key=len, reverse=True))
    if bare := re.fullmatch(rf"\W*({any_word})\W*", text, re.IGNORECASE):
        return bare.group(1).upper()
    named = list(re.finditer(r"\bVERDICT\b[^\n]*", text, re.IGNORECASE))
    form = re.compile(rf"VERDICT\W*({any_word})\b(?![^\n]*\b(?:{any_word})\b)", re.IGNORECASE)
    alone = re.compile(rf"^[^\w\n]*{form.pattern}[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
    lines = list(alone.finditer(text))
    if lines and named[-1].start() > lines[-1].end():
        return None
    found = lines or [match for one in named if (match := form.match(one.group()))]
    verdicts = {match.group(1).upper() for match in found}
    return verdicts.pop() if len(verdicts) == 1 and (lines or len(found) == len(named)) else None


def make_asker(
    name: str,
    *,
    client_factory: Callable[..., AsyncOpenAI] | None = None,
    cache: Path | None = None,
    askers: dict[str, Asker] | None = None,
    **options: Any,
) -> Asker:
    """Return the asker of the model in "llm_<model>" ("llm" for the default one); `options` are the
    Asker's. `askers` keeps those of one server, so that who asks the same model shares its slots.
    UserError when no model is named, there is no client, or its server is not there.
    """
    askers = {} if askers is None else askers
    model = DEFAULT_MODEL if name == "llm" else name.removeprefix(LLM_PREFIX).strip()
    if not model:
        raise UserError(f'"{name}" names no model; give for example llm_{DEFAULT_MODEL}')
    if client_factory is None:
        raise UserError(f'"{name}" needs a client: set it up in utils.py')
    if model not in askers:
        asker = Asker(client_factory, model, cache=cache, **options)
        asker.check()
        askers[model] = asker
    return askers[model]


def warn_of_failures(what: str, errors: Sequence[str], total: int) -> None:
    """Log how many judgements of `total` have failed, and the first reason."""
    if errors:
        log.warning(
            "%s: %d of %d failed (run again to ask only these); the first: %s",
            what, len(errors), total, errors[0],
        )  # fmt: skip
