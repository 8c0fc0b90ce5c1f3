"""Fields: what is missing, what is withheld, and lists and objects that came as text."""

from __future__ import annotations

import json
import logging
import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from spikescore.data.question import Question, question_from_record, record_fields
from spikescore.data.reading import load_questions
from spikescore.errors import UserError
from tests.helpers.native_rows import SHAPES

OWN = {"id": "t-1", "domain": "trivia", "question": "Capital?", "gold_answers": ["Oru"]}
CSQA = {**SHAPES["commonsenseqa"].make(1), "id": "abc"}
CSQA_HUB = {**SHAPES["commonsenseqa hub"].make(1), "id": "abc"}
BELEBELE = SHAPES["belebele"].make(1)
SVAMP = SHAPES["svamp"].make(1)
MATH_500 = {"problem": "Half?", "solution": "It is \\boxed{0.5}.", "answer": "0.5",
            "subject": "Algebra", "level": 1, "unique_id": "m1"}  # fmt: skip


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def one(tmp_path: Path, row: dict, **options: Any) -> Question:
    return load_questions(write(tmp_path / "set.json", [row]), **options).questions[0]


# --- missing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", "nan", "null", "None"], ids=repr)
@pytest.mark.parametrize(
    ("row", "field"),
    [
        *((OWN, field) for field in ("context", "choices", "history", "group", "domain",
                                     "answer_type", "id", "shipped", "incorrect_answers")),
        (SHAPES["halueval"].make(1), "knowledge"), (SHAPES["coqa"].make(1), "additional_answers"),
        (SHAPES["coqa"].make(1), "source"), (MATH_500, "answer"), (MATH_500, "unique_id"),
        (SVAMP, "Type"), (SVAMP, "ID"), (BELEBELE, "link"), (BELEBELE, "dialect"),
        (SHAPES["gpqa"].make(1), "Explanation"), (SHAPES["bioasq"].make(1), "snippets"),
        (SHAPES["truthfulqa"].make(1), "Best Incorrect Answer"), (SHAPES["ipw"].make(1), "success"),
        (SHAPES["ipw"].make(1), "category"), (SHAPES["synthweb"].make(1), "scope"),
        (SHAPES["synthweb"].make(1), "incorrect_plausible_answer"),
    ],
)  # fmt: skip
def test_null_nan_and_blank_are_alike_in_an_optional_field(
    tmp_path: Path, row: dict, field: str, value: object
) -> None:
    without = {key: part for key, part in row.items() if key != field}
    expected = load_questions(write(tmp_path / "a" / "set.json", [without])).questions

    def told(question: Question) -> tuple:
        meta = {name: part for name, part in question.meta.items() if part not in (None, value)}
        return (question.question, question.context, question.choices and len(question.choices),
                question.history, question.answer_type, question.domain, meta)  # fmt: skip

    for container in ("json", "jsonl"):
        text = json.dumps([{**row, field: value}])
        text = text if container == "json" else text[1:-1]
        found = load_questions(write(tmp_path / "b" / f"set.{container}", text)).questions
        assert list(map(told, found)) == list(map(told, expected))
        json.dumps([question.meta for question in found], allow_nan=False)  # a pair can keep it


@pytest.mark.parametrize("value", [None, float("nan"), ""], ids=repr)
def test_they_are_alike_inside_squads_articles(tmp_path: Path, value: object) -> None:
    article = SHAPES["squad"].make(1)
    answered, impossible = article["paragraphs"][0]["qas"]
    answered["is_impossible"] = impossible["plausible_answers"] = value
    first, second = load_questions(write(tmp_path / "set.json", [article])).questions
    assert first.meta["answerable"] is True and first.gold_answers == ("HIDDEN",)
    assert second.meta["answerable"] is False and second.meta["incorrect_answers"] == ()


def test_a_column_of_more_answers_may_be_null_inside(tmp_path: Path) -> None:
    row = SHAPES["coqa"].make(1)  # as a table has it whose other rows have three of them
    more = {**row, "additional_answers": {**row["additional_answers"], "1": None}}
    assert one(tmp_path, more).gold_answers == one(tmp_path, row).gold_answers


def test_a_given_answer_that_is_nan_is_none(tmp_path: Path) -> None:
    row = {"question": "Q?", "right_answer": "Oru", "wrong_answer": float("nan")}
    assert [answer.text for answer in one(tmp_path, row).given] == ["Oru"]


# --- withheld ---------------------------------------------------------------------------------

UNK = {"aliases": [], "normalized_value": "<unk>", "type": "", "value": "<unk>"}
HUB = {"question": "Q?", "question_id": "tc_1"}


@pytest.mark.parametrize(
    "row",
    [
        {**HUB, "answer": UNK}, {**HUB, "answer": {"value": "<UNK>", "aliases": ["<unk>"]}},
        {**HUB, "answer": {"value": "", "aliases": []}}, {**HUB, "answer": None},
        {"Question": "Q?", "QuestionId": "tc_1", "QuestionSource": "s", "EntityPages": []},
        {key: value for key, value in CSQA.items() if key != "answerKey"},
        {**CSQA_HUB, "answerKey": ""}, {**CSQA_HUB, "answerKey": None}, {**CSQA, "answerKey": "?"},
        {**BELEBELE, "correct_answer_num": "-1"}, {**BELEBELE, "correct_answer_num": ""},
        {**OWN, "gold_answers": ["[hidden]"]}, {**OWN, "gold_answers": "<not given>"},
        {**OWN, "gold_answers": "TBD"}, {**OWN, "gold_answers": ["N/A"]},
        {**OWN, "gold_answers": None}, {**OWN, "gold_answers": []}, {**OWN, "gold_answers": ""},
        {"question": "Q?", "answer": ["---"]}, {"question": "Q?", "golden_answers": ["?"]},
        {"id": "b1", "type": "factoid", "body": "Which?"}, {**SVAMP, "Answer": "<hidden>"},
        {"question": "Q?", "answer": "#### ???"}, {**SHAPES["ipw"].make(1), "shipped": 1,
                                                   "ground_truth": "(open-ended)"},
    ],
    ids=lambda row: json.dumps(row)[:70],
)  # fmt: skip
def test_an_answer_that_is_withheld_is_no_answer(
    tmp_path: Path, row: dict, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("spikescore"), "propagate", True)
    question = one(tmp_path, row)
    assert question.gold_answers == () and question.meta.get("answerable") is not False
    assert "shipped" in question.meta or "1 of 1 questions come without an answer" in caplog.text


def test_a_set_that_gives_its_answers_gives_all_of_them(tmp_path: Path) -> None:
    rows = [{**CSQA_HUB, "id": f"c{n}", "answerKey": key} for n, key in enumerate("AB A")]
    with pytest.raises(UserError, match='row 3, field "answerKey": missing or empty'):
        load_questions(write(tmp_path / "a.json", rows))
    withheld = load_questions(write(tmp_path / "b.json", rows[2:])).questions
    assert [question.gold_answers for question in withheld] == [(), ("iron", "A")]


@pytest.mark.parametrize("answer", ["N", "no", "unknown", "None of them", "(a) b (c)", "[sic] yes",
                                    "-1", "U.N.K.", "hidden", "Test", "null hypothesis", "*",
                                    "(the) Beatles (band)", "{[0, 1]: 2}",
                                    '"(Oh), yes"'])  # fmt: skip
def test_words_that_could_be_an_answer_are_one(tmp_path: Path, answer: str) -> None:
    assert one(tmp_path, {**OWN, "gold_answers": answer}).gold_answers == (answer,)


# --- lists and objects as text ----------------------------------------------------------------

MEMBERS = ("sea", "river bank", "it's")


@pytest.mark.parametrize(
    "text",
    [
        '["sea", "river bank", "it\'s"]',
        "['sea', 'river bank', \"it's\"]",
        "('sea', 'river bank', \"it's\")",
        "['sea' 'river bank' \"it's\"]",
        "['sea' 'river bank'\n \"it's\"]",
        "array(['sea', 'river bank', \"it's\"], dtype=object)",
        ' ["sea","river bank","it\\u0027s"] ',
        json.dumps('["sea", "river bank", "it\'s"]'),
    ],
)
def test_a_list_written_as_text_is_the_list(tmp_path: Path, text: str) -> None:
    choice = one(tmp_path, {**OWN, "choices": text, "gold_answers": "B"})
    assert (choice.choices, choice.answer_type) == (MEMBERS, "choice")
    named = {"question": "q", "gold_answers": "possible_answers"}
    for row, fields in (
        ({**OWN, "gold_answers": text}, None),
        ({"q": "Q?", "possible_answers": text}, named),
        ({"question": "Q?", "answer": text}, None),
        ({"id": "t1", "question": "Q?", "golden_answers": text}, None),
        ({**HUB, "answer": {"value": "sea", "aliases": text}}, None),
    ):
        assert one(tmp_path, row, fields=fields).gold_answers == MEMBERS
    wrong = one(tmp_path, {**OWN, "incorrect_answers": text})
    assert wrong.meta["incorrect_answers"] == MEMBERS
    history = one(tmp_path, {**OWN, "history": f"[{json.dumps(['a?', 'b'])}]"}).history
    assert history == (("a?", "b"),)


@pytest.mark.parametrize("write_as", [json.dumps, repr])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_list_and_object_may_come_through_a_text_column(
    tmp_path: Path, shape: str, write_as: Any
) -> None:
    rows = [SHAPES[shape].make(n) for n in (1, 2)]
    texts = [
        {
            key: write_as(part) if isinstance(part, dict | list) else part
            for key, part in row.items()
        }
        for row in rows
    ]
    name = shape.split()[0]
    plain = load_questions(write(tmp_path / "a.json", rows), dataset_format=name).questions
    found = load_questions(write(tmp_path / "b.json", texts), dataset_format=name).questions
    for ours, theirs in zip(found, plain, strict=True):
        assert (ours.question, sorted(ours.choices or ()), ours.history, ours.answer_type) == (
            theirs.question, sorted(theirs.choices or ()), theirs.history, theirs.answer_type,
        )  # fmt: skip
        assert set(ours.gold_answers) == set(theirs.gold_answers) or ours.choices
        assert ours.meta.get("shipped") == theirs.meta.get("shipped")
    recognised = load_questions(tmp_path / "b.json").dataset_format
    assert recognised == name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gold_answers", "['Oru', 'Ba"),
        ("gold_answers", '["Oru" : "Ba"]'),
        ("gold_answers", "{'a': 'b'}"),
        ("gold_answers", "None"),
        ("gold_answers", "[Oru, Ba and Ko]"),
        ("gold_answers", "{Oru,Ba}"),
        ("choices", "sea|bank|sky"),
        ("choices", "['sea', 'ba"),
        ("history", "[['a?', 'b'"),
        ("history", "a? b"),
        ("incorrect_answers", '["a", '),
        ("incorrect_answers", '["a", {["b"]: 1}]'),
    ],
)
def test_a_list_as_text_that_cannot_be_read_is_refused_by_field(
    tmp_path: Path, field: str, value: str
) -> None:
    with pytest.raises(UserError, match=f'row 1, field "{field}"'):
        one(tmp_path, {**OWN, field: value})


@pytest.mark.parametrize("answer", ["[0, 1]", "(1, 2)", "[1,\\infty)", "{2, 3}", "(-3,-2)"])
def test_intervals_and_points_of_mathematics_stay_one_answer(tmp_path: Path, answer: str) -> None:
    row = {**OWN, "answer_type": "math", "gold_answers": answer}
    assert one(tmp_path, row).gold_answers == (answer,)
    assert one(tmp_path, {**MATH_500, "answer": answer}).gold_answers == (answer,)


def test_numbers_in_a_list_as_text_are_its_members(tmp_path: Path) -> None:
    for text in ("[1945, 1946]", "[1945 1946]", '["1945", 1946.0]'):
        question = one(tmp_path, {**OWN, "gold_answers": text})
        assert question.gold_answers == ("1945", "1946")


# --- what else a row says ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_short_columns_are_kept_beside_the_question(tmp_path: Path, shape: str) -> None:
    row = {**SHAPES[shape].make(1), "difficulty": "hard", "popularity": 12.5, "checked": True}
    known = {"difficulty": "hard", "popularity": 12.5, "checked": True}
    exact = shape in ("true_false", "gsm8k")  # more columns make another set of it
    options = {} if exact else {"dataset_format": shape.split()[0]}
    for question in load_questions(write(tmp_path / "a.json", [row]), **options).questions:
        if shape != "synthweb":  # whose documented columns are read alone
            assert known.items() <= question.meta.items()
        told = (question.question, question.context, *question.gold_answers)
        same = [name for name, value in question.meta.items() if value in told and name in row]
        assert "HIDDEN" in told or not same
        kept = {key: value for key, value in question.meta.items() if key != "shipped"}
        json.dumps(kept, allow_nan=False)  # a pair can keep it


def test_what_a_data_set_says_of_an_item_is_kept_in_the_pair_and_comes_back():
    said = {
        "scope": "europe",
        "tier": 2,
        "share": math.nan,
        "tags": ("a", 1.5),
        "of": {1: date.min},
    }
    question = Question(
        "x", "d", "Q?", "C", ("a", "b"), ("a", "A"), "g", (("q", "a"),), "choice",
        {**said, "incorrect_answers": ["b"], "shipped": {"messages": []}},
    )  # fmt: skip
    record = json.loads(json.dumps(record_fields(question), allow_nan=False))
    plain = {"share": None, "tags": ["a", 1.5], "of": {"1": "0001-01-01"}}
    assert record["meta"] == {**said, **plain} and record["incorrect_answers"] == ["b"]
    back = question_from_record(record)
    assert back.meta == {**said, **plain, "incorrect_answers": ("b",)}
    assert record_fields(back) == record
