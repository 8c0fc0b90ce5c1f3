"""`config.json`: one dataclass is the only truth about its keys, defaults and checks."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spikescore.data.selection import STRATEGIES as SAMPLING_STRATEGIES
from spikescore.dialogues.prompts import DEFAULT_SYSTEM_PROMPT, SCHEDULES, STRATEGIES
from spikescore.errors import UserError, keep_secret, redacted
from spikescore.files import content_digest, read_json
from spikescore.labels.judges import judge_names, server_calls
from spikescore.model.placement import Placement


def _key(
    default: Any,
    changes: str = "",
    *,
    allowed: tuple[Any, ...] = (),
    within: tuple[float, float, str] | None = None,
    later: bool = False,
) -> Any:
    """A key of config.json: its default, what another value of it changes, and what it may be.

    `changes` names "dialogues" (those that are held), "reading" (the states of dialogues on file),
    both or nothing: the key counts in the hash of such runs. One that came `later` counts where it
    is not at its default, so that pairs made before it stay valid. `within` is the range of a
    number and what the number is.
    """
    value = {"default_factory": default} if callable(default) else {"default": default}
    metadata = {"changes": changes.split(), "allowed": allowed, "within": within, "later": later}
    return field(**value, metadata=metadata)


TYPICAL_ANSWER_TOKENS = 256
"""For estimates of time and memory; answers seldom reach max_new_tokens."""
ANY = float("inf")
DIALOGUES, READING, BOTH = "dialogues", "reading", "dialogues reading"


@dataclass
class SamplingConfig:
    """Which questions are used. `n` counts per data set; null takes all."""

    strategy: str = _key("random", allowed=SAMPLING_STRATEGIES)
    n: int | None = _key(1000, within=(1, ANY, "questions per data set, or null for all"))
    seed: int = _key(42, DIALOGUES)


@dataclass
class Config:
    """All keys of config.json; docs/stages.md says what each does."""

    model_path: str = _key("./models/tiny", BOTH)
    dataset_path: str | list[str] = _key("./datasets/tiny/trivia.json")
    output_dir: str = _key("./outputs/demo")
    sampling: SamplingConfig = _key(SamplingConfig, DIALOGUES)
    enable_thinking: bool = _key(False, BOTH)
    strategy: str = _key("progressive", DIALOGUES, allowed=STRATEGIES)
    max_steps: int = _key(20, DIALOGUES, within=(1, 10_000, "turns, the initial answer included"))
    temperature: float = _key(0.2, DIALOGUES, within=(0, 100, "0 is greedy"))
    top_p: float = _key(0.7, DIALOGUES, within=(1e-9, 1, "above 0, at most 1"))
    enable_ppl_detection: bool = _key(True, BOTH)
    ppl_bound: float = _key(100.0, BOTH, within=(1, ANY, "perplexity is at least 1"))
    ppl_action: str = _key("flag", DIALOGUES, allowed=("flag", "stop"))
    generation_timeout: float | None = _key(
        180, within=(1e-3, ANY, "seconds per item, or null for no limit")
    )
    model_max_tokens: int = _key(
        128000, BOTH, within=(2, ANY, "tokens of prompt and answer together")
    )
    max_new_tokens: int = _key(1024, DIALOGUES, within=(1, ANY, "tokens per answer"))
    batch_size: int | str = _key("auto", within=(1, 1_000_000, 'a number, or "auto"'))
    dtype: str = _key("auto", BOTH, allowed=("auto", "float16", "bfloat16", "float32"))
    device_map: str | dict[str, Any] | None = _key(None)
    max_memory: dict[str, Any] | None = _key(None)
    # "auto" under torchrun: each process holds a slice of every layer
    tp_plan: str | None = _key(None, allowed=(None, "auto"))
    attn_implementation: str | None = _key(None)
    # with "openai" a server holds the dialogues and model_path reads the states after it
    backend: str = _key("transformers", DIALOGUES, allowed=("transformers", "openai"))
    # who reads the states: model_path here, or the server (vLLM, SGLang), with no weights here
    states: str = _key("local", BOTH, allowed=("local", "server"), later=True)
    server_url: str | None = _key(None)  # ends in /v1; null: the environment's OPENAI_BASE_URL
    server_model: str | None = _key(None)  # the name the server knows the model by
    # dialogues that wait for the server at one time
    max_in_flight: int = _key(256, within=(1, 100_000, "dialogues"))
    replay: str | None = _key(None)  # dialogues whose states are read: pairs, or a data set
    judge: str | list[str] = _key("auto")  # several: each for what the one before left unread
    dataset_format: str = _key("auto")
    fields: dict[str, str] | None = _key(None)
    filters: dict[str, Any] | None = _key(None)
    answerable_only: bool = _key(False)
    on_bad_row: str = _key("error", allowed=("error", "skip"))
    system_prompt: str | None = _key(DEFAULT_SYSTEM_PROMPT, BOTH)
    prompts_file: str | None = _key(None, DIALOGUES)
    # which order of the prompts `strategy: shuffled` takes
    prompt_seed: int = _key(0, DIALOGUES, later=True)
    # whether a follow-up is asked after the turns before it, or after the first answer alone
    schedule: str = _key("sequential", DIALOGUES, allowed=SCHEDULES, later=True)
    history: str = _key("full", BOTH, allowed=("full", "question_only"))
    # who gives the first answer: the model, or the data set that says whether it is right
    first_answers: str = _key("model", DIALOGUES, allowed=("model", "shipped"), later=True)
    # documents whose passages a question is shown: {"from": PATH, "top_k": 3}
    context: dict[str, Any] | None = _key(None, DIALOGUES, later=True)
    # a fault of the public release, to measure what it does
    leak_answer: bool = _key(False, DIALOGUES, later=True)
    use_model_generation_config: bool = _key(False, DIALOGUES)

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

    @property
    def top_k(self) -> int:
        """How many passages a question is shown of the documents in `context`."""
        return (self.context or {}).get("top_k", 3)

    @property
    def is_served(self) -> bool:
        """Whether a server holds the dialogues."""
        return self.backend == "openai" and not self.replay

    @property
    def needs_server(self) -> bool:
        """Whether a server holds the dialogues, or reads them."""
        return self.is_served or self.states == "server"

    @property
    def is_judged_by_server(self) -> bool:
        """Whether labelling may call a server."""
        return server_calls(self.judge, ()) != "none"

    @property
    def item_kind(self) -> str:
        """What its items are, for messages."""
        if self.replay:
            return "dialogues"
        return "given answers" if self.first_answers == "shipped" else "questions"

    @property
    def origin(self) -> str:
        """What its items are and where they come from, for messages."""
        n = len(self.datasets())
        where = self.replay or f"{n} data set{'s' * (n > 1)}"
        return f"{self.item_kind} from {where}"

    def resolved(self) -> dict[str, Any]:
        """The whole configuration as plain data, kept in every pair; no password in it."""
        return {**asdict(self), "server_url": self.server_url and redacted(self.server_url)}

    def hash(self) -> str:
        """12 hex digits over every key that can change a dialogue or its states, and nothing else.

        Left out: where files lie, how many questions, batch and placement, labels and time limits.
        """
        # of a replay, which dialogues were read is in each pair
        kind = READING if self.replay else DIALOGUES
        nothing = () if self.replay else (None,)
        kept = {
            key.name: value
            for key in fields(self)
            if kind in key.metadata["changes"]
            and (value := getattr(self, key.name)) not in nothing
            and not (key.metadata["later"] and value == key.default)
        }
        kept["model_path"] = Path(self.model_path).name
        if self.replay:
            kept["replay"] = True
        else:
            kept["sampling"] = {"seed": self.sampling.seed}
            if self.backend == "openai":
                kept["server_model"] = self.server_model or kept["model_path"]
            if self.context:
                documents = content_digest(Path(self.context["from"]))
                kept["context"] = {"documents": documents, "top_k": self.top_k}
            if self.prompts_file:
                content = Path(self.prompts_file).read_bytes()
                kept["prompts_file"] = hashlib.sha256(content).hexdigest()
        text = json.dumps(kept, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def dialogue_keys() -> list[str]:
    """The keys that say how dialogues are held, whatever the model and the seed (`sampling`)."""
    apart = ("model_path", "sampling")
    changes = {key.name: key.metadata["changes"] for key in fields(Config)}
    return [name for name, kinds in changes.items() if DIALOGUES in kinds and name not in apart]


_TYPES = {
    "bool": (bool,), "int": (int,), "float": (int, float), "str": (str,), "None": (type(None),),
    "dict": (dict,), "list": (list,),
}  # fmt: skip


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read config.json, apply `key=value` overrides (dotted keys reach into `sampling`), and check.

    Raises UserError for a missing or broken file, an unknown key (naming the nearest known one), a
    value of the wrong type or outside its range.
    """
    raw = read_json(Path(path), by_hand=True)
    if not isinstance(raw, dict):
        raise UserError(f'"{path}" must hold a JSON object of settings')
    for override in overrides or []:
        apply_override(raw, override)
    return parse_config(raw, source=str(path))


def parse_config(raw: dict[str, Any], *, source: str) -> Config:
    """Build a checked Config from plain data; `source` is named in errors."""
    written = json.dumps(raw, ensure_ascii=False)
    if "\\u0000" in written or re.search(r"[\ud800-\udfff]", written):
        raise UserError(f"{source}: a text holds a character that no file or prompt may hold")
    sampling = raw.get("sampling", {})
    if not isinstance(sampling, dict):
        raise UserError(f'{source}: "sampling" must be an object such as {{"n": 100, "seed": 42}}')
    _check_keys(raw, Config, source, prefix="")
    _check_keys(sampling, SamplingConfig, source, prefix="sampling.")
    rest = {key: value for key, value in raw.items() if key != "sampling"}
    config = Config(sampling=SamplingConfig(**sampling), **rest)
    keep_secret(config.server_url)
    for holder, prefix in ((config, ""), (config.sampling, "sampling.")):
        for key in fields(holder):
            _check_value(f"{prefix}{key.name}", getattr(holder, key.name), key.metadata, source)
    if isinstance(config.batch_size, str) and config.batch_size != "auto":
        raise UserError(f'{source}: "batch_size" is "{config.batch_size}"; use a number or "auto"')
    if config.fields and not all(isinstance(name, str) for name in config.fields.values()):
        raise UserError(f'{source}: "fields" must map our names to texts, the file\'s own names')
    if config.server_url and not _is_address(config.server_url):
        raise UserError(
            f'{source}: "server_url" is "{redacted(config.server_url)}"; '
            "write it as http://HOST:PORT/v1"
        )
    try:
        judge_names(config.judge)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    paths = config.dataset_path
    if not paths or not all(isinstance(path, str) and path for path in paths):
        raise UserError(f'{source}: "dataset_path" must be a path or a list of paths')
    folders = [folder for _, folder in config.datasets()]
    if len(set(folders)) < len(folders):
        raise UserError(f'{source}: two entries of "dataset_path" are one file, or have one name')
    if config.tp_plan and (config.backend != "transformers" or config.replay):
        raise UserError(f'{source}: "tp_plan" works with the local engine alone')
    if config.states == "server" and not (config.is_served or config.replay):
        raise UserError(
            f'{source}: "states": "server" is for dialogues that a server holds; set "backend": '
            '"openai" and "server_url", or "states": "local"'
        )
    for name, kind in (("model_path", "a model"), ("output_dir", "a folder")):
        if not getattr(config, name).strip():
            raise UserError(f'{source}: "{name}" is empty; name {kind}')
    _check_context(config.context, source)
    if config.prompts_file and not Path(config.prompts_file).is_file():
        raise UserError(f'{source}: prompts_file "{config.prompts_file}" does not exist')
    return config


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an end, a port that is no number
        return False


def _check_context(context: dict[str, Any] | None, source: str) -> None:
    if context is None:
        return
    where = f'{source}: "context"'
    unknown = sorted(set(context) - {"from", "top_k"})
    if unknown or not isinstance(context.get("from"), str) or not context["from"].strip():
        what = f'unknown key "{unknown[0]}"' if unknown else '"from" is no path'
        raise UserError(f'{where}: {what}; write it as {{"from": "docs/", "top_k": 3}}')
    top_k = context.get("top_k", 3)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= 100:
        raise UserError(f'{where}: "top_k" is {json.dumps(top_k)}; use a number from 1 to 100')
    if not Path(context["from"]).exists():
        raise UserError(f'{where}: "{context["from"]}" does not exist')


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


def _check_value(key: str, value: Any, rules: Mapping[str, Any], source: str) -> None:
    if rules["allowed"] and value not in rules["allowed"]:
        allowed = ", ".join(map(str, rules["allowed"]))
        raise UserError(f'{source}: "{key}" is "{value}"; use one of {allowed}')
    if rules["within"] and isinstance(value, int | float):
        low, high, meaning = rules["within"]
        if not low <= value <= high:
            raise UserError(f'{source}: "{key}" is {value}, out of range ({meaning})')


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set a (dotted) key as "key=value" says, the value being JSON or else text."""
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
