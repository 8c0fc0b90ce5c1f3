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

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # its sister script
sys.path.insert(0, str(HERE.parents[1]))  # the project root, where the spikescore package is

from generate_answers import PROJECT, judge_options, measure, parse_settings  # noqa: E402

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.files import locked  # noqa: E402
from spikescore.labels.entailment import make_entailment  # noqa: E402
from spikescore.measures.run_folder import read_run  # noqa: E402
from spikescore.measures.run_plan import MeasureSettings, flag  # noqa: E402
from spikescore.report.tracking import Tracker  # noqa: E402
from utils import configure_logging  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Settings(MeasureSettings):
    """The run folder, and how it is measured."""

    data_dir: str = flag("a run folder of generate_answers.py")


def main() -> int:
    """Measure and print the means."""
    settings = parse_settings(Settings, __doc__, None)
    configure_logging()
    folder = Path(settings.data_dir)
    if not folder.is_dir():
        raise UserError(
            f'--data_dir "{folder}" does not exist; give a folder of generate_answers.py'
        )
    with locked(folder):
        entailment = make_entailment(settings.entailment_model, **judge_options(settings, folder))
        with Tracker(PROJECT, folder, asdict(settings), enabled=settings.wandb) as tracker:
            return int(measure(settings, read_run(folder), entailment, tracker) > 0)


if __name__ == "__main__":
    run_main(main)
