"""`<id>.measures.pkl`: what was asked of the model about a finished pair, beside the pair.

    {"format": 1, "model": str, "identity": digests of the model's content,
     "texts": 12 hex digits of the dialogue's prompts and answers,
     "settings": {group: {...}}, "turns": {...}, "first": {...}, "samples": {...},
     "costs": {group: {"generated": tokens, "encoded": tokens, "seconds": float}}}

What each group puts where, and in which shape, stands in HOLDS: K turns, L layers, width H, N
samples, T, G and W tokens, A heads of width D, M neurons, an encoder's width E. Groups that were
not asked for are absent, and so are the costs (`Spent`) of groups that an older version measured.
What could not be computed is NaN or None, never filled in. A sample's `logliks` is the sum over its
tokens, from raw logits; its state is that of its last content token at layer L // 2.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.dialogues.keeping import digest
from spikescore.errors import UserError
from spikescore.files import write_atomic
from spikescore.model.turns import Spent, token_sequences
from spikescore.pairs import MODEL_PARTS, model_difference
from spikescore.shards import is_file, read_beside

FORMAT = 1
HOLDS: dict[str, dict[str, dict[str, str]]] = {
    "lens": {
        "turns": {
            "reasoning_score": "float32 [K]",
            "sharpness": "float32 [K]",
            "sharpness_raw": "float32 [K]",
        },
        "first": {"mind": "float32 [2H]"},
    },
    "attention": {"first": {"icr": "float32 [L]", "icr_answer": "float32 [L]"}},
    "samples": {
        "samples": {
            "texts": "N str",
            "logliks": "float64 [N]",
            "n_tokens": "N int",
            "states": "float16 [N, H]",
            "clusters": "N int or None",
            "entailment": "str",
        },
        "first": {"selfcheck_nli": "float"},
    },
    "questions": {
        "first": {
            "truth_state": "float16 [L+1, H]",
            "truth_state_yes": "float16 [L+1, H]",
            "truth_state_no": "float16 [L+1, H]",
            "p_true": "float",
            "verbalised_confidence": "float",
            "selfcheck_prompt": "float",
        },
    },
    "contrast": {
        "first": {
            "answer_logprobs": "float32 [T]",
            "prior_logprobs": "float32 [T]",
            "dola_divergence": "float32 [T]",
            "dola_contrast": "float32 [T]",
            "true_logprobs": "float32 [G]",
            "wrong_logprobs": "float32 [W]",
        },
    },
    "components": {"first": {"heads": "float16 [L, A, D]", "neurons": "float16 [L, M]"}},
    "rewordings": {
        "rewordings": {
            "questions": "N str",
            "answers": "N str",
            "clusters": "N int or None",
            "entailment": "str",
        },
        "counterfactuals": {"texts": "N str", "logliks": "float64 [N]", "n_tokens": "N int"},
    },
    "choices": {
        "first": {
            "p_true_choices": "float",
            "p_none": "float",
            "verbalised_top_k": "float",
            "verbalised_two_stage": "float",
        },
    },
    "capability": {"first": {"internal_confidence": "float"}},
    "semantics": {
        "first": {"answer_states": "float16 [L+1, H]", "answer_embedding": "float32 [E]"},
    },
}
"""What each group puts into the file, by section. A group of an older file that lacks one of these
is measured anew."""
GROUPS = tuple(HOLDS)
USUAL = ("lens", "attention", "samples", "questions")
"""The groups that are measured where none are named."""
JUDGED = ("samples", "rewordings")
"""The groups that hold sets of answers, which a judge of entailment made."""
ON_SAMPLES = ("questions", "choices")
"""The groups that are about the samples."""
FIXED: dict[str, dict[str, float]] = {
    "lens": {"late_from": 2 / 3, "sharpness_depth": 26 / 32},
    "attention": {"top_p": 0.1},
    "contrast": {"upper_from": 1 / 2},
    "components": {},
    "capability": {"tokens": 6, "locality": 1.0},
}
"""Settings of a group that no run changes; the module that reads it says what they mean."""
Measures = dict[str, Any]


def measures_path(pair: Path) -> Path:
    """Where the measures of a pair's JSON lie."""
    return pair.with_name(f"{pair.stem}.measures.pkl")


def texts_digest(record: dict[str, Any]) -> str:
    """12 hex digits over all prompts and answers of a dialogue."""
    texts = [[step.get("prompt"), step.get("response")] for step in record["cot_steps"]]
    return digest(texts)[:12]


def read_measures(path: Path, record: dict[str, Any]) -> Measures:
    """Read the file of measures of a dialogue.

    Raises UserError, naming the file and what is wrong in it, when it holds no measures, is of
    another format, or has a value that is not what HOLDS says.
    """
    try:
        content = read_beside(path, copy=True)
    except UserError as error:
        raise UserError(f"{error}; run measure_answers.py --redo") from error
    if damaged := _damage(content, record):
        raise UserError(f'"{path}" {damaged}; run measure_answers.py --redo')
    return content


def _damage(content: Any, record: dict[str, Any]) -> str:
    """What is wrong with a file's content; "" for nothing."""
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        return "holds no measures"
    if content.get("format") != FORMAT:
        return f"is of format {content.get('format')}, this version reads {FORMAT}"
    if unknown := [name for name in content["settings"] if name not in HOLDS]:
        return f"holds an unknown group {unknown[0]!r}"
    # of another dialogue the number of turns says nothing; that it is another is said later
    same = content.get("texts") == texts_digest(record)
    known = {"K": len(record["cot_steps"])} if same else {}
    costs = content.get("costs", {})
    if not isinstance(costs, dict) or not all(map(_is_cost, costs.values())):
        return "holds costs that are none"
    for group, sections in HOLDS.items():
        if not isinstance(content["settings"].get(group, {}), dict):
            return f"has no settings of {group}"
        for section, names in sections.items():
            held = content.get(section, {})
            if not isinstance(held, dict) or (group in content["settings"] and not held):
                return f'has no "{section}", where {group} stands'
            lengths = dict(known)
            for name, shape in names.items():
                if name in held and not _fits(held[name], shape, lengths):
                    return f"holds a {section}.{name} that is not {shape} of this dialogue"
    return ""


def _is_cost(value: Any) -> bool:
    """Whether a value is what a group cost."""
    if not isinstance(value, dict) or set(value) != {one.name for one in fields(Spent)}:
        return False
    return all(type(one) in (int, float) and 0 <= one < math.inf for one in value.values())


def _fits(value: Any, shape: str, lengths: dict[str, int]) -> bool:
    """Whether a value has the shape that HOLDS gives it; `lengths` learns what a letter is."""

    def length(letter: str, found: int) -> bool:
        return lengths.setdefault(letter, found) == found

    if "[" in shape:
        kind, _, axes = shape.rstrip("]").partition(" [")
        sized = isinstance(value, np.ndarray) and value.dtype == kind
        letters = axes.split(", ")
        return sized and len(letters) == value.ndim and all(map(length, letters, value.shape))
    if shape.startswith("N "):
        kind = str if shape == "N str" else int
        if value is None:
            return shape.endswith("None")
        listed = isinstance(value, list) and length("N", len(value))
        return listed and all(type(one) is kind for one in value)
    return isinstance(value, str if shape == "str" else float)


def write_measures(path: Path, content: Measures) -> None:
    """Write a file of measures, atomically."""
    write_atomic(path, pickle.dumps(content, protocol=5))


def empty_measures(model: Mapping[str, Any], texts: str) -> Measures:
    """A file of measures with no group in it yet; `model` as `pairs.model_difference` takes it."""
    own = {part: one for part in MODEL_PARTS if (one := model["identity"].get(part))}
    return {"format": FORMAT, **model, "identity": own, "texts": texts, "settings": {}}


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
    content.get("costs", {}).pop(group, None)
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
        if _missing(content[section].get(name))
    ]


def _missing(value: Any) -> bool:
    if isinstance(value, float | np.ndarray):
        return bool(np.isnan(value).any())
    return value is None


# --- what is to do ----------------------------------------------------------------------------


@dataclass
class Item:
    """A finished pair that is to be measured: `content` is its file so far, `groups` what it lacks.

    `error` says why it could not be measured; `spent` is what the group at work has spent on it.
    """

    path: Path
    record: dict[str, Any]
    content: Measures
    groups: list[str]
    error: str | None = None
    turns: list[tuple[list[int], list[int]]] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)

    @property
    def first(self) -> dict[str, Any]:
        """The dialogue's first turn."""
        return self.record["cot_steps"][0]


def open_item(
    path: Path,
    record: dict[str, Any],
    *,
    model: Mapping[str, Any],
    settings: dict[str, dict[str, Any]],
    redo: bool = False,
) -> Item:
    """Return what a pair has and what it lacks of the groups in `settings`.

    Raises UserError when its file was made from another dialogue, by another model or under other
    settings, unless it is to be redone.
    """
    target, texts = measures_path(path), texts_digest(record)
    content = None
    if is_file(target) and redo:
        content = _what_stands(target, record, model, settings)
    elif is_file(target):
        content = read_measures(target, record)
    content = content or empty_measures(model, texts)
    _check(target, content, model, texts, settings)
    groups = [group for group in settings if not _has(content, group)]
    for group in JUDGED:
        if group in settings and group not in groups and content[group]["clusters"] is None:
            groups.insert(0, group)  # a judge failed: the same answers are judged again
    for group in ON_SAMPLES:
        if group in groups and "samples" not in {*groups, *content["settings"]}:
            raise UserError(
                f'"{target}" has no samples, which the {group} are about; add samples to --groups'
            )
    return Item(path, record, content, groups)


def _has(content: Measures, group: str) -> bool:
    """Whether a file holds all that a group puts into it."""
    return group in content["settings"] and all(
        name in content[section] for section, names in HOLDS[group].items() for name in names
    )


def _what_stands(
    target: Path,
    record: dict[str, Any],
    model: Mapping[str, Any],
    settings: dict[str, dict[str, Any]],
) -> Measures | None:
    """The content of a file that is to be redone, without what is measured anew."""
    try:
        content = read_measures(target, record)
    except UserError:
        return None
    if model_difference(content, model) or content.get("texts") != texts_digest(record):
        return None
    for group in settings:
        drop_group(content, group)
    if "samples" in settings:
        for group in ON_SAMPLES:  # they were about the old samples
            drop_group(content, group)
    return content


def _check(
    target: Path,
    content: Measures,
    model: Mapping[str, Any],
    texts: str,
    settings: dict[str, dict[str, Any]],
) -> None:
    if content.get("texts") != texts:
        raise UserError(
            f'"{target}" was made from another dialogue ({content.get("texts")}) than the pair '
            f"holds now ({texts}); use --redo to replace it"
        )
    if difference := model_difference(content, model):
        raise UserError(
            f'"{target}" was made with another model ({difference}); use --redo to replace it'
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
    wanted = next((settings[group]["samples"] for group in ON_SAMPLES if group in settings), None)
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
