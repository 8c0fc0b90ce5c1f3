"""OpenHalDet's figures beside ours, and submissions in its form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from spikescore.detectors import REGISTRY
from spikescore.report.comparison import Comparison
from spikescore.report.main_tables import main_entries
from spikescore.report.openhaldet import (
    BLACK,
    GRAY,
    access,
    beside_table,
    published,
    sets,
    submission,
    submission_text,
)
from tests.helpers.books import make_book

MODEL = "Llama-3.1-8B-Instruct"


def named_book(*names: str):
    book = make_book()
    called = dict(zip(book.domain_names(), names, strict=True))
    book.items = [replace(item, domain=called[item.domain]) for item in book.items]
    book.splits = {called[domain]: split for domain, split in book.splits.items()}
    for held in (book.scores, book.turns):
        for name, domain, seed in [key for key in held if key[1]]:
            held[name, called[domain], seed] = held.pop((name, domain, seed))
    return book


def test_table_9_means_give_table_2():
    """Averages over sets of one kind, as the paper's other table has them (to two digits)."""
    qa = sets()[:8]
    for model, method, expected in (
        (MODEL, "saplma", 81.03), (MODEL, "prism", 81.98), ("Qwen3-14B", "perplexity", 67.20),
        ("Llama-3.2-3B-Instruct", "mind", 78.40), ("Qwen3-8B", "haloscope", 59.23),
    ):  # fmt: skip
        mean = 100 * np.mean([published(model, method, name) for name in qa])
        assert mean == pytest.approx(expected, abs=0.011)
    for name in ("CSQA", "commonsenseqa"):
        assert published(MODEL, "saplma", name) == pytest.approx(0.7212)
    assert published(MODEL, "spike_score", "coqa") is published(None, "saplma", "coqa") is None
    assert published(MODEL, "saplma", "no_set") is None


def test_theirs_stand_beside_our_in_domain_figures():
    book = named_book("triviaqa", "coqa", "unknown")
    comparison = Comparison(book, draws=50)
    table = beside_table(comparison, main_entries(comparison), MODEL)
    assert {row[1] for row in table.rows} == {"triviaqa", "coqa"}
    (row,) = [row for row in table.rows if row[:2] == ("perplexity", "coqa")]
    test = book.splits["coqa"] == "test"
    ours = roc_auc_score(book.y[test], book.scores["perplexity", "", 0][test])
    assert row[2].startswith(f"{ours:.3f} [") and row[3] == str(test.sum())
    assert row[4:] == ("0.7807", f"{ours - 0.7807:+.3f}")
    assert beside_table(comparison, main_entries(comparison), None) is None


def test_a_submission_is_not_turned_round():
    book = named_book("triviaqa", "coqa", "unknown")
    book.scores["perplexity", "", 0] = -book.scores["perplexity", "", 0]
    comparison = Comparison(book, draws=1)
    entry = next(one for one in main_entries(comparison) if one.name == "perplexity")
    told = submission(comparison, entry, backbone="Qwen3-8B", link="https://example.org")
    assert told["title"] == "[Leaderboard] perplexity \u2014 Qwen3-8B"
    assert told["access"] == "gray-box" and list(told["other_sets"]) == ["unknown"]
    areas = []
    for name in ("triviaqa", "coqa"):
        test = book.splits[name] == "test"
        areas.append(100 * roc_auc_score(book.y[test], book.scores["perplexity", "", 0][test]))
        assert told["results"][name]["auroc"] == pytest.approx(areas[-1], abs=0.006)
        assert told["results"][name]["n_test"] == test.sum()
    assert min(areas) < 50
    assert told["average"] == pytest.approx(np.mean(areas), abs=0.01)
    assert set(told["missing"]) == set(sets()) - {"triviaqa", "coqa"}
    text = submission_text(told, ["a note"])
    assert f"| triviaqa | {areas[0]:.2f} |" in text and "| unknown (not in OpenHalDet) |" in text
    assert "- Access regime: gray-box" in text and text.endswith("- a note\n")
    assert f"Average over 2 of {len(sets())} sets: {np.mean(areas):.2f}." in text


def test_an_average_says_over_how_many_sets_it_is():
    """All items of one of the two sets are hallucinated: its AUROC is not in the average."""
    book = named_book("triviaqa", "coqa", "unknown")
    book.items = [replace(item, y=1) if item.domain == "coqa" else item for item in book.items]
    comparison = Comparison(book, draws=1)
    entry = next(one for one in main_entries(comparison) if one.name == "perplexity")
    told = submission(comparison, entry, backbone="Qwen3-8B", link="")
    assert told["results"]["coqa"]["auroc"] is None
    average = f"{told['results']['triviaqa']['auroc']:.2f}"
    text = submission_text(told, [])
    assert f"Average over 1 of {len(sets())} sets: {average}." in text


def test_access_regimes():
    assert access("lexical_similarity") == "black-box"
    assert access("spike_score") == access("saplma") == access("prism") == "white-box"
    assert access("max_abs_d2:perplexity") == "gray-box"
    inside = {"states", "lens", "attentions", "components", "semantics", "capability"}
    for name, method in REGISTRY.items():
        found = access(name, method.needs)
        if method.needs <= {"texts"}:
            assert found == "black-box", name
        elif method.needs & inside:
            assert found == "white-box", name
    for name in ("selfcheck_prompt", "p_none", "surprisingly_likely", "counterfactual_drop"):
        assert access(name, REGISTRY[name].needs) == "gray-box"  # P of a next token
    for name in ("verbalised_top_k", "semantic_consistency", "semantic_entropy_discrete"):
        assert access(name, REGISTRY[name].needs) == "black-box"
    for name in ("dola_contrast", "eigenscore", "ccs"):
        assert access(name, REGISTRY[name].needs) == "white-box"
    assert access("my_own", {"texts"}) == "black-box" and access("my_own", {"lens"}) == "white-box"
    assert BLACK | GRAY <= set(REGISTRY) and not BLACK & GRAY
