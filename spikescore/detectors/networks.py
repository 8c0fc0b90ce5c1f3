"""Detectors that are small neural networks, on hidden states or on vectors measured of an answer.

How long they train: at least the epochs of their source, and at least as many as make the 95 steps
that SAPLMA's 5 epochs in batches of 32 are on the 600 training items of the paper's experiment. On
75 items 5 epochs would be 15 steps of Adam, after which a network has hardly left its start. The
best epoch is chosen on the validation split in any case.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.detectors.lesson import (
    LayerReader,
    Lesson,
    as_network,
    first_answers,
    fit_logistic,
    lesson,
    present,
    told,
)
from spikescore.errors import UserError
from spikescore.measures.formulas import cluster_assignment_entropy
from spikescore.probes.linear import best_split
from spikescore.probes.training import Settings, fit_candidates

if TYPE_CHECKING:
    from spikescore.probes.network import Fit, NetworkFit, Recipe


BATCH_SIZE = 32
LEAST_STEPS = 95
"""Five epochs of 600 items in batches of 32."""


def epochs_for(n_train: int, least: int = 5) -> int:
    """Return the number of epochs: `least`, or more where these make fewer than LEAST_STEPS."""
    steps_per_epoch = -(-n_train // BATCH_SIZE)
    return max(least, -(-LEAST_STEPS // steps_per_epoch))


def fit_saplma(material: Lesson, seed: int, *, layer: int | None = None) -> Fit:
    """Train SAPLMA's network on every layer's states [n, H], or on the one given, and return the
    best layer and epoch.
    """
    settings = Settings(
        probe="saplma", epochs=epochs_for(material.n_train), batch_size=BATCH_SIZE, seed=seed
    )
    layers, rows = material.layers, material.by_layer
    if layer is not None:
        layers, rows = [(layer,)], [material.features[:, layer]]
    return fit_candidates(rows, layers, material.examples(), settings, seed)


# --- networks on hidden states ------------------------------------------------------------------


class Saplma(LayerReader):
    """Output of an MLP H-256-128-64-1 (ReLU, sigmoid) on the standardised state of one layer.

    Higher = more hallucinated (a probability). Adam at 1e-3, binary cross-entropy, batches of 32.
    Source: Azaria and Mitchell (2023), "The Internal State of an LLM Knows When It's Lying", who
    trained 5 epochs on unscaled states of a layer they named. Here features are standardised on the
    train split, layer and epoch have the highest validation AUROC (of equal ones: the lowest loss),
    and there are at least 95 steps (see the module).
    """

    name = "saplma"
    title = "SAPLMA"
    family = "trained"
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        self.keep(fit_saplma(first_answers(train, val), seed))

    def fit_layer(self, material: Lesson, layer: int, *, seed: int) -> None:
        """Learn from the states [n, L+1, H] of one layer, given instead of chosen; 0 counts too."""
        self.keep(fit_saplma(material, seed, layer=layer))


class SemanticEntropyProbe(LayerReader):
    """sigmoid(w . z + b): logistic regression of "high semantic entropy" on a standardised state.

    High means above gamma, the split of the training answers' discrete semantic entropies that
    leaves the least squared error. Higher = more uncertain, taken as more hallucinated: no label of
    truth is used, neither to fit nor to choose the layer (highest validation AUROC for high
    entropy). Answers without clustered samples teach nothing, but are scored. Source: Kossen et al.
    (2024), "Semantic Entropy Probes", whose regression is the same but for features left unscaled;
    they read a window of layers chosen on test AUROCs, and fitted gamma over all data sets.
    """

    name = "sep"
    title = "SEP"
    family = "trained"
    needs = frozenset({"states", "samples"})

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        parts = []
        for part in (train, val):
            entropy = semantic_entropies(part)
            known = np.isfinite(entropy)
            parts.append((part.first_states[known], entropy[known]))
        (states, entropy), (val_states, val_entropy) = parts
        gamma = best_split(entropy)
        material = lesson(
            states,
            val_states,
            entropy > gamma,
            val_entropy > gamma,
            classes="high / low semantic entropy",
        )
        self.keep(fit_logistic(material.by_layer, material.layers, material.examples()))
        self.chosen |= {
            "gamma": gamma,
            "n_train": len(entropy),
            "high_entropy_rate": float((entropy > gamma).mean()),
        }


def semantic_entropies(items: Answers) -> np.ndarray:
    """Return the discrete semantic entropy of each item's samples [n], NaN where not clustered."""
    clusters = [found.get("samples", {}).get("clusters") for found in items.measures]
    return np.array(
        [cluster_assignment_entropy(() if ids is None else list(ids)) for ids in clusters]
    )


class Prism(Detector):
    """SAPLMA's network on the state that a question about the answer's truth leaves behind.

    The model is asked whether its answer to the question reflects the truth; the state is that of
    the prompt's last token. Higher = more hallucinated. NaN where it was not asked. Source: Zhang
    et al. (2024), "Prompt-Guided Internal States for Hallucination Detection of Large Language
    Models" (PRISM), with SAPLMA as its classifier; their code puts dropout in front of it and
    weights the classes, here it is trained as `Saplma` is, its layer chosen on validation.
    """

    name = "prism"
    title = "PRISM"
    family = "trained"
    needs = frozenset({"questions"})
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        fit = fit_saplma(measured_lesson(train, val, "truth_state"), seed)
        (self._layer,) = fit.layers
        self._network = as_network(fit)
        self.chosen |= told(fit)

    def score(self, items: Answers) -> np.ndarray:
        known, states = present(items.measured_arrays("truth_state"))
        scores = np.full(len(items), np.nan)
        if known.any():
            scores[known] = self._network.score(states[:, self._layer])
        return scores


def measured_lesson(train: Answers, val: Answers, name: str) -> Lesson:
    """Return the lesson of an array measured of first answers; items without it are left out.

    UserError when a split has none, or lacks a class.
    """
    (known, features), (val_known, val_features) = (
        present(part.measured_arrays(name)) for part in (train, val)
    )
    if not (known.any() and val_known.any()):
        raise UserError(f'no "{name}" was measured of these answers; run measure_answers.py')
    return lesson(features, val_features, train.y[known], val.y[val_known])


# --- networks on measured vectors ---------------------------------------------------------------


class VectorNetwork(Detector):
    """The sigmoid output of a network on a vector measured of the first answer, standardised.

    Trained on the binary cross-entropy of y; the epoch has the highest validation AUROC (of equal
    ones: the lowest loss). NaN where the vector was not measured.
    """

    family = "trained"
    seeded = True
    least_epochs: ClassVar[int]

    @staticmethod
    @abstractmethod
    def recipe() -> Recipe:
        """Return the network's shape and training."""

    @property
    def _vector(self) -> str:
        return self.name.removesuffix("_probe")

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        from spikescore.probes.network import fit_network

        material = measured_lesson(train, val, self._vector)
        self._fit: NetworkFit = fit_network(
            material.features,
            material.examples(),
            self.recipe(),
            epochs=epochs_for(material.n_train, self.least_epochs),
            seed=seed,
        )
        self.chosen |= {"epoch": self._fit.epoch, "val_auroc": self._fit.rank[0]}

    def score(self, items: Answers) -> np.ndarray:
        known, vectors = present(items.measured_arrays(self._vector))
        scores = np.full(len(items), np.nan)
        if known.any():
            scores[known] = self._fit.score(vectors)
        return scores


class IcrProbe(VectorNetwork):
    """MLP L-128-64-32-1 on the ICR score of each layer, averaged over the answer's tokens.

    The ICR score of a layer is the Jensen-Shannon divergence between where its update of the
    residual stream points and where its attention goes. Batch norm, leaky ReLU and dropout 0.3
    after each hidden layer; Adam at 1e-3, batches of 32. Higher = more hallucinated. Source: Zhang
    et al. (2025), "ICR Probe", ACL. Scores are standardised here, the learning rate stays constant,
    and 50 epochs or more are trained.
    """

    name = "icr_probe"
    title = "ICR Probe"
    needs = frozenset({"attentions"})
    least_epochs = 50

    @staticmethod
    def recipe() -> Recipe:
        from spikescore.probes.network import Recipe

        return Recipe((128, 64, 32), batch_norm=True, leaky=True, dropout=0.3)


class Mind(VectorNetwork):
    """MLP 2H-256-128-64-1 on two mean states of the first answer, one after the other.

    They are the last token's states averaged over layers, and the last layer's averaged over the
    answer's tokens. Dropout 0.2 on the input, ReLU; Adam at 5e-4, weight decay 1e-5, batches of 32,
    20 epochs or more. Higher = more hallucinated. Source: Su et al. (2024), "Unsupervised Real-Time
    Hallucination Detection Based on the Internal States of Large Language Models" (MIND). There the
    labels come from continuing Wikipedia articles; here they are the training domain's, as for all
    methods. One sigmoid output stands for their two with softmax; features are standardised; the
    classes are not weighted.
    """

    name = "mind"
    title = "MIND"
    needs = frozenset({"lens"})
    least_epochs = 20

    @staticmethod
    def recipe() -> Recipe:
        from spikescore.probes.network import Recipe

        return Recipe((256, 128, 64), input_dropout=0.2, learning_rate=5e-4, weight_decay=1e-5)


DETECTORS: tuple[type[Detector], ...] = (Saplma, SemanticEntropyProbe, Prism, IcrProbe, Mind)
