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
from tests.helpers.fault_server import FaultyServer, completion

# (answer, gold answers separated by "|", expected label)
EXACT = [
    ("Paris", "Paris", 1),
    ("paris.", "Paris", 1),
    ("I think it is Paris. The answer is Paris.", "Paris", 1),
    ("The answer is Parisville", "Paris", 0),
    ("Parisian", "Paris", 0),
    ("Paris or London", "Paris", 0),
    ("London or Paris.", "Paris", 0),
    ("It is either London, Rome or Paris.", "Paris", 0),
    ("London, Paris, or Rome", "Paris", 0),
    ("Paris, London or Rome.", "Paris", 0),
    ("Paris/London", "Paris", 0),
    ("It is not Paris.", "Paris", 0),
    ("It isn't Paris.", "Paris", 0),
    ("It isn’t in Paris.", "Paris", 0),
    ("The answer is not Paris.", "Paris", 0),
    ("The answer isn't Paris.", "Paris", 0),
    ("The answer is Lyon, not Paris.", "Paris", 0),
    ("The answer is Paris, not Lyon.", "Paris", 1),
    ("It is not Lyon but Paris.", "Paris", 1),
    ("It is not Lyon. It is Paris.", "Paris", 1),
    ("It is not only Paris that is so.", "Paris", 1),
    ("I don't think it is Paris.", "Paris", 0),
    ("Paris is incorrect.", "Paris", 0),
    ("Paris is not the answer.", "Paris", 0),
    ("Lyon rather than Paris", "Paris", 0),
    ("Neither Paris nor London.", "Paris", 0),
    ("Paris is likely. But the answer is London.", "Paris", 0),
    ("At first I thought London. The answer is Paris.", "Paris", 1),
    ("The answer is London. No, wait: the answer is Paris.", "Paris", 1),
    ("The answer is Paris. No, wait: the answer is London.", "Paris", 0),
    ("**Answer:** Paris", "Paris", 1),
    ("Answer: Paris, the capital of France", "Paris", 1),
    ("The correct answer would be Paris.", "Paris", 1),
    ("My final answer remains Paris", "Paris", 1),
    ("The answer to the question is Paris.", "Paris", 1),
    ("The answer is:\nParis", "Paris", 1),
    ("I am not sure what the answer is.", "Paris", 0),
    ("I don't know.", "Paris", 0),
    ("", "Paris", 0),
    ("   ", "Paris", 0),
    ("<think>It could be London</think>Paris", "Paris", 1),
    ("<think>It is Paris</think>London", "Paris", 0),
    ("<think>It is Paris, I suppose", "Paris", 0),
    ("The answer is St. Louis.", "St. Louis", 1),
    ("The answer is St. Louis.", "Saint Louis|St Louis", 1),
    ("J. K. Rowling wrote it", "J.K. Rowling", 1),
    ("JK Rowling", "J. K. Rowling", 1),
    ("He works in the U.S. today", "US", 1),
    ("Sao Paulo", "São Paulo", 1),
    ("SÃO PAULO!", "são paulo", 1),
    ("Strasse", "Straße", 1),
    ("the Louvre", "Louvre", 1),
    ("It hangs in the Louvre museum", "The Louvre", 1),
    ("an apple", "apple", 1),
    ("pineapple", "apple", 0),
    ("The band is The Who", "The Who", 1),
    ("I do not know who that is", "The Who", 0),
    ("It is a dog", "A", 0),
    ("A", "A", 1),
    ("New York City", "New York", 1),
    ("York", "New York", 0),
    ("NYC or New York", "New York|NYC", 1),
    ("Jean-Luc Picard", "Jean Luc Picard", 1),
    ("Paris's mayor", "Paris", 1),
    ("O'Brien", "OBrien", 1),
    ("O’Brien", "O'Brien", 1),
    ("in 1932.", "1932", 1),
    ("in 1932, I think", "1932", 1),
    ("19320", "1932", 0),
    ("11.5", "11", 0),
    ("-11", "11", 0),
    ("1,500 people", "1500", 1),
    ("Dover Castle", "castle at Dover", 0),
    ("red and blue", "red", 1),
    ("Yes, you can.", "yes", 1),
    ("Yeah", "Yes", 1),
    ("No, there is no way; yes.", "no", 1),
    ("No.", "yes", 0),
    ("Yes, there is no doubt.", "no", 0),
    ("yes or no", "yes", 0),
    ("Boats", "no", 0),
    ("The passage does not say: unknown.", "unknown", 1),
    ("It is not mentioned.", "unknown", 1),
    ("I don't know.", "unknown", 1),
    ("It cannot be determined.", "unknown", 1),
    ("In 1932.", "unknown", 0),
    ("答えは東京です", "東京", 1),
    ("京都です", "東京", 0),
    ("Tobermory, whether you like it or not.", "Tobermory", 1),
]

NUMERIC = [
    ("17", "17", 1),
    ("17.", "17", 1),
    ("17.0", "17", 1),
    ("She has 17 apples left.", "17", 1),
    ("26 - 9 = 17", "17", 1),
    ("The answer is 26 - 9 = 17 cookies.", "17", 1),
    ("The answer is 17 because 26 - 9 = 17.", "17", 1),
    ("The answer is 17 of 26.", "17", 1),
    ("The answer is 17 of 26.", "26", 0),
    ("The answer is 71.", "17", 0),
    ("The answer is 170.", "17", 0),
    ("The answer is 1.7", "17", 0),
    ("First 26, then 9, so 17", "17", 1),
    ("First 17, then 9, so 26", "17", 0),
    ("-17", "17", 0),
    ("-17", "-17", 1),
    ("−17", "-17", 1),
    ("$-17", "-17", 1),
    ("-$17", "-17", 1),
    ("$17", "17", 1),
    ("1,234", "1234", 1),
    ("1,234,567.5 people", "1234567.5", 1),
    ("1{,}234", "1234", 1),
    ("$1\\,234$", "1234", 1),
    ("1234", "1,234", 1),
    ("12,34", "1234", 0),
    ("0.5", "1/2", 1),
    ("1/2", "0.5", 1),
    (".5", "0.5", 1),
    ("2/4 of the cake", "1/2", 1),
    ("1/3", "0.333", 0),
    ("0.33333333", "1/3", 1),
    ("\\frac{1}{2}", "0.5", 1),
    ("-\\frac{3}{4}", "-0.75", 1),
    ("\\dfrac12", "0.5", 1),
    ("½", "0.5", 1),
    ("2½ hours", "2.5", 1),
    ("2 1/2 hours", "2.5", 1),
    ("50%", "50", 1),
    ("50%", "0.5", 1),
    ("50 percent", "50%", 1),
    ("50\\%", "50", 1),
    ("0.5", "50%", 1),
    ("0.5", "50", 0),
    ("5%", "50", 0),
    ("3 million", "3,000,000", 1),
    ("$2.5 billion", "2500000000", 1),
    ("3 million", "3", 0),
    ("1.5e3", "1500", 1),
    ("1.5 x 10^3", "1500", 1),
    ("$1.5 \\times 10^{3}$", "1500", 1),
    ("\\boxed{17}", "17", 1),
    ("So \\boxed{17}, after 3 steps.", "17", 1),
    ("seven", "7", 1),
    ("The answer is twenty-one apples.", "21", 1),
    ("twenty one", "21", 1),
    ("The answer is eight.", "7", 0),
    ("7", "seven", 1),
    ("17 or 18", "17", 0),
    ("The answer is 17 or 18.", "17", 0),
    ("The answer is 17 or 18.", "18", 0),
    ("The answer is not 17.", "17", 0),
    ("It is not 17.", "17", 0),
    ("The answer is 17, not 18.", "17", 1),
    ("1000000.5", "1000000", 1),
    ("1000002", "1000000", 0),
    ("0", "0", 1),
    ("0.0000001", "0", 0),
    ("none", "0", 0),
    ("I don't know", "3", 0),
    ("", "3", 0),
    ("1/0", "3", 0),
    ("<think>maybe 5</think>The answer is 3", "3", 1),
    ("9" * 400, "3", 0),
    ("It took 30 minutes, so she walked 12 km.", "12", 1),
    ("The answer is $40.", "40", 1),
]

COPPER = ("iron", "copper", "gold", "cat food")
NESTED = ("farm", "farming areas", "New York", "New York City")
NUMBERS = ("5", "15", "50", "none of the above")
# (answer, choices, gold answers, expected)
CHOICE = [
    ("The answer is (B) copper.", COPPER, "copper|B", 1),
    ("The answer is (B).", COPPER, "B", 1),
    ("The answer is B", COPPER, "B", 1),
    ("The answer is B copper", COPPER, "B", 1),
    ("The answer is b", COPPER, "B", 1),
    ("The answer is b.", COPPER, "B", 1),
    ("B. copper", COPPER, "B", 1),
    ("B) copper", COPPER, "copper", 1),
    ("B: copper", COPPER, "copper", 1),
    ("b) copper", COPPER, "copper", 1),
    ("(b)", COPPER, "copper", 1),
    ("b", COPPER, "copper", 1),
    ("B", COPPER, "copper|B", 1),
    ("**B**", COPPER, "copper|B", 1),
    ("copper", COPPER, "B", 1),
    ("It is copper, a metal.", COPPER, "B", 1),
    ("Option B", COPPER, "B", 1),
    ("I would choose option B because it conducts.", COPPER, "B", 1),
    ("The answer is option (B).", COPPER, "B", 1),
    ("A", COPPER, "B", 0),
    ("A", COPPER, "A", 1),
    ("The answer is A.", COPPER, "A", 1),
    ("The answer is A", COPPER, "A", 1),
    ("A. iron", COPPER, "A", 1),
    ("A cat would like copper.", COPPER, "A", 0),
    ("A cat would like copper.", COPPER, "B", 1),
    ("The answer is A metal called copper.", COPPER, "B", 1),
    ("A metal", COPPER, "A", 0),
    ("The answer is A or B.", COPPER, "A", 0),
    ("The answer is B or C.", COPPER, "B", 0),
    ("B or C", COPPER, "B", 0),
    ("copper or gold", COPPER, "B", 0),
    ("The answer is C.", COPPER, "B", 0),
    ("The answer is (C) gold.", COPPER, "B", 0),
    ("The answer is B. gold", COPPER, "B", 0),
    ("The answer is B. gold", COPPER, "C", 1),
    ("The answer is (B) gold.", COPPER, "gold", 1),
    ("The answer is (B) gold.", COPPER, "copper", 0),
    ("The answer is E.", COPPER, "B", 0),
    ("The answer is not B.", COPPER, "B", 0),
    ("It is not copper.", COPPER, "B", 0),
    ("It is not copper, it is gold.", COPPER, "C", 1),
    ("Iron rusts. The answer is copper.", COPPER, "B", 1),
    ("The answer is B: copper conducts better than iron.", COPPER, "B", 1),
    ("I like copper and gold.", COPPER, "B", 0),
    ("coppersmith", COPPER, "B", 0),
    ("", COPPER, "B", 0),
    ("none of them", COPPER, "B", 0),
    ("I don't know", COPPER, "B", 0),
    ("farming areas", NESTED, "farming areas", 1),
    ("farming areas", NESTED, "farm", 0),
    ("a farm", NESTED, "farm", 1),
    ("New York City", NESTED, "New York City|D", 1),
    ("New York City", NESTED, "New York", 0),
    ("New York", NESTED, "New York", 1),
    ("15", NUMBERS, "15|B", 1),
    ("15", NUMBERS, "5|A", 0),
    ("The answer is 5.", NUMBERS, "A", 1),
    ("None of the above", NUMBERS, "D", 1),
    ("(D)", NUMBERS, "none of the above|D", 1),
    ("The answer is clear. B.", COPPER, "B", 1),
    ("Answer: B", COPPER, "B", 1),
    ("Answer: (b) copper", COPPER, "B", 1),
    ("<think>A?</think>B", COPPER, "B", 1),
    ("I'd say D, as C is dear.", COPPER, "B", 0),
    ("mortal", ("mortal", "dead", "mortal"), "mortal|C", 1),
    ("C", ("mortal", "dead", "mortal"), "mortal|C", 1),
    ("A. mortal", ("mortal", "dead", "mortal"), "mortal|C", 1),
    ("dead", ("mortal", "dead", "mortal"), "mortal|C", 0),
    ("The answer is Washington D.C.", ("canada", "washington d.c"), "washington d.c|B", 1),
]

MATH = [
    ("\\boxed{9}", "9", 1),
    ("So $x = \\boxed{9}$.", "9", 1),
    ("First \\boxed{3}, finally \\boxed{9}.", "9", 1),
    ("First \\boxed{9}, finally \\boxed{3}.", "9", 0),
    ("\\boxed{\\dfrac{1}{2}}", "\\frac{1}{2}", 1),
    ("\\boxed{\\frac12}", "\\frac{1}{2}", 1),
    ("\\boxed{1/2}", "\\frac{1}{2}", 1),
    ("\\boxed{0.5}", "\\frac{1}{2}", 1),
    ("\\boxed{\\frac{-1}{2}}", "-\\frac{1}{2}", 1),
    ("\\boxed{\\frac{2}{1}}", "\\frac{1}{2}", 0),
    ("\\boxed{ (1, 4) }", "(1,4)", 1),
    ("\\boxed{\\left(1,4\\right)}", "(1,4)", 1),
    ("\\boxed{[1,4]}", "(1,4)", 0),
    ("\\boxed{(4,1)}", "(1,4)", 0),
    ("\\boxed{\\{2,1\\}}", "\\{1,2\\}", 1),
    ("\\boxed{2, 1}", "1,2", 1),
    ("\\boxed{36 - 9\\pi}", "36-9\\pi", 1),
    ("The area is $36-9\\pi$.", "36-9\\pi", 1),
    ("\\boxed{36-9}", "36-9\\pi", 0),
    ("\\boxed{2\\sqrt3}", "2\\sqrt{3}", 1),
    ("\\boxed{2\\sqrt{3}}", "2", 0),
    ("\\boxed{2\\sqrt{3}}", "3", 0),
    ("\\boxed{11101_{2}}", "11101_2", 1),
    ("\\boxed{120^\\circ}", "120", 1),
    ("120°", "120", 1),
    ("\\boxed{\\$34}", "34", 1),
    ("34 dollars", "34", 1),
    ("\\boxed{34\\text{ cm}^2}", "34", 1),
    ("\\boxed{x=5}", "5", 1),
    ("x = 5", "5", 1),
    ("The answer is $5$.", "5", 1),
    ("The answer is 5.", "5", 1),
    ("The answer is 6.", "5", 0),
    ("2x", "2", 0),
    ("\\boxed{10,000}", "10000", 1),
    ("\\boxed{15\\%}", "15", 1),
    ("\\boxed{\\text{Friday}}", "Friday", 1),
    ("\\boxed{x^{2}+1}", "x^2+1", 1),
    ("\\boxed{x^3+1}", "x^2+1", 0),
    ("\\boxed{\\begin{pmatrix} -3 \\\\ 3 \\end{pmatrix}}",
     "\\begin{pmatrix}-3\\\\3\\end{pmatrix}", 1),
    ("", "5", 0),
    ("5 or 6", "5", 0),
    ("The answer is (9).", "9", 1),
    ("The answer is ($\\frac{2}{5}$)", "\\frac{2}{5}", 1),
]  # fmt: skip

# (answer, gold lists separated by "|", expected label)
LIST = [
    ("TP53 and BRCA1", "TP53; BRCA1", 1),
    ("brca1, tp53.", "TP53; BRCA1", 1),
    ("TP53", "TP53; BRCA1", 0),
    ("TP533 and BRCA1", "TP53; BRCA1", 0),
    ("", "TP53; BRCA1", 0),
    ("I do not know.", "TP53; BRCA1", 0),
    ("Tumor protein 53, BRCA1", "TP53; BRCA1|tumor protein 53; BRCA1", 1),
    ("Tumor protein 53", "TP53; BRCA1|tumor protein 53; BRCA1", 0),
    ("The answer is:\n1. BRCA1\n2. TP53", "TP53; BRCA1", 1),
    ("- TP53\n- EGFR\n- BRCA1", "TP53; BRCA1", 1),  # names beyond the list are not held against it
    ("TP53, but not BRCA1", "TP53; BRCA1", 0),
    ("TP53 or BRCA1 can be mutated", "TP53; BRCA1", 1),
    ("BRCA1, and TP53 or EGFR", "TP53; BRCA1", 0),
    ("<think>TP53, BRCA1</think>TP53", "TP53; BRCA1", 0),
    ("aspirin", "aspirin", 1),
    ("ibuprofen", "aspirin", 0),
]


def label(judge: str, answer: str, gold: str, choices: tuple[str, ...] | None = None) -> Judgement:
    question = Question("q", "d", "?", choices=choices, gold_answers=tuple(gold.split("|")))
    return judge_many(make_judge(judge, questions=[question]), [(question, answer)])[0]


@pytest.mark.parametrize(
    ("judge", "cases"),
    [("exact", EXACT), ("numeric", NUMERIC), ("math", MATH)],
    ids=["exact", "numeric", "math"],
)
def test_rule_cases(judge: str, cases: list[tuple[str, str, int]]) -> None:
    wrong = [
        (case, got) for case in cases if (got := label(judge, case[0], case[1])).label != case[2]
    ]
    assert not wrong


def test_choice_cases() -> None:
    wrong = [
        (case, got)
        for case in CHOICE
        if (got := label("choice", case[0], case[2], case[1])).label != case[3]
    ]
    assert not wrong


def test_list_cases() -> None:
    def labelled(answer: str, gold: str) -> int | None:
        question = Question("q", "d", "?", gold_answers=tuple(gold.split("|")), answer_type="list")
        return judge_many(make_judge("auto"), [(question, answer)])[0].label

    assert [case for case in LIST if labelled(case[0], case[1]) != case[2]] == []
    reply = judge_many(
        make_judge("auto"),
        [(Question("q", "d", "?", gold_answers=("a1; b1",), answer_type="list"), "only b1")],
    )[0]
    assert (reply.judge, reply.reply) == ("list", "1 of 2: b1")


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


def test_rules_hold_at_least_200_cases_with_wrong_answers_among_them() -> None:
    labels = [case[-1] for cases in (EXACT, NUMERIC, CHOICE, MATH) for case in cases]
    assert len(labels) >= 200
    assert labels.count(0) >= 80


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
    assert worded.label is None and "not a number" in worded.error
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
        assert [one.label for one in labels] == [1, 1, 0]
    assert server.calls == {"yes": 1}


def test_question_from_record_infers_the_answer_type() -> None:
    base = {"id": "x", "question": "?", "gold_answers": ["B"]}
    assert question_from_record({**base, "choices": ["a", "b"]}).answer_type == "choice"
    assert question_from_record({**base, "answer_type": "math"}).answer_type == "math"
    assert question_from_record(base).answer_type == "exact"
