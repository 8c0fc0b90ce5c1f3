"""Every method behind one protocol (`base.Detector`): fit(train, val) and score(items).

Start at `base`, then `scoring`, which fits all of them and fills the score book.

`REGISTRY` holds every method by its name, in the order of tables. A new method is a class in the
DETECTORS of its module; a new module is one import and one entry of `_MODULES`.
"""

from __future__ import annotations

from spikescore.detectors import consistency, controls, linear, networks, tokens, unsupervised
from spikescore.detectors.base import Detector

_MODULES = (tokens, consistency, linear, networks, unsupervised, controls)

REGISTRY: dict[str, type[Detector]] = {
    detector.name: detector for module in _MODULES for detector in module.DETECTORS
}
"""Every detector by its stable name."""
