"""Doing the work of stage 1: dialogues are held, or read from files, labelled, and written.

`hold` is the whole of it. An item becomes a `Job`, which the local engine or a server runs as a
conversation, or a transcript of a dialogue on file; what comes back is written once its label is
there.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI
from transformers import PreTrainedConfig, PreTrainedModel

from spikescore.dialogues.config import TYPICAL_ANSWER_TOKENS, Config
from spikescore.dialogues.dialogue import Dialogue, Recorded, dialogue_record, opening, stop_late
from spikescore.dialogues.keeping import KeptTurns, digest
from spikescore.dialogues.leaks import check_prompt, leak_report
from spikescore.dialogues.plan import Item, is_finished, server_url
from spikescore.dialogues.prompts import FAMILIES, Families, load_prompts
from spikescore.dialogues.recorded import (
    given_fields,
    recorded_dialogue,
    shipped_dialogue,
    shipped_fields,
)
from spikescore.errors import Refused, UserError, redacted
from spikescore.labels.judges import (
    BackgroundLabels,
    Judge,
    Judgement,
    coverage_line,
    describe_judge,
)
from spikescore.model.architecture import longest_context
from spikescore.model.chat import ChatFormat, Message
from spikescore.model.engine import TRIAL_TOKENS, Engine
from spikescore.model.loading import (
    generation_processors,
    load_architecture,
    load_model,
    model_identity,
    stop_ids,
)
from spikescore.model.memory import auto_batch_size
from spikescore.model.reading import Exchange, Transcript, read_transcripts, reread
from spikescore.model.sampling import Sampling
from spikescore.model.served_states import ServedStates
from spikescore.model.serving import ServedGenerator, Server
from spikescore.model.turns import Finished, Limits, Turn
from spikescore.pairs import read_record, write_error, write_pair
from spikescore.runtime import progress

log = logging.getLogger("spikescore")

TYPICAL_PROMPT_TOKENS = 64  # a follow-up, and what the chat template puts around it


@dataclass
class Tally:
    """What happened, for the summary and the exit status."""

    written: int = 0
    skipped: int = 0
    failed: int = 0
    n_tokens: int = 0  # of the answers
    guard: str = ""  # the leak guard's report
    judgements: list[Judgement] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    # first answers that a limit cut off, by their label
    cut_off: Counter[str] = field(default_factory=Counter)

    def figures(self, seconds: float) -> dict[str, float]:
        """Return what a log keeps of a run that took so long."""
        judged = self.labels["hallucinated"] + self.labels["consistent"]
        rate = {"hallucination_rate": self.labels["hallucinated"] / judged} if judged else {}
        return {
            "written": self.written, "skipped": self.skipped, "failed": self.failed,
            "first_answers_cut_off": self.cut_off.total(), "answer_tokens": self.n_tokens,
            "seconds": seconds, "tokens_per_second": self.n_tokens / max(seconds, 1e-9), **rate,
        }  # fmt: skip


def summary(tally: Tally, config: Config, seconds: float) -> Iterator[str]:
    """Say what happened, in one aligned block, and what to do next."""
    folder = config.output_dir
    rows = [
        (
            "pairs",
            f"wrote {tally.written} pairs; {tally.skipped} were done before; {tally.failed} failed",
        )
    ]
    if tally.judgements:
        rows.append(("labels", coverage_line(tally.judgements).removeprefix("labels: ")))
    if tally.labels:
        rows.append(("first answers", _counts(tally.labels)))
    if cut := tally.cut_off.total():
        rows += [
            ("cut off", f"{cut} first answers ({_counts(tally.cut_off)}) by max_new_tokens or"),
            ("cut off", "generation_timeout: raise it, or labels tell of the limit, not the model"),
        ]
    speed = f"{tally.n_tokens / seconds:,.0f} tokens/s" if seconds else ""
    rows.append(("time", f"{seconds:.0f} s for {tally.n_tokens:,} tokens of answers: {speed}"))
    rows.append(("where", folder))
    if tally.failed:
        told = "run the same command again to retry those that failed; each left an <id>.error.json"
        rows.append(("next", told))
    if tally.labels["unlabelled"] or tally.labels["unread"]:
        label = f"python scripts/label_answers.py --relabel {folder} --judge NAME"
        rows.append(("next", f"{label}  (who labels the rest)"))
    _, first = config.datasets()[0]
    train = "python ./semantic-entropy-probes/probes_trainer.py"
    first = folder if config.replay else first
    rows.append(("next", f"{train} --data_dirs {first} --save_path ./probe_output/NAME.pkl"))
    yield "stage 1 is done"
    yield from block(rows)
    if tally.guard:
        yield tally.guard


def _counts(labels: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(labels.items()) if count)


def block(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield (name, text) as lines of two aligned columns; a name is not repeated."""
    before = ""
    for name, text in rows:
        yield f"  {'' if name == before else name:<17}{text}"
        before = name


# --- who answers ------------------------------------------------------------------------------


def connect(config: Config, chat: ChatFormat) -> ServedGenerator:
    """Connect to the server of the dialogues; see that it answers and how it differs from here."""
    # a key goes only to the place that it is meant for
    name = "SERVER_API_KEY" if config.server_url else "OPENAI_API_KEY"
    key = os.environ.get(name, "").strip() or "none"
    url = server_url(config)

    def make_client(*, timeout: float, max_retries: int) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=key, base_url=url, timeout=timeout, max_retries=max_retries)

    states = None
    if config.states == "server":
        architecture = load_architecture(config.placement)
        states = ServedStates(architecture, config.model_path, config.dtype)
    generator = ServedGenerator(
        Server(url, config.server_model or config.model_path, make_client, config.max_in_flight),
        chat,
        Sampling(config.temperature, config.top_p, config.sampling.seed),
        states,
    )
    generator.check()
    return generator


def who_answers(
    config: Config, chat: ChatFormat, server: ServedGenerator | None
) -> tuple[ServedGenerator | None, PreTrainedModel | None]:
    """Return the server of the dialogues, where one holds them, and the model that reads the states
    or does all, where no server does; `server` is one that is connected already.
    """
    if config.states == "server":
        return server, None
    if config.is_served:
        server = connect(config, chat)
    model = load_model(config.placement)  # it may be large: a server was reached first
    if server and (difference := server.probe.against(model)):
        log.warning("%s", difference)
    return server, model


def make_engine(config: Config, chat: ChatFormat, model: Any, n_items: int) -> Engine:
    """The local engine, its batch size chosen from the free memory unless the config says it."""
    limits = limits_of(config, model.config)
    batch_size = config.batch_size
    if batch_size == "auto":
        turn = answer_tokens(config) + TYPICAL_PROMPT_TOKENS
        tokens = min(limits.max_context, turn * config.max_steps)
        batch_size = auto_batch_size(
            model, tokens_per_dialogue=tokens, n_items=n_items, turns=config.max_steps
        )
    return Engine(
        model,
        stop_ids=stop_ids(model, chat),
        sampling=Sampling(
            config.temperature,
            config.top_p,
            config.sampling.seed,
            generation_processors(model, apply=config.use_model_generation_config),
        ),
        limits=limits,
        batch_size=batch_size,
    )


def answer_tokens(config: Config) -> int:
    """How long an answer is taken to be where nobody knows."""
    return min(config.max_new_tokens, TYPICAL_ANSWER_TOKENS)


def expected_time(engine: Engine, todo: list[Item], config: Config) -> str:
    """Time a turn in the middle of dialogues, and say how long the items will take."""
    length = answer_tokens(config)
    most = max(2, engine.limits.max_context - max(length, TRIAL_TOKENS))  # before an answer
    held = min(most - 1, config.max_steps * (length + TYPICAL_PROMPT_TOKENS) // 2)
    prompt = min(TYPICAL_PROMPT_TOKENS, most - held)
    seconds = engine.seconds_per_turn(held=held, prompt=prompt, answer=length)
    minutes = sum(item.n_turns for item in todo) * seconds / 60
    spent = f"{minutes:.1f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
    return (
        f"about {spent} if every answer has {length} tokens (measured: {length / seconds:,.0f} "
        f"tokens/s with batch size {engine.batch_size} in the middle of a dialogue, "
        f"{held} tokens before it)"
    )


def limits_of(config: Config, architecture: PreTrainedConfig) -> Limits:
    context = min(config.model_max_tokens, longest_context(architecture))
    # clocks differ between processes that must stay in step
    seconds = None if config.tp_plan else config.generation_timeout
    return Limits(config.max_new_tokens, context, seconds)


# --- a run ------------------------------------------------------------------------------------


def identity_of(
    config: Config, chat: ChatFormat, server: ServedGenerator | None = None
) -> dict[str, str]:
    """What made the dialogues beside the settings, by content: the model's parts, and the prompts,
    that is what a conversation looks like to the model, and the texts of the follow-ups. Where a
    server reads the states, the weights are its own.

    UserError where the chat template writes another text each time: such prompts cannot be made
    again.
    """
    messages = [
        *opening(config.system_prompt, "What is asked?"),
        {"role": "assistant", "content": "What is answered."},
        {"role": "user", "content": "What is asked next?"},
    ]
    shown = [chat.rendering(messages) for _ in range(8)]
    if any(one != shown[0] for one in shown):
        raise UserError(
            f'the chat template of "{config.model_path}" writes another text each time (a clock, '
            "or chance), so that no prompt of it can be made again; give the model folder a "
            "template without that"
        )
    weights = server.states.weights if server and server.states else None
    parts = {name: part[:16] for name, part in model_identity(config.model_path, weights).items()}
    texts = {name: [prompt.text for prompt in some] for name, some in families_of(config).items()}
    return {**parts, "prompts": digest([shown[0].text, shown[0].ids, texts])}


def hold(
    todo: list[Item],
    config: Config,
    chat: ChatFormat,
    model: Any,
    judge: Judge,
    server: ServedGenerator | None,
    identity: dict[str, str],
    tally: Tally,
) -> None:
    """Have all dialogues held (by the local engine or a server) or read from files, and write each
    pair once its label is there. Every turn is kept from when it ends until its pair is written.
    `model` is None where the server reads the states.
    """
    engine = None
    architecture = model.config if model is not None else load_architecture(config.placement)
    if config.replay:
        print(f"labels are carried over; configuration {config.hash()}")
    else:
        if config.is_served:
            how = f"{server.server.model} at {redacted(server.server.url)}"
        else:
            engine = make_engine(config, chat, model, len(todo))
            how = f"batch size {engine.batch_size}"
            print(expected_time(engine, todo, config))
        who = f"judge: {describe_judge(config.judge, [item.question for item in todo])}"
        if config.first_answers == "shipped":
            who = "first answers and their labels are the data set's"
        print(f"{who}; {how}; configuration {config.hash()}")

    run = Run(config, chat, identity, tally, server if config.is_served else None)
    try:
        with (
            BackgroundLabels(judge) as run.labels,
            Progress(tally, todo, engine, server) as run.progress,
        ):
            limits = limits_of(config, architecture)
            if engine:
                results = engine.run(run.jobs(todo))
            else:
                if config.is_served:
                    transcripts = server.run(run.jobs(todo), limits)
                else:
                    recorded = run.recorded(todo)
                    transcripts = server.read(recorded, limits) if server else recorded
                results = read_transcripts(transcripts, model, chat, max_context=limits.max_context)
            waiting: list[tuple[Job, Finished]] = []
            for finished in results:
                job = finished.conversation
                if config.is_served and finished.error is None:
                    stop_late(finished, job.dialogue, config)
                reread(model, finished)
                run.progress.ended(job, finished)
                waiting.append((job, finished))
                # a pair is written once its label is there, or at the end
                for pair in [pair for pair in waiting if pair[0].is_labelled()]:
                    waiting.remove(pair)
                    run.write(*pair)
            for pair in waiting:
                run.write(*pair)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.what_is_kept()) from None
    run.kept.close()


def follow(
    todo: list[Item], config: Config, chat: ChatFormat, model: Any, identity: dict[str, str]
) -> None:
    """Compute this process's slices of the model in step with the first process, which writes."""
    engine = make_engine(config, chat, model, len(todo))
    expected_time(engine, todo, config)  # the first process times it too
    for finished in engine.run(Run(config, chat, identity, Tally()).jobs(todo)):
        reread(model, finished)


def families_of(config: Config) -> Families:
    return load_prompts(config.prompts_file) if config.prompts_file else FAMILIES


class Progress(AbstractContextManager):
    """The bar: turns, and after them dialogues, speed and failures; for any thread."""

    def __init__(
        self, tally: Tally, todo: list[Item], engine: Engine | None, server: ServedGenerator | None
    ) -> None:
        n_turns = sum(item.n_turns for item in todo)
        self._bar = progress(total=n_turns, unit="turn")
        self._n_items = len(todo)
        self._tally, self._engine, self._server = tally, engine, server
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()

    def turn(self, n_tokens: int) -> None:
        """An answer of so many tokens is there."""
        with self._lock:
            self._tally.n_tokens += n_tokens
            self._bar.update()
            speed = self._tally.n_tokens / (time.monotonic() - self._started)
            together = ""
            if self._engine:
                together = f"batch {self._engine.batch_size}, "
            elif self._server:
                together = f"{self._server.in_flight} in flight, "
            self._bar.set_postfix_str(
                f"{self._tally.written} of {self._n_items} dialogues, {speed:.0f} tokens/s, "
                f"{together}{self._tally.failed} failed",
                refresh=False,
            )

    def resumed(self, n_turns: int) -> None:
        """So many turns of a dialogue were there before."""
        with self._lock:
            self._bar.update(n_turns)

    def ended(self, job: Job, finished: Finished) -> None:
        """Count the turns that a dialogue did not come to, or that were read in one go."""
        if job.item.source:
            for turn in finished.turns:
                self.turn(len(turn.answer_ids))
        with self._lock:
            self._bar.update(job.item.n_turns - len(finished.turns))


class Job:
    """One item on its way: its dialogue, where it goes, and the label that is being made for it.

    The engine and the server run it as a conversation. Its first answer is judged while the
    dialogue goes on. `carried` holds fields of the record that are known beforehand (of a dialogue
    from a file: its label and where it comes from; of one that begins with a given answer: its
    label). `turns`, or with a server `exchanges`, are those that it begins with: what an earlier
    run left of it, and with a server a given answer. `given` has that answer's ids for the engine.
    """

    def __init__(self, item: Item, dialogue: Dialogue | Recorded | None, run: Run) -> None:
        self.item = item
        self.item_id = item.question.seed_id
        self.dialogue = dialogue
        self.carried: dict[str, Any] = {}
        self.label: Future[Judgement] | None = None
        self.turns: list[Turn] = []
        self.exchanges: list[Exchange] = []
        self.is_over = False
        self.given: list[int] | None = None
        self.first_turn = 2 if item.question.first_answer else 1  # that is asked for
        self._next: list[int] | UserError | None = None  # what resuming found of the next prompt
        self._run = run

    @property
    def messages(self) -> list[Message]:
        if isinstance(self._next, UserError):
            raise self._next
        return self.dialogue.messages

    def answered(self, text: str, n_tokens: int) -> bool:
        """A server's answer: True when there is another prompt (`serving.Spoken`)."""
        said = self.exchanges[-1]
        self._keep(digest(said.messages), text=text, finish=said.finish_reason)
        self._turn_ended(n_tokens)
        return self._hear(text, n_tokens)

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        """The engine's question for the next turn (`turns.Conversation`)."""
        if self.turns and last is self.turns[-1]:
            if isinstance(self._next, UserError):
                raise self._next
            return self._next
        if last is not None:
            self._keep(
                digest(last.prompt_ids),
                ids=last.answer_ids,
                logprobs=[round(value, 9) for value in last.logprobs],  # float32, so exact
                entropies=[round(value, 9) for value in last.entropies],
                confidence=last.first_token_confidence,
                finish=last.finish_reason,
                seconds=last.seconds,
            )
            self._turn_ended(len(last.answer_ids))
        prompt = self.dialogue.next_prompt(last) if last else self._first_prompt()
        self._judge()
        return prompt

    def _first_prompt(self) -> list[int]:
        prompt = self.dialogue.next_prompt(None)
        self.given = self.dialogue.given_ids()
        return prompt

    def resume(self) -> None:
        """Play the dialogue again up to where an earlier run left it."""
        for entry in self._run.kept.take(self.item.folder, self.item.question.id):
            try:
                if not (self._hear_again if self._run.server else self._take_again)(entry):
                    break
            # a damaged line, or an answer that is no longer given so: the turn is done again
            except (KeyError, TypeError, ValueError, UserError):
                break
        if (n_turns := len(self.turns or self.exchanges)) and self._run.progress:
            self._run.progress.resumed(n_turns)

    def _hear_again(self, entry: dict[str, Any]) -> bool:
        first = None if self.exchanges else self.item.question.first_answer
        if entry["prompt"] != digest(self.messages) or (first and entry["text"] != first.text):
            return False
        n_tokens = self._run.chat.length(entry["text"])
        self.exchanges.append(Exchange(list(self.messages), entry["text"], entry["finish"]))
        return self._hear(entry["text"], n_tokens)

    def _take_again(self, entry: dict[str, Any]) -> bool:
        prompt = self._next if self.turns else self._first_prompt()
        if entry["prompt"] != digest(prompt):
            return False
        if self.given and not self.turns and entry["ids"] != self.given:
            return False
        turn = Turn(
            len(self.turns) + 1,
            prompt,
            answer_ids=[int(token) for token in entry["ids"]],
            logprobs=[float(value) for value in entry["logprobs"]],
            entropies=[float(value) for value in entry["entropies"]],
            first_token_confidence=entry["confidence"],
            finish_reason=entry["finish"],
            seconds=float(entry["seconds"]),
        )
        self.turns.append(turn)
        try:
            self._next = self.dialogue.next_prompt(turn)
        except UserError as error:
            self._next = error
        self._judge()
        return isinstance(self._next, list)

    def say_given(self) -> None:
        """Begin a server's dialogue with the answer that is given, unless it has begun."""
        first = self.item.question.first_answer
        if first is None or self.exchanges:
            return
        try:
            ids = self.dialogue.given_ids()
        except UserError as error:
            self._next = error
            return
        self.exchanges.append(Exchange(list(self.messages), first.text))
        self.answered(first.text, len(ids))

    def _hear(self, text: str, n_tokens: int) -> bool:
        self.is_over = not self.dialogue.answered(text, n_tokens)
        self._judge()
        return not self.is_over

    def _keep(self, prompt: str, **answer: Any) -> None:
        if self._run.progress:  # a process that only follows keeps nothing
            number = len(self.dialogue.answers) + 1
            item_id = self.item.question.id
            self._run.kept.add(self.item.folder, item_id, number, prompt, **answer)

    def _turn_ended(self, n_tokens: int) -> None:
        if self._run.progress:
            self._run.progress.turn(n_tokens)

    def _judge(self) -> None:
        """Have the first answer judged, once it is there."""
        known = "nil_label" in self.carried
        if self.label is None and not known and self.dialogue.answers and self._run.labels:
            self.label = self._run.labels.submit(self.item.question, self.dialogue.answers[0])

    def is_labelled(self) -> bool:
        return self.label is None or self.label.done()


@dataclass
class Run:
    """What the jobs of one run share; without `labels` and `progress` where it only follows."""

    config: Config
    chat: ChatFormat
    identity: dict[str, str]
    tally: Tally
    server: ServedGenerator | None = None
    labels: BackgroundLabels | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.kept = KeptTurns(self.config, digest([self.config.hash(), self.identity]))
        self._under_way: set[Job] = set()

    def jobs(self, todo: list[Item]) -> Iterator[Job]:
        """Yield the items as there is room for them, skipping what another process finished."""
        families = families_of(self.config)
        for item in self._still_to_do(todo):
            job = Job(item, Dialogue(item.question, self.config, self.chat, families), self)
            self._under_way.add(job)
            if item.question.first_answer:
                job.carried = given_fields(item.question)
            job.resume()
            if self.server:
                job.say_given()
            yield job

    def recorded(self, todo: list[Item]) -> Iterator[Transcript]:
        """Yield the dialogues of files as transcripts to be read."""
        for item in self._still_to_do(todo):
            try:
                kept, dialogue, exchanges = read_dialogue(
                    item, self.config, self.chat, self.identity
                )
            except UserError as error:
                yield Transcript(Job(item, None, self), [], "error", str(error))
                continue
            reason = str(kept.pop("finish_reason", None) or "complete")
            job = Job(item, dialogue, self)
            job.carried = {**kept, "replayed_from": item.replayed_from}
            yield Transcript(job, exchanges, reason)

    def _still_to_do(self, todo: list[Item]) -> Iterator[Item]:
        for item in todo:
            # processes that must stay in step do the same items whatever appears on disk
            if not self.config.tp_plan and is_finished(item, self.config):
                self.tally.skipped += 1
            else:
                yield item

    def write(self, job: Job, finished: Finished) -> None:
        """Write one finished dialogue as a pair, or the reason why there is none."""
        item, tally = job.item, self.tally
        try:
            if finished.error is not None:
                raise UserError(finished.error)
            record = self._record(job, finished)
            states = {turn.number: turn.states for turn in finished.turns}
            write_pair(item.folder, record, states, model=self.config.model_path)
        except Refused:
            raise
        except UserError as error:
            tally.failed += 1
            reason, config_hash = str(error), self.config.hash()
            write_error(item.folder, item.question.id, reason, config_hash=config_hash)
        else:
            tally.written += 1
        self._under_way.discard(job)

    def _record(self, job: Job, finished: Finished) -> dict[str, Any]:
        record = dialogue_record(finished, job.dialogue, self.config, self.chat)
        record |= {**job.carried, "identity": self.identity}
        if self.server:
            record["backend"] = self.config.backend
            record["server_model"] = self.server.server.model
        unread = False
        if job.label is not None:
            judgement = job.label.result()
            unread = judgement.unread
            self.tally.judgements.append(judgement)
            record["nil_label"], record["nil_judge"] = judgement.label, judgement.as_dict()
        if job.label is not None or "nil_label" in job.carried:
            label = "unread" if unread else label_name(record["nil_label"])
            self.tally.labels[label] += 1
            self.tally.cut_off[label] += record["first_answer_cut_off"]
        return record

    def what_is_kept(self) -> str:
        """Say, of a run that is interrupted, what is on disk, what is lost and how to go on."""
        items = [(job.item.folder, job.item.question.id) for job in self._under_way]
        turns, dialogues = self.kept.count(items)
        kept = f"{self.tally.written} pairs are written"
        if turns:
            kept += f", and {turns} finished turns of {dialogues} other dialogues are kept"
        lost = f"lost are the turns that were being answered, {len(self._under_way)} at most"
        if self.config.replay:
            lost = "lost is the dialogue that was being read"
        return f"{kept} in {self.config.output_dir}; {lost}; run the same command to go on"


# --- what is asked first ----------------------------------------------------------------------

_CARRIED = ("seed", "nil_label", "nil_judge", "finish_reason")


def read_dialogue(
    item: Item,
    config: Config,
    chat: ChatFormat | None = None,
    identity: dict[str, str] | None = None,
) -> tuple[dict[str, Any], Recorded, list[Exchange]]:
    """Read an item's dialogue, and what its record carries over; UserError naming the file."""
    try:
        if "shipped" in item.question.meta:
            return shipped_fields(item.question), *shipped_dialogue(item.question)
        record = {**read_record(item.source), "id": item.question.id}
        kept = {key: record.get(key) for key in _CARRIED}
        if record.get("messages") is not None:
            kept["messages"] = record["messages"]
        return kept, *recorded_dialogue(record, config, chat, identity)
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
    report = leak_report(leaks, len(items), (item.question for item in items))
    if leaks and config.replay:
        report += "\n  (recorded prompts are replayed as they are: this is a report, no more)"
    return report


def label_name(label: int | None) -> str:
    return {1: "consistent", 0: "hallucinated", None: "unlabelled"}[label]
