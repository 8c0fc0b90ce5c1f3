"""Questions about a passage: CoQA, SQuAD and its kin, HaluEval-QA, synthweb."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from spikescore.data.fields import (
    BadRow,
    flag,
    get,
    items,
    kind,
    mapping,
    objects,
    optional,
    optional_text,
    own_id,
    parsed,
    text,
    texts,
    usable_id,
)
from spikescore.data.question import GivenAnswer, Question, Row, distinct
from spikescore.pairs import file_id

# --- CoQA -------------------------------------------------------------------------------------


def coqa(row: Row) -> Iterable[Question]:
    """One story to its questions; the earlier turns, with first reference answers, are history.

    The publisher's shape and the hub's (questions: [text], answers: {input_text: [text]}). (Reddy
    et al. 2019.)
    """
    story, passage = own_id(row, "id"), text(row, "story")
    history: list[tuple[str, str]] = []
    for turn, question, answers in _coqa_turns(row):
        yield Question(
            id=usable_id(f"{story}_{turn}", f"{story} {turn}"),
            domain="coqa",
            question=question,
            context=passage,
            gold_answers=distinct(answers),
            group=story,
            history=tuple(history),
            meta={"stratum": optional(row, "source"), "turn": turn},
        )
        history.append((question, answers[0]))


def _coqa_turns(row: Row) -> Iterator[tuple[object, str, list[str]]]:
    """Yield (turn, question, its reference answers) of a story."""
    asked, answers = items(row, "questions", some=True), parsed(get(row, "answers"), "answers")
    if isinstance(answers, dict):
        answers = [{"input_text": answer} for answer in items(answers, "input_text")]
        asked = [{"input_text": ask} for ask in asked]
    elif not isinstance(answers, list):
        raise BadRow("answers", f"expected a list, found {kind(answers)}")
    if len(asked) != len(answers):
        raise BadRow("answers", f"{len(answers)} answers to {len(asked)} questions")
    additional = parsed(optional(row, "additional_answers"), "additional_answers") or {}
    extra = list(additional.values()) if isinstance(additional, dict) else [additional]
    extra = [entries for entries in extra if entries is not None]
    if not all(isinstance(entries, list) for entries in extra):
        raise BadRow("additional_answers", "expected an object of lists")
    for place, (ask, answer) in enumerate(zip(asked, answers, strict=True)):
        others = [entries[place] for entries in extra if place < len(entries)]
        if not all(isinstance(part, dict) for part in (ask, answer, *others)):
            raise BadRow("questions", f"turn {place + 1} is not an object")
        good = [other for other in others if other.get("bad_turn") != "true"]
        references = [text(one, "input_text") for one in (answer, *good)]
        yield ask.get("turn_id", place + 1), text(ask, "input_text"), references


# --- SQuAD 1.1, 2.0, and TriviaQA in their form -----------------------------------------------

_TRIVIA_ID = re.compile(r"[a-z]{2,4}_\d+(--|$)")
_SQUAD_ID = re.compile(r"[0-9a-f]{24}")
"""SQuAD's ids; sets that translate it (XQuAD, MLQA) keep them."""


def is_triviaqa(row: Row) -> bool:
    """True for TriviaQA in SQuAD's form: its ids (tc_33--evidence.txt) tell."""
    if "paragraphs" in row:
        try:
            asked = [qa for part in objects(row, "paragraphs") for qa in objects(part, "qas")]
        except BadRow:
            return False
        row = asked[0] if asked else {}
    own = row.get("id")
    return isinstance(own, str) and bool(_TRIVIA_ID.match(own))


def squad(row: Row) -> Iterable[Question]:
    """One article of SQuAD 1.1 or 2.0 (Rajpurkar et al. 2016 and 2018).

    An unanswerable question of 2.0 has no gold answer, `meta["answerable"]` False, and its
    plausible answers are known to be wrong. A question whose id is none of SQuAD's is of another
    set in its form.
    """
    return _article(row, "squad")


def squad_hub(row: Row) -> Iterable[Question]:
    """One question as the hub ships it: {id, context, question, answers: {text: [...]}}."""
    yield _squad_question(row, row, "squad", texts(mapping(row, "answers"), "text"), ())


def triviaqa_squad(row: Row) -> Iterable[Question]:
    """TriviaQA in SQuAD's form: a question with one evidence text as its passage."""
    return _article(row, "triviaqa")


def triviaqa_squad_hub(row: Row) -> Iterable[Question]:
    """The same, one question a row."""
    yield _squad_question(row, row, "triviaqa", texts(mapping(row, "answers"), "text"), ())


def _article(row: Row, domain: str) -> Iterator[Question]:
    for paragraph in objects(row, "paragraphs", some=True):
        for asked in objects(paragraph, "qas"):
            told = optional(asked, "is_impossible") is not None
            impossible = told and flag(asked, "is_impossible")
            plausible = _answer_texts(asked, "plausible_answers") if impossible else ()
            golds = () if impossible else _answer_texts(asked, "answers")
            if not golds and not impossible:
                raise BadRow("answers", "is empty, but the question is not marked impossible")
            yield _squad_question(paragraph, asked, domain, golds, plausible)


def _squad_question(
    paragraph: Row, asked: Row, domain: str, golds: tuple[str, ...], plausible: tuple[str, ...]
) -> Question:
    item, passage = own_id(asked, "id"), text(paragraph, "context")
    known = domain != "squad" or _SQUAD_ID.fullmatch(item)
    return Question(
        id=item,
        domain=domain if known else "",
        question=text(asked, "question"),
        context=passage,
        gold_answers=distinct(golds),
        # evidence texts of one trivia question belong together, as do questions on one passage
        group=item.split("--")[0] if domain == "triviaqa" else file_id(None, passage),
        meta={
            "answerable": bool(golds),
            "incorrect_answers": distinct(plausible),
            **({"parallel_id": f"squad {item}"} if domain == "squad" and known else {}),
        },
    )


def _answer_texts(row: Row, name: str) -> tuple[str, ...]:
    if name == "plausible_answers" and optional(row, name) is None:
        return ()
    return tuple(text(answer, "text") for answer in objects(row, name))


# --- HaluEval-QA and synthweb -----------------------------------------------------------------


def halueval(row: Row) -> Iterable[Question]:
    """{knowledge, question, right_answer, hallucinated_answer} (Li et al. 2023)."""
    right, wrong = text(row, "right_answer"), text(row, "hallucinated_answer")
    yield Question(
        id=own_id(row, None),
        domain="halueval",
        question=text(row, "question"),
        context=optional_text(row, "knowledge"),
        gold_answers=(right,),
        meta={"incorrect_answers": (wrong,)},
        given=(GivenAnswer(right, False), GivenAnswer(wrong, True)),
    )


_SYNTHWEB_ASKED = (
    "verbalizer_prompt", "context", "target_response", "incorrect_plausible_answer",
)  # fmt: skip
"""Columns that are the question itself; all others are said of it."""
_SYNTHWEB_PLACE = ("doc_idx", "row_seed", "slot_idx", "split_char_offset", "scope", "target")


def synthweb(row: Row) -> Iterable[Question]:
    """A probe of cds-jb/synthweb-*-multiscale-inference: a question on one half of a document.

    All columns go to `meta`, the document, `atom_text` and the rationales that hold the answer
    included, and the card's band of the blind answers: HARD (the best of them scored below 0.4),
    EASY (0.8 and above), between; words and spans of tokens were not scored. A probe without a
    question (the set has some) is a bad row. Words and spans are compared by rule; the answers of
    the larger scopes are sentences.
    """
    question = text(row, "verbalizer_prompt")
    wrong = optional_text(row, "incorrect_plausible_answer")
    document, place = text(row, "doc_id"), [row.get(name) for name in _SYNTHWEB_PLACE]
    scope, said = optional(row, "scope"), dict(row)
    for name in _SYNTHWEB_ASKED:
        said.pop(name, None)
    said["stratum"], said["band"] = scope, _band(row)
    said["incorrect_answers"] = (wrong,) if wrong else ()
    yield Question(
        id=file_id(None, f"{document} {place} {question}"),
        domain="synthweb",
        question=question,
        context=text(row, "context"),
        gold_answers=(text(row, "target_response"),),
        group=document,
        answer_type="exact" if scope in ("word", "lens") else "free",
        meta=said,
    )


def _band(row: Row) -> str:
    best = optional(row, "bb_answer_score_max")
    if best is None:
        return "not scored"
    try:
        best = float(best)
    except (TypeError, ValueError) as error:
        raise BadRow("bb_answer_score_max", f"expected a number, found {kind(best)}") from error
    return "HARD" if best < 0.4 else "EASY" if best >= 0.8 else "between"
