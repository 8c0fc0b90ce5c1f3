"""A probe's content as a safetensors file, the form in which a hub takes weights.

The arrays are tensors; all else is JSON in the header's metadata, under "probe", where {"tensor":
name} stands for an array. Reading gives the same arrays bit for bit and runs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError, refused
from spikescore.files import write_atomic

SUFFIX = ".safetensors"
_KEY = "probe"
_TENSOR = "tensor"
_LISTS = ("layer_range", "layers")


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write a probe's content (containers, texts, numbers, arrays) atomically."""
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}

    def without_arrays(value: Any, name: str) -> Any:
        if isinstance(value, np.ndarray):
            tensors[name] = np.ascontiguousarray(value)
            return {_TENSOR: name}
        if isinstance(value, dict):
            return {str(key): without_arrays(one, f"{name}.{key}") for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [without_arrays(one, f"{name}.{place}") for place, one in enumerate(value)]
        return value.item() if isinstance(value, np.generic) else value

    told = {key: without_arrays(value, key) for key, value in content.items()}
    write_atomic(path, save(tensors, {"format": "np", _KEY: json.dumps(told)}))


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Return what `write_tensors` wrote; UserError when the file is missing, damaged or no probe.

    Whether the content is a probe that runs is the reader's to check.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            told = json.loads((file.metadata() or {})[_KEY])

            def with_arrays(value: Any) -> Any:
                if isinstance(value, list):
                    return [with_arrays(one) for one in value]
                if not isinstance(value, dict):
                    return value
                if value.keys() == {_TENSOR}:
                    return file.get_tensor(value[_TENSOR])
                return {key: with_arrays(one) for key, one in value.items()}

            content = with_arrays(told)
        content["weights"] = [tuple(operation) for operation in content["weights"]]
        content |= {key: tuple(content[key]) for key in _LISTS if content.get(key) is not None}
        tried = content.get("tried", {}).items()
        content["tried"] = {int(layer): {**one, "weights": [tuple(operation) for operation
                            in one["weights"]]} for layer, one in tried}  # fmt: skip
        return content
    except KeyError as error:
        raise UserError(
            f'"{path}" holds tensors, but no probe of this project; give a file that '
            "scripts/export.py probe has written"
        ) from error
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f'"{path}" is damaged ({error}); fetch it again') from error
    except OSError as error:
        raise refused(error, path, "cannot be read") from error
