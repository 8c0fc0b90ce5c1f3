"""The leak guard: does a rendered prompt show what only the judge may know?

A gold answer inside the passage, the history, the options or the question's own words is no leak.
So the blocks that belong in the prompt are blanked out, each as often as it belongs there, and what
is left over is searched for gold answers, worked solutions and the item's id, as whole words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spikescore.prompts import DEFAULT_SYSTEM_PROMPT, lettered
from spikescore.questions import Question

# the layout's own words and the role names of chat templates, as often as a prompt may hold them
_LAYOUT = "Passage: Conversation so far: Question: Options: system user assistant model"
_LONG = 20
"""Characters from which a text in `meta` (a worked solution, a sentence of it) is searched for."""


@dataclass(frozen=True)
class Leak:
    """What a prompt gave away: kind ("gold answer", "meta" or "id"), the text, and where."""

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


def leak_report(leaks: Iterable[Leak], n: int) -> str:
    """Return the guard's report over n prompts: one line when clean, else one more per leak."""
    leaks = list(leaks)
    head = f"leak guard: {len(leaks)} of {n} prompts show what only the judge may know"
    lines = [f"  {leak.item_id}: {leak}" for leak in leaks]
    return "\n".join([head, *lines])


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


def _secrets(question: Question) -> list[tuple[str, str]]:
    secrets = [("gold answer", gold) for gold in question.gold_answers if gold.strip()]
    for value in question.meta.values():
        if isinstance(value, str) and len(value.strip()) >= _LONG:
            sentences = re.split(r"(?<=[.!?])\s+|\n+", value)
            secrets += [
                ("meta", text) for text in (value, *sentences) if len(text.strip()) >= _LONG
            ]
    if len(question.id) >= 4:  # a shorter id is a number or a letter that can stand anywhere
        secrets.append(("id", question.id))
    return secrets


def _whole_words(text: str) -> re.Pattern[str]:
    """Match the text as whole words, white space loose; one or two characters keep their case."""
    words = r"\s+".join(map(re.escape, text.split()))
    flags = re.IGNORECASE if len(text.strip()) > 2 else 0
    return re.compile(rf"(?<![\w.-]){words}(?![\w-]|\.\d)", flags)
