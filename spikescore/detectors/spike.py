"""SpikeScore for questions of one's own: a dialogue is held, scored as it goes on, and flagged.

    detector = SpikeDetector("./models/smollm2-135m-instruct", "./probes/smollm2-135m-instruct.pkl")
    detector.score("Who wrote Hamlet?").flagged

The three stages do the same over folders of dialogues; here nothing is written, and a dialogue ends
as soon as it is flagged. It is held as those were on which the probe's threshold was set, so that
its score can be compared with it; its answers follow from the seed, the question and what else is
asked with it, and from nothing that runs beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from spikescore.data.adapters.project import project
from spikescore.data.question import Question, record_fields
from spikescore.data.reading import load_questions
from spikescore.data.retrieval import with_passages
from spikescore.dialogues.config import Config, dialogue_keys, parse_config
from spikescore.dialogues.dialogue import Dialogue, dialogue_record
from spikescore.dialogues.running import families_of, identity_of, make_engine
from spikescore.errors import UserError
from spikescore.model.architecture import size_of
from spikescore.model.chat import ChatFormat
from spikescore.model.engine import Engine
from spikescore.model.loading import load_architecture, load_model, load_tokenizer
from spikescore.model.placement import check_placement
from spikescore.model.turns import Finished, Turn
from spikescore.probes.layers import LayerRange
from spikescore.probes.probe import Probe, load_probe
from spikescore.stats.trajectory import MIN_SCORES, spike_score, spike_turn

TOGETHER = 128
"""Most dialogues that advance together; fewer where memory is short."""


@dataclass(frozen=True)
class Detection:
    """What came of one question; `as_dict` is what programs get.

    `scores` are the probe's, one per turn that was held; a higher one means more hallucinated.
    `spike_turn` counts from 1. `spike_score` is None with fewer than three turns, `flagged` also
    where the probe has no `threshold`. After an early stop the score is that of the turns held:
    later turns could only raise it. `finish_reason` is `flagged` then, else `complete`, `context`,
    `timeout`, `perplexity`, or `error` with an `error` that says what is wrong. `given`: the first
    answer came with the question. `comparable`: the dialogue was held as those on which the
    threshold was set. `probe_split` names the split in which the probe knows the question, if it
    does not say "unseen". `record` is the dialogue in the form of stage 1's JSON, scores of stage 2
    included.
    """

    id: str
    question: str
    answer: str | None
    given: bool
    scores: list[float]
    spike_score: float | None
    spike_turn: int | None
    threshold: float | None
    flagged: bool | None
    turns_held: int
    max_turns: int
    stopped_early: bool
    finish_reason: str
    comparable: bool
    probe_split: str
    model: str
    probe: str
    seed: int
    error: str | None = None
    record: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields but `record`, as JSON can hold them."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "record"}


class SpikeDetector:
    """A model and a probe of it, ready to score questions.

    `probe` is a file, or a `Probe`. `settings` replaces single keys of config.json; all others are
    those under which the probe's threshold was set. `notes` says in sentences what keeps a score
    from being compared with the threshold, if anything does. With `whole` every dialogue is held to
    its last turn. `token_key` and `layer_range` are for older probe files that do not name theirs.
    Raises UserError for a probe of another model, fewer than three turns, and what the probe's file
    or the model's folder lacks.
    """

    def __init__(
        self,
        model: str | Path,
        probe: str | Path | Probe,
        *,
        settings: Mapping[str, Any] | None = None,
        whole: bool = False,
        token_key: str | None = None,
        layer_range: LayerRange | None = None,
    ) -> None:
        self.whole = whole
        self.probe_path = "" if isinstance(probe, Probe) else str(probe)
        own = probe if isinstance(probe, Probe) else load_probe(probe)
        self.config = self._config_for(str(model), own, settings or {})
        check_placement(self.config.placement)
        tokenizer = load_tokenizer(self.config.placement)
        self.chat = ChatFormat(tokenizer, enable_thinking=self.config.enable_thinking)
        self.identity = identity_of(self.config, self.chat)
        architecture = load_architecture(self.config.placement)
        self.probe = own.check(
            model=str(model),
            identity=self.identity,
            n_layers=size_of(architecture, "num_hidden_layers"),
            hidden_size=size_of(architecture, "hidden_size"),
            token_key=token_key,
            layer_range=layer_range,
            where=f'model "{model}"',
        )
        self.differences = self._differences()
        self.families = families_of(self.config)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, loaded when it is first needed."""
        return load_model(self.config.placement)

    @cached_property
    def _engine(self) -> Engine:
        return make_engine(self.config, self.chat, self.model, TOGETHER)

    @cached_property
    def _together(self) -> int:
        return self._engine.batch_size

    def score(
        self, questions: str | Question | Sequence[str | Question], *, answer: str | None = None
    ) -> Detection | list[Detection]:
        """Score a question, or each of a list; the dialogues of a list advance together.

        `answer` is the first answer of a single question, which the model then did not give.
        Raises UserError where a question by itself cannot be scored; one of a list has an `error`.
        """
        if isinstance(questions, str | Question):
            (found,) = self.run([as_question(questions)], answer=answer)
            if found.error is not None:
                raise UserError(f"the question cannot be scored: {found.error}")
            return found
        if answer is not None:
            raise ValueError("an answer can be given to a single question alone")
        return list(self.run([as_question(one) for one in questions]))

    def run(
        self,
        questions: Sequence[Question],
        *,
        answer: str | None = None,
        on_turn: Callable[[], object] = lambda: None,
    ) -> Iterator[Detection]:
        """Yield what comes of the questions, in their order, each as soon as it and those before it
        are there. `on_turn` is called whenever a turn has ended. Where the dialogues are held with
        documents ("context"), each question is shown its passages.
        """
        if self.config.context:
            source = Path(self.config.context["from"])
            questions = with_passages(questions, source, self.config.top_k).questions
        dialogues = [_Scored(question, self, answer, on_turn) for question in questions]
        places = {dialogue: place for place, dialogue in enumerate(dialogues)}
        self._engine.batch_size = min(self._together, max(1, len(dialogues)))
        done: dict[int, Detection] = {}
        first = 0
        for finished in self._engine.run(dialogues):
            done[places[finished.conversation]] = self._detection(finished)
            while first in done:
                yield done.pop(first)
                first += 1

    def score_of(self, turn: Turn) -> float:
        """Return the probe's score of a turn; UserError where it is no finite number."""
        state = turn.states[self.probe.token_key]
        value = float(self.probe.score(self.probe.features([state]))[0])
        if not np.isfinite(value):
            raise UserError(f"turn {turn.number}: its state is beyond what the probe can score")
        return value

    def _detection(self, finished: Finished) -> Detection:
        dialogue, error = finished.conversation, finished.error
        try:  # a turn that a time limit ended was told to nobody
            for turn in finished.turns[len(dialogue.scores) :] if error is None else ():
                dialogue.scores.append(self.score_of(turn))
        except UserError as problem:
            error = str(problem)
        record = dialogue_record(finished, dialogue, self.config, self.chat)
        record["identity"] = self.identity
        scores = dialogue.scores[: len(finished.turns)]
        record["metrics"] = {"probe_pred": scores}
        for step, score in zip(record["cot_steps"], scores, strict=False):
            step["metrics"] = {"probe_pred": score}
        enough = error is None and len(scores) >= MIN_SCORES
        spike = spike_score(scores) if enough else None
        threshold = self.probe.spike_threshold
        return Detection(
            id=dialogue.question.id,
            question=dialogue.question.question,
            answer=record["cot_steps"][0]["response"] if record["cot_steps"] else None,
            given=bool(dialogue.given),
            scores=scores,
            spike_score=spike,
            spike_turn=spike_turn(scores) if enough else None,
            threshold=threshold,
            flagged=None if spike is None or threshold is None else spike >= threshold,
            turns_held=len(scores),
            max_turns=self.config.max_steps,
            stopped_early=dialogue.stopped == FLAGGED,
            finish_reason="error" if error is not None else record["finish_reason"],
            comparable=not self.notes(given=bool(dialogue.given)),
            probe_split=self.probe.split_of(record_fields(dialogue.question)),
            model=self.config.model_path,
            probe=self.probe_path,
            seed=self.config.sampling.seed,
            error=error,
            record=record,
        )

    # --- the settings ---------------------------------------------------------------------------

    def _config_for(self, model: str, probe: Probe, settings: Mapping[str, Any]) -> Config:
        known = dialogue_keys()
        held = {key: one for key, one in probe.dialogues.get("config", {}).items() if key in known}
        # here the local engine holds them, and no clock has a say in what is said
        held |= {"backend": "transformers", "generation_timeout": None, "first_answers": "model"}
        where = f'settings, those of the probe "{self.probe_path}" among them'
        config = parse_config({**held, **settings, "model_path": model}, source=where)
        if config.max_steps < MIN_SCORES:
            raise UserError(
                f'"max_steps" is {config.max_steps}: SpikeScore needs at least {MIN_SCORES} turns; '
                "set it higher"
            )
        if config.is_served or config.replay or config.tp_plan:
            raise UserError(
                "here the local model alone holds dialogues; leave out backend, replay and tp_plan"
            )
        if config.first_answers != "model":
            raise UserError("a first answer is given by --answer; leave out first_answers")
        return config

    def _differences(self) -> list[str]:
        """Return what is other than for the dialogues on which the threshold was set."""
        held, now = self.probe.dialogues.get("config", {}), self.config.resolved()
        # the texts count, not who said them or where they lie; `notes` knows of first answers
        apart = ("prompts_file", "backend", "first_answers")
        found = [
            f"{key}: {held[key]} -> {now[key]}"
            for key in dialogue_keys()
            if key in held and key not in apart and held[key] != now[key]
        ]
        prompts = self.probe.dialogues.get("prompts")
        if prompts and prompts != self.identity["prompts"] and not found:
            found.append("the texts of the follow-ups, or the chat template")
        return found

    def notes(self, *, given: bool = False) -> list[str]:
        """What keeps a score from being compared with the threshold, a sentence for each; `given`:
        of dialogues that begin with a given answer.
        """
        if self.probe.spike_threshold is None:
            return ["no threshold in this probe: a score is given, and nothing is flagged; a probe "
                    "that is trained on dialogues of three turns or more has one"]  # fmt: skip
        notes = []
        if not self.probe.dialogues:
            notes.append("the probe file does not say how the dialogues were held on which its "
                         "threshold was set; config.json's defaults are used")  # fmt: skip
        if several := self.probe.dialogues.get("several"):
            notes.append("the threshold was set on dialogues that were held in several ways "
                         f"({', '.join(several)})")  # fmt: skip
        held = self.probe.dialogues.get("config", {}).get("first_answers", "model")
        if self.probe.dialogues and given != (held == "shipped"):
            whose = "given answers" if held == "shipped" else "the model's own answers"
            notes.append(f"the threshold was set on dialogues that begin with {whose}")
        if self.differences:
            notes.append("the threshold was set on dialogues that were held otherwise "
                         f"({'; '.join(self.differences)})")  # fmt: skip
        return notes


FLAGGED = "flagged"


class _Scored(Dialogue):
    """A dialogue whose turns are scored as they end, and that ends itself where it is flagged.

    The engine runs it as a conversation (`turns.Conversation`). SpikeScore over the first k turns
    can only grow with k, so no later turn could take the flag away (`stats.early_stopping`).
    """

    def __init__(
        self,
        question: Question,
        detector: SpikeDetector,
        answer: str | None,
        on_turn: Callable[[], object],
    ) -> None:
        super().__init__(question, detector.config, detector.chat, detector.families)
        self.scores: list[float] = []
        self.given: list[int] | None = None
        self._detector, self._on_turn = detector, on_turn
        if answer is not None:
            self.given_text = answer

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        if last is None:
            prompt = super().next_prompt(None)
            self.given = self.given_ids()
            return prompt
        self.scores.append(self._detector.score_of(last))
        self._on_turn()
        early = not self._detector.whole and len(self.scores) < self._detector.config.max_steps
        if early and self._is_flagged():
            self.stopped = FLAGGED
            return None
        return super().next_prompt(last)

    def _is_flagged(self) -> bool:
        threshold = self._detector.probe.spike_threshold
        enough = threshold is not None and len(self.scores) >= MIN_SCORES
        return enough and spike_score(self.scores) >= threshold


# --- questions ----------------------------------------------------------------------------------


def as_question(asked: str | Question) -> Question:
    """Return a text as a question, with the id that it has in a file of such; UserError if empty.

    The id is a digest of the text, so the same question is sampled in the same way.
    """
    if isinstance(asked, Question):
        return asked
    if not asked.strip():
        raise UserError("the question is empty; ask something")
    (question,) = project({"question": asked.strip()})
    return question


def read_questions(path: str | Path, config: Config) -> list[Question]:
    """Read questions from a file: plain text (.txt), one a line, or whatever stage 1 reads, by the
    keys `dataset_format`, `fields`, `filters`, `answerable_only` and `on_bad_row`.

    Answers are not needed: rows with a `question` will do, other names are told by `fields`. Raises
    UserError for a file that is missing, cannot be read, or holds no question.
    """
    path = Path(path)
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f'"{path}" is not UTF-8 text; convert the file first') from error
        except OSError as error:
            raise UserError(f'"{path}" cannot be read: {error.strerror}') from error
        questions = [as_question(line) for line in lines if line.strip()]
        if not questions:
            raise UserError(f'"{path}" holds no question; write one on each line')
        return questions
    names = ("dataset_format", "fields", "filters", "answerable_only", "on_bad_row")
    options = {name: getattr(config, name) for name in names}
    try:
        return load_questions(path, **options).questions
    except UserError as error:
        if config.fields or config.dataset_format != "auto":
            raise
        unknown = error
    try:  # questions of somebody's own come without the answers by which a set is known
        return load_questions(path, **{**options, "dataset_format": "project"}).questions
    except UserError:
        raise unknown from None
