"""Make the data that semantic-entropy probes are trained on: answers, samples, hidden states.

    python ./semantic-entropy-probes/semantic_uncertainty/generate_answers.py \\
        --model_name=./models/Llama-3.2-3B-Instruct --dataset=nq --num_samples=2000 \\
        --num_generations=10 --num_few_shot=0 --metric=llm_gpt-4o-mini \\
        --entailment_model=llm_gpt-4o-mini

Each question gets one answer at low temperature, whose truth and hidden states are kept, and N
samples at --temperature, all from one encoding of the prompt. An llm_ judge is asked about them
while others are still generated. Then the model is asked whether its answers are true (P(True)),
the samples are clustered by meaning, and their entropies measured. The run folder (--output_dir)
holds train_generations.pkl, validation_generations.pkl, uncertainty_measures.pkl and
experiment_details.pkl; probes_trainer.py reads it.

Running the same command again goes on where it stopped: questions that are done are not asked
again, and of the judge's calls only those that failed. Credentials come from the environment:
OPENAI_API_KEY (and OPENAI_BASE_URL) for llm_ judges, WANDB_API_KEY and WANDB_ENT for W&B.

Exit status: 0 all is there, 1 some questions or judgements failed, 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, TypeVar

# The script lies two folders below the project root, where the spikescore package is.
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from spikescore.errors import run_main  # noqa: E402
from spikescore.files import locked  # noqa: E402
from spikescore.labels.entailment import Entailment, make_entailment  # noqa: E402
from spikescore.labels.judges import make_accuracy  # noqa: E402
from spikescore.measures.ahead import JudgingAhead  # noqa: E402
from spikescore.measures.answer_run import AnswerRun  # noqa: E402
from spikescore.measures.run_folder import RunFolder, write_measures  # noqa: E402
from spikescore.measures.run_plan import MeasureSettings, RunSettings, make_plan  # noqa: E402
from spikescore.model.placement import checked_path  # noqa: E402
from spikescore.report.tracking import Tracker  # noqa: E402
from utils import configure_logging, make_client  # noqa: E402

log = logging.getLogger("spikescore")
PROJECT = "semantic_uncertainty"
Settings = TypeVar("Settings", bound=MeasureSettings)


def parse_settings(kind: type[Settings], about: str, arguments: Sequence[str] | None) -> Settings:
    """Read a command line of which every setting is a flag."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for one in fields(kind):
        needed = one.default is MISSING
        options = {"required": True} if needed else {"default": one.default}
        options["help"] = one.metadata["help"] + ("" if needed else " (%(default)s)")
        if one.type == "bool":
            options["action"] = argparse.BooleanOptionalAction
        elif "choices" in one.metadata:
            options["choices"] = one.metadata["choices"]
        else:
            options["type"] = _reader(str(one.type), one.metadata)
        parser.add_argument(f"--{one.name}", **options)
    return kind(**vars(parser.parse_args(arguments)))


def _reader(kind: str, limits: Any) -> Callable[[str], Any]:
    """Return what turns a flag's text into a value of this type within its limits."""
    if kind.startswith("str"):
        return str

    def number(text: str) -> Any:
        if "str" in kind and text == "auto":
            return text
        value = float(text) if kind == "float" else int(text)
        least, most = limits.get("least", -math.inf), limits.get("most", math.inf)
        if not least <= value <= most:
            bounds = f"{least} or more" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {bounds}")
        return value

    return number


def judge_options(settings: MeasureSettings, folder: Path) -> dict[str, Any]:
    """What both judges need; `askers` lets them share what asks one model."""
    return {
        "askers": {},
        "client_factory": make_client,
        "cache": folder / "judge_cache.sqlite",
        "concurrency": settings.max_workers_for_entailment,
        "timeout": settings.judge_timeout,
    }


def measure(
    settings: MeasureSettings, run: RunFolder, entailment: Entailment, tracker: Tracker
) -> int:
    """Measure a run's uncertainties, write and print them; return how many failed."""
    from spikescore.measures.run_measures import means, measure_run

    measures = measure_run(run, entailment, settings)
    write_measures(run.path, measures)
    found = means(measures)
    for name, (mean, known) in found.items():
        print(f"{name:28s} {mean:.4f} (mean of {known} of {len(run.validation)} questions)")
    tracker.log({name: mean for name, (mean, _) in found.items()}
                | {f"{name} (questions)": known for name, (_, known) in found.items()})  # fmt: skip
    columns = measures["uncertainty_measures"]
    rows = zip(measures["ids"], *columns.values(), strict=True)
    tracker.table("measures", ["id", *columns], list(rows))
    if failed := len(measures["failed"]):
        print(f"{failed} questions could not be clustered; run again to ask what failed")
    return failed


def main() -> int:
    """Say what is wrong with the command before any model is loaded, then do the work."""
    settings = parse_settings(RunSettings, __doc__, None)
    configure_logging()
    checked_path(settings.model_name)
    plan, folder = make_plan(settings, ROOT / "datasets"), settings.folder()
    with locked(folder):
        return answer(settings, AnswerRun(plan, folder))


def answer(settings: RunSettings, run: AnswerRun) -> int:
    """Make what the run folder lacks; return the exit status."""
    folder = run.folder
    judges = judge_options(settings, folder)
    accuracy, entailment = make_accuracy(settings.metric, **judges), None
    if settings.compute_uncertainties and settings.num_generations < 2:
        log.warning("entropies need --num_generations 2 or more: none is measured")
    elif settings.compute_uncertainties:
        entailment = make_entailment(settings.entailment_model, **judges)
    with Tracker(PROJECT, folder, asdict(settings), enabled=settings.wandb) as tracker:
        try:
            with JudgingAhead(accuracy, entailment, settings) as ahead:
                failures = run.generate(ahead.begin)
            failures += run.judge(accuracy, samples_too=settings.compute_accuracy_at_all_temps)
            if settings.compute_p_true:
                run.ask_p_true(accuracy)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(run.kept()) from None
        counts = run.counts()
        print("\n".join(f"{name:28s} {value}" for name, value in counts.items()))
        tracker.log({name: value for name, value in counts.items() if value is not None})
        if entailment:
            failures += measure(settings, run.as_folder(), entailment, tracker)
    print(f"written to {folder}")
    return int(failures > 0)


if __name__ == "__main__":
    run_main(main)
