"""Stage 1 with retrieved passages: what is shown, kept, counted, and what makes another run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spikescore.data.question import first_message, question_from_record, record_fields
from spikescore.dialogues.config import Config, parse_config
from spikescore.dialogues.leaks import check_prompt, holds_gold, leak_report
from spikescore.dialogues.plan import load_items
from spikescore.errors import UserError
from spikescore.pairs import question_digests
from tests.helpers.native_rows import ragtruth

ROWS = [
    {"id": "q1", "question": "What does a walrus eat?", "gold_answers": ["clams"]},
    {"id": "q2", "question": "Which river flows past Rouen?", "gold_answers": ["Seine"]},
    {"id": "q3", "question": "Zebras?", "gold_answers": ["stripes"]},
]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/walrus.txt").write_text("A walrus eats clams.")
    (tmp_path / "docs/rouen.txt").write_text("Rouen is a town on a river.")
    return {
        "dataset_path": str(tmp_path / "q.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "sampling": {"strategy": "all"},
        "context": {"from": str(tmp_path / "docs"), "top_k": 1},
    }


def test_passages_are_shown_kept_and_counted(settings, caplog) -> None:
    caplog.set_level("INFO", logger="spikescore")
    items = load_items(parse_config(settings, source="c"))
    walrus, rouen, zebras = (item.question for item in items)
    assert "Passage:\nA walrus eats clams." in first_message(walrus)
    assert first_message(zebras) == "Question: Zebras?"
    assert "2 of 3 questions got passages; 1 have none" in caplog.text
    kept = json.loads(json.dumps(record_fields(walrus)))
    (one,) = kept["meta"]["retrieved"]
    assert one["id"] == "walrus.txt#1" and one["score"] > 0
    assert question_from_record(kept).context == walrus.context
    assert [q.meta.get("gold_in_passage") for q in (walrus, rouen, zebras)] == [True, False, None]
    assert zebras.meta["retrieved"] == ()


def test_a_gold_answer_in_the_passage_is_no_leak_and_is_told(settings) -> None:
    questions = [item.question for item in load_items(parse_config(settings, source="c"))]
    assert [check_prompt(one, first_message(one)) for one in questions] == [None] * 3
    assert leak_report([], 3, questions) == (
        "leak guard: 0 of 3 prompts show what only the judge may know; a gold answer stands in "
        "1 of 2 passages (no leak)"
    )
    leaked = check_prompt(questions[0], f"{first_message(questions[0])}\nAnswer: clams")
    assert leaked is not None and leaked.kind == "gold answer"
    letters = replace(questions[1], choices=("Seine", "Po"), gold_answers=("Seine", "A"))
    assert not holds_gold(replace(letters, context="A town on a river."))
    assert holds_gold(replace(letters, context="A town on the SEINE."))
    assert leak_report([], 3) == "leak guard: 0 of 3 prompts show what only the judge may know"


def test_a_source_that_is_asked_once_for_each_response_is_told(tmp_path, caplog) -> None:
    keys = ("source_id", "task_type", "source", "source_info", "prompt")
    row = ragtruth(1)
    sources = tmp_path / "source_info.jsonl"
    sources.write_text(json.dumps({key: row[key] for key in keys}) + "\n")
    own = {key: value for key, value in row.items() if key not in keys[1:]}
    lines = (json.dumps({**own, "id": str(n)}) + "\n" for n in range(3))
    (tmp_path / "response.jsonl").write_text("".join(lines))
    for path, n in ((tmp_path, 3), (sources, 1)):
        caplog.clear()
        items = load_items(parse_config({"dataset_path": str(path)}, source="c"))
        assert len(items) == n
        assert ("3 questions are about 1 sources" in caplog.text) == (n == 3)


def test_with_and_without_passages_a_question_is_the_same(settings) -> None:
    plain = {key: value for key, value in settings.items() if key != "context"}
    sides = [load_items(parse_config(one, source="c")) for one in (plain, settings)]
    records = [[record_fields(item.question) for item in side] for side in sides]
    assert records[0][0]["context"] != records[1][0]["context"]
    digests = [[question_digests(record) for record in side] for side in records]
    assert digests[0] == digests[1] and len({one for (one,) in digests[0]}) == 3


def test_other_documents_are_another_run_and_other_places_are_not(settings, tmp_path) -> None:
    plain = Config()
    assert plain.hash() == replace(plain, context=None).hash()
    first = parse_config(settings, source="c").hash()
    (tmp_path / "copy").mkdir()
    for file in (tmp_path / "docs").iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    moved = {**settings, "context": {"from": str(tmp_path / "copy"), "top_k": 1}}
    assert parse_config(moved, source="c").hash() == first
    (tmp_path / "third").mkdir()
    (tmp_path / "third/walrus.txt").write_text("A walrus rests.")
    changed = {"from": str(tmp_path / "third"), "top_k": 1}
    more = {**settings["context"], "top_k": 2}
    others = [parse_config({**settings, "context": one}, source="c").hash()
              for one in (changed, more, None)]  # fmt: skip
    assert len({first, *others}) == 4


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({"top_k": 3}, ['"from" is no path']),
        ({"from": "docs", "topk": 3}, ['unknown key "topk"', "top_k"]),
        ({"from": "no/where"}, ['"no/where" does not exist']),
        ({"from": ".", "top_k": 0}, ['"top_k" is 0', "from 1 to 100"]),
        ({"from": ".", "top_k": True}, ['"top_k" is true']),
        ("docs", ['"context" must be']),
    ],
)
def test_a_mistake_in_context_is_named(settings, context, words) -> None:
    with pytest.raises(UserError) as caught:
        parse_config({**settings, "context": context}, source="config.json")
    assert all(word in str(caught.value) for word in ["config.json", '"context"', *words])
