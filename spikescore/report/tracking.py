"""What a run logs to Weights & Biases: its settings, metrics and tables. Never a file store.

The stages, the probe trainer and the tables call `log_run` when their work is done and written.
WANDB_ENT, WANDB_API_KEY, WANDB_BASE_URL and WANDB_MODE are read from the environment. Without a key
the run is logged offline, into a folder. The log is optional, so nothing about it ends a run or
holds it up: no network, a key that is refused or a log that breaks off are one warning each.
"""

from __future__ import annotations

import io
import logging
import netrc
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spikescore.report.content import Figure, Table

log = logging.getLogger("spikescore")

ANSWER = 4.0  # seconds for a server to answer at all
PATIENCE = 10.0  # seconds to begin a run on a server that answers
END_PATIENCE = 20.0  # seconds for what is not sent yet when a run ends; the rest stays on disk
ONLINE, OFFLINE = ("online", "run", "shared"), ("offline", "dryrun", "disabled")


def wanted() -> bool:
    """Whether the environment asks for a log: by WANDB_MODE, or by an account's key."""
    mode = os.environ.get("WANDB_MODE", "").strip()
    url = os.environ.get("WANDB_BASE_URL", "").strip() or "https://api.wandb.ai"
    return mode != "disabled" if mode else has_key(url)


def log_run(
    job: str,
    settings: Mapping[str, Any],
    figures: Mapping[str, Any],
    *,
    folder: Path | None = None,
    always: bool = False,
    tables: Mapping[str, Table] | None = None,
    plots: Mapping[str, Figure] | None = None,
) -> None:
    """Log a job that is done, where that is `wanted` or `always`: its settings, tables, plots and
    every number in `figures`, named "a/b" by its place in there. Prints where the log is.

    It lies in `folder`, else in WANDB_DIR or the working folder: nothing is put between the pairs.
    """
    folder = folder or Path(os.environ.get("WANDB_DIR", "").strip() or ".")
    told = {"job": job, "command": " ".join(sys.argv), **settings}
    with Tracker("spikescore", folder, told, enabled=always or wanted()) as tracker:
        tracker.log(dict(_numbers(figures)))
        for name, table in (tables or {}).items():
            tracker.table(name, table.header, table.rows)
        for name, plot in (plots or {}).items():
            tracker.image(name, plot.png, plot.caption)


def _numbers(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{above}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{above}{name}", value


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
            place = _place(self._run)
            self._try(lambda: self._run.finish())
            self._run = None
            if place:
                print(f"W&B: {place}")

    def _try(self, step: Callable[[], None], otherwise: str = "the log ends here") -> None:
        try:
            step()
        except Exception as error:  # whatever it is: a log is not worth a run
            log.warning("W&B: %s; %s", _brief(error), otherwise)
            self._run = None


def _place(run: Any) -> str:
    """Return where a run's log can be seen: its page, or its folder where it is offline."""
    if run.disabled:
        return ""
    if not run.offline and run.url:
        return run.url
    folder = Path(run.dir).parent
    return f"logged offline into {folder}; `wandb sync {folder}` sends it"


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
    """Why a server does not answer within `ANSWER`; "" when it does, whatever it says.

    Asked in a thread, as a look-up of its name may take longer than any limit of the request.
    """
    import requests

    found: list[str] = []

    def ask() -> None:
        try:
            requests.get(url, timeout=ANSWER, stream=True).close()
            found.append("")
        except requests.RequestException as error:
            found.append(f"{urlsplit(url).hostname} cannot be reached ({type(error).__name__})")

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    return found[0] if found else f"{urlsplit(url).hostname} does not answer"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
