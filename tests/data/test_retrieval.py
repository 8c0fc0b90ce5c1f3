"""Passages by BM25: scores worked out by the formula, TriviaQA's own documents, bad documents."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import pytest

from spikescore.data.question import GivenAnswer, Question
from spikescore.data.reading import load_questions
from spikescore.data.retrieval import PASSAGE_WORDS, Index, Passage, passages, with_passages
from spikescore.errors import UserError
from tests.helpers.native_rows import triviaqa

TEXTS = {
    "a": "Marie Curie discovered polonium in Paris; Curie also named radium.",
    "b": "Paris lies on the river Seine.",
    "c": "Radium glows, and radium decays: radium paint harmed those who painted dials.",
    "d": "A walrus eats clams.",
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def asked(text: str, **more: object) -> Question:
    return Question(text, "trivia", text, **more)


def by_formula(query: list[str], documents: dict[str, list[str]]) -> dict[str, float]:
    """BM25 as Lucene has it, k1 = 1.5 and b = 0.75, written out."""
    n, mean = len(documents), sum(map(len, documents.values())) / len(documents)
    scores = dict.fromkeys(documents, 0.0)
    for word in query:
        df = sum(word in words for words in documents.values())
        idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
        for name, words in documents.items():
            tf = words.count(word)
            scores[name] += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(words) / mean))
    return scores


def test_scores_are_those_of_the_formula() -> None:
    stop = {"in", "on", "the", "and", "those", "who", "a"}
    words = {
        name: [word for word in re.findall(r"\w+", text.lower()) if word not in stop]
        for name, text in TEXTS.items()
    }
    expected = by_formula(["curie", "discovered", "radium"], words)
    index = Index(Passage(name, text) for name, text in TEXTS.items())
    found = index.search("Who was the Curie that discovered radium?", 4)
    wanted = sorted((name for name in expected if expected[name]), key=lambda one: -expected[one])
    assert [passage.id for passage, _ in found] == wanted == ["a", "c"]
    for passage, score in found:
        assert score == pytest.approx(expected[passage.id], abs=1e-5)
    assert index.search("Zebras?", 4) == index.search("Who was it?", 4) == []
    assert Index(()).search("Curie", 3) == Index([Passage("x", "the")]).search("Curie", 3) == []


def test_equal_scores_are_in_the_order_of_the_documents() -> None:
    index = Index(Passage(str(n), "one river" if n % 2 else "two hills") for n in range(9))
    assert [passage.id for passage, _ in index.search("river", 3)] == ["1", "3", "5"]


def test_a_folder_of_texts_and_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "b/two.txt", " ".join(f"w{n}" for n in range(2 * PASSAGE_WORDS + 1)))
    rows = [
        {"id": 7, "title": "Seine", "contents": "A river."},
        {"_id": "x", "title": "", "text": "A hill."},
        {"text": "A\nlake."},
    ]
    write(tmp_path / "c.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"id,text\nr1,A sea.\n"))
    write(tmp_path / "notes.pdf", "left alone")
    write(tmp_path / ".checkpoints/b.txt", "hidden")
    write(tmp_path / "E.TXT", "A bay.")
    found = list(passages(tmp_path))
    assert [one.id for one in found] == [
        "E.TXT#1",
        "b/two.txt#1", "b/two.txt#2", "b/two.txt#3", "7#1", "x#1", "c.jsonl:3#1", "r1#1",
    ]  # fmt: skip
    assert "left out: 1 .pdf" in caplog.text
    found = found[1:]
    assert [len(one.text.split()) for one in found[:3]] == [PASSAGE_WORDS, PASSAGE_WORDS, 1]
    assert found[3].text == "Seine\nA river." and found[5].text == "A lake."


def test_who_gets_passages_is_counted(tmp_path: Path) -> None:
    for name, text in TEXTS.items():
        write(tmp_path / f"{name}.txt", text)
    statement = GivenAnswer("Paris is big.", False, question="State one fact.")
    questions = [
        asked("Who discovered polonium?"),
        asked("Zebras?"),
        asked("What is on the Seine?", context="A passage of its own."),
        asked("State one fact.", given=(statement,), pair_id="s"),
    ]
    found = with_passages(questions, tmp_path, 2)
    first, second, third, fourth = found.questions
    assert first.context == TEXTS["a"] and first.meta["retrieved"][0]["id"] == "a.txt#1"
    assert second.context is None and second.meta["retrieved"] == ()
    assert (third, fourth) == tuple(questions[2:])
    assert str(found) == (
        "1 of 4 questions got passages; 1 have none: no passage shares a word with them; "
        "1 keep the passage that they came with"
    )
    both = with_passages([asked("Is Paris on the Seine?")], tmp_path, 2).questions[0]
    assert both.context == f"{TEXTS['b']}\n\n{TEXTS['a']}"


@pytest.mark.parametrize("inside", ["", "evidence"])
def test_triviaqas_questions_are_searched_for_in_their_own_documents(
    tmp_path: Path, inside: str
) -> None:
    page = {
        "EntityPages": [{"Filename": "Walrus.txt"}],
        "SearchResults": [{"Filename": "6/6_1.txt"}],
    }
    rows = [{**triviaqa(1), **page, "Question": "What does a walrus eat?"}, triviaqa(2)]
    path = write(tmp_path / "qa/web-dev.json", json.dumps({"Data": rows}))
    questions = load_questions(path).questions
    assert questions[0].meta["evidence"] == ("wikipedia/Walrus.txt", "web/6/6_1.txt")
    folder = tmp_path / "rc"
    write(folder / inside / "wikipedia/Walrus.txt", "It eats clams.")
    write(folder / inside / "web/6/6_1.txt", "The walrus: it rests on ice.")
    write(folder / inside / "web/9/9_9.txt", "A walrus eats what a walrus can eat.")
    found = with_passages(questions, folder, 5)
    named = [one["id"].rpartition("/")[2] for one in found.questions[0].meta["retrieved"]]
    assert named == ["6_1.txt#1"] and found.questions[1].context is None
    assert "1 of 2 questions got passages in the documents that each names" in str(found)
    other = write(tmp_path / "other/w.txt", TEXTS["d"]).parent
    assert with_passages(questions, other, 5).questions[0].context == TEXTS["d"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["hold no text", "JSONL rows"]),
        ({"a.txt": "", "b.txt": "  "}, ["hold no text"]),
        ({"a.jsonl": '{"text": "ok"}\n{"body": "no"}\n'}, ["a.jsonl", "line 2", 'field "text"']),
        ({"a.jsonl": '{"text": "ok"}\n{"text": " "}\n'}, ["a.jsonl", "line 2", "is empty"]),
        ({"a.jsonl": '{"text": "ok"}\n{"text": \n'}, ["a.jsonl", "line 2", "not valid JSON"]),
        ({"a.jsonl": '{"text": "ok"}\n[1]\n'}, ["a.jsonl", "line 2", "expected a JSON object"]),
    ],
)
def test_documents_that_cannot_be_read_are_named(
    tmp_path: Path, files: dict[str, str], words: list[str]
) -> None:
    (tmp_path / "docs").mkdir()
    for name, text in files.items():
        write(tmp_path / "docs" / name, text)
    with pytest.raises(UserError) as caught:
        with_passages([asked("What?")], tmp_path / "docs", 3)
    assert all(word in str(caught.value) for word in words)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("no mark".encode("utf-16-le"))
    with pytest.raises(UserError, match=r'a.txt" is not UTF-8 text'):
        with_passages([asked("What?")], tmp_path, 3)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r'a.txt" is not UTF-8 text'):
        with_passages([asked("What?")], tmp_path, 3)
