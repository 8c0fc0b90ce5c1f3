"""Accuracy: SQuAD's F1 on hand-worked cases, the offline rules, and a chat model's verdicts."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import pytest

import utils
from spikescore.data.question import Question
from spikescore.errors import UserError
from spikescore.labels.judges import make_accuracy
from spikescore.labels.rules import squad_f1
from tests.helpers.fault_server import FaultyServer, client, completion


def question(*gold: str, **more) -> Question:
    return Question("q", "d", "Which town?", gold_answers=gold, **more)


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("Paris", "paris!", 100.0),
        ("The Eiffel Tower", "eiffel tower", 100.0),
        ("in Paris", "Paris", 100 * 2 / 3),  # precision 1/2, recall 1
        ("Paris, France, Europe", "Paris", 50.0),  # precision 1/3, recall 1
        ("Paris, a town in France", "Paris", 40.0),  # paris town in france: precision 1/4
        ("Paris Paris", "Paris", 100 * 2 / 3),  # a word counts as often as it stands there
        ("Lyon", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("the", "a", 100.0),  # both nothing but articles
        ("Theatre", "atre", 0.0),  # an article is a word, not a prefix
    ],
)
def test_squad_f1(answer: str, gold: str, f1: float) -> None:
    assert squad_f1(answer, gold) == pytest.approx(f1)


def test_squad_takes_the_best_alias_and_50_is_right() -> None:
    judge = make_accuracy("squad")
    items = [
        (question("Lutetia", "Paris"), "Paris, France, Europe"),
        (question("Paris"), "Paris, a town in France"),
        (question("Paris"), ""),
        (question("Paris"), "<think>Lyon or Rome or Bonn?</think>**Paris**"),
        (question(), "Paris"),
    ]
    assert judge.judge_many(items) == [1.0, 0.0, 0.0, 1.0, None]
    assert judge.name == "squad" and judge.judge_many([]) == []


def test_the_offline_rules_are_those_of_the_judges() -> None:
    items = [
        (question("Paris"), "I think it is Paris."),
        (question("Paris"), "It is not Paris."),
        (question(), "Paris"),
    ]
    assert make_accuracy("exact").judge_many(items) == [1.0, 0.0, None]
    sums = [(question("17", answer_type="numeric"), "9 + 8 = 17"), items[1]]
    assert make_accuracy("auto").judge_many(sums) == [1.0, 0.0]


def answer_of(body) -> str:
    return body["messages"][-1]["content"].split("<answer>\n")[1].split("\n</answer>")[0]


def test_a_chat_model_says_right_wrong_or_nothing(tmp_path: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("spikescore"), "propagate", True)

    def reply(body, _):
        if answer_of(body) == "Bonn":
            return 400, {}, json.dumps({"error": "filtered"})
        verdict = "CONSISTENT" if answer_of(body) == "Paris" else "INCONSISTENT"
        return completion(f"VERDICT: {verdict}")

    answers = ["Paris", "Lyon", "Bonn", "", "Paris"]
    items = [(question("Paris"), answer) for answer in answers]
    items += [(question(), "Paris"), (question(), "")]
    with FaultyServer(reply) as server:
        for _ in range(2):
            judge = make_accuracy(
                "llm", client_factory=partial(client, server.url), cache=tmp_path / "replies"
            )
            assert judge.judge_many(items) == [1.0, 0.0, None, None, 1.0, None, None]
        asked = [answer_of(body) for body in server.bodies]
        assert sorted(asked) == ["Bonn", "Bonn", "Lyon", "Paris"]
        assert {body["model"] for body in server.bodies} == {"gpt-4o-mini"}
        assert judge.name == "llm_gpt-4o-mini"
    assert "1 of 5 failed" in caplog.text and "2 items have no gold answer" in caplog.text


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    [
        ("sqaud", None, "not one of squad, auto"),
        ("llm_", utils.make_client, "names no model"),
        ("llm", None, "needs a client"),
        ("llm_m", utils.make_client, "OPENAI_API_KEY"),
    ],
)
def test_a_wrong_choice_is_a_user_error(name, factory, message, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        make_accuracy(name, client_factory=factory)
