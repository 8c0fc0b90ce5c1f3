"""From a run's answers to its uncertainty measures: clusters, entropies, P(True), P(IK)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spikescore.errors import UserError
from spikescore.labels.entailment import Entailment
from spikescore.measures.clustering import cluster_many
from spikescore.measures.formulas import sample_measures
from spikescore.measures.run_folder import RunFolder, accuracy_of
from spikescore.measures.run_plan import MeasureSettings

log = logging.getLogger("spikescore")


def measure_run(
    run: RunFolder, entailment: Entailment, settings: MeasureSettings
) -> dict[str, Any]:
    """Return the content of uncertainty_measures.pkl for all questions of a run.

    Lists follow the order of `ids` (validation) and `train_ids`. A question of which a needed
    judgement failed is in `failed` and NaN in what needs clusters. P(IK) is there where it was
    asked for and there are training questions.
    """
    strict, condition_on_question = settings.strict_entailment, settings.condition_on_question
    measures: dict[str, Any] = {
        "entailment": entailment.name,
        "strict_entailment": strict,
        "condition_on_question": condition_on_question,
        "failed": [],
    }
    everything = [*run.validation.items(), *run.train.items()]
    if not any(len(entry["responses"]) > 1 for _, entry in everything):
        raise UserError(
            f'"{run.path}" holds no question with two sampled answers; generate with '
            "--num_generations 2 or more"
        )
    # one call for both splits: all their judgements are under way together
    clusters = cluster_many(
        [
            (
                entry["question"] if condition_on_question else None,
                [r[0] for r in entry["responses"]],
            )
            for _, entry in everything
        ],
        entailment,
        strict=strict,
    )
    n = len(run.validation)
    for split, prefix in ((slice(n), ""), (slice(n, None), "train_")):
        entries, ids = everything[split], clusters[split]
        if prefix and not entries:
            continue
        measures[f"{prefix}ids"] = [question_id for question_id, _ in entries]
        measures[f"{prefix}semantic_ids"] = ids
        measures[f"{prefix}uncertainty_measures"] = _lists(entries, ids)
        measures["failed"] += [
            key for (key, _), found in zip(entries, ids, strict=True) if not found
        ]
        name = "train_is_false" if prefix else "validation_is_false"
        measures[name] = [_is_wrong(entry) for _, entry in entries]
    if settings.compute_p_ik and run.train:
        measures["uncertainty_measures"]["p_ik"] = p_ik_scores(run, _is_wrong)
    if settings.compute_p_ik_answerable:
        scores = p_ik_scores(run, _is_unanswerable)
        measures["uncertainty_measures"]["p_ik_answerable"] = scores
    return measures


def _lists(
    entries: Sequence[tuple[str, dict[str, Any]]], clusters: Sequence[list[int] | None]
) -> dict[str, list[float]]:
    rows = []
    for (_, entry), ids in zip(entries, clusters, strict=True):
        answers = entry["responses"]
        row = sample_measures([r[0] for r in answers], [r[1] for r in answers], ids)
        if "p_true" in entry:
            row["p_true"] = entry["p_true"]
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def p_ik_scores(run: RunFolder, wrong: Callable[[dict[str, Any]], float | None]) -> list[float]:
    """P(IK) of the validation questions (see `p_ik`), learnt from the training questions.

    `wrong` is 1 or 0 for an entry, None where it is not known. Higher = LESS uncertain. NaN, with a
    warning, where the training questions are all of one class.
    """
    known = [entry for entry in run.train.values() if wrong(entry) is not None]
    y = np.array([wrong(entry) for entry in known])
    if len(set(y)) < 2:
        log.warning(
            "P(IK) is not computable: of %d training questions %d are of class 1; it needs both",
            len(y),
            int(y.sum()),
        )
        return [math.nan] * len(run.validation)
    train = np.stack([_prompt_state(entry) for entry in known])
    asked = np.stack([_prompt_state(entry) for entry in run.validation.values()])
    return p_ik(train, y, asked).tolist()


def _is_wrong(entry: dict[str, Any]) -> float | None:
    accuracy = accuracy_of(entry)
    return None if accuracy is None else 1.0 - accuracy


def _is_unanswerable(entry: dict[str, Any]) -> float:
    return float(not entry["reference"]["answers"]["text"])


def _prompt_state(entry: dict[str, Any]) -> np.ndarray:
    state = entry["most_likely_answer"]["emb_last_tok_before_gen"]
    return state.reshape(-1, state.shape[-1])[-1].astype(np.float32)


def means(measures: dict[str, Any]) -> dict[str, tuple[float, int]]:
    """Each measure's mean over the validation questions where it is known, and their number."""
    found = {}
    for name, values in measures["uncertainty_measures"].items():
        known = [value for value in values if not math.isnan(value)]
        found[name] = (sum(known) / len(known) if known else math.nan, len(known))
    return found


def p_ik(train_states: np.ndarray, train_is_false: np.ndarray, states: np.ndarray) -> np.ndarray:
    """P(IK), "I know": probability that the answer will be right, from the question's state alone.

    States [n, H] of the last prompt token with labels [n] (1 = the answer was wrong) to fit on, and
    states [m, H] to judge: float64 [m] in 0 to 1, higher = LESS uncertain. A logistic regression on
    standardised features stands for the value head of Kadavath et al. (2022), section 5, as in the
    semantic-uncertainty scripts, which stored the probability of being wrong under this name.
    Raises ValueError when the labels are of one class.
    """
    if len(set(np.asarray(train_is_false).tolist())) != 2:
        raise ValueError("P(IK) needs right and wrong answers to learn from")
    learner = LogisticRegression(tol=1e-8, max_iter=10_000)
    model = make_pipeline(StandardScaler(), learner)
    model.fit(train_states.astype(np.float64), train_is_false)
    return model.predict_proba(states.astype(np.float64))[:, 0]
