"""A probe as a hub takes it: safetensors and a model card, without local paths or secrets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from spikescore.files import write_atomic
from spikescore.packing import made_whole
from spikescore.pairs import for_all_eyes
from spikescore.probes.probe import Probe
from spikescore.probes.report import summary

FILE = "probe.safetensors"
PAPER = (
    "Deng, Fang, Li, Chen: *Beyond In-Domain Detection: SpikeScore for Cross-Domain Hallucination "
    "Detection*, ICLR 2026, arXiv 2601.19245"
)
_SCORES = {
    "saplma": "the probability that the answer is hallucinated",
    "sep-logistic": "the probability that semantic entropy is high",
    "sep-mlp": "an estimate of semantic entropy, in nats",
}


def publish_probe(probe: Probe, folder: Path, *, repo_id: str, license: str) -> list[Path]:
    """Write `probe.safetensors` and its card, README.md, to a new folder; return both paths.

    What is written gives the same scores, and knows the questions that it was trained on by id and
    digest; of paths only the last part is left, of keys and passwords nothing. UserError where the
    folder holds something.
    """
    probe = _public(probe)
    card = model_card(probe, repo_id=repo_id, license=license)
    with made_whole(folder, "exporting") as work:
        probe.save(work / FILE)
        write_atomic(work / "README.md", card.encode())
    return [folder / FILE, folder / "README.md"]


def _public(probe: Probe) -> Probe:
    """Return the probe without local paths, keys and passwords."""
    training = {key: value for key, value in probe.training.items() if key != "dirs"}
    shown = {"model": probe.model, "training": training, "metrics": probe.metrics,
             "dialogues": probe.dialogues}  # fmt: skip
    return replace(probe, **for_all_eyes(shown))


def model_card(probe: Probe, *, repo_id: str, license: str) -> str:
    """Return the card in the hub's form: what the probe is, reads, was trained on and is worth."""
    from huggingface_hub import ModelCardData

    tags = ["spikescore", "hallucination-detection", "probe", probe.kind]
    head = ModelCardData(license=license, library_name="spikescore-ghd", tags=tags).to_yaml()
    name, model = repo_id.rpartition("/")[2], probe.model or "a model that its file does not name"
    operations = [f"{op[0]} {op[1].shape[1]}-{op[1].shape[0]}" if op[0] == "linear" else op[0]
                  for op in probe.weights]  # fmt: skip
    identity = ", ".join(f"{part} `{digest}`" for part, digest in probe.identity.items())
    rows = [
        ("kind", probe.kind),
        ("states of", f"{model}{f' ({identity})' if identity else ''}"),
        ("width, layers", f"{_or(probe.hidden_size)}, {_or(probe.n_layers)}"),
        ("token", _or(probe.token_key)),
        ("layers read", f"{_layers(probe)} (0 = embedding output)"),
        ("features", f"{probe.input_dim}, {'as they are' if probe.mean is None else 'standardised'}"
         ),
        ("network", ", ".join(operations)),
        ("score", f"{_SCORES[probe.kind]}; higher means more hallucinated"),
        ("threshold λ of SpikeScore", "none" if probe.spike_threshold is None
         else f"{probe.spike_threshold:.4f}; flag when SpikeScore >= λ"),
        ("seed", _or(probe.seed)),
    ]  # fmt: skip
    domains = ", ".join(probe.train_domains) or "domains that its file does not name"
    return "\n".join([
        "---", head.strip(), "---", "", f"# {name}", "",
        f"A probe that reads a hidden state of {model} and says how doubtful the answer is. The "
        "largest second difference of its scores over the turns of a dialogue is SpikeScore "
        f"({PAPER}).", "",
        *_table("what", "value", rows),
        "## What it was trained on", "",
        f"First answers of {model} to questions of: {domains}. Ids and digests of these questions "
        "are in the file, so that they are known again and never count as unseen; no text of a "
        "question or an answer is.", "",
        "## How its dialogues were held", "", *_held(probe),
        "## What it is worth", "", *_worth(probe),
        "Validation chose layers, epoch and λ, so its figures flatter; the test split is of the "
        "same domains. What it is worth on other domains these figures do not say.", "",
        "## How to use it", "",
        f"It scores the states of exactly this model, at this token and these layers; others are "
        f"refused. In the project SpikeScore-GHD, with this repository in `./{name}` and dialogues "
        "in `./outputs`:", "",
        "```text",
        f"python metrics_probe.py --json_dir ./outputs --pkl_dir ./outputs "
        f"--probe_path ./{name}/{FILE}",
        "```", "",
        "A score is no proof. λ belongs to dialogues held as above; other settings, languages, "
        "passages or lengths of answers move the scores. It is not for decisions about people.", "",
    ])  # fmt: skip


def _held(probe: Probe) -> list[str]:
    config, several = probe.dialogues.get("config", {}), probe.dialogues.get("several", [])
    if not (config or several):
        return ["Its file does not say.", ""]
    rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in config.items()]
    rows += [(key, "not the same for all of them") for key in several]
    return _table("setting", "value", rows)


def _worth(probe: Probe) -> list[str]:
    known = {"val", "test", "starts", "spike_threshold", "epoch"} <= probe.metrics.keys()
    if not (known and {"n", "hallucination_rate", "left_out"} <= probe.training.keys()):
        return ["Its file does not say.", ""]
    return ["```text", summary(probe), "```", ""]


def _table(first: str, second: str, rows: list[tuple[str, str]]) -> list[str]:
    cells = [f"| {name} | {' '.join(value.split()).replace('|', chr(92) + '|')} |"
             for name, value in rows]  # fmt: skip
    return [f"| {first} | {second} |", "|---|---|", *cells, ""]


def _layers(probe: Probe) -> str:
    if probe.layers or not probe.layer_range:
        return _or(probe.layers)
    first, last = probe.layer_range
    return str(first) if first == last else f"{first} to {last}, both included"


def _or(value: Any) -> str:
    if value is None:
        return "not said"
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
