r"""Offline rules that decide whether an answer agrees with the gold answers.

A rule reads what the answer states (`statements.read_statement`). It is strict about what cannot be
decided by rule: an answer that names several candidates ("Paris or London") or denies the right one
("it is not Paris") is not consistent.

    exact    a gold alias stands in the statement as whole words (case, accents, articles ignored)
    numeric  the statement's number equals the gold number to 1e-6, relative
    choice   the statement names the right option, by letter or by text
    math     the boxed (or stated) expression equals the gold one
    list     every member of the gold list is named somewhere in the answer, in any order
    squad    the best F1 of the answer's words with a gold answer's is at least 50
    free     none: a reference of free sentences is not for rules but for the judge openai or nli

Each returns (label, what it read): 1 consistent, 0 not, None where the answer cannot be read (it is
empty, was cut off before it came to an answer, or is in a script that the gold answers are not in).
`NoReference` means that the rule cannot use the item's gold answers.
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from spikescore.data.question import Question, gold_option, list_members
from spikescore.labels.expressions import constant, normal_form, same_expression
from spikescore.labels.numbers import Number, plain_digits, quantity, read_numbers, words_to_digits
from spikescore.labels.statements import (
    Statement,
    abstains,
    folded,
    plain_answer,
    read_statement,
    says_nothing,
    scripts,
    sentences,
)

Reading = tuple[int | None, str]


class NoReference(ValueError):
    """The rule cannot use this item's gold answers."""


def _unread(statement: Statement) -> Reading | None:
    """Return the reading of an answer that states nothing: unread, or that it does not know."""
    if abstains(statement.whole):
        return 0, "says that it does not know"
    return (None, "") if says_nothing(statement.text) else None


def _names_another(statement: Statement) -> bool:
    """True where a few marked words can be read, and are of another kind than the gold answer."""
    few = len(statement.text.split()) <= 6 and folded(statement.text) not in ("n a", "na", "tbd")
    return bool(statement.mark) and few and not says_nothing(statement.text)


# --- exact ------------------------------------------------------------------------------------

_ARTICLES = {"a", "an", "the"}
_FUNCTION_WORDS = _ARTICLES | set(
    "who what it this that i he she they we you in on of to is us up her him them no not so go do "
    "as at be by if me my or an am are was were may will can must might would should could mark "
    "march one out off over under all any some most few more less here there then now when "
    "where how why yes et and but for from with about after before again".split()
)
_MODALS = {"may", "will", "can", "must", "might", "would", "should", "could", "march", "mark"}
_NEGATORS = {
    "not",
    "never",
    "isnt",
    "wasnt",
    "arent",
    "werent",
    "nor",
    "neither",
    "except",
    "unlike",
}
_DENIED = re.compile(r"(?:is|was|are|were)(?:nt| not)? (?:the )?(?:wrong|incorrect|false)\b")
_NOT_IT = re.compile(r"(?:(?:is|was) not|isnt|wasnt) (?:it|(?:the )?(?:right|correct|answer)\b)")
_OR = re.compile(
    r"^(?:, [^,;.!?]{1,40}){0,4},? ?(?:or|/) (?!not\b|so\b|rather\b|just\b|simply\b)(.*)"
)
_LETTERS = str.maketrans({
    "ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th",
    "Þ": "Th", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ß": "ss", "ẞ": "SS", "ı": "i", "ħ": "h",
    "Ħ": "H", "ŧ": "t", "Ŧ": "T", "ŋ": "ng", "ə": "e", "’": "'", "‘": "'", "`": "'", "ʼ": "'",
    "−": "-", "–": " - ", "—": " - ", "&": " and ", "“": '"', "”": '"', "«": '"', "»": '"',
})  # fmt: skip
_ROMAN = {name: str(n) for n, name in enumerate(
    "II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX".split(), start=2)
    if len(name) > 1}  # fmt: skip
_ORDINALS = {word: f"{n}{('th', 'st', 'nd', 'rd')[n] if n < 4 else 'th'}" for n, word in enumerate(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(),
    start=1)}  # fmt: skip
_BRITISH = "colour harbour labour honour favour neighbour humour rumour armour behaviour flavour"
_SAME = {
    "saint": "st", "mount": "mt", "doctor": "dr", "mister": "mr", "grey": "gray",
    "theatre": "theater", "centre": "center", **_ORDINALS,
    **{f"{one}{s}": f"{one[:-2]}r{s}" for one in _BRITISH.split() for s in ("", "s")},
}  # fmt: skip
_UNITS = {word: int(number[:-2]) for word, number in list(_ORDINALS.items())[:9]}
_TENTHS = {word: n for n, word in enumerate(
    "twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth".split(),
    start=2)}  # fmt: skip
_TEENTHS = {word: n for n, word in enumerate(
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth".split(),
    start=13)}  # fmt: skip
_TENS = {f"{word[:-4]}y": n for word, n in _TENTHS.items()}
_LATER = re.compile(  # "twenty-first", "nineteenth"; the ordinals below are in _ORDINALS
    rf"\b(?:({'|'.join(_TENS)})-({'|'.join(_UNITS)})|({'|'.join(_TENTHS)})"
    rf"|({'|'.join(_TEENTHS)}))\b",
    re.IGNORECASE,
)
_NAMED_NTH = re.compile(rf"\b([A-Z][a-z]+) the ({'|'.join(map(str.title, _ORDINALS))})\b")
_MONTHS = {one[:3]: one for one in "January February March April May June July August September "
           "October November December".split()}  # fmt: skip
_MONTH = rf"({'|'.join(f'{one}(?:{long[3:]})?' for one, long in _MONTHS.items())}|Sept)\b\.?"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_MONTH_DAY = re.compile(rf"\b{_MONTH} (?:the )?{_DAY}\b(?![.,]?\d)")
_DAY_MONTH = re.compile(rf"\b{_DAY}(?: day)?(?: of)? {_MONTH}")
_MARKS = frozenset(',;.!?/()":')
_CJK = r"\u3040-\u30ff\u3400-\u9fff"
_TOKENS = re.compile(
    rf"(?<![\w.])-?\d+(?:\.\d+)*(?:st|nd|rd|th)?(?!\w)|[{_CJK}]|[^\W_{_CJK}]+(?:\+\+|#)?"
    rf"|[,;.!?/():\"]"
)


def _ordinal(match: re.Match[str]) -> str:
    tens, unit, tenth, teenth = (part and part.casefold() for part in match.groups())
    n = 10 * _TENS[tens] + _UNITS[unit] if tens else 10 * _TENTHS.get(tenth, 0)
    n = n or _TEENTHS[teenth]
    return f"{n}{('th', 'st', 'nd', 'rd')[n % 10] if n > 20 and n % 10 < 4 else 'th'}"


def _raw_words(text: str) -> list[str]:
    """Return the tokens of a text in their own case: words without accents, and single marks."""
    text = unicodedata.normalize("NFKC", html.unescape(text)).translate(_LETTERS)
    text = re.sub(r"[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text))
    text = plain_digits(text)
    text = re.sub(r"(?<=\w) (?:'n'?|n') ?(?=\w)", " and ", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\w)'s\b", "", text).replace("'", "")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(?<=\d)\s?%|\bper cent\b", " percent ", text)
    text = re.sub(r"\b([A-Za-z])\.(?=[A-Za-z]\b)|\b([A-Za-z])\.\s(?=[A-Za-z]\.)", r"\1\2", text)
    text = _LATER.sub(_ordinal, text)
    text = re.sub(r"\bcannot\b", "can not", words_to_digits(text, whole_only=True))
    text = re.sub(rf"(?<=[{_CJK}])(?=\d)|(?<=\d)(?=[{_CJK}])", " ", text)
    text = _NAMED_NTH.sub(lambda m: f"{m[1]} {int(_ORDINALS[m[2].casefold()][:-2])}", text)
    text = _DAY_MONTH.sub(lambda m: f"{m[1]} {_MONTHS[m[2][:3]]}", text)
    text = _MONTH_DAY.sub(lambda m: f"{m[2]} {_MONTHS[m[1][:3]]}", text)
    found = [_ROMAN.get(token, token) for token in _TOKENS.findall(text)]
    for place, token in enumerate(found):  # "World War I" is a number, "then I" is none
        before = found[place - 1] if place else ""
        ends = place + 1 == len(found) or not _is_word(found[place + 1])
        name = before.istitle() and before.casefold() not in _FUNCTION_WORDS
        if token == "I" and name and (place > 1 or ends):
            found[place] = "1"
    return found


def _words(text: str, *, articles: bool = False) -> list[str]:
    """Return normalised tokens: words without case, accents and articles, and single marks."""
    folded_words = (_SAME.get(one, one) for one in map(str.casefold, _raw_words(text)))
    return [token for token in folded_words if articles or token not in _ARTICLES]


def _is_word(token: str) -> bool:
    return token not in _MARKS


def _find(needle: list[str], tokens: list[str]) -> list[tuple[int, int]]:
    """Return [start, end) of the places where the words, if any, stand in a row, marks ignored."""
    if not needle:
        return []
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


def _names(text: str, phrase: str) -> bool:
    """True when a short phrase that is also a common word ("US", "May", "It") stands in the text as
    a name: by itself, or spelled as a name is where a word would not be.
    """
    raw, wanted = _raw_words(text), [one for one in _raw_words(phrase) if _is_word(one)]
    words = [one for one in raw if _is_word(one)]
    if [one.casefold() for one in words] == [one.casefold() for one in wanted]:
        return True
    if len(wanted) > 1:
        return bool(_find([one.casefold() for one in wanted], [one.casefold() for one in raw]))
    name = wanted[0]
    if name == name.casefold():
        return False
    for place, token in enumerate(raw):
        after = raw[place + 1] if place + 1 < len(raw) else "."
        if token != name:
            continue
        if len(name) > 1 and name.isupper() and any(one.islower() for one in words):
            return True
        starts = place == 0 or raw[place - 1] in ".!?:"
        if not starts or not _is_word(after):
            return True
        if name.casefold() in _MODALS and after.casefold() not in (
            "i we you he she it they be not have well".split()
        ):
            return True
    return False


def _negated(tokens: list[str], start: int, end: int, *, negative: bool = False) -> bool:
    """True when the phrase is denied: "not Paris", "isn't in Paris", "Paris is incorrect"; the last
    is an answer where the question is `negative` (which of them is incorrect?).
    """
    before: list[str] = []
    for token in reversed(tokens[:start]):
        if token in ",;.!?/():" or token in ("but", "because") or len(before) == 4:
            break
        before.insert(0, token)
    text = " ".join(before)
    if re.search(r"\bnot (?:only|just|sure)\b", text):
        return False
    after = " ".join(tokens[end : end + 6])
    return (
        any(token in _NEGATORS for token in before)
        or re.search(r"(?:rather than|instead of|other than|dont think|doubt)\b", text) is not None
        or text.endswith(("than", "不 是", "并 非", "並 非"))
        or (tokens[start].isdigit() and text.endswith(("after", "before")))
        or (
            _NOT_PICKED.match(after)
            if negative
            else _DENIED.match(after.removeprefix(", ")) or _NOT_IT.match(after)
        )
        is not None
        or re.match(r"\? (?:no|not|nope)\b", after) is not None
    )


def _hedged(tokens: list[str], start: int, end: int, needles: list[list[str]]) -> bool:
    """True when the phrase is one of several candidates: "Paris or London", "London / Paris"."""
    after = re.sub(r" (?=[,;.!?])", "", " " + " ".join(tokens[end : end + 14]))
    match = _OR.match(after.lstrip(" "))
    if match:
        rest = match.group(1).split()
        return not any(rest[: len(one)] == one for one in needles)
    if start and tokens[start - 1] in ("or", "/"):
        head = [token for token in tokens[: start - 1] if _is_word(token)]
        return not any(head[-len(one) :] == one for one in needles)
    return False


_OFFERS = re.compile(r"\b(?:or|whether|between|following|(?:which|one) of)\b")
_AUXILIARIES = frozenset(
    "is was are were be has had have does did can could will would may might isnt wasnt".split()
)


def _repeats(asked: list[str], raw: list[str], tokens: list[str], start: int, end: int) -> bool:
    """True where a phrase of the answer only repeats the question that holds it: with words that
    stand beside it there, too ("the god of war is ...", asked for the god of war), or as what the
    sentence is about ("Charles Springall was a comedian").

    `asked` and `raw` are the question's words, folded and as written. A phrase that is but a part
    of a name there is none of it: "Oklahoma City" does not name Oklahoma.
    """
    phrase = [one for one in tokens[start:end] if _is_word(one)]
    before = [one for one in tokens[:start] if _is_word(one)]
    after = [one for one in tokens[end:] if _is_word(one)]
    for first, last in _find(phrase, asked):
        if "and" in (asked[first - 1 : first] + asked[last : last + 1]):
            continue  # "of Mars and Venus, which ...?"
        left = 0
        while left < min(first, len(before)) and before[-1 - left] == asked[first - 1 - left]:
            left += 1
        right = 0
        while right < min(len(asked) - last, len(after)) and after[right] == asked[last + right]:
            right += 1
        shared = (*asked[first - left : first], *asked[last : last + right])
        if any(one not in _FUNCTION_WORDS for one in shared):
            return True
        around = (*raw[max(0, first - 1) : first][first < 2 :], *raw[last : last + 1])
        if raw[first].istitle() and any(one.istitle() for one in around):
            continue
        since = max((at + 1 for at in range(start) if tokens[at] in ".!?;:"), default=0)
        verb = re.match(r"[^.!?;:]*", " ".join(tokens[end:]))[0].split()
        at = next((at for at, one in enumerate(verb) if one in _AUXILIARIES), None)
        if at is None or _AUXILIARIES & set(tokens[since:start]):
            continue
        rest = [one for one in verb[at + 1 :] if _is_word(one)]
        if len(rest) > 1 and rest[0] not in ("correct", "right", "answer", "one"):
            return True
    return False


def _states(
    text: str, phrases: Sequence[str], beside: Sequence[str] = (), question: str = ""
) -> bool:
    """True when the text states one of the phrases as whole words, neither denied nor hedged.

    To stand in an "or" with one of the phrases, or with one of `beside`, is no hedge. What only
    repeats the `question` states nothing, unless that offers answers or holds every phrase.
    """
    stated = False
    needles = [(phrase, *_needle(phrase)) for phrase in _spelled(phrases)]
    needles = [one for one in needles if one[1]]
    plain = [words for _, words, _ in needles]
    plain += filter(None, (_needle(one)[0] for one in beside))
    tokens = _words(text)
    raw = [one for one in _raw_words(question) if _is_word(one) and one.casefold() not in _ARTICLES]
    asked = [_SAME.get(one, one) for one in map(str.casefold, raw)]
    if _OFFERS.search(question.casefold()) or all(
        _find(words, asked) for _, words, full in needles if not full
    ):
        raw = asked = []
    for phrase, words, full in needles:
        if full:
            stated |= _names(text, phrase)
            continue
        for start, end in _find(words, tokens):
            if _negated(tokens, start, end):
                return False
            if re.match(r"(?:(?:is|was|are|were) not|(?:is|was|are|were)nt) (?!only|just|far)",
                        " ".join(tokens[end : end + 3])):  # fmt: skip
                continue  # "Lyon is not the capital"
            if asked and _repeats(asked, raw, tokens, start, end):
                continue
            stated |= not _hedged(tokens, start, end, plain)
    return stated


def _spelled(phrases: Iterable[str]) -> list[str]:
    """Return the phrases, and those with an umlaut also as they are written without."""
    umlauts = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})
    composed = [unicodedata.normalize("NFC", one) for one in phrases]
    return [*composed, *(new for one in composed if (new := one.translate(umlauts)) != one)]


# yes, no and unknown

_SAYS_NO = re.compile(
    r"^(?:(?:that|this|it|he|she|they) (?:(?:is|was|would be) )?)?(?:incorrect|wrong|false|untrue"
    r"|never|not)\b"
    r"|\b(?:no|nope|nah|nay|non|nein|нет|nao|negative|hayir)\b"
    r"|\b(?:not (?:really|at all|right|correct|true|so)|(?:is|was|do|did|does)nt (?:right|correct"
    r"|true|so))\b"
    r"|\b(?:of course|certainly|definitely|absolutely|surely) not\b"
)
_SAYS_YES = re.compile(
    r"^(?:(?:that|this|it|thats|its) (?:is |was |would be )?)?(?:(?:very |quite |absolutely )?"
    r"(?:correct|right|true|sure|certainly|definitely|absolutely|indeed|affirmative|exactly"
    r"|surely)\b)"
    r"|\b(?:yes|yeah|yep|yup|aye|oui|ja|да|si|sim|evet|tak)\b|\bof course\b|\bindeed\b"
)
_YES_ELSEWHERE = re.compile(r"^\W*(?:是|对|對|はい|네\b|예\b|نعم|हाँ|हां)")
_NO_ELSEWHERE = re.compile(r"^\W*(?:不|否|没|沒|いいえ|아니|لا\b|नहीं)")
_SHORT = re.compile(
    r"^(?:i|you|he|she|it|they|we|there|this|that|these|those|\w+) (is|was|are|were|am|did|does"
    r"|do|has|have|had"
    r"|can|could|will|would|should|may|might|must)( not|nt)?$"
    r"|^\w+ (is|was|are|were|did|does|do|has|have|had|ca|could|wo|would|should)nt$"
)


def _yes_or_no(text: str) -> str | None:
    """Return the yes or no that a text says first; None where it says neither, or both at once."""
    words = " ".join(re.sub(r"[^\w]+", " ", " ".join(_words(text))).split())
    if re.search(r"\byes or no\b|\bno or yes\b", words):
        return None
    if _YES_ELSEWHERE.match(text) or _NO_ELSEWHERE.match(text):
        return "yes" if _YES_ELSEWHERE.match(text) else "no"
    no, yes = _SAYS_NO.search(words), _SAYS_YES.search(words)
    if yes and re.match(r"(?:of course|certainly|definitely|absolutely|surely) not\b",
                        words[yes.start() :]):  # fmt: skip
        yes = None
    if yes or no:
        return "yes" if yes and (not no or yes.start() < no.start()) else "no"
    if words in ("y", "t", "n", "f"):
        return "yes" if words in ("y", "t") else "no"
    if short := _SHORT.match(words):
        return "no" if short.group(2) or words.endswith("nt") else "yes"
    return None


_NOT = r"(?:not|never|(?:do|does|did|is|was|are|were|has|have|had|could|ca|would)nt|cannot)"
_UNKNOWN = re.compile(
    r"\b(?:unknown|unclear|unspecified|unstated|unanswerable|unmentioned|undisclosed"
    r"|undetermined)\b|^n a$|\bnobody (?:knows|can)\b|\bimpossible to \w+\b|\b(?:no"
    r"|without) (?:further )?(?:information|mention|answer|indication|details?|data|clue|evidence"
    r"|way (?:to|of)|one (?:knows|can))\b|\b(?:gives?|gave|makes?|made|provides?|offers?|contains?"
    r"|there is|theres|states?) no\b|\binsufficient information\b"
    rf"|(?<!\bhe )(?<!\bshe )(?<!\bthey )\b{_NOT} (?:\w+ ){{0,3}}(?:say|state|mention|specify"
    rf"|tell|give|provide|"
    r"indicate|describe|reveal|explain|identify|disclose|know|clear|stated|mentioned|given"
    r"|specified|"
    r"said|told|says|tells|states|provided|indicated|described|revealed|explained|known|determined|"
    r"answered|disclosed|identified|named|discussed|addressed|included|enough|possible"
    r"|sufficient)\b"
)


_COUNTS_ONE = re.compile(  # "only one melon", "One was left", but not "one of them", "no one"
    r"\b(?:is|was|are|were|has|had|have|left|exactly|(?<!not )(?<!nt )(?:only|just)) one\b"
    r"(?! (?:of|or|that|who|which|where|to|another|day|half|third|quarter|more"
    r"|hundred|thousand|million|dozen)\b)"
    r"|^one(?: (?!day)\w+)? (?:is|was|remains|remained)\b"
)
_TAKEN_BACK = re.compile(  # "..., but it does not end there", "but that is wrong"
    r"\bbut (?:it|he|she|they|this|that) (?:(?:do|does|did|is|was|are|were)(?:nt| not)"
    r" (?:\w+ ){0,2}(?:there|true|right|correct|so|it)|(?:is|was) (?:wrong|incorrect|false))$"
)
_BEGINS_YES_NO = re.compile(  # "No, it stayed", "yes she did", but not "no one"
    r"^(yes|no|true|false)(?:\s*[,.;:!]|\s+[-–—]|\s+(?:it|he|she|they|there|this|that|i|we|you)\b).*",
    re.DOTALL,
)


def exact(question: Question, answer: str) -> Reading:
    """Return (label, text read): some gold alias stands in the final statement as whole words.

    A gold "yes" or "no" is compared with the statement's first yes or no; a gold "unknown" also
    accepts the usual ways to say so; a gold quantity ("600 W") is compared in number and unit.
    """
    golds = question.gold_answers
    statement = read_statement(answer, golds)
    text = statement.text
    short = {_BEGINS_YES_NO.sub(r"\1", gold.strip(" .").casefold()) for gold in golds}
    if short <= {"yes", "no", "true", "false"}:
        said = _yes_or_no(text) or (_yes_or_no(statement.whole) if statement.mark else None)
        right = {{"true": "yes", "false": "no"}.get(gold, gold) for gold in short}
        return (None, text) if said is None else (int(said in right), text)
    if not re.search(r"\w", text):
        return None, ""
    if "unknown" in short and _UNKNOWN.search(folded(text)):
        return 1, text
    quantities = [one for one in map(quantity, golds) if one and one.unit]
    if len(quantities) == len(golds) and (found := _quantity_label(text, quantities)) is not None:
        return found, text
    one = ("one", "1") if short & {"one", "1"} else ()
    answered = _without_asked_denial(question, _without_question(question, text))
    if _states(answered, (*golds, *one), question=question.question) or (
        one and _COUNTS_ONE.search(folded(text))
    ):
        return (None if _TAKEN_BACK.search(folded(statement.whole)) else 1), text
    if nothing := _unread(statement):
        return nothing
    known = set().union(*map(scripts, golds))
    if known and not known & scripts(text) and scripts(text):
        return None, text  # in a script that no gold answer is in
    return 0, text


def _without_question(question: Question, text: str) -> str:
    """Return the text without the question where it says that first: "What is X? Y." """
    asked = re.escape(question.question.strip())
    rest = re.sub(rf"^\W*{asked}(?=\W|$)", "", text, flags=re.IGNORECASE) if asked else text
    return rest if re.search(r"\w", rest) else text


def _without_asked_denial(question: Question, text: str) -> str:
    """Return the text without a "never learned" that the question has too: it is asked for."""
    kept = {"the", *folded(" ".join(question.gold_answers)).split()}
    for denial, word in re.findall(r"\b(not|never) (\w{3,})", question.question, re.IGNORECASE):
        if word.casefold() not in kept:
            text = re.sub(rf"\b{denial} (?={word}\b)", "", text, flags=re.IGNORECASE)
    return text


def _quantity_label(text: str, golds: Sequence[Number]) -> int | None:
    found, written = read_numbers(text)
    if not found:
        return None
    for number in found:
        before = written[: number.start].rstrip()
        denied = re.search(r"(?:\bnot|n['’]t)$", before) is not None
        if any(number.equals(gold) and (number.unit or len(found) == 1) for gold in golds):
            return int(not denied)
    return 0


# --- numeric ----------------------------------------------------------------------------------

# "which is 6 x 2 = 12 eggs", not "which is 2 more than 5 x 2 = 10"
_SUM = r" (?:is|was|makes|gives|equals|means) \$?\d(?:(?!\b(?:more|less|fewer)\b)[^=.;]){0,40}="
_TAIL = re.compile(
    rf"\s*(?:,\s*)?\b(?:because|since|as (?:\d|the|each|there)|which(?!{_SUM})|who|where"
    r"|for (?:each|every)|given|out of|after|, not|rather than|instead of|when|if)\b.*|,\s*not\b.*",
    re.IGNORECASE | re.DOTALL,
)
_CONCLUDES = re.compile(
    r"(?:\b(?:so|therefore|thus|hence|then|altogether|finally|gives|leaves|makes|equals|result(?:s"
    r"|ing)?|total(?:s|ing)?|(?:comes|adds|amounts) (?:up )?to|is|are|was|were|be|get|gets|got"
    r"|earns?|costs?)\b|=|→|:)",
    re.IGNORECASE,
)
_RANGE = re.compile(r"\bbetween\b[^.;\n]{0,15}$", re.IGNORECASE)


_ENUMERATION = re.compile(r"^\s*(?:step\s*)?\d{1,2}[.):]\s+(?=\S)", re.IGNORECASE | re.MULTILINE)


def numeric(question: Question, answer: str) -> Reading:
    """Return (label, number read): the statement's number equals a gold number to 1e-6.

    In "the answer is ..." the first number counts ("17 of 26"), or the last one of a calculation
    ("26 - 9 = 17"); without such a clause the number that the text comes to. Where that is not
    clear, and the gold number is among those named, the answer is unread.
    """
    golds = [
        found[-1] for gold in question.gold_answers
        if (found := read_numbers(gold)[0]) and (len(found) == 1 or "=" in gold)
    ]  # fmt: skip
    if not golds:  # "2:30" and "3 to 5" are two
        raise NoReference(f'gold answer "{question.gold_answers[0]}" is not one number')
    return _compared(read_statement(answer, question.gold_answers), golds)


def _compared(statement: Statement, golds: Sequence[Number]) -> Reading:
    read, text, sure = _stated_number(statement)
    if read is None and folded(statement.text) in ("none", "nothing", "nil"):
        return (None if any(gold.value == 0 for gold in golds) else 0), statement.text
    if read is None and abstains(statement.whole):
        return 0, "says that it does not know"
    if read is None:
        return (0 if _names_another(statement) else None), statement.text
    said = text[read.start : read.end].strip()
    if against := _not_meant(read, text):
        return 0, against
    if any(read.equals(gold) or _thousands(read, gold) for gold in golds):
        return (None if text[: read.start].casefold().endswith(" than ") else 1), said
    named = read_numbers(statement.whole)[0]
    if not sure and any(number.equals(gold) for number in named for gold in golds):
        return None, f"{said}, or another"
    return 0, said


def _not_meant(read: Number, text: str) -> str:
    """Say why a number is not what the text states, "not 5", "5, one of several"; else ""."""
    said = text[read.start : read.end].strip()
    before, after = text[: read.start].casefold(), text[read.end :]
    if re.search(
        r"(?:\bnot|n['’]t|\bnever)(?: (?:be|have|has|had|equal|equal to|in))?\s*$", before
    ):
        return f"not {said}"
    other = re.match(
        r"[^.;\n\d]{0,20}\bor (?:maybe |perhaps |even )?-?\$?\d|\s?(?:-|–|to)\s?\d", after
    ) or re.search(
        r"\d[^.;\n\d]{0,20}\bor (?:maybe |perhaps |even )?-?$|\d\s?(?:–|\bto)\s?$", before
    )
    return f"{said}, one of several" if other or _RANGE.search(before) else ""


def _thousands(read: Number, gold: Number) -> bool:
    """True for "5K" where the gold number is 5000 and no temperature."""
    kelvin = read.unit is not None and read.unit[0] == (("kelvin", 1),)
    return kelvin and gold.unit is None and read.value * 1000 == gold.value


def _stated_number(statement: Statement) -> tuple[Number | None, str, bool]:
    """Return the number that an answer gives, the text it was read from, and whether it is sure."""
    if statement.mark:
        number, text = _number_of(statement.text)
        if number is not None:
            return number, text, True
        if statement.mark == "marked":
            return None, "", True
    whole, numbered = _ENUMERATION.subn("", statement.whole)
    lines = sentences(whole if numbered > 1 else statement.whole)
    if len(lines) > 1 and len(lines[0].split()) <= 3:  # the number first, then why
        number, text = _number_of(lines[0])
        if (
            number is not None
            and not re.search(r"[=:]", lines[0])
            and lines[0][:1] in "0123456789$-€£"
        ):
            return number, text, True
    for line in reversed(lines):
        found, written = read_numbers(_before_reasons(line))
        if not found:
            continue
        ends = [match.end() for match in _CONCLUDES.finditer(written)]
        ends = [end for end in ends if any(number.start >= end for number in found)]
        tail = [number for number in found if ends and number.start >= ends[-1]]
        equals = written.rfind("=")
        if equals >= 0 and (behind := [one for one in found if one.start > equals]):
            return behind[0], written, True
        if len(tail) == 1 or len(found) == 1:
            return (tail or found)[0], written, True
        if re.match(
            r"\W*(?:so |thus |therefore,? )?there (?:is|are|was|were|will be)\b", written, re.I
        ):
            return found[0], written, True
        if len(found) > 2 and found[0].value == sum(number.value for number in found[1:]):
            return found[0], written, True  # "72 in all, 48 in April and 24 in May"
        return (tail or found)[-1], written, False
    return None, statement.whole, False


def _before_reasons(text: str) -> str:
    """Cut what explains or limits a number: "18 because ...", "18 (9 x 2)", "5, not 6"."""
    for shorter in (re.sub(r"\([^()]*\)", " ", text), text):
        cut = _TAIL.sub("", shorter)
        if read_numbers(cut)[0]:
            return cut
        if read_numbers(shorter)[0]:
            return shorter
    return text


def _number_of(text: str) -> tuple[Number | None, str]:
    """Return the number of a clause or marked answer: after the last "=" or sum, else the first."""
    found, written = read_numbers(_before_reasons(text))
    if not found:
        return None, text
    equals = max(written.rfind("="), written.rfind("≈"))
    behind = [number for number in found if number.start > equals]
    sum_is = re.search(r"\d\s*[-+*×÷/]\s*\$?\d[^=]*?\b(?:is|gives|makes|equals)\b", written)
    if sum_is:
        behind = [number for number in found if number.start >= sum_is.end()] or behind
    return (behind or found)[0], written


# --- choice -----------------------------------------------------------------------------------

_PROSE = 20  # words, from which on options may be named without being chosen
_LOOK_ALIKES = str.maketrans("АВСЕНКМОРТХавсеΑΒΕΖΗΙΚΜ", "ABCEHKMOPTXabceABEZHIKM")
_NO_LETTER = re.compile(
    r"\b(?:vitamin|hepatitis|plan|class|type|grade|group|team|number|point|section|part|figure"
    r"|table)\W*$",
    re.IGNORECASE,
)
_NTH = "first second third fourth fifth sixth seventh eighth".split()
_PICKED = (
    r"(?i:option|choice|answer|letter|alternative|select|selected|choose|chose|pick|picked|go with"
    r"|going with|选项|選項|选择|選擇|选|選|选的是)"
)


_WRONG = re.compile(
    r"\W{0,3}(?:(?:is|was|are|can be|seems)(?:\s+(?:also|clearly))?\s+(?:not\b|n['’]t|wrong"
    r"|incorrect|false|ruled)"
    r"|isn['’]t|(?:wrong|incorrect|false|no)\b)",
    re.IGNORECASE,
)
_NOT_PICKED = re.compile(  # all that denies an option where the question asks what is not so
    r"\W{0,3}(?:(?:is|was)(?:\s+not|n['’]t)|(?:is|was) never)\s+(?:it\b|(?:an?\s+|the\s+)?"
    r"(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)\b)"
    r"|\W{0,3}(?:is|was) (?:the|a) (?:wrong|incorrect) (?:answer|option|choice)\b",
    re.IGNORECASE,
)
_ASKS_WHAT_IS_NOT = re.compile(
    r"n['’]t\b|\b(?:not|never|except|incorrect\w*|wrong|false\w*|untrue|inaccurate|least)\b",
    re.IGNORECASE,
)


def choice(question: Question, answer: str) -> Reading:
    """Return (label, option read): the statement names the right option and no other.

    Letters count where they cannot be words: "(B)", "B.", "option B", "B is correct", a bare "B"
    (but "A" only at the end or before a mark: "A cat" is no letter). Where letter and text
    contradict each other, the text decides if it names one option only; an answer that names
    several is not consistent, one that lists them all is unread. "C is not mentioned" picks C where
    the question asks what is not, and denies it elsewhere.
    """
    if not question.choices:
        raise NoReference("the item has no choices")
    gold = gold_option(question)
    if gold is None:
        raise NoReference(f'gold answer "{question.gold_answers[0]}" is not an option')
    # some data sets repeat an option: equal texts are one option, the first of them
    choices = question.choices
    same = [option.strip().casefold() for option in choices]
    first = [same.index(option) for option in same]
    negative = _ASKS_WHAT_IS_NOT.search(question.question) is not None
    wrong = _NOT_PICKED if negative else _WRONG
    statement = read_statement(answer, question.gold_answers)
    options = ((statement.text, bool(statement.mark)), (statement.whole, False))
    line, _, rest = statement.text.partition("\n")  # the letter first, then why
    upper = _upper(len(choices))
    if rest and len(line.split()) <= 8 and not re.search(rf"^\W*{upper}\W", rest, re.MULTILINE):
        options = ((line, True), *options)
    for text, marked in options:
        letters = {first[index] if index < len(first) else index
                   for index in _letters(text, choices, wrong, bare=marked)}  # fmt: skip
        texts = {first[index] for index in _options_stated(text, choices, negative=negative)}
        if letters or texts:
            if not marked and len(letters | texts) == len(set(first)) > 2:
                return None, "all options"
            picked = _pick(letters, texts)
            if picked is None and not marked and not letters and len(text.split()) > _PROSE:
                return None, "several options, in prose"
            if picked is None or picked >= len(choices):
                return 0, "no single option"
            return int(picked == first[gold]), f"{chr(ord('A') + picked)}. {choices[picked]}"
        if statement.mark == "marked" and re.search(r"\w", text) and not abstains(text):
            break
    if abstains(statement.whole):
        return 0, "says that it does not know"
    denied = _letters(statement.whole, choices, wrong, bare=True, denied=True)
    if gold in denied or _find(_needle(choices[gold])[0], _words(statement.whole)):
        return 0, "not that option"
    return (0 if _names_another(statement) else None), "no option"


def _pick(letters: set[int], texts: set[int]) -> int | None:
    if len(texts) == 1 and len(letters) <= 1:
        return next(iter(texts))
    if len(letters) == 1 and (not texts or letters <= texts):
        return next(iter(letters))
    return None


def _upper(n: int) -> str:
    """Return the pattern of an option's letter, A to H or beyond; "I think" is no letter."""
    if n <= len(_NTH):
        return "[A-H]"
    return rf"(?:[A-HJ-{chr(ord('A') + max(n, 10) - 1)}]|I(?!['’]|\s+[a-z]))"


def _letters(
    statement: str,
    choices: Sequence[str],
    wrong: re.Pattern[str],
    *,
    bare: bool,
    denied: bool = False,
) -> set[int]:
    """Return the options named by letter; `bare` lets a lone letter count ("answer is B"). With
    `denied` those that are ruled out instead: `wrong` follows the letter, or the option's text
    behind it. A letter behind the last option is one, too.
    """
    n = len(choices)
    text = unicodedata.normalize("NFKC", statement.translate(_LOOK_ALIKES))
    text = re.sub(
        r"\\(?:text|textbf|mathbf|mathrm|mbox|boxed|fbox)\s*\{\s*([^{}]*?)\s*\}", r"\1", text
    )
    text = re.sub(r"\\[()\[\]]|\$", "", text)
    text = re.sub(r"\b([A-Z])\.(?=[A-Z]\b)", r"\1", text)  # "D.C." is no letter
    last = chr(ord("A") + n - 1)
    upper = _upper(n)
    any_case = f"(?:{upper}|[a-{last.lower()}])"
    several = rf"\b{upper}(?:\s*(?:,|\band\b|\bor\b|/)\s*(?:(?:and|or)\s+)?{upper}\b)+"
    for listing in dict.fromkeys(re.findall(several, text)):
        rest = text[text.find(listing) + len(listing) :]
        if len(set(re.findall(rf"\b{upper}\b", listing))) >= n > 2 or wrong.match(rest):
            text = text.replace(
                listing, " "
            )  # "the options are A, B, C and D", "A and B are wrong"
    apart = r"(?<![^\W\u3040-\u9fff\uac00-\ud7ff\u0600-\u06ff])"
    beside = r"(?![\w'’](?<![\u3040-\u9fff\uac00-\ud7ff]))"
    right = r"(?:is|was|would be|seems|must be)\s+(?:the\s+|also\s+)?(?:most\s+)?"
    good = r"(?:correct|right|true|best|answer|one)\b"
    forms = [
        rf"\(({any_case})\)",
        rf"[\[{{\"'“‘<]\s*({any_case})\s*[\]}}\"'”’>]",
        rf"{_PICKED}\s*[:：]?\s*(?:is\s+|letter\s+)?\(?({upper}){beside}",
        rf"(?i:option|choice|answer|letter)\s+({any_case}){beside}(?!\s+[a-z])",
        rf"^\W*({any_case})[.):：](?=\s|$|\S)",
        rf"^\W*({any_case})\W*$",
        rf"^\W*({upper})(?=\s*(?:,|;|-|–|—|\bor\b|\band\b|/|\bbecause\b|\bsince\b)\s*)",
        rf"(?:[.!?:：。，,]|\bso|\bthus|\btherefore|\bhence|\bbut|=>|→)\s*({upper})\W*$",
        rf"\b(?i:or|and|both|either|neither|nor|not)\s+({upper})(?=\W*$|[.):,;]|\s+(?:or|nor|and"
        rf"|but)\b)",
        rf"{apart}({upper})\s+{right}{good}",
        rf"\b(?i:say|guess|think|believe|suggest|prefer)(?:\s+(?:it['’]s|it\s+is"
        rf"|that))?\s+\(?({upper}){beside}"
        r"(?!\s+[a-z])",
        rf"{good}\s+(?:option|choice|answer|letter|one)?\s*(?:is|was|would be|must be"
        rf"|:)\s*(?:option |letter )?"
        rf"\(?({any_case}){beside}(?!\s+[a-z])",
        rf"\b(?:[Ii]t|[Tt]hat|[Tt]his)(?:['’]s|\s+is|\s+must be"
        rf"|\s+was)\s+(?:option\s+)?\(?({upper}){beside}(?!\s+[a-z])",
        rf"(?:是|为|為|选|選|は|은|는|هي|है)\s*[（(]?\s*({upper}){beside}",
        rf"{apart}({upper})(?:입니다|です|이다|。|，|。)",
    ]
    if bare:
        forms.append(
            rf"{apart}({upper})(?=\W*$|[).:,;/!]|\s+(?:or|and|because|since|but|as|for)\b)"
        )
        forms.append(rf"^\W*((?=[B-{last}]){upper})\b(?!['’])" if n > 1 else r"(?!)")
    found = {}
    so = re.search(rf"\b(?:[Tt]herefore|[Ss]o|[Tt]hus|[Hh]ence),?\s+\(?({upper})\)?\W*$", text)
    so = so or re.search(  # "between B and D, B is better"
        rf"{apart}({upper})\s+(?:is|seems|fits)\s+(?:the\s+)?(?:better|more (?:likely|plausible))"
        r"\b[^.\n]*\W*$",
        text,
    )
    for form in [so.re.pattern] if so else forms:
        for match in re.finditer(form, text, flags=re.MULTILINE):
            found[match.start(1)] = match.group(1).upper()
    if not found and len(text.split()) <= 8:  # alone among few words: "Clearly C."
        for match in re.finditer(rf"{apart}([B-H]|A(?=\W*$)){beside}", text):
            if not _NO_LETTER.search(text[: match.start()][-30:]):
                found[match.start(1)] = match.group(1)
    if n <= len(_NTH) and not found:
        for match in re.finditer(r"\b(\w+) (?:option|choice|answer|one)\b", text.casefold()):
            if match.group(1) in _NTH[:n]:
                found[match.start(1)] = chr(ord("A") + _NTH.index(match.group(1)))
    no = re.compile(
        r"(?:\bnot|n['’]t|\bnor|\bneither)\s+(?:(?!but\b)\w+\s+){0,2}\W*$", re.IGNORECASE
    )

    def is_wrong(place: int, letter: str) -> bool:
        index, rest = ord(letter) - ord("A"), text[place + 1 :]
        if index < n:  # "B. rush is not a correct option", "Option B, rush, is wrong"
            rest = re.sub(
                rf"^\W*{re.escape(choices[index].strip())}\b", "", rest, flags=re.IGNORECASE
            )
        return bool(no.search(text[max(0, place - 60) : place]) or wrong.match(rest))

    ruled_out = {place for place, letter in found.items() if is_wrong(place, letter)}
    return {
        ord(letter) - ord("A") for place, letter in found.items() if (place in ruled_out) == denied
    }


def _options_stated(statement: str, choices: Sequence[str], *, negative: bool) -> set[int]:
    """Return the options stated by text, not denied, and not as a part of a longer option."""
    spans: list[tuple[int, int, int]] = []
    stated: set[int] = set()
    whole = _words(statement)
    for index, text in enumerate(choices):
        words, full = _needle(text)
        if full:
            if _states(statement, [text]):
                stated.add(index)
            continue
        spans += [
            (start, end, index)
            for start, end in _find(words, whole)
            if not _negated(whole, start, end, negative=negative)
        ]
    for start, end, index in spans:
        inside = any(a <= start and end <= b and (b - a) > (end - start) for a, b, _ in spans)
        if not inside:
            stated.add(index)
    return stated


# --- math -------------------------------------------------------------------------------------


def math(question: Question, answer: str) -> Reading:
    """Return (label, expression read): it equals a gold expression.

    Reads the marked (boxed) expression; without one the "answer is" clause, the last $...$, or what
    follows the last "is" or "="; where the gold one is a number, also the number that a sentence
    comes to ("A spider has 8 legs."). An expression that cannot be evaluated is unread, unless its
    text is the gold one; one that the question holds already is no answer to it.
    """
    statement = read_statement(answer, question.gold_answers)
    if not re.search(r"\w", re.sub(r"\\(?:boxed|fbox|text)\b", "", statement.text)):
        return None, ""
    if statement.mark == "marked":
        candidates = [statement.text]
    else:
        candidates = _stated_expressions(statement)
    if abstains(statement.whole) and not statement.mark:
        return 0, "says that it does not know"
    unsure = echoed = False
    for candidate in candidates:
        same = [same_expression(candidate, gold) for gold in question.gold_answers]
        if any(same):
            if not _echoes(question, candidate):
                return 1, candidate
            echoed = True
        unsure |= None in same
    if statement.mark != "marked" and (found := _number_in_prose(question, statement)):
        return found
    if echoed:
        return 0, "repeats the question"
    if says_nothing(statement.text) or not candidates:
        return None, ""
    bare = not re.search(r"[\d\\=^]", statement.text) and len(statement.text.split()) > 3
    if unsure or (bare and all(re.search(r"\d|\\[a-z]", gold) for gold in question.gold_answers)):
        return None, candidates[0]
    if statement.mark != "marked" and _mentions(statement.whole, candidates, question.gold_answers):
        return None, f"{candidates[0]}, or another"
    return 0, candidates[0]


def _echoes(question: Question, candidate: str) -> bool:
    """True for an expression that the question asks to work out: 5^0, or 3! for "factorial"."""

    def form(text: str) -> str:
        text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", normal_form(text))
        return re.sub(r"[\s{}]", "", text)

    ours = form(candidate)
    if not re.search(r"(?!^)[-+*/^!(]|\\(?!pi)", ours) or ours in map(form, question.gold_answers):
        return False
    if "!" in ours and re.search(r"\bfactorial\b", question.question, re.IGNORECASE):
        return True
    return re.search(rf"(?<![\d.]){re.escape(ours)}(?![\d^])", form(question.question)) is not None


_WORKED = re.compile(  # in words, or by signs that stand apart: no number of its own
    r"\b(?:roots?|squared|cubed|power|factorial|times|divided|multiplied|half of|twice|double"
    r"|at least|at most|between|log|sin|cos|tan|over|impossible|undefined|no(?!,)"
    r"|(?:step|part|case|problem|question|line|rule) \d+|[\dxyz] (?:plus|minus))\b"
    r"|\d\s*(?:in|out of|to|or)\s+\d|\d\s+\d|[\d)}]\s*[-+*^×·⋅](?:\s*[\d(\\√]|\s|$)|\d\s+/"
    r"|\d\s*(?:[b-zB-Z]\b|[(\\√])|[)√^_]\s*\d",
    re.IGNORECASE,
)


def _number_in_prose(question: Question, statement: Statement) -> Reading | None:
    """Return the reading of a sentence that gives a number, as `numeric` reads it; None where the
    gold answer is no number, or where the sentence does not give the gold one.
    """
    values = [one for one in map(constant, question.gold_answers) if one is not None]
    if not values or not re.search(r"[A-Za-z]{2}", statement.text):
        return None

    def evaluated(match: re.Match[str]) -> str:
        text = match[0].strip("$ ")
        if (found := quantity(text)) and found.unit:
            return match[0]
        value = None if _echoes(question, text) else constant(text)
        return " " if value is None else f" {value!r} "

    def written(text: str) -> str:
        text = re.sub(r"(?<=\d)\s*(?:π|\\pi\b|pi\b)|\bpi\b", "π", text)
        text = re.sub(r"(?<=\d)\s+x\s+(?=\d)", "x", text)
        text = re.sub(r"\$[^$=\n]*[\\^!π√(][^$=\n]*\$", evaluated, text)
        return re.sub(r"[^\s=,;:?]*(?:\d[^\s=,;:?]*[a-zA-Zπ^!√\\]|[a-zA-Z^√\\][^\s=,;:?]*\d|π)"
                      r"[^\s=,;:?]*(?<!\.)", evaluated, text)  # fmt: skip

    said = Statement(written(statement.text), written(statement.whole), statement.mark)
    named = read_numbers(said.text)[0]
    in_digits = re.search(r"\d", statement.text) is not None
    spoken = in_digits or len(statement.text.split()) <= 12  # else "of two numbers", in passing
    if not named or not spoken or _WORKED.search(said.text):
        return None
    golds = [read_numbers(repr(value))[0][0] for value in values]
    label, number = _compared(said, golds)
    asked = read_numbers(question.question)[0]
    if any(one.equals(gold) for one in asked for gold in golds):
        return None if label == 0 else (None, number)  # it may be the question's number
    if label == 0 and any(one.equals(gold) for one in named for gold in golds):
        read, text, _ = _stated_number(said)
        label = 0 if read is not None and _not_meant(read, text) else None
    return None if label == 0 and in_digits else (label, number)


def _mentions(whole: str, candidates: Sequence[str], golds: Sequence[str]) -> bool:
    """True when prose that was not clearly read names the gold expression somewhere else."""
    text = re.sub(r"\s+", "", whole)
    if len(whole.split()) <= 6 or re.search(r"\bor\b", candidates[0]):
        return False
    forms = (re.sub(r"\s+", "", normal_form(gold)) for gold in golds)
    return any(
        len(form) > 1 and re.search(rf"(?<![\w.]){re.escape(form)}(?![\w.]|,\d)", text)
        for form in forms
    )


def _stated_expressions(statement: Statement) -> list[str]:
    clause, text = statement.mark == "clause", statement.text
    spans = re.findall(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", text, re.DOTALL)
    spans = ["".join(span).strip() for span in spans]
    stated = [text] if clause or len(text.split()) <= 9 else []
    if spans:
        stated.append(spans[0] if clause and len(spans) == 1 else spans[-1])
    else:
        lines = [line for line in text.strip().split("\n") if line.strip()]
        line = lines[-1] if lines else ""
        line = re.split(r"\b(?:so|thus|hence|therefore)\b", line, flags=re.IGNORECASE)[-1]
        said = re.split(r"\.\s+", line)
        values = [one for one in said if re.search(r"(?:\bis|\bare|\bequals|=).*\d", one)]
        line = (values or said[:1])[-1]
        cut = re.split(r",\s+(?:and|which|where|as|since)\b", line)[0]
        stated.append(re.split(r"\bis\b|\bare\b|\bequals\b|=", cut)[-1])
    last = stated[-1].rsplit("=", 1)
    if re.search(r"\bor\b|\band\b|,", stated[-1]):
        last = last[:1]
    return [one.strip() for one in (*stated, last[-1]) if re.search(r"\w", one)]


# --- lists, and what is not for rules ---------------------------------------------------------


def every_member(question: Question, answer: str) -> Reading:
    """Return (label, members found): each member of the gold list is named, by any synonym.

    The whole answer is read, for lists run over many lines. Names beyond the gold ones are not held
    against it: a rule cannot tell a wrong member from an explanation.
    """
    members = list_members(question.gold_answers)
    if not members:
        raise NoReference(f'gold answer "{question.gold_answers[0]}" is no list, "a; b"')
    statement = read_statement(answer, question.gold_answers)
    text = statement.text if statement.mark == "marked" else statement.whole
    known = [name for names in members for name in names]
    found = [names[0] for names in members if _states(text, names, beside=known)]
    if not found:
        if nothing := _unread(statement):
            return nothing
        if not set().union(*map(scripts, known)) & scripts(text):
            return None, text
    return int(len(found) == len(members)), f"{len(found)} of {len(members)}: {'; '.join(found)}"


def free(question: Question, answer: str) -> Reading:
    """Raise NoReference: whether sentences mean the same is not for a rule to say."""
    raise NoReference("the reference is free text: label it with the judge openai or nli")


# --- SQuAD's token F1 -------------------------------------------------------------------------

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_tokens(text: str) -> list[str]:
    """Return a text's words as SQuAD compares them (Rajpurkar et al. 2016, section 6)."""
    text = text.lower().translate(_PUNCTUATION)
    return re.sub(r"\b(?:a|an|the)\b", " ", text).split()


def squad_f1(answer: str, gold: str) -> float:
    """Return the F1 of the words, 0 to 100, counted with repetition; 100 where both have none."""
    given, wanted = squad_tokens(answer), squad_tokens(gold)
    if not given or not wanted:
        return 100.0 if given == wanted else 0.0
    shared = (Counter(given) & Counter(wanted)).total()
    return 100.0 * 2 * shared / (len(given) + len(wanted))


SQUAD_RIGHT = 50.0


def squad(question: Question, answer: str) -> Reading:
    """Return (label, best F1): the F1 of the answer with some gold answer is at least 50."""
    best = max(squad_f1(plain_answer(answer), gold) for gold in question.gold_answers)
    return int(best >= SQUAD_RIGHT), f"F1 {best:.1f}"


RULES: dict[str, Callable[[Question, str], Reading]] = {
    "exact": exact,
    "numeric": numeric,
    "choice": choice,
    "math": math,
    "list": every_member,
    "squad": squad,
    "free": free,
    "grounded": free,
}
