"""What makes a server's answers other than those of the local model, without a word: asked at
start-up.

Servers render the messages by a template of their own, may think where config.json says not to,
add a checkpoint's own sampling settings to every request, and compute in a type of their choice.
Each has a question here whose answer shows it, where the server tells enough: vLLM tells all.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from spikescore.errors import UserError
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.reading import read_turns
from spikescore.model.turns import Turn

MESSAGES: tuple[Message, ...] = (
    {"role": "system", "content": "Answer the question."},
    {"role": "user", "content": "Name a river in Africa."},
    {"role": "assistant", "content": "The Nile."},
    {"role": "user", "content": "Tell me one thing about it."},
)
GREEDY = {"temperature": 0, "top_p": 1, "max_tokens": 16, "logprobs": True, "top_logprobs": 2}
HOT = {"temperature": 2, "top_p": 1, "max_tokens": 32, "logprobs": True, "top_logprobs": 20}
CHANCE = 1e-3  # below which it is none
CLOSE = {"float32": 2e-3, "float16": 0.03, "bfloat16": 0.2}
"""By how much log-probabilities of one model may differ, in the coarser of two types."""
SETTINGS = (
    "start vLLM with --generation-config vllm, so that the checkpoint's own sampling settings do "
    "not count (repetition penalty, top-k, and whatever a request does not say)"
)

Ask = Callable[[Sequence[Message], dict[str, Any]], Awaitable[dict[str, Any] | None]]
"""A chat completion with these parameters, as plain data; None when the server refuses them."""


@dataclass
class Probe:
    """What a server's answers showed.

    `prompt` says how its prompts differ from the local ones, "" when they do not; `settings` what
    else is other. A greedy answer is kept by its ids, to be compared with a local model's.
    """

    prompt: str = ""
    settings: list[str] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def against(self, model: PreTrainedModel) -> str:
        """Say by how much the server's log-probabilities differ from a local model's; "" for not
        more than types of numbers explain, or where the server told none.
        """
        if not self.logprobs or len(self.logprobs) != len(self.answer_ids):
            return ""
        turn = Turn(1, self.prompt_ids, answer_ids=self.answer_ids)
        try:
            read_turns(model, [turn])
        except UserError:
            return ""  # it is said of the dialogues
        pairs = zip(self.logprobs, turn.logprobs, strict=True)
        most = max(abs(theirs - ours) for theirs, ours in pairs)
        dtype = str(model.dtype).removeprefix("torch.")
        if most <= CLOSE.get(dtype, 0.2):
            return ""
        return (
            f"the server's log-probabilities differ from those of the local model by up to "
            f"{most:.3g}: it has other weights, or computes in another type than {dtype} (vLLM: "
            f"--dtype {dtype})"
        )


async def probe(ask: Ask, chat: ChatFormat, *, samples: bool) -> Probe:
    """Ask a server for two short answers (`samples`: temperature above 0 matters), and compare."""
    found = Probe()
    messages = chat.accepted(MESSAGES)
    ours = chat.render(MESSAGES)
    reply = await ask(messages, {**GREEDY, "return_token_ids": True})
    reply = reply or await ask(messages, GREEDY) or await ask(messages, {"max_tokens": 1})
    theirs = (reply or {}).get("prompt_token_ids")
    n_theirs = ((reply or {}).get("usage") or {}).get("prompt_tokens")
    if isinstance(theirs, list):
        found.prompt = "" if theirs == ours else _difference(chat, theirs)
    elif isinstance(n_theirs, int) and n_theirs and n_theirs != len(ours):
        found.prompt = (
            f"its prompt has {n_theirs} tokens, the local one {len(ours)}: another chat template, "
            "or thinking switched otherwise"
        )
    said = _tokens(reply)
    if any(token["logprob"] < max(_top(token), default=-1e9) - 1e-3 for token in said):
        found.settings.append(
            f"at temperature 0 its answer is not made of the likeliest tokens: {SETTINGS}"
        )
    if said and isinstance(theirs, list):
        found.prompt_ids = theirs
        found.answer_ids = list(reply["choices"][0].get("token_ids") or [])
        found.logprobs = [token["logprob"] for token in said]
    if samples and said:
        drawn = _tokens(await ask(messages, {**HOT, "seed": 1}))
        drawn = [token for token in drawn if len(_top(token)) >= HOT["top_logprobs"]]
        others = [_others(token) for token in drawn]
        beyond = sum(one["logprob"] < min(top) for one, top in zip(drawn, others, strict=True))
        least = sum(map(_least_beyond, others))
        # Chernoff's bound for fewer draws than are expected
        if beyond < least and math.exp(-((least - beyond) ** 2) / (2 * least)) < CHANCE:
            found.settings.append(
                "at temperature 2 it draws hardly any but the twenty likeliest tokens, so it "
                f"ignores the temperature or cuts by a top-k of its own: {SETTINGS}"
            )
    return found


def _others(token: dict[str, Any]) -> list[float]:
    """Log-probabilities of the likeliest tokens beside the drawn one, which servers list with them
    wherever it stands: 19 of 20.
    """
    top = sorted(_top(token), reverse=True)
    nearest = min(top, key=lambda one: abs(one - token["logprob"]))
    top.remove(nearest)
    return top[: HOT["top_logprobs"] - 1]


def _least_beyond(top: list[float]) -> float:
    """At least how likely a draw at temperature 2 is below these likeliest tokens, given their log-
    probabilities at temperature 1.

    Their weight is the sum of sqrt(p); that of the rest is at least its sum of p over the sqrt of
    the least of them, since each of the rest has a p below that. The drawn token, left out of them,
    may have been among the likeliest: as much as the first of them counts as inside once more.
    """
    inside = sum(math.exp(one / 2) for one in top) + 1
    rest = max(0.0, 1 - sum(map(math.exp, top)) - 1e-6)
    beyond = rest / math.exp(min(top) / 2)
    return beyond / (inside + beyond)


def _tokens(reply: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The answer's tokens with their log-probabilities; none where the server does not say."""
    try:
        said = reply["choices"][0]["logprobs"]["content"] or []
        return [one for one in said if isinstance(one["logprob"], int | float)]
    except (KeyError, IndexError, TypeError):
        return []


def _top(token: dict[str, Any]) -> list[float]:
    return [one["logprob"] for one in token.get("top_logprobs") or []]


def _difference(chat: ChatFormat, theirs: list[int]) -> str:
    """Say how a server's prompt differs from the local one, and what would explain it."""
    ours = chat.render(MESSAGES)
    other = ChatFormat(chat.tokenizer, enable_thinking=not chat.enable_thinking).render(MESSAGES)
    if theirs == other:
        switch = "on" if not chat.enable_thinking else "off"
        return (
            f"thinking is switched {switch} there: its chat template does not get "
            "enable_thinking; start vLLM with --default-chat-template-kwargs "
            f"'{{\"enable_thinking\": {str(chat.enable_thinking).lower()}}}'"
        )
    if theirs[1:] == ours:
        return "it puts one more token before the prompt (a second beginning of text)"
    at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if len(set(pair)) > 1),
              min(len(ours), len(theirs)))  # fmt: skip
    shown = [chat.tokenizer.decode(ids[max(0, at - 2) : at + 6]) for ids in (theirs, ours)]
    return (
        f"its prompt differs from token {at} on: there {shown[0]!r}, here {shown[1]!r}; give it "
        "the model folder's own template (vLLM: --chat-template FILE), or model_path the model "
        "that is served"
    )
