"""Areas under the ROC curve that can be averaged and compared: value, bootstrap draws, influence.

A table's cell may be a mean: over probe seeds, over test domains, over training domains. An AUROC
is linear in its kernel, K[i, j] = 1 if hallucinated item i scores above consistent item j (1/2 for
a tie), so the mean over seeds is the AUROC of the mean kernel, and a bootstrap draw with item
weights w is w+' K w- / (sum w+ sum w-): one matrix product for all draws, and no approximation.
All cells see the same draws, so means and differences of cells have intervals of their own.

y = 1 means hallucinated and is the positive class. No direction is chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikescore.evaluation import DRAWS, MIN_PER_CLASS
from spikescore.seeding import derived_seed


@dataclass(frozen=True)
class Area:
    """An AUROC, or a mean or difference of several; `items` [n] marks those it is measured on.

    `draws` [B] holds its bootstrap values, NaN where a draw lacks a class. `influence` [n] says how
    far each item moves it, so that sqrt(sum over groups of (group sum)^2) is DeLong's standard
    error, clustered by group. `value` is None, and `note` gives the counts, if not computable.
    """

    value: float | None
    draws: np.ndarray
    influence: np.ndarray
    items: np.ndarray
    n_positive: int
    note: str = ""

    @property
    def n(self) -> int:
        """Number of items it is measured on, each counted once."""
        return int(self.items.sum())

    @property
    def interval(self) -> tuple[float, float] | None:
        """Central 95% of the bootstrap draws; None without a value or without usable draws."""
        usable = self.draws[np.isfinite(self.draws)]
        if self.value is None or not usable.size:
            return None
        low, high = np.percentile(usable, (2.5, 97.5))
        return float(low), float(high)

    def standard_error(self, groups: np.ndarray) -> float | None:
        """DeLong's standard error, items of one group [n] counted as one observation.

        Source: DeLong, DeLong and Clarke-Pearson (1988); for groups Obuchowski (1997).
        """
        if self.value is None:
            return None
        _, place = np.unique(groups, return_inverse=True)
        return float(np.sqrt(np.square(np.bincount(place, weights=self.influence)).sum()))


@dataclass(frozen=True)
class Contrast:
    """A difference of two areas on the same items: 95% bootstrap interval and two p values."""

    value: float | None
    low: float | None
    high: float | None
    p_bootstrap: float | None
    p_delong: float | None
    n: int
    note: str = ""


class Resampler:
    """Bootstrap draws of one set of items, shared by every score that is measured on them.

    Groups are drawn with replacement within each domain: the domains are fixed, the questions are
    what might have been others. A domain's draws depend on (seed, its name, its groups) alone.
    """

    def __init__(
        self,
        y: np.ndarray,
        domains: np.ndarray,
        groups: np.ndarray,
        *,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> None:
        self.y = np.asarray(y)
        self.domains = np.asarray(domains)
        self.groups = np.asarray(groups)
        self.weights = np.zeros((draws, self.y.size), dtype=np.float32)
        for domain in dict.fromkeys(self.domains.tolist()):
            members = np.flatnonzero(self.domains == domain)
            _, place = np.unique(self.groups[members], return_inverse=True)
            n_groups = int(place.max()) + 1
            rng = np.random.default_rng(derived_seed(seed, domain, "bootstrap"))
            counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)
            self.weights[:, members] = counts[:, place]

    def area(self, scores: np.ndarray, items: np.ndarray) -> Area:
        """Return the AUROC of scores [seeds, n], the mean over seeds, on the items of a mask [n].

        Items that lack a score under any seed are left out. Not computable with fewer than
        MIN_PER_CLASS items of a class left.
        """
        scores = np.atleast_2d(scores)
        used = np.asarray(items, bool) & np.isfinite(scores).all(axis=0)
        positive, negative = (np.flatnonzero(used & (self.y == label)) for label in (1, 0))
        if min(positive.size, negative.size) < MIN_PER_CLASS:
            note = (
                f"not computable: {positive.size} hallucinated and {negative.size} consistent, "
                f"at least {MIN_PER_CLASS} of each needed"
            )
            return self._nothing(used, note)
        kernel = np.zeros((positive.size, negative.size), dtype=np.float32)
        for row in scores:
            one, other = row[positive][:, None], row[negative]
            kernel += one > other
            kernel += np.float32(0.5) * (one == other)
        kernel /= len(scores)
        value = float(kernel.mean(dtype=np.float64))
        heavy, light = self.weights[:, positive], self.weights[:, negative]
        wins = np.einsum("bn,bn->b", heavy @ kernel, light).astype(np.float64)
        pairs = heavy.sum(axis=1, dtype=np.float64) * light.sum(axis=1, dtype=np.float64)
        draws = np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
        influence = np.zeros(self.y.size)
        for places, axis in ((positive, 1), (negative, 0)):
            placement = kernel.mean(axis=axis, dtype=np.float64)
            influence[places] = (placement - value) / math.sqrt(places.size * (places.size - 1))
        return Area(value, draws, influence, used, positive.size)

    def mean(self, areas: Sequence[Area], *, of: str) -> Area:
        """Return the plain mean of the areas that are computable; the note says if some are not.

        `of` names what is averaged over, such as "domains".
        """
        used = [area for area in areas if area.value is not None]
        items = np.any([area.items for area in used or areas], axis=0)
        if not used:
            alone = areas[0].note if len(areas) == 1 else ""
            return self._nothing(items, alone or f"not computable in any of {len(areas)} {of}")
        return Area(
            float(np.mean([area.value for area in used])),
            np.mean([area.draws for area in used], axis=0),
            np.mean([area.influence for area in used], axis=0),
            items,
            int(self.y[items].sum()),
            f"mean over {len(used)} of {len(areas)} {of}" if len(used) < len(areas) else "",
        )

    def contrast(self, one: Area, other: Area) -> Contrast:
        """Return one - other, which must be of the same items, with interval and p values.

        p_bootstrap is two-sided from the draws (one added to both counts, as no finite number of
        draws proves p = 0); p_delong is DeLong's test, clustered by group.
        """
        if one.value is None or other.value is None:
            return Contrast(None, None, None, None, None, one.n, one.note or other.note)
        value = one.value - other.value
        draws = one.draws - other.draws
        draws = draws[np.isfinite(draws)]
        low = high = p = None
        if draws.size:
            low, high = map(float, np.percentile(draws, (2.5, 97.5)))
            tail = min((draws <= 0).sum(), (draws >= 0).sum())
            p = float(min(1.0, 2 * (tail + 1) / (draws.size + 1)))
        both = Area(value, draws, one.influence - other.influence, one.items, one.n_positive)
        error = both.standard_error(self.groups)
        p_delong = 1.0 if value == 0 else 0.0
        if error:
            p_delong = math.erfc(abs(value) / error / math.sqrt(2))
        return Contrast(value, low, high, p, p_delong, one.n)

    def _nothing(self, items: np.ndarray, note: str) -> Area:
        draws = np.full(len(self.weights), np.nan)
        return Area(None, draws, np.zeros(self.y.size), items, int(self.y[items].sum()), note)
