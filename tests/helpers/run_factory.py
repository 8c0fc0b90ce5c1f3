"""Synthetic run folders of generate_answers.py whose signal is planted, hence known.

Discrete semantic entropy is the one that the sampled answers' clusters have. The most likely
answer's state carries it at one layer, along one fixed direction; all else is unit noise. The
answer is wrong where the entropy is above its middle, but for every tenth question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spikescore.measures.formulas import sample_measures
from spikescore.measures.run_folder import (
    POSITIONS,
    write_details,
    write_generations,
    write_measures,
)
from spikescore.runtime import derived_seed

CLUSTERINGS = ([0] * 10, [0] * 8 + [1] * 2, [0] * 5 + [1] * 5, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
               list(range(10)))  # fmt: skip
"""From certain to all different: entropies 0, .50, .69, 1.61 and 2.30."""
MODEL = "./models/synthetic"


def make_entry(item: int, level: int, states: dict[str, np.ndarray], domain: str) -> dict[str, Any]:
    """Return one question's entry, its samples clustered as CLUSTERINGS[level] says."""
    wrong = (level >= 3) != (item % 10 == 9)
    return {
        "question": f"What is {domain}-{item}?",
        "context": None,
        "reference": {"answers": {"text": ["gold"]}, "id": f"{domain}-{item}"},
        "group": None,
        "domain": domain,
        "most_likely_answer": {
            "response": f"answer {item}",
            "token_log_likelihoods": [-0.1, -0.2],
            "embedding": states["emb_tok_before_eos"][-1, 0],
            "accuracy": 0.0 if wrong else 1.0,
            **states,
        },
        "responses": [(f"meaning {c}", [-0.5], None, None) for c in CLUSTERINGS[level]],
    }


def make_run(
    folder: Path,
    *,
    n: int = 200,
    layers: int = 4,
    hidden: int = 8,
    signal_layer: int = 2,
    signal: float = 4.0,
    domain: str = "nq",
    seed: int = 0,
    n_train: int = 0,
) -> dict[str, Any]:
    """Write a run of n validation questions (and n_train in the train file); return validation."""
    rng = np.random.default_rng(derived_seed(seed, domain, "run"))
    direction = np.random.default_rng(hidden).standard_normal(hidden)
    direction /= np.linalg.norm(direction)
    splits: dict[str, dict] = {}
    measures: dict[str, dict[str, list]] = {}
    for split, count, start in (("train", n_train, n), ("validation", n, 0)):
        entries, lists = {}, {}
        for item in range(start, start + count):
            level = int(rng.integers(len(CLUSTERINGS)))
            ids = CLUSTERINGS[level]
            own = sample_measures(["x"] * 10, [[-0.5]] * 10, ids)
            for name, value in own.items():
                lists.setdefault(name, []).append(value)
            states = {}
            for position in POSITIONS.values():
                state = rng.standard_normal((layers + 1, 1, hidden))
                state[signal_layer, 0] += (
                    signal * (own["cluster_assignment_entropy"] - 1) * direction
                )
                states[position] = state.astype(np.float16)
            entries[f"{domain}-{item}"] = make_entry(item, level, states, domain)
        splits[split], measures[split] = entries, lists
        write_generations(folder, split, entries)
    write_measures(
        folder,
        {
            "uncertainty_measures": measures["validation"],
            "ids": list(splits["validation"]),
            "train_uncertainty_measures": measures["train"],
            "train_ids": list(splits["train"]),
        },
    )
    details = {"model": MODEL, "n_layers": layers, "hidden_size": hidden, "args": {"dataset": "nq"}}
    write_details(folder, details)
    return splits["validation"]
