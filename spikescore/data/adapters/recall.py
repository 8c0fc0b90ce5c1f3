"""Questions without a passage: TriviaQA, NQ-open, PopQA, BioASQ, TruthfulQA, DefAn."""

from __future__ import annotations

from collections.abc import Iterable

from spikescore.data.fields import (
    BadRow,
    as_text,
    get,
    is_missing,
    is_withheld,
    joined_texts,
    mapping,
    objects,
    optional,
    optional_text,
    optional_texts,
    own_id,
    parsed,
    shown,
    text,
    texts,
)
from spikescore.data.question import GivenAnswer, Question, Row, distinct, list_gold
from spikescore.pairs import file_id


def triviaqa(row: Row) -> Iterable[Question]:
    """The publisher's record (Joshi et al. 2017): all aliases gold, `evidence` its documents."""
    golds = _value_and_aliases(row, "Answer", "Value", "Aliases")
    evidence = (
        f"{folder}/{name}"
        for folder, field in (("wikipedia", "EntityPages"), ("web", "SearchResults"))
        for page in (objects(row, field) if optional(row, field) else ())
        if (name := optional_text(page, "Filename"))
    )
    yield Question(
        id=own_id(row, "QuestionId"),
        domain="triviaqa",
        question=text(row, "Question"),
        gold_answers=golds,
        meta={"evidence": distinct(evidence)},
    )


def triviaqa_hub(row: Row) -> Iterable[Question]:
    """The same as the hub ships it: {question, question_id, answer: {value, aliases}}."""
    golds = _value_and_aliases(row, "answer", "value", "aliases")
    yield Question(
        id=own_id(row, "question_id"),
        domain="triviaqa",
        question=text(row, "question"),
        gold_answers=golds,
    )


def _value_and_aliases(row: Row, name: str, value: str, aliases: str) -> tuple[str, ...]:
    if is_withheld(row.get(name)):
        return ()
    answer = mapping(row, name)
    return distinct((text(answer, value), *optional_texts(answer, aliases)))


def triviaqa_flashrag(row: Row) -> Iterable[Question]:
    """{id, question, golden_answers}, as FlashRAG packs TriviaQA and many other sets."""
    yield Question(
        id=own_id(row, "id"),
        domain="",
        question=text(row, "question"),
        gold_answers=distinct(texts(row, "golden_answers", some=True)),
    )


def has_answer_list(row: Row) -> bool:
    """True for NQ-open's way to answer: a list of accepted texts."""
    try:
        return isinstance(parsed(row["answer"], "answer"), list)
    except BadRow:
        return True


def nq_open(row: Row) -> Iterable[Question]:
    """{question, answer: [...]} (Lee et al. 2019); other sets of short answers take this form."""
    yield Question(
        id=own_id(row, None),
        domain="",
        question=text(row, "question"),
        gold_answers=distinct(texts(row, "answer", some=True)),
    )


def popqa(row: Row) -> Iterable[Question]:
    """{id, subj, prop, obj, s_pop, ..., question, possible_answers} (Mallen et al. 2023).

    The answers are a list written as text. `s_pop` and `o_pop`, the monthly views of the subject's
    and the object's page, go to `meta` with the other short columns.
    """
    yield Question(
        id=own_id(row, "id"),
        domain="popqa",
        question=text(row, "question"),
        gold_answers=distinct(texts(row, "possible_answers", some=True)),
        meta={"stratum": optional(row, "prop")},
    )


def bioasq(row: Row) -> Iterable[Question]:
    """A question of BioASQ task B: {id, type, body, exact_answer, ideal_answer, snippets}.

    `exact_answer` is gold: yes or no; a factoid's synonyms; all members of a list, each with its
    synonyms. A summary has none, its ideal answers are gold. A test batch has neither field.
    (Tsatsaronis et al. 2015.)
    """
    of_type = text(row, "type")
    ideal = optional_texts(row, "ideal_answer")
    exact = parsed(optional(row, "exact_answer"), "exact_answer")
    answer_type = "exact"
    if of_type == "summary" or not exact:
        golds, answer_type = ideal, "free"
    elif of_type == "list":
        members = [_synonyms(member) for member in (exact if isinstance(exact, list) else [exact])]
        golds, answer_type = list_gold([member for member in members if member]), "list"
    else:
        golds = _synonyms(exact)
    if not any(golds) and not {"exact_answer", "ideal_answer"}.isdisjoint(row):
        raise BadRow("exact_answer", "missing or empty, and there is no ideal_answer")
    snippets = objects(row, "snippets") if optional(row, "snippets") is not None else []
    yield Question(
        id=own_id(row, "id"),
        domain="bioasq",
        question=text(row, "body"),
        gold_answers=distinct(golds),
        answer_type=answer_type,
        meta={
            "stratum": of_type,
            "type": of_type,
            "ideal_answers": ideal,
            "snippets": tuple(text(snippet, "text") for snippet in snippets),
        },
    )


def _synonyms(answer: object) -> tuple[str, ...]:
    """Flatten an exact answer: a text, or lists of them."""
    if isinstance(answer, list):
        return tuple(one for part in answer for one in _synonyms(part))
    return (as_text(answer, "exact_answer"),)


def truthfulqa(row: Row) -> Iterable[Question]:
    """A row of the CSV, its answers joined with ";" (Lin et al. 2022).

    They are sentences, so that a model must judge: no rule can.
    """
    worst = optional_text(row, "Best Incorrect Answer")
    wrong = joined_texts(row, "Incorrect Answers")
    yield _truthful(
        row,
        text(row, "Question"),
        (text(row, "Best Answer"), *joined_texts(row, "Correct Answers")),
        (worst, *wrong) if worst else wrong,
        optional(row, "Category"),
    )


def truthfulqa_generation(row: Row) -> Iterable[Question]:
    """The same as the hub ships it: {question, best_answer, correct_answers, incorrect_answers}.

    Translations add `id`, which they share, and `lang` (Calvo Figueras et al. 2025; `language` is
    read alike) or leave that to the file's name (Thellmann et al. 2024).
    """
    yield _truthful(
        row,
        text(row, "question"),
        (text(row, "best_answer"), *texts(row, "correct_answers")),
        texts(row, "incorrect_answers"),
        optional(row, "category"),
    )


def _truthful(
    row: Row, question: str, right: tuple[str, ...], wrong: tuple[str, ...], category: object
) -> Question:
    """The question of a row whose best answers of both kinds stand first."""
    language = (optional_text(row, "lang") or optional_text(row, "language") or "").casefold()
    language = "en" if language in ("english", "eng") else language
    number = optional_text(row, "id")
    edition = "truthfulqa" if language else "truthfulqax"
    # the six examples for prompts that lie beside the questions are numbered from 1 as well
    shared = {"parallel_id": f"{edition} {number}"} if number and wrong else {}
    return Question(
        id=own_id(row, None),
        domain="truthfulqa" if language in ("", "en") else f"truthfulqa_{language}",
        question=question,
        gold_answers=distinct(right),
        answer_type="free",
        meta={
            "stratum": category,
            "category": category,
            "incorrect_answers": distinct(wrong),
            **({"language": language} if language else {}),
            **shared,
        },
        given=(GivenAnswer(right[0], False), *(GivenAnswer(one, True) for one in wrong[:1])),
    )


def defan(row: Row) -> Iterable[Question]:
    """{questions, answer, type}: paraphrases of one fact a row (Rahman et al. 2024).

    Several accepted names are joined with ";". An empty answer is a question that has none (a prize
    that was not awarded). The file names no fact, so paraphrases are grouped by their answer.
    """
    of_type = text(row, "type")
    answer = get(row, "answer")
    empty = is_missing(answer)
    golds = () if empty else joined_texts(row, "answer")
    if not golds and not empty:
        raise BadRow("answer", f'"{shown(answer)}" holds no answer')
    yield Question(
        id=own_id(row, None),
        domain="defan",
        question=text(row, "questions"),
        gold_answers=golds,
        group=file_id(None, f"{of_type} {golds}"),
        answer_type="numeric" if of_type == "numeric" else "exact",
        meta={"stratum": of_type, "type": of_type, "answerable": bool(golds)},
    )
