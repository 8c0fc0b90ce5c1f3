"""Planted effects through the whole chain: what goes in must come out, and nothing from nothing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import metrics_probe
from spikescore.probes.training import Settings, train_probe
from spikescore.report.evaluation import (
    Evaluation,
    Found,
    choose_items,
    read_and_score,
    read_item,
)
from tests.helpers.factories import make_record
from tests.helpers.planted import planted_auroc, write_domain
from tests.helpers.running import run_script

SHIFT = 0.4
PLANTED = planted_auroc(SHIFT)  # 0.82
FIRST = {"source": 1.5, "reversed": -1.5, "unrelated": 0.0, "faint": -0.3}
N = 120


def test_planted_auroc_is_that_of_the_model():
    rng = np.random.default_rng(0)
    u, v = rng.random((2, 400_000))
    assert planted_auroc(SHIFT) == pytest.approx(np.mean(u + SHIFT > v), abs=0.003)
    assert planted_auroc(0) == 0.5 and planted_auroc(1) == 1.0


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Four domains, SAPLMA trained on the first, scored and evaluated by the scripts."""
    folder = tmp_path_factory.mktemp("planted")
    outputs, probe, report = folder / "outputs", folder / "probe.pkl", folder / "report"
    swings = {
        domain: write_domain(outputs / domain, n=N, first=first, shift=SHIFT)
        for domain, first in FIRST.items()
    }
    train_probe([outputs / "source"], Settings())[0].save(probe)
    scored = run_script(
        "metrics_probe.py", "--json_dir", outputs, "--pkl_dir", outputs, "--probe_path", probe
    )
    assert scored.returncode == 0, scored.stderr
    done = run_script("eval_probe.py", "--data_dir", outputs, "--report_dir", report)
    assert done.returncode == 0, done.stderr
    return outputs, done.stdout, swings


def printed(text: str, method: str) -> dict[str, tuple[float, float, float]]:
    """The AUROC lines of a method: title -> (value, low, high)."""
    line = rf"^{re.escape(method)} AUROC (\S+) \[(\S+), (\S+)\] n=\d+ hallucinated \d+% \((.*)\)$"
    found = re.findall(line, text, re.MULTILINE)
    return {title: (float(value), float(low), float(high)) for value, low, high, title in found}


def test_spike_score_comes_out_as_planted_in_every_view(experiment):
    _, text, _ = experiment
    views = printed(text, "SpikeScore")
    kinds = ("in-domain", "pooled over 3", "macro over 3", "reversed", "unrelated", "faint")
    assert all(any(kind in title for title in views) for kind in kinds), views
    for title, (_, low, high) in views.items():
        assert low <= PLANTED <= high, title


def test_no_rank_is_lost_between_the_swings_and_the_printed_figure(experiment):
    """The chain adds no noise of its own: the AUROC is that of the swings drawn."""
    _, text, swings = experiment
    views = printed(text, "SpikeScore")
    for domain in ("reversed", "unrelated", "faint"):
        ((value, _, _),) = [v for title, v in views.items() if title.startswith(domain)]
        assert value == pytest.approx(roc_auc_score(*swings[domain]), abs=0.002)
        assert value == pytest.approx(PLANTED, abs=0.01)


def test_domain_shift_fools_the_first_answer_probe(experiment):
    outputs, text, _ = experiment
    views = printed(text, "first-answer probe")
    for kind, low, high in (("in-domain", 0.9, 1.0), ("pooled", 0.0, 0.5), ("macro", 0.0, 0.5)):
        ((value, *interval),) = [v for title, v in views.items() if kind in title]
        assert low <= value <= high, kind
        if kind != "in-domain":
            assert interval[1] < 0.5
    by_domain = {}
    for domain in FIRST:
        records = [
            json.loads(path.read_text()) for path in sorted((outputs / domain).glob("*.json"))
        ]
        y = [1 - record["nil_label"] for record in records]
        first = [record["metrics"]["probe_pred"][0] for record in records]
        by_domain[domain] = roc_auc_score(y, first)
    assert by_domain["source"] > 0.9 > 0.1 > by_domain["reversed"]
    error = ((N + 1) / (3 * N**2)) ** 0.5  # of an AUROC without effect, half of N in each class
    assert abs(by_domain["unrelated"] - 0.5) < 3 * error
    gain = re.search(r"SpikeScore minus first-answer probe (\S+) \[(\S+), .*pooled", text)
    assert float(gain[2]) > 0.2


# --- nothing planted --------------------------------------------------------------------------


def null_through_the_chain(folder: Path, seed: int) -> bool:
    """No class differs anywhere; whether the interval of the other domain's AUROC holds .5."""
    outputs, probe = folder / "outputs", folder / "probe.pkl"
    for domain in ("source", "other"):
        write_domain(outputs / domain, n=40, first=0.0, shift=0.0, evenly=False, seed=seed)
    settings = Settings(epochs=1, layer_range=(1, 1))
    train_probe([outputs / "source"], settings)[0].save(probe)
    arguments = ["metrics_probe.py", "--json_dir", outputs, "--pkl_dir", outputs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*map(str, arguments), "--probe_path", str(probe)])
        assert metrics_probe.main() == 0
    return holds_half(read_and_score(outputs), seed)


def null_from_scores(folder: Path, seed: int) -> bool:
    """The same from scores drawn alike for both classes, read from records as stage 3 does."""
    rng = np.random.default_rng([seed, 1])
    items = []
    for place in range(160):
        record = make_record(f"q{place}", y=place % 2, turns=6, domain="other", model="m")
        record |= {"complete": True, "metrics": {"probe_split": "unseen"}}
        for step, score in zip(record["cot_steps"], rng.random(6).tolist(), strict=True):
            step["metrics"] = {"probe_pred": score}
        items.append(read_item(record, folder / f"q{place}.json"))
    return holds_half(Found(items), seed)


def holds_half(found: Found, seed: int) -> bool:
    evaluated, _ = choose_items(found, include_train=False)
    evaluated = [item for item in evaluated if item.domain == "other"]
    views = Evaluation(found.items, evaluated, draws=500, seed=seed).views()
    (pooled,) = [view for view in views if view.kind == "pooled"]
    low, high = pooled.methods["spike_score"].interval
    return low <= 0.5 <= high


def test_nothing_planted_comes_out_as_nothing(tmp_path):
    """100 experiments without an effect, four of them from states on disk: 93 or more hold .5."""
    hits = [null_through_the_chain(tmp_path / f"run{seed}", seed) for seed in range(4)]
    hits += [null_from_scores(tmp_path, seed) for seed in range(4, 100)]
    assert len(hits) == 100
    assert 93 <= sum(hits) < 100  # an interval that always held would be too wide
