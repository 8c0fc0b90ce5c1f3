"""Formats: a domain is named after its own set, whichever adapter reads the rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spikescore.data.reading import load_questions
from tests.helpers.native_rows import SHAPES

CSQA = SHAPES["commonsenseqa hub"].make(1)
ARC = {key: value for key, value in CSQA.items() if key != "question_concept"}
PACKED = {"id": "test_1", "question": "?", "golden_answers": ["a"]}
SHORT = {"question": "?", "answer": ["a"]}
PROBLEM = {"problem": "?", "solution": "\\boxed{1}"}
GSM = {"question": "How many?", "answer": "3+4=<<3+4=7>>7\n#### 7"}
STATEMENT = {"statement": "Rome is in Italy.", "label": "1"}
NEWS = {"id": "./cnn/1", "context": "c", "question": "?", "answers": {"text": ["a"]}}


@pytest.mark.parametrize(
    ("name", "row", "domain"),
    [
        ("arc_challenge", ARC, "arc_challenge"),
        ("ARC-Challenge-Test", ARC, "arc_challenge"),
        ("qasc/train-00000-of-00002", {**ARC, "combinedfact": "f"}, "qasc"),
        ("x", CSQA, "commonsenseqa"),
        ("CommonsenseQA/dev", ARC, "commonsenseqa"),
        ("popqa/test", PACKED, "popqa"),
        ("hotpotqa/dev", PACKED, "hotpotqa"),
        ("TriviaQA/test", PACKED, "triviaqa"),
        ("webquestions", SHORT, "webquestions"),
        ("nq_open/train", SHORT, "nq_open"),
        (
            f"datasets--x--web_questions/snapshots/{'0f' * 20}/data/test-00000",
            SHORT,
            "web_questions",
        ),
        ("NQ-open.dev", SHORT, "nq_open"),
        ("gsm_symbolic", {**GSM, "id": 1, "instance": 2}, "gsm_symbolic"),
        ("any", GSM, "gsm8k"),
        ("aime_2024", {**PROBLEM, "year": 2024}, "aime"),
        ("numina_math", PROBLEM, "numina_math"),
        ("MATH/train/x1", {**PROBLEM, "level": "Level 5", "type": "Algebra"}, "math"),
        ("cities", {**STATEMENT, "city": "Rome"}, "cities"),
        ("cities_true_false", STATEMENT, "true_false"),
        ("newsqa", NEWS, "newsqa"),
        ("squad/dev-v1.1", {**NEWS, "id": "56be4db0acb8001400a502ec"}, "squad"),
        ("own_test", {"question": "?", "gold_answers": "a"}, "own_test"),
        ("mine/test", {"question": "?", "gold_answers": "a"}, "mine"),
        ("mine/test", {"question": "?", "gold_answers": "a", "domain": "given"}, "given"),
    ],
)
def test_a_domain_is_never_named_after_another_set(
    tmp_path: Path, name: str, row: dict, domain: str
) -> None:
    path = tmp_path / "downloads" / f"{name}.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(row) + "\n")
    assert load_questions(path).questions[0].domain == domain
