"""Dialogues, labels and scores as Parquet with card and Croissant: what is in it, and what not."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spikescore.detectors.score_book import BookItem, ScoreBook
from spikescore.errors import UserError
from spikescore.files import read_json, write_json
from spikescore.packing import pack
from spikescore.report.published import publish_data
from tests.helpers.factories import make_record
from tests.helpers.running import run_script

HUB = {"repo_id": "me/dialogues", "license": "CC-BY-4.0"}
TEXTS = ("prompt 1 of", "answer 2 of", "What is q", "gold-word", "passage-word", "option-word")


def write_dialogues(folder: Path, n: int = 4) -> None:
    """Write n finished dialogues of 3 turns in each of two domains, item i hallucinated if odd."""
    for domain in ("a", "b"):
        for place in range(n):
            name = f"q{place}"
            record = make_record(name, y=place % 2, turns=3, domain=domain, model="/data/m/tiny")
            record |= {"gold_answers": ["gold-word"], "context": "passage-word"}
            record |= {"choices": ["option-word", "x"], "meta": {"scope": "note-word"}}
            record["group"] = f"group-word {place // 2}"
            record["config"] = {"max_steps": 3, "prompts_file": "/home/me/prompts.json"}
            record["nil_judge"] = {"judge": "/home/me/rules.py:mine", "reply": "reply-word"}
            for turn, step in enumerate(record["cot_steps"]):
                step |= {"prompt_ids": [1, 2], "response_ids": [987654]}
                step["metrics"] = {"probe_pred": turn / 10}
            record["metrics"] = {"spike_score": 0.5, "probe": {"path": "/home/me/p.pkl"}}
            write_json(folder / domain / f"{name}.json", {**record, "complete": True})


def make_book(folder: Path, path: Path, n: int = 4) -> Path:
    items = []
    for domain in ("a", "b"):
        for place in range(n):
            file = str(folder / domain / f"q{place}.json")
            items.append(BookItem(file, f"q{place}", domain, f"{place}", place % 2, (4, 4, 4)))
    book = ScoreBook("tiny", "last_token_embedding", items)
    split = np.array(["train", "val", "test", "test", "", "", "", ""], dtype="<U5")
    book.splits["a"] = split
    scores = np.arange(8, dtype=float)
    scores[5] = np.nan
    book.scores = {("saplma", "a", 1): scores, ("perplexity", "", 0): np.arange(8) + 0.5}
    turns = np.arange(24, dtype=np.float32).reshape(8, 3)
    turns[0, 2], turns[1] = np.nan, np.nan
    book.turns = {("saplma", "a", 1): turns}
    told = {"family": "trained", "needs": []}
    book.methods = {"saplma": {**told, "title": "SAPLMA"}, "perplexity": {**told, "title": "ppl"}}
    book.save(path)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_dialogues(folder)
    return folder


def rows(folder: Path, table: str) -> list[dict]:
    return pq.read_table(folder / "data" / f"{table}.parquet").to_pylist()


def everything(folder: Path) -> str:
    """All that the export says: the text files, and every cell of every table."""
    texts = [path.read_text("utf-8") for path in folder.iterdir() if path.is_file()]
    tables = [json.dumps(rows(folder, path.stem)) for path in (folder / "data").iterdir()]
    return "\n".join(texts + tables)


def test_every_dialogue_label_and_score_is_in_the_tables(pairs, tmp_path):
    book, out = make_book(pairs, tmp_path / "tiny.main.pkl"), tmp_path / "out"
    found = publish_data(pairs, [book], out, **HUB)
    items = {row["item"]: row for row in rows(out, "items")}
    assert list(items) == [f"{domain}/q{place}" for domain in "ab" for place in range(4)]
    assert [row["hallucinated"] for row in items.values()] == [False, True] * 4
    first = items["a/q0"]
    assert (first["id"], first["domain"], first["model"]) == ("q0", "a", "tiny")
    assert (first["question"], first["gold_answers"]) == ("What is q0?", ["gold-word"])
    assert (first["judge"], first["probe"], first["spike_score"]) == ("rules.py:mine", "p.pkl", 0.5)
    turns = rows(out, "turns")
    assert [(row["item"], row["turn"]) for row in turns[:4]] == [
        ("a/q0", 1), ("a/q0", 2), ("a/q0", 3), ("a/q1", 1)
    ]  # fmt: skip
    assert turns[1]["response"] == "answer 2 of q0" and turns[1]["probe_pred"] == 0.1
    scores = rows(out, "scores")
    trained = {row["item"]: row for row in scores if row["method"] == "saplma"}
    assert len(trained) == 7 and "b/q1" not in trained  # of which there is no score
    assert (trained["a/q1"]["score"], trained["a/q1"]["split"]) == (1.0, "val")
    assert (trained["b/q3"]["score"], trained["b/q3"]["split"]) == (7.0, None)
    assert {row["training_domain"] for row in trained.values()} == {"a"}
    assert {row["probe_seed"] for row in trained.values()} == {1}
    free = [row for row in scores if row["method"] == "perplexity"]
    assert [row["score"] for row in free] == [place + 0.5 for place in range(8)]
    assert free[0]["training_domain"] is None and free[0]["book"] == "tiny.main"
    by_turn = {row["item"]: row["scores"] for row in rows(out, "turn_scores")}
    assert by_turn["a/q0"] == [0, 1] and by_turn["b/q3"] == [21, 22, 23] and "a/q1" not in by_turn
    assert dict(found.rows) == {"items": 8, "turns": 24, "scores": 15, "turn_scores": 7}


def test_without_dialogues_no_text_is_left(pairs, tmp_path):
    book, out = make_book(pairs, tmp_path / "book.pkl"), tmp_path / "out"
    publish_data(pairs, [book], out, **HUB, texts=False)
    told = everything(out)
    for text in (*TEXTS, "note-word", "reply-word", "group-word", "987654"):
        assert text not in told, text
    with_texts = tmp_path / "with"
    publish_data(pairs, [book], with_texts, **HUB)
    assert all(text in everything(with_texts) for text in TEXTS)
    for table in ("scores", "turn_scores"):
        assert rows(out, table) == rows(with_texts, table)
    kept = ("item", "id", "domain", "hallucinated", "n_turns", "spike_score")
    for one, other in zip(rows(out, "items"), rows(with_texts, "items"), strict=True):
        assert {key: one[key] for key in kept} == {key: other[key] for key in kept}
    one, other = ([row["group"] for row in rows(place, "items")] for place in (out, with_texts))
    assert [one.index(group) for group in one] == [other.index(group) for group in other]
    columns = {field["name"] for table in read_json(out / "croissant.json")["recordSet"]
               for field in table["field"]}  # fmt: skip
    assert not columns & {"question", "context", "choices", "gold_answers", "prompt", "response"}


def test_no_path_and_no_secret_is_published(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "not-to-be-told-42")
    folder = tmp_path / "secret-place"
    write_dialogues(folder)
    file = folder / "a" / "q0.json"
    record = read_json(file)
    record["cot_steps"][0]["response"] = "the key is not-to-be-told-42"
    record["meta"] = {"link": "https://a.org/wiki/Page", "file": "/home/me/rows.json"}
    record["config"]["system_prompt"] = "never say not-to-be-told-42"
    record["nil_judge"]["error"] = "http://me:passw0rd@host refused"
    write_json(file, record)
    out = tmp_path / "out"
    found = publish_data(folder, [make_book(folder, tmp_path / "book.pkl")], out, **HUB)
    told = everything(out)
    for secret in ("not-to-be-told-42", "passw0rd", "/home/me", "secret-place", "/data/m"):
        assert secret not in told, secret
    meta = json.loads(rows(out, "items")[0]["meta"])
    assert meta == {"link": "https://a.org/wiki/Page", "file": "rows.json"}
    assert "the key is ***" in told and found.hidden == 1
    assert "987654" not in told  # token ids are text too


def test_the_card_is_in_the_hubs_form(pairs, tmp_path):
    out = tmp_path / "out"
    publish_data(pairs, [make_book(pairs, tmp_path / "book.pkl")], out, **HUB)
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(out / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.size_categories == ["n<1K"]
    named = {one["config_name"]: one["data_files"] for one in card.data.to_dict()["configs"]}
    assert set(named) == {"items", "turns", "scores", "turn_scores"}
    assert all((out / path).is_file() for path in named.values())
    assert "| a | 4 | 4 | 50% |" in card.text and "tiny (8)" in card.text
    assert '| prompts_file | "prompts.json" |' in card.text and "| saplma | SAPLMA" in card.text


def test_croissant_describes_every_file_and_column(pairs, tmp_path):
    """Checked by hand against the public specification, 1.0, and its fields for responsible AI."""
    out = tmp_path / "out"
    publish_data(pairs, [make_book(pairs, tmp_path / "book.pkl")], out, **HUB)
    told = read_json(out / "croissant.json")
    required = {"@context", "@type", "name", "description", "license", "url", "creator",
                "datePublished", "distribution", "conformsTo"}  # fmt: skip
    assert required <= told.keys() and told["@type"] == "sc:Dataset"
    assert told["conformsTo"] == [
        "http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"
    ]  # fmt: skip
    assert told["@context"]["conformsTo"] == "dct:conformsTo"
    assert told["@context"]["rai"] == "http://mlcommons.org/croissant/RAI/"
    assert told["license"] == "https://spdx.org/licenses/CC-BY-4.0.html"
    files = {file["@id"]: file for file in told["distribution"]}
    for name, file in files.items():
        data = (out / name).read_bytes()
        assert file["@type"] == "cr:FileObject" and file["contentUrl"] == name
        assert file["sha256"] == sha256(data).hexdigest()
        assert file["contentSize"] == f"{len(data)} B"
    ids = list(files)
    for records in told["recordSet"]:
        assert records["@type"] == "cr:RecordSet"
        ids.append(records["@id"])
        columns = []
        for field in records["field"]:
            assert field["@type"] == "cr:Field" and field["@id"].startswith(f"{records['@id']}/")
            ids.append(field["@id"])
            source = field["source"]
            assert source["fileObject"]["@id"] == f"data/{records['@id']}.parquet"
            columns.append(source["extract"]["column"])
        schema = pq.read_schema(out / "data" / f"{records['@id']}.parquet")
        assert columns == schema.names
        listed = {field["name"] for field in records["field"] if field.get("repeated")}
        assert listed == {one.name for one in schema if str(one.type).startswith("list")}
        keys = [key["@id"].partition("/")[2] for key in records["key"]]
        values = [tuple(row[key] for key in keys) for row in rows(out, records["@id"])]
        assert len(set(values)) == len(values), "a key must be unique"
    assert len(set(ids)) == len(ids)
    rai = {key for key in told if key.startswith("rai:")}
    assert {"rai:dataCollection", "rai:dataBiases", "rai:dataLimitations", "rai:dataUseCases",
            "rai:personalSensitiveInformation", "rai:dataSocialImpact",
            "rai:dataAnnotationProtocol", "rai:machineAnnotationTools"} <= rai  # fmt: skip
    assert told["rai:machineAnnotationTools"] == ["rules.py:mine"]


def test_a_packed_folder_is_exported_as_the_folder(pairs, tmp_path):
    pack(pairs, tmp_path / "packed", shard_bytes=10**9)
    for source, out in ((pairs, "plain"), (tmp_path / "packed", "shards")):
        publish_data(source, [], tmp_path / out, **HUB)
    for table in ("items", "turns"):
        assert rows(tmp_path / "plain", table) == rows(tmp_path / "shards", table)


def test_what_is_unfinished_unlabelled_or_damaged_is_counted(tmp_path):
    folder, out = tmp_path / "pairs", tmp_path / "out"
    write_dialogues(folder)
    unfinished, unlabelled = (read_json(folder / "a" / f"q{place}.json") for place in (0, 1))
    write_json(folder / "a" / "q0.json", {**unfinished, "complete": False})
    write_json(folder / "a" / "q1.json", {**unlabelled, "nil_label": None, "nil_judge": None})
    (folder / "b" / "q1.json").write_text(json.dumps(read_json(folder / "b" / "q1.json")
                                                     | {"domain": "half \udce9"}))  # fmt: skip
    (folder / "b" / "q0.json").write_text("{")
    found = publish_data(folder, [], out, **HUB)
    assert found.left_out == {"unfinished": 1} and found.damaged == [folder / "b" / "q0.json"]
    labels = {row["item"]: row["hallucinated"] for row in rows(out, "items")}
    assert len(labels) == 6 and labels["a/q1"] is None
    missing = read_json(out / "croissant.json")["rai:dataCollectionMissingData"]
    assert "1 of 6 dialogues have no label" in missing and "1 files could not be read" in missing


def test_books_that_do_not_fit_are_named(pairs, tmp_path):
    fitting = make_book(pairs, tmp_path / "fits.pkl")
    others = make_book(pairs, tmp_path / "more.pkl", n=4)
    book = read_json(others.with_suffix(".json"))
    book["items"][3]["y"] = 0
    write_json(others.with_suffix(".json"), book)
    strange = make_book(pairs, tmp_path / "strange.pkl")
    book = read_json(strange.with_suffix(".json"))
    book["items"][0]["id"] = "elsewhere"
    write_json(strange.with_suffix(".json"), book)
    twice = make_book(pairs, tmp_path / "other" / "fits.pkl")
    for books, words in (
        ([fitting, others], ["more", "a/q3", "label"]),
        ([strange], ["strange", "elsewhere"]),
        ([fitting, twice], ["one name"]),
        ([tmp_path / "none.pkl"], ["none.json"]),
    ):
        with pytest.raises(UserError) as caught:
            publish_data(pairs, books, tmp_path / "out", **HUB)
        assert all(word in str(caught.value) for word in words), caught.value
        assert not list(tmp_path.glob("*out*")), "nothing is left of it"


def test_the_command_says_what_it_wrote_and_what_is_wrong(pairs, tmp_path):
    (tmp_path / "empty").mkdir()
    script = ["scripts/export.py", "data", "--save_dir", tmp_path / "out", "--license", "mit"]
    done = run_script(*script, "--data_dir", tmp_path / "empty", "--repo_id", "me/x")
    assert done.returncode == 2 and "holds no finished dialogue" in done.stderr
    assert run_script(*script, "--data_dir", pairs, "--repo_id", "x").returncode == 2
    done = run_script(*script, "--data_dir", pairs, "--repo_id", "me/x", "--without_dialogues")
    assert done.returncode == 0, done.stderr
    assert "no text of a question" in done.stdout and "items.parquet: 8 rows" in done.stdout
