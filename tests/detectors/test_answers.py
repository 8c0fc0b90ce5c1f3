"""What is held of many dialogues: all that is large stays in files, fits gather single layers."""

from __future__ import annotations

import json
import pickle
import tracemalloc
import weakref
from collections import Counter

import numpy as np
import pytest

from spikescore import pairs
from spikescore.detectors import answers as answers_module
from spikescore.detectors import scoring
from spikescore.detectors.answers import Answers, read_answers
from spikescore.detectors.depth import LayerDivergence
from spikescore.detectors.lesson import first_answers, measured, measured_lesson, score_measured
from spikescore.detectors.linear import LinearProbe, MassMean
from spikescore.detectors.networks import Saplma
from spikescore.detectors.scoring import score_turns
from spikescore.errors import UserError
from spikescore.measures.file import measures_path, texts_digest
from spikescore.pairs import gathered
from spikescore.probes.data import load_training_data
from spikescore.probes.fit import Fit, best_of
from spikescore.probes.linear import fit_logistic
from tests.helpers.factories import make_pairs

KEY = "last_token_embedding"
N, LAYERS, WIDTH = 40, 4, 8


@pytest.fixture
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pairs")
    make_pairs(made, n=N, turns=4, layers=LAYERS, hidden=WIDTH)
    return made


def halves(items: Answers) -> tuple[Answers, Answers]:
    """Train and validation items of both classes."""
    return items.select(np.arange(len(items)) % 4 < 2), items.select(np.arange(len(items)) % 4 >= 2)


def in_file(array: np.ndarray) -> bool:
    """Whether an array is a view of a mapped file."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


def test_gathered_is_a_stack_in_memory_or_in_a_file(monkeypatch):
    rows = [np.full((2, 3), k, np.float16) for k in range(5)]
    for limit, mapped in ((5 * 12, False), (5 * 12 - 1, True), (0, True)):
        monkeypatch.setattr(pairs, "IN_MEMORY", limit)
        found = gathered(iter(rows))
        assert in_file(found) == mapped and found.dtype == np.float16
        np.testing.assert_array_equal(found, np.stack(rows))
        with pytest.raises(UserError, match=r"differ in shape: \[2, 3\] and \[3, 2\]"):
            gathered([*rows, np.zeros((3, 2), np.float16)])
    assert gathered([]).size == 0


def test_a_full_disk_is_told_in_one_line(monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pairs, "IN_MEMORY", 0)
    monkeypatch.setattr(pairs.tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match="cannot hold the hidden states"):
        gathered([np.zeros(2), np.zeros(2)])


def test_dialogues_lie_in_a_file_and_are_read_when_asked_for(folder, monkeypatch):
    paths = sorted(folder.glob("*.json"))
    for path in paths:
        record = json.loads(path.read_text())
        for step in record["cot_steps"]:
            step |= {"response": f"\ud800 {path.stem} " + "said " * 4000, "prompt_ids": [1, 2]}
        path.write_text(json.dumps(record))
    tracemalloc.start()
    items = read_answers(folder, token_key=KEY)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 0.2 * sum(path.stat().st_size for path in paths)
    expected = [json.loads(path.read_text()) for path in paths]
    for record in expected:
        for step in record["cot_steps"]:
            del step["prompt_ids"]
    assert list(items.records) == expected and items.n_turns.tolist() == [4] * N
    part = items.select(np.arange(N) > 2).select(np.array([5, 0]))
    assert list(part.records) == [expected[8], expected[3]] == list(part.records[:2])
    assert part.records[-1] == expected[3]

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answers_module.tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match="cannot hold the dialogues"):
        read_answers(folder, token_key=KEY)


def test_fits_and_scores_copy_no_items_states_of_all_layers(folder, monkeypatch):
    """Parts of the items, and lessons, are views of what was read once, whatever their number."""
    monkeypatch.setattr(pairs, "IN_MEMORY", 0)
    items = read_answers(folder, token_key=KEY)
    whole = items.first_states
    assert in_file(whole)
    part = items.select(np.arange(N) % 3 > 0)
    train, val = halves(part)
    material = first_answers(train, val)
    assert all(np.shares_memory(row, whole) for row in material.features)
    expected = np.concatenate([np.asarray(part.first_states)[p::4] for p in (0, 1, 2, 3)])
    assert material.n_states == LAYERS + 1
    for layer, rows in enumerate(material.by_layer, start=1):
        assert rows.shape == (len(part), WIDTH)
        np.testing.assert_array_equal(
            np.sort(rows.astype(float), axis=0), np.sort(expected[:, layer].astype(float), axis=0)
        )
    for kind in (MassMean, LinearProbe, Saplma, LayerDivergence):
        one, other = halves(items)
        detector = kind()
        detector.fit(one, other, seed=0)
        detector.score(other)
        for held in (one, other):
            assert "first_states" not in held.__dict__, f"{kind.name} took a copy"


def test_parts_have_the_states_of_their_items_read_or_not(folder):
    items, again = (read_answers(folder, token_key=KEY) for _ in range(2))
    places = np.array([7, 3, 30])
    early = again.select(places)  # of items whose states nobody has read
    np.testing.assert_array_equal(early.first_states, items.first_states[places])
    assert "first_states" not in again.__dict__
    late = items.select(np.arange(N) > 2).select(np.array([0, 5]))
    np.testing.assert_array_equal(late.first_states, items.first_states[[3, 8]])


def test_scores_in_blocks_are_those_of_all_states_at_once(folder, monkeypatch):
    items = read_answers(folder, token_key=KEY)
    detector = MassMean()
    detector.fit(*halves(items), seed=0)
    expected = detector.score_states(items.first_states)
    monkeypatch.setattr(answers_module, "BLOCK_BYTES", 3 * items.first_states[0].nbytes)
    for part, own in ((items, expected), (items.select(np.arange(N) < 8), expected[:8])):
        sizes = [len(block) for block in part.first_blocks()]
        assert max(sizes) == 3 and sum(sizes) == len(part)
        np.testing.assert_allclose(detector.score(part), own, atol=1e-6)


def test_of_later_turns_only_the_layers_that_are_scored_are_read(folder, monkeypatch):
    items = read_answers(folder, token_key=KEY)
    _ = items.first_states
    readers, material = {}, first_answers(*halves(items))
    for layer in (1, 3):
        readers["linear_probe", "toy", layer] = detector = LinearProbe()
        detector.keep(fit_logistic([material.layer(layer)], [(layer,)], material.examples()))
    asked, read = [], Answers.turn_states

    def spy(self, layers=None, **options):
        asked.append(layers)
        return read(self, layers, **options)

    monkeypatch.setattr(Answers, "turn_states", spy)
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 2**13)
    found = score_turns(items, readers, Counter())
    assert len(asked) > 2 and all(layers == [1, 3] for layers in asked)
    for key, detector in readers.items():
        for place, turns in enumerate(read(items)):
            np.testing.assert_allclose(found[key][place], detector.score_states(turns), atol=1e-5)
    asked.clear()
    trees = LayerDivergence()
    trees.fit(*halves(items), seed=0)
    both = score_turns(items, {**readers, ("layer_divergence", "toy", 0): trees}, Counter())
    assert set(map(str, asked)) == {"None"}  # it reads all of them
    for key, table in found.items():
        np.testing.assert_allclose(both[key], table, atol=1e-5)


def test_large_measures_stay_in_a_file(folder, monkeypatch):
    items = read_answers(folder, token_key=KEY)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((N, LAYERS + 1, WIDTH)).astype(np.float16)
    for place, (path, record) in enumerate(zip(items.paths, items.records, strict=True)):
        content = {
            "format": 1,
            "model": "m",
            "settings": {},
            "texts": texts_digest(record),
            "first": {"p_true": 0.5, "truth_state": states[place]},
            "samples": {"logliks": np.arange(3.0)},
        }
        measures_path(path).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(answers_module, "LARGE", states[0].nbytes)
    held = [found["first"]["truth_state"] for found in items.measures]
    assert all(map(in_file, held)) and not any(array.flags.writeable for array in held)
    np.testing.assert_array_equal(np.stack(held), states)
    assert not in_file(items.measures[0]["samples"]["logliks"])
    np.testing.assert_array_equal(measured(items, "truth_state")[1], states)
    material = measured_lesson(*halves(items), "truth_state")
    assert all(map(in_file, material.features))
    np.testing.assert_array_equal(material.layer(2)[:2], states[:2, 2])
    monkeypatch.setattr("spikescore.detectors.lesson.AT_ONCE", 7)
    items.measures[5].clear()
    sums = score_measured(items, "truth_state", lambda rows: rows.sum(axis=(1, 2), dtype=float))
    expected = states.sum(axis=(1, 2), dtype=float)
    expected[5] = np.nan
    np.testing.assert_allclose(sums, expected)


def test_losing_candidates_are_let_go_as_soon_as_they_lost():
    alive: list[weakref.ref] = []
    most = 0

    def fits():
        nonlocal most
        for layer, area in enumerate((0.5, 0.9, 0.6, 0.7, 0.9, 0.8), start=1):
            fit = Fit((layer,), (area, 0.0), [], [], None, None, [area])
            alive.append(weakref.ref(fit))
            most = max(most, sum(ref() is not None for ref in alive))
            yield fit
            del fit

    chosen = best_of(fits())
    assert chosen.layers == (2,) and len(chosen.val_auroc) == 6
    assert most <= 3  # the best so far, the one before, the one that comes


def test_training_data_of_probes_may_lie_in_a_file(folder, monkeypatch):
    here = load_training_data([folder], token_key=KEY)
    monkeypatch.setattr(pairs, "IN_MEMORY", 0)
    there = load_training_data([folder], token_key=KEY)
    assert in_file(there.states) and not in_file(here.states)
    np.testing.assert_array_equal(there.states, here.states)
    np.testing.assert_array_equal(there.features((2,)), here.features((2,)))
    assert (there.n_layers, there.hidden_size, there.kept) == (LAYERS, WIDTH, (1, 2, 3, 4))
