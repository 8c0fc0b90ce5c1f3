"""Which layers a probe reads: what the user writes, and the candidates that training compares.

Layers are numbered as in `output_hidden_states`: 0 is the embedding output, L the last layer. A
probe that reads several layers reads their states one after another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from spikescore.errors import UserError

LayerRange = tuple[int, int]
Layers = tuple[int, ...]

MIN_WINDOW = 5
"""Fewest adjacent layers in a window that `auto` considers (Kossen et al., 2024)."""
_EXPECTED = (
    "expected single, auto, last_n, first_n (such as last_8) or layer numbers in rising order "
    "with commas between (such as 5,7,9)"
)


def parse_layer_range(text: str | None) -> LayerRange | None:
    """Read "13,21" as layers 13 to 21, both included (nine states); None stays None."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(
            f'--layer_range "{text}": expected two layer numbers a,b with a <= b, both included, '
            "as in 13,21"
        )
    return int(match[1]), int(match[2])


def candidate_layers(layers: str, layer_range: LayerRange | None, n_layers: int) -> list[Layers]:
    """Return the candidates that training starts from, for a model of n_layers layers.

    `single` and `auto`: each layer by itself, without the embedding output, which knows only the
    last token. Anything else: one candidate. Raises UserError for what no layers can be read from.
    """
    if layer_range is not None:
        first, last = layer_range
        _require_within((first, last), n_layers, f"--layer_range {first},{last}")
        return [tuple(range(first, last + 1))]
    if layers in ("single", "auto"):
        return [(layer,) for layer in range(1, n_layers + 1)]
    if match := re.fullmatch(r"(last|first)_(\d+)", layers):
        count = int(match[2])
        if not 1 <= count <= n_layers:
            raise UserError(f"--layers {layers}: the model has {n_layers} layers")
        start = n_layers - count + 1 if match[1] == "last" else 1
        return [tuple(range(start, start + count))]
    if not re.fullmatch(r"\d+(,\d+)*", layers):
        raise UserError(f'--layers "{layers}": {_EXPECTED}')
    chosen = tuple(int(part) for part in layers.split(","))
    if list(chosen) != sorted(set(chosen)):
        raise UserError(f'--layers "{layers}": {_EXPECTED}')
    _require_within(chosen, n_layers, f"--layers {layers}")
    return [chosen]


def _require_within(layers: Sequence[int], n_layers: int, asked: str) -> None:
    if max(layers) > n_layers:
        raise UserError(
            f"{asked}: the model has layers 0 to {n_layers} (0 = embedding output); "
            "give layers inside that"
        )


def best_window(areas: Sequence[float]) -> LayerRange | None:
    """Return the window of MIN_WINDOW or more adjacent layers whose mean figure is highest.

    `areas[i]` is the figure of layer i + 1; of equal windows the shortest and then the first wins.
    None when there are fewer layers than a window needs. Source: Kossen et al. (2024), who took the
    figures from the test split; here they come from the validation split.
    """
    n = len(areas)
    windows = [
        (round(sum(areas[start : start + size]) / size, 12), -size, -start)
        for size in range(MIN_WINDOW, n + 1)
        for start in range(n - size + 1)
    ]
    if not windows:
        return None
    _, size, start = max(windows)
    return 1 - start, -start - size


def is_contiguous(layers: Sequence[int]) -> bool:
    """Return whether the layers are one range without gaps."""
    return len(layers) == layers[-1] - layers[0] + 1


def layers_text(layers: Sequence[int]) -> str:
    """Return "7" for one layer, "13-21" for a range, "5,7,9" for others."""
    if len(layers) == 1:
        return str(layers[0])
    if is_contiguous(layers):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))
