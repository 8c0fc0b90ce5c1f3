"""Questions and answers in other words, and answers among others, against plain passes."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from spikescore.labels.entailment import ExactEntailment
from spikescore.measures import choices
from spikescore.measures.choices import Choices, letter_tokens, parse_guesses, parse_ratings
from spikescore.measures.rewordings import Rewordings, Worded, others, written
from spikescore.measures.samples import replies
from spikescore.measures.self_questions import Case
from spikescore.model.chat import ChatFormat
from spikescore.model.engine import Engine
from spikescore.model.sampling import GREEDY, Sampling
from spikescore.model.turns import Limits
from tests.helpers.models import make_model
from tests.helpers.running import CHAT_TEMPLATE, make_tokenizer

TOKENIZER = make_tokenizer(chat_template=CHAT_TEMPLATE)
TOKENS, CONTEXT = 6, 2000
SAMPLES = ("the passage", "the Answer.", "", "and the question", "the passage")


@pytest.fixture(scope="module")
def asked():
    """A model and its chat."""
    model = make_model("qwen3", vocab_size=len(TOKENIZER), seed=1)
    model.lm_head.weight.data *= 10  # else all tokens are about as probable
    return model, ChatFormat(TOKENIZER, enable_thinking=False)


def engine_of(model, batch_size: int = 3):
    def engine(sampling: Sampling = Sampling(0, 1, 0)) -> Engine:  # noqa: B008
        return Engine(
            model, stop_ids=[2], sampling=sampling, limits=Limits(TOKENS, CONTEXT),
            batch_size=batch_size,
        )  # fmt: skip

    return engine


def plain_logits(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


# --- texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Question: Who built it?", "Who built it?"),
        ('New question: "Who built it?"', "Who built it?"),
        ("<think>hm</think>\nanswer: 12 m", "12 m"),
        (" The question is open. ", "The question is open."),
        ('""', ""),
    ],
)
def test_written(reply: str, expected: str):
    assert written(reply) == expected


def test_others_are_neither_empty_nor_the_text_itself_nor_twice_the_same():
    assert others(["", "Red", "blue", "RED.", " ", "Green", "green"], "Blue.") == ["Red", "Green"]
    assert others([], "x") == []


@pytest.mark.parametrize(
    ("reply", "guesses", "ratings"),
    [
        ("G1: Paris\nP1: 80\nG2: Lyon\nP2: 15%", {1: "Paris", 2: "Lyon"}, {1: 0.8, 2: 0.15}),
        ("G1: Paris, P1: 80; G2: in Lyon P2: 5", {1: "Paris", 2: "in Lyon"}, {1: 0.8, 2: 0.05}),
        ("Sure!\n**G1:** a: b\n- G1: later\nP1: none", {1: "a: b"}, {}),
        ("G1:\nP1: 250\nP2: 0.5", {}, {}),
        ("Paris, 80", {}, {}),
    ],
)
def test_guesses_and_ratings(reply, guesses, ratings):
    assert parse_guesses(reply) == guesses
    assert parse_ratings(reply) == ratings


def test_the_examples_are_in_the_form_that_is_read():
    guesses, ratings = choices._EXAMPLE_GUESSES, choices._EXAMPLE_RATINGS
    together = "\n".join(line for pair in zip(guesses, ratings, strict=True) for line in pair)
    assert list(parse_guesses(together)) == list(parse_ratings(together)) == [1, 2, 3, 4]
    assert sum(parse_ratings("\n".join(ratings)).values()) < 1


# --- rewordings -------------------------------------------------------------------------------


def test_rewordings_are_answered_greedily_and_mistakes_have_the_models_likelihoods(asked):
    model, chat = asked
    asks = Rewordings(
        model, chat, engine_of(model), Sampling(1.0, 1.0, 7), n_rewordings=3, n_counterfactuals=2,
        max_context=CONTEXT,
    )  # fmt: skip
    items = []
    for name, question in (("a", "of the passage"), ("b", "not in the prompt")):
        case = Case(name, "answer", "Question: of the passage ?", "the answer", ())
        prompt_ids = chat.render(
            [{"role": "system", "content": "answer"}, {"role": "user", "content": case.prompt}]
        )
        answer_ids = chat.tokenizer("the answer", add_special_tokens=False)["input_ids"]
        items.append(Worded(name, case, question, prompt_ids, answer_ids))
    found = list(asks.ask(items))
    assert found[1]["rewordings"] == {"questions": [items[1].question], "answers": ["the answer"]}
    worded = found[0]["rewordings"]
    assert worded["questions"][0] == "of the passage" and worded["answers"][0] == "the answer"
    assert 1 < len(worded["questions"]) == len(worded["answers"]) <= 4
    for question, answer in list(zip(worded["questions"], worded["answers"], strict=True))[1:]:
        shown = f"Question: {question} ?"
        ids = chat.render(
            [{"role": "system", "content": "answer"}, {"role": "user", "content": shown}]
        )
        begun = len(ids)
        while (
            len(ids) < begun + TOKENS and (token := int(plain_logits(model, ids)[-1].argmax())) != 2
        ):
            ids.append(token)
        assert chat.text(ids[begun:]) == answer
    for item, sections in zip(items, found, strict=True):
        kept = sections["counterfactuals"]
        assert kept["texts"][0] == "the answer" and len(kept["texts"]) > 1
        for text, loglik, n in zip(*kept.values(), strict=True):
            ids = item.answer_ids
            if text != "the answer":
                messages = [
                    {"role": "system", "content": "answer"},
                    {"role": "user", "content": item.case.prompt},
                ]
                ids = chat.answer_ids(messages, text)
                assert text not in ("", "the answer")
            log_p = torch.log_softmax(plain_logits(model, item.prompt_ids + ids), dim=-1)
            at = len(item.prompt_ids) - 1
            expected = sum(float(log_p[at + place, token]) for place, token in enumerate(ids))
            assert n == len(ids) and loglik == pytest.approx(expected, abs=1e-2)


# --- choices ----------------------------------------------------------------------------------


def make_choices(model, chat, max_context: int = CONTEXT) -> Choices:
    return Choices(
        model, chat, engine_of(model), ExactEntailment(), seed=3, max_context=max_context,
        batch_size=2,
    )  # fmt: skip


def chosen_by_hand(model, chat, case: Case, texts: list[str]) -> list[float]:
    options = "\n".join(f"{letter}) {text}" for letter, text in zip("PQRSTU", texts, strict=False))
    shown = (
        f"Question:\n{case.prompt}\n\nProposed answers:\n{options}\n\n"
        "Which proposed answer is right? Reply with its letter and nothing else."
    )
    begin, letters = letter_tokens(chat, "PQRSTU")
    logits = plain_logits(model, chat.render([{"role": "user", "content": shown}]) + begin)[-1]
    return torch.softmax(logits[letters[: len(texts)]], dim=-1).tolist()


def test_the_answer_is_chosen_among_what_means_something_else_and_none_of_it(asked):
    model, chat = asked
    alone = Case("x", None, "the question", "the answer", ())
    several = Case("y", None, "the question", "the answer", SAMPLES)
    found = make_choices(model, chat).ask([several, alone], ["?", "?"])
    p = chosen_by_hand(model, chat, alone, ["the answer", "None of the above"])
    assert found[1]["p_true_choices"] == pytest.approx(p[0], rel=1e-3)
    assert found[1]["p_none"] == pytest.approx(p[1], rel=1e-3)
    texts = ["the answer", "the passage", "and the question"]
    expected = []
    for order in permutations(texts):
        p = chosen_by_hand(model, chat, several, [*order, "None of the above"])
        expected.append((p[order.index("the answer")], p[-1]))
    own = found[0]["p_true_choices"], found[0]["p_none"]
    assert any(own == pytest.approx(pair, rel=1e-3) for pair in expected)
    short = make_choices(model, chat, max_context=20).ask([several], ["?"])[0]
    assert math.isnan(short["p_true_choices"]) and math.isnan(short["p_none"])


def test_at_most_five_candidates_of_different_meaning_in_an_order_of_the_item(asked):
    cases = [
        Case(name, None, "q", "a", tuple("bAbcdefg") + ("b.",)) for name in ("x", "y", "z", "x")
    ]
    found = make_choices(*asked)._options(cases, ["q"] * 4)
    assert all(sorted(texts[:-1]) == list("abcde") for texts in found)
    assert all(texts[-1] == "None of the above" for texts in found)
    assert found[0] == found[3] and len({tuple(texts) for texts in found}) > 1


def test_guesses_that_mean_the_same_are_added_up(asked, monkeypatch):
    said = {
        "two lines": ["G1: Paris\nP1: 60\nG2: lyon\nP2: 20\nG3: PARIS.\nP3: 15", "", "", "G1: x"],
        "one line for each and nothing else:\nG1": ["G1: Lyon\nG2: Paris", "G1: Rome", "no", ""],
        "the number of your first guess": ["P1: 70\nP2: 30", "P1: 90", "P1: 50", "P1: 5"],
    }

    def replies(engine, chat, prompts, sampling, spent):
        (key,) = [key for key in said if key in prompts[0][1][-1]["content"]]
        return [[reply] for reply in said[key]]

    monkeypatch.setattr(choices, "replies", replies)
    cases = [Case(str(n), None, "the question", "Paris", ()) for n in range(4)]
    found = make_choices(*asked).ask(cases, ["?"] * 4)
    top_k = [values["verbalised_top_k"] for values in found]
    assert top_k == pytest.approx([0.75, math.nan, math.nan, math.nan], nan_ok=True)
    two_stage = [values["verbalised_two_stage"] for values in found]
    assert two_stage == pytest.approx([0.3, 0.0, math.nan, math.nan], nan_ok=True)


def test_the_second_stage_is_asked_after_the_guesses(asked, monkeypatch):
    model, chat = asked
    seen = []

    def replies(engine, chat, prompts, sampling, spent):
        seen.append([[message["role"] for message in messages] for _, messages in prompts])
        return [[f"reply {len(seen)}"]] * len(prompts)

    monkeypatch.setattr(choices, "replies", replies)
    make_choices(model, chat).ask([Case("x", "system text", "the question", "a", ())], ["?"])
    one, two = ["user", "assistant"], ["user", "assistant"] * 2
    assert seen == [
        [["system", *one, "user"]],
        [["system", *two, "user"]],
        [["system", *two, "user", "assistant", "user"]],
    ]
    assert choices.N_GUESSES == 4


def test_replies_are_greedy(asked):
    model, chat = asked
    messages = [{"role": "user", "content": "the question of the passage"}]
    ((reply,),) = replies(engine_of(model)(), chat, [("x", messages)], GREEDY)
    ids = chat.render(messages)
    begun = len(ids)
    while len(ids) < begun + TOKENS and (token := int(plain_logits(model, ids)[-1].argmax())) != 2:
        ids.append(token)
    assert reply == chat.text(ids[begun:])
