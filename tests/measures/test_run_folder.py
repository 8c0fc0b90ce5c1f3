"""The run folder: what is written is read again, older files too, and damage is named."""

from __future__ import annotations

import argparse
import logging
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from spikescore.errors import UserError
from spikescore.measures.run_folder import (
    accuracy_of,
    is_run_folder,
    read_run,
    state_problem,
    write_details,
    write_generations,
    write_measures,
)
from tests.helpers.run_factory import MODEL, make_run

CONTENT, BEFORE = "last_token_embedding", "last_tok_bef_gen_embedding"


def released_run(folder: Path, *, details: object = None, layers: int = 3) -> dict:
    """Write a folder as the public scripts do: torch tensors [L+1, 1, H], no `positions` entry."""
    torch.manual_seed(0)
    entries = {
        f"q{item}": {
            "question": f"Question {item}?",
            "context": "",
            "reference": {"answers": {"text": ["x"], "answer_start": [0]}, "id": f"q{item}"},
            "most_likely_answer": {
                "response": "x",
                "token_log_likelihoods": [-0.25, -0.5],
                "embedding": torch.randn(1, 6),
                "accuracy": np.float64(item % 2),
                "emb_last_tok_before_gen": torch.randn(layers + 1, 1, 6, dtype=torch.bfloat16),
                "emb_tok_before_eos": torch.randn(layers + 1, 1, 6, dtype=torch.bfloat16),
            },
            "responses": [("x", [-0.5], torch.randn(1, 6), 1.0), ("y", [-1.5], None, 0.0)],
        }
        for item in range(4)
    }
    folder.mkdir()
    (folder / "validation_generations.pkl").write_bytes(pickle.dumps(entries))
    measures = {"cluster_assignment_entropy": [0.0, 0.1, 0.2, np.float64(0.3)]}
    content = {"uncertainty_measures": measures, "validation_is_false": [1.0, 0.0, 1.0, 0.0]}
    (folder / "uncertainty_measures.pkl").write_bytes(pickle.dumps(content))
    if details is not None:
        (folder / "experiment_details.pkl").write_bytes(pickle.dumps(details))
    return entries


def test_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="spikescore"):
        written = make_run(tmp_path, n=6, n_train=2)
        run = read_run(tmp_path)
    assert not caplog.text  # its own files say which tokens they hold
    assert list(run.validation) == list(written) and list(run.train) == ["nq-6", "nq-7"]
    assert (run.model, run.dataset, run.argument("nothing")) == (MODEL, "nq", None)
    for name, entry in written.items():
        answer = run.validation[name]["most_likely_answer"]
        for position, key in (("emb_tok_before_eos", CONTENT), ("emb_last_tok_before_gen", BEFORE)):
            np.testing.assert_array_equal(
                answer[position], entry["most_likely_answer"][position], strict=True
            )
            np.testing.assert_array_equal(
                run.state("validation", name, key), answer[position][:, 0], strict=True
            )
        assert run.validation[name]["responses"] == entry["responses"]
    entropies = run.measure("cluster_assignment_entropy")
    assert len(entropies) == 8 and ("train", "nq-7") in entropies
    for (split, name), value in entropies.items():
        answers = [r[0] for r in getattr(run, split)[name]["responses"]]
        shares = [answers.count(text) / 10 for text in set(answers)]
        assert value == pytest.approx(-sum(p * math.log(p) for p in shares))


@pytest.mark.parametrize("swapped", [False, True])
def test_released_files_are_converted_and_their_positions_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, swapped: bool
) -> None:
    entries = released_run(tmp_path / "r")
    with caplog.at_level(logging.WARNING, logger="spikescore"):
        run = read_run(tmp_path / "r", swapped_positions=swapped)
    read_as_content = "emb_last_tok_before_gen" if swapped else "emb_tok_before_eos"
    assert f"{read_as_content} as the last content token" in caplog.text
    assert "--swapped_positions" in caplog.text
    for name, entry in entries.items():
        expected = entry["most_likely_answer"][read_as_content].float().numpy()[:, 0]
        state = run.state("validation", name, CONTENT)
        assert state.dtype == np.float16
        np.testing.assert_array_equal(state, expected.astype(np.float16))
        assert accuracy_of(run.validation[name]) == float(name[1:] in "13")
    assert run.measure("cluster_assignment_entropy")[("validation", "q3")] == 0.3
    assert run.validation["q0"]["responses"][1][2] is None
    assert run.validation["q0"]["responses"][0][2].dtype == np.float16
    assert run.train == {} and run.dataset == "r" and run.model is None


def test_the_switch_does_not_touch_a_folder_that_names_its_positions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path, n=3)
    plain = read_run(tmp_path).state("validation", "nq-0", CONTENT)
    with caplog.at_level(logging.WARNING, logger="spikescore"):
        asked = read_run(tmp_path, swapped_positions=True).state("validation", "nq-0", CONTENT)
    np.testing.assert_array_equal(asked, plain)
    assert "names its positions" in caplog.text


def test_details_with_a_parsers_namespace_do_not_stop_the_reading(tmp_path: Path) -> None:
    arguments = argparse.Namespace(model_name="Llama-2-7b", dataset="squad")
    released_run(tmp_path / "r", details={"args": arguments, "prompt": "p"})
    assert len(read_run(tmp_path / "r").validation) == 4
    released_run(tmp_path / "d", details={"args": vars(arguments)})
    run = read_run(tmp_path / "d")
    assert (run.model, run.dataset) == ("Llama-2-7b", "squad")


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"train_generations\.pkl.*validation_generations\.pkl"):
        read_run(tmp_path)
    assert not is_run_folder(tmp_path)
    (tmp_path / "validation_generations.pkl").write_bytes(pickle.dumps([1]))
    assert is_run_folder(tmp_path)
    with pytest.raises(UserError, match="holds list"):
        read_run(tmp_path)
    (tmp_path / "validation_generations.pkl").write_bytes(pickle.dumps({"q": {"question": "?"}}))
    with pytest.raises(UserError, match='"q" has no most_likely_answer'):
        read_run(tmp_path)
    (tmp_path / "validation_generations.pkl").write_bytes(pickle.dumps({})[:-1])
    with pytest.raises(UserError, match="cut short"):
        read_run(tmp_path)


def answer_with(**changes: object):
    return lambda entry: entry["most_likely_answer"].update(changes)


def response_with(*values: object):
    return lambda entry: entry["responses"].__setitem__(1, values)


DAMAGES = [
    (lambda entry: entry.pop("question"), "has no question"),
    (lambda entry: entry.update(question=["?"]), "has no question"),
    (lambda entry: entry.update(most_likely_answer=None), "has no most_likely_answer"),
    (lambda entry: entry.update(responses="ab"), "responses that are no list"),
    (response_with("x", [-0.5]), r"damaged responses \(number 1\)"),
    (response_with(3, [-0.5], None, None), r"damaged text .*number 1"),
    (response_with("x", None and [], None, None), r"damaged text .*number 1"),
    (response_with("x", ["a"], None, None), r"damaged text .*number 1"),
    (response_with("x", [-0.5], "state", None), r"damaged state \(responses, number 1\)"),
    (response_with("x", [-0.5], None, "right"), r"damaged accuracy \(responses, number 1\)"),
    (answer_with(response=None), r"damaged text .*most_likely_answer"),
    (answer_with(token_log_likelihoods={"a": 1}), r"damaged text .*most_likely_answer"),
    (answer_with(accuracy=[1.0]), r"damaged accuracy \(most_likely_answer\)"),
    (answer_with(emb_tok_before_eos=[1, 2]), "damaged emb_tok_before_eos"),
    (answer_with(emb_tok_before_eos=np.zeros((0, 1, 8), np.float16)), "damaged emb_tok"),
    (answer_with(emb_last_tok_before_gen=np.arange(8)), "damaged emb_last_tok_before_gen"),
    (answer_with(embedding=np.float16(1)), "damaged embedding"),
    (lambda entry: entry.update(reference={"answers": ["x"]}), r"damaged reference \(answers\)"),
    (lambda entry: entry.update(reference=None), r"damaged reference \(answers\)"),
    (lambda entry: entry["reference"]["answers"].update(text="x"), r"damaged reference \(text\)"),
    (lambda entry: entry.update(group=["a"]), "damaged group"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_question_is_named_with_its_field(tmp_path: Path, damage, words: str) -> None:
    entries = make_run(tmp_path, n=3)
    damage(entries["nq-1"])
    (tmp_path / "validation_generations.pkl").write_bytes(pickle.dumps(entries))
    with pytest.raises(UserError, match=f'validation_generations.pkl": question "nq-1" .*{words}'):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("measures", "words"),
    [
        ([1], "not a file of uncertainty measures"),
        ({"uncertainty_measures": [1]}, "not a file of uncertainty measures"),
        ({"uncertainty_measures": {"p_true": 3}}, "uncertainty_measures, p_true is not a list"),
        ({"uncertainty_measures": {"p_true": [0.5, "x", 1]}}, "p_true is not a list of numbers"),
        ({"uncertainty_measures": {}, "ids": 3}, "uncertainty_measures or ids is damaged"),
        (
            {"uncertainty_measures": {}, "train_uncertainty_measures": [3]},
            "train_uncertainty_measures or train_ids is damaged",
        ),
    ],
)
def test_damaged_measures_are_named(tmp_path: Path, measures: object, words: str) -> None:
    make_run(tmp_path, n=3)
    (tmp_path / "uncertainty_measures.pkl").write_bytes(pickle.dumps(measures))
    with pytest.raises(UserError, match=f'uncertainty_measures.pkl".*{words}.*run compute'):
        read_run(tmp_path)


@pytest.mark.parametrize("key", ["args", "model", "n_layers", "hidden_size", "positions"])
def test_damaged_details_lose_no_question(tmp_path: Path, key: str) -> None:
    make_run(tmp_path, n=3)
    write_details(tmp_path, {"model": "m", "args": {"dataset": "nq"}, key: ["?"]})
    run = read_run(tmp_path)
    assert len(run.validation) == 3 and run.model in ("m", None)
    assert run.dataset == ("nq" if key != "args" else tmp_path.name)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "layer 2 is not a number; try another --dtype"), (np.inf, "use another model")],
)
def test_why_a_state_cannot_be_kept(tmp_path: Path, value: float, words: str) -> None:
    entry = make_run(tmp_path, n=1)["nq-0"]
    assert state_problem(entry) == ""
    entry["most_likely_answer"]["emb_tok_before_eos"][2, 0, 5] = value
    problem = state_problem(entry)
    assert problem.startswith("emb_tok_before_eos: the state of layer 2") and words in problem
    assert "float32" not in problem  # it may be what was run


def test_a_state_that_is_not_finite_is_named(tmp_path: Path) -> None:
    entries = make_run(tmp_path, n=3)
    entries["nq-1"]["most_likely_answer"]["emb_tok_before_eos"][2, 0, 5] = np.nan
    with pytest.raises(UserError, match='"nq-1", emb_tok_before_eos'):
        write_generations(tmp_path, "validation", entries)
    (tmp_path / "validation_generations.pkl").write_bytes(pickle.dumps(entries))
    run = read_run(tmp_path)
    with pytest.raises(UserError, match='"nq-1".*emb_tok_before_eos.*layer 2'):
        run.state("validation", "nq-1", CONTENT)
    assert run.state("validation", "nq-1", BEFORE) is not None
    entries["nq-1"]["most_likely_answer"]["emb_tok_before_eos"] = torch.full((5, 1, 8), 1e5)
    (tmp_path / "validation_generations.pkl").write_bytes(pickle.dumps(entries))
    with pytest.raises(UserError, match='"nq-1", emb_tok_before_eos.*FP16'):
        read_run(tmp_path)


def test_mismatched_layers_are_named(tmp_path: Path) -> None:
    entries = make_run(tmp_path, n=3)
    write_details(tmp_path, {"n_layers": 6, "hidden_size": 8})
    with pytest.raises(UserError, match='"nq-0".*5 states.*details.*7 of width 8'):
        read_run(tmp_path)
    write_details(tmp_path, {})
    entries["nq-2"]["most_likely_answer"]["emb_tok_before_eos"] = np.zeros((4, 1, 8), np.float16)
    write_generations(tmp_path, "validation", entries)
    with pytest.raises(UserError, match='"nq-2".*4 states of width 8.*"nq-0" has 5'):
        read_run(tmp_path)


def test_measures_that_do_not_fit_the_questions(tmp_path: Path) -> None:
    make_run(tmp_path, n=3)
    write_measures(tmp_path, {"uncertainty_measures": {"p_true": [0.5, 0.25]}})
    run = read_run(tmp_path)
    with pytest.raises(UserError, match="2 values of p_true for 3 validation"):
        run.measure("p_true")
    assert run.measure("semantic_entropy") == {}
    # ids say which questions the values belong to
    ids = {"uncertainty_measures": {"p_true": [0.5, 0.25]}, "ids": ["nq-2", "nq-0"]}
    write_measures(tmp_path, ids)
    found = read_run(tmp_path).measure("p_true")
    assert found == {("validation", "nq-2"): 0.5, ("validation", "nq-0"): 0.25}
    write_measures(tmp_path, {"something": 1})
    with pytest.raises(UserError, match="uncertainty measures"):
        read_run(tmp_path)


def test_an_unjudged_answer_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    entry = make_run(tmp_path, n=1)["nq-0"]
    for value in (None, math.nan):
        entry["most_likely_answer"]["accuracy"] = value
        assert accuracy_of(entry) is None


def test_a_position_that_runs_never_hold(tmp_path: Path) -> None:
    make_run(tmp_path, n=1)
    with pytest.raises(UserError, match="sec_last_token_embedding.*--token_key"):
        read_run(tmp_path).state("validation", "nq-0", "sec_last_token_embedding")
