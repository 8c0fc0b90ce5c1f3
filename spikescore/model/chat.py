"""Messages to token ids by the model's chat template, and an answer's ids back to text.

Texts of messages stay texts: where one spells a control token of the model, such as the one that
opens a turn, it is encoded by its letters, so that no question, passage or answer says who speaks.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from spikescore.errors import UserError

log = logging.getLogger("spikescore")

Message = dict[str, str]

_MARK = "\ue0f0{}\ue0f1"  # stands for a control token's spelling while the template is at work

PROMPT_DATE = datetime(2024, 7, 26)
"""The day that a template which writes today's date is told: the same settings give the same
prompts on any day. Llama's own templates fall back on this one."""


_DIRECTIVES = {
    f"%{flag}{letter}": PROMPT_DATE.strftime(f"%{flag}{letter}")
    for flag in ("-", "")
    for letter in "aAbBcdHIjmMpSUwWxXyY"
}
# a macro hides the function of that name by which transformers lets templates ask for the time
_PINNED_DATE = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(f".replace({form!r}, {text!r})" for form, text in _DIRECTIVES.items())
    + " -}}{%- endmacro %}\n"
)


@dataclass(frozen=True)
class Rendering:
    """A conversation as the chat template writes it, and the ids of that text."""

    text: str
    ids: list[int]


class ChatFormat:
    """Turns messages into token ids with the model's chat template, and answers back into text.

    Without a template a plain format is used ("User: ... Assistant: ..."), with a warning. A
    template that refuses or drops the system role gets the system prompt at the head of the first
    user message; one that refuses or drops the tool role gets what tools said as user messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, enable_thinking: bool) -> None:
        self.tokenizer = tokenizer
        self.enable_thinking = enable_thinking
        self._options = {"enable_thinking": enable_thinking}
        if "strftime_now" in str(tokenizer.chat_template):
            self._options["chat_template"] = _PINNED_DATE + tokenizer.get_chat_template()
        self._plain = tokenizer.chat_template is None
        if self._plain:
            log.warning("the tokenizer has no chat template; using plain User:/Assistant: turns")
        added = tokenizer.added_tokens_decoder if tokenizer.is_fast else {}
        # special tokens part the text before anything else is done to it
        self._dividers = {n: token.content for n, token in added.items() if token.special}
        self._fold_system = not self._plain and not self._accepts_system()
        longest_first = sorted(self._control_tokens(added), key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, longest_first)))

    def _control_tokens(self, added: dict[int, Any]) -> set[str]:
        """Spellings of special tokens, and of those with which the template says who speaks."""
        controls = {*self.tokenizer.all_special_tokens, *self._dividers.values(), _MARK[0]} - {""}
        if self._plain:
            return controls
        asked = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
        shown = self._shown(asked)
        return controls | {token.content for token in added.values() if token.content in shown}

    @cached_property
    def turn_end_ids(self) -> set[int]:
        """The control token with which the template closes an answer; empty where it has none."""
        probe = "zq"
        ends = [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}]
        for messages in (ends, [*ends, ends[0]]):  # some close a turn only where another follows
            try:
                text = self.rendering(messages, closed=True).text
            except UserError:
                continue
            before, _, rest = text.rpartition(probe)
            for token in self.tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"][:1]:
                if before and self._controls.fullmatch(self.tokenizer.decode([token])):
                    return {token}
        return set()

    def _accepts_system(self) -> bool:
        probe = "system role probe"
        messages = [{"role": "system", "content": probe}, {"role": "user", "content": "x"}]
        takes = probe in self._shown(messages)
        if not takes:
            log.warning("the chat template takes no system role; folding it into the first message")
        return takes

    @cached_property
    def _takes_tools(self) -> bool:
        probe = "tool role probe"
        messages = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y"},
            {"role": "tool", "name": "z", "content": probe},
        ]
        takes = probe in self._shown(messages)
        if not takes:
            log.warning("the chat template takes no tool role; showing tool results as the user's")
        return takes

    def _shown(self, messages: Sequence[Message]) -> str:
        """What the template makes of messages as they are; "" where it refuses them."""
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **self._options)
        except (jinja2.TemplateError, ValueError):
            return ""

    @property
    def server_options(self) -> dict[str, Any]:
        """What the template looks at, so that a server, which renders it too, must be told."""
        template = str(self.tokenizer.chat_template)
        known = {
            "enable_thinking": self.enable_thinking,
            "date_string": PROMPT_DATE.strftime("%d %b %Y"),
        }
        return {name: value for name, value in known.items() if name in template}

    def accepted(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template takes them: without a system or tool role if need be."""
        messages = list(messages)
        if self._fold_system and messages[0]["role"] == "system" and len(messages) > 1:
            system, first, *rest = messages
            folded = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
            messages = [folded, *rest]
        tools = any(message["role"] == "tool" for message in messages)
        if tools and not self._plain and not self._takes_tools:
            return _tools_as_user(messages)
        return messages

    def render(self, messages: Sequence[Message], *, closed: bool = False) -> list[int]:
        """Return the messages' ids, and the opening of an assistant's turn unless `closed`."""
        return self.rendering(messages, closed=closed).ids

    def rendering(
        self, messages: Sequence[Message], before: Rendering | None = None, *, closed: bool = False
    ) -> Rendering:
        """As `render`, with the text; UserError when the template refuses the messages.

        Where the text goes on from that of an earlier rendering, `before`, only what follows the
        last special token that both hold is tokenised: a special token parts the text first of
        all, so the ids are the same.
        """
        messages, spelled = self._marked(self.accepted(messages))
        if self._plain:
            text = _plain_text(messages, closed)
            return Rendering(_unmarked(text, spelled), self._encode(text, spelled, plain=True))
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=not closed, tokenize=False, **self._options
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses these messages: {error}") from error
        if spelled:
            return Rendering(_unmarked(text, spelled), self._encode(text, spelled))
        kept, start = self._shared(before, text) if before else (0, 0)
        rest = self._encode(text[start:])
        return Rendering(text, [*before.ids[:kept], *rest] if before else rest)

    def plain_ids(self, text: str) -> list[int]:
        """The ids of a plain text that the model is to go on with: one BOS, no end of text."""
        (message,), spelled = self._marked([{"content": text}])
        return self._encode(message["content"], spelled, plain=True)

    def _marked(self, messages: Iterable[Message]) -> tuple[list[Message], list[str]]:
        """The messages with a mark for each control token that they spell, and these tokens."""
        messages, spelled = list(messages), []

        def mark(hit: re.Match) -> str:
            if hit[0] not in spelled:
                spelled.append(hit[0])
            return _MARK.format(spelled.index(hit[0]))

        for number, message in enumerate(messages):
            text = message.get("content")
            if isinstance(text, str) and self._controls.search(text):
                messages[number] = {**message, "content": self._controls.sub(mark, text)}
        return messages, spelled

    def _encode(self, text: str, spelled: Sequence[str] = (), *, plain: bool = False) -> list[int]:
        """Ids of a text as it stands; marked spellings letter by letter.

        `plain`: with the tokens that the tokenizer puts before a text, but not those after one: a
        prompt that ends with the end of text has nothing to go on with.
        """
        ids: list[int] = []
        for place, piece in enumerate(re.split(_MARK.format("(\\d+)"), text)):
            if place % 2:
                token = spelled[int(piece)]
                ids += self.tokenizer(token, add_special_tokens=False, split_special_tokens=True)[
                    "input_ids"
                ]
            elif piece or not place:
                ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return [*self._opening_ids, *ids] if plain else ids

    @cached_property
    def _opening_ids(self) -> list[int]:
        """What the tokenizer puts before a text: BOS, or nothing."""
        whole = list(self.tokenizer("x")["input_ids"])
        bare = list(self.tokenizer("x", add_special_tokens=False)["input_ids"])
        places = (n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
        return whole[: next(places, 0)]

    def _shared(self, before: Rendering, text: str) -> tuple[int, int]:
        """How many ids of `before` stand for the start of the text, and how much of it that is: up
        to the last special token, which is left to what follows.
        """
        if text.startswith(before.text):
            for place in range(len(before.ids) - 1, 0, -1):
                divider = self._dividers.get(before.ids[place])
                if divider is not None and (start := before.text.rfind(divider)) > 0:
                    return place, start
        return 0, 0

    def answer_ids(
        self, messages: Sequence[Message], answer: str, before: Rendering | None = None
    ) -> list[int]:
        """Return the ids of an answer that is known as text only, given the messages before it
        (and, if there is one, a rendering that theirs may go on from).

        They are the ids that the template itself gives the answer inside the conversation, so a
        space that the template puts before an answer belongs to its first token. Where the closed
        conversation does not begin with the prompt, or text of the template's own closes the
        answer, the answer is tokenised by itself.
        """
        prompt = self.rendering(messages, before)
        said = [*messages, {"role": "assistant", "content": answer}]
        whole = self.rendering(said, prompt, closed=True).ids
        if whole[: len(prompt.ids)] == prompt.ids:
            found = whole[len(prompt.ids) :]
            wanted = self.text(found)
            # the template's closing tokens are those that the text does not need
            while found and self.text(found[:-1]) == wanted:
                found.pop()
            if wanted == answer.strip():
                return found
        (message,), spelled = self._marked([{"content": answer}])
        return self._encode(message["content"], spelled)

    def length(self, answer: str) -> int:
        """How many tokens an answer has of which only the text is known."""
        return len(self.tokenizer(answer, add_special_tokens=False)["input_ids"])

    def text(self, answer_ids: Sequence[int]) -> str:
        """The answer as text, special tokens left out."""
        return self.tokenizer.decode(list(answer_ids), skip_special_tokens=True).strip()


def _unmarked(text: str, spelled: Sequence[str]) -> str:
    return re.sub(_MARK.format("(\\d+)"), lambda hit: spelled[int(hit[1])], text)


def _plain_text(messages: Sequence[Message], closed: bool) -> str:
    turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join(turns if closed else [*turns, "Assistant:"])


def _tools_as_user(messages: Sequence[Message]) -> list[Message]:
    """Give the user what tools said; user messages in a row become one, as templates want it."""
    shown: list[Message] = []
    for message in messages:
        if message["role"] not in ("user", "tool"):
            shown.append(message)
        elif shown and shown[-1]["role"] == "user":
            together = f"{shown[-1]['content']}\n\n{message['content']}"
            shown[-1] = {"role": "user", "content": together}
        else:
            shown.append({"role": "user", "content": message["content"]})
    return shown
