"""Fixtures: a tiny chat model with random weights, and a runner for the scripts."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.factories import write_config, write_sums
from tests.helpers.running import ended_after, make_tokenizer

# the same examples in every run: a test that fails by chance stops others' work
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

# a shell that starts the tests in the background has them, and all they start, ignore Ctrl-C
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = [
    "test_documentation.py", "test_reproduce.py", "test_reasoning_lite.py",
    "test_generate_answers.py", "test_metrics_probe.py", "test_eval_probe.py",
    "test_trained_detectors.py", "test_score_methods.py", "test_serving.py",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the modules that take minutes, the longest first, so that no core is idle at the
    end.
    """
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def nothing_outlives_its_test():
    """End the process group of whatever a test has started, however the test ends."""
    with ended_after():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a random 3-layer Llama of width 64 and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def questions_file(tmp_path) -> Path:
    """Twelve addition questions in the project's own form."""
    return write_sums(tmp_path / "sums.json")


@pytest.fixture
def config_file(tmp_path, tiny_model, questions_file) -> Path:
    """A config.json for the tiny model: 12 questions, 5 turns of at most 8 tokens."""
    return write_config(tmp_path, tiny_model, questions_file)


BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; a test is skipped where there is none, unless one is required.

    Not for the session: Playwright's event loop would be in the way of other modules' own.
    """
    problem = "" if shutil.which("chromium") else "no chromium on the PATH (Debian: chromium)"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        problem = 'no playwright for Python (pip install -e ".[test]")'
    if problem:
        (pytest.fail if os.environ.get("REQUIRE_BROWSER") == "1" else pytest.skip)(problem)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=BROWSER_FLAGS
        )
        yield started
        started.close()
