"""SpikeDetector against the three stages on the same questions, and what it does with bad input."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import metrics_probe
import reasoning_lite
from spikescore.detectors.spike import Detection, SpikeDetector, as_question, read_questions
from spikescore.dialogues.config import dialogue_keys, parse_config
from spikescore.errors import UserError
from spikescore.files import read_json, write_json
from spikescore.pairs import DEFAULT_TOKEN_KEY
from spikescore.probes.probe import Probe, load_probe
from spikescore.probes.training import Settings, train_probe
from tests.helpers.factories import make_pairs
from tests.helpers.running import make_tokenizer

HIDDEN, LAYER = 64, 2
TURNS = 6


def random_probe(**changes) -> Probe:
    """A probe of the tiny model's layer 2 with random weights, whose scores differ by turn."""
    rng = np.random.default_rng(5)
    weights = [
        ("linear", *(rng.normal(size=size).astype(np.float32) for size in ((16, HIDDEN), (16,)))),
        ("relu",),
        ("linear", *(rng.normal(size=size).astype(np.float32) for size in ((1, 16), (1,)))),
        ("sigmoid",),
    ]
    own = {"hidden_size": HIDDEN, "n_layers": 3, "token_key": DEFAULT_TOKEN_KEY}
    own |= {"layer_range": (LAYER, LAYER), "scale": np.full(HIDDEN, 4.0, np.float32)}
    own |= {"mean": np.zeros(HIDDEN, np.float32), **changes}
    return Probe("saplma", weights, **own)


@pytest.fixture(scope="module")
def stages(tmp_path_factory, tiny_model) -> tuple[Path, dict[str, dict]]:
    """A folder with probe.pkl and questions.json, and the records of stages 1 and 2 by id.

    The probe's threshold parts the records, and its file says how their dialogues were held.
    """
    folder = tmp_path_factory.mktemp("spike")
    rows = [{"question": f"What is {n} plus {n + 1}?", "gold_answers": ["1"]} for n in range(8)]
    write_json(folder / "questions.json", rows)
    settings = {
        "model_path": str(tiny_model), "dataset_path": str(folder / "questions.json"),
        "output_dir": str(folder / "pairs"), "sampling": {"n": None, "seed": 7},
        "max_steps": TURNS, "max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9,
        "strategy": "mixed", "system_prompt": "Be brief.", "judge": "none",
    }  # fmt: skip
    write_json(folder / "config.json", settings)
    random_probe(model=str(tiny_model)).save(folder / "probe.pkl")
    run_main_of(reasoning_lite, "--config", folder / "config.json")
    pairs = folder / "pairs"
    run_main_of(
        metrics_probe, "--json_dir", pairs, "--pkl_dir", pairs, "--probe_path", folder / "probe.pkl"
    )
    found = [read_json(path) for path in sorted(pairs.glob("*.json")) if path.stem != "run"]
    records = {record["id"]: record for record in found if "cot_steps" in record}
    assert len(records) == 8
    spikes = sorted(spike_of(record["metrics"]["probe_pred"]) for record in records.values())
    first = found[0]
    random_probe(
        model=str(tiny_model),
        spike_threshold=float(np.mean(spikes[3:5])),
        identity={key: value for key, value in first["identity"].items() if key != "prompts"},
        dialogues={
            "config": {key: first["config"][key] for key in dialogue_keys()},
            "several": [],
            "prompts": first["identity"]["prompts"],
        },
    ).save(folder / "probe.pkl")
    return folder, records


def run_main_of(script, *arguments) -> None:
    """Run a script's main in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        assert script.main() == 0


def spike_of(scores) -> float:
    """SpikeScore, written out."""
    return max(abs(c - 2 * b + a) for a, b, c in zip(scores, scores[1:], scores[2:], strict=False))


def detector_of(folder: Path, model: Path, **options) -> SpikeDetector:
    return SpikeDetector(model, folder / "probe.pkl", settings={"sampling": {"seed": 7}}, **options)


@pytest.fixture(scope="module")
def whole(stages, tiny_model) -> list[Detection]:
    folder, _ = stages
    detector = detector_of(folder, tiny_model, whole=True)
    assert detector.notes() == []
    return detector.score(read_questions(folder / "questions.json", detector.config))


def test_dialogues_and_scores_are_those_of_the_three_stages(stages, whole):
    _, records = stages
    assert {found.id for found in whole} == set(records)
    for found in whole:
        record = records[found.id]
        for ours, theirs in zip(found.record["cot_steps"], record["cot_steps"], strict=True):
            same = "turn", "prompt_type", "prompt", "response", "response_ids", "prompt_ids"
            assert [ours[key] for key in same] == [theirs[key] for key in same]
        scores = record["metrics"]["probe_pred"]
        assert found.scores == pytest.approx(scores, abs=2e-3) and len(scores) == TURNS
        assert found.spike_score == pytest.approx(spike_of(scores), abs=4e-3)
        assert found.answer == record["cot_steps"][0]["response"]
        assert not found.stopped_early and found.finish_reason == record["finish_reason"]
        assert found.probe_split == "unseen" and found.comparable and found.error is None


def test_an_early_stop_flags_the_same_dialogues(stages, whole, tiny_model):
    folder, _ = stages
    early = detector_of(folder, tiny_model)
    found = early.score([one.question for one in whole][::-1])[::-1]
    assert [one.question for one in found] == [one.question for one in whole]
    # ids of plain texts are their own, so their dialogues are other ones than the file's
    alone = early.score(read_questions(folder / "questions.json", early.config))
    for stopped, full in zip(alone, whole, strict=True):
        assert stopped.flagged == full.flagged == (full.spike_score >= full.threshold)
        assert stopped.scores == pytest.approx(full.scores[: stopped.turns_held], abs=2e-3)
        reached = [k for k in range(3, TURNS + 1) if spike_of(full.scores[:k]) >= full.threshold]
        assert stopped.turns_held == (reached[0] if reached else TURNS)
        assert stopped.stopped_early == (stopped.turns_held < TURNS)
        assert (stopped.finish_reason == "flagged") == stopped.stopped_early
    assert {one.flagged for one in alone} == {True, False}
    assert any(one.stopped_early for one in alone)


def test_a_question_is_answered_alike_alone_and_among_others(stages, tiny_model):
    folder, _ = stages
    detector = detector_of(folder, tiny_model, whole=True)
    asked = ["Who is it?", "Which town?", "What is 3 plus 4?"]
    together = detector.score(asked)
    alone = detector.score("Which town?")
    assert (
        alone.record["cot_steps"][2]["response_ids"]
        == (together[1].record["cot_steps"][2]["response_ids"])
    )
    assert alone.scores == pytest.approx(together[1].scores, abs=2e-3)
    other = SpikeDetector(
        tiny_model, folder / "probe.pkl", settings={"sampling": {"seed": 8}}, whole=True
    )
    assert other.notes() == [], "another seed is no other way to hold a dialogue"
    assert other.score("Which town?").scores != pytest.approx(alone.scores, abs=2e-3)


def test_a_given_answer_is_read_and_the_dialogue_goes_on_from_it(stages, tiny_model):
    """Its score is that of a plain forward pass over the conversation that begins with it."""
    folder, _ = stages
    detector = detector_of(folder, tiny_model, whole=True)
    found = detector.score("Which town?", answer="the passage")
    assert found.given and found.answer == "the passage" and found.turns_held == TURNS
    text = "<bos><system> Be brief.<end><user> Question: Which town?<end><assistant>the passage"
    ids = make_tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = detector.model(ids, output_hidden_states=True).hidden_states
    features = states[LAYER][:, -1].float().numpy()
    assert found.scores[0] == pytest.approx(float(detector.probe.score(features)[0]), abs=2e-3)
    second = found.record["cot_steps"][1]
    assert second["n_kept"] >= ids.shape[1] and second["response_ids"]
    assert detector.notes(given=True) == [
        "the threshold was set on dialogues that begin with the model's own answers"
    ]
    own = detector.score("Which town?")
    assert not found.comparable and own.comparable
    assert not own.given and own.record["cot_steps"][1]["response_ids"] != second["response_ids"]


def test_json_holds_all_fields_and_no_more(whole):
    (found, *_) = whole
    told = json.loads(json.dumps(found.as_dict()))
    kinds = {
        "id": str, "question": str, "answer": str, "given": bool, "scores": list,
        "spike_score": float, "spike_turn": int, "threshold": float, "flagged": bool,
        "turns_held": int, "max_turns": int, "stopped_early": bool, "finish_reason": str,
        "comparable": bool, "probe_split": str, "model": str, "probe": str, "seed": int,
        "error": type(None),
    }  # fmt: skip
    assert {key: type(value) for key, value in told.items()} == kinds
    assert told["seed"] == 7 and told["max_turns"] == TURNS


# --- the settings --------------------------------------------------------------------------------


def test_other_settings_are_told(stages, tiny_model):
    folder, _ = stages
    settings = {"max_steps": 4, "temperature": 0.5, "generation_timeout": 60}
    (note,) = SpikeDetector(tiny_model, folder / "probe.pkl", settings=settings).notes()
    assert "(max_steps: 6 -> 4; temperature: 1.0 -> 0.5)" in note


def test_other_texts_of_the_follow_ups_are_told(stages, tiny_model, tmp_path):
    folder, _ = stages
    path = tmp_path / "prompts.json"
    write_json(path, {"own": ["Go on.", "And then?"]})
    detector = SpikeDetector(tiny_model, folder / "probe.pkl", settings={"prompts_file": str(path)})
    (note,) = detector.notes()
    assert "texts of the follow-ups" in note and not detector.score("Which town?").comparable


def test_a_question_is_shown_its_passages(stages, tiny_model, tmp_path):
    (tmp_path / "a.txt").write_text("Bath lies on the Avon.")
    settings = {"context": {"from": str(tmp_path), "top_k": 1}, "max_steps": 3}
    detector = SpikeDetector(tiny_model, stages[0] / "probe.pkl", settings=settings)
    found = detector.score("Which town lies on the Avon?")
    assert "Bath lies on the Avon." in found.record["cot_steps"][0]["prompt"]
    assert found.record["meta"]["retrieved"][0]["id"] == "a.txt#1" and not found.comparable


def test_a_probe_without_a_threshold_scores_and_flags_nothing(stages, tiny_model):
    folder, _ = stages
    probe = replace(load_probe(folder / "probe.pkl"), spike_threshold=None)
    detector = SpikeDetector(tiny_model, probe)
    found = detector.score("Which town?")
    assert found.flagged is None and found.threshold is None and found.turns_held == TURNS
    assert found.spike_score == pytest.approx(spike_of(found.scores))
    (note,) = detector.notes()
    assert note.startswith("no threshold in this probe")


def test_a_probe_file_from_before_is_used_with_the_defaults(tiny_model, tmp_path):
    random_probe(spike_threshold=0.5).save(tmp_path / "older.pkl")
    detector = SpikeDetector(tiny_model, tmp_path / "older.pkl")
    assert (detector.config.max_steps, detector.config.temperature) == (20, 0.2)
    assert "does not say how the dialogues were held" in detector.notes()[0]


def test_the_trainer_keeps_how_the_validation_dialogues_were_held(tmp_path):
    def write(folder: str, seed: int, **changes) -> Path:
        config = parse_config({"max_steps": 5, "temperature": 0.3, **changes}, source="here")
        for record in make_pairs(tmp_path / folder, n=40, turns=5, seed=seed, domain=folder):
            record |= {"config": config.resolved(), "identity": {"prompts": "abc"}}
            write_json(tmp_path / folder / f"{record['id']}.json", record)
        return tmp_path / folder

    one, other = write("one", 1), write("other", 2, temperature=0.9)
    probe = train_probe([one], Settings(layer_range=(2, 2)))[0]
    probe.save(tmp_path / "probe.pkl")
    held = load_probe(tmp_path / "probe.pkl").dialogues
    assert held["config"]["max_steps"] == 5 and held["config"]["temperature"] == 0.3
    assert held["several"] == [] and held["prompts"] == "abc"
    assert not {"output_dir", "dataset_path", "model_path"} & held["config"].keys()
    both = train_probe([one, other], Settings(layer_range=(2, 2)))[0].dialogues
    assert both["several"] == ["temperature"] and "temperature" not in both["config"]
    assert probe.spike_threshold is not None
    text = (tmp_path / "probe.pkl").read_bytes()
    assert b"What is" not in text and b"prompt 1 of" not in text, "no text of a question"


# --- bad input -----------------------------------------------------------------------------------


def test_a_probe_of_another_model_is_refused_and_both_are_named(stages, tiny_model):
    folder, _ = stages
    probe = load_probe(folder / "probe.pkl")
    other = replace(probe, model="./models/Other-8B", identity={"weights": "0" * 64})
    with pytest.raises(UserError, match=r"trained on .* \"./models/Other-8B\".*weights of"):
        SpikeDetector(tiny_model, other)
    wider = replace(probe, hidden_size=4096, n_layers=32, identity={})
    with pytest.raises(UserError, match="width 4096 from 32 layers"):
        SpikeDetector(tiny_model, wider)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 2}, "SpikeScore needs at least 3 turns"),
        ({"temprature": 1}, 'did you mean "temperature"'),
        ({"backend": "openai"}, "the local model alone"),
        ({"first_answers": "shipped"}, "leave out first_answers"),
        ({"context": {"from": "nowhere"}}, '"nowhere" does not exist'),
        ({"prompts_file": "nowhere.json"}, 'prompts_file "nowhere.json" does not exist'),
    ],
)
def test_settings_that_cannot_be_are_refused(stages, tiny_model, settings, message):
    with pytest.raises(UserError, match=message):
        SpikeDetector(tiny_model, stages[0] / "probe.pkl", settings=settings)


def test_questions_that_cannot_be_asked(stages, tiny_model):
    folder, _ = stages
    settings = {"model_max_tokens": 60, "sampling": {"seed": 7}}
    detector = SpikeDetector(tiny_model, folder / "probe.pkl", settings=settings)
    with pytest.raises(UserError, match="empty"):
        detector.score("  ")
    with pytest.raises(UserError, match="the first prompt has .* the context allows 60"):
        detector.score("word " * 80)
    with pytest.raises(UserError, match="given answer [0-9]+; the context allows 60"):
        detector.score("Which town?", answer="word " * 80)
    with pytest.raises(ValueError, match="single question"):
        detector.score(["a?", "b?"], answer="c")
    long, short = detector.score(["word " * 80, "Which?"])
    assert long.error and long.spike_score is None and long.finish_reason == "error"
    assert short.error is None and short.turns_held >= 1
    assert short.finish_reason == "context" and (short.turns_held >= 3 or short.flagged is None)


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("a.txt", "Who wrote Hamlet?\n\n  Which town? \n", ["Who wrote Hamlet?", "Which town?"]),
        ("a.csv", "question\nWho wrote Hamlet?\n", ["Who wrote Hamlet?"]),
        ("a.json", '[{"question": "Who?", "context": "A passage."}]', ["Who?"]),
        ("a.jsonl", '{"question": "Who?", "golden_answers": ["I"], "id": "q"}\n', ["Who?"]),
    ],
)
def test_questions_of_a_file(tmp_path, name, text, asked):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_questions(tmp_path / name, parse_config({}, source="x"))
    assert [one.question for one in found] == asked
    if len(asked[0]) > 4:
        assert found[0].id == as_question(asked[0]).id, "the same question has the same dialogue"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.txt", None, "cannot be read"),
        ("a.txt", b"\n \n", "holds no question"),
        ("a.txt", b"\xff\xfeW\x00", "not UTF-8"),
        ("no.json", None, "does not exist"),
        ("a.csv", b"q,a\nWho?,I\n", "no known format has these keys"),
    ],
)
def test_files_without_questions(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path / name, parse_config({}, source="x"))
