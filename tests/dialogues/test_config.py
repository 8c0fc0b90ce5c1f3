"""config.json: every key of the guide, clear refusals, and a hash over what matters only."""

from __future__ import annotations

import json

import pytest

from spikescore.dialogues.config import Config, load_config, parse_config
from spikescore.errors import UserError

GUIDE_EXAMPLE = {
    "model_path": "./models/xxx",
    "dataset_path": "./datasets/xxx.json",
    "output_dir": "./outputs/xxx",
    "sampling": {"strategy": "random", "n": 1000, "seed": 42},
    "enable_thinking": False,
    "strategy": "progressive",
    "max_steps": 20,
    "temperature": 0.2,
    "top_p": 0.7,
    "enable_ppl_detection": True,
    "generation_timeout": 180,
    "model_max_tokens": 128000,
    "max_new_tokens": 1024,
}


def test_the_guides_example_is_accepted_and_is_the_default():
    config = parse_config(GUIDE_EXAMPLE, source="config.json")
    paths = {"model_path", "dataset_path", "output_dir"}
    for key, value in GUIDE_EXAMPLE.items():
        if key == "sampling":
            assert vars(config.sampling) == value == vars(Config().sampling)
        else:
            assert getattr(config, key) == value
            assert key in paths or getattr(Config(), key) == value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temprature": 1}, ['unknown key "temprature"', 'did you mean "temperature"?']),
        ({"sampling": {"sede": 1}}, ['"sampling.sede"', '"sampling.seed"']),
        ({"max_steps": 0}, ['"max_steps" is 0', "out of range"]),
        ({"max_steps": "20"}, ['"max_steps" must be int', '"20"']),
        ({"max_steps": True}, ['"max_steps" must be int', "true"]),
        ({"top_p": 1.5}, ['"top_p" is 1.5']),
        ({"temperature": -1}, ['"temperature" is -1']),
        ({"strategy": "progresive"}, ["progresive", "progressive"]),
        ({"sampling": {"strategy": "some"}}, ["sampling.strategy", "stratified"]),
        ({"sampling": 5}, ['"sampling" must be an object']),
        ({"batch_size": "many"}, ["batch_size", '"auto"']),
        ({"batch_size": 0}, ["batch_size"]),
        ({"dataset_path": []}, ["dataset_path"]),
        ({"dtype": "fp16"}, ["dtype", "float16"]),
        ({"backend": "vllm"}, ["backend", "transformers", "openai"]),
        ({"server_url": "localhost:8000"}, ["server_url", "http://"]),
        ({"server_url": "http://[::1/v1"}, ["server_url", "http://"]),
        ({"server_url": "http://h:abc/v1"}, ["server_url", "http://"]),
        ({"server_url": "http:///v1"}, ["server_url", "http://"]),
        ({"fields": {"question": 1}}, ["fields", "own names"]),
        ({"max_in_flight": 0}, ["max_in_flight", "dialogues"]),
        ({"max_in_flight": "many"}, ["max_in_flight", "int"]),
        ({"judge": "atuo"}, ['judge "atuo"', "auto"]),
        ({"judge": ["auto", "opnai"]}, ['judge "opnai"', "openai"]),
        ({"judge": ["auto", "none"]}, ["judge", "none"]),
        ({"server_modle": "x"}, ["server_modle", "server_model"]),
        ({"output_dir": " "}, ["output_dir", "empty"]),
        ({"model_path": ""}, ["model_path", "empty"]),
        ({"output_dir": "a\0b"}, ["a character"]),
        ({"system_prompt": "\ud800"}, ["a character"]),
        ({"context": {"from": ""}}, ["context", '"from" is no path']),
    ],
)
def test_a_mistake_is_named(change, words):
    with pytest.raises(UserError) as error:
        parse_config({**GUIDE_EXAMPLE, **change}, source="config.json")
    for word in ["config.json", *words]:
        assert word in str(error.value)


def test_overrides_reach_inside(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(GUIDE_EXAMPLE))
    overrides = ["max_steps=5", "sampling.n=7", "strategy=mixed", "generation_timeout=null"]
    config = load_config(path, overrides)
    assert (config.max_steps, config.sampling.n, config.strategy) == (5, 7, "mixed")
    assert config.generation_timeout is None and config.sampling.seed == 42
    for bad in ["max_steps", "=3", "model_path.x=1"]:
        with pytest.raises(UserError, match="--set"):
            load_config(path, [bad])


@pytest.mark.parametrize(
    "content", ['{"max_steps": 5, "top_p": 1, "max_steps": 7}', '{"sampling": {"n": 1, "n": 2}}']
)
def test_a_key_that_stands_twice_is_named(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(UserError, match='c.json": "(max_steps|n)" stands twice'):
        load_config(path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(UserError, match="c.json"):
        load_config(path)
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none.json")


def test_the_hash_follows_what_changes_a_dialogue(tmp_path):
    base = parse_config(GUIDE_EXAMPLE, source="c")

    def hash_with(**change):
        return parse_config({**GUIDE_EXAMPLE, **change}, source="c").hash()

    same = [
        {"output_dir": "elsewhere"},
        {"dataset_path": "moved/xxx.json"},
        {"batch_size": 3},
        {"judge": "exact"},
        {"model_path": "/mnt/models/xxx"},
        {"sampling": {"n": 5, "seed": 42}},
    ]
    other = [
        {"temperature": 0.3},
        {"max_steps": 19},
        {"system_prompt": None},
        {"history": "question_only"},
        {"schedule": "forked"},
        {"model_path": "./models/yyy"},
        {"sampling": {"seed": 43}},
        {"dtype": "bfloat16"},
    ]
    assert all(hash_with(**change) == base.hash() for change in same)
    assert len({base.hash(), *(hash_with(**change) for change in other)}) == 1 + len(other)
    prompts = tmp_path / "p.json"
    prompts.write_text('{"a": ["x"]}')
    one = hash_with(prompts_file=str(prompts))
    prompts.write_text('{"a": ["y"]}')
    assert one != hash_with(prompts_file=str(prompts)) != base.hash()


def test_the_hash_names_the_server_model_where_one_generates():
    def hash_with(**change):
        return parse_config({**GUIDE_EXAMPLE, **change}, source="c").hash()

    local, served = hash_with(), hash_with(backend="openai")
    assert served != local == hash_with(server_model="y", server_url="http://a/v1")
    assert served == hash_with(backend="openai", server_url="http://a/v1", max_in_flight=5)
    assert served != hash_with(backend="openai", server_model="y")


def test_the_hash_of_a_replay_follows_what_changes_the_reading():
    def hash_with(**change):
        return parse_config({**GUIDE_EXAMPLE, "replay": "runs/a", **change}, source="c").hash()

    assert hash_with() != parse_config(GUIDE_EXAMPLE, source="c").hash()
    same = [{"replay": "moved/a"}, {"temperature": 1}, {"max_steps": 3}, {"backend": "openai"}]
    assert {hash_with(**change) for change in same} == {hash_with()}
    other = [{"model_path": "y"}, {"dtype": "bfloat16"}, {"system_prompt": None}]
    assert len({hash_with(), *(hash_with(**change) for change in other)}) == 4


def test_several_data_sets_get_a_folder_each():
    config = Config(dataset_path=["d/a.json", "d/b.jsonl"], output_dir="out")
    assert [(path, str(folder)) for path, folder in config.datasets()] == [
        ("d/a.json", "out/a"),
        ("d/b.jsonl", "out/b"),
    ]
    same = Config(dataset_path=["x/test.json", "y/test.json"], output_dir="out")
    assert [str(folder) for _, folder in same.datasets()] == ["out/x_test", "out/y_test"]
    with pytest.raises(UserError, match="one file"):
        parse_config({"dataset_path": ["x/test.json", "x/test.json"]}, source="c")


def test_a_later_key_changes_the_hash_only_where_it_is_used():
    plain = parse_config(GUIDE_EXAMPLE, source="config.json")
    assert parse_config({**GUIDE_EXAMPLE, "prompt_seed": 0}, source="x").hash() == plain.hash()
    used = ({"prompt_seed": 3}, {"leak_answer": True})
    hashes = {parse_config({**GUIDE_EXAMPLE, **one}, source="x").hash() for one in used}
    assert len(hashes | {plain.hash()}) == 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "60051ab8049d"),
        ({"temperature": 0.5}, "ac8220e1efc3"),
        ({"system_prompt": None}, "47962e59b4bd"),
        ({"backend": "openai"}, "5c317f48d4c7"),
        ({"backend": "openai", "server_model": "x"}, "816072c0f676"),
        ({"replay": "x"}, "7c0b7388d7bd"),
        ({"replay": "x", "system_prompt": None}, "0de783ad7375"),
    ],
)
def test_pairs_of_earlier_versions_keep_their_hash(changes, expected):
    """Written down from pairs that were made when the hash still named its keys in lists."""
    assert Config(**{"model_path": "./models/demo", **changes}).hash() == expected
