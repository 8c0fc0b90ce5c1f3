"""How a user's mistake ends: one clear message and exit status 2, never a traceback."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable

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


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0 or its return value; 2 on UserError and on whatever the
    operating system refuses; 130 on Ctrl-C, with the text of the KeyboardInterrupt if it has one.
    """
    try:
        status = main()
        sys.stdout.flush()  # here, where a full disk is still an error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as stop:
        kept = str(stop) or "what was finished is kept; run the same command to go on"
        print(f"interrupted: {kept}", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        status = 1
    except MemoryError:
        print("error: there is no memory left; what was finished is kept", file=sys.stderr)
        status = 2
    except OSError as error:
        log.debug("refused by the operating system", exc_info=True)
        print(f"error: {refused(error)}", file=sys.stderr)
        status = 2
    sys.exit(status or 0)
