"""Accuracy against cost: what items cost by hand, from records to the table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spikescore.detectors import REGISTRY
from spikescore.detectors.base import MEASURED
from spikescore.detectors.costs import groups_read, measured_costs, turn_costs
from spikescore.detectors.scoring import _described
from spikescore.report.comparison import Comparison
from spikescore.report.cost_tables import cost_points, cost_table, item_cost, mean_cost
from spikescore.report.main_tables import main_entries
from spikescore.report.plots import cost_plot
from tests.helpers.books import make_book

STEPS = [
    {"n_prompt_tokens": 100, "n_kept": 0, "n_response_tokens": 7, "seconds": 0.5},
    {"n_prompt_tokens": 120, "n_kept": 105, "n_response_tokens": 20, "seconds": 0.25},
    {"n_prompt_tokens": 150, "n_kept": 140, "n_response_tokens": 30, "seconds": 0.25},
]
COSTS = {
    "attention": {"generated": 0, "encoded": 107, "seconds": 0.5},
    "lens": {"generated": 0, "encoded": 214, "seconds": 1.0},  # of all turns
    "samples": {"generated": 20, "encoded": 100, "seconds": 2.0},
    "questions": {"generated": 30, "encoded": 1000, "seconds": 4.0},
}


def costly_book():
    """Every item has the costs of STEPS, but those of the first domain say no seconds."""
    book = make_book(turns=3)
    generated, encoded, seconds = turn_costs(STEPS)
    measured = measured_costs(STEPS[0], {"costs": COSTS})
    book.items = [
        replace(
            item, turn_tokens=generated, turn_encoded=encoded, measured=measured,
            turn_seconds=() if item.domain == "d0" else seconds,
        )
        for item in book.items
    ]  # fmt: skip
    for name, needs in (("sampled", ["samples"]), ("asked", ["questions"]), ("old", ["choices"])):
        book.methods[name] = {"title": name, "family": "training-free", "needs": needs}
        book.scores[name, "", 0] = np.random.default_rng(0).normal(size=len(book.items))
    return book


def test_the_costs_of_turns_are_read_from_the_steps():
    assert turn_costs(STEPS) == ((7, 20, 30), (100, 15, 10), (0.5, 0.25, 0.25))


@pytest.mark.parametrize("missing", ["n_response_tokens", "n_prompt_tokens", "n_kept", "seconds"])
def test_what_one_turn_does_not_say_is_not_known(missing):
    lacking = [STEPS[0], {key: STEPS[1][key] for key in STEPS[1] if key != missing}]
    known = [bool(one) for one in turn_costs(lacking)]
    lost = {"n_response_tokens": 0, "n_prompt_tokens": 1, "n_kept": 1, "seconds": 2}[missing]
    assert known == [place != lost for place in range(3)]


def test_more_kept_than_asked_is_no_cost():
    assert turn_costs([{**STEPS[0], "n_kept": 101}])[1] == ()


def test_measures_cost_what_their_file_says():
    assert measured_costs(STEPS[0], {"costs": COSTS}) == {
        "attentions": [0, 107, 0.5], "samples": [20, 100, 2.0], "questions": [30, 1000, 4.0],
        "lens": [0, 107, 0.5],  # the first exchange, half of what was read
    }  # fmt: skip
    assert measured_costs(STEPS[0], {}) == {}
    assert "lens" not in measured_costs({}, {"costs": COSTS})
    assert "lens" not in measured_costs(
        STEPS[0], {"costs": {"lens": {**COSTS["lens"], "encoded": 9}}}
    )


def test_groups_about_the_samples_bring_them_along():
    assert groups_read(["questions", "texts"]) == ["questions", "samples"]
    assert groups_read(["choices", "samples"]) == ["choices", "samples"]
    assert groups_read(["lens"]) == ["lens"] and groups_read(["texts", "states"]) == []


@pytest.mark.parametrize(
    ("turns", "needs", "expected"),
    [
        (1, (), [7, 100, 0.5]),
        (2, (), [27, 115, 0.75]),
        (None, (), [57, 125, 1.0]),
        (1, ("samples",), [27, 200, 2.5]),
        (1, ("lens", "samples"), [27, 307, 3.0]),
        (None, ("questions", "samples"), [107, 1225, 7.0]),
        (1, ("choices",), [None, None, None]),
    ],
)
def test_an_item_costs_its_turns_and_its_measures(turns, needs, expected):
    assert item_cost(costly_book().items[-1], turns, needs) == expected


def test_a_book_of_before_knows_no_seconds_of_measures():
    item = replace(costly_book().items[-1], measured={"samples": [20, 100]})
    assert item_cost(item, 1, ("samples",)) == [27, 200, None]


def test_means_are_over_the_items_of_which_a_cost_is_known():
    book = costly_book()
    assert mean_cost(book, None, ()) == {"generated": 57, "encoded": 125, "seconds": 1}
    book.items = [replace(item, turn_seconds=(), turn_encoded=()) for item in book.items]
    assert mean_cost(book, 1, ()) == {"generated": 7, "encoded": None, "seconds": None}


def test_every_method_has_its_cost_and_the_front_is_marked():
    comparison = Comparison(costly_book(), draws=20)
    points = cost_points(comparison, main_entries(comparison))
    found = {point.title: point for point in points}
    assert found["SpikeScore, K = 3"].costs == {"generated": 57, "encoded": 125, "seconds": 1}
    assert found["SAPLMA"].costs == {"generated": 7, "encoded": 100, "seconds": 0.5}
    assert found["sampled"].costs == {"generated": 27, "encoded": 200, "seconds": 2.5}
    assert found["asked"].costs == {"generated": 57, "encoded": 1200, "seconds": 6.5}
    # planted: perplexity knows a little for one answer, SpikeScore more for three
    assert found["perplexity"].front == found["SpikeScore, K = 3"].front
    assert found["perplexity"].front == {"generated", "encoded", "seconds"}
    assert not found["sampled"].front and not found["domain identity (oracle)"].front
    table = cost_table(points)
    rows = {row[0]: row[2:] for row in table.rows}
    assert rows["old"] == ("not known", "not known", "not measured", "")
    # of the first third of the items no time is known, and its mean says so
    assert rows["sampled"] == ("27", "200", "2.500 (160 of 240)", "")
    assert rows["SAPLMA"] == ("7", "100", "0.500 (160 of 240)", "")
    assert table.note.endswith("Behind a cost: the mean is over a of b items.")
    assert {table.rows[row][0] for row, _ in table.bold} == {"perplexity", "SpikeScore, K = 3"}
    assert cost_plot(points, "Cost").startswith(b"\x89PNG")


def test_spikescore_is_shown_at_fewer_turns_too():
    comparison = Comparison(make_book(turns=12), draws=5)
    points = cost_points(comparison, main_entries(comparison))
    assert [point.k for point in points if point.k] == [3, 5, 10, 12]
    tokens = [[sum(item.turn_tokens[:k]) for item in comparison.book.items] for k in (3, 5, 10, 12)]
    assert [point.costs["generated"] for point in points[:4]] == pytest.approx(
        np.mean(tokens, axis=1)
    )
    assert points[0].costs["seconds"] is None
    assert cost_plot(points, "Cost").startswith(b"\x89PNG")


def test_forked_follow_ups_are_shown_at_every_k_too():
    comparison = Comparison(make_book(turns=12), draws=5)
    book = make_book(turns=12)
    book.items = [replace(item, turn_tokens=(1,) * 12) for item in book.items]
    entries = main_entries(comparison)
    points = cost_points(comparison, entries, Comparison(book, draws=5))
    spikes = [point for point in points if point.k]
    assert [point.title for point in spikes[4:]] == [
        f"SpikeScore, forked, K = {k}" for k in (3, 5, 10, 12)
    ]
    assert [point.costs["generated"] for point in spikes[4:]] == [3, 5, 10, 12]
    for one, other in zip(spikes, spikes[4:], strict=False):  # the same scores
        assert one.auroc == other.auroc and one.costs["generated"] > other.costs["generated"]
        assert "generated" not in one.front
    assert len(points) == 4 + len(cost_points(comparison, entries))
    assert cost_plot(points, "Cost").startswith(b"\x89PNG")


def test_a_method_costs_what_it_reads_when_it_scores():
    told = {name: _described(detector) for name, detector in REGISTRY.items()}
    assert told["sep"]["measured"] == []  # samples are there to learn from
    assert told["semantic_entropy_rao"]["measured"] == ["samples"]
    assert told["p_true"]["measured"] == ["questions", "samples"]
    assert {name for name, one in told.items() if one["whole_dialogue"]} == {
        "markov_flip", "dialogue_length", "dialogue_length_std", "tfidf_dialogue",
    }  # fmt: skip
    assert all(MEASURED.issuperset(one["measured"]) for one in told.values())
