"""The leak guard: does a rendered prompt show what only the judge may know?

A gold answer inside the passage, the history, the options or the question's own words is no leak.
So the blocks that belong in the prompt are blanked out, each as often as it belongs there, and what
is left over is searched, as whole words, for

    gold answer        every alias; of a list, every member
    given answer       that the dialogue begins with: it stands in the assistant's turn alone
    incorrect answer   known to be wrong: no secret, but to show one outside the options helps, too
    shipped answer     what another model said in a dialogue that came with the item, and what its
                       tools returned: whole, and sentence by sentence
    meta               every longer text in `meta`, however deep (worked solutions, evidence, the
                       notes of an annotator): whole, and sentence by sentence
    id                 the item's own
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spikescore.data.question import Question, lettered, list_members
from spikescore.dialogues.prompts import DEFAULT_SYSTEM_PROMPT

# the layout's own words and the role names of chat templates, as often as a prompt may hold them
_LAYOUT = "Passage: Conversation so far: Question: Options: system user assistant model"
_LONG = 20
"""Characters from which a text in `meta` (a worked solution, a sentence of it) is searched for."""
_LISTED = 20
"""Leaks that the printed report lists."""
_ASKED = ("system", "user")
"""Roles of a shipped dialogue that ask; what the others say is an answer."""


@dataclass(frozen=True)
class Leak:
    """What a prompt gave away: its kind (see the module), the text, and where."""

    item_id: str
    kind: str
    text: str
    excerpt: str

    def __str__(self) -> str:
        return f'{self.kind} "{self.text[:60]}" in "{self.excerpt}"'


def check_prompt(
    question: Question, rendered: str, *, boilerplate: Sequence[str] = (DEFAULT_SYSTEM_PROMPT,)
) -> Leak | None:
    """Return the first leak in a rendered prompt, None when it is clean.

    `rendered` is the text that the model sees, chat template included. `boilerplate` is what every
    item's prompt holds whatever its question (the system prompt; the template rendered with an
    empty message): a word that stands there may stand in the prompt as often.
    """
    rest = rendered
    for forms in _known_blocks(question):
        found = next((form for form in forms if form in rest), None)
        if found:
            rest = rest.replace(found, "\n", 1)
    allowed = "\n".join((_LAYOUT, *boilerplate))
    folded = rest.casefold()
    for kind, secret in _secrets(question):
        if secret.split()[0].casefold() not in folded:
            continue  # the usual case, and much cheaper than a pattern
        pattern = _whole_words(secret)
        hits = list(pattern.finditer(rest))
        if len(hits) > len(pattern.findall(allowed)):
            at = hits[-1].start()
            excerpt = " ".join(rest[max(0, at - 30) : hits[-1].end() + 30].split())
            return Leak(question.id, kind, secret, excerpt)
    return None


def holds_gold(question: Question) -> bool:
    """True when a gold answer stands in the passage, as whole words: no leak, but worth knowing."""
    golds = (gold for gold in question.gold_answers if gold.strip())
    options = [gold for gold in golds if not question.choices or len(gold) > 1]
    return any(_whole_words(gold).search(question.context or "") for gold in options)


def leak_report(leaks: Iterable[Leak], n: int, questions: Iterable[Question] = ()) -> str:
    """Return the guard's report over n prompts: one line when clean, else one more per leak; and of
    the questions with passage and gold answers, in how many passages one stands.
    """
    leaks = list(leaks)
    lines = [f"leak guard: {len(leaks)} of {n} prompts show what only the judge may know"]
    held = [holds_gold(one) for one in questions if one.context and one.gold_answers]
    if held:
        lines[0] += f"; a gold answer stands in {sum(held)} of {len(held)} passages (no leak)"
    lines += [f"  {leak.item_id}: {leak}" for leak in leaks[:_LISTED]]
    if len(leaks) > _LISTED:
        lines.append(f"  ... and {len(leaks) - _LISTED} more")
    return "\n".join(lines)


def _known_blocks(question: Question) -> list[tuple[str, ...]]:
    """Return the blocks that belong in the prompt, longest first, each in the forms it can take."""
    blocks: list[tuple[str, ...]] = []
    if question.context:
        blocks.append((question.context.strip(),))
    for asked, answered in question.history:
        blocks.append((f"Q: {asked.strip()}", asked.strip()))
        blocks.append((f"A: {answered.strip()}", answered.strip()))
    blocks.append((f"Question: {question.question.strip()}", question.question.strip()))
    for letter, text in lettered(question.choices or ()):
        blocks.append((f"{letter}. {text.strip()}", text.strip()))
    return sorted(blocks, key=lambda forms: -len(forms[0]))


def _secrets(question: Question) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of all that the prompt may not show."""
    golds = [*question.gold_answers]
    if question.answer_type == "list":
        golds += [name for names in list_members(question.gold_answers) for name in names]
    meta, first = dict(question.meta), question.first_answer
    wrong, shipped = meta.pop("incorrect_answers", ()), meta.pop("shipped", None)
    given = [first.text] if first else []
    for kind, texts in (
        ("gold answer", golds), ("given answer", given), ("incorrect answer", _texts(wrong)),
    ):  # fmt: skip
        yield from ((kind, text) for text in texts if text.strip())
    if isinstance(shipped, dict):
        said = _answers(shipped.get("messages"))
        yield from (("shipped answer", part) for text in said for part in (text, *_long(text)))
        meta["shipped"] = {key: value for key, value in shipped.items() if key != "messages"}
    yield from (("meta", part) for text in _texts(meta) for part in _long(text))
    if len(question.id) >= 4:  # a shorter id is a number or a letter that can stand anywhere
        yield "id", question.id


def _answers(messages: Any) -> list[str]:
    told = [
        one for one in messages or () if isinstance(one, dict) and one.get("role") not in _ASKED
    ]
    return [text for one in told if isinstance(text := one.get("content"), str) and text.strip()]


def _texts(value: Any) -> Iterator[str]:
    """Yield the strings in a value, however deep they lie in lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _long(text: str) -> list[str]:
    """Return the text and its sentences, those of them that are long enough to be searched for."""
    if len(text.strip()) < _LONG:
        return []
    sentences = re.split(r"(?<=[.!?])\s+|\n+", text)
    return [part for part in (text, *sentences) if len(part.strip()) >= _LONG]


def _whole_words(text: str) -> re.Pattern[str]:
    """Match the text as whole words, white space loose; one or two characters keep their case."""
    words = r"\s+".join(map(re.escape, text.split()))
    flags = re.IGNORECASE if len(text.strip()) > 2 else 0
    return re.compile(rf"(?<![\w.-]){words}(?![\w-]|\.\d)", flags)
