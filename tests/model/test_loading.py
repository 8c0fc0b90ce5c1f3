"""Loading a model: what it is by content, and where its layers may lie."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spikescore.errors import UserError
from spikescore.model.engine import Engine
from spikescore.model.loading import (
    chosen_devices,
    load_architecture,
    load_model,
    model_identity,
    weight_bytes,
)
from spikescore.model.placement import Placement
from spikescore.model.sampling import Sampling
from spikescore.model.turns import Limits, Turn
from spikescore.runtime import Process


class OneTurn:
    """A conversation of one turn."""

    def __init__(self, item_id: str, ids: list[int]) -> None:
        self.item_id, self.ids = item_id, ids

    def next_prompt(self, last: Turn | None) -> list[int] | None:
        return self.ids if last is None else None


def test_layers_on_disk_give_the_same_answers_and_states(tiny_model):
    turns = []
    for placement in (None, "cpu and disk"):
        device_map = None
        if placement:
            n_layers = turns[0]["n_layers"]
            device_map = dict.fromkeys(["model.embed_tokens", "model.norm", "lm_head"], "cpu")
            device_map["model.rotary_emb"] = "cpu"
            for layer in range(n_layers):
                device_map[f"model.layers.{layer}"] = "disk" if layer else "cpu"
        model = load_model(Placement(model_path=str(tiny_model), device_map=device_map))
        engine = Engine(
            model,
            stop_ids=[2],
            sampling=Sampling(0, 1, 0),
            limits=Limits(10, 200),
            batch_size=2,
        )
        conversations = [OneTurn("a", [5, 6, 7]), OneTurn("b", [8, 9, 10, 11])]
        finished = {f.conversation.item_id: f.turns[0] for f in engine.run(conversations)}
        turns.append({"n_layers": model.config.num_hidden_layers, **finished})
        if placement:
            assert "disk" in model.hf_device_map.values()
    for name in ("a", "b"):
        one, two = (found[name] for found in turns)
        assert one.answer_ids == two.answer_ids
        for key, state in one.states.items():
            np.testing.assert_allclose(state, two.states[key], rtol=4e-3, atol=4e-3)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_model_is_what_its_files_hold_and_not_its_name(tiny_model, tmp_path):
    copy = tmp_path / "another name"
    shutil.copytree(tiny_model, copy)
    edit(copy / "config.json", _name_or_path="elsewhere", transformers_version="9", dtype="float16")
    edit(copy / "tokenizer_config.json", name_or_path="elsewhere")
    first = model_identity(str(tiny_model))
    assert model_identity(str(copy)) == first and all(first.values())
    weights = (tiny_model / "model.safetensors").read_bytes()
    assert first["weights"] == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("weights", lambda folder: bend_one_weight(folder / "model.safetensors")),
        ("architecture", lambda folder: edit(folder / "config.json", rope_theta=7.0)),
        ("generation", lambda folder: edit(folder / "generation_config.json", eos_token_id=[5, 6])),
        ("tokenizer", lambda folder: edit(folder / "tokenizer.json", normalizer={"type": "NFC"})),
        ("tokenizer", lambda folder: edit(folder / "tokenizer_config.json", eos_token="<pad>")),
        ("template", lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}")),
    ],
)
def test_other_content_is_another_model_and_says_in_what(tiny_model, tmp_path, part, change):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    change(copy)
    one, two = model_identity(str(tiny_model)), model_identity(str(copy))
    assert [key for key in one if one[key] != two[key]] == [part]


def bend_one_weight(path):
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_template_is_the_same_wherever_it_is_kept(tiny_model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    text = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    without = model_identity(str(copy))
    edit(copy / "tokenizer_config.json", chat_template=text)
    assert without["template"] == "" and model_identity(str(copy)) == model_identity(
        str(tiny_model)
    )


@pytest.mark.parametrize("index", [None, {"weight_map": {"a": "model-1-of-2.safetensors"}}, {}])
def test_a_model_whose_weights_are_not_there_has_no_identity(tiny_model, tmp_path, index):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").unlink()
    if index is not None:
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="weights"):
        model_identity(str(copy))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cut off"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "safetensors"),
        (lambda path: drop_one_tensor(path), "1 tensors .* missing"),
        (lambda path: edit(path.parent / "config.json", intermediate_size=128), "other shapes"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(tiny_model, tmp_path, damage, says):
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    damage(copy / "model.safetensors")
    with pytest.raises(UserError, match=says):
        load_model(Placement(model_path=str(copy)))


def drop_one_tensor(path):
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


# --- on which GPUs ------------------------------------------------------------------------------

GB = 10**9


@pytest.fixture
def gpus(monkeypatch):
    """Make torch say that there are GPUs with so many bytes free; return which were asked."""

    def make(*free):
        asked = []

        def memory(place):
            asked.append(place)
            return free[place], 80 * GB

        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
        return asked

    return make


@pytest.fixture
def half(tiny_model):
    """The tiny model's files and shape, and the bytes that it takes in half precision: the file
    without its header, and 32,768 tokens of keys and values in 3 layers of 2 heads of 16.
    """
    file = tiny_model / "model.safetensors"
    weights = file.stat().st_size - 8 - int.from_bytes(file.read_bytes()[:8], "little")
    shape = load_architecture(Placement(str(tiny_model)))
    return ([file], shape), weights + 32_768 * 2 * 3 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("free", "devices", "asked", "said"),
    [
        ((0,), {"": 0}, 1, "GPU 0 of 1"),
        ((0, 0), {"": 0}, 1, "GPU 0 of 2"),  # the second is not even touched
        ((-1, 0, 0), {"": 1}, 2, "GPU 1 of 3"),
        ((-1, -1), "auto", 2, "more than the 0.0 GB free on any GPU: spread over 2"),
        ((-1,), "auto", 1, "what does not fit lies in main memory"),
    ],
)
def test_a_model_lies_on_one_gpu_where_one_can_hold_it(
    gpus, half, caplog, free, devices, asked, said
):
    """`free` counts from the bytes that the model takes."""
    model, needed = half
    seen = gpus(*(needed + more for more in free))
    with caplog.at_level("INFO", logger="spikescore"):
        assert chosen_devices(*model, torch.float16, Process()) == devices
    assert seen == list(range(asked))
    (line,) = caplog.messages
    assert said in line and "weights of 0.0 GB" in line


def test_the_dtype_asked_for_says_how_large_a_model_is(gpus, half):
    model, needed = half
    gpus(2 * needed - 1, needed)
    assert chosen_devices(*model, torch.float16, Process()) == {"": 0}
    assert chosen_devices(*model, torch.float32, Process()) == "auto"


def test_weights_in_one_file_of_pickle_are_taken_as_the_configuration_says(tmp_path, half):
    (files, shape), _ = half
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(bytes(1000))
    assert shape.dtype == torch.float16
    assert weight_bytes([file], shape, torch.float32) == 2000
    both = weight_bytes([*files, file], shape, torch.float16)
    assert both == weight_bytes(files, shape, torch.float16) + 1000


def test_integers_stay_what_they_are(tmp_path, half):
    file = tmp_path / "model.safetensors"
    save_file({"codes": torch.zeros(8, dtype=torch.int8), "scale": torch.zeros(4)}, file)
    assert weight_bytes([file], half[0][1], torch.float16) == 8 + 4 * 2


def test_each_process_has_a_gpu_and_a_copy(gpus, half):
    seen = gpus(0, 0, 0, 0)
    given = [chosen_devices(*half[0], torch.float16, Process(8 + n, 16, n)) for n in range(4)]
    assert given == [{"": 0}, {"": 1}, {"": 2}, {"": 3}] and not seen
    with pytest.raises(UserError, match="number 5 on a machine with 4 GPUs"):
        chosen_devices(*half[0], torch.float16, Process(4, 16, 4))
    gpus(0)  # a scheduler that shows each task its own GPU alone
    assert chosen_devices(*half[0], torch.float16, Process(3, 4, 3)) == {"": 0}
