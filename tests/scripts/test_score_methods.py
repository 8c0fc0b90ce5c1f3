"""Stage 2 for many methods: splits, fits, scores of items and turns, and what is left out."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from spikescore.detectors import REGISTRY, scoring
from spikescore.detectors.answers import read_answers
from spikescore.detectors.base import Detector, StateDetector, TurnDetector
from spikescore.detectors.score_book import load_score_book
from spikescore.detectors.scoring import Settings, score_methods
from spikescore.errors import UserError
from spikescore.files import read_json, write_json
from spikescore.measures.file import texts_digest
from spikescore.pairs import read_states
from tests.helpers.factories import MODEL, make_pairs
from tests.helpers.running import run_script

TOKEN = "last_token_embedding"
LAYER = 2  # where the factory plants the label


class Gap(StateDetector):
    """Projection on the difference of the classes' means, of a double for testing."""

    name, title, family = "gap", "Gap", "trained"

    def fit(self, train, val, *, seed):
        self.seen = train, val
        states = train.first_states[:, LAYER].astype(np.float64)
        self.direction = states[train.y == 1].mean(axis=0) - states[train.y == 0].mean(axis=0)
        self.chosen = {"layer": LAYER}

    def score_states(self, states):
        return states[:, LAYER].astype(np.float64) @ self.direction


class Chance(Gap):
    """The same with chance in it: the seed turns the direction a little."""

    name, title, seeded = "chance", "Chance", True

    def fit(self, train, val, *, seed):
        super().fit(train, val, seed=seed)
        self.direction += np.random.default_rng(seed).normal(size=self.direction.shape)


class Picky(Gap):
    """One that cannot learn from every domain."""

    name, title = "picky", "Picky"

    def fit(self, train, val, *, seed):
        if train.domains[0] == "beta":
            raise UserError("nothing to learn in beta")
        super().fit(train, val, seed=seed)


class Probed(Detector):
    """One that learns from measures which were not made."""

    name, title, family = "probed", "Probed", "trained"
    needs = frozenset({"attentions"})

    def fit(self, train, val, *, seed):
        raise AssertionError("fitted without its measures")

    def score(self, items):
        raise AssertionError("scored without its measures")


DOUBLES = {double.name: double for double in (Gap, Chance, Picky, Probed)}


@pytest.fixture(autouse=True)
def doubles(monkeypatch):
    """The doubles are methods like any other."""
    for name, double in DOUBLES.items():
        monkeypatch.setitem(REGISTRY, name, double)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two domains of 40 items in groups of two, 5 and 3 turns long, and one of 4 items."""
    path = tmp_path_factory.mktemp("pairs")
    for name, n, turns in (("alpha", 40, 5), ("beta", 40, 3), ("tiny", 4, 4)):
        make_pairs(path / name, domain=name, n=n, turns=turns, group_size=2, signal=8)
    return path


@pytest.fixture(scope="module")
def items(folder):
    return read_answers(folder, token_key=TOKEN)


def scored(items, *methods, **settings):
    settings = {"turn_scorers": ["gap"] if "gap" in methods else [], **settings}
    return score_methods(items, Settings(methods=methods, **settings))[0]


def test_every_fit_scores_every_item(items):
    book = scored(items, "gap", "chance", "perplexity", "answer_length", probe_seeds=3)
    fits = Counter(key[:2] for key in book.scores)
    assert fits == {
        ("perplexity", ""): 1, ("answer_length", ""): 1,
        ("gap", "alpha"): 1, ("gap", "beta"): 1, ("chance", "alpha"): 3, ("chance", "beta"): 3,
    }  # fmt: skip
    assert {key[2] for key in book.scores if key[0] == "chance"} == {0, 1, 2}
    for scores in book.scores.values():
        assert scores.shape == (84,) and scores.dtype == np.float64 and np.isfinite(scores).all()
    seeds = [book.scores["chance", "alpha", seed] for seed in range(3)]
    assert not np.allclose(seeds[0], seeds[1])
    away = book.domains != "alpha"
    assert roc_auc_score(book.y[away], book.scores["gap", "alpha", 0][away]) == 1
    assert book.chosen["gap/beta/0"] == {"layer": LAYER}
    assert book.methods["gap"] == {
        "title": "Gap", "family": "trained", "needs": ["states"], "seeded": False, "learns": True,
        "whole_dialogue": False, "measured": [],
    }  # fmt: skip
    assert set(book.about["seconds"]) == {"gap", "chance", "perplexity", "answer_length"}
    assert [item.turn_tokens for item in book.items[39:41]] == [(4,) * 5, (4,) * 3]


def test_a_detector_learns_from_its_domains_train_and_val_splits_alone(items, monkeypatch):
    fitted = []

    class Spy(Gap):
        def fit(self, train, val, *, seed):
            super().fit(train, val, seed=seed)
            fitted.append((train, val))

    monkeypatch.setitem(REGISTRY, "gap", Spy)
    book = scored(items, "gap", turn_scorers=[])
    assert list(book.splits) == ["alpha", "beta"]
    ids = np.array([item.id for item in book.items])
    for (domain, split), (train, val) in zip(book.splits.items(), fitted, strict=True):
        assert [r["id"] for r in train.records] == ids[split == "train"].tolist()
        assert [r["id"] for r in val.records] == ids[split == "val"].tolist()
        assert np.array_equal(split != "", book.domains == domain)
        by_group = {(group, part) for group, part in zip(book.groups, split, strict=True) if part}
        assert len(by_group) == 20  # 20 groups of two, none torn
        assert Counter(split[split != ""]) == {"train": 20, "val": 8, "test": 12}


def test_turns_are_scored_from_their_own_states(items, folder):
    book = scored(items, "gap", "perplexity", turn_scorers=["gap", "perplexity"])
    assert set(book.turns) == {("gap", "alpha", 0), ("gap", "beta", 0), ("perplexity", "", 0)}
    train = book.splits["alpha"] == "train"
    first = items.first_states[:, LAYER].astype(np.float64)
    direction = first[train & (book.y == 1)].mean(axis=0) - first[train & (book.y == 0)].mean(
        axis=0
    )
    turns = book.turns["gap", "alpha", 0]
    assert turns.shape == (84, 5) and turns.dtype == np.float32
    for place in (3, 45, 82):
        states = read_states(items.paths[place].with_suffix(".pkl"), TOKEN)
        expected = [states[turn][TOKEN][LAYER].astype(float) @ direction for turn in sorted(states)]
        assert turns[place, : len(states)] == pytest.approx(expected, rel=1e-5)
        assert np.isnan(turns[place, len(states) :]).all()
    assert turns[:, 0] == pytest.approx(book.scores["gap", "alpha", 0], rel=1e-5)
    assert np.array_equal(np.isnan(book.turns["perplexity", "", 0]), np.isnan(turns))


def same(one, other):
    assert one.keys() == other.keys()
    return all(
        np.array_equal(one[key], other[key], equal_nan=one[key].dtype.kind == "f") for key in one
    )


def test_the_same_run_gives_the_same_book_whatever_else_is_scored(items):
    book = scored(items, "gap", "chance", probe_seeds=2, turn_scorers=["gap", "chance"])
    again = scored(items, "gap", "chance", probe_seeds=2, turn_scorers=["gap", "chance"])
    assert same(book.scores, again.scores) and same(book.turns, again.turns)
    assert same(book.splits, again.splits)
    more = scored(items, "perplexity", "picky", "chance", "gap", probe_seeds=4)
    assert same(book.scores, {key: more.scores[key] for key in book.scores})
    assert same(book.splits, more.splits)


@pytest.mark.parametrize("block_bytes", [1, 1500])
def test_scores_do_not_depend_on_the_blocks(items, monkeypatch, block_bytes):
    whole = scored(items, "gap")
    monkeypatch.setattr(scoring, "BLOCK_BYTES", block_bytes)
    blocks = scored(items, "gap")
    assert same(whole.scores, blocks.scores)
    for key, turns in whole.turns.items():
        np.testing.assert_allclose(blocks.turns[key], turns, rtol=1e-6)


def test_blocks_hold_at_most_their_bytes_and_every_item_once(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 10)
    blocks = [block.tolist() for block in scoring._blocks(np.array([4, 6, 1, 30, 9, 1, 1]))]
    assert blocks == [[0, 1], [2], [3], [4, 5], [6]]


def test_what_cannot_be_done_is_left_out_with_the_reason(items):
    book = scored(items, "gap", "picky", "probed", "p_true", "answer_length")
    left_out = dict(book.about["left_out"])
    assert set(left_out) == {"probed", "p_true", "picky on beta", "training domain tiny"}
    assert left_out["picky on beta"] == "nothing to learn in beta"
    assert "measure_answers.py" in left_out["probed"]
    assert "measure_answers.py" in left_out["p_true"]
    assert "train 1 / 1" in left_out["training domain tiny"]
    assert set(book.methods) == {"gap", "picky", "answer_length"}
    assert ("picky", "alpha", 0) in book.scores and ("picky", "beta", 0) not in book.scores
    with pytest.raises(UserError, match="nothing could be scored: .*p_true"):
        scored(items, "p_true", "probed")


N = 84


@pytest.mark.parametrize(
    "returned, told",
    [
        (np.zeros(N - 1), f"float64 [{N - 1}] for {N} items"),
        (np.zeros(N + 1), f"float64 [{N + 1}] for {N} items"),
        (np.zeros((N, 1)), f"float64 [{N}, 1] for {N} items"),
        (np.zeros((1, N)), f"float64 [1, {N}] for {N} items"),
        (np.float64(0.5), f"float64 [] for {N} items"),
        ([], f"float64 [0] for {N} items"),
        (None, f"None for {N} items"),
        ([None] * N, f"object [{N}] for {N} items"),
        (["0.5"] * N, f"<U3 [{N}] for {N} items"),
        (np.zeros(N, complex), f"complex128 [{N}] for {N} items"),
        ([[1.0], [1.0, 2.0]], "list (setting an array"),
        ({"scores": 1}, f"object [] for {N} items"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_detector_that_returns_something_else_is_named(
    items, monkeypatch, caplog, returned, told
):
    class Odd(Detector):
        name, title, family, needs = "odd", "Odd", "training-free", frozenset()

        def score(self, items):
            return returned

    monkeypatch.setitem(REGISTRY, "odd", Odd)
    book = scored(items, "odd", "answer_length")
    assert set(book.methods) == {"answer_length"} and book.about["misbehaved"] == ["odd"]
    (message,) = (record.getMessage() for record in caplog.records)
    assert (
        'detector "odd": score returned' in message and told in message and f"[{N}] are" in message
    )
    assert message.startswith("error: " + dict(book.about["left_out"])["odd"])


@pytest.mark.parametrize("returned", [[0.5] * N, np.zeros(N, np.float16), np.arange(N) > 3])
def test_a_detector_may_return_any_real_numbers(items, monkeypatch, returned):
    class Free(Detector):
        name, title, family, needs = "free", "Free", "training-free", frozenset()

        def score(self, items):
            return returned

    monkeypatch.setitem(REGISTRY, "free", Free)
    scores = scored(items, "free").scores["free", "", 0]
    assert scores.dtype == np.float64 and scores.tolist() == [float(value) for value in returned]


def test_turns_of_another_shape_and_choices_that_no_file_can_hold_are_named(items, monkeypatch):
    class Turned(TurnDetector):
        name, title, family, needs = "turned", "Turned", "training-free", frozenset()

        def score_turns(self, items):
            return np.zeros((len(items), 7))  # the longest dialogue has 5 turns

    class Boastful(Gap):
        def fit(self, train, val, *, seed):
            super().fit(train, val, seed=seed)
            self.chosen = {"layer": np.int64(2), "why": {1, 2}}

    monkeypatch.setitem(REGISTRY, "turned", Turned)
    monkeypatch.setitem(REGISTRY, "gap", Boastful)
    book = scored(items, "turned", "gap", "answer_length", turn_scorers=["turned"])
    reasons = dict(book.about["left_out"])
    assert "score_turns returned float64 [84, 7] for 84 items" in reasons["turned"]
    assert "[84, 5] are due" in reasons["turned"] and "`chosen`" in reasons["gap on alpha"]
    assert set(book.methods) == {"answer_length"}

    class Terse(Boastful):
        def fit(self, train, val, *, seed):
            super().fit(train, val, seed=seed)
            self.chosen = {"layer": np.int64(2), "weights": np.ones(2)}

        def score_states(self, states):
            found = super().score_states(states)
            return found if len(found) == 84 else found[:-1]

    monkeypatch.setitem(REGISTRY, "gap", Terse)
    assert scored(items, "gap", turn_scorers=[]).chosen["gap/alpha/0"] == {
        "layer": 2, "weights": [1, 1],
    }  # fmt: skip
    with pytest.raises(
        UserError, match=r'"gap": score_states returned float64 \[\d+\] for \d+ states'
    ):
        scored(items, "gap", turn_scorers=["gap"])


def test_items_without_a_score_are_counted_and_stay_missing(folder, items):
    path = items.paths[0].with_suffix(".measures.pkl")
    content = {"format": 1, "settings": {}, "texts": texts_digest(items.records[0])}
    path.write_bytes(pickle.dumps({**content, "first": {"p_true": 0.25}}))
    try:
        book = scored(read_answers(folder, token_key=TOKEN), "p_true")
    finally:
        path.unlink()
    scores = book.scores["p_true", "", 0]
    assert scores[0] == -0.25 and np.isnan(scores[1:]).all()
    assert book.about["unscored"] == {"p_true": 83}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"methods": ["perplexty"]}, 'unknown method "perplexty"; did you mean "perplexity"'),
        ({"methods": ["gap"], "train_domains": ["alfa"]}, 'training domain "alfa".*"alpha"'),
        ({"methods": ["gap"], "turn_scorers": ["perplexity"]}, "unknown turn scorer"),
        ({"methods": ["p_true"], "turn_scorers": ["p_true"]}, "scores first answers only"),
        ({"methods": ["gap"], "val_fraction": 0.8}, "leave a train split"),
    ],
)
def test_wrong_settings_are_refused(items, settings, message):
    with pytest.raises(UserError, match=message):
        score_methods(items, Settings(**settings))


def test_one_damaged_file_of_measures_leaves_the_others_scored(folder, items, caplog):
    paths = [items.paths[place].with_suffix(".measures.pkl") for place in (0, 1)]
    content = {"format": 1, "model": "m", "settings": {}, "first": {"p_true": 0.25}}
    paths[0].write_bytes(pickle.dumps({**content, "texts": texts_digest(items.records[0])}))
    paths[1].write_bytes(b"")
    try:
        book = scored(read_answers(folder, token_key=TOKEN), "p_true", "answer_length")
    finally:
        for path in paths:
            path.unlink()
    scores = book.scores["p_true", "", 0]
    assert scores[0] == -0.25 and np.isnan(scores[1:]).all()
    assert len(book.about["unread"]) == 1 and paths[1].name in book.about["unread"][0]
    assert paths[1].name in caplog.text


def test_the_script_writes_a_book_that_reads_back(folder, tmp_path):
    done = run_script(
        "scripts/score_methods.py", "--data_dir", folder,
        "--save_path", tmp_path / "new" / "scores.pkl",
        "--methods", "perplexity,domain_identity,dialogue_length,sharpness",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "84 dialogues in 3 domains, 42 hallucinated" in done.stdout
    assert "left out: sharpness: no item has a score" in done.stdout
    assert "measure_answers.py" in done.stdout
    book = load_score_book(tmp_path / "new" / "scores.pkl")
    assert set(book.methods) == {"perplexity", "domain_identity", "dialogue_length"}
    assert book.scores["domain_identity", "", 0].tolist() == [0.5] * 84
    lengths = {"alpha": 20, "beta": 12, "tiny": 16}
    expected = [lengths[domain] for domain in book.domains]
    assert book.scores["dialogue_length", "", 0].tolist() == expected
    assert (book.turns["perplexity", "", 0][:40] == 1.5).all()
    assert book.about["data_dir"] == str(folder)
    assert not list((tmp_path / "new").glob(".*"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "scores.json", "scores.pkl",
    ]  # fmt: skip


def test_the_book_keeps_what_was_scored(items, tmp_path):
    book = scored(items, "gap", "perplexity")
    text, _ = book.save(tmp_path / "scores.pkl")
    back = load_score_book(tmp_path / "scores")
    assert same(back.scores, book.scores) and same(back.turns, book.turns)
    assert same(back.splits, book.splits)
    assert (back.items, back.methods, back.chosen) == (book.items, book.methods, book.chosen)
    assert back.about == json.loads(json.dumps(book.about))
    assert back.seeds_of("perplexity", "beta") == [("perplexity", "", 0)]
    assert text.read_text().startswith("{")


@pytest.mark.parametrize(
    "damage",
    [
        lambda told, arrays: told.pop("items"),
        lambda told, arrays: told["items"][0].pop("y"),
        lambda told, arrays: told["items"][0].update(y=2),
        lambda told, arrays: told["items"].pop(),
        lambda told, arrays: told["items"].__setitem__(0, None),
        lambda told, arrays: told["splits"]["alpha"].pop(),
        lambda told, arrays: told.update(splits=[]),
        lambda told, arrays: told["methods"].clear(),
        lambda told, arrays: arrays.update(scores=None),
        lambda told, arrays: arrays["scores"].update({("gap", "alpha"): np.zeros(84)}),
        lambda told, arrays: arrays["scores"].update({("gap", "alpha", 0): np.zeros((84, 1))}),
        lambda told, arrays: arrays["scores"].update({("gap", "alpha", 0): "none"}),
        lambda told, arrays: arrays["turns"].update({("gap", "alpha", 0): np.zeros(84)}),
    ],
)
def test_a_damaged_book_is_refused_in_one_line(items, tmp_path, damage):
    text, pkl = scored(items, "gap", "perplexity").save(tmp_path / "scores.pkl")
    told, arrays = json.loads(text.read_text()), pickle.loads(pkl.read_bytes())
    damage(told, arrays)
    text.write_text(json.dumps(told))
    pkl.write_bytes(pickle.dumps(arrays))
    with pytest.raises(UserError, match=r"scores\.json.* damaged .*score_methods\.py"):
        load_score_book(text)


def test_books_and_folders_know_the_model_by_content(folder, items, tmp_path):
    ours, theirs = ({"weights": letter * 64} for letter in "ab")
    ids = {}
    for name, identity in (("one", ours), ("moved", ours), ("other", theirs)):
        model = "./elsewhere/renamed" if name == "moved" else MODEL
        for record in make_pairs(tmp_path / name, n=40, turns=3, domain=name, model=model):
            path = tmp_path / name / f"{record['id']}.json"
            write_json(path, {**record, "identity": identity})
        ids[name] = read_answers(tmp_path / name, token_key=TOKEN)
    settings = Settings(methods=["gap"], turn_scorers=[])
    (book,) = score_methods(ids["one"], settings, targets=[ids["moved"]])
    book.save(tmp_path / "scores.pkl")
    assert load_score_book(tmp_path / "scores.pkl").identity == ours
    score_methods(ids["one"], settings, targets=[items])  # of before there were identities
    with pytest.raises(UserError, match='other" holds .* another model .*weights of'):
        score_methods(ids["one"], settings, targets=[ids["other"]])
    with pytest.raises(UserError, match="weights of"):
        read_answers(tmp_path, token_key=TOKEN)


def test_the_script_refuses_unlabelled_pairs_and_a_folder_as_its_file(folder, tmp_path):
    make_pairs(tmp_path / "raw", n=2)
    for path in (tmp_path / "raw").glob("*.json"):
        write_json(path, {**read_json(path), "nil_label": None})
    for arguments, message in (
        (("--data_dir", tmp_path / "raw", "--save_path", tmp_path / "s.pkl"), "2 unlabelled"),
        (("--data_dir", folder, "--save_path", tmp_path), "is a folder"),
        (
            ("--data_dir", folder, "--save_path", tmp_path / "s.pkl", "--score_dirs", "x/y,z/y"),
            "one name",
        ),
        (
            ("--data_dir", folder, "--save_path", tmp_path / "s.pkl", "--methods", "perplexty"),
            'did you mean "perplexity"',
        ),
    ):
        # where the script was before, the older command line goes on working
        done = run_script("score_methods.py", *arguments)
        assert done.returncode == 2 and message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "s.pkl").exists()
