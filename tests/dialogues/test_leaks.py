"""The leak guard: planted leaks are found, legitimate appearances of the answer are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spikescore.data.question import Question, first_message
from spikescore.data.reading import load_questions
from spikescore.dialogues.leaks import check_prompt, leak_report
from spikescore.dialogues.prompts import DEFAULT_SYSTEM_PROMPT
from tests.helpers.running import PUBLIC_DATA, ROOT, needs_public_data

TRIVIA = Question("trivia-17", "trivia", "What is the capital of Oru?", gold_answers=("Tamsin",))
PASSAGE = replace(
    TRIVIA, context="Oru is large. Its capital is Tamsin. Tamsin lies on a river.",
    history=(("Which river town is named?", "Tamsin"),),
)  # fmt: skip
OPTIONS = replace(TRIVIA, choices=("Belk", "Tamsin", "A tower"), gold_answers=("Tamsin", "B"))
WORKED = Question(
    "m-1", "math", "What is 6 times 7?", gold_answers=("42",),
    meta={"solution": "Six sevens are added up one by one. The sum is \\boxed{42}."},
)  # fmt: skip


def chat(question: Question, *, extra: str = "") -> str:
    """Render as a common chat template would, with the roles and marks it adds."""
    return (
        f"<|im_start|>system\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\n"
        f"<|im_start|>user\n{first_message(question)}{extra}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("question", [TRIVIA, PASSAGE, OPTIONS, WORKED])
def test_a_clean_prompt_is_clean(question: Question) -> None:
    assert check_prompt(question, chat(question)) is None
    assert check_prompt(question, f"{DEFAULT_SYSTEM_PROMPT}\n\n{first_message(question)}") is None


@pytest.mark.parametrize("question", [TRIVIA, PASSAGE, OPTIONS])
@pytest.mark.parametrize("extra", ["\nAnswer: Tamsin", "\n\n(tamsin)", "\nTAMSIN, of course"])
def test_one_appearance_too_many_is_a_leak(question: Question, extra: str) -> None:
    leak = check_prompt(question, chat(question, extra=extra))
    assert leak is not None and (leak.kind, leak.text) == ("gold answer", "Tamsin")
    assert leak.item_id == "trivia-17" and "amsin" in leak.excerpt.casefold()


def test_a_leak_before_the_passage_is_found() -> None:
    rendered = chat(PASSAGE).replace("Passage:", "Answer: Tamsin\nPassage:")
    assert check_prompt(PASSAGE, rendered) is not None


def test_a_part_of_a_word_is_no_leak() -> None:
    assert check_prompt(TRIVIA, chat(TRIVIA, extra="\nTamsinville")) is None


def test_aliases_are_searched_too() -> None:
    question = replace(TRIVIA, gold_answers=("Tamsin", "City of Tam"))
    leak = check_prompt(question, chat(question, extra="\nHint: city of\n tam"))
    assert leak is not None and leak.text == "City of Tam"


def test_worked_solution_whole_or_one_sentence_of_it() -> None:
    solution = WORKED.meta["solution"]
    plain = replace(WORKED, gold_answers=("forty-two",))
    for extra in (f"\nPassage: {solution}", "\nSix sevens are added up one by one."):
        leak = check_prompt(plain, chat(plain, extra=extra))
        assert leak is not None and leak.kind == "meta"


def test_the_id_is_a_leak() -> None:
    leak = check_prompt(TRIVIA, chat(TRIVIA, extra="\nId: trivia-17"))
    assert leak is not None and leak.kind == "id"


@pytest.mark.parametrize("gold", ["A", "B", "2", "question", "user", "answer", "brief", "options"])
def test_short_answers_and_template_words_give_no_false_alarm(gold: str) -> None:
    question = Question(
        "1", "d", "Is it A or 2?", choices=("a thing", "2 things", "B"), gold_answers=(gold,)
    )
    assert check_prompt(question, chat(question)) is None


@pytest.mark.parametrize("gold", ["A", "2", "-3", "1/2"])
def test_short_answers_that_leak_are_found(gold: str) -> None:
    question = Question("1", "d", "Which?", choices=("this", "that"), gold_answers=(gold,))
    assert check_prompt(question, chat(question)) is None
    leak = check_prompt(question, chat(question, extra=f"\nAnswer: {gold}"))
    assert leak is not None and leak.text == gold


def test_words_of_another_template_are_declared_as_boilerplate() -> None:
    question = replace(TRIVIA, gold_answers=("2023",))
    template = "Knowledge ends in December 2023.\n"
    rendered = template + chat(question)
    assert check_prompt(question, rendered) is not None
    boilerplate = (template, DEFAULT_SYSTEM_PROMPT)
    assert check_prompt(question, rendered, boilerplate=boilerplate) is None
    assert check_prompt(question, rendered + "2023", boilerplate=boilerplate) is not None


def test_a_known_wrong_answer_is_no_secret_but_a_leak_outside_the_options() -> None:
    question = replace(OPTIONS, meta={"incorrect_answers": ("Belk", "Upper Oru")})
    assert check_prompt(question, chat(question)) is None  # "Belk" stands among the options
    for wrong in ("Belk", "upper Oru"):
        leak = check_prompt(question, chat(question, extra=f"\nNot {wrong}."))
        assert leak is not None and leak.kind == "incorrect answer"


@pytest.mark.parametrize(
    "meta",
    [
        {"ideal_answers": ("Tam is old. The river town became capital after the flood.",)},
        {"notes": [{"by": "ann", "texts": ["The river town became capital after the flood."]}]},
    ],
)
def test_texts_deep_in_meta_are_searched(meta: dict) -> None:
    question = replace(TRIVIA, meta=meta)
    assert check_prompt(question, chat(question)) is None
    extra = "\nThe river town became\ncapital after the flood."
    leak = check_prompt(question, chat(question, extra=extra))
    assert leak is not None and leak.kind == "meta" and leak.text.startswith("The river town")


SHIPPED = replace(
    TRIVIA,
    gold_answers=(),
    meta={
        "shipped": {
            "messages": [
                {"role": "system", "content": "Use the atlas before you answer anything."},
                {"role": "user", "content": "What is the capital of Oru?"},
                {"role": "assistant", "content": "I look it up. ATLAS: Oru, seats of government"},
                {"role": "tool", "name": "atlas", "content": "Tamsin"},
                {"role": "assistant", "content": "So it must be Tamsin then."},
            ],
            "hallucinated": False,
            "labels": [{"text": "x", "meta": "Original: the capital is Belk since 1900"}],
        }
    },
)


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ("\nHint: TAMSIN", "shipped answer"),
        ("\nI look it up. atlas: oru, seats of government", "shipped answer"),
        ("\nATLAS: Oru, seats of government", "shipped answer"),
        ("\nSo it must be Tamsin then.", "shipped answer"),
        ("\nOriginal: the capital is Belk since 1900", "meta"),
    ],
)
def test_what_a_shipped_dialogue_answers_is_searched(extra: str, kind: str) -> None:
    assert check_prompt(SHIPPED, chat(SHIPPED)) is None
    leak = check_prompt(SHIPPED, chat(SHIPPED, extra=extra))
    assert leak is not None and leak.kind == kind


def test_what_a_shipped_dialogue_asks_is_no_secret() -> None:
    extra = "\nUse the atlas before you answer anything."
    assert check_prompt(SHIPPED, chat(SHIPPED, extra=extra)) is None


def test_each_member_of_a_list_is_a_gold_answer() -> None:
    question = replace(TRIVIA, gold_answers=("Tamsin; Belk", "Tam City; Belk"), answer_type="list")
    assert check_prompt(question, chat(question)) is None
    for name in ("Belk", "tam city"):
        leak = check_prompt(question, chat(question, extra=f"\n{name}"))
        assert (
            leak is not None
            and leak.kind == "gold answer"
            and leak.text.casefold() == name.casefold()
        )


def test_report() -> None:
    leak = check_prompt(TRIVIA, chat(TRIVIA, extra="\nAnswer: Tamsin"))
    assert leak_report([], 7).startswith("leak guard: 0 of 7 prompts")
    report = leak_report([leak], 7)
    assert "1 of 7" in report and 'trivia-17: gold answer "Tamsin"' in report
    long = leak_report([leak] * 45, 99)
    assert long.count("trivia-17:") == 20 and long.endswith("... and 25 more")


OWN = [path for name in ("samples", "tiny") for path in (ROOT / "datasets" / name).glob("*.json*")]


@pytest.mark.parametrize("path", sorted(OWN), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_false_alarm_on_the_sets_of_this_project(path: Path) -> None:
    questions = load_questions(path).questions
    assert len(questions) >= 40
    assert [leak for one in questions if (leak := check_prompt(one, chat(one)))] == []


@needs_public_data
@pytest.mark.parametrize(
    "path",
    [
        "svamp/SVAMP.json",
        "coqa/coqa-train-v1.0.json",
        "coqa/invented/coqa-dev-v1.0.json",
        "triviaqa/flashrag/test.jsonl",
        "commonsenseqa/dev_rand_split.jsonl",
        "belebele/reconstructed/eng_Latn.jsonl",
        "math/invented/MATH",
        "gsm8k/test.jsonl",
        "truthfulqa/TruthfulQA.csv",
        "halueval/qa_data.json",
        "synthweb/synthweb_example.jsonl",
        "ipw/all_correct_trajectories.jsonl",
    ],
)
def test_real_samples_are_clean_and_a_planted_gold_is_always_found(path: str) -> None:
    questions = load_questions(PUBLIC_DATA / path, on_bad_row="skip").questions
    leaks = [leak for one in questions if (leak := check_prompt(one, chat(one)))]
    assert leaks == []
    missed = [
        one.id
        for one in questions
        for gold in one.gold_answers[:1]  # some are withheld
        if check_prompt(one, chat(one, extra=f"\nAnswer: {gold}")) is None
    ]
    assert missed == []
