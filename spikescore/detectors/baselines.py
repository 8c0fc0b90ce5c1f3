"""Controls for trained probes: one that learnt nothing, and one that had nothing to learn."""

from __future__ import annotations

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.detectors.layers import LayerReader, lesson
from spikescore.detectors.networks import fit_saplma
from spikescore.probes import Probe
from spikescore.seeding import derived_seed


class LabelShuffle(LayerReader):
    """SAPLMA trained, and its layer and epoch chosen, with the labels dealt out at random.

    Labels are permuted within the train and within the validation split, anew for each seed. The
    AUROC must be 0.5 but for chance; a pipeline that gives more looks at what it should not see.
    """

    name = "label_shuffle"
    title = "SAPLMA, shuffled labels"
    family = "control"
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        rng = np.random.default_rng(derived_seed(seed, "label_shuffle"))
        y_train, y_val = rng.permutation(train.y), rng.permutation(val.y)
        self.keep(fit_saplma(lesson(train.first_states, val.first_states, y_train, y_val), seed))


class RandomProjection(LayerReader):
    """sigmoid(w . z) of the standardised state z at the middle layer, w random.

    w ~ N(0, I / H) from the seed, so that w . z has a variance of about 1 on the train split, whose
    mean and deviation standardise. No label is used and nothing is chosen: the layer is L // 2. It
    has no direction, so its AUROC is on either side of 0.5 by chance; over a dialogue it asks
    whether any reading of the hidden states spikes where a trained one does.
    """

    name = "random_projection"
    title = "Random projection"
    family = "control"
    seeded = True

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        self._layer = max(1, (train.first_states.shape[1] - 1) // 2)
        states = train.first_states[:, self._layer].astype(np.float32)
        deviation = states.std(axis=0)
        rng = np.random.default_rng(derived_seed(seed, "random_projection"))
        weight = rng.standard_normal(states.shape[1]) / np.sqrt(states.shape[1])
        linear = ("linear", weight[None].astype(np.float32), np.zeros(1, np.float32))
        self._network = Probe(
            "saplma",
            [linear, ("sigmoid",)],
            mean=states.mean(axis=0),
            scale=np.where(deviation > 1e-6, deviation, np.float32(1)),
        )
        self.chosen["layer"] = self._layer


DETECTORS: tuple[type[Detector], ...] = (LabelShuffle, RandomProjection)
