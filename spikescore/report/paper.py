"""Figures published for SpikeScore, to print beside ours; nothing is tuned to hit them.

Mean cross-domain AUROC over six training domains at K = 20, base scorer SAPLMA, 1,000 questions per
domain, as public notes on the paper (Deng et al., ICLR 2026, arXiv 2601.19245) give them. Whether a
cell pools the five test domains or averages their AUROCs is not settled by the notes, so the same
figure stands beside both views.
"""

from __future__ import annotations

PAPER_METHODS = ("perplexity", "saplma", "prism", "icr_probe", "spike_score")
_MAIN = {
    "Llama-3.2-3B-Instruct": (0.5953, 0.5693, 0.6953, 0.7463, 0.7474),
    "Llama-3.1-8B-Instruct": (0.6425, 0.5764, 0.7029, 0.7439, 0.7860),
    "Qwen3-8B": (0.6111, 0.5705, 0.7032, 0.7381, 0.7473),
    "Qwen3-14B": (0.6302, 0.5787, 0.7072, 0.7435, 0.7874),
}
_BASE_SCORERS = {
    "Llama-3.1-8B-Instruct": {
        "saplma": 0.7860,
        "sep": 0.7684,
        "reasoning_score": 0.7595,
        "perplexity": 0.7160,
    },
}
MODELS = tuple(_MAIN)
SHAPES = {
    "Llama-3.2-3B-Instruct": (28, 3072),
    "Llama-3.1-8B-Instruct": (32, 4096),
    "Qwen3-8B": (36, 4096),
    "Qwen3-14B": (40, 5120),
}
"""Layers and width of the paper's models, as their config.json say."""


def published(model: str | None, method: str) -> float | None:
    """Return the mean cross-domain AUROC published for a method of the main table, else None."""
    row = dict(zip(PAPER_METHODS, _MAIN.get(model or "", ()), strict=False))
    return row.get(method)


def published_base_scorer(model: str | None, scorer: str) -> float | None:
    """Return the mean cross-domain AUROC published for SpikeScore over a base scorer, else None."""
    return _BASE_SCORERS.get(model or "", {}).get(scorer)


BASE_SCORER = "saplma"
"""The scorer under SpikeScore in the main table, as in the paper."""
