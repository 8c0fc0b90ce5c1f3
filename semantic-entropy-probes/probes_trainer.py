"""Train a probe: hidden states of first answers in, a score of doubt out.

    python ./semantic-entropy-probes/probes_trainer.py \\
        --data_dirs ./semantic_uncertainty/run1,./semantic_uncertainty/run2 \\
        --save_path ./probe_output/probe_name.pkl

The folders hold runs of generate_answers.py or pairs of stage 1 (reasoning_lite.py). --probe says
what is learned: sep-logistic (semantic entropy split into high and low; the default for runs),
sep-mlp (semantic entropy itself), or saplma (whether the answer is wrong; the default for stage 1,
whose pairs have no entropy). A higher score always means more doubtful, and stage 2 takes the probe
as --probe_path without further flags.

Questions are split 60/20/20 into train, validation and test; questions of one group (CoQA: one
story) and equal questions stay together. Layers, epoch and the SpikeScore threshold lambda are
chosen on the validation split, the threshold of entropy on the train split; the test split only
measures. Unlabelled items are counted and left out. Beside PROBE.pkl, PROBE.json tells what was
trained on what, and how well, and PROBE.png shows the layers that were compared.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

# The script lies one folder below the project root, where the spikescore package is.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.files import make_folder  # noqa: E402
from spikescore.pairs import TOKEN_KEYS  # noqa: E402
from spikescore.probes.layers import parse_layer_range  # noqa: E402
from spikescore.probes.probe import KINDS  # noqa: E402
from spikescore.probes.report import ProbeTrainer, report, save_with_report, summary  # noqa: E402
from spikescore.probes.training import LOSS_NAMES, RECIPES, Settings  # noqa: E402
from spikescore.report.tracking import log_run  # noqa: E402

SemanticEntropyProbeTrainer = ProbeTrainer
"""As the public release calls it, for code written for that."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; the names are those of `Settings`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Settings()
    add = parser.add_argument
    add("--data_dirs", required=True, metavar="A,B", help="folders to pool, comma between")
    add("--dataset_names", metavar="X,Y", help="name of each folder's data set, as the report has")
    add("--save_path", required=True, metavar="P.pkl", help="where to write the probe")
    add("--probe", choices=KINDS, help="kind of probe (default: by the folders, see above)")
    add(
        "--token_key",
        choices=TOKEN_KEYS,
        default=default.token_key,
        metavar="KEY",
        help=f"whose state to read: {', '.join(TOKEN_KEYS)} (default: {default.token_key})",
    )
    add(
        "--layers",
        default=default.layers,
        metavar="WHICH",
        help="single: the layer that is best on the validation split; auto: that one, or 5 or more "
        "adjacent layers if they are better together; last_8, first_8; or a list such as 5,7,9 "
        f"(default: {default.layers})",
    )
    add(
        "--layer_range",
        type=parse_layer_range,
        metavar="a,b",
        help="instead of --layers: layers a to b, both included, one after another; 0 is the "
        "embedding output",
    )
    add(
        "--swapped_positions",
        action="store_true",
        help="runs that do not say which tokens their states belong to have the two positions "
        "stored under each other's name (public scripts before July 2026)",
    )
    for name, kind, metavar, meaning in (
        ("seed", int, "N", "of the split, the start and the order of the items"),
        ("seeds", _positive, "N", "starts to try, from --seed on; the best on validation is kept"),
        ("val_fraction", float, "F", "share of the items to choose on"),
        ("test_fraction", float, "F", "share of the items to measure on"),
        ("epochs", _positive, "N", "most passes over the train split"),
        ("patience", int, "N", "stop after so many epochs without improvement; 0: never"),
        ("batch_size", _positive, "N", "items in a step"),
        ("learning_rate", float, "F", "of Adam"),
        ("weight_decay", float, "F", "of AdamW, for sep-mlp"),
    ):
        value = getattr(default, name)
        add(f"--{name}", type=kind, default=value, metavar=metavar, help=_help(name, meaning))
    add("--loss", choices=LOSS_NAMES, default=default.loss, help="of sep-mlp (default: huber)")
    add(
        "--hidden_sizes",
        type=_sizes,
        default=default.hidden_sizes,
        metavar="A,B",
        help="of sep-mlp (default: 1024,512,128)",
    )
    add(
        "--no_standardise",
        dest="standardise",
        action="store_false",
        help="feed the states as they are; without this flag each feature is shifted and scaled by "
        "its mean and standard deviation on the train split",
    )
    return parser.parse_args(arguments)


def _help(name: str, meaning: str) -> str:
    value = getattr(Settings(), name)
    if value is not None:
        return f"{meaning} (default: {value})"
    by_kind = ", ".join(f"{kind} {getattr(recipe, name)}" for kind, recipe in RECIPES.items())
    return f"{meaning} (default: {by_kind})"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def main() -> int:
    """Train as the command line says, save, print the summary."""
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if Path(args.save_path).suffix != ".pkl":
        raise UserError(f'--save_path "{args.save_path}" must end in .pkl')
    make_folder(Path(args.save_path).parent)  # before the work, not after it
    folders = [part for part in args.data_dirs.split(",") if part]
    trainer = ProbeTrainer(Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)}))
    names = args.dataset_names.split(",") if args.dataset_names else None
    trainer.train_from_directories(folders, names)
    written = save_with_report(trainer.best, args.save_path)
    print(summary(trainer.best))
    print(f"saved       {', '.join(map(str, written))}")
    log_run("probe", vars(args), report(trainer.best))
    return 0


if __name__ == "__main__":
    run_main(main)
