"""Many questions to a chat server at once: each distinct one asked once, ever.

The server is any with the OpenAI interface. Its client retries 429, 5xx, lost connections and
time-outs, with exponential back-off and jitter or as the server's Retry-After says. A reply that
cannot be used is asked for again a few times. What still fails is a `Reply` with its error and is
not remembered, so that running again asks exactly what failed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from spikescore.errors import UserError
from spikescore.labels.reply_cache import ReplyCache, request_key

if TYPE_CHECKING:
    from openai import AsyncOpenAI


log = logging.getLogger("spikescore")

Message = dict[str, str]
Parse = Callable[[str], object | None]

LLM_PREFIX = "llm_"
GIVE_UP_AFTER = 50  # failures in a row: the server, or the model, is not fit for the task
_ATTEMPTS = 3  # at a reply that can be used
_WORKERS_PER_CLIENT = 64  # a client looks at all its connections for each call
_PAUSE = 0.25  # seconds before the second attempt, doubled before each further one
_BACK_OFF_ROOM = 30.0  # seconds per try that the client may spend waiting to try again
_BAR_DELAY = 2.0  # seconds before a bar is worth showing


@dataclass(frozen=True)
class Reply:
    """What came back: the text, or the error why there is none; exactly one of them is not None."""

    text: str | None
    error: str | None = None


class UnusableReply(ValueError):
    """The server answered, but not with a chat completion that the parser accepts."""


class Asker:
    """Asks one model of one server, at temperature 0, at most `concurrency` calls at a time.

    `client_factory(timeout=, max_retries=)` makes an AsyncOpenAI client; it is called at once, so
    that a missing key shows before any work is done. `timeout` is in seconds, per try. `cache` is
    the file of known replies, which several askers and processes may share; None keeps none.
    `stats` counts conversations: those `asked` of the server, those `from_cache`, those
    `deduplicated` (equal to another one of the same call) and those that `failed` to get a reply.
    """

    def __init__(
        self,
        client_factory: Callable[..., AsyncOpenAI],
        model: str,
        *,
        cache: Path | None,
        concurrency: int = 64,
        timeout: float = 30.0,
        max_retries: int = 6,
    ) -> None:
        if concurrency < 1:
            raise UserError(f"the number of calls at a time is {concurrency}; give at least 1")
        self.model = model
        self.stats = dict.fromkeys(("asked", "from_cache", "deduplicated", "failed"), 0)
        self._concurrency = concurrency
        self._make_client = partial(client_factory, timeout=timeout, max_retries=max_retries)
        # the client's time-out begins anew with every byte; this one ends a reply that only drips
        self._patience = (max_retries + 1) * (timeout + _BACK_OFF_ROOM)
        self._endpoint = str(self._make_client().base_url)
        self._cache: Path | str = cache if cache is not None else ":memory:"
        ReplyCache(self._cache).close()  # a damaged file shows now, not after hours of generating

    def ask_many(
        self,
        conversations: Sequence[list[Message]],
        *,
        max_tokens: int | None = None,
        desc: str | None = None,
        parse: Parse | None = None,
    ) -> list[Reply]:
        """Return the reply to each conversation, in their order; blocks until all are there.

        `parse`, where given, returns None for a text that cannot be used. `desc` names a progress
        bar. Not to be called from a running event loop. Raises UserError when the server refuses
        the key or does not know the model: then nothing can be asked.
        """
        requests = [self._request(messages, max_tokens) for messages in conversations]
        keys = [request_key(self._endpoint, request) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        with ReplyCache(self._cache) as cache:
            known = cache.get_many(distinct)
            replies = {
                key: Reply(text) for key, text in known.items() if not parse or _fits(parse, text)
            }
            todo = [(key, request) for key, request in distinct.items() if key not in replies]
            self.stats["deduplicated"] += len(requests) - len(distinct)
            self.stats["from_cache"] += len(replies)
            if todo:
                replies |= self._ask_all(todo, cache, parse, desc)
        return [replies[key] for key in keys]

    def _request(self, messages: list[Message], max_tokens: int | None) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": 0}
        return request | ({} if max_tokens is None else {"max_tokens": max_tokens})

    def _ask_all(
        self,
        todo: list[tuple[str, dict[str, Any]]],
        cache: ReplyCache,
        parse: Parse | None,
        desc: str | None,
    ) -> dict[str, Reply]:
        bar = tqdm(total=len(todo), desc=desc, disable=desc is None, delay=_BAR_DELAY, leave=False)
        with bar:
            batch = _Batch(iter(todo), cache, parse, bar)
            try:
                asyncio.run(self._run(batch, min(self._concurrency, len(todo))))
            except ExceptionGroup as several:  # of the workers, all but the first were cancelled
                raise several.exceptions[0] from several
            finally:
                self.stats["asked"] += batch.n_asked
                self.stats["failed"] += sum(one.error is not None for one in batch.replies.values())
        return batch.replies

    async def _run(self, batch: _Batch, n_workers: int) -> None:
        async with AsyncExitStack() as clients, asyncio.TaskGroup() as workers:
            for number in range(n_workers):
                if number % _WORKERS_PER_CLIENT == 0:
                    client = await clients.enter_async_context(self._make_client())
                workers.create_task(self._work(client, batch))

    async def _work(self, client: AsyncOpenAI, batch: _Batch) -> None:
        """Ask one request after the other; all workers take from the same supply."""
        for key, request in batch.waiting:
            if batch.failed_in_a_row >= GIVE_UP_AFTER:
                batch.give_up(key)
                continue
            batch.n_asked += 1
            batch.take(key, await self._ask(client, request, batch.parse))

    async def _ask(
        self, client: AsyncOpenAI, request: dict[str, Any], parse: Parse | None
    ) -> Reply:
        import openai
        from openai.types.chat import ChatCompletion

        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_PAUSE * 2 ** (attempt - 1) * random.uniform(1, 1.5))
            try:
                async with asyncio.timeout(self._patience):
                    # as chat.completions.create, less its walk through the messages, half its time
                    completion = await client.post(
                        "/chat/completions", body=request, cast_to=ChatCompletion
                    )
                return Reply(_text(completion, parse))
            except (openai.AuthenticationError, openai.NotFoundError) as error:
                raise UserError(self._refusal(error)) from error
            except TimeoutError:
                return Reply(None, f"no whole reply within {self._patience:g} s")
            except openai.APIResponseValidationError as error:
                reply = Reply(None, _brief(error))
            except openai.OpenAIError as error:
                return Reply(None, _brief(error))
            except ValueError as error:  # of ours, or JSON that is none
                reply = Reply(None, _brief(error))
        return reply

    def _refusal(self, error: Exception) -> str:
        return (
            f'server "{self._endpoint}" refuses to answer for model "{self.model}" '
            f"({_brief(error)}); check OPENAI_API_KEY, the model's name and OPENAI_BASE_URL, which "
            "usually ends in /v1"
        )


@dataclass
class _Batch:
    """What one call of `ask_many` still has to ask and what has come back."""

    waiting: Iterable[tuple[str, dict[str, Any]]]
    cache: ReplyCache
    parse: Parse | None
    bar: tqdm

    def __post_init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.n_asked = self.failed_in_a_row = 0
        self.last_error: str | None = None

    def take(self, key: str, reply: Reply) -> None:
        """Keep a reply, on disk at once when it is a good one."""
        self.replies[key] = reply
        self.bar.update()
        if reply.text is not None:
            self.failed_in_a_row = 0
            self.cache.put(key, reply.text)
            return
        self.failed_in_a_row += 1
        self.last_error = reply.error
        if self.failed_in_a_row == GIVE_UP_AFTER:
            log.error(
                "%d calls in a row failed, giving up; the last: %s", GIVE_UP_AFTER, reply.error
            )

    def give_up(self, key: str) -> None:
        self.replies[key] = Reply(None, f"not asked after too many failures: {self.last_error}")
        self.bar.update()


def _text(completion: Any, parse: Parse | None) -> str:
    """Return the text of a chat completion; UnusableReply when it has none that the parser
    accepts.
    """
    try:
        text = completion.choices[0].message.content
    except (AttributeError, IndexError, TypeError) as error:
        raise UnusableReply(f"no chat completion: {str(completion)[:200]!r}") from error
    if not isinstance(text, str) or not text.strip():
        raise UnusableReply("the reply has no text")
    if parse and not _fits(parse, text):
        raise UnusableReply(f"the reply is not of the form asked for: {text[:200]!r}")
    return text


def _fits(parse: Parse, text: str) -> bool:
    return parse(text) is not None


def _brief(error: Exception) -> str:
    """One line: what kind of error, and the server's own words where it said some."""
    response = getattr(error, "response", None)
    text = f"status {response.status_code}: {response.text}" if response is not None else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}"


def make_asker(
    name: str,
    *,
    client_factory: Callable[..., AsyncOpenAI] | None,
    cache: Path | None,
    concurrency: int,
    timeout: float,
) -> Asker:
    """Return the asker of the model in "llm_<model>"; UserError when no model is named or there is
    no client.
    """
    model = name.removeprefix(LLM_PREFIX).strip()
    if not model:
        raise UserError(f'"{name}" names no model; give for example llm_gpt-4o-mini')
    if client_factory is None:
        raise UserError(f'"{name}" needs a client: set it up in utils.py')
    return Asker(client_factory, model, cache=cache, concurrency=concurrency, timeout=timeout)


def warn_of_failures(what: str, replies: Sequence[Reply]) -> None:
    """Log how many replies are missing, and the first reason."""
    errors = [reply.error for reply in replies if reply.error is not None]
    if errors:
        log.warning(
            "%s: %d of %d calls failed (run again to ask only these); the first: %s",
            what, len(errors), len(replies), errors[0],
        )  # fmt: skip
