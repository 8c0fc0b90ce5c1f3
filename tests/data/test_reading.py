"""Questions: every adapter on tiny files of its schema and on real samples, mistakes, sampling."""

from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from spikescore.data.adapters.mathematics import boxed_answer
from spikescore.data.question import Question, first_message, gold_option
from spikescore.data.reading import load_questions
from spikescore.data.selection import sample_questions
from spikescore.errors import UserError
from tests.helpers.native_rows import SHAPES
from tests.helpers.running import PUBLIC_DATA, needs_public_data

SVAMP = {"ID": "chal-1", "Body": "Mia had 26 plums. She ate 9", "Question": "How many are left?",
         "Equation": "( 26.0 - 9.0 )", "Answer": 17.0, "Type": "Subtraction"}  # fmt: skip
CSQA = {"answerKey": "B", "id": "abc", "question": {"question_concept": "wire", "stem": "Of what?",
        "choices": [{"label": "A", "text": "iron"}, {"label": "B", "text": "copper"}]}}  # fmt: skip
CSQA_HUB = {"id": "abc", "question": "Of what?", "question_concept": "wire", "answerKey": "B",
            "choices": {"label": ["A", "B"], "text": ["iron", "copper"]}}  # fmt: skip
BELEBELE = {"flores_passage": "A passage.", "question": "What?", "mc_answer1": "one",
            "mc_answer2": "two", "mc_answer3": "three", "mc_answer4": "four",
            "correct_answer_num": "3", "link": "l", "question_number": 1,
            "dialect": "eng_Latn"}  # fmt: skip
TRIVIA = {"Question": "Who?", "QuestionId": "tc_1", "Answer": {"Value": "Ann Lee",
          "Aliases": ["Ann Lee", "A. Lee"], "NormalizedValue": "ann lee"}}  # fmt: skip
COQA = {"source": "wiki", "id": "s1", "story": "Bo is 9. He has a dog.",
        "questions": [{"input_text": "How old is Bo?", "turn_id": 1},
                      {"input_text": "What has he?", "turn_id": 2}],
        "answers": [{"input_text": "9", "turn_id": 1}, {"input_text": "a dog", "turn_id": 2}],
        "additional_answers": {"0": [{"input_text": "nine"}, {"input_text": "dog"}],
                               "1": [{"input_text": "9"}, {"input_text": "x", "bad_turn": "true"}]},
        }  # fmt: skip
MATH = {"problem": "Half?", "level": "Level 1", "type": "Algebra",
        "solution": "Clearly \\boxed{2}, no: $\\boxed{\\frac{1}{2}}$."}  # fmt: skip
MATH_500 = {"problem": "Half?", "solution": "It is \\boxed{0.5}.", "answer": "\\frac{1}{2}",
            "subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json"}  # fmt: skip
MATH_EN = {"en": "Half?", "solution": "SECRET \\boxed{0.5}", "answer": 0.5}
GSM = {"question": "How many?", "answer": "3+4=<<3+4=7>>7\n#### 7"}
OWN = {"id": "t-1", "domain": "trivia", "question": "Capital?", "gold_answers": ["Oru"],
       "tier": "rare"}  # fmt: skip


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def jsonl(*rows: object) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


def one(tmp_path: Path, row: dict, **options) -> Question:
    return load_questions(write(tmp_path / "set.json", [row]), **options).questions[0]


# --- adapters ---------------------------------------------------------------------------------


def test_svamp(tmp_path: Path) -> None:
    question = one(tmp_path, SVAMP)
    assert question.question == "Mia had 26 plums. She ate 9. How many are left?"
    assert (question.id, question.gold_answers) == ("chal-1", ("17",))
    assert (question.domain, question.answer_type) == ("svamp", "numeric")


def test_coqa_history_is_the_earlier_turns(tmp_path: Path) -> None:
    loaded = load_questions(write(tmp_path / "c.json", {"version": "1", "data": [COQA]}))
    first, second = loaded.questions
    assert (first.id, second.id, first.group, second.group) == ("s1_1", "s1_2", "s1", "s1")
    assert first.history == () and second.history == (("How old is Bo?", "9"),)
    assert first.gold_answers == ("9", "nine") and second.gold_answers == ("a dog", "dog")
    assert second.context == COQA["story"]


@pytest.mark.parametrize("turns", [("\ud800", "\udcf0"), ("t" * 130 + "\ud800", 2)], ids=ascii)
def test_coqa_turns_named_by_half_a_character_have_ids(tmp_path: Path, turns: tuple) -> None:
    row = SHAPES["coqa"].make(1)
    for question, turn in zip(row["questions"], turns, strict=True):
        question["turn_id"] = turn
    path = tmp_path / "set.json"
    path.write_text(json.dumps([row]))
    ids = [question.id for question in load_questions(path).questions]
    assert len(set(ids)) == 2 and all(one.isascii() for one in ids)


def test_triviaqa_both_forms(tmp_path: Path) -> None:
    original = load_questions(write(tmp_path / "t.json", {"Data": [TRIVIA], "Split": "x"}))
    assert original.dataset_format == "triviaqa"
    assert original.questions[0].gold_answers == ("Ann Lee", "A. Lee")
    repackaged = one(tmp_path, {"id": "t9", "question": "Who?", "golden_answers": ["Ann", "Lee"]})
    assert repackaged.id == "t9" and repackaged.gold_answers == ("Ann", "Lee")


@pytest.mark.parametrize("row", [CSQA, CSQA_HUB], ids=["publisher", "hub"])
def test_commonsenseqa(tmp_path: Path, row: dict) -> None:
    question = one(tmp_path, row)
    assert question.question == "Of what?" and question.choices == ("iron", "copper")
    assert question.gold_answers == ("copper", "B") and gold_option(question) == 1
    assert question.answer_type == "choice" and question.domain == "commonsenseqa"


def test_belebele(tmp_path: Path) -> None:
    question = one(tmp_path, BELEBELE)
    assert question.context == "A passage." and question.choices[2] == "three"
    assert question.gold_answers == ("three", "C") and gold_option(question) == 2


def test_math_three_forms_keep_the_solution_out(tmp_path: Path) -> None:
    folder = tmp_path / "MATH" / "algebra"
    folder.mkdir(parents=True)
    write(folder / "1.json", MATH)
    write(folder / "2.json", {**MATH, "problem": "Other?"})
    loaded = load_questions(tmp_path / "MATH")
    assert len(loaded.questions) == 2 and loaded.questions[0].gold_answers == ("\\frac{1}{2}",)
    hub = load_questions(write(tmp_path / "m.jsonl", jsonl(MATH_500))).questions[0]
    assert hub.id == "test_algebra_1.json" and hub.gold_answers == ("\\frac{1}{2}",)
    english = one(tmp_path, MATH_EN)
    assert english.gold_answers == ("0.5",) and english.question == "Half?"
    for question in (*loaded.questions, hub, english):
        assert question.answer_type == "math" and question.context is None
        assert question.meta["solution"] and "boxed" not in question.question


def test_gsm8k(tmp_path: Path) -> None:
    question = one(tmp_path, GSM)
    assert question.gold_answers == ("7",) and question.answer_type == "numeric"
    assert "####" not in question.question and question.meta["solution"].endswith("7")


def test_project_form(tmp_path: Path) -> None:
    row = {**OWN, "choices": ["Oru", "Ba"], "history": [["a?", "b"]], "group": 3, "context": "C"}
    question = one(tmp_path, row)
    assert question.answer_type == "choice" and question.history == (("a?", "b"),)
    assert question.group == "3" and question.meta["stratum"] == "rare"
    assert one(tmp_path, OWN).answer_type == "exact"
    assert one(tmp_path, {"question": "?", "gold_answers": 5}).domain == "set"


def test_generic_form_with_named_fields(tmp_path: Path) -> None:
    row = {"q": "Who?", "a": ["X"], "k": 7, "secret": "S"}
    fields = {"question": "q", "gold_answers": "a", "id": "k"}
    question = one(tmp_path, row, fields=fields)
    assert (question.id, question.question, question.gold_answers) == ("7", "Who?", ("X",))
    assert question.meta["secret"] == "S" and "S" not in first_message(question)
    with pytest.raises(UserError, match='field "a": missing'):
        one(tmp_path, {"q": "Who?"}, fields=fields)
    with pytest.raises(UserError, match='"fields": "quest" .* known name, did you mean "question"'):
        one(tmp_path, row, fields={"quest": "q"})
    row = {"Frage": "Wer?", "Antwort": "X"}
    with pytest.raises(
        UserError, match=r'"Frgae": .* did you mean "Frage".*; mend "fields" or the'
    ):
        one(tmp_path, row, fields={"question": "Frgae", "gold_answers": "Antwort"})
    with pytest.raises(UserError, match='needs the config key "fields"'):
        one(tmp_path, row, dataset_format="generic")
    with pytest.raises(UserError, match='did you mean "svamp"'):
        one(tmp_path, row, dataset_format="swamp")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{5}", "5"),
        ("a \\boxed{1} b \\boxed{\\frac{1}{2}} c", "\\frac{1}{2}"),
        ("\\fbox{x}", "x"),
        ("\\boxed 7$", "7"),
        ("\\boxed{a{b}c}", "a{b}c"),
        ("\\boxed{open", None),
        ("\\boxed{}", None),
        ("none", None),
    ],
)
def test_boxed_answer(text: str, expected: str | None) -> None:
    assert boxed_answer(text) == expected


# --- ids --------------------------------------------------------------------------------------


def test_ids_do_not_depend_on_row_order_or_layout(tmp_path: Path) -> None:
    rows = [{**GSM, "question": f"How many {n}?"} for n in range(5)]
    ids = {q.question: q.id for q in load_questions(write(tmp_path / "a.json", rows)).questions}
    turned = [dict(reversed(row.items())) for row in reversed(rows)]
    again = load_questions(write(tmp_path / "b.jsonl", jsonl(*turned))).questions
    assert {q.question: q.id for q in again} == ids and len(set(ids.values())) == 5


def test_two_rows_with_one_id_are_both_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", jsonl(OWN, {**OWN, "id": "other"}, OWN))
    with pytest.raises(UserError, match=r'line 3, field "id": "t-1" is already used by line 1'):
        load_questions(path)
    loaded = load_questions(path, on_bad_row="skip")
    assert [q.id for q in loaded.questions] == ["t-1", "other"] and len(loaded.skipped) == 1


@pytest.mark.parametrize(
    "ids",
    [
        ["数学-1", "物理-1", "plain"],
        ["Größe", "Gräße", "Grosse"],
        ["train/1", "train_1", "train 1"],
        ["a/b", "a b"],
        ["test/algebra/1.json", "plain"],
        [1.0, 2.0, 2.5],
        ["a", " a", "a."],
        ["x" * 200, "x" * 201],
        ["..", "数", "物"],
        ["q?", "q!", "q_", "q"],
    ],
    ids=str,
)
def test_any_text_is_an_id_and_ids_that_differ_stay_apart(tmp_path: Path, ids: list) -> None:
    rows = [{**OWN, "id": item, "question": f"Q {item}?"} for item in ids]
    found = {q.question: q.id for q in load_questions(write(tmp_path / "a.json", rows)).questions}
    turned = load_questions(write(tmp_path / "b.json", rows[::-1])).questions
    assert {q.question: q.id for q in turned} == found and len(set(found.values())) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in found.values())
    # what needed no change is as it was, and what was changed is as in older runs if it is alone
    kept = {"train_1": "train_1", "plain": "plain", "a": "a", "q": "q", "Grosse": "Grosse",
            "test/algebra/1.json": "test_algebra_1.json", 1.0: "1", 2.5: "2.5"}  # fmt: skip
    assert all(found[f"Q {item}?"] == kept[item] for item in ids if item in kept)


def test_a_message_quotes_the_id_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [{**OWN, "id": "数学/1"}, {**OWN, "id": "数学/1"}])
    with pytest.raises(UserError, match='"数学/1" is already used by row 1'):
        load_questions(path)


def test_ids_never_clash_with_files_of_a_run(tmp_path: Path) -> None:
    rows = [{**OWN, "id": name} for name in ("config", "summary", "x.error", "run")]
    ids = {q.id for q in load_questions(write(tmp_path / "r.json", rows)).questions}
    assert len(ids) == 4 and not ids & {"config", "summary", "x.error", "run"}


# --- mistakes ---------------------------------------------------------------------------------


def test_missing_empty_broken_and_foreign_files(tmp_path: Path) -> None:
    cases = {
        "does not exist": tmp_path / "none.json",
        "is empty": write(tmp_path / "empty.json", " \n"),
        "not valid JSON": write(tmp_path / "cut.json", json.dumps([OWN])[:-9]),
        "holds no question": write(tmp_path / "list.json", []),
        "found text": write(tmp_path / "text.json", '"hello"'),
        "no known format": write(tmp_path / "keys.json", [{"foo": 1}]),
    }
    for message, path in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            load_questions(path)
        assert path.name in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="holds no .json or .jsonl file"):
        load_questions(tmp_path / "folder")
    (tmp_path / "utf16.json").write_bytes(json.dumps([OWN]).encode("utf-16"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_questions(tmp_path / "utf16.json")
    with pytest.raises(UserError, match="on_bad_row"):
        load_questions(cases["is empty"], on_bad_row="ignore")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([OWN]).encode())
    assert len(load_questions(tmp_path / "bom.json").questions) == 1


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({**SVAMP, "Answer": float("nan")}, "Answer"),
        ({**SVAMP, "Body": ""}, "Body"),
        ({**OWN, "gold_answers": [""]}, "gold_answers"),
        ({**OWN, "gold_answers": {"a": 1}}, "gold_answers"),
        ({**OWN, "question": None}, "question"),
        ({**OWN, "question": "\ud800"}, "question"),
        ({**OWN, "id": {"a": 1}}, "id"),
        ({**OWN, "history": 3}, "history"),
        ({**OWN, "history": ["ab"]}, "history"),
        ({**OWN, "answer_type": "number"}, "answer_type"),
        ({**OWN, "answer_type": "choice"}, "choices"),
        ({**OWN, "choices": ["x", "y"]}, "gold_answers"),
        ({**CSQA, "answerKey": "F"}, "answerKey"),
        ({**BELEBELE, "correct_answer_num": "5"}, "correct_answer_num"),
        ({**TRIVIA, "Answer": "Ann"}, "Answer"),
        ({**COQA, "answers": COQA["answers"][:1]}, "answers"),
        ({**COQA, "additional_answers": {"0": 3}}, "additional_answers"),
        ({**MATH, "solution": "no box"}, "solution"),
        ({**GSM, "answer": "#### "}, "answer"),
    ],
)
def test_a_bad_field_is_named_and_can_be_skipped(tmp_path: Path, row: dict, field: str) -> None:
    good = next(known for known in (SVAMP, OWN, CSQA, BELEBELE, TRIVIA, COQA, MATH, GSM)
                if set(known) <= set(row))  # fmt: skip
    good = {key: "other" if key in ("id", "ID", "QuestionId") else value
            for key, value in good.items()}  # fmt: skip
    path = write(tmp_path / "bad.jsonl", jsonl(good) + "\n" + jsonl(row))
    with pytest.raises(UserError, match=f'line 3, field "{field}"'):
        load_questions(path)
    loaded = load_questions(path, on_bad_row="skip")
    assert loaded.questions and [skip.where for skip in loaded.skipped] == ["line 3"]


def test_a_broken_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", '{"question": "x\n\n' + jsonl(OWN, 5))
    with pytest.raises(UserError, match="line 1, not valid JSON"):
        load_questions(path)
    loaded = load_questions(path, on_bad_row="skip")
    assert [skip.where for skip in loaded.skipped] == ["line 1", "line 4"]
    assert len(loaded.questions) == 1


# --- repeats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_publisher_repeats_counts_once_and_is_told(
    tmp_path: Path, shape: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("spikescore"), "propagate", True)
    caplog.set_level(logging.INFO)
    native = SHAPES[shape]
    path = write(tmp_path / "set.json", [native.make(n) for n in (1, 2, 1, 2, 2)])
    if shape == "project":  # the user's own
        with pytest.raises(UserError, match='"own-1" is already used by row 1'):
            load_questions(path)
        return
    loaded = load_questions(path, dataset_format=shape.split()[0])
    assert len(loaded.questions) == 2 * native.per_row and not loaded.skipped
    assert loaded.repeated == 3 * native.per_row
    assert f"{loaded.repeated} questions stand there again" in caplog.text


def test_gsm8ks_two_configurations_ask_the_same_questions(tmp_path: Path) -> None:
    for name, worked in (("main", "4 of 7"), ("socratic", "How many? 4 of 7")):
        rows = [{"question": f"Q{n}?", "answer": f"{worked}\n#### {n}"} for n in range(3)]
        folder = tmp_path / "gsm8k" / name
        folder.mkdir(parents=True)
        write(folder / "train-00000-of-00001.jsonl", jsonl(*rows))
    alone = load_questions(tmp_path / "gsm8k" / "main").questions
    both = load_questions(tmp_path / "gsm8k")
    assert [q.id for q in both.questions] == [q.id for q in alone] and both.repeated == 3


def test_rows_of_ones_own_repeat_only_what_is_the_same(tmp_path: Path) -> None:
    named = {"id": "doc", "question": "q", "gold_answers": "a", "context": "c"}
    row = {"doc": 1, "q": "Who?", "a": "Bo", "c": "Bo came."}
    assert load_questions(write(tmp_path / "a.json", [row, row]), fields=named).repeated == 1
    for other in ({"a": "Di"}, {"c": "Bo went."}):
        path = write(tmp_path / "a.json", [row, {**row, **other}])
        with pytest.raises(UserError, match='row 2, field "id": "1" is already used by row 1'):
            load_questions(path, fields=named)
    bare = {"question": "Who?", "gold_answers": "Bo"}
    with pytest.raises(UserError, match="row 3, is the same as row 1; give each an id"):
        load_questions(write(tmp_path / "a.json", [bare, {**bare, "question": "Why?"}, bare]))


def test_another_question_under_a_used_id_is_no_repeat(tmp_path: Path) -> None:
    row = SHAPES["triviaqa hub"].make(1)
    evidence = {**row, "entity_pages": {"title": ["another"]}}
    asked = {**row, "question": "Who else?"}
    assert len(load_questions(write(tmp_path / "a.json", [row, evidence])).questions) == 1
    with pytest.raises(UserError, match='row 3, field "id": "tc_1" is already used by row 1'):
        load_questions(write(tmp_path / "a.json", [row, evidence, asked]))


# --- sampling ---------------------------------------------------------------------------------


def pool() -> list[Question]:
    sizes = {"a": 60, "b": 30, "c": 10}
    return [Question(f"{d}{n}", d, "?") for d, size in sizes.items() for n in range(size)]


@pytest.mark.parametrize("strategy", ["random", "balanced", "stratified"])
def test_the_same_seed_takes_the_same_ids_whatever_the_order(strategy: str) -> None:
    questions = pool()
    shuffled = random.Random(1).sample(questions, len(questions))
    first = [q.id for q in sample_questions(questions, strategy=strategy, n=20, seed=3)]
    again = [q.id for q in sample_questions(shuffled, strategy=strategy, n=20, seed=3)]
    other = [q.id for q in sample_questions(questions, strategy=strategy, n=20, seed=4)]
    assert first == again and set(first) != set(other) and len(set(first)) == 20


@pytest.mark.parametrize(
    ("strategy", "n", "expected"),
    [
        ("stratified", 10, {"a": 6, "b": 3, "c": 1}),
        ("stratified", 21, {"a": 13, "b": 6, "c": 2}),
        ("balanced", 21, {"a": 7, "b": 7, "c": 7}),
        ("balanced", 50, {"a": 20, "b": 20, "c": 10}),
        ("balanced", 95, {"a": 55, "b": 30, "c": 10}),
        ("sequential", 61, {"a": 60, "b": 1}),
        ("all", 5, {"a": 60, "b": 30, "c": 10}),
        ("random", 1000, {"a": 60, "b": 30, "c": 10}),
    ],
)
def test_shares_of_the_domains(strategy: str, n: int, expected: dict[str, int]) -> None:
    chosen = sample_questions(pool(), strategy=strategy, n=n, seed=0)
    assert Counter(question.domain for question in chosen) == expected


def test_balanced_looks_at_strata_inside_a_domain() -> None:
    questions = [
        Question(f"q{n}", "d", "?", meta={"stratum": "rare" if n < 10 else "common"})
        for n in range(100)
    ]
    chosen = sample_questions(questions, strategy="balanced", n=16, seed=0)
    assert Counter(q.meta["stratum"] for q in chosen) == {"rare": 8, "common": 8}


def test_sampling_mistakes() -> None:
    with pytest.raises(UserError, match="sampling.strategy"):
        sample_questions(pool(), strategy="rnd", n=1, seed=0)
    with pytest.raises(UserError, match="sampling.n"):
        sample_questions(pool(), strategy="random", n=0, seed=0)


# --- real samples -----------------------------------------------------------------------------


@needs_public_data
def test_real_samples_by_hand() -> None:
    svamp = load_questions(PUBLIC_DATA / "svamp" / "SVAMP.json").questions[0]
    assert svamp.id == "chal-3" and svamp.gold_answers == ("17",)
    common = load_questions(PUBLIC_DATA / "commonsenseqa" / "dev_rand_split.jsonl").questions
    assert common[0].gold_answers == ("midwest", "A") and len(common[0].choices) == 5
    story = load_questions(PUBLIC_DATA / "coqa" / "coqa-train-v1.0.json").questions
    assert story[2].history[0][0] == "When was the Vat formally opened?"
    assert len(story[19].history) == 19
    maths = load_questions(PUBLIC_DATA / "math" / "invented" / "MATH").questions
    answers = load_questions(
        PUBLIC_DATA / "math" / "invented" / "MATH-500" / "test.jsonl"
    ).questions
    by_text = {question.question: question.gold_answers for question in answers}
    assert all(by_text[question.question] == question.gold_answers for question in maths)
    nq = load_questions(
        PUBLIC_DATA / "nq_open" / "NQ-open.dev.jsonl",
        fields={"question": "question", "gold_answers": "answer"},
    )
    assert len(nq.questions) == 300
