"""The one sentence that a report begins with, on books whose effects are planted."""

from __future__ import annotations

import re

import numpy as np
import pytest

from spikescore.report.comparison import Comparison, Entry, trajectory_entry
from spikescore.report.text import figure_cell
from spikescore.report.verdict import REACH, verdict
from tests.helpers.books import make_book


def sentence(book, *, swap=False, draws=200):
    compare = Comparison(book, draws=draws)
    both = [trajectory_entry(book, name, "saplma") for name in ("max_abs_d2", "first")]
    return verdict(compare, *(both[::-1] if swap else both)), compare, both


def test_a_planted_effect_is_told_with_its_figures_and_the_reverse_as_well():
    book = make_book()
    told, compare, (spike, first) = sentence(book)
    assert told.startswith("SpikeScore beats the first-answer probe on unseen domains: macro AUROC")
    assert figure_cell(compare.mean(spike, "macro")) in told
    assert figure_cell(compare.contrast(spike, first, "macro"), "+.3f") in told
    assert told.endswith("n = 240 in 3 domains.")
    assert sentence(book, swap=True)[0].startswith("SpikeScore does worse than")
    assert verdict(compare, spike, None) == ""


def test_two_scores_worth_nothing_are_too_few_and_the_number_wanted_follows_the_error():
    book = make_book(n=40, seeds=1)
    rng = np.random.default_rng(1)
    for key in [key for key in book.turns if key[0] == "saplma"]:
        book.turns[key] = rng.normal(size=book.turns[key].shape).astype(np.float32)
    told, compare, both = sentence(book)
    assert told.startswith("Too few items to say whether SpikeScore beats")
    error = compare.contrast(*both, "macro").error
    wanted = int(re.search(r"needs about ([\d,]+) more", told).group(1).replace(",", ""))
    # a difference of 0.05 must be 2.8 errors away from 0, and errors shrink with the root of n
    exact = 120 * (REACH * error / 0.05) ** 2 - 120
    assert exact <= wanted <= 1.1 * exact


def test_one_score_against_itself_does_not_differ():
    book = make_book()
    compare = Comparison(book, draws=50)
    spike = trajectory_entry(book, "max_abs_d2", "saplma")
    told = verdict(compare, spike, spike)
    assert told.startswith("SpikeScore and the first-answer probe do not differ on unseen domains")


@pytest.mark.parametrize(("sign", "side"), [(1, "above"), (-1, "below")])
def test_a_difference_without_variance_is_not_called_none(sign, side):
    """A score that never errs against one that is the same for all: 1 or 0 less 0.5, always."""
    book = make_book(seeds=1)
    compare = Comparison(book, draws=50)
    always, constant = (
        Entry(name, name, "trained", dict.fromkeys(book.splits, scores[None]))
        for name, scores in (("always", sign * book.y.astype(float)), ("one", book.y * 0.0))
    )
    told = verdict(compare, always, constant)
    assert told.startswith(f"SpikeScore is {side} the first-answer probe on unseen domains, but no")
    assert f"difference {sign * 0.5:+.3f}, n = 240" in told


def test_better_than_worse_than_chance_is_not_praised():
    book = make_book(n=400, seeds=1)
    compare = Comparison(book, draws=100)
    against = Entry("first", "first", "trained", {d: -1.0 * book.y[None] for d in book.splits})
    noise = np.random.default_rng(0).normal(size=(1, book.y.size))
    random = Entry("spike", "spike", "trajectory", dict.fromkeys(book.splits, noise))
    assert "interval reaches 0.5, which is chance" in verdict(compare, random, against)


@pytest.mark.parametrize(
    ("domains", "words"),
    [
        (1, "inside its training domain: in-domain AUROC"),
        (2, "on unseen items: pooled AUROC"),
        (3, "on unseen domains: macro AUROC"),
    ],
)
def test_the_view_is_the_first_there_is(domains, words):
    assert words in sentence(make_book(n=200, domains=domains, seeds=1))[0]


def test_a_class_that_is_too_small_is_counted_and_so_is_what_it_needs():
    book = make_book(n=100, domains=2, seeds=1)
    for domain in ("d0", "d1"):
        own = np.flatnonzero(book.domains == domain)
        for rank, place in enumerate(own):
            object.__setattr__(book.items[place], "y", int(rank >= 4))
    told = sentence(book)[0]
    assert told == (
        "Too few items to compare SpikeScore with the first-answer probe on unseen items: there "
        "must be 10 hallucinated and 10 consistent answers (96 and 4, 96 and 4); needs about 300 "
        "more."
    )
