"""Which model a run loads and where it is put: known, and checked, before anything heavy loads."""

from __future__ import annotations

import ctypes
import re
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
            "and tokenizer (python models/fetch.py smollm2-135m-instruct makes one), or a hub id "
            "such as meta-llama/Llama-3.2-3B-Instruct"
        )
    return model_path


def check_placement(placement: Placement) -> None:
    """Raise UserError for a model folder, or a device, that is not there; imports no torch."""
    checked_path(placement.model_path)
    device_map = placement.device_map
    devices = device_map.values() if isinstance(device_map, dict) else [device_map]
    limits = (placement.max_memory or {}).keys()
    for key, names in (("device_map", devices), ("max_memory", limits)):
        for name in names:
            _check_device(key, name)


def _check_device(key: str, name: Any) -> None:
    text = str(name)
    if name is None or re.fullmatch(rf"{_PLACES}|(xpu|npu|hpu|mps|xla|mlu)(:\d+)?", text):
        return
    if not re.fullmatch(r"\d+|cuda(:\d+)?", text):
        raise UserError(
            f'config key "{key}": "{text}" is no device; use cpu, cuda, cuda:0, a number, auto, '
            "or a map of modules to such"
        )
    there = cuda_devices()
    number = int(re.sub(r"\D", "", text) or 0)
    if there is not None and number >= there:
        found = f"{there} CUDA devices" if there else "no CUDA device"
        raise UserError(
            f'config key "{key}": "{text}" is not on this machine, which has {found}; use "cpu", '
            "another device, or null"
        )


_PLACES = "auto|balanced|balanced_low_0|sequential|cpu|disk|meta"


def cuda_devices() -> int | None:
    """How many CUDA devices this process may use; None where that cannot be said without torch."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
        return count.value
    return None if Path("/dev/kfd").exists() else 0  # AMD's devices are called cuda as well
