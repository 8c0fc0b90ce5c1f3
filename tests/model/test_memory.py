"""How many dialogues advance together: what memory is free, and what they take of it."""

from __future__ import annotations

import logging

import pytest
import torch

from spikescore.model import memory, slots
from spikescore.model.memory import _group_rooms, auto_batch_size, slot_bytes
from tests.helpers.models import make_model
from tests.model.test_engine import run


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_the_limits_of_control_groups_of_both_versions_count(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/jobs/7\n3:cpuset:/\n0::/user/9\n")
    one, two = tmp_path / "memory/jobs", tmp_path / "user"
    idle = "cache 5\ntotal_inactive_file 10"
    write(one / "7", memory__limit_in_bytes=100, memory__usage_in_bytes=70, memory__stat=idle)
    write(one, memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=90, memory__stat=idle)
    write(two / "9", memory__max="max", memory__current=50, memory__stat="inactive_file 0")
    write(two, memory__max=80, memory__current=55, memory__stat="anon 3\ninactive_file 4")
    assert _group_rooms(membership, tmp_path) == [100 - 70 + 10, 80 - 55 + 4]
    # a container that sees its own group as the root, and no group at all
    membership.write_text("0::/somewhere/on/the/host\n")
    write(tmp_path, memory__max=30, memory__current=40, memory__stat="inactive_file 0")
    assert _group_rooms(membership, tmp_path) == [0]
    assert _group_rooms(tmp_path / "none", tmp_path) == []


def test_a_batch_holds_what_fits_when_all_dialogues_are_at_their_longest(monkeypatch, caplog):
    model = make_model("llama")
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 4 * 512
    states = 3 * 4 * (config.num_hidden_layers + 1) * config.hidden_size * 2
    logits = (1 + memory.DRAFT_TOKENS["cpu"]) * config.vocab_size * (4 + 16)
    each = slot_bytes(model, 300, turns=4)  # 300 tokens lie in two blocks of 256
    assert each == cache + states + logits
    fits = int(10.5 / (1 + 1 / (2 * config.num_hidden_layers)))  # a layer's keys are held twice
    monkeypatch.setattr(memory, "USED", 1.0)
    caplog.set_level(logging.INFO, "spikescore")
    for free, n_items, size, why in (
        (int(10.5 * each), 1000, fits, "what memory holds"),
        (int(10.5 * each), 5, 5, "all there are"),
        (1000 * each, 1000, 128, "the most on a CPU"),
        (0, 1000, 1, "what memory holds"),
    ):
        more = memory.pass_bytes(model, 300)
        monkeypatch.setattr(memory, "free_memory", lambda device, n=free + more: n)
        found = auto_batch_size(model, tokens_per_dialogue=300, n_items=n_items, turns=4)
        assert found == size
        assert f"batch size {size} ({why}): a dialogue of 300 tokens" in caplog.messages[-1]


def test_a_cache_that_would_make_the_machine_swap_halves_the_batch(monkeypatch, caplog):
    model = make_model("llama")
    monkeypatch.setattr(slots, "GROWTH", 16)
    reference, _ = run(model, 8, range(8))
    monkeypatch.setattr(slots, "free_memory", lambda device: 0)
    with pytest.raises(Exception, match="out of memory with a single dialogue"):
        run(model, 1, range(8))
    # room for four dialogues, whatever their length
    whole = slots.SlotCache.reserve

    def reserve(cache, *args):
        monkeypatch.setattr(slots, "free_memory", lambda device: 0 if cache.slots > 4 else 2**40)
        whole(cache, *args)

    monkeypatch.setattr(slots.SlotCache, "reserve", reserve)
    finished, engine = run(model, 8, range(8))
    assert engine.batch_size == 4 and "out of memory" in caplog.text
    for item_id, dialogue in reference.items():
        ours = [turn.answer_ids for turn in finished[item_id].turns]
        assert ours == [turn.answer_ids for turn in dialogue.turns]


def test_the_memory_of_this_machine_is_no_more_than_it_has():
    import psutil

    free = memory.free_memory(torch.device("cpu"))
    assert 0 <= free <= psutil.virtual_memory().total
