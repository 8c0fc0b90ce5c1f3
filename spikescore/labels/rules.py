r"""Offline rules that decide whether an answer agrees with the gold answers.

A rule reads the answer's final statement: what follows the last "the answer is", else the whole
answer. It is strict about what cannot be decided by rule: an answer that names several candidates
("Paris or London") or denies the right one ("it is not Paris") is not consistent.

    exact    a gold alias stands in the statement as whole words (case, accents, articles ignored)
    numeric  the statement's number equals the gold number to 1e-6, relative
    choice   the statement names the right option, by letter or by text
    math     the boxed (or stated) expression equals the gold one after light LaTeX normalisation
    list     every member of the gold list is named somewhere in the answer, in any order
    free     none: a reference of free sentences is not for rules but for the judge openai or nli

Each returns (label, what it read): 1 consistent, 0 not. `NoReference` means that the rule cannot
use the item's gold answers.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from spikescore.data.adapters.mathematics import boxed_answer
from spikescore.data.question import Question, gold_option, list_members


class NoReference(ValueError):
    """The rule cannot use this item's gold answers."""


# --- the final statement ----------------------------------------------------------------------

_CLAUSE = re.compile(
    r"\banswer(?:\s+(?:to|for)\b[^.?!\n]{0,80}?)?\s*"
    r"(?:\b(?:is|was|are|were|remains|stays|(?:would|should|must|will) be)\b(?!n['’]t)|=|:)"
    r"\s*:?\s*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_ABBREVIATIONS = {"st", "dr", "mr", "mrs", "ms", "jr", "sr", "vs", "no", "mt", "ft", "prof", "gen"}


def plain_answer(answer: str) -> str:
    """Return the answer without its thinking part and without Markdown marks."""
    if "</think>" in answer:
        answer = answer.rsplit("</think>", 1)[1]
    elif "<think>" in answer:
        answer = answer.split("<think>", 1)[0]
    return re.sub(r"\*\*|__|`|^#+ ", "", answer, flags=re.MULTILINE).strip()


def _clause(text: str) -> str | None:
    """Return what follows the last "answer is ..." up to the end of its sentence, or None."""
    tails = [text[match.end() :] for match in _CLAUSE.finditer(text)]
    for tail in reversed(tails):
        clause = _first_sentence(tail)
        if re.search(r"\w", clause):
            return clause
    return None


def _first_sentence(text: str) -> str:
    """Cut at the first sentence end; "St. Louis", "J. Smith" and "3.5" are not ends."""
    for end in _SENTENCE_END.finditer(text):
        word = re.search(r"(\w+)$", text[: end.start()])
        if end.group() != "." or word is None:
            return text[: end.start()]
        initial = len(word.group()) == 1 and word.group().isalpha()
        if not initial and word.group().casefold() not in _ABBREVIATIONS:
            return text[: end.start()]
    return text


# --- exact ------------------------------------------------------------------------------------

_ARTICLES = {"a", "an", "the"}
_FUNCTION_WORDS = _ARTICLES | set(
    "who what it this that i he she they we you in on of to is".split()
)
_NEGATORS = {"not", "never", "isnt", "wasnt", "arent", "werent", "nor", "neither", "except"}
_DENIED = re.compile(r"(?:is|was|are|were)(?:nt| not)? (?:the )?(?:wrong|incorrect|false)\b")
_NOT_IT = re.compile(r"(?:(?:is|was) not|isnt|wasnt) (?:it|(?:the )?(?:right|correct|answer)\b)")
_OR = re.compile(
    r"^(?:, [^,;.!?]{1,40}){0,4},? ?(?:or|/) (?!not\b|so\b|rather\b|just\b|simply\b)(.*)"
)
_YES_NO = {"yes": "yes", "yeah": "yes", "yep": "yes", "no": "no", "nope": "no"}
_UNKNOWN = re.compile(
    r"\b(?:unknown|(?:not|cannot|cant|isnt) (?:be )?(?:known|said|stated|mentioned|given|specified|"
    r"determined|answered|know|say|tell)|(?:do not|dont) know|no information)\b"
)


def _words(text: str, *, articles: bool = False) -> list[str]:
    """Return normalised tokens: words without case, accents, articles, and single marks."""
    text = unicodedata.normalize("NFKD", text.casefold())
    text = re.sub(r"[\u0300-\u036f]", "", text)
    text = re.sub(r"[’‘`]", "'", text).replace("−", "-")
    text = re.sub(r"(?<=\w)'s\b", "", text).replace("'", "")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"\b([a-z])\.(?=[a-z]\b)|\b([a-z])\.\s(?=[a-z]\.)", r"\1\2", text)
    text = re.sub(r"\bcannot\b", "can not", text)
    tokens = re.findall(
        r"(?<![\w.])-?\d+(?:\.\d+)*(?!\w)|[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+"
        r"|[,;.!?/()]",
        text,
    )
    return [token for token in tokens if articles or token not in _ARTICLES]


def _is_word(token: str) -> bool:
    return token not in ",;.!?/()"


def _find(needle: list[str], tokens: list[str]) -> list[tuple[int, int]]:
    """Return [start, end) of the places where the words stand one after another, marks ignored."""
    places = [index for index, token in enumerate(tokens) if _is_word(token)]
    words = [tokens[index] for index in places]
    size = len(needle)
    return [
        (places[start], places[start + size - 1] + 1)
        for start in range(len(words) - size + 1)
        if words[start : start + size] == needle
    ]


def _needle(phrase: str) -> tuple[list[str], bool]:
    """Return a phrase's words, and whether its articles count ("The Who", "A")."""
    words = [word for word in _words(phrase) if _is_word(word)]
    if all(word in _FUNCTION_WORDS for word in words):
        return [word for word in _words(phrase, articles=True) if _is_word(word)], True
    return words, False


def _negated(tokens: list[str], start: int, end: int) -> bool:
    """True when the phrase is denied: "not Paris", "isn't in Paris", "Paris is incorrect"."""
    before: list[str] = []
    for token in reversed(tokens[:start]):
        if not _is_word(token) or token in ("but", "because") or len(before) == 4:
            break
        before.insert(0, token)
    text = " ".join(before)
    if re.search(r"\bnot (?:only|just|sure)\b", text):
        return False
    after = " ".join(tokens[end : end + 6])
    return (
        any(token in _NEGATORS for token in before)
        or re.search(r"(?:rather than|instead of|other than|dont think|doubt)\b", text) is not None
        or _DENIED.match(after) is not None
        or _NOT_IT.match(after) is not None
    )


def _hedged(tokens: list[str], start: int, end: int, needles: list[list[str]]) -> bool:
    """True when the phrase is one of several candidates: "Paris or London", "London / Paris"."""
    after = re.sub(r" (?=[,;.!?])", "", " " + " ".join(tokens[end : end + 14]))
    match = _OR.match(after.lstrip(" "))
    if match:
        rest = [token for token in match.group(1).split() if token]
        return not any(rest[: len(one)] == one for one in needles)
    if start and tokens[start - 1] in ("or", "/"):
        head = [token for token in tokens[: start - 1] if _is_word(token)]
        return not any(head[-len(one) :] == one for one in needles)
    return False


def _states(text: str, phrases: Sequence[str], beside: Sequence[str] = ()) -> bool:
    """True when the text states one of the phrases as whole words, neither denied nor hedged.

    To stand in an "or" with one of the phrases, or with one of `beside`, is no hedge.
    """
    stated = False
    needles = [(words, full) for words, full in map(_needle, phrases) if words]
    plain = [words for words, _ in (*needles, *map(_needle, beside)) if words]
    for words, full in needles:
        tokens = _words(text, articles=full)
        if full and len(words) == 1:  # a lone "a" or "it" is an answer only by itself
            stated |= [token for token in tokens if _is_word(token)] == words
            continue
        for start, end in _find(words, tokens):
            if _negated(tokens, start, end):
                return False
            stated |= not _hedged(tokens, start, end, plain)
    return stated


def exact(question: Question, answer: str) -> tuple[int, str]:
    """Return (label, text read): some gold alias stands in the final statement as whole words.

    A gold "yes" or "no" is compared with the statement's first yes or no; a gold "unknown" also
    accepts the usual ways to say so.
    """
    text = plain_answer(answer)
    statement = _clause(text) or text
    golds = {gold.strip(" .").casefold() for gold in question.gold_answers}
    if golds <= {"yes", "no"}:
        said = [_YES_NO[token] for token in _words(statement) if token in _YES_NO]
        both = re.search(r"\byes or no\b", " ".join(_words(statement)))
        return int(bool(said) and not both and said[0] in golds), statement
    if "unknown" in golds and _UNKNOWN.search(" ".join(filter(_is_word, _words(statement)))):
        return 1, statement
    return int(_states(statement, question.gold_answers)), statement


# --- numeric ----------------------------------------------------------------------------------

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,300})?(?:\.\d{1,300})?"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)}.])-\s?\$?)?\$?"
    r"(?:(?:(?P<whole>\d{1,9})\s+)?(?P<top>\d{1,300})\s?/\s?(?P<bottom>\d{1,300})(?![\d/])"
    rf"|(?P<number>(?=[\d.]*\d){_DIGITS})"
    r"(?:(?:e|\s?(?:\*|x|×)\s?10\s?\^\s?)(?P<exponent>[+-]?\d{1,3})(?!\d))?)"
    r"\s?(?P<unit>%|percent\b|thousand\b|million\b|billion\b|trillion\b)?",
    re.IGNORECASE,
)
_UNITS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}


@dataclass(frozen=True)
class _Value:
    value: Fraction
    percent: bool
    start: int
    end: int


def _numbers(text: str) -> list[_Value]:
    """Return the numbers of a text in order: -5, 1,000, 1/2, 2 1/2, 50%, 3e5, 2 million."""
    found = []
    for match in _NUMBER.finditer(text):
        part = match.groupdict()
        if part["top"]:
            if int(part["bottom"]) == 0:
                continue
            value = Fraction(int(part["top"]), int(part["bottom"])) + int(part["whole"] or 0)
        else:
            value = Fraction(part["number"].replace(",", "").rstrip("."))
            value *= Fraction(10) ** int(part["exponent"] or 0)
        unit = (part["unit"] or "").casefold()
        value *= _UNITS.get(unit, 1) * (-1 if part["sign"] else 1)
        found.append(_Value(value, unit in ("%", "percent"), match.start(), match.end()))
    return found


def _unlatex_numbers(text: str) -> str:
    r"""Rewrite what LaTeX and Unicode do to numbers: \frac{1}{2}, 1{,}000, \$5, ½, − and others."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/").replace("−", "-")
    text = re.sub(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2", text)
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r" \1/\2", text)
    text = re.sub(r"-\s+(?=\d+/\d)", "-", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,|\\!)(?=\d{3})", "", text)
    text = re.sub(r"\\(?:times|cdot)", "*", text)
    text = re.sub(r"10\s?\^\s?\{\s*(-?\d+)\s*\}", r"10^\1", text)
    return text.replace("\\%", "%").replace("\\$", "$")


def _worded_numbers(text: str) -> str:
    """Write number words up to ninety-nine as digits: "twenty-one apples" -> "21 apples"."""
    tens, small = "|".join(_TENS), "|".join(_SMALL)

    def digits(match: re.Match[str]) -> str:
        words = re.split(r"[\s-]+", match.group().casefold())
        return str(sum(_NUMBER_WORDS[word] for word in words))

    pattern = rf"\b(?:(?:{tens})(?:[\s-](?:{'|'.join(_SMALL[1:10])}))?|{small})\b"
    return re.sub(pattern, digits, text, flags=re.IGNORECASE)


def _same_number(left: _Value, right: _Value) -> bool:
    """Equal to 1e-6 relative; 50% equals both 50 and 0.5, for data sets write either."""
    pairs = [(left.value, right.value)]
    if left.percent != right.percent:
        low = left.value / 100 if left.percent else left.value
        pairs.append((low, right.value / 100 if right.percent else right.value))
    return any(abs(a - b) <= Fraction(1, 10**6) * max(abs(a), abs(b)) for a, b in pairs)


def numeric(question: Question, answer: str) -> tuple[int, str]:
    """Return (label, number read): the statement's number equals a gold number to 1e-6.

    In "the answer is ..." the first number counts ("17 of 26"), or the last one of a calculation
    ("26 - 9 = 17"); without such a clause the boxed number, else the last number of the answer.
    """
    golds = [number[-1] for number in map(_gold_numbers, question.gold_answers) if number]
    if not golds:
        raise NoReference(f'gold answer "{question.gold_answers[0]}" is not a number')
    text = plain_answer(answer)
    read, statement = _read_number(text)
    if read is None:
        return 0, ""
    said = statement[read.start : read.end].strip()
    around = statement[: read.start].casefold(), statement[read.end :].casefold()
    if re.search(r"(?:\bnot|n['’]t)(?: (?:be|equal|equal to|in))? $", around[0]):
        return 0, f"not {said}"
    other = re.match(
        r"[^.;\n\d]{0,20}\bor (?:maybe |perhaps |even )?-?\$?\d", around[1]
    ) or re.search(r"\d[^.;\n\d]{0,20}\bor (?:maybe |perhaps |even )?$", around[0])
    if other:
        return 0, f"{said}, one of several"
    return int(any(_same_number(read, gold) for gold in golds)), said


def _gold_numbers(gold: str) -> list[_Value]:
    return _numbers(_unlatex_numbers(gold)) or _numbers(_worded_numbers(gold))


def _read_number(text: str) -> tuple[_Value | None, str]:
    """Return the number that an answer gives, and the statement it was read from."""
    for part, take_first in ((_clause(text), True), (boxed_answer(text), False), (text, False)):
        if not part:
            continue
        statement = _unlatex_numbers(part)
        found = _numbers(statement)
        if not found:
            statement = _worded_numbers(statement)
            found = _numbers(statement)
        if found:
            sums = re.search(r"=|\d\s*[+*×÷/-]\s*\$?\d", re.sub(r"\d+/\d+", "0", statement))
            return found[0 if take_first and not sums else -1], statement
    return None, text


# --- choice -----------------------------------------------------------------------------------


def choice(question: Question, answer: str) -> tuple[int, str]:
    """Return (label, option read): the statement names the right option and no other.

    Letters count where they cannot be words: "(B)", "B.", "option B", a bare "B" (but "A" only at
    the end or before a mark: "A cat" is no letter). Where letter and text contradict each other,
    the text decides if it names one option only; an answer that names several is not consistent.
    """
    if not question.choices:
        raise NoReference("the item has no choices")
    gold = gold_option(question)
    if gold is None:
        raise NoReference(f'gold answer "{question.gold_answers[0]}" is not an option')
    # some data sets repeat an option: equal texts are one option, the first of them
    folded = [option.strip().casefold() for option in question.choices]
    first = [folded.index(option) for option in folded]
    text = plain_answer(answer)
    clause = _clause(text)
    for statement, is_clause in ((clause, True), (text, False)):
        if not statement:
            continue
        letters = _letters(statement, len(question.choices), bare=is_clause)
        letters = {first[index] for index in letters}
        texts = {first[index] for index in _options_stated(statement, question.choices)}
        if letters or texts:
            picked = _pick(letters, texts)
            if picked is None:
                return 0, "no single option"
            return int(
                picked == first[gold]
            ), f"{chr(ord('A') + picked)}. {question.choices[picked]}"
    return 0, "no option"


def _pick(letters: set[int], texts: set[int]) -> int | None:
    if len(texts) == 1 and len(letters) <= 1:
        return next(iter(texts))
    if len(letters) == 1 and (not texts or letters <= texts):
        return next(iter(letters))
    return None


def _letters(statement: str, n: int, *, bare: bool) -> set[int]:
    """Return the options named by letter; `bare` lets a lone letter count ("answer is B")."""
    last = chr(ord("A") + n - 1)
    upper, any_case = f"[A-{last}]", f"[A-{last}a-{last.lower()}]"
    forms = [
        rf"\(({any_case})\)",
        rf"\b(?i:option|choice|answer|letter)\s+({upper})\b",
        rf"^\s*({any_case})[.):](?=\s|$)",
        rf"^\W*({any_case})\W*$",
        rf"^\W*({upper})(?=\s*(?:,|;|-|–|—|\bor\b|/)\s*)",
        rf"[.!?:]\s+({upper})\W*$",
        rf"\b(?:or|and)\s+({upper})(?=\W*$|[.):,;])",
    ]
    if bare:
        forms.append(rf"(?<![\w'’])({upper})(?=\W*$|[).:,;/]|\s+(?:or|and|because|since|but)\b)")
        forms.append(rf"^\W*([B-{last}])\b(?!['’])" if n > 1 else r"(?!)")
    found = {}
    for form in forms:
        for match in re.finditer(form, statement, flags=re.MULTILINE):
            found[match.start(1)] = match.group(1).upper()
    denied = re.compile(r"(?:\bnot|n['’]t|\bnor)\s+(?:\w+\s+){0,2}\W*$", re.IGNORECASE)
    return {
        ord(letter) - ord("A")
        for place, letter in found.items()
        if not denied.search(statement[:place])
    }


def _options_stated(statement: str, choices: Sequence[str]) -> set[int]:
    """Return the options stated by text, not denied, and not as a part of a longer option."""
    spans: list[tuple[int, int, int]] = []
    stated: set[int] = set()
    whole = _words(statement)
    for index, text in enumerate(choices):
        words, full = _needle(text)
        if full:
            if words and _states(statement, [text]):
                stated.add(index)
            continue
        spans += [
            (start, end, index)
            for start, end in _find(words, whole)
            if words and not _negated(whole, start, end)
        ]
    for start, end, index in spans:
        inside = any(a <= start and end <= b and (b - a) > (end - start) for a, b, _ in spans)
        if not inside:
            stated.add(index)
    return stated


# --- math -------------------------------------------------------------------------------------


def math(question: Question, answer: str) -> tuple[int, str]:
    """Return (label, expression read): it equals a gold expression after light normalisation.

    Reads the boxed expression; without one the "answer is" clause, the last $...$, or what follows
    the last "is" or "=". Plain numbers are compared as numbers. No algebra is done.
    """
    text = plain_answer(answer)
    boxed = boxed_answer(text)
    candidates = [boxed] if boxed is not None else _stated_expressions(text)
    for candidate in candidates:
        if any(_same_expression(candidate, gold) for gold in question.gold_answers):
            return 1, candidate
    return 0, candidates[0] if candidates else ""


def _stated_expressions(text: str) -> list[str]:
    clause = _clause(text)
    statement = clause or text
    spans = re.findall(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", statement, re.DOTALL)
    spans = ["".join(span).strip() for span in spans]
    stated = [statement] if clause or len(statement.split()) <= 4 else []
    if spans:
        stated.append(spans[0] if clause and len(spans) == 1 else spans[-1])
    else:
        lines = [line for line in statement.strip().split("\n") if line.strip()]
        tail = re.split(r"\bis\b|\bare\b|=", lines[-1])[-1] if lines else ""
        stated.append(tail)
    last = stated[-1].rsplit("=", 1)
    return [one.strip() for one in (*stated, last[-1]) if one.strip()]


def _same_expression(left: str, right: str) -> bool:
    ours, gold = _unlatex(left), _unlatex(right)
    if ours == gold:
        return ours != ""
    a, b = _whole_number(ours), _whole_number(gold)
    if a is None and b is not None:
        words = re.fullmatch(r"([^A-Za-z]+?)\s+[A-Za-z][A-Za-z .]*", left.strip().strip("$"))
        a = _whole_number(_unlatex(words.group(1))) if words else None
    if a is not None and b is not None:
        return _same_number(a, b)
    parts, wanted = _members(ours), _members(gold)
    if not wanted or parts is None or len(parts[1]) != len(wanted[1]) or parts[0] != wanted[0]:
        return False
    lists = [parts[1], wanted[1]]
    if wanted[0] in ("", "\\{\\}"):  # a set, or values in any order
        lists = [sorted(members) for members in lists]
    return all(_same_expression(x, y) for x, y in zip(*lists, strict=True))


def _members(text: str) -> tuple[str, list[str]] | None:
    r"""Split "(1,4]", "\{1,2\}" or "1,2" into its brackets and members; None when it is no list."""
    match = re.fullmatch(r"(\\\{|[(\[])?(.*?)(\\\}|[)\]])?", text)
    if match is None or "," not in match.group(2) or re.search(r"[()\[\]]", match.group(2)):
        return None
    return (match.group(1) or "") + (match.group(3) or ""), match.group(2).split(",")


def _whole_number(text: str) -> _Value | None:
    """Return the number that a normalised expression is, all of it, or None."""
    plain = _unlatex_numbers(text).strip()
    found = _numbers(plain)
    return (
        found[0] if len(found) == 1 and (found[0].start, found[0].end) == (0, len(plain)) else None
    )


def _unlatex(text: str) -> str:
    r"""Normalise an expression: \dfrac, \left, spaces, degrees, dollars, units in \text."""
    text = boxed_answer(text) or text
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("π", "\\pi")
    text = text.strip().strip("$").strip()
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|,)(?=\d{3}(?!\d))(?![^()\[\]]*[)\]])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:left|right|displaystyle|bigl|bigr|Bigl|Bigr)(?![a-z])\.?", "", text)
    text = re.sub(r"\^\s*\{?\s*\\?circ\s*\}?|°|\\degree", "", text)
    text = re.sub(r"\\(?:text|mbox|mathrm)\{\s+[^}]*\}(?:\^\{?\d\}?)?$", "", text.strip())
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf)\{([^}]*)\}", r"\1", text)
    text = re.sub(r"(?<!\\)\\[,;:! ]|\\q?quad|~", "", text).replace("\\$", "").replace("\\%", "%")
    text = re.sub(r"\\(?:times|cdot)(?![a-z])", "*", text)
    text = re.sub(r"\s+", "", text).rstrip(".,;")
    text = text.rstrip("$").rstrip(".")
    text = re.sub(r"^[A-Za-z](?:\\in|=)", "", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    text = re.sub(r"(?<![\w}])(\d+)/(\d+)(?!\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\{-(\w+)\}", r"-\\frac{\1}", text)
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    return re.sub(r"^\(([^(),]*)\)$", r"\1", text)


# --- lists, and what is not for rules ---------------------------------------------------------


def every_member(question: Question, answer: str) -> tuple[int, str]:
    """Return (label, members found): each member of the gold list is named, by any synonym.

    The whole answer is read, for lists run over many lines. Names beyond the gold ones are not held
    against it: a rule cannot tell a wrong member from an explanation.
    """
    members = list_members(question.gold_answers)
    if not members:
        raise NoReference(f'gold answer "{question.gold_answers[0]}" is no list, "a; b"')
    text = plain_answer(answer)
    known = [name for names in members for name in names]
    found = [names[0] for names in members if _states(text, names, beside=known)]
    return int(len(found) == len(members)), f"{len(found)} of {len(members)}: {'; '.join(found)}"


def free(question: Question, answer: str) -> tuple[int, str]:
    """Raise NoReference: whether sentences mean the same is not for a rule to say."""
    raise NoReference("the reference is free text: label it with the judge openai or nli")


# --- SQuAD's token F1 -------------------------------------------------------------------------

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_tokens(text: str) -> list[str]:
    """Return the words of a text as SQuAD compares them: small letters, no ASCII punctuation, no
    articles (Rajpurkar et al. 2016, section 6).
    """
    text = text.lower().translate(_PUNCTUATION)
    return re.sub(r"\b(?:a|an|the)\b", " ", text).split()


def squad_f1(answer: str, gold: str) -> float:
    """Return the F1 of the answer's words against the gold answer's, 0 to 100.

    Words are counted with repetition. Where one side has no words, 100 if both have none, else 0.
    """
    given, wanted = squad_tokens(answer), squad_tokens(gold)
    if not given or not wanted:
        return 100.0 if given == wanted else 0.0
    shared = (Counter(given) & Counter(wanted)).total()
    return 100.0 * 2 * shared / (len(given) + len(wanted))


SQUAD_RIGHT = 50.0


def squad(question: Question, answer: str) -> tuple[int, str]:
    """Return (label, best F1): the F1 of the answer with some gold answer is at least 50."""
    best = max(squad_f1(plain_answer(answer), gold) for gold in question.gold_answers)
    return int(best >= SQUAD_RIGHT), f"F1 {best:.1f}"


RULES: dict[str, Callable[[Question, str], tuple[int, str]]] = {
    "exact": exact,
    "numeric": numeric,
    "choice": choice,
    "math": math,
    "list": every_member,
    "squad": squad,
    "free": free,
}
