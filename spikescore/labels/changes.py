"""Whether two answers to one question state the same, read by the rules of the labels.

No gold answer has a part in it: what one answer states stands in its place. So it can be asked of
any dialogue, and a detector may ask it.
"""

from __future__ import annotations

from dataclasses import replace

from spikescore.data.question import Question, lettered, option_gold
from spikescore.labels.expressions import same_expression
from spikescore.labels.numbers import Number, read_numbers
from spikescore.labels.rules import SQUAD_RIGHT, choice, exact, numeric, squad_f1
from spikescore.labels.statements import abstains, read_statement, says_nothing

Stated = int | Number | str
"""The option's number, the number, or the words; DOES_NOT_KNOW for an answer that says so."""
DOES_NOT_KNOW = ""
_SAID_BY_NOBODY = "0.000000000271828"  # the rule for numbers needs one to compare with


def stated(question: Question, answer: str) -> Stated | None:
    """Return what an answer states, as the rule of the `answer_type` reads it; None for nothing."""
    statement = read_statement(answer)
    if question.answer_type == "choice" and question.choices:
        options = [f"{letter}. {text}" for letter, text in lettered(question.choices)]
        taken = replace(question, gold_answers=option_gold(question.choices, 0))
        _, said = choice(taken, answer)
        if said in options:
            return options.index(said)
    elif question.answer_type in ("numeric", "math"):
        numbered = replace(question, gold_answers=(_SAID_BY_NOBODY,))
        label, said = numeric(numbered, answer)
        if statement.mark == "marked" and question.answer_type == "math":
            return statement.text
        if label is not None and (found := read_numbers(said)[0]):
            return found[-1]
    elif says_nothing(statement.text):  # "Yes." says something to one who was asked that
        if exact(replace(question, gold_answers=("yes",)), answer)[0] == 1:
            return "yes"
    elif not abstains(statement.whole):
        return statement.text
    return DOES_NOT_KNOW if abstains(statement.whole) else None


def states_same(question: Question, one: Stated, other: Stated) -> bool:
    """Return whether two things that answers to a question `stated` are the same.

    Options and numbers must be equal, expressions of equal value. Words are the same where the rule
    `exact` finds one statement in the other, either way round, or where they share enough words for
    the rule `squad`.
    """
    if isinstance(one, Number) and isinstance(other, Number):
        return one.equals(other)
    if isinstance(one, int) or isinstance(other, int) or DOES_NOT_KNOW in (one, other):
        return one == other
    one, other = _words(one), _words(other)
    if question.answer_type == "math" and (same := same_expression(one, other)) is not None:
        return same
    either = ((one, other), (other, one))
    asked = replace(question, choices=None)
    found = (exact(replace(asked, gold_answers=(gold,)), said)[0] for gold, said in either)
    return 1 in found or squad_f1(one, other) >= SQUAD_RIGHT


def _words(stated: Stated) -> str:
    return stated if isinstance(stated, str) else str(stated.value)
