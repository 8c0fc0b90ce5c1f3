"""Benchmarks in their publishers' files: MMLU's CSV, translations as domains, ipw's teachers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from spikescore.data.question import Question, first_message, gold_option, record_fields
from spikescore.data.reading import load_questions
from spikescore.errors import UserError
from tests.helpers.native_rows import (
    arc,
    arc_hub,
    commonsenseqa,
    hellaswag,
    ipw,
    mmlu,
    mmlu_pro,
    mmlu_simple_evals,
    popqa,
    ragtruth,
    sciq,
    synthweb,
    truthfulqa,
    truthfulqa_choice,
    truthfulqa_flat,
    truthfulqa_generation,
    truthfulqa_multi,
)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def domains(path: Path) -> set[str]:
    return {question.domain for question in load_questions(path).questions}


def right(question: Question) -> str:
    return question.choices[gold_option(question)]


# --- questions with options -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "what"),
    [
        ({"text": ["tin", "lead", "gold"], "label": ["A", "A", "C"]}, "two options have one label"),
        ({"text": ["tin"], "label": ["A"]}, "two options or more"),
        ({"text": [f"o{n}" for n in range(27)], "label": [f"{n}" for n in range(27)]}, "letters"),
    ],
)
def test_options_that_cannot_be_told_apart_are_named(tmp_path: Path, choices, what: str) -> None:
    row = {**arc_hub(1), "choices": choices, "answerKey": choices["label"][0]}
    with pytest.raises(UserError, match=what):
        load_questions(write(tmp_path / "rows.jsonl", row))


def test_arc_is_no_commonsenseqa_and_its_levels_are_told_by_the_path(tmp_path: Path) -> None:
    for row in (arc(7), arc_hub(7)):
        (question,) = load_questions(write(tmp_path / "rows.jsonl", row)).questions
        assert question.domain == "arc" and right(question) == "tin"
    easy = write(tmp_path / "ARC-V1/ARC-Easy/ARC-Easy-Test.jsonl", arc(1))
    hard = write(tmp_path / "ARC-V1/ARC-Challenge/test-00000-of-00001.jsonl", arc_hub(2))
    assert (domains(easy), domains(hard)) == ({"arc_easy"}, {"arc_challenge"})
    assert domains(tmp_path / "ARC-V1") == {"arc_easy", "arc_challenge"}
    german = write(tmp_path / "arc_de/test.jsonl", {**arc(1), "question": {
        **arc(1)["question"], "stem": "Welches Metall?"}})  # fmt: skip
    (one,), (other,) = (load_questions(path).questions for path in (easy, german))
    assert other.domain == "arc_de" and one.meta["parallel_id"] == other.meta["parallel_id"]
    (bare,) = load_questions(
        write(tmp_path / "bare.jsonl", {**arc(1), "id": None}), dataset_format="arc"
    ).questions
    assert "parallel_id" not in bare.meta
    assert domains(write(tmp_path / "csqa.jsonl", commonsenseqa(1))) == {"commonsenseqa"}
    withheld = {**arc(3), "answerKey": ""}
    (question,) = load_questions(write(tmp_path / "test.jsonl", withheld)).questions
    assert question.gold_answers == ()


def test_mmlu_files_without_a_header_name_their_subject(tmp_path: Path) -> None:
    folder = tmp_path / "data/test"
    folder.mkdir(parents=True)
    (folder / "college_physics_test.csv").write_text(
        '"What falls, and why?",a stone,a cloud,"a flag, red",a star,A\nWhat glows?,1,2,3,4,D\n'
    )
    (folder / "virology_test.csv").write_text("What mutates?,a,b,c,d,B\n")
    loaded = load_questions(tmp_path / "data")
    assert loaded.dataset_format == "mmlu"
    first, second, third = loaded.questions
    assert first.question == "What falls, and why?" and right(first) == "a stone"
    assert (right(second), right(third)) == ("4", "b")
    assert [q.meta["subject"] for q in loaded.questions] == ["college_physics"] * 2 + ["virology"]
    assert first.meta["split"] == "test" and first.domain == "mmlu"
    (folder / "virology_test.csv").write_text("What mutates?,a,b,c,d,B\nWhat not?,a,b,c,d\n")
    where = 'file "test/virology_test.csv" line 2, field "answer"'
    with pytest.raises(UserError, match=where):
        load_questions(tmp_path / "data")
    (folder / "virology_test.csv").write_text("What mutates?,a,b,c,d,B\nWhat not?,a,b,c,d,e,B\n")
    with pytest.raises(UserError, match="line 2, 7 cells, but the first line has 6 columns"):
        load_questions(tmp_path / "data")


def test_a_header_of_options_is_no_question(tmp_path: Path) -> None:
    table = tmp_path / "mmlu.csv"
    table.write_text(",Question,A,B,C,D,Answer,Subject\n0,What glows?,1,2,3,4,D,physics\n")
    (question,) = load_questions(table).questions
    assert right(question) == "4" and question.meta["stratum"] == "physics"
    table.write_text("question,A,B,C,D,answer\nWhat glows?,1,2,3,4,C\n")
    assert right(load_questions(table).questions[0]) == "3"
    table.write_text("id,question,A,B,C,D\n1,What glows?,1,2,3,4\n")
    with pytest.raises(UserError, match="no known format"):
        load_questions(table)


@pytest.mark.parametrize("answer", [4, -2, "E", "01", 1.5, None])
def test_an_answer_that_is_no_option_is_refused(tmp_path: Path, answer: object) -> None:
    path = write(tmp_path / "a.jsonl", mmlu(1), {**mmlu(2), "answer": answer})
    with pytest.raises(UserError, match='line 2, field "answer"'):
        load_questions(path)


def test_mmlu_pro_has_up_to_ten_options(tmp_path: Path) -> None:
    loaded = load_questions(write(tmp_path / "test.jsonl", mmlu_pro(9), mmlu_pro(2)))
    last, third = loaded.questions
    assert (right(last), last.gold_answers[1], right(third)) == ("ten", "J", "three")
    assert (loaded.dataset_format, last.domain, last.id) == ("mmlu_pro", "mmlu_pro", "9")


def test_hellaswag_and_sciq(tmp_path: Path) -> None:
    rows = [hellaswag(2), hellaswag(3)]
    first, second = load_questions(write(tmp_path / "h.jsonl", *rows)).questions
    assert right(first) == "nails them." and "Bo has 2 shingles. he" in first_message(first)
    assert first.group == second.group == "activitynet~v_1"
    assert first.meta["parallel_id"] == "hellaswag activitynet~v_1 2"  # as in its translations
    withheld = [{**row, "label": ""} for row in rows]
    tests = load_questions(write(tmp_path / "t.jsonl", *withheld)).questions
    assert [q.gold_answers for q in tests] == [(), ()]
    (question,) = load_questions(write(tmp_path / "s.jsonl", sciq(1))).questions
    assert right(question) == "light" and question.context is None
    assert question.meta["support"].startswith("HIDDEN")
    with pytest.raises(UserError, match="is also one of the distractors"):
        load_questions(write(tmp_path / "s.jsonl", {**sciq(1), "distractor2": "light"}))


def test_popqa_table_by_popularity(tmp_path: Path) -> None:
    names = list(popqa(1))
    rows = [[str(popqa(n)[name]) for name in names] for n in (1, 2)]
    table = tmp_path / "test.tsv"
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    table.write_text("\n".join("\t".join(cells) for cells in [names, *quoted]) + "\n")
    loaded = load_questions(table, filters={"s_pop": {"min": 102}})
    (question,) = loaded.questions
    assert (loaded.dataset_format, question.domain, question.id) == ("popqa", "popqa", "2")
    assert question.gold_answers == ("HIDDEN a", "HIDDEN b") and question.meta["s_pop"] == "102"


# --- editions as domains ----------------------------------------------------------------------


def test_languages_of_truthfulqa_are_domains_of_their_own(tmp_path: Path) -> None:
    basque, english = truthfulqa_multi(1), {**truthfulqa_multi(1), "lang": "en"}
    write(tmp_path / "multi/eu/validation.json", basque)
    write(tmp_path / "multi/en/validation.json", english)
    found = {q.domain: q for q in load_questions(tmp_path / "multi").questions}
    assert set(found) == {"truthfulqa", "truthfulqa_eu"}
    assert found["truthfulqa_eu"].meta["language"] == "eu"
    assert {q.meta["parallel_id"] for q in found.values()} == {"truthfulqa 1"}
    named = {
        "x/truthfulqa_gen_de_validation.jsonl": (truthfulqa_generation(1), "truthfulqa_de"),
        "m_truthfulqa/data/fr/val.jsonl": (truthfulqa_flat(1), "truthfulqa_fr"),
        "uhura-truthfulqa/am_multiple_choice_test.json": (truthfulqa_choice(1), "truthfulqa_am"),
        "uhura-truthfulqa/sw_generation/test/0000.jsonl": (
            truthfulqa_generation(1),
            "truthfulqa_sw",
        ),
        "es/truthfulqa/TruthfulQA.jsonl": (truthfulqa(1), "truthfulqa"),
        "de/notes/rows.jsonl": (truthfulqa(1), "truthfulqa"),
        "retro/Retro-Misconceptions.jsonl": (truthfulqa(1), "retro_misconceptions"),
        "truthfulqa_retro.jsonl": (truthfulqa(1), "retro_misconceptions"),
        "truthful_qa-es/data.jsonl": (truthfulqa_generation(1), "truthfulqa_es"),
        "pt_br/truthfulqa.jsonl": (truthfulqa_generation(1), "truthfulqa_pt"),
        "truthfulqa/pt_br/test.jsonl": (truthfulqa_generation(1), "truthfulqa_pt"),
        "truthfulqa_zh_hans/test.jsonl": (truthfulqa_generation(1), "truthfulqa_zh"),
        "TruthfulQA-Italian.jsonl": (truthfulqa_generation(1), "truthfulqa_it"),
        "column.jsonl": ({**truthfulqa_generation(1), "language": "GL"}, "truthfulqa_gl"),
        "english.jsonl": ({**truthfulqa_generation(1), "language": "English"}, "truthfulqa"),
        "mmlu_DE-DE.jsonl": (mmlu_simple_evals(1), "mmlu_de"),
        "mmlu.jsonl": (mmlu_simple_evals(1), "mmlu"),
    }
    for name, (row, domain) in named.items():
        assert domains(write(tmp_path / name, row)) == {domain}, name


# --- synthweb and ipw -------------------------------------------------------------------------


def test_synthweb_keeps_every_column_and_names_its_band(tmp_path: Path) -> None:
    scores = [0.1, 0.4, 0.8, None]
    rows = [
        {
            **synthweb(n),
            "doc": f"Half of document {n}. And what follows, HIDDEN for {n}.",
            "bb_answer_score_max": score,
            "bb_answer_rollout_answers": [f"HIDDEN guess {n}"],
            "bb_answer_rollout_scores": [0.1],
            "row_splits": {"word_lens": 9, "whole": None},
        }
        for n, score in enumerate(scores)
    ]
    questions = load_questions(write(tmp_path / "s.jsonl", *rows)).questions
    assert [q.meta["band"] for q in questions] == ["HARD", "between", "EASY", "not scored"]
    said = record_fields(questions[0])["meta"]
    asked = {"verbalizer_prompt", "context", "target_response", "incorrect_plausible_answer"}
    assert set(rows[0]) - asked <= set(said)
    assert said["doc"] == rows[0]["doc"] and said["row_splits"] == rows[0]["row_splits"]
    assert said["bb_answer_rollout_answers"] == ["HIDDEN guess 0"]
    assert "HIDDEN" not in first_message(questions[0])
    odd = {"slot_idx": math.inf, "abs_index": math.nan, "bb_answer_rollout_scores": [math.nan, 0.5]}
    (question,) = load_questions(write(tmp_path / "odd.jsonl", {**rows[0], **odd})).questions
    as_json = {"slot_idx": "inf", "abs_index": None, "bb_answer_rollout_scores": [None, 0.5]}
    assert question.meta == {**questions[0].meta, **as_json}
    hard = load_questions(tmp_path / "s.jsonl", filters={"band": "HARD", "scope": "word"})
    assert len(hard.questions) == 1
    with pytest.raises(UserError, match='line 2, field "bb_answer_score_max"'):
        load_questions(
            write(tmp_path / "s.jsonl", rows[0], {**rows[1], "bb_answer_score_max": "x"})
        )


def trajectory(n: int, teacher: str, answer: str = "FINAL_ANSWER: 6") -> dict[str, Any]:
    row = ipw(n)
    conversations = [*row["conversations"], {"role": "assistant", "content": answer}]
    return {**row, "conversations": conversations, "teacher_model": teacher}


def test_ragtruths_sources_are_asked_about_their_passage(tmp_path: Path) -> None:
    row = ragtruth(1)
    keys = ("source_id", "task_type", "source", "source_info", "prompt")
    source = {key: row[key] for key in keys}
    (question,) = load_questions(write(tmp_path / "source_info.jsonl", source)).questions
    assert question.answer_type == "grounded" and question.context == "passage 1:Soak it."
    assert not question.given and not question.gold_answers


def test_trajectories_of_other_teachers_are_kept_apart(tmp_path: Path) -> None:
    rows = [
        trajectory(1, "vllm:kimi-k2@8001"),
        trajectory(2, "vllm:kimi-k2@8001"),
        trajectory(2, "claude-opus", "FINAL_ANSWER: 5"),
        trajectory(3, "claude-opus", "FINAL_ANSWER: 7"),
        trajectory(3, "claude-opus", "FINAL_ANSWER: 8"),
    ]
    write(tmp_path / "set/all.jsonl", *rows)
    write(tmp_path / "set/deduped.jsonl", rows[1])
    loaded = load_questions(tmp_path / "set")
    ids = [question.id for question in loaded.questions]
    assert ids[:3] == ["traj_1", "traj_2.vllm_kimi-k2_8001", "traj_2.claude-opus"]
    assert len(set(ids)) == 5 and all(one.startswith("traj_3.claude-opus.") for one in ids[3:])
    assert loaded.repeated == 1
    assert [q.group for q in loaded.questions] == ["traj_1", "traj_2", "traj_2", "traj_3", "traj_3"]
    turned = load_questions(write(tmp_path / "turned.jsonl", *reversed(rows))).questions
    assert [question.id for question in turned] == ids[::-1]
    alone = load_questions(write(tmp_path / "alone.jsonl", rows[2])).questions
    assert [question.id for question in alone] == ["traj_2"]
