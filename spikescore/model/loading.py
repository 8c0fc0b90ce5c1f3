"""Loading a chat model and its tokenizer from a folder or the hub, or saying what is missing."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from spikescore.files import file_sha256
from spikescore.model.architecture import cache_values_per_token, text_config
from spikescore.model.chat import ChatFormat
from spikescore.model.placement import Placement, checked_path
from spikescore.model.slots import require_packable
from spikescore.runtime import Process, this_process

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

    Without `device_map` it lies on one GPU where one can hold it (see `chosen_devices`); what is
    spread over several devices, or offloaded, is placed by accelerate.
    """
    path = checked_path(placement.model_path)
    architecture = load_architecture(placement)
    if getattr(architecture, "quantization_config", None) is not None:
        log.warning("%s is quantised; FP16 checkpoints give more faithful hidden states", path)
    disable_progress_bar()
    device_map = placement.device_map
    process = this_process()
    on_gpu = torch.cuda.is_available() and device_map != "cpu"
    dtype = placement.dtype if placement.dtype != "auto" else ("float16" if on_gpu else "float32")
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    files = weight_files(path)
    for file in files:
        _require_whole(file)
    if on_gpu and device_map is None and not placement.tp_plan:
        if placement.max_memory is not None:
            device_map = "auto"
        else:
            device_map = chosen_devices(files, architecture, options["dtype"], process)
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
    with _loading(placement, "the model"):
        model, found = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    _require_all_tensors(placement, found)
    require_packable(model.eval())
    return model


ROOM = 32_768
"""Tokens whose keys and values a GPU must hold beside the weights to be enough: sixteen dialogues
of 2,048. A smaller batch than that would cost more time than a second GPU saves."""


def chosen_devices(
    files: Sequence[Path], architecture: PreTrainedConfig, dtype: torch.dtype, process: Process
) -> str | dict[str, int]:
    """Choose GPUs for a model's weights, and log the choice: the first that has room for them in
    this dtype and for `ROOM`; "auto", all of them, where none has. Of several processes each takes
    the GPU of its number on the machine; UserError where there are fewer.
    """
    weights = weight_bytes(files, architecture, dtype)
    cache = ROOM * cache_values_per_token(architecture) * dtype.itemsize
    needs = f"weights of {weights / 1e9:.1f} GB, {cache / 1e9:.1f} GB for keys and values"
    n_gpus, place = torch.cuda.device_count(), process.local_rank
    if process.world_size > 1:
        if place >= n_gpus > 1:
            raise UserError(
                f"process {process.rank} is number {place + 1} on a machine with {n_gpus} GPUs; "
                "start no more processes than GPUs there"
            )
        place %= n_gpus  # where a scheduler gives each process a GPU, that is the only one it sees
        log.info("%s: GPU %d, a copy in each of %d processes", needs, place, process.world_size)
        return {"": place}
    most = 0
    for place in range(n_gpus):
        free = torch.cuda.mem_get_info(place)[0]
        most = max(most, free)
        if weights + cache <= free:
            log.info("%s: GPU %d of %d, %.1f GB free", needs, place, n_gpus, free / 1e9)
            return {"": place}
    several = f"spread over {n_gpus}" if n_gpus > 1 else "what does not fit lies in main memory"
    log.info("%s, more than the %.1f GB free on any GPU: %s", needs, most / 1e9, several)
    return "auto"


def weight_bytes(files: Sequence[Path], architecture: PreTrainedConfig, dtype: torch.dtype) -> int:
    """How many bytes a model's weights take in a dtype, which integers do not change."""
    total = 0
    for file in files:
        tensors = _header(file)[0]
        if tensors is None:
            stored = getattr(architecture, "dtype", None) or torch.float32
            total += file.stat().st_size * dtype.itemsize // stored.itemsize
        for name, one in (tensors or {}).items():
            if name != "__metadata__":
                begin, end = one["data_offsets"]
                known = _FLOATS.get(one["dtype"])
                total += (end - begin) * dtype.itemsize // known if known else end - begin
    return total


_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def load_architecture(placement: Placement) -> PreTrainedConfig:
    """Load what the model's config.json says of its layers and widths; no weights."""
    with _loading(placement, "config.json"):
        return AutoConfig.from_pretrained(checked_path(placement.model_path))


def load_tokenizer(placement: Placement) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer."""
    with _loading(placement, "its tokenizer"):
        return AutoTokenizer.from_pretrained(checked_path(placement.model_path))


@contextmanager
def _loading(placement: Placement, what: str) -> Iterator[None]:
    """Say in one line why a part of a model cannot be loaded, whatever a library made of it."""
    where = f'model_path "{placement.model_path}"'
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{where} does not fit in memory; set device_map and max_memory so that part of the "
            "model is offloaded"
        ) from error
    except Exception as error:  # damaged files meet every kind
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: {what} could not be loaded: {said}") from error


def _require_whole(file: Path) -> None:
    """UserError where a file of weights is a pointer to them, or a part of them."""
    size = file.stat().st_size
    tensors, needed = _header(file)
    if tensors is not None and size < needed:
        raise UserError(f'"{file}" is cut off: {size} of {needed} bytes; fetch it again')


def _header(file: Path) -> tuple[dict[str, Any] | None, int]:
    """What a safetensors file says that it holds, and in how many bytes; None of another file."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        head = opened.read(64)
        if head.startswith(b"version https://git-lfs"):
            raise UserError(
                f'"{file}" is a Git LFS pointer, not the weights; fetch them with "git lfs pull"'
            )
        if file.suffix != ".safetensors":
            return None, size
        length = int.from_bytes(head[:8], "little")
        try:
            if not 0 < length <= size - 8:
                raise ValueError("its header is longer than the file")
            opened.seek(8)
            tensors = json.loads(opened.read(length))
            ends = [one["data_offsets"][1] for name, one in tensors.items() if name[:2] != "__"]
            return tensors, 8 + length + max(ends, default=0)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise UserError(f'"{file}" is no safetensors file ({error}); fetch it again') from error


def _require_all_tensors(placement: Placement, found: dict[str, Any]) -> None:
    """UserError where the files lack tensors of the model, or hold them in other shapes."""
    shapes = [
        f"{name} {[*there]}, not {[*asked]}" for name, there, asked in found["mismatched_keys"]
    ]
    for problem, names in (("are missing", found["missing_keys"]), ("have other shapes", shapes)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise UserError(
                f'model_path "{placement.model_path}" is not whole: {len(names)} tensors that '
                f"config.json asks for {problem} ({shown}); fetch the model again"
            )


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


def model_identity(model_path: str, weights: str | None = None) -> dict[str, str]:
    """What a model is, whatever its folder is called: SHA-256 digests in hexadecimal.

    weights: the files that transformers loads (of one file: what `sha256sum` prints of it).
    architecture, generation: config.json and generation_config.json. tokenizer: its vocabulary and
    settings. template: the chat template. An empty digest says that there is none of it.

    Every byte is read, files side by side: of a large model that is read next, the disk gives
    each once, so this takes the processors' time alone. UserError where there are no weights and
    their digest (`weights`) is not given.
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
        "weights": weights or _digest_of_files(weight_files(model_path)),
        "architecture": _digest(_canonical(_file(model_path, "config.json"))),
        "generation": _digest(_canonical(_file(model_path, "generation_config.json"))),
        "tokenizer": _digest(*parts, _canonical(settings)),
        "template": _digest(text.encode()),
    }


def weights_digest(model_path: str) -> str:
    """As `model_identity` says which weights they are; "" where none lie on this machine."""
    try:
        return _digest_of_files(weight_files(model_path, fetch=False))
    except UserError:
        return ""


def weight_files(model_path: str, *, fetch: bool = True) -> list[Path]:
    """The files that transformers takes a model's weights from; UserError when there are none."""
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        file = _file(model_path, name, fetch)
        if file is None:
            continue
        if not name.endswith(".index.json"):
            return [file]
        shards = sorted(set(_json(file).get("weight_map", {}).values()))
        found = {shard: _file(model_path, shard, fetch) for shard in shards}
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


def _file(model_path: str, name: str, fetch: bool = True) -> Path | None:
    """A file of the model, fetched from the hub where it lies there; None when it has none."""
    found = cached_file(
        checked_path(model_path), name, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False, local_files_only=not fetch,
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
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(file_sha256, paths))
    return found[0] if len(found) == 1 else _digest("".join(found).encode())


# --- what it asks for ---------------------------------------------------------------------------


def stop_ids(model: PreTrainedModel, chat: ChatFormat) -> set[int]:
    """Token ids that end an answer: what the generation config, the model's configuration and the
    tokenizer call the end of a sequence, and what the chat template closes a turn with.
    """
    named = (model.generation_config.eos_token_id, text_config(model.config).eos_token_id)
    known = {chat.tokenizer.eos_token_id}
    for one in named:
        known |= set(one if isinstance(one, list) else [one])
    known -= {None}
    if added := chat.turn_end_ids - known:
        tokens = chat.tokenizer.convert_ids_to_tokens(sorted(added))
        log.warning("answers also end at %s, with which the chat template closes a turn", tokens)
    elif chat.tokenizer.chat_template and not chat.turn_end_ids:
        tokens = chat.tokenizer.convert_ids_to_tokens(sorted(known))
        log.warning(
            "the chat template closes a turn with no token of its own: answers end at %s alone, or "
            "at max_new_tokens", tokens or "no token"
        )  # fmt: skip
    return known | chat.turn_end_ids


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
