#!/usr/bin/env python3
"""Ask one question, and see whether the answer looks hallucinated.

    python detect.py "Who wrote Hamlet?"
    python detect.py "Who wrote Hamlet?" --answer "Christopher Marlowe."
    python detect.py --model_path ./models/X --probe ./probe_output/X.pkl "Who wrote Hamlet?"
    python detect.py --questions questions.txt --json

The dialogue about the question is held as those were that the probe's threshold λ was set on: the
same follow-ups, number of turns K, temperature and system prompt. The probe scores every answer,
and the question is flagged when SpikeScore reaches λ. The dialogue ends there: what would come
later cannot take the flag away. --whole holds all K turns.

--questions reads a text file, one question a line, or whatever stage 1 reads (JSON, JSONL, CSV,
Parquet), answers not needed. --json prints one object a line for programs; docs/detect.md says what
it holds. Nothing is written to disk, and the same seed and question give the same answers.

Exit status: 0 all scored, 1 some questions could not be, 2 a mistake in the input.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikescore.errors import UserError, run_main

if TYPE_CHECKING:
    from spikescore.data.question import Question
    from spikescore.detectors.spike import SpikeDetector

MODEL = "./models/smollm2-135m-instruct"
PROBE = "./probes/smollm2-135m-instruct.pkl"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("question", nargs="?", metavar="QUESTION", help="what is asked")
    add("--questions", metavar="FILE", help="ask all questions of this file instead")
    add("--answer", metavar="TEXT", help="the first answer, where the model is not to give it")
    add("--model_path", default=MODEL, help=f"folder or hub id (default: {MODEL})")
    add("--probe", default=PROBE, help=f"trained on that model's states (default: {PROBE})")
    add("--whole", action="store_true", help="hold all K turns, even where λ is reached before")
    add("--json", action="store_true", help="print one JSON object a line")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of config.json to be other than the probe's dialogues had it, such as "
        'sampling.seed=7, or fields=\'{"question": "q"}\' for --questions; may be repeated',
    )
    add("--token_key", metavar="KEY", help="for older probe files that name no token")
    add("--layer_range", metavar="a,b", help="for older probe files that name no layers")
    return parser.parse_args(argv)


def main() -> int:
    args = parse_arguments()
    if (args.question is None) == (args.questions is None):
        raise UserError(
            'give a question, as in: python detect.py "Who wrote Hamlet?", or --questions FILE'
        )
    given = {"the question": args.question, "--answer": args.answer, "--questions": args.questions}
    for name, text in given.items():
        if text is not None and not text.strip():
            raise UserError(f"{name} is empty; write it out")
    if args.answer is not None and args.questions:
        raise UserError("--answer goes with a single question, not with --questions")
    require_defaults(args)

    from spikescore.detectors.spike import SpikeDetector, as_question, read_questions
    from spikescore.dialogues.config import apply_override
    from spikescore.probes.layers import parse_layer_range
    from spikescore.report.terminal import how_held
    from utils import configure_logging

    configure_logging()
    settings: dict[str, Any] = {}
    for override in args.set:
        apply_override(settings, override)
    detector = SpikeDetector(
        args.model_path,
        args.probe,
        settings=settings,
        whole=args.whole,
        token_key=args.token_key,
        layer_range=parse_layer_range(args.layer_range),
    )
    print(*how_held(detector), sep="\n", file=sys.stderr)
    for note in detector.notes(given=args.answer is not None):
        print(f"note: {note}", file=sys.stderr)
    if args.questions:
        questions = read_questions(args.questions, detector.config)
    else:
        questions = [as_question(args.question)]
    try:
        return detect(detector, questions, args)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is printed is all there is; nothing was written") from None


def require_defaults(args: argparse.Namespace) -> None:
    """Raise UserError where the probe, or the model that it is shipped for, is not here."""
    if args.model_path == MODEL and not Path(MODEL).is_dir():
        raise UserError(
            f'"{MODEL}" is not here; fetch it with "python models/fetch.py smollm2-135m-instruct", '
            "or give --model_path and --probe of your own"
        )
    if not Path(args.probe).is_file():
        raise UserError(
            f'the probe "{args.probe}" is not here; give --probe FILE, or train one with '
            "semantic-entropy-probes/probes_trainer.py"
        )


def detect(detector: SpikeDetector, questions: list[Question], args: argparse.Namespace) -> int:
    """Score the questions and print each as soon as it is there."""
    from tqdm import tqdm

    from spikescore.report.terminal import Style, detection_block, detection_line, summary

    style = Style.of(sys.stdout)
    total = len(questions) * detector.config.max_steps
    found = []
    with tqdm(total=total, unit="turn", leave=False, disable=None) as bar:
        for one in detector.run(questions, answer=args.answer, on_turn=bar.update):
            if one.error is not None and not args.questions:
                raise UserError(f"the question cannot be scored: {one.error}")
            if args.json:
                text = json.dumps(one.as_dict())
            elif args.questions:
                text = detection_line(one, style) + "\n"
            else:
                text = detection_block(one, style)
            bar.write(text, file=sys.stdout)
            sys.stdout.flush()
            found.append(one)
    if args.questions and not args.json:
        print(summary(found))
    return 1 if any(one.spike_score is None for one in found) else 0


if __name__ == "__main__":
    run_main(main)
