"""Measuring finished pairs group by group, many items at a time (see `measures` for the file)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.dialogues.config import Config
from spikescore.errors import UserError
from spikescore.labels.entailment import Entailment, NLIEntailment
from spikescore.measures.clustering import cluster_many
from spikescore.measures.file import Item, add_group, same_model, stored_turns
from spikescore.measures.icr import IcrReader
from spikescore.measures.lens import LensReader
from spikescore.measures.self_questions import (
    TRUTH_STATES,
    Case,
    SelfQuestions,
    draw_samples,
    selfcheck_nli,
)
from spikescore.model.architecture import text_config
from spikescore.model.chat import ChatFormat
from spikescore.model.engine import Engine
from spikescore.model.loading import auto_batch_size, stop_ids
from spikescore.model.sampling import Sampling
from spikescore.model.turns import LAST, Limits, Turn

TYPICAL_TOKENS = 256  # of an answer, for the choice of the batch size


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
    ) -> None:
        self._model = model
        self._chat = chat
        self._config = config
        self._settings = settings
        self._entailment = entailment
        self._shape = text_config(model.config)
        self._max_context = min(config.model_max_tokens, self._shape.max_position_embeddings)
        self._lens_reader: LensReader | None = None

    def open(self, item: Item) -> None:
        """Read an item's token ids and see that they are this model's."""
        try:
            item.turns = stored_turns(item.record)
        except UserError as error:
            item.error = str(error)
            return
        known = range(len(self._chat.tokenizer))
        foreign = not same_model(str(item.record.get("model")), self._config.model_path)
        for (prompt, answer), step in zip(item.turns, item.record["cot_steps"], strict=True):
            fits = all(token in known for token in prompt + answer)
            if not fits or (foreign and self._chat.text(answer) != step["response"].strip()):
                item.error = (
                    f"turn {step['turn']}: the token ids are another model's; give the model that "
                    "made the pair as --model_path"
                )
                return

    def measure(self, group: str, items: Sequence[Item]) -> None:
        """Measure one group of these items and put it into their contents."""
        measured_by = {
            "lens": self._lens,
            "attention": self._attention,
            "samples": self._samples,
            "questions": self._questions,
        }
        if todo := [item for item in items if item.error is None]:
            measured_by[group](todo)

    def _put(self, item: Item, group: str, **sections: dict[str, Any]) -> None:
        add_group(item.content, group, self._settings[group], **sections)

    # --- read from the dialogue's own tokens ---------------------------------------------------

    def _lens(self, items: Sequence[Item]) -> None:
        reader = self._lens_reader = self._lens_reader or LensReader(self._model)
        for item in items:
            try:
                found = reader.read(item.turns)
            except torch.OutOfMemoryError:
                item.error = "out of memory while reading the layers"
                continue
            turns = {"reasoning_score": found.reasoning_score, "sharpness": found.sharpness}
            self._put(item, "lens", turns=turns, first={"mind": found.mind})

    def _attention(self, items: Sequence[Item]) -> None:
        reader = IcrReader(self._model)
        for item in items:
            try:
                found = reader.read(*item.turns[0])
            except torch.OutOfMemoryError:
                item.error = "out of memory while reading the attention"
                continue
            self._put(item, "attention", first={"icr": found})

    # --- asked of the model --------------------------------------------------------------------

    def _samples(self, items: Sequence[Item]) -> None:
        asked = self._settings["samples"]
        fresh = [item for item in items if "samples" not in item.content]
        sampling = Sampling(asked["temperature"], asked["top_p"], asked["seed"])
        limits = Limits(asked["max_new_tokens"], self._max_context)
        n_draws = len(fresh) * asked["n_samples"]
        engine = Engine(
            self._model,
            stop_ids=stop_ids(self._model, self._chat.tokenizer),
            sampling=sampling,
            limits=limits,
            batch_size=self._batch_size(limits.max_new_tokens, n_draws),
        )
        cases = [self._case(item) for item in fresh]
        drawn = draw_samples(engine, cases, asked["n_samples"], sampling)
        for item, turns in zip(fresh, drawn, strict=True):
            if isinstance(turns, str):
                item.error = f"samples: {turns}"
            else:
                item.content["samples"] = self._as_samples(turns)
        self._judge([item for item in items if item.error is None])

    def _as_samples(self, turns: Sequence[Turn]) -> dict[str, Any]:
        middle = self._shape.num_hidden_layers // 2
        return {
            "texts": [self._chat.text(turn.answer_ids) for turn in turns],
            "logliks": np.array([sum(turn.logprobs) for turn in turns], dtype=np.float64),
            "n_tokens": [len(turn.answer_ids) for turn in turns],
            "states": np.stack([turn.states[LAST][middle] for turn in turns]),
        }

    def _judge(self, items: Sequence[Item]) -> None:
        """Put equal samples together, and hold the first answer against them."""
        judge = self._entailment
        answers = [(item.record["question"], item.content["samples"]["texts"]) for item in items]
        clusters = cluster_many(answers, judge, strict=True)
        contradicted = [math.nan] * len(items)
        if isinstance(judge, NLIEntailment):
            contradicted = selfcheck_nli(judge, [self._case(item) for item in items])
        for item, ids, value in zip(items, clusters, contradicted, strict=True):
            samples = {**item.content["samples"], "clusters": ids, "entailment": judge.name}
            self._put(item, "samples", samples=samples, first={"selfcheck_nli": value})

    def _questions(self, items: Sequence[Item]) -> None:
        n_samples = self._settings["questions"]["samples"]["n_samples"]
        cases = [self._case(item) for item in items]
        asks = SelfQuestions(
            self._model,
            self._chat,
            stop_ids=stop_ids(self._model, self._chat.tokenizer),
            max_context=self._max_context,
            batch_size=self._batch_size((2 + n_samples) * TYPICAL_TOKENS, len(items)),
        )
        shape = self._shape.num_hidden_layers + 1, self._shape.hidden_size
        none = np.full(shape, np.nan, np.float16)
        for item, states, *values in zip(
            items,
            asks.truth_states(cases),
            asks.p_true(cases),
            asks.verbalised_confidence(cases),
            asks.selfcheck_prompt(cases),
            strict=True,
        ):
            names = ("p_true", "verbalised_confidence", "selfcheck_prompt")
            first = states or dict.fromkeys(TRUTH_STATES, none)
            self._put(item, "questions", first=first | dict(zip(names, values, strict=True)))

    def _case(self, item: Item) -> Case:
        made_under = item.record.get("config") or {}
        return Case(
            item_id=str(item.record["id"]),
            system=made_under.get("system_prompt", self._config.system_prompt),
            prompt=item.first["prompt"],
            prompt_ids=tuple(item.turns[0][0]),
            answer=item.first["response"],
            samples=tuple(item.content.get("samples", {}).get("texts", ())),
        )

    def _batch_size(self, tokens: int, n_items: int) -> int:
        if self._config.batch_size != "auto":
            return self._config.batch_size
        tokens = min(self._max_context, tokens + 2 * TYPICAL_TOKENS)
        return auto_batch_size(self._model, tokens_per_dialogue=tokens, n_items=max(1, n_items))
