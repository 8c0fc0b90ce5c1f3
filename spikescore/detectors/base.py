"""What every detector is: it may learn from a training domain, and it scores first answers.

y = 1 means hallucinated and a higher score means more hallucinated, for every detector: one whose
natural direction is the other way round returns the negative. The direction is known beforehand or
learnt from the training domain, never from the items that are scored.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.errors import UserError
from spikescore.plugins import load_plugin, own_faults, plugin_file

FAMILIES = ("training-free", "trained", "control")
MEASURED = frozenset(
    {
        "lens", "attentions", "samples", "questions", "contrast", "components", "rewordings",
        "choices", "semantics", "capability",
    }
)  # fmt: skip
"""Needs that measure_answers.py provides for, each by its group of measures."""
NEEDS = MEASURED | {"texts", "logprobs", "states"}


class Detector(ABC):
    """One way to tell hallucinated first answers from consistent ones.

    The class docstring gives formula, direction and source. `fit` learns from the train split, and
    chooses what is to be chosen (layer, epoch, direction) on the validation split; the detector
    sees neither the training domain's test split nor other domains. `score` returns float64 [n],
    NaN where what it needs is missing.
    """

    name: ClassVar[str]
    """Stable identifier, as in tables' files."""
    title: ClassVar[str]
    """As printed in tables."""
    family: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    """What it reads: "texts" and "logprobs" are in the JSON, "states" in the PKL; those in MEASURED
    come from measure_answers.py."""
    whole_dialogue: ClassVar[bool] = False
    """Whether it scores by all turns of a dialogue, not by the first answer alone: its cost."""
    seeded: ClassVar[bool] = False
    """Whether another seed gives another result; a detector without chance is fitted once."""

    remedy: ClassVar[str] = ""
    """What to do when it can score nothing, where running the script that measures is not all."""

    def __init__(self) -> None:
        self.chosen: dict[str, object] = {}
        """What `fit` chose, as plain values: layer, epoch, direction ..."""

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:  # noqa: B027
        """Learn from one domain's train and validation items; nothing where nothing is learnt."""

    @abstractmethod
    def score(self, items: Answers) -> np.ndarray:
        """Return one score per item: float64 [n], higher = more hallucinated, NaN if missing."""


class StateDetector(Detector):
    """A detector that reads one hidden state, so that it can score any turn of a dialogue."""

    needs = frozenset({"states"})

    @abstractmethod
    def score_states(self, states: np.ndarray) -> np.ndarray:
        """Return the scores of states [m, L+1, H] at the token it was fitted on: float64 [m]."""

    def score(self, items: Answers) -> np.ndarray:
        found = [(self.score_states(states), len(states)) for states in items.first_blocks()]
        if len(found) == 1:
            return found[0][0]
        return np.concatenate([checked(self.name, "score_states", one, (n,)) for one, n in found])


class TurnDetector(Detector):
    """A detector whose score exists for every turn of a dialogue, and was computed before."""

    @abstractmethod
    def score_turns(self, items: Answers) -> np.ndarray:
        """Return the scores of all turns: float64 [n, K], NaN after a dialogue's end."""

    def score(self, items: Answers) -> np.ndarray:
        return self.score_turns(items)[:, 0]


class Misbehaved(UserError):
    """A detector returned what it must not: its author's mistake, not that of who runs it."""


def checked(
    name: str, method: str, found: object, shape: tuple[int, ...], dtype: type = np.float64
) -> np.ndarray:
    """Return what a detector's method returned as numbers of a dtype.

    Raises Misbehaved, naming the detector and both shapes, unless it is an array, or a list, of
    real numbers of the shape [n] or [n, K] that it must have. NaN stands for a missing score.
    """
    try:
        array = np.asarray(found)
        what = "None" if found is None else f"{array.dtype} {list(array.shape)}"
    except Exception as error:  # rows of different lengths, a tensor that keeps its gradient ...
        array, what = np.empty(0, dtype=object), f"{type(found).__name__} ({error})"
    if array.shape != shape or array.dtype.kind not in "biuf":
        items = "states" if method == "score_states" else "items"
        raise Misbehaved(
            f'detector "{name}": {method} returned {what} for {shape[0]} {items}, where real '
            f"numbers of shape {list(shape)} are due"
        )
    return array.astype(dtype)


def load_detector(spec: str) -> type[Detector]:
    """Return a user's detector "path/to/file.py:Class"; UserError, one line, where it is none."""
    found = load_plugin(spec)
    why = _why_none(found)
    if why:
        line = f", line {inspect.getsourcelines(found)[1]}" if inspect.isclass(found) else ""
        raise UserError(f'file "{plugin_file(spec)}"{line}: {spec.rpartition(":")[2]} {why}')
    with own_faults():
        found()
    return found


def _why_none(found: object) -> str:
    """Return what something lacks to be a detector; empty for nothing."""
    if not (inspect.isclass(found) and issubclass(found, Detector)):
        return "must be a class derived from spikescore.detectors.base.Detector"
    if lacking := sorted(found.__abstractmethods__):
        return f"lacks the method {', '.join(lacking)}"
    if missing := [key for key in ("name", "title", "family", "needs") if not hasattr(found, key)]:
        return f"lacks {', '.join(missing)}"
    if not (isinstance(found.name, str) and re.fullmatch(r"\w[\w.-]*", found.name)):
        return f"has the name {found.name!r}; use letters, digits and _"
    if not (isinstance(found.title, str) and found.title.strip()):
        return f"has the title {found.title!r}; it must be a text"
    if found.family not in FAMILIES:
        return f"has the family {found.family!r}; use one of {', '.join(FAMILIES)}"
    if not (isinstance(found.needs, set | frozenset) and found.needs <= NEEDS):
        return f"has the needs {found.needs!r}; give a set of {', '.join(sorted(NEEDS))}"
    return ""
