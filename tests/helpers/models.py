"""Small models with random weights: decoders of several architectures, and one for NLI."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHAPE = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
WINDOW = 20  # shorter than the dialogues, so that sliding attention is really used


def make_model(kind: str, *, vocab_size: int = SHAPE["vocab_size"], seed: int = 0):
    """A small model of an architecture, with random weights."""
    shape = {**SHAPE, "vocab_size": vocab_size}
    torch.manual_seed(seed)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape)).eval()
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(sliding_window=WINDOW, **shape)).eval()
    config = Gemma2Config(sliding_window=WINDOW, attn_implementation="eager", **shape)
    return Gemma2ForCausalLM(config).eval()


LABELS = {0: "entailment", 1: "Contradiction", 2: "NEUTRAL"}
WORDS = "which town is it paris lyon rome in the north of france a b c d e f g h".split()


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of WORDS that marks pairs as BERT's does."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS, "?", "."])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def save_bert(folder: Path, labels: dict[int, str]) -> Path:
    """Write an NLI model with random weights and these labels."""
    tokenizer = bert_tokenizer()
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, num_labels=len(labels), id2label=labels,
        label2id={label: index for index, label in labels.items()}, initializer_range=0.8,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
