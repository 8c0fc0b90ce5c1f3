"""The score book: what every method gave every item, so that tables need no model and no states.

Stage 2 for many methods (score_methods.py) writes it as a pair, `<name>.json` (items, methods, what
was chosen) and `<name>.pkl` (arrays); the tables are made from it alone.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.detectors.base import FAMILIES
from spikescore.errors import UserError
from spikescore.files import read_json, write_atomic, write_json
from spikescore.pickles import load_pickle

FORMAT = 1
PLAIN = ("model", "identity", "token_key", "about", "methods", "chosen")
"""Fields of a book that its .json holds as they are."""
PER_TURN = ("turn_tokens", "turn_encoded", "turn_seconds")
Key = tuple[str, str, int]
"""(method or scorer, training domain, probe seed). The domain is "" for a method that learns
nothing, and the seed 0 for one without chance."""


@dataclass(frozen=True)
class BookItem:
    """One dialogue as tables need it; y = 1 hallucinated. `turn_tokens`: length of each answer;
    `turn_encoded` and `turn_seconds`: what else each turn cost, `measured` what measures did (see
    `costs`); () where it is not known.

    `cut_off` names the limit that ended the first answer, if one did; `meta` is what the data set
    says of the item, as far as it is short. `pair` is shared by the right and the wrong given
    answer to one question, and unique over domains; "" where the model answered.
    """

    path: str
    id: str
    domain: str
    group: str
    y: int
    turn_tokens: tuple[int, ...]
    cut_off: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    pair: str = ""
    turn_encoded: tuple[int, ...] = ()
    turn_seconds: tuple[float, ...] = ()
    measured: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class ScoreBook:
    """Scores of all methods on the dialogues of one model.

    `scores[key]` is float64 [n], one per item, NaN where there is none. `turns[key]` is float32
    [n, K], the per-turn scores of a scorer, NaN after a dialogue's end. `splits[domain]` [n] is
    "train", "val" or "test" for the items of that training domain and "" for all others.
    `methods[name]` has title, family and needs; `chosen["name/domain/seed"]` what a fit chose.
    """

    model: str
    token_key: str
    items: list[BookItem]
    scores: dict[Key, np.ndarray] = field(default_factory=dict)
    turns: dict[Key, np.ndarray] = field(default_factory=dict)
    splits: dict[str, np.ndarray] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    """Command, data folder, coverage, versions, seconds: plain values."""
    identity: dict[str, str] = field(default_factory=dict)
    """What the model is by content (`pairs.MODEL_PARTS`); empty in a book of before."""

    @property
    def y(self) -> np.ndarray:
        """Labels [n]."""
        return np.array([item.y for item in self.items], dtype=np.int64)

    @property
    def domains(self) -> np.ndarray:
        """Domain of each item [n]."""
        return np.array([item.domain for item in self.items])

    @property
    def groups(self) -> np.ndarray:
        """Group of each item [n], unique over domains."""
        return np.array([item.group for item in self.items])

    @property
    def pairs(self) -> np.ndarray:
        """What each item's twins share [n]; "" where it has none."""
        return np.array([item.pair for item in self.items])

    def domain_names(self) -> list[str]:
        """The domains in order of first appearance."""
        return list(dict.fromkeys(item.domain for item in self.items))

    def seeds_of(self, name: str, domain: str, *, turns: bool = False) -> list[Key]:
        """Return the keys that a method has for a training domain: one, or one per probe seed.

        A method that learns nothing has the same key for every domain. Empty when it has none.
        """
        held = self.turns if turns else self.scores
        keys = [key for key in held if key[0] == name and key[1] in (domain, "")]
        return sorted(keys, key=lambda key: key[2])

    def subset(self, kept: np.ndarray) -> ScoreBook:
        """Return the book of the items that a mask [n] keeps."""
        return self.take(np.flatnonzero(kept))

    def take(self, places: np.ndarray) -> ScoreBook:
        """Return the book of the items at these places, in their order."""
        return replace(
            self,
            items=[self.items[place] for place in places],
            scores={key: values[places] for key, values in self.scores.items()},
            turns={key: values[places] for key, values in self.turns.items()},
            splits={domain: split[places] for domain, split in self.splits.items()},
        )

    def save(self, path: str | Path) -> list[Path]:
        """Write `<path>.pkl` first, then `<path>.json`, each atomically; return both paths."""
        pkl, text = Path(path).with_suffix(".pkl"), Path(path).with_suffix(".json")
        arrays = {"format": FORMAT, "scores": self.scores, "turns": self.turns}
        write_atomic(pkl, pickle.dumps(arrays, protocol=4))
        write_json(
            text,
            {
                "format": FORMAT,
                **{name: getattr(self, name) for name in PLAIN},
                "splits": {domain: split.tolist() for domain, split in self.splits.items()},
                "items": [asdict(item) for item in self.items],
            },
        )
        return [text, pkl]


def load_score_book(path: str | Path) -> ScoreBook:
    """Read a score book's two files; UserError when one is missing, damaged or something else."""
    pkl, text = Path(path).with_suffix(".pkl"), Path(path).with_suffix(".json")
    told, arrays = read_json(text), load_pickle(pkl)
    for content, file in ((told, text), (arrays, pkl)):
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f'"{file}" is no score book; make one with score_methods.py')
    try:
        book = ScoreBook(
            **{name: told[name] for name in PLAIN if name != "identity"},
            identity=told.get("identity") or {},
            items=[
                BookItem(**{**item, **{key: tuple(item[key]) for key in PER_TURN if key in item}})
                for item in told["items"]
            ],
            scores=arrays["scores"],
            turns=arrays["turns"],
            splits={
                domain: np.array(split, dtype="<U5") for domain, split in told["splits"].items()
            },
        )
        damage = _damage(book)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        damage = f"{type(error).__name__}: {error}"
    if damage:
        raise UserError(
            f'the score book "{text}" and its .pkl are damaged ({damage}); make them again with '
            "score_methods.py"
        )
    return book


def _damage(book: ScoreBook) -> str:
    """Return what is wrong with a book that was read; empty for nothing."""
    n = len(book.items)
    if not set(book.y.tolist()) <= {0, 1}:
        return "a label is neither 0 nor 1"
    for item in book.items:
        texts = (item.path, item.id, item.domain, item.group, item.cut_off, item.pair)
        counts = [type(count) is int and count >= 0 for count in item.turn_tokens]
        if not (all(isinstance(text, str) for text in texts) and isinstance(item.meta, dict)):
            return f"item {item.id!r}"
        if not all(counts):
            return f"turn_tokens of item {item.id!r}"
        spent = [*item.turn_encoded, *item.turn_seconds, *chain(*item.measured.values())]
        if not all(type(one) in (int, float) and one >= 0 for one in spent):
            return f"the costs of item {item.id!r}"
    for name, held, axes in (("scores", book.scores, 1), ("turns", book.turns, 2)):
        for key, values in held.items():
            if not (isinstance(key, tuple) and [type(part) for part in key] == [str, str, int]):
                return f"{name} of {key!r}: no (method, domain, seed)"
            fits = isinstance(values, np.ndarray) and values.ndim == axes and len(values) == n
            if not (fits and values.dtype.kind == "f"):
                return f"{name} of {key!r} are no numbers for {n} items"
    if wrong := [domain for domain, split in book.splits.items() if split.shape != (n,)]:
        return f'the split of "{wrong[0]}" is not one of {n} items'
    for name, about in book.methods.items():
        if not isinstance(about["title"], str) or about["family"] not in FAMILIES:
            return f"what is told of the method {name!r}"
    missing = {key[0] for key in book.scores} - book.methods.keys()
    return f"nothing is told of the method {min(missing)!r}" if missing else ""
