"""Entailment: the chat model's verdicts, a tiny NLI model, and what needs no model at all."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from openai import AsyncOpenAI
from transformers import BertForSequenceClassification

import utils
from spikescore.data.question import Question
from spikescore.errors import UserError
from spikescore.labels import entailment as module
from spikescore.labels.entailment import (
    CONTRADICTION,
    ENTAILMENT,
    NEUTRAL,
    entailment_messages,
    make_entailment,
    normalised,
    parse_entailment,
)
from spikescore.labels.judges import judge_many, make_judge
from tests.helpers.fault_server import FaultyServer, ab, client, completion
from tests.helpers.models import LABELS, bert_tokenizer, save_bert


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("Paris", " paris.", True),
        ("New  York\n", "new york", True),
        ("Ο ΔΡΟΜΟΣ", "ο δρομος", True),
        ("e\u0301te\u0301", "été", True),
        ("...", "", True),
        ("-5", "5", False),
        ("1.5", "15", False),
        (".5", "5", False),
        ("5!", "5", False),
        ("10²", "102", False),
        ("C++", "C", False),
        ("6'", '6"', False),
        ("the Who", "Who", False),
    ],
)
def test_normalised(one: str, other: str, equal: bool) -> None:
    assert (normalised(one) == normalised(other)) is equal


def test_exact_needs_nothing() -> None:
    judge = make_entailment("exact")
    pairs = [("q", "Paris", "paris."), (None, "Paris", "Lyon"), ("q", "", "Lyon"), ("q", "", ".")]
    assert judge.entail_many(pairs) == [ENTAILMENT, NEUTRAL, NEUTRAL, ENTAILMENT]
    assert judge.name == "exact" and judge.entail_many([]) == []


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("VERDICT: ENTAILMENT", ENTAILMENT),
        ("VERDICT: NEUTRAL", NEUTRAL),
        ("VERDICT: CONTRADICTION.", CONTRADICTION),
        ("verdict: **entailment**", ENTAILMENT),
        ("Neutral", NEUTRAL),
        ("  contradiction!\n", CONTRADICTION),
        ("B says less.\nVERDICT: ENTAILMENT\n", ENTAILMENT),
        ("VERDICT: NEUTRAL\nVERDICT: NEUTRAL", NEUTRAL),
        ("<think>VERDICT: NEUTRAL?</think>VERDICT: ENTAILMENT", ENTAILMENT),
        ("VERDICT: ENTAILMENT or NEUTRAL", None),
        ("VERDICT: ENTAILMENT, VERDICT: NEUTRAL", None),
        ("VERDICT: ENTAILMENT\nVERDICT: NEUTRAL", None),
        ("VERDICT: ENTAILMENT\nVERDICT: none", None),
        ("VERDICT: NOT ENTAILMENT", None),
        ("VERDICT: ENTAILMENTS", None),
        ("not entailment", None),
        ("entailment neutral", None),
        ("There is no entailment.", None),
        ("Paris", None),
        ("", None),
    ],
)
def test_parse_entailment(reply: str, expected: int | None) -> None:
    assert parse_entailment(reply) == expected


def test_the_question_and_both_answers_reach_the_model_in_their_places() -> None:
    system, *examples, last = entailment_messages(("Which town?", "Paris", "It is Lyon."))
    assert system["role"] == "system" and last["role"] == "user"
    assert re.search(
        r"Which town\?.*<A>\nParis\n</A>.*<B>\nIt is Lyon\.\n</B>", last["content"], 16
    )
    replies = [one["content"] for one in examples if one["role"] == "assistant"]
    assert {parse_entailment(reply) for reply in replies} == {0, 1, 2}
    assert "None" not in entailment_messages((None, "a", "b"))[-1]["content"]


def by_first_letter(body, _=None):
    """A server's verdict: B follows when its first letter is A's, contradicts when it is "z"."""
    a, b = ab(body)
    verdict = "ENTAILMENT" if a[0] == b[0] else "CONTRADICTION" if b[0] == "z" else "NEUTRAL"
    return completion(f"VERDICT: {verdict}")


def test_a_chat_model_judges_each_distinct_open_pair_once(tmp_path: Path) -> None:
    pairs = [
        ("q", "ant", "ape"), ("q", "ape", "ant"), ("q", "ant", "bee"), ("q", "ant", "zoo"),
        ("q", "ant", "ape"), ("q", "ant", "Ant."), ("q", "ant", ""), (None, "ant", "bee"),
    ]  # fmt: skip
    expected = [ENTAILMENT, ENTAILMENT, NEUTRAL, CONTRADICTION, ENTAILMENT, ENTAILMENT, NEUTRAL,
                NEUTRAL]  # fmt: skip
    with FaultyServer(by_first_letter) as server:
        for _ in range(2):
            judge = make_entailment(
                "llm_any/model", client_factory=partial(client, server.url), cache=tmp_path / "r"
            )
            assert judge.entail_many(pairs) == expected
        assert judge.name == "llm_any/model"
        assert judge.asker.stats["from_cache"] == 5
        assert sorted(map(ab, server.bodies)) == sorted(
            [("ant", "ape"), ("ape", "ant"), ("ant", "bee"), ("ant", "zoo"), ("ant", "bee")]
        )
        assert {body["model"] for body in server.bodies} == {"any/model"}


def test_a_judgement_that_fails_is_none_never_neutral(caplog, monkeypatch) -> None:
    def reply(body, _):
        a, b = ab(body)
        return (400, {}, json.dumps({"error": "no"})) if b == "bee" else by_first_letter(body)

    monkeypatch.setattr(module.log, "propagate", True)
    with FaultyServer(reply) as server:
        judge = make_entailment("llm_m", client_factory=partial(client, server.url))
        assert judge.entail_many([("q", "ant", "bee"), ("q", "ant", "ape")]) == [None, ENTAILMENT]
    assert "1 of 2 failed" in caplog.text and "400" in caplog.text


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    [
        ("llm_", AsyncOpenAI, "names no model"),
        ("llm_m", None, "needs a client"),
        ("llm_m", utils.make_client, "OPENAI_API_KEY"),
        ("debreta", None, "neither llm_<model>"),
        ("./no/such/folder", None, "neither llm_<model>"),
    ],
)
def test_a_wrong_choice_is_a_user_error(name, factory, message, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=message):
        make_entailment(name, client_factory=factory)


# --- a local NLI model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nli_folder(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("nli"), LABELS)


PAIRS = [
    (question, one, other)
    for question in ("which town is it ?", None)
    for one in ("paris", "in the north of france", "rome a b c d e f g h a b c d e f g h")
    for other in ("lyon .", "it is in the north of rome", "a", "g h c d")
]


def one_by_one(folder: Path) -> list[int]:
    """The classes by a forward pass per pair, segments and special tokens put together here."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    ids = bert_tokenizer().get_vocab()
    classes = []
    for question, *texts in PAIRS:
        first, second = (
            [ids[word] for word in f"{question or ''} {text}".split()] for text in texts
        )
        tokens = [2, *first, 3, *second, 3]
        segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        with torch.no_grad():
            scores = model(torch.tensor([tokens]), token_type_ids=torch.tensor([segments])).logits
        classes.append([ENTAILMENT, CONTRADICTION, NEUTRAL][int(scores.argmax())])
    return classes


def test_nli_in_batches_equals_one_by_one(nli_folder: Path, monkeypatch) -> None:
    expected = one_by_one(nli_folder)
    assert set(expected) == {CONTRADICTION, NEUTRAL, ENTAILMENT}  # else the labels prove nothing
    judge = make_entailment(str(nli_folder))
    assert judge.entail_many(PAIRS) == expected
    monkeypatch.setattr(module, "_TOKENS_PER_PASS", 40)
    assert judge.entail_many(PAIRS) == expected


def test_the_probability_of_contradiction_is_held_against_entailment_alone(
    nli_folder: Path,
) -> None:
    model = BertForSequenceClassification.from_pretrained(nli_folder).eval()
    ids = bert_tokenizer().get_vocab()
    pairs = [(None, one, other) for question, one, other in PAIRS if question is None]
    pairs.append((None, "paris", "paris"))  # equal texts are put to the model, too
    expected = []
    for _, *texts in pairs:
        first, second = ([ids[word] for word in text.split()] for text in texts)
        tokens = [2, *first, 3, *second, 3]
        segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        with torch.no_grad():
            scores = model(torch.tensor([tokens]), token_type_ids=torch.tensor([segments])).logits
        entailment, contradiction, _ = torch.exp(scores[0].double()).tolist()
        expected.append(contradiction / (contradiction + entailment))
    assert max(expected) > 0.6 and min(expected) < 0.4
    judge = make_entailment(str(nli_folder))
    assert judge.contradiction_probabilities(pairs * 2) == pytest.approx(expected * 2, abs=1e-4)
    assert judge.contradiction_probabilities([]) == []


def test_nli_reads_each_distinct_pair_once_and_like_lengths_together(
    nli_folder: Path, monkeypatch
) -> None:
    judge = make_entailment(str(nli_folder))
    monkeypatch.setattr(module, "_TOKENS_PER_PASS", 60)
    shapes = []
    forward = judge._model.forward

    def counted(*arguments, **inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(*arguments, **inputs)

    monkeypatch.setattr(judge._model, "forward", counted)
    shuffled = PAIRS[::2] + PAIRS + PAIRS[1::2] + [("q", "Rome", "rome")]
    by_pair = dict(zip(PAIRS, one_by_one(nli_folder), strict=True))
    judged = judge.entail_many(shuffled)
    assert judged == [by_pair.get(pair, ENTAILMENT) for pair in shuffled]
    assert sum(rows for rows, _ in shapes) == len(PAIRS)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)
    assert all(rows * width <= 60 or rows == 1 for rows, width in shapes)


def test_nli_cuts_what_is_too_long_and_says_so(nli_folder: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(module.log, "propagate", True)
    judge = make_entailment(str(nli_folder))
    assert judge.entail_many([(None, "paris " * 200, "lyon")])[0] in (0, 1, 2)
    assert "more than 64 tokens are cut" in caplog.text


def test_nli_scores_that_are_not_finite_are_a_failure(nli_folder: Path) -> None:
    judge = make_entailment(str(nli_folder))
    with torch.no_grad():
        judge._model.classifier.bias[1] = float("nan")
    assert judge.entail_many([(None, "paris", "lyon")]) == [None]


def test_a_model_that_is_not_for_inference_is_refused(tmp_path: Path) -> None:
    moods = save_bert(tmp_path / "moods", {0: "glad", 1: "sad", 2: "NEUTRAL"})
    with pytest.raises(UserError, match="has the labels glad, sad, NEUTRAL"):
        make_entailment(str(moods))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="could not be loaded"):
        make_entailment(str(tmp_path / "empty"))


@pytest.mark.parametrize("gold", ["lyon .", "it is in the north of rome", "g h c d"])
@pytest.mark.parametrize("answer", ["paris", "in the north of france"])
def test_the_nli_judge_asks_whether_a_reference_follows(nli_folder, monkeypatch, answer, gold):
    expected = one_by_one(nli_folder)
    asked = {pair: verdict for pair, verdict in zip(PAIRS, expected, strict=True)}
    monkeypatch.setenv("NLI_MODEL", str(nli_folder))
    question = Question("1", "towns", "which town is it ?", gold_answers=(gold, "a"))
    (found,) = judge_many(make_judge("nli"), [(question, answer)])
    verdicts = [asked[question.question, answer, one] for one in (gold, "a")]
    assert found.label == int(ENTAILMENT in verdicts)
    assert found.judge == f"nli:{nli_folder}" and gold in found.reply


def test_the_nli_judge_needs_a_reference_and_an_answer(nli_folder, monkeypatch):
    monkeypatch.setenv("NLI_MODEL", str(nli_folder))
    judge = make_judge("nli")
    bare = Question("1", "d", "q", choices=("a", "b"), gold_answers=("A",))
    named = Question("2", "d", "q", gold_answers=("lyon .",))
    without, empty = judge_many(judge, [(bare, "paris"), (named, "")])
    assert without.label is None and "no gold answer" in without.error
    assert empty.label is None and empty.unread
