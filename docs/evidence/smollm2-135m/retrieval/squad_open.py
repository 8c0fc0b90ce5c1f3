"""SQuAD 2.0's answerable questions without their passages, and its passages as documents.

    python squad_open.py make dev-v2.0.json FOLDER
    python squad_open.py found OUTPUTS
    python squad_open.py spikes WITH.pkl WITHOUT.pkl

`make` writes FOLDER/squad_open.jsonl, the questions, and FOLDER/paragraphs.jsonl, one document a
paragraph of all articles. A question's `paragraph` is the id of the document that it was written
about. `found` says in how many pairs of a run that paragraph is among those retrieved. `spikes`
compares the SpikeScores themselves of two score books on the same questions: they need no classes.
"""

import json
import sys
from pathlib import Path

import numpy as np

from spikescore.detectors.score_book import load_score_book
from spikescore.report.comparison import on_shared_items, trajectory_entry


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make(source, folder):
    documents, questions = [], []
    for article in json.loads(source.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            name = f"{article['title']}-{len(documents)}"
            documents.append({"id": name, "text": paragraph["context"]})
            questions += [
                {
                    "id": asked["id"],
                    "question": asked["question"],
                    "gold_answers": list(dict.fromkeys(one["text"] for one in asked["answers"])),
                    "group": name,
                    "paragraph": name,
                }
                for asked in paragraph["qas"]
                if not asked["is_impossible"]
            ]
    write_rows(folder / "squad_open.jsonl", questions)
    write_rows(folder / "paragraphs.jsonl", documents)


def found(outputs):
    pairs = [json.loads(path.read_text(encoding="utf-8")) for path in outputs.rglob("*.json")]
    metas = [pair["meta"] for pair in pairs if "retrieved" in (pair.get("meta") or {})]
    ids = [{one["id"].rpartition("#")[0] for one in meta["retrieved"]} for meta in metas]
    hits = sum(meta["paragraph"] in own for meta, own in zip(metas, ids, strict=True))
    print(f"the question's own paragraph is among those retrieved for {hits} of {len(metas)}")


def spikes(one, other):
    books = on_shared_items(load_score_book(one), load_score_book(other))
    here = books[0].domains == "squad_open"
    entries = [trajectory_entry(book, "max_abs_d2", "saplma") for book in books]
    having, lacking = (entry.scores["belebele"].mean(axis=0)[here] for entry in entries)
    places = {group: np.flatnonzero(books[0].groups[here] == group)
              for group in dict.fromkeys(books[0].groups[here])}  # fmt: skip
    rng, names = np.random.default_rng(0), list(places)
    draws = [np.concatenate([places[names[at]] for at in rng.integers(len(names), size=len(names))])
             for _ in range(2000)]  # fmt: skip
    low, high = np.quantile([np.mean((having - lacking)[drawn]) for drawn in draws], (0.025, 0.975))
    print(
        f"SpikeScore, mean over {here.sum()} questions and the probe seeds: with passages "
        f"{having.mean():.3f}, without {lacking.mean():.3f}, difference "
        f"{np.mean(having - lacking):+.3f} [{low:+.3f}, {high:+.3f}]"
    )


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"make": make, "found": found, "spikes": spikes}[command](*map(Path, paths))
