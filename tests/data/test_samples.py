"""The sample sets: they load, they are clean, and their answers are worked out here once more."""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections import Counter
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from spikescore.data.adapters.mathematics import boxed_answer
from spikescore.data.question import Question, first_message, gold_option
from spikescore.data.reading import load_questions
from spikescore.dialogues.leaks import check_prompt
from spikescore.dialogues.prompts import DEFAULT_SYSTEM_PROMPT
from spikescore.errors import UserError
from spikescore.labels.judges import judge_many, make_judge
from tests.helpers.running import PUBLIC_DATA, ROOT, needs_public_data

SAMPLES = ROOT / "datasets" / "samples"
SETS = {  # file -> (format, answer type)
    "triviaqa.json": ("triviaqa", "exact"),
    "commonsenseqa.jsonl": ("commonsenseqa", "choice"),
    "belebele.jsonl": ("belebele", "choice"),
    "coqa.json": ("coqa", "exact"),
    "math.jsonl": ("math", "math"),
    "svamp.json": ("svamp", "numeric"),
}


def load(name: str) -> list[Question]:
    return load_questions(SAMPLES / name).questions


def rows(name: str) -> list[dict]:
    text = (SAMPLES / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    content = json.loads(text)
    return content if isinstance(content, list) else content.get("data") or content["Data"]


# --- every set --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_loads_in_its_native_form_with_unique_ids_and_questions(name: str) -> None:
    loaded = load_questions(SAMPLES / name)
    assert (loaded.dataset_format, loaded.skipped) == (SETS[name][0], [])
    assert len(loaded.questions) >= 150
    assert len({question.id for question in loaded.questions}) == len(loaded.questions)
    texts = [(question.context, question.question) for question in loaded.questions]
    assert len(set(texts)) == len(texts)
    assert {question.answer_type for question in loaded.questions} == {SETS[name][1]}
    assert all(question.gold_answers for question in loaded.questions)


def test_the_folder_holds_these_sets_and_no_other() -> None:
    assert {path.name for path in SAMPLES.iterdir() if path.suffix.startswith(".json")} == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_no_prompt_gives_its_answer_away(name: str) -> None:
    for question in load(name):
        rendered = (
            f"<|im_start|>system\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
            f"{first_message(question)}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert check_prompt(question, rendered) is None


@pytest.mark.parametrize("name", SETS)
def test_the_judge_takes_every_gold_answer_for_right_and_another_items_for_wrong(name: str) -> None:
    questions = load(name)
    judge = make_judge("auto")
    golds = [(question, question.gold_answers[0]) for question in questions]
    assert {judgement.label for judgement in judge_many(judge, golds)} == {1}
    wrong = [
        (question, other.gold_answers[0])
        for question, other in zip(questions, questions[7:] + questions[:7], strict=True)
        if not {gold.casefold() for gold in other.gold_answers}
        & {gold.casefold() for gold in question.gold_answers}
    ]
    labels = [judgement.label for judgement in judge_many(judge, wrong)]
    # of a choice, another item's answer is none of the options: unread
    assert len(wrong) > 0.5 * len(questions) and set(labels) <= {0, None}


@needs_public_data
def test_no_question_is_one_of_the_real_sets() -> None:
    def plain(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.casefold()))

    real, files = set(), 0
    for path in sorted(PUBLIC_DATA.rglob("*.json*")):
        try:
            loaded = load_questions(path, on_bad_row="skip").questions
        except UserError:
            continue  # a set without an adapter, or of a form that needs naming
        files += 1
        real |= {plain(question.question) for question in loaded if question.domain != "coqa"}
        real |= {plain(question.context) for question in loaded if question.context}
    assert files >= 10 and len(real) > 1000
    for name in SETS:
        for question in load(name):
            assert plain(question.question) not in real
            assert plain(question.context or "-") not in real


# --- options, passages, conversations ---------------------------------------------------------


@pytest.mark.parametrize(("name", "n"), [("commonsenseqa.jsonl", 5), ("belebele.jsonl", 4)])
def test_options_differ_and_the_right_one_stands_anywhere(name: str, n: int) -> None:
    questions = load(name)
    assert all(len({choice.casefold() for choice in one.choices}) == n for one in questions)
    places = Counter(gold_option(question) for question in questions)
    assert set(places) == set(range(n))
    assert max(places.values()) - min(places.values()) <= 0.3 * len(questions) / n
    # the right option is not simply the longest one
    longest = sum(
        len(one.choices[gold_option(one)]) == max(map(len, one.choices)) for one in questions
    )
    assert longest <= 0.6 * len(questions)


def test_passages_have_several_questions_each() -> None:
    questions = load("belebele.jsonl")
    assert len({question.context for question in questions}) >= 10
    assert set(Counter(question.group for question in questions).values()) == {3}


def test_conversations_point_into_their_story_and_carry_their_history() -> None:
    for row in rows("coqa.json"):
        numbers = list(range(1, len(row["questions"]) + 1))
        assert [question["turn_id"] for question in row["questions"]] == numbers
        others = row.get("additional_answers", {"0": []})["0"]
        for answers in filter(None, (row["answers"], others)):
            assert [answer["turn_id"] for answer in answers] == numbers
        for answer in row["answers"] + others:
            start, end = answer["span_start"], answer["span_end"]
            if answer["span_text"] == "unknown":
                assert (start, end, answer["input_text"]) == (-1, -1, "unknown")
            else:
                assert row["story"][start:end] == answer["span_text"]
    questions = load("coqa.json")
    for group in {question.group for question in questions}:
        turns = [question for question in questions if question.group == group]
        assert [len(turn.history) for turn in turns] == list(range(len(turns)))
        for before, after in zip(turns, turns[1:], strict=False):
            assert after.history[-1] == (before.question, before.gold_answers[0])
    assert any(question.gold_answers == ("unknown",) for question in questions)
    # short answers that are no yes, no or unknown are the story's own words, but for their form
    extractive = [q for q in questions if q.gold_answers[0] not in ("yes", "no", "unknown")]
    words = [
        word
        for question in extractive
        for word in re.findall(r"\w+", question.gold_answers[0].casefold())
        if not any(word[:4] in text for text in re.findall(r"\w+", question.context.casefold()))
    ]
    assert len(words) <= 0.1 * len(extractive)


def test_trivia_aliases_are_normalised_as_the_publisher_does() -> None:
    def normal(text: str) -> str:
        words = re.sub(r"[^\w\s]|_", " ", text.lower()).split()
        return " ".join(word for word in words if word not in ("a", "an", "the"))

    for row in rows("triviaqa.json"):
        answer = row["Answer"]
        assert answer["Value"] == answer["Aliases"][0]
        assert answer["NormalizedValue"] == normal(answer["Value"])
        expected = list(dict.fromkeys(map(normal, answer["Aliases"])))
        assert answer["NormalizedAliases"] == expected
        assert answer["NormalizedValue"] not in normal(row["Question"]).split()
        assert row["Question"].endswith("?")


# --- arithmetic -------------------------------------------------------------------------------

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
              ast.Div: operator.truediv}  # fmt: skip
_KINDS = {"Addition": ast.Add, "Subtraction": ast.Sub, "Multiplication": ast.Mult,
          "Common-Division": ast.Div}  # fmt: skip


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))


def test_word_problems_their_equations_and_answers_fit() -> None:
    kinds = Counter()
    for row in rows("svamp.json"):
        tree = ast.parse(row["Equation"].strip(), mode="eval").body
        assert _value(tree) == Fraction(row["Answer"]), row["ID"]
        assert row["Answer"] > 0 and row["Answer"] == int(row["Answer"])
        text = f"{row['Body']} {row['Question']}"
        given = set(map(int, re.findall(r"\d+", text)))
        used = {int(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert used <= given, row["ID"]
        assert isinstance(tree.op, _KINDS[row["Type"]])
        kinds[row["Type"]] += 1
    assert set(kinds) == set(_KINDS) and min(kinds.values()) >= 10


# --- mathematics: each answer found again by counting, searching or measuring ------------------


def _primes(low: int, high: int) -> list[int]:
    return [n for n in range(low, high) if n > 1 and all(n % d for d in range(2, n))]


def _share(outcomes: list, wanted) -> Fraction:
    return Fraction(sum(map(wanted, outcomes)), len(outcomes))


def _interval() -> str:
    inside = [x for x in (Fraction(n, 8) for n in range(-80, 81)) if x >= -1 and 3 * x - 4 < 11]
    assert inside[0] == -1 and inside[-1] == 5 - Fraction(1, 8)
    return "[-1,5)"


def _complex() -> str:
    value = (2 + 3j) * (1 - 1j)
    return f"{value.real:.0f}+i" if value.imag == 1 else str(value)


def _series(first: Fraction, ratio: Fraction) -> float:
    return float(sum(first * ratio**k for k in range(60)))


ANSWERS = {  # where no equation of the solution comes to the answer
    "algebra/4": lambda: math.sqrt(72) + math.sqrt(50),
    "algebra/5": _interval,
    "counting_and_probability/1": lambda: _share(
        list(product(range(1, 7), repeat=2)), lambda throw: sum(throw) == 9
    ),
    "counting_and_probability/4": lambda: len(list(combinations(range(8), 3))),
    "geometry/1": lambda: math.dist((9, 0), (0, 12)),
    "geometry/2": lambda: math.pi * (10 * math.pi / (2 * math.pi)) ** 2,
    "intermediate_algebra/5": lambda: _series(Fraction(12), Fraction(1, 3)),
    "intermediate_algebra/6": _complex,
    "number_theory/1": lambda: max(d for d in range(1, 85) if 84 % d == 126 % d == 0),
    "number_theory/6": lambda: sum(_primes(20, 41)),
    "prealgebra/1": lambda: Fraction(15, 100) * 240,
    "prealgebra/2": lambda: Fraction(3, 4) - Fraction(1, 6),
    "precalculus/2": lambda: np.linalg.det(np.array([[3, 5], [2, 4]])),
    "precalculus/4": lambda: math.atan2(-1, -1) % (2 * math.pi),
}


def _number(latex: str) -> complex:
    r"""Evaluate a formula of whole numbers, \frac, \sqrt, \pi, powers, i and some x."""
    text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", latex)
    text = re.sub(r"\\sqrt\{([^{}]*)\}", r"\\sqrt(\1)", text)
    text = text.replace("\\cdot", "*").replace("^", "**").replace("{", "(").replace("}", ")")
    text = re.sub(r"(?<=[\d)])\s*(?=[\\ix(])", "*", text).replace("\\", "")
    return eval(text, {"__builtins__": {}}, {"sqrt": math.sqrt, "pi": math.pi, "i": 1j, "x": 1.7})


def _equations(solution: str) -> list[list[str]]:
    r"""Return the equations of a solution, each as its sides, without \boxed."""
    plain = re.sub(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1", solution)
    formulas = re.findall(r"\$([^$]+)\$", plain)
    return [sides for formula in formulas if len(sides := formula.split("=")) > 1]


def _worked_out(row: dict) -> bool:
    return any(sides[-1].strip() == row["answer"] for sides in _equations(row["solution"]))


@pytest.mark.parametrize("row", rows("math.jsonl"), ids=lambda row: row["unique_id"])
def test_mathematics_answers_are_found_again(row: dict) -> None:
    key = row["unique_id"].removeprefix("own/").removesuffix(".json")
    assert boxed_answer(row["solution"]) == row["answer"]
    found = ANSWERS[key]() if key in ANSWERS else None
    if isinstance(found, str):
        assert found == row["answer"]
    elif found is not None:
        assert _number(row["answer"]) == pytest.approx(complex(found), rel=1e-6)
    else:
        for sides in _equations(row["solution"]):
            values = [_number(side) for side in sides]
            assert values == pytest.approx([values[0]] * len(values)), row["solution"]


def test_mathematics_covers_seven_subjects_and_hides_its_solutions() -> None:
    questions, found = load("math.jsonl"), rows("math.jsonl")
    kinds = Counter(question.meta["stratum"] for question in questions)
    assert len(kinds) == 7 and min(kinds.values()) >= 20
    assert {f"own/{key}.json" for key in ANSWERS} <= {row["unique_id"] for row in found}
    worked = sum(_worked_out(row) for row in found)
    assert worked + len(ANSWERS) >= 0.7 * len(found)  # the rest are facts: "a week has 7 days"
    assert all(q.meta["solution"] not in first_message(q) for q in questions)


def test_the_samples_are_small_and_plain() -> None:
    for path in sorted(Path(SAMPLES).iterdir()):
        data = path.read_bytes()
        assert len(data) < 200_000 and data.decode("utf-8") and b"\r" not in data
