"""A probe: a small network that reads a hidden state and says how doubtful the answer is.

A probe file is a plain dict of containers and numpy arrays (format 1), as a pickle or safetensors,
written atomically and loaded without running anything it holds. It says what it was trained for
(model, width, token key, layers) and refuses other states. Conventions: y = 1 means hallucinated,
and a higher score means more hallucinated (SAPLMA) or more uncertain (semantic-entropy probes).
Layer ranges are inclusive; index 0 is the embedding output.

The probe files of the public release are read too: a dict with `model_state_dict`, `config`,
`input_dim` and `layer_range`, whose network regresses semantic entropy with linear layers,
LayerNorm and Mish.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from spikescore.errors import UserError
from spikescore.files import write_atomic
from spikescore.pairs import DEFAULT_TOKEN_KEY, TOKEN_KEYS, model_difference, question_digests
from spikescore.pickles import load_pickle
from spikescore.probes.layers import LayerRange, Layers, parse_layer_range
from spikescore.probes.tensors import SUFFIX, read_tensors, write_tensors

log = logging.getLogger("spikescore")

FORMAT = 1
KINDS = ("saplma", "sep-logistic", "sep-mlp")

_LAYER_NORM_EPS = 1e-5  # what torch.nn.LayerNorm uses unless told otherwise


@dataclass
class Probe:
    """A trained probe: all it needs to score states, and all that says which states it may score.

    `weights` is the network, first operation first: ("linear", weight [out, in], bias [out]),
    ("layernorm", gain [d], bias [d]), ("relu",), ("leaky_relu",), ("mish",), ("sigmoid",); the last
    linear has out = 1. `mean` and `scale` [d] standardise the features (None: used as they are).
    `model`, `hidden_size`, `n_layers`, `token_key` and `layer_range` are None only in an older file
    that lacks them, until `check` fills them in. `layers` lists the layers where they are not all
    of `layer_range`, which then holds the first and the last of them. `identity` says by content
    what model it is (`pairs.MODEL_PARTS`); older files have the name alone. `tried` holds, where
    that is cheap (logistic regression), the probes of all single layers that were compared:
    {layer: {"weights", "mean", "scale", "val_auroc"}}, for `--layer_range`. `training` holds dirs,
    counts and rates per split, and `items` ({"<domain>/<id>": split}). A dialogue is flagged when
    SpikeScore >= `spike_threshold`. `dialogues` says how those were held on which it was set, so
    that a score can be compared with it: `config` (the settings that are the same for all of them),
    `several` (those that are not), `prompts` (a digest of the texts, None where they differ); empty
    in older files.
    """

    kind: str
    weights: list[tuple]
    model: str | None = None
    hidden_size: int | None = None
    n_layers: int | None = None
    token_key: str | None = None
    layer_range: LayerRange | None = None
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    spike_threshold: float | None = None
    layers: Layers | None = None
    identity: dict[str, str] = field(default_factory=dict)
    tried: dict[int, dict[str, Any]] = field(default_factory=dict)
    dialogues: dict[str, Any] = field(default_factory=dict)

    @property
    def input_dim(self) -> int:
        """Number of features d that the network reads."""
        return next(op[1].shape[1] for op in self.weights if op[0] == "linear")

    @property
    def train_domains(self) -> list[str]:
        """Domains of the questions it was trained, validated and tested on, sorted."""
        return sorted({key.rpartition("/")[0] for key in self.training.get("items", ())})

    def features(self, states: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Return the features of n states [L+1, H] at the probe's token: float32 [n, d].

        d = (b - a + 1) * H: the states of layers a to b, both included, one after another (of the
        listed layers alone, where there is a list).
        """
        if self.layer_range is None:
            raise ValueError("the probe has no layer range yet; call check() first")
        first, last = self.layer_range
        read = list(self.layers) if self.layers else slice(first, last + 1)
        rows = [state[read].reshape(-1) for state in states]
        return np.stack(rows).astype(np.float32)

    def score(self, features: np.ndarray) -> np.ndarray:
        """Return one score per row of features [n, d]: float32 [n], higher = more hallucinated.

        In [0, 1] for `saplma` (probability of a hallucination) and `sep-logistic` (of a high
        entropy); for `sep-mlp` an estimate of semantic entropy (nats), or with a ranking loss a
        number that only orders.
        """
        x = np.asarray(features, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.input_dim:
            raise ValueError(f"expected features [n, {self.input_dim}], got {x.shape}")
        if self.mean is not None:
            x = (x - self.mean) / self.scale
        for name, *arrays in self.weights:
            x = _OPERATIONS[name](x, *arrays)
        return x[:, 0]

    def check(
        self,
        *,
        model: str | None,
        n_layers: int,
        hidden_size: int,
        identity: Mapping[str, str] | None = None,
        token_key: str | None = None,
        layer_range: LayerRange | None = None,
        where: str | Path = "the hidden states",
    ) -> Probe:
        """Return the probe completed for these states; UserError when they are not its own.

        `token_key` and `layer_range` are what the user gave, or None: they may repeat the probe's
        own, fill them in where an older file lacks them, and name among which of the layers that
        were `tried` the best is to be taken; nothing else. Models are compared by content where
        both sides know it; else of the name only the last part counts: `./models/X` and `/data/X`
        are the same model, `X` and `Y` are not, even of one shape, because their states mean
        different things.
        """
        if layer_range not in (None, self.layer_range) and self.tried:
            self, layer_range = self._best_within(layer_range), None
        ours = {"model": self.model, "identity": self.identity}
        difference = model_difference(ours, {"model": model, "identity": identity})
        own = (self.hidden_size or hidden_size, self.n_layers or n_layers)
        if own != (hidden_size, n_layers) or difference:
            known = self.identity and identity
            raise UserError(
                f"{where}: the probe was trained on states of width {own[0]} from {own[1]} layers "
                f'of the model "{self.model}", these have width {hidden_size} from {n_layers} '
                f'layers of "{model}"{f" ({difference})" if known and difference else ""}; train a '
                "probe for this model"
                + ("" if known else ", or let the folders of one and the same model have one name")
            )
        return replace(
            self,
            model=self.model or model,
            identity=self.identity or dict(identity or {}),
            n_layers=n_layers,
            hidden_size=hidden_size,
            token_key=self._checked_token_key(token_key),
            layer_range=self._checked_layer_range(layer_range, n_layers, hidden_size, where),
        )

    def _best_within(self, layer_range: LayerRange) -> Probe:
        """Return the probe of the best single layer within a range, of those that were tried."""
        first, last = layer_range
        within = {layer: one for layer, one in self.tried.items() if first <= layer <= last}
        if not within:
            raise UserError(
                f"the probe was trained on layers {min(self.tried)} to {max(self.tried)}, "
                f"--layer_range says {_text(layer_range)}; give layers among them"
            )
        layer = max(within, key=lambda layer: (within[layer]["val_auroc"], -layer))
        told = "layers %d to %d: layer %d is read, the best of them on validation (AUROC %.3f)"
        log.info(told, first, last, layer, within[layer]["val_auroc"])
        read = (layer, layer)
        threshold = self.spike_threshold if read == self.layer_range else None
        network = {name: within[layer][name] for name in ("weights", "mean", "scale")}
        own = {"layer_range": read, "layers": None, "spike_threshold": threshold, "tried": {}}
        return replace(self, **network, **own)

    def _checked_token_key(self, given: str | None) -> str:
        if self.token_key and given and given != self.token_key:
            raise UserError(
                f'the probe was trained on the token "{self.token_key}", --token_key says '
                f'"{given}"; leave --token_key out or repeat the probe\'s own'
            )
        key = self.token_key or given or DEFAULT_TOKEN_KEY
        if key not in TOKEN_KEYS:
            raise UserError(f'unknown token key "{key}"; use one of {", ".join(TOKEN_KEYS)}')
        return key

    def _checked_layer_range(
        self, given: LayerRange | None, n_layers: int, hidden_size: int, where: str | Path
    ) -> LayerRange:
        own, asked = (self._read_range(layers, hidden_size) for layers in (self.layer_range, given))
        if own and asked and (self.layers or own != asked):
            raise UserError(
                f"the probe was trained on layers {_text(self.layers or own)}"
                f"{'' if self.layers else ' (both included)'}, --layer_range says {_text(given)}; "
                "leave --layer_range out or repeat the probe's own"
            )
        if not (own or asked):
            raise UserError(
                "the probe file does not say which layers it reads; give --layer_range a,b: it "
                f"takes {self.input_dim} features, that is {self.input_dim / hidden_size:g} states "
                f"of this model's width {hidden_size}"
            )
        first, last = own or asked
        if not 0 <= first <= last <= n_layers:
            raise UserError(
                f"{where}: layers {first},{last} are not within 0,{n_layers} (0 = embedding "
                f"output, {n_layers} = last layer); give a --layer_range a,b inside that"
            )
        n_features = len(self.layers or range(first, last + 1)) * hidden_size
        if n_features != self.input_dim:
            raise UserError(
                f"{where}: layers {first},{last} of width {hidden_size} make {n_features} "
                f"features, the probe was trained on {self.input_dim}; give the layers it was "
                "trained on, or train another probe"
            )
        return first, last

    def _read_range(self, layers: LayerRange | None, hidden_size: int) -> LayerRange | None:
        """Return the range with its end included, also where an older file left the end out."""
        if layers is None:
            return None
        first, last = layers
        half_open = self.input_dim == (last - first) * hidden_size
        if half_open and self.hidden_size is None:  # only an older file does not record its width
            log.warning(
                "layer range %d,%d is read as layers %d to %d: the probe takes %d features, that "
                "is %d states of width %d, so its end was not included",
                first, last, first, last - 1, self.input_dim, last - first, hidden_size,
            )  # fmt: skip
            last -= 1
        return first, last

    def split_of(self, record: dict[str, Any]) -> str:
        """Return the split this dialogue's question had when the probe was trained, else "unseen".

        A question is known again by its wording, or as a translation (see `question_digests`),
        whatever the run's other settings: a second run of it under another strategy or seed is not
        unseen data.
        """
        known = self.training.get("questions", {})
        return next((known[key] for key in question_digests(record) if key in known), "unseen")

    def save(self, path: str | Path) -> None:
        """Write the probe atomically: as safetensors under that suffix, else as one pickle."""
        content = {"format": FORMAT, **asdict(self)}
        if Path(path).suffix == SUFFIX:
            write_tensors(Path(path), content)
        else:
            write_atomic(Path(path), pickle.dumps(content, protocol=4))


def load_probe(path: str | Path) -> Probe:
    """Read a probe file of this project, a pickle or safetensors, or of the public release without
    running anything it holds.

    Raises UserError when the file is missing, broken, refused, or no probe.
    """
    content = read_tensors(path) if Path(path).suffix == SUFFIX else load_pickle(path)
    if isinstance(content, dict) and "model_state_dict" in content:
        return _from_public_release(content, path)
    if not isinstance(content, dict) or not {"format", "kind", "weights"} <= content.keys():
        raise UserError(
            f'"{path}" is not a probe; train one with semantic-entropy-probes/probes_trainer.py'
        )
    if content["format"] != FORMAT:
        raise UserError(
            f'"{path}" is a probe of format {content["format"]!r}, this version reads {FORMAT}; '
            "train it again or update the project"
        )
    known = {entry.name for entry in fields(Probe)}
    probe = Probe(**{name: value for name, value in content.items() if name in known})
    wrong = [name for name, fits in _FIELDS.items() if not fits(getattr(probe, name))]
    wrong += [] if wrong or _runs(probe) else ["weights"]
    for layer, one in {} if wrong else probe.tried.items():
        if not _runs(replace(probe, **{name: one[name] for name in ("weights", "mean", "scale")})):
            wrong.append(f"layer {layer}")
    if wrong:
        raise UserError(
            f'"{path}" holds no probe that this version can run (kinds: {", ".join(KINDS)}): its '
            f"{wrong[0]} is not what it must be; train it again"
        )
    return probe


def _is(*types: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in types  # so that True is no number


def _are_layers(value: Any) -> bool:
    return value is None or type(value) in (list, tuple) and {type(one) for one in value} == {int}


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "kind": lambda value: type(value) is str and value in KINDS,
    **dict.fromkeys(("model", "token_key"), _is(str, type(None))),
    **dict.fromkeys(("hidden_size", "n_layers", "seed"), _is(int, type(None))),
    **dict.fromkeys(("metrics", "identity"), _is(dict)),
    "spike_threshold": _is(int, float, type(None)),
    "dialogues": lambda value: (
        type(value) is dict
        and type(value.get("config", {})) is dict
        and type(value.get("several", [])) is list
    ),
    "layers": _are_layers,
    "layer_range": lambda value: _are_layers(value) and (value is None or len(value) == 2),
    "training": lambda value: (
        type(value) is dict
        and all(type(value.get(key, {})) is dict for key in ("items", "questions"))
    ),
    "tried": lambda value: (
        type(value) is dict
        and all(
            type(layer) is int
            and type(one) is dict
            and {"weights", "mean", "scale"} <= one.keys()
            and type(one.get("val_auroc")) is float
            for layer, one in value.items()
        )
    ),
}
"""What each field of a probe file may hold."""


def _runs(probe: Probe) -> bool:
    """Whether a probe's operations, mean and scale give a number for one row of features."""
    try:
        with np.errstate(all="ignore"):
            found = probe.score(np.zeros((1, probe.input_dim)))
            n_out = [op[1].shape[0] for op in probe.weights if op[0] == "linear"][-1]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, StopIteration):
        return False
    return n_out == 1 and found.shape == (1,) and bool(np.isfinite(found).all())


def _text(layers: Iterable[int]) -> str:
    return ",".join(str(layer) for layer in layers)


# --- the network ------------------------------------------------------------------------------


def _layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    return centred / np.sqrt(variance + _LAYER_NORM_EPS) * gain + bias


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # equals 1 / (1 + exp(-x)), and never overflows


_OPERATIONS = {
    "linear": lambda x, weight, bias: x @ weight.T + bias,
    "layernorm": _layer_norm,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "sigmoid": _sigmoid,
}


# --- probe files of the public release --------------------------------------------------------


def _from_public_release(content: dict[str, Any], path: str | Path) -> Probe:
    """Rebuild the release's regression network from its state dict alone.

    Two-dimensional weights are linear layers; a vector weight after one is its LayerNorm. Mish
    stands between the blocks, nothing after the last linear; dropout does nothing when scoring.
    """
    state = {name: np.asarray(array) for name, array in content["model_state_dict"].items()}
    prefixes = sorted({name.rpartition(".")[0] for name in state}, key=_natural_order)
    weights: list[tuple] = []
    try:
        for prefix in prefixes:
            weight, bias = state[f"{prefix}.weight"], state[f"{prefix}.bias"]
            if weight.ndim == 2 and weights:
                weights.append(("mish",))
            weights.append(("linear" if weight.ndim == 2 else "layernorm", weight, bias))
        widths = [op[1].shape for op in weights if op[0] == "linear"]
        whole = widths[-1][0] == 1 and widths[0][1] == int(content.get("input_dim", widths[0][1]))
        chained = all(a[0] == b[1] for a, b in zip(widths, widths[1:], strict=False))
    except (KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f'"{path}": its model_state_dict is not an MLP this project knows'
        ) from error
    if not (whole and chained):
        raise UserError(
            f'"{path}": its linear layers {widths} do not chain from input_dim to one score'
        )
    layer_range = content.get("layer_range")
    if isinstance(layer_range, str):
        layer_range = parse_layer_range(layer_range)
    log.info("%s: a probe of the public release, semantic-entropy regression", path)
    return Probe(
        kind="sep-mlp",
        weights=weights,
        layer_range=(int(layer_range[0]), int(layer_range[1])) if layer_range else None,
    )


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts "model.4" before "model.12"."""
    return [(int(part) if part.isdigit() else -1, part) for part in name.split(".")]
