"""Word problems and competition mathematics: SVAMP, GSM8K, MATH."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spikescore.data.fields import BadRow, optional, optional_text, own_id, text, texts
from spikescore.data.question import Question, Row


def boxed_answer(solution: str) -> str | None:
    r"""Return what stands in the last \boxed{...} or \fbox{...} of a LaTeX text, braces matched."""
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        return None
    rest = solution[start:].split("x", 1)[1].removeprefix("ed").lstrip()
    if not rest.startswith("{"):
        word = re.match(r"[^\s$.,]+", rest)
        return word.group() if word else None
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip() or None
    return None


def svamp(row: Row) -> Iterable[Question]:
    """{ID, Body, Question, Equation, Answer, Type} (Patel et al. 2021)."""
    body = text(row, "Body")
    yield Question(
        id=own_id(row, "ID"),
        domain="svamp",
        question=f"{body}{'' if body[-1] in '.?!,' else '.'} {text(row, 'Question')}",
        gold_answers=texts(row, "Answer", some=True),
        answer_type="numeric",
        meta={"stratum": optional(row, "Type"), "equation": optional(row, "Equation")},
    )


def ends_with_number(row: Row) -> bool:
    """True for GSM8K's way to answer: a worked solution and the number after ####."""
    return isinstance(row["answer"], str) and "####" in row["answer"]


def gsm8k(row: Row) -> Iterable[Question]:
    """{question, answer}, ending in "#### 7" (Cobbe et al. 2021); more keys are another set's."""
    worked = text(row, "answer")
    solution, mark, gold = worked.rpartition("####")
    if not mark or not gold.strip():
        raise BadRow("answer", "no number after ####")
    yield Question(
        id=own_id(row, None),
        domain="gsm8k" if set(row) == {"question", "answer"} else "",
        question=text(row, "question"),
        gold_answers=(gold.strip(),),
        answer_type="numeric",
        meta={"solution": solution.strip()},
    )


def competition(row: Row) -> Iterable[Question]:
    """MATH folders, MATH-500, and {en, solution, answer}: the boxed answer is gold.

    The worked solution is kept in meta alone, where the leak guard looks for it. (Hendrycks et al.
    2021.) Rows without MATH's subject and level may be any set's.
    """
    solution = text(row, "solution")
    answer = optional_text(row, "answer")
    gold = boxed_answer(answer or solution) or answer
    if gold is None:
        raise BadRow("solution", "holds no \\boxed{} answer, and there is no field answer")
    subject = optional(row, "subject") or optional(row, "type")
    known = "en" in row or (subject and "level" in row)
    yield Question(
        id=own_id(row, "unique_id"),
        domain="math" if known else "",
        question=text(row, "problem" if "problem" in row else "en"),
        gold_answers=(gold,),
        answer_type="math",
        meta={"stratum": subject, "level": optional(row, "level"), "solution": solution},
    )
