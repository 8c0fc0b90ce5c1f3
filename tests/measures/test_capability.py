"""Whether the model's layers hold that it can answer, against plain passes."""

from __future__ import annotations

import math

import pytest
import torch

from spikescore.measures.capability import Capability, weighted
from spikescore.measures.self_questions import Case, reply_tokens
from spikescore.model.chat import ChatFormat
from tests.helpers.models import make_model
from tests.helpers.running import CHAT_TEMPLATE, make_tokenizer

TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def asked():
    model = make_model("qwen3", vocab_size=len(TOKENIZER), seed=1)
    model.lm_head.weight.data *= 10  # else all tokens are about as probable
    chat = ChatFormat(make_tokenizer(chat_template=CHAT_TEMPLATE), enable_thinking=False)
    cases = [Case(f"q{n}", None, f"the question {n}" * n, "an answer", ()) for n in (1, 2, 3)]
    return model, chat, cases


def test_yes_is_weighed_over_the_last_tokens_and_all_layers(asked):
    model, chat, cases = asked
    begin, (yes, no) = reply_tokens(chat, ("Yes", "No"))
    rows = model.get_output_embeddings().weight.detach()[[yes, no]].double()
    found = Capability(model, chat, max_context=500, batch_size=2).ask(cases)
    for case, values in zip(cases, found, strict=True):
        text = (
            f"Question:\n{case.prompt}\n\n"
            "Can you answer this question rightly? Say Yes or No and nothing else."
        )
        ids = chat.render([{"role": "user", "content": text}]) + begin
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        total = weights = 0.0
        for token in range(6):
            for layer in range(len(states)):
                state = states[-1 - layer][0, -1 - token].double()
                p = float(torch.softmax(rows @ state, dim=0)[0])
                weight = math.exp(-(token**2)) * math.exp(-(layer**2))
                total, weights = total + weight * p, weights + weight
        assert values["internal_confidence"] == pytest.approx(total / weights, rel=1e-3)
    assert len({values["internal_confidence"] for values in found}) == 3


def test_what_does_not_fit_the_context_is_missing(asked):
    model, chat, cases = asked
    (values,) = Capability(model, chat, max_context=20, batch_size=2).ask(cases[:1])
    assert math.isnan(values["internal_confidence"]) and math.isnan(weighted([]))
