"""A stand-in for the HDF5 file of an OpenHalDet folder, which needs h5py."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

OPAQUE = np.dtype("V2")


class Group(dict):
    """What a group of an HDF5 file is to a reader: its members by name, and its attributes."""

    def __init__(self, *given, **attrs) -> None:
        super().__init__(*given)
        self.attrs = attrs

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, as HDF5 gives them back: two opaque bytes each."""
    return (np.float32(values).view(np.uint32) >> 16).astype(np.uint16).view(OPAQUE)


def stored_states(tokens: Mapping[int, Mapping[int, np.ndarray]], *, ended: bool = True) -> Group:
    """One answer's group: under each token, layer by layer, the state that predicted it.

    The last token ends the answer where it has `ended`, and is a part of its text else.
    """
    groups = {}
    for token, layers in tokens.items():
        text = "<|eot_id|>" if ended and token == max(tokens) else "put"
        named = {f"layer_{layer:02d}": bfloat16(state) for layer, state in layers.items()}
        groups[f"token_{token:03d}"] = Group(named, text=text, forward_idx=token)
    return Group({"generated_tokens": Group(groups)})
