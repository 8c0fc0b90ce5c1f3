"""An experiment: models x domains, the variants to compare them with, and where everything goes.

`configs/<name>.json` says what is run; this module checks it and lists the commands, in order. All
of them are commands that a user could type: the stages' scripts, with configuration files written
beside the report.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from spikescore.dialogues.config import Config, parse_config
from spikescore.dialogues.prompts import FORKED
from spikescore.errors import UserError
from spikescore.files import read_json, write_json
from spikescore.pairs import TOKEN_KEYS
from spikescore.plugins import is_plugin, load_plugin, plugin_file
from spikescore.report.paper import BASE_SCORER, MODELS
from spikescore.report.steps import Step

MAIN = "main"
MULTI = "multi_source"
"""The book of what was trained on all domains but the tested one."""


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

    `schedules` are strategies, and "forked". `shuffled` counts random orders of the progressive
    prompts. `release` measures the public release's choices one at a time. `judges` label the main
    run again. `layers` trains SAPLMA at each layer and token. `retrieval` is stage 1's `context`:
    the same questions asked with retrieved passages.
    """

    n: int = 40
    schedules: tuple[str, ...] = ()
    shuffled: int = 0
    temperatures: tuple[float, ...] = ()
    release: bool = False
    judges: tuple[str, ...] = ()
    layers: bool = False
    retrieval: dict[str, Any] | None = None


@dataclass(frozen=True)
class Measures:
    """What measure_answers.py asks the models."""

    groups: str = "lens,attention,samples,questions"
    n_samples: int = 10
    temperature: float = 1.0
    entailment: str = "exact"
    encoder: str | None = None


@dataclass(frozen=True)
class Slurm:
    """How jobs are submitted: options of sbatch by their long names (null: not given).

    `options` are for all jobs, `scoring` those that differ where no model runs. `lines` stand in
    each batch script before its command, such as "module load cuda".
    """

    options: dict[str, Any] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


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
class Experiment:
    """All of `configs/<name>.json`; the README says what each key means."""

    name: str
    models: tuple[Model, ...]
    dialogues: dict[str, Any]
    outputs_dir: str = "./outputs/experiments"
    reports_dir: str = "./reports"
    measures: Measures | None = field(default_factory=Measures)
    methods: str = "all"
    detectors: tuple[str, ...] = ()
    """A user's own, "path/to/file.py:Class" each, beside the methods."""
    turn_scorers: str = (
        "saplma,sep,perplexity,reasoning_score,sharpness,all_turn_probe,random_projection"
    )
    multi_source: bool = False
    """Whether all methods are also trained on all domains but the tested one."""
    probe_seeds: int = 5
    token_key: str = TOKEN_KEYS[0]
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    seed: int = 42
    draws: int = 2000
    ablations: Ablations = field(default_factory=Ablations)
    jobs: int = 1
    slurm: Slurm = field(default_factory=Slurm)
    wandb: bool = False
    dialogues_in_report: bool = True
    """Whether report.html has the dialogues to read; false where their texts may not be shared."""
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
        """Return a run's stage-1 settings: the experiment's, and what the variant changes."""
        settings = {**self.dialogues, "model_path": model.model_path}
        name = MAIN
        if variant:
            sampling = {**settings.get("sampling", {}), "n": self.ablations.n}
            settings |= {"sampling": sampling, **variant.settings}
            name = variant.name
        return settings | {"output_dir": str(self.data_dir(model, name))}

    def variants(self) -> list[Variant]:
        """Return all runs beside the main one, in the order of the tables."""
        wanted, found = self.ablations, []

        def add(table: str, name: str, title: str, settings: dict[str, Any]) -> None:
            found.append(Variant(name, title, table, settings))

        for name in wanted.schedules:
            key = "schedule" if name == FORKED else "strategy"
            add("schedules", f"schedule_{name}", name, {key: name})
        for order in range(1, wanted.shuffled + 1):
            settings = {"strategy": "shuffled", "prompt_seed": order}
            add("order", f"shuffled_{order}", f"shuffled, order {order}", settings)
        for value in wanted.temperatures:
            add("temperature", f"temperature_{value:g}", f"{value:g}", {"temperature": value})
        if wanted.release:
            turns = 1 + self.stage_config(self.models[0]).get("max_steps", Config().max_steps)
            for name, title, settings in (
                ("question_only", "system prompt and passage dropped after turn 1",
                 {"history": "question_only"}),
                ("leaked_answer", "gold answer and id in the first prompt", {"leak_answer": True}),
                ("one_more_turn", f"{turns} turns", {"max_steps": turns}),
            ):  # fmt: skip
                add("release", f"release_{name}", title, settings)
        if wanted.retrieval:
            add("retrieval", "retrieval", "with retrieval", {"context": wanted.retrieval})
        for name in wanted.judges:
            folder = re.sub(r"[^\w.,-]", "_", name)
            found.append(Variant(f"judge_{folder}", name, "judges", judge=name))
        return found

    def check_names(self) -> None:
        """Look up methods, scorers of turns and a user's own code; UserError for what is none."""
        for judge in (self.dialogues.get("judge", ()), *self.ablations.judges):
            for name in own_judges(judge):
                load_plugin(name)
        usual = {key.name: key.default for key in fields(self)}
        if any(
            getattr(self, key) != usual[key] for key in ("methods", "turn_scorers", "detectors")
        ):
            from spikescore.detectors.scoring import Settings  # seconds, for torch

            methods, scorers = (
                None if one == "all" else [name.strip() for name in one.split(",")]
                for one in (self.methods, self.turn_scorers)
            )
            _ = Settings(methods, turn_scorers=scorers, detectors=self.detectors).names

    def require_data(self) -> None:
        """Raise UserError naming the data sets that are not there, before anything is run."""
        missing = [path for path in self.dialogues["dataset_path"] if not Path(path).exists()]
        if missing:
            names = " ".join(Path(path).stem for path in missing)
            raise UserError(
                f"there is no {', '.join(missing)}; fetch the sets with "
                f"python datasets/prepare.py {names}, or mend dataset_path"
            )

    def write_configs(self) -> None:
        """Write the stage-1 configuration of every run that generates."""
        generated = [variant for variant in self.variants() if not variant.judge]
        for model in self.models:
            for variant in (None, *generated):
                path = self.config_file(model, variant.name if variant else MAIN)
                write_json(path, self.stage_config(model, variant))

    def domains(self) -> list[str]:
        """The domains' names, which are those of their folders."""
        settings = self.stage_config(self.models[0])
        return [folder.name for _, folder in parse_config(settings, source=self.name).datasets()]

    def steps(self, config: str | Path) -> Iterator[Step]:
        """Yield every command, phase by phase; those of one phase do not depend on each other."""
        found = [step for model in self.models for step in self._steps_of(model)]
        yield from sorted(found, key=lambda step: step.phase)
        tables = ("python", "scripts/make_tables.py", "--config", str(config))
        made = ((str(self.report_dir / "tables"), ""), (str(self.report_dir / "report.html"), ""))
        needs = tuple(step.name for step in found)
        yield Step("tables", tables, 6, needs, makes=made)

    def _steps_of(self, model: Model) -> Iterator[Step]:
        main, variants = f"{model.name}.{MAIN}", self.variants()
        generated = [variant for variant in variants if not variant.judge]
        yield self._generate(model, MAIN, 1)
        for variant in variants:
            yield (
                self._relabel(model, variant)
                if variant.judge
                else self._generate(model, variant.name, 2)
            )
        asked = (f"{model.name}.measures",) if self.measures else ()
        if self.measures:
            yield self._measure(model, asked[0], main)
        own = [word for spec in self.detectors for word in ("--detector", spec)]
        full = ("--methods", self.methods, "--turn_scorers", self.turn_scorers, *own)
        yield self._score(model, "scores", MAIN, full, (main, *asked), 4)
        if self.multi_source:
            several = (*full, "--multi_source")
            yield self._score(model, MULTI, MULTI, several, (main, *asked), 4)
        brief = ("--methods", "saplma,perplexity,answer_length", "--turn_scorers", "saplma")
        if generated:  # scored by what was learnt from the main run
            folders = ",".join(str(self.data_dir(model, one.name)) for one in generated)
            runs = [f"{model.name}.{one.name}" for one in generated]
            books = (*brief, "--score_dirs", folders)
            yield self._score(model, "variant_scores", None, books, (main, *asked, *runs), 5)
        for variant in variants:
            if variant.judge:
                needs = (f"{model.name}.{variant.name}",)
                yield self._score(model, f"{variant.name}_scores", variant.name, brief, needs, 5)
        if self.ablations.layers:
            yield self._score(model, "layers", "layers", ("--layer_grid",), (main,), 5)

    def _generate(self, model: Model, variant: str, phase: int) -> Step:
        command = ("python", "reasoning_lite.py", "--config", str(self.config_file(model, variant)))
        name, paths = f"{model.name}.{variant}", self.dialogues["dataset_path"]
        files = (model.model_path, *judge_files(self.dialogues.get("judge", ())))
        own = self.ablations.retrieval if variant == "retrieval" else self.dialogues.get("context")
        files += (own["from"],) if own else ()

        def made(folder: Path) -> tuple[tuple[str, str], ...]:
            return tuple((str(folder), ending) for ending in (".json", ".pkl"))

        parts = []
        for path, domain in zip(paths, self.domains(), strict=True):
            # a folder of its own: jobs on several machines share no journal and no cache
            folder = self.data_dir(model, variant) / domain
            one = (*command, "--set", f"dataset_path={path}", "--set", f"output_dir={folder}")
            parts.append(
                Step(
                    f"{name}.{domain}", one, phase, reads=(path, *files), makes=made(folder),
                    part=f"{model.name}/{domain}",
                )
            )  # fmt: skip
        return Step(
            name, command, phase, reads=(*paths, *files), makes=made(self.data_dir(model, variant)),
            part=model.name, parts=tuple(parts),
        )  # fmt: skip

    def _measure(self, model: Model, name: str, main: str) -> Step:
        def measuring(name: str, folder: Path, needs: str, **more: Any) -> Step:
            command = ["python", "scripts/measure_answers.py", "--data_dir", str(folder)]
            for key, value in asdict(self.measures).items():
                command += [f"--{key}", str(value)] if value is not None else []
            made = ((str(folder), ".measures.pkl"),)
            return Step(name, tuple(command), 3, (needs,), makes=made, **more)

        parts = tuple(
            measuring(
                f"{name}.{domain}", self.data_dir(model) / domain, f"{main}.{domain}",
                part=f"{model.name}/{domain}",
            )
            for domain in self.domains()
        )  # fmt: skip
        return measuring(name, self.data_dir(model), main, part=model.name, parts=parts)

    def _relabel(self, model: Model, variant: Variant) -> Step:
        main, copy = str(self.data_dir(model)), str(self.data_dir(model, variant.name))
        command = ("python", "scripts/label_answers.py", "--relabel", main)
        command += ("--judge", str(variant.judge), "--to", copy)
        name, needs = f"{model.name}.{variant.name}", (f"{model.name}.{MAIN}",)
        files = judge_files(str(variant.judge))
        return Step(name, command, 2, needs, files, ((copy, ".json"),), model.name)

    def _score(
        self, model: Model, name: str, book: str | None, what: Sequence[str],
        needs: tuple[str, ...], phase: int,
    ) -> Step:  # fmt: skip
        """Scores of one run in its own book, or (no book) of several runs, a book each."""
        judged = book if book and book.startswith("judge_") else MAIN
        command = ["python", "scripts/score_methods.py", "--data_dir"]
        command += [str(self.data_dir(model, judged))]
        for key in ("token_key", "val_fraction", "test_fraction", "seed", "probe_seeds"):
            command += [f"--{key}", str(getattr(self, key))]
        folder = self.report_dir / "scores"
        path = self.book(model, book) if book else folder / f"{model.name}.pkl"
        books = [book] if book else [one.name for one in self.variants() if not one.judge]
        made = tuple(
            (str(self.book(model, one).with_suffix(ending)), "")
            for one in books
            for ending in (".pkl", ".json")
        )
        command += [*what, "--save_path", str(path)]
        files = tuple(map(plugin_file, self.detectors)) if "--detector" in what else ()
        return Step(f"{model.name}.{name}", tuple(command), phase, needs, files, made, model.name)


def own_judges(judge: str | Sequence[str]) -> list[str]:
    """Return the judges that are a user's own, "path/to/file.py:function", among one or several."""
    names = judge.split(",") if isinstance(judge, str) else judge
    return [name for name in names if is_plugin(name)]


def judge_files(judge: str | Sequence[str]) -> tuple[str, ...]:
    """Return the files of the judges that are a user's own."""
    return tuple(map(plugin_file, own_judges(judge)))


# --- reading ----------------------------------------------------------------------------------


def load_experiment(path: str | Path) -> Experiment:
    """Read and check `configs/<name>.json`, all stage-1 settings too; UserError names the key."""
    raw = read_json(Path(path), by_hand=True)
    if not isinstance(raw, dict):
        raise UserError(f'"{path}" must hold a JSON object')
    if "\\u0000" in json.dumps(raw):
        raise UserError(f'"{path}" holds a character of code 0, which no path may hold')
    content = {"name": Path(path).stem, **raw}
    for key in ("ablations", "slurm"):
        if content.get(key, ()) is None:  # as measures: none
            del content[key]
    for key, kind in (("measures", Measures), ("ablations", Ablations), ("slurm", Slurm)):
        if content.get(key) is not None:
            content[key] = _build(kind, content[key], f'{path}: "{key}"')
    models = content.get("models")
    if not isinstance(models, list) or not models:
        raise UserError(f'{path}: "models" must list at least one {{"name", "model_path"}}')
    content["models"] = tuple(_build(Model, model, f'{path}: "models"') for model in models)
    experiment = _build(Experiment, content, str(path))
    for fault in _faults(experiment, str(path)):
        raise UserError(f"{path}: {fault}")
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
        usual = str if entry.default is MISSING and entry.type == "str" else type(entry.default)
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


def _faults(experiment: Experiment, where: str) -> Iterator[str]:
    """Yield what is wrong in the values of an experiment; UserError for settings of stage 1."""
    if not isinstance(experiment.dialogues, dict):
        yield '"dialogues" must hold the settings of stage 1'
    if taken := {"model_path", "output_dir"} & experiment.dialogues.keys():
        yield f'"dialogues": {", ".join(sorted(taken))} is set per model'
    if experiment.token_key not in TOKEN_KEYS:
        yield f'"token_key" must be one of {", ".join(TOKEN_KEYS)}'
    for key in ("turn_scorers", "methods"):
        names = [name.strip() for name in getattr(experiment, key).split(",")]
        if names != ["all"] and BASE_SCORER not in names:
            yield f'"{key}" must name {BASE_SCORER}, whose trajectories SpikeScore is of'
    for key in ("probe_seeds", "draws", "jobs"):
        if getattr(experiment, key) < 1:
            yield f'"{key}" must be a whole number of at least 1'
    held_out = (experiment.val_fraction, experiment.test_fraction)
    if not (all(0 < share < 1 for share in held_out) and sum(held_out) < 1):
        yield '"val_fraction" and "test_fraction" must be above 0, and below 1 together'
    wanted, slurm = experiment.ablations, experiment.slurm
    if wanted.shuffled < 0:
        yield '"ablations": "shuffled" must be a number of orders, 0 or more'
    for key, values, kinds in (
        ("detectors", experiment.detectors, str), ("schedules", wanted.schedules, str),
        ("judges", wanted.judges, str), ("temperatures", wanted.temperatures, int | float),
    ):  # fmt: skip
        if not all(isinstance(one, kinds) and not isinstance(one, bool) for one in values):
            yield f'"{key}" must be a list of {"texts" if kinds is str else "numbers"}'
    for key in ("options", "scoring"):
        options = getattr(slurm, key)
        values = options.values() if isinstance(options, dict) else [options]
        if not all(isinstance(one, str | int | None) and str(one).isprintable() for one in values):
            yield (
                f'"slurm": "{key}" must hold options of sbatch by name, each a text, a '
                'number, true or null, such as {"partition": "gpu", "time": "24:00:00"}'
            )
    if not all(isinstance(line, str) for line in slurm.lines):
        yield '"slurm": "lines" must hold lines of text'
    names = [model.name for model in experiment.models]
    if len(set(names)) < len(names):
        yield 'two of the "models" have one name'
    for key, named in (("name", [experiment.name]), ("models", names)):
        if any("/" in one or not one.strip(". ") or not one.isprintable() for one in named):
            yield f'a name ("{key}") must be fit for a folder, without "/"'
    for model in experiment.models:
        if model.published not in (None, *MODELS):
            yield f'"published" is "{model.published}"; use one of {", ".join(MODELS)}, or null'
        config = parse_config(experiment.stage_config(model), source=f"{where} ({MAIN})")
        if not isinstance(config.dataset_path, list):
            yield '"dataset_path" must list one file per domain'
        for variant in experiment.variants():
            source = f"{where} ({variant.name})"
            parse_config(experiment.stage_config(model, variant), source=source)
    variants = Counter(variant.name for variant in experiment.variants())
    for name, n in variants.items():
        if n > 1:
            yield f'"ablations" asks for "{name}" twice; name it once'
