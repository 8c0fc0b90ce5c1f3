"""Agreement of two judges: kappa by hand and by scikit-learn, its error by other roads."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from spikescore.stats.agreement import agree, agreement_report, cohen_kappa, standard_error
from tests.helpers.running import run_script

# 50 proposals, two readers: p_o = 35/50; p_e = (25 * 30 + 25 * 20) / 50^2 = 1/2; kappa = 2/5
READERS = np.array([[20, 5], [10, 15]])


def labels(table: np.ndarray) -> tuple[list[int], list[int]]:
    pairs = [(a, b) for a in (0, 1) for b in (0, 1) for _ in range(table[a, b])]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_kappa_by_hand() -> None:
    result = agree(*labels(READERS))
    assert result.table.tolist() == READERS.tolist() and result.n == 50
    assert (result.observed, result.expected) == (0.7, 0.5)
    assert result.kappa == pytest.approx(0.4)


def test_standard_error_by_hand() -> None:
    # shares .4 .1 / .2 .3, margins .5 .5 and .6 .4, kappa .4:
    # equal   .4 (1 - 1.1 * .6)^2 + .3 (1 - .9 * .6)^2          = .10972
    # unequal .6^2 (.1 (.6 + .5)^2 + .2 (.4 + .5)^2)            = .10188
    # less    (.4 - .5 * .6)^2                                  = .01
    expected = math.sqrt((0.10972 + 0.10188 - 0.01) / 50) / 0.5
    assert standard_error(READERS) == pytest.approx(expected, rel=1e-9)
    low, high = agree(*labels(READERS)).interval
    assert (low, high) == pytest.approx((0.4 - 1.96 * expected, 0.4 + 1.96 * expected), abs=1e-4)


counts = st.lists(st.integers(0, 60), min_size=4, max_size=4).filter(any)


@given(counts)
def test_kappa_is_that_of_scikit_learn(four: list[int]) -> None:
    table = np.array(four).reshape(2, 2)
    first, second = labels(table)
    if len({*first, *second}) == 1:
        assert math.isnan(cohen_kappa(table))
    else:
        assert cohen_kappa(table) == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


@given(st.lists(st.integers(1, 60), min_size=4, max_size=4))
def test_standard_error_is_that_of_the_delta_method(four: list[int]) -> None:
    """Gradient of kappa in the shares, by finite differences, in the multinomial covariance."""
    share = np.array(four) / sum(four)

    def kappa(p: np.ndarray) -> float:
        p = p.reshape(2, 2)
        chance = p.sum(1) @ p.sum(0)
        return (np.trace(p) - chance) / (1 - chance)

    step = 1e-6
    gradient = np.array([
        (kappa(share + step * unit) - kappa(share - step * unit)) / (2 * step)
        for unit in np.eye(4)
    ])  # fmt: skip
    covariance = (np.diag(share) - np.outer(share, share)) / sum(four)
    expected = math.sqrt(max(0.0, gradient @ covariance @ gradient))
    assert standard_error(np.array(four).reshape(2, 2)) == pytest.approx(expected, abs=1e-5)


def test_the_interval_covers_as_often_as_it_says() -> None:
    share = np.array([0.35, 0.08, 0.12, 0.45])
    true = cohen_kappa((share * 10_000).round().reshape(2, 2).astype(int))
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(600):
        low, high = agree(*labels(rng.multinomial(200, share).reshape(2, 2))).interval
        covered += low <= true <= high
    assert 0.92 <= covered / 600 <= 0.975  # 95% give or take three standard errors of 600 draws


def test_groups_that_agree_as_one_widen_the_interval() -> None:
    first, second = labels(READERS)
    alone = agree(first, second)
    same = agree(first, second, groups=[f"g{n}" for n in range(50)])
    assert (same.interval, same.interval_by) == (alone.interval, "standard error")
    tens = agree(first * 10, second * 10, groups=[f"g{n % 50}" for n in range(500)])
    assert tens.kappa == pytest.approx(alone.kappa) and "50 groups" in tens.interval_by
    # ten copies of each answer know no more than one: the width stays that of 50 answers
    width = tens.interval[1] - tens.interval[0]
    assert width == pytest.approx(alone.interval[1] - alone.interval[0], rel=0.15)
    assert tens.interval == agree(
        first * 10, second * 10, groups=[f"g{n % 50}" for n in range(500)]
    ).interval  # fmt: skip


@pytest.mark.parametrize(
    ("table", "kappa", "said"),
    [
        ([[0, 0], [0, 9]], math.nan, "not defined"),
        ([[4, 0], [0, 9]], 1.0, "kappa 1.000, no interval"),
        ([[0, 0], [4, 9]], 0.0, "kappa 0.000, no interval"),
    ],
)
def test_labels_without_variance_have_no_interval(table: list, kappa: float, said: str) -> None:
    result = agree(*labels(np.array(table)))
    assert result.kappa == pytest.approx(kappa, nan_ok=True)
    assert all(map(math.isnan, result.interval))
    assert said in agreement_report(result, "a", "b")


def test_a_missing_label_is_counted_and_mistakes_are_errors() -> None:
    result = agree([1, 0, None, 1, 0], [1, None, 0, 0, 0])
    assert (result.n, result.unlabelled) == (3, 2)
    assert "2 without both labels" in agreement_report(result, "exact", "openai")
    with pytest.raises(ValueError, match="no answer"):
        agree([None, 1], [1, None])
    with pytest.raises(ValueError, match="2, 1 and 2"):
        agree([1, 0], [1])


# --- the command ------------------------------------------------------------------------------


def _pair(folder: Path, name: str, response: str, gold: str) -> Path:
    record = {
        "id": name, "question": "?", "domain": "d", "gold_answers": [gold], "nil_label": None,
        "cot_steps": [{"turn": 1, "response": response}], "metrics": {},
    }  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record))
    return path


run = partial(run_script, "scripts/label_answers.py")


def test_agreement_command_prints_and_writes_nothing(tmp_path: Path) -> None:
    for name, (response, gold) in enumerate(
        [("It is 7.", "7"), ("7", "7"), ("It is 8.", "7"), ("none", "7"), ("7", "7"),
         ("It is 7.0", "7"), ("pens", "pens")]
    ):  # fmt: skip
        _pair(tmp_path, f"p{name}", response, gold)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = run("--agreement", tmp_path, "--judge", "exact", "--judge", "numeric")
    assert result.returncode == 1 and "Traceback" not in result.stderr  # "pens" is no number
    for part in (
        "7 pairs, judged by exact and by numeric", "exact: labels: 7 of 7",
        "numeric: labels: 6 of 7", "of 6 answers", "1 without both labels", "Cohen's kappa",
    ):  # fmt: skip
        assert part in result.stdout
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_mistakes_in_the_agreement_command(tmp_path: Path) -> None:
    one = run("--agreement", tmp_path, "--judge", "exact")
    assert one.returncode == 2 and "two judges" in one.stderr
    empty = run("--agreement", tmp_path, "--judge", "exact", "--judge", "auto")
    assert empty.returncode == 2 and "holds no pair" in empty.stderr
    _pair(tmp_path, "a", "x", "not a number")
    neither = run("--agreement", tmp_path, "--judge", "exact", "--judge", "numeric")
    assert neither.returncode == 2 and "no answer has a label of both" in neither.stderr
    two = run("--relabel", tmp_path, "--judge", "exact", "--judge", "auto")
    assert two.returncode == 2 and "by commas" in two.stderr
    none = run("--judge", "exact")
    assert none.returncode == 2 and "--agreement" in none.stderr
    assert not any("Traceback" in each.stderr for each in (one, empty, neither, two, none))
