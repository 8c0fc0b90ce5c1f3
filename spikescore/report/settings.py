"""The box at the head of a report: what was asked, of what, how, by which code and when."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spikescore.report.provenance import commit, this_minute
from spikescore.report.steps import ROOT

Rows = list[tuple[str, str]]
MOST_SHOWN = 160
"""Characters of a system prompt that the box shows."""


def dialogue_settings(config: Mapping[str, Any]) -> Rows:
    """Return how dialogues were held, by a stage-1 configuration; what it lacks is left out."""
    sampling = config.get("sampling") or {}
    rows = [
        ("data", ", ".join(Path(path).stem for path in data_sets(config))),
        ("questions", _questions(sampling)),
        ("turns (K)", _text(config.get("max_steps"))),
        ("prompt schedule", _text(config.get("strategy"))),
        ("prompts", _text(config.get("prompts_file"))),
        ("first answers", _text(config.get("first_answers"))),
        ("retrieval", _retrieval(config.get("context"))),
        ("system prompt", _cut(_text(config.get("system_prompt")))),
        ("temperature", _text(config.get("temperature"))),
        ("top_p", _text(config.get("top_p"))),
        ("tokens an answer", _text(config.get("max_new_tokens"))),
    ]
    return [(name, value) for name, value in rows if value]


def data_sets(config: Mapping[str, Any]) -> list[str]:
    """Return the paths of the data sets that a stage-1 configuration names."""
    paths = config.get("dataset_path") or []
    return [paths] if isinstance(paths, str) else paths


def made_now() -> Rows:
    """Return the rows on when the report is made, and by which version of the code."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        version = tomllib.load(file)["project"]["version"]
    found = commit()
    return [
        ("made", this_minute()),
        ("version", f"{version}, commit {found}" if found else version),
    ]


def joined(values: Iterable[str]) -> str:
    """Return the different values there are, in order of first appearance, as one text."""
    return ", ".join(dict.fromkeys(value for value in values if value))


def _retrieval(context: Mapping[str, Any] | None) -> str:
    source = (context or {}).get("from")
    return f"{context.get('top_k', 3)} passages of {Path(source).name}" if source else ""


def _questions(sampling: Mapping[str, Any]) -> str:
    n, seed = sampling.get("n"), sampling.get("seed")
    if not sampling:
        return ""
    return f"{'all' if n is None else f'up to {n:,}'} per set (seed {seed})"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ..."
