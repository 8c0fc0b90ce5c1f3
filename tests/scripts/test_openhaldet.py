"""scripts/openhaldet.py from a folder to scores, and from scores to a submission."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scripts import openhaldet
from spikescore.data import openhaldet as folders
from spikescore.detectors.answers import read_answers
from spikescore.detectors.scoring import Settings, score_methods
from spikescore.errors import UserError
from spikescore.pairs import TOKEN_KEYS
from tests.helpers.books import make_book
from tests.helpers.native_rows import openhaldet as make_row
from tests.helpers.openhaldet_states import Group, stored_states


@pytest.fixture
def script(monkeypatch):
    """Run the script's main in this process."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["scripts/openhaldet.py", *map(str, arguments)])
        return openhaldet.main()

    return run


def test_a_folder_is_scored_without_a_model(tmp_path, script, monkeypatch, capsys):
    rng, rows, states = np.random.default_rng(0), [], Group({})
    states.attrs["layer_config"] = '{"mode": "middle", "count": 2}'
    for n in range(42):
        rows.append(make_row(n) | {"model_output_text": "some output"})
        y = n % 2
        tokens = {
            token: {layer: rng.standard_normal(8) + 3 * y * (layer == 6) for layer in (5, 6)}
            for token in (4, 5)
        }
        if n:  # the first has no states
            states[rows[-1]["sample_id"]] = stored_states(tokens)
    rows[1]["eval_category"] = "abstention"
    folder = tmp_path / "experiments" / "Qwen" / "Qwen3-8B" / "arc_42samples"
    folder.mkdir(parents=True)
    (folder / folders.ROWS).write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(folders, "_open", lambda path: states)
    assert script("import", folder, "--output_dir", tmp_path / "pairs") == 0
    told = capsys.readouterr().out
    assert "40 written" in told and "1 without hidden states" in told
    assert "1 without a verdict of right or wrong" in told
    items = read_answers(tmp_path / "pairs", token_key=TOKEN_KEYS[0])
    assert (len(items), int(items.y.sum())) == (40, 20)
    assert items.model == "Qwen/Qwen3-8B (layers 6-7)" and set(items.domains) == {"arc"}
    methods = ["mass_mean", "answer_length", "nci"]
    (book,) = score_methods(items, Settings(methods=methods, turn_scorers=[]))
    assert set(book.methods) == {"mass_mean", "answer_length"}  # NCI needs the checkpoint
    assert book.chosen["mass_mean/arc/0"]["layer"] == 2
    test = book.splits["arc"] == "test"
    assert roc_auc_score(book.y[test], book.scores["mass_mean", "arc", 0][test]) > 0.9


def test_what_is_there_is_kept_and_another_model_refused(tmp_path, script, monkeypatch):
    states = Group({}, layer_config='"all"')
    rows = [make_row(n) | {"model_output_text": "some output"} for n in range(3)]
    for row in rows:
        states[row["sample_id"]] = stored_states({4: {0: np.ones(4)}, 5: {0: np.ones(4)}})
    monkeypatch.setattr(folders, "_open", lambda path: states)
    for model in "ab":
        folder = tmp_path / "experiments" / model / "arc_3samples"
        folder.mkdir(parents=True)
        (folder / folders.ROWS).write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "pairs"
    arguments = ("import", tmp_path / "experiments" / "a" / "arc_3samples", "--output_dir", output)
    assert script(*arguments) == 0
    scored = next(iter(output.rglob("*.json")))
    scored.write_text(json.dumps(json.loads(scored.read_text()) | {"metrics": {"mine": 1}}))
    held = {path: path.read_bytes() for path in output.rglob("*.*")}
    assert script(*arguments) == 0
    with pytest.raises(UserError, match="of another model; choose another --output_dir"):
        script("import", folder, "--output_dir", output)
    (folder / folders.ROWS).write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    with pytest.raises(UserError, match="two rows of the id"):
        script("import", folder, "--output_dir", tmp_path / "new")
    assert held == {path: path.read_bytes() for path in output.rglob("*.*")}


def test_a_submission_is_written_as_text_and_data(tmp_path, script):
    make_book().save(tmp_path / "scores.pkl")
    at = tmp_path / "out" / "submission.md"
    asked = ("--scores", tmp_path / "scores.pkl", "--backbone", "Qwen3-8B", "--save_path", at)
    assert script("submit", *asked, "--link", "https://example.org") == 0
    told = json.loads(at.with_suffix(".json").read_text())
    assert told["title"] == "[Leaderboard] SpikeScore \u2014 Qwen3-8B"
    assert set(told["other_sets"]) == {"d0", "d1", "d2"} and len(told["missing"]) == 17
    assert "- Link: https://example.org" in at.read_text()
    assert any("not turned round" in note.replace("\n", " ") for note in told["notes"])
    with pytest.raises(UserError, match="name the text .md"):
        script("submit", *asked[:-1], at.with_suffix(".json"))
    with pytest.raises(UserError, match='has no "mind"; it has spike_score, '):
        script("submit", *asked, "--method", "mind")
