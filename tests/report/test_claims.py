"""The claims ledger on books whose effects are planted: which verdict follows, and from whom."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scripts import claims_ledger
from spikescore.errors import UserError
from spikescore.report import claims
from spikescore.report.claims import FAILS, HOLDS, UNTESTED, figures, ledger, statements
from spikescore.report.experiment import load_experiment
from spikescore.report.experiment_report import ModelReport
from spikescore.report.paper import published
from spikescore.stats.theory import measure_theory
from spikescore.stats.trajectory import apply
from tests.helpers.books import make_book
from tests.helpers.running import run_script

COMMAND = "python scripts/claims_ledger.py --configs some.json"


def make_report(folder, book, *, name="some", published=None) -> ModelReport:
    config = folder / f"{name}.json"
    model = {"name": "m", "model_path": "./models/tiny", "published": published}
    data = {"dataset_path": ["./datasets/tiny/trivia.json", "./datasets/tiny/reading.json"]}
    text = {"models": [model], "dialogues": data, "draws": 200, "reports_dir": str(folder)}
    config.write_text(json.dumps(text))
    experiment = load_experiment(config)
    book.save(experiment.book(experiment.models[0]))
    return ModelReport(experiment, experiment.models[0])


def rows_of(text: str) -> dict[str, list[str]]:
    """The ledger's rows by their claim."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in cells if len(row) == 5 and row[4].startswith((HOLDS, FAILS, UNTESTED))]
    return {row[0]: [cell.strip() for cell in row[1:]] for row in rows}


def row_about(text: str, words: str) -> list[str]:
    (found,) = [row for claim, row in rows_of(text).items() if words in claim]
    return found


def reversed_spikes(book):
    """The book with trajectories that swing less where the item is hallucinated."""
    rng = np.random.default_rng(1)
    for key in [key for key in book.turns if key[0] == "saplma"]:
        swing = rng.normal(0.5, 0.05 * (3 - 2 * book.y[:, None]), book.turns[key].shape)
        book.turns[key] = swing.astype(np.float32)
    return book


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A book in which SpikeScore is the best, of a model of the paper and of another."""
    book = make_book(turns=20)
    folder = tmp_path_factory.mktemp("claims")
    ours = make_report(folder, book, name="theirs", published="Qwen3-8B")
    return ours, make_report(folder, book, name="other")


def test_a_report_of_the_papers_model_gives_a_verdict_and_another_is_only_tried(planted):
    theirs, other = planted
    command, came, gap, verdict = row_about(ledger([theirs], COMMAND), "than perplexity of")
    assert command == "`python reproduce.py --config configs/paper.json`"
    assert came.startswith("m: difference macro +0.") and verdict == "holds (1 of 4 models)"
    paper = published("Qwen3-8B", "spike_score") - published("Qwen3-8B", "perplexity")
    ours = float(came.split("macro ")[1].split(" ")[0])
    assert abs(float(gap.split("macro ")[1].split(",")[0]) - (ours - paper)) < 1e-3
    _, came, gap, verdict = row_about(ledger([other], COMMAND), "than perplexity of")
    assert came.startswith("tried on m: difference macro +0.") and (gap, verdict) == ("", UNTESTED)


def test_no_claim_about_the_papers_models_is_decided_by_another(planted):
    rows = rows_of(ledger([planted[1]], COMMAND))
    decided = {claim for claim, row in rows.items() if row[3].startswith((HOLDS, FAILS))}
    known = {claim.text for claim in statements() if not claim.models or claim.settled}
    assert decided <= known
    assert len([row for row in rows.values() if row[3] == UNTESTED]) >= len(rows) - len(known)


def test_the_figures_told_are_those_of_another_computation(planted):
    """Macro: for each training domain and seed the mean AUROC over the other domains."""
    theirs, _ = planted
    book, areas = theirs.book, []
    for domain in book.domain_names():
        for seed in (0, 1):
            scores = apply("max_abs_d2", book.turns["saplma", domain, seed])
            for other in book.domain_names():
                here = book.domains == other
                if other != domain:
                    areas.append(roc_auc_score(book.y[here], scores[here]))
    text = ledger([theirs], COMMAND)
    _, came, gap, verdict = row_about(text, "Qwen3-8B, spike_score")
    assert came.startswith(f"m: macro {np.mean(areas):.3f} [")
    deviation = np.mean(areas) - published("Qwen3-8B", "spike_score")
    assert gap.startswith(f"m: macro {deviation:+.3f}")
    assert verdict == (HOLDS if abs(deviation) <= claims.TOLERANCE else FAILS)
    for model in ("Qwen3-14B", "Llama-3.2-3B-Instruct"):
        assert row_about(text, f"{model}, spike_score")[1:] == ["", "", UNTESTED]


def test_what_is_the_other_way_round_does_not_hold(tmp_path):
    report = make_report(tmp_path, reversed_spikes(make_book()), published="Qwen3-8B")
    verdict = row_about(ledger([report], COMMAND), "than perplexity of")[-1]
    assert verdict == "does not (1 of 4 models)"


def test_too_few_items_are_no_verdict(tmp_path):
    rng = np.random.default_rng(5)
    book = make_book(n=30)
    for key in [key for key in book.turns if key[0] == "saplma"]:
        book.turns[key] = rng.normal(size=book.turns[key].shape).astype(np.float32)
        book.scores[key] = book.turns[key][:, 0].astype(float)
    report = make_report(tmp_path, book, published="Qwen3-8B")
    assert row_about(ledger([report], COMMAND), "its own scorer")[-1] == UNTESTED


@pytest.mark.parametrize(
    ("views", "verdict"),
    [
        ({"macro": (0.01, 0.2), "pooled": (-0.1, 0.1)}, HOLDS),
        ({"macro": (0.01, 0.2), "pooled": (-0.2, -0.1)}, UNTESTED),
        ({"macro": (-0.2, -0.1), "pooled": (-0.1, 0.1)}, FAILS),
        ({"macro": (-0.04, 0.05), "pooled": (-0.1, 0.1)}, FAILS),
        ({"macro": (-0.09, 0.08), "pooled": (-0.1, 0.1)}, UNTESTED),
        ({"macro": None, "pooled": None}, UNTESTED),
    ],
)
def test_what_intervals_say(views, verdict):
    assert claims._judge(views, wide=0.05) == verdict


def test_conditions_are_told_for_each_domain(planted):
    theirs, _ = planted
    y, scores, domains = theirs.theory_scores()
    text = ledger([theirs], COMMAND)
    for words, of, holds in (
        ("(i) The mean", "mean_ratio", "gap_holds"),
        ("(ii) The ratio", "std_ratio", "spread_holds"),
    ):
        _, came, _, verdict = row_about(text, words)
        found = {name: measure_theory(y[domains == name], scores[domains == name], name)
                 for name in ("d0", "d1", "d2")}  # fmt: skip
        for name, one in found.items():
            assert f"{name} {getattr(one, of):.2f}" in came
        held = [getattr(one, holds) for one in found.values()]
        assert f"in {sum(held)} of 3 domains" in came
        assert verdict.startswith(HOLDS if all(held) else FAILS)


def test_the_premise_is_tested_by_given_answers_alone(tmp_path):
    book = make_book(n=80)
    items, y = [], []
    for place, item in enumerate(book.items):
        pair = f"{item.domain}/{place // 2}"
        y.append(place % 2)
        items.append(replace(item, pair=pair, group=pair, y=place % 2))
    book.items = items
    for key in [key for key in book.turns if key[0] == "saplma"]:
        rng = np.random.default_rng(key[2])
        swing = rng.normal(0.5, 0.05 * (1 + 4 * np.array(y)[:, None]), book.turns[key].shape)
        book.turns[key] = swing.astype(np.float32)
    report = make_report(tmp_path, book)
    text = ledger([report], COMMAND)
    _, came, _, verdict = row_about(text, "the premise")
    assert came.startswith("tried on m: paired accuracy macro over 3 0.9") and verdict == UNTESTED
    assert row_about(text, "than perplexity of")[1] == ""
    assert "some (answers given)" in text


def test_every_claim_has_a_line_a_command_and_a_verdict(planted):
    text = ledger(list(planted), COMMAND)
    rows = rows_of(text)
    assert list(rows) == [claim.text for claim in (*statements(), *figures())]
    assert all(row[0] and row[3].startswith((HOLDS, FAILS, UNTESTED)) for row in rows.values())
    verdicts = [row[3].startswith(one) for one in (HOLDS, FAILS, UNTESTED) for row in rows.values()]
    assert f"{sum(verdicts)} claims: " in text and COMMAND in text
    planted[0].book.about["left_out"] = [["prism on a", "why"], ["prism on b", "why"], ["x", "?"]]
    assert "| theirs | m | 240 | prism, x |" in ledger(list(planted), COMMAND)
    assert "tried on m" in rows["Performance saturates at 15 to 20 turns."][1]


def test_an_experiment_without_a_report_is_named(tmp_path, monkeypatch):
    done = run_script("scripts/claims_ledger.py", "--configs", "configs/none.json")
    assert done.returncode == 2 and "configs/none.json" in done.stderr
    text = json.loads(open("configs/tiny.json").read()) | {"reports_dir": str(tmp_path)}
    config = tmp_path / "mine.json"
    config.write_text(json.dumps(text))
    done = run_script("scripts/claims_ledger.py", "--configs", config)
    assert done.returncode == 2 and "reproduce.py --config" in done.stderr
    assert "has no score book" in done.stderr
    monkeypatch.setattr(sys, "argv", ["", "--configs", f"{config},{tmp_path}/./mine.json"])
    with pytest.raises(UserError, match="twice"):
        claims_ledger.main()
