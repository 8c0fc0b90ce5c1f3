"""Training on all domains but the tested one."""

from __future__ import annotations

import numpy as np
import pytest

from spikescore.detectors.answers import read_answers
from spikescore.detectors.scoring import Settings, score_methods
from spikescore.errors import UserError
from spikescore.pairs import TOKEN_KEYS
from tests.helpers.factories import make_pairs

LAST = TOKEN_KEYS[0]


def test_every_domain_is_scored_by_all_others_together(tmp_path):
    for place, domain in enumerate("abcd"):
        n = 4 if domain == "d" else 40
        make_pairs(tmp_path / domain, n=n, turns=3, domain=domain, seed=place)
    items = read_answers(tmp_path, token_key=LAST)
    settings = Settings(
        methods=["mass_mean", "perplexity"], turn_scorers=["mass_mean"], multi_source=True
    )
    (book,) = score_methods(items, settings)
    assert set(book.splits) == {f"all but {domain}" for domain in "abcd"}
    single = score_methods(items, Settings(methods=["mass_mean"], turn_scorers=[]))[0].splits
    for tested in "abcd":
        split = book.splits[f"all but {tested}"]
        for domain in "abcd":
            own = split[items.domains == domain]
            if domain == tested:
                assert set(own) == {""}
            elif domain == "d":  # too few to teach, and not the one that is tested
                assert set(own) == {"out"}
            else:
                np.testing.assert_array_equal(own, single[domain][items.domains == domain])
    key = ("mass_mean", "all but a", 0)
    train = items.select(book.splits["all but a"] == "train")
    layer = book.chosen["mass_mean/all but a/0"]["layer"]
    states = train.first_states[:, layer].astype(float)
    m0, m1 = (states[train.y == label].mean(axis=0) for label in (0, 1))
    expected = (items.first_states[:, layer] - m0) @ (m1 - m0) / np.sum((m1 - m0) ** 2)
    np.testing.assert_allclose(book.scores[key], expected, rtol=1e-3, atol=1e-3)
    assert book.turns[key].shape == (len(items), 3)
    with pytest.raises(UserError, match="needs two others"):
        score_methods(items.select(np.isin(items.domains, ["a", "b"])), settings)
    other = items.select(np.isin(items.domains, ["a", "b"]))
    (elsewhere,) = score_methods(items, settings, targets=[other])
    for name, split in elsewhere.splits.items():
        np.testing.assert_array_equal(split, book.splits[name][np.isin(items.domains, ["a", "b"])])
