"""Folders of OpenHalDet as finished dialogues of one turn, with the states that they keep.

A folder (Li et al., 2026, arXiv 2606.06959) is `experiments/<model>/<set>_<n>samples`. Of its files
two are read: `03_final_scored_metadata.jsonl`, a row for each answer with its verdict, and
`02_hidden_states.h5`. In that file the group of token t holds what the model made on the way to it,
the state at token t - 1, layer by layer ("layer_00" is the first decoder layer's output), as
bfloat16 that HDF5 knows as two opaque bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.data.adapters.shipped import openhaldet
from spikescore.data.fields import BadRow
from spikescore.data.question import record_fields
from spikescore.errors import UserError
from spikescore.pairs import TOKEN_KEYS, file_id

ROWS, STATES = "03_final_scored_metadata.jsonl", "02_hidden_states.h5"
LAST, BEFORE_LAST, PROMPT = TOKEN_KEYS
Turn = dict[str, np.ndarray]


def read_folder(folder: str | Path) -> Iterator[tuple[dict[str, Any], Turn | str]]:
    """Yield each row's record in the form of stage 1, and its states by token key, or why it has
    none.

    States are float16 [1 + S, H]: the S layers that were saved, in order, from 1 on; no detector
    reads place 0, where the first of them stands again. The record's model says which layers they
    are where they are not all. Raises UserError, naming file and row, for what is damaged, and
    where h5py is not installed.
    """
    top = Path(folder)
    rows = top / ROWS
    if not rows.is_file():
        raise UserError(f'"{top}" is no folder of OpenHalDet: it has no {ROWS}')
    with _open(top / STATES) as states:
        model = _model(states, top)
        for number, row in _rows(rows):
            where = f'"{rows}", row {number}'
            try:
                (question,) = openhaldet(row)
                record = record_fields(question)
                answer = row["model_output_text"]
                if not isinstance(answer, str):
                    raise BadRow("model_output_text", "is no text")
            except BadRow as error:
                raise UserError(f"{where}: {error}") from error
            except KeyError as error:
                raise UserError(f"{where}: field {error} is missing") from error
            verdict = question.given[0].hallucinated if question.given else None
            sample = str(row["sample_id"])
            found, layers = _turn(states, sample, answer, where)
            named = "" if layers in ("", "all") else f" ({layers})"
            yield (
                {
                    **record,
                    "id": file_id(record["id"], sample),
                    "model": model + named,
                    "config": {},
                    "cot_steps": [_step(row, answer)],
                    "nil_label": None if verdict is None else int(not verdict),
                    "nil_judge": {"judge": "openhaldet", "raw": row.get("eval_reasoning")},
                    "metrics": {},
                },
                found,
            )


def _step(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    count = row.get("total_generated_tokens")
    return {
        "turn": 1,
        "prompt_type": "initial",
        "prompt": str(row.get("prompt") or ""),
        "response": answer,
        **({"n_response_tokens": count} if isinstance(count, int) and count >= 0 else {}),
        "metrics": {},
    }


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError) as error:  # a byte that is not UTF-8, too
                raise UserError(f'"{path}", row {number}: no JSON ({error})') from error
            if not isinstance(row, dict):
                raise UserError(f'"{path}", row {number}: expected an object')
            yield number, row


def _open(path: Path) -> Any:
    """Open an HDF5 file to read; UserError where it is missing, damaged, or h5py is."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f'"{path}" is HDF5, which needs h5py: pip install h5py; without it, give stage 1 the '
            f'{ROWS} as "dataset_path" with "first_answers": "shipped", and the states are made'
        ) from error
    if not path.is_file():
        raise UserError(f'"{path}" is missing, so there are no hidden states')
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f'"{path}" could not be read as HDF5 ({error}); copy it again') from error


def _model(states: Any, folder: Path) -> str:
    named = states.attrs.get("llm_model")
    parts = folder.resolve().parts
    own = parts[parts.index("experiments") + 1 : -1] if "experiments" in parts else parts[-2:-1]
    named = named.decode("utf-8", "replace") if isinstance(named, bytes) else named
    return str(named) if named else "/".join(own)


# --- states ------------------------------------------------------------------------------------


def _turn(states: Any, sample: str, answer: str, where: str) -> tuple[Turn | str, str]:
    """Return a row's states by token key, or why it has none, and which layers they are of."""
    try:
        if sample not in states:
            return "without hidden states", ""
        tokens = sorted(
            (int(name.split("_")[1]), group)
            for name, group in states[sample]["generated_tokens"].items()
        )
        found, layers = {}, set()
        # the state at token t - 1 is kept as that of token t
        for place, group in tokens:
            found[place - 1] = _stack(group)
            layers.add(tuple(sorted(map(_layer, group))))
        if not found:
            return "without hidden states", ""
        if len(layers) > 1:
            raise ValueError("its tokens have different layers")
        end = int(tokens[-1][1].attrs["forward_idx"])
        stopped = not _is_said(str(tokens[-1][1].attrs.get("text", "")), answer)
        named = _named(next(iter(layers)), states)
    except (KeyError, ValueError, TypeError, IndexError, OSError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f'{where}: the states of "{sample}" in {STATES} are damaged ({reason})'
        ) from error
    if not stopped:  # the state at its last token was never made
        return "cut off, so without its last state", ""
    last = end - 1
    keys = {LAST: last, BEFORE_LAST: max(last - 1, 0), PROMPT: -1}
    if last < 0 or last not in found or keys[BEFORE_LAST] not in found:
        return "without its last two states", ""
    turn = {key: found[place] for key, place in keys.items() if place in found}
    return turn, named


def _is_said(text: str, answer: str) -> bool:
    """Whether the last token's text is a part of the answer: one that ends it is left out of it."""
    shown = text.strip()
    return text.isspace() or (bool(shown) and answer.rstrip().endswith(shown))


def _layer(name: str) -> int:
    return int(re.fullmatch(r"layer_(\d+)", name)[1])


def _stack(group: Any) -> np.ndarray:
    """Return the layers of one token, the first of them twice: float16 [1 + S, H]."""
    layers = [_numbers(group[name][:]) for name in sorted(group, key=_layer)]
    stacked = np.stack([layers[0], *layers])
    with np.errstate(over="ignore"):
        half = stacked.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError("a state is not finite in FP16")
    return half


def _numbers(values: np.ndarray) -> np.ndarray:
    """Return a stored state as float32 [H]: bfloat16 is the upper half of a float32."""
    if values.ndim != 1:
        raise ValueError(f"a state of shape {list(values.shape)}")
    if values.dtype.kind == "V" and values.dtype.itemsize == 2:
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if values.dtype.kind != "f":
        raise ValueError(f"a state of {values.dtype}")
    return values.astype(np.float32)


def _named(layers: tuple[int, ...], states: Any) -> str:
    """Say which layers were saved, counted as `output_hidden_states` does; "all" for all."""
    settings = json.loads(states.attrs.get("layer_config") or "{}")
    if settings == "all":
        return "all"
    return f"layers {layers[0] + 1}-{layers[-1] + 1}"
