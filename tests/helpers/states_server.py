"""A server that gives hidden states, made from a small model: replies of vLLM with our connector,
or of SGLang, right ones or with a fault.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from spikescore.model.chat import ChatFormat
from spikescore.model.loading import weights_digest
from tests.helpers.fault_server import FaultyServer

NAME = "the model"
Change = Callable[[dict[str, Any], dict[str, np.ndarray]], None]
"""What goes wrong: changes a reply of vLLM and the arrays of its file (empty: no file appears)."""


class StatesServer(FaultyServer):
    """Serves a model as an engine does. `change` spoils the replies about states whose numbers,
    from 0, are in `spoiled` (None: all); the first is that of the start-up.
    """

    def __init__(
        self,
        model: Any,
        chat: ChatFormat,
        folder: Path,
        *,
        engine: str = "vllm",
        checkpoint: Path | None = None,
        change: Change | None = None,
        spoiled: set[int] | None = None,
        tokens: Callable[[dict, list[int]], list[int]] | None = None,
    ) -> None:
        self.model, self.chat, self.folder, self.engine = model, chat, folder, engine
        self.weights = weights_digest(str(checkpoint)) if checkpoint else "0" * 64
        self.change, self.spoiled = change, spoiled
        self.draw = tokens or self.greedy
        self.asked: list[dict] = []  # for states
        self.lock = threading.Lock()
        listed = {"data": [{"id": NAME, "owned_by": engine, "max_model_len": 2048}]}
        super().__init__(self.reply, models=(200, {}, json.dumps(listed)))

    def reply(self, body: dict, _: int) -> tuple[int, dict, str]:
        if "messages" in body:
            said = self.complete(body)
        elif "name" in body:
            said = self.tensor(body["name"]).tolist()
        else:
            self.asked.append(body)
            said = self.vllm(body) if "prompt" in body else self.sglang(body)
        return 200, {}, json.dumps(said)

    # --- the model ----------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, ids: list[int]) -> tuple[np.ndarray, torch.Tensor]:
        """States [tokens, L + 1, hidden], the last before the final norm, and log-probabilities."""
        kept: list[torch.Tensor] = []
        norm = self.model.model.norm
        with self.lock:
            hook = norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
            out = self.model(torch.tensor([ids]), output_hidden_states=True)
            hook.remove()
        layers = [*out.hidden_states[:-1], kept[0]]
        states = torch.stack([layer[0] for layer in layers], dim=1).numpy()
        return states, torch.log_softmax(out.logits[0].float(), dim=-1)

    def greedy(self, body: dict, ids: list[int]) -> list[int]:
        answer: list[int] = []
        while len(answer) < min(body["max_tokens"], 4):
            answer.append(int(self.forward(ids + answer)[1][-1].argmax()))
        return answer

    def tensor(self, name: str) -> np.ndarray:
        return self.model.state_dict()[name].float().numpy()

    def complete(self, body: dict) -> dict:
        """A chat completion, with ids and log-probabilities where they are asked for."""
        prompt = self.chat.render(body["messages"])
        answer = self.draw(body, prompt)
        choice = {"index": 0, "finish_reason": "length", "token_ids": answer}
        choice["message"] = {"role": "assistant", "content": self.chat.text(answer)}
        if body.get("logprobs"):
            logprobs = self.forward(prompt + answer)[1]
            choice["logprobs"] = {"content": [
                _entry(logprobs[len(prompt) - 1 + place], token, body["top_logprobs"])
                for place, token in enumerate(answer)
            ]}  # fmt: skip
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(answer)}
        reply = {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}
        if body.get("return_token_ids"):
            reply["prompt_token_ids"] = prompt
        return reply

    # --- its states ---------------------------------------------------------------------------

    def vllm(self, body: dict) -> dict:
        ids, asked = body["prompt"], body["kv_transfer_params"]["spikescore"]
        states, logprobs = self.forward(ids)
        rows = states[asked["positions"]]
        file = {
            "token_ids": np.array(ids, dtype=np.int32),
            "positions": np.array(asked["positions"], dtype=np.int32),
            "states": rows.astype(np.float16),
            "last": rows[:, -1].copy(),
        } | {f"tensor.{name}": self.tensor(name) for name in asked.get("tensors", [])}
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        info = {
            "file": str(path),
            "layers": list(range(states.shape[1])),
            "dtype": "float32",
            "hidden_size": states.shape[2],
            "cached_tokens": 0,
        }
        prompt = [None, *(
            {str(token): {"logprob": float(row[token])}, "-1": {"logprob": float(row.max())}}
            for token, row in zip(ids[1:], logprobs, strict=False)
        )]  # fmt: skip
        top = {"next": float(logprobs[-1].max())}
        choice = {"prompt_token_ids": ids, "prompt_logprobs": prompt}
        choice["logprobs"] = {"top_logprobs": [top]}
        reply = {"choices": [choice], "kv_transfer_params": {"spikescore": info}}
        self.spoil(reply, file)
        if file:
            save_file(file, path, metadata={"weights": self.weights})
        return reply

    def sglang(self, body: dict) -> dict:
        ids = body["input_ids"]
        states, logprobs = self.forward(ids)
        info: dict[str, Any] = {"prompt_tokens": len(ids), "cached_tokens": len(ids) - 1}
        info["hidden_states"] = states[-1].reshape(-1).tolist()
        if body.get("return_logprob"):
            rows = list(zip(ids[1:], logprobs, strict=False))
            info["input_token_logprobs"] = [
                [None, ids[0], None], *([float(row[token]), token, None] for token, row in rows)
            ]  # fmt: skip
            info["input_top_logprobs"] = [None, *([[float(row.max()), 0, None]] for _, row in rows)]
            info["output_top_logprobs"] = [[[float(logprobs[-1].max()), 0, None]]]
        reply = {"text": "", "meta_info": info}
        self.spoil(reply, {})
        return reply

    def spoil(self, reply: dict, file: dict[str, np.ndarray]) -> None:
        if self.change and (self.spoiled is None or len(self.asked) - 1 in self.spoiled):
            self.change(reply, file)


def _entry(row: torch.Tensor, token: int, n: int) -> dict:
    """As vLLM lists them: the drawn token first, wherever it stands, in all n."""
    top = [token, *(other for other in row.topk(n).indices.tolist() if other != token)][:n]
    listed = [{"token": "x", "logprob": float(row[one])} for one in top]
    return {"token": "x", "logprob": float(row[token]), "top_logprobs": listed}
