"""Adapters: each native schema on rows of our own, what they show, and the real samples."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from spikescore.data.question import Question, first_message, gold_option, question_from_record
from spikescore.data.reading import iter_questions, load_questions
from spikescore.dialogues.leaks import check_prompt
from spikescore.errors import UserError
from tests.helpers.native_rows import (
    SHAPES,
    bioasq,
    defan,
    gpqa,
    ipw,
    ragtruth,
    squad,
    synthweb,
    true_false,
)
from tests.helpers.running import PUBLIC_DATA, needs_public_data


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(tmp_path: Path, row: dict[str, Any], **options: Any) -> Question:
    return load_questions(write_jsonl(tmp_path / "set.jsonl", [row]), **options).questions[0]


# --- every schema -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_recognised_counted_and_with_ids_that_no_order_changes(tmp_path: Path, shape: str) -> None:
    native = SHAPES[shape]
    rows = [native.make(n) for n in range(1, 7)]
    loaded = load_questions(write_jsonl(tmp_path / "a.jsonl", rows))
    assert loaded.dataset_format == shape.split()[0]
    assert len(loaded.questions) == 6 * native.per_row and not loaded.skipped
    ids = {(q.context, q.question): q.id for q in loaded.questions}
    assert len(set(ids.values())) == len(loaded.questions)
    turned = [dict(reversed(row.items())) for row in random.Random(3).sample(rows, 6)]
    again = load_questions(write_jsonl(tmp_path / "b.jsonl", turned)).questions
    assert {(q.context, q.question): q.id for q in again} == ids
    forced = load_questions(tmp_path / "a.jsonl", dataset_format=loaded.dataset_format)
    assert forced.questions == loaded.questions


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_hidden_is_shown(tmp_path: Path, shape: str) -> None:
    rows = [SHAPES[shape].make(n) for n in range(1, 4)]
    for question in load_questions(write_jsonl(tmp_path / "a.jsonl", rows)).questions:
        prompt = first_message(question)
        assert "HIDDEN" not in prompt and "7123" not in prompt and "700" not in prompt
        assert check_prompt(question, prompt) is None
        known = [gold for gold in question.gold_answers if len(gold) > 1]
        if question.choices:
            assert all(choice in prompt for choice in question.choices)
            assert gold_option(question) is not None
        elif known:
            assert check_prompt(question, f"{prompt}\nAnswer: {known[0]}") is not None


@pytest.mark.parametrize(
    ("shape", "field"), [(shape, key) for shape in SHAPES for key in SHAPES[shape].required]
)
def test_a_row_without_a_needed_field_is_named(tmp_path: Path, shape: str, field: str) -> None:
    native, name = SHAPES[shape], shape.split()[0]
    damaged = {key: value for key, value in native.make(2).items() if key != field}
    path = write_jsonl(tmp_path / "a.jsonl", [native.make(1), damaged, native.make(3)])
    with pytest.raises(UserError) as caught:
        load_questions(path, dataset_format=name)
    assert "a.jsonl" in str(caught.value) and f'line 2, field "{field}"' in str(caught.value)
    loaded = load_questions(path, dataset_format=name, on_bad_row="skip")
    assert len(loaded.questions) == 2 * native.per_row and len(loaded.skipped) == 1


@pytest.mark.parametrize("shape", ["triviaqa hub", "squad hub", "truthfulqa generation"])
@pytest.mark.parametrize("forced", [True, False])
def test_a_bad_first_row_does_not_choose_the_shape(
    tmp_path: Path, shape: str, forced: bool
) -> None:
    rows = [SHAPES[shape].make(n) for n in range(4)]
    del rows[0]["question"]
    name = shape.split()[0] if forced else "auto"
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    loaded = load_questions(path, dataset_format=name, on_bad_row="skip")
    assert len(loaded.questions) == 3 and loaded.skipped[0].where == "line 1"
    assert loaded.dataset_format == shape.split()[0]


# --- one schema after the other ---------------------------------------------------------------


def test_squad_keeps_or_drops_what_has_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [squad(1), squad(2)]}))
    loaded = load_questions(path)
    yes, no = loaded.questions[:2]
    assert yes.gold_answers == ("HIDDEN",) and yes.meta["answerable"] is True
    assert no.gold_answers == () and no.meta["answerable"] is False
    assert no.meta["incorrect_answers"] == ("HIDDEN trap",)
    assert yes.group == no.group != loaded.questions[2].group
    kept = load_questions(path, answerable_only=True)
    assert [q.question for q in kept.questions] == ["Who won in 1?", "Who won in 2?"]
    assert kept.filtered == 2
    version_1 = squad(1)
    del version_1["paragraphs"][0]["qas"][1], version_1["paragraphs"][0]["qas"][0]["is_impossible"]
    assert one(tmp_path, version_1).gold_answers == ("HIDDEN",)
    hub = {**SHAPES["squad hub"].make(1), "answers": {"text": [], "answer_start": []}}
    assert one(tmp_path, hub).meta["answerable"] is False


def test_triviaqa_in_squads_form(tmp_path: Path) -> None:
    question = one(tmp_path, SHAPES["triviaqa_squad"].make(7))
    assert (question.domain, question.group) == ("triviaqa", "tc_7")
    assert question.context == "Evidence 7."
    flat = {**SHAPES["squad hub"].make(1), "id": "qw_2314--Foo/Foo_1.txt"}
    assert one(tmp_path, flat).domain == "triviaqa"


def test_truthfulqa_right_and_wrong_answers(tmp_path: Path) -> None:
    table = one(tmp_path, SHAPES["truthfulqa"].make(1))
    assert table.gold_answers == ("HIDDEN a", "HIDDEN b")
    assert set(table.meta["incorrect_answers"]) == {"HIDDEN c", "HIDDEN d"}
    generation = one(tmp_path, SHAPES["truthfulqa generation"].make(1))
    assert generation.gold_answers == ("HIDDEN a", "HIDDEN b")
    assert generation.meta["incorrect_answers"] == ("HIDDEN c",)
    choice = one(tmp_path, SHAPES["truthfulqa choice"].make(1))
    assert sorted(choice.choices) == ["hence", "so", "thus"]
    assert choice.choices[gold_option(choice)] == "so" and "HIDDEN yes" in choice.gold_answers
    assert choice.meta["incorrect_answers"] == ("thus", "hence", "HIDDEN no")


@pytest.mark.parametrize("shape", ["gpqa", "truthfulqa choice"])
def test_options_are_shuffled_by_the_items_id_alone(tmp_path: Path, shape: str) -> None:
    rows = [SHAPES[shape].make(n) for n in range(400)]
    loaded = load_questions(write_jsonl(tmp_path / "g.jsonl", rows)).questions
    places = Counter(gold_option(question) for question in loaded)
    n = len(loaded[0].choices)
    assert len(places) == n and min(places.values()) > 400 / n * 0.7
    alone = one(tmp_path, rows[17])
    assert alone == next(q for q in loaded if q.id == alone.id)


def test_gpqa(tmp_path: Path) -> None:
    question = one(tmp_path, gpqa(1))
    assert sorted(question.choices) == ["kaon", "muon", "pion", "tau"]
    assert question.choices[gold_option(question)] == "muon" and question.id == "rec1xyz"
    with pytest.raises(UserError, match='field "Correct Answer": is also one of the incorrect'):
        one(tmp_path, {**gpqa(1), "Incorrect Answer 3": "muon"})


@pytest.mark.parametrize(
    ("change", "golds", "answer_type"),
    [
        ({}, ("HIDDEN a", "HIDDEN b"), "exact"),
        ({"exact_answer": ["p53", "TP53"]}, ("p53", "TP53"), "exact"),
        ({"type": "yesno", "exact_answer": "yes"}, ("yes",), "exact"),
        (
            {"type": "list", "exact_answer": [["a", "alpha"], ["b"]]},
            ("a; b", "alpha; b"),
            "list",
        ),
        ({"type": "list", "exact_answer": ["a;x", "b"]}, ("a,x; b",), "list"),
        ({"type": "summary", "exact_answer": None}, ("HIDDEN ideal",), "free"),
        ({"type": "list", "exact_answer": []}, ("HIDDEN ideal",), "free"),
    ],
)
def test_bioasq_kinds(
    tmp_path: Path, change: dict[str, Any], golds: tuple[str, ...], answer_type: str
) -> None:
    path = tmp_path / "training.json"
    path.write_text(json.dumps({"questions": [{**bioasq(1), **change}]}))
    (question,) = load_questions(path).questions
    assert (question.gold_answers, question.answer_type) == (golds, answer_type)


def test_answers_that_are_sentences_are_not_for_rules(tmp_path: Path) -> None:
    for shape in ("truthfulqa", "truthfulqa generation"):
        assert one(tmp_path, SHAPES[shape].make(1)).answer_type == "free"
    for scope, answer_type in {"word": "exact", "lens": "exact", "paragraph": "free"}.items():
        assert one(tmp_path, {**synthweb(1), "scope": scope}).answer_type == answer_type


def test_bioasq_without_answers_is_bad(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='field "exact_answer"'):
        one(tmp_path, {"id": "b1", "type": "factoid", "body": "Which?", "ideal_answer": []})


def test_defan_alternatives_numbers_and_prizes_not_awarded(tmp_path: Path) -> None:
    path = tmp_path / "QA_domain_3_public.csv"
    path.write_text(
        "questions,answer,type\r\n Who won in 1937?,Ann Lee;Bo Ray,name\r\n"
        'How many came?,"84,490",numeric\r\nWho won in 1946?,,name\r\n'
        " Who won in 1937?,Ann Lee;Bo Ray,name\r\n"
    )
    loaded = load_questions(path)
    first, second, third = loaded.questions
    assert first.gold_answers == ("Ann Lee", "Bo Ray") and first.question == "Who won in 1937?"
    assert (second.gold_answers, second.answer_type) == (("84,490",), "numeric")
    assert third.gold_answers == () and third.meta["answerable"] is False
    assert loaded.repeated == 1 and not loaded.skipped
    assert len(load_questions(path, answerable_only=True).questions) == 2
    paraphrase = one(tmp_path, {**defan(1), "questions": "Which team?"})
    assert paraphrase.group == one(tmp_path, defan(1)).group


def test_true_false_statements(tmp_path: Path) -> None:
    assert one(tmp_path, true_false(1)).gold_answers == ("True", "A")
    assert one(tmp_path, true_false(2)).gold_answers == ("False", "B")
    for label, gold in ((1, "True"), (0.0, "False"), (True, "True"), ("false", "False")):
        assert one(tmp_path, {**true_false(1), "label": label}).gold_answers[0] == gold
    for label in (2, "", None, float("nan")):
        with pytest.raises(UserError, match='field "label"'):
            one(tmp_path, {**true_false(1), "label": label})


def test_ragtruth_joins_responses_with_their_sources(tmp_path: Path) -> None:
    source_keys = ("source_id", "task_type", "source", "source_info", "prompt")
    rows = [ragtruth(n) for n in (1, 2)]
    rows.append({**ragtruth(1), "id": "3", "labels": []})
    sources = [{key: row[key] for key in source_keys} for row in rows[:2]]
    responses = [
        {k: v for k, v in row.items() if k not in source_keys or k == "source_id"} for row in rows
    ]
    write_jsonl(tmp_path / "source_info.jsonl", sources)
    alone = load_questions(tmp_path / "source_info.jsonl").questions
    assert [q.id for q in alone] == ["90001", "90002"] and "shipped" not in alone[0].meta
    path = write_jsonl(tmp_path / "response.jsonl", responses)
    by_folder, by_file = load_questions(tmp_path).questions, load_questions(path).questions
    assert by_folder == by_file and [q.id for q in by_folder] == ["1", "2", "3"]
    first, _, third = by_folder
    assert first.group == third.group == "90001" and first.gold_answers == ()
    assert first.context == "passage 1:Soak it." and first.question == "how long 1"
    shipped = first.meta["shipped"]
    assert shipped["hallucinated"] is True and third.meta["shipped"]["hallucinated"] is False
    assert shipped["labels"][0]["end"] == 6
    assert shipped["messages"] == [
        {"role": "user", "content": "HIDDEN prompt"},
        {"role": "assistant", "content": "HIDDEN answer"},
    ]
    write_jsonl(path, [*responses, {**responses[0], "id": "9", "source_id": "8"}])
    where = 'file "response.jsonl" line 4, field "source_id": "8" is not in source_info.jsonl'
    with pytest.raises(UserError, match=where):
        load_questions(tmp_path)
    (tmp_path / "source_info.jsonl").unlink()
    with pytest.raises(UserError, match="put source_info.jsonl beside response.jsonl"):
        load_questions(path)


def test_ipw_dialogue_can_be_replayed(tmp_path: Path) -> None:
    good, bad = one(tmp_path, ipw(2)), one(tmp_path, ipw(3))
    assert good.question == "What is 2 times 2?" and good.answer_type == "math"
    assert good.meta["shipped"]["hallucinated"] is False
    assert bad.meta["shipped"]["hallucinated"] is True
    assert [message["role"] for message in good.meta["shipped"]["messages"]] == [
        "system", "user", "assistant", "tool",
    ]  # fmt: skip
    assert good.meta["shipped"]["messages"][3]["name"] == "calculator"
    unsure = one(tmp_path, {**ipw(2), "success": None, "category": "Medical Exams"})
    assert unsure.meta["shipped"]["hallucinated"] is None and unsure.answer_type == "exact"
    for messages in ([], [{"role": "assistant", "content": "hi"}], [{"role": "user"}], [3], "hi"):
        with pytest.raises(UserError, match='field "(conversations|content)"'):
            one(tmp_path, {**ipw(2), "conversations": messages})


def test_known_wrong_answers_come_back_from_a_pair() -> None:
    record = {"id": "x", "question": "?", "incorrect_answers": ["no"]}
    assert question_from_record(record).meta == {"incorrect_answers": ("no",)}


# --- filters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"scope": "word"}, [0, 1, 2, 3, 4, 5]),
        ({"scope": ["lens", "word"]}, [0, 1, 2, 3, 4, 5]),
        ({"bb_answer_score_max": {"below": 0.3}}, [0, 1, 2]),
        ({"bb_answer_score_max": {"min": 0.2, "max": 0.4}}, [2, 3, 4]),
        ({"bb_answer_score_max": 0.5}, [5]),
        ({"bb_answer_score_max": {"min": 0.2}, "target": "suffix"}, [2, 3, 4, 5]),
        ({"typicality": None, "domain": "synthweb"}, [0, 1, 2, 3, 4, 5]),
        ({"row_seed": 3}, [3]),
        ({"row_seed": "3"}, [3]),
        ({"slot_idx": {"max": 0}, "row_seed": {"min": 4}}, [4, 5]),
        ({"doc_id": "<urn:uuid:2>"}, [2]),
        ({"difficulty_check": "HIDDEN", "row_seed": [1, 2]}, [1, 2]),
        ({"incorrect_plausible_answer": None}, []),
        ({"now_and_then": None}, [0, 1, 2, 3]),
        ({"now_and_then": "yes"}, [4, 5]),
        ({"checked": True}, [0, 2, 4]),
    ],
)
def test_filters(tmp_path: Path, filters: dict[str, Any], kept: list[int]) -> None:
    rows = [{**synthweb(n), "checked": n % 2 == 0} for n in range(6)]
    rows = [{**row, "now_and_then": "yes"} if row["row_seed"] > 3 else row for row in rows]
    table = [{"now_and_then": None, **row} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "s.parquet")
    for path in (write_jsonl(tmp_path / "s.jsonl", rows), tmp_path / "s.parquet"):
        if not kept:
            with pytest.raises(UserError, match="6 questions do not pass the filters"):
                load_questions(path, filters=filters)
            continue
        loaded = load_questions(path, filters=filters)
        assert [q.context for q in loaded.questions] == [f"Half of document {n}." for n in kept]
        assert loaded.filtered == 6 - len(kept)


def test_questions_are_filtered_by_id_where_rows_have_one_and_where_not(tmp_path: Path) -> None:
    for name, rows in (
        ("made", [synthweb(n) for n in range(4)]),
        ("own", [{"id": f"q {n}", "question": f"{n}?", "gold_answers": ["a"]} for n in range(4)]),
    ):
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        asked = load_questions(path).questions
        wanted = [asked[1].id, asked[3].id]
        assert load_questions(path, filters={"id": wanted}).questions == [asked[1], asked[3]]
        assert load_questions(path, filters={"id": wanted[0]}).filtered == 3
    assert load_questions(path, filters={"id": "q 2"}).questions == [asked[2]]  # as the row has it


def test_filter_mistakes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "s.jsonl", [{**synthweb(1), "bb_answer_score_max": None}])
    for filters, message in (
        ({"scop": "word"}, 'has "scop"; did you mean "scope"'),
        ({"scop": None}, 'has "scop"; did you mean "scope"'),
        ({"scope": "word", "tagret": [None, "x"]}, 'has "tagret"; did you mean "target"'),
        ({"zzz": None}, 'has "zzz"; it has '),
        ({"scope": "whole"}, "1 questions do not pass the filters"),
        ({"bb_answer_score_max": {"max": 1}}, "do not pass the filters"),
        ({"scope": {"under": 3}}, "use min and max and below"),
        ({"scope": {"max": "3"}}, "bounds must be numbers"),
        ({"scope": {"max": True}}, "bounds must be numbers"),
    ):
        with pytest.raises(UserError, match=message):
            load_questions(path, filters=filters)


def test_a_stream_counts_as_it_goes_and_starts_anew(tmp_path: Path) -> None:
    rows = [synthweb(1), {**synthweb(2), "context": ""}, synthweb(3), synthweb(4)]
    stream = iter_questions(
        write_jsonl(tmp_path / "s.jsonl", rows),
        on_bad_row="skip",
        filters={"bb_answer_score_max": {"max": 0.3}},
    )
    for _ in range(2):
        assert [q.context[-2] for q in stream] == ["1", "3"]
        assert (len(stream.skipped), stream.filtered) == (1, 1)
        assert stream.dataset_format == "synthweb"


# --- real samples -----------------------------------------------------------------------------

# path -> format, questions, and what is left out; sizes as the samples' own list states them
REAL: dict[str, tuple[str, int, int]] = {
    "svamp/SVAMP.json": ("svamp", 200, 0),
    "coqa/coqa-train-v1.0.json": ("coqa", 20, 0),
    "coqa/invented/coqa-dev-v1.0.json": ("coqa", 39, 0),
    "triviaqa/qa/web-train.json": ("triviaqa", 3, 0),
    "triviaqa/qa/web-dev.json": ("triviaqa", 2, 0),
    "triviaqa/qa/wikipedia-train.json": ("triviaqa", 4, 0),
    "triviaqa/qa/wikipedia-dev.json": ("triviaqa", 2, 0),
    "triviaqa/qa": ("triviaqa", 9, 2),  # web and wikipedia share questions
    "triviaqa/flashrag/test.jsonl": ("triviaqa_flashrag", 100, 0),
    "commonsenseqa/dev_rand_split.jsonl": ("commonsenseqa", 250, 0),
    "commonsenseqa/train_rand_split.jsonl": ("commonsenseqa", 150, 0),
    "belebele/reconstructed/eng_Latn.jsonl": ("belebele", 150, 0),
    "belebele/reconstructed/deu_Latn.jsonl": ("belebele", 50, 0),
    "math/invented/MATH": ("math", 14, 0),
    "math/invented/MATH-500/test.jsonl": ("math", 14, 0),
    "gsm8k/test.jsonl": ("gsm8k", 200, 0),
    "gsm8k/train.jsonl": ("gsm8k", 100, 0),
    "nq_open/NQ-open.dev.jsonl": ("nq_open", 300, 0),
    "squad_v2/dev-v2.0.json": ("squad", 250, 0),
    "truthfulqa/TruthfulQA.csv": ("truthfulqa", 250, 0),
    "truthfulqa/8col/TruthfulQA.csv": ("truthfulqa", 80, 0),
    "halueval/qa_data.json": ("halueval", 200, 0),
    "defan/QA_domain_1_public.csv": ("defan", 90, 0),
    "defan/QA_domain_3_public.csv": ("defan", 90, 0),
    "defan/QA_domain_4_public.csv": ("defan", 87, 3),  # 3 rows stand there twice
    "defan/QA_domain_7_public.csv": ("defan", 90, 0),
    "defan": ("defan", 357, 3),
    "ragtruth/invented": ("ragtruth", 12, 0),
    "ragtruth/invented/source_info.jsonl": ("ragtruth", 6, 0),
    "true_false/invented/facts_true_false.csv": ("true_false", 24, 0),
    "synthweb/synthweb_example.jsonl": ("synthweb", 11, 1),  # the last row has only nulls
    "ipw/all_correct_trajectories.jsonl": ("ipw", 12, 0),
}


@needs_public_data
@pytest.mark.parametrize("path", REAL)
def test_real_samples_load_and_leak_nothing(path: str) -> None:
    dataset_format, n, left_out = REAL[path]
    loaded = load_questions(PUBLIC_DATA / path, on_bad_row="skip")
    assert (loaded.dataset_format, len(loaded.questions)) == (dataset_format, n)
    assert (
        len(loaded.skipped) + loaded.repeated == left_out
        and len({q.id for q in loaded.questions}) == n
    )
    for question in loaded.questions:
        prompt = first_message(question)
        assert check_prompt(question, prompt) is None
        belong = [question.context or "", question.question, *(question.choices or ())]
        belong += [text for turn in question.history for text in turn]
        secrets = [*question.gold_answers, *question.meta.get("incorrect_answers", ())]
        for secret in (text for text in secrets if len(text) > 12):
            assert prompt.count(secret) <= sum(text.count(secret) for text in belong)


@needs_public_data
def test_answers_of_real_samples_agree_with_the_files() -> None:
    data = json.loads((PUBLIC_DATA / "squad_v2/dev-v2.0.json").read_text())["data"]
    asked = {qa["id"]: qa for art in data for par in art["paragraphs"] for qa in par["qas"]}
    loaded = load_questions(PUBLIC_DATA / "squad_v2/dev-v2.0.json")
    assert sum(not q.gold_answers for q in loaded.questions) == 118
    for question in loaded.questions:
        golds = {answer["text"] for answer in asked[question.id]["answers"]}
        assert set(question.gold_answers) == golds
    answerable = load_questions(PUBLIC_DATA / "squad_v2/dev-v2.0.json", answerable_only=True)
    assert len(answerable.questions) == 132 and answerable.filtered == 118

    with open(PUBLIC_DATA / "truthfulqa/TruthfulQA.csv", newline="", encoding="utf-8") as file:
        rows = {row["Question"].strip(): row for row in csv.DictReader(file)}
    for question in load_questions(PUBLIC_DATA / "truthfulqa/TruthfulQA.csv").questions:
        row = rows[question.question]
        right = {part.strip() for part in row["Correct Answers"].split(";") if part.strip()}
        wrong = {part.strip() for part in row["Incorrect Answers"].split(";") if part.strip()}
        assert set(question.gold_answers) == right | {row["Best Answer"].strip()}
        assert set(question.meta["incorrect_answers"]) == wrong


@needs_public_data
def test_shipped_labels_of_the_samples() -> None:
    rows = (PUBLIC_DATA / "ragtruth/invented/response.jsonl").read_text().splitlines()
    spans = {row["id"]: row for row in map(json.loads, rows)}
    for question in load_questions(PUBLIC_DATA / "ragtruth/invented").questions:
        shipped, row = question.meta["shipped"], spans[question.id]
        assert shipped["hallucinated"] == bool(row["labels"])
        for label in shipped["labels"]:
            text = shipped["messages"][1]["content"]
            assert text[label["start"] : label["end"]] == label["text"]
    trajectories = load_questions(PUBLIC_DATA / "ipw/all_correct_trajectories.jsonl").questions
    wrong = [q.id for q in trajectories if q.meta["shipped"]["hallucinated"]]
    assert wrong == ["traj_f100000c"]
    facts = load_questions(PUBLIC_DATA / "true_false/invented/facts_true_false.csv").questions
    assert Counter(q.gold_answers[0] for q in facts) == {"True": 12, "False": 12}


@needs_public_data
def test_synthweb_filters_on_the_sample() -> None:
    path = PUBLIC_DATA / "synthweb/synthweb_example.jsonl"
    hard = load_questions(
        path, on_bad_row="skip", filters={"bb_answer_score_max": {"max": 0.4}}
    ).questions
    assert [q.meta["bb_answer_score_max"] for q in hard] == [0.4, 0.4]
    past = load_questions(path, on_bad_row="skip", filters={"target": "suffix", "scope": "word"})
    assert [(q.gold_answers, q.meta["incorrect_answers"]) for q in past.questions] == [
        (("elm",), ("oak",))
    ]
