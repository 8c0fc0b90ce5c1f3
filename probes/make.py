#!/usr/bin/env python3
"""Train the probe that comes with the project, measure it, and write the figures of its card.

    python probes/make.py outputs/experiments/smollm2/SmolLM2-135M/main

The folder holds dialogues of stage 1, one subfolder per domain; they are read and left as they are.
The probe is trained on the domains of --train and measured on their test splits and on all other
domains. Every command is printed as it is run; together they take minutes.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from spikescore.errors import UserError, run_main  # noqa: E402
from spikescore.files import read_json, write_atomic  # noqa: E402
from spikescore.pairs import find_records  # noqa: E402
from spikescore.probes.probe import Probe, load_probe  # noqa: E402
from spikescore.probes.report import summary  # noqa: E402

BEGIN, END = "<!-- what probes/make.py wrote -->", "<!-- end -->"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("dialogues", type=Path, help="folder of stage 1, a subfolder per domain")
    add("--train", default="triviaqa,commonsenseqa", metavar="A,B", help="(default: %(default)s)")
    add("--folder", type=Path, default=Path("probes"), help="of probe and card (%(default)s)")
    add("--name", default="smollm2-135m-instruct", help="of the probe (default: %(default)s)")
    add("--work", type=Path, default=Path("outputs/shipped_probe"), help="for copies that are "
        "scored (default: %(default)s)")  # fmt: skip
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    folders = [args.dialogues / name for name in args.train.split(",")]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f'"{folder}" is not there; give dialogues that have it, or --train')
    card, probe = args.folder / "README.md", args.folder / f"{args.name}.pkl"
    before, rest = card.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    report = Path("reports") / args.work.name
    commands = [
        ["semantic-entropy-probes/probes_trainer.py", "--data_dirs", ",".join(map(str, folders)),
         "--save_path", probe, "--epochs", 50],
        ["metrics_probe.py", "--json_dir", args.work, "--pkl_dir", args.dialogues,
         "--probe_path", probe],
        ["eval_probe.py", "--data_dir", args.work, "--report_dir", report, "--without_dialogues"],
    ]  # fmt: skip
    shutil.rmtree(args.work, ignore_errors=True)
    for path in find_records(args.dialogues):  # stage 2 writes into them
        copy = args.work / path.relative_to(args.dialogues)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    printed = [run(command) for command in commands]
    flags = [line for line in printed[-1].splitlines() if line.startswith("SpikeScore at ")]
    shell = "\n".join(shlex.join(["python", *map(str, command)]) for command in commands)
    blocks = [
        BEGIN,
        told(load_probe(probe)),
        (report / "table_main.md").read_text("utf-8").strip(),
        *flags,
        read_json(report / "summary.json")["verdict"],
        f"Made by\n\n```text\n{shell}\n```",
        END,
    ]
    write_atomic(card, (before + "\n\n".join(blocks) + after).encode())
    print(f"wrote {probe} ({probe.stat().st_size / 1e6:.1f} MB) and the figures in {card}")
    return 0


def told(probe: Probe) -> str:
    """Return what the probe's file says of it, as the card shows it."""
    held = probe.dialogues["config"]
    prompt = held.get("system_prompt")
    return (
        f"```text\n{summary(probe)}\n```\n\n"
        f"Trained on {', '.join(probe.training['datasets'])} (seed {probe.seed}). Its dialogues: "
        f"K = {held['max_steps']}, {held['strategy']} prompts, temperature "
        f"{held['temperature']:g}, top-p {held['top_p']:g}, at most {held['max_new_tokens']} "
        f'tokens an answer, {held["dtype"]}, system prompt "{prompt}". Model: `{probe.model}`, '
        f"{probe.n_layers} layers of width {probe.hidden_size}, by content "
        + ", ".join(f"{part} `{digest[:16]}`" for part, digest in probe.identity.items())
        + "."
    )


def run(command: list) -> str:
    """Run one of the project's scripts, and return what it prints."""
    print("python", *command, flush=True)
    done = subprocess.run(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, check=False
    )
    print(done.stdout, flush=True)
    if done.returncode:
        raise UserError(f"{command[0]} ended with status {done.returncode}; see above")
    return done.stdout


if __name__ == "__main__":
    run_main(main)
