"""The matrix by which a model turns its last state into logits, read from its checkpoint alone.

Detectors that ask what a stored state means to the output need these weights and no pass of the
model. The last state that stage 1 stores has had the final norm, so logits = W z + b.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from spikescore.errors import UserError
from spikescore.model.loading import model_identity, weight_files
from spikescore.pairs import model_difference

NUMBERS = 2**24
"""Weights that are turned to float32, and logits that are kept, at a time."""
_HEADS = ("lm_head", "embed_out")
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")


class OutputMatrix:
    """W [V, H] and b [V] (0 where the model has none), in the checkpoint's own precision."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = torch.zeros(len(weight)) if bias is None else bias.float()

    @property
    def shape(self) -> tuple[int, int]:
        """Size of the vocabulary and width of a state."""
        return tuple(self.weight.shape)

    def rows(self, tokens: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return the rows of W that belong to these tokens: float32 [..., H]."""
        return self.weight[torch.as_tensor(tokens)].float()

    def highest(self, states: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k highest logits of states [m, H] and their tokens, both [m, k], falling."""
        values, tokens = [], []
        for few in states.split(max(1, NUMBERS // self.shape[0])):
            logits = torch.cat(
                [few @ part.T + self.bias[first : first + len(part)] for first, part in self._parts]
            , dim=1)  # fmt: skip
            best = logits.topk(k, dim=1)
            values.append(best.values)
            tokens.append(best.indices)
        return torch.cat(values), torch.cat(tokens)

    @cached_property
    def quiet_order(self) -> np.ndarray:
        """The right singular vectors of W as columns [H, H], the smallest singular value first."""
        gram = sum(part.double().T @ part.double() for _, part in self._parts)
        return torch.linalg.eigh(gram).eigenvectors.numpy()

    @cached_property
    def neutral(self) -> torch.Tensor:
        """The state [H] nearest to the origin among those whose logits W z + b vary least.

        z = -(W' P W)+ W' P b with P = 1 - 11'/V, the least-squares solution of least norm; the
        origin itself where there is no bias.
        """
        width = self.shape[1]
        if not self.bias.any():
            return torch.zeros(width)
        bias = (self.bias - self.bias.mean()).double()
        mean = sum(part.double().sum(dim=0) for _, part in self._parts) / self.shape[0]
        gram, along = torch.zeros(width, width).double(), torch.zeros(width).double()
        for first, part in self._parts:
            centred = part.double() - mean
            gram += centred.T @ centred
            along += centred.T @ bias[first : first + len(part)]
        return -(torch.linalg.pinv(gram, hermitian=True) @ along).float()

    @property
    def _parts(self) -> Iterator[tuple[int, torch.Tensor]]:
        """W in float32, some rows at a time, each with the number of its first row."""
        first = 0
        for part in self.weight.split(max(1, NUMBERS // self.shape[1])):
            yield first, part.float()
            first += len(part)


def output_matrix(model_path: str, identity: Mapping[str, str] | None = None) -> OutputMatrix:
    """Read the output matrix of the model that made dialogues; the last one read is kept.

    Raises UserError where the checkpoint is not there, is another one than `identity` says (the
    digests that dialogues keep), or holds its weights in no safetensors file or known place.
    """
    if not model_path:
        raise UserError("the dialogues do not say which model made them")
    digests = tuple(sorted((identity or {}).items()))
    try:
        times = [file.stat().st_mtime_ns for file in weight_files(model_path)]
    except (OSError, ValueError) as error:  # no folder, and no name that the hub could have
        raise UserError(
            f'there is no checkpoint "{model_path}", whose output matrix is needed; the dialogues '
            "say that it lies there"
        ) from error
    return _read(model_path, digests, *times)


@lru_cache(maxsize=1)
def _read(model_path: str, digests: tuple[tuple[str, str], ...], *_: Any) -> OutputMatrix:
    asked = {"model": model_path, "identity": dict(digests)}
    found = {"model": model_path, "identity": model_identity(model_path) if digests else {}}
    if difference := model_difference(found, asked):
        raise UserError(
            f'"{model_path}" is another model now than that which made the dialogues ({difference})'
        )
    tensors = _tensors(model_path)
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        raise UserError(f'"{model_path}" holds no output matrix in full precision in a known place')
    return OutputMatrix(weight, bias)


def _tensors(model_path: str) -> dict[str, torch.Tensor]:
    """Return "weight" and, where there is one, "bias": of the head, or else of the embeddings."""
    for names in (_HEADS, _EMBEDDINGS):
        found: dict[str, torch.Tensor] = {}
        for file in weight_files(model_path):
            if file.suffix != ".safetensors":
                raise UserError(f'"{file}" is no safetensors file, which the output matrix needs')
            try:
                with safe_open(file, framework="pt") as opened:
                    for key in opened.keys():  # noqa: SIM118
                        module, _, kind = key.rpartition(".")
                        if module.rpartition(".")[2] in names and kind in ("weight", "bias"):
                            if kind in found:
                                raise UserError(f'"{file}" holds several matrices called {module}')
                            found[kind] = opened.get_tensor(key)
            except (SafetensorError, OSError) as error:
                raise UserError(f'"{file}" could not be read ({error}); fetch it again') from error
        if found:
            return found
    return {}
