"""What you edit: the judge's client and credentials, and how much the scripts log.

The client is set up from the environment, so that no key ever stands in a file:

    export OPENAI_API_KEY=...            required by the judges "openai" and "llm_<model>"
    export OPENAI_BASE_URL=...           optional: any server with the OpenAI interface
    export NIL_MODEL=...                 optional: the judging model, default gpt-4o-mini

Or set it up here: a `client = OpenAI(api_key=..., base_url=...)` in this file is what judges.
To label finished pairs, or label them again: python scripts/label_answers.py --help
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spikescore.errors import UserError, keep_secret, redacted

if TYPE_CHECKING:
    from openai import AsyncOpenAI


def make_client(*, timeout: float, max_retries: int) -> AsyncOpenAI:
    """Return the client of the chat judges; UserError when OPENAI_API_KEY is not set."""
    from openai import AsyncOpenAI

    if mine := globals().get("client"):
        keep_secret(mine.api_key)
        keep_secret(str(mine.base_url))
        return AsyncOpenAI(
            api_key=mine.api_key,
            base_url=mine.base_url,
            organization=mine.organization,
            project=mine.project,
            default_headers=mine._custom_headers,
            default_query=mine._custom_query,
            timeout=timeout,
            max_retries=max_retries,
        )
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        raise UserError(
            'the judge "openai" (or "llm_...") needs the environment variable OPENAI_API_KEY (any '
            "text will do for a local server under OPENAI_BASE_URL); or choose a judge that needs "
            'no network: "auto", "exact", "numeric", "choice", "math"'
        )
    url = os.environ.get("OPENAI_BASE_URL") or None
    return AsyncOpenAI(api_key=key, base_url=url, timeout=timeout, max_retries=max_retries)


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def configure_logging(verbose: bool = False) -> None:
    """Log the project's messages to the terminal's error stream; `verbose` adds the details."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting("%(levelname)s %(message)s"))
    log = logging.getLogger("spikescore")
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    logging.getLogger("httpx").setLevel(logging.WARNING)


if __name__ == "__main__":  # labelling stood here once
    print("utils.py: labelling is now scripts/label_answers.py", file=sys.stderr)
    script = Path(__file__).resolve().parent / "scripts" / "label_answers.py"
    os.execv(sys.executable, [sys.executable, str(script), *sys.argv[1:]])
