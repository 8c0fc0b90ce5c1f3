"""Passages for questions, found by BM25 in a user's documents.

The documents are a folder of texts (.txt, .md) and tables, or one such file; a table's rows hold
`text` (or `contents`), and may hold `id` and `title`. Each is cut into passages of 100 words, which
compete with each other over all documents. Where questions name documents of their own, as those of
TriviaQA do, and these lie in the folder, every question is searched for in its own documents alone.

BM25 is that of the package bm25s (Lù 2024): Lucene's variant, k1 = 1.5, b = 0.75, words folded to
lower case, English function words left out. A passage that shares no word with the question is no
hit. Equal scores are in the order of the documents.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from spikescore.data.fields import BadRow, kind, optional_text, text
from spikescore.data.files import is_data, read_rows
from spikescore.data.question import Question
from spikescore.errors import UserError
from spikescore.files import walk

log = logging.getLogger("spikescore")

PASSAGE_WORDS = 100
"""Words of a passage, as Karpukhin et al. (2020) cut Wikipedia."""
_TEXTS = (".txt", ".md")


@dataclass(frozen=True)
class Passage:
    """A part of a document; `id` is the document's and the part's number: "Paris.txt#3"."""

    id: str
    text: str


@dataclass(frozen=True)
class Found:
    """Questions with their passages, and how many of them have what.

    `own` came with a passage, which they keep; `without` have no hit; `named` says that each was
    searched for in the documents that it names.
    """

    questions: list[Question]
    found: int
    own: int
    without: int
    named: bool

    def __str__(self) -> str:
        where = " in the documents that each names" if self.named else ""
        parts = [f"{self.found} of {len(self.questions)} questions got passages{where}"]
        parts += [f"{self.without} have none: no passage shares a word with them"] * bool(
            self.without
        )
        parts += [f"{self.own} keep the passage that they came with"] * bool(self.own)
        return "; ".join(parts)


def with_passages(questions: Sequence[Question], source: Path, top_k: int) -> Found:
    """Give each question the `top_k` best passages of the documents in `source` as its passage.

    Which ones, and their scores, go to `meta["retrieved"]` as [{"id", "score"}], best first. A
    statement that a dialogue begins with asks for no passage. UserError for documents that cannot
    be read, naming file and row.
    """
    asked = [not one.context and not _is_statement(one) for one in questions]
    wanted = [one for one, asks in zip(questions, asked, strict=True) if asks]
    paths = [_own_documents(one, source) for one in wanted]
    named = any(paths)
    whole = Index(()) if named or not wanted else Index(passages(source))
    found: dict[int, Question] = {}
    for question, own in zip(wanted, paths, strict=True):
        index = Index(one for path in own for one in _cut(*_text(path, source))) if named else whole
        found[id(question)] = _shown(question, index.search(question.question, top_k))
    done = [found.get(id(question), question) for question in questions]
    hits = sum(bool(one.context) for one in found.values())
    n_own = sum(bool(one.context) for one in questions)
    return Found(done, hits, n_own, len(wanted) - hits, named)


def _is_statement(question: Question) -> bool:
    return question.first_answer is not None and question.first_answer.question is not None


def _shown(question: Question, hits: Sequence[tuple[Passage, float]]) -> Question:
    said = tuple({"id": one.id, "score": round(score, 4)} for one, score in hits)
    return replace(
        question,
        context="\n\n".join(one.text for one, _ in hits) or None,
        meta={**question.meta, "retrieved": said},
    )


# --- documents --------------------------------------------------------------------------------


def passages(source: Path) -> Iterator[Passage]:
    """Yield the passages of all documents of a file or folder, in a fixed order.

    UserError for one that is missing, holds no document, or has a row without a text. Files of
    other kinds are told of; hidden ones are not looked at.
    """
    if not source.exists():
        raise UserError(f'documents "{source}" do not exist; check "context": {{"from": ...}}')
    none, left = True, Counter()
    for file in walk(source) if source.is_dir() else [source]:
        if any(part.startswith(".") for part in file.relative_to(source).parts):
            continue
        if file.suffix.lower() in _TEXTS:
            documents = [_text(file, source)]
        elif is_data(file) or file == source:
            documents = _rows(file, source)
        else:
            left[file.suffix or file.name] += 1
            continue
        for document in documents:
            for one in _cut(*document):
                none = False
                yield one
    if left:
        kinds = ", ".join(f"{n} {kind}" for kind, n in left.most_common(8))
        log.warning('documents "%s": files that are no texts or tables left out: %s', source, kinds)
    if none:
        raise UserError(
            f'documents "{source}" hold no text; give a folder of .txt files, or JSONL rows with '
            '"text"'
        )


def _text(file: Path, source: Path) -> tuple[str, str, str]:
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f'document "{file}" is not UTF-8 text; convert it first') from error
    except OSError as error:
        raise UserError(f'document "{file}" cannot be read: {error.strerror}') from error
    if "\0" in content:  # UTF-16 without a mark
        raise UserError(f'document "{file}" is not UTF-8 text; convert it first')
    return _name(file, source), "", content


def _rows(file: Path, source: Path) -> Iterator[tuple[str, str, str]]:
    for where, row in read_rows(file):
        try:
            if isinstance(row, BadRow):
                raise row
            if not isinstance(row, dict):
                raise BadRow(None, f"expected a JSON object, found {kind(row)}")
            content = text(row, "contents" if "contents" in row and "text" not in row else "text")
            known = optional_text(row, "id") or optional_text(row, "_id")
            title = optional_text(row, "title") or ""
        except BadRow as bad:
            raise UserError(f'documents "{file}", {where}, {bad}; mend the row') from bad
        yield known or f"{_name(file, source)}:{where.split()[-1]}", title, content


def _name(file: Path, source: Path) -> str:
    return file.relative_to(source).as_posix() if file != source else file.name


def _cut(name: str, title: str, content: str) -> Iterator[Passage]:
    words = content.split()
    for number, start in enumerate(range(0, len(words), PASSAGE_WORDS), start=1):
        part = " ".join(words[start : start + PASSAGE_WORDS])
        yield Passage(f"{name}#{number}", f"{title}\n{part}" if title else part)


def _own_documents(question: Question, source: Path) -> list[Path]:
    """Return the files of `source`, or of its folder `evidence`, that the question names."""
    names = question.meta.get("evidence") or ()
    if not names or not source.is_dir():
        return []
    paths = (folder / name for name in names for folder in (source, source / "evidence"))
    return list(dict.fromkeys(path for path in paths if path.is_file()))


# --- BM25 -------------------------------------------------------------------------------------


class Index:
    """Passages by their words."""

    def __init__(self, found: Iterable[Passage]) -> None:
        self._passages = list(found)

    @cached_property
    def _scorer(self):  # noqa: ANN202  (a type of bm25s)
        import bm25s  # here: it takes a while to load, and most runs have no documents

        words = _words([one.text for one in self._passages])
        if not words.vocab:
            return None
        scorer = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        scorer.index(words, show_progress=False)
        return scorer

    def search(self, query: str, top_k: int) -> list[tuple[Passage, float]]:
        """Return the best passages with their scores; none that has no word of the query."""
        if not self._passages or self._scorer is None:
            return []
        (words,) = _words([query], return_ids=False)
        known = [word for word in words if word in self._scorer.vocab_dict]
        if not known:
            return []
        scores = np.asarray(self._scorer.get_scores(known), dtype=float)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [(self._passages[at], float(scores[at])) for at in order if scores[at] > 0]


def _words(texts: list[str], **options: bool):  # noqa: ANN202
    import bm25s

    return bm25s.tokenize(
        texts,
        lower=True,
        token_pattern=r"(?u)\b\w+\b",
        stopwords="english_plus",
        show_progress=False,
        **options,
    )
