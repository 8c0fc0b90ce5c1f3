"""Samples and questions to the model about its own answer, against plain forward passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spikescore.errors import UserError
from spikescore.measures.samples import draw
from spikescore.measures.self_questions import (
    _JUDGE_IDEAS,
    _TRUTH,
    TRUTH_STATES,
    Case,
    SelfQuestions,
    confidence_messages,
    parse_confidence,
    reply_tokens,
    selfcheck_nli,
    sentences,
)
from spikescore.model.chat import ChatFormat
from spikescore.model.engine import Engine
from spikescore.model.memory import PASS_TOKENS
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
    monkeypatch.setitem(PASS_TOKENS, "cpu", room)
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


def make_cases(n: int = 3) -> list[Case]:
    cases = []
    for item in range(n):
        prompt = f"the question of the passage {item}"
        samples = ("the passage", "the question and the answer", "", "and the")[: item + 1]
        cases.append(Case(f"q{item}", "answer", prompt, f"the answer {item}. It is.", samples))
    return cases


def make_engine(model, batch_size: int) -> Engine:
    return Engine(
        model, stop_ids=[2], sampling=Sampling(0, 1, 0), limits=Limits(7, 400),
        batch_size=batch_size,
    )  # fmt: skip


def make_prompts(chat: ChatFormat) -> list[tuple[str, list[int]]]:
    texts = ("the question", "the question of the passage", "the answer")
    return [(f"q{n}", chat.render([{"role": "user", "content": text}]))
            for n, text in enumerate(texts)]  # fmt: skip


def drawn_by(model, batch_size: int, prompts, samplings) -> dict[int, list | str]:
    return dict(draw(make_engine(model, batch_size), prompts, samplings))


def test_samples_carry_the_models_own_probabilities_and_depend_on_names_alone():
    model, prompts = small_model(), make_prompts(make_chat())
    samplings = {0: Sampling(0, 1, 7), **dict.fromkeys((1, 2, 3), Sampling(1.0, 1.0, 7))}
    drawn = drawn_by(model, 4, prompts, samplings)
    for place, (_, prompt) in enumerate(prompts):
        turns = drawn[place]
        assert len({tuple(turn.answer_ids) for turn in turns[1:]}) > 1
        for turn in turns:
            ids = [*prompt, *turn.answer_ids]
            output = plain(model, ids)
            logprobs = torch.log_softmax(output.logits[0].double(), dim=-1)
            at = range(len(prompt) - 1, len(ids) - 1)
            expected = sum(float(logprobs[i, ids[i + 1]]) for i in at)
            assert sum(turn.logprobs) == pytest.approx(expected, abs=1e-3)
            state = output.hidden_states[1][0, -1].numpy()
            np.testing.assert_allclose(turn.states[LAST][1], state, rtol=2e-3, atol=1e-3)
            if turn is turns[0]:  # greedy
                assert turn.answer_ids == [int(logprobs[i].argmax()) for i in at]
    ids = [[turn.answer_ids for turn in turns] for turns in drawn.values()]
    alone = drawn_by(model, 1, prompts[2:], samplings)
    assert [turn.answer_ids for turn in alone[0]] == ids[2]
    other = drawn_by(model, 1, prompts[2:], dict.fromkeys((1, 2, 3), Sampling(1.0, 1.0, 8)))
    assert [turn.answer_ids for turn in other[0]] != ids[2][1:]


def test_a_prompt_that_cannot_be_asked_is_an_error_of_its_item():
    prompts = [("x", [5] * 500), *make_prompts(make_chat())[:1]]
    found = drawn_by(small_model(), 2, prompts, dict.fromkeys((1, 2), Sampling(1.0, 1.0, 7)))
    assert "the context allows 400" in found[0] and len(found[1]) == 2


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
        return Case("x", None, "?", answer, samples)

    cases = [case("One. Two.", "A", " ", "B"), case("Three", "C"), case("", "A"), case("One.", "")]
    found = selfcheck_nli(judge, cases)
    assert found == pytest.approx([(0.3 + 0.8) / 2, 0.25, math.nan, math.nan], nan_ok=True)


# --- questions --------------------------------------------------------------------------------


def answers_of(asks: SelfQuestions, cases: list[Case]) -> list[dict]:
    found = dict(asks.ask(cases))
    assert sorted(found) == list(range(len(cases)))
    return [found[place] for place in range(len(cases))]


@pytest.fixture(scope="module")
def asked():
    """A model, three cases with 1, 2 and 3 samples, the third one empty, and their answers."""
    model, chat = small_model("qwen3"), make_chat()
    asks = SelfQuestions(model, chat, stop_ids={2}, max_context=1500, batch_size=2)
    cases = make_cases()
    return model, chat, list(zip(cases, answers_of(asks, cases), strict=True))


def next_probabilities(model, chat, messages, begin) -> torch.Tensor:
    shown = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = chat.tokenizer(shown, add_special_tokens=False)["input_ids"] + begin
    return torch.softmax(plain(model, ids).logits[0, -1].double(), dim=-1)


def test_p_true_is_the_probability_of_a(asked):
    model, chat, cases = asked
    begin, (a, _) = reply_tokens(chat, ("A", "B"))
    for case, found in cases:
        ideas = "\n".join(f"- {sample}" for sample in case.samples)
        shown = (
            f"{case.prompt}\n\nBrainstormed answers:\n{ideas}\n\nPossible answer: {case.answer}"
            "\n\nIs the possible answer:\nA) true\nB) false"
        )
        messages = [
            {"role": "system", "content": _JUDGE_IDEAS},
            {"role": "user", "content": shown},
        ]
        expected = float(next_probabilities(model, chat, messages, begin)[a])
        assert found["p_true"] == pytest.approx(expected, rel=1e-3)


def test_selfcheck_prompt_is_the_mean_share_of_no(asked):
    model, chat, cases = asked
    begin, (yes, no) = reply_tokens(chat, ("Yes", "No"))
    for case, found in cases:
        shares = []
        for sample in filter(None, case.samples):
            text = (
                f"Question:\n{case.prompt}\n\nAnswer:\n{case.answer}\n\n"
                f"Another reply to the same question:\n{sample}\n\n"
                "Is the answer supported by the other reply? Say Yes or No and nothing else."
            )
            p = next_probabilities(model, chat, [{"role": "user", "content": text}], begin)
            shares.append(float(p[no] / (p[yes] + p[no])))
        assert found["selfcheck_prompt"] == pytest.approx(np.mean(shares), rel=1e-3)


def test_truth_states_are_those_of_the_last_prompt_token_and_of_both_replies(asked):
    model, chat, cases = asked
    begin, (yes, no) = reply_tokens(chat, ("Yes", "No"))
    for case, found in cases:
        text = (
            f"Question:\n{case.prompt}\n\nAnswer:\n{case.answer}\n\n"
            "Does this answer to the question reflect the truth?"
        )
        shown = f"<bos><user> {text}<end><assistant>"
        ids = chat.tokenizer(shown, add_special_tokens=False)["input_ids"]
        replies = {"": [], "_yes": [*begin, yes], "_no": [*begin, no]}
        for name, reply in replies.items():
            states = plain(model, ids + reply).hidden_states
            expected = torch.stack([state[0, -1] for state in states]).numpy()
            state = found[f"truth_state{name}"]
            assert state.dtype == np.float16 and state.shape == (4, 64)
            np.testing.assert_allclose(state, expected, rtol=2e-3, atol=1e-3)


def test_confidence_is_asked_after_the_answer_and_decoded_greedily(monkeypatch):
    from spikescore.measures import self_questions

    model, chat, cases = small_model("qwen3"), make_chat(), make_cases()
    read = {}
    monkeypatch.setattr(self_questions, "CONFIDENCE_TOKENS", 6)
    monkeypatch.setattr(
        self_questions, "parse_confidence", lambda text: read.setdefault(text, len(read) / 10)
    )
    asks = SelfQuestions(model, chat, stop_ids={2}, max_context=1500, batch_size=2)
    for case, found in zip(cases, answers_of(asks, cases), strict=True):
        messages = confidence_messages(case)
        assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
        assert [m["content"] for m in messages][:3] == ["answer", case.prompt, case.answer]
        ids = chat.render(messages)
        begun = len(ids)
        while len(ids) < begun + 6:
            token = int(plain(model, ids).logits[0, -1].argmax())
            if token == 2:
                break
            ids.append(token)
        reply = chat.tokenizer.decode(ids[begun:], skip_special_tokens=True).strip()
        assert found["verbalised_confidence"] == read[reply]


def test_what_does_not_fit_the_context_is_missing():
    model, chat = small_model(), make_chat()
    case, bare = make_cases()[0], Case("x", None, "?", "the", ())
    short = SelfQuestions(model, chat, stop_ids={2}, max_context=60, batch_size=2)
    (found,) = answers_of(short, [case])
    assert len(found) == 6 and all(np.isnan(value).all() for value in found.values())
    wide = SelfQuestions(model, chat, stop_ids={2}, max_context=1500, batch_size=2)
    (found,) = answers_of(wide, [bare])  # no sample to hold the answer against
    assert math.isnan(found["selfcheck_prompt"]) and 0 < found["p_true"] < 1
    # one token too little for the replies: the whole of that question is left out, no other is
    longest = len(chat.render([{"role": "user", "content": _TRUTH.format(
        prompt=case.prompt, answer=case.answer)}])) + 1  # fmt: skip
    tight = SelfQuestions(model, chat, stop_ids={2}, max_context=longest - 1, batch_size=2)
    (found,) = answers_of(tight, [case])
    assert all(np.isnan(found[name]).all() for name in TRUTH_STATES)
