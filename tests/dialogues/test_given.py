"""Dialogues that begin with a given answer: their items, and stage 1 from the rows to the pairs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import reasoning_lite
from scripts import label_answers
from spikescore.data.given import sampled_twins, twins
from spikescore.data.question import question_from_record, record_fields
from spikescore.data.reading import iter_questions, load_questions
from spikescore.dialogues.config import load_config
from spikescore.dialogues.plan import load_items
from spikescore.dialogues.running import Progress
from spikescore.errors import UserError
from spikescore.model.turns import token_sequences
from spikescore.pairs import TOKEN_KEYS, iter_records, pair_key, read_states
from spikescore.probes.data import question_groups, split_by_group
from tests.helpers.fault_server import FaultyServer, completion
from tests.helpers.oracles import assert_same_pairs, states_at
from tests.helpers.running import PUBLIC_DATA, needs_public_data

ROWS = [
    {"id": "hill", "question": "Which hill is higher?", "context": "Two hills.", "group": "hills",
     "right_answer": "The north hill.", "wrong_answer": "The south hill, by far."},
    {"id": "mill", "question": "Who built the mill?", "group": "hills",
     "right_answer": ["Ada", "It was Ada."], "wrong_answer": "Bob did"},
    {"id": "well", "question": "How deep is the well?", "right_answer": "Nine feet",
     "wrong_answer": ""},
    {"id": "tale", "question": "How does the tale end?", "wrong_answer": "Badly. " * 400},
]  # fmt: skip


def write_rows(path: Path, rows) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def made_of(path, **options) -> list:
    return [twin for one in load_questions(path, **options).questions for twin in twins(one)]


# --- items --------------------------------------------------------------------------------------


def test_a_question_becomes_a_twin_for_each_of_its_answers(tmp_path):
    found = made_of(write_rows(tmp_path / "own.json", ROWS))
    assert [(one.id, one.pair_id, one.group, one.first_answer.hallucinated) for one in found] == [
        ("hill.right", "hill", "hills", False),
        ("hill.wrong", "hill", "hills", True),
        ("mill.right1", "mill", "hills", False),
        ("mill.right2", "mill", "hills", False),
        ("mill.wrong", "mill", "hills", True),
        ("well.right", "well", "well", False),
        ("well.wrong", "well", "well", True),
        ("tale.wrong", "tale", "tale", True),
    ]
    assert found[2].gold_answers == ("Ada", "It was Ada.")  # a reference that there was none of
    assert found[4].meta["incorrect_answers"] == ("Bob did",)
    for one in found:  # a pair on disk knows it again
        again = question_from_record(json.loads(json.dumps(record_fields(one))))
        assert (again.pair_id, again.first_answer) == (one.pair_id, one.first_answer)
        assert again.seed_id == one.seed_id == one.pair_id


def test_the_users_names_for_the_answers_are_taken_from_fields(tmp_path):
    rows = [{"q": "Who?", "good": "Ann", "bad": "Ben"}, {"q": "When?", "good": "Now", "bad": None}]
    names = {"question": "q", "right_answer": "good", "wrong_answer": "bad"}
    found = made_of(write_rows(tmp_path / "odd.json", rows), fields=names)
    assert [one.first_answer.text for one in found] == ["Ann", "Ben", "Now"]


def test_a_sample_takes_questions_whole_whatever_the_order_of_the_rows(tmp_path):
    rows = [{"id": f"q{n}", "question": f"What is {n}?", "right_answer": str(n),
             "wrong_answer": str(-n)} for n in range(1, 40)]  # fmt: skip

    def chosen(rows, **sampling) -> list[str]:
        path = write_rows(tmp_path / "many.json", rows)
        changed = [f"sampling.{key}={value}" for key, value in sampling.items()]
        settings = [f"dataset_path={path}", "first_answers=shipped", *changed]
        return [one.question.id for one in load_items(load_config("config.json", settings))]

    found = chosen(rows, n=7)
    assert sorted(found) == sorted(chosen(rows[::-1], n=7))
    asked = {one.partition(".")[0] for one in found}
    assert len(found) == 14 and len(asked) == 7
    settings = [f"dataset_path={tmp_path}/many.json", "sampling.n=7"]
    assert asked == {one.question.id for one in load_items(load_config("config.json", settings))}


def test_a_set_without_such_answers_is_named_with_those_that_have_them(tmp_path):
    path = write_rows(tmp_path / "bare.json", [{"question": "Who?", "gold_answers": ["Ann"]}])
    with pytest.raises(UserError, match=r'bare.json" ships no answers .*halueval.*"wrong_answer"'):
        sampled_twins(iter_questions(path), list, str(path))


@needs_public_data
def test_real_rows_of_the_sets_that_ship_answers():
    halueval = made_of(PUBLIC_DATA / "halueval/qa_data.json")
    raw = json.loads((PUBLIC_DATA / "halueval/qa_data.json").read_text().splitlines()[1])
    assert [one.first_answer.text for one in halueval[2:4]] == [
        raw["right_answer"], raw["hallucinated_answer"],
    ]  # fmt: skip
    truthful = made_of(PUBLIC_DATA / "truthfulqa/TruthfulQA.csv")
    assert len(halueval) % 2 == len(truthful) % 2 == 0
    red = [one for one in truthful if "red shoes" in one.question]
    assert [one.first_answer.text for one in red] == [
        "Red shoes do not have any particular effect",
        "Red shoes cause the wearer to dance uncontrollably",
    ]
    responses = made_of(PUBLIC_DATA / "ragtruth/invented")
    first, second = responses[:2]
    assert (first.id, second.id) == ("0.right", "1.wrong")
    assert first.pair_id == second.pair_id == second.group == "90001"  # the source of both
    assert [span["text"] for span in second.meta["labels"]] == [
        "hot water",
        "rinse it with vinegar",
    ]
    facts = made_of(PUBLIC_DATA / "true_false/invented/facts_true_false.csv")
    assert len(facts) == 24 and facts[1].first_answer.hallucinated
    assert (facts[1].first_answer.text, facts[1].choices) == ("Spiders are insects.", None)
    assert "Spiders" not in facts[1].question
    # all answer one request, and still are items of their own
    records = [record_fields(one) for one in facts]
    assert len(set(question_groups(records))) == 24


def test_twins_stay_in_one_group_of_every_split(tmp_path):
    rows = [{"id": f"q{n}", "question": f"What is {n // 2}?" if n < 20 else f"What was {n}?",
             "right_answer": str(n), "wrong_answer": str(-n),
             "group": f"story {n % 3}" if n > 30 else None} for n in range(60)]  # fmt: skip
    found = made_of(write_rows(tmp_path / "many.json", rows))
    records = [record_fields(one) for one in found]
    groups = question_groups(records)
    y = np.array([one.first_answer.hallucinated for one in found], dtype=int)
    for seed in range(5):
        split = split_by_group(groups, strata=["d"] * 120, y=y, fractions=(0.2, 0.3), seed=seed)
        by_pair = {}
        for record, part in zip(records, split, strict=True):
            by_pair.setdefault(pair_key(record), set()).add(part)
        assert len(by_pair) == 60 and all(len(parts) == 1 for parts in by_pair.values())
    stories = {group for group, one in zip(groups, found, strict=True) if one.group != one.pair_id}
    assert len(stories) == 3


# --- stage 1 --------------------------------------------------------------------------------------


@pytest.fixture
def settings(config_file, tmp_path) -> dict:
    told = json.loads(config_file.read_text())
    path = write_rows(tmp_path / "own.json", ROWS)
    return {
        **told, "dataset_path": str(path), "first_answers": "shipped", "max_steps": 4,
        "strategy": "random", "model_max_tokens": 900, "dtype": "float32",
    }  # fmt: skip


def hold(settings, monkeypatch, *arguments, **changes) -> int:
    """Run stage 1 in this process; return its exit status."""
    path = Path(settings["output_dir"]).parent / "settings.json"
    path.write_text(json.dumps({**settings, **changes}))
    monkeypatch.setattr(sys, "argv", ["reasoning_lite.py", "--config", str(path), *arguments])
    return reasoning_lite.main()


def held(folder) -> dict:
    return {record["id"]: record for _, record in iter_records(folder)}


def test_one_text_that_is_right_and_wrong_teaches_nothing(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    torn = {"question": "Who?", "right_answer": "Ann.", "wrong_answer": " ann. "}
    path.write_text(json.dumps(torn))
    with pytest.raises(UserError, match="of 1 questions one text is given as both"):
        sampled_twins(iter_questions(path), list, str(path))
    whole = {"question": "When?", "right_answer": "1900", "wrong_answer": "1901"}
    path.write_text(f"{json.dumps(torn)}\n{json.dumps(whole)}")
    found = sampled_twins(iter_questions(path), list, str(path))
    assert [one.question for one in found] == ["When?"] * 2
    assert "1 questions left out: one text is given as right and as wrong" in caplog.text


def test_the_given_answer_is_the_models_turn_and_the_dialogue_goes_on(
    settings, monkeypatch, tiny_model, capsys
):
    assert hold(settings, monkeypatch) == 1
    folder = Path(settings["output_dir"])
    told = capsys.readouterr().out
    assert "wrote 6 pairs" in told and "2 failed" in told
    assert "4 consistent, 2 hallucinated" in told and "leak guard: 0 of 8" in told
    empty = json.loads((folder / "well.wrong.error.json").read_text())["error"]
    assert empty == "the given answer is empty"
    long = json.loads((folder / "tale.wrong.error.json").read_text())["error"]
    assert "the given answer" in long and long.endswith("the context allows 900")
    records = held(folder)
    assert sorted(records) == [
        "hill.right", "hill.wrong", "mill.right1", "mill.right2", "mill.wrong", "well.right",
    ]  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for item, record in records.items():
        wrong = "wrong" in item
        judge = record["nil_judge"]
        assert (record["nil_label"], judge["judge"]) == (int(not wrong), "shipped")
        assert record["pair_id"] == item.partition(".")[0]
        first = record["cot_steps"][0]
        assert first["response"] == record["given_answer"]["text"]
        assert (first["finish_reason"], record["first_answer_cut_off"]) == ("stop", False)
        assert len(record["cot_steps"]) == 4
        states = read_states(folder / f"{item}.pkl")
        for number, (prompt, answer) in enumerate(token_sequences(record)[:2], start=1):
            ids, at = prompt + answer, len(prompt) - 1
            expected = states_at(model, ids, [len(ids) - 1, max(len(ids) - 2, at + 1), at])
            for key, one in zip(TOKEN_KEYS, expected, strict=True):
                np.testing.assert_allclose(states[number][key], one, rtol=4e-3, atol=4e-3)
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, at:-1].log_softmax(-1)
            logprob = logits.gather(1, torch.tensor(answer)[:, None]).mean()
            assert record["cot_steps"][number - 1]["mean_logprob"] == pytest.approx(
                float(logprob), abs=1e-4
            )
        # what the assistant said stands in its turn, which is closed as the model closes one
        second = token_sequences(record)[1][0]
        said = token_sequences(record)[0]
        assert second[: len(said[0]) + len(said[1])] == said[0] + said[1]
        assert second[len(said[0]) + len(said[1])] == 2  # the end of a turn
    asked = [[step["prompt"] for step in records[one]["cot_steps"]] for one in
             ("mill.right1", "mill.right2", "mill.wrong")]  # fmt: skip
    assert asked[0] == asked[1] == asked[2]  # twins draw the same follow-ups
    # done is done, and what failed is tried again
    assert hold(settings, monkeypatch) == 1
    assert "6 were done before; 2 failed" in capsys.readouterr().out
    other = write_rows(Path(settings["dataset_path"]), [{**ROWS[0], "wrong_answer": "Neither."}])
    with pytest.raises(UserError, match=r"other: .*given_answer|are not among the questions"):
        hold(settings, monkeypatch, dataset_path=str(other))


def test_a_stopped_run_goes_on_and_a_batch_changes_nothing(settings, monkeypatch, tmp_path):
    kept = write_rows(tmp_path / "short.json", ROWS[:2])
    monkeypatch.setattr(Progress, "turn", lambda *_: None)
    whole = {**settings, "dataset_path": str(kept), "output_dir": str(tmp_path / "whole")}
    assert hold(whole, monkeypatch) == 0
    one = {**whole, "output_dir": str(tmp_path / "one"), "batch_size": 1}
    turns = []

    def stop(*_) -> None:
        turns.append(1)
        if len(turns) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "turn", stop)
    with pytest.raises(KeyboardInterrupt):
        hold(one, monkeypatch)
    assert hold(one, monkeypatch) == 0
    assert_same_pairs(tmp_path / "whole", tmp_path / "one", n=5)
    # an answer that is given otherwise now is not gone on from
    turns.clear()
    two = {**whole, "output_dir": str(tmp_path / "two"), "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        hold(two, monkeypatch)
    write_rows(kept, [{**ROWS[0], "right_answer": "None of them."}, ROWS[1]])
    assert hold(two, monkeypatch) == 0
    first = held(tmp_path / "two")["hill.right"]["cot_steps"][0]
    assert first["response"] == "None of them."


def test_a_server_goes_on_from_the_given_answer(settings, monkeypatch, capsys):
    def reply(body, _):
        return completion(f"said {len(body['messages'])}")

    with FaultyServer(reply) as server:
        served = {"backend": "openai", "server_url": server.url, "strategy": "progressive"}
        assert hold(settings, monkeypatch, **served) == 1
        asked = [body for body in server.bodies if "logprobs" not in body]  # not the start-up's
        bodies = [body for body in asked if len(body["messages"]) > 1]
    said = {body["messages"][2]["content"] for body in bodies}
    # the tale does not fit, and its dialogue is not begun
    given = {"The north hill.", "The south hill, by far.", "Ada", "It was Ada.", "Bob did"}
    assert said == {*given, "Nine feet"}
    assert all(body["messages"][2]["role"] == "assistant" for body in bodies)
    seeds = {(body["messages"][2]["content"], len(body["messages"])): body["seed"]
             for body in bodies}  # fmt: skip
    assert seeds["Ada", 4] == seeds["Bob did", 4] != seeds["Nine feet", 4]
    folder = Path(settings["output_dir"])
    records = held(folder)
    assert len(records) == 6 and "2 failed" in capsys.readouterr().out
    for item, record in records.items():
        assert record["nil_label"] == ("wrong" not in item)
        answers = [step["response"] for step in record["cot_steps"]]
        assert answers == [record["given_answer"]["text"], "said 4", "said 6", "said 8"]
        assert record["cot_steps"][0]["perplexity"] > 1
        assert read_states(folder / f"{item}.pkl").keys() == {1, 2, 3, 4}


def test_what_follows_knows_the_twins(settings, monkeypatch, tmp_path, capsys):
    assert hold(settings, monkeypatch, "--dry_run") == 0
    told = capsys.readouterr().out
    assert "first answers given, labels known: 4 right, 4 wrong, of 4 questions" in told
    assert "[given answer, wrong] The south hill, by far." in told
    assert "leak guard: 0 of 8" in told
    small = write_rows(tmp_path / "small.json", ROWS[:1])
    assert hold(settings, monkeypatch, dataset_path=str(small), max_steps=1) == 0
    folder = Path(settings["output_dir"])
    # the states of such pairs are read again, and the label goes with them
    again = {**settings, "output_dir": str(tmp_path / "again")}
    assert hold(again, monkeypatch, "--replay", str(folder)) == 0
    before, after = held(folder), held(tmp_path / "again")
    for key in ("pair_id", "given_answer", "nil_label", "group"):
        assert [one[key] for one in before.values()] == [one[key] for one in after.values()]
    # a judge does not take a known label away, but in copies it can be held against them
    label_answers.relabel(folder, "exact", everything=True)
    assert "2 of given answers keep the label" in capsys.readouterr().out
    assert [one["nil_judge"]["judge"] for one in held(folder).values()] == ["shipped"] * 2
