"""`config.json`: one dataclass is the only truth about its keys, defaults and checks."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from spikescore.data.selection import STRATEGIES as SAMPLING_STRATEGIES
from spikescore.dialogues.prompts import DEFAULT_SYSTEM_PROMPT, STRATEGIES
from spikescore.errors import UserError, keep_secret, redacted
from spikescore.files import read_json
from spikescore.model.placement import Placement


@dataclass
class SamplingConfig:
    """Which questions are used. `n` counts per data set; null takes all."""

    strategy: str = "random"
    n: int | None = 1000
    seed: int = 42


@dataclass
class Config:
    """All keys of config.json; the README's table says what each does."""

    model_path: str = "./models/demo"
    dataset_path: str | list[str] = "./datasets/demo/trivia.json"
    output_dir: str = "./outputs/demo"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    enable_thinking: bool = False
    strategy: str = "progressive"
    max_steps: int = 20
    temperature: float = 0.2
    top_p: float = 0.7
    enable_ppl_detection: bool = True
    ppl_bound: float = 100.0
    ppl_action: str = "flag"
    generation_timeout: float | None = 180
    model_max_tokens: int = 128000
    max_new_tokens: int = 1024
    batch_size: int | str = "auto"
    dtype: str = "auto"
    device_map: str | dict[str, Any] | None = None
    max_memory: dict[str, Any] | None = None
    tp_plan: str | None = None  # "auto" under torchrun: each process holds a slice of every layer
    attn_implementation: str | None = None
    backend: str = "transformers"
    # with backend "openai" a server holds the dialogues and model_path reads the states after it
    server_url: str | None = None  # ends in /v1; null: the environment's OPENAI_BASE_URL
    server_model: str | None = None  # the name the server knows the model by; null: model_path
    max_in_flight: int = 256  # dialogues that wait for the server at one time
    replay: str | None = None  # dialogues whose states are read: pairs, or a data set with them
    judge: str = "auto"
    dataset_format: str = "auto"
    fields: dict[str, str] | None = None
    filters: dict[str, Any] | None = None
    answerable_only: bool = False
    on_bad_row: str = "error"
    system_prompt: str | None = DEFAULT_SYSTEM_PROMPT
    prompts_file: str | None = None
    prompt_seed: int = 0  # which order of the prompts `strategy: shuffled` takes
    history: str = "full"
    leak_answer: bool = False  # a fault of the public release, to measure what it does
    use_model_generation_config: bool = False

    def datasets(self) -> list[tuple[str, Path]]:
        """(path, output folder) of each data set; several get a folder each, by file name.

        Where files share a name (`a/test.json`, `b/test.json`) their folders' names go before.
        """
        if isinstance(self.dataset_path, str):
            return [(self.dataset_path, Path(self.output_dir))]
        names = Counter(Path(path).stem for path in self.dataset_path)
        folders = []
        for path in map(Path, self.dataset_path):
            name = path.stem if names[path.stem] == 1 else f"{path.parent.name}_{path.stem}"
            folders.append((str(path), Path(self.output_dir) / name))
        return folders

    @property
    def placement(self) -> Placement:
        """What of it says which model is loaded and where."""
        return Placement(**{key.name: getattr(self, key.name) for key in fields(Placement)})

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain data, kept in every pair; no password in it."""
        return {**asdict(self), "server_url": self.server_url and redacted(self.server_url)}

    def hash(self) -> str:
        """12 hex digits over every key that can change a dialogue or its states, and nothing else.

        Left out: where files lie, how many questions, batch and placement, labels and time limits.
        """
        everything = self.resolved()
        if self.replay:  # which dialogues were read is in each pair
            kept = {"replay": True, **{key: everything[key] for key in _CHANGES_READING}}
            kept["model_path"] = Path(self.model_path).name
            return _digest(kept)
        kept = {key: value for key, value in everything.items() if key not in _NOT_HASHED}
        # at its default a later key changes nothing, so pairs made before it stay valid
        kept = {key: value for key, value in kept.items() if _LATER.get(key) != value}
        kept["sampling"] = {"seed": self.sampling.seed}
        kept["model_path"] = Path(self.model_path).name
        if self.backend == "openai":
            kept["server_model"] = self.server_model or kept["model_path"]
        if self.prompts_file:
            kept["prompts_file"] = hashlib.sha256(Path(self.prompts_file).read_bytes()).hexdigest()
        return _digest(kept)


_NOT_HASHED = {
    "dataset_path", "output_dir", "batch_size", "device_map", "max_memory", "attn_implementation",
    "tp_plan", "judge", "on_bad_row", "dataset_format", "fields", "filters",
    "answerable_only", "generation_timeout", "server_url", "server_model", "max_in_flight",
    "replay",
}  # fmt: skip
_LATER: dict[str, Any] = {"prompt_seed": 0, "leak_answer": False}
_CHANGES_READING = (
    "model_path", "dtype", "enable_thinking", "system_prompt", "history", "model_max_tokens",
    "enable_ppl_detection", "ppl_bound",
)  # fmt: skip

_ALLOWED: dict[str, tuple[str, ...]] = {
    "strategy": STRATEGIES,
    "sampling.strategy": SAMPLING_STRATEGIES,
    "ppl_action": ("flag", "stop"),
    "tp_plan": (None, "auto"),
    "dtype": ("auto", "float16", "bfloat16", "float32"),
    "backend": ("transformers", "openai"),
    "on_bad_row": ("error", "skip"),
    "history": ("full", "question_only"),
}
_RANGES: dict[str, tuple[float, float, str]] = {
    "max_steps": (1, 10_000, "turns, the initial answer included"),
    "temperature": (0, 100, "0 is greedy"),
    "top_p": (1e-9, 1, "above 0, at most 1"),
    "ppl_bound": (1, float("inf"), "perplexity is at least 1"),
    "generation_timeout": (1e-3, float("inf"), "seconds per item, or null for no limit"),
    "model_max_tokens": (2, float("inf"), "tokens of prompt and answer together"),
    "max_new_tokens": (1, float("inf"), "tokens per answer"),
    "batch_size": (1, 1_000_000, 'a number, or "auto"'),
    "max_in_flight": (1, 100_000, "dialogues"),
    "sampling.n": (1, float("inf"), "questions per data set, or null for all"),
}
_TYPES = {
    "bool": (bool,), "int": (int,), "float": (int, float), "str": (str,), "None": (type(None),),
    "dict": (dict,), "list": (list,),
}  # fmt: skip


def _digest(settings: dict[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read config.json, apply `key=value` overrides (dotted keys reach into `sampling`), and check.

    Raises UserError for a missing or broken file, an unknown key (naming the nearest known one), a
    value of the wrong type or outside its range.
    """
    raw = read_json(Path(path))
    if not isinstance(raw, dict):
        raise UserError(f'"{path}" must hold a JSON object of settings')
    for override in overrides or []:
        _apply_override(raw, override)
    return parse_config(raw, source=str(path))


def parse_config(raw: dict[str, Any], *, source: str) -> Config:
    """Build a checked Config from plain data; `source` is named in errors."""
    sampling = raw.get("sampling", {})
    if not isinstance(sampling, dict):
        raise UserError(f'{source}: "sampling" must be an object such as {{"n": 100, "seed": 42}}')
    _check_keys(raw, Config, source, prefix="")
    _check_keys(sampling, SamplingConfig, source, prefix="sampling.")
    rest = {key: value for key, value in raw.items() if key != "sampling"}
    config = Config(sampling=SamplingConfig(**sampling), **rest)
    keep_secret(config.server_url)
    flat = {**config.resolved(), **{f"sampling.{k}": v for k, v in sampling.items()}}
    for key, allowed in _ALLOWED.items():
        if key in flat and flat[key] not in allowed:
            raise UserError(
                f'{source}: "{key}" is "{flat[key]}"; use one of {", ".join(map(str, allowed))}'
            )
    for key, (low, high, meaning) in _RANGES.items():
        value = flat.get(key)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise UserError(f'{source}: "{key}" is {value}, out of range ({meaning})')
    if isinstance(config.batch_size, str) and config.batch_size != "auto":
        raise UserError(f'{source}: "batch_size" is "{config.batch_size}"; use a number or "auto"')
    if config.server_url and not config.server_url.startswith(("http://", "https://")):
        raise UserError(
            f'{source}: "server_url" is "{redacted(config.server_url)}"; write it as http://HOST:PORT/v1'
        )
    paths = config.dataset_path
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f'{source}: "dataset_path" must be a path or a list of paths')
    folders = [folder for _, folder in config.datasets()]
    if len(set(folders)) < len(folders):
        raise UserError(f'{source}: two entries of "dataset_path" are one file, or have one name')
    if config.tp_plan and (config.backend != "transformers" or config.replay):
        raise UserError(f'{source}: "tp_plan" works with the local engine alone')
    if config.prompts_file and not Path(config.prompts_file).is_file():
        raise UserError(f'{source}: prompts_file "{config.prompts_file}" does not exist')
    return config


def _check_keys(raw: dict[str, Any], kind: type, source: str, prefix: str) -> None:
    known = {entry.name: str(entry.type) for entry in fields(kind)}
    for key, value in raw.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f'; did you mean "{prefix}{near[0]}"?' if near else ""
            raise UserError(
                f'{source}: unknown key "{prefix}{key}"{hint} Known keys: {", ".join(known)}'
            )
        if key == "sampling":
            continue
        names = [part.split("[")[0].strip() for part in known[key].split(" | ")]
        accepted = tuple(kind for name in names for kind in _TYPES[name])
        # bool is an int in Python; true is no number of steps
        wrong_bool = isinstance(value, bool) and bool not in accepted
        if wrong_bool or not isinstance(value, accepted):
            raise UserError(
                f'{source}: "{prefix}{key}" must be {known[key].replace("None", "null")}, '
                f"got {json.dumps(value, default=str)}"
            )


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f'--set "{override}": write it as key=value, for example --set max_steps=5')
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    target = raw
    *parents, last = key.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise UserError(f'--set "{override}": "{parent}" is not an object with keys of its own')
    target[last] = value
