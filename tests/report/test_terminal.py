"""A detection as text: hand-made trajectories, drawn line by line."""

from __future__ import annotations

import io
import re

import pytest

from spikescore.detectors.spike import Detection
from spikescore.report.terminal import (
    WIDTH,
    Style,
    detection_block,
    detection_line,
    plot,
    sparkline,
    summary,
)


def detection(scores: list[float], *, threshold: float | None = 0.5, **changes) -> Detection:
    """A detection with these scores, SpikeScore written out."""
    bends = [abs(c - 2 * b + a) for a, b, c in zip(scores, scores[1:], scores[2:], strict=False)]
    spike = max(bends, default=None)
    told = {
        "id": "q", "question": "Who wrote Hamlet?", "answer": "William Shakespeare.",
        "given": False, "scores": scores, "spike_score": spike,
        "spike_turn": None if spike is None else bends.index(spike) + 2, "threshold": threshold,
        "flagged": None if None in (spike, threshold) else spike >= threshold,
        "turns_held": len(scores), "max_turns": len(scores), "stopped_early": False,
        "finish_reason": "complete", "comparable": True, "probe_split": "unseen", "model": "m",
        "probe": "p", "seed": 42,
    }  # fmt: skip
    return Detection(**{**told, **changes})


STOPPED = detection(
    [0.125, 0.25, 0.1875, 1.0, 0.25], max_turns=8, stopped_early=True, finish_reason="flagged"
)


def test_a_flagged_question_that_was_stopped_early():
    assert (
        detection_block(STOPPED, Style())
        == """\
question  Who wrote Hamlet?
  answer  William Shakespeare.

FLAGGED: SpikeScore 1.5625 at turn 4 ≥ λ 0.5000
stopped after turn 5 of 8: no later turn could take that back (3 turns saved)

probe score, by turn
     1 │          ██
       │          ██
       │          ██
       │          ██
   0.5 │          ██
       │          ██
       │    ██ ▄▄ ██ ██
       │ ██ ██ ██ ██ ██
     0 └─┴───────────┴───────────
         1           5
                  ▲▲
SpikeScore = |0.2500 − 2 × 1.0000 + 0.1875| = 1.5625, turns 3 to 5"""
    )


def test_the_same_in_ascii():
    text = detection_block(STOPPED, Style(unicode=False))
    assert text.isascii()
    assert text.endswith("""\
probe score, by turn
     1 |          ##
       |          ##
       |          ##
       |          ##
   0.5 |          ##
       |          ##
       |    ## :: ## ##
       | ## ## ## ## ##
     0 +-+-----------+-----------
         1           5
                  ^^
SpikeScore = |0.2500 - 2 x 1.0000 + 0.1875| = 1.5625, turns 3 to 5""")
    assert "SpikeScore 1.5625 at turn 4 >= lambda 0.5000" in text


def test_colour_paints_the_verdict_and_the_spike_and_nothing_else():
    plain, coloured = (detection_block(STOPPED, Style(colour=on)) for on in (False, True))
    assert re.sub(r"\x1b\[\d*m", "", coloured) == plain
    assert coloured.count("\x1b[31m") == coloured.count("\x1b[0m") == 1 + 8 + 1
    calm = detection_block(detection([0.1, 0.1, 0.2]), Style(colour=True))
    assert "\x1b[32mnot flagged" in calm


def test_a_narrow_range_has_a_scale_of_its_own():
    found = detection([0.80, 0.81, 0.80, 0.80], threshold=0.5)
    lines = plot(found, Style())
    assert lines[1].startswith("  0.81 │    ██") and lines[9].startswith("   0.8 └─┴")
    assert lines[8] == "       │ ▁▁ ██ ▁▁ ▁▁"
    assert "not flagged: SpikeScore 0.0200 at turn 2 < λ 0.5000" in detection_block(found, Style())


@pytest.mark.parametrize("turns", [3, 20, 23, 24, 35, 36, 71, 72, 200])
@pytest.mark.parametrize("place", [1, 0.5, 0])
def test_a_plot_fits_the_terminal_and_shows_the_spike(turns, place):
    scores = [0.0] * turns
    scores[1 + round(place * (turns - 3))] = 9.0
    lines = plot(detection(scores), Style())
    assert max(map(len, lines)) <= WIDTH and len(lines) == 13
    mark = lines[-2].index("▲")
    assert lines[1][mark] == lines[8][mark] == "█"
    assert lines[1].count("█") == lines[-2].count("▲")


def test_a_plot_of_equal_scores_is_flat():
    lines = plot(detection([2.0, 2.0, 2.0]), Style())
    assert lines[8].endswith("▁▁ ▁▁ ▁▁") and lines[7].rstrip().endswith("│")


def test_one_of_many_is_three_lines():
    assert detection_line(STOPPED, Style()) == (
        "question  Who wrote Hamlet?\n"
        "  answer  William Shakespeare.\n"
        "  scores  ▁▂▂█▂\n"
        "          FLAGGED: SpikeScore 1.5625 at turn 4 ≥ λ 0.5000, after turn 5 of 8"
    )
    assert sparkline([0, 0.5, 1], 0, 1) == "▁▄█"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "no threshold in this probe, so nothing is flagged"),
        ({"probe_split": "train"}, "the probe knows this question from its train split"),
        ({"given": True}, "given answer  William Shakespeare."),
        ({"answer": ""}, "  answer  (empty)"),
    ],
)
def test_what_else_is_told(changes, message):
    assert message in detection_block(detection([0.1, 0.9, 0.1], **changes), Style())


def test_what_cannot_be_scored_is_told():
    short = detection([0.1, 0.9], finish_reason="context", max_turns=20)
    message = "not scored: 2 turns were held (context), SpikeScore needs 3"
    assert detection_block(short, Style()).endswith(message)
    assert message in detection_line(short, Style())
    failed = detection([], error="the first prompt has 9 tokens", answer=None)
    assert "not scored: the first prompt has 9 tokens" in detection_line(failed, Style())
    calm = detection([0.1] * 8)
    assert summary([STOPPED, calm, short, failed]) == (
        "1 of 4 questions flagged, 2 not scored; 15 turns held, 3 saved by stopping 1 dialogues "
        "early"
    )


def test_what_the_model_says_gives_the_terminal_no_orders():
    found = detection([0.1, 0.9, 0.1], answer="one\x1b[2J\rtwo\x07\n\n" + "word " * 40)
    text = detection_block(found, Style())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert max(map(len, text.splitlines())) <= WIDTH


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("encoding", "environment", "style"),
    [
        ("utf-8", {}, Style(True, True)),
        ("utf-8", {"NO_COLOR": "1"}, Style(True, False)),
        ("utf-8", {"TERM": "dumb"}, Style(True, False)),
        ("ascii", {}, Style(False, True)),
        ("latin-1", {"NO_COLOR": "1"}, Style(False, False)),
    ],
)
def test_the_style_of_a_terminal(encoding, environment, style):
    assert Style.of(Terminal(io.BytesIO(), encoding=encoding), environment) == style
    assert not Style.of(io.TextIOWrapper(io.BytesIO(), encoding=encoding), environment).colour
