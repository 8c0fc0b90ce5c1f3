"""The model in a GGUF file as a plain checkpoint, which everything else here can load."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from spikescore.errors import UserError


def checkpoint_from_gguf(file: Path, folder: Path) -> None:
    """Write weights in FP16, tokenizer, chat template and settings of a GGUF file into `folder`.

    Quantised weights are unpacked: the checkpoint holds the quantised values, rounded to FP16, and
    not those that the model was published with. An answer ends at the file's end token. UserError
    where transformers cannot read the file.
    """
    disable_progress_bar()
    where = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        unpacked = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    except (ImportError, KeyError, OSError, RuntimeError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f'"{file}" cannot be read as a GGUF model: {reason}') from error
    config = unpacked.config
    # with it the model counts as quantised, and transformers refuses to give it another dtype
    del config.quantization_config
    config.dtype = torch.float16
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.load_state_dict(unpacked.state_dict())
    ending = model.generation_config
    ending.eos_token_id = ending.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
