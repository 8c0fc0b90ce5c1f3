"""What a report was made with: versions, machine, data and models by content, seconds a step."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spikescore.files import content_digest, read_json, walk, write_atomic
from spikescore.report.content import Table
from spikescore.report.experiment import Experiment
from spikescore.report.steps import ROOT, Step
from spikescore.report.text import headed_table

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "scipy", "scikit-learn")


def write_provenance(experiment: Experiment, steps: Sequence[Step], config: str) -> Path:
    """Write `provenance.md` beside the report and return its path.

    Seconds are those of each step's last run: of a step that was stopped and went on, the last
    part. Data files are named with the sha256 of their content, as `sha256sum` prints it.
    """
    about = [
        ("experiment", config),
        ("made", this_minute()),
        ("commit", commit() or "unknown"),
        ("machine", f"{_processor()}, {os.cpu_count()} cores, {platform.machine()}"),
        ("system", f"{platform.system()} {platform.release()}"),
        ("python", platform.python_version()),
        *((name, _version(name)) for name in PACKAGES),
    ]
    for context in (experiment.dialogues.get("context"), experiment.ablations.retrieval):
        if context:  # may be a folder of many thousand texts: one digest for all
            source = context["from"]
            about.append((f"documents {source}", f"sha256 {content_digest(Path(source))}"))
    paths = experiment.dialogues["dataset_path"]
    files = [file for path in paths for file in _files(path)]
    files += [file for model in experiment.models for file in _files(model.model_path)]
    seconds = [
        (step.name, f"{record['seconds']:.0f}")
        for step in steps
        for marker in [experiment.report_dir / "done" / f"{step.name}.json"]
        for record in [read_json(marker) if marker.exists() else {}]
        if isinstance(record, dict) and "seconds" in record
    ]
    tables = (
        Table("What made it", ("what", "value"), tuple(about)),
        Table(
            "Data and models",
            ("file", "bytes", "sha256"),
            tuple((str(file), str(file.stat().st_size), content_digest(file)) for file in files),
        ),
        Table("Steps", ("step", "seconds"), tuple(seconds)),
    )
    text = "\n".join(map(headed_table, tables))
    path = experiment.report_dir / "provenance.md"
    write_atomic(path, f"# How this report was made\n\n{text}".encode())
    return path


def _files(place: str) -> Iterator[Path]:
    path = Path(place)
    found = walk(path) if path.is_dir() else [path]
    yield from sorted(file for file in found if file.is_file())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def this_minute() -> str:
    """Return the time as reports give it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def commit() -> str:
    """Return the project's commit, marked where files differ from it; "" without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
