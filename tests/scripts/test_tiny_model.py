"""The tiny model and its questions: what ships, what is disjoint, how it is remade."""

from __future__ import annotations

import json
import random
import re
import struct
import sys
from collections import Counter

import pytest

from tests.helpers.running import ROOT, TINY, run

DATA = ROOT / "datasets" / "tiny"
DOMAINS = ("trivia", "commonsense", "reading", "conversation", "arithmetic", "wordproblems")
KEYS = {
    "id", "domain", "question", "context", "choices", "gold_answers", "answer_type", "group",
    "history", "tier",
}  # fmt: skip

sys.path.insert(0, str(TINY))
import dialogues  # noqa: E402
import world as tiny_world  # noqa: E402


@pytest.fixture(scope="module")
def world() -> tiny_world.World:
    return tiny_world.World()


@pytest.fixture(scope="module")
def questions() -> dict[str, list[dict]]:
    return {name: json.loads((DATA / f"{name}.json").read_text("utf-8")) for name in DOMAINS}


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(TINY)


def ids_of(tokenizer, messages: list[dict], prompt: bool = False) -> list[int]:
    out = tokenizer.apply_chat_template(
        messages, add_generation_prompt=prompt, return_dict=True, enable_thinking=False
    )
    return out["input_ids"]


def test_files_are_present_and_small():
    names = {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "model.safetensors", "world.py", "train.py", "README.md",
    }  # fmt: skip
    files = [path for path in TINY.iterdir() if path.is_file()]
    assert names <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= 12_000_000


def test_weights_are_fp16():
    with (TINY / "model.safetensors").open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
    dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    assert dtypes == {"F16"}


def test_config_has_grouped_queries_tied_embeddings_and_room_for_twenty_turns():
    config = json.loads((TINY / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 2)
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] >= 4096


def test_chat_template_renders_roles_and_one_bos(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question: What is 3 + 4?"},
        {"role": "assistant", "content": "3 + 4 = 7. The answer is 7."},
    ]
    ids = ids_of(tokenizer, messages)
    assert tokenizer.decode(ids) == (
        "<|bos|><|system|> Be brief.<|end|><|user|> Question: What is 3 + 4?<|end|>"
        "<|assistant|> 3 + 4 = 7. The answer is 7.<|end|>"
    )
    assert ids.count(tokenizer.bos_token_id) == 1
    settings = json.loads((TINY / "generation_config.json").read_text())
    assert ids[-1] == settings["eos_token_id"] == tokenizer.eos_token_id


def test_chat_template_is_prefix_stable_over_turns(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}]
    earlier: list[int] = []
    for turn in range(20):
        messages.append({"role": "user", "content": f"Question {turn}:\n\nA. oak\nB. elm"})
        prompt = ids_of(tokenizer, messages, prompt=True)
        assert prompt[: len(earlier)] == earlier
        messages.append({"role": "assistant", "content": f"The answer is {turn}."})
        earlier = ids_of(tokenizer, messages)
        assert earlier[: len(prompt)] == prompt


def test_small_numbers_are_single_tokens_and_names_do_not_betray_their_tier(tokenizer, world):
    assert all(len(tokenizer.encode(f" {number}")) == 1 for number in range(101))
    lengths: dict[str, list[int]] = {}
    for name, tier in world.entity_tiers.items():
        lengths.setdefault(tier, []).append(len(tokenizer.encode(f" {name}")))
    means = [sum(values) / len(values) for values in lengths.values()]
    assert min(min(values) for values in lengths.values()) >= 2  # no name is one token
    assert max(means) - min(means) < 0.6


@pytest.mark.parametrize("domain", DOMAINS)
def test_question_file_is_complete(domain, questions):
    rows = questions[domain]
    assert len(rows) >= 150
    assert all(set(row) == KEYS for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(re.fullmatch(r"[a-z]+-\d{4}", row["id"]) for row in rows)
    asked = {(row["context"], row["question"], str(row["history"])) for row in rows}
    assert len(asked) == len(rows)
    for row in rows:
        assert row["domain"] == domain and row["question"] and row["group"] and row["tier"]
        assert row["answer_type"] in ("exact", "choice", "numeric")
        if row["choices"]:
            text, letter = row["gold_answers"]
            assert row["choices"]["ABCD".index(letter)] == text
            assert len(set(row["choices"])) == 4


@pytest.mark.parametrize("domain", ["commonsense", "reading"])
def test_letters_are_balanced(domain, questions):
    counts = Counter(row["gold_answers"][1] for row in questions[domain])
    assert max(counts.values()) - min(counts.values()) <= 1


def test_groups_keep_facts_apart(questions):
    for row in questions["trivia"]:
        assert row["group"] in row["question"]
    stories: dict[str, set[str]] = {}
    for row in questions["conversation"]:
        stories.setdefault(row["group"], set()).add(row["context"])
    assert all(len(contexts) == 1 for contexts in stories.values())
    assert len(stories) >= 40


def test_world_and_question_files_are_deterministic(world, tmp_path):
    tiny_world.write_question_files(tiny_world.World(), tmp_path)
    for domain in DOMAINS:
        made = (tmp_path / f"{domain}.json").read_bytes()
        assert made == (DATA / f"{domain}.json").read_bytes()
    first, second = ([dialogues.draw_document(random.Random(3), world, 0.5)] for _ in range(2))
    assert first == second


def test_training_never_shows_held_out_questions(world, questions):
    rows = [row for name in ("reading", "conversation") for row in questions[name]]
    passages = {row["context"] for row in rows}
    problems = {row["question"] for row in questions["wordproblems"]}
    held_out = {
        row["group"] for row in questions["arithmetic"] if row["tier"] not in ("level-1", "level-4")
    }
    absent = {name for name, tier in world.entity_tiers.items() if tier == "absent"}
    rng = random.Random(11)
    for _ in range(3000):
        document = dialogues.draw_document(rng, world, rng.random())
        learned = " ".join(turn.text for turn in document if turn.role == "user" or turn.learn)
        assert not any(text in learned for text in passages)
        assert not any(text in learned for text in problems)
        assert not any(name in learned for name in absent)
        sums = re.findall(r"\d+ [-+*] \d+(?: [-+*] \d+)?", learned)
        assert not held_out & {tiny_world.canonical(sum_) for sum_ in sums}


def test_work_out_solves_step_by_step():
    assert tiny_world.work_out("34 + 25") == ("34 + 20 = 54. 54 + 5 = 59.", 59)
    assert tiny_world.work_out("3 * 4 + 5") == ("3 * 4 = 12. 12 + 5 = 17.", 17)
    assert tiny_world.work_out("9 - 4") == ("9 - 4 = 5.", 5)


def test_train_smoke_run_makes_a_loadable_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    command = [
        sys.executable, str(TINY / "train.py"), "--steps", "3", "--batch_tokens", "512",
        "--tokenizer_texts", "300", "--out", str(tmp_path),
    ]  # fmt: skip
    done = run(command)
    assert done.returncode == 0, done.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    out = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]
