"""Numbers and quantities in a text: 1,000; 10 000; 2 1/2; ½; 50%; 3e5; "two hundred and five";
"minus 5"; "a dozen"; ١٨; 十八; "600 watts" is 0.6 kW.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

# --- units ------------------------------------------------------------------------------------

_PREFIXES = {
    "k": 3, "M": 6, "G": 9, "T": 12, "c": -2, "d": -1, "m": -3, "µ": -6, "μ": -6, "u": -6, "n": -9,
    "p": -12, "h": 2,
}  # fmt: skip
_PREFIX_WORDS = {
    "kilo": 3, "mega": 6, "giga": 9, "tera": 12, "centi": -2, "deci": -1, "milli": -3, "micro": -6,
    "nano": -9, "pico": -12, "hecto": 2,
}  # fmt: skip
# symbols that take a prefix, words (with their plurals) that take one: dimension, factor
_METRIC = {
    "m": ("metre meter", "length", 1), "g": ("gram gramme", "mass", 1),
    "s": ("second", "time", 1), "A": ("ampere amp", "current", 1),
    "V": ("volt", "voltage", 1), "W": ("watt", "power", 1), "J": ("joule", "energy", 1),
    "N": ("newton", "force", 1), "Pa": ("pascal", "pressure", 1), "Hz": ("hertz", "frequency", 1),
    "Ω": ("ohm", "resistance", 1), "F": ("farad", "capacitance", 1), "C": ("coulomb", "charge", 1),
    "T": ("tesla", "induction", 1), "Wb": ("weber", "flux", 1), "H": ("henry", "inductance", 1),
    "L": ("litre liter", "volume", 1), "l": ("", "volume", 1), "mol": ("mole", "amount", 1),
    "eV": ("electronvolt", "energy", Fraction("1.602176634e-19")),
    "cal": ("calorie", "energy", Fraction("4.184")), "Wh": ("watthour", "energy", 3600),
    "B": ("byte", "data", 1), "bar": ("", "pressure", 100000),
}  # fmt: skip
_PLAIN = {
    "min mins minute minutes": ("time", 60), "h hr hrs hour hours": ("time", 3600),
    "sec secs": ("time", 1), "day days": ("time", 86400), "week weeks wk": ("time", 604800),
    "month months": ("months", 1), "year years yr yrs": ("months", 12),
    "inch inches": ("length", Fraction("0.0254")), "foot feet ft": ("length", Fraction("0.3048")),
    "yard yards yd yds": ("length", Fraction("0.9144")), "kilo kilos": ("mass", 1000),
    "mile miles mi": ("length", Fraction("1609.344")),
    "micron microns": ("length", Fraction("1e-6")),
    "pound pounds lb lbs": ("mass", Fraction("453.59237")), "kwh": ("energy", 3600000),
    "ounce ounces oz": ("mass", Fraction("28.349523125")),
    "ton tons tonne tonnes t": ("mass", 10**6),
    "gallon gallons": ("gallons", 1), "kelvin kelvins K": ("kelvin", 1),
    "degree degrees deg °": ("angle", 1), "rad radian radians": ("radians", 1),
    "°C ℃ degC celsius centigrade": ("celsius", 1), "°F ℉ degF fahrenheit": ("fahrenheit", 1),
    "percent % pct": ("percent", 1), "dollar dollars usd buck bucks $": ("dollars", 1),
    "cent cents": ("dollars", Fraction(1, 100)), "euro euros eur €": ("euros", 1),
    "gbp £": ("sterling", 1), "yen ¥ jpy": ("yen", 1), "rupee rupees ₹ inr": ("rupees", 1),
}  # fmt: skip
_COMPOUND = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "cc": "cm^3", "fps": "ft/s", "sqm": "m^2"}


def _units() -> dict[str, tuple[str, Fraction]]:
    table: dict[str, tuple[str, Fraction]] = {}
    for symbol, (words, dimension, factor) in _METRIC.items():
        for prefix, power in [("", 0), *_PREFIXES.items()]:
            table.setdefault(prefix + symbol, (dimension, Fraction(factor) * Fraction(10) ** power))
        for prefix, power in [("", 0), *_PREFIX_WORDS.items()]:
            for word in words.split():
                value = dimension, Fraction(factor) * Fraction(10) ** power
                table[prefix + word] = table[prefix + word + "s"] = value
    for names, (dimension, factor) in _PLAIN.items():
        table |= dict.fromkeys(names.split(), (dimension, Fraction(factor)))
    return table


_UNITS = _units()
_NO_UNIT_WORDS = {"in", "a", "at", "am", "pm", "T", "H", "F"}  # "5 in all", "a day", "3 pm"
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "squared": 2, "cubed": 3}
_DEGREES = re.compile(
    r"(?:\^?\s*\{?\s*\\circ\s*\}?|\\degree|°|\bdeg(?:ree)?s?)\s*(?:\\text\{|\\mathrm\{)?\s*"
    r"(?:(C)(?:elsius|entigrade)?|(F)(?:ahrenheit)?)\b\}?",
    re.IGNORECASE,
)
_UNIT_TOKEN = re.compile(
    r"\s*(?:(per|/)|[·⋅*]|-(?=[a-z]))?\s*([^\W\d_]+|[°℃℉%$€£¥₹Ω]C?F?)(?:\^\{?(-?\d)\}?)?"
)

Unit = tuple[tuple[tuple[str, int], ...], Fraction]
"""Dimensions with their powers, and the factor to their basis."""


def unit_at(text: str) -> tuple[Unit | None, int]:
    """Return the unit that a text begins with, and where it ends; (None, 0) where it has none."""
    dimensions: Counter[str] = Counter()
    factor, end, sign = Fraction(1), 0, 1
    waiting, previous = 1, Fraction(1)
    while match := _UNIT_TOKEN.match(text, end):
        divided, word, exponent = match.groups()
        gap = text[end : match.start(2)]
        if end and not divided and not dimensions and waiting == 1:
            break
        if word == "per" or (word in ("a", "an", "each") and dimensions and not divided):
            if not dimensions or not _lookup(_first_word(text[match.end() :])):
                break
            sign, end = -1, match.end()
            continue
        if divided:
            sign = -1
        if word.casefold() in ("square", "sq", "cubic"):
            waiting, end_before, end = _POWERS[word.casefold()], end, match.end()
            if not _lookup(_first_word(text[end:])):
                end = end_before
                break
            continue
        if word.casefold() in _COMPOUND:
            (inner, scale), _ = unit_at(_COMPOUND[word.casefold()])
            for dimension, own in inner:
                dimensions[dimension] += own * sign
            factor, end = factor * scale**sign, match.end()
            break
        known = _lookup(word)
        if known is None or (dimensions and not divided and sign == 1 and gap.strip() == ""
                             and waiting == 1 and len(word) > 2):  # fmt: skip
            after = _POWERS.get(word.casefold())
            if after and dimensions and not exponent:  # "metres squared"
                last = next(reversed(dimensions))
                dimensions[last] *= after
                factor, end = factor * previous ** (after - 1), match.end()
            break
        power = int(exponent or 1) * waiting * sign
        dimensions[known[0]] += power
        previous = known[1] ** sign
        factor, end, waiting = factor * known[1] ** power, match.end(), 1
    if not dimensions:
        return None, 0
    if "volume" in dimensions:  # a litre is a cubic decimetre
        cubes = dimensions.pop("volume")
        dimensions["length"] += 3 * cubes
        factor *= Fraction(1, 1000) ** cubes
    kept = tuple(sorted((name, own) for name, own in dimensions.items() if own))
    return (kept, factor), end


def _first_word(text: str) -> str:
    match = re.match(r"\s*([^\W\d_]+|[°℃℉%$€£Ω])", text)
    return match.group(1) if match else ""


def _lookup(word: str) -> tuple[str, Fraction] | None:
    """Symbols are read as they stand ("m" is no "M"), words in any case."""
    if word in _NO_UNIT_WORDS:
        return None
    found = _UNITS.get(word)
    if found is None and len(word) > 2:
        found = _UNITS.get(word.casefold())
    return found


# --- writing numbers as digits ----------------------------------------------------------------

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}
_SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "score": 20, "k": 10**3, "bn": 10**9, "mn": 10**6, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "hundredth": 100,
}  # fmt: skip
_TOKEN = re.compile(r"(\d[\d.]*|[a-z]+)([\s-]*)", re.IGNORECASE)
_CENTS = re.compile(r"\b(\d+)(?: dollars?)? and (\d{1,2}) cents?\b", re.IGNORECASE)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")


def words_to_digits(text: str, *, whole_only: bool = False) -> str:
    """Write number words as digits: "two hundred and five apples" -> "205 apples".

    "two and a half" becomes "5/2"; with `whole_only` fractions stay words. A lone "one" or "a"
    stays, for it is seldom a number.
    """
    if re.fullmatch(r"\W*(?:hundred|thousand|million|billion|dozen)\W*", text, re.IGNORECASE):
        text = f"one {text.strip()}"
    tokens = [
        (m.group(1).casefold(), m.start(), m.end(1), m.group(2)) for m in _TOKEN.finditer(text)
    ]
    pieces, done, place = [], 0, 0
    while place < len(tokens):
        value, after = _run(tokens, place, whole_only)
        if value is None:
            place += 1
            continue
        start, end = tokens[place][1], tokens[after - 1][2]
        number = str(value) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
        pieces += [text[done:start], number]
        done, place = end, after
    return "".join(pieces) + text[done:]


def _run(
    tokens: list[tuple[str, int, int, str]], place: int, whole_only: bool
) -> tuple[Fraction | None, int]:
    """Return the number that a run of words from here on means, and where it ends; or None."""
    first = tokens[place][0]
    if not (first[0].isdigit() or first in _WORDS or first in ("a", "an", "half")):
        return None, place

    def joined(index: int) -> bool:  # nothing but space or a hyphen before this token
        before = tokens[index - 1]
        return before[2] + len(before[3]) == tokens[index][1]

    def word(index: int) -> str:
        return tokens[index][0] if index < len(tokens) and (index == place or joined(index)) else ""

    def plain(index: int) -> str:
        return word(index).removesuffix("s")

    def small(index: int) -> tuple[int | None, int]:
        """A number below one hundred."""
        first = _WORDS.get(word(index))
        if first is None:
            return None, index
        second = _WORDS.get(word(index + 1))
        if first >= 20 and second is not None and 0 < second < 10:
            return first + second, index + 2
        return first, index + 1

    def part(index: int) -> tuple[Fraction | None, int]:
        """ "half", "a third", "three quarters", "one-half"."""
        count, after = (1, index + 1) if word(index) in ("a", "an") else small(index)
        if count is None:
            count, after = 1, index
        if count and plain(after) in _PARTS and (after > index or plain(after) == "half"):
            return Fraction(count, _PARTS[plain(after)]), after + 1
        return None, index

    index = place
    if not whole_only:
        fraction, after = part(index)
        if fraction is not None:
            after += word(after) in ("a", "an")  # "half a million", "half an hour"
            scale = _SCALES.get(plain(after))
            return (fraction * scale, after + 1) if scale else (fraction, after)
    total = Fraction(0)
    group: Fraction | None = None
    last_scale = Fraction(1)
    spoken = False
    while index < len(tokens):
        number, after = small(index)
        if re.fullmatch(r"\d[\d.]*", word(index)) and group is None and not spoken:
            if plain(index + 1) not in _SCALES:
                return None, place
            literal = word(index).rstrip(".")
            if literal.count(".") > 1:
                return None, place
            group, index = Fraction(literal), index + 1
        elif number is not None and (group is None or (group % 100 == 0 and number < 100)):
            group, index, spoken = (group or 0) + number, after, True
        elif number is not None and group is not None and 10 <= group <= 20 and 10 <= number < 100:
            return group * 100 + number, after  # a year: nineteen ninety-nine
        elif word(index) in ("a", "an") and group is None and plain(index + 1) in _SCALES:
            group, index, spoken = Fraction(1), index + 1, True
        elif group is not None and plain(index) in _SCALES:
            if plain(index) == "k" and spoken:
                break
            last_scale = Fraction(_SCALES[plain(index)])
            if last_scale in (100, 12, 20):
                group *= last_scale
            else:
                total, group = total + group * last_scale, None
            index, spoken = index + 1, True
            if group is None and not (small(index)[0] is not None or word(index) == "and"):
                break
        elif word(index) == "and" and spoken and not whole_only and part(index + 1)[0] is not None:
            extra, after = part(index + 1)
            whole = group if group is not None else Fraction(0)
            unit = last_scale if group is None or last_scale == 12 else Fraction(1)
            group, index = whole + extra * unit, after
            if plain(index) not in _SCALES:
                break
        elif word(index) == "and" and spoken and small(index + 1)[0] is not None and (
            (group is not None and group >= 100 and group % 100 == 0) or (group is None and total)
        ):  # fmt: skip
            number, index = small(index + 1)
            group = (group or 0) + number
            if plain(index) not in _SCALES:
                break
        else:
            break
    if group is None and not total:
        return None, place
    if index == place + 1 and word(place) in ("one", "a", "an"):
        return None, place
    return total + (group or 0), index


_HAN = dict(zip("零〇一二三四五六七八九两兩", (0, 0, *range(1, 10), 2, 2), strict=True))
_HAN_SCALES = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_HAN_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_HAN_NUMBER = re.compile(
    f"负?[{''.join(_HAN)}{''.join(_HAN_SCALES)}{''.join(_HAN_MYRIADS)}]{{1,30}}"
)


def _han_to_digits(text: str) -> str:
    def digits(match: re.Match[str]) -> str:
        total = section = 0
        digit: int | None = None
        for one in match.group().lstrip("负"):
            if one in _HAN:
                digit = _HAN[one] if digit is None else digit * 10 + _HAN[one]
            elif one in _HAN_SCALES:
                section += (1 if digit is None else digit) * _HAN_SCALES[one]
                digit = None
            else:
                total = (total + section + (digit or 0) or 1) * _HAN_MYRIADS[one]
                section, digit = 0, None
        sign = "-" if match.group().startswith("负") else ""
        return f" {sign}{total + section + (digit or 0)} "

    return _HAN_NUMBER.sub(digits, text)


def plain_digits(text: str) -> str:
    r"""Rewrite what Unicode and LaTeX do to numbers: １８, ١٨, ½, −, 10³, \frac{1}{2}, 1{,}000."""
    text = re.sub(r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+)", lambda m: "^" + m.group().translate(_SUPERSCRIPTS), text)
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    text = re.sub(r"\$\$?([^$\n]+?)\$\$?(?!\d)", r" \1 ", text)  # of mathematics, not of money
    text = unicodedata.normalize("NFKC", text.replace("℃", "°C").replace("℉", "°F"))
    text = "".join(
        str(unicodedata.decimal(one)) if one.isdecimal() and one > "9" else one for one in text
    )
    text = text.translate(
        {0x2044: "/", 0x2212: "-", 0x66B: ".", 0x66C: ",", 0x2010: "-", 0x2011: "-"}
    )
    text = re.sub(r"(?<=[a-z])[–—](?=[a-z])", "-", text)
    text = re.sub(r"(?<![\w)\]}])\s*[–—](?=\s?[$€£]?\d)", " -", text)
    text = re.sub(r"\\[dtc]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2", text)
    text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r" \1/\2", text)
    text = re.sub(r"-\s+(?=\d+/\d)", "-", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,|\\!)(?=\d{3})", "", text)
    text = re.sub(r"\\(?:times|cdot)(?![a-z])|×|⋅", "*", text)
    text = re.sub(
        r"\\(?:text|mathrm|mbox|textbf|mathbf|operatorname)\s*\{\s*([^{}]*?)\s*\}(?!\s*\^)|"
        r"\\(?:text|mathrm|mbox)\s*\{\s*([^{}]*?)\s*\}",
        lambda m: f" {m[1]} " if m[1] is not None else f" {m[2]}",
        text,
    )
    text = re.sub(r"([Ww])att[-\s]hour", r"\1atthour", text)
    text = re.sub(r"(\b(?:ft|feet|foot)\.? \d+(?:\.\d+)?) ?in\b", r"\1 inches", text)
    text = _CENTS.sub(lambda m: f"{m[1]}.{int(m[2]):02d} dollars", text)
    text = re.sub(r"10\s?\^\s?\{\s*(-?\d+)\s*\}", r"10^\1", text)
    text = _DEGREES.sub(lambda m: " °C" if m.group(1) else " °F", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", "°", text)
    return re.sub(r"\\[,;:! ]|\\q?quad|~", " ", text).replace("\\%", "%").replace("\\$", "$")


# --- numbers ----------------------------------------------------------------------------------

_GROUPED = (
    r"\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?"
    r"|\d{1,3}(?:['’ \u00a0\u2009\u202f]\d{3})+(?!\d)(?:[.,]\d+)?"
    r"|\d{1,3}(?:\.\d{3})+,\d+(?!\d)|\d{1,3}(?:\.\d{3}){2,}(?![\d.])|\d{1,2}(?:,\d{2})+,\d{3}(?!\d)"
)
_PLAIN_NUMBER = r"\d{1,300}(?:\.\d{1,300})?|\.\d{1,300}"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)}.\]])-\s?(?:[$€£]\s?)?|\b(?:minus|negative)\s+[$€£]?)?(?:[$€£]\s?-?)?"
    r"(?:(?:(?P<whole>\d{1,9})\s+)?(?P<top>\d{1,300})\s?/\s?(?P<bottom>\d{1,300})(?![\d/])"
    rf"|(?P<grouped>{_GROUPED})|(?<![\d,])(?P<comma>\d{{1,300}},(?:\d{{1,2}}|\d{{4,9}}))(?![\d,])"
    rf"|(?P<number>(?<![\d]){_PLAIN_NUMBER})"
    r"(?:(?:e|\s?(?:\*|x)\s?10\s?\^\s?)(?P<exponent>[+-]?\d{1,3})(?!\d)|\^(?P<power>-?\d{1,2}))?)"
    r"(?:\s?(?P<scale>thousand|million|billion|trillion|[kM](?![\w°/])|bn\b|mn\b)\b)?"
    r"(?P<percent>\s?%|\s?per\s?cents?\b)?",
    re.IGNORECASE,
)
_SCALE_OF = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
             "k": 10**3, "m": 10**6, "bn": 10**9, "mn": 10**6}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A number of a text, its place there, and its unit where it has one that is known."""

    value: Fraction
    percent: bool
    start: int
    end: int
    unit: Unit | None = None

    def equals(self, other: Number) -> bool:
        """Equal to 1e-6, relative, in the same unit; a missing unit fits any; 50% is 50 and 0.5."""
        left, right = self.value, other.value
        if self.unit and other.unit:
            if self.unit[0] != other.unit[0]:
                return False
            left, right = left * self.unit[1], right * other.unit[1]
        pairs = [(left, right)]
        if self.percent != other.percent:
            low = left / 100 if self.percent else left
            pairs.append((low, right / 100 if other.percent else right))
        return any(abs(a - b) <= Fraction(1, 10**6) * max(abs(a), abs(b)) for a, b in pairs)


def numbers_of(text: str) -> list[Number]:
    """Return the numbers of a text (as `plain_digits` gives it) in order, with their units."""
    found: list[Number] = []
    place = 0
    while match := _NUMBER.search(text, place):
        place = match.end()
        part = match.groupdict()
        scale = part["scale"] or ""
        if scale in ("m", "K") or (scale == "M" and text[match.start("scale") - 1] == " "):
            scale = ""  # metres, kelvin
        value = _value_of(part)
        if value is None:
            continue
        value *= _SCALE_OF.get(scale.casefold(), 1)
        value *= -1 if part["sign"] or re.search(r"[$€£]\s?-", match.group()[:4]) else 1
        end = match.end()
        if not scale and part["scale"]:
            end = match.start("scale")
        percent = bool(part["percent"])
        unit, length = (None, 0) if percent else unit_at(text[end:])
        symbol = re.search(r"[$€£]", match.group())
        if unit is None and symbol:
            unit, length = unit_at(symbol.group())[0], 0
        place = end + length
        number = Number(value, percent, match.start(), place, unit)
        if found and (whole := _compound(found[-1], number, text)):
            found[-1] = whole
        else:
            found.append(number)
    return found


def _compound(large: Number, small: Number, text: str) -> Number | None:
    """Return the quantity that two make together, in the unit of the first: "3 hours 30 minutes",
    "5 ft 10 in"; None where they are two.
    """
    if not (large.unit and small.unit) or large.unit[0] != small.unit[0]:
        return None
    if not re.fullmatch(r"\s*(?:and\s+)?", text[large.end : small.start]) or small.value < 0:
        return None
    rest = small.value * small.unit[1] / large.unit[1]
    if rest >= 1 or large.value.denominator != 1 or small.unit[1] >= large.unit[1]:
        return None
    value = large.value + (rest if large.value >= 0 else -rest)
    return Number(value, False, large.start, small.end, large.unit)


def _value_of(part: dict[str, str | None]) -> Fraction | None:
    if part["top"]:
        if int(part["bottom"]) == 0:
            return None
        return Fraction(int(part["top"]), int(part["bottom"])) + int(part["whole"] or 0)
    if part["comma"]:
        return Fraction(part["comma"].replace(",", "."))
    if part["grouped"]:
        digits = re.sub(r"['’\s]", "", part["grouped"])
        if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}", digits):
            digits = digits.replace(".", "").replace(",", ".")
        elif re.search(r"[\s'’]", part["grouped"]):
            digits = digits.replace(",", ".")
        return Fraction(digits.replace(",", ""))
    value = Fraction(part["number"])
    if part["power"]:
        return value ** int(part["power"]) if value and abs(value) < 1000 else None
    return value * Fraction(10) ** int(part["exponent"] or 0)


def read_numbers(text: str) -> tuple[list[Number], str]:
    """Return the numbers of a text and the text they were found in: those in digits, where there
    are none those in words, or in Han numerals.
    """
    text = plain_digits(text)
    ways: list[Callable[[str], str]] = [_scaled, words_to_digits, _one_to_digits, _han_to_digits]
    for way in ways:
        written = way(text)
        if found := numbers_of(written):
            return found, written
    return [], text


def _scaled(text: str) -> str:
    """Join digits with a scale in words: "2 hundred" -> "200", "3 and a half million"."""
    scaled = re.search(r"\d[\s-]*(?:and|hundred|dozen|lakh|crore)\b", text, re.I)
    return words_to_digits(text) if scaled else text


def _one_to_digits(text: str) -> str:
    return re.sub(r"\bone\b(?=\W*$|\s[a-z]+\W*$)", "1", text.strip(), flags=re.IGNORECASE)


def quantity(text: str) -> Number | None:
    """Return the quantity that a whole text is, "600 W", or None."""
    found, written = read_numbers(text.strip(" ."))
    rest = written[found[0].end :] if len(found) == 1 else "x"
    whole = len(found) == 1 and not re.search(r"\w", written[: found[0].start] + rest)
    return found[0] if whole else None
