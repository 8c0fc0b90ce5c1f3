r"""What an answer states, whatever shape it is written in.

`read_statement` takes an answer apart in this order: thoughts of a reasoning model go; then what is
marked as the answer counts, by a tag (<answer>B</answer>), by a key of JSON ({"answer": "B"}), by
#### or \boxed{}; else what follows the last "the answer is"; else the whole text.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spikescore.data.adapters.mathematics import boxed_answer


@dataclass(frozen=True)
class Statement:
    """`text` is what the answer states, `whole` all of it. `mark` says how it was found: "marked"
    (tag, JSON, box), "clause" ("the answer is ...") or "" for the whole text.
    """

    text: str
    whole: str
    mark: str


_LONGEST = 20_000  # characters that are read
_MOST_JSON = 50  # pieces of JSON that are tried


# --- thoughts, marks and what comes after an answer -------------------------------------------

_NAMES = r"think|thinking|thoughts?|reasoning|reflection|scratchpad|seed:think|analysis"
_THOUGHT = re.compile(
    rf"<(?:{_NAMES})(?:\s[^<>]*)?>|\[THINK\]|◁think▷|<\|begin_of_thought\|>"
    r"|<\|channel\|>analysis<\|message\|>",
    re.IGNORECASE,
)
_THOUGHT_ENDS = re.compile(
    rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|eot_id|end|endoftext|eom_id|return|end_of_text)\|>|</s>|<end_of_turn>|<eos>"
    # a model that was not told when to stop asks itself the next question
    r"|\n\s*(?:###\s*)?(?:question|q|human|user|problem|instruction|input)\s*\d*\s*:",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"<\|[\w ]{1,30}\|>|<s>|<pad>|<start_of_turn>")
_EMPHASIS = re.compile(r"(?<![\w*_])([*_])(?![\s*_])([^*_\n]+?)(?<!\s)\1(?![\w*_])")


def after_thoughts(text: str) -> str:
    """Return what a reasoning model says after its thoughts; nothing of one that was cut off."""
    ends = [match.end() for match in _THOUGHT_ENDS.finditer(text)]
    return _THOUGHT.split(text[ends[-1] :] if ends else text, maxsplit=1)[0]


def _spoken(answer: str) -> str:
    """Return the answer without thoughts, control tokens and questions that it goes on to ask."""
    answer = re.sub(r"(\s)\1{2,}", r"\1\1", after_thoughts(answer))
    if len(answer) > _LONGEST:  # a model that does not stop: what it begins and ends with
        answer = f"{answer[: _LONGEST // 4]}\n{answer[-_LONGEST * 3 // 4 :]}"
    for end in _TURN_ENDS.finditer(answer):
        if answer[: end.start()].strip():
            answer = answer[: end.start()]
            break
    return _CONTROL.sub("", answer).strip()


_BREAKS = re.compile(r"</?(?:p|br|div|li|ul|ol|tr|h[1-6])\b[^<>]*>", re.IGNORECASE)
_STYLE = re.compile(
    r"</?(?:b|i|u|em|strong|span|code|sub|mark|center|pre|t[dh]|table|font|small|body|html)\b[^<>]*>",
    re.IGNORECASE,
)


def _unmarked(text: str) -> str:
    """Return a text without the marks of Markdown and HTML."""
    text = _STYLE.sub("", _BREAKS.sub("\n", text))
    closed = dict.fromkeys(re.findall(r"</([A-Za-z][\w-]{1,30})>", text))
    for name in list(closed)[:20]:  # <artist>...</artist>
        text = re.sub(rf"</?{name}(?:\s[^<>]*)?>", " ", text)
    text = re.sub(r"^\s*```\w*\s*$|\*\*|__|`|^\s*#+\s+|^\s*>\s?", "", text, flags=re.MULTILINE)
    return _EMPHASIS.sub(r"\2", text).strip()


def plain_answer(answer: str) -> str:
    """Return the answer without its thinking part and without Markdown marks."""
    return _unmarked(_spoken(answer))


# --- marked answers ---------------------------------------------------------------------------

_TAG = re.compile(
    r"<((?:[a-z]+[_ -])?(?:answer|choice|option|result|solution|response|output|final|ans)"
    r"(?:[_-][a-z]+)?)\b[^<>]*>((?:(?!<\1\b).)*?)(?:</\1>|$)"
    r"|\[(answer|final|ans)\](.*?)(?:\[/\3\]|$)",
    re.IGNORECASE | re.DOTALL,
)
_KEYS = (
    "finalanswer correctanswer answer theanswer youranswer myanswer ans antwort respuesta reponse "
    "réponse resposta risposta antwoord ответ 答案 答え 回答 정답 답 उत्तर الإجابة "
    "finalresult result correctoption selectedoption correctchoice selectedchoice answerchoice "
    "selectedanswer choice option selected selection letter answerletter choiceletter optionletter "
    "label prediction solution output response reply conclusion value final verdict"
).split()
_ASIDE = re.compile(
    r"reason|explan|think|thought|rationale|justif|steps?$|work|note|question|confiden|comment|"
    r"source|language|analysis|context|certain|probab|type$|unit$|id$"
)
_PAIR = re.compile(
    r"""["'](?P<key>[^"'\n]{1,40})["']\s*:\s*(?:"(?P<d>(?:[^"\\\n]|\\.)*)"?|'(?P<s>[^'\n]*)'?"""
    r"""|(?P<bare>[^\s,"'}\]][^,}\]\n]*))"""
)


def _key(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _value(content: Any) -> str | None:
    """Return what a piece of JSON gives as its answer; None where a dict names none."""
    if isinstance(content, dict):
        known = {_key(name): value for name, value in content.items()}
        for name in _KEYS:
            if name in known:
                unit = known.get("unit") if isinstance(known.get("unit"), str) else ""
                return f"{_all_values(known[name])} {unit}".strip()
        if len(content) == 1:
            name, inner = next(iter(content.items()))
            return "" if _ASIDE.search(_key(name)) else _all_values(inner)
        return None
    if isinstance(content, list):
        return "; ".join(filter(None, map(_all_values, content)))
    if content is None:
        return ""
    return str(content).lower() if isinstance(content, bool) else str(content)


def _all_values(content: Any) -> str:
    """Return what a piece of JSON gives as its answer, or all that it says where it names none."""
    found = _value(content)
    if found is None:
        found = "; ".join(
            _all_values(value) for name, value in content.items() if not _ASIDE.search(_key(name))
        )
    return found


def _from_json(text: str) -> tuple[str, bool] | None:
    """Return (what the last piece of JSON in a text says, whether a key marks it as the answer)."""
    decoder = json.JSONDecoder()
    found, done = None, 0
    body = re.sub(r"^\s*```\w*\s*$", "", text, flags=re.MULTILINE).strip()
    starts = [match.start() for match in re.finditer(r'\{(?=\s*["}])|^\[', body)]
    try:
        for start in starts[:_MOST_JSON]:
            if start < done:
                continue
            try:
                content, done = decoder.raw_decode(body, start)
            except ValueError:
                continue
            if isinstance(content, dict) or not body[done:].strip():
                found = content
        if found is not None:
            said = _value(found)
            return (_all_values(found), False) if said is None else (said, True)
    except RecursionError:
        return None
    if re.search(r"""\{\s*["']""", body):  # quotes of Python, a comma too many, or cut off
        pairs = {
            _key(match["key"]): next(
                value for value in (match["d"], match["s"], match["bare"]) if value is not None
            )
            for match in _PAIR.finditer(body)
        }
        for name in _KEYS:
            if name in pairs:
                said = pairs[name].strip()
                return ("" if said in ("null", "None") else said), True
    return None


# --- "the answer is" --------------------------------------------------------------------------

_BE = (
    r"(?:\b(?:is|was|are|were|remains|stays|equals|(?:would|should|must|will|could|can|may) be|"
    r"(?:comes|works) out (?:to|as)|turns out to be)\b(?!n['’]t)|[=:：→⇒]|[=-]>|[-–—](?=\s))"
)
_CLAUSE = re.compile(
    rf"\b(?:answers?|ans)\b(?:\s+(?:to|for|of|in)\b[^.?!\n]{{0,80}}?)?(?:\s*\([^)\n]{{0,25}}\))?"
    rf"\s*{_BE}\s*[:：]?\s*"
    r"|答案\s*(?:应该|應該|應|应)?(?:是|为|為|[:：])|答え?\s*(?:は|[:：])|正解は"
    r"|(?:정답|답)\s*(?:은|:)|ответ\w*\s*(?:[:—–-]|будет\b|это\b)"
    r"|\brespuesta(?: correcta| final)?\s*(?:es\b|:)|\br[ée]ponse(?: correcte"
    r"| finale)?\s*(?:est\b|:)"
    r"|\bantwort\s*(?:lautet|ist|:)|\bresposta(?: correta| certa| final)?\s*(?:é\b|:)"
    r"|\brisposta(?: corretta| esatta| finale)?\s*(?:è|:)|\bantwoord\s*(?:is|:)"
    r"|(?:الإجابة|الجواب)(?: الصحيحة| الصحيح)?\s*(?:هي|هو|:)|उत्तर\s*(?:है|:|-|=)?(?=\s)"
    r"|\bcevap\s*:|\bđáp án(?: đúng)?\s*(?:là|:)|\bodpowiedź\s*(?:to\b|:)|\bsvaret (?:är|er)\b"
    r"|\bjawaban\w*(?: yang benar)?\s*(?:adalah|:)|απάντηση\s*(?:είναι|:)",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"\W*(?:(?:also|indeed|definitely|quite|very|therefore|thus|still|probably|likely|certainly|now"
    r"|both|absolutely|so|all|most|the|entirely|fully|in fact) )*(?:correct|right|accurate|true"
    r"|valid|wrong|incorrect|false|final|complete|clear|obvious|simple|easy|straightforward|short"
    r"|brief|reasonable|plausible|best|certain|confident|well[- ]known|based|derived|supported"
    r"|confirmed|verified|consistent|obtained|found|given|provided|explained|taken|in (?:line"
    r"|accordance|agreement|the)|according|as follows|below|above|here|available|subject|meant"
    r"|intended|known|due|because|backed|a good|an? (?:estimate|approximation|guess))\b",
    re.IGNORECASE,
)
_ABOUT = (
    re.compile(  # "this answer is ...", "Confidence in the answer: high", "Source of my answer:"
        r"\b(?:this|that|these|above|previous)\s*$"
        r"|\b(?:confiden\w+|certain\w*|explan\w+|reason\w*|justif\w+|rationale|sources?|evidence"
        r"|support|basis|accuracy|correctness|probability|likelihood|quality)"
        r" (?:(?:in|of|for|about|behind|that|level) )+(?:(?:the|my|final|whole|given) )*$",
        re.IGNORECASE,
    )
)
_SENTENCE_END = re.compile(r"[.!?](?=[\s\"'”’)\]]|$)|[。！？｡।؟]|\n")
_ABBREVIATIONS = {"st", "dr", "mr", "mrs", "ms", "jr", "sr", "vs", "no", "mt", "ft", "prof", "gen"}


def _clause(text: str, golds: Iterable[str]) -> str | None:
    """Return what follows the last "answer is ..." up to the end of its sentence, or None.

    "This answer is correct" is a remark, and none of it, unless the gold answer is "correct". A
    gold answer that holds a mark ("Panic! at the Disco") is no end of a sentence.
    """
    golds = [gold.strip() for gold in golds]
    wanted = {re.sub(r"\W", "", gold.casefold()) for gold in golds}
    marked = [gold for gold in golds if re.search(r"[.!?\u3002]\s", gold)]
    for match in reversed(list(_CLAUSE.finditer(text))):
        tail = text[match.end() :]
        start = len(tail) - len(tail.lstrip(" \t\"'\u201c\u2018*"))
        said = tail[start:].casefold()
        named = max((len(one) for one in marked if said.startswith(one.casefold())), default=-start)
        clause = tail[: start + named] + first_sentence(tail[start + named :])
        remark = _REMARK.match(clause)
        about = _ABOUT.search(text[: match.start()])
        if re.sub(r"\W", "", clause.casefold()) in wanted:
            return clause
        if remark or about:
            # "the answer is clear: Paris", "as follows:\nParis"
            colon = re.match(r"[^:\n]{0,40}:\s*", tail)
            clause = first_sentence(tail[colon.end() :]) if colon and not about else ""
        if re.search(r"\w", clause):
            return clause
    return None


def first_sentence(text: str) -> str:
    """Cut at the first sentence end; "St. Louis", "J. Smith" and "3.5" are not ends."""
    for end in _SENTENCE_END.finditer(text):
        word = re.search(r"(\w+)$", text[: end.start()])
        if end.group() == "\n" and not text[: end.start()].strip():
            continue
        if end.group() != "." or word is None:
            return text[: end.start()]
        initial = len(word.group()) == 1 and word.group().isalpha()
        dotted = initial and re.search(r"\.\s?\w$", text[: end.start()])  # "U.S.", "J. R. R."
        last = not text[end.end() :].strip()
        if (not initial or (last and not dotted)) and word.group().casefold() not in _ABBREVIATIONS:
            return text[: end.start()]
    return text


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, those without a word left out."""
    found = []
    while text.strip():
        one = first_sentence(text)
        text = text[len(one) + 1 :]
        if re.search(r"\w", one):
            found.append(one.strip())
    return found


# --- the whole --------------------------------------------------------------------------------


def read_statement(answer: str, golds: Iterable[str] = ()) -> Statement:
    """Return what an answer states; `golds` tell a remark ("is correct") from an answer."""
    spoken = html.unescape(_spoken(answer))
    whole = _unmarked(spoken)
    tags = [next(text for text in match.groups()[1::2] if text is not None)
            for match in _TAG.finditer(spoken)]  # fmt: skip
    if tags:
        inner = read_statement(tags[-1], golds)
        return Statement(inner.text, whole, "marked")
    if said := _from_json(spoken):
        inner = _unmarked(said[0])
        return Statement(boxed_answer(inner) or inner, whole, "marked" if said[1] else "")
    if hashes := re.findall(r"^.*?####[ \t]*(\S[^\n]*)", spoken, re.MULTILINE):
        if not re.match(r"\W*(?:final |the )*answer\b", hashes[-1], re.I):
            return Statement(_unmarked(hashes[-1]), whole, "marked")
    if boxed := boxed_answer(whole):
        return Statement(boxed, whole, "marked")
    whole = re.sub(r"\\(?:boxed|fbox)\s*\{\s*\}", "", whole).strip()
    clause = _clause(whole, golds)
    if clause is not None:
        return Statement(clause.strip(), whole, "clause")
    return Statement(whole, whole, "")


# --- nothing said, or said that nothing is known ----------------------------------------------

_FILLER = set(
    "a an the is are was be to of for on in and as it this that here heres there your my our you i "
    "me let lets us final correct right answer answers question questions response following below "
    "above sure certainly course okay ok well yes list think step by steps about so now need "
    "we must will with have solve equation work through find asks".split()
)
_ABSTAINS = re.compile(
    r"\b(?:(?:do|does|did|could|can|would|am|is|are|was) ?not|(?:do|does|did|could|ca|is|are|was)nt"
    r"|cannot|unable to|not able to|never) (?:\w+ ){0,3}(?:know|knew|say|tell|answer|solve"
    r"|determine|determined|help|sure|certain|provide|find|have (?:access|enough|information"
    r"|the))\b|\bno idea\b|\bnot sure\b|\bsorry\b|\bnone of (?:them|these)\b"
)


def folded(text: str) -> str:
    """Return a text in small letters with one space between words and no marks."""
    text = re.sub(r"['’‘`]", "", text.casefold())
    return " ".join(re.findall(r"\w+", text))


def says_nothing(text: str) -> bool:
    """True where a text holds no word that could be an answer: "Here is the answer:", "..."."""
    if re.fullmatch(r"[^\n.!?]{1,80}[:：]", text.strip()):
        return True
    return all(word in _FILLER for word in folded(text).split())


def abstains(text: str) -> bool:
    """True for "I don't know", "I cannot answer that": a statement, and not a right one."""
    return _ABSTAINS.search(folded(text)) is not None


def scripts(text: str) -> set[str]:
    """Return the scripts of a text's letters: {"LATIN"}, {"CJK", "HIRAGANA"}."""
    return {unicodedata.name(one, "?").split()[0] for one in set(text) if one.isalpha()}
