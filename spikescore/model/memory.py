"""How much memory is free, what dialogues take of it, and so how many advance together."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from spikescore.model.architecture import (
    cache_bytes_per_token,
    key_value_heads,
    pair_bytes,
    size_of,
)

log = logging.getLogger("spikescore")

GROWTH = 256  # tokens; the cache's capacity grows by whole blocks
PASS_TOKENS = {"cpu": 2048, "cuda": 8192}  # prompt tokens of one pass; bounds its activations
DRAFT_TOKENS = {"cpu": 4, "cuda": 0}  # most guesses a pass; what they save on a GPU is not known
MOST_TOGETHER = {"cpu": 128, "cuda": 512}
# numbers of logits that are worked on together; on a CPU they stay in its cache
CACHED_NUMBERS = {"cpu": 2**18, "cuda": 2**26}
USED = 0.8  # of the free memory; the rest is for what else runs, and for longer answers
_CGROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: on a GPU with what torch holds unused, on a CPU
    without swapping and within the limits of its control groups (containers, SLURM).
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *_group_rooms(Path("/proc/self/cgroup"))])


def _group_rooms(membership: Path, mounted: Path = _CGROUPS) -> list[int]:
    """What each limit of this process's memory groups, version 1 or 2, leaves. A group's file cache
    that nobody uses is given back before the limit is felt.
    """
    rooms = []
    lines = membership.read_text().splitlines() if membership.exists() else []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        root = mounted / "memory"
        if not kinds:
            names, root = ("memory.max", "memory.current", "inactive_file"), mounted
        inside = root / path.lstrip("/")
        # in a container the path may be the host's: the group is then mounted as the root
        for group in (inside, *inside.parents) if inside.exists() else (root,):
            if not group.is_relative_to(root):
                break
            try:
                limit, usage = ((group / name).read_text().strip() for name in names[:2])
                stat = (group / "memory.stat").read_text().split()
            except OSError:
                continue  # the root of version 2 has no limit
            if limit != "max" and int(limit) < 2**60:
                idle = int(stat[stat.index(names[2]) + 1]) if names[2] in stat else 0
                rooms.append(max(0, int(limit) - int(usage) + idle))
    return rooms


def cached_rows(device: torch.device, vocabulary: int) -> int:
    """How many rows of logits `[rows, vocabulary]` are worked on together."""
    return max(1, CACHED_NUMBERS[device.type] // vocabulary)


def slot_bytes(model: PreTrainedModel, tokens: int, turns: int) -> int:
    """Bytes at most of a dialogue that grows to so many tokens: its keys and values in whole
    blocks, the states of its turns, and its part of a pass, above all the logits: in the model's
    type, and four times in float32 while tokens are drawn and measured.
    """
    device = model.get_input_embeddings().weight.device.type
    blocks = -(-tokens // GROWTH) * GROWTH
    draws = 1 + DRAFT_TOKENS[device]
    logits = draws * size_of(model.config, "vocab_size") * (model.dtype.itemsize + 16)
    return blocks * cache_bytes_per_token(model) + pair_bytes(model.config, turns) + logits


def pass_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Bytes at most of a pass over prompts of sequences of so many tokens, masks included."""
    config = model.config
    new = PASS_TOKENS[model.get_input_embeddings().weight.device.type]
    inner = getattr(config.get_text_config(decoder=True), "intermediate_size", None)
    width = size_of(config, "hidden_size")
    groups = size_of(config, "num_attention_heads") // key_value_heads(config)
    return new * model.dtype.itemsize * (8 * width + 3 * (inner or 4 * width) + groups * tokens)


def auto_batch_size(
    model: PreTrainedModel, *, tokens_per_dialogue: int, n_items: int, turns: int = 1
) -> int:
    """Choose how many dialogues advance together: what the free memory holds when all are at their
    longest, at most 128 (CPU) or 512 (GPU), and no more than there are. Says what and why.
    """
    device = model.get_input_embeddings().weight.device
    free, each = free_memory(device), slot_bytes(model, tokens_per_dialogue, turns)
    # while the cache grows, one layer's keys or values are held twice
    each += each // (2 * size_of(model.config, "num_hidden_layers"))
    room = int(USED * free - pass_bytes(model, tokens_per_dialogue)) // each
    most = MOST_TOGETHER[device.type]
    size = max(1, min(most, n_items, room))
    if torch.distributed.is_initialized():  # slices of one model work in step: the least of all
        least = torch.tensor(size, device=device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        size = int(least)
    why = {n_items: "all there are", most: f"the most on a {device.type.upper()}"}
    log.info(
        "batch size %d (%s): a dialogue of %d tokens takes %.0f MB; %.1f GB are free",
        size, why.get(size, "what memory holds"), tokens_per_dialogue, each / 1e6, free / 1e9,
    )  # fmt: skip
    return size
