"""A run of generate_answers.py: asking, judging, P(True), and the run folder in the making.

What is known of a question is on disk as soon as it is known: its answers and its P(True) are parts
(`parts/<split>-<number>.pkl`, {question id: what is new of its entry}) until its split's
generations file takes them in. A run that is killed loses the questions in flight, and going on
gives what an uninterrupted run gives. What a run is made of stands in experiment_details.pkl from
the start, and going on with other settings is refused.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikescore.data.question import Question
from spikescore.errors import UserError
from spikescore.files import write_atomic
from spikescore.measures.run_folder import (
    SPLIT_NAMES,
    RunFolder,
    accuracy_of,
    file_of,
    read_generations,
    state_problem,
    write_details,
    write_generations,
)
from spikescore.measures.run_plan import BRIEF, Plan
from spikescore.measures.samples import AnswerPrompt, as_entry, asked_of, draw
from spikescore.model.placement import Placement
from spikescore.pairs import model_difference
from spikescore.pickles import load_pickle
from spikescore.runtime import progress

if TYPE_CHECKING:  # a folder is checked before these, and torch with them, are loaded
    from transformers import PreTrainedModel

    from spikescore.labels.judges import Accuracy
    from spikescore.model.engine import Engine
    from spikescore.model.sampling import Sampling

log = logging.getLogger("spikescore")


@dataclass
class AnswerRun:
    """A run folder in the making. `entries` holds each split's questions that were asked."""

    plan: Plan
    folder: Path
    entries: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    _described: bool = False
    _n_parts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in (*self.plan.questions, "p_true"):
            self.entries[split] = self._kept(split) if self.plan.args.resume else {}
        self._check()

    # --- the model: loaded only if something is left to ask -----------------------------------

    @cached_property
    def model(self) -> PreTrainedModel:
        from spikescore.model.loading import load_model

        return load_model(self._placement)

    @cached_property
    def prompt(self) -> AnswerPrompt:
        from spikescore.model.chat import ChatFormat
        from spikescore.model.loading import load_tokenizer

        args = self.plan.args
        chat = ChatFormat(load_tokenizer(self._placement), enable_thinking=False)
        return AnswerPrompt(
            chat,
            instruction=BRIEF[args.brief_prompt],
            examples=self.plan.examples,
            use_context=args.use_context,
            use_template=args.chat_template and chat.tokenizer.chat_template is not None,
        )

    @cached_property
    def engine(self) -> Engine:
        from spikescore.model.engine import Engine
        from spikescore.model.loading import stop_ids
        from spikescore.model.memory import auto_batch_size
        from spikescore.model.turns import Limits

        args = self.plan.args
        prompts = [self.prompt.ids(q) for q in self.plan.questions["validation"][:50]]
        tokens = max(map(len, prompts)) + args.model_max_new_tokens
        n_answers = sum(map(len, self.plan.questions.values())) * (args.num_generations + 1)
        size = args.batch_size
        if size == "auto":
            size = auto_batch_size(self.model, tokens_per_dialogue=tokens, n_items=n_answers)
        return Engine(
            self.model,
            stop_ids=stop_ids(self.model, self.prompt.chat) | self.prompt.stop_ids(),
            sampling=self._sampling(args.temperature),
            limits=Limits(args.model_max_new_tokens, self._max_context),
            batch_size=size,
        )

    @property
    def _placement(self) -> Placement:
        return Placement(self.plan.args.model_name, self.plan.args.dtype)

    @property
    def _max_context(self) -> int:
        from spikescore.model.architecture import longest_context

        return longest_context(self.model.config)

    def _sampling(self, temperature: float) -> Sampling:
        from spikescore.model.sampling import Sampling

        return Sampling(temperature, 1.0, self.plan.args.random_seed)

    # --- generating ---------------------------------------------------------------------------

    def generate(self, answered: Callable[[Question, dict[str, Any]], None]) -> int:
        """Ask what was not asked yet; return how many questions failed.

        `answered` is called with each question and its entry as soon as it is there, first with
        those that were. Without `--resume` what the folder held is removed first.
        """
        if not self.plan.args.resume:
            for path in [*self.folder.glob("*.pkl"), *self.folder.glob("parts/*.pkl")]:
                path.unlink()
        for split, questions in self.plan.questions.items():
            for question in questions:
                if entry := self.entries[split].get(question.id):
                    answered(question, entry)
        for split, questions in self.plan.questions.items():
            self._ask(split, questions, answered)
            self._write(split)
        for question_id, error in self.errors.items():
            log.warning("question %s was not answered: %s", question_id, error)
        if self.errors and not any(self.entries[split] for split in self.plan.questions):
            first = next(iter(self.errors.values()))
            raise UserError(f"none of {len(self.errors)} questions was answered: {first}")
        return len(self.errors)

    def kept(self) -> str:
        """What stays of a run that is interrupted, and how to go on."""
        known = sum(len(self.entries[split]) for split in self.plan.questions)
        asked = sum(map(len, self.plan.questions.values()))
        return (
            f'{known} of {asked} questions are answered and kept in "{self.folder}", as is every '
            "reply of a judge; what was in flight is lost; run the same command to go on"
        )

    def _ask(
        self,
        split: str,
        questions: Sequence[Question],
        answered: Callable[[Question, dict[str, Any]], None] = lambda question, entry: None,
    ) -> None:
        missing = [question for question in questions if question.id not in self.entries[split]]
        if not missing:
            return
        args = self.plan.args
        if not self._described:
            self._describe()
        high = self._sampling(args.temperature)
        samplings = {0: self._sampling(args.low_temperature)}
        samplings |= dict.fromkeys(range(1, args.num_generations + 1), high)
        drawn = draw(self.engine, ((q.id, self.prompt.ids(q)) for q in missing), samplings)
        for place, turns in progress(drawn, f"asking {split}", total=len(missing)):
            question = missing[place]
            if isinstance(turns, str):
                self.errors[question.id] = turns
                continue
            entry = as_entry(question, turns, self.prompt)
            if problem := state_problem(entry):
                self.errors[question.id] = problem
            else:
                self._keep(split, question.id, entry)
                answered(question, self.entries[split][question.id])

    def _keep(self, split: str, question_id: str, news: dict[str, Any]) -> None:
        """Put what is new of a question into its entry, and on disk as the next part."""
        folder = self.folder / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        if split not in self._n_parts:
            taken = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{split}-*.pkl")]
            self._n_parts[split] = max(taken, default=-1) + 1
        path = folder / f"{split}-{self._n_parts[split]:05d}.pkl"
        write_atomic(path, pickle.dumps({question_id: news}, protocol=4))
        self._n_parts[split] += 1
        self.entries[split].setdefault(question_id, {}).update(news)

    def _kept(self, split: str) -> dict[str, dict[str, Any]]:
        """What an earlier run has left of a split, the generations file first."""
        found = read_generations(file_of(self.folder, split))
        for path in sorted((self.folder / "parts").glob(f"{split}-*.pkl")):
            try:
                for question_id, news in dict(load_pickle(path)).items():
                    found.setdefault(question_id, {}).update(news)
            except (UserError, TypeError, ValueError) as error:
                log.warning('"%s" is damaged (%s); its question is asked again', path, error)
        return found

    def _write(self, split: str) -> None:
        """Write a split's generations file, which holds all that its parts hold."""
        write_generations(self.folder, split, self._in_order(split))
        for path in (self.folder / "parts").glob(f"{split}-*.pkl"):
            path.unlink()

    def _in_order(self, split: str) -> dict[str, dict[str, Any]]:
        """The entries in the order of the plan, whatever the order they came in."""
        entries = self.entries[split]
        return {q.id: entries[q.id] for q in self.plan.questions[split] if q.id in entries}

    # --- judging ------------------------------------------------------------------------------

    def judge(self, accuracy: Accuracy, *, samples_too: bool) -> int:
        """Judge the answers that have no accuracy yet; return how many still have none."""
        failed = 0
        for split, questions in self.plan.questions.items():
            failed += self._judge(split, questions, accuracy, samples_too)
            self._write(split)
        if failed:
            log.warning("%d answers could not be judged; run again to ask what failed", failed)
        return failed

    def _judge(
        self, split: str, questions: Sequence[Question], accuracy: Accuracy, samples_too: bool
    ) -> int:
        todo: list[tuple[Question, str]] = []
        puts: list[Callable[[float | None], None]] = []
        for question in questions:
            entry = self.entries[split].get(question.id)
            if entry is None:
                continue
            if accuracy_of(entry) is None:
                answer = entry["most_likely_answer"]
                todo.append((question, answer["response"]))
                puts.append(lambda value, answer=answer: answer.update(accuracy=value))
            for place, response in enumerate(entry["responses"] if samples_too else ()):
                if response[3] is None:
                    todo.append((question, response[0]))
                    puts.append(
                        lambda value, responses=entry["responses"], place=place: (
                            responses.__setitem__(place, (*responses[place][:3], value))
                        )
                    )
        values = accuracy.judge_many(todo) if todo else []
        for put, value in zip(puts, values, strict=True):
            put(value)
        return sum(value is None for value in values)

    # --- P(True) ------------------------------------------------------------------------------

    def ask_p_true(self, accuracy: Accuracy) -> None:
        """Add P(True) to the entries that have none; its examples are answered and judged first."""
        todo = [
            (split, question_id)
            for split in self.plan.questions
            for question_id, entry in self._in_order(split).items()
            if "p_true" not in entry
        ]
        if not todo:
            return
        from spikescore.measures.self_questions import option_tokens, p_true_prompt, probability
        from spikescore.model.prompt_ends import read_ends

        asked = self.plan.p_true_examples
        self._ask("p_true", asked)
        self._judge("p_true", asked, accuracy, samples_too=False)
        known = [self.entries["p_true"][q.id] for q in asked if q.id in self.entries["p_true"]]
        known = [entry for entry in known if accuracy_of(entry) is not None]
        examples = self._that_fit(known)
        begin, token = option_tokens(self.prompt)
        prompts = [
            p_true_prompt(self.entries[split][one], examples, self.prompt) + begin
            for split, one in todo
        ]
        places = [n for n, ids in enumerate(prompts) if len(ids) <= self._max_context]
        ends = read_ends(self.model, [[prompts[n] for n in places]], slots=1)
        for end in progress(ends, "asking P(True)", total=len(places)):
            self._keep(*todo[places[end.number]], {"p_true": probability(end, token)})
        for split in self.plan.questions:
            self._write(split)

    def _that_fit(self, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As many of P(True)'s examples as leave room for every question that fits without any.

        They are counted over all entries, so that a run that goes on takes as many.
        """
        from spikescore.measures.self_questions import option_tokens, p_true_prompt

        room = self._max_context - len(option_tokens(self.prompt)[0])
        entries = [one for split in self.plan.questions for one in self._in_order(split).values()]
        lengths = [len(p_true_prompt(entry, [], self.prompt)) for entry in entries]
        fitting = [place for place, length in enumerate(lengths) if length <= room]
        longest = entries[max(fitting, key=lengths.__getitem__)] if fitting else None
        n = len(examples)
        while n and longest and len(p_true_prompt(longest, examples[:n], self.prompt)) > room:
            n -= 1
        if n < len(examples):
            log.warning("P(True): %d of %d examples fit into the model's %d tokens", n,
                        len(examples), self._max_context)  # fmt: skip
        return examples[:n]

    def as_folder(self) -> RunFolder:
        """The run as `read_run` gives it, without reading what is in memory here."""
        splits = {
            split: self._in_order(split) if split in self.plan.questions else {}
            for split in SPLIT_NAMES
        }
        return RunFolder(self.folder, self._details(), **splits, measures=None)

    # --- the run's own description ------------------------------------------------------------

    def counts(self) -> dict[str, float | None]:
        """Questions asked, how many of them were judged, and their accuracy, by split."""
        found: dict[str, float | None] = {}
        for split in self.plan.questions:
            values = [accuracy_of(entry) for entry in self._in_order(split).values()]
            known = [value for value in values if value is not None]
            found[f"{split} questions"] = len(values)
            found[f"{split} judged"] = len(known)
            found[f"{split} accuracy"] = round(sum(known) / len(known), 4) if known else None
        return found

    def _details(self) -> dict[str, Any]:
        """What an earlier run has left of its description; {} when there was none."""
        path = self.folder / "experiment_details.pkl"
        if not path.exists() or not self.plan.args.resume:
            return {}
        details = load_pickle(path)
        if not isinstance(details, dict) or not isinstance(details.get("args"), dict):
            raise UserError(f'"{path}" is not of a run of this script; give another --output_dir')
        return details

    def _refuse(self, differing: str) -> None:
        raise UserError(
            f'"{self.folder}" holds a run with other settings ({differing}); give these settings, '
            "another --output_dir, or --no-resume to begin anew in this one"
        )

    def _check(self) -> None:
        """Refuse to go on with a run of other settings, or with questions that have changed."""
        if details := self._details():
            if differing := self.plan.args.differences(details["args"]):
                self._refuse("; ".join(differing))
        for split, questions in self.plan.questions.items():
            for question in questions:
                entry = self.entries[split].get(question.id)
                if entry and any(
                    entry.get(key) != value for key, value in asked_of(question).items()
                ):
                    self._refuse(f'question "{question.id}" of the data set has changed')

    def _describe(self) -> None:
        """Write what the run is made of; refuse to go on with another model, or other prompts."""
        from spikescore.model.architecture import text_config
        from spikescore.model.loading import model_identity

        args, prompt = self.plan.args, self.prompt
        config = text_config(self.model.config)
        example = self.plan.questions["validation"][0]
        told = {
            "args": asdict(args),
            "model": args.model_name,
            "identity": model_identity(args.model_name),
            "n_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "few_shot": [question.id for question in self.plan.examples],
            "p_true_examples": [question.id for question in self.plan.p_true_examples],
            "prompt": prompt.messages(example) if prompt.use_template else prompt.text(example),
        }
        before = self._details()
        if difference := model_difference(before, told):
            self._refuse(f"models: {difference}")
        if before.get("prompt", told["prompt"]) != told["prompt"]:
            self._refuse("prompts")
        write_details(self.folder, told)
        self._described = True
