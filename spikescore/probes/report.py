"""What a reader gets of a trained probe: its file, report (JSON), summary, and layer curve."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikescore.errors import UserError
from spikescore.files import write_atomic, write_json
from spikescore.probes.probe import Probe
from spikescore.probes.training import Settings, train_probe
from spikescore.stats.roc import MIN_PER_CLASS, questions_needed

DPI = 150


@dataclass
class ProbeTrainer:
    """Train a probe and keep it: `train_from_directories`, then `save_models`.

    `best` is the probe of the best validation epoch, `last` that of the last epoch; both are None
    before training.
    """

    settings: Settings = field(default_factory=Settings)
    best: Probe | None = None
    last: Probe | None = None

    def train_from_directories(
        self, directories: Sequence[str | Path], dataset_names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Train on all directories pooled, a data set name each; return the report."""
        self.best, self.last = train_probe(directories, self.settings, dataset_names=dataset_names)
        return report(self.best)

    def save_models(self, save_dir: str | Path, prefix: str) -> Path:
        """Write <prefix>_best.pkl and <prefix>_last.pkl with reports; return the best's path."""
        if self.best is None or self.last is None:
            raise UserError("nothing to save: call train_from_directories first")
        save_with_report(self.last, Path(save_dir) / f"{prefix}_last.pkl")
        return save_with_report(self.best, Path(save_dir) / f"{prefix}_best.pkl")[0]


def save_with_report(probe: Probe, path: str | Path) -> list[Path]:
    """Write probe, report (.json) and, of several layers, their curve (.png); return the paths."""
    path = Path(path)
    probe.save(path)
    write_json(path.with_suffix(".json"), report(probe))
    written = [path, path.with_suffix(".json")]
    curve = path.with_suffix(".png")
    if len(_single_layers(probe)) > 1:
        draw_curve(probe, curve)
        return [*written, curve]
    curve.unlink(missing_ok=True)  # of the probe that this one replaces
    return written


def report(probe: Probe) -> dict[str, Any]:
    """Return all that a probe says of itself except its weights and its list of questions."""
    named = ("kind", "model", "identity", "hidden_size", "n_layers", "token_key", "layer_range")
    told = {name: getattr(probe, name) for name in (*named, "layers", "seed")}
    lists = ("items", "questions")
    return {
        **told,
        "standardised": probe.mean is not None,
        "training": {name: value for name, value in probe.training.items() if name not in lists},
        "metrics": probe.metrics,
        "spike_threshold": probe.spike_threshold,
        "dialogues": probe.dialogues,
    }


def summary(probe: Probe) -> str:
    """Return the lines that the trainer prints when it is done."""
    metrics = probe.metrics
    epoch = f", epoch {metrics['epoch']}" if metrics["epoch"] else ""
    layers = ",".join(map(str, probe.layers or probe.layer_range))
    where = f"layers {layers} of 0..{probe.n_layers}{epoch}"
    rows = [("items", _sizes(probe)), ("probe", f"{probe.kind}, {probe.token_key}, {where}")]
    subject = ""
    if "entropy_threshold" in probe.training:
        rates = probe.training["high_entropy_rate"]
        shares = ", ".join(f"{split} {rate:.0%}" for split, rate in rates.items())
        gamma = probe.training["entropy_threshold"]
        rows.append(("entropy", f"high means above {gamma:.4f} nats (train split): {shares}"))
        subject = " of high entropy"
    chosen_on = " (layers and epoch were chosen on it)" if epoch else " (layers were chosen on it)"
    rows.append(("validation", f"AUROC{subject} {_figure(metrics['val'])}{chosen_on}"))
    rows.append(("test", f"AUROC{subject} {_figure(metrics['test'])}"))
    if "against_accuracy" in metrics:
        rows.append(("", f"AUROC of wrong answers {_figure(metrics['against_accuracy']['test'])}"))
    for name in ("pearson", "spearman"):
        if "test" in metrics.get(name, {}):
            text = f"{name.title()} with entropy {_figure(metrics[name]['test'])}"
            rows.append(("", text))
    if len(metrics["starts"]) > 1:
        areas = ", ".join(f"{start['test_auroc']:.3f}" for start in metrics["starts"])
        rows.append(("starts", f"test AUROC {areas}; kept: the best on validation"))
    if lacking := _lacking(probe):
        rows.append(("missing", lacking))
    rows.append(("lambda", _threshold(metrics["spike_threshold"])))
    return "\n".join(f"{name:<12}{text}" for name, text in rows)


def _lacking(probe: Probe) -> str:
    """Return which splits are too small for an AUROC, and how many more questions it takes."""
    training = probe.training
    rates = training.get("high_entropy_rate", training["hallucination_rate"])
    needed = f"{MIN_PER_CLASS} hallucinated and {MIN_PER_CLASS} consistent first answers"
    if "high_entropy_rate" in training:
        needed = f"{MIN_PER_CLASS} answers of high entropy and {MIN_PER_CLASS} of low"
    total, counts, missing = sum(training["n"].values()), [], 0
    for split in ("val", "test"):
        n, rate = training["n"][split], rates[split]
        if rate is None or probe.metrics[split]["value"] is not None:
            continue
        positive = round(n * rate)
        counts.append(f"{split} has {positive} and {n - positive}")
        if 0 < positive < n:
            missing = max(missing, questions_needed(positive / n, n / total) - total)
    if not counts:
        return ""
    more = f"; about {missing} questions more at this rate" if missing else ""
    return f"an AUROC takes {needed}, {', '.join(counts)}{more}"


def _sizes(probe: Probe) -> str:
    training = probe.training
    sizes = []
    for split, n in training["n"].items():
        rate = training["hallucination_rate"][split]
        told = "none judged" if rate is None else f"{rate:.0%} hallucinated"
        sizes.append(f"{split} {n} ({told})")
    left_out = ", ".join(f"{n} {reason}" for reason, n in training["left_out"].items() if n)
    return ", ".join(sizes) + (f"; left out: {left_out}" if left_out else "")


def _figure(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        note = figure["note"]  # that a class has too few is said once, in `_lacking`
        return note.partition(":")[0] if note.endswith("of each needed") else note
    low, high = figure["low"], figure["high"]
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
    return f"{figure['value']:.3f}{interval} n={figure['n']}"


def _threshold(threshold: dict[str, Any]) -> str:
    if threshold["value"] is None:
        return threshold["note"]
    return (
        f"{threshold['value']:.4f} (balanced accuracy {threshold['balanced_accuracy']:.3f} "
        f"on {threshold['n']} validation dialogues)"
    )


# --- the curve --------------------------------------------------------------------------------


def _single_layers(probe: Probe) -> dict[int, float]:
    """Return the best validation AUROC of each layer that was tried by itself."""
    areas = probe.metrics["val_auroc_by_layers"]
    return {int(name): max(values) for name, values in areas.items() if name.isdecimal()}


def draw_curve(probe: Probe, path: Path) -> None:
    """Write a PNG of the validation AUROC over layers, with the window tried and the choice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    singles = _single_layers(probe)
    axis.plot(list(singles), list(singles.values()), "o-", color="#0072B2", label="single layer")
    for name, values in probe.metrics["val_auroc_by_layers"].items():
        first, dash, last = name.partition("-")
        if dash:
            ends = [int(first), int(last)]
            label = f"layers {name} together"
            axis.plot(ends, [max(values)] * 2, "-", color="#D55E00", linewidth=3, label=label)
    first, last = probe.layer_range
    axis.axvspan(first - 0.5, last + 0.5, color="0.9", zorder=0, label="chosen")
    axis.axhline(0.5, color="0.6", linestyle=":", linewidth=1)
    axis.set_xlabel(f"layer (of {probe.n_layers})")
    n = probe.training["n"]["val"]
    axis.set_ylabel(f"validation AUROC (n = {n})")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8)
    title = f"{probe.kind}, {probe.token_key}"
    if probe.metrics["val"]["value"] is None:
        title += f"\nonly {n} validation items: which layer is best is mostly chance"
    axis.set_title(title, fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    write_atomic(path, data.getvalue())
