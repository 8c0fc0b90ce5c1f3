"""Judges: the rules on hand-written cases, the chat-model judge against a failing local server."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import utils
from spikescore.data.question import Question, question_from_record
from spikescore.errors import UserError
from spikescore.labels.checking import check_rules, check_table
from spikescore.labels.judges import (
    BackgroundLabels,
    Judgement,
    coverage_line,
    describe_judge,
    judge_many,
    judge_messages,
    make_judge,
    parse_verdict,
    shipped_judgement,
)
from spikescore.labels.statements import plain_answer
from tests.helpers.fault_server import FaultyServer, completion

ROOT = Path(__file__).resolve().parents[2]
COPPER = ("iron", "copper", "gold", "cat food")


def label(judge: str, answer: str, gold: str, choices: tuple[str, ...] | None = None) -> Judgement:
    question = Question("q", "d", "?", choices=choices, gold_answers=tuple(gold.split("|")))
    return judge_many(make_judge(judge, questions=[question]), [(question, answer)])[0]


def test_the_rules_read_answers_as_people_do() -> None:
    """Some 2,900 answers labelled by hand, of every rule and in all shapes that models use."""
    check = check_rules(ROOT / "tests" / "labels" / "answers.jsonl")
    assert check.n_wrong == 0 and check.unread_share < 0.03, check.faults
    by_hand = Counter()
    for (rule, hand, _), n in check.counts.items():
        by_hand[rule] += n
        by_hand[hand] += n
    assert check.counts.total() >= 600 and by_hand[0] >= 300 and by_hand[None] >= 60
    assert set(by_hand) >= {"exact", "numeric", "choice", "math", "list"}


def test_a_check_counts_what_differs_and_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    rows = [
        {"rule": "numeric", "gold": ["5"], "right": ["5", "six", "many"], "wrong": ["6", "5"]},
        {"rule": "exact", "gold": ["Paris"], "unread": ["...", "Lyon"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    check = check_rules(path)
    assert check.n_wrong == 3 and check.unread_share == pytest.approx(1 / 5)
    assert len(check.faults) == 4 and "line 1 numeric: 'six'" in check.faults[0]
    table = check_table(check).splitlines()
    assert table[1].split() == ["numeric", "right", "1", "1", "1"]
    assert table[6].split() == ["exact", "unread", "0", "1", "1"]
    for broken in ("[]", "{", '{"rule": "exat", "gold": ["a"]}', '{"rule": "exact"}'):
        path.write_text(json.dumps(rows[0]) + "\n" + broken)
        with pytest.raises(UserError, match='answers.jsonl", line 2'):
            check_rules(path)


def test_a_list_says_which_members_were_found() -> None:
    gold = Question("q", "d", "?", gold_answers=("a1; b1",), answer_type="list")
    reply = judge_many(make_judge("auto"), [(gold, "only b1")])[0]
    assert (reply.judge, reply.reply) == ("list", "1 of 2: b1")


def test_what_is_unread_goes_to_the_next_judge(server: FaultyServer) -> None:
    number = Question("q", "d", "?", gold_answers=("7",), answer_type="numeric")
    free = Question("q", "d", "?", gold_answers=("A tale.",), answer_type="free")
    items = [(number, "7"), (number, "yes"), (number, "garbage"), (free, "no"), (number, "..."),
             (Question("q", "d", "?"), "yes")]  # fmt: skip
    alone = judge_many(make_judge("auto"), items)
    assert [one.label for one in alone] == [1, None, None, None, None, None]
    assert [one.unread for one in alone] == [False, True, True, False, True, False]
    assert coverage_line(alone).startswith(
        "labels: 1 of 6 (numeric 1), 3 unread (no judge could read the answer), 2 failed; the first"
    )
    judge = make_judge(["auto", "openai"], client_factory=utils.make_client)
    both = judge_many(judge, items)
    assert [one.label for one in both] == [1, 1, None, 0, None, None]
    assert [one.judge for one in both[:2]] == ["numeric", "openai:gpt-4o-mini"]
    assert "garbage" in both[2].error and both[4].unread and "no gold" in both[5].error
    assert set(server.calls) == {"yes", "garbage", "no"}
    assert describe_judge(["auto", "openai"], [number, free]).startswith(
        "auto: 1 numeric, 1 free, then openai"
    )


@pytest.mark.parametrize(
    "names", [[], ["auto", "auto"], ["auto", "none"], ["auto", "opnai"], "exct"]
)
def test_a_wrong_list_of_judges_is_refused(names) -> None:
    with pytest.raises(UserError, match="judge"):
        make_judge(names)


def test_options_without_a_word_are_read_by_letter() -> None:
    signs = ("+", "-", "*", "/")
    assert label("choice", "(A)", "A", signs).label == 1
    assert label("choice", "(B)", "A", signs).label == 0
    for answer in ("...", "The sign of addition.", "It is +."):
        assert label("choice", answer, "A", signs).unread


def test_of_many_tags_the_first_are_taken_out_in_every_run() -> None:
    tags = [f"<tag{n}>{n}</tag{n}>" for n in range(40)]
    assert plain_answer(" ".join(tags)).split() == [*map(str, range(20)), *tags[20:]]


def test_what_no_rule_can_compare_gets_no_label() -> None:
    long = Question("q", "d", "?", gold_answers=("It grows in spring.",), answer_type="free")
    ragged = Question("q", "d", "?", gold_answers=("a; b", "c"), answer_type="list")
    one, other = judge_many(make_judge("auto"), [(long, "In spring."), (ragged, "a, b")])
    assert one.label is None and "openai or nli" in one.error
    assert other.label is None and "no list" in other.error


def test_who_judges_is_described() -> None:
    questions = [
        Question("1", "d", "?", gold_answers=("7",), answer_type="numeric"),
        Question("2", "d", "?", gold_answers=("8",), answer_type="numeric"),
        Question("3", "d", "?", gold_answers=("a; b",), answer_type="list"),
        Question("4", "d", "?", gold_answers=("A tale.",), answer_type="free"),
        Question("5", "d", "?"),
    ]
    line = describe_judge("auto", questions)
    assert line.startswith("auto: 2 numeric, 1 list, 1 free")
    assert "1 free, which no rule labels" in line and "1 without a gold answer" in line
    assert describe_judge("exact", questions[:2]) == "exact"


def test_an_answer_about_a_passage_alone_is_held_against_it(server: FaultyServer) -> None:
    source = Question("s", "d", "Summarize the passage.", "The kiln burns oak.",
                      answer_type="grounded")  # fmt: skip
    bare = Question("b", "d", "Where is it?", "The kiln burns oak.")
    asked = judge_messages(question=source, answer="It burns oak.")
    assert "bears out every claim" in asked[0]["content"]
    assert "Passage:\nThe kiln burns oak." in asked[-1]["content"]
    assert not any("Reference answers" in message["content"] for message in asked)
    assert [one["content"] for one in asked if one["role"] == "assistant"] == [
        "VERDICT: CONSISTENT", "VERDICT: INCONSISTENT",
    ]  # fmt: skip
    judge = make_judge(["auto", "openai"], client_factory=utils.make_client)
    one, other = judge_many(judge, [(source, "no"), (bare, "yes")])
    assert one.label == 0 and one.judge.startswith("openai:")
    assert other.label is None and other.error == "the item has no gold answer to compare with"
    assert describe_judge("openai", [source, bare]).endswith(
        "1 by the passage alone; 1 without a gold answer stay unlabelled"
    )
    assert "2 without a gold answer stay unlabelled" in describe_judge("auto", [source, bare])


def test_a_shipped_label_is_kept_with_what_the_publisher_said() -> None:
    spans = [{"start": 0, "end": 4, "text": "soak"}]
    said = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "soak it"}]
    wrong = shipped_judgement({"messages": said, "hallucinated": True, "labels": spans})
    assert (wrong.label, wrong.judge, wrong.error) == (0, "shipped", None)
    assert json.loads(wrong.reply) == {
        "about": "the answer", "hallucinated": True, "labels": spans,
    }  # fmt: skip
    right = shipped_judgement({"messages": said * 2, "hallucinated": False, "labels": []})
    assert right.label == 1 and "the whole dialogue of 2 answers" in right.reply
    unknown = shipped_judgement({"messages": said, "hallucinated": None, "labels": []})
    assert unknown.label is None and "does not say" in unknown.error


def test_auto_takes_the_rule_of_each_item_and_says_which(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = Question("n", "d", "?", gold_answers=("17",), answer_type="numeric")
    text = Question("t", "d", "?", gold_answers=("Paris",))
    option = Question("c", "d", "?", choices=COPPER, gold_answers=("B",), answer_type="choice")
    expression = Question("m", "d", "?", gold_answers=("\\frac12",), answer_type="math")
    monkeypatch.setattr(logging.getLogger("spikescore"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="spikescore"):
        judge = make_judge("auto", questions=[number, text, option, expression, number])
    assert "2 numeric" in caplog.text and "1 choice" in caplog.text
    answers = ["17 left", "Lyon", "(B)", "\\boxed{1/2}"]
    judgements = judge_many(judge, zip([number, text, option, expression], answers, strict=True))
    assert [one.label for one in judgements] == [1, 0, 1, 1]
    assert [one.judge for one in judgements] == ["numeric", "exact", "choice", "math"]
    assert coverage_line(judgements) == "labels: 4 of 4 (choice 1, exact 1, math 1, numeric 1)"


def test_no_reference_is_no_label_and_counted() -> None:
    nothing = label("exact", "Paris", "Paris")
    bare = Question("q", "d", "?")
    without = judge_many(make_judge("exact"), [(bare, "Paris")])[0]
    worded = label("numeric", "17", "Paris")
    assert without.label is None and "no gold answer" in without.error
    assert worded.label is None and "not one number" in worded.error
    line = coverage_line([nothing, without, worded])
    assert line.startswith("labels: 1 of 3 (exact 1), 2 failed; the first: the item has no gold")
    none = judge_many(make_judge("none"), [(bare, "x")])[0]
    assert none.label is None and none.error is None


def test_mistakes_in_the_choice_of_judge_are_user_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match='"exct" is not one of auto'):
        make_judge("exct")
    with pytest.raises(UserError, match='item "q1" has no choices'):
        make_judge("choice", questions=[Question("q1", "d", "?")])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY.*auto"):
        make_judge("openai", client_factory=utils.make_client)


# --- the chat-model judge ---------------------------------------------------------------------


def test_messages_name_reference_and_answer_and_show_what_matters() -> None:
    question = Question(
        "q", "d", "Which metal?", context="Wires are made of it.", choices=("iron", "copper"),
        gold_answers=("copper", "B"), history=(("Hello?", "Yes."),), meta={"solution": "CANARY"},
    )  # fmt: skip
    messages = judge_messages(question=question, answer="<think>hm</think>It is iron.")
    last = messages[-1]["content"]
    reference, given = last.split("Student's answer:")
    assert "- copper\n- B" in reference and "It is iron." not in reference
    assert "It is iron." in given and "copper" not in given and "hm" not in given
    assert "Wires are made of it." in last and "B. copper" in last and "Hello?" in last
    assert "CANARY" not in str(messages)
    with pytest.raises(TypeError):
        judge_messages(question, "It is iron.")
    for message in messages:
        if message["role"] == "assistant":
            assert parse_verdict(message["content"]) is not None


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("VERDICT: CONSISTENT", 1),
        ("VERDICT: INCONSISTENT", 0),
        ("verdict: **inconsistent**.", 0),
        ("Consistent", 1),
        ("INCONSISTENT.", 0),
        ("The student is right. VERDICT: CONSISTENT", 1),
        ("VERDICT: CONSISTENT or VERDICT: INCONSISTENT", None),
        ("The answer is consistent with none of them", None),
        ("not consistent", None),
        ("1", None),
        ("", None),
        ("<think>Not CONSISTENT? VERDICT: INCONSISTENT", None),
        ("I reply VERDICT: CONSISTENT or VERDICT: INCONSISTENT.</think>VERDICT: CONSISTENT", 1),
        ("<think>VERDICT: CONSISTENT</think>\n\n**VERDICT: INCONSISTENT**", 0),
        ("<think>a</think>VERDICT: CONSISTENT<think>but VERDICT:", 1),
        ("One could say VERDICT: CONSISTENT, but it is Lyon.\nVERDICT: INCONSISTENT", 0),
        ("VERDICT: CONSISTENT\nVERDICT: INCONSISTENT", None),
        ("VERDICT: CONSISTENT\nThe answer names the reference.", 1),
    ],
)
def test_parse_verdict(reply: str, expected: int | None) -> None:
    assert parse_verdict(reply) == expected


class _Script:
    """Replies as told: each item's answer text names the faults it meets, one a call."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, body, _):
        script = body["messages"][-1]["content"].split("<answer>\n")[1].split("\n</answer>")[0]
        with self._lock:
            self.calls[script] += 1
            steps = script.split()
            step = steps[min(self.calls[script], len(steps)) - 1]
        time.sleep(0.8 if step == "slow" else 0.02)
        if step.isdigit():
            return int(step), {"retry-after-ms": "10"}, json.dumps({"error": {"message": step}})
        if step == "html":
            return 200, {"Content-Type": "text/html"}, "<html>hello</html>"
        if step == "empty":
            return 200, {}, json.dumps({"choices": []})
        verdicts = {"yes": "VERDICT: CONSISTENT", "no": "VERDICT: INCONSISTENT"}
        return completion(verdicts.get(step, step))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    script = _Script()
    with FaultyServer(script) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.delenv("NIL_MODEL", raising=False)
        server.calls = script.calls
        yield server


def chat_judge(**options):
    def factory(timeout, max_retries):
        return utils.make_client(timeout=timeout, max_retries=2)

    return make_judge("openai", client_factory=factory, **options)


def test_chat_judge_survives_a_failing_server(server: FaultyServer) -> None:
    question = Question("q", "d", "?", gold_answers=("Paris",))
    judge = chat_judge(concurrency=4, timeout=0.4)
    expected = {
        "yes": 1, "no": 0, "429 500 yes": 1, "503 no": 0, "slow yes": 1, "429 429 429": None,
        "garbage": None, "html": None, "empty": None, "garbage yes": 1, "empty no": 0,
        "html html yes": 1,
    }  # fmt: skip
    judgements = judge_many(judge, [(question, script) for script in expected])
    assert {s: one.label for s, one in zip(expected, judgements, strict=True)} == expected
    by_script = dict(zip(expected, judgements, strict=True))
    assert server.calls["429 500 yes"] == 3 and server.calls["429 429 429"] == 3
    assert "429" in by_script["429 429 429"].error and "garbage" in by_script["garbage"].error
    assert by_script["yes"].reply == "VERDICT: CONSISTENT" and by_script["yes"].error is None
    assert by_script["yes"].judge == "openai:gpt-4o-mini"
    assert all(body["temperature"] == 0 for body in server.bodies)
    assert 2 <= server.most <= 5  # a call given up by the client may still be sleeping
    assert coverage_line(judgements).startswith("labels: 8 of 12 (openai:gpt-4o-mini 8), 4 failed")


def test_a_refused_key_ends_relabelling_but_no_generation(server: FaultyServer) -> None:
    question = Question("q", "d", "?", gold_answers=("Paris",))
    with pytest.raises(UserError, match="status 401.*check OPENAI_API_KEY"):
        judge_many(chat_judge(), [(question, "401"), (question, "yes")])
    with BackgroundLabels(chat_judge()) as labels:
        refused, good = (labels.submit(question, script) for script in ("401", "yes"))
        assert refused.result().label is None and "401" in refused.result().error
        assert good.result().label == 1


def test_replies_are_kept_and_an_empty_answer_is_not_worth_a_call(
    server: FaultyServer, tmp_path: Path
) -> None:
    question = Question("q", "d", "?", gold_answers=("Paris",))
    for _ in range(2):
        judge = chat_judge(cache=tmp_path / "replies.sqlite")
        labels = judge_many(judge, [(question, "yes"), (question, "yes"), (question, "  ")])
        assert [one.label for one in labels] == [1, 1, None] and labels[2].unread
    assert server.calls == {"yes": 1}


def test_question_from_record_infers_the_answer_type() -> None:
    base = {"id": "x", "question": "?", "gold_answers": ["B"]}
    assert question_from_record({**base, "choices": ["a", "b"]}).answer_type == "choice"
    assert question_from_record({**base, "answer_type": "math"}).answer_type == "math"
    assert question_from_record(base).answer_type == "exact"
