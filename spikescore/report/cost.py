"""What an experiment takes, told before it is run: dialogues, tokens, judge calls, disk, hours.

Most is an upper bound: every dialogue has all its turns, and every answer as many tokens as it may
have. Beside it stands what it is with answers of `TYPICAL_ANSWER_TOKENS`. Nothing is loaded: a
prompt's tokens are counted by its characters, and a model's shape is in its config.json, or known
for the paper's own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from spikescore.dialogues.config import TYPICAL_ANSWER_TOKENS, Config, parse_config
from spikescore.dialogues.plan import load_items
from spikescore.dialogues.prompts import FAMILIES
from spikescore.errors import UserError
from spikescore.files import read_json
from spikescore.pairs import TOKEN_KEYS
from spikescore.report.experiment import Experiment, Measures, Model
from spikescore.report.paper import SHAPES

CHARACTERS_PER_TOKEN = 4
"""Of English text, in the vocabularies of the paper's models, about."""
JSON_BYTES_PER_TOKEN = 24
"""A pair's .json by the tokens of its dialogue, its ids and texts and all; measured: 22 to 31."""
CONFIDENCE_TOKENS = 32  # of the reply in which a model names its confidence, at most
GUESS_TOKENS = 192  # of each of the three replies in which it names its best guesses, at most
REWORDED = 4  # times a question, each answered
FALSIFIED = 3  # times an answer
CANDIDATES = 5  # an answer is shown among
NEURONS = 4
"""A layer's neurons by the width of its states, about: 2.7 to 4 in the models that are common."""
FP16 = 2


@dataclass
class Need:
    """What some steps take. Tokens as (at most, with answers of typical length)."""

    dialogues: int = 0
    turns: int = 0
    generated: tuple[float, float] = (0, 0)
    encoded: tuple[float, float] = (0, 0)
    judge_calls: int = 0
    states: int = 0  # bytes of hidden states, in .pkl
    records: tuple[float, float] = (0, 0)  # bytes of .json

    def __add__(self, other: Need) -> Need:
        def both(one: Any, two: Any) -> Any:
            is_pair = isinstance(one, tuple)
            return tuple(map(sum, zip(one, two, strict=True))) if is_pair else one + two

        return Need(*(both(getattr(self, f.name), getattr(other, f.name)) for f in fields(Need)))


class Cost:
    """What the chosen steps of an experiment take, by their names."""

    def __init__(self, experiment: Experiment, chosen: Container[str]) -> None:
        self._experiment = experiment
        self.unknown: list[str] = []  # models of which no shape is known
        self.absent: list[str] = []  # data sets that are not here
        self.rows = {name: Need() for name in ("main run", "variants", "labels again", "measures")}
        for model in experiment.models:
            config = parse_config(experiment.stage_config(model), source=experiment.name)
            if f"{model.name}.main" in chosen:
                self.rows["main run"] += self._dialogues(model, config)
            for variant in experiment.variants():
                if f"{model.name}.{variant.name}" not in chosen:
                    continue
                if variant.judge:
                    judged = replace(config, judge=variant.judge)
                    calls = self._questions(config)[0] if judged.is_judged_by_server else 0
                    self.rows["labels again"] += Need(judge_calls=calls)
                    continue
                settings = experiment.stage_config(model, variant)
                of_variant = parse_config(settings, source=experiment.name)
                self.rows["variants"] += self._dialogues(model, of_variant)
            if experiment.measures and f"{model.name}.measures" in chosen:
                self.rows["measures"] += self._measures(model, config, experiment.measures)
        self.rows = {name: need for name, need in self.rows.items() if need != Need()}

    def _questions(self, config: Config) -> tuple[int, float]:
        """How many questions there are, and how many tokens their first prompts have together."""
        n, tokens = 0, 0.0
        for path, _ in config.datasets():
            found = (
                _first_prompts(
                    path, config.sampling.n, config.sampling.strategy, config.first_answers
                )
                if Path(path).exists()
                else None
            )
            if found is None:
                if path not in self.absent:
                    self.absent.append(path)
                found = (config.sampling.n or 0, 0)
            n, tokens = n + found[0], tokens + found[1]
        system = len(config.system_prompt or "") * n
        return n, (tokens + system) / CHARACTERS_PER_TOKEN

    def _dialogues(self, model: Model, config: Config) -> Need:
        n, prompts = self._questions(config)
        answered = config.max_steps - (config.first_answers == "shipped")
        followed = (config.max_steps - 1) * n * _follow_up_tokens()
        generated = tuple(n * answered * one for one in _lengths(config))
        is_asked = config.is_judged_by_server and config.first_answers != "shipped"
        n_states, width = self._shape(model)
        return Need(
            dialogues=n,
            turns=n * config.max_steps,
            generated=generated,
            encoded=(prompts + followed,) * 2,
            judge_calls=n if is_asked else 0,
            states=n * config.max_steps * len(TOKEN_KEYS) * n_states * width * FP16,
            records=tuple(JSON_BYTES_PER_TOKEN * (prompts + followed + one) for one in generated),
        )

    def _measures(self, model: Model, config: Config, measures: Measures) -> Need:
        """Of each dialogue: what its groups read and ask, and what of it they keep."""
        n, prompts = self._questions(config)
        groups = [name.strip() for name in measures.groups.split(",") if name.strip()]
        drawn = measures.n_samples
        n_states, width = self._shape(model)
        followed = (config.max_steps - 1) * n * _follow_up_tokens()
        generated, encoded = [], []
        for length in _lengths(config):
            answers = n * length
            reads = {
                "lens": prompts + followed + config.max_steps * answers,
                "attention": prompts + answers,
                "samples": prompts,
                # P(True) shows all samples, SelfCheck-Prompt one at a time; truth; confidence
                "questions": 4 * prompts + (2 * drawn + 4) * answers,
                "contrast": prompts + 2 * answers,  # the second time without the question
                "components": prompts + answers,
                # the question and the answer to be worded anew, the new questions, all versions
                "rewordings": (REWORDED + 3) * prompts + (FALSIFIED + 2) * answers,
                # candidates; guesses with numbers; guesses, then their numbers
                "choices": 4 * prompts + CANDIDATES * answers + n * GUESS_TOKENS,
                "capability": prompts,
                "semantics": prompts + answers,
            }
            if unknown := [group for group in groups if group not in reads]:
                raise UserError(
                    f'"measures": there is no group "{unknown[0]}"; known: {", ".join(reads)}'
                )
            encoded.append(sum(reads[group] for group in groups))
            asked = {
                "samples": drawn * answers,
                "questions": n * CONFIDENCE_TOKENS,
                "rewordings": (2 * REWORDED + FALSIFIED) * answers,
                "choices": 3 * n * GUESS_TOKENS,
            }
            generated.append(sum(asked.get(group, 0) for group in groups))
        kept = {
            "lens": 2 * width * 4,
            "attention": 2 * n_states * 4,
            "samples": drawn * width * FP16,
            "questions": 3 * n_states * width * FP16,
            "contrast": 4 * config.max_new_tokens * 4,
            "components": n_states * (1 + NEURONS) * width * FP16,
            "semantics": n_states * width * FP16,
        }
        by_chat = measures.entailment.startswith("llm_") and "samples" in groups
        return Need(
            generated=tuple(generated),
            encoded=tuple(encoded),
            judge_calls=n * drawn * (drawn - 1) if by_chat else 0,  # both ways of every pair
            states=n * sum(kept.get(group, 0) for group in groups),
        )

    def _shape(self, model: Model) -> tuple[int, int]:
        """Number of states of a token and their width; zeros where it is not known."""
        shape = SHAPES.get(model.published or "")
        path = Path(model.model_path) / "config.json"
        if path.is_file():
            config = read_json(path)
            config = {**config, **(config.get("text_config") or {})}
            shape = config.get("num_hidden_layers"), config.get("hidden_size")
        if shape is None or None in shape:
            if model.name not in self.unknown:
                self.unknown.append(model.name)
            return 0, 0
        return shape[0] + 1, shape[1]

    def lines(self, tokens_per_second: float | None = None) -> Iterator[str]:
        """Yield the summary as comments of a shell script."""
        total = sum(self.rows.values(), Need())
        columns = {**self.rows, "in all": total}
        typical = f"with answers of {TYPICAL_ANSWER_TOKENS}"
        yield "#"
        yield _row("what it takes at most", columns)
        for name, told in (
            ("dialogues", lambda need: f"{need.dialogues:,}"),
            ("turns", lambda need: f"{need.turns:,}"),
            ("tokens generated", lambda need: f"{need.generated[0]:,}"),
            (f"  {typical}", lambda need: f"{need.generated[1]:,}"),
            ("tokens encoded", lambda need: f"{need.encoded[0]:,.0f}"),
            (f"  {typical}", lambda need: f"{need.encoded[1]:,.0f}"),
            ("judge calls", lambda need: f"{need.judge_calls:,}"),
            ("hidden states, .pkl", lambda need: _bytes(need.states)),
            ("dialogues, .json", lambda need: _bytes(need.records[0])),
            (f"  {typical}", lambda need: _bytes(need.records[1])),
        ):
            yield _row(name, map(told, columns.values()))
        if tokens_per_second:
            most, typical = (tokens / tokens_per_second / 3600 for tokens in total.generated)
            yield (
                f"# hours to generate at {tokens_per_second:,.0f} tokens/s: {most:,.1f} at most, "
                f"about {typical:,.1f}; encoding, scores and tables are not in them"
            )
        else:
            yield "# hours: not measured (--tokens_per_second says how fast a model generates here)"
        if self.absent:
            yield (
                f"# not here, so taken for full, with no tokens in their first prompts: "
                f"{', '.join(self.absent)}"
            )
        if self.unknown:
            yield f"# no shape is known, so no .pkl is counted, of {', '.join(self.unknown)}"


def _lengths(config: Config) -> tuple[int, int]:
    """Tokens of an answer: at most, and typically."""
    return config.max_new_tokens, min(config.max_new_tokens, TYPICAL_ANSWER_TOKENS)


@cache
def _follow_up_tokens() -> float:
    texts = [prompt.text for family in FAMILIES.values() for prompt in family]
    return sum(map(len, texts)) / len(texts) / CHARACTERS_PER_TOKEN


@cache
def _first_prompts(
    path: str, n: int | None, strategy: str, first_answers: str
) -> tuple[int, int] | None:
    """How many questions a run takes of a data set, and their characters; None if unreadable."""
    settings = {
        "dataset_path": path,
        "sampling": {"n": n, "strategy": strategy},
        "first_answers": first_answers,
    }
    try:
        items = load_items(parse_config(settings, source=path))
    except UserError:
        return None
    asked = [item.question for item in items]
    texts = [(q.context or "", q.question, *(q.choices or ())) for q in asked]
    return len(asked), sum(len(str(text)) for parts in texts for text in parts)


def _row(name: str, cells: Iterable[str]) -> str:
    return f"# {name:<22}" + "".join(f"{cell:>15}" for cell in cells)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
