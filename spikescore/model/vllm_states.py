"""Hidden states of chosen tokens out of a vLLM server: a KV connector that the server loads.

    VLLM_TARGET_DEVICE=cpu PYTHONPATH=/path/to/SpikeScore-GHD vllm serve MODEL \
        --speculative-config '...' --kv-transfer-config '...'        (whole: docs/cluster.md)

vLLM's method `extract_hidden_states` keeps the states of all tokens, at the layers it was started
with, in blocks beside keys and values. When a request that asks for some ends, this class copies
the rows at those positions from the blocks and writes them to a file of `folder`, whose path the
reply names. The server needs this one file and what vLLM itself imports; `spikescore` imports none
of it. Tested with vLLM 0.32 on a CPU; on a GPU, where the same code copies, not yet.

A request says `"kv_transfer_params": {"spikescore": {...}}` with

    positions   places in the prompt, of which the states are wanted
    tensors     names of small tensors of the checkpoint (the final norm), to be sent along
    identity    true: the SHA-256 of the checkpoint's weights too

and finds there `file`, `layers`, `dtype`, `hidden_size` and `cached_tokens`, or `error`. The file
appears whole, after the reply, and is the client's to remove; what no client fetched within an hour
this process removes, of its own files alone. It holds

    token_ids   int32 [tokens]                      the prompt, as the server encoded it
    positions   int32 [n]
    states      float16 [n, layers, hidden]         a value beyond FP16 is infinite
    last        float32 [n, hidden]                 the last layer's, exact: the norm is yet to come
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

KEPT_SECONDS = 3600
WRITERS = 4


@dataclass
class Wanted:
    """What a finished request asked for, on its way from the scheduler to the worker."""

    request_id: str
    file: str
    token_ids: list[int]
    positions: list[int]
    blocks: list[int]
    tensors: list[str]
    identity: bool


@dataclass
class Batch(KVConnectorMetadata):
    """The requests that finished since the step before."""

    wanted: list[Wanted] = field(default_factory=list)


class SpikeScoreStates(KVConnectorBase_V1, SupportsHMA):
    """Stores, never loads. vLLM makes one in its scheduler and one in every worker."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        folder = self._kv_transfer_config.get_from_extra_config("folder", None)
        speculative = vllm_config.speculative_config
        if not folder or speculative is None or speculative.method != "extract_hidden_states":
            raise ValueError(
                "SpikeScoreStates needs --speculative-config with the method "
                '"extract_hidden_states", and in --kv-transfer-config '
                '"kv_connector_extra_config": {"folder": "/a/folder/that/clients/see"}'
            )
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._layers = list(
            speculative.draft_model_config.hf_config.eagle_aux_hidden_state_layer_ids
        )
        self._model = vllm_config.model_config
        # the layer of the states may share a group of blocks with the model's own layers
        ((self._group, self._name),) = [
            (number, name)
            for number, group in enumerate(kv_cache_config.kv_cache_groups)
            for name in group.layer_names
            if "cache_only_layers" in name
        ]
        self._block_size = kv_cache_config.kv_cache_groups[self._group].kv_cache_spec.block_size
        self._finished: list[Wanted] = []  # of the scheduler
        self._cached: dict[str, int] = {}
        self._cache: torch.Tensor | None = None  # of the worker: [blocks, layers, block, hidden]
        self._writers = ThreadPoolExecutor(WRITERS, "spikescore-states")
        self._written: deque[tuple[float, Path]] = deque()
        self._lock = threading.Lock()

    # --- in the scheduler ---------------------------------------------------------------------

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple:
        """Note how many tokens a request found in the prefix cache when it began."""
        self._cached.setdefault(request.request_id, num_computed_tokens)
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        pass

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Take a request's wishes when it ends; True keeps its blocks until they are copied."""
        cached = self._cached.pop(request.request_id, None)
        asked = (request.kv_transfer_params or {}).get("spikescore")
        if not isinstance(asked, dict) or len(block_ids) <= self._group:
            return False, None
        positions, prompt = asked.get("positions") or [], list(request.prompt_token_ids or [])
        if not all(type(one) is int and 0 <= one < len(prompt) for one in positions):
            return False, {"spikescore": {"error": "positions outside the prompt"}}
        file = self._folder / f"{uuid.uuid4().hex}.safetensors"
        self._finished.append(
            Wanted(
                request.request_id,
                str(file),
                prompt,
                positions,
                list(block_ids[self._group]),
                [str(name) for name in asked.get("tensors") or []],
                bool(asked.get("identity")),
            )
        )
        return True, {
            "spikescore": {
                "file": str(file),
                "layers": self._layers,
                "dtype": str(self._model.dtype).removeprefix("torch."),
                "hidden_size": self._model.get_hidden_size(),
                "cached_tokens": cached,
            }
        }

    def build_connector_meta(self, scheduler_output: Any) -> Batch:
        batch, self._finished = Batch(self._finished), []
        return batch

    def get_finished_count(self) -> int:
        return 1  # of several workers that share the layers the first alone writes

    # --- in the worker ------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        if get_tensor_model_parallel_rank():
            return
        cache, n = kv_caches[self._name], len(self._layers)
        hidden = self._model.get_hidden_size()
        if cache.shape[1:] == (self._block_size, n, hidden) != (n, self._block_size, hidden):
            cache = cache.transpose(1, 2)
        if cache.shape[1:] != (n, self._block_size, hidden):
            raise ValueError(f"vLLM keeps hidden states as {tuple(cache.shape)}, unknown here")
        self._cache = cache

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, None]:
        """Copy the rows of requests that ended; their blocks may be used again."""
        batch = self._connector_metadata
        if self._cache is None or not isinstance(batch, Batch):
            return None, None
        for one in batch.wanted:
            places = torch.tensor(one.positions, dtype=torch.long)
            blocks = torch.tensor(one.blocks, dtype=torch.long)[places // self._block_size]
            device = self._cache.device
            rows = self._cache[blocks.to(device), :, (places % self._block_size).to(device)].cpu()
            self._writers.submit(self._write, one, rows)
        return {one.request_id for one in batch.wanted} or None, None

    def _write(self, one: Wanted, rows: torch.Tensor) -> None:
        tensors = {
            "token_ids": torch.tensor(one.token_ids, dtype=torch.int32),
            "positions": torch.tensor(one.positions, dtype=torch.int32),
            "states": rows.to(torch.float16).contiguous(),
            "last": rows[:, -1].to(torch.float32).contiguous(),
        }
        about = {}
        try:
            for name in one.tensors:
                tensors[f"tensor.{name}"] = self._tensor(name)
            if one.identity:
                about["weights"] = self._weights
        except Exception as error:  # the client must hear of it, whatever it is
            about["error"] = f"{type(error).__name__}: {error}"
        part = f"{one.file}.part"
        save_file(tensors, part, metadata=about)
        os.replace(part, one.file)
        self._forget(Path(one.file))

    def _forget(self, file: Path) -> None:
        """Remove those of its own files that nobody has fetched."""
        now = time.monotonic()
        with self._lock:
            self._written.append((now, file))
            while now - self._written[0][0] > KEPT_SECONDS:
                self._written.popleft()[1].unlink(missing_ok=True)

    # --- the checkpoint -----------------------------------------------------------------------

    @cached_property
    def _files(self) -> list[Path]:
        """The checkpoint's files of weights, in the order of their names."""
        folder = Path(self._model.model)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(
                snapshot_download(
                    self._model.model, revision=self._model.revision, local_files_only=True
                )
            )
        index = folder / "model.safetensors.index.json"
        if not index.is_file():
            return [folder / "model.safetensors"]
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        return [folder / name for name in sorted(names)]

    def _tensor(self, name: str) -> torch.Tensor:
        for file in self._files:
            with safe_open(file, "pt") as opened:
                if name in opened.keys():
                    return opened.get_tensor(name).to(torch.float32)
        raise LookupError(f"the checkpoint has no tensor {name}")

    @cached_property
    def _weights(self) -> str:
        """As `spikescore.model.loading.model_identity` says which weights they are."""
        found = []
        for path in self._files:
            with open(path, "rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest())
        return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()
