"""Questions as one record, read from the files that the data sets' publishers ship.

Each native schema has one small adapter (`spikescore.data.formats`). The format is recognised from
the first row, or forced by name. A row that does not fit is an error that names file, row and
field; with `on_bad_row="skip"` it is left out and its reason kept.

Only `context`, `history`, `question` and `choices` are ever shown to a model. Worked solutions,
known wrong answers, labels and other extras go to `meta`, which no prompt reads.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spikescore.data.fields import BadRow, kind, shown
from spikescore.data.files import Rows, ragtruth_rows, read_rows
from spikescore.data.formats import Format, check_format, find_format, parquet_columns
from spikescore.data.question import Question
from spikescore.errors import UserError

log = logging.getLogger("spikescore")

_BOUNDS = ("min", "max", "below")


@dataclass(frozen=True)
class Skipped:
    """A row left out: where it stands in the file, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class LoadedQuestions:
    """What a data file held: its questions, the rows left out, and the format it was read as.

    `filtered` counts the good questions that the filters left out.
    """

    questions: list[Question]
    skipped: list[Skipped]
    dataset_format: str
    filtered: int = 0


def load_questions(
    path: str | Path,
    *,
    dataset_format: str = "auto",
    fields: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
    filters: Mapping[str, Any] | None = None,
    answerable_only: bool = False,
) -> LoadedQuestions:
    """Read all questions of a file (JSON, JSONL, CSV, Parquet, each also gzipped) or a folder.

    `fields` maps our names to the file's ({"question": "q", "gold_answers": "a"}) for a format
    that has no adapter. `filters` keeps the questions whose `meta` (or domain, group, answer_type)
    fits: {"scope": "word"}, {"scope": ["word", "lens"]}, or for numbers {"bb_answer_score_max":
    {"min": 0.1, "below": 0.4}} ("min" and "max" include the bound, "below" does not; null fits no
    bound). `answerable_only` leaves out questions that their set marks as without an answer.

    Ids are unique and do not depend on the order of rows. Raises UserError for a file that is
    missing, empty, not UTF-8, broken, of unknown format, or (unless `on_bad_row` is "skip") that
    has a bad row or two rows with one id.
    """
    stream = iter_questions(
        path,
        dataset_format=dataset_format,
        fields=fields,
        on_bad_row=on_bad_row,
        filters=filters,
        answerable_only=answerable_only,
    )
    questions = list(stream)
    return LoadedQuestions(questions, stream.skipped, stream.dataset_format, stream.filtered)


def iter_questions(
    path: str | Path,
    *,
    dataset_format: str = "auto",
    fields: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
    filters: Mapping[str, Any] | None = None,
    answerable_only: bool = False,
) -> QuestionStream:
    """Return the questions of `load_questions` as a stream that holds one row at a time.

    Memory grows by the ids alone (about 0.2 KB a question), which must be unique. Errors are raised
    while it is read.
    """
    if on_bad_row not in ("error", "skip"):
        raise UserError(f'config key "on_bad_row": "{on_bad_row}" is not one of error, skip')
    check_format(dataset_format, fields)
    checked = _checked_filters(filters or {})
    return QuestionStream(
        Path(path), dataset_format, fields, on_bad_row == "skip", checked, answerable_only
    )


class QuestionStream:
    """The questions of a file, read anew by every `iter()`.

    What was left out so far is in `skipped` and `filtered`, the format in `dataset_format`.
    """

    def __init__(
        self,
        path: Path,
        wanted_format: str,
        fields: Mapping[str, str] | None,
        skip: bool,
        filters: Mapping[str, Any],
        answerable_only: bool,
    ) -> None:
        self._path = path
        self._wanted = wanted_format
        self._fields = fields
        self._skip = skip
        self._filters = filters
        self._answerable_only = answerable_only
        self._start()

    def _start(self) -> None:
        self.skipped: list[Skipped] = []
        self.filtered = 0
        self.dataset_format = self._wanted
        self._format: Format | None = None
        self._seen: dict[str, str] = {}
        self._n_repeated = 0

    def __iter__(self) -> Iterator[Question]:
        self._start()
        n, keys = 0, set()
        domain = Path(self._path.stem).stem if self._path.suffix == ".gz" else self._path.stem
        for where, row in self._rows():
            for question in self._questions(where, row):
                if self._filters:
                    keys |= question.meta.keys()
                if not self._passes(question):
                    self.filtered += 1
                    continue
                n += 1
                yield question if question.domain else replace(question, domain=domain)
        if n == 0:
            self._refuse_empty(keys)
        if self.skipped:
            first = self.skipped[0]
            n_bad = len(self.skipped) - self._n_repeated
            log.warning(
                "%s: %d bad rows and %d repeated ones skipped; the first: %s, %s",
                self._path, n_bad, self._n_repeated, first.where, first.reason,
            )  # fmt: skip

    def _rows(self) -> Rows:
        joined = ragtruth_rows(self._path) if self._wanted in ("auto", "ragtruth") else None
        if joined is not None:
            return joined
        return read_rows(
            self._path, lambda names: parquet_columns(names, self._wanted, self._fields)
        )

    def _questions(self, where: str, row: Any) -> list[Question]:
        """Return the questions of a row, none when it is left out."""
        try:
            found = self._adapted(row)
            ids = [question.id for question in found]
            if len(set(ids)) == len(ids) and self._seen.keys().isdisjoint(ids):
                self._seen.update(dict.fromkeys(ids, where))
                return found
            twin = next(one for one in ids if one in self._seen or ids.count(one) > 1)
            first = self._seen.get(twin, where)
            if self._format.repeats:
                self._n_repeated += 1
                self.skipped.append(Skipped(where, f"the same as {first}"))
                return []
            raise BadRow("id", f'"{twin}" is already used by {first}')
        except RecursionError:
            bad = BadRow(None, "lists or objects are nested too deeply")
        except BadRow as error:
            bad = error
        if not self._skip:
            raise UserError(
                f'dataset "{self._path}", {where}, {bad}; '
                'mend the row, or set "on_bad_row": "skip" to leave such rows out'
            ) from bad
        self.skipped.append(Skipped(where, str(bad)))
        return []

    def _adapted(self, row: Any) -> list[Question]:
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, dict):
            raise BadRow(None, f"expected a JSON object, found {kind(row)}")
        if self._format is not None:
            return list(self._format.adapter(row))
        found = find_format(row, self._wanted, self._fields)
        questions = list(found.adapter(row))
        # a row that is read fixes the format: a bad first row must not
        self._format, self.dataset_format = found, found.name
        return questions

    def _passes(self, question: Question) -> bool:
        if self._answerable_only and question.meta.get("answerable") is False:
            return False
        return all(_fits(question, name, wanted) for name, wanted in self._filters.items())

    def _refuse_empty(self, keys: set[str]) -> None:
        unknown = [name for name in self._filters if name not in {*keys, *_FILTERED_FIELDS}]
        if self.filtered and unknown:
            near = difflib.get_close_matches(unknown[0], keys, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"it has {shown(sorted(keys))}"
            raise UserError(
                f'config key "filters": no question of "{self._path}" has "{unknown[0]}"; {hint}'
            )
        why = ""
        if self.skipped:
            first = self.skipped[0]
            n = len(self.skipped)
            why = f" ({n} rows skipped; the first: {first.where}, {first.reason})"
        if self.filtered:
            why += f" ({self.filtered} questions do not pass the filters)"
        raise UserError(f'dataset "{self._path}" holds no question{why}; check "dataset_path"')


# --- filters ----------------------------------------------------------------------------------

_FILTERED_FIELDS = ("domain", "group", "answer_type")


def _checked_filters(filters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raise UserError for a filter of unknown form."""
    for name, wanted in filters.items():
        if not isinstance(wanted, Mapping):
            continue
        numbers = (value for value in wanted.values() if not isinstance(value, bool))
        if not set(wanted) <= set(_BOUNDS) or not wanted:
            raise UserError(
                f'config key "filters", "{name}": use {" and ".join(_BOUNDS)} as keys, '
                'e.g. {"min": 0.1, "below": 0.4}'
            )
        if sum(isinstance(value, int | float) for value in numbers) < len(wanted):
            raise UserError(f'config key "filters", "{name}": the bounds must be numbers')
    return filters


def _fits(question: Question, name: str, wanted: Any) -> bool:
    meta = question.meta
    value = getattr(question, name) if name in _FILTERED_FIELDS else meta.get(name)
    if isinstance(wanted, Mapping):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return (
            number
            and value >= wanted.get("min", -math.inf)
            and value <= wanted.get("max", math.inf)
            and value < wanted.get("below", math.inf)
        )
    return value in wanted if isinstance(wanted, list | tuple) else value == wanted
