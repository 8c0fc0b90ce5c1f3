"""Dialogues held by any server with the OpenAI interface (vLLM, SGLang, TGI, `transformers serve`).

The server scales out; here many dialogues wait for it at once, each with one request on its way.
What comes back are transcripts, texts without states: `transcripts` has the local model read them.

A request holds only what such servers know: model, messages, temperature, top_p, max_tokens and
seed. `chat_template_kwargs` is added where the local chat template looks at `enable_thinking` or at
a date, because the server's default would then decide; other servers, which may refuse it, never
get it.
The seed is a function of (sampling.seed, id, turn); whether equal seeds give equal answers is up to
the server.

Servers add settings of the checkpoint's generation_config that no request can take back: start vLLM
with `--generation-config vllm` for none of them; `transformers serve` decodes greedily, whatever
the temperature, unless the checkpoint says `"do_sample": true`.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from spikescore.errors import Refused, UserError
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.reading import Exchange, Transcript
from spikescore.model.sampling import Sampling
from spikescore.model.turns import Limits
from spikescore.runtime import EventLoop, brief, derived_seed

if TYPE_CHECKING:
    from openai import AsyncOpenAI


MAX_RETRIES = 8  # of the client: 429, 5xx and time-outs, with back-off or the server's Retry-After
PROBE_SECONDS = 300  # a server may load its model at the first request
DEFAULT_SECONDS = 3600.0  # for one request when generation_timeout is null
_ENDINGS = {"stop": "stop", "length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class Spoken(Protocol):
    """What a server can hold: a conversation in messages, told each answer as text."""

    item_id: str
    messages: list[Message]

    def answered(self, text: str, n_tokens: int) -> bool:
        """Take the answer; True when `messages` now ends in another prompt."""


@dataclass(frozen=True)
class Server:
    """Where the requests go. `client_factory(timeout=, max_retries=)` makes an AsyncOpenAI client
    (seconds per call).
    """

    url: str  # for messages
    model: str
    client_factory: Callable[..., AsyncOpenAI]
    max_in_flight: int


class ServedGenerator:
    """Holds conversations on a server; `in_flight` says how many just now."""

    def __init__(self, server: Server, chat: ChatFormat, sampling: Sampling) -> None:
        self.server = server
        self.chat = chat
        self.sampling = sampling
        self.in_flight = 0
        options = chat.server_options
        self._extra: dict[str, Any] = {"chat_template_kwargs": options} if options else {}

    def check(self) -> None:
        """Ask for one token; UserError when the server is not there, or refuses the model or the
        key.
        """
        with EventLoop() as loop:
            client = loop.open(self.server.client_factory(timeout=PROBE_SECONDS, max_retries=1))
            loop.run(self._check(client))

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

    def run(self, conversations: Iterable[Spoken], limits: Limits) -> Iterator[Transcript]:
        """Hold all conversations, at most `max_in_flight` at a time; yield each when it ends, in
        any order.

        A conversation whose request finally fails is yielded with its error and the others go on.
        One that runs out of time keeps its finished turns (`timeout`), as does one that meets the
        context's end (`context`). Time counts from its first request, waiting inside the server
        included. No more than `max_in_flight` are under way or wait to be taken.
        """
        waiting = iter(conversations)
        done: queue.SimpleQueue[Transcript | BaseException] = queue.SimpleQueue()
        with EventLoop() as loop:
            client = loop.open(
                self.server.client_factory(
                    timeout=limits.item_seconds or DEFAULT_SECONDS, max_retries=MAX_RETRIES
                )
            )

            def fill() -> None:
                room = self.server.max_in_flight - self.in_flight
                for conversation in itertools.islice(waiting, room):
                    self.in_flight += 1
                    loop.start(self._hold(client, conversation, limits), done.put)

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
            async with asyncio.timeout(limits.item_seconds):
                await self._talk(client, conversation, limits, transcript)
        except TimeoutError:
            # the answer on its way is lost: without it nothing half-said is stored
            transcript.reason = "timeout"
            if not transcript.exchanges:
                transcript.error = (
                    f"no answer within generation_timeout = {limits.item_seconds:g} s"
                )
        except Refused:
            raise
        except UserError as error:
            transcript.error = str(error)
        return transcript

    async def _talk(
        self, client: AsyncOpenAI, conversation: Spoken, limits: Limits, transcript: Transcript
    ) -> None:
        import openai

        more = not getattr(conversation, "is_over", False)
        while more:
            number = len(transcript.exchanges) + 1
            messages = list(conversation.messages)
            room = limits.max_context - len(self.chat.render(messages))
            if room < 1:
                transcript.reason = "context"
                if number == 1:
                    raise UserError(
                        "the first prompt has more tokens than the context of "
                        f"{limits.max_context} allows"
                    )
                return
            seed = derived_seed(self.sampling.seed, conversation.item_id, number) & 0x7FFFFFFF
            try:
                response = await self._request(
                    client,
                    self.chat.accepted(messages),
                    max_tokens=min(limits.max_new_tokens, room),
                    seed=seed,
                )
                answer, ending = _read(response)
            except openai.BadRequestError as error:
                if number > 1 and "context" in brief(error).lower():
                    transcript.reason = "context"  # the server's context is smaller than ours
                    return
                raise UserError(f"turn {number}: the server refused it: {brief(error)}") from error
            except (openai.OpenAIError, ValueError) as error:
                raise UserError(f"turn {number}: {brief(error)}") from error
            transcript.exchanges.append(Exchange(messages, answer, ending))
            tokens = self.chat.tokenizer(answer, add_special_tokens=False)["input_ids"]
            more = conversation.answered(answer, len(tokens))

    async def _request(
        self, client: AsyncOpenAI, messages: list[Message], *, max_tokens: int, seed: int
    ) -> Any:
        return await client.chat.completions.create(
            model=self.server.model,
            messages=messages,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=max_tokens,
            seed=seed,
            extra_body=self._extra or None,
        )


def _read(response: Any) -> tuple[str, str]:
    """Return (answer, finish_reason) of a chat completion; ValueError when it is none."""
    try:
        choice = response.choices[0]
        answer, ending = choice.message.content, choice.finish_reason
    except (AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"no chat completion: {str(response)[:200]}") from error
    if ending is not None and ending not in _ENDINGS:
        raise ValueError(f"the server ended the answer with {ending}")
    # null: all its tokens were thoughts that the server took out, or it had none
    if not isinstance(answer, str | None):
        raise ValueError(f"the answer is {type(answer).__name__}, not text")
    return (answer or "").strip(), _ENDINGS.get(ending, "stop")
