"""What measuring an item costs, against tokens that are counted by hand."""

from __future__ import annotations

import pytest
import torch

from spikescore.measures.samples import draw
from spikescore.model.engine import Engine
from spikescore.model.prompt_ends import read_ends
from spikescore.model.sampling import Sampling
from spikescore.model.turns import Limits, Spent
from tests.helpers.models import make_model

GROUPS = [
    [[5, 6, 7, 8], [5, 6, 9], [5, 6, 9], [5]],  # 4 tokens, 1 new, then the last in any case
    [],
    [[5, 6, 7, 8, 9, 10, 11]],  # 7, though others begin alike
]
COUNTS = [7, 0, 7]


@pytest.fixture(scope="module")
def model():
    return make_model("llama")


@pytest.mark.parametrize("slots", [1, 3])
def test_prompts_that_are_read_cost_what_is_new_in_them(model, slots):
    spent = [Spent() for _ in GROUPS]
    assert len(list(read_ends(model, GROUPS, slots=slots, spent=spent))) == 5
    assert [one.encoded for one in spent] == COUNTS and not any(one.generated for one in spent)
    assert spent[0].seconds > 0 == spent[1].seconds < spent[2].seconds


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_to_a_prompt_cost_one_encoding_and_their_tokens(model, batch_size):
    prompts = [("a", [5, 6, 7]), ("b", [8] * 30), ("b", [8] * 30), ("too long", [9] * 80)]
    engine = Engine(
        model, stop_ids=[2], sampling=Sampling(1.0, 1.0, 0), limits=Limits(4, 60),
        batch_size=batch_size,
    )  # fmt: skip
    spent = [Spent() for _ in prompts]
    numbers = dict.fromkeys(range(3), Sampling(1.0, 1.0, 0))
    found = dict(draw(engine, prompts, numbers, spent))
    assert isinstance(found[3], str) and spent[3] == Spent()
    assert [one.encoded for one in spent[:3]] == [3, 30, 30]
    for place in range(3):
        lengths = [len(turn.answer_ids) for turn in found[place]]
        assert spent[place].generated == sum(lengths) > 0
        assert spent[place].seconds == pytest.approx(sum(turn.seconds for turn in found[place]))


def test_a_reading_costs_all_that_the_model_is_given(model):
    spent = Spent()
    with pytest.raises(torch.OutOfMemoryError), spent.reading(model):
        model(torch.tensor([[5, 6, 7]]))
        model(torch.tensor([[5], [6]]))
        raise torch.OutOfMemoryError
    model(torch.tensor([[5, 6, 7]]))  # after it
    assert (spent.generated, spent.encoded) == (0, 5) and spent.seconds > 0
