"""`<id>.measures.pkl`: what was asked of the model about a finished pair, beside the pair.

    {"format": 1, "model": str, "texts": 12 hex digits of the dialogue's prompts and answers,
     "settings": {group: {...}},
     "turns": {"reasoning_score": float32 [K], "sharpness": float32 [K]},            # lens
     "first": {"mind": float32 [2H],                                                 # lens
               "icr": float32 [L],                                                   # attention
               "selfcheck_nli": float,                                               # samples
               "truth_state", "truth_state_yes", "truth_state_no": float16 [L+1, H], # questions
               "p_true": float,                                                      # questions
               "verbalised_confidence": float, "selfcheck_prompt": float},           # questions
     "samples": {"texts": [N str], "logliks": float64 [N], "n_tokens": [N int],
                 "states": float16 [N, H], "clusters": [N int] | None, "entailment": str}}

Groups that were not asked for are absent. What could not be computed is NaN or None, never filled
in. A sample's `logliks` is the sum over its tokens, from raw logits; its state is that of its last
content token at layer L // 2.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError
from spikescore.files import write_atomic
from spikescore.model.turns import token_sequences
from spikescore.pickles import load_pickle

FORMAT = 1
HOLDS = {
    "lens": {"turns": ("reasoning_score", "sharpness"), "first": ("mind",)},
    "attention": {"first": ("icr",)},
    "samples": {
        "samples": ("texts", "logliks", "n_tokens", "states", "clusters", "entailment"),
        "first": ("selfcheck_nli",),
    },
    "questions": {
        "first": (
            "truth_state",
            "truth_state_yes",
            "truth_state_no",
            "p_true",
            "verbalised_confidence",
            "selfcheck_prompt",
        ),
    },
}
"""What each group puts into the file, by section."""
GROUPS = tuple(HOLDS)
FIXED: dict[str, dict[str, float]] = {
    "lens": {"late_from": 2 / 3, "sharpness_depth": 26 / 32},
    "attention": {"top_p": 0.1},
}
"""Settings of a group that no run changes; `lens` and `icr` say what they mean."""
Measures = dict[str, Any]


def measures_path(pair: Path) -> Path:
    """Where the measures of a pair's JSON lie."""
    return pair.with_name(f"{pair.stem}.measures.pkl")


def texts_digest(record: dict[str, Any]) -> str:
    """12 hex digits over all prompts and answers of a dialogue."""
    texts = [[step.get("prompt"), step.get("response")] for step in record["cot_steps"]]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]


def read_measures(path: Path) -> Measures:
    """Read a file of measures; UserError when it is none, or of another format."""
    content = load_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise UserError(f'"{path}" holds no measures; delete it and run measure_answers.py again')
    if content.get("format") != FORMAT:
        raise UserError(
            f'"{path}" is of format {content.get("format")}, this version reads {FORMAT}; '
            "run measure_answers.py --redo"
        )
    return content


def write_measures(path: Path, content: Measures) -> None:
    """Write a file of measures, atomically."""
    write_atomic(path, pickle.dumps(content, protocol=5))


def same_model(one: str, other: str) -> bool:
    """Whether two paths or hub ids end in one name, wherever the model lies."""
    return Path(one).name == Path(other).name


def empty_measures(model: str, texts: str) -> Measures:
    """A file of measures with no group in it yet."""
    return {"format": FORMAT, "model": model, "texts": texts, "settings": {}}


def add_group(content: Measures, group: str, settings: dict[str, Any], **sections: Any) -> None:
    """Put what a group measured into a file's content; `sections` are those of `HOLDS[group]`."""
    expected = HOLDS[group]
    given = {section: set(values) for section, values in sections.items()}
    if given != {section: set(names) for section, names in expected.items()}:
        raise ValueError(f"group {group} holds {expected}, got {given}")
    for section, values in sections.items():
        content.setdefault(section, {}).update(values)
    content["settings"][group] = settings


def drop_group(content: Measures, group: str) -> None:
    """Take a group out of a file's content."""
    content["settings"].pop(group, None)
    for section, names in HOLDS[group].items():
        for name in names:
            content.get(section, {}).pop(name, None)
        if not content.get(section, True):
            del content[section]


def not_computed(content: Measures, groups: Sequence[str] = GROUPS) -> list[str]:
    """Names of the measures of these groups that are NaN or None, in part or whole."""
    return [
        name
        for group in groups
        if group in content["settings"]
        for section, names in HOLDS[group].items()
        for name in names
        if _missing(content[section][name])
    ]


def _missing(value: Any) -> bool:
    if isinstance(value, float | np.ndarray):
        return bool(np.isnan(value).any())
    return value is None


# --- what is to do ----------------------------------------------------------------------------


@dataclass
class Item:
    """A finished pair that is to be measured: `content` is its file so far, `groups` what it lacks.

    `error` says why it could not be measured.
    """

    path: Path
    record: dict[str, Any]
    content: Measures
    groups: list[str]
    error: str | None = None
    turns: list[tuple[list[int], list[int]]] = field(default_factory=list)

    @property
    def first(self) -> dict[str, Any]:
        """The dialogue's first turn."""
        return self.record["cot_steps"][0]


def open_item(
    path: Path,
    record: dict[str, Any],
    *,
    model: str,
    settings: dict[str, dict[str, Any]],
    redo: bool = False,
) -> Item:
    """Return what a pair has and what it lacks of the groups in `settings`.

    Raises UserError when its file was made from another dialogue, by another model or under other
    settings, unless it is to be redone.
    """
    target, texts = measures_path(path), texts_digest(record)
    content = read_measures(target) if target.exists() and not redo else None
    if redo and target.exists():
        content = _what_stands(target, model, texts, settings)
    if content is None:
        content = empty_measures(model, texts)
    _check(target, content, model, texts, settings)
    groups = [group for group in settings if group not in content["settings"]]
    if "samples" in settings and "samples" not in groups and content["samples"]["clusters"] is None:
        groups.insert(0, "samples")  # a judge failed: the same samples are judged again
    if "questions" in groups and "samples" not in {*groups, *content["settings"]}:
        raise UserError(
            f'"{target}" has no samples, which the questions are about; add samples to --groups'
        )
    return Item(path, record, content, groups)


def _what_stands(
    target: Path, model: str, texts: str, settings: dict[str, dict[str, Any]]
) -> Measures | None:
    """The content of a file that is to be redone, without what is measured anew."""
    try:
        content = read_measures(target)
    except UserError:
        return None
    if not same_model(content["model"], model) or content["texts"] != texts:
        return None
    for group in settings:
        drop_group(content, group)
    if "samples" in settings:
        drop_group(content, "questions")  # they were about the old samples
    return content


def _check(
    target: Path,
    content: Measures,
    model: str,
    texts: str,
    settings: dict[str, dict[str, Any]],
) -> None:
    if content["texts"] != texts:
        raise UserError(
            f'"{target}" was made from another dialogue ({content["texts"]}) than the pair holds '
            f"now ({texts}); use --redo to replace it"
        )
    if not same_model(content["model"], model):
        raise UserError(
            f'"{target}" was made with the model {content["model"]}, this run uses {model}; '
            "use --redo to replace it"
        )
    for group, asked in settings.items():
        made = content["settings"].get(group, asked)
        if made != asked:
            named = ", ".join(_differences(made, asked))
            raise UserError(
                f'"{target}": {group} was measured under other settings ({named}); '
                "use --redo to replace it, or restore the settings"
            )
    drawn = content["settings"].get("samples")
    wanted = settings.get("questions", {}).get("samples")
    if drawn and wanted and "samples" not in settings:
        about = {name: drawn[name] for name in wanted}
        if about != wanted:
            raise UserError(
                f'"{target}": the samples were drawn under other settings '
                f"({', '.join(_differences(about, wanted))}); restore the settings, or redo the "
                "samples as well"
            )


def _differences(made: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in dict.fromkeys([*made, *asked]):
        one, other = made.get(name), asked.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}: {one} -> {other}"


def stored_turns(record: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """The (prompt ids, response ids) of every turn; UserError where a record keeps none."""
    kept = ("n_kept", "prompt_ids", "response_ids")
    if not all(key in step for step in record["cot_steps"] for key in kept):
        raise UserError(
            "the dialogue keeps no token ids; make the pair anew with reasoning_lite.py --replay"
        )
    return token_sequences(record)
