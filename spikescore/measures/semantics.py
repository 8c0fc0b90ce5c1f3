"""What a first answer means to a text encoder, beside its mean state at every layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from spikescore.errors import UserError
from spikescore.files import read_json
from spikescore.measures.lens import LENS_CHUNK
from spikescore.measures.samples import fitting
from spikescore.model.architecture import text_config
from spikescore.model.attention import Part
from spikescore.model.slots import SlotModel

USUAL_LENGTH = 512  # tokens, where an encoder's folder names none


class SentenceEncoder:
    """A sentence-transformers folder: a transformer, and how its tokens make one vector.

    The mean over the tokens, or the first one, as `1_Pooling/config.json` says (without it the
    mean), normalised to length 1. A text beyond the encoder's length is cut. UserError for a folder
    that holds none, or pools in another way.
    """

    def __init__(self, folder: str) -> None:
        path = Path(folder)
        if not (path / "config.json").is_file():
            raise UserError(
                f'"{folder}" is no text encoder (it has no config.json); give the folder of a '
                "sentence-transformers model to --encoder"
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self._model = AutoModel.from_pretrained(path, local_files_only=True).float().eval()
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f'the text encoder in "{folder}" cannot be loaded ({str(error).splitlines()[0]}); '
                "give a sentence-transformers folder with its weights (not ONNX alone)"
            ) from error
        said = _read(path / "1_Pooling" / "config.json")
        modes = [name for name, on in said.items() if name.startswith("pooling_mode_") and on]
        known = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
        if modes and (len(modes) > 1 or modes[0] not in known):
            raise UserError(
                f'the text encoder in "{folder}" pools by {" and ".join(modes)}; take one that '
                "pools by the mean or the first token"
            )
        self._first_token = bool(modes) and known[modes[0]]
        length = _read(path / "sentence_bert_config.json").get("max_seq_length")
        self._max_length = length if isinstance(length, int) else USUAL_LENGTH

    @torch.inference_mode()
    def encode(self, text: str) -> np.ndarray:
        """Return a text's vector, float32 `[E]` of length 1."""
        tokens = self._tokenizer(
            text, truncation=True, max_length=self._max_length, return_tensors="pt"
        )
        states = self._model(**tokens).last_hidden_state[0]
        vector = states[0] if self._first_token else states.mean(dim=0)
        return (vector / vector.norm().clamp(min=1e-12)).numpy()


def _read(path: Path) -> dict:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


class SemanticsReader:
    """Measures first answers one after another, each in the one slot of a cache.

    answer_states: float16 `[L+1, H]`, at each layer the mean over the answer's tokens of their
    states; NaN for an empty answer and where one is beyond FP16. answer_embedding: float32 `[E]`,
    the encoder's vector of the answer's text.
    """

    def __init__(self, model: PreTrainedModel, encoder: SentenceEncoder) -> None:
        self._passes = SlotModel(model, slots=1)
        self._encoder = encoder
        config = text_config(model.config)
        self._shape = config.num_hidden_layers + 1, config.hidden_size

    @torch.inference_mode()
    def read(self, prompt: list[int], answer: list[int], text: str) -> dict[str, np.ndarray]:
        """Measure an answer to a prompt; `text` is what it says."""
        ids = prompt + answer
        total = torch.full(self._shape, 0.0 if answer else torch.nan)
        self._passes.reusable(0, 0, len(ids))
        for start in range(0, len(ids) if answer else 0, LENS_CHUNK):
            part = ids[start : start + LENS_CHUNK]
            inside = range(max(0, len(prompt) - start), len(part))
            _, states = self._passes.feed([Part(0, part, start)], states_of=inside, logits_of=[])
            total += torch.stack([state.float().sum(dim=0).cpu() for state in states])
        means = (total / max(1, len(answer))).half().numpy()
        return {"answer_states": fitting(means), "answer_embedding": self._encoder.encode(text)}
