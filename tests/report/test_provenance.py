import hashlib
from dataclasses import replace

from spikescore.files import write_json
from spikescore.report.experiment import Experiment, Model
from spikescore.report.provenance import write_provenance
from spikescore.report.steps import Step


def test_provenance_names_data_and_model_by_content_and_each_steps_seconds(tmp_path):
    data, model = tmp_path / "data.jsonl", tmp_path / "model"
    data.write_bytes(b"rows | of data")
    (model / "inner").mkdir(parents=True)
    (model / "inner" / "weights").write_bytes(b"weights")
    experiment = Experiment(
        "trial",
        (Model("m", str(model)), Model("hub", "org/name")),
        {"dataset_path": [str(data)]},
        reports_dir=str(tmp_path),
    )
    steps = [Step("m.main", ("python", "reasoning_lite.py"), 1), Step("tables", ("python", "x"), 6)]
    write_json(experiment.report_dir / "done" / "m.main.json", {"seconds": 12.6, "run": "1"})
    path = write_provenance(experiment, steps, "configs/trial.json")
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    for file, content in ((data, b"rows | of data"), (model / "inner" / "weights", b"weights")):
        row = [str(file), str(len(content)), hashlib.sha256(content).hexdigest()]
        assert row in rows
    assert ["m.main", "13"] in rows
    assert ["experiment", "configs/trial.json"] in rows
    assert not any(row[0] == "tables" or "org/name" in row[0] for row in rows)
    # nothing done yet, and data that is not there: nothing is invented
    bare = replace(experiment, name="bare", dialogues={"dataset_path": [str(tmp_path / "no")]})
    (tmp_path / "bare").mkdir()
    text = write_provenance(bare, steps, "c.json").read_text(encoding="utf-8")
    assert "m.main" not in text and str(tmp_path / "no") not in text
