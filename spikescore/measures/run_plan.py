"""What a run of generate_answers.py asks: its settings, and the questions that they choose."""

from __future__ import annotations

import json
import logging
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from spikescore.data.question import Question
from spikescore.data.splits import find_dataset, load_splits, pick
from spikescore.errors import UserError
from spikescore.labels.chat_server import AT_ONCE

log = logging.getLogger("spikescore")

BRIEF = {
    "default": "Answer each question with as few words as possible, without an explanation.",
    "chat": "Answer each question in a single short but complete sentence.",
    "none": "",
}
"""Instructions before the questions, by the value of --brief_prompt."""
DTYPES = ("auto", "float16", "bfloat16", "float32")


def flag(help: str, default: Any = MISSING, *, shapes: bool = True, **limits: Any) -> Any:
    """A setting and what its flag says: `least`, `most` and `choices` bound its values.

    What a setting `shapes` are the answers; the others may change when a run goes on.
    """
    return field(default=default, metadata={"help": help, "shapes": shapes, **limits})


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """How samples are judged and measured: what compute_uncertainty_measures.py is asked for."""

    entailment_model: str = flag(
        "llm_MODEL, deberta, an NLI model's path, or exact", "deberta", shapes=False
    )
    strict_entailment: bool = flag("equal in meaning = each entails the other", True, shapes=False)
    condition_on_question: bool = flag(
        "judge answers together with their question", True, shapes=False
    )
    compute_p_ik: bool = flag("P(IK), where training questions were asked", True, shapes=False)
    compute_p_ik_answerable: bool = flag(
        "P(IK) that the question has an answer at all", False, shapes=False
    )
    max_workers_for_entailment: int = flag(
        "most judge's calls at a time", AT_ONCE, shapes=False, least=1
    )
    judge_timeout: float = flag("seconds of a judge's call", 30.0, shapes=False, least=0.001)
    wandb: bool = flag("log to W&B; offline when no key is set", True, shapes=False)


@dataclass(frozen=True, kw_only=True)
class RunSettings(MeasureSettings):
    """What generate_answers.py was asked for, by the names of its flags; kept in the run folder."""

    model_name: str = flag("model folder or hub id")
    dataset: str = flag("a data set's name in ./datasets, or a path")
    ood_train_dataset: str | None = flag(
        "take examples and training questions from this data set", None
    )
    num_samples: int = flag("questions of each split", 400, least=1)
    random_seed: int = flag("of choice and sampling", 42)
    get_training_set_generations: bool = flag("ask the training questions, too", True)
    answerable_only: bool = flag("leave out questions without an answer", False)
    brief_prompt: str = flag("the instruction", "default", choices=tuple(BRIEF))
    num_few_shot: int = flag("examples before it", 5, least=0)
    use_context: bool = flag("show the passage", False)
    chat_template: bool = flag("ask in the model's chat template, where it has one", True)
    num_generations: int = flag("samples a question", 10, least=0)
    temperature: float = flag("of the samples", 1.0, least=0, most=100)
    low_temperature: float = flag("of the kept answer", 0.1, least=0, most=100)
    model_max_new_tokens: int = flag("of an answer", 50, least=1)
    batch_size: int | str = flag("answers at a time, or auto", "auto", shapes=False, least=1)
    dtype: str = flag("of the model", "auto", choices=DTYPES)
    metric: str = flag("squad, exact, auto or llm_MODEL", "squad")
    compute_accuracy_at_all_temps: bool = flag("judge the samples, too", False, shapes=False)
    compute_uncertainties: bool = flag("measure at the end", True, shapes=False)
    compute_p_true: bool = flag("ask the model whether its answer is true", True)
    p_true_num_fewshot: int = flag("examples of P(True)", 20, least=0)
    output_dir: str | None = flag(
        "the run folder (./semantic_uncertainty/MODEL_DATASET_SEED)", None, shapes=False
    )
    resume: bool = flag("go on with what the folder holds", True, shapes=False)

    def folder(self) -> Path:
        """The run folder, named after model, data set and seed unless one was given."""
        names = Path(self.model_name).name, Path(self.dataset).stem, str(self.random_seed)
        return Path(self.output_dir or Path("./semantic_uncertainty") / "_".join(names))

    def differences(self, made: dict[str, Any]) -> list[str]:
        """How what shapes a run's answers differs from the settings of an earlier one."""
        now = asdict(self)
        return [
            f"{one.name}: {json.dumps(made.get(one.name))} there, {json.dumps(now[one.name])} now"
            for one in fields(self)
            if one.metadata["shapes"] and made.get(one.name) != now[one.name]
        ]


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
    if len(with_answer) < args.num_few_shot:
        raise UserError(
            f'"{args.ood_train_dataset or args.dataset}" has {len(with_answer)} training questions '
            f"with an answer, {args.num_few_shot} are needed as examples; give a smaller "
            "--num_few_shot"
        )
    for_p_true = args.p_true_num_fewshot if args.compute_p_true else 0
    # the greater part of the training questions stays to be asked
    most = (len(with_answer) - args.num_few_shot) // 2
    if for_p_true > most:
        log.warning("P(True): %d examples asked for, %d taken, as the data set has %d training "
                    "questions with an answer", for_p_true, most, len(with_answer))  # fmt: skip
    examples = pick(
        with_answer, args.num_few_shot + min(for_p_true, most), seed=seed, what="examples"
    )
    taken = {question.id for question in examples}
    train = [question for question in train if question.id not in taken]
    chosen = {"validation": pick(validation, args.num_samples, seed=seed, what="validation")}
    if args.get_training_set_generations and train:
        chosen["train"] = pick(train, args.num_samples, seed=seed, what="train")
    if not chosen["validation"]:
        raise UserError(f'"{path}" leaves no question to ask; use a larger data set')
    few_shot, p_true_examples = examples[: args.num_few_shot], examples[args.num_few_shot :]
    return Plan(args, chosen, tuple(few_shot), p_true_examples)
