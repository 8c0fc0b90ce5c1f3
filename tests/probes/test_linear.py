"""Semantic entropy probes: threshold, losses, solver, training, and the script from end to end."""

from __future__ import annotations

import itertools
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ndcg_score, roc_auc_score

from spikescore.errors import UserError
from spikescore.files import read_json
from spikescore.measures.run_folder import read_run, write_generations, write_measures
from spikescore.measures.run_measures import p_ik
from spikescore.probes import fit
from spikescore.probes.fit import Examples
from spikescore.probes.layers import best_window, candidate_layers, layers_text
from spikescore.probes.linear import best_split, fit_logistic, solve
from spikescore.probes.losses import LOSSES, _doubly_stochastic, correlation, neural_ndcg
from spikescore.probes.probe import load_probe
from spikescore.probes.training import LOSS_NAMES, Settings, choose_probe, train_probe
from spikescore.stats.correlation import measure_correlation
from tests.helpers.factories import make_pairs
from tests.helpers.run_factory import make_run
from tests.helpers.running import run_script

SCRIPT = "semantic-entropy-probes/probes_trainer.py"
KEY = "last_token_embedding"
SMALL = {"hidden_sizes": (32, 16), "learning_rate": 3e-3, "epochs": 30}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a", n=200)
    return folder


# --- the threshold ----------------------------------------------------------------------------


def brute_force(values: list[float]) -> tuple[float, float]:
    """Least squared error within the groups over every cut, and the lowest cut that reaches it."""
    best = (math.inf, math.inf)
    distinct = sorted(set(values))
    for low, high in itertools.pairwise(distinct):
        cut = (low + high) / 2
        groups = [v for v in values if v < cut], [v for v in values if v > cut]
        error = sum(sum((v - sum(g) / len(g)) ** 2 for v in g) for g in groups)
        if error < best[0] - 1e-12:
            best = (error, cut)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_threshold_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.choice([0.0, 0.325, 0.5, 0.69, 1.09, 1.6, 2.3], size=40).tolist()
    smooth = rng.exponential(size=int(rng.integers(2, 60))).tolist()
    for values in (levels, smooth):
        assert best_split(values) == pytest.approx(brute_force(values)[1], abs=1e-12)
        assert best_split(values[::-1]) == pytest.approx(best_split(values), abs=1e-12)


def test_threshold_by_hand() -> None:
    # 0 0 1 | 5 6: errors of the cuts are 0 + 14, 2/3 + 1/2 and 18.67..., so 3 is best
    assert best_split([0, 0, 1, 5, 6]) == 3
    assert best_split([0.0, 2.0]) == 1.0
    assert best_split([0, 1, 2]) == 0.5  # both cuts leave 1/2: the lower one
    for same in ([0.7] * 9, [math.log(3), math.log(3) + 1e-15]):
        with pytest.raises(UserError, match="temperature"):
            best_split(same)


# --- losses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # errors -.25, 0, 2: Huber with delta .5 gives .03125, 0, .5 * (2 - .25) = .875
        ("mse", 4.0625 / 3),
        ("mae", 2.25 / 3),
        ("huber", 0.90625 / 3),
        # y log p + (1 - y) log(1 - p) of logits 0, 1, 2
        ("cross_entropy", (math.log(2) + math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 3),
    ],
)
def test_pointwise_losses_by_hand(name: str, expected: float) -> None:
    found = LOSSES[name](torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.25, 1.0, 0.0]))
    assert float(found) == pytest.approx(expected)


def test_correlation_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 20))
    found = correlation(torch.from_numpy(x), torch.from_numpy(y))
    assert float(found) == pytest.approx(1 - pearsonr(x, y).statistic, abs=1e-9)
    assert float(correlation(torch.ones(5), torch.arange(5.0))) == 1  # and not NaN


def ndcg(scores: np.ndarray, relevance: np.ndarray) -> float:
    """NDCG with gains 2^rel - 1 from its definition."""
    gains = 2**relevance - 1
    discounts = 1 / np.log2(np.arange(2, len(gains) + 2))
    reached = (gains[np.argsort(-scores)] * discounts).sum()
    return reached / (np.sort(gains)[::-1] * discounts).sum()


def test_neural_ndcg_tends_to_ndcg_as_the_scores_grow() -> None:
    """Growing scores are a falling temperature: the permutation becomes that of sorting."""
    rng = np.random.default_rng(1)
    scores, relevance = rng.standard_normal((4, 12)), rng.uniform(0, 2.3, 12)
    exact = [ndcg(row, relevance) for row in scores]
    # the reference above is scikit-learn's NDCG of the gains
    assert exact == pytest.approx([ndcg_score([2**relevance - 1], [row]) for row in scores])
    target = torch.from_numpy(relevance)
    errors = [
        max(
            abs(1 - float(neural_ndcg(torch.from_numpy(row / t), target)) - value)
            for row, value in zip(scores, exact, strict=True)
        )
        for t in (3.0, 0.3, 1e-4)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-9


def test_neural_ndcg_is_what_its_formula_says_for_two_items() -> None:
    # s = (1, 0), n = 2, A 1 = (1, 1). Row 1: softmax((1 - 1, 0 - 1)) = (p, 1 - p), p = 1/(1+1/e);
    # row 2: softmax((-1 - 1, 0 - 1)) = (1 - p, p): columns sum to one already.
    p = 1 / (1 + math.exp(-1))
    relevance = [2.0, 1.0]  # gains 3 and 1
    d = 1 / math.log2(3)
    expected = ((3 * p + 1 - p) + (3 * (1 - p) + p) * d) / (3 + d)
    found = neural_ndcg(torch.tensor([1.0, 0.0]), torch.tensor(relevance))
    assert 1 - float(found) == pytest.approx(expected, abs=1e-6)
    assert float(neural_ndcg(torch.tensor([1.0, 0.0]), torch.zeros(2))) == 1


def test_scaling_makes_rows_and_columns_sum_to_one() -> None:
    scaled = _doubly_stochastic(torch.rand(6, 6, dtype=torch.float64) + 0.1)
    np.testing.assert_allclose(scaled.sum(dim=0), 1, atol=1e-5)
    np.testing.assert_allclose(scaled.sum(dim=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_loss_has_gradients_that_better_the_order(name: str) -> None:
    target = torch.tensor([0.0, 0.5, 1.0, 2.0])
    prediction = torch.tensor([0.3, 0.1, 0.2, 0.0], requires_grad=True)
    before = LOSSES[name](prediction, target)
    assert before.shape == ()
    (gradient,) = torch.autograd.grad(before, prediction)
    assert LOSSES[name](prediction - 0.1 * gradient, target) < before
    assert gradient[3] < 0  # the highest entropy is to score higher


# --- logistic regression ----------------------------------------------------------------------


@pytest.mark.parametrize("standardise", [True, False])
def test_rows_that_come_in_blocks_give_the_same_fit(
    standardise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(90) % 3 == 0
    rows = (rng.standard_normal((90, 7)) * np.arange(1, 8) + 5).astype(np.float16)
    rows[:, 3] = 2  # a constant
    rows[:, 1] += labels
    examples = Examples(np.arange(0, 90, 2), np.arange(1, 90, 2), labels.astype(int), labels)
    whole, split = [], []
    for found, block in ((whole, 2**28), (split, 8 * 7 * 10)):
        monkeypatch.setattr(fit, "BLOCK_BYTES", block)
        found.append(fit_logistic([rows], [()], examples, standardise=standardise))
    (one,), (other,) = whole, split
    for (_, *arrays), (_, *others) in zip(one.best, other.best, strict=True):
        for array, again in zip(arrays, others, strict=True):
            np.testing.assert_allclose(array, again, atol=1e-5)
    if standardise:
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5)
        np.testing.assert_allclose(one.scale, other.scale, rtol=1e-5)
    np.testing.assert_allclose(one.score, other.score, atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(80, 6), (40, 150), (60, 60)])
def test_logistic_regression_is_solved_to_the_end(n: int, d: int) -> None:
    rng = np.random.default_rng(d)
    x = rng.standard_normal((n, d)) + 0.5
    labels = (x[:, 0] + rng.standard_normal(n) > 0.8).astype(int)
    weights, intercept = solve(x, labels)
    # at the minimum the gradient of |w|^2 / 2 + cross-entropy is nought
    residual = 1 / (1 + np.exp(-(x @ weights + intercept))) - labels
    np.testing.assert_allclose(weights + x.T @ residual, 0, atol=1e-4)
    assert residual.sum() == pytest.approx(0, abs=1e-4)


def test_p_ik_is_the_probability_of_a_right_answer() -> None:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((300, 4)) * [1, 5, 0.1, 1] + 3
    is_false = (states[:, 1] > 3).astype(int)
    found = p_ik(states[:200], is_false[:200], states[200:])
    scaled = (states - states[:200].mean(axis=0)) / states[:200].std(axis=0)
    model = LogisticRegression(tol=1e-10).fit(scaled[:200], is_false[:200])
    np.testing.assert_allclose(found, model.predict_proba(scaled[200:])[:, 0], atol=1e-4)
    assert roc_auc_score(1 - is_false[200:], found) > 0.95
    with pytest.raises(ValueError, match="right and wrong"):
        p_ik(states, np.ones(300), states)


# --- correlations -----------------------------------------------------------------------------


def test_correlations_equal_scipys_and_their_intervals_are_sound() -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 6, 120).astype(float)  # many ties
    y = x + rng.standard_normal(120) * 2
    for ranks, oracle in ((False, pearsonr), (True, spearmanr)):
        found = measure_correlation(x, y, ranks=ranks)
        assert found.value == pytest.approx(oracle(x, y).statistic)
        # percentiles of a plain bootstrap, drawn and ranked item by item
        drawn = [rng.integers(0, 120, 120) for _ in range(1000)]
        low, high = np.percentile([oracle(x[i], y[i]).statistic for i in drawn], (2.5, 97.5))
        assert (found.low, found.high) == (
            pytest.approx(low, abs=0.02),
            pytest.approx(high, abs=0.02),
        )
    twice = measure_correlation(
        np.tile(x, 2), np.tile(y, 2), ranks=False, groups=list(range(120)) * 2
    )
    single = measure_correlation(x, y, ranks=False)
    assert twice.high - twice.low == pytest.approx(single.high - single.low, abs=1e-9)
    assert measure_correlation(x[:5], y[:5], ranks=True).note.startswith("not computable: 5")
    assert measure_correlation(x * 0, y, ranks=True).value is None


# --- layers -----------------------------------------------------------------------------------


def test_layer_choices() -> None:
    assert candidate_layers("single", None, 3) == [(1,), (2,), (3,)]
    assert candidate_layers("last_2", None, 4) == [(3, 4)]
    assert candidate_layers("first_3", None, 4) == [(1, 2, 3)]
    assert candidate_layers("0,2,4", None, 4) == [(0, 2, 4)]
    assert candidate_layers("single", (1, 3), 4) == [(1, 2, 3)]
    assert [layers_text(x) for x in ((7,), (3, 4, 5), (5, 7, 9))] == ["7", "3-5", "5,7,9"]
    for wrong in ("last", "last_0", "last_9", "5,3", "2,2", "1,9", "best", "1-3"):
        with pytest.raises(UserError, match="--layers"):
            candidate_layers(wrong, None, 4)
    with pytest.raises(UserError, match="layers 0 to 4"):
        candidate_layers("single", (2, 5), 4)


def test_best_window_is_the_best_mean_of_five_or_more() -> None:
    areas = [0.5, 0.6, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.95]
    assert best_window(areas) == (3, 7)
    assert best_window([0.7] * 6) == (1, 5)
    assert best_window([0.9] * 4) is None


# --- training ---------------------------------------------------------------------------------


def held_out(folder: Path, probe, split: str = "test") -> tuple[np.ndarray, ...]:
    """Scores, entropies and wrongness of a split's questions, read from the folder again."""
    run = read_run(folder)
    entropies = run.measure("cluster_assignment_entropy")
    names = [n.split("/")[1] for n, s in probe.training["items"].items() if s == split]
    states = [run.state("validation", name, probe.token_key) for name in names]
    entropy = [entropies[("validation", name)] for name in names]
    wrong = [1 - run.validation[name]["most_likely_answer"]["accuracy"] for name in names]
    return probe.score(probe.features(states)), np.array(entropy), np.array(wrong)


def test_logistic_probe_finds_the_layer_and_orders_entropies(runs: Path) -> None:
    probe, last = train_probe([runs / "a"], Settings(probe="sep-logistic"))
    assert probe.layer_range == (2, 2) and probe.kind == "sep-logistic"
    scores, entropy, wrong = held_out(runs / "a", probe)
    assert len(scores) == probe.metrics["test"]["n"] == 40
    gamma = probe.training["entropy_threshold"]
    _, train_entropy, _ = held_out(runs / "a", probe, "train")
    assert gamma == pytest.approx(brute_force(train_entropy.tolist())[1])
    assert probe.metrics["test"]["value"] == pytest.approx(roc_auc_score(entropy > gamma, scores))
    assert probe.metrics["test"]["value"] > 0.95
    found = probe.metrics["against_accuracy"]["test"]
    assert found["value"] == pytest.approx(roc_auc_score(wrong, scores)) and found["value"] > 0.7
    spearman = probe.metrics["spearman"]["test"]
    assert spearman["value"] == pytest.approx(spearmanr(scores, entropy).statistic, abs=1e-6)
    assert spearman["low"] < spearman["value"] < spearman["high"] and spearman["value"] > 0.8
    assert probe.spike_threshold is None and (scores >= 0).all() and (scores <= 1).all()
    np.testing.assert_array_equal(last.weights[0][1], probe.weights[0][1])


@pytest.mark.parametrize("loss", ["huber", "neural_ndcg"])
def test_mlp_probe_orders_entropies(runs: Path, loss: str) -> None:
    settings = Settings(probe="sep-mlp", loss=loss, layer_range=(2, 2), patience=8, **SMALL)
    probe, last = train_probe([runs / "a"], settings)
    scores, entropy, _ = held_out(runs / "a", probe)
    assert spearmanr(scores, entropy).statistic > 0.85
    assert [op[0] for op in probe.weights] == ["linear", "layernorm", "mish"] * 2 + ["linear"]
    if loss == "huber":  # learns nats
        assert np.abs(scores - entropy).mean() < 0.35
    assert probe.metrics["epoch"] <= last.metrics["epoch"] <= 30


def test_mlp_layer_search_finds_the_layer(runs: Path) -> None:
    probe, _ = train_probe([runs / "a"], Settings(probe="sep-mlp", **SMALL | {"epochs": 4}))
    assert probe.layer_range == (2, 2)
    assert probe.metrics["val_auroc_by_layers"].keys() == {"1", "2", "3", "4"}


def test_saplma_learns_accuracy_from_a_run(runs: Path, tmp_path: Path) -> None:
    make_run(tmp_path, n=150, n_train=50)
    probe, _ = train_probe([tmp_path], Settings(probe="saplma"))
    assert probe.layer_range == (2, 2) and sum(probe.training["n"].values()) == 200
    assert (
        probe.metrics["test"]["value"] > 0.7
    )  # a tenth of the answers is wrong or right by chance
    assert "entropy_threshold" not in probe.training and "spearman" in probe.metrics


def test_shuffled_entropies_are_not_learned(tmp_path: Path) -> None:
    make_run(tmp_path, n=300, layers=3)
    measures = pickle.loads((tmp_path / "uncertainty_measures.pkl").read_bytes())
    values = measures["uncertainty_measures"]["cluster_assignment_entropy"]
    measures["uncertainty_measures"]["cluster_assignment_entropy"] = (
        np.random.default_rng(3).permutation(values).tolist()
    )
    write_measures(tmp_path, measures)
    settings = Settings(probe="sep-logistic", test_fraction=0.5, layer_range=(1, 3))
    test = train_probe([tmp_path], settings)[0].metrics["test"]
    positive, negative = test["n_positive"], test["n"] - test["n_positive"]
    # standard error of the AUROC when labels and scores are independent (Mann-Whitney)
    error = ((test["n"] + 1) / (12 * positive * negative)) ** 0.5
    assert abs(test["value"] - 0.5) < 3 * error


def test_auto_prefers_a_window_when_the_signal_is_spread(tmp_path: Path) -> None:
    make_run(tmp_path, n=200, layers=7, hidden=6, signal=0.0)
    path = tmp_path / "validation_generations.pkl"
    run = read_run(tmp_path)
    entropies = run.measure("cluster_assignment_entropy")
    direction = np.ones(6) / 6**0.5
    for name, entry in run.validation.items():
        state = entry["most_likely_answer"]["emb_tok_before_eos"].astype(np.float32)
        state[2:7, 0] += 0.9 * (entropies[("validation", name)] - 1) * direction
        entry["most_likely_answer"]["emb_tok_before_eos"] = state.astype(np.float16)
    write_generations(tmp_path, "validation", run.validation)
    assert path.exists()
    probe, _ = train_probe([tmp_path], Settings(probe="sep-logistic", layers="auto"))
    first, last = probe.layer_range
    assert last - first >= 4 and {3, 4, 5} <= set(range(first, last + 1))
    areas = probe.metrics["val_auroc_by_layers"]
    assert areas[f"{first}-{last}"][0] > max(areas[str(layer)][0] for layer in range(1, 8))


def test_pooled_runs_share_no_question_between_splits(tmp_path: Path) -> None:
    make_run(tmp_path / "a", n=80)
    make_run(tmp_path / "b", n=80, seed=1)  # the same questions, sampled again
    make_run(tmp_path / "c", n=60, domain="trivia")
    # the same wording under another id, in another domain
    entries = read_run(tmp_path / "c").validation
    for item in range(60):
        entries[f"trivia-{item}"]["question"] = f"What is nq-{item}?"
    write_generations(tmp_path / "c", "validation", entries)
    folders = [tmp_path / name for name in "abc"]
    settings = Settings(probe="sep-logistic", layer_range=(2, 2))
    probe, _ = train_probe(folders, settings, dataset_names=["nq", "nq", "trivia"])
    items = probe.training["items"]
    assert probe.training["datasets"] == ["nq", "trivia"] and len(items) == 140
    assert sum(probe.training["n"].values()) == 220
    for item in range(60):
        assert items[f"nq/nq-{item}"] == items[f"trivia/trivia-{item}"]
    assert probe.split_of({"question": "What is nq-3?", "context": None}) == items["nq/nq-3"]


def test_the_choice_does_not_depend_on_the_test_split(tmp_path: Path) -> None:
    make_run(tmp_path, n=150)
    settings = Settings(probe="sep-logistic", layers="auto")
    probe, _ = train_probe([tmp_path], settings)
    run = read_run(tmp_path)
    for name, split in probe.training["items"].items():
        if split == "test":  # other states and other labels, the same questions
            answer = run.validation[name.split("/")[1]]["most_likely_answer"]
            answer["emb_tok_before_eos"] = -answer["emb_tok_before_eos"]
            answer["accuracy"] = 1 - answer["accuracy"]
    write_generations(tmp_path, "validation", run.validation)
    other, _ = train_probe([tmp_path], settings)
    assert other.layer_range == probe.layer_range
    np.testing.assert_array_equal(other.weights[0][1], probe.weights[0][1])
    assert other.metrics["val_auroc_by_layers"] == probe.metrics["val_auroc_by_layers"]
    assert other.metrics["test"]["value"] < 0.5 < probe.metrics["test"]["value"]


def test_starts_are_listed_and_the_best_on_validation_is_kept(runs: Path) -> None:
    settings = Settings(probe="sep-mlp", seeds=3, layer_range=(2, 2), **SMALL | {"epochs": 2})
    probe, _ = train_probe([runs / "a"], settings)
    starts = probe.metrics["starts"]
    assert [start["seed"] for start in starts] == [42, 43, 44]
    best = max(starts, key=lambda start: start["val_auroc"])
    assert probe.metrics["val"]["value"] == pytest.approx(best["val_auroc"])


# --- bad input --------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused(tmp_path: Path, runs: Path) -> None:
    sep = Settings(probe="sep-logistic")
    make_pairs(tmp_path / "pairs", n=4, turns=3)
    with pytest.raises(UserError, match="no semantic entropy.*generate_answers.*saplma"):
        train_probe([tmp_path / "pairs"], sep)
    (tmp_path / "empty").mkdir()
    for settings in (sep, Settings()):
        with pytest.raises(UserError, match=r"validation_generations\.pkl"):
            train_probe([tmp_path / "empty"], settings)
    make_run(tmp_path / "run", n=40)
    with pytest.raises(UserError, match="sec_last_token_embedding"):
        train_probe([tmp_path / "run"], Settings(token_key="sec_last_token_embedding"))
    with pytest.raises(UserError, match="no folders"):
        train_probe([], sep)
    with pytest.raises(UserError, match="not both"):
        train_probe([tmp_path / "run"], Settings(layers="auto", layer_range=(1, 2)))
    for wrong in (
        {"learning_rate": -1.0}, {"learning_rate": math.nan}, {"weight_decay": -0.1},
        {"patience": -1}, {"val_fraction": 0.0}, {"test_fraction": 1.2}, {"seeds": 0},
    ):  # fmt: skip
        with pytest.raises(UserError, match=next(iter(wrong))):
            train_probe([tmp_path / "none"], Settings(**wrong))  # before anything is read
    with pytest.raises(UserError, match='"hinge".*huber'):
        train_probe([tmp_path / "run"], Settings(loss="hinge"))
    measures = {"cluster_assignment_entropy": [0.5] * 40}
    write_measures(tmp_path / "run", {"uncertainty_measures": measures})
    with pytest.raises(UserError, match="all 24 entropies are 0.5.*temperature"):
        train_probe([tmp_path / "run"], sep)
    measures = {"cluster_assignment_entropy": [math.nan] * 40}
    write_measures(tmp_path / "run", {"uncertainty_measures": measures})
    with pytest.raises(UserError, match="no usable answers.*40 no semantic entropy"):
        train_probe([tmp_path / "run"], sep)
    measures = {"cluster_assignment_entropy": [0.0] * 39 + [2.0]}
    write_measures(tmp_path / "run", {"uncertainty_measures": measures})
    with pytest.raises(UserError, match="both classes; high / low entropy|cannot be split"):
        train_probe([tmp_path / "run"], sep)
    (tmp_path / "run" / "uncertainty_measures.pkl").unlink()
    with pytest.raises(UserError, match="compute_uncertainty_measures"):
        train_probe([tmp_path / "run"], sep)
    make_run(tmp_path / "wide", n=40, hidden=12)
    with pytest.raises(UserError, match="one probe per model"):
        train_probe([runs / "a", tmp_path / "wide"], sep)


def test_unjudged_answers_are_left_out_and_never_counted_as_wrong(tmp_path: Path) -> None:
    entries = make_run(tmp_path, n=120)
    for item in range(0, 40):
        entries[f"nq-{item}"]["most_likely_answer"]["accuracy"] = None
    write_generations(tmp_path, "validation", entries)
    saplma, _ = train_probe([tmp_path], Settings(probe="saplma", layer_range=(2, 2)))
    assert saplma.training["left_out"] == {"unjudged": 40}
    sep, _ = train_probe([tmp_path], Settings(probe="sep-logistic", layer_range=(2, 2)))
    assert sep.training["left_out"] == {} and sum(sep.training["n"].values()) == 120
    judged = sum(sep.metrics["against_accuracy"][split]["n"] for split in ("val", "test"))
    in_question = [n for n, s in sep.training["items"].items() if s != "train"]
    assert judged == sum(int(name.rpartition("-")[2]) >= 40 for name in in_question)


def test_choice_of_the_kind(runs: Path, tmp_path: Path) -> None:
    make_pairs(tmp_path / "pairs", n=2, turns=3)
    assert choose_probe([runs / "a"])[0] == "sep-logistic"
    assert choose_probe([tmp_path / "pairs"])[0] == "saplma"
    assert choose_probe([runs / "a", tmp_path / "pairs"])[0] == "saplma"


# --- the script -------------------------------------------------------------------------------


def test_guides_command_then_stage_two(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "run1")
    make_run(tmp_path / "run2", n=60, domain="trivia")
    saved = tmp_path / "probe_output" / "p.pkl"
    folders = f"{tmp_path / 'run1'},{tmp_path / 'run2'}"
    done = run_script(SCRIPT, "--data_dirs", folders, "--save_path", saved)
    assert done.returncode == 0, done.stderr
    assert "probe sep-logistic: the folders hold runs" in done.stderr
    for text in ("AUROC of high entropy", "AUROC of wrong answers", "Spearman with entropy"):
        assert text in done.stdout
    assert saved.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    told = read_json(saved.with_suffix(".json"))
    assert told["kind"] == "sep-logistic" and told["metrics"]["test"]["value"] > 0.9
    assert set(told["metrics"]["val_auroc_by_layers"]) == {"1", "2", "3", "4"}

    # the guide's next command, which names a token and a range of layers that training did not
    make_pairs(tmp_path / "outputs", n=12, turns=4)
    stage_two = ["metrics_probe.py", "--json_dir", tmp_path / "outputs", "--pkl_dir"]
    stage_two += [tmp_path / "outputs", "--probe_path", saved]
    probe = load_probe(saved)
    content = pickle.loads((tmp_path / "outputs" / "toy-0003.pkl").read_bytes())
    states = [content["turns"][turn][KEY] for turn in range(1, 5)]
    for layers, chosen in (("1,3", 2), ("3,4", None), (None, 2)):
        given = [] if layers is None else ["--token_key", KEY, "--layer_range", layers]
        done = run_script(*stage_two, *given)
        assert done.returncode == 0, done.stderr
        metrics = read_json(tmp_path / "outputs" / "toy-0003.json")["metrics"]
        layer, last = metrics["probe"]["layer_range"]
        assert layer == last
        if chosen is None:  # the better of layers 3 and 4 on the validation split
            areas = told["metrics"]["val_auroc_by_layers"]
            assert layer == (3 if areas["3"][0] >= areas["4"][0] else 4)
            assert f"layer {layer} is read" in done.stderr
        else:
            assert layer == chosen
        (_, weight, bias), _ = probe.tried[layer]["weights"]
        mean, scale = (probe.tried[layer][name] for name in ("mean", "scale"))
        x = (np.stack(states)[:, layer].astype(float) - mean) / scale
        expected = 1 / (1 + np.exp(-(x @ weight[0] + bias)))
        np.testing.assert_allclose(metrics["probe_pred"], expected, atol=1e-5)
    done = run_script(*stage_two, "--layer_range", "5,9")
    assert done.returncode == 2 and "layers 1 to 4" in done.stderr and "5,9" in done.stderr

    make_pairs(tmp_path / "other", n=2, turns=4, hidden=16)
    done = run_script(
        *["metrics_probe.py", "--json_dir", tmp_path / "other", "--pkl_dir", tmp_path / "other"],
        *["--probe_path", saved],
    )
    assert done.returncode == 2 and "width 8" in done.stderr and "width 16" in done.stderr


def test_script_refuses_with_status_two(tmp_path: Path) -> None:
    entries = make_run(tmp_path / "run", n=40)
    entries["nq-7"]["most_likely_answer"]["emb_tok_before_eos"][1, 0, 0] = np.nan
    (tmp_path / "run" / "validation_generations.pkl").write_bytes(pickle.dumps(entries))
    done = run_script(SCRIPT, "--data_dirs", tmp_path / "run", "--save_path", tmp_path / "p.pkl")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert '"nq-7"' in done.stderr and "emb_tok_before_eos" in done.stderr
