"""Synthetic pairs on disk whose signal is planted, hence known.

Labels alternate, so that half of the items are hallucinated. The state of the first answer carries
the label at one layer, along one fixed direction, with a gap of 2 * `signal` standard deviations
between the classes; later turns swing along the same direction, more widely where the item is
hallucinated. All other layers and directions are unit noise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.pairs import TOKEN_KEYS, write_pair
from spikescore.runtime import derived_seed

MODEL = "./models/synthetic"


def make_pairs(
    folder: Path,
    *,
    n: int = 60,
    turns: int = 5,
    layers: int = 4,
    hidden: int = 8,
    domain: str = "toy",
    seed: int = 0,
    signal: float = 4.0,
    signal_layer: int = 2,
    group_size: int = 1,
    model: str = MODEL,
) -> list[dict[str, Any]]:
    """Write n finished pairs and return their records; item i is hallucinated when i is odd.

    States are [layers + 1, hidden] for each of the three token keys, at every turn. `group_size`
    items in a row share a group. The planted direction depends on `hidden` alone, so that a probe
    can be carried from one domain to another.
    """
    rng = np.random.default_rng(derived_seed(seed, domain, "pairs"))
    direction = np.random.default_rng(hidden).standard_normal(hidden)
    direction /= np.linalg.norm(direction)
    records = []
    for item in range(n):
        y = item % 2
        record = make_record(f"{domain}-{item:04d}", y=y, turns=turns, domain=domain, model=model)
        record["group"] = f"{domain}-group-{item // group_size}"
        states = {}
        for turn in range(1, turns + 1):
            noise = rng.standard_normal((layers + 1, hidden))
            side = 2 * y - 1 if turn == 1 else rng.uniform(-1, 1) * (1 if y else 0.1)
            noise[signal_layer] += signal * side * direction
            states[turn] = {key: noise.astype(np.float16) for key in TOKEN_KEYS}
        write_pair(folder, record, states, model=model)
        records.append({**record, "complete": True})
    return records


def make_record(item_id: str, *, y: int | None, turns: int, domain: str, model: str) -> dict:
    """Return a finished dialogue's record in the form of stage 1, without states."""
    steps = [
        {
            "turn": turn,
            "prompt_type": "initial" if turn == 1 else "encouragement",
            "prompt": f"prompt {turn} of {item_id}",
            "response": f"answer {turn} of {item_id}",
            "n_prompt_tokens": 10 * turn,
            "n_response_tokens": 4,
            "finish_reason": "stop",
            "perplexity": 1.5,
            "mean_logprob": -0.4,
            "mean_token_entropy": 0.5,
            "max_token_entropy": 1.0,
            "first_token_confidence": 0.8,
            "metrics": {},
        }
        for turn in range(1, turns + 1)
    ]
    return {
        "id": item_id,
        "question": f"What is {item_id}?",
        "context": None,
        "choices": None,
        "gold_answers": ["gold"],
        "domain": domain,
        "group": item_id,
        "history": None,
        "model": model,
        "seed": 42,
        "config": {},
        "config_hash": "0" * 12,
        "cot_steps": steps,
        "nil_label": None if y is None else 1 - y,
        "nil_judge": {"judge": "exact"},
        "metrics": {},
    }


def write_sums(path: Path) -> Path:
    """Write twelve addition questions in the project's own form."""
    rows = [
        {
            "id": f"sum-{n}",
            "domain": "sums",
            "question": f"What is {n} plus {n + 1}?",
            "context": None,
            "choices": None,
            "gold_answers": [str(2 * n + 1)],
            "answer_type": "numeric",
            "group": f"sum-{n}",
            "history": [],
        }
        for n in range(40, 52)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_config(folder: Path, model: Path, questions: Path) -> Path:
    """Write a config.json of all questions, 5 turns of at most 8 tokens, into folder/outputs."""
    settings = {
        "model_path": str(model),
        "dataset_path": str(questions),
        "output_dir": str(folder / "outputs"),
        "sampling": {"strategy": "all", "n": None, "seed": 42},
        "max_steps": 5,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_p": 0.9,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path
