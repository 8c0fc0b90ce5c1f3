"""Judging beside generation: begun at once, held back by a slow judge, known afterwards."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from spikescore.data.question import Question
from spikescore.errors import UserError
from spikescore.labels.entailment import make_entailment
from spikescore.labels.judges import make_accuracy
from spikescore.measures import ahead as module
from spikescore.measures.ahead import JudgingAhead
from spikescore.measures.clustering import cluster_many
from spikescore.measures.run_plan import RunSettings
from tests.helpers.fault_server import FaultyServer, ab, client, completion
from tests.helpers.running import LIMIT

SETTINGS = RunSettings(model_name="m", dataset="d", compute_accuracy_at_all_temps=True)


def make_case(n: int) -> tuple[Question, dict]:
    question = Question(f"q{n}", "d", f"question {n}?", gold_answers=("a",))
    texts = [f"{n} x", f"{n} y", f"{n} x again", f"{n} z"]
    entry = {
        "question": question.question,
        "most_likely_answer": {"response": f"{n} first", "accuracy": None},
        "responses": [(text, [], None, None) for text in texts],
    }
    return question, entry


def verdict(body) -> str:
    content = body["messages"][-1]["content"]
    if "<A>" not in content:
        return "VERDICT: CONSISTENT"
    one, two = (text.split()[1] for text in ab(body))
    return f"VERDICT: {'ENTAILMENT' if one == two else 'NEUTRAL'}"


def make_judges(server, cache):
    options = {"client_factory": partial(client, server.url), "cache": cache, "askers": {},
               "timeout": LIMIT}  # fmt: skip
    return make_accuracy("llm_m", **options), make_entailment("llm_m", **options)


def test_calls_begin_while_others_are_to_come_and_their_replies_are_found(tmp_path) -> None:
    cases, generating = [make_case(n) for n in range(6)], threading.Event()

    def reply(body, number):
        assert number > 1 or generating.wait(LIMIT)  # the first one waits until all are begun
        return completion(verdict(body))

    with FaultyServer(reply) as server:
        accuracy, entailment = make_judges(server, tmp_path / "replies")
        with JudgingAhead(accuracy, entailment, SETTINGS) as ahead:
            ahead.begin(*cases[0])
            while not server.bodies:  # asked, with five questions still to be answered
                threading.Event().wait(0.01)
            for case in cases[1:]:
                ahead.begin(*case)
            generating.set()
        asked = len(server.bodies)
        # of each: five answers; x against three and one back, then y against z
        assert asked == 6 * (5 + 4 + 1)

        again, sets = make_judges(server, tmp_path / "replies")
        items = [(question, text) for question, entry in cases for text in texts_of(entry)]
        assert again.judge_many(items) == [1.0] * 30
        answers = [(entry["question"], [r[0] for r in entry["responses"]]) for _, entry in cases]
        assert cluster_many(answers, sets, strict=True) == [[0, 1, 0, 2]] * 6
        assert len(server.bodies) == asked


def texts_of(entry) -> list[str]:
    return [entry["most_likely_answer"]["response"], *(r[0] for r in entry["responses"])]


def test_generation_waits_for_a_slow_judge(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 2)
    let, begun = threading.Event(), []

    def reply(body, _):
        assert let.wait(LIMIT)
        return completion(verdict(body))

    with FaultyServer(reply) as server:
        accuracy, _ = make_judges(server, tmp_path / "replies")
        with JudgingAhead(accuracy, None, SETTINGS) as ahead:

            def generate() -> None:
                for n in range(4):
                    ahead.begin(*make_case(n))
                    begun.append(n)

            thread = threading.Thread(target=generate)
            thread.start()
            while server.now < 10:  # both questions' five answers
                threading.Event().wait(0.01)
            thread.join(0.2)
            assert begun == [0, 1]
            let.set()
            thread.join(LIMIT)
            assert begun == [0, 1, 2, 3]


def test_a_refused_key_ends_generation_and_judges_without_a_server_ask_nothing(tmp_path) -> None:
    with FaultyServer(lambda *_: (401, {}, "{}")) as server:
        accuracy, entailment = make_judges(server, tmp_path / "replies")
        with pytest.raises(UserError, match="status 401.*check OPENAI_API_KEY"):
            with JudgingAhead(accuracy, entailment, SETTINGS) as ahead:
                ahead.begin(*make_case(0))
        n = len(server.bodies)
    with JudgingAhead(make_accuracy("squad"), make_entailment("exact"), SETTINGS) as ahead:
        ahead.begin(*make_case(0))
    assert len(server.bodies) == n


def test_what_is_under_way_is_given_up_when_generation_is_interrupted(tmp_path) -> None:
    let = threading.Event()

    def reply(body, number):
        if number > 5:  # the accuracies come, the entailments wait
            let.wait(LIMIT)
        return completion(verdict(body))

    with FaultyServer(reply) as server:
        accuracy, entailment = make_judges(server, tmp_path / "replies")
        with pytest.raises(KeyboardInterrupt):
            with JudgingAhead(accuracy, None, SETTINGS) as ahead:
                ahead.begin(*make_case(0))
                asker = accuracy.judge.asker
                while asker.stats["asked"] < 5 or asker._under_way:  # until all are kept
                    threading.Event().wait(0.01)
                ahead.begin(*make_case(1))
                while len(server.bodies) < 6:
                    threading.Event().wait(0.01)
                raise KeyboardInterrupt
        let.set()
        kept, _ = make_judges(server, tmp_path / "replies")
        question, entry = make_case(0)
        assert kept.judge_many([(question, text) for text in texts_of(entry)]) == [1.0] * 5
        # (the server may hear late of calls that were given up)
        assert kept.judge.asker.stats["asked"] == 0
