"""What a run of stage 1 would do, shown without doing it: prompts, judge, leaks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice

from spikescore.dialogues.config import Config
from spikescore.dialogues.plan import Item
from spikescore.dialogues.running import first_messages, guard_report, label_name, read_dialogue
from spikescore.errors import UserError
from spikescore.labels.judges import describe_judge
from spikescore.model.chat import ChatFormat

PROMPTS = 3
"""Prompts shown of each domain."""


def preview(items: list[Item], config: Config, chat: ChatFormat) -> Iterator[str]:
    """Yield lines: for each domain of each data set its judge and three prompts as the model gets
    them, with their number of tokens; at the end what the leak guard finds in all prompts.
    """
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[str(item.folder), item.question.domain].append(item)
    for (folder, domain), group in groups.items():
        what = config.origin.split(" from")[0]
        yield f"\n=== {domain or 'no domain'}: {len(group)} {what} -> {folder}"
        yield _label_line(group, config)
        for item in islice(group, PROMPTS):
            yield from _prompt(item, config, chat)
    yield ""
    yield guard_report(items, config, chat)
    yield "dry run: nothing was generated, nothing written"


def _prompt(item: Item, config: Config, chat: ChatFormat) -> Iterator[str]:
    try:
        ids = chat.render(first_messages(item, config, chat))
    except UserError as error:
        yield f"--- {item.question.id}: {error}"
        return
    yield f"--- {item.question.id}: {len(ids)} tokens"
    yield chat.tokenizer.decode(ids)
    if first := item.question.first_answer:
        yield f"[given answer, {'wrong' if first.hallucinated else 'right'}] {first.text}"


def _label_line(group: list[Item], config: Config) -> str:
    if config.first_answers == "shipped" and not config.replay:
        wrong = sum(item.question.first_answer.hallucinated for item in group)
        pairs = len({item.question.pair_id for item in group})
        return (
            f"first answers given, labels known: {len(group) - wrong} right, {wrong} wrong, of "
            f"{pairs} questions"
        )
    if not config.replay:
        return f"judge: {describe_judge(config.judge, [item.question for item in group])}"
    labels = Counter(_label(item, config) for item in group)
    return f"labels carried over: {', '.join(f'{n} {name}' for name, n in sorted(labels.items()))}"


def _label(item: Item, config: Config) -> str:
    try:
        return label_name(read_dialogue(item, config)[0]["nil_label"])
    except UserError:
        return "unreadable"
