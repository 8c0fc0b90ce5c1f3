"""Train a probe on stage-1 output: hidden states of first answers in, hallucination score out.

    python ./semantic-entropy-probes/probes_trainer.py \\
        --data_dirs ./outputs/triviaqa --save_path ./probe_output/triviaqa.pkl

The probe is SAPLMA, an MLP d-256-128-64-1 with a sigmoid at its end, trained with Adam (1e-3) and
cross-entropy on the labels of stage 1; a higher score means more hallucinated. Questions are split
60/20/20 into train, validation and test; questions of one group (CoQA: one story) stay together.
The layer, the epoch and the SpikeScore threshold lambda are chosen on the validation split; the
test split only measures. Unlabelled items are counted and left out. Beside PROBE.pkl, PROBE.json
tells what was trained on what, and how well.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.pairs import TOKEN_KEYS, write_json  # noqa: E402
from spikescore.probe_training import Settings, train_saplma  # noqa: E402
from spikescore.probes import Probe, parse_layer_range  # noqa: E402


@dataclass
class ProbeTrainer:
    """Train a SAPLMA probe and keep it: `train_from_directories`, then `save_models`.

    `best` is the probe of the best validation epoch, `last` that of the last epoch; both are None
    before training.
    """

    settings: Settings = field(default_factory=Settings)
    best: Probe | None = None
    last: Probe | None = None

    def train_from_directories(
        self, directories: Sequence[str | Path], dataset_names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Train on all pairs under the directories (one data set name each) and return the report.

        Raises UserError when there is nothing to learn from.
        """
        self.best, self.last = train_saplma(directories, self.settings, dataset_names=dataset_names)
        return report(self.best)

    def save_models(self, save_dir: str | Path, prefix: str) -> Path:
        """Write <prefix>_best.pkl and <prefix>_last.pkl with reports; return the best's path."""
        if self.best is None or self.last is None:
            raise UserError("nothing to save: call train_from_directories first")
        paths = [Path(save_dir) / f"{prefix}_{name}.pkl" for name in ("best", "last")]
        for path, probe in zip(paths, (self.best, self.last), strict=True):
            save(probe, path)
        return paths[0]


def save(probe: Probe, path: Path) -> None:
    """Write the probe, and its report as JSON next to it."""
    probe.save(path)
    write_json(path.with_suffix(".json"), report(probe))


def report(probe: Probe) -> dict[str, Any]:
    """Return all that a probe says of itself except its weights and its list of questions."""
    lists = ("items", "questions")
    return {
        "kind": probe.kind,
        "model": probe.model,
        "hidden_size": probe.hidden_size,
        "n_layers": probe.n_layers,
        "token_key": probe.token_key,
        "layer_range": list(probe.layer_range),
        "seed": probe.seed,
        "standardised": probe.mean is not None,
        "training": {name: value for name, value in probe.training.items() if name not in lists},
        "metrics": probe.metrics,
        "spike_threshold": probe.spike_threshold,
    }


def summary(probe: Probe) -> str:
    """Return the lines that the script prints when it is done."""
    training, metrics = probe.training, probe.metrics
    sizes = ", ".join(
        f"{split} {n} ({training['hallucination_rate'][split]:.0%} hallucinated)"
        for split, n in training["n"].items()
    )
    left_out = ", ".join(f"{n} {reason}" for reason, n in training["left_out"].items() if n)
    threshold = metrics["spike_threshold"]
    if threshold["value"] is None:
        spike = threshold["note"]
    else:
        spike = (
            f"{threshold['value']:.4f} (balanced accuracy {threshold['balanced_accuracy']:.3f} "
            f"on {threshold['n']} validation dialogues)"
        )
    first, last = probe.layer_range
    lines = [
        f"items       {sizes}" + (f"; left out: {left_out}" if left_out else ""),
        f"probe       {probe.kind}, {probe.token_key}, layers {first},{last} of 0..{probe.n_layers}"
        f", epoch {metrics['epoch']}",
        f"validation  AUROC {_area(metrics['val'])} (layer and epoch were chosen on it)",
        f"test        AUROC {_area(metrics['test'])}",
        f"lambda      {spike}",
    ]
    return "\n".join(lines)


def _area(area: dict[str, Any]) -> str:
    if area["value"] is None:
        return area["note"]
    return f"{area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}] n={area['n']}"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Settings()
    add = parser.add_argument
    add("--data_dirs", required=True, metavar="A,B", help="folders of stage-1 pairs, comma between")
    add("--save_path", required=True, metavar="P.pkl", help="where to write the probe")
    add("--probe", choices=["saplma"], default="saplma", help="kind of probe (default: saplma)")
    add(
        "--token_key",
        choices=TOKEN_KEYS,
        default=default.token_key,
        metavar="KEY",
        help=f"whose state to read: {', '.join(TOKEN_KEYS)} (default: {default.token_key})",
    )
    add(
        "--layer_range",
        metavar="a,b",
        help="read layers a to b, both included, one after another; 0 is the embedding output "
        "(default: the single layer that is best on the validation split)",
    )
    for name, kind, metavar, meaning in (
        ("seed", int, "N", "of the split, the start and the order of the items"),
        ("epochs", _positive, "N", "passes over the train split"),
        ("val_fraction", float, "F", "share of the items to choose on"),
        ("test_fraction", float, "F", "share of the items to measure on"),
    ):
        value = getattr(default, name)
        help_text = f"{meaning} (default: {value})"
        add(f"--{name}", type=kind, default=value, metavar=metavar, help=help_text)
    add(
        "--no_standardise",
        action="store_true",
        help="feed the states as they are; without this flag each feature is shifted and scaled by "
        "its mean and standard deviation on the train split",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main() -> int:
    """Train as the command line says, save, print the summary."""
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    save_path = Path(args.save_path)
    if save_path.suffix != ".pkl":
        raise UserError(f'--save_path "{save_path}" must end in .pkl')
    trainer = ProbeTrainer(
        Settings(
            token_key=args.token_key,
            layer_range=parse_layer_range(args.layer_range),
            seed=args.seed,
            epochs=args.epochs,
            val_fraction=args.val_fraction,
            test_fraction=args.test_fraction,
            standardise=not args.no_standardise,
        )
    )
    trainer.train_from_directories([part for part in args.data_dirs.split(",") if part])
    save(trainer.best, save_path)
    print(summary(trainer.best))
    print(f"saved       {save_path} and {save_path.with_suffix('.json')}")
    return 0


if __name__ == "__main__":
    run_main(main)
