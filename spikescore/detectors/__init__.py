"""Detectors of hallucinated answers, all behind one protocol (`base.Detector`).

`REGISTRY` holds every method by its name, in the order of tables. A new method is a class in the
DETECTORS of its module; a new module is one import and one entry of `_MODULES`.
"""

from __future__ import annotations

from spikescore.detectors import (
    baselines,
    consistency,
    controls,
    lens,
    linear,
    networks,
    texts,
    tokens,
    unsupervised,
)
from spikescore.detectors.base import Detector

_MODULES = (tokens, lens, consistency, linear, networks, unsupervised, controls, texts, baselines)

REGISTRY: dict[str, type[Detector]] = {
    detector.name: detector for module in _MODULES for detector in module.DETECTORS
}
"""Every detector by its stable name."""
