"""What a run logs to Weights & Biases: its settings, metrics and tables. Never a file store.

WANDB_ENT, WANDB_API_KEY, WANDB_BASE_URL and WANDB_MODE are read from the environment. Without a key
the run is logged offline, into the run's own folder, and `wandb sync` can send it later. The log is
optional, so nothing about it ends a run or holds it up: no network, a key that is refused or a log
that breaks off are one warning each.
"""

from __future__ import annotations

import io
import logging
import netrc
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

log = logging.getLogger("spikescore")

PATIENCE = 10.0  # seconds for a server to answer, and to begin a run
END_PATIENCE = 20.0  # seconds for what is not sent yet when a run ends; the rest stays on disk
ONLINE, OFFLINE = ("online", "run", "shared"), ("offline", "dryrun", "disabled")


class Tracker:
    """One run's log, closed after its `with` block; with `enabled` false nothing is logged and
    wandb is not even imported.
    """

    def __init__(
        self, project: str, folder: Path, settings: Mapping[str, Any], *, enabled: bool
    ) -> None:
        self._run: Any = None
        if not enabled:
            return

        def begin() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            self._run = _begin(project, folder, dict(settings))

        self._try(begin, "nothing is logged")

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Log numbers by name."""
        if self._run:
            self._try(lambda: self._run.log(dict(metrics)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

        def add() -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._run.log({name: table})

        if self._run:
            self._try(add)

    def image(self, name: str, png: bytes, caption: str) -> None:
        """Log a plot."""

        def add() -> None:
            import wandb
            from PIL import Image

            picture = Image.open(io.BytesIO(png))
            self._run.log({name: wandb.Image(picture, caption=caption)})

        if self._run:
            self._try(add)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._run:
            self._try(lambda: self._run.finish())
            self._run = None

    def _try(self, step: Callable[[], None], otherwise: str = "the log ends here") -> None:
        try:
            step()
        except Exception as error:  # whatever it is: a log is not worth a run
            log.warning("W&B: %s; %s", _brief(error), otherwise)
            self._run = None


def _begin(project: str, folder: Path, settings: dict[str, Any]) -> Any:
    """Begin a run, offline where it cannot be online."""
    # what wandb reports about itself would hold up the end of a run where a server hangs
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    named = os.environ.pop("WANDB_MODE", "").strip()  # given to `init`; wandb reads no empty text
    if not os.environ.get("WANDB_BASE_URL", "").strip():
        os.environ.pop("WANDB_BASE_URL", None)
    import wandb

    def start(mode: str, **more: Any) -> Any:
        return wandb.init(
            project=project,
            entity=os.environ.get("WANDB_ENT") or None,
            dir=str(folder),
            config=settings,
            mode=mode,
            settings=wandb.Settings(silent=True, finish_timeout=END_PATIENCE, **more),
        )

    url = str(wandb.setup().settings.base_url)
    mode = named or ("online" if has_key(url) else "offline")
    if mode in OFFLINE:
        return start(mode)
    if mode not in ONLINE:
        why = f'WANDB_MODE is "{mode}", not one of {", ".join((*ONLINE, *OFFLINE))}'
    elif not has_key(url):  # wandb would ask for one at the terminal
        why = "no key is set"
    else:
        why = _unreachable(url)
    if not why:
        try:
            return start(mode, init_timeout=PATIENCE, login_timeout=PATIENCE)
        except Exception as error:  # of many kinds: key, network, server
            why = _brief(error)
    log.warning("W&B: %s; logged offline into %s, `wandb sync` sends it later", why, folder)
    return start("offline")


def has_key(url: str) -> bool:
    """Whether an account is set up: WANDB_API_KEY, or a login for the server kept in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY", "").strip():
        return True
    try:
        return netrc.netrc().authenticators(urlsplit(url).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _unreachable(url: str) -> str:
    """Why a server does not answer within `PATIENCE`; "" when it does, whatever it says.

    Asked in a thread, as a look-up of its name may take longer than any limit of the request.
    """
    import requests

    found: list[str] = []

    def ask() -> None:
        try:
            requests.get(url, timeout=PATIENCE, stream=True).close()
            found.append("")
        except requests.RequestException as error:
            found.append(f"{urlsplit(url).hostname} cannot be reached ({type(error).__name__})")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return found[0] if found else f"{urlsplit(url).hostname} does not answer"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
