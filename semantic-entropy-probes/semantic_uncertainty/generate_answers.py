"""Make the data that semantic-entropy probes are trained on: answers, samples, hidden states.

    python ./semantic-entropy-probes/semantic_uncertainty/generate_answers.py \\
        --model_name=./models/Llama-3.2-3B-Instruct --dataset=nq --num_samples=2000 \\
        --num_generations=10 --num_few_shot=0 --metric=llm_gpt-4o-mini \\
        --entailment_model=llm_gpt-4o-mini

Each question gets one answer at low temperature, whose truth and hidden states are kept, and N
samples at --temperature, all from one encoding of the prompt. Then the answers are judged, the
samples are clustered by meaning, and their entropies measured. The run folder (--output_dir) holds
train_generations.pkl, validation_generations.pkl, uncertainty_measures.pkl and
experiment_details.pkl; probes_trainer.py reads it.

Running the same command again goes on where it stopped: questions that are done are not asked
again, and of the judge's calls only those that failed. Credentials come from the environment:
OPENAI_API_KEY (and OPENAI_BASE_URL) for llm_ judges, WANDB_API_KEY and WANDB_ENT for W&B.

Exit status: 0 all is there, 1 some questions or judgements failed, 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import sys
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import Any

# The script lies two folders below the project root, where the spikescore package is.
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from spikescore.errors import run_main  # noqa: E402
from spikescore.labels.entailment import Entailment, make_entailment  # noqa: E402
from spikescore.labels.judges import make_accuracy  # noqa: E402
from spikescore.measures.answer_run import AnswerRun, Plan, RunSettings, make_plan  # noqa: E402
from spikescore.measures.run_folder import read_run, write_measures  # noqa: E402
from spikescore.measures.run_measures import measure_run, summary  # noqa: E402
from spikescore.measures.samples import BRIEF  # noqa: E402
from spikescore.report.tracking import Tracker  # noqa: E402
from utils import configure_logging, make_client  # noqa: E402


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what to ask")
    add = what.add_argument
    add("--model_name", required=True, help="model folder or hub id")
    add("--dataset", required=True, help="a data set's name in ./datasets, or a path")
    add("--ood_train_dataset", help="take examples and training questions from this data set")
    add("--num_samples", type=_positive, default=400, help="questions of each split (%(default)s)")
    add("--random_seed", type=int, default=42, help="of choice and sampling (%(default)s)")
    add(
        "--get_training_set_generations",
        action=BooleanOptionalAction,
        default=True,
        help="ask the training questions, too (default: yes)",
    )
    add("--answerable_only", action=BooleanOptionalAction, default=False,
        help="leave out questions without an answer")  # fmt: skip
    prompt = parser.add_argument_group("how to ask")
    add = prompt.add_argument
    add("--brief_prompt", choices=BRIEF, default="default", help="the instruction (%(default)s)")
    add("--num_few_shot", type=_natural, default=5, help="examples before it (%(default)s)")
    add("--use_context", action=BooleanOptionalAction, default=False, help="show the passage")
    add("--chat_template", action=BooleanOptionalAction, default=True,
        help="ask in the model's chat template (default: yes, where it has one)")  # fmt: skip
    add("--num_generations", type=_natural, default=10, help="samples a question (%(default)s)")
    add("--temperature", type=float, default=1.0, help="of the samples (%(default)s)")
    add("--low_temperature", type=float, default=0.1, help="of the kept answer (%(default)s)")
    add("--model_max_new_tokens", type=_positive, default=50, help="of an answer (%(default)s)")
    add("--batch_size", type=_size, default="auto", help="answers at a time, or auto (%(default)s)")
    add("--dtype", choices=("auto", "float16", "bfloat16", "float32"), default="auto",
        help="of the model (%(default)s)")  # fmt: skip
    judged = parser.add_argument_group("how to judge and measure")
    add = judged.add_argument
    add("--metric", default="squad", help="squad, exact, auto or llm_MODEL (%(default)s)")
    add("--compute_accuracy_at_all_temps", action=BooleanOptionalAction, default=False,
        help="judge the samples, too")  # fmt: skip
    add("--compute_uncertainties", action=BooleanOptionalAction, default=True,
        help="measure at the end (default: yes)")  # fmt: skip
    add_measure_arguments(judged)
    add("--compute_p_true", action=BooleanOptionalAction, default=False,
        help="ask the model whether its answer is true")  # fmt: skip
    add("--p_true_num_fewshot", type=_natural, default=20, help="its examples (%(default)s)")
    out = parser.add_argument_group("where to")
    add = out.add_argument
    add("--output_dir", help="the run folder (./semantic_uncertainty/MODEL_DATASET_SEED)")
    add("--wandb", action=BooleanOptionalAction, default=True,
        help="log to W&B; offline when no key is set (default: yes)")  # fmt: skip
    add("--resume", action=BooleanOptionalAction, default=True,
        help="go on with what the folder holds (default: yes)")  # fmt: skip
    args = parser.parse_args(arguments)
    if args.output_dir is None:
        names = Path(args.model_name).name, Path(args.dataset).stem, args.random_seed
        args.output_dir = "./semantic_uncertainty/{}_{}_{}".format(*names)
    return args


def add_measure_arguments(group: Any) -> None:
    """Add what compute_uncertainty_measures.py takes as well."""
    add = group.add_argument
    add("--entailment_model", default="deberta",
        help="llm_MODEL, deberta, an NLI model's path, or exact (%(default)s)")  # fmt: skip
    add("--strict_entailment", action=BooleanOptionalAction, default=True,
        help="equal in meaning = each entails the other (default: yes)")  # fmt: skip
    add("--condition_on_question", action=BooleanOptionalAction, default=True,
        help="judge answers together with their question (default: yes)")  # fmt: skip
    add("--compute_p_ik", action=BooleanOptionalAction, default=True,
        help="P(IK), where training questions were asked (default: yes)")  # fmt: skip
    add("--compute_p_ik_answerable", action=BooleanOptionalAction, default=False,
        help="P(IK) that the question has an answer at all")  # fmt: skip
    add("--max_workers_for_entailment", type=_positive, default=64,
        help="judge's calls at a time (%(default)s)")  # fmt: skip
    add("--judge_timeout", type=float, default=30.0, help="seconds of a call (%(default)s)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _size(text: str) -> int | str:
    return text if text == "auto" else _positive(text)


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def judge_options(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What both judges need: the client, the file of known replies, how many calls at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "client_factory": make_client,
        "cache": folder / "judge_cache.sqlite",
        "concurrency": args.max_workers_for_entailment,
        "timeout": args.judge_timeout,
    }


def measure(
    args: argparse.Namespace, folder: Path, entailment: Entailment, tracker: Tracker
) -> int:
    """Measure a run folder's uncertainties, write and print them; return how many failed."""
    run = read_run(folder)
    has_train = args.compute_p_ik and bool(run.train)
    measures = measure_run(
        run,
        entailment,
        strict=args.strict_entailment,
        condition_on_question=args.condition_on_question,
        p_ik=has_train,
        p_ik_answerable=args.compute_p_ik_answerable,
    )
    write_measures(folder, measures)
    means = summary(measures)
    for name, value in means.items():
        print(f"{name:28s} {value:.4f} (mean of {len(run.validation)} validation questions)")
    tracker.log(means)
    tracker.table(
        "measures",
        ["id", *measures["uncertainty_measures"]],
        list(zip(measures["ids"], *measures["uncertainty_measures"].values(), strict=True)),
    )
    failed = measures["failed"]
    if failed:
        print(f"{len(failed)} questions could not be clustered; run again to ask what failed")
    return len(failed)


def main() -> int:
    """Generate, judge, measure; print a summary."""
    args = parse_arguments()
    configure_logging()
    plan: Plan = make_plan(RunSettings(**vars(args)), ROOT / "datasets")
    folder = Path(args.output_dir)
    run = AnswerRun(plan, folder)
    # what is wrong with the model's folder or a judge shows before any work is done
    _ = run.prompt
    accuracy = make_accuracy(args.metric, **judge_options(args, folder))
    entailment = None
    if args.compute_uncertainties:
        entailment = make_entailment(args.entailment_model, **judge_options(args, folder))
    tracker = Tracker(
        enabled=args.wandb, project="semantic_uncertainty", folder=folder, settings=vars(args)
    )
    try:
        failures = run.generate()
        failures += run.judge(accuracy, samples_too=args.compute_accuracy_at_all_temps)
        if args.compute_p_true:
            run.ask_p_true(accuracy)
        counts = run.counts()
        print("\n".join(f"{name:28s} {value}" for name, value in counts.items()))
        tracker.log({name: value for name, value in counts.items() if value is not None})
        if entailment:
            failures += measure(args, folder, entailment, tracker)
    finally:
        tracker.finish()
    print(f"written to {folder}")
    return int(failures > 0)


if __name__ == "__main__":
    run_main(main)
