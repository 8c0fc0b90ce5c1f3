"""Stage 1 as its users run it: from a shell, with damage, kills and typing mistakes."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from spikescore.data.question import Question
from spikescore.dialogues import preview as preview_module
from spikescore.dialogues.config import load_config
from spikescore.dialogues.dialogue import Dialogue
from spikescore.dialogues.plan import (
    content_digest,
    load_items,
    load_recorded,
    refuse_other_run,
    unfinished,
)
from spikescore.dialogues.preview import needs, preview
from spikescore.errors import UserError
from spikescore.model.chat import ChatFormat
from spikescore.model.turns import Turn, token_sequences
from spikescore.pairs import TOKEN_KEYS, find_records, iter_records, read_states
from tests.helpers.factories import write_config, write_sums
from tests.helpers.fault_server import FaultyServer, completion
from tests.helpers.oracles import assert_same_pairs, states_at
from tests.helpers.real_server import closed_port
from tests.helpers.running import TINY, make_tokenizer, run_script, start_script, wait_until

STEP_KEYS = {
    "turn", "prompt_type", "prompt", "response", "n_prompt_tokens", "n_response_tokens",
    "finish_reason", "perplexity", "mean_logprob", "mean_token_entropy", "max_token_entropy",
    "first_token_confidence", "n_kept", "prompt_ids", "response_ids", "metrics",
    "seconds",
}  # fmt: skip
RECORD_KEYS = {
    "id", "domain", "question", "context", "choices", "history", "gold_answers", "answer_type",
    "group", "meta", "model", "identity", "seed", "config", "config_hash", "finish_reason",
    "first_answer_cut_off", "cot_steps", "nil_label", "nil_judge", "metrics", "complete",
}  # fmt: skip


@pytest.fixture(scope="module")
def first_run(tiny_model, tmp_path_factory):
    """A run by the command, to be copied."""
    folder = tmp_path_factory.mktemp("first")
    config = write_config(folder, tiny_model, write_sums(folder / "sums.json"))
    result = run_script("reasoning_lite.py", "--config", config)
    assert result.returncode == 0, result.stderr
    return folder / "outputs", result


@pytest.fixture
def finished_run(first_run, config_file):
    """The run as that of `config_file`, in its folder; what the command said."""
    folder, result = first_run
    return Path(shutil.copytree(folder, config_file.parent / "outputs")), result


def test_pairs_follow_the_format(finished_run):
    folder, result = finished_run
    assert "wrote 12 pairs" in result.stdout
    labels = [json.loads(path.read_text())["nil_label"] for path in folder.glob("sum-*.json")]
    assert re.search(rf"^  labels +{12 - labels.count(None)} of 12 ", result.stdout, re.MULTILINE)
    # what a random model says is seldom a number, and is then no answer that is wrong
    assert not labels.count(None) or f"{labels.count(None)} unread" in result.stdout
    assert re.search(r"about \d+\.\d minutes if every answer has 8 tokens", result.stdout)
    assert len(list(folder.glob("*.pkl"))) == 12
    run_file = json.loads((folder / "run.json").read_text())
    assert len(run_file["ids"]) == 12
    for path in folder.glob("sum-*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert set(record) == RECORD_KEYS
        assert record["complete"] is True and record["nil_label"] in (0, 1, None)
        assert (record["nil_label"] is None) == (record["nil_judge"]["error"] == "unread")
        assert record["nil_judge"]["judge"].endswith("numeric")
        assert [step["turn"] for step in record["cot_steps"]] == [1, 2, 3, 4, 5]
        for step in record["cot_steps"]:
            assert set(step) - {"high_perplexity"} == STEP_KEYS
            assert step["finish_reason"] in ("stop", "length")
            assert step["n_response_tokens"] == len(step["response_ids"])
            assert step["seconds"] > 0
        with open(path.with_suffix(".pkl"), "rb") as file:
            content = pickle.load(file)
        assert content["n_layers"] == 3 and content["hidden_size"] == 64
        assert sorted(content["turns"]) == [1, 2, 3, 4, 5]
        for by_key in content["turns"].values():
            assert set(by_key) == set(TOKEN_KEYS)
            for array in by_key.values():
                assert array.dtype == np.float16 and array.shape == (4, 64)
                assert np.isfinite(array).all()


def test_no_prompt_shows_the_gold_answer(finished_run):
    folder, _ = finished_run
    for path in folder.glob("sum-*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        prompts = " ".join(step["prompt"] for step in record["cot_steps"])
        assert record["gold_answers"][0] not in prompts.split()
        assert record["id"] not in prompts


def test_stored_ids_give_the_stored_states_again(finished_run, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = finished_run
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    path = next(folder.glob("sum-*.json"))
    record = json.loads(path.read_text(encoding="utf-8"))
    states = read_states(path.with_suffix(".pkl"))
    for step, (prompt, answer) in zip(record["cot_steps"], token_sequences(record), strict=True):
        assert len(prompt) == step["n_prompt_tokens"]
        assert prompt.count(tokenizer.bos_token_id) == 1 and prompt[0] == tokenizer.bos_token_id
        if not answer:
            continue
        ids = prompt + answer
        expected = states_at(model, ids, [len(ids) - 1, len(prompt) - 1])
        kept = states[step["turn"]]
        assert np.allclose(kept[TOKEN_KEYS[0]], expected[0], atol=5e-3)
        assert np.allclose(kept[TOKEN_KEYS[2]], expected[1], atol=5e-3)


def test_batch_one_and_many_give_the_same_dialogues(finished_run, config_file, tmp_path):
    folder, _ = finished_run
    other = tmp_path / "other"
    changes = ["--set", "batch_size=1", "--set", f"output_dir={other}"]
    assert run_script("reasoning_lite.py", "--config", config_file, *changes).returncode == 0
    assert_same_pairs(folder, other, n=12)


def turns_kept(folder: Path) -> list[dict]:
    """What the journals hold of dialogues that have no pair yet; a torn line is no turn."""
    turns = []
    for path in folder.glob(".turns.*.journal"):
        for line in path.read_text().splitlines():
            with suppress(ValueError):
                turns.append(json.loads(line))
    turns = [turn for turn in turns if isinstance(turn, dict) and "id" in turn]
    return [turn for turn in turns if not (folder / f"{turn['id']}.json").exists()]


def test_a_run_that_was_stopped_goes_on_from_the_last_finished_turn(config_file, tmp_path):
    """Killed, then taken up by two processes that are told to end, then run by one to its end; a
    half line is left as by a kill.
    """
    folder, whole = tmp_path / "outputs", tmp_path / "whole"
    command = ["reasoning_lite.py", "--config", config_file, "--set", "max_steps=40"]
    process = start_script(*command)
    wait_until(lambda: len(turns_kept(folder)) >= 15, process)
    process.kill()
    process.wait()
    kept = turns_kept(folder)
    (folder / ".turns.1-0.journal").write_text(json.dumps(kept[0])[:-20] + "\n\x00[]\n{}\n7")
    pair = [start_script(*command, env={"RANK": r, "WORLD_SIZE": "2"}) for r in "01"]
    for process in pair:
        own = f".turns.{process.pid}-*.journal"
        wait_until(lambda own=own: list(folder.glob(own)), process)
    wait_until(lambda: len(turns_kept(folder)) >= 60, process)
    told = []
    for process, signum in zip(pair, (signal.SIGTERM, signal.SIGUSR1), strict=True):
        process.send_signal(signum)
        _, err = process.communicate()
        assert process.returncode == 143 and f"ended by {signum.name}: " in err
        assert "lost are the turns" in err and "run the same command to go on" in err
        told += re.findall(r"(\d+) finished turns of (\d+) other dialogues are kept in", err)
    kept = turns_kept(folder)
    assert sum(int(turns) for turns, _ in told) == len(kept) >= 60
    assert sum(int(dialogues) for _, dialogues in told) == len({turn["id"] for turn in kept})
    result = run_script(*command)
    assert result.returncode == 0, result.stderr
    assert not list(folder.glob(".turns.*"))
    assert run_script(*command, "--set", f"output_dir={whole}").returncode == 0
    assert_same_pairs(folder, whole, n=12)
    # what was kept was not generated again: the last run's tokens are those of the other turns
    again, all_of_it = (
        json.loads((run / "speed.json").read_text())["answer_tokens"] for run in (folder, whole)
    )
    assert again == all_of_it - sum(len(turn["ids"]) for turn in kept)


def test_dialogues_that_a_server_held_go_on_after_a_kill(config_file, tmp_path):
    """The server answers each turn by its own words; what it was asked is counted."""

    def reply(body, _):
        turn = sum(message["role"] == "assistant" for message in body["messages"]) + 1
        time.sleep(0.02)
        return completion(f"{turn} for {len(body['messages'][-1]['content'])}")

    folder = tmp_path / "outputs"
    with FaultyServer(reply) as server:
        changes = {"backend": "openai", "server_url": server.url, "max_in_flight": 4}
        flags = [f"--set={key}={value}" for key, value in changes.items()]
        command = ["reasoning_lite.py", "--config", config_file, *flags]
        process = start_script(*command)
        wait_until(lambda: len(turns_kept(folder)) >= 6, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done = 5 * len(find_records(folder)) + len(turns_kept(folder))
        server.bodies.clear()
        assert run_script(*command).returncode == 0
        assert len(server.bodies) <= 60 - done + 2  # asked first: is it there, how it samples
        whole = tmp_path / "whole"
        assert run_script(*command, "--set", f"output_dir={whole}").returncode == 0
    assert_same_pairs(folder, whole, n=12)
    assert not list(folder.glob(".turns.*"))


def test_a_turn_that_answers_another_prompt_is_not_taken(config_file, tmp_path):
    """Kept turns of other settings are no part of this run, and one that does not fit is redone."""
    folder = tmp_path / "outputs"
    command = ["reasoning_lite.py", "--config", config_file]
    process = start_script(*command, "--set", "batch_size=2")
    wait_until(lambda: len(turns_kept(folder)) >= 4, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    changed = run_script(*command, "--set", "temperature=0.3")
    assert changed.returncode == 2 and "temperature: 1.0 -> 0.3" in changed.stderr
    for path in folder.glob(".turns.*.journal"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if line["turn"] == 2:
                line["prompt"] = "another"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_script(*command).returncode == 0
    whole = tmp_path / "whole"
    assert run_script(*command, "--set", f"output_dir={whole}").returncode == 0
    assert_same_pairs(folder, whole, n=12)


def test_a_second_run_on_a_folder_is_told_who_is_at_work_there(config_file, tmp_path):
    command = ["reasoning_lite.py", "--config", config_file, "--set", "batch_size=2"]
    lock = tmp_path / "outputs" / ".lock"
    first = start_script(*command)
    wait_until(lambda: lock.exists() and lock.read_text(), first)
    second = run_script(*command)
    assert second.returncode == 2 and "Traceback" not in second.stderr
    assert f"process {first.pid} on {socket.gethostname()} since 20" in second.stderr
    _, err = first.communicate()
    assert first.returncode == 0, err
    assert len(find_records(tmp_path / "outputs")) == 12
    alone = tmp_path / "alone"
    assert run_script(*command, "--set", f"output_dir={alone}").returncode == 0
    assert_same_pairs(tmp_path / "outputs", alone, n=12)


def test_a_second_run_does_nothing_and_another_config_is_refused(finished_run, config_file):
    folder, _ = finished_run
    before = {path: path.stat().st_mtime_ns for path in folder.glob("sum-*")}
    again = run_script("reasoning_lite.py", "--config", config_file)
    assert again.returncode == 0 and "12 were done before" in again.stdout
    changed = run_script("reasoning_lite.py", "--config", config_file, "--set", "temperature=0.5")
    assert changed.returncode == 2 and "Traceback" not in changed.stderr
    assert "temperature: 1.0 -> 0.5" in changed.stderr
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("sum-*")}


def test_what_does_not_belong_to_a_folder_is_refused_by_its_name(
    finished_run, config_file, questions_file
):
    folder, _ = finished_run
    config = load_config(config_file)
    identity = json.loads((folder / "run.json").read_text())["identity"]
    assert json.loads((folder / "sum-41.json").read_text())["identity"] == identity
    rows = json.loads(questions_file.read_text())

    def check(rows=rows, config=config, **changes):
        questions_file.write_text(json.dumps(rows))
        content_digest.cache_clear()
        items = load_items(config)
        refuse_other_run(config, items)
        refuse_other_run(config, items, {**identity, **changes})
        return [item.question.id for item in unfinished(items, config)]

    assert check() == []
    for part in identity:
        with pytest.raises(UserError, match=rf"{re.escape(str(folder))}.*other: {part}\)"):
            check(**{part: "another"})
    more = [*rows, {**rows[0], "id": "more", "question": "What is 1 plus 1?"}]
    assert check(more) == ["more"]
    with pytest.raises(UserError, match="another data set.*sum-40"):
        check(more[1:])
    for key in ("question", "context", "gold_answers"):
        changed = [{**rows[0], key: ["7"] if key == "gold_answers" else "another"}, *rows[1:]]
        with pytest.raises(UserError, match=f"other: {key}"):
            check(changed)
    # a folder of before, without an identity, goes on; one without any dialogue is anybody's
    for path in (folder / "run.json", *find_records(folder)):
        record = json.loads(path.read_text())
        path.write_text(
            json.dumps({k: v for k, v in record.items() if k not in ("identity", "data")})
        )
    assert check(weights="another") == []
    other = load_config(config_file, ["temperature=0.5"])
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="temperature"):
        check(config=other)
    for path in find_records(folder):
        path.unlink()
    assert len(check(config=other)) == 12


@pytest.mark.parametrize("damage", [b"", b"half", b"\x80\x05."])
def test_a_damaged_pair_is_named_and_made_again(finished_run, config_file, damage, caplog):
    folder, _ = finished_run
    config = load_config(config_file)
    pkl, text = folder / "sum-44.pkl", folder / "sum-47.json"
    pkl.write_bytes(pkl.read_bytes()[:-2000] if damage == b"half" else damage)
    text.write_bytes(text.read_bytes()[:-200] if damage == b"half" else damage)
    todo = unfinished(load_items(config), config)
    assert sorted(item.question.id for item in todo) == ["sum-44", "sum-47"]
    assert "sum-44.pkl" in caplog.text and "sum-47.json" in caplog.text


def test_an_unfinished_pair_is_redone(finished_run, config_file):
    folder, _ = finished_run
    (folder / "sum-41.json").unlink()
    (folder / "sum-42.pkl").unlink()
    again = run_script("reasoning_lite.py", "--config", config_file)
    assert again.returncode == 0 and "wrote 2 pairs" in again.stdout


def test_dry_run_shows_prompts_and_writes_nothing(config_file, tmp_path):
    result = run_script("reasoning_lite.py", "--config", config_file, "--dry_run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("<assistant>") == 3
    assert "judge: auto: 12 numeric" in result.stdout and "0 of 12" in result.stdout
    # 12 dialogues of 5 turns, three tokens, four states of width 64 in two bytes each
    assert f"{12 * 5 * 3 * 4 * 64 * 2 / 1e6:.1f} MB (12 pairs)" in result.stdout
    assert not (tmp_path / "outputs").exists()


def test_an_item_that_fails_is_counted_and_the_rest_goes_on(config_file, questions_file, tmp_path):
    rows = json.loads(questions_file.read_text())
    rows[3]["context"] = "word " * 3000
    questions_file.write_text(json.dumps(rows))
    command = ["reasoning_lite.py", "--config", config_file, "--set", "model_max_tokens=400"]
    result = run_script(*command)
    assert result.returncode == 1
    assert "wrote 11 pairs" in result.stdout and "1 failed" in result.stdout
    error = json.loads((tmp_path / "outputs" / "sum-43.error.json").read_text())
    assert "model_max_tokens" in error["error"] or "context" in error["error"]
    assert not (tmp_path / "outputs" / "sum-43.json").exists()


def bad_inputs(folder: Path):
    """(name, what is changed, what the message must say)."""
    (folder / "empty.json").write_text("")
    broken = '{"id": "a", "question": "q?", "gold_answers": ["x"]}\n{"id": "b", "question": \n'
    (folder / "broken.jsonl").write_text(broken)
    (folder / "no_model").mkdir()
    (folder / "bare").mkdir()
    (folder / "bare" / "config.json").write_text('{"model_type": "llama"}')
    yield "typo", ["temprature=1"], ["temprature", "temperature"]
    yield "model path", ["model_path=./no/such/model"], ["./no/such/model", "not a folder"]
    yield "model folder", [f"model_path={folder}/no_model"], ["no config.json"]
    yield "no weights", [f"model_path={folder}/bare"], ["bare"]
    yield "no data", ["dataset_path=nowhere.json"], ["nowhere.json", "does not exist"]
    yield "empty data", [f"dataset_path={folder}/empty.json"], ["empty.json", "is empty"]
    yield "broken row", [f"dataset_path={folder}/broken.jsonl"], ["broken.jsonl", "line 2"]
    yield "judge", ["judge=wise"], ["wise", "exact"]
    yield "prompts", ["prompts_file=none.json"], ["none.json"]
    yield "device", ["device_map=cuda:99"], ["device_map", "cuda:99"]
    yield "device in a map", ['device_map={"": "gpu"}'], ["device_map", '"gpu" is no device']
    yield "memory", ['max_memory={"77": "1GiB"}'], ["max_memory", '"77"']
    yield (
        "output below a file",
        [f"output_dir={folder}/empty.json/out"],
        ["empty.json", "is a file"],
    )
    nobody = f"http://u:secret@127.0.0.1:{closed_port()}/v1"
    yield "server", ["backend=openai", f"server_url={nobody}"], ["cannot be reached", "127.0.0.1"]


@pytest.mark.parametrize("case", range(14))
def test_bad_input_is_one_clear_message(config_file, tmp_path, case):
    name, changes, words = list(bad_inputs(tmp_path))[case]
    flags = [part for change in changes for part in ("--set", change)]
    result = run_script("reasoning_lite.py", "--config", config_file, *flags)
    assert result.returncode == 2, (name, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    message = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(message) == 1, result.stderr
    for word in words:
        assert word in message[0]


def test_a_broken_row_can_be_skipped_and_is_counted(config_file, tmp_path):
    list(bad_inputs(tmp_path))
    changes = [f"dataset_path={tmp_path}/broken.jsonl", "on_bad_row=skip"]
    flags = [part for change in changes for part in ("--set", change)]
    result = run_script("reasoning_lite.py", "--config", config_file, *flags)
    assert result.returncode == 0, result.stderr
    assert "1 bad rows" in result.stderr and "wrote 1 pairs" in result.stdout


def test_what_is_checked_first_loads_no_torch():
    """Reading settings and questions, and checking paths, devices and servers."""
    heavy = "{'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys, spikescore.dialogues.plan; sys.exit(bool({heavy}))"
    assert run_script("-c", code).returncode == 0


def test_help_needs_no_heavy_import():
    result = run_script("-X", "importtime", "reasoning_lite.py", "--help")
    assert result.returncode == 0 and "--dry_run" in result.stdout
    assert not re.search(r"\| +(torch|sklearn|transformers)$", result.stderr, re.M)


# --- dialogues that already exist ---------------------------------------------------------------


def replay(config_file, source, output, *more):
    flags = ["--replay", source, "--set", f"output_dir={output}", *more]
    return run_script("reasoning_lite.py", "--config", config_file, *flags)


def records_in(folder: Path) -> dict[str, dict]:
    paths = folder.rglob("sum-*.json")
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def test_a_replay_gives_the_states_of_the_run_again(finished_run, config_file, tmp_path):
    source, output = finished_run[0], tmp_path / "again"
    result = replay(config_file, source, output)
    assert result.returncode == 0, result.stderr
    assert "wrote 12 pairs" in result.stdout
    made, read = records_in(source), records_in(output)
    assert made.keys() == read.keys() and len(read) == 12
    for name, record in read.items():
        original = made[name]
        assert set(record) == RECORD_KEYS | {"replayed_from"}
        assert record["replayed_from"]["config_hash"] == original["config_hash"]
        assert record["replayed_from"]["model"] == original["model"]
        assert record["config_hash"] != original["config_hash"]
        assert record["model"] == original["model"] and record["config"]["replay"] == str(source)
        for key in ("nil_label", "nil_judge", "gold_answers", "group", "domain", "seed"):
            assert record[key] == original[key]
        assert record["finish_reason"] == original["finish_reason"]
        for one, two in zip(record["cot_steps"], original["cot_steps"], strict=True):
            read_again = STEP_KEYS - {"seconds"}  # a replay makes no answer
            assert set(one) - {"high_perplexity"} == read_again
            for key in read_again:
                if isinstance(two[key], float):
                    assert one[key] == pytest.approx(two[key], rel=1e-3)
                else:
                    assert one[key] == two[key]
        ours = read_states(output / f"{name}.pkl")
        theirs = read_states(source / f"{name}.pkl")
        assert ours.keys() == theirs.keys()
        for turn, by_key in ours.items():
            for key in TOKEN_KEYS:
                difference = np.abs(by_key[key].astype(float) - theirs[turn][key].astype(float))
                # one step of FP16 at most
                assert (difference <= np.abs(theirs[turn][key]) * 2.0**-10 + 1e-4).all()


def test_a_replay_resumes_and_refuses_what_does_not_belong(finished_run, config_file, tmp_path):
    source, output = finished_run[0], tmp_path / "again"
    assert replay(config_file, source, output).returncode == 0
    (output / "sum-44.json").unlink()
    resumed = replay(config_file, source, output)
    assert resumed.returncode == 0 and "wrote 1 pairs" in resumed.stdout
    assert "11 were done before" in resumed.stdout
    into_run = replay(config_file, output, source)
    assert into_run.returncode == 2 and "was made under configuration" in into_run.stderr
    inside = replay(config_file, source, source / "again")
    assert inside.returncode == 2 and "outside it" in inside.stderr
    path = source / "sum-41.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["cot_steps"][2]["response"] = "something else"
    path.write_text(json.dumps(record), encoding="utf-8")
    changed = replay(config_file, source, output)
    assert changed.returncode == 2 and "another dialogue" in changed.stderr
    (tmp_path / "none").mkdir()
    nothing = replay(config_file, tmp_path / "none", tmp_path / "x")
    assert nothing.returncode == 2 and "no dialogue" in nothing.stderr


def test_dialogues_of_anyone_are_read_by_a_chosen_model(config_file, tmp_path):
    source, output = tmp_path / "theirs" / "trivia", tmp_path / "ours"
    source.mkdir(parents=True)
    steps = [
        {"step": 0, "prompt": "How many?", "response": "Seven."},
        {"step": 1, "prompt": "Are you sure?", "response": "Yes, seven."},
    ]
    whole = {"question": "How many?", "reasoning_chain": steps, "nli_label": 1}
    (source / "sum-1.json").write_text(json.dumps(whole))
    unlabelled = {"question": "How many?", "cot_steps": steps[:1], "gold_answers": ["8"]}
    (source / "sum-2.json").write_text(json.dumps(unlabelled))
    broken = {"question": "How many?", "cot_steps": [{"prompt": "q", "response": None}]}
    (source / "sum-3.json").write_text(json.dumps(broken))
    (source / "sum-4.json").write_text(json.dumps({"question": "q", "cot_steps": ["q", "a"]}))
    result = replay(config_file, tmp_path / "theirs", output, "--set", f"model_path={TINY}")
    assert result.returncode == 1, result.stderr
    assert "wrote 2 pairs" in result.stdout and "2 failed" in result.stdout
    error = json.loads((output / "trivia" / "sum-4.error.json").read_text())["error"]
    assert "entry 1 of cot_steps" in error and "not an object" in error
    error = json.loads((output / "trivia" / "sum-3.error.json").read_text())["error"]
    assert 'turn 1 holds no "response"' in error and "sum-3.json" in error
    read = records_in(output / "trivia")
    assert read["sum-1"]["nil_label"] == 1 and read["sum-2"]["nil_label"] is None
    assert [step["response"] for step in read["sum-1"]["cot_steps"]] == ["Seven.", "Yes, seven."]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    system = load_config(config_file).system_prompt
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "Seven."},
        {"role": "user", "content": "Are you sure?"},
    ]
    prompt, answer = token_sequences(read["sum-1"])[1]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == list(rendered["input_ids"])
    assert tokenizer.decode(answer).strip() == "Yes, seven."
    expected = states_at(model, prompt + answer, [len(prompt + answer) - 1, len(prompt) - 1])
    states = read_states(output / "trivia" / "sum-1.pkl")[2]
    assert np.allclose(states[TOKEN_KEYS[0]], expected[0], rtol=2e-3, atol=2e-3)
    assert np.allclose(states[TOKEN_KEYS[2]], expected[1], rtol=2e-3, atol=2e-3)
    for name in ("sum-3.json", "sum-4.json"):
        (source / name).unlink()
    dry = replay(config_file, tmp_path / "theirs", tmp_path / "dry", "--dry_run")
    assert dry.returncode == 0 and "How many?" in dry.stdout and "of 2" in dry.stdout
    assert not (tmp_path / "dry").exists()


# --- dialogues, without a model ---------------------------------------------------------------


def make_dialogue(config_file, changes=(), template=None):
    config = load_config(config_file, list(changes))
    tokenizer = make_tokenizer(**({"chat_template": template} if template else {}))
    chat = ChatFormat(tokenizer, enable_thinking=False)
    question = Question(
        id="x", domain="d", question="How many?", context="The passage.", gold_answers=("seven",)
    )
    return Dialogue(question, config, chat), chat


def play(dialogue, chat, answers):
    """Feed fixed answers; return the text of every prompt."""
    shown, last = [], None
    for number, answer in enumerate(answers, start=1):
        ids = dialogue.next_prompt(last)
        shown.append(chat.tokenizer.decode(ids))
        answer_ids = chat.tokenizer(answer, add_special_tokens=False)["input_ids"]
        last = Turn(number, ids, answer_ids=answer_ids, logprobs=[-0.1] * len(answer_ids))
    return shown


def test_the_history_is_appended_to_and_never_rebuilt(config_file):
    dialogue, chat = make_dialogue(config_file)
    shown = play(dialogue, chat, ["one", "two", "three", "four", "five"])
    assert dialogue.next_prompt(Turn(5, [1], answer_ids=[7])) is None
    for before, after in zip(shown, shown[1:], strict=False):
        assert after.startswith(before)
    assert "The passage." in shown[-1] and "<system>" in shown[-1]
    assert [prompt.family for prompt in dialogue.prompts] == [
        "initial", "encouragement", "encouragement", "encouragement", "analytical",
    ]  # fmt: skip


def test_question_only_history_drops_system_and_passage_from_turn_two(config_file):
    dialogue, chat = make_dialogue(config_file, ["history=question_only"])
    shown = play(dialogue, chat, ["one", "two", "three", "four", "five"])
    assert "The passage." in shown[0] and "<system>" in shown[0]
    assert "The passage." not in shown[1] and "<system>" not in shown[1]
    assert shown[1].startswith("<bos><user> How many?<end><assistant> one")


def test_forked_follow_ups_stand_right_behind_the_first_answer(config_file):
    answers = ["one", "two", "three", "four", "five"]
    dialogue, chat = make_dialogue(config_file, ["schedule=forked"])
    shown = play(dialogue, chat, answers)
    sequential, _ = make_dialogue(config_file)
    play(sequential, chat, answers)
    assert dialogue.prompts == sequential.prompts  # the ladder's order
    # shown[0] ends where an answer begins
    for prompt, text in zip(dialogue.prompts[1:], shown[1:], strict=True):
        assert text == f"{shown[0]} one<end><user> {prompt.text}<end><assistant>"


def test_adaptive_forks_look_at_the_first_answer_alone(config_file):
    changes = ["schedule=forked", "strategy=adaptive"]
    dialogue, chat = make_dialogue(config_file, changes)
    play(dialogue, chat, ["one", "two " * 30, "three " * 30, "four " * 30, "five"])
    assert {prompt.family for prompt in dialogue.prompts[1:]} <= {
        "encouragement", "analytical", "step_by_step",
    }  # fmt: skip


def test_high_perplexity_can_end_the_dialogue(config_file):
    changes = ["ppl_action=stop", "ppl_bound=2"]
    dialogue, chat = make_dialogue(config_file, changes)
    ids = dialogue.next_prompt(None)
    calm = Turn(1, ids, answer_ids=[5, 6], logprobs=[-0.1, -0.2])
    assert dialogue.next_prompt(calm) is not None
    # mean log-probability -0.7 is a perplexity of 2.01
    assert dialogue.next_prompt(Turn(2, ids, answer_ids=[5], logprobs=[-0.7])) is None
    assert dialogue.stopped == "perplexity"


def test_a_template_without_system_role_gets_it_in_the_first_message(config_file, caplog):
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    )
    dialogue, chat = make_dialogue(config_file, template=refusing)
    shown = play(dialogue, chat, ["one"])[0]
    assert shown.startswith("[user] Answer the question.") and "How many?" in shown
    assert "no system role" in caplog.text


def test_no_template_falls_back_to_a_plain_format(config_file, caplog):
    tokenizer = make_tokenizer(chat_template=None)
    chat = ChatFormat(tokenizer, enable_thinking=False)
    ids = chat.render([{"role": "user", "content": "Hello"}])
    assert tokenizer.decode(ids, skip_special_tokens=True) == "User: Hello\n\nAssistant:"
    assert "no chat template" in caplog.text


# --- dialogues that a data set ships ------------------------------------------------------------


@pytest.fixture
def shipped_file(tmp_path) -> Path:
    """Forty RAGTruth responses: every third has a labelled span."""
    sources, responses = [], []
    for n in range(40):
        passage = f"passage 1: Mill {n} was built in {1800 + n} by the town."
        sources.append(
            {
                "source_id": f"s{n}", "task_type": "QA",
                "source_info": {"question": f"when was mill {n} built", "passages": passage},
                "prompt": f"Briefly answer: when was mill {n} built\n{passage}\noutput:",
            }
        )  # fmt: skip
        span = {"start": 0, "end": 2, "text": "In", "label_type": "Evident Conflict"}
        responses.append(
            {
                "id": f"rag-{n}", "source_id": f"s{n}", "model": "gpt-4", "split": "train",
                "labels": [] if n % 3 else [span], "response": f"In {1800 + n + 9 * (n % 3 == 0)}.",
            }
        )  # fmt: skip
    (tmp_path / "rag").mkdir()
    for name, rows in (("source_info", sources), ("response", responses)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rag" / f"{name}.jsonl").write_text(text)
    return tmp_path / "rag" / "response.jsonl"


def test_shipped_dialogues_become_pairs_through_kills(config_file, shipped_file, tmp_path):
    output = tmp_path / "read"
    command = ["reasoning_lite.py", "--config", config_file, "--replay", shipped_file]
    command += ["--set", f"output_dir={output}"]
    process = start_script(*command)
    while process.poll() is None and len(list(output.glob("rag-*.json"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = len(list(output.glob("rag-*.json")))
    assert 3 <= done < 40
    result = run_script(*command)
    assert result.returncode == 0, result.stderr
    assert f"wrote {40 - done} pairs" in result.stdout
    assert f"{done} were done before" in result.stdout
    assert "leak guard: 0 of 40 prompts" in result.stdout
    assert json.loads((output / "run.json").read_text())["leaks"] == []
    for n in range(40):
        record = json.loads((output / f"rag-{n}.json").read_text())
        assert set(record) == RECORD_KEYS | {"replayed_from", "messages"}
        (step,) = record["cot_steps"]
        assert step["prompt"].startswith(f"Briefly answer: when was mill {n} built\npassage 1:")
        assert step["response"] == record["messages"][1]["content"]
        assert record["nil_label"] == (1 if n % 3 else 0) and record["seed"] is None
        assert record["nil_judge"]["judge"] == "shipped"
        said = json.loads(record["nil_judge"]["reply"])
        assert [span["text"] for span in said["labels"]] == ([] if n % 3 else ["In"])
        assert record["replayed_from"]["model"] == "gpt-4" and record["group"] == f"s{n}"
        assert read_states(output / f"rag-{n}.pkl")[1].keys() == set(TOKEN_KEYS)

    # without starting it again: what is done, and what has changed
    config = load_config(config_file, [f"replay={shipped_file}", f"output_dir={output}"])
    assert unfinished(load_recorded(config), config) == []
    text = shipped_file.read_text()
    for change in (("In 1804.", "In 1805."), ('"labels": []', '"labels": [{"text": "In"}]')):
        shipped_file.write_text(text.replace(*change, 1))
        with pytest.raises(UserError, match="another dialogue"):
            unfinished(load_recorded(config), config)


def test_what_is_replayed_is_chosen_as_for_generation(config_file, shipped_file, tmp_path):
    def ids(*changes, replay=shipped_file):
        settings = [f"replay={replay}", f"output_dir={tmp_path}/out", *changes]
        return sorted(
            item.question.id for item in load_recorded(load_config(config_file, settings))
        )

    few = ["sampling.strategy=random", "sampling.n=5"]
    assert len(ids(*few)) == 5 and ids(*few) == ids(*few, replay=shipped_file.parent)
    assert ids(*few) != ids(*few, "sampling.seed=7")
    assert len(ids('filters={"split": "train"}')) == 40
    with pytest.raises(UserError, match="do not pass the filters"):
        ids('filters={"split": "test"}')
    with pytest.raises(UserError, match='unknown format "ragtrut"'):
        ids("dataset_format=ragtrut")
    with pytest.raises(UserError, match='"0" .*comes without a dialogue'):
        bare = tmp_path / "bare.json"
        bare.write_text('[{"id": "0", "question": "q?", "gold_answers": ["x"]}]')
        ids(replay=bare)
    with pytest.raises(UserError, match="does not exist"):
        ids(replay=tmp_path / "nowhere")
    rows = [
        {"id": "0", "question": "q?", "gold_answers": ["x"]},
        {"id": "1", "question": "q?", "gold_answers": ["x"], "shipped": {"messages": [
            {"role": "user", "content": "q?"}, {"role": "assistant", "content": "x"},
            {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "yes"},
        ], "hallucinated": False}},
        {"id": "2", "question": "q?", "gold_answers": ["x"], "shipped": {"messages": "none"}},
    ]  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match='row 3, field "messages": expected a list'):
        ids(replay=tmp_path / "own.json")
    assert ids("on_bad_row=skip", replay=tmp_path / "own.json") == ["1"]


def test_a_dry_run_shows_each_domain_and_what_leaks(config_file, tmp_path):
    rows = [
        {"id": f"{domain}-{n}", "domain": domain, "question": f"What is {domain} {n}?",
         "gold_answers": [gold], "answer_type": kind, "note": "The tower fell in the storm."}
        for domain, gold, kind in (("sums", "7", "numeric"), ("names", "Ann; Bo", "list"),
                                   ("tales", "It fell.", "free"))
        for n in range(5)
    ]  # fmt: skip
    (tmp_path / "mixed.json").write_text(json.dumps(rows))
    settings = [f"dataset_path={tmp_path}/mixed.json", "leak_answer=true"]
    config = load_config(config_file, settings)
    chat = ChatFormat(make_tokenizer(), enable_thinking=False)
    lines = list(preview(load_items(config), config, chat))
    text = "\n".join(lines)
    assert [line for line in lines if line.startswith("judge:")] == [
        "judge: auto: 5 numeric",
        "judge: auto: 5 list",
        "judge: auto: 5 free, which no rule labels (use openai or nli)",
    ]
    assert text.count("gold answers (for the judge, not in the prompt): Ann; Bo") == 3
    assert text.count("<assistant>") == 9 and "=== names: 5 questions" in text
    shown = [line for line in lines if line.startswith("--- sums")]
    assert len(shown) == 3
    first = lines[lines.index(shown[0]) + 1]
    assert shown[0].endswith(f": {len(chat.tokenizer(first)['input_ids'])} tokens")
    # every prompt gives its answer away, as the switch says
    assert "leak guard: 15 of 15 prompts" in text and 'sums-0: gold answer "7"' in text
    clean = load_config(config_file, settings[:1])
    assert "leak guard: 0 of 15 prompts" in "\n".join(preview(load_items(clean), clean, chat))


def test_a_dry_run_says_what_the_run_takes(config_file, monkeypatch):
    def block(*settings):
        config = load_config(config_file, list(settings))
        items = load_items(config)
        chat = ChatFormat(make_tokenizer(), enable_thinking=False)
        return "\n".join(needs(items, items, config, chat)), items, chat, config

    told, items, chat, config = block()
    lengths = [len(chat.render(Dialogue(one.question, config, chat).messages)) for one in items]
    first = f"first prompts of {np.mean(lengths):,.0f} on average, {max(lengths):,} at most"
    assert f"  tokens           {first}; 60 answers of at most 8, 480 in all" in told
    assert "  judge calls      none" in told
    assert re.search(r"  time             about \d+\.\d minutes .*measured: [\d,]+ tokens/s", told)
    assert "about 34 questions of a domain if 30% are right, 20 if half are" in told
    assert "20% of it, about 167 and 100" in told
    assert "too few for any AUROC, whatever the model answers: sums (12)" in told
    monkeypatch.setenv("NIL_MODEL", "judge-model")
    monkeypatch.setattr(preview_module, "TRIAL_BYTES", 10)
    told, *_ = block("judge=auto,openai")
    assert "at most 12 to judge-model, of what auto leaves unread" in told
    assert "not measured: the weights are" in told and "10 GB" not in told
    told, *_ = block("backend=openai", "server_url=http://localhost:9/v1", "judge=openai")
    assert "judge calls      12 to judge-model" in told
    assert "not measured: a server generates" in told


def test_the_time_of_a_run_is_kept_with_its_tokens(finished_run, config_file):
    folder, _ = finished_run
    told = json.loads((folder / "speed.json").read_text())
    steps = [s for _, record in iter_records(folder) for s in record["cot_steps"]]
    assert told["answer_tokens"] == sum(step["n_response_tokens"] for step in steps)
    assert told["seconds"] > 0
    assert run_script("reasoning_lite.py", "--config", config_file).returncode == 0
    assert json.loads((folder / "speed.json").read_text()) == told  # nothing was left to do
