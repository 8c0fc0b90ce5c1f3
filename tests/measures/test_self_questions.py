"""Samples and questions to the model about its own answer, against plain forward passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spikescore.errors import UserError
from spikescore.measures.self_questions import (
    Case,
    SelfQuestions,
    confidence_messages,
    draw_samples,
    parse_confidence,
    reply_tokens,
    selfcheck_nli,
    sentences,
)
from spikescore.model import prompt_ends
from spikescore.model.chat import ChatFormat
from spikescore.model.engine import Engine
from spikescore.model.prompt_ends import read_ends
from spikescore.model.sampling import Sampling
from spikescore.model.turns import LAST, Limits
from tests.helpers.models import make_model
from tests.helpers.running import CHAT_TEMPLATE, make_tokenizer

TOKENIZER = make_tokenizer()


def make_chat(template: str | None = CHAT_TEMPLATE) -> ChatFormat:
    return ChatFormat(make_tokenizer(chat_template=template), enable_thinking=False)


def small_model(kind: str = "llama"):
    model = make_model(kind, vocab_size=len(TOKENIZER), seed=1)
    model.lm_head.weight.data *= 10  # else all tokens are about as probable
    return model


def plain(model, ids: list[int]):
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True)


# --- replies as text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("85", 0.85),
        ("85%", 0.85),
        ("Confidence: 72.5 %", 0.725),
        ("I am 90% sure, of 3 options.", 0.9),
        ("There are 3 options; I am 90% sure.", 0.9),
        ("On a scale from 0 to 100: 40", 0.4),
        ("0-100? I say 15.", 0.15),
        ("95/100", 0.95),
        ("95 out of 100", 0.95),
        ("100.", 1.0),
        ("0", 0.0),
        ("50-60", 0.5),
        ("**80**", 0.8),
        ("<think>maybe 10</think>70", 0.7),
        ("In 1999 I was 60 sure", 0.6),
        ("87,5", 0.875),
        ("0.5%", 0.005),
        ("0.9", math.nan),
        ("-5", math.nan),
        ("150", math.nan),
        ("1,000", math.nan),
        ("the 90th percentile", math.nan),
        ("ninety", math.nan),
        ("", math.nan),
    ],
)
def test_parse_confidence(reply: str, expected: float):
    assert parse_confidence(reply) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is Paris. I am sure!  Is it?", ["It is Paris.", "I am sure!", "Is it?"]),
        ("About 3.5 m, i.e. not much", ["About 3.5 m, i.e. not much"]),
        ("one\n\n- two\n---\n", ["one", "- two"]),
        ("...", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]):
    assert sentences(text) == expected


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_replies_are_told_apart_by_the_tokens_the_template_gives_them(template):
    chat = make_chat(template)
    begin, (yes, no) = reply_tokens(chat, ("Yes", "No"))
    read = chat.tokenizer.decode
    assert yes != no
    assert " Yes".startswith(read([*begin, yes])) and " No".startswith(read([*begin, no]))
    with pytest.raises(UserError, match='cannot tell a reply "Yes" from "Yes"'):
        reply_tokens(chat, ("Yes", "Yes"))


# --- ends of prompts --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize(("slots", "room"), [(1, 4096), (3, 10), (8, 4096)])
def test_ends_of_prompts_equal_plain_passes(kind, slots, room, monkeypatch):
    monkeypatch.setitem(prompt_ends.PASS_TOKENS, "cpu", room)
    model, rng = make_model(kind), np.random.default_rng(0)
    shared = rng.integers(5, 110, 12).tolist()
    groups = [
        [shared + rng.integers(5, 110, n).tolist() for n in sizes]
        for sizes in ([3, 9, 1], [], [30], [2, 2], [0])
    ]
    groups[3].append(groups[3][0][:6])  # the beginning of what was read before
    found = {(end.group, end.number): end for end in read_ends(model, groups, slots=slots)}
    assert sorted(found) == [(0, 0), (0, 1), (0, 2), (2, 0), (3, 0), (3, 1), (3, 2), (4, 0)]
    for (group, number), end in found.items():
        output = plain(model, groups[group][number])
        torch.testing.assert_close(end.logits, output.logits[0, -1], rtol=1e-3, atol=1e-4)
        expected = torch.stack([state[0, -1] for state in output.hidden_states])
        torch.testing.assert_close(torch.stack(end.states), expected, rtol=1e-3, atol=1e-4)


# --- samples ----------------------------------------------------------------------------------


def make_cases(chat: ChatFormat, n: int = 3) -> list[Case]:
    cases = []
    for item in range(n):
        prompt = f"the question of the passage {item}"
        messages = [
            {"role": "system", "content": "answer"},
            {"role": "user", "content": prompt},
        ]
        ids = tuple(chat.render(messages))
        samples = ("the passage", "the question and the answer", "", "and the")[: item + 1]
        cases.append(Case(f"q{item}", "answer", prompt, ids, f"the answer {item}. It is.", samples))
    return cases


def make_engine(model, batch_size: int) -> Engine:
    return Engine(
        model, stop_ids=[2], sampling=Sampling(0, 1, 0), limits=Limits(7, 400),
        batch_size=batch_size,
    )  # fmt: skip


def test_samples_carry_the_models_own_probabilities_and_depend_on_names_alone():
    model, chat = small_model(), make_chat()
    cases = make_cases(chat)
    drawn = draw_samples(make_engine(model, 4), cases, 3, Sampling(1.0, 1.0, 7))
    for case, turns in zip(cases, drawn, strict=True):
        assert len({tuple(turn.answer_ids) for turn in turns}) > 1
        for turn in turns:
            ids = [*case.prompt_ids, *turn.answer_ids]
            output = plain(model, ids)
            logprobs = torch.log_softmax(output.logits[0].double(), dim=-1)
            at = range(len(case.prompt_ids) - 1, len(ids) - 1)
            expected = sum(float(logprobs[i, ids[i + 1]]) for i in at)
            assert sum(turn.logprobs) == pytest.approx(expected, abs=1e-3)
            state = output.hidden_states[1][0, -1].numpy()
            np.testing.assert_allclose(turn.states[LAST][1], state, rtol=2e-3, atol=1e-3)
    alone = draw_samples(make_engine(model, 1), cases[2:], 3, Sampling(1.0, 1.0, 7))
    assert [turn.answer_ids for turn in alone[0]] == [turn.answer_ids for turn in drawn[2]]
    other = draw_samples(make_engine(model, 1), cases[2:], 3, Sampling(1.0, 1.0, 8))
    assert [turn.answer_ids for turn in other[0]] != [turn.answer_ids for turn in drawn[2]]


def test_a_prompt_that_cannot_be_asked_is_an_error_of_its_item():
    model, chat = small_model(), make_chat()
    fine, long = make_cases(chat)[:2]
    long = Case("x", None, "the", tuple([5] * 500), "the")
    found = draw_samples(make_engine(model, 2), [long, fine], 2, Sampling(1.0, 1.0, 7))
    assert "more than the context of 400" in found[0] and len(found[1]) == 2


class Contradictor:
    """An NLI model that finds what its table says."""

    def __init__(self, table):
        self.table = table
        self.asked = []

    def contradiction_probabilities(self, pairs):
        self.asked.extend(pairs)
        return [self.table[pair] for pair in pairs]


def test_selfcheck_nli_is_a_mean_over_sentences_of_a_mean_over_samples():
    judge = Contradictor(
        {
            (None, "A", "One."): 0.2,
            (None, "B", "One."): 0.4,
            (None, "A", "Two."): 1.0,
            (None, "B", "Two."): 0.6,
            (None, "C", "Three"): 0.25,
        }
    )

    def case(answer, *samples):
        return Case("x", None, "?", (), answer, samples)

    cases = [case("One. Two.", "A", " ", "B"), case("Three", "C"), case("", "A"), case("One.", "")]
    found = selfcheck_nli(judge, cases)
    assert found == pytest.approx([(0.3 + 0.8) / 2, 0.25, math.nan, math.nan], nan_ok=True)


# --- questions --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked():
    """A model, its questions, and three cases with 1, 2 and 3 samples, the third one empty."""
    model, chat = small_model("qwen3"), make_chat()
    asks = SelfQuestions(model, chat, stop_ids={2}, max_context=1500, batch_size=2)
    return model, chat, asks, make_cases(chat)


def next_probabilities(model, chat, messages, begin) -> torch.Tensor:
    shown = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = chat.tokenizer(shown, add_special_tokens=False)["input_ids"] + begin
    return torch.softmax(plain(model, ids).logits[0, -1].double(), dim=-1)


def test_p_true_is_the_probability_of_a(asked):
    model, chat, asks, cases = asked
    begin, (a, _) = reply_tokens(chat, ("A", "B"))
    for case, found in zip(cases, asks.p_true(cases), strict=True):
        ideas = "\n".join(f"- {sample}" for sample in case.samples)
        shown = (
            f"{case.prompt}\n\nBrainstormed answers:\n{ideas}\n\nPossible answer: {case.answer}"
            "\n\nIs the possible answer:\nA) true\nB) false"
        )
        from spikescore.measures.self_questions import _INSTRUCTION

        messages = [
            {"role": "system", "content": _INSTRUCTION},
            {"role": "user", "content": shown},
        ]
        expected = float(next_probabilities(model, chat, messages, begin)[a])
        assert found == pytest.approx(expected, rel=1e-3)


def test_selfcheck_prompt_is_the_mean_share_of_no(asked):
    model, chat, asks, cases = asked
    begin, (yes, no) = reply_tokens(chat, ("Yes", "No"))
    for case, found in zip(cases, asks.selfcheck_prompt(cases), strict=True):
        shares = []
        for sample in filter(None, case.samples):
            text = (
                f"Question:\n{case.prompt}\n\nAnswer:\n{case.answer}\n\n"
                f"Another reply to the same question:\n{sample}\n\n"
                "Is the answer supported by the other reply? Say Yes or No and nothing else."
            )
            p = next_probabilities(model, chat, [{"role": "user", "content": text}], begin)
            shares.append(float(p[no] / (p[yes] + p[no])))
        assert found == pytest.approx(np.mean(shares), rel=1e-3)


def test_truth_states_are_those_of_the_last_prompt_token_and_of_both_replies(asked):
    model, chat, asks, cases = asked
    begin, (yes, no) = reply_tokens(chat, ("Yes", "No"))
    for case, found in zip(cases, asks.truth_states(cases), strict=True):
        text = (
            f"Question:\n{case.prompt}\n\nAnswer:\n{case.answer}\n\n"
            "Does this answer to the question reflect the truth?"
        )
        shown = f"<bos><user> {text}<end><assistant>"
        ids = chat.tokenizer(shown, add_special_tokens=False)["input_ids"]
        replies = {"": [], "_yes": [*begin, yes], "_no": [*begin, no]}
        assert set(found) == {f"truth_state{name}" for name in replies}
        for name, reply in replies.items():
            states = plain(model, ids + reply).hidden_states
            expected = torch.stack([state[0, -1] for state in states]).numpy()
            state = found[f"truth_state{name}"]
            assert state.dtype == np.float16 and state.shape == (4, 64)
            np.testing.assert_allclose(state, expected, rtol=2e-3, atol=1e-3)


def test_confidence_is_asked_after_the_answer_and_decoded_greedily(asked, monkeypatch):
    model, chat, asks, cases = asked
    from spikescore.measures import self_questions

    replies = []
    monkeypatch.setattr(self_questions, "CONFIDENCE_TOKENS", 6)
    monkeypatch.setattr(
        self_questions, "parse_confidence", lambda text: replies.append(text) or 0.5
    )
    assert asks.verbalised_confidence(cases) == [0.5] * 3
    for case, reply in zip(cases, replies, strict=True):
        roles = [message["role"] for message in confidence_messages(case)]
        assert roles == ["system", "user", "assistant", "user"]
        assert [m["content"] for m in confidence_messages(case)][:3] == [
            "answer", case.prompt, case.answer,
        ]  # fmt: skip
        ids, n = chat.render(confidence_messages(case)), 0
        begun = len(ids)
        while n < 6:
            token = int(plain(model, ids).logits[0, -1].argmax())
            if token == 2:
                break
            ids.append(token)
            n += 1
        assert reply == chat.tokenizer.decode(ids[begun:], skip_special_tokens=True).strip()


def test_what_does_not_fit_the_context_is_missing():
    model, chat = small_model(), make_chat()
    asks = SelfQuestions(model, chat, stop_ids={2}, max_context=60, batch_size=2)
    case = make_cases(chat)[0]
    assert math.isnan(asks.p_true([case])[0]) and math.isnan(asks.selfcheck_prompt([case])[0])
    assert asks.truth_states([case]) == [None]
    assert math.isnan(asks.verbalised_confidence([case])[0])
    bare = Case("x", None, "?", (1,), "the", ())
    wide = SelfQuestions(model, chat, stop_ids={2}, max_context=1500, batch_size=2)
    assert math.isnan(wide.selfcheck_prompt([bare])[0])
