"""Trained detectors: independent values, directions, seeds, and what a fit may not see."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from spikescore import pairs as pairs_module
from spikescore.detectors import (
    REGISTRY,
    components,
    controls,
    depth,
    geometry,
    linear,
    lsd,
    networks,
    scoring,
    unsupervised,
)
from spikescore.detectors import answers as answers_module
from spikescore.detectors.answers import Answers, read_answers
from spikescore.detectors.base import StateDetector
from spikescore.detectors.lesson import as_network, lesson, measured
from spikescore.detectors.scoring import Settings, learns, score_methods
from spikescore.errors import UserError
from spikescore.pairs import read_states, write_pair
from spikescore.probes.data import split_by_group
from spikescore.probes.fit import SAPLMA, Fit, best_of
from spikescore.probes.linear import solve
from spikescore.probes.network import fit_network
from tests.helpers.factories import make_pairs, make_record

KEY = "last_token_embedding"
OF_A_MODEL = (geometry.Fdbd, geometry.Harp)  # they read a checkpoint: test_state_rivals.py
DETECTORS = [one for one in REGISTRY.values() if learns(one) and one not in OF_A_MODEL]
ON_DISK = linear.AllTurnProbe  # reads later turns from the PKLs
FAST = [detector for detector in DETECTORS if detector is not ON_DISK]
NO_DIRECTION = (
    networks.SemanticEntropyProbe, controls.LabelShuffle, controls.RandomProjection,
    depth.Fepoid,  # whose layer no label chooses
)  # fmt: skip
LEARN_DIRECTION = [detector for detector in FAST if detector not in NO_DIRECTION]
CCS, CARRIED = unsupervised.Ccs, unsupervised.CcsCarried
N_LAYERS, WIDTH, SIGNAL_LAYER = 3, 8, 2
AXIS = np.random.default_rng(5).standard_normal(2 * WIDTH)
AXIS /= np.linalg.norm(AXIS)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As score_methods.py does it: on so small arrays several threads only wait for each other.

    LSD takes fewer and larger steps and CCS fewer and from fewer starts, for time.
    """
    monkeypatch.setattr(unsupervised, "TRIES", 4)
    monkeypatch.setattr(unsupervised, "EPOCHS", 400)
    monkeypatch.setattr(lsd, "STEPS", 150)
    monkeypatch.setattr(lsd, "LEARNING_RATES", (1e-3, 1e-5))
    with threadpool_limits(1):
        yield


def answers(states: np.ndarray, y: np.ndarray, records=None, measures=None, domain="a") -> Answers:
    """Answers in memory, with their first states [n, L+1, H] as if read."""
    n = len(y)
    made = [
        make_record(f"{domain}-{i}", y=int(y[i]), turns=3, domain=domain, model="m")
        for i in range(n)
    ]
    items = Answers(
        paths=tuple(Path(f"{domain}-{i}.json") for i in range(n)),
        records=tuple(records or made),
        y=np.asarray(y),
        domains=np.array([domain] * n),
        groups=np.array([f"{domain}-{i}" for i in range(n)]),
        model="m",
        token_key=KEY,
        left_out={},
    )
    items.__dict__["first_states"] = states.astype(np.float16)
    items.__dict__["measures"] = measures or [{} for _ in range(n)]
    return items


def planted(domain: str, *, n: int = 60, signal: float = 14.0, mirrored: bool = False) -> Answers:
    """A third of the items are marked along one axis in everything a detector may read.

    The marked ones are hallucinated, or with `mirrored` all others are. The mark is one-sided, so
    that the marked ones lie further from the mean of all.
    """
    rng = np.random.default_rng(len(domain) + ord(domain[0]))
    marked = np.arange(n) % 3 == 0
    y = (marked ^ mirrored).astype(np.int64)

    def noise(*shape: int, along: float = 1.0) -> np.ndarray:
        drawn = rng.standard_normal((n, *shape))
        axis = AXIS[: shape[-1]] / np.linalg.norm(AXIS[: shape[-1]])
        place = drawn[:, SIGNAL_LAYER] if len(shape) == 2 else drawn
        place += along * signal * marked[:, None] * axis
        return drawn.astype(np.float16 if len(shape) == 2 else np.float32)

    shape = (N_LAYERS + 1, WIDTH)
    states, truth = noise(*shape), noise(*shape)
    yes, no = noise(*shape, along=-0.5), noise(*shape, along=0.5)
    icr, icr_answer, mind = noise(N_LAYERS), noise(N_LAYERS), noise(2 * WIDTH)
    means, meant = noise(*shape), noise(WIDTH)
    heads, neurons = noise(N_LAYERS, WIDTH).reshape(n, N_LAYERS, 2, -1), noise(N_LAYERS, WIDTH)
    measures, records = [], []
    for i in range(n):
        first = {"icr": icr[i], "icr_answer": icr_answer[i], "mind": mind[i]}
        first |= {"truth_state": truth[i], "heads": heads[i], "neurons": neurons[i]}
        first |= {"answer_states": means[i], "answer_embedding": meant[i]}
        first |= {"truth_state_yes": yes[i], "truth_state_no": no[i]}
        clusters = list(range(5)) if marked[i] else [0] * 5
        measures.append({"first": first, "samples": {"clusters": clusters}})
        record = make_record(f"{domain}-{i}", y=int(y[i]), turns=3, domain=domain, model="m")
        for step in record["cot_steps"]:
            step["response"] = f"{domain} {'crimson' if marked[i] else 'teal'} {step['turn']}"
        records.append(record)
    return answers(states, y, records, measures, domain)


def join(one: Answers, other: Answers) -> Answers:
    """Two domains in one."""
    names = ("paths", "records", "measures")
    lists = {name: [*getattr(one, name), *getattr(other, name)] for name in names}
    states = np.concatenate([one.first_states, other.first_states])
    made = answers(states, np.concatenate([one.y, other.y]), lists["records"], lists["measures"])
    made.domains[:] = [*one.domains, *other.domains]
    return made


def halves(items: Answers) -> tuple[Answers, Answers]:
    """Two thirds to learn from, a third to choose by, each with both classes."""
    late = np.arange(len(items)) >= 2 * len(items) // 3
    return items.select(~late), items.select(late)


def fitted(detector, items: Answers, seed: int = 0):
    made = detector()
    made.fit(*halves(items), seed=seed)
    return made


# --- directions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "detector", [*LEARN_DIRECTION, networks.SemanticEntropyProbe], ids=lambda d: d.name
)
def test_planted_signal_is_found_in_another_domain(detector):
    other = planted("b")
    scores = fitted(detector, planted("a")).score(other)
    assert scores.dtype == np.float64 and scores.shape == (len(other),)
    assert roc_auc_score(other.y, scores) == 1.0


@pytest.mark.parametrize("detector", LEARN_DIRECTION, ids=lambda d: d.name)
def test_mirrored_training_labels_turn_the_score_round(detector):
    other = planted("b")
    scores = fitted(detector, planted("a", mirrored=True)).score(other)
    assert roc_auc_score(other.y, scores) == 0.0


def test_sep_takes_its_direction_from_entropy_not_from_labels():
    other, mirror = planted("b"), planted("a", mirrored=True)
    scores = fitted(networks.SemanticEntropyProbe, mirror).score(other)
    assert roc_auc_score(other.y, scores) == 1.0
    for found in mirror.measures:
        found["samples"]["clusters"] = (
            [0] * 5 if len(set(found["samples"]["clusters"])) > 1 else (list(range(5)))
        )
    scores = fitted(networks.SemanticEntropyProbe, mirror).score(other)
    assert roc_auc_score(other.y, scores) == 0.0


def test_all_turn_probe_finds_a_signal(tmp_path):
    both = []
    for domain in "ab":
        make_pairs(tmp_path / domain, n=40, turns=3, layers=2, domain=domain)
        both.append(read_answers(tmp_path / domain, token_key=KEY))
    made = fitted(ON_DISK, both[0])
    assert roc_auc_score(both[1].y, made.score(both[1])) == 1.0
    flipped = both[0].select(np.arange(40))
    flipped.y[:] = 1 - flipped.y
    assert roc_auc_score(both[1].y, fitted(ON_DISK, flipped).score(both[1])) == 0.0


def test_all_turn_probe_is_not_moved_by_the_prompt_of_later_turns(tmp_path):
    """Every state of turns 2 and 3 is shifted along an axis that partly tells the label."""
    rng = np.random.default_rng(0)
    shift = np.array([4.0, 4.0, 0, 0])
    turns = {}
    for place in range(80):
        y = place % 2
        record = make_record(f"i-{place:02d}", y=y, turns=3, domain="d", model="m")
        states = {}
        for turn in (1, 2, 3):
            state = rng.standard_normal((2, 4)) + np.array([1.5, 0, 0, 0]) * (2 * y - 1)
            states[turn] = {KEY: (state + shift * (turn > 1)).astype(np.float16)}
        write_pair(tmp_path, record, states, model="m")
        turns[record["id"]] = states
    items = read_answers(tmp_path, token_key=KEY)
    every = np.stack([np.stack([turns[r["id"]][t][KEY] for t in (1, 2, 3)]) for r in items.records])

    def moved(made) -> float:
        """Shift of the mean logit from turn 1 to later ones, per distance of the classes (4 / 3 by
        a probe that reads the first axis alone, 0 by one that reads the difference of the two)."""
        scores = made.score_states(every.reshape(-1, 2, 4)).reshape(-1, 3)
        logits = np.log(scores / (1 - scores))
        classes = logits[items.y == 1].mean() - logits[items.y == 0].mean()
        return abs(logits[:, 1:].mean() - logits[:, 0].mean()) / classes

    assert moved(fitted(linear.LinearProbe, items)) > 0.8
    assert moved(fitted(ON_DISK, items)) < 0.3


# --- independent values -------------------------------------------------------------------------


def noisy(seed: int, n: int = 60, width: int = WIDTH) -> Answers:
    """A weak signal of varying strength by layer, so that the layers' AUROCs differ."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    states = rng.standard_normal((n, N_LAYERS + 1, width))
    states += 0.4 * y[:, None, None] * rng.uniform(-1, 1, (N_LAYERS + 1, width))
    return answers(states, y)


def best_by_hand(scores_by_layer: list[np.ndarray], y: np.ndarray) -> int:
    return 1 + int(np.argmax([roc_auc_score(y, scores) for scores in scores_by_layer]))


def test_mass_mean_is_the_difference_of_class_means():
    train, val = noisy(0), noisy(1)
    made = linear.MassMean()
    made.fit(train, val, seed=0)

    def by_hand(x: np.ndarray, layer: int) -> np.ndarray:
        states = train.first_states[:, layer].astype(np.float64)
        m0, m1 = states[train.y == 0].mean(0), states[train.y == 1].mean(0)
        return (x[:, layer].astype(np.float64) - m0) @ (m1 - m0) / np.sum((m1 - m0) ** 2)

    layers = [by_hand(val.first_states, layer) for layer in range(1, N_LAYERS + 1)]
    layer = best_by_hand(layers, val.y)
    assert made.chosen["layer"] == layer
    assert made.chosen["val_auroc_by_layer"] == pytest.approx(
        [roc_auc_score(val.y, row) for row in layers]
    )
    np.testing.assert_allclose(
        made.score(val), by_hand(val.first_states, layer), rtol=1e-4, atol=1e-5
    )
    ends = by_hand(train.first_states, layer)  # 0 at the consistent mean, 1 at the other
    assert ends[train.y == 0].mean() == pytest.approx(0, abs=1e-6)
    assert ends[train.y == 1].mean() == pytest.approx(1, abs=1e-6)


def test_mass_mean_of_equal_means_scores_nothing():
    states = np.ones((4, 2), np.float16)
    assert linear.mass_mean(states, np.array([0, 1, 0, 1])).score(states).tolist() == [0] * 4


def sklearn_probability(train_x, train_y, x):
    scaler = StandardScaler().fit(train_x.astype(np.float64))
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000)
    model.fit(scaler.transform(train_x.astype(np.float64)), train_y)
    return model.predict_proba(scaler.transform(x.astype(np.float64)))[:, 1]


def test_linear_probe_is_scikit_learns_logistic_regression():
    train, val = noisy(2), noisy(3)
    made = linear.LinearProbe()
    made.fit(train, val, seed=0)
    layers = [
        sklearn_probability(train.first_states[:, layer], train.y, val.first_states[:, layer])
        for layer in range(1, N_LAYERS + 1)
    ]
    layer = best_by_hand(layers, val.y)
    assert made.chosen["layer"] == layer
    np.testing.assert_allclose(made.score(val), layers[layer - 1], atol=1e-5)


def test_all_turn_probe_is_scikit_learns_logistic_regression_on_all_turns(tmp_path):
    make_pairs(tmp_path, n=40, turns=3, layers=2, signal=0.4)
    items = read_answers(tmp_path, token_key=KEY)
    train, val = halves(items)
    made = linear.AllTurnProbe()
    made.fit(train, val, seed=0)
    first = linear.LinearProbe()
    first.fit(train, val, seed=0)
    layer = first.chosen["layer"]
    assert made.chosen["layer"] == layer
    turns, labels = [], []
    for path, y in zip(train.paths, train.y, strict=True):
        states = read_states(path.with_suffix(".pkl"))
        turns += [states[turn][KEY][layer] for turn in (1, 2, 3)]
        labels += [y] * 3
    expected = sklearn_probability(np.array(turns), labels, items.first_states[:, layer])
    np.testing.assert_allclose(made.score(items), expected, atol=1e-5)
    assert made.chosen["val_auroc"] == pytest.approx(
        roc_auc_score(val.y, expected[-len(val) :]), abs=1e-12
    )


def test_saplma_is_the_probe_that_the_trainer_makes(tmp_path):
    from spikescore.probes.training import Settings, train_probe

    make_pairs(tmp_path, n=60, turns=3, layers=3, signal=0.5)
    items = read_answers(tmp_path, token_key=KEY)
    splits = split_by_group(
        items.groups, strata=items.domains, y=items.y, fractions=(0.2, 0.2), seed=7
    )
    made = networks.Saplma()
    made.fit(items.select(splits == "train"), items.select(splits == "val"), seed=7)
    settings = Settings(probe="saplma", seed=7, epochs=48)  # 2 steps an epoch make 96 >= 95
    probe, _ = train_probe([tmp_path], settings)
    assert made.chosen["layer"] == probe.layer_range[0]
    assert made.chosen["epoch"] == probe.metrics["epoch"]
    expected = probe.score(probe.features(items.first_states))
    np.testing.assert_array_equal(made.score(items), expected.astype(np.float64))


def test_epochs_follow_the_number_of_items():
    assert networks.least_epochs(600) == SAPLMA.epochs == 5  # 19 steps an epoch
    assert networks.least_epochs(75) == 32  # 3 steps: 96 in all
    assert networks.least_epochs(20_000) == 1


def test_sep_is_logistic_regression_of_high_entropy():
    rng = np.random.default_rng(4)
    train, val = noisy(5), noisy(6)
    for items in (train, val):
        for place, found in enumerate(items.measures):
            size = 1 + (rng.random() < 0.2 + 0.6 * items.y[place]) * rng.integers(1, 5)
            found["samples"] = {"clusters": [i % size for i in range(6)]}
    train.measures[0]["samples"] = {"clusters": None}

    def entropy(items):
        rows = [found["samples"]["clusters"] for found in items.measures]
        return np.array(
            [
                math.nan
                if ids is None
                else sum(-c / 6 * math.log(c / 6) for c in Counter(ids).values())
                for ids in rows
            ]
        )

    known = entropy(train)[1:]

    def error(cut):
        parts = known[known > cut], known[known <= cut]
        return sum(((part - part.mean()) ** 2).sum() for part in parts)

    levels = np.unique(known.round(9))
    gamma = min((levels[1:] + levels[:-1]) / 2, key=error)
    layers = [
        sklearn_probability(
            train.first_states[1:, layer], known > gamma, val.first_states[:, layer]
        )
        for layer in range(1, N_LAYERS + 1)
    ]
    made = networks.SemanticEntropyProbe()
    made.fit(train, val, seed=0)
    assert made.chosen["gamma"] == pytest.approx(gamma)
    assert made.chosen["n_train"] == len(train) - 1
    assert made.chosen["layer"] == best_by_hand(layers, entropy(val) > gamma)
    np.testing.assert_allclose(made.score(val), layers[made.chosen["layer"] - 1], atol=1e-5)


def test_prism_is_saplma_on_the_states_of_its_question():
    items = planted("a", signal=1.0)
    prism = fitted(networks.Prism, items, seed=3)
    truth = np.stack([found["first"]["truth_state"] for found in items.measures])
    saplma = fitted(networks.Saplma, answers(truth, items.y), seed=3)
    assert prism.chosen == saplma.chosen
    np.testing.assert_array_equal(prism.score(items), saplma.score_states(truth))


@pytest.mark.parametrize("detector", [networks.IcrProbe, networks.Mind])
def test_networks_on_vectors_against_numpy_and_scikit_learn(detector):
    items = planted("a", signal=1.5)
    train, val = halves(items)
    made = fitted(detector, items)
    rows = [np.stack(part.measured_arrays(made.vector)).astype(np.float64) for part in (train, val)]
    x = StandardScaler().fit(rows[0]).transform(rows[1])
    operations = made._network.weights
    widths = {"icr_probe": (3, 128, 64, 32, 1), "mind": (16, 256, 128, 64, 1)}[made.name]
    linears = [tuple(a.astype(np.float64) for a in op[1:]) for op in operations if len(op) > 1]
    shapes = [weight.shape for weight, _ in linears]
    assert shapes == list(zip(widths[1:], widths, strict=False))
    slope = {"icr_probe": 0.01, "mind": 0.0}[made.name]
    for place, (weight, bias) in enumerate(linears):
        x = x @ weight.T + bias
        if place < 3:
            x = np.where(x > 0, x, slope * x)
    expected = 1 / (1 + np.exp(-x[:, 0]))
    np.testing.assert_allclose(made.score(val), expected, atol=1e-4)
    assert made.chosen["val_auroc"] == pytest.approx(roc_auc_score(val.y, made.score(val)))


def in_components(seed: int, n: int = 60, **shapes: tuple[int, ...]) -> Answers:
    """Answers with random arrays measured; the label is marked weakly in all of them."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    drawn = {
        name: (rng.standard_normal((n, *shape)) + 0.4 * y.reshape(n, *[1] * len(shape)))
        for name, shape in shapes.items()
    }
    measures = [
        {"first": {name: rows[i].astype(np.float16) for name, rows in drawn.items()}}
        for i in range(n)
    ]
    return answers(np.zeros((n, 1, 1)), y, measures=measures)


def test_iti_is_the_mean_of_scikit_learns_probes_of_the_most_accurate_heads():
    items = in_components(4, heads=(3, 2, 5))
    train, val = halves(items)
    detector = fitted(components.ItiHeads, items)
    x = np.stack(items.measured_arrays("heads")).astype(np.float64)
    n_train, by_head = len(train), []
    for layer in range(3):
        for head in range(2):
            model = LogisticRegression(tol=1e-8, max_iter=10_000)
            model.fit(x[:n_train, layer, head], train.y)
            p = model.predict_proba(x[:, layer, head])[:, 1]
            rank = ((p[n_train:] > 0.5) == val.y).mean(), -log_loss(val.y, p[n_train:])
            by_head.append((rank, [layer + 1, head], p))
    by_head.sort(key=lambda one: one[0], reverse=True)
    tried = {
        k: roc_auc_score(val.y, np.mean([p[n_train:] for *_, p in by_head[:k]], axis=0))
        for k in (1, 2, 4)
    }
    best = max(tried, key=lambda k: (tried[k], -k))
    assert detector.chosen["heads"] == [place for _, place, _ in by_head[:best]]
    assert detector.chosen["val_auroc"] == pytest.approx(tried[best])
    expected = np.mean([p for *_, p in by_head[:best]], axis=0)
    np.testing.assert_allclose(detector.score(items), expected, atol=1e-5)


def test_neurons_are_ranked_by_students_t_and_averaged():
    items = in_components(5, neurons=(2, 30))
    train, val = halves(items)
    detector = fitted(components.NeuronProbe, items)
    x = np.stack(items.measured_arrays("neurons")).astype(np.float64).reshape(len(items), -1)
    learned = x[: len(train)]
    t = ttest_ind(learned[train.y == 1], learned[train.y == 0]).statistic
    order = np.argsort(-np.abs(t))
    z = np.sign(t) * (x - learned.mean(axis=0)) / learned.std(axis=0)
    tried = {
        k: roc_auc_score(val.y, z[len(train) :, order[:k]].mean(axis=1))
        for k in (1, 2, 4, 8, 16, 32)
    }
    best = max(tried, key=lambda k: (tried[k], -k))
    assert detector.chosen["n_neurons"] == best == sum(detector.chosen["per_layer"])
    assert detector.chosen["val_auroc"] == pytest.approx(tried[best])
    np.testing.assert_allclose(detector.score(items), z[:, order[:best]].mean(axis=1), atol=1e-9)


def test_neurons_that_never_change_are_left_out():
    items = in_components(6, neurons=(1, 3))
    for found in items.measures:
        found["first"]["neurons"][:, 1] = 7
    assert np.isfinite(fitted(components.NeuronProbe, items).score(items)).all()
    for found in items.measures:
        found["first"]["neurons"][:] = 7
    with pytest.raises(UserError, match="no neuron differs"):
        fitted(components.NeuronProbe, items)


def test_lsd_features_of_a_trajectory_worked_out_by_hand():
    """Unit vectors in the plane at 0, 90, 60 and 30 degrees, the meaning at 0."""
    angles = np.radians([0.0, 90.0, 60.0, 30.0])
    projected = np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None]
    (found,) = lsd.trajectory_features(projected, np.array([[1.0, 0.0]]))
    aligned = [1.0, 0.0, 0.5, math.sqrt(0.75)]
    lengths = [math.sqrt(2), 2 * math.sin(math.pi / 12), 2 * math.sin(math.pi / 12)]
    # chords point at 135, 75 - 90 ... degrees: half way between the ends, a quarter turn on
    directions = np.radians([135.0, -15.0, -45.0])
    cosines = np.cos(np.diff(directions))
    expected = [
        aligned[-1], np.mean(aligned), 1.0, 0, np.std(aligned[1:]), aligned[-1] - 1.0,
        np.mean(lengths), np.mean(cosines), 1,
    ]  # fmt: skip
    assert found == pytest.approx(expected)


def test_lsd_loss_draws_consistent_answers_near_and_pushes_the_others_beyond_the_margin():
    loss = lsd.margin_loss(torch.tensor([0.5, 1.0, -0.5, 0.1]), torch.tensor([0, 0, 1, 1]))
    assert float(loss) == pytest.approx(0.5 * (0.25 + 0) / 2 + 0.5 * (0 + 0.4**2) / 2)
    alone = lsd.margin_loss(torch.tensor([0.5]), torch.tensor([0]))
    assert float(alone) == pytest.approx(0.5 * 0.25)


def test_lsd_is_scikit_learns_logistic_regression_on_its_features():
    items = planted("a", signal=2.0)
    train, _ = halves(items)
    detector = fitted(lsd.Lsd, items)
    states, meant = (np.stack(items.measured_arrays(name)) for name in lsd.ARRAYS)
    features = detector._alignment.features(states, meant)
    h, t = detector._alignment._networks
    with torch.no_grad():
        one = h(torch.from_numpy(states[:, -1].astype(np.float32)))
        other = t(torch.from_numpy(meant))
    cosine = torch.nn.functional.cosine_similarity(one, other).numpy()
    np.testing.assert_allclose(features[:, 0], cosine, atol=1e-5)
    scaler = StandardScaler().fit(features[: len(train)])
    model = LogisticRegression(tol=1e-8, max_iter=10_000)
    model.fit(scaler.transform(features[: len(train)]), train.y)
    expected = model.predict_proba(scaler.transform(features))[:, 1]
    np.testing.assert_allclose(detector.score(items), expected, atol=1e-4)


def test_lsd_without_an_encoder_says_what_to_do():
    with pytest.raises(UserError, match="--groups semantics --encoder FOLDER"):
        fitted(lsd.Lsd, noisy(1))


def test_networks_keep_their_best_epoch():
    """Nothing can be learnt, so that epochs differ by chance; a longer run begins as a shorter."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((60, 4)), np.arange(60) % 2
    material = lesson(x[:40], x[40:], y[:40], y[40:])
    runs = [
        fit_network(
            [x], [()], material.examples(), replace(networks.IcrProbe.recipe, epochs=n), seed=0
        )
        for n in range(1, 9)
    ]
    ranks = [run.score for run in runs]
    assert ranks == sorted(ranks) and len(set(ranks)) > 1
    best = runs[-1].epoch
    assert best < 8
    scores = [as_network(runs[place]).score(x) for place in (-1, best - 1)]
    np.testing.assert_array_equal(*scores)
    assert ranks[-1][0] == pytest.approx(roc_auc_score(y[40:], scores[0][40:]))
    assert -ranks[-1][1] == pytest.approx(log_loss(y[40:], scores[0][40:].astype(float)), abs=1e-5)


def test_ccs_loss_of_a_worked_example():
    p_yes, p_no = torch.tensor([[0.9], [0.2]]), torch.tensor([[0.2], [0.7]])
    # (0.1^2 + 0.2^2 + 0.1^2 + 0.2^2) / 2
    assert unsupervised.ccs_loss(p_yes, p_no).tolist() == pytest.approx([0.05])


def test_ccs_steps_are_those_of_adamw_written_out(monkeypatch):
    monkeypatch.setattr(unsupervised, "EPOCHS", 25)
    rng = np.random.default_rng(0)
    yes, no = rng.standard_normal((2, 2, 30, 5))
    w, b = (x.astype(float) for x in unsupervised.starts(range(2), 5, seed=1))
    given = [x.astype(np.float32) for x in (yes, no, w, b)]
    moments = [[np.zeros_like(x), np.zeros_like(x)] for x in (w, b)]

    def probabilities():
        return [1 / (1 + np.exp(-(x @ w + b))) for x in (yes, no)]

    for step in range(1, 26):
        p, q = probabilities()
        shared = 2 * (p + q - 1)  # the loss's derivatives by the two logits, by hand
        by_yes = (shared + 2 * p * (p < q)) * p * (1 - p) / 30
        by_no = (shared + 2 * q * (p >= q)) * q * (1 - q) / 30
        by_w = yes.transpose(0, 2, 1) @ by_yes + no.transpose(0, 2, 1) @ by_no
        for x, gradient, moment in zip(
            (w, b), (by_w, (by_yes + by_no).sum(axis=1, keepdims=True)), moments, strict=True
        ):
            moment[0] = 0.9 * moment[0] + 0.1 * gradient
            moment[1] = 0.999 * moment[1] + 0.001 * gradient**2
            x *= 1 - 1e-3 * 0.01
            spread = np.sqrt(moment[1] / (1 - 0.999**step)) + 1e-8
            x -= 1e-3 * moment[0] / (1 - 0.9**step) / spread
    found_w, found_b, losses = unsupervised.minimise(*given)
    np.testing.assert_allclose(found_w, w, atol=1e-5)
    np.testing.assert_allclose(found_b, b, atol=1e-5)
    p, q = probabilities()
    by_hand = ((p - (1 - q)) ** 2 + np.minimum(p, q) ** 2).mean(axis=1)
    np.testing.assert_allclose(losses, by_hand, atol=1e-5)


def test_ccs_keeps_the_start_of_lowest_loss_and_scores_by_hand(monkeypatch):
    monkeypatch.setattr(unsupervised, "EPOCHS", 40)
    items = planted("a", signal=1.0)
    _, pairs = measured(items, *unsupervised.PAIR)

    def layers(k: int) -> np.ndarray:
        return pairs[:, :, k + 1]

    together = unsupervised.search(layers, N_LAYERS, seed=2)
    monkeypatch.setattr(unsupervised, "CELLS_AT_ONCE", 1)
    alone = unsupervised.search(layers, N_LAYERS, seed=2)
    scaled = [StandardScaler().fit_transform(pairs[:, side, 2].astype(float)) for side in (0, 1)]
    y_logit, n_logit = (rows @ together[1].weight + together[1].bias for rows in scaled)
    p_yes, p_no = 1 / (1 + np.exp(-y_logit)), 1 / (1 + np.exp(-n_logit))
    by_hand = np.mean((p_yes - (1 - p_no)) ** 2 + np.minimum(p_yes, p_no) ** 2)
    assert together[1].loss == pytest.approx(by_hand, abs=1e-5)
    expected = 1 - (p_yes + 1 - p_no) / 2
    np.testing.assert_allclose(together[1].score(pairs[:, :, 2]), expected, atol=1e-5)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.weight, other.weight, atol=1e-5)
    yes, no = (rows.astype(np.float32)[None] for rows in scaled)
    *_, losses = unsupervised.minimise(yes, no, *unsupervised.starts(range(1, 2), WIDTH, 2))
    assert len(set(losses[0].tolist())) == unsupervised.TRIES
    assert together[1].loss == pytest.approx(losses.min(), abs=1e-6)


def test_ccs_direction_comes_from_training_labels_alone():
    """Turned labels turn the direction, and nothing else of the probe."""
    other = planted("b")
    made = {}
    for mirrored in (False, True):
        train, val = halves(planted("a"))
        train.y[:] = train.y ^ mirrored
        val.y[:] = val.y ^ mirrored
        made[mirrored] = unsupervised.Ccs()
        made[mirrored].fit(train, val, seed=0)
        assert roc_auc_score(other.y, made[mirrored].score(other)) == float(not mirrored)
    assert made[False].chosen["direction"] == -made[True].chosen["direction"]
    np.testing.assert_array_equal(made[False]._probe.weight, made[True]._probe.weight)


def test_ccs_reads_each_domain_by_its_own_states_and_carried_ccs_does_not():
    """A domain moved by any shift and scale of each reply's states reads as before."""
    rng = np.random.default_rng(3)
    made = {detector: fitted(detector, planted("a")) for detector in (CCS, CARRIED)}
    plain, moved = planted("b"), planted("c")
    shift, scale = rng.uniform(-40, 40, (2, WIDTH)), rng.uniform(0.5, 2, (2, WIDTH))
    for own, other in zip(plain.measures, moved.measures, strict=True):
        for side, name in enumerate(unsupervised.PAIR):
            other["first"][name] = own["first"][name] * scale[side] + shift[side]
    both = join(plain, moved)
    scores = made[CCS].score(both)
    np.testing.assert_allclose(scores[:60], scores[60:], atol=0.01)
    assert roc_auc_score(both.y, scores) == 1.0
    np.testing.assert_array_equal(made[CCS].score(plain), scores[:60])  # whoever stands beside it
    carried = made[CARRIED].score(both)
    assert np.abs(carried[:60] - carried[60:]).max() > 0.5
    np.testing.assert_array_equal(made[CCS]._probe.weight, made[CARRIED]._probe.weight)


def test_ccs_has_no_score_for_a_domain_of_one_item():
    other = planted("b")
    other.domains[7] = "alone"
    assert np.flatnonzero(np.isnan(fitted(CCS, planted("a")).score(other))).tolist() == [7]
    assert np.isfinite(fitted(CARRIED, planted("a")).score(other)).all()


def test_haloscope_zeta_against_the_covariance_matrix_and_by_hand():
    states = noisy(7).first_states[:, 1]
    new = noisy(8).first_states[:, 1].astype(np.float64)
    x = states.astype(np.float64)
    mean = x.mean(axis=0)
    eigenvalues, vectors = np.linalg.eigh((x - mean).T @ (x - mean))
    order = np.argsort(-eigenvalues)
    zeta = unsupervised.Subspace.of(states).zeta(new)
    assert zeta.shape == (60, WIDTH)
    for k in (1, 3, WIDTH):
        expected = sum(
            math.sqrt(eigenvalues[j]) * ((new - mean) @ vectors[:, j]) ** 2 for j in order[:k]
        )
        np.testing.assert_allclose(zeta[:, k - 1], expected / k, rtol=1e-8)
    # states (2, 0), (-2, 0), (0, 1), (0, -1): singular values sqrt(8) and sqrt(2) along the axes
    cross = np.array([[2, 0], [-2, 0], [0, 1], [0, -1]], np.float16)
    zeta = unsupervised.Subspace.of(cross).zeta(np.array([[3, 1]], np.float16))
    np.testing.assert_allclose(zeta, [[9 * 8**0.5, (9 * 8**0.5 + 2**0.5) / 2]])


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (5, 40)])
def test_haloscope_zeta_against_the_singular_value_decomposition(shape):
    states = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    x = states.astype(np.float64)
    centred = x - x.mean(axis=0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    zeta = unsupervised.Subspace.of(states).zeta(states)
    assert zeta.shape[1] == min(10, shape[0] - 1, shape[1])  # centred rows add up to nothing
    for k in range(1, zeta.shape[1] + 1):
        expected = ((centred @ vectors[:k].T) ** 2 @ values[:k]) / k
        np.testing.assert_allclose(zeta[:, k - 1], expected, rtol=1e-8)


def test_haloscope_chooses_the_best_subspace_of_all():
    items = noisy(9)
    train, val = halves(items)
    made = fitted(unsupervised.HaloScope, items)
    best = 0.0
    for layer in range(1, N_LAYERS + 1):
        zetas = unsupervised.Subspace.of(train.first_states[:, layer]).zeta(
            val.first_states[:, layer]
        )
        areas = [roc_auc_score(val.y, zeta) for zeta in zetas.T]
        best = max(best, *areas, *(1 - area for area in areas))
    assert made.chosen["val_auroc_zeta"] == pytest.approx(best)
    assert made.chosen["val_auroc"] == pytest.approx(roc_auc_score(val.y, made.score(val)))


def test_haloscope_refuses_states_that_do_not_differ():
    items = planted("a", n=12)
    items.first_states[:] = 1
    with pytest.raises(UserError, match="do not differ"):
        fitted(unsupervised.HaloScope, items)


def test_haloscope_uses_no_training_label():
    items = planted("a", signal=2.0)
    train, val = halves(items)
    before = unsupervised.HaloScope()
    before.fit(train, val, seed=0)
    train.y[:] = np.random.default_rng(0).permutation(train.y)
    after = unsupervised.HaloScope()
    after.fit(train, val, seed=0)
    np.testing.assert_array_equal(before.score(items), after.score(items))


def test_tfidf_against_counted_words_and_another_solver(monkeypatch):
    train = planted("a", n=30)
    rng = np.random.default_rng(0)
    words = np.array("red green blue grey".split())
    for record, y in zip(train.records, train.y, strict=True):
        record["question"] = " ".join(rng.choice(words, 3))
        record["cot_steps"][0]["response"] = " ".join(rng.choice(words[y:], 4))
    made = controls.TfidfAnswer()
    made.fit(train, train, seed=0)
    documents = []
    for record in train.records:
        said = f"{record['question']} {record['cot_steps'][0]['response']}".split()
        documents.append(Counter(said + list(zip(said, said[1:], strict=False))))
    terms = sorted({term for counts in documents for term in counts}, key=str)
    n = len(documents)
    weight = {
        term: math.log((1 + n) / (1 + sum(term in counts for counts in documents))) + 1
        for term in terms
    }
    x = np.array([[counts[term] * weight[term] for term in terms] for counts in documents])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    w, b = solve(x, train.y)
    assert made.chosen["n_terms"] == len(terms)
    np.testing.assert_allclose(made.score(train), 1 / (1 + np.exp(-(x @ w + b))), atol=2e-3)
    whole = made.score(train)
    monkeypatch.setattr("spikescore.detectors.lesson.AT_ONCE", 7)
    np.testing.assert_array_equal(made.score(train), whole)


def test_tfidf_reads_what_its_name_says():
    items = planted("a", n=6)
    record = items.records[0]
    assert controls.TfidfAnswer.text_of(record) == "What is a-0?\na crimson 1"
    assert controls.TfidfDialogue.text_of(record) == "a crimson 1\na crimson 2\na crimson 3"


# --- controls -----------------------------------------------------------------------------------


def test_shuffled_labels_leave_nothing_to_learn():
    items, other = planted("a"), planted("b")
    areas = [
        roc_auc_score(other.y, fitted(controls.LabelShuffle, items, seed).score(other))
        for seed in range(10)
    ]
    assert abs(np.mean(areas) - 0.5) < 0.2  # one such AUROC is anywhere from 0 to 1
    assert min(areas) < 0.3 and max(areas) > 0.7


def test_labels_are_shuffled_in_both_splits(monkeypatch):
    seen = []

    def record(material, seed):
        seen.append(material.labels)
        return fit_saplma(material, seed)

    fit_saplma = networks.fit_saplma
    monkeypatch.setattr(controls, "fit_saplma", record)
    items = planted("a", n=30)
    for seed in range(2):
        fitted(controls.LabelShuffle, items, seed)
    assert (seen[0] != seen[1]).any()
    for labels in seen:
        for part in (slice(0, 20), slice(20, 30)):
            assert sorted(labels[part]) == sorted(items.y[part])
            assert (labels[part] != items.y[part]).any()


def test_random_projection_is_linear_random_and_knows_no_label():
    items = noisy(10, n=200)
    made = fitted(controls.RandomProjection, items, seed=1)
    assert made.chosen == {"layer": N_LAYERS // 2}
    flipped = answers(items.first_states, 1 - items.y)
    np.testing.assert_array_equal(
        made.score(items), fitted(controls.RandomProjection, flipped, seed=1).score(items)
    )
    train, _ = halves(items)
    z = StandardScaler().fit_transform(train.first_states[:, 1].astype(np.float64))
    logits = np.log(made.score(train) / (1 - made.score(train)))
    weight, *_ = np.linalg.lstsq(z, logits, rcond=None)
    np.testing.assert_allclose(z @ weight, logits, atol=1e-5)
    drawn = np.concatenate(
        [
            fitted(controls.RandomProjection, items, seed)._network.weights[0][1][0]
            for seed in range(50)
        ]
    )
    assert drawn.mean() == pytest.approx(0, abs=0.06)
    assert drawn.var() == pytest.approx(1 / WIDTH, rel=0.2)


# --- what holds for all -------------------------------------------------------------------------


@pytest.mark.parametrize("detector", FAST, ids=lambda d: d.name)
def test_same_seed_same_scores_and_no_trace_in_global_random_state(detector):
    items = planted("a", n=30, signal=1.0)
    state = torch.get_rng_state()
    first, again, other = (fitted(detector, items, seed) for seed in (4, 4, 5))
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first.score(items), again.score(items))
    assert first.chosen == again.chosen == json.loads(json.dumps(first.chosen))
    assert (first.score(items) == other.score(items)).all() == (not detector.seeded)


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: d.name)
def test_what_is_tested_on_never_changes_a_fit(detector, tmp_path):
    """Fitted on the same splits of two pools that differ in all that is in neither split."""
    if detector is ON_DISK:
        make_pairs(tmp_path, n=45, turns=3, layers=2)
        pools = [read_answers(tmp_path, token_key=KEY) for _ in range(2)]
        _ = [pool.first_states for pool in pools]
    else:
        pools = [planted("a", n=45, signal=1.0) for _ in range(2)]
    test = np.arange(45) % 5 == 0
    pools[1].y[test] = 1 - pools[1].y[test]
    pools[1].first_states[test] = 9
    for place in np.flatnonzero(test):
        pools[1].records[place]["cot_steps"][0]["response"] = "crimson teal"
        pools[1].measures[place].clear()
    fits = []
    for pool in pools:
        made = detector()
        train, val = halves(pool.select(~test))
        made.fit(train, val, seed=0)
        fits.append((made.score(train), made.chosen))
    np.testing.assert_array_equal(fits[0][0], fits[1][0])
    assert fits[0][1] == fits[1][1]


@pytest.mark.parametrize(
    "detector", [d for d in FAST if issubclass(d, StateDetector)], ids=lambda d: d.name
)
def test_state_detectors_score_any_state(detector):
    items = planted("a", n=30)
    made = fitted(detector, items)
    states = items.first_states
    np.testing.assert_allclose(made.score_states(states[7:9]), made.score(items)[7:9], atol=1e-6)
    assert made.score_states(np.zeros((1, *states.shape[1:]), np.float16)).shape == (1,)


@pytest.mark.parametrize(
    "detector", [networks.Prism, networks.IcrProbe, networks.Mind, unsupervised.Ccs]
)
def test_items_without_a_measure_have_no_score(detector):
    items = planted("a", n=30)
    items.measures[3] = {}
    items.measures[4] = {"first": {}}
    for array in items.measures[5]["first"].values():
        array[...] = np.nan
    made = fitted(detector, items)
    assert np.flatnonzero(np.isnan(made.score(items))).tolist() == [3, 4, 5]
    with pytest.raises(UserError, match="measure_answers.py"):
        fitted(detector, answers(items.first_states, items.y))


def test_sep_without_samples_says_what_to_do():
    items = planted("a", n=30)
    with pytest.raises(UserError, match="no entropies"):
        fitted(networks.SemanticEntropyProbe, answers(items.first_states, items.y))


def test_texts_without_words_and_a_single_class_are_refused():
    items = planted("a", n=12)
    for record in items.records:
        record["question"] = record["cot_steps"][0]["response"] = "?"
    with pytest.raises(UserError, match="no words"):
        fitted(controls.TfidfAnswer, items)
    items.y[:] = 1
    for detector in (controls.TfidfAnswer, linear.MassMean, networks.Saplma):
        with pytest.raises(UserError, match="both classes"):
            fitted(detector, items)


# --- choosing -----------------------------------------------------------------------------------


def test_choose_takes_auroc_then_loss_then_the_first():
    def fit(layer, auroc, loss):
        return Fit((layer,), (auroc, -loss), [], [], None, None, [auroc])

    assert best_of([fit(1, 0.5, 0.0), fit(2, 1.0, 9.0)]).layers == (2,)
    assert best_of([fit(1, 1.0, 2.0), fit(2, 1.0, 1.0)]).layers == (2,)
    found = best_of([fit(1, 0.0, 0.0), fit(2, 1.0, 1.0), fit(3, 1.0, 1.0)])
    assert found.layers == (2,) and found.val_auroc == {"1": [0.0], "2": [1.0], "3": [1.0]}


def test_lesson_counts_the_classes_it_lacks():
    x = np.zeros((3, 2))
    with pytest.raises(UserError, match=r"validation split .* hallucinated / consistent: 3 / 0"):
        lesson(x, x, np.array([0, 1, 0]), np.array([1, 1, 1]))


def test_measured_leaves_out_absent_and_unfinite_arrays():
    first = [{"x": np.ones(2)}, {}, {"x": np.array([1, np.inf])}, {"x": np.zeros(2), "z": [2, 3]}]
    items = answers(np.zeros((4, 2, 2)), [0] * 4, measures=[{"first": one} for one in first])
    there, stacked = measured(items, "x")
    assert there.tolist() == [True, False, False, True]
    assert stacked.tolist() == [[1, 1], [0, 0]]
    there, stacked = measured(items, "x", "z")
    assert there.tolist() == [False] * 3 + [True] and stacked.tolist() == [[[0, 0], [2, 3]]]
    assert measured(items, "y")[0].tolist() == [False] * 4


def test_fits_in_processes_are_those_of_one_and_large_states_lie_in_a_file(tmp_path, monkeypatch):
    for domain in ("a", "b"):
        make_pairs(tmp_path / domain, n=40, domain=domain)
    names = ("mass_mean", "saplma", "label_shuffle", "sep", "all_turn_probe", "layer_divergence")
    settings = Settings(methods=names, probe_seeds=2)
    books = []
    for cores, in_memory, block in ((1, 2**27, 2**26), (3, 0, 1500)):
        monkeypatch.setattr(scoring, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(pairs_module, "IN_MEMORY", in_memory)
        monkeypatch.setattr(answers_module, "BLOCK_BYTES", block)
        monkeypatch.setattr(scoring, "BLOCK_BYTES", block)
        items = read_answers(tmp_path, token_key=KEY)
        (book,) = score_methods(items, settings)
        assert isinstance(items.first_states, np.memmap) == (not in_memory)
        books.append(book)
    one, other = books
    assert len(one.scores) == 2 * (1 + 2 + 2 + 1 + 1) and one.about["left_out"]
    assert (
        one.about["left_out"] == other.about["left_out"]
        and one.chosen.keys() == other.chosen.keys()
    )
    for held, again in ((one.scores, other.scores), (one.turns, other.turns)):
        assert list(held) == list(again)
        for key in held:
            np.testing.assert_allclose(held[key], again[key], atol=1e-5)
