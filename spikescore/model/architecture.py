"""What a model's configuration and modules say of it, wherever an architecture keeps it."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from spikescore.errors import UserError

UNBOUNDED = 2**31
"""Context of a model that names no longest one."""


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The language model's part of a configuration (itself, unless the model is multimodal)."""
    return config.get_text_config(decoder=True)


def size_of(config: PreTrainedConfig, name: str) -> int:
    """A number that the language model's configuration must give; UserError where it does not."""
    value = getattr(text_config(config), name, None)
    if not isinstance(value, int):
        raise UserError(
            f'models of type "{config.model_type}" say no {name} in their config.json, so they '
            "cannot be run here; use a decoder-only model such as Llama, Qwen, Mistral or Gemma"
        )
    return value


def key_value_heads(config: PreTrainedConfig) -> int:
    """Number of key/value heads of a language model's configuration."""
    heads = getattr(text_config(config), "num_key_value_heads", None)
    return heads or size_of(config, "num_attention_heads")


def head_size(config: PreTrainedConfig) -> int:
    """Width of an attention head of a language model's configuration."""
    size = getattr(text_config(config), "head_dim", None)
    return size or size_of(config, "hidden_size") // size_of(config, "num_attention_heads")


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of keys and values that one token of one dialogue costs."""
    return cache_values_per_token(model.config) * model.dtype.itemsize


def cache_values_per_token(config: PreTrainedConfig) -> int:
    """How many numbers the keys and values of one token are, in all layers."""
    n_layers, heads = size_of(config, "num_hidden_layers"), key_value_heads(config)
    return 2 * n_layers * heads * head_size(config)


def pair_bytes(architecture: PreTrainedConfig, turns: int) -> int:
    """Bytes of one dialogue's PKL: three keys x turns x (L + 1) states of FP16."""
    n_states = size_of(architecture, "num_hidden_layers") + 1
    return 3 * turns * n_states * size_of(architecture, "hidden_size") * 2


def longest_context(config: PreTrainedConfig) -> int:
    """Most tokens, prompt and answer together, for which a token's state depends on those before it
    alone.

    Beyond its own length a model with dynamic NTK scaling turns all positions anew with each token,
    so it is held to that length.
    """
    own = getattr(text_config(config), "max_position_embeddings", None) or UNBOUNDED
    for rotation in _rotations(config):
        if "dynamic" in str(rotation.get("rope_type", rotation.get("type"))):
            own = min(own, rotation.get("original_max_position_embeddings") or own)
    return own


def rotation_switch(config: PreTrainedConfig) -> int | None:
    """The length beyond which a model turns all positions otherwise (LongRoPE); None: never."""
    for rotation in _rotations(config):
        if rotation.get("rope_type", rotation.get("type")) == "longrope":
            known = rotation.get("original_max_position_embeddings")
            return known or text_config(config).original_max_position_embeddings
    return None


def _rotations(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """How positions turn queries and keys, for each kind of layer where kinds differ."""
    found = getattr(text_config(config), "rope_parameters", None) or {}
    return [one for one in found.values() if isinstance(one, dict)] or [found]


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The stack of layers below the language-model head."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


def final_norm_of(model: PreTrainedModel) -> nn.Module | None:
    """The norm between the last layer and the head; None where it is in no known place."""
    decoder = decoder_of(model)
    decoder = getattr(decoder, "decoder", decoder)  # OPT has a decoder in its decoder
    names = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
    return next((one for name in names if (one := getattr(decoder, name, None)) is not None), None)


def layers_of(decoder: nn.Module) -> nn.ModuleList:
    """The decoder's layers; UserError when the architecture keeps them in no usual place."""
    places = (decoder, getattr(decoder, "decoder", None))  # OPT has a decoder in its decoder
    for place in places:
        for name in ("layers", "h", "blocks"):
            if isinstance(layers := getattr(place, name, None), nn.ModuleList):
                return layers
    raise UserError(
        f"{type(decoder).__name__} keeps its layers in no known place; "
        "use a decoder-only model such as Llama, Qwen, Mistral or Gemma"
    )
