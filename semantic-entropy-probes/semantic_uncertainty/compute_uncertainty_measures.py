"""Measure the uncertainty of a run's answers, on what generate_answers.py has left on disk.

    python ./semantic-entropy-probes/semantic_uncertainty/compute_uncertainty_measures.py \\
        --data_dir ./semantic_uncertainty/run1 --entailment_model llm_gpt-4o-mini

The samples of each question are clustered by meaning, and all measures are written anew to
uncertainty_measures.pkl: discrete semantic entropy (cluster_assignment_entropy), semantic entropy
after Rao, length-normalised and predictive entropy, number of semantic sets, lexical similarity,
P(True) where it was asked, P(IK) where training questions were. No model is loaded for the answers;
only judge's calls that are not in the run's cache are made.

Exit status: 0 all measured, 1 some questions could not be clustered, 2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import sys
from argparse import BooleanOptionalAction
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # its sister script
sys.path.insert(0, str(HERE.parents[1]))  # the project root, where the spikescore package is

from generate_answers import add_measure_arguments, judge_options, measure  # noqa: E402

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.labels.entailment import make_entailment  # noqa: E402
from spikescore.report.tracking import Tracker  # noqa: E402
from utils import configure_logging  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="a run folder of generate_answers.py")
    parser.add_argument("--wandb", action=BooleanOptionalAction, default=True,
        help="log to W&B; offline when no key is set (default: yes)")  # fmt: skip
    add_measure_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Measure and print the means."""
    args = parse_arguments()
    configure_logging()
    folder = Path(args.data_dir)
    if not folder.is_dir():
        raise UserError(
            f'--data_dir "{folder}" does not exist; give a folder of generate_answers.py'
        )
    entailment = make_entailment(args.entailment_model, **judge_options(args, folder))
    tracker = Tracker(
        enabled=args.wandb, project="semantic_uncertainty", folder=folder, settings=vars(args)
    )
    try:
        return int(measure(args, folder, entailment, tracker) > 0)
    finally:
        tracker.finish()


if __name__ == "__main__":
    run_main(main)
