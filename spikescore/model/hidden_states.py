"""Reading hidden states out of a model: at few positions while it runs, or again from stored token
ids.

"All layers" means L + 1 states as `output_hidden_states` numbers them: index 0 is the embedding
output, index l the input of layer l, and the last one the output of the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from transformers import PreTrainedModel

from spikescore.model.architecture import decoder_of, layers_of

TEACHER_CHUNK = 512  # tokens per forward pass; bounds memory to chunk x layers x hidden


class StateTap(AbstractContextManager):
    """Collects during one forward pass `states`, L + 1 of `[columns, hidden]`, and no others."""

    def __init__(self, model: PreTrainedModel, columns: Sequence[int]) -> None:
        self._decoder = decoder_of(model)
        self._columns = torch.tensor(columns, dtype=torch.long, device=model.device)
        self.states: list[torch.Tensor] = []
        self._hooks: list = []

    def __enter__(self) -> StateTap:
        for layer in layers_of(self._decoder):
            hook = layer.register_forward_pre_hook(
                lambda _, args, kwargs: self._keep(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
            self._hooks.append(hook)
        hook = self._decoder.register_forward_hook(lambda _, args, output: self._keep(output[0]))
        self._hooks.append(hook)
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _keep(self, hidden: torch.Tensor) -> None:
        self.states.append(hidden[0, self._columns.to(hidden.device)])


def to_half(states: Sequence[torch.Tensor], rows: torch.Tensor) -> np.ndarray:
    """Stack chosen rows of L + 1 states into FP16 `[rows, L + 1, hidden]`; see `beyond_half`."""
    picked = [state.to(torch.float16) for state in rows_of(states, rows)]
    if len({one.device for one in picked}) > 1:
        picked = [one.cpu() for one in picked]
    return torch.stack(picked, dim=1).cpu().numpy()  # one transfer, which waits for the device


def rows_of(states: Sequence[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    """The chosen rows of L + 1 states `[batch, hidden]`, each on its device."""
    index = {device: rows.to(device) for device in {state.device for state in states}}
    return [state[index[state.device]] for state in states]


def beyond_half(layers: np.ndarray) -> str | None:
    """Say which of the states `[L + 1, H]` has a value that no file can hold; None if none has."""
    bad = np.flatnonzero(~np.isfinite(layers).all(axis=1))
    if not bad.size:
        return None
    return (
        f"the state of layer {bad[0]} has values beyond 65504, the most that FP16, the type of the "
        "files, can hold; they are the model's own in any dtype, so take another model, for "
        "example a smaller one of its family"
    )
