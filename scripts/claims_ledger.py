"""Write the claims ledger: each claim of the paper, what tests it, what came out here, a verdict.

    python scripts/claims_ledger.py --configs configs/smollm2.json,configs/smollm2-given.json

Reads the score books of the experiments' reports (reproduce.py makes them) and writes
docs/evidence/claims.md. Only a report of one of the paper's models gives a verdict; any other model
is told as "tried on". What no report speaks about is "not tested".
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.files import write_atomic  # noqa: E402
from spikescore.report.experiment import load_experiment  # noqa: E402


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", required=True, metavar="A,B", help="the experiments")
    parser.add_argument(
        "--save_path",
        type=Path,
        default=Path("docs/evidence/claims.md"),
        help="the ledger (%(default)s)",
    )
    return parser.parse_args(arguments)


def main() -> int:
    args = parse_arguments()
    found = []
    configs = [one.strip() for one in args.configs.split(",") if one.strip()]
    if len({Path(one).resolve() for one in configs}) < len(configs):
        raise UserError("--configs names an experiment twice; name it once")
    for config in configs:
        experiment = load_experiment(config)
        models = [model for model in experiment.models if experiment.book(model).exists()]
        if not models:
            raise UserError(
                f'"{config}" has no score book "{experiment.book(experiment.models[0])}"; run '
                f"python reproduce.py --config {config}, or leave it out"
            )
        found += [(experiment, model) for model in models]
    if not found:
        raise UserError("--configs names no experiment; give one at least")
    from spikescore.report.claims import ledger
    from spikescore.report.experiment_report import ModelReport

    reports = [ModelReport(experiment, model) for experiment, model in found]
    command = shlex.join(["python", "scripts/claims_ledger.py", "--configs", args.configs])
    write_atomic(args.save_path, ledger(reports, command).encode())
    print(f"wrote {args.save_path}, from {len(reports)} score books")
    return 0


if __name__ == "__main__":
    run_main(main)
