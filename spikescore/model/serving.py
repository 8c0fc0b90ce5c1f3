"""Dialogues held by any server with the OpenAI interface (vLLM, SGLang, TGI, `transformers serve`).

The server scales out; here many dialogues wait for it at once, each with one request on its way.
What comes back are transcripts, texts without states, which the local model reads (`reading`), or
whose states the server gives as well (`served_states`).

A request holds only what such servers know: model, messages, temperature, top_p, max_tokens and
seed. `chat_template_kwargs` is added where the local chat template looks at `enable_thinking` or at
a date, because the server's default would then decide; other servers, which may refuse it, never
get it.
The seed is a function of (sampling.seed, id, turn); whether equal seeds give equal answers is up to
the server.

Servers add settings of the checkpoint's generation_config that no request can take back: start vLLM
with `--generation-config vllm` for none of them; `transformers serve` decodes greedily, whatever
the temperature, unless the checkpoint says `"do_sample": true`. `server_probe` asks what differs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from spikescore.errors import Refused, UserError, redacted
from spikescore.model.chat import ChatFormat, Message, Rendering
from spikescore.model.reading import Exchange, Transcript, turns_of
from spikescore.model.sampling import Sampling
from spikescore.model.served_states import ServedStates
from spikescore.model.server_probe import Probe, probe
from spikescore.model.turns import Limits
from spikescore.runtime import EventLoop, brief, derived_seed, without_refused

if TYPE_CHECKING:
    from openai import AsyncOpenAI


T = TypeVar("T")
log = logging.getLogger("spikescore")

MAX_RETRIES = 8  # of the client: 429, 5xx and time-outs, with back-off or the server's Retry-After
PROBE_SECONDS = 300  # a server may load its model at the first request
STUCK_SECONDS = 3600.0  # without an answer to any request, or to one: something hangs
READ_SHARE = 0.9  # of a prompt's tokens that servers count at least
COUNTED = 2  # tokens by which servers' counts of an answer may differ
_ENDS = (
    "", "none", "null", "stop", "eos", "eos_token", "end", "end_turn", "end_of_text", "stop_token",
    "stop_sequence", "complete", "completed", "finished", "done",
)  # fmt: skip
_CUT = re.compile("length|max.*token|token.*limit")
_FAULTS = (
    "content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "error",
    "abort", "aborted", "cancelled", "tool_calls", "function_call", "network_error", "sensitive",
    "insufficient_system_resource", "timeout", "time_limit", "content_filtered",
    "guardrail_intervened",
)  # fmt: skip
_FULL = re.compile(
    r"context|too (?:long|large|many tokens)|(?:token|length).*(?:exceed|maximum|limit|<=)"
    r"|(?:exceed|maximum|max_\w+|reduce|longer).*(?:token|length)"
    r"|(?:(?:less|fewer) than|up to) \d+ (?:\w+ )?tokens|input[_ ]length|kv.cache"
    r"|length\b.{0,40}(?: > |greater|less than)",
    re.IGNORECASE | re.DOTALL,
)
"""How servers say that prompt and answer are more than they hold."""
_FULL_WITHIN = re.compile("context (?:size|length|window)", re.IGNORECASE)
"""How those say it that take it for a fault of their own (llama.cpp)."""


class Spoken(Protocol):
    """What a server can hold: a conversation in messages, told each answer as text.

    One whose first answer is given says so by a `first_turn` of 2.
    """

    item_id: str
    messages: list[Message]

    def answered(self, text: str, n_tokens: int) -> bool:
        """Take the answer; True when `messages` now ends in another prompt."""


@dataclass(frozen=True)
class Server:
    """Where the requests go; `client_factory(timeout=, max_retries=)` takes seconds per call."""

    url: str  # for messages
    model: str
    client_factory: Callable[..., AsyncOpenAI]
    max_in_flight: int


@dataclass(eq=False)
class ServedGenerator:
    """Holds conversations on a server, `in_flight` just now; with `states` it reads them too."""

    server: Server
    chat: ChatFormat
    sampling: Sampling
    states: ServedStates | None = None

    def __post_init__(self) -> None:
        self.probe = Probe()
        self.longest = 0  # tokens that the server holds of a dialogue; 0: not known
        self.in_flight = 0
        self._time = _SharedTime()
        self._refused: dict[str, str | None] = {}  # parameters, and their other names
        self._has_warned = False  # of a prompt that it cut
        self._cap = 0  # most tokens of an answer, where the server allows fewer than asked for
        options = self.chat.server_options
        self._extra: dict[str, Any] = {"chat_template_kwargs": options} if options else {}

    def check(self) -> None:
        """Ask for one token; UserError when the server is not there, or refuses the model or the
        key. What makes its answers differ from the local model's is warned of, and an error where
        it is to give the states, as is a server that cannot.
        """
        with EventLoop() as loop:
            client = loop.open(self.server.client_factory(timeout=PROBE_SECONDS, max_retries=1))
            loop.run(self._check(client))
            loop.run(self._compare(client))

    async def _check(self, client: AsyncOpenAI) -> None:
        import openai

        where = f'server "{self.server.url}"'
        messages = [{"role": "user", "content": "Hello"}]
        try:
            _read(await self._request(client, messages, max_tokens=1, seed=0))
        except openai.APITimeoutError as error:
            raise UserError(f"{where} gave no answer within {PROBE_SECONDS} s") from error
        except openai.APIConnectionError as error:
            raise UserError(
                f"{where} cannot be reached ({error.__cause__ or error}); start it, or set "
                "server_url (or the environment's OPENAI_BASE_URL) to where it listens"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(f"{where} refused the key: {brief(error)}") from error
        except openai.APIStatusError as error:
            hint = "; server_url usually ends in /v1" if error.status_code == 404 else ""
            raise UserError(
                f'{where} refused a first request for server_model "{self.server.model}": '
                f"{brief(error)}{hint}"
            ) from error
        except (openai.OpenAIError, ValueError) as error:
            raise UserError(
                f"{where} does not answer as a chat server does ({brief(error)}); "
                "server_url usually ends in /v1"
            ) from error

    async def _compare(self, client: AsyncOpenAI) -> None:
        """Hold the server against what is known here of the model, and open its states."""
        import openai

        async def ask(messages: Sequence[Message], options: dict[str, Any]) -> dict | None:
            settings = {"max_tokens": 1, "seed": 0, **options}
            try:
                reply = await client.post(
                    "/chat/completions", body=self._body(messages, **settings), cast_to=object
                )
            except (openai.OpenAIError, ValueError):
                return None
            return reply if isinstance(reply, dict) else None

        self.probe = await probe(ask, self.chat, samples=self.sampling.temperature > 0)
        where = f'server "{redacted(self.server.url)}"'
        for difference in self.probe.settings:
            log.warning("%s: %s", where, difference)
        if self.probe.prompt and self.states is None:
            log.warning("%s: %s", where, self.probe.prompt)
        elif self.probe.prompt:
            raise UserError(f"{where}: {self.probe.prompt}")
        if self.states is None:
            return
        try:
            listed = await client.get("/models", cast_to=object)
            known = {one["id"]: one for one in listed["data"]}
            about = known.get(self.server.model) or next(iter(known.values()))
        except (openai.OpenAIError, LookupError, TypeError, ValueError, StopIteration) as error:
            raise UserError(
                f"{where} lists no models, so it is neither vLLM nor SGLang, which alone give "
                'states; use "states": "local"'
            ) from error
        self.longest = int(about.get("max_model_len") or 0)
        try:
            await self.states.open(client, self.server.model, str(about.get("owned_by", "")))
        except openai.OpenAIError as error:
            raise UserError(f"{where} refused to give states: {brief(error)}") from error

    def read(self, transcripts: Iterable[Transcript], limits: Limits) -> Iterator[Transcript]:
        """Have the server read dialogues that exist, as `run` does those that it has held."""
        return self._at_once(transcripts, lambda client, one: self._read(client, one, limits))

    def run(self, conversations: Iterable[Spoken], limits: Limits) -> Iterator[Transcript]:
        """Hold all conversations, at most `max_in_flight` at a time; yield each when it ends, in
        any order.

        A conversation whose request finally fails is yielded with its error and the others go on.
        One that runs out of time keeps its finished turns (`timeout`), as does one that meets the
        context's end (`context`). Time is that of its requests, shared with those that are under
        way beside them; a server that answers nobody for STUCK_SECONDS ends all. No more than
        `max_in_flight` are under way or wait to be taken.
        """
        return self._at_once(conversations, lambda client, one: self._hold(client, one, limits))

    def _at_once(
        self, work: Iterable[T], do: Callable[[AsyncOpenAI, T], Coroutine[Any, Any, Transcript]]
    ) -> Iterator[Transcript]:
        """Do the work, at most `max_in_flight` pieces at a time, and yield what comes of each."""
        waiting = iter(work)
        done: queue.SimpleQueue[Transcript | BaseException] = queue.SimpleQueue()
        with EventLoop() as loop:
            client = loop.open(
                self.server.client_factory(timeout=STUCK_SECONDS, max_retries=MAX_RETRIES)
            )

            def fill() -> None:
                room = self.server.max_in_flight - self.in_flight
                for piece in itertools.islice(waiting, room):
                    self.in_flight += 1
                    loop.start(do(client, piece), done.put)

            fill()
            while self.in_flight:
                ended = done.get()
                self.in_flight -= 1
                if isinstance(ended, BaseException):
                    raise ended
                fill()  # before the caller reads this one, which takes a while
                yield ended

    async def _hold(self, client: AsyncOpenAI, conversation: Spoken, limits: Limits) -> Transcript:
        # those that it begins with are of an earlier run
        exchanges = getattr(conversation, "exchanges", [])
        transcript = Transcript(conversation, exchanges, "complete")
        try:
            await self._talk(client, conversation, limits, transcript)
        except TimeoutError as error:
            # the answer on its way is lost: without it nothing half-said is stored
            transcript.reason = "timeout"
            if not transcript.exchanges:
                transcript.error = str(error)
        except Refused:
            raise
        except UserError as error:
            transcript.error = str(error)
        return await self._read(client, transcript, limits) if self.states else transcript

    async def _read(
        self, client: AsyncOpenAI, transcript: Transcript, limits: Limits
    ) -> Transcript:
        """Give a transcript its turns, with the states that the server reads."""
        if transcript.error is None:
            try:
                turns = turns_of(self.chat, transcript.exchanges, self.room(limits))
                await self.states.read(client, turns)
                transcript.turns = turns
            except UserError as error:
                transcript.error = str(error)
        return transcript

    def room(self, limits: Limits) -> int:
        """The longest dialogue that can be held, and read: for that, one token must follow it."""
        return min(limits.max_context, self.longest - 1 if self.longest else limits.max_context)

    async def _talk(
        self, client: AsyncOpenAI, conversation: Spoken, limits: Limits, transcript: Transcript
    ) -> None:
        import openai

        more, spent = not getattr(conversation, "is_over", False), 0.0
        rendered: Rendering | None = None
        while more:
            number = len(transcript.exchanges) + 1
            messages = list(conversation.messages)
            rendered = self.chat.rendering(messages, rendered)
            context = self.room(limits)
            room = context - len(rendered.ids)
            if room < 1:
                return self._end_by_context(transcript, f"{context} tokens")
            asked = min(limits.max_new_tokens, room)
            seed = derived_seed(self.sampling.seed, conversation.item_id, number) & 0x7FFFFFFF
            try:
                accepted = self.chat.accepted(messages)
                request = self._request(client, accepted, max_tokens=asked, seed=seed)
                response, seconds = await self._time.share(request, limits.item_seconds, spent)
                spent += seconds
                answer, ending = _read(response)
            except openai.APIStatusError as error:
                ways = {400: _FULL, 413: _FULL, 422: _FULL, 500: _FULL_WITHIN}
                is_full = ways.get(error.status_code)
                if number > 1 and is_full and is_full.search(error.response.text):
                    return self._end_by_context(transcript, "the server")
                said = "the server refused it: " if error.status_code in (400, 422) else ""
                raise UserError(f"turn {number}: {said}{brief(error)}") from error
            except (openai.OpenAIError, ValueError) as error:
                raise UserError(f"turn {number}: {brief(error)}") from error
            if ending == "context":
                return self._end_by_context(transcript, "the server")
            if ending == "length" and asked < limits.max_new_tokens:
                return self._end_by_context(transcript, f"{context} tokens")
            is_first = number == getattr(conversation, "first_turn", 1)
            if ending == "length" and self._is_stump(response, answer, is_first, asked):
                return self._end_by_context(transcript, "the server")
            self._warn_of_cut_prompt(response, len(rendered.ids), conversation.item_id, number)
            transcript.exchanges.append(Exchange(messages, answer, ending))
            more = conversation.answered(answer, self.chat.length(answer))

    def _end_by_context(self, transcript: Transcript, whose: str) -> None:
        """End a dialogue whose next turn does not fit; UserError when it has none yet."""
        transcript.reason = "context"
        if not transcript.exchanges:
            raise UserError(f"the first turn has more tokens than the context of {whose} allows")

    def _is_stump(self, response: Any, answer: str, is_first: bool, asked: int) -> bool:
        """Whether the server's context cut an answer that could have had `asked` tokens.

        An answer cut as short at the first turn that is asked for, whose prompt is the shortest,
        was cut by the most that the server lets any answer have.
        """
        written = getattr(getattr(response, "usage", None), "completion_tokens", None)
        if not isinstance(written, int) or "max_tokens" in self._refused:
            return False
        if written == 0 and not answer:
            return True
        if is_first and written + COUNTED < asked:
            self._cap = max(self._cap, written)
        return not is_first and written + COUNTED < (self._cap or asked)

    def _warn_of_cut_prompt(self, response: Any, asked: int, item: str, number: int) -> None:
        """Warn, once, of a server that answers without having read all of its prompt."""
        counted = getattr(getattr(response, "usage", None), "prompt_tokens", None)
        known = isinstance(counted, int) and counted > 0 and not self.probe.prompt
        if known and counted < READ_SHARE * asked and not self._has_warned:
            self._has_warned = True
            log.warning(
                'server "%s" counts %d tokens in the prompt of turn %d of "%s", which has %d: '
                "unless it leaves out those that it had cached, it cuts long dialogues without a "
                "word, and answers are to less than their states are read from; give it a longer "
                "context (Ollama: num_ctx), or a smaller model_max_tokens here",
                redacted(self.server.url), counted, number, item, asked,
            )  # fmt: skip

    async def _request(
        self, client: AsyncOpenAI, messages: list[Message], *, max_tokens: int, seed: int
    ) -> Any:
        """Ask for a completion, without the parameters that the server has refused by name."""
        import openai
        from openai.types.chat import ChatCompletion

        while True:
            sent = self._body(messages, max_tokens=max_tokens, seed=seed)
            try:
                return await client.post("/chat/completions", body=sent, cast_to=ChatCompletion)
            except openai.APIStatusError as error:
                accepted = without_refused(sent, error)
                if accepted is None:
                    raise
                self._refuse(sent, accepted)

    def _body(self, messages: Sequence[Message], **options: Any) -> dict[str, Any]:
        """A request, its parameters named as the server wants them."""
        request = {
            "model": self.server.model,
            "messages": list(messages),
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            **self._extra,
            **options,
        }
        sent = {}
        for name, value in request.items():
            while name in self._refused:
                name = self._refused[name]
            if name is not None:
                sent[name] = value
        return sent

    def _refuse(self, sent: dict[str, Any], accepted: dict[str, Any]) -> None:
        """Remember for all further requests what a server does not take."""
        other = next(iter(accepted.keys() - sent.keys() - self._refused.keys()), None)
        for name in sent.keys() - accepted.keys() - self._refused.keys():
            self._refused[name] = other
            log.warning(
                "the server refuses %s=%s: %s", name, sent[name],
                f"sent as {other}" if other else "left out, its own setting counts",
            )  # fmt: skip


def _read(response: Any) -> tuple[str, str]:
    """Return (answer, finish_reason) of a chat completion; ValueError when it is none.

    The reason is "stop", "length" or "context" (it is full), or what the server calls it.
    """
    try:
        choice = response.choices[0]
        answer, ending = choice.message.content, choice.finish_reason
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"no chat completion: {redacted(str(response))[:200]}") from error
    plain = re.sub(r"[^a-z]+", "_", str(ending or "").lower()).strip("_")
    plain = re.sub(r"^finish_?reason_", "", plain)
    if plain in _FAULTS:
        raise ValueError(f"the server ended the answer with {ending}")
    # null: all its tokens were thoughts that the server took out, or it had none
    if not isinstance(answer, str | None):
        raise ValueError(f"the answer is {type(answer).__name__}, not text")
    known = "stop" if plain in _ENDS else str(ending)
    known = "length" if _CUT.search(plain) else known
    return (answer or "").strip(), "context" if "context" in plain else known


class _SharedTime:
    """Time that requests under way share: each is charged what goes by divided by their number."""

    def __init__(self) -> None:
        self._active, self._charged = 0, 0.0  # charged: to a request that was always under way
        self._at = self._heard = time.monotonic()

    def _now(self, more: int = 0) -> float:
        now = time.monotonic()
        self._charged += (now - self._at) / max(1, self._active)
        self._at, self._active = now, self._active + more
        return self._charged

    async def share(
        self, work: Coroutine[Any, Any, Any], limit: float | None, spent: float
    ) -> tuple[Any, float]:
        """Return what a request gives, and its seconds; TimeoutError where they and those spent
        before are beyond the limit, or when nobody has been answered for too long.
        """
        if not self._active:
            self._heard = time.monotonic()
        began, task = self._now(+1), asyncio.ensure_future(work)
        try:
            while True:
                await asyncio.wait({task}, timeout=min(1.0, 0.05 + (limit or 1.0) / 10))
                seconds = self._now() - began
                if task.done():
                    self._heard = time.monotonic()
                    return task.result(), seconds
                if limit is not None and spent + seconds > limit:
                    raise TimeoutError(f"no answer within generation_timeout = {limit:g} s")
                if time.monotonic() - self._heard > STUCK_SECONDS:
                    raise TimeoutError(f"the server has answered nobody for {STUCK_SECONDS:g} s")
        finally:
            self._now(-1)
            task.cancel()
