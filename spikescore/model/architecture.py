"""A key/value cache with one slot per dialogue, written in place and kept from turn to turn.

Slot b holds the tokens of one dialogue at indices 0 .. n_b - 1, so a token's index is its position
and there are no holes. Forgetting a rewritten tail is setting n_b lower: what lies beyond is
overwritten before it can be attended.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from spikescore.errors import UserError


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of keys and values that one token of one dialogue costs."""
    config = text_config(model.config)
    heads = key_value_heads(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize


def key_value_heads(config: PreTrainedConfig) -> int:
    """Number of key/value heads of a language model's configuration."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The language model's part of a configuration (itself, unless the model is multimodal)."""
    return config.get_text_config(decoder=True)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The stack of layers below the language-model head."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


def layers_of(decoder: nn.Module) -> nn.ModuleList:
    """The decoder's layers; UserError when the architecture keeps them in no usual place."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        layers = getattr(decoder, "h", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(
            f"{type(decoder).__name__} keeps its layers in no known place; "
            "use a decoder-only model such as Llama, Qwen, Mistral or Gemma"
        )
    return layers


def pair_bytes(architecture: PreTrainedConfig, turns: int, n_keys: int = 3) -> int:
    """Bytes of one dialogue's PKL: keys x turns x (L + 1) states of FP16."""
    model = text_config(architecture)
    return n_keys * turns * (model.num_hidden_layers + 1) * model.hidden_size * 2
