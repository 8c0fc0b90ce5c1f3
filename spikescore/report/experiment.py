"""An experiment: models x domains, the variants to compare them with, and where everything goes.

`configs/<name>.json` says what is run; this module checks it and lists the commands, in order. All
of them are commands that a user could type: the stages' scripts, with configuration files written
beside the report.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from spikescore.dialogues.config import Config, parse_config
from spikescore.errors import UserError
from spikescore.files import read_json, write_json
from spikescore.pairs import TOKEN_KEYS
from spikescore.report.paper import BASE_SCORER, MODELS

MAIN = "main"


@dataclass(frozen=True)
class Model:
    """A chat model: the name its folders and tables get, where it lies, and whose figures in the
    paper stand beside its own (null: none).
    """

    name: str
    model_path: str
    published: str | None = None


@dataclass(frozen=True)
class Ablations:
    """What else is generated, with `n` questions per domain. Empty lists: not done.

    `shuffled` counts random orders of the progressive prompts. `release` measures the public
    release's choices one at a time. `judges` label the main run again. `layers` trains SAPLMA at
    each layer and token.
    """

    n: int = 40
    schedules: tuple[str, ...] = ()
    shuffled: int = 0
    temperatures: tuple[float, ...] = ()
    release: bool = False
    judges: tuple[str, ...] = ()
    layers: bool = False


@dataclass(frozen=True)
class Measures:
    """What measure_answers.py asks the models."""

    groups: str = "lens,attention,samples,questions"
    n_samples: int = 10
    temperature: float = 1.0
    entailment: str = "exact"


@dataclass(frozen=True)
class Variant:
    """A run beside the main one: what differs in its settings, and in which table it stands.

    `judge` is set where only the labels differ; nothing is generated then.
    """

    name: str
    title: str
    table: str
    settings: dict[str, Any] = field(default_factory=dict)
    judge: str | None = None


@dataclass(frozen=True)
class Step:
    """One command and what it is called. Steps of a phase need nothing of each other."""

    name: str
    command: tuple[str, ...]
    phase: int

    @property
    def counts_failures(self) -> bool:
        """Whether exit status 1 means that some items failed and the others are there."""
        scripts = ("scripts/measure_answers.py", "scripts/label_answers.py")
        return self.command[1] in ("reasoning_lite.py", *scripts)

    def __str__(self) -> str:
        return shlex.join(self.command)


@dataclass(frozen=True)
class Experiment:
    """All of `configs/<name>.json`; the README says what each key means."""

    name: str
    models: tuple[Model, ...]
    dialogues: dict[str, Any]
    outputs_dir: str = "./outputs/experiments"
    reports_dir: str = "./reports"
    measures: Measures | None = field(default_factory=Measures)
    methods: str = "all"
    turn_scorers: str = (
        "saplma,sep,perplexity,reasoning_score,sharpness,all_turn_probe,random_projection"
    )
    probe_seeds: int = 5
    token_key: str = TOKEN_KEYS[0]
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    seed: int = 42
    draws: int = 2000
    ablations: Ablations = field(default_factory=Ablations)
    jobs: int = 1
    wandb: bool = False
    note: str = ""
    """A sentence at the head of the report, for what a reader must know before any figure."""

    @property
    def report_dir(self) -> Path:
        """Where tables, plots and report.html go."""
        return Path(self.reports_dir) / self.name

    def data_dir(self, model: Model, variant: str = MAIN) -> Path:
        """Where the dialogues of a variant are, one folder per domain."""
        return Path(self.outputs_dir) / self.name / model.name / variant

    def book(self, model: Model, variant: str = MAIN) -> Path:
        """The score book of a variant, its .pkl."""
        return self.report_dir / "scores" / f"{model.name}.{variant}.pkl"

    def config_file(self, model: Model, variant: str = MAIN) -> Path:
        """The stage-1 configuration of a variant."""
        return self.report_dir / "configs" / f"{model.name}.{variant}.json"

    def stage_config(self, model: Model, variant: Variant | None = None) -> dict[str, Any]:
        """Return the stage-1 settings of a run: the experiment's own, and what the variant
        changes.
        """
        settings = {**self.dialogues, "model_path": model.model_path}
        name = MAIN
        if variant:
            sampling = {**settings.get("sampling", {}), "n": self.ablations.n}
            settings |= {"sampling": sampling, **variant.settings}
            name = variant.name
        return settings | {"output_dir": str(self.data_dir(model, name))}

    def variants(self) -> list[Variant]:
        """Return all runs beside the main one, in the order of the tables."""
        wanted = self.ablations
        rows = [
            Variant(f"schedule_{name}", name, "schedules", {"strategy": name})
            for name in wanted.schedules
        ]
        for order in range(1, wanted.shuffled + 1):
            settings = {"strategy": "shuffled", "prompt_seed": order}
            rows.append(Variant(f"shuffled_{order}", f"shuffled, order {order}", "order", settings))
        for value in wanted.temperatures:
            settings = {"temperature": value}
            rows.append(Variant(f"temperature_{value:g}", f"{value:g}", "temperature", settings))
        if wanted.release:
            turns = self.stage_config(self.models[0]).get("max_steps", Config().max_steps)
            rows += [
                Variant(
                    "release_question_only",
                    "system prompt and passage dropped after turn 1",
                    "release",
                    {"history": "question_only"},
                ),
                Variant(
                    "release_leaked_answer",
                    "gold answer and id in the first prompt",
                    "release",
                    {"leak_answer": True},
                ),
                Variant(
                    "release_one_more_turn",
                    f"{turns + 1} turns",
                    "release",
                    {"max_steps": turns + 1},
                ),
            ]
        rows += [Variant(f"judge_{name}", name, "judges", judge=name) for name in wanted.judges]
        return rows

    def write_configs(self) -> None:
        """Write the stage-1 configuration of every run that generates."""
        for model in self.models:
            for variant in (None, *self.variants()):
                if variant is None or not variant.judge:
                    name = variant.name if variant else MAIN
                    path = self.config_file(model, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path, self.stage_config(model, variant))

    def steps(self, config: Path) -> Iterator[Step]:
        """Yield every command, phase by phase; those of one phase do not depend on each other."""
        for model in self.models:
            yield from self._generate(model)
        for model in self.models:
            yield from self._measure_and_score(model)
        tables = ("python", "scripts/make_tables.py", "--config", str(config))
        yield Step("tables", tables, phase=6)

    def _generate(self, model: Model) -> Iterator[Step]:
        stage_1 = ("python", "reasoning_lite.py", "--config")
        yield Step(f"{model.name}.{MAIN}", (*stage_1, str(self.config_file(model))), phase=1)
        for variant in self.variants():
            if not variant.judge:
                command = (*stage_1, str(self.config_file(model, variant.name)))
                yield Step(f"{model.name}.{variant.name}", command, phase=2)

    def _measure_and_score(self, model: Model) -> Iterator[Step]:
        main = self.data_dir(model)
        for variant in self.variants():
            if variant.judge:
                again = ("python", "scripts/label_answers.py", "--relabel", str(main))
                copies = ("--to", str(self.data_dir(model, variant.name)))
                command = (*again, "--judge", variant.judge, *copies)
                yield Step(f"{model.name}.{variant.name}", command, phase=2)
        if self.measures:
            command = ["python", "scripts/measure_answers.py", "--data_dir", str(main)]
            for key in ("groups", "n_samples", "temperature", "entailment"):
                command += [f"--{key}", str(getattr(self.measures, key))]
            yield Step(f"{model.name}.measures", tuple(command), phase=3)
        score = ["python", "scripts/score_methods.py", "--data_dir", str(main)]
        for key in ("token_key", "val_fraction", "test_fraction", "seed", "probe_seeds"):
            score += [f"--{key}", str(getattr(self, key))]
        full = ["--methods", self.methods, "--turn_scorers", self.turn_scorers]
        full += ["--save_path", str(self.book(model))]
        yield Step(f"{model.name}.scores", (*score, *full), phase=4)
        brief = ["--methods", "saplma,perplexity,answer_length", "--turn_scorers", "saplma"]
        generated = [variant for variant in self.variants() if not variant.judge]
        if generated:  # scored by what was learnt from the main run
            folders = ",".join(str(self.data_dir(model, one.name)) for one in generated)
            path = self.report_dir / "scores" / f"{model.name}.pkl"
            books = ["--score_dirs", folders, "--save_path", str(path)]
            yield Step(f"{model.name}.variant_scores", (*score, *brief, *books), phase=5)
        for variant in self.variants():
            if variant.judge:
                again = list(score)
                again[3] = str(self.data_dir(model, variant.name))
                book = ["--save_path", str(self.book(model, variant.name))]
                name = f"{model.name}.{variant.name}_scores"
                yield Step(name, (*again, *brief, *book), phase=5)
        if self.ablations.layers:
            book = ["--save_path", str(self.book(model, "layers"))]
            yield Step(f"{model.name}.layers", (*score, "--layer_grid", *book), phase=5)


# --- reading ----------------------------------------------------------------------------------


def load_experiment(path: str | Path) -> Experiment:
    """Read `configs/<name>.json`; UserError naming the key for whatever is wrong in it.

    The stage-1 settings of every run are checked too, so that no run fails hours later.
    """
    raw = read_json(Path(path))
    if not isinstance(raw, dict):
        raise UserError(f'"{path}" must hold a JSON object')
    content = {"name": Path(path).stem, **raw}
    for key, kind in (("measures", Measures), ("ablations", Ablations)):
        if content.get(key) is not None:
            content[key] = _build(kind, content[key], f'{path}: "{key}"')
    models = content.get("models")
    if not isinstance(models, list) or not models:
        raise UserError(f'{path}: "models" must list at least one {{"name", "model_path"}}')
    content["models"] = tuple(_build(Model, model, f'{path}: "models"') for model in models)
    experiment = _build(Experiment, content, str(path))
    _check(experiment, str(path))
    return experiment


def _build(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise UserError(f"{where} must hold objects")
    known = [entry.name for entry in fields(kind)]
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise UserError(f'{where}: unknown key "{key}"{hint} Known keys: {", ".join(known)}')
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()}
    for entry in fields(kind):
        usual = type(entry.default)
        fits = (int, float) if usual is float else usual
        given = values.get(entry.name, entry.default)
        wrong_bool = isinstance(given, bool) and usual is not bool
        if usual in (bool, int, float, str, tuple) and (wrong_bool or not isinstance(given, fits)):
            told = {tuple: "a list", bool: "true or false", str: "a text", int: "a whole number"}
            raise UserError(f'{where}: "{entry.name}" must be {told.get(usual, "a number")}')
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error


def _check(experiment: Experiment, where: str) -> None:
    if not isinstance(experiment.dialogues, dict):
        raise UserError(f'{where}: "dialogues" must hold the settings of stage 1')
    taken = {"model_path", "output_dir"} & experiment.dialogues.keys()
    if taken:
        raise UserError(f'{where}: "dialogues": {", ".join(sorted(taken))} is set per model')
    if experiment.token_key not in TOKEN_KEYS:
        raise UserError(f'{where}: "token_key" must be one of {", ".join(TOKEN_KEYS)}')
    for key, names in (("turn_scorers", experiment.turn_scorers), ("methods", experiment.methods)):
        if names != "all" and BASE_SCORER not in names.split(","):
            raise UserError(
                f'{where}: "{key}" must name {BASE_SCORER}, whose trajectories SpikeScore is of'
            )
    for key in ("probe_seeds", "draws", "jobs"):
        if getattr(experiment, key) < 1:
            raise UserError(f'{where}: "{key}" must be a whole number of at least 1')
    names = [model.name for model in experiment.models]
    if len(set(names)) < len(names):
        raise UserError(f'{where}: two of the "models" have one name')
    for model in experiment.models:
        if model.published not in (None, *MODELS):
            raise UserError(
                f'{where}: "published" is "{model.published}"; use one of {", ".join(MODELS)}, '
                "or null"
            )
        for variant in (None, *experiment.variants()):
            config = experiment.stage_config(model, variant)
            source = f"{where} ({variant.name if variant else MAIN})"
            if not isinstance(parse_config(config, source=source).dataset_path, list):
                raise UserError(f'{where}: "dataset_path" must list one file per domain')
