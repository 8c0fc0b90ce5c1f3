"""What an experiment takes, against counts made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spikescore.dialogues.prompts import FAMILIES
from spikescore.errors import UserError
from spikescore.measures.choices import GUESS_TOKENS
from spikescore.measures.file import GROUPS, USUAL
from spikescore.measures.groups import N_COUNTERFACTUALS, N_REWORDINGS
from spikescore.model.architecture import pair_bytes
from spikescore.model.loading import load_architecture
from spikescore.model.placement import Placement
from spikescore.report.cost import Cost
from spikescore.report.experiment import load_experiment
from tests.helpers.running import ROOT

TINY = str(ROOT / "models" / "tiny")
TEXTS = [prompt.text for family in FAMILIES.values() for prompt in family]
FOLLOW_UP = sum(map(len, TEXTS)) / len(TEXTS) / 4


@pytest.fixture
def cost(tmp_path, questions_file):
    """What the steps of an experiment of twelve questions, three turns each, take."""

    def make(*chosen, **change):
        settings = {
            "models": [{"name": "m", "model_path": TINY}],
            "dialogues": {
                "dataset_path": [str(questions_file)], "max_steps": 3, "max_new_tokens": 10,
                "judge": "openai", "system_prompt": None,
            },
            "measures": {"n_samples": 4, "entailment": "llm_judge"},
            "ablations": {"n": 5, "temperatures": [0, 1], "judges": ["auto", "openai"]},
            **change,
        }  # fmt: skip
        path = tmp_path / "x.json"
        path.write_text(json.dumps(settings))
        return Cost(load_experiment(path), chosen)

    return make


def test_dialogues_are_counted_with_all_that_they_may_take(cost, questions_file):
    need = cost("m.main").rows["main run"]
    assert (need.dialogues, need.turns, need.judge_calls) == (12, 36, 12)
    assert need.generated == (360, 360)  # an answer has ten tokens at most, and so typically
    asked = [row["question"] for row in json.loads(questions_file.read_text())]
    encoded = sum(map(len, asked)) / 4 + 24 * FOLLOW_UP
    assert need.encoded == pytest.approx((encoded, encoded))
    shape = load_architecture(Placement(TINY))
    assert need.states == 12 * pair_bytes(shape, 3)
    assert need.records == pytest.approx([24 * (encoded + 360)] * 2)


def test_variants_and_new_labels_are_counted_apart(cost):
    found = cost("m.temperature_0", "m.temperature_1", "m.judge_auto", "m.judge_openai").rows
    assert list(found) == ["variants", "labels again"]
    assert (found["variants"].dialogues, found["variants"].turns) == (10, 30)
    assert found["labels again"].judge_calls == 12  # of one of the two: rules ask no server


def test_measures_are_counted_by_what_their_groups_ask_and_keep(cost):
    found = cost("m.measures").rows["measures"]
    assert found.generated[0] == 12 * 4 * 10 + 12 * 32
    assert found.judge_calls == 12 * 4 * 3
    shape = load_architecture(Placement(TINY))
    states, width = shape.num_hidden_layers + 1, shape.hidden_size
    kept = 2 * width * 4 + 2 * states * 4 + 4 * width * 2 + 3 * states * width * 2
    assert found.states == 12 * kept and found.dialogues == 0
    only = cost("m.measures", measures={"groups": "attention"}).rows["measures"]
    assert only.generated[0] == only.judge_calls == 0 and only.states == 12 * 2 * states * 4


def test_every_group_of_measures_is_counted_and_no_other(cost):
    usual = cost("m.measures", measures={"groups": "samples"}).rows["measures"]
    for group in set(GROUPS) - set(USUAL):
        both = cost("m.measures", measures={"groups": f"samples,{group}"}).rows["measures"]
        assert both.encoded[0] > usual.encoded[0]
    worded = cost("m.measures", measures={"groups": "rewordings"}).rows["measures"]
    assert worded.generated[0] == 12 * 10 * (2 * N_REWORDINGS + N_COUNTERFACTUALS)
    guessed = cost("m.measures", measures={"groups": "choices"}).rows["measures"]
    assert guessed.generated[0] == 12 * 3 * GUESS_TOKENS
    spaced = cost("m.measures", measures={"groups": " samples , choices,"}).rows["measures"]
    assert spaced == cost("m.measures", measures={"groups": "samples,choices"}).rows["measures"]
    with pytest.raises(UserError, match='no group "lense"'):
        cost("m.measures", measures={"groups": "lense"})


def test_what_is_not_known_is_said(cost, tmp_path):
    absent = {"dataset_path": [str(tmp_path / "none.json")], "sampling": {"n": 7}}
    model = {"name": "m", "model_path": "owner/name"}
    found = cost("m.main", dialogues=absent, models=[model])
    lines = list(found.lines())
    assert found.rows["main run"].dialogues == 7 and found.rows["main run"].states == 0
    assert any("hours: not measured" in line for line in lines)
    assert any("not here" in line and "none.json" in line for line in lines)
    assert any("no shape is known" in line and line.endswith(" m") for line in lines)


def test_hours_follow_from_the_speed(cost):
    (line,) = [one for one in cost("m.main").lines(tokens_per_second=0.01) if "hours" in one]
    assert "10.0 at most" in line  # 360 tokens at a hundred seconds each
    assert all(one.startswith("#") for one in cost("m.main").lines())


def papers_experiment():
    """As on a machine that has none of its data sets, whatever was fetched here."""
    found = load_experiment(ROOT / "configs" / "paper.json")
    paths = [f"absent/{Path(path).name}" for path in found.dialogues["dataset_path"]]
    return replace(found, dialogues={**found.dialogues, "dataset_path": paths})


def test_the_papers_experiment_takes_what_its_numbers_say():
    experiment = papers_experiment()
    steps = list(experiment.steps("x"))
    main = Cost(experiment, [step.name for step in steps]).rows["main run"]
    assert (main.dialogues, main.turns, main.judge_calls) == (24_000, 480_000, 24_000)
    assert main.generated == (480_000 * 1024, 480_000 * 256)
    per_token = 29 * 3072 + 33 * 4096 + 37 * 4096 + 41 * 5120
    assert main.states == 6_000 * 20 * 3 * 2 * per_token


def test_the_page_on_cost_prints_what_is_computed():
    experiment = papers_experiment()
    chosen = [s.name for s in experiment.steps("x") if "Llama-3.1-8B" in s.name]
    page = (ROOT / "docs" / "cost.md").read_text("utf-8")
    names = ("dialogues  ", "turns", "tokens generated", "judge calls", "hidden states")
    lines = [line for line in Cost(experiment, chosen).lines() if line[2:].startswith(names)]
    assert len(lines) == 5 and all(line in page for line in lines)
