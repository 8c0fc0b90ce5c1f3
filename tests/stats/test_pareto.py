"""The Pareto front against its definition, pair by pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikescore.stats.pareto import pareto_front

SMALL = st.one_of(st.integers(0, 4).map(float), st.just(np.nan))  # ties are frequent


@given(st.lists(st.tuples(SMALL, SMALL), max_size=12))
def test_the_front_is_what_no_other_choice_beats(points):
    costs, values = np.array(points, dtype=float).reshape(-1, 2).T

    def beaten(one, by):
        no_worse = by[0] <= one[0] and by[1] >= one[1]
        return no_worse and (by[0] < one[0] or by[1] > one[1])

    known = [point for point in points if not np.isnan(point).any()]
    expected = [
        not np.isnan(point).any() and not any(beaten(point, by) for by in known) for point in points
    ]
    assert pareto_front(costs, values).tolist() == expected


def test_two_lists_are_needed():
    with pytest.raises(ValueError, match="one length"):
        pareto_front(np.zeros(2), np.zeros(3))
