"""Where spikes fall, against counts by hand."""

from __future__ import annotations

from spikescore.report.plots import spike_turns_png
from spikescore.report.spike_places import Spike, family_table, turn_shares

FIVE = ("initial", "a", "a", "b", "b")


def test_families_are_counted_beside_what_chance_would_give():
    spikes = [Spike(1, 2, 5, FIVE), Spike(1, 4, 5, FIVE), Spike(0, 3, 5, FIVE), Spike(0, 2, 5)]
    table = family_table(spikes)
    # of turns 2, 3, 4 two are of family a; the dialogue without families is not counted
    assert table.rows == (("a", "67%", "1 (50%)", "1 (100%)"), ("b", "33%", "1 (50%)", "0 (0%)"))
    assert family_table([Spike(1, 2, 5)]) is None and family_table([]) is None


def test_turns_are_shares_of_each_class():
    spikes = [Spike(1, 2, 4), Spike(1, 2, 5), Spike(1, 3, 5), Spike(1, 4, 5), Spike(0, 3, 5)]
    assert turn_shares(spikes) == {1: [0, 50, 25, 25, 0], 0: [0, 0, 100, 0, 0]}
    assert spike_turns_png(spikes, "t").startswith(b"\x89PNG")
    assert spike_turns_png([], "none").startswith(b"\x89PNG")
