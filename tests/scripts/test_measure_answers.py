"""measure_answers.py from end to end: what a file holds, going on after a kill, refusals."""

from __future__ import annotations

import importlib
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from scripts import measure_answers
from spikescore.data.question import Question
from spikescore.dialogues.config import Config
from spikescore.dialogues.dialogue import Dialogue, dialogue_record
from spikescore.errors import UserError
from spikescore.files import locked, write_json
from spikescore.labels.entailment import make_entailment
from spikescore.measures.clustering import cluster_many
from spikescore.measures.file import USUAL, measures_path, not_computed, read_measures
from spikescore.measures.samples import fitting
from spikescore.model.chat import ChatFormat
from spikescore.model.engine import Engine
from spikescore.model.loading import model_identity
from spikescore.model.sampling import Sampling
from spikescore.model.turns import Limits, token_sequences
from spikescore.pairs import file_id, read_record, write_pair
from spikescore.pickles import load_pickle
from tests.helpers.models import LABELS, save_bert
from tests.helpers.running import run_script

N_ITEMS, TURNS, N_LAYERS, HIDDEN = 4, 4, 3, 64


@pytest.fixture(scope="module")
def made_pairs(tiny_model, tmp_path_factory) -> Path:
    """Four finished pairs of four turns in two folders, and one unfinished dialogue."""
    folder = tmp_path_factory.mktemp("pairs")
    chat = ChatFormat(AutoTokenizer.from_pretrained(tiny_model), enable_thinking=False)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = Config(model_path=str(tiny_model), max_steps=TURNS, max_new_tokens=6)
    engine = Engine(
        model, stop_ids=[2], sampling=Sampling(1.0, 1.0, 3), limits=Limits(6, 2000), batch_size=4
    )
    questions = [
        Question(id=f"q{n}", domain="d", question=f"Is it {n}?", gold_answers=("yes",))
        for n in range(N_ITEMS)
    ]
    for done in engine.run(Dialogue(question, config, chat) for question in questions):
        record = dialogue_record(done, done.conversation, config, chat)
        place = folder / ("one" if record["id"] < "q2" else "two")
        states = {turn.number: turn.states for turn in done.turns}
        write_pair(place, record, states, model=config.model_path)
    write_json(folder / "one" / "q9.json", {**record, "id": "q9", "complete": False})
    return folder


@pytest.fixture(scope="module")
def whole(made_pairs, tmp_path_factory) -> Path:
    """A copy of the pairs, measured without a stop."""
    folder = Path(shutil.copytree(made_pairs, tmp_path_factory.mktemp("whole") / "pairs"))
    done = run_script("scripts/measure_answers.py", "--data_dir", folder, "--n_samples", "3")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def pairs(made_pairs, tmp_path) -> Path:
    """A copy of the pairs, unmeasured."""
    return Path(shutil.copytree(made_pairs, tmp_path / "pairs"))


@pytest.fixture
def measure(monkeypatch, capsys):
    """Run the script's main in this process; return its status and what it printed."""

    def run(folder: Path, *flags: str) -> tuple[int, str]:
        arguments = [
            "scripts/measure_answers.py",
            "--data_dir",
            str(folder),
            "--n_samples",
            "3",
            *flags,
        ]
        monkeypatch.setattr(sys, "argv", arguments)
        # it would hide the log
        monkeypatch.setattr(measure_answers, "configure_logging", lambda: None)
        status = measure_answers.main()
        return status, capsys.readouterr().out

    return run


def put(section: str, name: str, value):
    """A change of one value of a file of measures."""

    def change(held: dict) -> dict:
        return {**held, section: {**held[section], name: value}}

    return change


def files(folder: Path) -> dict[str, dict]:
    return {path.name[:2]: load_pickle(path) for path in sorted(folder.rglob("*.measures.pkl"))}


def test_the_command_measures_every_finished_pair(pairs):
    done = run_script(
        "scripts/measure_answers.py", "--data_dir", pairs, "--n_samples", "3", "--batch_size", "5"
    )
    assert done.returncode == 0, done.stderr
    assert "4 items (lens, attention, samples, questions): 4 measured, 0 skipped" in done.stdout
    assert "1 unfinished" in done.stdout
    assert "selfcheck_nli in 4 of 4 items (needs an NLI model" in done.stdout
    held = files(pairs)
    assert list(held) == ["q0", "q1", "q2", "q3"]
    for path in pairs.rglob("q?.json"):
        if path.stem == "q9":
            continue
        record = read_record(path)
        found = read_measures(measures_path(path), record)
        assert found["format"] == 1 and found["model"] == record["model"]
        assert len(found["texts"]) == 12 and list(found["settings"]) == [
            "lens", "attention", "samples", "questions",
        ]  # fmt: skip
        assert set(found["turns"]) == {"reasoning_score", "sharpness", "sharpness_raw"}
        for values in found["turns"].values():
            assert values.dtype == np.float32 and values.shape == (TURNS,)
            empty = [not answer for _, answer in token_sequences(record)]
            assert np.isnan(values).tolist() == empty
        first, samples = found["first"], found["samples"]
        for name in ("icr", "icr_answer"):
            assert first[name].dtype == np.float32 and first[name].shape == (N_LAYERS,)
        assert first["mind"].shape == (2 * HIDDEN,)
        for name in ("truth_state", "truth_state_yes", "truth_state_no"):
            assert first[name].shape == (N_LAYERS + 1, HIDDEN)
            assert first[name].dtype == np.float16
        assert 0 < first["p_true"] < 1 and 0 < first["selfcheck_prompt"] < 1
        assert np.isnan(first["selfcheck_nli"]) and "selfcheck_nli" in not_computed(found)
        assert len(samples["texts"]) == len(samples["n_tokens"]) == len(samples["clusters"]) == 3
        assert samples["states"].shape == (3, HIDDEN) and samples["states"].dtype == np.float16
        assert samples["logliks"].dtype == np.float64 and (samples["logliks"] <= 0).all()
        assert samples["entailment"] == "exact"
        judged = cluster_many([(None, samples["texts"])], make_entailment("exact"), strict=True)
        assert samples["clusters"] == judged[0]


@pytest.mark.parametrize("stop_at", [1, 5, 9, 14, 18])
def test_a_killed_run_goes_on_where_it_stopped(whole, pairs, measure, monkeypatch, stop_at):
    """Each of the four items' files is written five times: after lens, attention, the drawing and
    the judging of its samples, and the questions. What was written is not measured again.
    """
    from spikescore.measures import groups

    true_write, written = groups.write_measures, []

    def write(path, content):
        if len(written) == stop_at:
            raise KeyboardInterrupt
        written.append(path)
        true_write(path, content)

    monkeypatch.setattr(groups, "write_measures", write)
    with pytest.raises(KeyboardInterrupt, match="items are measured whole.*run the same command"):
        measure(pairs)
    before = files(pairs)
    assert len(before) == min(stop_at, N_ITEMS)
    groups_left = [set(USUAL) - set(held["settings"]) for held in before.values()]
    monkeypatch.setattr(groups, "write_measures", true_write)
    for kind in ("lens.LensReader", "icr.IcrReader"):
        module, name = kind.split(".")
        made = getattr(importlib.import_module(f"spikescore.measures.{module}"), name)
        group = {"lens": "lens", "icr": "attention"}[module]
        n_left = sum(group in left for left in groups_left) + N_ITEMS - len(before)
        monkeypatch.setattr(made, "read", counted(made.read, limit=n_left))
    status, out = measure(pairs)
    n_done = sum(set(held["settings"]) == set(USUAL) for held in before.values())
    assert status == 0 and f"{N_ITEMS - n_done} measured, {n_done} skipped" in out
    same_measures(files(pairs), files(whole))
    for name, held in before.items():
        if "samples" in held:
            assert files(pairs)[name]["samples"]["texts"] == held["samples"]["texts"]
    assert "0 measured, 4 skipped" in measure(pairs)[1]


def counted(read, limit: int):
    """The function, which may be called so often and no more."""
    calls = []

    def reading(*arguments):
        calls.append(arguments)
        assert len(calls) <= limit
        return read(*arguments)

    return reading


def same_measures(found: dict[str, dict], expected: dict[str, dict]) -> None:
    assert found.keys() == expected.keys()
    for name, whole in expected.items():
        for key in ("texts", "clusters", "n_tokens"):
            assert found[name]["samples"][key] == whole["samples"][key]
        for section in ("turns", "first"):
            for key, value in whole[section].items():
                np.testing.assert_allclose(
                    found[name][section][key], value, rtol=4e-3, atol=4e-3, err_msg=key
                )


def test_groups_are_added_to_what_is_there(pairs, measure):
    with pytest.raises(UserError, match="has no samples, which the questions are about"):
        measure(pairs, "--groups", "questions")
    assert measure(pairs, "--groups", "lens")[0] == 0
    first = files(pairs)
    assert all(set(held["first"]) == {"mind"} and "samples" not in held for held in first.values())
    assert "4 measured" in measure(pairs, "--groups", "lens,samples")[1]
    held = files(pairs)
    for name, content in held.items():
        assert set(content["first"]) == {"mind", "selfcheck_nli"}
        np.testing.assert_array_equal(content["first"]["mind"], first[name]["first"]["mind"])
    with pytest.raises(UserError, match=r"samples were drawn under other settings \(seed: 42 -> 1"):
        measure(pairs, "--groups", "questions", "--seed", "1")
    measure(pairs, "--groups", "questions")
    after = files(pairs)
    for name, content in after.items():
        assert "p_true" in content["first"]
        assert content["samples"]["texts"] == held[name]["samples"]["texts"]


@pytest.fixture
def long_context(monkeypatch):
    """The tiny model of the tests knows 6 tokens an answer; the others may be as short."""
    from spikescore.measures import choices

    monkeypatch.setattr(choices, "GUESS_TOKENS", 6)


def test_the_groups_that_are_not_usual_are_measured_when_they_are_named(
    pairs, measure, long_context
):
    path = next(pairs.rglob("q1.json"))
    record = read_record(path)
    record["incorrect_answers"] = ["no"]
    write_json(path, record)
    with pytest.raises(UserError, match="has no samples, which the choices are about"):
        measure(pairs, "--groups", "choices")
    named = "capability,choices,rewordings,components,contrast,samples"
    status, out = measure(pairs, "--groups", named)
    assert status == 0
    order = "samples, contrast, components, rewordings, choices, capability"
    assert f"4 items ({order}): 4 measured" in out
    for path in sorted(pairs.rglob("q[0-3].json")):
        record = read_record(path)
        found = read_measures(measures_path(path), record)
        first, (_, answer) = found["first"], token_sequences(record)[0]
        for name in ("answer_logprobs", "prior_logprobs", "dola_divergence", "dola_contrast"):
            assert first[name].shape == (len(answer),)
        if answer:
            mean = record["cot_steps"][0]["mean_logprob"]
            assert first["answer_logprobs"].mean() == pytest.approx(mean, abs=1e-3)
            assert first["prior_logprobs"].tolist() != first["answer_logprobs"].tolist()
        known = [bool(first[name].size) for name in ("true_logprobs", "wrong_logprobs")]
        assert known == [record["id"] == "q1"] * 2
        assert first["heads"].shape == (N_LAYERS, 4, HIDDEN // 4)
        assert first["neurons"].shape[0] == N_LAYERS
        worded, kept = found["rewordings"], found["counterfactuals"]
        assert worded["questions"][0] == record["question"]
        assert worded["answers"][0] == kept["texts"][0] == record["cot_steps"][0]["response"]
        assert len(worded["clusters"]) == len(worded["answers"]) and worded["clusters"][0] == 0
        assert kept["n_tokens"][0] == len(answer)
        assert 0 < first["internal_confidence"] < 1
        assert np.isnan(first["p_true_choices"]) == (not record["cot_steps"][0]["response"])
    again = ("--groups", "samples,rewordings,choices", "--seed", "5", "--redo")
    before = files(pairs)
    assert measure(pairs, *again)[0] == 0
    for name, held in files(pairs).items():
        assert held["samples"]["texts"] != before[name]["samples"]["texts"]
        assert (
            held["settings"]["rewordings"]["seed"]
            == held["settings"]["choices"]["samples"]["seed"]
            == 5
        )


def tokens_given(monkeypatch) -> dict[str, int]:
    """Count from now on the tokens that any model is given while a group is at work."""
    from spikescore.measures.groups import Measurer

    given: dict[str, int] = {}
    true_run, true_forward = Measurer.run, torch.nn.Embedding.forward

    def run(self, work, told):
        def hears(group):
            given[group] = 0
            told(group)

        yield from true_run(self, work, hears)
        given["afterwards"] = 0

    def forward(self, ids):
        if given:
            given[list(given)[-1]] += ids.numel()
        return true_forward(self, ids)

    monkeypatch.setattr(Measurer, "run", run)
    monkeypatch.setattr(torch.nn.Embedding, "forward", forward)
    return given


def test_every_group_keeps_what_it_cost(pairs, measure, long_context, monkeypatch, tmp_path):
    """Of an item that is measured alone, with nothing drawn twice and nothing guessed, every token
    that the model is given is one that was encoded or generated. Beside others it costs the same.
    """
    from spikescore.measures import groups
    from spikescore.model import engine

    monkeypatch.setitem(engine.DRAFT_TOKENS, "cpu", 0)
    monkeypatch.setattr("spikescore.measures.lens.Lens._check", lambda self, model: None)
    for name in ("N_REWORDINGS", "N_COUNTERFACTUALS"):
        monkeypatch.setattr(groups, name, 1)
    every = ("--groups", ",".join(set(groups.GROUPS) - {"semantics"}), "--n_samples", "1")
    alone = Path(shutil.copytree(pairs / "one", tmp_path / "alone"))
    for path in alone.glob("q0*"):
        path.unlink()
    assert measure(pairs, *every)[0] == 0
    beside = files(pairs)["q1"]["costs"]
    given = tokens_given(monkeypatch)
    assert measure(alone, *every)[0] == 0
    found = files(alone)["q1"]
    assert found["costs"].keys() == beside.keys() == given.keys() - {"afterwards"}
    for group, cost in found["costs"].items():
        assert cost["encoded"] + cost["generated"] == given[group] > 0, group
        assert cost["seconds"] > 0 < beside[group]["seconds"]
        for tokens in ("encoded", "generated"):
            assert cost[tokens] == beside[group][tokens], (group, tokens)
    turns = token_sequences(read_record(next(alone.rglob("q1.json"))))
    prompt, answer = turns[0]
    exchange = len(prompt) + len(answer)
    assert answer and found["costs"]["attention"]["encoded"] == exchange
    assert found["costs"]["components"]["encoded"] == exchange
    assert found["costs"]["lens"]["encoded"] >= len(turns[-1][0]) + len(turns[-1][1])
    assert found["costs"]["samples"]["encoded"] == len(prompt)
    assert found["costs"]["samples"]["generated"] == sum(found["samples"]["n_tokens"])
    asking = {group for group, cost in found["costs"].items() if cost["generated"]}
    assert asking == {"samples", "questions", "rewordings", "choices"}


def test_costs_go_with_what_they_are_of(pairs, measure):
    measure(pairs, "--groups", "attention,samples,questions")
    path = next(pairs.rglob("q1.measures.pkl"))
    held = load_pickle(path)
    before = dict(held["costs"])
    assert list(before) == ["attention", "samples", "questions"]
    held["samples"]["clusters"] = None  # a judge failed: judging again draws nothing
    del held["costs"]["attention"]  # an older version measured it: it stays, its cost unknown
    path.write_bytes(pickle.dumps(held))
    assert "1 measured, 3 skipped" in measure(pairs, "--groups", "attention,samples,questions")[1]
    after = load_pickle(path)
    assert after["samples"]["clusters"] is not None
    assert after["costs"] == {group: before[group] for group in ("samples", "questions")}
    measure(pairs, "--groups", "attention,samples", "--redo")
    again = load_pickle(path)["costs"]
    assert again.keys() == {"attention", "samples"}  # what was asked about the samples is gone
    assert again["attention"]["encoded"] == before["attention"]["encoded"]


def test_semantics_need_an_encoder(pairs, measure, tmp_path):
    with pytest.raises(UserError, match='"semantics" needs a text encoder.*--encoder'):
        measure(pairs, "--groups", "semantics")
    with pytest.raises(UserError, match='no folder "here/not"'):
        measure(pairs, "--groups", "semantics", "--encoder", "here/not")
    one, other = (save_bert(tmp_path / name, LABELS) for name in ("one", "other"))
    assert measure(pairs, "--groups", "semantics", "--encoder", str(one))[0] == 0
    for held in files(pairs).values():
        assert held["first"]["answer_states"].shape == (N_LAYERS + 1, HIDDEN)
        assert held["first"]["answer_embedding"].shape == (32,)
    assert "0 measured" in measure(pairs, "--groups", "semantics", "--encoder", str(other))[1]
    weights = AutoModelForSequenceClassification.from_pretrained(other)
    with torch.no_grad():
        weights.classifier.weight.mul_(2)
    weights.save_pretrained(other)
    with pytest.raises(UserError, match="semantics was measured under other settings .encoder"):
        measure(pairs, "--groups", "semantics", "--encoder", str(other))


def test_other_settings_are_refused_unless_redone(pairs, measure):
    measure(pairs, "--groups", "samples,questions")
    before = files(pairs)
    with pytest.raises(UserError, match=r"temperature: 1.0 -> 0.5.*--redo"):
        measure(pairs, "--groups", "samples", "--temperature", "0.5")
    assert "4 measured" in measure(pairs, "--groups", "samples", "--seed", "7", "--redo")[1]
    for name, content in files(pairs).items():
        assert content["settings"]["samples"]["seed"] == 7
        assert content["samples"]["texts"] != before[name]["samples"]["texts"]
        # what was asked about the old samples is gone with them
        assert set(content["first"]) == {"selfcheck_nli"}
        assert list(content["settings"]) == ["samples"]


def test_another_dialogue_or_model_is_refused(pairs, measure, tiny_model):
    measure(pairs, "--groups", "attention")
    path = pairs / "one" / "q0.json"
    kept = path.read_bytes()
    record = read_record(path)
    record["cot_steps"][0]["response"] = "something else"
    write_json(path, record)
    with pytest.raises(UserError, match="q0.measures.pkl.*another dialogue.*--redo"):
        measure(pairs, "--groups", "attention")
    path.write_bytes(kept)
    with pytest.raises(UserError, match="another model .*tiny_model.*./models/tiny"):
        measure(pairs, "--groups", "attention", "--model_path", "./models/tiny")
    with pytest.raises(UserError, match="no finished pairs"):
        measure(tiny_model)
    record = read_record(path)
    write_json(path, {**record, "config": {**record["config"], "max_new_tokens": 9}})
    with pytest.raises(UserError, match="max_new_tokens 9"):
        measure(pairs, "--groups", "attention")


def test_an_item_that_fails_is_counted_and_the_others_are_measured(pairs, measure, caplog):
    path = pairs / "two" / "q3.json"
    record = read_record(path)
    record["cot_steps"][0]["response_ids"] = [10**6]
    write_json(path, record)
    other = pairs / "one" / "q1.json"
    record = read_record(other)
    del record["cot_steps"][1]["prompt_ids"]
    write_json(other, record)
    status, out = measure(pairs, "--groups", "lens,attention")
    assert status == 1 and "2 measured, 0 skipped" in out and "2 failed" in out
    assert list(files(pairs)) == ["q0", "q2"]
    assert "another model's" in caplog.text and "keeps no token ids" in caplog.text


def test_other_weights_under_the_same_name_are_refused(pairs, measure, tiny_model, tmp_path):
    copies = [Path(shutil.copytree(tiny_model, tmp_path / n / tiny_model.name)) for n in "ab"]
    for path in pairs.rglob("q?.json"):
        write_json(path, {**read_record(path), "identity": model_identity(str(copies[0]))})
    lens = ("--groups", "lens", "--model_path")
    other = AutoModelForCausalLM.from_pretrained(copies[1])
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    other.save_pretrained(copies[1])
    with pytest.raises(UserError, match="made with another model .weights of.*--model_path"):
        measure(pairs, *lens, str(copies[1]))
    assert not files(pairs)
    renamed = copies[0].rename(tmp_path / "of another name")
    assert measure(pairs, *lens, str(renamed))[0] == 0
    with pytest.raises(UserError, match="made with another model .weights of"):
        measure(pairs, *lens[:1], "attention", *lens[2:], str(copies[1]))


def test_another_run_on_the_folder_is_told(pairs, measure):
    with locked(pairs, ".measure.lock"), pytest.raises(UserError, match="is in use by process"):
        measure(pairs, "--groups", "attention")


def test_states_beyond_fp16_are_missing_and_counted():
    states = np.float16([[1, 2], [3, np.inf]])
    assert np.isnan(fitting(states)).all() and np.array_equal(fitting(states[:1]), states[:1])


def test_an_nli_model_clusters_and_finds_contradictions(pairs, measure, tmp_path):
    nli = save_bert(tmp_path / "nli", LABELS)
    status, _ = measure(pairs, "--groups", "samples", "--entailment", str(nli))
    assert status == 0
    judge = make_entailment(str(nli))
    for path in sorted(pairs.rglob("q[0-3].json")):
        found = load_pickle(measures_path(path))
        record, texts = read_record(path), found["samples"]["texts"]
        (expected,) = cluster_many([(record["question"], texts)], judge, strict=True)
        assert found["samples"]["clusters"] == expected
        assert 0 <= found["first"]["selfcheck_nli"] <= 1


@pytest.mark.parametrize(("group", "kept"), [("samples", "texts"), ("rewordings", "answers")])
def test_failed_judgements_are_made_again_on_the_same_samples(
    pairs, measure, monkeypatch, group, kept
):
    class Failing:
        name = "exact"

        def entail_many(self, pairs):
            return [None] * len(pairs)

    true_make = measure_answers.make_entailment
    monkeypatch.setattr(measure_answers, "make_entailment", lambda *_, **__: Failing())
    status, out = measure(pairs, "--groups", group)
    failed = files(pairs)
    assert status == 1 and "clusters in" in out
    assert any(held[group]["clusters"] is None for held in failed.values())
    monkeypatch.setattr(measure_answers, "make_entailment", true_make)
    assert measure(pairs, "--groups", group)[0] == 0
    for name, held in files(pairs).items():
        assert held[group]["clusters"] is not None
        assert held[group][kept] == failed[name][group][kept]


DAMAGES = {
    "another pickle": (lambda held: {"turns": {}}, "holds no measures"),
    "a later format": (lambda held: {**held, "format": 2}, "is of format 2"),
    "no settings": (lambda held: {**held, "settings": None}, "holds no measures"),
    "settings of a group": (lambda held: {**held, "settings": {"lens": 3}}, "no settings of lens"),
    "a group of no name": (lambda held: {**held, "settings": {"x": {}}}, "unknown group 'x'"),
    "a section": (lambda held: {**held, "first": None}, 'has no "first", where lens stands'),
    "a lost section": (lambda held: {**held, "samples": {}}, 'no "samples", where samples stands'),
    "turns": (put("turns", "sharpness", np.zeros(3, np.float32)), r"sharpness that is not.*\[K\]"),
    "a type": (put("turns", "reasoning_score", np.zeros(4)), r"not float32 \[K\]"),
    "a vector": (put("first", "icr", [0.5]), r"first.icr that is not float32 \[L\]"),
    "a state": (put("first", "truth_state", np.zeros(9, np.float16)), r"truth_state.*\[L\+1, H\]"),
    "a number": (put("first", "p_true", "0.5"), "first.p_true that is not float"),
    "texts": (put("samples", "texts", ["a", 1, "b"]), "samples.texts that is not N str"),
    "too few": (put("samples", "clusters", [0]), "samples.clusters that is not N int or None"),
    "a judge": (put("samples", "entailment", None), "samples.entailment that is not str"),
    "costs": (lambda held: {**held, "costs": [1]}, "costs that are none"),
    "a cost": (put("costs", "lens", {"generated": 0, "encoded": -1, "seconds": 0.0}), "are none"),
    "no end": (put("costs", "lens", {"generated": 0, "encoded": 1, "seconds": np.inf}), "are none"),
    "a part": (put("costs", "lens", {"generated": 0, "encoded": 1}), "costs that are none"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_what_is_wrong(whole, tmp_path, damage):
    change, words = DAMAGES[damage]
    target = next(whole.rglob("q0.measures.pkl"))
    held, record = load_pickle(target), read_record(target.with_name("q0.json"))
    assert read_measures(target, record)
    path = tmp_path / "q0.measures.pkl"
    path.write_bytes(pickle.dumps(change(held)))
    with pytest.raises(UserError, match=f"q0.measures.pkl.*{words}.*--redo"):
        read_measures(path, record)


def test_a_file_that_cannot_be_used_is_made_anew_by_redo(pairs, measure):
    one, two = (pairs / "one" / f"{name}.measures.pkl" for name in ("q0", "q1"))
    shutil.copy(pairs / "one" / "q0.pkl", one)
    two.write_bytes(b"")
    with pytest.raises(UserError, match="q0.measures.pkl.*holds no measures"):
        measure(pairs, "--groups", "attention")
    one.unlink()
    with pytest.raises(UserError, match="q1.measures.pkl.*--redo"):
        measure(pairs, "--groups", "attention")
    assert measure(pairs, "--groups", "attention", "--redo")[0] == 0


def test_a_file_of_an_earlier_version_gets_what_it_lacks(whole, tmp_path, measure):
    folder = Path(shutil.copytree(whole, tmp_path / "pairs"))
    path = next(folder.rglob("q2.measures.pkl"))
    held = load_pickle(path)
    expected = held["first"].pop("icr_answer")
    path.write_bytes(pickle.dumps(held))
    status, out = measure(folder)
    assert status == 0 and "1 measured, 3 skipped" in out
    np.testing.assert_allclose(load_pickle(path)["first"]["icr_answer"], expected, rtol=1e-3)


def test_no_pair_may_take_the_name_of_anothers_measures():
    assert measures_path(Path("out/q1.json")) == Path("out/q1.measures.pkl")
    assert file_id("q1.measures", "text") != "q1.measures" and file_id("q1", "text") == "q1"


@pytest.mark.parametrize(
    "flags",
    [["--groups", "lens,icr"], ["--groups", ""], ["--n_samples", "0"], ["--temperature", "-1"]],
)
def test_mistakes_in_the_command(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        measure_answers.parse_arguments(["--data_dir", "x", *flags])
    assert ended.value.code == 2 and flags[0] in capsys.readouterr().err
