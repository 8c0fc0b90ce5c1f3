"""Dialogues, labels and scores as tables for a data hub: Parquet, a data card, Croissant metadata.

docs/files.md lists the files. `item` joins the tables: a dialogue's path below the folder, without
ending. No local path, key or password is written, no judge's reply, and no token ids, which are
text too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.detectors.score_book import BookItem, ScoreBook, load_score_book
from spikescore.dialogues.config import dialogue_keys
from spikescore.errors import UserError, redactor
from spikescore.files import make_folder, write_atomic, write_json
from spikescore.packing import made_whole, part_of
from spikescore.pairs import cut_off, file_id, for_all_eyes, iter_records, short_meta
from spikescore.report.data_card import Column, Published, croissant, data_card
from spikescore.runtime import progress

ROWS = 2000
"""Rows that wait in memory until they are written."""


ITEM = Column("item", "text", "the dialogue: its path below the folder, without ending")
BOOK = Column("book", "text", "the score book")
FITTED_ON = Column(
    "training_domain", "text", "the domain it was fitted on; null: it learns nothing"
)
SEED = Column("probe_seed", "whole", "the seed of the fit")
TABLES: dict[str, tuple[Column, ...]] = {
    "items": (
        ITEM,
        Column("id", "text", "the data set's own id, or a digest"),
        Column("domain", "text", "which question set it is of"),
        Column(
            "group",
            "text",
            "shared by questions about one passage; a digest where texts stay out",
        ),
        Column("pair", "text", "shared by the right and the wrong given answer to one question"),
        Column("model", "text", "the chat model that answered"),
        Column("hallucinated", "truth", "the label of the first answer; null: none"),
        Column("judge", "text", "what set the label"),
        Column("cut_off", "text", "the limit that ended the first answer; null: none did"),
        Column("n_turns", "whole", "turns of the dialogue, the first answer included"),
        Column("spike_score", "number", "SpikeScore by `probe`, where the dialogue was scored"),
        Column("probe", "text", "the probe that scored it"),
        Column("probe_split", "text", "the question's split when that probe was trained"),
        Column("question", "text", "the question", private=True),
        Column("context", "text", "the passage that was shown with it", private=True),
        Column("choices", "texts", "the options that were shown with it", private=True),
        Column("gold_answers", "texts", "reference answers", private=True),
        Column("meta", "text", "what the data set says of it in short values, JSON", private=True),
    ),
    "turns": (
        ITEM,
        Column("turn", "whole", "counted from 1; turn 1 is the first answer"),
        Column("prompt_type", "text", "the family of the prompt"),
        Column("n_prompt_tokens", "whole", "tokens of the whole prompt"),
        Column("n_response_tokens", "whole", "tokens of the answer"),
        Column("finish_reason", "text", "what ended the answer: stop, length, timeout"),
        Column("perplexity", "number", "of the answer, from raw logits as all of these"),
        Column("mean_logprob", "number", "mean log-probability of its tokens, nats"),
        Column("mean_token_entropy", "number", "mean entropy of its tokens, nats"),
        Column("max_token_entropy", "number", "largest entropy of its tokens, nats"),
        Column("first_token_confidence", "number", "largest probability at its first token"),
        Column("probe_pred", "number", "score of the answer by the item's `probe`"),
        Column("prompt", "text", "what the model was told at this turn", private=True),
        Column("response", "text", "what it answered", private=True),
    ),
    "scores": (
        ITEM,
        BOOK,
        Column("method", "text", "the method; the card has their titles"),
        FITTED_ON,
        SEED,
        Column("split", "text", "the item's split in that domain; null: of another domain"),
        Column("score", "number", "higher means more hallucinated"),
    ),
    "turn_scores": (
        ITEM,
        BOOK,
        Column("scorer", "text", "the method that scores every turn"),
        FITTED_ON,
        SEED,
        Column("scores", "numbers", "one for each turn; higher means more hallucinated"),
    ),
}


def publish_data(
    source: Path,
    books: Sequence[Path],
    folder: Path,
    *,
    repo_id: str,
    license: str,
    texts: bool = True,
) -> Published:
    """Write the dialogues under a folder of pairs (or of shards), and what score books say of them,
    to a new folder in the hub's form; without `texts` only ids, labels and figures.

    Files that cannot be read are left out and listed. Raises UserError where there is no finished
    dialogue, where a book is about dialogues that the folder lacks or labels otherwise, or where
    the new folder holds something. Nothing is left of an export that failed.
    """
    found = Published(repo_id, license, texts)
    loaded = {path.stem: load_score_book(path) for path in books}
    if len(loaded) < len(books):
        raise UserError("two score books have one name; give each once, or rename one")
    with made_whole(folder, "exporting") as work:
        labels = _write_dialogues(source, work, found)
        if not labels:
            raise UserError(
                f'"{source}" holds no finished dialogue'
                + (f" ({_told(found.left_out)})" if found.left_out else "")
                + "; give the folder that stage 1 wrote to"
            )
        if loaded:
            items = {name: _joined(name, book, labels) for name, book in loaded.items()}
            _write_scores(loaded, items, work, found)
        write_atomic(work / "README.md", data_card(found).encode("utf-8", "replace"))
        write_json(work / "croissant.json", croissant(found))
    return found


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in counts.items())


class _Writer:
    """A Parquet file of one of the TABLES, written a few rows at a time."""

    def __init__(self, work: Path, name: str, found: Published) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {"text": pa.string(), "whole": pa.int64(), "number": pa.float64(),
                 "truth": pa.bool_(), "texts": pa.list_(pa.string()),
                 "numbers": pa.list_(pa.float32())}  # fmt: skip
        self._found, self._name, self._work = found, name, work
        self._hide = redactor()
        self._columns = tuple(one for one in TABLES[name] if found.texts or not one.private)
        self._schema = pa.schema([(one.name, kinds[one.kind]) for one in self._columns])
        self._table = pa.Table
        make_folder(work / "data")
        self._file = pq.ParquetWriter(work / self._path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    @property
    def _path(self) -> str:
        return f"data/{self._name}.parquet"

    def add(self, row: dict[str, Any]) -> None:
        """Take a row; columns that are not of the table are left."""
        self._rows.append({one.name: self._cell(one, row.get(one.name)) for one in self._columns})
        if len(self._rows) >= ROWS:
            self._flush()

    def _cell(self, column: Column, value: Any) -> Any:
        if column.kind == "texts":
            return None if value is None else [self._text(one) for one in value]
        return self._text(value) if column.kind == "text" and value is not None else value

    def _text(self, value: Any) -> str:
        text = str(value).encode("utf-8", "replace").decode()
        shown = self._hide(text)
        self._found.hidden += shown != text
        return shown

    def add_columns(self, columns: dict[str, Any]) -> None:
        """Write many rows at once, given by column, as they are."""
        self._flush()
        arrays = [columns[one.name] for one in self._columns]
        self._file.write_table(self._table.from_arrays(arrays, schema=self._schema))
        self._found.rows[self._name] += len(arrays[0])

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(self._table.from_pylist(self._rows, self._schema))
            self._found.rows[self._name] += len(self._rows)
            self._rows = []

    def close(self) -> None:
        """Finish the file and note what it holds."""
        self._flush()
        self._file.close()
        self._found.columns[self._name] = self._columns
        self._found.files[self._name] = part_of(self._work, self._path)


# --- dialogues ----------------------------------------------------------------------------------


def _write_dialogues(
    source: Path, work: Path, found: Published
) -> dict[str, tuple[str, str, int | None]]:
    """Write items and turns; return (id, domain, y) of each item."""
    items, turns = (_Writer(work, name, found) for name in ("items", "turns"))
    labels = {}
    records = iter_records(source, found.damaged)
    for path, record in progress(records, desc="exporting", unit="pair"):
        if not record.get("complete", True):
            found.left_out["unfinished"] += 1
        elif not record["cot_steps"]:
            found.left_out["without turns"] += 1
        else:
            name = path.relative_to(source).with_suffix("").as_posix()
            row = _item(name, record)
            if not found.texts and row["group"]:  # which may be words of the question
                row["group"] = file_id(None, row["group"])
            items.add(row)
            for step in record["cot_steps"]:
                metrics = step.get("metrics") or {}
                turns.add({**step, "item": name, "probe_pred": metrics.get("probe_pred")})
            y = row["hallucinated"]
            labels[name] = row["id"], row["domain"], None if y is None else int(y)
            _count(found, record, row)
    items.close()
    turns.close()
    found.settings = {
        key: {json.dumps(for_all_eyes(json.loads(value)), ensure_ascii=False) for value in values}
        for key, values in found.settings.items()
    }
    return labels


def _item(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    metrics = record.get("metrics") or {}
    probe = metrics.get("probe") or {}
    label = record.get("nil_label")
    plain = {key: record.get(key) for key in ("question", "context", "choices", "pair_id")}
    gold = record.get("gold_answers")
    names = {
        "id": record.get("id", name),
        "domain": record.get("domain") or "",
        "group": record.get("group"),
        "pair": plain.pop("pair_id"),
    }
    shared = {
        "model": record.get("model"),
        "judge": (record.get("nil_judge") or {}).get("judge") if label is not None else None,
        "probe": probe.get("path"),
    }
    return {
        **plain,
        **{key: value if value is None else str(value) for key, value in names.items()},
        **for_all_eyes(shared),
        "item": name,
        "hallucinated": None if label is None else label == 0,
        "cut_off": cut_off(record) or None,
        "n_turns": len(record["cot_steps"]),
        "spike_score": metrics.get("spike_score"),
        "probe_split": metrics.get("probe_split"),
        "gold_answers": gold if gold is None or isinstance(gold, list) else [gold],
        "meta": json.dumps(_no_local_paths(short_meta(record)), ensure_ascii=False),
    }


def _no_local_paths(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a data set says of an item; its addresses and relative paths are its own."""
    local = {key for key, value in meta.items()
             if isinstance(value, str) and re.match(r"[/~]|[A-Za-z]:[/\\]", value)}  # fmt: skip
    return {key: for_all_eyes(value) if key in local else value for key, value in meta.items()}


def _count(found: Published, record: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    found.models[row["model"] or "not said"] += 1
    rate = found.rates.setdefault(row["domain"], Counter())
    rate["all"] += 1
    if row["hallucinated"] is not None:
        found.judges[row["judge"] or "not said"] += 1
        rate.update(labelled=1, hallucinated=int(row["hallucinated"]))
    config = record.get("config") or {}
    for key in dialogue_keys():
        if key in config:
            found.settings.setdefault(key, set()).add(json.dumps(config[key]))


# --- score books --------------------------------------------------------------------------------


def _joined(
    name: str, book: ScoreBook, labels: Mapping[str, tuple[str, str, int | None]]
) -> list[str]:
    """Return the item of each of a book's items, in their order."""
    known: dict[tuple[str, str], list[str]] = {}
    for item, (own, domain, _) in labels.items():
        known.setdefault((own, domain), []).append(item)
    return [_item_of(one, known, labels, name) for one in book.items]


def _item_of(one: BookItem, known: Mapping, labels: Mapping, book: str) -> str:
    fits = known.get((one.id, one.domain), [])
    if len(fits) > 1:  # the same id in several folders: the one whose path ends the book's
        path = f"/{Path(one.path).with_suffix('').as_posix()}"
        fits = [item for item in fits if path.endswith(f"/{item}")]
    if len(fits) != 1:
        why = "more than once" if fits else "not"
        raise UserError(
            f'the score book "{book}" is about the dialogue {one.id!r} of "{one.domain}", which '
            f"the folder of pairs has {why}; give the folder that the book was made of"
        )
    if labels[fits[0]][2] not in (None, one.y):
        raise UserError(
            f'the score book "{book}" and the pair "{fits[0]}" differ in its label; make the book '
            "again with score_methods.py, or give the folder with the labels that it was made of"
        )
    return fits[0]


def _write_scores(
    books: Mapping[str, ScoreBook], items: Mapping[str, list[str]], work: Path, found: Published
) -> None:
    import pyarrow as pa

    scores, turns = (_Writer(work, name, found) for name in ("scores", "turn_scores"))
    for name, book in books.items():
        for key, values in book.scores.items():
            method, domain, seed = key
            told = book.methods[method]
            found.methods[method] = for_all_eyes(f"{told['title']} ({told['family']})")
            kept = np.flatnonzero(np.isfinite(values))
            split = book.splits.get(domain, np.full(values.size, ""))
            scores.add_columns({
                **_shared(name, items[name], kept, domain, seed),
                "method": pa.repeat(method, kept.size),
                "split": pa.array([str(split[place]) or None for place in kept], pa.string()),
                "score": pa.array(values[kept].astype(np.float64)),
            })  # fmt: skip
        for (scorer, domain, seed), matrix in book.turns.items():
            kept = np.flatnonzero(np.isfinite(matrix).any(axis=1))
            turns.add_columns({
                **_shared(name, items[name], kept, domain, seed),
                "scorer": pa.repeat(scorer, kept.size),
                "scores": pa.array(list(_trimmed(matrix[kept])), pa.list_(pa.float32())),
            })  # fmt: skip
    scores.close()
    turns.close()


def _shared(book: str, items: list[str], kept: np.ndarray, domain: str, seed: int) -> dict:
    import pyarrow as pa

    return {
        "item": pa.array([items[place] for place in kept], pa.string()),
        "book": pa.repeat(book, kept.size),
        "training_domain": pa.array([domain or None] * kept.size, pa.string()),
        "probe_seed": pa.array(np.full(kept.size, seed, dtype=np.int64)),
    }


def _trimmed(matrix: Iterable[np.ndarray]) -> Iterator[list[float | None]]:
    """Yield each row without the empty end after a dialogue's last turn; a gap is null."""
    for row in matrix:
        known = np.isfinite(row)
        last = int(np.flatnonzero(known)[-1]) + 1
        yield [float(value) if there else None
               for value, there in zip(row[:last], known[:last], strict=True)]  # fmt: skip
