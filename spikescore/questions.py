"""Questions as one record, read from the files that the data sets' publishers ship.

Each native schema has one small adapter: a function from a row of the file to questions. The
format is recognised from the first row, or forced by name. A row that does not fit is an error that
names file, row and field; with `on_bad_row="skip"` it is left out and its reason kept.

Only `context`, `history`, `question` and `choices` are ever shown to a model. Worked solutions and
other extras go to `meta`, which no prompt reads.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikescore.errors import UserError
from spikescore.pairs import file_id
from spikescore.seeding import derived_seed

log = logging.getLogger("spikescore")

ANSWER_TYPES = ("exact", "numeric", "choice", "math")
STRATEGIES = ("all", "random", "sequential", "balanced", "stratified")

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One item: what the model is shown, and what a judge needs to label its first answer.

    `history` holds earlier (question, answer) turns of a conversation. `gold_answers` are accepted
    answers; for `answer_type` "choice" the option's text and its letter. `group` names items that
    belong together (turns of one story), the unit of bootstrap resampling.
    """

    id: str
    domain: str
    question: str
    context: str | None = None
    choices: tuple[str, ...] | None = None
    gold_answers: tuple[str, ...] = ()
    group: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    answer_type: str = "exact"
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A row left out: where it stands in the file, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class LoadedQuestions:
    """What a data file held: its questions, the rows left out, and the format it was read as."""

    questions: list[Question]
    skipped: list[Skipped]
    dataset_format: str


class BadRow(ValueError):
    """A row that cannot become a question; `name` is the field at fault."""

    def __init__(self, name: str | None, what: str) -> None:
        super().__init__(f'field "{name}": {what}' if name else what)


def load_questions(
    path: str | Path,
    *,
    dataset_format: str = "auto",
    fields: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
) -> LoadedQuestions:
    """Read questions from a JSON list, a JSON object, JSONL, or a folder of such files.

    `fields` maps our names to the file's ({"question": "q", "gold_answers": "a"}) for a format
    that has no adapter. Ids are unique and do not depend on the order of rows. Raises UserError for
    a file that is missing, empty, not UTF-8, broken, of unknown format, or (unless `on_bad_row` is
    "skip") that has a bad row or two rows with one id.
    """
    path = Path(path)
    if on_bad_row not in ("error", "skip"):
        raise UserError(f'config key "on_bad_row": "{on_bad_row}" is not one of error, skip')
    _check_format_name(dataset_format, fields)
    adapter: Callable[[Row], Iterable[Question]] | None = None
    questions: list[Question] = []
    skipped: list[Skipped] = []
    seen: dict[str, str] = {}
    for where, row in _rows(path):
        try:
            if isinstance(row, BadRow):
                raise row
            if not isinstance(row, dict):
                raise BadRow(None, f"expected a JSON object, found {_kind(row)}")
            if adapter is None:
                dataset_format, adapter = _adapter(row, dataset_format, fields)
            found = list(adapter(row))
            twins = [question.id for question in found if question.id in seen]
            if twins:
                raise BadRow("id", f'"{twins[0]}" is already used by {seen[twins[0]]}')
        except BadRow as bad:
            if on_bad_row == "error":
                raise UserError(
                    f'dataset "{path}", {where}, {bad}; '
                    'mend the row, or set "on_bad_row": "skip" to leave such rows out'
                ) from bad
            skipped.append(Skipped(where, str(bad)))
            continue
        seen.update((question.id, where) for question in found)
        questions.extend(found)
    if not questions:
        why = f" ({len(skipped)} rows skipped; the first: {skipped[0].reason})" if skipped else ""
        raise UserError(f'dataset "{path}" holds no question{why}; check "dataset_path"')
    if skipped:
        log.warning(
            "%s: %d bad rows skipped; the first: %s, %s",
            path, len(skipped), skipped[0].where, skipped[0].reason,
        )  # fmt: skip
    domains = {question.domain for question in questions} - {""}
    if not domains:
        questions = [_with_domain(question, path.stem) for question in questions]
    return LoadedQuestions(questions, skipped, dataset_format)


def _with_domain(question: Question, domain: str) -> Question:
    return Question(**{**vars(question), "domain": domain})


# --- files to rows ----------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) of a file, or of every JSON file in a folder; BadRow for a broken line."""
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix in (".json", ".jsonl") and not file.name.startswith(".")
        )
        if not files:
            raise UserError(f'dataset folder "{path}" holds no .json or .jsonl file')
        for file in files:
            for where, row in _file_rows(file):
                yield f'file "{file.relative_to(path)}" {where}', row
    else:
        yield from _file_rows(path)


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = _read_text(path)
    if path.suffix == ".jsonl":
        yield from _lines(text)
        return
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        # JSON objects one a line are often shipped as .json: the first line then stands on its own
        if text.lstrip().startswith("{") and _is_object(text.lstrip().split("\n", 1)[0]):
            yield from _lines(text)
            return
        raise UserError(
            f'dataset "{path}" is not valid JSON ({error}); '
            "it may be cut short, fetch or write it again"
        ) from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("data", "Data") if key in content), [content])
    if not isinstance(content, list):
        raise UserError(
            f'dataset "{path}" must hold a list of objects, found {_kind(content)}; '
            'use a JSON list, {"data": [...]} or one object a line'
        )
    for number, row in enumerate(content, start=1):
        yield f"row {number}", row


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f'dataset "{path}" does not exist; check "dataset_path"') from error
    except OSError as error:
        raise UserError(f'dataset "{path}" cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UserError(
            f'dataset "{path}" is not UTF-8 text (byte {error.start}); '
            "only JSON and JSONL in UTF-8 are read, convert the file first"
        ) from error
    if not text.strip():
        raise UserError(f'dataset "{path}" is empty')
    return text


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = BadRow(None, f"not valid JSON ({error})")
        yield f"line {number}", row


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


# --- fields of a row --------------------------------------------------------------------------


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")


def _get(row: Row, name: str) -> Any:
    if name not in row:
        raise BadRow(name, f"missing (the row has {', '.join(sorted(map(str, row))[:12])})")
    return row[name]


def _text(row: Row, name: str) -> str:
    return _as_text(_get(row, name), name)


def _as_text(value: Any, name: str) -> str:
    """Return a non-empty string; a number becomes its shortest text (17.0 -> "17")."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise BadRow(name, f"{value} is not a number that can be an answer")
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
        return str(int(value)) if whole else str(value)
    if not isinstance(value, str):
        raise BadRow(name, f"expected text, found {_kind(value)}")
    if not value.strip():
        raise BadRow(name, "is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow(name, "holds broken Unicode (half of a surrogate pair)")
    return value.strip()


def _list(row: Row, name: str) -> list[Any]:
    value = _get(row, name)
    if not isinstance(value, list):
        raise BadRow(name, f"expected a list, found {_kind(value)}")
    return value


def _texts(row: Row, name: str) -> tuple[str, ...]:
    """Return a list of non-empty strings; one string or number counts as a list of one."""
    value = _get(row, name)
    values = value if isinstance(value, list) else [value]
    return tuple(_as_text(one, name) for one in values)


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _own_id(row: Row, name: str | None) -> str:
    """Return the row's own id made safe for a file name, or else a hash of the row's content."""
    own = row.get(name) if name else None
    if own is not None and (isinstance(own, bool) or not isinstance(own, str | int)):
        raise BadRow(name, f"expected text or a whole number, found {_kind(own)}")
    return file_id(own, json.dumps(row, sort_keys=True))


def boxed_answer(text: str) -> str | None:
    r"""Return what stands in the last \boxed{...} or \fbox{...} of a LaTeX text, braces matched."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].split("x", 1)[1].removeprefix("ed").lstrip()
    if not rest.startswith("{"):
        word = re.match(r"[^\s$.,]+", rest)
        return word.group() if word else None
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip() or None
    return None


def gold_option(question: Question) -> int | None:
    """Return the index of the right option: by a gold answer's text first, by its letter else."""
    choices = [choice.strip().casefold() for choice in question.choices or ()]
    golds = [gold.strip().casefold() for gold in question.gold_answers]
    for gold in golds:
        if gold in choices:
            return choices.index(gold)
    for gold in golds:
        letter = gold.strip("().")
        if len(letter) == 1 and 0 <= ord(letter) - ord("a") < len(choices):
            return ord(letter) - ord("a")
    return None


# --- adapters: one row of a native schema to questions ----------------------------------------


def _project(row: Row) -> Iterable[Question]:
    """Read the project's own form; names of `Question`, `tier` and other keys going to meta."""
    choices = _texts(row, "choices") if row.get("choices") is not None else None
    answer_type = row.get("answer_type") or ("choice" if choices else "exact")
    if answer_type not in ANSWER_TYPES:
        raise BadRow("answer_type", f'"{answer_type}" is not one of {", ".join(ANSWER_TYPES)}')
    history = []
    for turn in _list(row, "history") if row.get("history") is not None else ():
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRow("history", "expected a list of [question, answer]")
        history.append((_as_text(turn[0], "history"), _as_text(turn[1], "history")))
    known = {"id", "domain", "question", "context", "choices", "gold_answers", "group", "history",
             "answer_type"}  # fmt: skip
    meta = {key: value for key, value in row.items() if key not in known}
    if "tier" in meta:
        meta["stratum"] = meta["tier"]
    question = Question(
        id=_own_id(row, "id"),
        domain=_text(row, "domain") if row.get("domain") is not None else "",
        question=_text(row, "question"),
        context=_text(row, "context") if row.get("context") is not None else None,
        choices=choices,
        gold_answers=_distinct(_texts(row, "gold_answers"))
        if row.get("gold_answers") is not None
        else (),
        group=_text(row, "group") if row.get("group") is not None else None,
        history=tuple(history),
        answer_type=answer_type,
        meta=meta,
    )
    if answer_type == "choice" and not choices:
        raise BadRow("choices", 'missing, but answer_type is "choice"')
    if answer_type == "choice" and question.gold_answers and gold_option(question) is None:
        raise BadRow("gold_answers", "no gold answer is an option's text or letter")
    yield question


def _svamp(row: Row) -> Iterable[Question]:
    body = _text(row, "Body")
    yield Question(
        id=_own_id(row, "ID"),
        domain="svamp",
        question=f"{body}{'' if body[-1] in '.?!,' else '.'} {_text(row, 'Question')}",
        gold_answers=_texts(row, "Answer"),
        answer_type="numeric",
        meta={"stratum": row.get("Type"), "equation": row.get("Equation")},
    )


def _coqa(row: Row) -> Iterable[Question]:
    """One story to its questions; the earlier turns, with first reference answers, are history."""
    story = _own_id(row, "id")
    asked, answers = _list(row, "questions"), _list(row, "answers")
    if len(asked) != len(answers):
        raise BadRow("answers", f"{len(answers)} answers to {len(asked)} questions")
    additional = row.get("additional_answers") or {}
    extra = list(additional.values()) if isinstance(additional, dict) else [additional]
    if not all(isinstance(entries, list) for entries in extra):
        raise BadRow("additional_answers", "expected an object of lists")
    history: list[tuple[str, str]] = []
    for place, (ask, answer) in enumerate(zip(asked, answers, strict=True)):
        others = [entries[place] for entries in extra if place < len(entries)]
        if not all(isinstance(part, dict) for part in (ask, answer, *others)):
            raise BadRow("questions", f"turn {place + 1} is not an object")
        question = _text(ask, "input_text")
        first = _text(answer, "input_text")
        good = [first] + [
            _text(other, "input_text") for other in others if other.get("bad_turn") != "true"
        ]
        yield Question(
            id=file_id(f"{story}_{ask.get('turn_id', place + 1)}", f"{story} {place}"),
            domain="coqa",
            question=question,
            context=_text(row, "story"),
            gold_answers=_distinct(good),
            group=story,
            history=tuple(history),
            meta={"stratum": row.get("source")},
        )
        history.append((question, first))


def _triviaqa(row: Row) -> Iterable[Question]:
    answer = _get(row, "Answer")
    if not isinstance(answer, dict):
        raise BadRow("Answer", f"expected an object, found {_kind(answer)}")
    yield Question(
        id=_own_id(row, "QuestionId"),
        domain="triviaqa",
        question=_text(row, "Question"),
        gold_answers=_distinct((_text(answer, "Value"), *_texts(answer, "Aliases"))),
    )


def _triviaqa_flashrag(row: Row) -> Iterable[Question]:
    yield Question(
        id=_own_id(row, "id"),
        domain="triviaqa",
        question=_text(row, "question"),
        gold_answers=_distinct(_texts(row, "golden_answers")),
    )


def _commonsenseqa(row: Row) -> Iterable[Question]:
    """Both shapes: the publisher's (question: {stem, choices: [{label, text}]}) and the hub's."""
    nested = row.get("question")
    if isinstance(nested, dict):
        stem = _text(nested, "stem")
        options = _list(nested, "choices")
        if not all(isinstance(option, dict) for option in options):
            raise BadRow("question.choices", "expected objects with label and text")
        labels = [_text(option, "label") for option in options]
        choices = [_text(option, "text") for option in options]
    else:
        stem = _text(row, "question")
        options = _get(row, "choices")
        if not isinstance(options, dict):
            raise BadRow("choices", f"expected an object, found {_kind(options)}")
        labels = [_as_text(label, "choices.label") for label in _list(options, "label")]
        choices = [_as_text(text, "choices.text") for text in _list(options, "text")]
    key = _text(row, "answerKey")
    if key not in labels or len(labels) != len(choices):
        raise BadRow("answerKey", f'"{key}" is not one of the labels {", ".join(labels)}')
    right = labels.index(key)
    yield Question(
        id=_own_id(row, "id"),
        domain="commonsenseqa",
        question=stem,
        choices=tuple(choices),
        gold_answers=(choices[right], chr(ord("A") + right)),
        answer_type="choice",
    )


def _belebele(row: Row) -> Iterable[Question]:
    choices = tuple(_text(row, f"mc_answer{number}") for number in (1, 2, 3, 4))
    number = _text(row, "correct_answer_num")
    if number not in ("1", "2", "3", "4"):
        raise BadRow("correct_answer_num", f'"{number}" is not 1, 2, 3 or 4')
    passage = _text(row, "flores_passage")
    yield Question(
        id=_own_id(row, None),
        domain="belebele",
        question=_text(row, "question"),
        context=passage,
        choices=choices,
        gold_answers=(choices[int(number) - 1], "ABCD"[int(number) - 1]),
        group=file_id(None, passage),
        answer_type="choice",
        meta={"stratum": row.get("dialect")},
    )


def _math(row: Row) -> Iterable[Question]:
    """MATH folders, MATH-500, and {en, solution, answer}: the boxed answer is gold.

    The worked solution is kept in meta alone, where the leak guard looks for it.
    """
    solution = _text(row, "solution")
    if row.get("answer") is not None:
        answer = _text(row, "answer")
        gold = boxed_answer(answer) or answer
    else:
        gold = boxed_answer(solution)
        if gold is None:
            raise BadRow("solution", "holds no \\boxed{} answer, and there is no field answer")
    yield Question(
        id=_own_id(row, "unique_id"),
        domain="math",
        question=_text(row, "problem" if "problem" in row else "en"),
        gold_answers=(gold,),
        answer_type="math",
        meta={
            "stratum": row.get("subject") or row.get("type"),
            "level": row.get("level"),
            "solution": solution,
        },
    )


def _gsm8k(row: Row) -> Iterable[Question]:
    worked = _text(row, "answer")
    solution, mark, gold = worked.rpartition("####")
    if not mark or not gold.strip():
        raise BadRow("answer", "no number after ####")
    yield Question(
        id=_own_id(row, None),
        domain="gsm8k",
        question=_text(row, "question"),
        gold_answers=(gold.strip(),),
        answer_type="numeric",
        meta={"solution": solution.strip()},
    )


# --- recognising a format ---------------------------------------------------------------------

# name -> (keys that a row of this format has, adapter); the first format whose keys are there wins.
_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Row], Iterable[Question]]]] = {
    "project": (("question", "gold_answers"), _project),
    "svamp": (("Body", "Question", "Answer"), _svamp),
    "coqa": (("story", "questions", "answers"), _coqa),
    "triviaqa": (("Question", "Answer", "QuestionId"), _triviaqa),
    "triviaqa_flashrag": (("question", "golden_answers"), _triviaqa_flashrag),
    "commonsenseqa": (("question", "answerKey"), _commonsenseqa),
    "belebele": (("flores_passage", "question", "correct_answer_num"), _belebele),
    "math": (("problem", "solution"), _math),
    "math_en": (("en", "solution", "answer"), _math),
    "gsm8k": (("question", "answer"), _gsm8k),
}
FORMATS = (*_FORMATS, "generic")
_FIELDS = ("id", "domain", "question", "context", "choices", "gold_answers", "answer_type", "group",
           "history")  # fmt: skip


def _check_format_name(name: str, fields: Mapping[str, str] | None) -> None:
    if name not in ("auto", *FORMATS):
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"use auto or one of {', '.join(FORMATS)}"
        raise UserError(f'config key "dataset_format": unknown format "{name}"; {hint}')
    if not fields:
        if name == "generic":
            raise UserError(
                'dataset_format "generic" needs the config key "fields", '
                'e.g. {"question": "q", "gold_answers": "a"}'
            )
        return
    if name not in ("auto", "generic"):
        raise UserError(f'config key "fields" is for dataset_format "generic", not "{name}"')
    unknown = [key for key in fields if key not in _FIELDS]
    if unknown or "question" not in fields:
        what = f'"{unknown[0]}" is not a known name' if unknown else '"question" is missing'
        raise UserError(f'config key "fields": {what}; it maps {", ".join(_FIELDS)} to the file\'s')


def _adapter(
    row: Row, name: str, fields: Mapping[str, str] | None
) -> tuple[str, Callable[[Row], Iterable[Question]]]:
    """Return the format's name and adapter: the forced one, or recognised from this row's keys."""
    if fields:
        return "generic", lambda row: _project({ours: _get(row, fields[ours]) for ours in fields})
    if name != "auto":
        return name, _FORMATS[name][1]
    for known, (keys, adapter) in _FORMATS.items():
        if all(key in row for key in keys) and (
            known != "gsm8k" or (isinstance(row["answer"], str) and "####" in row["answer"])
        ):
            return known, adapter
    raise BadRow(
        None,
        f"no known format has these keys ({', '.join(sorted(map(str, row))[:12])}); set "
        f'"dataset_format" to one of {", ".join(_FORMATS)}, or name the keys in '
        '"fields": {"question": "...", "gold_answers": "..."}',
    )


def question_from_record(record: Mapping[str, Any]) -> Question:
    """Return the question of a pair's JSON record, as a judge needs it (for labelling again)."""
    choices = tuple(record["choices"]) if record.get("choices") else None
    return Question(
        id=str(record["id"]),
        domain=str(record.get("domain") or ""),
        question=str(record.get("question") or ""),
        context=record.get("context"),
        choices=choices,
        gold_answers=tuple(map(str, record.get("gold_answers") or ())),
        group=record.get("group"),
        history=tuple((str(ask), str(answer)) for ask, answer in record.get("history") or ()),
        answer_type=record.get("answer_type") or ("choice" if choices else "exact"),
    )


# --- sampling ---------------------------------------------------------------------------------


def sample_questions(
    questions: Sequence[Question], *, strategy: str, n: int | None, seed: int
) -> list[Question]:
    """Choose n questions; all strategies but `all` and `sequential` ignore the order of the file.

    `random` draws uniformly; `balanced` takes equal numbers of each stratum (domain, and the data
    set's own kinds in `meta["stratum"]`); `stratified` takes them in proportion. `all` ignores n;
    an n above the number of questions takes all of them.
    """
    if strategy not in STRATEGIES:
        raise UserError(
            f'config key "sampling.strategy": unknown strategy "{strategy}"; '
            f"use one of {', '.join(STRATEGIES)}"
        )
    if n is not None and n < 1:
        raise UserError(f'config key "sampling.n": {n} is not a positive number')
    if strategy == "all" or n is None:
        n = len(questions)
    if n > len(questions):
        log.warning("sampling.n is %d, the data set has %d: taking all", n, len(questions))
        n = len(questions)
    if strategy in ("all", "sequential"):
        return list(questions[:n])
    # a seeded hash of the id is a shuffle that does not know the order of rows
    shuffled = sorted(questions, key=lambda one: (derived_seed(seed, "sample", one.id), one.id))
    if strategy == "random":
        return shuffled[:n]
    strata: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in shuffled:
        strata[(question.domain, str(question.meta.get("stratum") or ""))].append(question)
    sizes = {key: len(members) for key, members in sorted(strata.items())}
    share = _equal_shares(sizes, n) if strategy == "balanced" else _proportional_shares(sizes, n)
    chosen = {one.id for key, members in strata.items() for one in members[: share[key]]}
    return [question for question in shuffled if question.id in chosen]


def _equal_shares(sizes: dict[Any, int], n: int) -> dict[Any, int]:
    """Split n as evenly as the sizes allow; what a short stratum lacks goes to the others."""
    share = dict.fromkeys(sizes, 0)
    while n:
        room = [key for key in sizes if share[key] < sizes[key]]
        each = max(1, n // len(room))
        for key in room[:n]:
            taken = min(each, sizes[key] - share[key])
            share[key] += taken
            n -= taken
    return share


def _proportional_shares(sizes: dict[Any, int], n: int) -> dict[Any, int]:
    """Split n in proportion to the sizes, the left-over seats by largest remainder."""
    total = sum(sizes.values())
    share = {key: n * size // total for key, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda key: (-(n * sizes[key] % total), key))
    for key in by_remainder[: n - sum(share.values())]:
        share[key] += 1
    return share
