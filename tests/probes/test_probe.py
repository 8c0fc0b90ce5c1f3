"""Probes: the network, its training, the file, and every refusal."""

from __future__ import annotations

import importlib.util
import json
import logging
import pickle
import re
import sys
from collections import OrderedDict
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn

from spikescore.errors import UserError
from spikescore.files import read_json, write_json
from spikescore.pairs import read_states, stack_turns
from spikescore.probes.data import load_training_data, question_groups, split_by_group
from spikescore.probes.fit import SAPLMA, SEP_MLP, Examples, Recipe
from spikescore.probes.layers import parse_layer_range
from spikescore.probes.network import build, fit_network, operations, start_at
from spikescore.probes.probe import Probe, load_probe
from spikescore.probes.report import draw_curve, summary
from spikescore.probes.training import Settings, train_probe
from spikescore.runtime import derived_seed
from spikescore.stats.trajectory import spike_score
from tests.helpers.factories import MODEL, make_pairs, make_record
from tests.helpers.running import ROOT


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_pairs(folder, n=150)
    return folder


@pytest.fixture(scope="module")
def trained(toy: Path) -> Probe:
    return train_probe([toy], Settings())[0]


def random_probe(d: int) -> Probe:
    return Probe("saplma", operations(build(SAPLMA, d), SAPLMA))


def test_how_many_questions_are_missing_is_said_once(toy, tmp_path, trained):
    few = tmp_path / "few"
    make_pairs(few, n=24)
    probe = train_probe([few], Settings(epochs=2))[0]
    told = summary(probe)
    counts = {split: probe.training["n"][split] for split in ("val", "test")}
    assert told.count("an AUROC takes 10 hallucinated and 10 consistent first answers") == 1
    assert told.count("at least 10 of each") == 0
    for split, n in counts.items():
        positive = round(n * probe.training["hallucination_rate"][split])
        assert f"{split} has {positive} and {n - positive}" in told
    more = int(re.search(r"about (\d+) questions more", told).group(1))
    rarer = min(
        min(rate, 1 - rate) * counts[split] / 24
        for split, rate in probe.training["hallucination_rate"].items()
        if split in counts
    )
    assert (24 + more) * rarer >= 10 > (24 + more - 1) * rarer
    titles = []
    original = Axes.set_title
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Axes, "set_title", lambda *a, **k: (titles.append(a[1]), original(*a, **k)))
        draw_curve(probe, tmp_path / "few.png")
        draw_curve(trained, tmp_path / "enough.png")
    assert f"only {counts['val']} validation items" in titles[0] and "only" not in titles[1]
    assert "missing" not in summary(trained)


# --- scoring ----------------------------------------------------------------------------------


def test_normaliser_is_applied_before_the_network() -> None:
    probe = Probe(
        "saplma",
        [("linear", np.array([[1.0, 1.0]], np.float32), np.array([0.0], np.float32))],
        mean=np.array([1, 2], np.float32),
        scale=np.array([2, 4], np.float32),
    )
    # (5 - 1) / 2 + (10 - 2) / 4 = 4
    np.testing.assert_allclose(probe.score(np.array([[5.0, 10.0]])), [4.0])


def test_layer_range_is_inclusive_and_concatenated_in_order() -> None:
    states = np.arange(2 * 33 * 4, dtype=np.float16).reshape(2, 33, 4)
    probe = random_probe(9 * 4)
    probe.layer_range = (13, 21)
    features = probe.features(states)
    assert features.shape == (2, 36)
    np.testing.assert_array_equal(features[1, :4], states[1, 13])
    np.testing.assert_array_equal(features[1, -4:], states[1, 21])


def test_sigmoid_stays_in_range_for_huge_logits() -> None:
    weights = [
        ("linear", np.array([[1.0]], np.float32), np.zeros(1, np.float32)),
        ("sigmoid",),
    ]
    scores = Probe("saplma", weights).score(np.array([[-1e4], [0.0], [1e4]]))
    np.testing.assert_array_equal(scores, [0, 0.5, 1])


def test_wrong_number_of_features_is_a_programming_error() -> None:
    probe = random_probe(8)
    with pytest.raises(ValueError, match="8"):
        probe.score(np.zeros((3, 9)))


# --- training ---------------------------------------------------------------------------------


def test_separable_states_are_learned_and_the_layer_is_found(toy: Path, trained: Probe) -> None:
    assert trained.layer_range == (2, 2)  # where make_pairs planted the signal
    assert trained.metrics["test"]["value"] >= 0.99
    # The stored figure is scikit-learn's, on the stored test items.
    y, scores = [], []
    for name, split in trained.training["items"].items():
        if split == "test":
            item = name.split("/")[1]
            record = read_json(toy / f"{item}.json")
            states = read_states(toy / f"{item}.pkl")[1][trained.token_key]
            y.append(1 - record["nil_label"])
            scores.append(trained.score(trained.features(states[None]))[0])
    assert trained.metrics["test"]["value"] == pytest.approx(roc_auc_score(y, scores))
    assert np.mean(np.array(scores)[np.array(y) == 1]) > np.mean(np.array(scores)[np.array(y) == 0])


def test_shuffled_labels_are_not_learned(tmp_path: Path) -> None:
    records = make_pairs(tmp_path, n=200, turns=3, layers=3)
    labels = np.random.default_rng(1).permutation([record["nil_label"] for record in records])
    for record, label in zip(records, labels.tolist(), strict=True):
        write_json(tmp_path / f"{record['id']}.json", {**record, "nil_label": label})
    settings = Settings(val_fraction=0.2, test_fraction=0.5, layer_range=(1, 3))
    probe, _ = train_probe([tmp_path], settings)
    test = probe.metrics["test"]
    n_bad, n_good = test["n_positive"], test["n"] - test["n_positive"]
    # standard error of the AUROC when labels and scores are independent (Mann-Whitney)
    error = ((test["n"] + 1) / (12 * n_bad * n_good)) ** 0.5
    assert abs(test["value"] - 0.5) < 3 * error


RECIPES = [
    SAPLMA,
    replace(SEP_MLP, hidden=(16, 8)),
    Recipe("icr", (16, 8), epochs=1, activation="leaky_relu", norm="batch", dropout=0.3),
    Recipe("mind", (16,), epochs=1, input_dropout=0.2),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_network_in_numpy_equals_torch(recipe: Recipe) -> None:
    torch.manual_seed(3)
    network = build(recipe, 12)
    with torch.no_grad():
        for tensor in network.parameters():  # the norms' own start would hide an omission
            tensor.add_(0.1 * torch.randn(tensor.shape))
    x = torch.randn(20, 12)
    for _ in range(3):
        network(3 * x + 1)  # batch norm learns from it how to scale
    expected = network.eval()(x)[:, 0].detach()
    expected = torch.sigmoid(expected) if recipe.sigmoid else expected
    probe = Probe("saplma", operations(network, recipe))
    np.testing.assert_allclose(probe.score(x.numpy()), expected, atol=1e-5)
    assert probe.score(x.numpy()).dtype == np.float32
    kinds = [type(part).__name__ for part in network]
    assert kinds.count("Dropout") == bool(recipe.input_dropout) + 2 * bool(recipe.dropout)


def test_search_equals_plain_torch(toy: Path) -> None:
    recipe = replace(SAPLMA, epochs=2)
    data = load_training_data([toy], token_key="last_token_embedding")
    splits = split_by_group(
        data.groups, strata=data.datasets, y=data.y, fractions=(0.2, 0.2), seed=42
    )
    train, val = (np.flatnonzero(splits == split) for split in ("train", "val"))

    def fit(candidates: list[tuple[int, ...]]):
        features = [data.features(layers) for layers in candidates]
        examples = Examples(train, val, data.y.astype(int), data.y)
        return fit_network(features, candidates, examples, recipe, seed=42)

    among = fit([(layer,) for layer in range(1, data.n_layers + 1)])
    alone = fit([among.layers])
    x = data.features(among.layers).astype(np.float32)
    x = torch.from_numpy((x - x[train].mean(axis=0)) / x[train].std(axis=0))
    y = torch.from_numpy(data.y.astype(np.float32))

    sizes = (x.shape[1], 256, 128, 64)
    parts = [(nn.Linear(n_in, n_out), nn.ReLU()) for n_in, n_out in pairwise(sizes)]
    network = nn.Sequential(*chain(*parts), nn.Linear(64, 1))
    start_at(network, derived_seed(42, "saplma", *among.layers, *among.layers))
    for linear in network[::2]:  # uniform within 1 / sqrt(inputs)
        bound = linear.in_features**-0.5
        assert 0.8 * bound < linear.weight.abs().max() <= bound and linear.weight.mean() < 0.2
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(derived_seed(42, "order"))
    for _ in range(recipe.epochs):
        shuffled = train[torch.randperm(len(train), generator=order).numpy()]
        for first in range(0, len(shuffled), 32):
            items = shuffled[first : first + 32]
            optimiser.zero_grad()
            probability = torch.sigmoid(network(x[items]))[:, 0]
            nn.functional.binary_cross_entropy(probability, y[items]).backward()
            optimiser.step()

    expected = torch.sigmoid(network(x))[:, 0].detach().numpy()
    for found in (among, alone):
        np.testing.assert_allclose(
            Probe("saplma", found.last).score(x.numpy()), expected, atol=1e-4
        )
    layer = str(among.layers[0])
    assert among.val_auroc[layer] == pytest.approx(alone.val_auroc[layer], abs=1e-3)


def test_training_is_repeatable_and_depends_on_the_seed(toy: Path) -> None:
    one, again, other = (
        train_probe([toy], Settings(seed=seed, layer_range=(2, 2), epochs=1))[0]
        for seed in (42, 42, 7)
    )
    np.testing.assert_array_equal(again.weights[0][1], one.weights[0][1])
    assert again.spike_threshold == one.spike_threshold
    assert not np.array_equal(other.weights[0][1], one.weights[0][1])


def test_range_of_layers_is_concatenated(toy: Path) -> None:
    probe, last = train_probe([toy], Settings(layer_range=(1, 3)))
    assert probe.layer_range == (1, 3) and probe.input_dim == 3 * 8
    assert last.metrics["epoch"] == 5 and probe.metrics["epoch"] <= 5
    assert probe.metrics["test"]["value"] >= 0.99


def test_without_standardising_the_states_are_used_as_they_are(toy: Path) -> None:
    probe, _ = train_probe([toy], Settings(standardise=False, layer_range=(2, 2)))
    assert probe.mean is None and probe.metrics["test"]["value"] >= 0.99


def test_standardiser_is_fitted_on_the_train_split_alone(toy: Path, trained: Probe) -> None:
    rows = [
        read_states(toy / f"{name.split('/')[1]}.pkl")[1][trained.token_key][2]
        for name, split in trained.training["items"].items()
        if split == "train"
    ]
    np.testing.assert_allclose(trained.mean, np.float32(rows).mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(trained.scale, np.float32(rows).std(axis=0), atol=1e-5)


def test_threshold_is_set_on_the_validation_dialogues(toy: Path, trained: Probe) -> None:
    y, spikes = [], []
    for name, split in trained.training["items"].items():
        if split == "val":
            item = name.split("/")[1]
            record = read_json(toy / f"{item}.json")
            states = stack_turns(read_states(toy / f"{item}.pkl"), record, trained.token_key, "x")
            y.append(1 - record["nil_label"])
            spikes.append(spike_score(trained.score(trained.features(states))))
    reached = balanced_accuracy_score(y, np.array(spikes) >= trained.spike_threshold)
    best = max(balanced_accuracy_score(y, np.array(spikes) >= value) for value in spikes)
    assert reached == pytest.approx(best)
    assert trained.metrics["spike_threshold"]["balanced_accuracy"] == pytest.approx(best)


def test_unlabelled_unfinished_and_stateless_items_are_counted(tmp_path: Path) -> None:
    records = make_pairs(tmp_path, n=43, turns=3)
    write_json(tmp_path / f"{records[0]['id']}.json", {**records[0], "nil_label": None})
    write_json(tmp_path / f"{records[1]['id']}.json", {**records[1], "complete": False})
    (tmp_path / f"{records[2]['id']}.pkl").unlink()
    probe, _ = train_probe([tmp_path], Settings(layer_range=(2, 2)))
    assert probe.training["left_out"] == {"unfinished": 1, "unlabelled": 1, "without PKL": 1}
    assert sum(probe.training["n"].values()) == 40


def test_early_stopping_is_each_layers_own(tmp_path: Path) -> None:
    make_pairs(tmp_path, n=150, turns=1, signal=0.8)  # the classes overlap: training overfits
    data = load_training_data([tmp_path], token_key="last_token_embedding")
    recipe = replace(SAPLMA, epochs=40, learning_rate=1e-2, patience=3)

    def fit(candidates: list[tuple[int, ...]]):
        features = [data.features(layers) for layers in candidates]
        examples = Examples(np.arange(90), np.arange(90, 150), data.y.astype(int), data.y)
        return fit_network(features, candidates, examples, recipe, seed=1)

    together, alone = fit([(1,), (2,), (3,)]), fit([(2,)])
    assert together.layers == alone.layers == (2,)
    assert (together.epoch, together.last_epoch) == (alone.epoch, alone.last_epoch)
    # it stopped three epochs after the best one, not at the end
    assert together.last_epoch == together.epoch + 3 < 40
    assert len(together.val_auroc["2"]) == together.last_epoch
    np.testing.assert_allclose(together.last[0][1], alone.last[0][1], atol=1e-5)
    assert not np.array_equal(together.last[0][1], together.best[0][1])


# --- splits -----------------------------------------------------------------------------------


def test_splits_are_disjoint_by_group_and_stratified() -> None:
    rng = np.random.default_rng(3)
    groups = [f"story-{item // 5}" for item in range(1000)]
    y = np.repeat(rng.permutation([1] * 60 + [0] * 140), 5)  # a story's answers agree
    splits = split_by_group(groups, strata=["coqa"] * 1000, y=y, fractions=(0.2, 0.2), seed=1)
    by_split = {name: {g for g, s in zip(groups, splits, strict=True) if s == name}
                for name in ("train", "val", "test")}  # fmt: skip
    assert not by_split["train"] & by_split["val"]
    assert not by_split["train"] & by_split["test"]
    assert not by_split["val"] & by_split["test"]
    sizes = {name: int((splits == name).sum()) for name in by_split}
    assert sizes == {"train": 600, "val": 200, "test": 200}
    for name in by_split:
        assert y[splits == name].mean() == pytest.approx(0.3, abs=0.01)
    again = split_by_group(groups, strata=["coqa"] * 1000, y=y, fractions=(0.2, 0.2), seed=1)
    other = split_by_group(groups, strata=["coqa"] * 1000, y=y, fractions=(0.2, 0.2), seed=2)
    np.testing.assert_array_equal(splits, again)
    assert (splits != other).any()


def test_splits_reach_the_probe_file_by_group(tmp_path: Path) -> None:
    make_pairs(tmp_path, n=120, turns=3, group_size=4)
    probe, _ = train_probe([tmp_path], Settings(layer_range=(2, 2), epochs=1))
    split_of_group: dict[int, set[str]] = {}
    for name, split in probe.training["items"].items():
        split_of_group.setdefault(int(name[-4:]) // 4, set()).add(split)
    assert len(split_of_group) == 30
    assert all(len(splits) == 1 for splits in split_of_group.values())


def test_groups_join_by_group_and_by_wording() -> None:
    def record(item: str, question: str, group: str | int | None = None) -> dict:
        return {"domain": "nq", "id": item, "question": question, "group": group}

    # b asks what a asks; c shares b's group; d asks what c asks; e and f are on their own
    groups = question_groups([
        record("a", "one"), record("b", "one", "story"), record("c", "two", "story"),
        record("d", "two"), record("e", "three"), record("f", "four"), record("e", "five"),
        record("g", "six", 0), record("h", "seven", 0), record("i", "eight", ""),
    ])  # fmt: skip
    assert len(set(groups[:4])) == 1
    assert groups[4] == groups[6] and len({groups[0], groups[4], groups[5]}) == 3
    assert groups[7] == groups[8] and len(set(groups)) == 5  # 0 is a group, no text is none


@pytest.mark.parametrize("fractions", [(0, 0.2), (0.5, 0.5), (1.2, 0.1)])
def test_impossible_fractions_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="fraction"):
        split_by_group(["a"], strata=["x"], y=np.array([1]), fractions=fractions, seed=0)


@pytest.mark.parametrize("n_bad", [0, 2])
def test_one_class_in_a_split_is_refused_with_counts(tmp_path: Path, n_bad: int) -> None:
    for place, record in enumerate(make_pairs(tmp_path, n=30, turns=3)):
        label = 0 if place < n_bad else 1
        write_json(tmp_path / f"{record['id']}.json", {**record, "nil_label": label})
    # 10 of the class that 2 of 30 answers are of, in a split of 5 of 30, take 900 questions
    more = r"5\. Use about 870 questions more \(10 " if n_bad else r"\d+\. Use more questions"
    with pytest.raises(UserError, match=rf"both classes.*train \d+ / \d+.*test 0 / {more}"):
        train_probe([tmp_path], Settings())


def test_seen_questions_are_known_again_by_their_wording(trained: Probe, toy: Path) -> None:
    name, split = next(iter(trained.training["items"].items()))
    record = read_json(toy / f"{name.split('/')[1]}.json")
    assert trained.split_of(record) == split
    assert trained.split_of({**record, "config_hash": "another run", "seed": 1}) == split
    assert trained.split_of({**record, "question": "Another question?"}) == "unseen"
    assert trained.split_of({**record, "context": "Another passage."}) == "unseen"


def test_no_labels_and_mixed_models_are_refused(tmp_path: Path) -> None:
    for record in make_pairs(tmp_path / "a", n=4, turns=3):
        write_json(tmp_path / "a" / f"{record['id']}.json", {**record, "nil_label": None})
    with pytest.raises(UserError, match="4 unlabelled.*judge"):
        train_probe([tmp_path / "a"], Settings())
    make_pairs(tmp_path / "b", n=4, turns=3)
    make_pairs(tmp_path / "c", n=4, turns=3, model="./models/other")
    with pytest.raises(UserError, match=r"models/other.*models/synthetic"):
        train_probe([tmp_path / "b", tmp_path / "c"], Settings())
    with pytest.raises(UserError, match="layers 0 to 4"):
        train_probe([tmp_path / "b"], Settings(layer_range=(3, 5)))


# --- the file ---------------------------------------------------------------------------------


def test_probe_file_round_trip(trained: Probe, toy: Path, tmp_path: Path) -> None:
    trained.save(tmp_path / "deep" / "probe.pkl")
    loaded = load_probe(tmp_path / "deep" / "probe.pkl")
    x = np.random.default_rng(0).standard_normal((5, 8))
    np.testing.assert_array_equal(loaded.score(x), trained.score(x))
    assert loaded.metrics == trained.metrics and loaded.training == trained.training
    for name in ("model", "hidden_size", "n_layers", "token_key", "layer_range", "layers", "seed"):
        assert getattr(loaded, name) == getattr(trained, name)


def test_what_is_no_probe_is_refused(toy: Path, trained: Probe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a probe.*probes_trainer"):
        load_probe(toy / "toy-0000.pkl")
    with pytest.raises(UserError, match="does not exist"):
        load_probe(tmp_path / "none.pkl")
    whole = pickle.dumps({"format": 1, "kind": "saplma", "weights": []})
    (tmp_path / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut short"):
        load_probe(tmp_path / "cut.pkl")
    (tmp_path / "new.pkl").write_bytes(pickle.dumps({"format": 9, "kind": "x", "weights": []}))
    with pytest.raises(UserError, match="format 9"):
        load_probe(tmp_path / "new.pkl")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "nearest"), ("kind", 1), ("weights", []), ("weights", None), ("weights", "relu"),
        ("weights", [("linear",)]), ("weights", [("tanh",)]), ("weights", [None]),
        ("weights", [("linear", np.zeros((2, 8)), np.zeros(2))]),
        ("weights", [("linear", np.full((1, 8), np.nan), np.zeros(1))]),
        ("weights", [("linear", np.zeros((1, 8)), np.zeros(1)), ("relu", 1)]),
        ("mean", np.zeros(7)), ("mean", "0"), ("scale", None), ("scale", np.zeros(8)),
        ("model", 3), ("hidden_size", "8"), ("n_layers", 4.0), ("token_key", 1), ("layers", 3),
        ("layer_range", "2,2"), ("layer_range", (2,)), ("layer_range", (2.0, 2)), ("seed", "x"),
        ("training", []), ("training", {"items": 3}), ("training", {"questions": []}),
        ("metrics", 1), ("spike_threshold", "0.5"), ("identity", "abc"), ("tried", [1]),
        ("tried", {"2": {}}), ("tried", {2: None}), ("tried", {2: {"val_auroc": 0.5}}),
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_probe_is_refused_naming_the_file(
    trained: Probe, tmp_path: Path, field: str, value: object
) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"format": 1, **asdict(trained), field: value}))
    with pytest.raises(UserError, match=r"p\.pkl.*(train it again|refused)"):
        load_probe(tmp_path / "p.pkl")


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_hostile_probe_is_refused_and_its_command_did_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was-here"
    bomb = {"format": 1, "kind": "saplma", "weights": [], "x": _Hostile(mark)}
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(bomb))
    with pytest.raises(UserError, match="refused"):
        load_probe(tmp_path / "bomb.pkl")
    assert not mark.exists()
    pickle.loads((tmp_path / "bomb.pkl").read_bytes())
    assert mark.exists()  # the command does run under a plain load: the refusal was what stopped it


# --- refusals ---------------------------------------------------------------------------------

FITS = {"model": MODEL, "n_layers": 4, "hidden_size": 8}


def test_fitting_states_pass_and_repeating_the_probes_own_is_allowed(trained: Probe) -> None:
    trained.check(**FITS)
    trained.check(**FITS, token_key="last_token_embedding", layer_range=(2, 2))
    trained.check(**{**FITS, "model": "/elsewhere/synthetic/"})
    trained.check(**{**FITS, "model": None})


def test_models_are_known_by_content_where_both_sides_say_it(tmp_path: Path) -> None:
    """The folder's name decides only for files of before there were identities."""
    ours = {"weights": "a" * 64, "architecture": "b", "tokenizer": "c", "template": "d"}
    records = make_pairs(tmp_path / "a", n=40, turns=3)
    for record in records:
        write_json(tmp_path / "a" / f"{record['id']}.json", {**record, "identity": ours})
    probe, _ = train_probe([tmp_path / "a"], Settings(layer_range=(2, 2), epochs=1))
    probe.save(tmp_path / "p.pkl")
    probe = load_probe(tmp_path / "p.pkl")
    assert probe.identity == ours
    probe.check(**{**FITS, "model": "./another/name"}, identity=ours)
    probe.check(**FITS, identity=None)  # pairs of before
    replace(probe, identity={}).check(**FITS, identity=ours)  # a probe of before
    kept_in_short = {part: digest[:16] for part, digest in ours.items()}  # as in a pair
    probe.check(**{**FITS, "model": "./another/name"}, identity=kept_in_short)
    for part in ours:
        with pytest.raises(UserError, match=f"synthetic.* .{part} of.*train a probe"):
            probe.check(**FITS, identity={**ours, part: "other"})
    for theirs in (None, {}):
        with pytest.raises(UserError, match="models/synthetic.*another/name.*have one name"):
            probe.check(**{**FITS, "model": "./another/name"}, identity=theirs)
    # other weights under the same name, among the pairs to learn from
    last = records[-1]
    write_json(
        tmp_path / "a" / f"{last['id']}.json", {**last, "identity": {**ours, "weights": "e" * 64}}
    )
    with pytest.raises(UserError, match=rf"{last['id']}.*weights of"):
        train_probe([tmp_path / "a"], Settings())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": 16}, "width 8.*width 16"),
        ({"n_layers": 6}, "from 4 layers.*from 6 layers"),
        ({"model": "./models/other"}, "models/synthetic.*models/other"),
        (
            {"token_key": "sec_last_token_embedding"},
            '"last_token_embedding".*"sec_last_token_embedding"',
        ),
        ({"layer_range": (1, 3)}, "layers 2,2.*says 1,3"),
        ({"layer_range": (2, 3)}, "layers 2,2.*says 2,3"),
    ],
)
def test_mismatches_are_refused_with_both_named(trained: Probe, change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        trained.check(**{**FITS, **change})


def test_probe_on_a_list_of_layers(toy: Path, tmp_path: Path) -> None:
    probe, _ = train_probe([toy], Settings(layers="1,2,4"))
    assert (probe.layers, probe.layer_range, probe.input_dim) == ((1, 2, 4), (1, 4), 24)
    probe.save(tmp_path / "p.pkl")
    loaded = load_probe(tmp_path / "p.pkl").check(**FITS)
    states = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float16)
    expected = np.concatenate([states[:, 1], states[:, 2], states[:, 4]], axis=1)
    np.testing.assert_array_equal(loaded.features(states), expected)
    with pytest.raises(UserError, match="layers 1,2,4, --layer_range says 1,4"):
        loaded.check(**FITS, layer_range=(1, 4))
    with pytest.raises(UserError, match="width 8.*width 16"):
        loaded.check(**{**FITS, "hidden_size": 16})


@pytest.mark.parametrize(
    ("text", "layers"), [(None, None), ("13,21", (13, 21)), (" 3, 3 ", (3, 3))]
)
def test_layer_range_argument(text: str | None, layers: tuple | None) -> None:
    assert parse_layer_range(text) == layers
    for wrong in ("21,13", "13", "13-21", "-1,3", "a,b", "1,2,3", ""):
        with pytest.raises(UserError, match="13,21"):
            parse_layer_range(wrong)


def test_states_missing_for_a_turn_are_an_error_naming_the_file() -> None:
    record = make_record("x", y=1, turns=2, domain="toy", model=MODEL)
    key = "last_token_embedding"
    state = np.zeros((3, 2), np.float16)
    with pytest.raises(UserError, match=r"x\.pkl.*turn 2.*1 of 2"):
        stack_turns({1: {key: state}}, record, key, "x.pkl")
    with pytest.raises(UserError, match=r"x\.pkl.*shape"):
        stack_turns({1: {key: state}, 2: {key: state[:2]}}, record, key, "x.pkl")
    with pytest.raises(UserError, match=r"x\.pkl.*not finite"):
        stack_turns({1: {key: state}, 2: {key: state + np.inf}}, record, key, "x.pkl")
    with pytest.raises(UserError, match=r"x\.pkl.*no turns"):
        stack_turns({}, {**record, "cot_steps": []}, key, "x.pkl")


# --- probe files of the public release --------------------------------------------------------


@dataclass
class TrainingConfig:
    """As in the released files, which pickle their settings as an object of this name."""

    hidden_dims: list[int] = field(default_factory=lambda: [32, 16])


class ReleasedNetwork(nn.Module):
    def __init__(self, d: int, hidden: tuple[int, ...] = (32, 16)) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for out in hidden:
            modules += [nn.Linear(d, out), nn.LayerNorm(out), nn.Mish(), nn.Dropout(0.3)]
            d = out
        self.model = nn.Sequential(*modules, nn.Linear(d, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)[:, 0]


def released_probe(path: Path, d: int, layer_range: tuple | None = None) -> ReleasedNetwork:
    torch.manual_seed(5)
    network = ReleasedNetwork(d, hidden=(32, 24, 16)).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # LayerNorm's own start would hide an omission
            parameter.add_(0.1 * torch.randn_like(parameter))
    content = {
        "model_state_dict": OrderedDict(network.state_dict()),
        "config": TrainingConfig(),
        "input_dim": d,
        "layer_range": layer_range,
    }
    path.write_bytes(pickle.dumps(content))
    return network


def test_released_probe_scores_as_its_network(tmp_path: Path) -> None:
    network = released_probe(tmp_path / "sep.pkl", 3 * 8)
    probe = load_probe(tmp_path / "sep.pkl")
    assert probe.kind == "sep-mlp" and probe.input_dim == 24
    # thirteen modules in the Sequential: "model.12" must come after "model.4"
    x = torch.randn(40, 24)
    np.testing.assert_allclose(probe.score(x.numpy()), network(x).detach().numpy(), atol=1e-5)
    completed = probe.check(**FITS, layer_range=(1, 3))
    assert completed.layer_range == (1, 3) and completed.token_key == "last_token_embedding"


def test_released_probe_saved_by_torch(tmp_path: Path) -> None:
    network = ReleasedNetwork(16).eval()
    content = {"model_state_dict": network.state_dict(), "config": {}, "input_dim": 16}
    torch.save(content, tmp_path / "sep.pt")
    x = torch.randn(4, 16)
    scores = load_probe(tmp_path / "sep.pt").score(x.numpy())
    np.testing.assert_allclose(scores, network(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("recorded", [True, False])
def test_half_open_range_is_read_so_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recorded: bool
) -> None:
    released_probe(tmp_path / "sep.pkl", 8 * 8, (13, 21) if recorded else None)
    probe = load_probe(tmp_path / "sep.pkl")
    with caplog.at_level(logging.WARNING, logger="spikescore"):
        completed = probe.check(
            model="m", n_layers=32, hidden_size=8, layer_range=None if recorded else (13, 21)
        )
    assert completed.layer_range == (13, 20)
    assert "13 to 20" in caplog.text and "not included" in caplog.text


def test_released_probe_without_layers_needs_them(tmp_path: Path) -> None:
    released_probe(tmp_path / "sep.pkl", 8 * 8)
    probe = load_probe(tmp_path / "sep.pkl")
    with pytest.raises(UserError, match=r"--layer_range.*64 features.*8 states"):
        probe.check(model="m", n_layers=32, hidden_size=8)
    with pytest.raises(UserError, match="48 features.*trained on 64"):
        probe.check(model="m", n_layers=32, hidden_size=8, layer_range=(0, 5))
    with pytest.raises(UserError, match="within 0,5"):
        probe.check(model="m", n_layers=5, hidden_size=8, layer_range=(0, 7))


def test_broken_released_probe_is_refused(tmp_path: Path) -> None:
    state = {"model.0.weight": torch.zeros(4, 8), "model.0.bias": torch.zeros(4)}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"model_state_dict": state, "input_dim": 8}))
    with pytest.raises(UserError, match="chain"):
        load_probe(tmp_path / "p.pkl")
    (tmp_path / "q.pkl").write_bytes(pickle.dumps({"model_state_dict": {}}))
    with pytest.raises(UserError, match="MLP"):
        load_probe(tmp_path / "q.pkl")


# --- the trainer script -----------------------------------------------------------------------


def load_script() -> object:
    path = ROOT / "semantic-entropy-probes" / "probes_trainer.py"
    spec = importlib.util.spec_from_file_location("probes_trainer", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trainer_class_as_in_the_guide(tmp_path: Path) -> None:
    make_pairs(tmp_path / "a", n=40, turns=3, domain="nq")
    make_pairs(tmp_path / "b", n=40, turns=3, domain="svamp")
    trainer = load_script().SemanticEntropyProbeTrainer()  # the public release's name for it
    with pytest.raises(UserError, match="train_from_directories"):
        trainer.save_models(save_dir=tmp_path, prefix="early")
    results = trainer.train_from_directories(
        directories=[tmp_path / "a", str(tmp_path / "b")], dataset_names=["nq", "svamp"]
    )
    assert sum(results["training"]["n"].values()) == 80
    assert results["training"]["datasets"] == ["nq", "svamp"]
    saved = trainer.save_models(save_dir=tmp_path / "probes", prefix="toy")
    assert saved == tmp_path / "probes" / "toy_best.pkl"
    assert load_probe(tmp_path / "probes" / "toy_last.pkl").metrics["epoch"] == 5
    told = json.loads((tmp_path / "probes" / "toy_best.json").read_text())
    assert told == json.loads(json.dumps(results))
    with pytest.raises(UserError, match="2 directories but 1"):
        trainer.train_from_directories([tmp_path / "a", tmp_path / "b"], dataset_names=["nq"])
