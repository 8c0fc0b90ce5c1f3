"""Which model a run loads and where it is put: known, and checked, before anything heavy loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikescore.errors import UserError


@dataclass(frozen=True)
class Placement:
    """Which model is loaded and where it is put; the fields are config.json's keys."""

    model_path: str
    dtype: str = "auto"
    device_map: str | dict[str, Any] | None = None
    max_memory: dict[str, Any] | None = None
    tp_plan: str | None = None
    attn_implementation: str | None = None


def checked_path(model_path: str) -> str:
    """Return a folder that exists, or something that reads as a hub id (owner/name)."""
    path = Path(model_path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f'model_path "{model_path}" holds no config.json, so it is no model folder; '
                "give the folder that has config.json, the weights and the tokenizer"
            )
        return str(path)
    looks_local = model_path.startswith((".", "/", "~")) or model_path.count("/") != 1
    if looks_local or path.exists():
        raise UserError(
            f'model_path "{model_path}" is not a folder; give a folder with config.json, weights '
            "and tokenizer, or a hub id such as meta-llama/Llama-3.2-3B-Instruct"
        )
    return model_path
