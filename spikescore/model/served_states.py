"""Hidden states from the server that generates, so that no second copy of the model is needed.

A dialogue that has ended goes to the server once more, as token ids and with one token to answer;
what comes back are the states of the three positions of every turn, and the log-probabilities of
all tokens. Entropies no server gives: they stay empty.

vLLM runs with `spikescore/model/vllm_states.py` and gives all positions of a dialogue in one reply.
SGLang gives the last token's states, so each position is a request of its own, whose beginning its
cache knows. Either is started with all layers (`layer_ids`). The last layer's states come without
the final norm: the client applies it in float32, with transformers' own module and the weight of
the server's checkpoint.

Nothing of a reply is believed before it is checked: the token ids, the layers, the number of rows,
their type and width, that every value is a number and that no token came out of a cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig

from spikescore.errors import UserError, redacted
from spikescore.model.architecture import final_norm_of, rotation_switch, size_of
from spikescore.model.hidden_states import beyond_half
from spikescore.model.loading import weights_digest
from spikescore.model.reading import passes, places
from spikescore.model.turns import BEFORE_GENERATION, Turn
from spikescore.runtime import brief

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FIRST_ID = {"vllm": 0, "sglang": -1}
"""What an engine calls the embeddings, hidden_states[0] of Hugging Face; the layers count on."""
TRIES = 2  # of a dialogue whose reply fails its check
FILE_SECONDS = 120.0  # in which a file must appear that a reply names
IDENTITY_SECONDS = 1800.0  # the weights are hashed for it
CONNECTOR = "spikescore.model.vllm_states"


def layer_ids(engine: str, n_layers: int) -> list[int]:
    """By what an engine calls them, the L + 1 states that Hugging Face numbers from 0."""
    return [FIRST_ID[engine] + number for number in range(n_layers + 1)]


def vllm_flags(n_layers: int) -> str:
    """What to start vLLM with, so that it gives the states of all layers."""
    layers = {"eagle_aux_hidden_state_layer_ids": layer_ids("vllm", n_layers)}
    speculative = {
        "method": "extract_hidden_states",
        "num_speculative_tokens": 1,
        "draft_model_config": {"hf_config": layers},
    }
    transfer = {
        "kv_connector": "SpikeScoreStates",
        "kv_connector_module_path": CONNECTOR,
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"folder": "/a/folder/that/both/see"},
    }
    first, second = (json.dumps(one, separators=(",", ":")) for one in (speculative, transfer))
    return (
        f"PYTHONPATH=/path/to/SpikeScore-GHD vllm serve MODEL --generation-config vllm "
        f"--speculative-config '{first}' --kv-transfer-config '{second}'"
    )


_FILE = re.compile(r"[0-9a-f]{32}\.safetensors")
"""What the connector calls its files."""


class BadReply(Exception):
    """A reply that is not what was asked for."""


class FinalNorm:
    """The last step of a model before its head; the last of its L + 1 states comes after it."""

    def __init__(self, architecture: PreTrainedConfig) -> None:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(architecture)
        if (module := final_norm_of(model)) is None:
            raise UserError(
                f'"states": "server": {type(model).__name__} keeps its final norm in no known '
                'place; use "states": "local"'
            )
        self._module = module
        (prefix,) = (name for name, one in model.named_modules() if one is module)
        self.tensors = {name: f"{prefix}.{name}" for name, _ in module.named_parameters()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the checkpoint's tensors, by the names in the checkpoint."""
        state = {name: tensors[full].float() for name, full in self.tensors.items()}
        self._module = self._module.to_empty(device="cpu").float()
        self._module.load_state_dict(state)

    @torch.inference_mode()
    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The FP16 states `[n, hidden]` of the last layer's float32 output."""
        return self._module(torch.from_numpy(rows)).to(torch.float16).numpy()


class ServedStates:
    """Reads turns by a server's states; `open` finds out which engine it is and refuses another
    model. `weights` then says by content what the server serves, `dtype` in which type.
    """

    def __init__(self, architecture: PreTrainedConfig, model_path: str, dtype: str = "auto"):
        if rotation_switch(architecture) is not None:
            raise UserError(
                '"states": "server" is not for models with LongRoPE: a server turns all positions '
                'as for its longest dialogue, which gives other states; use "states": "local"'
            )
        self.n_layers = size_of(architecture, "num_hidden_layers")
        self.hidden_size = size_of(architecture, "hidden_size")
        self.norm = FinalNorm(architecture)
        self.model_path = model_path
        self.weights = self.dtype = ""
        self._asked_dtype = dtype
        self._engine = self._model = self._root = ""

    async def open(self, client: AsyncOpenAI, model: str, owner: str) -> None:
        """See that the server gives what is needed; UserError with the flag to set if not.

        `owner` is what the server's list of models says of who serves them.
        """
        self._engine = "sglang" if "sglang" in owner.lower() else "vllm"
        self._model, self._root = model, str(client.base_url).rstrip("/").removesuffix("/v1")
        try:
            tensors = await (self._open_sglang if self._engine == "sglang" else self._open_vllm)(
                client
            )
        except BadReply as error:
            raise UserError(f"the server's states cannot be used: {error}") from error
        self.norm.load(tensors)
        local = weights_digest(self.model_path)
        if local and self._engine == "vllm" and local != self.weights:
            raise UserError(
                f'the server has other weights than model_path "{self.model_path}" (SHA-256 '
                f"{self.weights[:12]}, here {local[:12]}): serve that folder, or set model_path to "
                "what is served"
            )
        if self._engine == "sglang" and local:
            self._compare_norm(tensors)
            self.weights = local

    def _compare_norm(self, tensors: dict[str, torch.Tensor]) -> None:
        ours = checkpoint_tensors(self.model_path, list(tensors))
        for name, theirs in tensors.items():
            if not torch.allclose(ours[name].float(), theirs, rtol=0.01, atol=1e-3):
                raise UserError(
                    f'the server has other weights than model_path "{self.model_path}" ({name} '
                    "differs): serve that folder, or set model_path to what is served"
                )

    async def read(self, client: AsyncOpenAI, turns: Sequence[Turn]) -> None:
        """Fill in states and log-probabilities of turns of one dialogue, in order, whose ids are
        known. UserError when its replies have failed their checks TRIES times.
        """
        import openai

        for number in range(1, TRIES + 1):
            try:
                for together in passes(turns):
                    await self._read_pass(client, together)
                return
            except BadReply as error:
                if number == TRIES:
                    raise UserError(f"the server's states failed their check: {error}") from error
            except (openai.OpenAIError, ValueError) as error:
                raise UserError(f"the server's states: {brief(error)}") from error

    async def _read_pass(self, client: AsyncOpenAI, turns: Sequence[Turn]) -> None:
        """Give turns of one pass what stands at their positions."""
        ids = turns[-1].prompt_ids + turns[-1].answer_ids
        wanted = sorted({place for turn in turns for place in places(turn).values()})
        ask = self._read_sglang if self._engine == "sglang" else self._read_vllm
        # the token at position n was predicted with logprobs[n], the likeliest with highest[n]
        found, last, logprobs, highest = await ask(client, ids, wanted)
        found[:, -1] = self.norm(last)
        states = dict(zip(wanted, found, strict=True))
        for turn in turns:
            turn.states = {}
            for key, place in places(turn).items():
                if problem := beyond_half(states[place]):
                    raise UserError(f"turn {turn.number}: {problem}")
                turn.states[key] = states[place]
            first = places(turn)[BEFORE_GENERATION] + 1
            turn.logprobs = [float(one) for one in logprobs[first : first + len(turn.answer_ids)]]
            turn.first_token_confidence = math.exp(highest[first])

    # --- vLLM ---------------------------------------------------------------------------------

    async def _open_vllm(self, client: AsyncOpenAI) -> dict[str, torch.Tensor]:
        names = list(self.norm.tensors.values())
        asked = {"positions": [0], "tensors": names, "identity": True}
        _, info, file, about = await self._ask_vllm(client, [1, 2, 3], asked, IDENTITY_SECONDS)
        if about.get("error"):
            raise UserError(f"the server cannot read its checkpoint: {about['error']}")
        self.weights, self.dtype = about.get("weights", ""), info["dtype"]
        if self._asked_dtype not in ("auto", self.dtype):
            raise UserError(
                f'the server computes in {self.dtype}, config.json says "dtype": '
                f'"{self._asked_dtype}": start vLLM with --dtype {self._asked_dtype}, or set "auto"'
            )
        return {name: torch.from_numpy(file[f"tensor.{name}"]) for name in names}

    async def _read_vllm(
        self, client: AsyncOpenAI, ids: list[int], wanted: list[int]
    ) -> tuple[Any, ...]:
        """Return FP16 states, the last layer's in float32, and log-probabilities (`_read_pass`)."""
        asked = {"positions": wanted}
        choice, _, file, _ = await self._ask_vllm(client, ids, asked, FILE_SECONDS)
        return file["states"].copy(), file["last"], *_prompt_logprobs(choice, ids)

    async def _ask_vllm(
        self, client: AsyncOpenAI, ids: list[int], asked: dict[str, Any], seconds: float
    ) -> tuple[dict, dict, dict[str, np.ndarray], dict[str, str]]:
        """Return (choice, what the connector says, its file's arrays, its file's metadata)."""
        body = {
            "model": self._model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "prompt_logprobs": 1,
            "return_token_ids": True,
            "cache_salt": uuid.uuid4().hex,  # so that no token's states are those of a cache
            "kv_transfer_params": {"spikescore": asked},
        }
        reply = await _post(client, "/completions", body)
        _require(isinstance(reply, dict), "the reply is no object")
        info = (reply.get("kv_transfer_params") or {}).get("spikescore")
        flags = vllm_flags(self.n_layers)
        if not isinstance(info, dict):
            raise UserError(f"the server gives no hidden states; start it so:\n  {flags}")
        if info.get("error") or not isinstance(info.get("file"), str):
            raise BadReply(str(info.get("error") or "no file is named"))
        path = Path(info["file"])
        if not _FILE.fullmatch(path.name):  # it is removed below, so it must be the connector's
            raise BadReply(f'"{path.name}" is no name of a file of states')
        try:
            if info.get("layers") != layer_ids("vllm", self.n_layers):
                raise UserError(
                    f"the server gives the states of layers {info.get('layers')}, not of all from "
                    f"0 to {self.n_layers}; start it so:\n  {flags}"
                )
            if info.get("hidden_size") != self.hidden_size:
                raise UserError(
                    f"the server's states have {info.get('hidden_size')} values, those of "
                    f'model_path "{self.model_path}" {self.hidden_size}: serve that model'
                )
            if info.get("cached_tokens") != 0:
                raise BadReply(
                    f"{info.get('cached_tokens')} tokens came out of the server's cache; start "
                    "vLLM with --no-enable-prefix-caching"
                )
            choice = (reply.get("choices") or [{}])[0]
            _require(choice.get("prompt_token_ids") == ids, "the server read other token ids")
            file, about = await _arrays(path, seconds)
        finally:
            path.unlink(missing_ok=True)
        self._check_file(file, ids, asked["positions"])
        return choice, info, file, about

    def _check_file(
        self, file: dict[str, np.ndarray], ids: list[int], positions: list[int]
    ) -> None:
        n, wide = len(positions), self.hidden_size
        shapes = {
            "token_ids": ("int32", (len(ids),)),
            "positions": ("int32", (n,)),
            "states": ("float16", (n, self.n_layers + 1, wide)),
            "last": ("float32", (n, wide)),
        }
        for name, (dtype, shape) in shapes.items():
            found = file.get(name)
            there = None if found is None else (str(found.dtype), found.shape)
            _require(there == (dtype, shape), f"{name} is {there}, not {(dtype, shape)}")
        _require(file["token_ids"].tolist() == ids, "the states are of other token ids")
        _require(file["positions"].tolist() == positions, "the states are of other positions")
        numbers = not np.isnan(file["states"]).any() and np.isfinite(file["last"]).all()
        _require(bool(numbers), "some values are no numbers")
        with np.errstate(over="ignore"):
            same = np.array_equal(file["states"][:, -1], file["last"].astype(np.float16))
        _require(same, "the last layer's states are not those of the last layer")

    # --- SGLang -------------------------------------------------------------------------------

    async def _open_sglang(self, client: AsyncOpenAI) -> dict[str, torch.Tensor]:
        tensors = {}
        for name in self.norm.tensors.values():
            body = {"name": name, "truncate_size": self.hidden_size}
            values = await _post(client, f"{self._root}/get_weights_by_name", body)
            _require(
                isinstance(values, list) and len(values) == self.hidden_size,
                f"SGLang gives no {name}",
            )
            tensors[name] = torch.tensor(values, dtype=torch.float32)
        content = b"".join(one.numpy().tobytes() for one in tensors.values())
        self.weights = f"norm-{hashlib.sha256(content).hexdigest()}"
        await self._ask_sglang(client, [1, 2, 3])
        return tensors

    async def _read_sglang(
        self, client: AsyncOpenAI, ids: list[int], wanted: list[int]
    ) -> tuple[Any, ...]:
        """As `_read_vllm`."""
        rows, info = [], {}
        for place in wanted:  # one after the other: each goes on from what the cache has
            # the last of them reads the log-probabilities of all tokens
            row, info = await self._ask_sglang(client, ids[: place + 1], place == wanted[-1])
            rows.append(row)
        states = np.stack(rows)
        return states.astype(np.float16), states[:, -1], *_sglang_logprobs(info, ids)

    async def _ask_sglang(
        self, client: AsyncOpenAI, ids: list[int], logprobs: bool = False
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the float32 states `[L + 1, hidden]` of the last token, and what is said of it."""
        body = {
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_hidden_states": "last",
        }
        if logprobs:
            body |= {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1}
        reply = await _post(client, f"{self._root}/generate", body)
        info = reply.get("meta_info") if isinstance(reply, dict) else None
        _require(isinstance(info, dict), "SGLang's reply has no meta_info")
        if info.get("hidden_states") is None:
            raise UserError(
                "SGLang gives no hidden states: start it with --enable-return-hidden-states"
            )
        _require(info.get("prompt_tokens") == len(ids), "SGLang read another number of tokens")
        try:
            row = np.array(info["hidden_states"], dtype=np.float32).reshape(-1)
        except ValueError as error:
            raise BadReply("SGLang's states have no one shape") from error
        if row.size == self.hidden_size:
            raise UserError(
                "SGLang gives the states of the last layer alone: let it capture the auxiliary "
                f"layers {layer_ids('sglang', self.n_layers)}"
            )
        _require(
            row.size == (self.n_layers + 1) * self.hidden_size,
            f"{row.size} values are not {self.n_layers + 1} layers of {self.hidden_size}",
        )
        _require(bool(np.isfinite(row).all()), "some values are no numbers")
        return row.reshape(self.n_layers + 1, self.hidden_size), info


def checkpoint_tensors(model_path: str, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Read some tensors of a local checkpoint in safetensors; UserError where it lacks them."""
    from spikescore.model.loading import weight_files

    found: dict[str, torch.Tensor] = {}
    for file in weight_files(model_path):
        with safe_open(file, "pt") as opened:
            there = set(opened.keys()) & set(names)
            found |= {name: opened.get_tensor(name) for name in there}
    if missing := set(names) - found.keys():
        raise UserError(f'model_path "{model_path}" has no tensor {", ".join(sorted(missing))}')
    return found


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BadReply(otherwise)


async def _post(client: AsyncOpenAI, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, body=body, cast_to=httpx.Response)
    try:
        return json.loads(response.content)
    except ValueError as error:
        raise BadReply(f"the reply is no JSON: {redacted(response.text)[:100]}") from error


async def _arrays(path: Path, seconds: float) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file when it is there, which is when it is whole."""
    waited = 0.0
    while not path.is_file():
        if waited > seconds:
            raise BadReply(
                f'the file of states "{path}" did not appear within {seconds:g} s: this machine '
                "must see the server's folder under the same path"
            )
        pause = min(1.0, 0.005 + waited / 10)
        await asyncio.sleep(pause)
        waited += pause
    try:
        with safe_open(path, "np") as opened:
            return {
                name: opened.get_tensor(name) for name in opened.keys()
            }, opened.metadata() or {}
    except (SafetensorError, OSError, TypeError) as error:
        raise BadReply(f'the file of states "{path}" cannot be read: {error}') from error


def _prompt_logprobs(
    choice: dict[str, Any], ids: list[int]
) -> tuple[list[float | None], list[float | None]]:
    """The log-probability of every token, and the highest at its place; of the token that would
    come next the highest alone. None for the first, which nothing predicts.
    """
    said = choice.get("prompt_logprobs")
    _require(isinstance(said, list) and len(said) == len(ids), "log-probabilities are missing")
    logprobs: list[float | None] = [None]
    highest: list[float | None] = [None]
    try:
        for token, one in zip(ids[1:], said[1:], strict=True):
            logprobs.append(float(one[str(token)]["logprob"]))
            highest.append(max(float(entry["logprob"]) for entry in one.values()))
        highest.append(max(map(float, choice["logprobs"]["top_logprobs"][0].values())))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadReply(f"log-probabilities of other tokens ({error!r})") from error
    _require(all(map(math.isfinite, highest[1:])), "log-probabilities are no numbers")
    return logprobs, highest


def _sglang_logprobs(
    info: dict[str, Any], ids: list[int]
) -> tuple[list[float | None], list[float | None]]:
    """As `_prompt_logprobs`, from SGLang's lists of (log-probability, id, text)."""
    try:
        said = info["input_token_logprobs"]
        _require([one[1] for one in said] == ids, "SGLang's log-probabilities are of other tokens")
        logprobs = [None, *(float(one[0]) for one in said[1:])]
        highest = [None, *(float(one[0][0]) for one in info["input_top_logprobs"][1:])]
        highest.append(float(info["output_top_logprobs"][0][0][0]))
        _require(len(highest) == len(ids) + 1, "log-probabilities are missing")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadReply(f"SGLang gives no log-probabilities ({error!r})") from error
    return logprobs, highest
