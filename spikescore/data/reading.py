"""Questions as one record, read from the files that the data sets' publishers ship.

Each native schema has one small adapter (`spikescore.data.formats`). The format is recognised from
the first row, or forced by name. A row that does not fit is an error that names file, row and
field; with `on_bad_row="skip"` it is left out and its reason kept.

Only `context`, `history`, `question` and `choices` are ever shown to a model. Worked solutions,
known wrong answers, labels and what else the row says go to `meta`, which no prompt reads.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from spikescore.data.fields import BadRow, described, is_withheld, kind, make_plain, shown
from spikescore.data.files import data_files, ragtruth_rows, read_rows, split_of
from spikescore.data.formats import Format, check_format, domain_of, find_format, told_by_path
from spikescore.data.question import Question
from spikescore.data.selection import FILTERED_FIELDS, check_filters, fits
from spikescore.errors import UserError
from spikescore.pairs import file_id

log = logging.getLogger("spikescore")


@dataclass(frozen=True)
class Skipped:
    """A row left out: where it stands in the file, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class LoadedQuestions:
    """What a data file held: its questions, the rows left out, and the format it was read as.

    `filtered` counts the good questions that the filters left out, `repeated` those that the
    publisher's files hold a second time.
    """

    questions: list[Question]
    skipped: list[Skipped]
    dataset_format: str
    filtered: int = 0
    repeated: int = 0


def load_questions(path: str | Path, **options: Any) -> LoadedQuestions:
    """Read all questions of a file or a folder: the stream of `iter_questions`, as a list."""
    stream = iter_questions(path, **options)
    questions = list(stream)
    return LoadedQuestions(
        questions, stream.skipped, stream.dataset_format, stream.filtered, stream.repeated
    )


def iter_questions(
    path: str | Path,
    *,
    dataset_format: str = "auto",
    fields: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
    filters: Mapping[str, Any] | None = None,
    answerable_only: bool = False,
    split: str | None = None,
) -> QuestionStream:
    """Return the questions of a file (see `files` for the kinds) or a folder, one row at a time.

    `fields` maps our names to the file's ({"question": "q", "gold_answers": "a"}) for a format
    that has no adapter. `filters` keeps the questions whose `meta`, column, domain, group or
    answer_type fits (see `selection.fits`). `answerable_only` leaves out questions that their set
    marks as without an answer. `split` (train, validation, test) takes the files of that split
    alone.

    Ids are unique and do not depend on the order of rows. A question that a publisher's files
    repeat counts once. Memory grows by the ids alone (about 0.3 KB a question). While it is read,
    UserError is raised for a file that is missing, empty, not UTF-8, broken, of unknown format, or
    (unless `on_bad_row` is "skip") that has a bad row or two questions with one id.
    """
    if on_bad_row not in ("error", "skip"):
        raise UserError(f'config key "on_bad_row": "{on_bad_row}" is not one of error, skip')
    check_format(dataset_format, fields)
    check_filters(filters or {})
    return QuestionStream(
        Path(path), dataset_format, fields, on_bad_row == "skip", filters or {}, answerable_only,
        split,
    )  # fmt: skip


@dataclass(eq=False)
class QuestionStream:
    """The questions of a file or folder, read anew by every `iter()`.

    What was left out so far is in `skipped`, `filtered` and `repeated`, the format in
    `dataset_format`.
    """

    path: Path
    wanted: str
    fields: Mapping[str, str] | None
    skip: bool
    filters: Mapping[str, Any]
    answerable_only: bool
    split: str | None

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.skipped: list[Skipped] = []
        self.filtered = self.repeated = 0
        self.dataset_format = self.wanted
        self._format: Format | None = None
        self._withholds = False
        self._domain = ""
        self._file: Path | None = None
        self._told: tuple[str | None, str, str | None] = None, "", None
        self._seen: dict[str, str] = {}
        self._alike: set[str] | None = None
        self._apart: dict[str, dict[str, set[str]]] | None = None

    def __iter__(self) -> Iterator[Question]:
        if self.filters:
            self._check_filter_keys()
        self._start()
        n = bare = 0
        for file, where, row in self._rows():
            for question in self._questions(file, where, row):
                if not self._passes(question, row):
                    self.filtered += 1
                    continue
                n += 1
                bare += _lacks_answer(question)
                yield question
        if n == 0:
            self._refuse_empty()
        if self.skipped:
            first = self.skipped[0]
            log.warning("%s: %d bad rows skipped; the first: %s, %s",
                        self.path, len(self.skipped), first.where, first.reason)  # fmt: skip
        if self.repeated:
            log.info("%s: %d questions stand there again and count once", self.path, self.repeated)
        if bare:
            log.warning("%s: %d of %d questions come without an answer (some test splits withhold "
                        "theirs): they get no label by rule", self.path, bare, n)  # fmt: skip

    # --- rows ---------------------------------------------------------------------------------

    def _rows(self) -> Iterator[tuple[Path, str, Any]]:
        """Yield (file, where, row) of all files of the split that is wanted."""
        joined = ragtruth_rows(self.path) if self.wanted in ("auto", "ragtruth") else None
        if joined is not None:
            yield from ((self.path, where, row) for where, row in joined)
            return
        for file in data_files(self.path):
            if self.split in (None, split_of(file, self.path)):
                prefix = f'file "{file.relative_to(self.path)}" ' if file != self.path else ""
                for where, row in read_rows(file):
                    yield file, f"{prefix}{where}", row

    def _questions(self, file: Path, where: str, row: Any) -> list[Question]:
        """Return the questions of a row that are new, none when it is left out."""
        try:
            found = [self._finished(one, row, file) for one in self._adapted(row)]
            return self._new(found, where, row)
        except RecursionError:
            bad = BadRow(None, "lists or objects are nested too deeply")
        except BadRow as error:
            bad = error
        if not self.skip:
            mend = 'mend "fields" or the row' if self.fields else "mend the row"
            raise UserError(
                f'dataset "{self.path}", {where}, {bad}; '
                f'{mend}, or set "on_bad_row": "skip" to leave such rows out'
            ) from bad
        self.skipped.append(Skipped(where, str(bad)))
        return []

    def _adapted(self, row: Any) -> list[Question]:
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, dict):
            raise BadRow(None, f"expected a JSON object, found {kind(row)}")
        found = self._format or find_format(row, self.wanted, self.fields)
        withholds = found.withholds(row)
        if withholds and self._format and not self._withholds:
            given = f"the rows before have one ({shown(row.get(found.gold))!r} here)"
            raise BadRow(found.gold, f"missing or empty, and {given}")
        questions = list(found.adapter(row))
        if self._format is None:
            # a row that is read fixes the format: a bad first row must not
            self._format, self.dataset_format, self._withholds = found, found.name, withholds
        return questions

    def _finished(self, question: Question, row: Any, file: Path) -> Question:
        """Add what all adapters leave to us: domain, split, short columns; marks are no answers."""
        if len(question.choices or ()) > len(ascii_uppercase):
            raise BadRow(None, f"{len(question.choices)} options are more than there are letters")
        known = self._format
        if file is not self._file:
            told = told_by_path(known.name, file)
            self._file, self._told = file, (split_of(file, self.path), *told)
        split, edition, language = self._told
        said = {}
        if known.is_publishers and not known.tells_all:
            said = described(row, _content(question), question.meta)
        if not question.domain and not self._domain:
            self._domain = domain_of(self.path, known.name)
        domain = edition or question.domain or self._domain
        meta = {**({"split": split} if split else {}), **said, **question.meta}
        if language and "language" not in question.meta:
            meta["language"] = language
            domain = domain if language == "en" else f"{domain}_{language}"
        golds = tuple([gold for gold in question.gold_answers if not is_withheld(gold)])
        return _changed(question, domain=domain, gold_answers=golds, meta=make_plain(meta))

    # --- ids ----------------------------------------------------------------------------------

    def _new(self, found: list[Question], where: str, row: Any) -> list[Question]:
        """Return the questions of a row that were not seen, under ids that can name a file.

        Raises BadRow when two questions have one id.
        """
        new, marks = [], {}
        for one in found:
            item = self._safe_id(one.id)
            if self._format.apart:
                item = self._told_apart(item, one, row, self._format.apart)
            same = (one.question, one.choices)
            if self._format.name == "generic":  # its ids may be of a text that several ask about
                same = (*same, one.context, one.gold_answers)
            mark = f"{where} {hash(same) & 0xFFFFFFFF:08x}"
            # GSM8K's configuration "socratic" has the questions of "main" with other solutions
            key = one.question if self._format.name == "gsm8k" else item
            before = marks.get(key) or self._seen.get(key)
            if before is None:
                marks[key] = mark
                new.append(one if one.id == item else _changed(one, id=item))
            elif before[-8:] == mark[-8:] and self._format.is_publishers:
                self.repeated += 1
            elif isinstance(row, dict) and self._format.name == "project" and "id" not in row:
                raise BadRow(None, f"is the same as {before[:-9]}; give each an id, or drop one")
            else:
                raise BadRow("id", f'"{shown(one.id)}" is already used by {before[:-9]}')
        self._seen.update(marks)
        return new

    def _safe_id(self, own: str) -> str:
        """Return an id as a file can be named after it; ids that differ stay apart.

        What cannot stand in a name becomes "_", and where that makes two ids of the set alike each
        of the changed ones gets a hash of its own.
        """
        safe = file_id(own, "")
        if safe == own:
            return own
        if self._alike is None:
            self._alike = self._alike_ids()
        return f"{safe}_{_short_hash(own)}" if safe in self._alike else safe

    def _alike_ids(self) -> set[str]:
        """Read the files once more for the names that several ids of the set would share."""
        owners: dict[str, str] = {}
        alike = set()
        for _, _, row in self._rows():
            for own in self._ids_of(row):
                safe = file_id(own, "")
                if owners.setdefault(safe, own) != own:
                    alike.add(safe)
        return alike

    def _told_apart(self, item: str, question: Question, row: Any, field: str) -> str:
        """Return the id, with the field that tells rows of one id apart and, if need be, a hash."""
        if self._apart is None:
            self._apart = self._contents_by_id(field)
        named = self._apart.get(question.id, {})
        if sum(map(len, named.values())) < 2:
            return item
        value = str(row.get(field))
        parts = [file_id(value, value)] + [_content_hash(row)] * (len(named.get(value, ())) > 1)
        return ".".join([item, *parts])

    def _contents_by_id(self, field: str) -> dict[str, dict[str, set[str]]]:
        """Read the files once more: id -> value of the field -> hashes of the rows with both."""
        found: dict[str, dict[str, set[str]]] = {}
        for _, _, row in self._rows():
            for own in self._ids_of(row):
                values = found.setdefault(own, {})
                values.setdefault(str(row.get(field)), set()).add(_content_hash(row))
        return found

    def _ids_of(self, row: Any) -> list[str]:
        try:
            return [question.id for question in self._adapted(row)]
        except (BadRow, RecursionError):
            return []

    # --- filters ------------------------------------------------------------------------------

    def _passes(self, question: Question, row: Any) -> bool:
        if self.answerable_only and question.meta.get("answerable") is False:
            return False
        return all(fits(question, row, name, wanted) for name, wanted in self.filters.items())

    def _check_filter_keys(self) -> None:
        """Raise UserError for a filter by a key that no row has, having read until all are seen."""
        self._start()
        keys = set(FILTERED_FIELDS)
        for file, _, row in self._rows():
            try:
                questions = [self._finished(one, row, file) for one in self._adapted(row)]
            except (BadRow, RecursionError):
                continue
            keys = keys.union(row, *(question.meta for question in questions))
            if keys >= set(self.filters):
                return
        unknown = sorted(set(self.filters) - keys)
        if self._format is not None and unknown:
            near = difflib.get_close_matches(unknown[0], map(str, keys), n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"it has {shown(sorted(keys))}"
            raise UserError(
                f'config key "filters": no question of "{self.path}" has "{unknown[0]}"; {hint}'
            )

    def _refuse_empty(self) -> None:
        why = ""
        if self.skipped:
            first = self.skipped[0]
            n = len(self.skipped)
            why = f" ({n} rows skipped; the first: {first.where}, {first.reason})"
        if self.filtered:
            why += f" ({self.filtered} questions do not pass the filters)"
        if self.split:
            why += f" (of its split {self.split})"
        raise UserError(f'dataset "{self.path}" holds no question{why}; check "dataset_path"')


def _changed(question: Question, **values: Any) -> Question:
    """Do what `dataclasses.replace` does, in a fifth of the time: there may be many rows."""
    changed = object.__new__(Question)
    vars(changed).update(vars(question), **values)
    return changed


def _short_hash(text: str) -> str:
    """Return 8 hex digits of a text's hash; half a character counts as it stands."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _content_hash(row: Any) -> str:
    return _short_hash(json.dumps(row, sort_keys=True, default=str))


def _content(question: Question) -> list[str]:
    """Return the texts that a question is made of, and its answers: no description of it."""
    meta = question.meta
    wrong, solution = meta.get("incorrect_answers", ()), meta.get("solution", "")
    texts = [question.id, question.question, question.context or "", solution, *wrong]
    return [*texts, *question.gold_answers, *(question.choices or ())]


def _lacks_answer(question: Question) -> bool:
    meta = question.meta
    return (
        not question.gold_answers and meta.get("answerable") is not False and "shipped" not in meta
    )
