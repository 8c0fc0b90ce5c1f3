"""How a user's mistake ends: one clear message and exit status 2, no traceback and no secret."""

from __future__ import annotations

import base64
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from urllib.parse import quote, unquote

log = logging.getLogger("spikescore")

_REMEDIES = {
    errno.ENOSPC: "make room on that disk and run the same command again",
    errno.EDQUOT: "make room within your quota and run the same command again",
    errno.EFBIG: "the limit on the size of a file is too low (ulimit -f)",
    errno.EACCES: "choose another path, or change its permissions",
    errno.EPERM: "choose another path, or change its permissions",
    errno.EROFS: "choose a path on a disk that can be written to",
    errno.EISDIR: "a folder stands where the file should be; move it away or choose another path",
    errno.ENOTDIR: "a file stands where a folder should be; move it away or choose another path",
    errno.EEXIST: "a file stands where a folder should be; move it away or choose another path",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter path",
}


class UserError(Exception):
    """A mistake the user can mend. The message says what is wrong, where, and what to do."""


class Refused(UserError):
    """The operating system refused a file. No item is to blame, so a run ends at it."""


def refused(error: OSError, path: object = None, what: str = "cannot be used") -> Refused:
    """Return what the operating system refused as one line: which path, why, and what to do."""
    path = path or error.filename2 or error.filename
    reason = error.strerror or f"{type(error).__name__} {error}".strip()
    remedy = _REMEDIES.get(error.errno or 0)
    text = f'"{path}" {what}: {reason}' if path else f"the operating system says: {reason}"
    return Refused(" ".join(f"{text}; {remedy}".split()) if remedy else " ".join(text.split()))


_HIDDEN = "***"
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/\s\"'<>]+@")  # user and password of an address
_SHAPES = re.compile(
    r"\b(?:sk-[\w-]{8,}|(?:hf|gsk|ghp|r8)_[A-Za-z0-9]{20,}|(?:xai|nvapi|pplx)-[\w-]{20,}|AIza[\w-]{20,})"
    r"|(?i:(?<=bearer )|(?<=basic ))(?=\S*[\d=])[\w.~+/=-]{8,}"
)
_QUERY = re.compile(
    r"([?&](?:[\w-]*(?:key|token|password|secret|signature)|sig)=)[^\s&\"'<>]+", re.IGNORECASE
)
_told: set[str] = set()


def keep_secret(text: str | None) -> None:
    """Have `redacted` hide a key, or what an address says of user and password, from now on.

    What stands in the environment under a name that ends in KEY, TOKEN, SECRET or PASSWORD, and
    what its addresses hold, is hidden without this.
    """
    _told.update(_parts(text or ""))


def _parts(text: str) -> Iterator[str]:
    """Yield the secrets of a key or an address: as it stands, decoded, encoded, and as sent.

    What is too short is left out: it would be hidden inside other words, and "none" is no key.
    """
    login = _LOGIN.search(text)
    if login is None:
        if "://" not in text and len(text) >= 8:
            yield text
        return
    user, _, password = login.group()[:-1].partition(":")
    secret = password or user
    if len(secret) >= 4:
        yield from (secret, unquote(secret), quote(unquote(secret), safe=""))
    for pair in (f"{user}:{password}", f"{unquote(user)}:{unquote(password)}"):
        basic = base64.b64encode(pair.encode()).decode()
        yield from (basic, basic.rstrip("="))


def redacted(text: str) -> str:
    """Return a text for people without keys, tokens and passwords: "http://***@host/v1"."""
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """Return `redacted` for many texts: what is secret is asked once, now."""
    named = [value for name, value in os.environ.items() if _SECRET_NAME.search(name)]
    addresses = [value for value in os.environ.values() if "://" in value]
    secrets = sorted(_told.union(*map(_parts, (*named, *addresses))), key=len, reverse=True)

    def hide(text: str) -> str:
        text = _QUERY.sub(rf"\1{_HIDDEN}", _LOGIN.sub(f"{_HIDDEN}@", text))
        for secret in secrets:
            text = text.replace(secret, _HIDDEN)
        return _SHAPES.sub(_HIDDEN, text)

    return hide


STARTER = "SPIKESCORE_STARTED_BY"
"""Environment variable with the id of the process that a script is to end with."""


def _end_with_starter() -> None:
    """End this process when the script that started it has ended, even by kill -9."""
    starter = os.environ.pop(STARTER, "")

    def watch() -> None:
        while str(os.getppid()) == starter:
            time.sleep(0.5)
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2 * ONE_REQUEST)

    if starter.isdecimal():
        threading.Thread(target=watch, daemon=True).start()


ONE_REQUEST = 10.0
"""Seconds within which several signals are one request to stop, however many ways it came."""


@contextmanager
def _stopped_by_signals() -> Iterator[list[int]]:
    """Within the block SIGTERM and SIGUSR1, by which schedulers announce that they take the machine
    away, stop the program as Ctrl-C does: by a KeyboardInterrupt. Yields the signals that came.
    """
    came: list[int] = []
    owner, last = os.getpid(), -ONE_REQUEST

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != owner and number != signal.SIGINT:  # a worker, which has nothing to keep
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number != signal.SIGINT and _is_importing(frame):
            print(f"ended by {signal.Signals(number).name} while starting", file=sys.stderr)
            sys.stderr.flush()
            os._exit(128 + signal.SIGTERM)
        came.append(number)
        before, last = last, time.monotonic()
        if last - before >= ONE_REQUEST or number == signal.SIGINT:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    ours = [number for number in numbers if before[number] is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    try:
        for number in ours:
            signal.signal(number, stop)
        yield came
    finally:
        for number in ours:
            if signal.getsignal(number) is stop:
                signal.signal(number, before[number])


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: libraries swallow there whatever is raised."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0 or its return value; 2 on UserError and on whatever the
    operating system refuses; 130 on Ctrl-C and 143 on SIGTERM or SIGUSR1, with the text of the
    KeyboardInterrupt if it has one.

    What goes to the terminal here, a traceback included, holds no secret (see `redacted`).
    Characters that the terminal cannot show, as in the name of a file, are escaped.
    """
    _end_with_starter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with _stopped_by_signals() as signals:
        status = _status_of(main, signals)
    sys.exit(status)


def _status_of(main: Callable[[], int | None], signals: list[int]) -> int:
    try:
        status = main()
        sys.stdout.flush()  # here, where a full disk is still an error
    except UserError as error:
        print(f"error: {redacted(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as stop:
        kept = str(stop) or "what was finished is kept; run the same command to go on"
        first = signals[0] if signals else signal.SIGINT
        how = "interrupted" if first == signal.SIGINT else f"ended by {signal.Signals(first).name}"
        print(f"{how}: {kept}", file=sys.stderr, flush=True)
        status = 130 if first == signal.SIGINT else 128 + signal.SIGTERM
    except BrokenPipeError:
        status = 1
    except MemoryError:
        print("error: there is no memory left; what was finished is kept", file=sys.stderr)
        status = 2
    except OSError as error:
        log.debug("refused by the operating system", exc_info=True)
        print(f"error: {redacted(str(refused(error)))}", file=sys.stderr)
        status = 2
    except Exception:  # a fault of ours
        print(redacted(traceback.format_exc()), file=sys.stderr, end="")
        status = 1
    return status or 0
