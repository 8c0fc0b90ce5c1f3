"""Detectors and judges in a file of one's own, and how their faults are told."""

import json

import pytest

from spikescore.data.question import Question
from spikescore.detectors.answers import read_answers
from spikescore.detectors.scoring import Settings, score_methods
from spikescore.errors import UserError
from spikescore.labels.checking import check_rules
from spikescore.labels.judges import judge_many, judge_names, make_judge
from spikescore.plugins import load_plugin, plugin_digest
from spikescore.report.comparison import static_entries, trajectory_entry
from spikescore.report.experiment import load_experiment
from spikescore.report.steps import source_digest
from tests.helpers.factories import make_pairs

TOKEN = "last_token_embedding"
DETECTOR = """\
import numpy as np
from beside import LAYER
from spikescore.detectors.base import StateDetector

class Along(StateDetector):
    name, title, family = "along", "Along the means", "trained"

    def fit(self, train, val, *, seed):
        states = train.first_states[:, LAYER].astype(float)
        self.direction = states[train.y == 1].mean(0) - states[train.y == 0].mean(0)

    def score_states(self, states):
        return states[:, LAYER].astype(float) @ self.direction
"""


@pytest.fixture
def write(tmp_path):
    """Write a plug-in's file and return the name of what is in it."""
    (tmp_path / "beside.py").write_text("LAYER = 2\n")

    def write(text, inner="Along", file="mine.py"):
        (tmp_path / file).write_text(text)
        return f"{tmp_path / file}:{inner}"

    return write


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs")
    for name in ("alpha", "beta"):
        make_pairs(path / name, domain=name, n=40, turns=4, signal=8)
    return read_answers(path, token_key=TOKEN)


def test_a_detector_of_ones_own_is_in_the_book_as_any_other(write, items):
    spec = write(DETECTOR)
    settings = Settings(methods=["perplexity"], turn_scorers=[], detectors=[spec])
    (book,) = score_methods(items, settings)
    assert list(book.methods) == ["perplexity", "along"]
    assert static_entries(book)["along"].title == "Along the means"
    assert set(book.turns) == {("along", "alpha", 0), ("along", "beta", 0)}
    assert trajectory_entry(book, "max_abs_d2", "along").scores.keys() == {"alpha", "beta"}
    away = book.domains == "beta"
    scores = book.scores["along", "alpha", 0][away]
    assert scores[book.y[away] == 1].min() > scores[book.y[away] == 0].max()
    assert book.about["own_detectors"] == {spec: plugin_digest(spec)}


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("import numpy as np", "import nothing_such", r'mine.py", line 1: ModuleNotFoundError'),
        ("    name, title", "    name; title(", r'mine.py", line 6: SyntaxError'),
        ('"along"', "oops", r'mine.py", line 6: NameError: .*oops'),
        ("class Along(", "class Other(", r'mine.py" has no "Along"; it defines Other'),
        ("(StateDetector)", "", r"mine.py\", line 5: Along must be a class derived from"),
        ("def score_states", "def scores", r"line 5: Along lacks the method score_states"),
        ('"trained"', '"learned"', r"line 5: Along has the family 'learned'; use one of"),
        ("name, title, family =", "name, _, family =", r"line 5: Along lacks title"),
        ('"along"', '"saplma"', r'has the name "saplma" of another one'),
    ],
)
def test_what_is_no_detector_is_told_in_one_line_before_anything_is_read(write, old, new, told):
    with pytest.raises(UserError, match=told) as error:
        Settings(detectors=[write(DETECTOR.replace(old, new), file="mine.py")])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("train.y == 0", "train.why == 0", r'mine.py", line 10: AttributeError: .*why'),
        ("@ self.direction", "@ self.nothing", r'mine.py", line 13: AttributeError'),
        ("return states", "return 1 or states", r"score returned int64 \[\] for 80 items"),
    ],
)
def test_a_fault_of_it_shows_before_the_fits_of_the_others(write, items, old, new, told):
    settings = Settings(detectors=[write(DETECTOR.replace(old, new))])
    with pytest.raises(UserError, match=told) as error:
        score_methods(items, settings)
    assert "\n" not in str(error.value)


def test_a_step_knows_the_content_of_what_it_runs(write, tmp_path):
    detector = write(DETECTOR)
    judge = write("def same(question, answer):\n    return True\n", "same", "judge.py")
    path = tmp_path / "own.json"
    told = {
        "models": [{"name": "m", "model_path": "x"}],
        "dialogues": {"dataset_path": ["a.json", "b.json"], "judge": ["auto", judge]},
        "detectors": [detector],
        "ablations": {"judges": [judge]},
    }
    path.write_text(json.dumps(told))
    experiment = load_experiment(path)
    experiment.check_names()
    steps = {step.name.partition(".")[2]: step for step in experiment.steps(path)}
    scores = steps["scores"]
    assert scores.command[scores.command.index("--detector") + 1] == detector
    assert scores.reads == (str(tmp_path / "mine.py"),)
    relabelled = next(step for name, step in steps.items() if name.startswith("judge_"))
    assert relabelled.reads == (str(tmp_path / "judge.py"),)
    assert "/" not in relabelled.name and str(tmp_path / "judge.py") in steps["main"].reads
    before = {name: step.key() for name, step in steps.items()}
    source_digest.__globals__["_tree"].cache_clear()
    source_digest.__globals__["_code"].cache_clear()
    (tmp_path / "beside.py").write_text("LAYER = 1\n")
    changed = {name for name, step in steps.items() if step.key() != before[name]}
    assert changed == {"scores"}
    told["detectors"] = [write("1 / 0", "Along", "broken.py")]
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match='broken.py", line 1: ZeroDivisionError'):
        load_experiment(path).check_names()


JUDGE = """\
def same(question, answer):
    if answer == "hm":
        return None
    return answer.upper() in [gold.upper() for gold in question.gold_answers]

async def later(question, answer):
    return same(question, answer)

def broken(question, answer):
    return same(question, answer) or question.nothing

def odd(question, answer):
    return "yes"

def one(answer):
    return True
"""
QUESTION = Question("q", "d", "Where?", gold_answers=("Paris",))


@pytest.mark.parametrize("inner", ["same", "later"])
def test_a_judge_of_ones_own_labels(write, inner):
    spec = write(JUDGE, inner, "judge.py")
    assert judge_names(["auto", spec]) == ("auto", spec)
    judge = make_judge(spec, questions=[QUESTION])
    answers = ("paris", "Lyon", "hm")
    found = judge_many(judge, [(QUESTION, answer) for answer in answers])
    assert [one.label for one in found] == [1, 0, None] and found[2].unread
    assert found[0].judge == f"judge.py:{inner}@{plugin_digest(spec)}"
    bare = judge_many(judge, [(Question("q", "d", "?"), "x")])[0]
    assert bare.label is None and "no gold answer" in bare.error


def test_a_judges_fault_is_told_at_the_start_and_later_fails_one_answer(write):
    for inner, told in (("odd", "returned 'yes'"), ("one", "takes 1 positional argument")):
        with pytest.raises(UserError, match=told):
            make_judge(write(JUDGE, inner, "judge.py"), questions=[QUESTION])
    judge = make_judge(write(JUDGE, "broken", "judge.py"), questions=[QUESTION])
    right, wrong = judge_many(judge, [(QUESTION, "Paris"), (QUESTION, "Rome")])
    assert right.label == 1 and wrong.label is None
    assert 'judge.py", line 10: AttributeError' in wrong.error and not wrong.unread
    with pytest.raises(UserError, match=r'there is no file .*none\.py"'):
        load_plugin("none.py:same")
    with pytest.raises(UserError, match=r"path/to/file\.py:function"):
        judge_names("judge.py")


def test_a_judge_is_held_against_labels_by_hand(write, tmp_path):
    row = {"rule": "exact", "gold": ["Paris"], "right": ["PARIS"], "wrong": ["Not Paris", "Paris"]}
    (tmp_path / "hand.jsonl").write_text(json.dumps(row))
    check = check_rules(tmp_path / "hand.jsonl", make_judge(write(JUDGE, "same", "judge.py")))
    assert check.n_wrong == 1 and "'Paris'" in check.faults[0] and "same@" in check.faults[0]
