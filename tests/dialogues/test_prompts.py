"""Prompts: the first message shows four fields and no other; schedules as documented."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from spikescore.data.question import Question, first_message, leaked_lines, lettered
from spikescore.dialogues.prompts import (
    FAMILIES,
    PLACEBO,
    SHORT_ANSWER_TOKENS,
    STRATEGIES,
    Prompt,
    follow_up,
    load_prompts,
)
from spikescore.errors import UserError


def schedule(strategy: str, last: int = 20, **options) -> list[Prompt]:
    options = {"seed": 1, "item_id": "x", **options}
    return [follow_up(strategy, turn, **options) for turn in range(2, last + 1)]


def families_of(strategy: str, **options) -> list[str]:
    return [prompt.family for prompt in schedule(strategy, **options)]


# --- the texts --------------------------------------------------------------------------------


def test_at_least_35_distinct_prompts_in_8_families() -> None:
    real = {name: prompts for name, prompts in FAMILIES.items() if name != PLACEBO}
    texts = [prompt.text for prompts in real.values() for prompt in prompts]
    assert len(real) >= 8 and len(texts) >= 35
    assert len(set(texts)) == len(texts) and all(text.strip() == text for text in texts)


def test_intensity_rises_from_1_to_5_in_every_family() -> None:
    for name, prompts in FAMILIES.items():
        levels = [prompt.intensity for prompt in prompts]
        assert levels == sorted(levels) and set(levels) <= {1, 2, 3, 4, 5}
        assert all(prompt.family == name for prompt in prompts)


# --- schedules --------------------------------------------------------------------------------


def test_progressive_ladder() -> None:
    expected = (
        ["encouragement"] * 3 + ["analytical"] * 3 + ["exploratory"] * 3 + ["technical"] * 3
        + ["critical"] * 3 + ["reflective"] * 9
    )  # fmt: skip
    assert families_of("progressive", last=25) == expected


def test_shuffled_asks_the_progressive_prompts_once_each_in_another_order() -> None:
    plain, one, other = (
        schedule("progressive"), schedule("shuffled", order=1), schedule("shuffled", order=2)
    )  # fmt: skip
    assert len(plain) == 19
    assert Counter(one) == Counter(plain) == Counter(other)
    assert plain != one != other != plain
    assert schedule("shuffled", order=1, item_id="another", seed=9) == one


def test_the_leaked_lines_show_what_the_release_shows() -> None:
    question = Question("q-17", "d", "Which metal?", gold_answers=("iron", "Fe"))
    assert leaked_lines(question) == "Id: q-17\n\nAnswer: iron"


def test_progressive_is_the_same_for_every_item_and_seed() -> None:
    assert schedule("progressive") == schedule("progressive", seed=9, item_id="y")


def test_every_strategy_gives_nineteen_follow_ups() -> None:
    for strategy in STRATEGIES:
        prompts = schedule(strategy)
        assert len(prompts) == 19 and all(prompt.text for prompt in prompts)
        assert all(prompt in FAMILIES[prompt.family] for prompt in prompts)


def test_deep_analysis_and_creative_thinking() -> None:
    deep = Counter(families_of("deep_analysis"))
    assert deep == {"analytical": 5, "step_by_step": 5, "technical": 5, "critical": 4}
    creative = Counter(families_of("creative_thinking"))
    assert creative == {"exploratory": 5, "creative": 5, "encouragement": 4, "reflective": 5}


def test_mixed_walks_all_families_with_rising_intensity() -> None:
    prompts = schedule("mixed")
    real = set(FAMILIES) - {PLACEBO}
    assert {prompt.family for prompt in prompts[:8]} == real
    assert [p.family for p in prompts[8:16]] == [p.family for p in prompts[:8]]
    for first, second in zip(prompts[:8], prompts[8:16], strict=True):
        assert FAMILIES[first.family].index(second) == FAMILIES[first.family].index(first) + 1


def test_random_is_seeded_by_item_and_turn() -> None:
    assert schedule("random") == schedule("random")
    assert schedule("random") != schedule("random", seed=2)
    assert schedule("random") != schedule("random", item_id="y")
    alone = follow_up("random", 11, seed=1, item_id="x")
    assert alone == schedule("random")[9]
    drawn = Counter(
        prompt.family for item in range(100) for prompt in schedule("random", item_id=str(item))
    )
    assert set(drawn) == set(FAMILIES) - {PLACEBO} and min(drawn.values()) > 100


def test_adaptive_looks_at_the_length_of_the_last_answer() -> None:
    short = set(families_of("adaptive", last_answer_tokens=SHORT_ANSWER_TOKENS - 1))
    long = set(families_of("adaptive", last_answer_tokens=SHORT_ANSWER_TOKENS))
    assert short == {"encouragement", "analytical", "step_by_step"}
    assert long == {"critical", "exploratory", "reflective"}


def test_fixed_and_continue_repeat_one_prompt() -> None:
    assert len(set(schedule("fixed"))) == 1
    assert {prompt.text for prompt in schedule("continue")} == {"Continue."}


def test_turn_one_and_unknown_strategies_are_refused() -> None:
    with pytest.raises(ValueError, match="turn 2"):
        follow_up("progressive", 1, seed=0, item_id="x")
    with pytest.raises(UserError, match='"progresive".*progressive'):
        follow_up("progresive", 2, seed=0, item_id="x")


# --- a user's own prompts ---------------------------------------------------------------------


def test_prompts_file_replaces_the_families(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    own = {"mine": ["One.", "Two."], "critical": [{"intensity": 5, "text": "Hard."},
                                                 {"intensity": 1, "text": " Soft. "}]}  # fmt: skip
    path.write_text(json.dumps(own))
    families = load_prompts(path)
    assert [prompt.text for prompt in families["critical"]] == ["Soft.", "Hard."]
    texts = {"One.", "Two.", "Soft.", "Hard."}
    for strategy in STRATEGIES:
        assert {prompt.text for prompt in schedule(strategy, families=families)} <= texts
    steps = schedule("progressive", last=4, families=families)
    assert [prompt.text for prompt in steps] == ["Soft.", "Hard.", "Hard."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ("{}", "JSON object"),
        ('{"a": []}', 'family "a"'),
        ('{"a": "text"}', 'family "a"'),
        ('{"a": ["ok", " "]}', "entry 2"),
        ('{"a": [{"intensity": "high", "text": "x"}]}', "entry 1"),
        ('{"a": [7]}', "entry 1"),
        ('{"a": ["x"], "b": ["y"], "a": ["z"]}', '"a" stands twice'),
        ('{"a": [{"intensty": 3, "text": "x"}]}', "entry 1"),
    ],
)
def test_a_bad_prompts_file_is_a_user_error(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "prompts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_prompts(path)


# --- the first message ------------------------------------------------------------------------


def test_first_message_in_full() -> None:
    question = Question(
        "id", "d", "Which metal?", context="Wires.", choices=("iron", "copper"),
        history=(("Is it hot?", "No."), ("Is it red?", "Yes.")),
    )  # fmt: skip
    assert first_message(question) == (
        "Passage:\nWires.\n\nConversation so far:\nQ: Is it hot?\nA: No.\nQ: Is it red?\nA: Yes."
        "\n\nQuestion: Which metal?\n\nOptions:\nA. iron\nB. copper"
    )
    assert first_message(Question("id", "d", "Which metal?")) == "Question: Which metal?"


def test_nothing_but_the_four_fields_is_shown() -> None:
    canary = "CANARY"
    question = Question(
        canary, canary, "Q?", context="C.", choices=("x", "y"), gold_answers=(canary,),
        group=canary, history=(("a", "b"),), answer_type="choice",
        meta={"solution": canary, canary: canary},
    )  # fmt: skip
    assert canary not in first_message(question)
    for strategy in STRATEGIES:
        assert canary not in str(schedule(strategy, item_id=canary))


def test_letters() -> None:
    assert lettered(["x", "y", "z"]) == [("A", "x"), ("B", "y"), ("C", "z")]
