"""A run of generate_answers.py: what is asked, what is done already, and the run folder.

Answers are kept in parts (`parts/<split>-<number>.pkl`) while they come in, so that a run that is
killed loses the questions in flight at most; at the end of a split they become its generations
file. What a run is made of stands in experiment_details.pkl from the start, and going on with other
settings is refused.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel

from spikescore.data.question import Question
from spikescore.data.splits import find_dataset, load_splits, pick
from spikescore.dialogues.config import Config
from spikescore.errors import UserError
from spikescore.files import write_atomic
from spikescore.labels.judges import Accuracy
from spikescore.measures.formulas import p_true
from spikescore.measures.run_folder import accuracy_of, file_of, write_details, write_generations
from spikescore.measures.samples import BRIEF, AnswerPrompt, as_entry, draw_answers
from spikescore.measures.self_questions import (
    next_token_log_probabilities,
    option_id,
    p_true_prompt,
)
from spikescore.model.architecture import text_config
from spikescore.model.chat import ChatFormat
from spikescore.model.engine import Engine
from spikescore.model.loading import auto_batch_size, load_model, load_tokenizer, stop_ids
from spikescore.model.sampling import Sampling
from spikescore.model.turns import Limits
from spikescore.pickles import load_pickle

log = logging.getLogger("spikescore")

PART = 5  # questions written at a time
# Arguments that may differ when a run goes on: they change nothing that was generated
FREE = {
    "output_dir", "wandb", "resume", "batch_size", "compute_uncertainties", "entailment_model",
    "strict_entailment", "condition_on_question", "compute_p_ik", "compute_p_ik_answerable",
    "max_workers_for_entailment", "judge_timeout", "compute_accuracy_at_all_temps",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What generate_answers.py was asked for, by the names of its flags; kept in the run folder."""

    model_name: str
    dataset: str
    ood_train_dataset: str | None = None
    num_samples: int = 400
    random_seed: int = 42
    get_training_set_generations: bool = True
    answerable_only: bool = False
    brief_prompt: str = "default"
    num_few_shot: int = 5
    use_context: bool = False
    chat_template: bool = True
    num_generations: int = 10
    temperature: float = 1.0
    low_temperature: float = 0.1
    model_max_new_tokens: int = 50
    batch_size: int | str = "auto"
    dtype: str = "auto"
    metric: str = "squad"
    compute_accuracy_at_all_temps: bool = False
    compute_uncertainties: bool = True
    entailment_model: str = "deberta"
    strict_entailment: bool = True
    condition_on_question: bool = True
    compute_p_ik: bool = True
    compute_p_ik_answerable: bool = False
    max_workers_for_entailment: int = 64
    judge_timeout: float = 30.0
    compute_p_true: bool = False
    p_true_num_fewshot: int = 20
    output_dir: str
    wandb: bool = True
    resume: bool = True


@dataclass
class Plan:
    """What a run asks: the questions of each split, and examples for the prompts."""

    args: RunSettings
    questions: dict[str, list[Question]]
    examples: tuple[Question, ...]
    p_true_examples: list[Question]


def make_plan(args: RunSettings, root: Path) -> Plan:
    """Choose the questions: the same ones whatever the order of the data set's rows.

    Examples come from the training questions and are asked in neither split. Raises UserError for
    an unknown data set or one that is too small for the examples.
    """
    seed = args.random_seed
    path = find_dataset(args.dataset, root)
    splits = load_splits(path, seed=seed, answerable_only=args.answerable_only)
    train, validation = splits.train, splits.validation
    if args.ood_train_dataset:
        other = find_dataset(args.ood_train_dataset, root)
        validation = [*train, *validation]
        train = load_splits(other, seed=seed, answerable_only=args.answerable_only).train
    with_answer = [question for question in train if question.gold_answers]
    needed = args.num_few_shot + (args.p_true_num_fewshot if args.compute_p_true else 0)
    if len(with_answer) < needed:
        raise UserError(
            f'"{args.ood_train_dataset or args.dataset}" has {len(with_answer)} training questions '
            f"with an answer, {needed} are needed as examples; give smaller --num_few_shot and "
            "--p_true_num_fewshot"
        )
    examples = pick(with_answer, needed, seed=seed, what="examples")
    taken = {question.id for question in examples}
    train = [question for question in train if question.id not in taken]
    chosen = {"validation": pick(validation, args.num_samples, seed=seed, what="validation")}
    if args.get_training_set_generations and train:
        chosen["train"] = pick(train, args.num_samples, seed=seed, what="train")
    if not chosen["validation"]:
        raise UserError(f'"{path}" leaves no question to ask; use a larger data set')
    few_shot, for_p_true = examples[: args.num_few_shot], examples[args.num_few_shot :]
    return Plan(args, chosen, tuple(few_shot), for_p_true)


@dataclass
class AnswerRun:
    """A run folder in the making. `entries` holds each split's questions that were asked."""

    plan: Plan
    folder: Path
    entries: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.plan.args.resume:
            self._check_details()
        for split in (*self.plan.questions, "p_true"):
            self.entries[split] = self._kept(split) if self.plan.args.resume else {}

    # --- the model: loaded only if something is left to ask -----------------------------------

    @cached_property
    def model(self) -> PreTrainedModel:
        return load_model(self._config.placement)

    @cached_property
    def prompt(self) -> AnswerPrompt:
        args = self.plan.args
        chat = ChatFormat(load_tokenizer(self._config.placement), enable_thinking=False)
        return AnswerPrompt(
            chat,
            instruction=BRIEF[args.brief_prompt],
            examples=self.plan.examples,
            use_context=args.use_context,
            use_template=args.chat_template and chat.tokenizer.chat_template is not None,
        )

    @property
    def _config(self) -> Config:
        return Config(model_path=self.plan.args.model_name, dtype=self.plan.args.dtype)

    @cached_property
    def engine(self) -> Engine:
        args, config = self.plan.args, text_config(self.model.config)
        prompts = [self.prompt.ids(q) for q in self.plan.questions["validation"][:50]]
        tokens = max(map(len, prompts)) + args.model_max_new_tokens
        n_answers = sum(map(len, self.plan.questions.values())) * (args.num_generations + 1)
        size = args.batch_size
        if size == "auto":
            size = auto_batch_size(self.model, tokens_per_dialogue=tokens, n_items=n_answers)
        return Engine(
            self.model,
            stop_ids=stop_ids(self.model, self.prompt.chat.tokenizer) | self.prompt.stop_ids(),
            sampling=self._sampling(args.temperature),
            limits=Limits(args.model_max_new_tokens, config.max_position_embeddings),
            batch_size=size,
        )

    def _sampling(self, temperature: float) -> Sampling:
        return Sampling(temperature, 1.0, self.plan.args.random_seed)

    # --- generating ---------------------------------------------------------------------------

    def generate(self) -> int:
        """Ask what was not asked yet; return how many questions failed.

        Without `--resume` what the folder held is removed first.
        """
        if not self.plan.args.resume:
            for path in [*self.folder.glob("*.pkl"), *self.folder.glob("parts/*.pkl")]:
                path.unlink()
        for split, questions in self.plan.questions.items():
            self._ask(split, questions)
            write_generations(self.folder, split, self._in_order(split))
            self._drop_parts(split)
        for question_id, error in self.errors.items():
            log.warning("question %s was not answered: %s", question_id, error)
        return len(self.errors)

    def _ask(self, split: str, questions: Sequence[Question]) -> None:
        missing = [question for question in questions if question.id not in self.entries[split]]
        if not missing:
            return
        args, fresh = self.plan.args, {}
        self._write_details()
        drawn = draw_answers(
            self.engine,
            missing,
            self.prompt,
            n_samples=args.num_generations,
            low=self._sampling(args.low_temperature),
            high=self._sampling(args.temperature),
        )
        for question, turns, error in tqdm(drawn, total=len(missing), desc=f"asking {split}"):
            if error:
                self.errors[question.id] = error
                continue
            fresh[question.id] = as_entry(question, turns, self.prompt)
            if len(fresh) == PART:
                fresh = self._keep_part(split, fresh)
        if fresh:
            self._keep_part(split, fresh)

    def _keep_part(self, split: str, fresh: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Write fresh entries as the next part; return an empty dict for those to come."""
        folder = self.folder / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob(f"{split}-*.pkl")))
        write_atomic(folder / f"{split}-{number:05d}.pkl", pickle.dumps(fresh, protocol=4))
        self.entries[split] |= fresh
        return {}

    def _kept(self, split: str) -> dict[str, dict[str, Any]]:
        """What an earlier run has left of a split, the generations file first."""
        found: dict[str, dict[str, Any]] = {}
        whole = file_of(self.folder, split)
        for path in [whole, *sorted((self.folder / "parts").glob(f"{split}-*.pkl"))]:
            if path.exists():
                found |= load_pickle(path)
        return found

    def _drop_parts(self, split: str) -> None:
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
            write_generations(self.folder, split, self._in_order(split))
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
            entry
            for split in self.plan.questions
            for entry in self.entries[split].values()
            if "p_true" not in entry
        ]
        if not todo:
            return
        examples = self.plan.p_true_examples
        self._ask("p_true", examples)
        self._judge("p_true", examples, accuracy, samples_too=False)
        asked = [self.entries["p_true"][q.id] for q in examples if q.id in self.entries["p_true"]]
        known = [entry for entry in asked if accuracy_of(entry) is not None]
        prompts = [p_true_prompt(entry, known, self.prompt) for entry in todo]
        most = text_config(self.model.config).max_position_embeddings
        longest = max(map(len, prompts))
        if longest > most:
            raise UserError(
                f"P(True): a prompt with {len(known)} examples has {longest} tokens, the model "
                f"takes {most}; give a smaller --p_true_num_fewshot"
            )
        values = next_token_log_probabilities(self.model, prompts, option_id(self.prompt))
        for entry, value in zip(todo, values, strict=True):
            entry["p_true"] = p_true(value)
        for split in self.plan.questions:
            write_generations(self.folder, split, self._in_order(split))

    # --- the run's own description ------------------------------------------------------------

    def counts(self) -> dict[str, float | None]:
        """Questions asked and their accuracy, by split."""
        found: dict[str, float | None] = {}
        for split in self.plan.questions:
            values = [accuracy_of(entry) for entry in self._in_order(split).values()]
            known = [value for value in values if value is not None]
            found[f"{split} questions"] = len(values)
            found[f"{split} accuracy"] = round(sum(known) / len(known), 4) if known else None
        return found

    def _check_details(self) -> None:
        """Refuse to go on with a run of other settings."""
        path = self.folder / "experiment_details.pkl"
        if not path.exists():
            return
        details = load_pickle(path)
        made = details.get("args") if isinstance(details, dict) else None
        if not isinstance(made, dict):
            raise UserError(f'"{path}" is not of a run of this script; give another --output_dir')
        now = {name: value for name, value in asdict(self.plan.args).items() if name not in FREE}
        differing = [
            f"{name}: {json.dumps(made.get(name))} there, {json.dumps(value)} now"
            for name, value in now.items()
            if made.get(name) != value
        ]
        if differing:
            raise UserError(
                f'"{self.folder}" holds a run with other settings ({"; ".join(differing)}); give '
                "another --output_dir, or --no-resume to begin anew in this one"
            )

    def _write_details(self) -> None:
        """Write what the run is made of, before its first answer."""
        config, prompt = text_config(self.model.config), self.prompt
        example = self.plan.questions["validation"][0]
        write_details(
            self.folder,
            {
                "args": asdict(self.plan.args),
                "model": self.plan.args.model_name,
                "n_layers": config.num_hidden_layers,
                "hidden_size": config.hidden_size,
                "few_shot": [question.id for question in self.plan.examples],
                "p_true_examples": [question.id for question in self.plan.p_true_examples],
                "prompt": prompt.messages(example) if prompt.use_template else prompt.text(example),
            },
        )
