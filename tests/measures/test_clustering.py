"""Clustering: semantic sets against hand-worked ones, a hidden truth, and a failing, killed run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikescore.labels import chat_server
from spikescore.labels.entailment import (
    CONTRADICTION,
    ENTAILMENT,
    NEUTRAL,
    make_entailment,
    normalised,
    settled,
)
from spikescore.measures.clustering import cluster_many
from tests.helpers.fault_server import FaultyServer, ab, client, completion, failing
from tests.helpers.running import end, start, wait_until

C, N, E = CONTRADICTION, NEUTRAL, ENTAILMENT


class Table:
    """Verdicts from a dict {(premise, hypothesis): class}, neutral where it has none."""

    name = "table"

    def __init__(self, verdicts) -> None:
        self.verdicts = verdicts
        self.rounds: list[list] = []

    def entail_many(self, pairs):
        self.rounds.append(list(pairs))
        return [self.verdicts.get(pair[1:], N) for pair in pairs]


def sets(answers, verdicts, *, strict):
    table = Table(verdicts)
    (found,) = cluster_many([("q", answers)], table, strict=strict)
    return found, [pair[1:] for pairs in table.rounds for pair in pairs]


@pytest.mark.parametrize(
    ("there", "back", "strict", "loose"),
    [
        (E, E, True, True), (E, N, False, True), (N, E, False, True), (N, N, False, False),
        (E, C, False, False), (C, E, False, False), (N, C, False, False), (C, C, False, False),
        (C, N, False, False),
    ],
)  # fmt: skip
def test_two_answers_by_both_rules(there, back, strict, loose) -> None:
    verdicts = {("a", "b"): there, ("b", "a"): back}
    for rule, together in ((True, strict), (False, loose)):
        found, asked = sets(["a", "b"], verdicts, strict=rule)
        assert found == ([0, 0] if together else [0, 1])
        settled_one_way = there != E if rule else there == C
        assert asked == ([("a", "b")] if settled_one_way else [("a", "b"), ("b", "a")])


def test_an_answer_joins_the_first_set_that_fits_and_no_other() -> None:
    # c means the same as a and as b, which differ; d the same as c, which opens no set
    same = [("a", "c"), ("b", "c"), ("c", "d")]
    verdicts = {pair: E for one in same for pair in (one, one[::-1])}
    found, asked = sets(["a", "b", "c", "d"], verdicts, strict=True)
    assert found == [0, 1, 0, 2]
    assert Counter(asked) == Counter([("a", "b"), ("a", "c"), ("a", "d"), ("c", "a"), ("b", "d")])


def test_equal_answers_and_few_answers_need_no_judgement() -> None:
    table = Table({})
    items = [("q", ["Paris", " paris.", "PARIS"]), ("q", []), (None, ["one"]), ("q", ["", "."])]
    assert cluster_many(items, table, strict=True) == [[0, 0, 0], [], [0], [0, 0]]
    assert table.rounds == []
    assert cluster_many([], table, strict=True) == []
    assert cluster_many([("q", ["b", "a", "B."])], make_entailment("exact"), strict=False) == [
        [0, 1, 0]
    ]


def test_all_questions_take_their_steps_together() -> None:
    items = [(f"q{n}", ["a", "b", "c"]) for n in range(50)] + [("short", ["a", "b"])]
    table = Table({})
    found = cluster_many(items, table, strict=True)
    assert found == [[0, 1, 2]] * 50 + [[0, 1]]
    assert [len(pairs) for pairs in table.rounds] == [101, 50]


@pytest.mark.parametrize("way", [("a", "b"), ("b", "a")])
def test_a_failed_judgement_leaves_its_question_alone_unclustered(way) -> None:
    class Failing(Table):
        def entail_many(self, pairs):
            failed = ("bad", *way)
            return [None if pair == failed else E for pair in pairs]

    items = [("good", ["a", "b"]), ("bad", ["a", "b", "c"]), ("bad", ["c", "d"])]
    assert cluster_many(items, Failing({}), strict=True) == [[0, 0], None, [0, 0]]


class Oracle:
    """Answers are "<meaning>|<wording>"; each entails those of the same meaning."""

    name = "oracle"

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def entail_many(self, pairs):
        self.asked += pairs
        return [E if meaning(a) == meaning(b) else C for _, a, b in pairs]


def meaning(answer: str) -> str:
    return answer.split("|")[0].strip().casefold()


def one_after_another(answers: list[str]) -> tuple[list[int], int]:
    """The plain loop over a known truth: sets, and how many pairs it has to compare."""
    first_of: list[str] = []
    done: dict[str, int] = {}
    found, n_pairs = [], 0
    for answer in answers:
        if normalised(answer) not in done:
            place = 0
            while place < len(first_of):
                n_pairs += 1
                if meaning(first_of[place]) == meaning(answer):
                    n_pairs += 1  # the way back
                    break
                place += 1
            else:
                first_of.append(answer)
            done[normalised(answer)] = place
        found.append(done[normalised(answer)])
    return found, n_pairs


answer = st.builds("{}|{}".format, st.sampled_from("ABCDEF"), st.sampled_from(["", "x", "X.", "y"]))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(answer, max_size=12), max_size=6), st.booleans())
def test_a_hidden_truth_is_found_with_no_more_pairs_than_needed(questions, strict) -> None:
    oracle = Oracle()
    items = [(f"q{n}", answers) for n, answers in enumerate(questions)]
    found = cluster_many(items, oracle, strict=strict)
    for answers, ids in zip(questions, found, strict=True):
        order = list(dict.fromkeys(map(meaning, answers)))
        assert ids == [order.index(meaning(one)) for one in answers]
    expected = [one_after_another(answers) for answers in questions]
    assert found == [ids for ids, _ in expected]
    assert len(oracle.asked) == sum(n_pairs for _, n_pairs in expected)
    assert len(set(oracle.asked)) == len(oracle.asked)
    assert all(settled(*pair[1:]) is None for pair in oracle.asked)


# --- over a server ----------------------------------------------------------------------------


def verdict(body) -> str:
    a, b = ab(body)
    return "VERDICT: ENTAILMENT" if meaning(a) == meaning(b) else "VERDICT: CONTRADICTION"


def make_items(n: int) -> list[tuple[str, list[str]]]:
    """Questions with seven answers of three meanings."""
    return [
        (f"question {i}", [f"{'abc'[(i * k + k // 3) % 3]}|{i} {k}" for k in range(7)])
        for i in range(n)
    ]


def truth(items) -> list[list[int]]:
    return [one_after_another(answers)[0] for _, answers in items]


def test_a_failing_server_gives_right_sets_or_none_and_a_rerun_fills_the_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_server, "_PAUSE", 0.01)
    items, healthy = make_items(16), False
    right, faulty = truth(items), failing(verdict, seed=5, slow=3.0)

    def reply(body, number):
        return completion(verdict(body)) if healthy else faulty(body, number)

    def run(server, timeout=600.0):
        judge = make_entailment(
            "llm_m",
            client_factory=lambda timeout, **_: client(server.url, timeout=timeout, max_retries=1),
            cache=tmp_path / "replies.sqlite",
            timeout=timeout,
        )
        return cluster_many(items, judge, strict=True), judge.asker.stats

    with FaultyServer(reply) as server:
        first, stats = run(server, timeout=1.5)
        missing = [index for index, ids in enumerate(first) if ids is None]
        assert 0 < len(missing) < len(items) and stats["failed"] >= len(missing)
        assert all(ids in (None, right_ids) for ids, right_ids in zip(first, right, strict=True))
        n_asked = len(server.bodies)

        healthy = True
        second, stats = run(server)
        assert second == right and stats["failed"] == 0
        questions = tuple(f"Question: {items[index][0]}\n" for index in missing)
        again = [body["messages"][-1]["content"] for body in server.bodies[n_asked:]]
        assert len(again) == stats["asked"] and all(one.startswith(questions) for one in again)

        n_asked = len(server.bodies)
        assert run(server)[0] == right and len(server.bodies) == n_asked


KILLED = """
import json, sys
from pathlib import Path
import utils
from spikescore.measures.clustering import cluster_many
from spikescore.labels.entailment import make_entailment
judge = make_entailment(
    "llm_m", client_factory=utils.make_client, cache=Path(sys.argv[1]), concurrency=4
)
cluster_many(json.load(sys.stdin), judge, strict=True)
"""


def test_killed_and_run_again_gives_the_same_sets(tmp_path: Path) -> None:
    items, cache = make_items(12), tmp_path / "replies.sqlite"
    answered: Counter[tuple[str, str]] = Counter()

    def slowly(body, _):
        time.sleep(0.05)
        answered[ab(body)] += 1
        return completion(verdict(body))

    with FaultyServer(slowly) as server:
        process = start(
            [sys.executable, "-c", KILLED, cache],
            stdin=subprocess.PIPE,
            env={"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "none"},
        )
        process.stdin.write(json.dumps(items))
        process.stdin.close()
        wait_until(lambda: len(answered) >= 30, process)
        end(process)
        time.sleep(0.2)  # for what is still under way in the server
        before = sum(answered.values())

        judge = make_entailment(
            "llm_m", client_factory=partial(client, server.url), cache=cache, concurrency=32
        )
        assert cluster_many(items, judge, strict=True) == truth(items)
    needed = sum(one_after_another(answers)[1] for _, answers in items)
    assert 30 <= before < needed and len(answered) == needed
    # lost at most: what was under way when the process died
    assert sum(answered.values()) - needed <= 4 and judge.asker.stats["from_cache"] >= before - 4
