"""Items on their way through stage 1: from a question or a file to a pair on disk."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Protocol

from spikescore.dialogues.config import Config
from spikescore.dialogues.dialogue import Dialogue, dialogue_record
from spikescore.dialogues.leaks import check_prompt, leak_report
from spikescore.dialogues.plan import Item, Tally, is_finished
from spikescore.dialogues.prompts import Prompt
from spikescore.dialogues.recorded import (
    Recorded,
    recorded_dialogue,
    shipped_dialogue,
    shipped_fields,
)
from spikescore.errors import UserError
from spikescore.labels.judges import BackgroundLabels, Judgement
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.reading import Exchange, Transcript
from spikescore.model.serving import ServedGenerator
from spikescore.model.turns import Finished, Turn
from spikescore.pairs import read_record, write_error, write_pair


class Progress(Protocol):
    """Who is told of each answer."""

    def turn(self, n_tokens: int) -> None: ...


class Job:
    """One item on its way: its dialogue, where it goes, and the label that is being made for it.

    The engine and the server run it as a conversation. `carried` holds fields of the record that
    are known beforehand (of a dialogue from a file: its label and where it comes from).
    """

    def __init__(
        self, item: Item, dialogue: Dialogue | Recorded | None, progress: Progress
    ) -> None:
        self.item = item
        self.item_id = item.question.id
        self.dialogue = dialogue
        self.progress = progress
        self.carried: dict[str, Any] = {}
        self.label: Future[Judgement] | None = None

    def judge_with(self, labels: BackgroundLabels) -> None:
        """Have the first answer judged as soon as it is there."""

        def judge(answer: str) -> None:
            self.label = labels.submit(self.item.question, answer)

        self.dialogue.on_first_answer = judge

    @property
    def messages(self) -> list[Message]:
        return self.dialogue.messages

    def answered(self, text: str, n_tokens: int) -> bool:
        self.progress.turn(n_tokens)
        return self.dialogue.answered(text, n_tokens)

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        if last is not None:
            self.progress.turn(len(last.answer_ids))
        return self.dialogue.next_prompt(last)

    def is_labelled(self) -> bool:
        return self.label is None or self.label.done()


def jobs(
    todo: list[Item],
    config: Config,
    chat: ChatFormat,
    families: dict[str, tuple[Prompt, ...]],
    labels: BackgroundLabels,
    tally: Tally,
    progress: Progress,
) -> Iterator[Job]:
    """Yield the items as there is room for them, skipping what another process finished."""
    for item in still_to_do(todo, config, tally):
        dialogue = Dialogue(item.question, config, chat, families=families)
        job = Job(item, dialogue, progress)
        job.judge_with(labels)
        yield job


def recorded_jobs(
    todo: list[Item], config: Config, chat: ChatFormat, tally: Tally, progress: Progress
) -> Iterator[Transcript]:
    """Yield the dialogues of files as transcripts to be read."""
    for item in still_to_do(todo, config, tally):
        try:
            kept, dialogue, exchanges = read_dialogue(item, config, chat)
        except UserError as error:
            yield Transcript(Job(item, None, progress), [], "error", str(error))
            continue
        reason = str(kept.pop("finish_reason", None) or "complete")
        job = Job(item, dialogue, progress)
        job.carried = {**kept, "replayed_from": item.replayed_from}
        yield Transcript(job, exchanges, reason)


def still_to_do(todo: list[Item], config: Config, tally: Tally) -> Iterator[Item]:
    for item in todo:
        # processes that must stay in step do the same items whatever appears on disk
        if not config.tp_plan and is_finished(item, config):
            tally.skipped += 1
        else:
            yield item


_CARRIED = ("seed", "nil_label", "nil_judge", "finish_reason")


def read_dialogue(
    item: Item, config: Config, chat: ChatFormat | None = None
) -> tuple[dict[str, Any], Recorded, list[Exchange]]:
    """Read an item's dialogue, and the fields of its record that are carried over.

    UserError naming the file when it lacks something.
    """
    try:
        if "shipped" in item.question.meta:
            return shipped_fields(item.question), *shipped_dialogue(item.question)
        record = {**read_record(item.source), "id": item.question.id}
        kept = {key: record.get(key) for key in _CARRIED}
        if record.get("messages") is not None:
            kept["messages"] = record["messages"]
        return kept, *recorded_dialogue(record, config, chat)
    except UserError as error:
        raise UserError(f'"{item.source}", {item.question.id}: {error}') from error


def first_messages(item: Item, config: Config, chat: ChatFormat) -> list[Message]:
    """The messages before the first answer, as they are sent or were once sent."""
    if item.source is not None:
        return read_dialogue(item, config)[2][0].messages
    return Dialogue(item.question, config, chat).messages


def guard_report(items: list[Item], config: Config, chat: ChatFormat) -> str:
    """Have the leak guard look at every item's first prompt, keep what it finds with the item, and
    say what it was.

    A dialogue on file that cannot be read fails when its turn comes.
    """
    for item in items:
        try:
            messages = first_messages(item, config, chat)
        except UserError:
            continue
        boilerplate = [one["content"] for one in messages if one["role"] == "system"]
        shown = "\n\n".join(message["content"] for message in messages)
        item.leak = check_prompt(item.question, shown, boilerplate=boilerplate)
    leaks = [item.leak for item in items if item.leak]
    report = leak_report(leaks, len(items))
    if leaks and config.replay:
        report += "\n  (recorded prompts are replayed as they are: this is a report, no more)"
    return report


def write_pair_of(
    job: Job,
    finished: Finished,
    config: Config,
    chat: ChatFormat,
    server: ServedGenerator | None,
    tally: Tally,
) -> None:
    """Write one finished dialogue as a pair, or the reason why there is none."""
    item = job.item
    if finished.error is not None:
        tally.failed += 1
        write_error(item.folder, item.question.id, finished.error, config_hash=config.hash())
        return
    record = dialogue_record(finished, job.dialogue, config, chat) | job.carried
    if server:
        record["backend"], record["server_model"] = config.backend, server.server.model
    if job.label is not None:
        judgement = job.label.result()
        tally.judgements.append(judgement)
        record["nil_label"] = judgement.label
        record["nil_judge"] = judgement.as_dict()
    if job.label is not None or job.item.source:
        tally.labels[label_name(record["nil_label"])] += 1
    states = {turn.number: turn.states for turn in finished.turns}
    try:
        write_pair(item.folder, record, states, model=config.model_path)
    except UserError as error:
        tally.failed += 1
        write_error(item.folder, item.question.id, str(error), config_hash=config.hash())
        return
    tally.written += 1


def label_name(label: int | None) -> str:
    return {1: "consistent", 0: "hallucinated", None: "unlabelled"}[label]
