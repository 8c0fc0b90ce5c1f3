"""One detection as text for a terminal: the answer, the verdict, and the trajectory as bars.

Lines are at most 80 wide. `Style` says whether block characters and colour may be used; what the
model wrote is shown without control characters, which a terminal would obey.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from spikescore.stats.trajectory import MIN_SCORES

if TYPE_CHECKING:
    from spikescore.detectors.spike import Detection, SpikeDetector

WIDTH = 80
HEIGHT = 8
"""Rows of the plot; with eighths of a block that makes 64 levels."""
_MARGIN = 9
_FLAT = 0.25  # a narrower range of scores has a scale of its own
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = str.maketrans(
    {**dict(zip("▁▂▃▄▅▆▇█│└┴─▲×−", "..::####|++-^x-", strict=True)), "λ": "lambda", "≥": ">="}
)
_RED, _GREEN, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[0m"


@dataclass(frozen=True)
class Style:
    """What a terminal can show: characters beyond ASCII, and colour."""

    unicode: bool = True
    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str] = os.environ) -> Style:
        """Return the style of a stream: colour on a terminal alone, and not where NO_COLOR is set
        (no-color.org) or TERM is "dumb".
        """
        plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
        colour = stream.isatty() and not plain
        try:
            (_BLOCKS + "│└┴─▲λ≥×−").encode(stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return cls(unicode=False, colour=colour)
        return cls(colour=colour)

    def text(self, text: str) -> str:
        """Return one of our own texts in characters that can be shown."""
        return text if self.unicode else text.translate(_ASCII)

    def painted(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self.colour and colour else text


def how_held(detector: SpikeDetector) -> list[str]:
    """Return how the dialogues are held, and what the threshold was worth where it was set."""
    config, set_on = detector.config, detector.probe.metrics.get("spike_threshold") or {}
    lines = [
        f"{config.model_path}: K = {config.max_steps}, {config.strategy} prompts, temperature "
        f"{config.temperature:g}, at most {config.max_new_tokens} tokens an answer, seed "
        f"{config.sampling.seed}"
    ]
    if set_on.get("balanced_accuracy") is not None:
        lines.append(
            f"threshold {detector.probe.spike_threshold:.4f}: balanced accuracy "
            f"{set_on['balanced_accuracy']:.3f} on the {set_on['n']} validation dialogues that it "
            "was set on; 0.5 is a coin"
        )
    return lines


def detection_block(found: Detection, style: Style) -> str:
    """Return a detection in full: question, answer, verdict, and the plot of its trajectory."""
    said = "given answer" if found.given else "answer"
    lines = [*_wrapped("question", found.question), *_wrapped(said, found.answer or "(empty)"), ""]
    lines += [style.painted(style.text(verdict(found)), _colour(found))]
    if found.stopped_early:
        saved = found.max_turns - found.turns_held
        lines.append(f"stopped after turn {found.turns_held} of {found.max_turns}: no later turn "
                     f"could take that back ({saved} turns saved)")  # fmt: skip
    if found.probe_split != "unseen":
        lines.append(f"the probe knows this question from its {found.probe_split} split")
    if found.spike_score is not None:
        lines += ["", *plot(found, style)]
    return "\n".join(lines)


def detection_line(found: Detection, style: Style) -> str:
    """Return a detection in short, as one of many: question, answer, trajectory and verdict."""
    lines = [*_wrapped("question", found.question), *_wrapped("answer", found.answer or "(empty)")]
    if found.scores:
        shown = found.scores[-(WIDTH - 10) :]
        lines.append(f"{'scores':>8}  {style.text(sparkline(shown, *_range(found.scores)))}")
    stop = f", after turn {found.turns_held} of {found.max_turns}" if found.stopped_early else ""
    lines.append(" " * 10 + style.painted(style.text(verdict(found)), _colour(found)) + stop)
    return "\n".join(lines)


def verdict(found: Detection) -> str:
    """Return what came out in one line: the score, the threshold λ, and whether it is reached."""
    if found.error is not None:
        return f"not scored: {_visible(found.error)}"
    if found.spike_score is None:
        return (f"not scored: {found.turns_held} turns were held ({found.finish_reason}), "
                f"SpikeScore needs {MIN_SCORES}")  # fmt: skip
    score = f"SpikeScore {found.spike_score:.4f} at turn {found.spike_turn}"
    if found.threshold is None:
        return f"{score}; no threshold in this probe, so nothing is flagged"
    if found.flagged:
        return f"FLAGGED: {score} ≥ λ {found.threshold:.4f}"
    return f"not flagged: {score} < λ {found.threshold:.4f}"


def summary(found: Sequence[Detection]) -> str:
    """Return how many questions were flagged, and how many turns the early stop saved."""
    flags = [one.flagged for one in found]
    told = f"{flags.count(True)} of {len(found)} questions flagged"
    if n := sum(one.spike_score is None for one in found):
        told += f", {n} not scored"
    stopped = [one for one in found if one.stopped_early]
    saved = sum(one.max_turns - one.turns_held for one in stopped)
    turns = sum(one.turns_held for one in found)
    return f"{told}; {turns} turns held, {saved} saved by stopping {len(stopped)} dialogues early"


def plot(found: Detection, style: Style) -> list[str]:
    """Return the scores as bars, one for each turn held, the turn of the spike marked below.

    The scale is 0 to 1 where the scores fill a good part of that, else from the lowest to the
    highest. Of a dialogue too long for the width the turns around the spike are shown.
    """
    room = WIDTH - _MARGIN
    first = 1
    if found.max_turns > room:
        first = max(1, min(found.spike_turn - room // 2, found.turns_held - room + 1))
    last = min(found.max_turns, first + room - 1)
    wide = min(3, room // (last - first + 1))
    low, high = _range(found.scores)
    levels = [_level(score, low, high) for score in found.scores[first - 1 : last]]
    spike = found.spike_turn - first
    lines = ["probe score, by turn"]
    for row in range(HEIGHT, 0, -1):
        place = {HEIGHT: high, HEIGHT // 2: (low + high) / 2}.get(row)
        bars = ""
        for turn, level in enumerate(levels):
            block = _BLOCKS[min(8, max(0, level - 8 * (row - 1)))]
            bar = style.text(block * max(1, wide - 1))
            bar = style.painted(bar, _colour(found) if turn == spike and block != " " else "")
            bars += bar + " " * (wide > 1)
        lines.append(f"{_number(place)} {style.text('│')} {bars}".rstrip())
    ticks = {turn for turn in range(first, last + 1) if turn % 5 == 0 or turn == 1}
    axis = "".join(
        ("┴" if turn in ticks else "─") + "─" * (wide - 1) for turn in range(first, last + 1)
    )
    lines.append(style.text(f"{_number(low)} └─{axis}"))
    names = [" "] * (WIDTH - _MARGIN)
    for turn in sorted(ticks):
        place = (turn - first) * wide
        if wide * 5 > len(str(turn)) and place + len(str(turn)) <= len(names):
            names[place : place + len(str(turn))] = str(turn)
    lines.append(" " * _MARGIN + "".join(names).rstrip())
    mark = style.painted(style.text("▲" * max(1, wide - 1)), _colour(found))
    lines.append(" " * (_MARGIN + spike * wide) + mark)
    before, here, after = found.scores[found.spike_turn - 2 : found.spike_turn + 1]
    lines.append(style.text(
        f"SpikeScore = |{after:.4f} − 2 × {here:.4f} + {before:.4f}| = {found.spike_score:.4f}, "
        f"turns {found.spike_turn - 1} to {found.spike_turn + 1}"
    ))  # fmt: skip
    return lines


def sparkline(scores: Sequence[float], low: float, high: float) -> str:
    """Return a block character for each score, on a scale from low to high."""
    return "".join(_BLOCKS[max(1, round(_level(score, low, high) / HEIGHT))] for score in scores)


def _range(scores: Sequence[float]) -> tuple[float, float]:
    low, high = min(scores), max(scores)
    if low >= 0 and high <= 1 and high - low > _FLAT:
        return 0.0, 1.0
    return low, (high if high > low else low + 1)


def _level(score: float, low: float, high: float) -> int:
    """Return a score's height in eighths of a row; the lowest is still seen."""
    return max(1, round((score - low) / (high - low) * 8 * HEIGHT))


def _number(value: float | None) -> str:
    return " " * 6 if value is None else f"{value:>6.3g}"


def _colour(found: Detection) -> str:
    return {True: _RED, False: _GREEN, None: ""}[found.flagged]


def _wrapped(name: str, text: str) -> list[str]:
    """Return a text under its name, wrapped, without control characters."""
    start = f"{name:>8}  "
    paragraphs = [" ".join(_visible(line).split()) for line in text.splitlines()]
    lines = [one for line in paragraphs if line for one in textwrap.wrap(line, WIDTH - len(start))]
    lines = lines or [""]
    return [(start if n == 0 else " " * len(start)) + line for n, line in enumerate(lines)]


def _visible(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)
