"""Every method behind one protocol (`base.Detector`): fit(train, val) and score(items).

Start at `base`, then `scoring`, which fits all of them and fills the score book. `spike` is the
paper's method on single questions: it holds their dialogues itself.

`REGISTRY` holds every method by its name, in the order of tables. A new method is a class with a
`name` in the module of its kind; a new module is one import and one entry of `_MODULES`.
"""

from __future__ import annotations

from spikescore.detectors import (
    components,
    consistency,
    contrast,
    controls,
    depth,
    geometry,
    linear,
    lsd,
    networks,
    tokens,
    unsupervised,
)
from spikescore.detectors.base import Detector

_MODULES = (
    tokens, contrast, consistency, linear, networks, components, lsd, unsupervised, depth, geometry,
    controls,
)  # fmt: skip

REGISTRY: dict[str, type[Detector]] = {
    found.name: found
    for module in _MODULES
    for found in vars(module).values()
    if getattr(found, "__module__", "") == module.__name__ and "name" in vars(found)
}
"""Every detector by its stable name."""
