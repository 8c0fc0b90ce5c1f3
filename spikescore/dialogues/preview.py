"""What a run of stage 1 would do, shown without doing it: prompts, judge, leaks, what it takes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

from spikescore.dialogues.config import Config
from spikescore.dialogues.plan import Item
from spikescore.dialogues.running import (
    block,
    expected_time,
    first_messages,
    guard_report,
    label_name,
    make_engine,
    read_dialogue,
)
from spikescore.errors import UserError
from spikescore.labels.judges import describe_judge, server_calls
from spikescore.model.chat import ChatFormat
from spikescore.model.loading import load_model, weight_files
from spikescore.stats.roc import MIN_PER_CLASS, questions_needed

PROMPTS = 3
"""Prompts shown of each domain."""
TRIAL_BYTES = 4e9
"""Weights up to this size are loaded to time the model: seconds, not minutes, on any machine."""
HELD_OUT = 0.2
"""The share of a training domain that the trainer holds out for its test, if not told otherwise."""


def preview(items: list[Item], config: Config, chat: ChatFormat) -> Iterator[str]:
    """Yield lines: for each domain of each data set its judge and three prompts as the model gets
    them, with their number of tokens and their gold answers; at the end what the leak guard finds
    in all prompts.
    """
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[str(item.folder), item.question.domain].append(item)
    for (folder, domain), group in groups.items():
        yield f"\n=== {domain or 'no domain'}: {len(group)} {config.item_kind} -> {folder}"
        yield _label_line(group, config)
        for item in islice(group, PROMPTS):
            yield from _prompt(item, config, chat)
    yield ""
    yield guard_report(items, config, chat)


def needs(items: list[Item], todo: list[Item], config: Config, chat: ChatFormat) -> Iterator[str]:
    """Yield one aligned block: the tokens, judge calls and time that the items to do take, and how
    many right and wrong first answers an AUROC needs.

    The model is loaded and timed for two seconds, unless its weights are too large for that, or a
    server or a file has the answers.
    """
    rows = [("tokens", _tokens(todo, config, chat)), ("time", _time(todo, config, chat))]
    if not config.replay:
        asked = server_calls(config.judge, [item.question for item in todo])
        if config.first_answers == "shipped":
            asked = "none: the labels are the data set's"
        rows.insert(1, ("judge calls", asked))
    domains = Counter(item.question.domain or "no domain" for item in items)
    rows += [("right and wrong", line) for line in _right_and_wrong(domains)]
    yield "\nwhat this run takes"
    yield from block(rows)
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
    golds = " | ".join(item.question.gold_answers) or "none"
    yield f"gold answers (for the judge, not in the prompt): {golds}"


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


def _tokens(todo: list[Item], config: Config, chat: ChatFormat) -> str:
    lengths = []
    for item in todo:
        try:
            lengths.append(len(chat.render(first_messages(item, config, chat))))
        except UserError:  # shown with the prompts, and an error of its own in the run
            continue
    if not lengths:
        return "none"
    first = (
        f"first prompts of {sum(lengths) / len(lengths):,.0f} on average, {max(lengths):,} at most"
    )
    turns = sum(item.n_turns for item in todo)
    if config.replay:
        return f"{first}; {turns:,} answers, which are there"
    most = f"{turns:,} answers of at most {config.max_new_tokens:,}"
    return f"{first}; {most}, {turns * config.max_new_tokens:,} in all"


def _time(todo: list[Item], config: Config, chat: ChatFormat) -> str:
    if config.is_served:
        return "not measured: a server generates"
    if config.replay or config.tp_plan or not todo:
        why = "nothing is to do" if not todo else "of a replay" if config.replay else "of tp_plan"
        return f"not measured: {why}"
    try:
        size = sum(file.stat().st_size for file in weight_files(config.model_path))
    except UserError as error:
        return f"not measured: {error}"
    if size > TRIAL_BYTES:
        return (
            f"not measured: the weights are {size / 1e9:.1f} GB, and a dry run loads "
            f"{TRIAL_BYTES / 1e9:.0f} GB at most; the run itself says it when it begins"
        )
    engine = make_engine(config, chat, load_model(config.placement), len(todo))
    return expected_time(engine, todo, config)


def _right_and_wrong(domains: Counter[str]) -> Iterator[str]:
    """Yield how many questions give enough answers of both classes, and which domains are short."""
    whole, held_out = (
        [questions_needed(rate, share) for rate in (0.3, 0.5)] for share in (1.0, HELD_OUT)
    )
    yield (
        f"an AUROC takes {MIN_PER_CLASS} right and {MIN_PER_CLASS} wrong first answers: about "
        f"{whole[0]} questions of a domain if 30% are right, {whole[1]} if half are"
    )
    yield (
        f"for the training domain's own test split, {HELD_OUT:.0%} of it, about {held_out[0]} and "
        f"{held_out[1]}"
    )
    for least, what in ((whole[1], "any AUROC"), (held_out[1], "the AUROC of a test split")):
        short = [f"{name} ({n})" for name, n in domains.items() if n < least]
        domains = Counter({name: n for name, n in domains.items() if n >= least})
        if short:
            yield f"too few for {what}, whatever the model answers: {_few(short)}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
