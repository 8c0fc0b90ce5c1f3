"""Loading a chat model and its tokenizer from a folder or the hub, with errors that say what is
missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DistributedConfig,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
)
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.logging import disable_progress_bar

from spikescore.errors import UserError
from spikescore.model.architecture import cache_bytes_per_token
from spikescore.model.placement import Placement, checked_path
from spikescore.runtime import this_process

log = logging.getLogger("spikescore")


# What a checkpoint's generation_config may ask for beyond config.json, and how it is applied
_PROCESSORS = {
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
    "no_repeat_ngram_size": NoRepeatNGramLogitsProcessor,
    "top_k": TopKLogitsWarper,
}
_NO_EFFECT = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "top_k": 0}


def load_model(placement: Placement) -> PreTrainedModel:
    """Load the chat model for inference: float16 on a GPU and float32 on CPU unless `dtype` says
    else.

    With more than one device or `device_map` set, layers are placed by accelerate (offload
    included).
    """
    path = checked_path(placement.model_path)
    if getattr(load_architecture(placement), "quantization_config", None) is not None:
        log.warning("%s is quantised; FP16 checkpoints give more faithful hidden states", path)
    disable_progress_bar()
    device_map = placement.device_map
    process = this_process()
    if device_map is None and torch.cuda.is_available():
        # several processes share a machine's GPUs one each; a single one may use them all
        device_map = "auto" if process.world_size == 1 else {"": process.local_rank}
    on_gpu = torch.cuda.is_available() and device_map != "cpu"
    dtype = placement.dtype if placement.dtype != "auto" else ("float16" if on_gpu else "float32")
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if placement.tp_plan:
        if process.world_size == 1:
            raise UserError(
                'config key "tp_plan" needs several processes: torchrun --nproc_per_node N '
                "reasoning_lite.py (one process per GPU)"
            )
        options["distributed_config"] = DistributedConfig(tp_plan=placement.tp_plan)
    elif device_map is not None:
        options["device_map"] = device_map
    if placement.max_memory is not None:
        limits = placement.max_memory.items()
        options["max_memory"] = {int(k) if k.isdigit() else k: v for k, v in limits}
    if placement.attn_implementation is not None:
        options["attn_implementation"] = placement.attn_implementation
    try:
        return AutoModelForCausalLM.from_pretrained(path, **options).eval()
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f'model_path "{placement.model_path}" could not be loaded: {_first_line(error)}'
        ) from error


def load_architecture(placement: Placement) -> PreTrainedConfig:
    """Load what the model's config.json says of its layers and widths; no weights."""
    try:
        return AutoConfig.from_pretrained(checked_path(placement.model_path))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f'model_path "{placement.model_path}" could not be loaded: {_first_line(error)}'
        ) from error


def load_tokenizer(placement: Placement) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(checked_path(placement.model_path))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f'no tokenizer could be loaded from model_path "{placement.model_path}": '
            f"{_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- which model it is, by content --------------------------------------------------------------

_VOCABULARIES = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json",
    "vocab.txt", "merges.txt", "added_tokens.json",
)  # fmt: skip
_NO_CONTENT = {
    "_name_or_path", "name_or_path", "transformers_version", "_from_model_config", "dtype",
    "torch_dtype", "chat_template", "model_max_length", "is_local", "local_files_only",
    "padding", "truncation",
}  # fmt: skip
"""Keys of a model's JSON files that say where it came from, or what is set or kept elsewhere."""


def model_identity(model_path: str) -> dict[str, str]:
    """What a model is, whatever its folder is called: SHA-256 digests in hexadecimal.

    weights: the files that transformers loads (of one file: what `sha256sum` prints of it).
    architecture, generation: config.json and generation_config.json. tokenizer: its vocabulary and
    settings. template: the chat template. An empty digest says that there is none of it.

    Every byte is read, files side by side: of a large model that is read next, the disk gives
    each once, so this takes the processors' time alone. UserError where there are no weights.
    """
    vocabulary = _file(model_path, "tokenizer.json")
    if vocabulary is not None:
        parts = [_canonical(vocabulary)]
    else:
        files = [_file(model_path, name) for name in _VOCABULARIES]
        parts = [file.read_bytes() for file in files if file is not None]
    settings = _file(model_path, "tokenizer_config.json")
    template = _file(model_path, "chat_template.jinja")
    if template is not None:
        text = template.read_text(encoding="utf-8")
    else:
        text = (settings and _json(settings).get("chat_template")) or ""
        text = text if isinstance(text, str) else json.dumps(text)
    return {
        "weights": _digest_of_files(weight_files(model_path)),
        "architecture": _digest(_canonical(_file(model_path, "config.json"))),
        "generation": _digest(_canonical(_file(model_path, "generation_config.json"))),
        "tokenizer": _digest(*parts, _canonical(settings)),
        "template": _digest(text.encode()),
    }


def weight_files(model_path: str) -> list[Path]:
    """The files that transformers takes a model's weights from; UserError when there are none."""
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        file = _file(model_path, name)
        if file is None:
            continue
        if not name.endswith(".index.json"):
            return [file]
        shards = sorted(set(_json(file).get("weight_map", {}).values()))
        found = {shard: _file(model_path, shard) for shard in shards}
        missing = [shard for shard, path in found.items() if path is None]
        if missing or not found:
            raise UserError(
                f'model_path "{model_path}" is not whole: {name} names {", ".join(missing) or "no"}'
                " files of weights that are not there; fetch the model again"
            )
        return list(found.values())
    raise UserError(
        f'model_path "{model_path}" holds no weights ({SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}, in '
        "one file or several with an index); fetch the model again"
    )


def _file(model_path: str, name: str) -> Path | None:
    """A file of the model, fetched from the hub where it lies there; None when it has none."""
    found = cached_file(
        checked_path(model_path), name, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f'"{path}" cannot be read ({error}); fetch the model again') from error
    if not isinstance(content, dict):
        raise UserError(f'"{path}" holds no JSON object; fetch the model again')
    return content


def _canonical(path: Path | None) -> bytes:
    """A JSON file without the keys that say nothing of its content, in one order."""

    def sifted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: sifted(one) for key, one in value.items() if key not in _NO_CONTENT}
        return [sifted(one) for one in value] if isinstance(value, list) else value

    return b"" if path is None else json.dumps(sifted(_json(path)), sort_keys=True).encode()


def _digest(*parts: bytes) -> str:
    parts = [part for part in parts if part]
    return hashlib.sha256(b"\0".join(parts)).hexdigest() if parts else ""


def _digest_of_files(paths: list[Path]) -> str:
    def digest(path: Path) -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(digest, paths))
    return found[0] if len(found) == 1 else _digest("".join(found).encode())


# --- what it asks for ---------------------------------------------------------------------------


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Token ids that end an answer: the generation config's and the tokenizer's end of sequence."""
    named = model.generation_config.eos_token_id
    ids = set(named if isinstance(named, list) else [named]) | {tokenizer.eos_token_id}
    return {token for token in ids if token is not None}


def generation_processors(model: PreTrainedModel, *, apply: bool) -> LogitsProcessorList | None:
    """Say what the checkpoint's generation_config asks for beyond config.json; None unless allowed.

    With `apply` (config.json: `use_model_generation_config`) its repetition penalty, n-gram
    ban and top-k are returned as transformers' own processors. Temperature and top-p always come
    from config.json.
    """
    settings = model.generation_config.to_diff_dict()
    asked = {
        name: settings[name]
        for name, nothing in _NO_EFFECT.items()
        if settings.get(name) not in (None, nothing)
    }
    if not asked:
        return None
    text = ", ".join(f"{name}={value}" for name, value in asked.items())
    if not apply:
        log.warning(
            "the model's generation_config asks for %s: not applied, config.json rules", text
        )
        return None
    log.info("applied from the model's generation_config: %s", text)
    return LogitsProcessorList([_PROCESSORS[name](value) for name, value in asked.items()])


def auto_batch_size(model: PreTrainedModel, *, tokens_per_dialogue: int, n_items: int) -> int:
    """Choose how many dialogues advance together: what half the free memory holds, at most 128
    (CPU) or 512 (GPU), and no more than there are.
    """
    device = model.get_input_embeddings().weight.device
    if device.type == "cuda":
        free, most = torch.cuda.mem_get_info(device)[0], 512
    else:
        free, most = _free_ram(), 128
    per_dialogue = cache_bytes_per_token(model) * tokens_per_dialogue
    size = int(max(1, min(most, n_items, free // 2 // per_dialogue)))
    if torch.distributed.is_initialized():  # slices of one model work in step: the least of all
        least = torch.tensor(size, device=device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        size = int(least)
    return size


def _free_ram() -> int:
    import psutil

    return psutil.virtual_memory().available
