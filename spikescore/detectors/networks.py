"""Detectors that are small neural networks, on hidden states or on vectors measured of an answer.

How long they train: at least the epochs of their source, and at least as many as make the 95 steps
that SAPLMA's 5 epochs in batches of 32 are on the 600 training items of the paper's experiment. On
75 items 5 epochs would be 15 steps of Adam, after which a network has hardly left its start. The
best epoch is chosen on the validation split in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.detectors.consistency import SemanticEntropyDiscrete
from spikescore.detectors.lesson import (
    LayerReader,
    Lesson,
    as_network,
    first_answers,
    measured_lesson,
    score_measured,
    told,
)
from spikescore.probes.fit import SAPLMA, Examples, Fit, Recipe
from spikescore.probes.layers import Layers
from spikescore.probes.linear import best_split, fit_logistic

LEAST_STEPS = 95
"""Five epochs of 600 items in batches of 32."""


def train_network(
    rows: Iterable[np.ndarray],
    candidates: Sequence[Layers],
    examples: Examples,
    recipe: Recipe,
    seed: int,
) -> Fit:
    """Train as `fit_network` does, for LEAST_STEPS steps at least."""
    from spikescore.probes.network import fit_network  # torch, which the registry need not wait for

    recipe = replace(recipe, epochs=max(recipe.epochs, least_epochs(len(examples.train))))
    return fit_network(rows, candidates, examples, recipe, seed=seed)


def least_epochs(n_train: int) -> int:
    """Return how many epochs in batches of 32 make LEAST_STEPS steps."""
    return -(-LEAST_STEPS // -(-n_train // SAPLMA.batch_size))


def fit_saplma(material: Lesson, seed: int, *, layer: int | None = None) -> Fit:
    """Train SAPLMA's network on each layer's states, or on the one given; return the best."""
    layers, rows = material.layers, material.by_layer
    if layer is not None:
        layers, rows = [(layer,)], [material.layer(layer)]
    return train_network(rows, layers, material.examples(), SAPLMA, seed)


# --- networks on hidden states ------------------------------------------------------------------


class Saplma(LayerReader):
    """Output of an MLP H-256-128-64-1 (ReLU, sigmoid) on the standardised state of one layer.

    Higher = more hallucinated (a probability). Adam at 1e-3, binary cross-entropy, batches of 32.
    Source: Azaria and Mitchell (2023), "The Internal State of an LLM Knows When It's Lying", who
    trained 5 epochs on unscaled states of a layer they named. Here features are standardised on the
    train split, layer and epoch have the highest validation AUROC (of equal ones: the lowest loss),
    and there are at least 95 steps (see the module).
    """

    name, title = "saplma", "SAPLMA"
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

    name, title = "sep", "SEP"
    needs = frozenset({"states", "samples"})

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        entropies = [
            part.measured_samples(SemanticEntropyDiscrete.of_samples) for part in (train, val)
        ]
        known = [np.isfinite(entropy) for entropy in entropies]
        entropy, val_entropy = (row[there] for row, there in zip(entropies, known, strict=True))
        gamma = best_split(entropy)
        material = first_answers(
            train.select(known[0]),
            val.select(known[1]),
            (entropy > gamma, val_entropy > gamma),
            classes="high / low semantic entropy",
        )
        self.keep(fit_logistic(material.by_layer, material.layers, material.examples()))
        self.chosen |= {
            "gamma": gamma,
            "n_train": len(entropy),
            "high_entropy_rate": float((entropy > gamma).mean()),
        }


class Prism(Detector):
    """SAPLMA's network on the state that a question about the answer's truth leaves behind.

    The model is asked whether its answer to the question reflects the truth; the state is that of
    the prompt's last token. Higher = more hallucinated. NaN where it was not asked. Source: Zhang
    et al. (2024), "Prompt-Guided Internal States for Hallucination Detection of Large Language
    Models" (PRISM), with SAPLMA as its classifier; their code gives the model the question as raw
    text, here it is asked in the chat template. Theirs puts dropout in front of the classifier and
    weights the classes, here it is trained as `Saplma` is, its layer chosen on validation.
    """

    name, title = "prism", "PRISM"
    family = "trained"
    needs = frozenset({"questions"})
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        fit = fit_saplma(measured_lesson(train, val, "truth_state"), seed)
        (self._layer,) = fit.layers
        self._network = as_network(fit)
        self.chosen |= told(fit)

    def score(self, items: Answers) -> np.ndarray:
        return score_measured(
            items, "truth_state", lambda x: self._network.score(x[:, self._layer])
        )


# --- networks on measured vectors ---------------------------------------------------------------


class VectorNetwork(Detector):
    """The sigmoid output of a network on a vector measured of the first answer, standardised.

    Trained on the binary cross-entropy of y; the epoch has the highest validation AUROC (of equal
    ones: the lowest loss). NaN where the vector was not measured.
    """

    family = "trained"
    seeded = True
    recipe: ClassVar[Recipe]
    vector: ClassVar[str]
    """What measure_answers.py calls it."""

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        material = measured_lesson(train, val, self.vector)
        rows = np.stack(material.features)
        fit = train_network([rows], [()], material.examples(), self.recipe, seed)
        self._network = as_network(fit)
        self.chosen |= told(fit)

    def score(self, items: Answers) -> np.ndarray:
        return score_measured(items, self.vector, self._network.score)


class IcrProbe(VectorNetwork):
    """MLP L-128-64-32-1 on the ICR score of each layer, averaged over the answer's tokens.

    The ICR score of a layer is the Jensen-Shannon divergence between where its update of the
    residual stream points and where its attention goes. Of an answer's attention only what goes to
    the answer itself counts, as in the authors' code, beside whose figures this stands. Batch norm,
    leaky ReLU and dropout 0.3 after each hidden layer; Adam at 1e-3, batches of 32. Higher = more
    hallucinated. Source: Zhang et al. (2025), "ICR Probe", ACL. Scores are standardised here, and
    50 epochs or more are trained at a constant learning rate, without their weight decay and from
    torch's own start where they take a Kaiming start for the leaky ReLU.
    """

    name, title = "icr_probe", "ICR Probe"
    needs = frozenset({"attentions"})
    vector = "icr_answer"
    recipe = Recipe(
        "icr", (128, 64, 32), epochs=50, activation="leaky_relu", norm="batch", dropout=0.3
    )


class IcrProbePrompt(IcrProbe):
    """ICR Probe (`IcrProbe`) on scores in which the answer's attention to the prompt counts too, as
    the paper's text has it.
    """

    name, title = "icr_probe_prompt", "ICR Probe, with prompt"
    vector = "icr"


class Mind(VectorNetwork):
    """MLP 2H-256-128-64-1 on two mean states of the first answer, one after the other.

    They are the last token's states averaged over layers, and the last layer's averaged over the
    answer's tokens. Dropout 0.2 on the input, ReLU; Adam at 5e-4, weight decay 1e-5, batches of 32,
    20 epochs or more. Higher = more hallucinated. Source: Su et al. (2024), "Unsupervised Real-Time
    Hallucination Detection Based on the Internal States of Large Language Models" (MIND). There the
    labels come from continuing Wikipedia articles; here they are the training domain's, as for all
    methods. Their code's mean over tokens begins one token earlier, at the last of the prompt. One
    sigmoid output stands for their two with softmax; features are standardised; the classes are not
    weighted.
    """

    name, title = "mind", "MIND"
    needs = frozenset({"lens"})
    vector = "mind"
    recipe = Recipe(
        "mind", (256, 128, 64), epochs=20, learning_rate=5e-4, weight_decay=1e-5, input_dropout=0.2
    )
