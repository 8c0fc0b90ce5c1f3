"""How a user's mistake ends: one clear message and exit status 2, never a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

log = logging.getLogger("spikescore")


class UserError(Exception):
    """A mistake the user can mend. The message says what is wrong, where, and what to do."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0 or its return value, 2 on UserError, 130 on Ctrl-C."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(
            "interrupted: finished pairs are kept; run the same command to go on", file=sys.stderr
        )
        status = 130
    except BrokenPipeError:
        status = 1
    sys.exit(status or 0)
