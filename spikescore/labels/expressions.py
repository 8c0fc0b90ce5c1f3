r"""Are two mathematical expressions the same? \frac{1}2, 1/2 and 0.5; 2\cdot\sqrt3 and \sqrt{12}.

Both sides are brought into one notation; what then still differs is evaluated at a few points. (No
library of algebra: `math_verify`, tried on the same cases, takes 2x for 2 and the first of two
boxes, and its limit on time needs the main thread, where no label is made.)
"""

from __future__ import annotations

import cmath
import math
import re
import unicodedata

from spikescore.data.adapters.mathematics import boxed_answer
from spikescore.labels.numbers import read_numbers

_POINTS = (0.731, 1.937, 3.271)
_FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "exp": cmath.exp,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan,
    "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip
_TOKEN = re.compile(
    r"\s*(\d+(?:\.\d*)?|\.\d+|\\?(?:arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt"
    r"|frac|binom|pi|theta|alpha|beta|gamma|lambda|phi)(?![a-z])|[A-Za-z]|[-+*/^!(){}\[\]|_,])"
)


class _Unknown(ValueError):
    """The expression holds what is not evaluated."""


class _Parser:
    """Evaluates an expression by recursive descent, every variable at a value of its own."""

    def __init__(self, text: str, point: float) -> None:
        self.tokens: list[str] = []
        self.place = 0
        self.point = point
        place = 0
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise _Unknown(text[place:])
            self.tokens.append(match.group(1).lstrip("\\"))
            place = match.end()

    def value(self) -> complex:
        found = self.sum()
        if self.place < len(self.tokens):
            raise _Unknown(self.tokens[self.place])
        return found

    @property
    def next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.next
        if not token or (wanted and token != wanted):
            raise _Unknown(token)
        self.place += 1
        return token

    def sum(self) -> complex:
        total = self.product()
        while self.next in ("+", "-"):
            total += self.product() if self.take() == "+" else -self.product()
        return total

    def product(self) -> complex:
        total = self.signed()
        while self.next and self.next not in "+-)}]|,":
            if self.next in ("*", "/"):
                divide = self.take() == "/"
                factor = self.signed()
                total = total / factor if divide else total * factor
            else:
                total *= self.power()
        return total

    def signed(self) -> complex:
        if self.next in ("+", "-"):
            return self.signed() if self.take() == "+" else -self.signed()
        return self.power()

    def power(self) -> complex:
        base = self.atom()
        while self.next == "!":
            self.take()
            if base.imag or base.real < 0 or base.real != int(base.real) or base.real > 100:
                raise _Unknown("!")
            base = complex(math.factorial(int(base.real)))
        if self.next == "^":
            self.take()
            return base ** self.signed()
        return base

    def atom(self) -> complex:
        token = self.take()
        if token in ("(", "{", "["):
            found = self.sum()
            self.take({"(": ")", "{": "}", "[": "]"}[token])
            return found
        if token == "|":
            found = abs(self.sum())
            self.take("|")
            return complex(found)
        if token == "frac":
            return self.argument() / self.argument()
        if token == "binom":
            pair = self.argument(), self.argument()
            if any(one.imag or one.real < 0 or one.real % 1 for one in pair):
                raise _Unknown(token)
            return complex(math.comb(*(int(one.real) for one in pair)))
        if token == "sqrt":
            root = 2 + 0j
            if self.next == "[":
                self.take()
                root = self.sum()
                self.take("]")
            return self.argument() ** (1 / root)
        if token in _FUNCTIONS or token == "log":
            power = 1 + 0j
            base = 10 + 0j
            if token == "log" and self.next == "_":
                self.take()
                base = self.argument()
            if self.next == "^":
                self.take()
                power = self.argument()
            inner = self.argument() if self.next in ("(", "{") else self.power()
            found = cmath.log(inner, base) if token == "log" else _FUNCTIONS[token](inner)
            return found**power
        if token == "pi":
            return complex(math.pi)
        if token == "e":
            return complex(math.e)
        if token == "i":
            return 1j
        if token[0].isdigit() or token[0] == ".":
            if self.next == "_":
                raise _Unknown("a base")
            return complex(float(token))
        if token[0].isalpha():
            if self.next == "_":
                self.take()
                token += self.take()
            seed = sum(map(ord, token)) % 17
            return complex(self.point + seed / 7)
        raise _Unknown(token)

    def argument(self) -> complex:
        """What a command takes: a group, or a single digit or letter (\\frac12)."""
        if self.next in ("{", "("):
            return self.atom()
        token = self.next
        if token[:1].isdigit() and len(token) > 1:
            self.tokens[self.place : self.place + 1] = list(token)
        return self.atom()


_WORD = re.compile(
    r"(?<![\\a-z])(?!(?:sqrt|frac|binom|sin|cos|tan|cot|sec|csc|log|exp|arc)\b)[a-z]{3,}", re.I
)


def _evaluated(text: str) -> list[complex] | None:
    if _WORD.search(text):
        return None
    try:
        return [_Parser(text, point).value() for point in _POINTS]
    except (_Unknown, ArithmeticError, ValueError, OverflowError, RecursionError, IndexError):
        return None


def constant(text: str) -> float | None:
    r"""Return the value of an expression without variables, 16\pi; None for any other text."""
    values = _evaluated(_WORDS_AFTER.sub("", _NAME.sub("", normal_form(text))))
    if values is None or max(abs(one - values[0]) for one in values) > 1e-9 * abs(values[0]):
        return None
    return None if abs(values[0].imag) > 1e-9 else values[0].real


_SCALED = re.compile(
    r"(\d[\d,]*(?:\.\d+)?)(?:\s|~|\\[ ,;])*"
    r"(?:(thousand|million|billion|trillion)\b|\\(?:text|mathrm|mbox)\s*\{\s*"
    r"(thousand|million|billion|trillion)\s*\})",
    re.IGNORECASE,
)


def _scaled(match: re.Match[str]) -> str:
    """ "1.5 million" is 1500000."""
    number, *scale = filter(None, match.groups())
    found = read_numbers(f"{number} {scale[0]}")[0]
    return str(found[0].value) if len(found) == 1 else match[0]


def _mixed(match: re.Match[str]) -> str:
    r"""1\frac{1}{2} is one and a half; where the fraction is no proper one, it is a product."""
    whole, top, bottom = filter(None, match.groups())
    return f"({whole}+{top}/{bottom})" if int(top) < int(bottom) else match[0]


def normal_form(text: str) -> str:
    r"""Bring an expression into one notation: \dfrac, \left, spaces, degrees, dollars, units."""
    text = _SCALED.sub(_scaled, boxed_answer(text) or text)
    text = re.sub(
        r"([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text
    )
    text = unicodedata.normalize("NFKC", re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", "+", text))
    text = text.translate(
        {0x2212: "-", 0x2013: "-", 0x2044: "/", 0x22C5: "*", 0xB7: "*", 0xD7: "*"}
    )
    text = text.replace("π", "\\pi ").replace("∞", "\\infty ").replace("÷", "/")
    text = re.sub(r"√\s*\(([^()]*)\)|√\s*(\d+|\w)", lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    text = re.sub(r"\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = text.strip().strip("$").strip()
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,|\\!|,)(?=\d{3}(?!\d))(?![^()\[\]]*[)\]])", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = _MIXED.sub(_mixed, text)
    text = re.sub(
        r"\\(?:left|right|displaystyle|bigl|bigr|Bigl|Bigr|big|Big)(?![a-z])\.?", "", text
    )
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°|\\degree|\\(?=[%$])", "", text)
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{\s*(and|or|,)\s*\}",
                  r" \1 ", text)  # fmt: skip
    bare = re.sub(r"\\(?:text|mbox|mathrm|textrm)\s*\{[^}]*\}(?:\^\{?-?\d\}?)?", " ", text).strip()
    if re.search(r"[\d\\]|\w\s*=", bare):  # units; where nothing else stands, the words are it
        text = bare
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf|textit|textrm)\s*\{([^}]*)\}", r"\1", text)
    text = re.sub(r"(?<!\\)\\[,;:! ]|\\q?quad|~", " ", text).replace("$", " ").replace("%", "")
    text = re.sub(
        r"\\(ge|le|ne)q?(?![a-z])", r" \\\1 ", text.replace("≥", "\\ge ").replace("≤", "\\le ")
    )
    text = re.sub(r"\\(?:times|cdot|ast)(?![a-z])", "*", text).replace("**", "^")
    return text.strip().rstrip(".,;:").strip()


_PART = r"(?:\{\s*(\d+)\s*\}|(\d))\s*"
_MIXED = re.compile(rf"(?<![\w.^_}}])(\d+)\s*\\frac\s*{_PART}{_PART}")
_WORDS_AFTER = re.compile(r"(?<=[\d)}])\s+[A-Za-z][A-Za-z .]+(?:\^\{?\d\}?)?$")
_NAME = re.compile(r"^\s*[A-Za-z]\w?(?:_\{?\w+\}?)?(?:\([a-z]\))?\s*(?:=|\\in(?![a-z]))\s*")


def _both_signs(text: str) -> str:
    r"""Write 1 \pm x as the two values that it is; what stands in brackets, as it is."""
    if "\\pm" not in text or re.search(r"[(\[].*,", text):
        return text
    signs = ("+", "-")
    parts = [
        part.replace("\\pm", sign).replace("\\mp", signs[place - 1])
        for part in text.split(",")
        for place, sign in enumerate(signs if "\\pm" in part else ("",))
    ]
    return ", ".join(parts)


def same_expression(left: str, right: str) -> bool | None:
    """True, False, or None where the left side cannot be read."""
    ours, gold = (_both_signs(normal_form(side)) for side in (left, right))
    if not re.search(r"\w", ours):
        return None
    if _squeezed(ours) == _squeezed(gold):
        return True
    if re.search(r"%\s*\$?$", left.strip()) and "%" not in right:
        return bool(_same_value(ours, gold) or _same_value(f"({ours})/100", gold))
    ours = _WORDS_AFTER.sub("", ours)
    gold = _WORDS_AFTER.sub("", gold)
    matrices = _matrix(ours), _matrix(gold)
    if matrices[0] and matrices[1]:
        return _all_same(*matrices)
    one, other = _members(ours), _members(gold)
    unordered = all(brackets in ("", "\\{\\}") for brackets in (one[0], other[0]))
    if len(one[1]) != len(other[1]) or (one[0] != other[0] and not unordered):
        return False
    if len(one[1]) > 1:
        if unordered:  # a set, or values in any order
            left_over = list(other[1])
            for member in one[1]:
                match = next((two for two in left_over if same_expression(member, two)), None)
                if match is None:
                    return False
                left_over.remove(match)
            return True
        return _all_same(one[1], other[1])
    if one[1][0] != ours or other[1][0] != gold:
        return same_expression(one[1][0], other[1][0])
    return _same_value(ours, gold)


def _same_value(ours: str, gold: str) -> bool | None:
    if _squeezed(ours) == _squeezed(gold):
        return True
    if "_" in ours + gold and re.search(r"\d_", ours + gold):
        return False  # a number in some base: compared as written
    values = _evaluated(ours), _evaluated(gold)
    if values[0] is not None and values[1] is not None:
        return all(
            abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b))
            for a, b in zip(values[0], values[1], strict=True)
        )
    if values[0] is None and not re.search(r"[\\^_=]|\d", ours):
        found, written = read_numbers(ours)
        if len(found) == 1 and not re.search(r"\w", written[: found[0].start]):
            value = _evaluated(gold)
            return value is not None and abs(value[0] - float(found[0].value)) < 1e-9
        return False  # words
    return None if re.search(r"\\(?!pi|sqrt|frac|infty)[a-z]{3,}", ours) else False


def _all_same(ours: list[str], gold: list[str]) -> bool:
    return len(ours) == len(gold) and all(map(same_expression, ours, gold))


def _squeezed(text: str) -> str:
    text = re.sub(r"\\frac\s*(\w)\s*(\w)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    return re.sub(r"\s+", "", text).casefold() if text.isalpha() else re.sub(r"\s+", "", text)


def _matrix(text: str) -> list[str]:
    match = re.search(
        r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", text, re.S
    )
    if match is None:
        return []
    return [cell.strip() for row in match[2].split("\\\\") for cell in f"{row} ".split("&")]


def _members(text: str) -> tuple[str, list[str]]:
    r"""Split "(1,4]", "\{1,2\}", "x=1 or x=2" into brackets and members; one if no list."""
    text = re.sub(r"(?<=[\w)}])\s*(?:,\s*(?:and|or)|;|\band\b|\bor\b)\s+(?=[-\\\w(])", " , ", text)
    bare = _NAME.sub("", text).strip()
    match = re.fullmatch(r"(\\\{|[(\[])?(.*?)(\\\}|[)\]])?", bare, re.DOTALL)
    inner = match[2]
    depth, parts, start = 0, [], 0
    for place, one in enumerate(inner):
        depth += (one in "([{") - (one in ")]}")
        if depth < 0:
            break
        if one == "," and depth == 0:
            parts.append(inner[start:place])
            start = place + 1
    brackets = (match[1] or "") + (match[3] or "")
    if depth or not parts:
        whole = re.fullmatch(r"\(([^()]*)\)", bare)
        return "", [whole[1] if whole else bare]
    return brackets, [_NAME.sub("", part).strip() for part in (*parts, inner[start:])]
