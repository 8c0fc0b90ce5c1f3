#!/usr/bin/env python3
"""Between the stages: ask the model what detectors other than probes need.

    python scripts/measure_answers.py --data_dir ./outputs/demo
    python scripts/measure_answers.py --data_dir ./outputs/demo --groups contrast,components
    python scripts/measure_answers.py --data_dir ./outputs/demo --entailment deberta --n_samples 10

Each finished pair under --data_dir gets a file <id>.measures.pkl beside it, made with the model
that the pairs name. The groups, of which the first four are measured by default:

    lens       reasoning score and in-context sharpness of every turn, MIND's features
    attention  ICR scores of the first answer
    samples    N more answers to the first prompt, their clusters, SelfCheck-NLI
    questions  on samples: P(True), verbalised confidence, SelfCheck-Prompt, PRISM, CCS
    contrast   the answer without its question, layer against layer, reference against wrong answer
    components attention heads and neurons at the first answer's last token
    rewordings answers to the question in other words; the answer with a mistake put into it
    choices    on samples: the answer among them, and among the model's own guesses
    semantics  the answer to a text encoder (--encoder), and its mean state at every layer

A group is written when it is done: a killed run goes on where it stopped, and groups can be added.
SelfCheck-NLI needs an NLI model (--entailment deberta or a path), llm_NAME a key (OPENAI_API_KEY).
Exit status: 0 all is there, 1 some items or judgements failed, 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import run_main  # noqa: E402
from spikescore.files import locked_by_launch  # noqa: E402
from spikescore.labels.entailment import make_entailment  # noqa: E402
from spikescore.measures.file import GROUPS, USUAL  # noqa: E402
from spikescore.measures.groups import Measurer, MeasureRequest, Tally, Work, survey  # noqa: E402
from spikescore.runtime import end_together, progress, this_process  # noqa: E402
from utils import configure_logging, make_client  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> MeasureRequest:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", required=True, help="folder of the pairs of stage 1, recursive")
    add("--model_path", help="the model's folder or hub id (default: the one the pairs name)")
    add("--groups", type=_groups, default=USUAL, metavar="A,B",
        help=f"what to measure, of {', '.join(GROUPS)} (default: {','.join(USUAL)})")  # fmt: skip
    add("--n_samples", type=_positive, default=10, help="samples of an item (%(default)s)")
    add("--temperature", type=_temperature, default=1.0, help="of the samples (%(default)s)")
    add("--seed", type=int, default=42, help="of the samples (%(default)s)")
    add("--entailment", default="exact", metavar="NAME",
        help="says what means the same: exact, deberta, PATH, llm_MODEL (%(default)s)")  # fmt: skip
    add("--encoder", metavar="FOLDER", help="a sentence-transformers model, for semantics")
    add("--batch_size", type=_size, default="auto", help="prompts at a time, or auto (%(default)s)")
    add("--redo", action="store_true", help="measure the groups anew and replace what is there")
    return MeasureRequest(**vars(parser.parse_args(arguments)))


def _groups(text: str) -> tuple[str, ...]:
    named = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in named if name not in GROUPS]
    if unknown or not named:
        said = f"unknown group {', '.join(unknown)}; " if unknown else ""
        raise argparse.ArgumentTypeError(f"{said}choose from {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if group in named)  # samples before questions


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError("must be from 0 (greedy) to 100")
    return value


def _size(text: str) -> int | str:
    return text if text == "auto" else _positive(text)


def measure_all(work: Work, request: MeasureRequest, tally: Tally) -> None:
    """Load the model and measure all items."""
    entailment = None
    if any("entailment" in asked for asked in work.settings.values()):
        cache = Path(request.data_dir) / "judge_cache.sqlite"
        entailment = make_entailment(request.entailment, client_factory=make_client, cache=cache)

    from spikescore.model.chat import ChatFormat
    from spikescore.model.loading import load_model, load_tokenizer, model_identity

    placement = work.config.placement
    work.identify(model_identity(placement.model_path))
    chat = ChatFormat(load_tokenizer(placement), enable_thinking=work.config.enable_thinking)
    model, encoder = load_model(placement), request.encoder
    measurer = Measurer(model, chat, work.config, work.settings, entailment, encoder)
    with progress(desc="measuring", total=len(work.todo), unit="item") as bar:

        def told(group: str) -> None:
            bar.set_postfix_str(
                f"{group}; {tally.measured} measured, {tally.failed} failed", refresh=False
            )

        for item in measurer.run(work, told):
            tally.add(item)
            bar.update()


def report(work: Work, request: MeasureRequest, tally: Tally, seconds: float) -> int:
    """Print what happened; exit status 1 when items or judgements failed."""
    left_out = f", {work.unfinished} unfinished" if work.unfinished else ""
    print(
        f"{work.n_mine} items ({', '.join(request.groups)}): {tally.measured} measured, "
        f"{work.n_mine - len(work.todo)} skipped (done before), {tally.failed} failed{left_out}; "
        f"{seconds:.0f} s"
    )
    for name, count in sorted(tally.missing.items()):
        by_rule = request.entailment == "exact" or request.entailment.startswith("llm_")
        needs_nli = name == "selfcheck_nli" and by_rule
        why = " (needs an NLI model: --entailment deberta or a path)" if needs_nli else ""
        print(f"not computed: {name} in {count} of {tally.measured} items{why}")
    if tally.failed or tally.unjudged:
        print("run the same command again to measure what failed")
    return int(tally.failed + tally.unjudged > 0)


def main() -> int:
    """Find what is to do, do it, and say what was done."""
    request = parse_arguments()
    configure_logging()
    started = time.monotonic()
    process = this_process()
    work = survey(request, process)
    print(f"{work.n_mine} finished pairs{process.place}: {len(work.todo)} to measure")
    tally = Tally()
    if work.todo:
        with locked_by_launch(Path(request.data_dir), process, ".measure.lock"):
            try:
                measure_all(work, request, tally)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(tally.kept(len(work.todo))) from None
    return end_together(report(work, request, tally, time.monotonic() - started))


if __name__ == "__main__":
    run_main(main)
