"""States from a server: right ones equal a local reading, and no wrong one is ever believed."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spikescore.dialogues.config import load_config
from spikescore.dialogues.running import connect
from spikescore.errors import UserError
from spikescore.model import served_states
from spikescore.model.chat import ChatFormat
from spikescore.model.reading import Transcript, encode_transcript, read_transcripts
from spikescore.model.served_states import ServedStates, layer_ids
from spikescore.model.serving import ServedGenerator, Server
from spikescore.model.turns import Limits
from spikescore.pairs import TOKEN_KEYS, iter_records, read_states
from tests.helpers.fault_server import client
from tests.helpers.running import CHAT_TEMPLATE, make_tokenizer
from tests.helpers.states_server import NAME, StatesServer
from tests.model.test_reading import REWRITING, make_chat, make_exchanges, make_model

LIMITS = Limits(max_new_tokens=9, max_context=2000)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders with a whole model, and with its config.json alone, by architecture."""

    def make(kind: str) -> tuple[Path, Path]:
        whole, bare = (folder / f"{kind}{name}" for name in ("", "-bare"))
        if not whole.exists():
            make_model(kind).save_pretrained(whole)
            bare.mkdir()
            shutil.copy(whole / "config.json", bare)
        return whole, bare

    folder = tmp_path_factory.mktemp("models")
    return make


@pytest.fixture
def start(checkpoints, tmp_path):
    """Start a server of a model; returns it, the model, and how a client reads from it."""
    servers = []

    def start(kind="llama", template=CHAT_TEMPLATE, *, local=False, dtype="auto", **options):
        whole, bare = checkpoints(kind)
        model, chat = make_model(kind), make_chat(template)
        options.setdefault("checkpoint", whole)
        theirs = options.pop("chat", chat)
        server = StatesServer(model, theirs, tmp_path, **options)
        servers.append(server)

        def opened() -> ServedGenerator:
            def factory(*, timeout, max_retries):
                return client(server.url, timeout=timeout, max_retries=0)

            states = ServedStates(model.config, str(whole if local else bare), dtype)
            sampling = SimpleNamespace(temperature=0.2, top_p=0.7, seed=1)
            to = Server(server.url, NAME, factory, 4)
            generator = ServedGenerator(to, chat, sampling, states)
            generator.check()
            return generator

        return server, model, opened

    yield start
    for server in servers:
        server.close()


def read(generator, exchanges=None):
    transcript = Transcript("a dialogue", exchanges or make_exchanges(), "complete")
    read_by_server = generator.read([transcript], LIMITS)
    return next(read_transcripts(read_by_server, None, generator.chat, max_context=2000))


def assert_equals_local(model, generator, finished) -> None:
    assert finished.error is None
    expected = encode_transcript(model, generator.chat, make_exchanges())
    for ours, theirs in zip(finished.turns, expected, strict=True):
        assert ours.prompt_ids == theirs.prompt_ids and ours.answer_ids == theirs.answer_ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        assert ours.first_token_confidence == pytest.approx(theirs.first_token_confidence, rel=1e-3)
        assert ours.entropies == []
        for key in TOKEN_KEYS:
            assert ours.states[key].dtype == np.float16
            a, b = (one.states[key].astype(float) for one in (ours, theirs))
            assert np.allclose(a, b, rtol=2e-3, atol=4e-3), (ours.number, key)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, REWRITING])
def test_the_states_of_vllm_equal_a_local_reading(start, kind, template, tmp_path):
    server, model, opened = start(kind, template)
    generator = opened()
    assert_equals_local(model, generator, read(generator))
    passes = server.asked[1:]
    assert len(passes) == 1 or template == REWRITING
    for body in passes:
        positions = body["kv_transfer_params"]["spikescore"]["positions"]
        assert len(positions) <= 3 * len(make_exchanges()) < len(body["prompt"])
        assert body["max_tokens"] == 1
    # nothing out of a cache, and nothing left behind
    assert len({body["cache_salt"] for body in server.asked}) == len(server.asked)
    assert list(tmp_path.glob("*.safetensors")) == []


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_the_states_of_sglang_equal_a_local_reading(start, kind):
    server, model, opened = start(kind, engine="sglang")
    generator = opened()
    assert_equals_local(model, generator, read(generator))
    assert generator.states.weights.startswith("norm-")
    for body in server.asked:
        assert body["return_hidden_states"] == "last"


def test_one_table_says_what_engines_call_the_layers():
    """Hugging Face: 0 is the embeddings, 3 what comes after the third and last layer."""
    assert layer_ids("vllm", 3) == [0, 1, 2, 3]
    assert layer_ids("sglang", 3) == [-1, 0, 1, 2]


def info_of(reply: dict) -> dict:
    return reply["kv_transfer_params"]["spikescore"]


def other_ids(reply, file):
    file["token_ids"] = file["token_ids"][::-1].copy()


def fewer_rows(reply, file):
    file["states"] = file["states"][:-1].copy()


def rows_of_other_places(reply, file):
    file["positions"] = file["positions"] + 1


def not_numbers(reply, file):
    file["states"][0, 1, 2] = np.nan


def endless_last(reply, file):
    file["last"][0, 0] = np.inf


def another_type(reply, file):
    file["states"] = file["states"].astype(np.float32)


def another_last_layer(reply, file):
    file["last"] = file["last"] + 1


def no_file(reply, file):
    file.clear()


def out_of_a_cache(reply, file):
    info_of(reply)["cached_tokens"] = 16


def other_prompt(reply, file):
    reply["choices"][0]["prompt_token_ids"] = [1, 2, 3]


def no_logprobs(reply, file):
    reply["choices"][0]["prompt_logprobs"] = None


def logprobs_of_others(reply, file):
    reply["choices"][0]["prompt_logprobs"][1:] = [{"99": {"logprob": -1.0}}] * 3


FAULTS = [
    (other_ids, "other token ids"), (fewer_rows, "states is"), (not_numbers, "no numbers"),
    (rows_of_other_places, "other positions"), (endless_last, "no numbers"),
    (another_type, "float32"), (another_last_layer, "last layer"), (no_file, "did not appear"),
    (out_of_a_cache, "no-enable-prefix-caching"), (other_prompt, "other token ids"),
    (no_logprobs, "missing"), (logprobs_of_others, "log-probabilities"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[one.__name__ for one, _ in FAULTS])
def test_a_reply_that_fails_its_check_is_asked_for_again_then_an_error(
    start, monkeypatch, fault, words, tmp_path
):
    monkeypatch.setattr(served_states, "FILE_SECONDS", 0.05)
    server, model, opened = start(change=fault, spoiled={1})
    generator = opened()
    assert_equals_local(model, generator, read(generator))
    assert len(server.asked) == 3
    server, _, opened = start(change=fault, spoiled={1, 2, 3, 4})
    finished = read(opened())
    assert (
        finished.turns == []
        and words in finished.error
        and "failed their check" in (finished.error)
    )
    assert len(server.asked) == 1 + served_states.TRIES
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_file_that_is_none_of_the_connectors_is_left_where_it_is(start, tmp_path):
    mine = tmp_path / "notes.safetensors"
    mine.write_text("mine")

    def another_file(reply, file):
        info_of(reply)["file"] = str(mine)

    _, _, opened = start(change=another_file, spoiled={1, 2, 3, 4})
    assert "no name of a file of states" in read(opened()).error and mine.read_text() == "mine"


def test_a_state_that_no_file_can_hold_names_its_layer(start):
    def beyond(reply, file):
        file["states"][:, 2] = np.inf

    _, _, opened = start(change=beyond, spoiled={1})
    assert "layer 2" in read(opened()).error


def without(reply, file):
    reply["kv_transfer_params"] = None


def fewer_layers(reply, file):
    info_of(reply)["layers"] = [1, 2]


def other_width(reply, file):
    info_of(reply)["hidden_size"] = 128


def last_layer_alone(reply, file):
    reply["meta_info"]["hidden_states"] = reply["meta_info"]["hidden_states"][-64:]


def no_states(reply, file):
    reply["meta_info"]["hidden_states"] = None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"change": without}, ["no hidden states", '"method":"extract_hidden_states"',
                               "[0,1,2,3]", "kv_connector_module_path"]),
        ({"change": fewer_layers}, ["[1, 2]", "0 to 3", "--speculative-config"]),
        ({"change": other_width}, ["128", "64", "serve that model"]),
        ({"local": True, "checkpoint": None}, ["other weights", "SHA-256 000000000000"]),
        ({"dtype": "bfloat16"}, ["float32", "--dtype bfloat16"]),
        ({"chat": make_chat(CHAT_TEMPLATE.replace("<assistant>", "<bot>"))},
         ["prompt differs", "--chat-template"]),
        ({"engine": "sglang", "change": no_states}, ["--enable-return-hidden-states"]),
        ({"engine": "sglang", "change": last_layer_alone}, ["last layer alone", "[-1, 0, 1, 2]"]),
    ],
)  # fmt: skip
def test_a_server_that_cannot_give_these_states_is_refused_with_the_flag(start, options, words):
    _, _, opened = start(**options)
    with pytest.raises(UserError) as error:
        opened()
    for word in words:
        assert word in str(error.value)


def test_sglang_with_other_weights_is_refused(start):
    server, _, opened = start(engine="sglang", local=True)
    torch.nn.init.constant_(server.model.model.norm.weight, 1.5)
    with pytest.raises(UserError, match="model.norm.weight differs"):
        opened()


def test_long_rope_is_refused():
    config = make_model("llama").config
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    with pytest.raises(UserError, match="LongRoPE"):
        ServedStates(config, "x")


# --- what differs without a word --------------------------------------------------------------


def without_states(server, chat, *, temperature=0.2) -> ServedGenerator:
    def factory(*, timeout, max_retries):
        return client(server.url, timeout=timeout, max_retries=0)

    sampling = SimpleNamespace(temperature=temperature, top_p=0.7, seed=1)
    generator = ServedGenerator(Server(server.url, NAME, factory, 4), chat, sampling)
    generator.check()
    return generator


THINKING = CHAT_TEMPLATE.replace(
    "<assistant>", "<assistant>{% if not enable_thinking %}none{% endif %}"
)


def think(on: bool) -> ChatFormat:
    return ChatFormat(make_tokenizer(chat_template=THINKING), enable_thinking=on)


def penalised(server):
    """Answers greedily, but never twice with the likeliest."""

    def tokens(body, ids):
        if body["temperature"]:
            return list(range(5, 5 + body["max_tokens"]))
        return [int(server().forward(ids)[1][-1].topk(2).indices[1])]

    return tokens


def likeliest_only(server):
    """Draws at any temperature among the likeliest."""

    def tokens(body, ids):
        answer = []
        while len(answer) < body["max_tokens"]:
            answer.append(int(server().forward(ids + answer)[1][-1].argmax()))
        return answer

    return tokens


def whatever(server):
    """Draws at temperature 2 as it should."""

    def tokens(body, ids):
        greedy = server().greedy(body, ids)
        return list(range(5, 5 + body["max_tokens"])) if body["temperature"] else greedy

    return tokens


def test_a_server_that_does_as_the_model_here_says_nothing(start, caplog):
    box = []
    server, model, _ = start(tokens=whatever(lambda: box[0]))
    box.append(server)
    generator = without_states(server, make_chat())
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(generator.probe.logprobs) == 4 and generator.probe.against(model) == ""
    other = make_model("llama")
    torch.nn.init.normal_(other.lm_head.weight, std=1.0)
    assert "other weights" in generator.probe.against(other)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(penalised, "not made of the likeliest"), (likeliest_only, "top-k of its own")],
)
def test_a_servers_own_settings_are_warned_of(start, caplog, tokens, words):
    box = []
    server, _, _ = start(tokens=tokens(lambda: box[0]))
    box.append(server)
    without_states(server, make_chat())
    assert words in caplog.text and "--generation-config vllm" in caplog.text


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (think(False), think(True), ["thinking is switched on", '{"enable_thinking": false}']),
        (think(True), think(False), ["thinking is switched off", '{"enable_thinking": true}']),
        (make_chat(), make_chat("{{ bos_token }}" + CHAT_TEMPLATE), ["one more token"]),
        (make_chat(), make_chat(CHAT_TEMPLATE.replace("<assistant>", "<it>")), ["<it>", "here"]),
    ],
)
def test_a_server_with_other_prompts_is_warned_of_by_name(start, caplog, here, there, words):
    server, _, _ = start(chat=there)
    without_states(server, here, temperature=0)
    for word in words:
        assert word in caplog.text


# --- the whole of stage 1 ---------------------------------------------------------------------


def test_stage_1_needs_no_weights(config_file, tiny_model, tmp_path, monkeypatch):
    """Held and read by a server, then read again from the pairs; a server that turned bad leaves
    error files.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import reasoning_lite

    bare, folder = tmp_path / "bare", tmp_path / "states"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    folder.mkdir()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    chat = ChatFormat(AutoTokenizer.from_pretrained(tiny_model), enable_thinking=False)
    settings = [f"model_path={bare}", "states=server", f"server_model={NAME}", "max_steps=2"]

    def stage_1(url, *changes):
        flags = [*settings, f"server_url={url}", *changes]
        flags = [part for flag in flags for part in ("--set", flag)]
        arguments = ["reasoning_lite.py", "--config", str(config_file), *flags]
        monkeypatch.setattr(sys, "argv", arguments)
        return reasoning_lite.main()

    with StatesServer(model, chat, folder, checkpoint=tiny_model) as server:
        assert stage_1(server.url, "backend=openai") == 0
        replayed = tmp_path / "replayed"
        again = [f"replay={json.dumps(str(tmp_path / 'outputs'))}", f"output_dir={replayed}"]
        assert stage_1(server.url, *again) == 0
    records = {record["id"]: record for _, record in iter_records(tmp_path / "outputs")}
    assert len(records) == 12
    for name, record in records.items():
        assert record["identity"]["weights"] == server.weights[:16]
        assert record["config"]["states"] == "server" and len(record["cot_steps"]) == 2
        assert all(step["mean_token_entropy"] is None for step in record["cot_steps"])
        one, two = (
            read_states(tmp_path / place / f"{name}.pkl") for place in ("outputs", replayed)
        )
        for turn in (1, 2):
            for key in TOKEN_KEYS:
                assert np.allclose(one[turn][key], two[turn][key], rtol=2e-3, atol=4e-3)

    with StatesServer(
        model, chat, folder, checkpoint=tiny_model, change=fewer_rows, spoiled=set(range(1, 99))
    ) as server:
        assert stage_1(server.url, "backend=openai", f"output_dir={tmp_path}/bad") == 1
    errors = list((tmp_path / "bad").glob("*.error.json"))
    assert len(errors) == 12 and "failed their check" in errors[0].read_text()
    assert list((tmp_path / "bad").glob("*.pkl")) == []


def test_states_of_a_server_need_one(config_file):
    with pytest.raises(UserError, match='"states": "server" is for dialogues that a server holds'):
        load_config(config_file, ["states=server"])
    config = load_config(config_file, ["states=server", "backend=openai"])
    assert config.hash() != load_config(config_file, ["backend=openai"]).hash()
    with pytest.raises(UserError, match="server_url"):
        connect(config, None)


# --- what runs in the server ------------------------------------------------------------------


class Base:
    """As much of vLLM's class as ours leans on."""

    def __init__(self, *, vllm_config, role, kv_cache_config):
        self._kv_transfer_config = vllm_config.kv_transfer_config
        self._kv_cache_config = kv_cache_config
        self._connector_metadata = None


@pytest.fixture
def connector_module(monkeypatch):
    """The connector, where vLLM's modules are stand-ins."""
    names = "vllm.distributed.kv_transfer.kv_connector.v1.base vllm.distributed.parallel_state"
    parts = {name.rsplit(".", n)[0] for name in names.split() for n in range(1, 6)}
    for name in {*names.split(), *parts}:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    base, state = (sys.modules[name] for name in names.split())
    base.KVConnectorBase_V1, base.KVConnectorMetadata, base.SupportsHMA = Base, object, object
    state.get_tensor_model_parallel_rank = lambda: 0
    monkeypatch.delitem(sys.modules, "spikescore.model.vllm_states", raising=False)
    yield importlib.import_module("spikescore.model.vllm_states")
    sys.modules.pop("spikescore.model.vllm_states", None)


LAYERS, BLOCK, HIDDEN = 3, 4, 8


def make_connector(module, folder: Path, checkpoint: Path):
    drafter = SimpleNamespace(eagle_aux_hidden_state_layer_ids=range(LAYERS))
    speculative = SimpleNamespace(
        method="extract_hidden_states", draft_model_config=SimpleNamespace(hf_config=drafter)
    )
    model = SimpleNamespace(
        model=str(checkpoint), revision=None, dtype=torch.bfloat16, get_hidden_size=lambda: HIDDEN
    )
    extra = SimpleNamespace(get_from_extra_config=lambda name, default: str(folder))
    spec = SimpleNamespace(block_size=BLOCK)
    group = SimpleNamespace(layer_names=["x.cache_only_layers.2"], kv_cache_spec=spec)
    return module.SpikeScoreStates(
        SimpleNamespace(
            kv_transfer_config=extra, speculative_config=speculative, model_config=model
        ),
        None,
        SimpleNamespace(kv_cache_groups=[group]),
    )


def finish(connector, cache, request_id, asked, prompt, blocks):
    """A request ends, and the next step is taken; returns what its reply says."""
    request = SimpleNamespace(
        request_id=request_id, kv_transfer_params=asked, prompt_token_ids=prompt
    )  # fmt: skip
    # begun with tokens of the cache; after it was set back it finds those that it wrote itself
    assert connector.get_num_new_matched_tokens(request, 4) == (0, False)
    assert connector.get_num_new_matched_tokens(request, 8) == (0, False)
    held, said = connector.request_finished_all_groups(request, (blocks,))
    connector._connector_metadata = connector.build_connector_meta(None)
    connector.register_kv_caches({"x.cache_only_layers.2": cache})
    done, _ = connector.get_finished(set())
    connector._writers.shutdown(wait=True)
    assert (done == {request_id}) == held
    return said and said["spikescore"]


@pytest.mark.parametrize("turned", [False, True])
def test_the_connector_writes_the_rows_asked_for_and_no_others(
    connector_module, tmp_path, turned, checkpoints
):
    whole, _ = checkpoints("llama")
    connector = make_connector(connector_module, tmp_path / "out", whole)
    cache = torch.randn(6, LAYERS, BLOCK, HIDDEN).to(torch.bfloat16)
    prompt, blocks = list(range(100, 110)), [5, 0, 3]
    asked = {"positions": [0, 6, 9], "tensors": ["model.norm.weight"], "identity": True}
    shown = cache.transpose(1, 2).contiguous() if turned else cache
    said = finish(connector, shown, "a", {"spikescore": asked}, prompt, blocks)
    assert (said["layers"], said["dtype"], said["hidden_size"]) == ([0, 1, 2], "bfloat16", HIDDEN)
    assert said["cached_tokens"] == 4
    with safe_open(said["file"], "pt") as file:
        expected = torch.stack([cache[5, :, 0], cache[0, :, 2], cache[3, :, 1]])
        assert torch.equal(file.get_tensor("states"), expected.to(torch.float16))
        assert torch.equal(file.get_tensor("last"), expected[:, -1].float())
        assert file.get_tensor("token_ids").tolist() == prompt
        norm = make_model("llama").state_dict()["model.norm.weight"]
        assert torch.equal(file.get_tensor("tensor.model.norm.weight"), norm)
        assert file.metadata() == {"weights": served_states.weights_digest(str(whole))}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [Path(said["file"]).name]


@pytest.mark.parametrize("asked", [None, {}, {"spikescore": {"positions": [10]}}])
def test_the_connector_leaves_other_requests_alone(connector_module, tmp_path, asked, checkpoints):
    connector = make_connector(connector_module, tmp_path / "out", checkpoints("llama")[0])
    cache = torch.zeros(6, LAYERS, BLOCK, HIDDEN)
    said = finish(connector, cache, "a", asked, list(range(10)), [0, 1, 2])
    assert said is None or "positions" in said["error"]
    assert list((tmp_path / "out").iterdir()) == []


def test_the_connector_removes_its_own_old_files_alone(connector_module, tmp_path, monkeypatch):
    connector = make_connector(connector_module, tmp_path, tmp_path)
    foreign, own, new = (tmp_path / f"{name}.safetensors" for name in ("foreign", "own", "new"))
    for path in (foreign, own, new):
        save_file({"x": torch.zeros(1)}, path)
    connector._forget(own)
    connector._written[0] = (connector._written[0][0] - 5, own)
    monkeypatch.setattr(connector_module, "KEPT_SECONDS", 3)
    connector._forget(new)
    assert not own.exists() and foreign.exists() and new.exists()
