"""The pair on disk: `<id>.json` with the dialogue and `<id>.pkl` with its hidden states.

Everything that reads or writes a pair goes through here, so that the promises are kept in one
place: loading a pickle never runs code from it, a write is atomic, the PKL is written before the
JSON, and a JSON with `"complete": true` marks a finished pair. The older public form of both files
is read, never written.

States are a dict `{turn: {token_key: array}}`, turn counted from 1, each array FP16 of shape
`[L+1, H]` (index 0 = embedding output, last = the final entry of `output_hidden_states`).
"""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from spikescore.errors import UserError, redacted, refused
from spikescore.files import JsonText, walk, write_atomic, write_json
from spikescore.shards import (
    INDEX,
    holding,
    is_file,
    packed_above,
    packed_at,
    read_beside,
    read_pair_json,
)

log = logging.getLogger("spikescore")

TOKEN_KEYS = ("last_token_embedding", "sec_last_token_embedding", "last_tok_bef_gen_embedding")
States = dict[int, dict[str, np.ndarray]]
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NOT_PAIRS = {"config.json", "run.json", "summary.json", "progress.json", "speed.json", INDEX}


# --- names ------------------------------------------------------------------------------------


def file_id(own_id: object, content: str) -> str:
    """Return the set's own id made safe for a file name, or 12 hex digits of the content's hash."""
    if own_id is not None:
        text = _UNSAFE.sub("_", str(own_id)).strip("._")
        taken = f"{text}.json" in _NOT_PAIRS or text.endswith((".error", "_error", ".measures"))
        if text and len(text) <= 120 and not taken:
            return text
    return sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def write_pair(folder: Path, record: dict[str, Any], states: States, *, model: str) -> None:
    """Write a finished pair, PKL first, then the JSON with `"complete": true`.

    Raises UserError, naming turn, token key and layer, when a state is not finite or beyond FP16's
    range.
    """
    packed = pack_states(states, model=model)
    write_atomic(folder / f"{record['id']}.pkl", pickle.dumps(packed, protocol=5))
    write_json(folder / f"{record['id']}.json", {**record, "complete": True})
    (folder / f"{record['id']}.error.json").unlink(missing_ok=True)


def pack_states(states: States, *, model: str) -> dict[str, Any]:
    """Return the PKL's content (format 1) after checking shape, type and values of all arrays."""
    n_states = hidden_size = 0
    for turn, by_key in states.items():
        for key, array in by_key.items():
            if array.dtype != np.float16 or array.ndim != 2:
                raise ValueError(
                    f"turn {turn} {key}: expected float16 [L+1, H], got {array.dtype} {array.shape}"
                )
            bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
            if bad.size:
                raise UserError(
                    f"turn {turn}, {key}: the state of layer {bad[0]} is not finite in FP16 "
                    "(beyond 65504 or NaN); "
                    'run this model with "dtype": "float32" or leave the layer out of the study'
                )
            n_states, hidden_size = array.shape
    return {
        "format": 1,
        "model": model,
        "n_layers": n_states - 1,
        "hidden_size": hidden_size,
        "dtype": "float16",
        "turns": states,
    }


def write_error(folder: Path, item_id: str, reason: str, **details: Any) -> None:
    """Record that an item failed, and why, as `<id>.error.json` next to where its pair would be."""
    error = {"id": item_id, "error": redacted(reason), **details}
    write_json(folder / f"{item_id}.error.json", error)


def find_records(folder: str | Path) -> list[Path]:
    """Return the dialogue JSON files under a folder, links to folders followed, sorted. Error
    files, run files and hidden folders (a notebook's checkpoints) are left out. Those that shards
    hold are among them, after the shards were checked (`shards.Packed.require_sound`).

    A file counts when its name is not one of ours for other purposes; `read_record` says whether
    it really is one.
    """
    top = Path(folder)
    above = packed_above(top)
    files = set(walk(top)) if top.is_dir() else set()
    files = {path for path in files if not _is_hidden(path.relative_to(top))}
    inner = [packed_at(path.parent) for path in files if path.name == INDEX]
    for packed in {one.folder: one for one in (above, *inner) if one}.values():
        packed.require_sound()
        files.update(path for path in packed.records() if path.is_relative_to(top))
    if not files and not top.is_dir():
        what = f'"{top}" is not a folder' if top.exists() else f'folder "{top}" does not exist'
        raise UserError(f"{what}; give the folder that stage 1 wrote to")
    return [
        path
        for path in sorted(files)
        if path.suffix == ".json"
        and path.name not in _NOT_PAIRS
        and not path.name.endswith((".error.json", "_error.json"))
    ]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a dialogue JSON in today's form; None when the file is some other JSON."""
    return as_record(read_pair_json(path), path)


def as_record(raw: Any, path: Path) -> dict[str, Any] | None:
    """Return a JSON file's content as a dialogue in today's form; None when it is some other JSON,
    or, with a warning, a copy that lies beside the dialogue itself.

    Every field that the stages read is then of its kind (`_FIELDS` and the like), null or missing;
    what is not raises UserError naming file and field. Steps of which one has no turn are numbered.
    The older public form (`reasoning_chain` with `step` from 0, `nli_label`) is converted in memory
    and marked `"legacy": true`; its label keeps its meaning (1: consistent).
    """
    if not isinstance(raw, dict):
        return None
    key = "cot_steps" if "cot_steps" in raw else "reasoning_chain"
    if key not in raw:
        return None
    if not isinstance(raw[key], list):
        raise _damaged(path, f'"{key}"', raw[key], "a list")
    for place, step in enumerate(raw[key], start=1):
        if not isinstance(step, dict):
            raise _damaged(path, f"entry {place} of {key}", step, "an object")
    record = raw if key == "cot_steps" else _from_older(raw, path)
    if any(step.get("turn") is None for step in record["cot_steps"]):  # another's form of ours
        numbered = enumerate(record["cot_steps"], start=1)
        record = {**record, "cot_steps": [{**step, "turn": place} for place, step in numbered]}
    _check_fields(record, path)
    own = record.get("id", path.stem)
    with suppress(OSError):  # an id that is too long for a file's name
        if own != path.stem and Path(str(own)).name == own and is_file(path.with_stem(own)):
            log.warning('"%s" is a copy of "%s.json" beside it, and is left out', path, own)
            return None
    return record


def _from_older(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    steps = []
    for place, step in enumerate(raw["reasoning_chain"]):
        number = step.get("step", place)
        if not _is_int(number):
            where = f'entry {place + 1} of reasoning_chain: "step"'
            raise _damaged(path, where, number, "a whole number")
        response = step.get("response") or step.get("answer")
        steps.append({**step, "turn": int(number) + 1, "response": response})
    return {
        **{key: value for key, value in raw.items() if key != "reasoning_chain"},
        "id": raw.get("id", path.stem),
        "cot_steps": steps,
        "nil_label": raw.get("nli_label", raw.get("nil_label")),
        "metrics": raw.get("metrics") or {},
        "complete": True,
        "legacy": True,
    }


# --- what each field may hold -------------------------------------------------------------------

ANSWER_TYPES = ("exact", "numeric", "choice", "math", "list", "free", "grounded")
_WHOLE = 2**53  # beyond it a float is no longer exact


def _is_finite(value: Any) -> bool:
    return type(value) is int and abs(value) < _WHOLE or type(value) is float and isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _WHOLE


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or _is_finite(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


def _are_paths(value: Any) -> bool:
    every = value if isinstance(value, list) else [value]
    return all(isinstance(one, str) for one in every)


def _are_ids(value: Any) -> bool:
    if isinstance(value, list):
        return set(map(type, value)) <= {int} and (
            not value or 0 <= min(value) <= max(value) < 2**31
        )
    return isinstance(value, JsonText)


def _is_given(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("text"), str)
        and isinstance(value.get("hallucinated"), bool)
    )


def _are_exchanges(value: Any) -> bool:
    return isinstance(value, list) and all(_are_names(pair) and len(pair) == 2 for pair in value)


_Kind = tuple[Callable[[Any], bool], str]
_TEXT: _Kind = (lambda value: isinstance(value, str), "a text")
_NAME: _Kind = (_is_name, "a text or a number")
_NAMES: _Kind = (_are_names, "a list of texts")
_ANSWERS: _Kind = (lambda value: _is_name(value) or _are_names(value), "a list of texts")
_OBJECT: _Kind = (lambda value: isinstance(value, dict), "an object")
_NUMBER: _Kind = (_is_finite, "a finite number")
_COUNT: _Kind = (_is_count, "a whole number that counts something")
_IDS: _Kind = (_are_ids, "a list of token ids")
_FIELDS: dict[str, _Kind] = {
    **dict.fromkeys(("id", "group", "pair_id"), _NAME),
    **dict.fromkeys(("question", "context", "domain", "model", "config_hash"), _TEXT),
    **dict.fromkeys(("finish_reason", "backend", "server_model"), _TEXT),
    **dict.fromkeys(("config", "identity", "meta", "nil_judge", "metrics"), _OBJECT),
    "given_answer": (_is_given, "an object with text and hallucinated"),
    **dict.fromkeys(("gold_answers", "incorrect_answers"), _ANSWERS),
    "choices": _NAMES,
    "history": (_are_exchanges, "a list of [question, answer]"),
    "answer_type": (lambda value: value in ANSWER_TYPES, f"one of {', '.join(ANSWER_TYPES)}"),
    "nil_label": (lambda value: value in (0, 1), "1 (consistent), 0 (not) or null"),
    "complete": (lambda value: isinstance(value, bool), "true or false"),
}
_CONFIG_FIELDS: dict[str, _Kind] = {
    **dict.fromkeys(("sampling", "context"), _OBJECT),
    "dataset_path": (_are_paths, "a path or a list of paths"),
}
_METRICS_FIELDS: dict[str, _Kind] = {
    "probe": _OBJECT,
    "probe_split": _TEXT,
    "spike_score": _NUMBER,
}
_PROBE_FIELDS: dict[str, _Kind] = {
    "path": _TEXT,
    "train_domains": _NAMES,
    "layer_range": (_are_names, "a list of layers"),
    "spike_threshold": _NUMBER,
}
_STEP_FIELDS: dict[str, _Kind] = {
    **dict.fromkeys(("prompt", "prompt_type", "response", "finish_reason"), _TEXT),
    **dict.fromkeys(("perplexity", "mean_logprob", "mean_token_entropy"), _NUMBER),
    **dict.fromkeys(("max_token_entropy", "first_token_confidence"), _NUMBER),
    **dict.fromkeys(("n_prompt_tokens", "n_response_tokens", "n_kept"), _COUNT),
    "seconds": (lambda value: _is_finite(value) and value >= 0, "a number of at least 0"),
    **dict.fromkeys(("prompt_ids", "response_ids"), _IDS),
    "turn": (lambda value: _is_count(value) and value > 0, "a whole number from 1 on"),
    "metrics": _OBJECT,
}
_STEP_METRICS_FIELDS: dict[str, _Kind] = {"probe_pred": _NUMBER}


def _check_fields(record: dict[str, Any], path: Path) -> None:
    """Raise UserError naming the first field that is not of its kind."""

    def check(holder: dict[str, Any] | None, kinds: dict[str, _Kind], where: str = "") -> None:
        for key, value in (holder or {}).items():
            if value is not None and key in kinds and not kinds[key][0](value):
                raise _damaged(path, f'{where}"{key}"', value, kinds[key][1])

    check(record, _FIELDS)
    check(record.get("nil_judge"), {"judge": _TEXT}, "nil_judge: ")
    config = record.get("config") or {}
    check(config, _CONFIG_FIELDS, "config: ")
    check(config.get("sampling"), {"n": _COUNT}, "config, sampling: ")
    check(config.get("context"), {"from": _TEXT}, "config, context: ")
    metrics = record.get("metrics") or {}
    check(metrics, _METRICS_FIELDS, "metrics: ")
    check(metrics.get("probe"), _PROBE_FIELDS, "metrics, probe: ")
    for place, step in enumerate(record["cot_steps"], start=1):
        where = f"entry {place} of cot_steps: "
        check(step, _STEP_FIELDS, where)
        check(step.get("metrics"), _STEP_METRICS_FIELDS, f"{where}metrics: ")


def _damaged(path: Path, where: str, value: Any, kind: str) -> UserError:
    shown = json.dumps(value, default=str, ensure_ascii=False)[:41]
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    return UserError(f'"{path}": {where} is {shown}, not {kind}; mend that, or move the file away')


def iter_records(
    folder: str | Path, damaged: list[Path] | None = None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (path, record) for every dialogue under a folder, in order of path. One that stands
    there twice, under the same settings, counts once, with a warning. A file that cannot be read
    raises UserError, or is added to the list `damaged`, where there is one.
    """
    seen: dict[tuple, Path] = {}
    for path in find_records(folder):
        try:
            record = read_record(path)
        except UserError:
            if damaged is None:
                raise
            damaged.append(path)
            continue
        if record is None:
            continue
        first = seen.setdefault(copy_key(record, path), path)
        if first is path:
            yield path, record
        else:
            log.warning('"%s" and "%s" hold the same dialogue; it counts once', first, path)


def copy_key(record: dict[str, Any], path: Path) -> tuple:
    """Return what a dialogue and its copy in another folder share: question, answers, settings."""
    answers = [step.get("response") for step in record["cot_steps"]]
    said = sha256(json.dumps(answers).encode()).hexdigest()
    made_by = record.get("model"), record.get("config_hash")
    return item_key({"id": path.stem, **record}), question_digest(record), said, *made_by


def read_states(path: Path, token_key: str | None = None) -> States:
    """Read a PKL into `{turn: {token_key: float16 [L+1, H]}}` without running anything it holds.

    Arrays may be read-only views of the file, of which only what is used is read. With a token_key,
    the states of other tokens are left out, unconverted and unchecked. The older public form,
    `{step: {key: torch tensor}}` from step 0, is renumbered from turn 1; its bfloat16 tensors are
    converted and a state beyond FP16's range is an error.
    """
    content = _packed_content(path) or read_beside(path, copy=False)
    ours = isinstance(content, dict) and content.get("format") == 1
    turns = content.get("turns") if ours else content
    if not isinstance(turns, dict) or not all(map(_is_int, turns)) or not (turns or ours):
        raise UserError(
            f'"{path}" holds no hidden states in a known form; make it again with stage 1'
        )
    offset = 0 if ours or min(map(int, turns)) else 1
    states: States = {}
    for turn, by_key in turns.items():
        if not isinstance(by_key, dict):
            raise UserError(f'"{path}": turn {turn} is not a dict of token keys')
        states[int(turn) + offset] = {
            key: _as_float16(value, path, turn, key)
            for key, value in by_key.items()
            if token_key in (None, key)
        }
    return states


def _packed_content(path: Path) -> dict[str, Any] | None:
    """Return what the PKL of a pair in shards held, as far as it matters; None without such."""
    packed = holding(path)
    found = packed.turns(packed.name_of(path)) if packed else None
    if found is None:
        return None
    turns, by_key = found
    at = {turn: {key: states[n] for key, states in by_key.items()} for n, turn in enumerate(turns)}
    return {"format": 1, "turns": at}


def _is_int(key: object) -> bool:
    if isinstance(key, str):
        return key.isdecimal()
    return isinstance(key, int) and not isinstance(key, bool)


def _as_float16(value: Any, path: Path, turn: object, key: object) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise UserError(f'"{path}": turn {turn}, {key} is {type(value).__name__}, not an array')
    value = np.atleast_2d(np.squeeze(value)) if value.ndim != 2 else value
    if value.dtype == np.float16:
        return value
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    bad = np.flatnonzero(np.isfinite(value).all(axis=1) & ~np.isfinite(half).all(axis=1))
    if bad.size:
        raise UserError(f'"{path}": turn {turn}, {key}: layer {bad[0]} is beyond the range of FP16')
    return half


DEFAULT_TOKEN_KEY = "last_token_embedding"


def item_key(record: dict[str, Any]) -> str:
    """Return the name of a record's question in a probe's training list: "<domain>/<id>"."""
    return f"{record.get('domain') or 'unknown'}/{record.get('id')}"


def group_key(record: dict[str, Any], name: Any) -> Any:
    """Return an item's group, which may be the number 0; its own `name` where it has none."""
    group = record.get("group")
    return name if group in (None, "") else group


def pair_key(record: dict[str, Any]) -> str:
    """Return what the twins of one question share, unique over domains; "" for no twin."""
    pair = record.get("pair_id")
    return "" if pair is None else f"{record.get('domain') or 'unknown'}/{pair}"


def question_digest(record: dict[str, Any]) -> str:
    """Return 12 hex digits that stand for what was asked: question, passage, choices, history.

    A passage that was retrieved is no part of it: with and without it the question is the same.
    Statements that are given as answers all answer one request: they themselves are what was asked.
    """
    asked = [record.get(key) or None for key in ("question", "context", "choices", "history")]
    if (record.get("meta") or {}).get("retrieved"):
        asked[1] = None
    given = record.get("given_answer") or {}
    if given.get("is_statement"):
        asked.append(given.get("text"))
    return sha256(json.dumps(asked).encode()).hexdigest()[:12]


def question_digests(record: dict[str, Any]) -> list[str]:
    """Return all that a question is known again by: its wording, and in a parallel set (its
    `meta` holds a `parallel_id`) what it shares with its translations.
    """
    shared = (record.get("meta") or {}).get("parallel_id")
    translated = [sha256(str(shared).encode()).hexdigest()[:12]] if shared else []
    return [question_digest(record), *translated]


def stack_turns(
    states: States, record: dict[str, Any], token_key: str, path: str | Path
) -> np.ndarray:
    """Return the states of a dialogue's turns at one token, in the order of its steps: [K, L+1, H].

    Raises UserError as `turn_states` does, and when a state is not finite.
    """
    stacked = np.stack(turn_states(states, record, token_key, path))
    require_finite(stacked, path)
    return stacked


IN_MEMORY = 2**27
"""Bytes of the states of many dialogues that are kept in memory; more go to a file."""


def gathered(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Return arrays of one shape and dtype as one: [n, ...]; an empty one where there are none.

    Beyond IN_MEMORY bytes they lie, read-only, in a nameless temporary file (in TMPDIR), whose
    pages the system keeps in memory or not as there is room, and which forked processes share.
    UserError where shapes differ, or the file cannot be had.
    """
    arrays = iter(arrays)
    first = next(arrays, None)
    if first is None:
        return np.empty(0)

    def alike() -> Iterator[np.ndarray]:
        for one in itertools.chain([first], arrays):
            if one.shape != first.shape:
                raise UserError(
                    "the hidden states of these dialogues differ in shape: "
                    f"{list(first.shape)} and {list(one.shape)}; give those of one model"
                )
            yield one

    rest = alike()
    held = list(itertools.islice(rest, max(1, IN_MEMORY // max(1, first.nbytes))))
    following = next(rest, None)
    if following is None:
        return np.stack(held)
    held.append(following)
    n = 0
    try:
        with tempfile.TemporaryFile(prefix="states_") as file:
            while (one := held.pop(0) if held else next(rest, None)) is not None:
                file.write(np.ascontiguousarray(one).data)
                n += 1
            file.flush()
            return np.memmap(file, first.dtype, "r", shape=(n, *first.shape))
    except OSError as error:
        raise refused(error, tempfile.gettempdir(), "cannot hold the hidden states") from error


def require_finite(values: np.ndarray, path: str | Path) -> None:
    """Raise UserError naming the file when states, or features of them, are not finite."""
    if not np.isfinite(values).all():
        raise UserError(f'"{path}": a hidden state is not finite; run stage 1 again for this item')


def turn_states(
    states: States, record: dict[str, Any], token_key: str, path: str | Path
) -> list[np.ndarray]:
    """Return a dialogue's K states [L+1, H] at one token, in the order of its steps, uncopied.

    Raises UserError naming the file when a turn, or its token, has no state, or when shapes differ:
    a missing score could not be patched honestly afterwards.
    """
    turns = [step["turn"] for step in record["cot_steps"]]
    if not turns:
        raise UserError(f'"{path}": its dialogue has no turns; run stage 1 again for this item')
    if len(set(turns)) < len(turns):
        raise UserError(f'"{path}": the "turn" of two steps of its dialogue is the same: {turns}')
    missing = [turn for turn in turns if token_key not in states.get(turn, {})]
    if missing:
        raise UserError(
            f'"{path}": no hidden state "{token_key}" for turn {missing[0]} '
            f"({len(missing)} of {len(turns)} turns lack it); run stage 1 again for this item"
        )
    arrays = [states[turn][token_key] for turn in turns]
    if len({array.shape for array in arrays}) > 1:
        raise UserError(f'"{path}": the hidden states of its turns differ in shape')
    return arrays


def model_basename(model: str) -> str:
    """Return the last part of a model's path or hub id: what it is known by wherever it lies."""
    return PurePosixPath(model.replace("\\", "/")).name


_LOCAL = re.compile(r"[/~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]")


def for_all_eyes(value: Any) -> Any:
    """Return plain data as it may be published: of each path and address the last part, nothing of
    keys and passwords (`redacted`). Keys of objects are names, not paths.
    """
    if isinstance(value, dict):
        return {redacted(str(key)): for_all_eyes(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(for_all_eyes, value))
    if not isinstance(value, str):
        return value
    a_path = _LOCAL.match(value) or (re.search(r"[/\\]", value) and not re.search(r"\s", value))
    return redacted(model_basename(value) if a_path else value)


# --- what a pair is good for, and what belongs together -----------------------------------------


def unusable(path: Path, record: Mapping[str, Any]) -> str:
    """Say why a dialogue can be neither learned from nor scored; "" when it can.

    "unfinished", "without turns", "unlabelled" or "without PKL".
    Whether the PKL can be read is known when it is read.
    """
    if not record.get("complete", True):
        return "unfinished"
    if not record.get("cot_steps"):
        return "without turns"
    if record.get("nil_label") not in (0, 1):
        return "unlabelled"
    return "" if is_file(path.with_suffix(".pkl")) else "without PKL"


def cut_off(record: Mapping[str, Any]) -> str:
    """Say which limit ended the first answer, "length" or "timeout"; "" when it ended by itself.

    The label of such an answer may come from the limit and not from the model.
    """
    first = next(iter(record.get("cot_steps") or ()), {})
    reason = first.get("finish_reason") if isinstance(first, Mapping) else None
    return reason if reason in ("length", "timeout") else ""


def short_meta(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the data set says of an item in single short values: scope, category, year."""
    meta = record.get("meta")
    kept = (str, int, float, bool)
    return {
        key: value
        for key, value in (meta.items() if isinstance(meta, Mapping) else ())
        if isinstance(value, kept) and len(str(value)) <= 100
    }


MODEL_PARTS = ("weights", "architecture", "tokenizer", "template")


def model_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say how the models of two pairs (probes, books) differ; "" when they are one model.

    Each has "model", a path or hub id, and, unless it was made before there were such, "identity":
    digests by content (`MODEL_PARTS` and more), which decide. Without them the path's last part
    does; what neither says is no difference.
    """
    names = [str(side.get("model") or "") for side in (one, other)]
    contents = [side.get("identity") or {} for side in (one, other)]
    known = [part for part in MODEL_PARTS if all(content.get(part) for content in contents)]
    if known:
        parts = [part for part in known if not _same_digest(*(one[part] for one in contents))]
        return f'{", ".join(parts)} of "{names[0]}" and "{names[1]}"' if parts else ""
    differ = all(names) and len(set(map(model_basename, names))) > 1
    return f'"{names[0]}" and "{names[1]}"' if differ else ""


def _same_digest(one: object, other: object) -> bool:
    """Whether two hexadecimal digests are one, of which either may be kept in short."""
    short = min(len(str(one)), len(str(other)))
    return one == other or (short >= 12 and str(one)[:short] == str(other)[:short])


def require_one_run(found: Iterable[tuple[Path, Mapping[str, Any]]]) -> None:
    """Raise UserError, naming two files and what differs, unless these dialogues belong together.

    One model made, or read, all of them; those of one folder were made under one configuration and
    from the same prompts. What an older pair does not say is no difference.
    """
    first: tuple[Path, Mapping[str, Any]] | None = None
    by_folder: dict[Path, tuple[Path, Mapping[str, Any]]] = {}
    for path, record in found:
        first = first or (path, record)
        if difference := model_difference(first[1], record):
            _refuse(first[0], path, f"models: {difference}", "give the dialogues of one model")
        other, kept = by_folder.setdefault(path.parent, (path, record))
        hashes = kept.get("config_hash"), record.get("config_hash")
        prompts = [(one.get("identity") or {}).get("prompts") for one in (kept, record)]
        if all(hashes) and hashes[0] != hashes[1]:
            settings = setting_differences(kept.get("config") or {}, record.get("config") or {})
            _refuse(other, path, f"settings: {settings}", "keep each run in a folder of its own")
        if all(prompts) and prompts[0] != prompts[1]:
            _refuse(other, path, "prompts", "keep each run in a folder of its own")


def _refuse(one: Path, other: Path, difference: str, advice: str) -> None:
    raise UserError(f'"{one}" and "{other}" differ in their {difference}; {advice}')


def setting_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the settings of two configurations that differ, for an error message."""
    keys = [key for key in new if old.get(key) != new[key] and key != "output_dir"]
    return (
        ", ".join(f"{key}: {old.get(key)} -> {new[key]}" for key in keys) or "other file contents"
    )
