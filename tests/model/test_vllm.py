"""A real vLLM server gives the texts and states that the local model gives: `make test-vllm`.

It needs an environment of its own (docs/cluster.md) and is skipped without one. VLLM names that
environment's `vllm`, VLLM_MODEL a model's folder. What it measures it prints, for docs/speed.md.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from spikescore.model.served_states import vllm_flags
from spikescore.pairs import TOKEN_KEYS, iter_records, read_states
from spikescore.runtime import unreachable
from tests.helpers.real_server import closed_port
from tests.helpers.running import ROOT, end, run_script, start, wait_until

VLLM = os.environ.get("VLLM", "")
MODEL = Path(os.environ.get("VLLM_MODEL") or ROOT / "models" / "smollm2-135m-instruct").resolve()

pytestmark = [
    pytest.mark.skipif(not VLLM, reason="no vLLM: `make test-vllm` makes one and runs this"),
    pytest.mark.skipif(
        bool(VLLM) and not (MODEL / "config.json").is_file(),
        reason=f'no model in "{MODEL}": python models/fetch.py smollm2-135m-instruct',
    ),
]
DIALOGUES, TURNS = 16, 8


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A vLLM server of the model; its address."""
    folder = tmp_path_factory.mktemp("vllm")
    n_layers = json.loads((MODEL / "config.json").read_text())["num_hidden_layers"]
    flags = vllm_flags(n_layers).split("--speculative-config")[1]
    flags = flags.replace("/a/folder/that/both/see", str(folder / "states"))
    port = closed_port()
    command = (
        f"exec {VLLM} serve {MODEL} --host 127.0.0.1 --port {port} --dtype float32 "
        f"--generation-config vllm --max-model-len 4096 --max-num-seqs {DIALOGUES} "
        f"--enforce-eager --speculative-config {flags}"
    )
    environment = {
        "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    log = folder / "log.txt"
    url = f"http://127.0.0.1:{port}/v1"
    with open(log, "wb") as output:
        process = start(["bash", "-c", command], stdout=output, stderr=output, env=environment)
        try:
            wait_until(lambda: process.poll() is not None or not unreachable(url))
            assert process.poll() is None, log.read_text()[-4000:]
            yield url
            assert list((folder / "states").iterdir()) == []
        finally:
            end(process)


def hold(config: Path, *settings: str) -> float:
    """Run stage 1 with these settings; returns its answer tokens per second."""
    flags = [part for setting in settings for part in ("--set", setting)]
    done = run_script("reasoning_lite.py", "--config", config, *flags)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "WARNING" not in done.stderr and "differ" not in done.stderr, done.stderr
    output = next(one for one in settings if one.startswith("output_dir=")).partition("=")[2]
    speed = json.loads((Path(output) / "speed.json").read_text())
    return speed["answer_tokens"] / speed["seconds"]


def test_texts_and_states_of_vllm_equal_the_local_ones(served, tmp_path, capfd):
    config = tmp_path / "config.json"
    settings = json.loads((ROOT / "config_demo.json").read_text())
    settings |= {
        "dataset_path": "./datasets/samples/triviaqa.json", "temperature": 0, "judge": "none",
        "max_steps": TURNS, "max_new_tokens": 32, "generation_timeout": None, "dtype": "float32",
        "sampling": {"strategy": "random", "n": DIALOGUES, "seed": 42},
    }  # fmt: skip
    config.write_text(json.dumps(settings))
    bare = tmp_path / MODEL.name
    shutil.copytree(MODEL, bare, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    server = ("backend=openai", f"server_url={served}", f"server_model={MODEL}", "states=server")
    warm = [*server, f"model_path={bare}", f"output_dir={tmp_path}/warm", "sampling.n=1"]
    hold(config, *warm)
    speed_theirs = hold(config, *server, f"model_path={bare}", f"output_dir={theirs}")
    speed_ours = hold(config, f"model_path={MODEL}", f"output_dir={ours}")

    records = {record["id"]: record for _, record in iter_records(ours)}
    others = {record["id"]: record for _, record in iter_records(theirs)}
    assert records.keys() == others.keys() and len(records) == DIALOGUES
    turns = same = compared = 0
    largest: np.ndarray | float = 0.0
    for name, record in records.items():
        a, b = (read_states(folder / f"{name}.pkl") for folder in (ours, theirs))
        pairs = zip(record["cot_steps"], others[name]["cot_steps"], strict=True)
        equal_so_far = True
        for one, two in pairs:
            turns += 1
            equal_so_far &= one["response"] == two["response"]
            same += equal_so_far
            # a model may write a text in other tokens than its tokenizer does
            equal_so_far &= one["response_ids"] == two["response_ids"]
            if not equal_so_far:
                continue
            compared += 1
            assert one["mean_logprob"] == pytest.approx(two["mean_logprob"], abs=1e-4)
            for key in TOKEN_KEYS:
                x, y = (states[one["turn"]][key].astype(float) for states in (a, b))
                gaps = np.abs(x - y) / np.maximum(1, np.abs(x))
                largest = np.maximum(largest, gaps.max(axis=1))
    with capfd.disabled():
        print(f"\nmodel {MODEL.name}, greedy, float32: {same} of {turns} turns have equal texts")
        print(f"states of {compared} turns with equal ids, 3 positions each: largest difference")
        print("(absolute up to 1, relative beyond) by layer, 0 being the embeddings:")
        for start_ in range(0, len(largest), 8):
            shown = " ".join(f"{value:.1e}" for value in largest[start_ : start_ + 8])
            print(f"  {start_:2d}  {shown}")
        print(f"vLLM with states {speed_theirs:.0f} tokens/s, engine {speed_ours:.0f} tokens/s")
    assert same >= 0.95 * turns and compared >= turns / 2
    assert largest.max() <= 4e-3
