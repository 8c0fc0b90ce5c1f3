"""What a run logs to Weights & Biases: its settings, metrics and tables. Never a file store.

Without a key the run is logged offline, into the run's own folder, and `wandb sync` can send it
later; WANDB_ENT, WANDB_API_KEY and WANDB_MODE are read from the environment.
"""

from __future__ import annotations

import io
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HOST = "api.wandb.ai"


class Tracker:
    """One run's log; with `enabled` false nothing is logged and wandb is not even imported."""

    def __init__(
        self, *, enabled: bool, project: str, folder: Path, settings: Mapping[str, Any]
    ) -> None:
        self._run = None
        if not enabled:
            return
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project,
            entity=os.environ.get("WANDB_ENT") or None,
            dir=str(folder),
            config=dict(settings),
            mode=os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline"),
            settings=wandb.Settings(silent=True),
        )

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log numbers by name."""
        if self._run:
            self._run.log(dict(metrics))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        if self._run:
            import wandb

            self._run.log({name: wandb.Table(columns=list(columns), data=[list(r) for r in rows])})

    def image(self, name: str, png: bytes, caption: str) -> None:
        """Log a plot."""
        if self._run:
            import wandb
            from PIL import Image

            picture = Image.open(io.BytesIO(png))
            self._run.log({name: wandb.Image(picture, caption=caption)})

    def finish(self) -> None:
        """Close the log."""
        if self._run:
            self._run.finish()


def has_key() -> bool:
    """Whether an account is set up: WANDB_API_KEY, or a login kept in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY", "").strip():
        return True
    try:
        return netrc.netrc().authenticators(HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False
