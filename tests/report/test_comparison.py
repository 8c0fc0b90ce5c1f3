"""Cells of the tables against scikit-learn on the very items that a cell is about."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from spikescore.report.comparison import (
    Comparison,
    Entry,
    leaders,
    match_base_rates,
    seed_means,
    static_entries,
    trajectory_entry,
    without_turn_means,
)
from spikescore.stats.trajectory import spike_score
from tests.helpers.books import make_book


@pytest.fixture(scope="module")
def book():
    return make_book()


@pytest.fixture(scope="module")
def comparison(book):
    return Comparison(book, draws=100)


def spikes(book, domain):
    """SpikeScore of every item under each seed's probe of a domain, one item at a time."""
    return [
        np.array([spike_score(row) for row in book.turns["saplma", domain, seed]])
        for seed in (0, 1)
    ]


def mean_auroc(book, items, rows):
    return np.mean([roc_auc_score(book.y[items], row[items]) for row in rows])


def test_the_pooled_cell_is_the_auroc_of_all_other_domains_together(book, comparison):
    entry = trajectory_entry(book, "max_abs_d2", "saplma")
    cell = comparison.cell(entry, "pooled", "d1")
    others = book.domains != "d1"
    assert cell.value == pytest.approx(mean_auroc(book, others, spikes(book, "d1")))
    assert cell.n == others.sum() and cell.n_positive == book.y[others].sum()


def test_the_macro_cell_is_the_mean_of_the_other_domains_aurocs(book, comparison):
    entry = trajectory_entry(book, "max_abs_d2", "saplma")
    cell = comparison.cell(entry, "macro", "d1")
    each = [mean_auroc(book, book.domains == name, spikes(book, "d1")) for name in ("d0", "d2")]
    assert cell.value == pytest.approx(np.mean(each))


def test_the_in_domain_cell_is_of_the_held_out_split_alone(book, comparison):
    entry = trajectory_entry(book, "max_abs_d2", "saplma")
    held_out = (book.domains == "d2") & (book.splits["d2"] == "test")
    cell = comparison.cell(entry, "in-domain", "d2")
    assert cell.value == pytest.approx(mean_auroc(book, held_out, spikes(book, "d2")))
    assert cell.n == held_out.sum() == 32


def test_a_method_that_learns_nothing_has_cells_for_every_training_domain(book, comparison):
    perplexity = static_entries(book)["perplexity"]
    cells = [comparison.cell(perplexity, "pooled", name) for name in ("d0", "d1", "d2")]
    for name, cell in zip(("d0", "d1", "d2"), cells, strict=True):
        others = book.domains != name
        row = book.scores["perplexity", "", 0]
        assert cell.value == pytest.approx(roc_auc_score(book.y[others], row[others]))
    mean = comparison.mean(perplexity, "pooled")
    assert mean.value == pytest.approx(np.mean([cell.value for cell in cells]))


def test_the_matrix_has_training_domains_as_rows_and_held_out_items_on_its_diagonal(
    book, comparison
):
    entry = static_entries(book)["saplma"]
    matrix = comparison.matrix(entry)
    rows = [book.scores["saplma", "d0", seed] for seed in (0, 1)]
    assert matrix[0, 2] == pytest.approx(mean_auroc(book, book.domains == "d2", rows))
    assert matrix[0, 0] == pytest.approx(comparison.cell(entry, "in-domain", "d0").value)


def test_domain_identity_wins_in_the_pool_and_is_worth_nothing_within_domains(book, comparison):
    oracle = static_entries(book)["domain_identity"]
    assert comparison.mean(oracle, "macro").value == pytest.approx(0.5)
    assert comparison.mean(oracle, "pooled").value > 0.52


def test_matched_base_rates_take_the_oracles_advantage_away(book):
    only = match_base_rates(book.y, book.domains, seed=1)
    for name in book.domain_names():
        kept = book.y[only & (book.domains == name)]
        assert kept.mean() == 0.5 and kept.size == 2 * min(
            np.bincount(book.y[book.domains == name])
        )
    matched = Comparison(book.subset(only), draws=20)
    oracle = static_entries(matched.book)["domain_identity"]
    assert matched.mean(oracle, "pooled").value == pytest.approx(0.5)


def test_a_difference_is_taken_on_the_items_that_both_score(book, comparison):
    spike = trajectory_entry(book, "max_abs_d2", "saplma")
    row = book.scores["perplexity", "", 0].copy()
    row[::4] = np.nan
    partial = Entry("partial", "", "training-free", {name: row[None] for name in book.splits})
    found = comparison.contrast(spike, partial, "pooled")
    expected = []
    for name in book.splits:
        items = (book.domains != name) & np.isfinite(row)
        ours = mean_auroc(book, items, spikes(book, name))
        expected.append(ours - roc_auc_score(book.y[items], row[items]))
    assert found.value == pytest.approx(np.mean(expected))


def test_seeds_are_averaged_and_can_be_told_apart(book, comparison):
    entry = static_entries(book)["saplma"]
    each = [area.value for area in seed_means(comparison, entry, "pooled")]
    assert len(each) == 2 and each[0] != each[1]
    assert np.mean(each) == pytest.approx(comparison.mean(entry, "pooled").value)


def test_turn_means_are_those_of_the_train_split(book):
    shifted = make_book()
    bump = np.linspace(0, 3, 8) ** 2  # the same for every item: a prompt's doing
    for key in list(shifted.turns):
        if key[0] == "saplma":
            shifted.turns[key] = shifted.turns[key] + bump
    plain, moved = (without_turn_means(one).scores["d0"] for one in (book, shifted))
    assert np.allclose(plain, moved, atol=1e-4)
    raw = trajectory_entry(shifted, "max_abs_d2", "saplma").scores["d0"]
    assert not np.allclose(raw, trajectory_entry(book, "max_abs_d2", "saplma").scores["d0"])


# --- the same cells on both sides -------------------------------------------------------------


def with_copy(lacking=(), seeds=(0, 1)):
    """A book, and in it a copy of SAPLMA that was not fitted on some domains or some seeds."""
    book = make_book()
    book.methods["copy"] = {**book.methods["saplma"], "title": "copy"}
    for (name, domain, seed), scores in list(book.scores.items()):
        if name == "saplma" and domain not in lacking and seed in seeds:
            book.scores["copy", domain, seed] = scores.copy()
    comparison = Comparison(book, draws=50)
    entries = static_entries(book)
    return comparison, entries["saplma"], entries["copy"]


@pytest.mark.parametrize("view", ["macro", "pooled", "in-domain"])
@pytest.mark.parametrize("lacking", [("d0",), ("d1",), ("d0", "d2")])
def test_a_copy_that_lacks_training_domains_differs_by_exactly_nothing(view, lacking):
    comparison, original, copy = with_copy(lacking)
    assert comparison.mean(original, view).value != comparison.mean(copy, view).value
    for one, other in ((original, copy), (copy, original)):
        found = comparison.contrast(one, other, view)
        assert (found.value, found.p_delong, found.p_bootstrap) == (0, 1, 1)
        assert f"over {3 - len(lacking)} of 3 training domains" in found.note
        n_cells = 2 if view == "macro" else 1
        assert found.parts == ((3 - len(lacking)) * n_cells, 3 * n_cells)


def test_a_note_says_both_which_domains_are_shared_and_which_are_computable():
    """d1 is shared, but its held-out items are of one class."""
    book = make_book()
    book.items = [replace(item, y=1) if item.domain == "d1" else item for item in book.items]
    book.methods["copy"] = book.methods["saplma"]
    for domain in ("d1", "d2"):
        for seed in (0, 1):
            book.scores["copy", domain, seed] = book.scores["saplma", domain, seed]
    comparison, entries = Comparison(book, draws=20), static_entries(book)
    found = comparison.contrast(entries["saplma"], entries["copy"], "in-domain")
    assert (found.value, found.p_delong, found.parts) == (0, 1, (1, 3))
    expected = "over 2 of 3 training domains; mean over 1 of 2 training domains"
    assert found.note == expected


def test_a_copy_that_lacks_probe_seeds_differs_by_exactly_nothing():
    for seeds in ((0,), (1,)):
        comparison, original, copy = with_copy(seeds=seeds)
        assert comparison.mean(original, "macro").value != comparison.mean(copy, "macro").value
        found = comparison.contrast(original, copy, "macro")
        if seeds == (1,):  # with seed 0 alone everywhere it might be a method without chance
            assert (found.value, found.p_delong) == (0, 1)
            assert "1 of 2 probe seeds (d0)" in found.note
    comparison, original, copy = with_copy()
    del copy.scores["d1"], copy.seeds["d1"]
    copy.scores["d0"], copy.seeds["d0"] = copy.scores["d0"][:1], (0,)
    found = comparison.contrast(original, copy, "pooled")
    assert found.value == 0 and "1 of 2 probe seeds (d0)" in found.note


def test_items_that_one_lacks_for_one_training_domain_are_left_out_there_alone():
    comparison, original, copy = with_copy()
    copy.scores["d0"][:, 100:110] = np.nan
    found = comparison.contrast(original, copy, "pooled")
    assert (found.value, found.n) == (0, 240)


def test_methods_that_share_no_training_domain_are_not_compared():
    comparison, original, copy = with_copy(("d0", "d1"))
    del original.scores["d2"]
    found = comparison.contrast(original, copy, "macro")
    assert (found.value, found.p_delong, found.p_bootstrap) == (None, None, None)
    assert found.note == "not computable in any of 3 training domains"


def test_a_figure_can_be_confined_to_some_items(book, comparison):
    perplexity, saplma = (static_entries(book)[name] for name in ("perplexity", "saplma"))
    some = np.arange(book.y.size) % 3 > 0
    row = book.scores["perplexity", "", 0]
    expected = {}
    for name in book.splits:
        items = some & (book.domains != name)
        expected[name] = roc_auc_score(book.y[items], row[items])
        cell = comparison.cell(perplexity, "pooled", name, some)
        assert cell.value == pytest.approx(expected[name]) and cell.n == items.sum()
    mean = comparison.mean(perplexity, "pooled", some)
    assert mean.value == pytest.approx(np.mean(list(expected.values())))
    found = comparison.contrast(perplexity, saplma, "pooled", some)
    assert found.value == pytest.approx(mean.value - comparison.mean(saplma, "pooled", some).value)


def test_leaders_are_the_best_and_those_its_paired_interval_does_not_exclude():
    book = make_book(n=200, seeds=1)
    rng = np.random.default_rng(3)
    for name, noise in (("near", 0.6), ("far", 3.0), ("best", 0.55)):
        book.scores[name, "", 0] = book.y + rng.normal(0, noise, book.y.size)
        book.methods[name] = {"title": name, "family": "trained", "needs": []}
    book.scores["oracle", "", 0] = book.y.astype(float)
    book.methods["oracle"] = {"title": "oracle", "family": "control", "needs": []}
    compare = Comparison(book, draws=200)
    wanted = ("near", "far", "best", "oracle")
    entries = [entry for name, entry in static_entries(book).items() if name in wanted]
    found = leaders(compare, entries, "macro")
    means = {entry.name: compare.mean(entry, "macro").value for entry in entries}
    best = max((name for name in wanted if name != "oracle"), key=means.get)
    assert best in found and "far" not in found and "oracle" not in found
    chosen = next(entry for entry in entries if entry.name == best)
    for entry in entries[:3]:
        low, _ = compare.contrast(chosen, entry, "macro").interval
        assert (entry.name in found) == (low <= 0)
    assert leaders(compare, entries, "macro", np.zeros(book.y.size, bool)) == frozenset()
