"""The experiment's tables: their cells against the areas they show, their files, their notes."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from spikescore.detectors.score_book import BookItem, ScoreBook, load_score_book
from spikescore.errors import UserError
from spikescore.packing import pack
from spikescore.pairs import find_records
from spikescore.report import plots
from spikescore.report.comparison import SPIKE, Comparison
from spikescore.report.experiment import Variant, load_experiment
from spikescore.report.experiment_report import ModelReport, write_report
from spikescore.report.main_tables import (
    MAIN_HEADER,
    by_value,
    main_entries,
    main_rows,
    main_tables,
    multi_source_table,
    operating_table,
    paired_table,
    part_tables,
    seed_table,
    twin_figures,
)
from spikescore.report.page import Dialogue
from spikescore.report.stopping_tables import LOST, decided_table, stopping, stopping_table
from spikescore.report.text import counted, csv_table, markdown_table, tex_table
from spikescore.report.trajectory_tables import (
    CLAIMS,
    base_scorer_table,
    claim_entries,
    control_entries,
    control_table,
    functional_tables,
    matched_table,
    theory_table,
    turns_sweep,
    turns_table,
)
from spikescore.report.variant_tables import (
    difference_table,
    forked_table,
    judge_note,
    measure_variant,
    on_same_questions,
    order_spread,
    release_results,
    retrieval_note,
    variant_entries,
    variant_table,
)
from spikescore.stats.early_stopping import stop_early, truthful_bounds
from spikescore.stats.trajectory import spike_score
from tests.helpers.books import make_book, trained_on_others
from tests.helpers.factories import make_pairs


@pytest.fixture(scope="module")
def comparison():
    return Comparison(make_book(), draws=60)


@pytest.fixture(scope="module")
def entries(comparison):
    return main_entries(comparison)


def value_of(cell: str) -> float:
    return float(cell.split(" [")[0])


def test_the_main_table_shows_every_cell_with_interval_size_and_the_published_figure(
    comparison, entries
):
    macro, pooled, inside = main_tables(comparison, entries, "Qwen3-8B")
    assert macro.header == (
        "method", "mean over training domains", "published", "difference", "d0", "d1", "d2",
    )  # fmt: skip
    sizes, spike = macro.rows[0], macro.rows[1]
    others = comparison.domains != "d0"
    assert sizes[4] == f"160, {comparison.y[others].mean():.0%}"
    area = comparison.cell(entries[0], "macro", "d0")
    assert spike[0] == "SpikeScore"
    assert spike[4] == f"{area.value:.3f} [{area.interval[0]:.3f}, {area.interval[1]:.3f}]"
    mean = comparison.mean(entries[0], "macro").value
    assert spike[2:4] == ("0.7473", f"{mean - 0.7473:+.3f}")
    assert inside.header == ("method", "mean over training domains", "d0", "d1", "d2")
    assert pooled.rows[1][2] == "0.7473"  # which of the two the paper's are is not known
    families = [entry.family for entry in entries]
    assert families == ["trajectory", "training-free", "trained", "control"]


def test_the_csv_has_the_same_cells_as_numbers(comparison, entries):
    rows = main_rows(comparison, entries, "m", None)
    assert len(rows) == 3 * 4 * (3 + 1)  # views, methods, training domains and their mean
    found = {row[1:4]: dict(zip(MAIN_HEADER, row, strict=True)) for row in rows}
    cell = found["pooled", "d1", "perplexity"]
    perplexity = next(entry for entry in entries if entry.name == "perplexity")
    area = comparison.cell(perplexity, "pooled", "d1")
    assert cell["auroc"] == area.value and cell["n"] == 160
    assert cell["hallucination_rate"] == pytest.approx(area.n_positive / 160)
    assert cell["low"] <= cell["auroc"] <= cell["high"]


def test_planted_spikes_beat_the_first_answer_in_the_paired_table(comparison, entries):
    table = paired_table(comparison, entries)
    row = next(row for row in table.rows if row[0] == "SAPLMA")
    assert value_of(row[1]) > 0.3 and row[4] == "< 0.001"
    # Holm's correction never makes a p value smaller
    for row in table.rows:
        for plain, corrected in ((row[3], row[4]), (row[7], row[8])):
            assert float(corrected.strip("< ")) >= float(plain.strip("< "))


def test_claims_are_corrected_for_their_own_number_alone(comparison, entries):
    claims = claim_entries(comparison, entries)
    table = paired_table(comparison, claims, CLAIMS)
    assert table.caption == CLAIMS and [row[0] for row in table.rows] == [
        "SAPLMA", "perplexity", "SpikeScore, each turn's training mean removed",
    ]  # fmt: skip
    assert "over 3 comparisons" in table.note
    every = next(row for row in paired_table(comparison, entries).rows if row[0] == "SAPLMA")
    assert table.rows[0][:4] == every[:4]


def test_seeds_show_their_spread(comparison, entries):
    table = seed_table(comparison, entries)
    assert [row[0] for row in table.rows] == ["SpikeScore", "SAPLMA"]
    assert all(row[1] == "2" for row in table.rows)
    low, high = table.rows[0][4].split(" to ")
    assert float(low) <= float(table.rows[0][2]) <= float(high)


def test_operating_points_carry_the_threshold_over(comparison, entries):
    table = operating_table(comparison, entries, "pooled")
    spike = table.rows[0]
    auprc, fpr, f1, accuracy = (float(cell.split(" ")[0]) for cell in spike[1:5])
    assert auprc > 0.9 and fpr < 0.5 and f1 > 0.8 and accuracy > 0.8


def test_functionals_and_base_scorers_have_a_cell_each(comparison):
    macro, _ = functional_tables(comparison)
    assert macro.header == ("functional", "SAPLMA", "perplexity")
    by_title = {row[0]: row for row in macro.rows}
    assert value_of(by_title["SpikeScore, max|Δ²|"][1]) > 0.9
    assert abs(value_of(by_title["first answer"][1]) - 0.5) < 0.12
    base = base_scorer_table(comparison, "Llama-3.1-8B-Instruct")
    assert [(row[0], row[-1]) for row in base.rows] == [
        ("SAPLMA", "0.7860"),
        ("perplexity", "0.7160"),
    ]


def test_more_turns_cost_more_and_the_last_k_is_spikescore(comparison, entries):
    points = turns_sweep(comparison, 0.5)
    assert [point.k for point in points] == [3, 4, 5, 6, 7, 8]
    tokens = [sum(item.turn_tokens[:3]) for item in comparison.book.items]
    assert points[0].tokens == pytest.approx(np.mean(tokens))
    assert points[0].seconds == pytest.approx(np.mean(tokens) * 0.5)
    book = replace(comparison.book, items=list(comparison.book.items))
    book.items[:200] = [replace(item, turn_tokens=()) for item in book.items[:200]]
    fewer = turns_sweep(Comparison(book, draws=5), 0.5)  # unknown lengths are no zeros
    assert fewer[0].tokens == pytest.approx(np.mean(tokens[200:]))
    for told, cell in ((points, ""), (fewer, " (40 of 240)")):
        row = turns_table(told).rows[0]
        assert row[3:] == (f"{told[0].tokens:.0f}{cell}", f"{told[0].seconds:.3f}{cell}")
    assert points[-1].areas["macro"].value == comparison.mean(entries[0], "macro").value
    assert len(turns_table(points).rows) == 6


def test_dialogues_of_two_turns_have_no_k_to_show():
    points = turns_sweep(Comparison(make_book(turns=2), draws=5), None)
    assert points == [] and turns_table(points).rows == ()
    assert plots.turns_curve(points, "K").startswith(b"\x89PNG")


def test_stopping_early_flags_the_same_and_saves_tokens(comparison, entries):
    """By a loop over dialogues, with the threshold that the row names."""
    book, places = comparison.book, np.arange(240)
    for row in stopping_table(*stopping(comparison)).rows:
        domain, threshold = row[0], float(row[2])
        turns = book.turns["saplma", domain, 0]
        used, scores = [], []
        for dialogue in turns:
            k = 3
            while spike_score(dialogue[:k]) < threshold and k < 8:
                k += 1
            used.append(k)
            scores.append(spike_score(dialogue[:k]))
        others = places[book.domains != domain]
        used, scores, y = np.array(used)[others], np.array(scores)[others], book.y[others]
        tokens = np.array([item.turn_tokens for item in book.items])[others]
        paid = sum(spent[:k].sum() for spent, k in zip(tokens, used, strict=True))
        assert row[1] == "160" and row[3] == f"{np.mean(used < 8):.0%}"
        assert float(row[4]) == pytest.approx(used.mean(), abs=0.11)
        assert int(row[5].rstrip("%")) == pytest.approx(100 * (1 - paid / tokens.sum()), abs=1)
        full = roc_auc_score(y, entries[0].scores[domain][0][others])
        assert float(row[6]) == pytest.approx(full, abs=0.001)
        assert float(row[7]) == pytest.approx(roc_auc_score(y, scores), abs=0.005)
        assert value_of(row[8]) == pytest.approx(float(row[7]) - float(row[6]), abs=0.0011)
        assert float(row[9]) == pytest.approx(f1_score(y, scores >= threshold), abs=0.01)


def test_stopping_on_either_side_is_learnt_on_the_validation_split(comparison):
    book = comparison.book
    rules, notes = stopping(comparison)
    assert [one.lost for one in rules] == [None, *LOST] * 3 and notes == []
    for one in rules[1:6]:
        turns = book.turns["saplma", "d0", 0]
        val = book.splits["d0"] == "val"
        bounds = truthful_bounds(turns[val], one.threshold, one.lost)
        scores, stops = stop_early(turns, one.threshold, bounds)
        others = book.domains != "d0"
        y, flags = book.y[others], scores[others] >= one.threshold
        due = np.array([spike_score(row) for row in turns[others]]) >= one.threshold
        assert one.turns == stops[others].mean() and one.n == 160
        assert one.accuracy == (np.mean(due == y), np.mean(flags == y))
        assert one.flags_lost == np.mean(~flags[due])
        assert one.with_rule.value == pytest.approx(roc_auc_score(y, scores[others]))
    # more may be lost, fewer turns are taken, and more than flagging alone saves
    taken = [one.turns for one in rules[:6]]
    assert taken == sorted(taken, reverse=True) and taken[0] > taken[-1]
    table = decided_table(rules, notes)
    assert [row[1] for row in table.rows[:3]] == ["flags only", "0%", "5%"]
    assert table.rows[0][5:7] == ("0%", "0.0%") and table.rows[0][-1] == "+0.000"
    assert plots.stopping_curve(rules, "Curve").startswith(b"\x89PNG")


def test_controls_stand_beside_spikescore(comparison, entries):
    table = control_table(comparison, control_entries(comparison, entries))
    by_title = {row[0]: row for row in table.rows}
    assert value_of(by_title["domain identity (oracle)"][1]) == 0.5
    assert value_of(by_title["domain identity (oracle)"][2]) > 0.5
    assert value_of(by_title["SpikeScore, each turn's training mean removed"][1]) > 0.9
    matched = {row[0]: row for row in matched_table(comparison, draws=20).rows}
    assert value_of(matched["domain identity (oracle)"][2]) == 0.5


def test_the_theory_table_has_a_row_per_domain_and_one_for_the_pool(comparison, entries):
    book = comparison.book
    scores = entries[0].scores["d0"][0]
    table = theory_table(book.y, scores, book.domains)
    assert [row[0] for row in table.rows] == ["d0", "d1", "d2", "pooled"]
    for row in table.rows:
        assert float(row[9]) <= float(row[10])  # Cantelli's bound holds


def test_every_mean_says_over_how_many_it_is_where_some_are_missing():
    """SAPLMA was not fitted on d1: its means are over 2 of 3 training domains, 4 of 6 cells."""
    book = make_book()
    for seed in (0, 1):
        del book.scores["saplma", "d1", seed], book.turns["saplma", "d1", seed]
    comparison = Comparison(book, draws=30)
    entries = main_entries(comparison)
    lone = [measure_variant("main", comparison)]
    for tables, row, columns in (
        (main_tables(comparison, entries, None), "SAPLMA", [1]),
        ([paired_table(comparison, entries)], "SAPLMA", [1, 5]),
        ([seed_table(comparison, entries)], "SAPLMA", [2, 5]),
        ([operating_table(comparison, entries, "macro")], "SAPLMA", [1, 2, 3, 4]),
        ([operating_table(comparison, entries, "pooled")], "SAPLMA", [1, 2, 3, 4]),
        ([control_table(comparison, entries)], "SAPLMA", [1, 2]),
        (functional_tables(comparison), "range", [1]),
        ([turns_table(turns_sweep(comparison, None))], "8", [1, 2]),
        ([variant_table("order", lone)], "main", [2, 3, 5, 6]),
        ([base_scorer_table(comparison, None)], "SAPLMA", [1, 2, 3, 4, 5, 6]),
        ([matched_table(comparison, draws=20)], "SAPLMA", [1, 2]),
    ):
        for table in tables:
            rows = {row[0]: row for row in table.rows}
            for cell in (rows[row][column] for column in columns):
                assert re.search(r"\((2 of 3|4 of 6|4 of 5|8 of 10|8 of 12)\)$", cell), (
                    table.caption,
                    cell,
                )
            if "perplexity" in rows and "Paired" not in table.caption:
                assert not any(" of " in rows["perplexity"][column] for column in columns)
    saplma = next(entry for entry in entries if entry.name == "saplma")
    assert counted({"saplma": comparison.mean(saplma, "macro")})["saplma (AUROCs)"] == 4
    note = paired_table(comparison, entries).note
    assert "macro, over 2 of 3 training domains: perplexity, SAPLMA" in note
    headed = main_tables(comparison, entries, None)[0]
    assert headed.rows[1][3] == "not computable" and "(a of b)" in headed.note


def test_parts_of_the_items_have_figures_of_their_own(comparison, entries):
    y, domains = comparison.y, comparison.domains
    values = np.where(np.arange(y.size) % 3 == 0, "a", "b").tolist()
    values[0] = ""
    cut_off = ["length" if place < 20 else "" for place in range(y.size)]
    tables = part_tables(comparison, entries, cut_off, "meta.x", values)
    assert [table.caption.split(": ")[0] for table in tables] == [
        "With and without the 20 first answers cut off"
    ] * 3 + ["By meta.x"] * 3
    perplexity = comparison.book.scores["perplexity", "", 0]
    without, by = (
        {row[0]: row for row in table.rows} for table in (tables[1], tables[4])
    )  # the pooled views
    column = tables[1].header.index("perplexity")
    for row, part in (
        (without["without those cut off"], np.arange(y.size) >= 20),
        (by["a"], np.array(values) == "a"),
        (by["b"], np.array(values) == "b"),
    ):
        each = [
            roc_auc_score(y[items], perplexity[items])
            for items in (part & (domains != name) for name in ("d0", "d1", "d2"))
        ]
        assert value_of(row[column]) == pytest.approx(np.mean(each), abs=0.0005)
        assert row[1] == f"{part.sum()}, {y[part].mean():.0%}"
    assert by["(not said)"][column] == "not computable"
    assert part_tables(comparison, entries, [""] * y.size, "", [""] * y.size) == []


def test_of_many_values_the_most_frequent_are_shown():
    values = [str(number) for number in range(40) for _ in range(number + 1)]
    parts = by_value(values)
    assert list(parts)[:2] == ["39", "38"] and len(parts) == 31
    assert np.sum(list(parts.values()), axis=0).tolist() == [1] * len(values)
    assert parts["(all others)"].sum() == sum(range(1, 11))


def test_paired_tests_of_scores_that_never_err_have_no_p_value():
    book = make_book()
    book.scores["perplexity", "", 0] = book.y * 1.0
    book.scores["domain_identity", "", 0] = np.zeros(book.y.size)
    for seed in (0, 1):
        for domain in book.splits:
            swing = np.zeros((book.y.size, 8), dtype=np.float32)
            swing[:, 4] = book.y
            book.turns["saplma", domain, seed] = swing
    comparison = Comparison(book, draws=30)
    table = paired_table(comparison, main_entries(comparison))
    rows = {row[0]: row for row in table.rows}
    assert rows["domain identity (oracle)"][1:5] == ("+0.500", "", "", "")
    assert rows["perplexity"][1:5] == ("+0.000 [+0.000, +0.000]", "1.000", "1.000", "1.000")
    assert "no p value: the difference has no variance: domain identity (oracle)" in table.note


# --- variants ---------------------------------------------------------------------------------


def test_the_main_run_and_its_variants_are_compared_on_the_same_questions(comparison):
    """One variant asked 40 questions of each domain, another failed at two of them."""
    main, part = comparison.book, make_book(n=40, seed=5)
    kept = np.array([item.id not in ("q3", "q7") for item in part.items])
    books = on_same_questions([main, part, part.subset(kept)])
    asked = [[(item.domain, item.id) for item in book.items] for book in books]
    wanted = [(f"d{d}", f"q{q}") for d in range(3) for q in range(40) if q not in (3, 7)]
    assert asked == [wanted] * 3
    results = [measure_variant(name, Comparison(book, draws=40))
               for name, book in zip(("main", "another", "third"), books, strict=True)]  # fmt: skip
    table = variant_table("schedules", results)
    assert [row[0] for row in table.rows] == ["main", "another", "third"]
    only = np.array([int(item.id[1:]) < 40 and item.id not in ("q3", "q7") for item in main.items])
    assert table.rows[0][1] == f"114, {main.y[only].mean():.0%}"


def test_the_releases_score_and_sign_are_rows_of_their_own(comparison):
    results = release_results(comparison, [], "as here")
    ours, score, sign = results
    assert sign.areas[SPIKE, "macro"].value == pytest.approx(1 - ours.areas[SPIKE, "macro"].value)
    assert score.areas[SPIKE, "macro"].value != ours.areas[SPIKE, "macro"].value


def test_orders_are_told_by_their_spread(comparison):
    books = [make_book(seed=seed) for seed in (1, 2)]
    runs = [measure_variant(str(n), Comparison(book, draws=10)) for n, book in enumerate(books)]
    values = [run.areas[SPIKE, "macro"].value for run in runs]
    told = order_spread(runs)
    assert told.startswith("SpikeScore over 2 orders: macro")
    assert f"{np.mean(values):.3f}, standard deviation {np.std(values, ddof=1):.3f}" in told


def test_a_run_with_retrieval_is_held_against_the_one_without_on_the_same_questions():
    """The trajectories of the run without are halved noise; what is the same has difference 0."""
    without = make_book(n=60, seed=3)
    rng = np.random.default_rng(0)
    order = rng.permutation(without.y.size)
    noise = {
        key: turns + rng.normal(0, 0.15, turns.shape).astype(np.float32)
        for key, turns in without.turns.items()
    }
    relabelled = [replace(item, y=0) if item.domain == "d1" and n % 2 else item
                  for n, item in enumerate(without.items)]  # fmt: skip
    worse = replace(without, turns=noise).take(order[:-20])
    cured = replace(without, items=relabelled).take(order[:-20])
    table = difference_table("retrieval", without, worse, draws=200)
    rows = {(row[0], row[1]): row for row in table.rows}
    assert "On the 160 questions" in table.note
    shared = without.take(np.sort(order[:-20]))
    area = Comparison(shared, draws=200).mean(variant_entries(shared)[SPIKE], "macro")
    assert rows["AUROC, SpikeScore", "macro"][2].startswith(f"{area.value:.3f} [")
    assert rows["AUROC, perplexity", "macro"][4].startswith("+0.000 [+0.000, +0.000]")
    spike = list(rows).index(("AUROC, SpikeScore", "macro"))
    value, low = re.match(r"\+(\S+) \[\+(\S+),", table.rows[spike][4]).groups()
    assert float(value) > float(low) > 0 and (spike, 4) in table.bold
    table = difference_table("retrieval", cured, without, draws=200)
    spike = next(row for row in table.rows if row[:2] == ("AUROC, SpikeScore", "macro"))
    assert "(" not in spike[4]
    none_wrong = [replace(item, y=0) if item.domain == "d1" else item for item in without.items]
    fewer = difference_table("retrieval", without, replace(without, items=none_wrong), draws=20)
    same = next(row for row in fewer.rows if row[:2] == ("AUROC, SpikeScore", "macro"))
    assert same[2] != same[3] and same[4] == "+0.000 [+0.000, +0.000] (4 of 6)"
    rates = {row[1]: row[4] for row in table.rows if row[0] == "hallucinated"}
    assert set(rates) == {"all", "d0", "d1", "d2"}
    fewer = np.mean([new.y for new in cured.items]) - shared.y.mean()
    assert fewer < 0 and rates["all"].startswith(f"{fewer:+.3f} [-")
    assert rates["d0"].startswith("+0.000 [+0.000, +0.000]")
    items = [replace(item, meta={"gold_in_passage": n % 3 == 0})
             for n, item in enumerate(without.items)]  # fmt: skip
    told = retrieval_note(replace(without, items=items[:-30] + without.items[-30:]))
    assert told == "150 of 180 questions got passages; a gold answer stands in those of 50."


def test_forked_turns_are_held_against_sequential_ones_at_equal_k_and_tokens():
    sequential = make_book(turns=12)
    order = np.random.default_rng(0).permutation(240)[:180]
    # forked turns cost half as much, and their scores know nothing
    noise = {key: np.random.default_rng(1).normal(size=turns.shape).astype(np.float32)
             for key, turns in sequential.turns.items()}  # fmt: skip
    costs = ((20,) * 12, (10,) * 12), ((6,) * 12, (9,) * 12)
    books = [
        replace(book, items=[replace(item, turn_tokens=generated, turn_encoded=encoded)
                             for item in book.items])
        for book, (generated, encoded) in zip(
            (sequential, replace(sequential, turns=noise).take(order)), costs, strict=True)
    ]  # fmt: skip
    table = forked_table(books[1], books[0], draws=100)
    assert "on the 180 questions" in table.note
    rows = {(row[0], row[1]): row for row in table.rows}
    shared = books[0].take(order)
    areas = {}
    for k in (3, 5, 10, 12):
        cut = {key: turns[:, :k] for key, turns in shared.turns.items()}
        side = Comparison(replace(shared, turns=cut), draws=100)
        areas[k] = side.mean(variant_entries(side.book)[SPIKE], "macro").value
        row = rows["SpikeScore, max|Δ²|", str(k)]
        assert (row[2], row[4]) == (str(15 * k), str(30 * k))
        assert value_of(row[5]) == pytest.approx(areas[k], abs=6e-4)
        assert row[7] == str(15 * k // 30)  # tokens of k forked turns, by those of a turn in a row
    row = rows["SpikeScore, max|Δ²|", "12"]
    assert value_of(row[3]) < 0.6 < value_of(row[5])
    six = replace(shared, turns={key: turns[:, :6] for key, turns in shared.turns.items()})
    area = Comparison(six, draws=100).mean(variant_entries(six)[SPIKE], "macro").value
    assert value_of(row[8]) == pytest.approx(area, abs=6e-4)
    place = table.rows.index(row)
    assert {(place, 6), (place, 9)} <= table.bold
    # two turns in a row cost as much as five forked ones do not: too few for SpikeScore
    assert rows["SpikeScore, max|Δ²|", "5"][7:] == ("2", "", "")
    none_wrong = [replace(item, y=0) if item.domain == "d1" else item for item in books[0].items]
    same = forked_table(replace(books[0], items=none_wrong), books[0], draws=20).rows
    assert all(row[6] == "+0.000 [+0.000, +0.000] (4 of 6)" and row[3] != row[5] for row in same)
    unknown = replace(books[1], items=[replace(item, turn_encoded=()) for item in books[1].items])
    told = forked_table(unknown, books[0], draws=5)
    assert all(row[7:] == ("", "", "") and not row[2] and row[5] for row in told.rows)


def test_judges_are_told_by_their_agreement():
    book = make_book()
    same = judge_note(book, book, Variant("judge_x", "x", "judges", judge="x"))
    assert "Cohen's κ 1.000" in same and "n = 240" in same


def test_plots_of_one_model_and_of_several_are_pictures(comparison, entries):
    one, other = ("one", comparison, entries), ("other", comparison, entries)
    points = turns_sweep(comparison, None)
    results = release_results(comparison, [], "as here")
    for data in (
        plots.forest_of_models([one]),
        plots.forest_of_models([one, other]),
        plots.matrices(comparison, entries[:2], "matrices"),
        plots.turns_curve(points, "turns"),
        plots.functional_map(comparison, "functionals"),
        plots.variant_plot(results, "release"),
    ):
        assert Image.open(io.BytesIO(data)).size[0] > 500


# --- files ------------------------------------------------------------------------------------


def test_tables_go_to_files_unharmed(comparison, entries):
    table = functional_tables(comparison)[0]
    rows = list(csv.reader(io.StringIO(csv_table(table.header, table.rows))))
    assert [tuple(row) for row in rows] == [table.header, *table.rows]
    assert "SpikeScore, max\\|Δ²\\|" in markdown_table(table)
    latex = tex_table(table)
    assert "\\toprule" in latex and not any(sign in latex for sign in "ΔΣ²λ")


def test_a_score_book_is_read_back_as_it_was_written(tmp_path):
    book = make_book(n=12)
    book.chosen["saplma/d0/0"] = {"layer": 3}
    book.items[0] = replace(book.items[0], cut_off="length", meta={"scope": "local"})
    book.save(tmp_path / "scores.pkl")
    again = load_score_book(tmp_path / "scores.pkl")
    assert again.items == book.items and again.chosen == book.chosen
    assert again.methods == book.methods
    for held, read in ((book.scores, again.scores), (book.turns, again.turns)):
        assert held.keys() == read.keys()
        assert all(np.array_equal(held[key], read[key]) for key in held)
    assert all(np.array_equal(book.splits[name], again.splits[name]) for name in book.splits)


@pytest.mark.parametrize(
    "damage, field",
    [
        (lambda told: told.pop("splits"), "splits"),
        (lambda told: told["items"][3].pop("id"), "id"),
        (lambda told: told["items"][3].update(y=7), "neither 0 nor 1"),
        (lambda told: told["items"][3].update(domain=["d"]), "item 'q3'"),
        (lambda told: told["items"].pop(), "for 35 items"),
        (lambda told: told["splits"].update(d0="x"), 'split of "d0"'),
        (lambda told: told.update(methods={"saplma": 3}), "'int'"),
        (lambda told: told["methods"]["saplma"].pop("title"), "KeyError: 'title'"),
        (lambda told: told["methods"]["saplma"].update(family="x"), "method 'saplma'"),
        (lambda told: told["items"][3]["turn_tokens"].append("x"), "turn_tokens of item 'q3'"),
        (lambda told: told.update(format=2), "no score book"),
    ],
)
def test_a_damaged_score_book_is_named_with_its_field(tmp_path, damage, field):
    text, _ = make_book(n=12).save(tmp_path / "scores.pkl")
    told = json.loads(text.read_text())
    damage(told)
    text.write_text(json.dumps(told))
    with pytest.raises(UserError, match=rf"scores\.json.*({field})"):
        load_score_book(tmp_path / "scores.pkl")


# --- several training domains -----------------------------------------------------------------


def test_multi_source_figures_stand_beside_and_apart():
    book = make_book()
    several = trained_on_others(book)
    rng = np.random.default_rng(0)
    for key in several.scores:
        if key[0] == "saplma":
            several.scores[key] = several.y + rng.normal(0, 0.5, several.y.size)
    one, more = Comparison(book, draws=50), Comparison(several, draws=50)
    table = multi_source_table(one, main_entries(one), more, main_entries(more))
    assert table.header[4:] == ("d0", "d1", "d2")
    (row,) = [row for row in table.rows if row[0] == "SAPLMA"]
    areas = []
    for domain in book.domain_names():
        tested = book.domains == domain
        seeds = [several.scores["saplma", f"all but {domain}", seed][tested] for seed in (0, 1)]
        areas.append(np.mean([roc_auc_score(book.y[tested], scores) for scores in seeds]))
    assert [cell.split()[0] for cell in row[4:]] == [f"{area:.3f}" for area in areas]
    assert row[1].startswith(f"{np.mean(areas):.3f} [")
    saplma = next(entry for entry in main_entries(one) if entry.name == "saplma")
    single = one.mean(saplma, "macro").value
    assert row[2].startswith(f"{single:.3f} [")
    assert row[3].startswith(f"{np.mean(areas) - single:+.3f} [")
    for learns, difference in ((True, "+0.000 ["), (False, "")):
        several.methods["perplexity"]["learns"] = learns
        table = multi_source_table(one, main_entries(one), more, main_entries(more))
        (same,) = [row for row in table.rows if row[0] == "perplexity"]
        assert same[1] == same[2] and same[3].replace("-", "+").startswith(difference)
    assert same[3] == ""
    # not fitted on d0 alone: test domain d0 counts as much on one side as on the other
    for seed in (0, 1):
        del book.scores["saplma", "d0", seed]
    lacking = multi_source_table(one, main_entries(one), more, main_entries(more))
    (row,) = [row for row in lacking.rows if row[0] == "SAPLMA"]
    each = []
    for domain, area in zip(book.domain_names(), areas, strict=True):
        tested = book.domains == domain
        others = [roc_auc_score(book.y[tested], book.scores["saplma", trained, seed][tested])
                  for trained in ("d1", "d2") if trained != domain for seed in (0, 1)]  # fmt: skip
        each.append(area - np.mean(others))
    assert row[3].startswith(f"{np.mean(each):+.3f} [") and row[2].endswith("(4 of 6)")


# --- the whole report of a book ---------------------------------------------------------------


def report_of(book, folder, dialogues=None, **more):
    """The report of a model whose score book is this one, and the report's folder."""
    config = folder / "made_up.json"
    config.write_text(json.dumps({
        "models": [{"name": "m", "model_path": "./models/tiny"}], "draws": 20, "measures": None,
        "dialogues": {"dataset_path": ["./datasets/tiny/trivia.json"]}, "ablations": {},
        "outputs_dir": str(folder / "outputs"), "reports_dir": str(folder / "reports"), **more,
    }))  # fmt: skip
    experiment = load_experiment(config)
    book.save(experiment.book(experiment.models[0]))
    report = ModelReport(experiment, experiment.models[0], by="meta.scope" if book.turns else "")
    report.dialogues = lambda: iter(dialogues or ())  # a made-up book has none
    write_report(experiment, [report], {"m": list(report.chapters())})
    return report, experiment.report_dir


def without(book, *names):
    for held in (book.scores, book.turns):
        for key in [key for key in held if key[0] in names]:
            del held[key]
    book.methods = {name: about for name, about in book.methods.items() if name not in names}
    return book


def scoped():
    book = make_book()
    book.items = [replace(item, meta={"scope": f"s{place % 2}"}, cut_off="length" * (place < 9))
                  for place, item in enumerate(book.items)]  # fmt: skip
    return book


ONE = Dialogue(
    "okapi", "d0", 1, 0.4, 2, (0.1, 0.5, 0.5), "Which zebra?", "quagga", "",
    (("initial", "Which zebra?", "quagga"),) * 3,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The report of a book with everything, a dialogue shown, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    trained_on_others(scoped()).save(folder / "reports/made_up/scores/m.multi_source.pkl")
    return report_of(scoped(), folder, [ONE], dialogues_in_report=True, multi_source=True)


def test_the_report_of_a_whole_book_has_all_chapters(whole):
    report, folder = whole
    tables = {path.stem for path in (folder / "tables" / "m").glob("*.md")}
    assert {"macro", "paired_tests", "turns", "theory", "parts_1", "parts_6"} <= tables
    assert "9 first answers cut off" in (folder / "tables/m/parts_1.md").read_text()
    assert "By meta.scope" in (folder / "tables/m/parts_6.md").read_text()
    assert (
        "SpikeScore" in report.headline()[0]
        and "SpikeScore" in (folder / "report.html").read_text()
    )
    assert not any("Right and wrong" in one.title for one in report.chapters())


def test_what_several_domains_taught_is_a_chapter_and_no_part_of_another(whole):
    _, folder = whole
    table = (folder / "tables/m/multi_source.md").read_text()
    assert "| d0 | d1 | d2 |" in table and "SpikeScore" in table
    assert "Trained on all domains but the tested one" in (folder / "report.html").read_text()
    others = [path for path in (folder / "tables/m").glob("*.csv") if path.stem != "multi_source"]
    for path in (folder / "table_main.csv", *others):
        assert "all but" not in path.read_text()


def test_dialogues_that_were_packed_since_are_shown(tmp_path):
    make_pairs(tmp_path / "run" / "d", n=2, turns=3)
    paths = find_records(tmp_path / "run")
    items = [BookItem(str(path), path.stem, "d", path.stem, 0, ()) for path in paths]
    report = ModelReport.__new__(ModelReport)
    report.book = ScoreBook("m", "last_token_embedding", items)
    plain = [*report.dialogues()], [report._families(item) for item in items]
    assert len(plain[0][1].turns) == len(plain[1][1]) == 3
    pack(tmp_path / "run", tmp_path / "packed", shard_bytes=10**9)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "packed").rename(tmp_path / "run")
    assert ([*report.dialogues()], [report._families(item) for item in items]) == plain


def test_what_was_left_out_is_a_table_behind_all_others(tmp_path):
    why = "no item has a score; it needs samples"
    book = scoped()
    book.about["left_out"] = [("eigenscore", why), ("training domain d9", "too few"), ("sep", why)]
    _, folder = report_of(book, tmp_path)
    rows = (folder / "tables/m/left_out.csv").read_text().splitlines()
    assert rows == ["left out,why", f'"eigenscore, sep",{why}', "training domain d9,too few"]
    headings = re.findall(r"<h2 [^>]*>(.*?)</h2>", (folder / "report.html").read_text())
    assert headings[0] == "Main table" and headings[-2:] == ["Left out", "Dialogues"]


@pytest.mark.parametrize("shown", [True, False])
def test_a_page_without_dialogues_has_no_text_of_theirs(whole, tmp_path, shown):
    _, folder = whole if shown else report_of(scoped(), tmp_path, [ONE], dialogues_in_report=False)
    page = (folder / "report.html").read_text()
    assert ("Which zebra?" in page) == ('id="index"' in page) == ('id="chunk-0"' in page) == shown
    assert ("shown with the scores of SAPLMA" in page) == shown


@pytest.mark.parametrize("lacking", ["saplma", "turns"])
def test_a_book_without_spikescore_gives_a_report_of_the_rest(tmp_path, lacking):
    book = scoped()
    if lacking == "saplma":
        book = without(book, "saplma")
    else:
        book.turns = {}
    before = [tmp_path / f"reports/made_up/{name}" for name in (
        "tables/m/turns.md", "tables/m/turns.csv", "tables/m/turns.tex", "plots/m/turns.png",
        "tables/m/my_notes.csv", "plots/m/mine.png",
    )]  # fmt: skip
    for path in before:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of before")
    report, folder = report_of(book, tmp_path)
    assert [path.exists() for path in before] == [False] * 4 + [True] * 2
    assert "perplexity 0." in report.headline()[0] and "SpikeScore" not in report.headline()[0]
    assert (folder / "tables/m/macro.md").exists() and not (folder / "tables/m/turns.md").exists()


def test_a_book_without_training_domains_and_an_unknown_field_are_refused(tmp_path):
    book = without(scoped(), "saplma")
    book.splits = {}
    with pytest.raises(UserError, match="no training domain"):
        report_of(book, tmp_path)
    with pytest.raises(UserError, match='has "meta.scope"; the score book has no meta'):
        report_of(make_book(), tmp_path)


# --- right and wrong twins ----------------------------------------------------------------------


def twins_book():
    """A book whose domains d0 and d1 hold pairs; d2 has none, and each pair is in one split."""
    book = make_book(n=80)
    items = list(book.items)
    for place, item in enumerate(items):
        pair = f"{item.domain}/{place // 2}"
        items[place] = replace(
            item, y=place % 2, group=pair, pair=pair if item.domain != "d2" else "",
            meta={"scope": "all"},
        )  # fmt: skip
    book.items = items
    for domain, split in book.splits.items():
        own = np.flatnonzero(book.domains == domain)
        split[own] = np.repeat(np.resize(["train", "val", "test"], own.size // 2), 2)
    rng = np.random.default_rng(2)
    for domain in book.domain_names():
        for seed in range(2):
            wide = 1 + 2 * book.y[:, None]
            swing = rng.normal(0.5, 0.05 * wide, (len(items), 8))
            book.turns["saplma", domain, seed] = swing.astype(np.float32)
    book.scores["perplexity", "", 0][:6] = np.nan
    return book


def wins(book, scores, mask) -> list[float]:
    """Of each pair, 1 where the wrong twin scores higher, 1/2 for a tie, by looking at each."""
    by_pair = {}
    for place in np.flatnonzero(mask):
        by_pair.setdefault(book.items[place].pair, {})[book.items[place].y] = scores[place]
    return [
        float(pair[1] > pair[0]) + 0.5 * (pair[1] == pair[0])
        for pair in by_pair.values()
        if np.isfinite([*pair.values()]).all()
    ]


def test_paired_accuracies_are_those_of_counting_on_unseen_domains_and_held_out_pairs():
    book = twins_book()
    comparison = Comparison(book, draws=60)
    entries = [one for one in main_entries(comparison) if one.name != "domain_identity"]
    cross, inside = twin_figures(comparison, entries)
    assert cross.pairs == {"macro over 2": 80, "d0": 40, "d1": 40}
    assert inside.pairs == {"macro over 2": 26, "d0": 13, "d1": 13}
    spike = np.array([
        [np.mean([np.mean(wins(book, np.apply_along_axis(spike_score, 1, book.turns["saplma",
         other, seed]), book.domains == domain)) for seed in range(2)])
         for other in book.domain_names() if other != domain]
        for domain in ("d0", "d1")
    ])  # fmt: skip
    cells = cross.cells["SpikeScore"]
    assert cells["d0"].value == pytest.approx(spike[0].mean())
    assert cells["macro over 2"].value == pytest.approx(spike.mean())
    assert cells["d0"].interval[0] < cells["d0"].value < cells["d0"].interval[1]
    scores = book.scores["perplexity", "", 0]
    perplexity = cross.cells["perplexity"]["d0"]
    assert perplexity.value == pytest.approx(np.mean(wins(book, scores, book.domains == "d0")))
    assert perplexity.n == 37  # of three pairs a twin, or both, have no score
    held_out = (book.splits["d1"] == "test") & (book.domains == "d1")
    assert inside.cells["perplexity"]["d1"].value == pytest.approx(
        np.mean(wins(book, scores, held_out))
    )
    table = cross.table()
    assert table.header == ("method", "macro over 2", "d0", "d1")
    assert table.rows[0] == ("pairs", "80", "40", "40")
    row = next(row for row in table.rows if row[0] == "perplexity")
    assert row[2].endswith("(n=37)") and value_of(row[3]) == pytest.approx(
        np.mean(wins(book, scores, book.domains == "d1")), abs=5e-4
    )
    assert [row[1] for row in cross.rows()[:3]] == ["macro over 2", "d0", "d1"]
    assert twin_figures(Comparison(make_book(), draws=5), entries) == []


def test_a_report_of_twins_says_how_often_the_wrong_one_scores_higher(tmp_path):
    _, folder = report_of(twins_book(), tmp_path)
    text = (folder / "tables/m/twins_cross_domain.md").read_text()
    assert "| pairs | 80 | 40 | 40 |" in text
    assert (folder / "tables/m/twins_in_domain.csv").exists()
    assert "Right and wrong answers to one question" in (folder / "report.html").read_text()
