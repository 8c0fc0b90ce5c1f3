"""Detectors that ask where a state lies to the rows of the model's output matrix.

The matrix comes from the checkpoint that the dialogues name (`model.output_matrix`); no pass of the
model is made. They read the last layer, whose stored state has had the final norm, as the matrix
expects. The model's head is taken for a linear classifier of V tokens: logits = W z + b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import TurnDetector
from spikescore.detectors.lesson import LayerReader, as_network, first_answers, told
from spikescore.detectors.networks import train_network
from spikescore.pairs import TOKEN_KEYS
from spikescore.probes.fit import Recipe
from spikescore.stats.roc import auroc

if TYPE_CHECKING:
    import torch

    from spikescore.model.output_matrix import OutputMatrix

    OfStates = Callable[[OutputMatrix, torch.Tensor], torch.Tensor]
    """Values [m, w] of last states [m, H]."""

TURNS_AT_ONCE = 512
CANDIDATES = (1, 10, 100, 1000)
"""How many rivals of the predicted token fDBD looks at; its authors' figures peak at 1,000."""
QUIET_SHARE = 0.05
"""The part of the singular vectors, the smallest values first, that span HARP's subspace."""
NEEDS_MODEL = (
    "it reads the output matrix of the model that made the dialogues, which must lie where they say"
)


def matrix_of(items: Answers) -> OutputMatrix:
    """Return the output matrix of the model that made the items; UserError where it is not had."""
    from spikescore.model.output_matrix import output_matrix  # torch: names are known without it

    return output_matrix(items.model, items.identity)


# --- how near a prediction is to its token, and to the next --------------------------------------


class Nci(TurnDetector):
    """-cos(w, z - m) ||w||, the mean over the predictions that stage 1 stores of a turn.

    w is the row of W that belongs to the token with the highest logit at z, m the state near the
    origin at which all logits agree most (`OutputMatrix.neutral`; the origin itself without bias).
    Range -||w|| to ||w||; higher = the state points less to its token = more hallucinated. Of the T
    states that predict an answer of T tokens two are stored: that of the prompt's last token, which
    predicts the first, and that of the last token but one, which predicts the last (an answer of
    one token has the former alone). Source: Liu et al. (2026), "From Out-of-Distribution Detection
    to Hallucination Detection: A Geometric View", arXiv 2602.07253, formulae by a public note on
    it; there the mean is over all T states. NCI itself is of Liu and Qin, arXiv 2311.01479, where m
    is the mean of the training features and a norm is added.
    """

    name, title = "nci", "NCI"
    family = "training-free"
    needs = frozenset({"states"})
    remedy = NEEDS_MODEL

    def score(self, items: Answers) -> np.ndarray:
        return -turn_means(items, proximity, first_only=True)[:, 0, 0]

    def score_turns(self, items: Answers) -> np.ndarray:
        return -turn_means(items, proximity)[:, :, 0]


class Fdbd(TurnDetector):
    """-(1/k) sum_c |(w - w_c) z + b - b_c| / ||w - w_c|| / ||z - m||, the mean over stored
    predictions, c over the k tokens with the highest logits after the predicted one.

    w, z, m and the stored predictions as in `Nci`. Minus the mean distance to the borders at which
    the model would say another token, in units of the state's own length; -1 to 0 for a head
    without bias, higher = nearer to a border = more hallucinated. k is the one of CANDIDATES with
    the highest validation AUROC (of equal ones the smallest); nothing else is learnt. Source: Liu
    et al. (2026), arXiv 2602.07253, formulae by a public note on it (k by validation, the mean over
    all T states); fDBD itself is of Liu and Qin (2024), ICML, arXiv 2312.11536, with all classes
    as rivals.
    """

    name, title = "fdbd", "fDBD"
    family = "trained"
    needs = frozenset({"states"})
    remedy = NEEDS_MODEL

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        found = -turn_means(val, boundary_distances, first_only=True)[:, 0]
        areas = [auroc(val.y, scores) for scores in found.T]
        self._place = int(np.argmax(areas))
        self.chosen |= {
            "k": CANDIDATES[self._place],
            "val_auroc": areas[self._place],
            "val_auroc_by_k": areas,
        }

    def score(self, items: Answers) -> np.ndarray:
        found = items.once("fdbd", lambda: turn_means(items, boundary_distances, first_only=True))
        return -found[:, 0, self._place]

    def score_turns(self, items: Answers) -> np.ndarray:
        found = items.once("fdbd_turns", lambda: turn_means(items, boundary_distances))
        return -found[:, :, self._place]


def proximity(matrix: OutputMatrix, states: torch.Tensor) -> torch.Tensor:
    """cos(w, z - m) ||w|| of last states [m, H] and their likeliest tokens: [m, 1]."""
    _, tokens = matrix.highest(states, 1)
    moved = states - matrix.neutral
    return (matrix.rows(tokens[:, 0]) * moved).sum(dim=1, keepdim=True) / _norm(moved)


def boundary_distances(matrix: OutputMatrix, states: torch.Tensor) -> torch.Tensor:
    """fDBD's mean distance for each of CANDIDATES, or for all tokens where a vocabulary has fewer:
    [m, len(CANDIDATES)].
    """
    import torch

    most = min(max(CANDIDATES) + 1, matrix.shape[0])
    logits, tokens = matrix.highest(states, most)
    apart = torch.stack([_norm(rows[:1] - rows[1:])[:, 0] for rows in map(matrix.rows, tokens)])
    distances = (logits[:, :1] - logits[:, 1:]) / apart.clamp(min=1e-12)
    means = distances.cumsum(dim=1) / torch.arange(1, most)
    return means[:, [min(k, most - 1) - 1 for k in CANDIDATES]] / _norm(states - matrix.neutral)


def _norm(rows: torch.Tensor) -> torch.Tensor:
    return rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def turn_means(items: Answers, of_states: OfStates, *, first_only: bool = False) -> np.ndarray:
    """Return the mean of `of_states` over the stored predictions of each turn: float64 [n, K, w],
    NaN after a dialogue's end; of first answers alone [n, 1, w].
    """
    import torch

    matrix = matrix_of(items)
    turns: list[np.ndarray] = []
    means: list[np.ndarray] = []
    lengths = []

    def work() -> None:
        states = torch.from_numpy(np.concatenate(turns).astype(np.float32))
        ends = np.cumsum([len(own) for own in turns])
        parts = np.split(of_states(matrix, states).double().numpy(), ends[:-1])
        means.extend(part.mean(axis=0) for part in parts)
        turns.clear()

    for own in _predictions(items, first_only=first_only):
        turns += own
        lengths.append(len(own))
        if len(turns) >= TURNS_AT_ONCE:
            work()
    if turns:
        work()
    values = np.full((len(lengths), max(lengths), len(means[0])), np.nan)
    values[np.arange(max(lengths)) < np.array(lengths)[:, None]] = means
    return values


def _predictions(items: Answers, *, first_only: bool) -> Iterator[list[np.ndarray]]:
    """Yield for each item, turn by turn, the stored last states [1 or 2, H] that predict a token of
    the answer.
    """
    last, before, prompt = (
        replace(items, token_key=key).turn_states([-1], first_only=first_only) for key in TOKEN_KEYS
    )
    for three in zip(prompt, before, last, strict=True):
        yield [
            # a single token is stored as the last and as the one before it
            first if np.array_equal(second, end) else np.concatenate([first, second])
            for first, second, end in zip(*three, strict=True)
        ]


# --- what the output does not see ----------------------------------------------------------------


class Harp(LayerReader):
    """Output of an MLP d-1024-1 (ReLU, sigmoid) on V' z, with V the right singular vectors of W
    that have the smallest 5% of singular values.

    z is the last layer's state; V' z is what of it hardly moves any logit, the "reasoning
    subspace". Higher = more hallucinated (a probability). Adam at 1e-4, weight decay 3e-4, batches
    of 128, 50 epochs or more; the epoch has the highest validation AUROC. Source: Hu et al. (2025),
    "HARP: Hallucination Detection via Reasoning Subspace Projection", arXiv 2509.11536v2, equations
    7 to 17 and appendix A. There every token of question and answer is scored and the highest score
    counts, several beam-searched answers to a question teach, and the learning rate decays by a
    cosine; here the one token that is read is scored, the answers of the train split teach, the
    rate is constant, and the projections are standardised.
    """

    name, title = "harp", "HARP"
    seeded = True
    remedy = NEEDS_MODEL
    recipe = Recipe(
        "harp", (1024,), epochs=50, batch_size=128, learning_rate=1e-4, weight_decay=3e-4
    )

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        self._basis = quiet_basis(matrix_of(train))
        material = first_answers(train, val)
        self._layer = material.n_states - 1
        rows = self._project(material.layer(self._layer))
        fit = train_network([rows], [()], material.examples(), self.recipe, seed)
        self._network = as_network(fit)
        self.chosen |= {"dimensions": rows.shape[1], **told(fit)}

    def score_layer(self, rows: np.ndarray) -> np.ndarray:
        return super().score_layer(self._project(rows))

    def _project(self, rows: np.ndarray) -> np.ndarray:
        return rows.astype(np.float32) @ self._basis


def quiet_basis(matrix: OutputMatrix) -> np.ndarray:
    """Return the singular vectors of the least QUIET_SHARE, one at least: float32 [H, d]."""
    width = matrix.shape[1]
    return matrix.quiet_order[:, : width - min(int((1 - QUIET_SHARE) * width), width - 1)].astype(
        np.float32
    )
