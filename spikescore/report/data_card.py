"""What a published export says of itself: the hub's data card, and MLCommons Croissant metadata.

Croissant 1.0 (http://mlcommons.org/croissant/1.0) with the fields of its extension for responsible
AI (http://mlcommons.org/croissant/RAI/1.0): the files with size and SHA-256, every column of every
table, how the dialogues were held, what set the labels, what is missing and what not to use it for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spikescore.report.content import Table
from spikescore.report.text import markdown_table
from spikescore.shards import Part


@dataclass(frozen=True)
class Column:
    """A column of a table. `kind`: text, texts, whole, number, numbers or truth; `private` where it
    holds a data set's or a model's text.
    """

    name: str
    kind: str
    about: str
    private: bool = False


@dataclass
class Published:
    """What an export holds, and what it leaves out. `rates` has (labelled, hallucinated, all) of
    each domain; `settings` the values, as JSON, of each setting that decides how dialogues go.
    """

    repo_id: str
    license: str
    texts: bool
    files: dict[str, Part] = field(default_factory=dict)
    columns: dict[str, tuple[Column, ...]] = field(default_factory=dict)
    rows: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)
    damaged: list[Path] = field(default_factory=list)
    hidden: int = 0
    """Texts in which something that looks like a key or password was replaced."""
    models: Counter = field(default_factory=Counter)
    judges: Counter = field(default_factory=Counter)
    rates: dict[str, Counter] = field(default_factory=dict)
    settings: dict[str, set[str]] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)


HUB = "https://huggingface.co/datasets"
CITATION = (
    "@inproceedings{deng2026spikescore, title={Beyond In-Domain Detection: SpikeScore for "
    "Cross-Domain Hallucination Detection}, author={Deng, Yongxin and Fang, Zhen and Li, Yixuan "
    "and Chen, Ling}, booktitle={ICLR}, year={2026}, note={arXiv 2601.19245}}"
)
VERSION = "1.0.0"
_TYPES = {
    "text": "sc:Text",
    "texts": "sc:Text",
    "whole": "sc:Integer",
    "number": "sc:Float",
    "numbers": "sc:Float",
    "truth": "sc:Boolean",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
ABOUT = {
    "items": "A row for each dialogue: what it is about, and the label of its first answer.",
    "turns": "A row for each turn of a dialogue.",
    "scores": "What each method gave each first answer.",
    "turn_scores": "What each per-turn scorer gave each dialogue.",
}


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({n:,})" for name, n in counts.items())


# --- sentences that both say --------------------------------------------------------------------


def _summary(found: Published) -> str:
    held = "prompts, answers, labels and scores" if found.texts else "labels and scores, no texts,"
    n = found.rows["items"]
    return (
        f"{n:,} multi-turn dialogues ({found.rows['turns']:,} turns) of {_told(found.models)}: a "
        "chat model answers a question, generic follow-up prompts keep the dialogue going. With "
        f"{held} for detecting hallucinated first answers across domains (SpikeScore)."
    )


def _collection(found: Published) -> str:
    same = {key: next(iter(values)) for key, values in found.settings.items() if len(values) == 1}
    named = ("max_steps", "strategy", "schedule", "temperature", "top_p", "max_new_tokens")
    told = ", ".join(f"{key} {same[key]}" for key in named if key in same)
    leaked = "true" in found.settings.get("leak_answer", ())
    shown = "The first prompt of some or all shows the reference answer." if leaked else ""
    return (
        "Held by a program: a chat model answers each question, then answers generic follow-up "
        f"prompts that know nothing of the right answer{f' ({told})' if told else ''}. "
        + (shown or "Reference answers are in no prompt.")
    )


def _raw(found: Published) -> str:
    sizes = _told({name or "not said": rate["all"] for name, rate in found.rates.items()})
    return (
        f"Questions of these sets, a domain each: {sizes}. They are other people's, each under its "
        "own licence."
    )


def _missing(found: Published) -> str:
    labelled = sum(rate["labelled"] for rate in found.rates.values())
    parts = [f"{found.rows['items'] - labelled:,} of {found.rows['items']:,} dialogues have no "
             "label (no judge could read the answer, or there is no reference)"]  # fmt: skip
    if found.left_out:
        parts.append(f"left out: {_told(found.left_out)}")
    if found.damaged:
        parts.append(f"{len(found.damaged):,} files could not be read")
    if not found.texts:
        parts.append("all texts (questions, references, prompts, answers) are left out on purpose")
    if found.hidden:
        parts.append(f"{found.hidden:,} texts have *** for what looks like a key or password")
    return "; ".join(parts) + ". A missing figure is null and never replaced."


def _labels(found: Published) -> str:
    return (
        "One label a dialogue, of its first answer alone: hallucinated means not consistent with "
        f'the reference answer. Set by: {_told(found.judges) or "nothing"}. "exact", "numeric" '
        "and the like are rules, others chat or entailment models; no person has labelled."
    )


def _biases(found: Published) -> str:
    shares = [f"{name or 'not said'} {rate['hallucinated'] / rate['labelled']:.0%}"
              for name, rate in found.rates.items() if rate["labelled"]]  # fmt: skip
    return (
        f"Hallucination rates differ between domains ({', '.join(shares) or 'no labels'}), so that "
        "a score which knows only the domain does well in a pool of them: compare within domains."
    )


LIMITS = (
    "The labels are a machine's and contain errors; an answer that a limit cut off may be labelled "
    "for that. The dialogues are of these models, prompts and settings, and say nothing of others. "
    "Answers contain falsehoods; they are no source of facts and not fit to train a model on as "
    "if they were."
)
USES = (
    "Research on detecting hallucinations: to compare methods, across domains, on the same items. "
    "Not for decisions about people, and not to certify a model."
)
IMPACT = (
    "Better detection helps people to doubt answers that deserve it; a detector that is trusted "
    "beyond its domains does the opposite."
)
PERSONAL = (
    "The question sets may name public persons. Nothing was collected from people for this; the "
    "texts were not screened for personal information."
)


# --- the card -----------------------------------------------------------------------------------


def data_card(found: Published) -> str:
    """Return README.md as the hub reads it: YAML with a configuration for each table, then text."""
    from huggingface_hub import DatasetCardData

    n = found.rows["items"]
    size = next((name for most, name in _SIZES if n < most), "n>1M")
    name = found.repo_id.rpartition("/")[2]
    head = DatasetCardData(
        license=_tag(found.license),
        pretty_name=name,
        tags=["spikescore", "hallucination-detection", "croissant"],
        size_categories=[size],
        configs=[{"config_name": table, "data_files": part.name, **({"default": True}
                  if table == "items" else {})} for table, part in found.files.items()],
    )  # fmt: skip
    link = "" if found.license == _tag(found.license) else f"\nLicence: {found.license}\n"
    tables = [
        Table(f"`{table}`", ("column", "what"), tuple(
            (column.name, column.about) for column in columns))
        for table, columns in found.columns.items()
    ]  # fmt: skip
    rates = Table("Domains", ("domain", "dialogues", "labelled", "hallucinated"), tuple(
        (name or "not said", f"{rate['all']:,}", f"{rate['labelled']:,}",
         f"{rate['hallucinated'] / rate['labelled']:.0%}" if rate["labelled"] else "")
        for name, rate in found.rates.items()))  # fmt: skip
    settings = Table("Settings", ("setting", "value"), tuple(
        (key, next(iter(values)) if len(values) == 1 else f"{len(values)} values")
        for key, values in found.settings.items()))  # fmt: skip
    methods = Table("Methods", ("method", "title"), tuple(found.methods.items()))
    parts = [
        f"---\n{head.to_yaml().strip()}\n---\n\n# {name}\n\n{_summary(found)}\n{link}",
        "## What is in it\n\nThe column `item` joins the tables.\n",
        *(f"### {table.caption}, {found.rows[table.caption.strip('`')]:,} rows\n\n"
          f"{ABOUT[table.caption.strip('`')]}\n\n{markdown_table(table)}" for table in tables),
        *([f"### Methods in `scores`\n\n{markdown_table(methods)}"] if found.methods else []),
        f"## How it was made\n\n{_collection(found)} {_raw(found)}\n",
        *([markdown_table(settings)] if found.settings else []),
        f"## Labels\n\n{_labels(found)}\n\n{markdown_table(rates)}",
        f"## What is missing\n\n{_missing(found)}\n",
        f"## Uses and limits\n\n{USES} {LIMITS} {_biases(found)} {IMPACT} {PERSONAL}\n",
        f"## Citation\n\n```bibtex\n{CITATION}\n```\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _tag(license: str) -> str:
    """Return a licence as the hub names it: an SPDX identifier in small letters, or "other"."""
    return "other" if "/" in license else license.lower()


# --- Croissant ----------------------------------------------------------------------------------

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        name: f"cr:{name}"
        for name in (
            "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject",
            "fileProperty", "fileSet", "format", "includes", "isLiveDataset", "jsonPath", "key",
            "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace",
            "samplingRate", "separator", "source", "subField", "transform",
        )
    },
}  # fmt: skip
CONFORMS = ("http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0")


def croissant(found: Published) -> dict[str, Any]:
    """Return the Croissant metadata as JSON-LD."""
    owner, _, name = found.repo_id.rpartition("/")
    spdx = f"https://spdx.org/licenses/{found.license}.html"
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS),
        "name": name,
        "description": _summary(found),
        "license": found.license if "/" in found.license or found.license == "other" else spdx,
        "url": f"{HUB}/{found.repo_id}",
        "creator": {"@type": "sc:Organization", "name": owner},
        "datePublished": datetime.now(UTC).strftime("%Y-%m-%d"),
        "version": VERSION,
        "keywords": ["hallucination detection", "large language models", "SpikeScore"],
        "citeAs": CITATION,
        "isLiveDataset": False,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": part.name,
                "name": Path(part.name).name,
                "contentUrl": part.name,
                "contentSize": f"{part.size} B",
                "encodingFormat": "application/x-parquet",
                "sha256": part.sha256,
            }
            for part in found.files.values()
        ],
        "recordSet": [
            _records(table, part, found.columns[table]) for table, part in found.files.items()
        ],
        "rai:dataCollection": _collection(found),
        "rai:dataCollectionType": ["Experiments", "Software Collection"],
        "rai:dataCollectionRawData": _raw(found),
        "rai:dataCollectionMissingData": _missing(found),
        "rai:dataImputationProtocol": "None: what is missing is null.",
        "rai:dataPreprocessingProtocol": [
            "Dialogues that were not finished are left out; texts and figures are as they were "
            "generated and computed."
        ],
        "rai:dataAnnotationProtocol": _labels(found),
        "rai:machineAnnotationTools": list(found.judges) or ["none"],
        "rai:annotationsPerItem": "0 by people, at most 1 by a machine",
        "rai:dataBiases": [_biases(found)],
        "rai:dataLimitations": [LIMITS],
        "rai:dataUseCases": [USES],
        "rai:dataSocialImpact": IMPACT,
        "rai:personalSensitiveInformation": [PERSONAL],
        "rai:dataReleaseMaintenancePlan": [
            "A snapshot: it is made anew, under another version, when labels or scores change."
        ],
    }


def _records(table: str, part: Part, columns: Iterable[Column]) -> dict[str, Any]:
    key = ["item"] + ["turn"] * (table == "turns")
    if table in ("scores", "turn_scores"):
        key += ["book", "method" if table == "scores" else "scorer", "training_domain"]
        key += ["probe_seed"]
    return {
        "@type": "cr:RecordSet",
        "@id": table,
        "name": table,
        "description": ABOUT[table],
        "key": [{"@id": f"{table}/{name}"} for name in key],
        "field": [_field(table, part, column) for column in columns],
    }


def _field(table: str, part: Part, column: Column) -> dict[str, Any]:
    kind = _TYPES[column.kind]
    told = {
        "@type": "cr:Field",
        "@id": f"{table}/{column.name}",
        "name": column.name,
        "description": column.about,
        "dataType": [kind, "cr:Label"] if column.name == "hallucinated" else kind,
        "source": {"fileObject": {"@id": part.name}, "extract": {"column": column.name}},
    }
    if column.kind in ("texts", "numbers"):
        told["repeated"] = True
    if column.name == "item" and table != "items":
        told["references"] = {"field": {"@id": "items/item"}}
    return told
