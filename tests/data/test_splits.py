"""Splits: the publisher's where there are any, groups kept together where there are none."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from spikescore.data.question import Question
from spikescore.data.reading import load_questions
from spikescore.data.splits import find_dataset, load_splits, pick
from spikescore.errors import UserError
from spikescore.pairs import question_digests
from spikescore.probes.data import question_groups
from tests.helpers.native_rows import SHAPES
from tests.helpers.running import ROOT


def write(path: Path, numbers: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"q{n}", "answer": [f"a{n}"]} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("train", "validation", "others"),
    [
        (["train-00000-of-00002", "train-00001-of-00002"],
         ["validation-00000-of-00002", "validation-00001-of-00002"], []),
        (["data/train-00000-of-00001"], ["data/validation-00000-of-00001"], ["data/test-00000"]),
        (["web-train"], ["web-dev"], []),
        (["web-train", "wikipedia-train"], ["web-dev", "wikipedia-dev"], ["web-test"]),
        (["rc/train-00000-of-00002", "rc/train-00001-of-00002"], ["rc/validation-00000"], []),
        (["default/train/0000", "default/train/0001"], ["default/validation/0000"], []),
        (["train/part-0", "train/part-1"], ["test/part-0"], []),
        (["MATH/train/algebra/1"], ["MATH/test/algebra/1", "MATH/test/geometry/2"], []),
        (["NQ-open.train"], ["NQ-open.dev"], []),
        (["train_rand_split"], ["dev_rand_split"], ["test_rand_split_no_answers"]),
        (["training12b"], ["valid"], ["README_dev/x_test"]),
        (["coqa-train-v1.0"], ["coqa-dev-v1.0"], []),
    ],
)  # fmt: skip
def test_all_files_of_the_publishers_splits_are_read(
    tmp_path: Path, train: list[str], validation: list[str], others: list[str]
) -> None:
    for place, name in enumerate([*train, *validation, *others]):
        write(tmp_path / "set" / f"{name}.jsonl", range(10 * place, 10 * place + 10))
    splits = load_splits(tmp_path / "set", seed=0, answerable_only=False)
    n = 10 * len(train)
    assert sorted(int(q.question[1:]) for q in splits.train) == list(range(n))
    held_out = range(n, n + 10 * len(validation))
    assert sorted(int(q.question[1:]) for q in splits.validation) == list(held_out)
    by_split = load_questions(tmp_path / "set", filters={"split": "train"})
    assert [q.question for q in by_split.questions] == [q.question for q in splits.train]


@pytest.mark.parametrize("names", [["restraint", "contest"], ["trainer", "latest"], ["train"]])
def test_words_that_merely_hold_a_splits_name_are_none(tmp_path: Path, names: list[str]) -> None:
    for place, name in enumerate(names):
        write(tmp_path / "set" / f"{name}.jsonl", range(20 * place, 20 * place + 20))
    splits = load_splits(tmp_path / "set", seed=0, answerable_only=False)
    assert len(splits.train) == len(splits.validation) == 10 * len(names)
    turned = {
        q.question for q in load_splits(tmp_path / "set", seed=1, answerable_only=False).train
    }
    assert turned != {q.question for q in splits.train}


def as_record(question: Question) -> dict:
    return {"id": question.id, "domain": question.domain, "group": question.group,
            "question": question.question, "context": question.context,
            "choices": question.choices, "history": (), "meta": question.meta}  # fmt: skip


def test_a_question_and_its_translations_are_one_group(tmp_path: Path) -> None:
    for language in ("eng", "deu", "jpn"):
        rows = [
            {**SHAPES["belebele"].make(n), "link": f"https://example.org/{passage}",
             "question_number": n, "flores_passage": f"{language} passage {passage}",
             "question": f"{language} question {n}", "dialect": f"{language}_X"}
            for passage in range(8) for n in (1, 2)
        ]  # fmt: skip
        path = tmp_path / "belebele" / f"{language}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = load_questions(tmp_path / "belebele").questions
    assert len(questions) == 48 and {q.domain for q in questions} == {"belebele"}
    passage = [q.context.split()[-1] for q in questions]
    groups = question_groups([as_record(q) for q in questions])
    assert len(set(groups)) == len(set(zip(passage, groups, strict=True))) == 8
    for seed in range(5):
        halves = load_splits(tmp_path / "belebele", seed=seed, answerable_only=False)
        train, held_out = ({q.context.split()[-1] for q in half}
                           for half in (halves.train, halves.validation))  # fmt: skip
        assert train and held_out and not train & held_out
    marks = [set(question_digests(as_record(question))) for question in questions]
    by_language = [
        [mark for mark, one in zip(marks, questions, strict=True) if language in one.context]
        for language in ("eng", "deu")
    ]
    same = [bool(one & other) for one, other in zip(*by_language, strict=True)]
    assert all(same) and not by_language[0][0] & by_language[1][1]


def test_translations_without_a_group_are_in_one_half(tmp_path: Path) -> None:
    def row(language: str, n: int) -> dict:
        return {"id": n, "lang": language, "question": f"{language} {n}", "best_answer": "a",
                "correct_answers": ["a"], "incorrect_answers": ["b"], "category": "c"}  # fmt: skip

    for language in ("en", "es"):
        rows = [json.dumps(row(language, n)) for n in range(30)]
        (tmp_path / f"{language}.jsonl").write_text("\n".join(rows))
    halves = load_splits(tmp_path, seed=0, answerable_only=False)
    train, held_out = ({q.meta["parallel_id"] for q in half}
                       for half in (halves.train, halves.validation))  # fmt: skip
    assert len(train) == len(held_out) == 15 and not train & held_out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nq", 'data set "nq" is not here yet; fetch it with: python .*prepare.py nq_open$'),
        ("trivia_qa", "prepare.py triviaqa$"),
        ("squad", "prepare.py squad$"),
        ("gsm8k", "prepare.py gsm8k$"),
        ("gsm8", "did you mean gsm8k"),
        ("no such set", "neither a path nor in .*; give a file .* or fetch one of svamp, "),
    ],
)
def test_a_data_set_that_is_not_here_says_how_to_get_it(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "sources.json").write_text((ROOT / "datasets" / "sources.json").read_text())
    with pytest.raises(UserError, match=message):
        find_dataset(name, tmp_path)


def test_probe_training_picks_as_the_stages_sample(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [Question(f"q{n}", "d", "?") for n in range(30)]
    few = pick(questions, 8, seed=3, what="train")
    assert pick(questions[::-1], 8, seed=3, what="train") == few and len(set(map(id, few))) == 8
    # the same ranking, longer
    assert pick(questions, 20, seed=3, what="train")[:8] == few
    assert pick(questions, 8, seed=3, what="examples") != few
    assert pick(questions, 0, seed=3, what="examples") == []
    monkeypatch.setattr(logging.getLogger("spikescore"), "propagate", True)
    assert len(pick(questions, 40, seed=3, what="train")) == 30
    assert "train: 40 asked for, 30 there are" in caplog.text and "sampling.n" not in caplog.text
