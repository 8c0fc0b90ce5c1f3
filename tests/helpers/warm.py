"""A Python that has the heavy libraries, and forks for each script what a fresh one would take
seconds to import. None of the project's own modules is imported before a script asks for it.

Run by `tests.helpers.running` with the number of a socket. A request is a byte with the script's
three streams and a line of JSON, {"argv", "env", "cwd"}; the reply is the script's process id. The
script heads a session of its own and, as the process between them ends at once, is the child of
whoever asked (who is a subreaper), not of this process.
"""

import gc
import json
import multiprocessing.process
import os
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

HEAVY = (
    "accelerate", "matplotlib.figure", "openai", "safetensors.torch", "scipy.stats",
    "sklearn.linear_model", "torch", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama",
)  # fmt: skip


def forked(channel: socket.socket) -> list[str]:
    """Serve until the other end closes, and exit; return a script's command line in its process."""
    lines = channel.makefile()
    while True:
        _, streams, *_ = socket.recv_fds(channel, 1, 3)
        if not streams:
            sys.exit()
        request = json.loads(lines.readline())
        between = os.fork()
        if between == 0:
            script = os.fork()
            if script:
                channel.sendall(str(script).encode())
                os._exit(0)
            os.setsid()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            lines.close()
            channel.close()
            os.environ.clear()
            os.environ.update(request["env"])
            os.chdir(request["cwd"])
            multiprocessing.process.ORIGINAL_DIR = os.getcwd()
            return request["argv"]
        for stream in streams:
            os.close(stream)
        os.waitpid(between, 0)
        channel.sendall(b"\n")


def play(names: dict) -> NoReturn:
    """Run the script that sys.argv names as __main__, whose names are emptied, and exit as Python
    does, but without taking apart the libraries, which would take longer than most scripts.
    """
    import atexit
    import gc
    import threading

    path = os.path.abspath(sys.argv[0])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [os.path.dirname(path), *filter(None, given)]
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    own = {"__name__": "__main__", "__file__": path, "__builtins__": names["__builtins__"]}
    own |= dict.fromkeys(("__spec__", "__package__", "__doc__"))
    leave, out, err = os._exit, sys.stdout, sys.stderr
    names.clear()
    names.update(own)
    try:
        exec(code, names)
        status = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        status = end.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    names.clear()  # what the script left open is closed
    gc.collect(0)
    out.flush()
    err.flush()
    leave(status & 0xFF)


if __name__ == "__main__":
    for name in HEAVY:
        with suppress(ImportError):
            import_module(name)
    gc.freeze()
    sys.argv = forked(socket.socket(fileno=int(sys.argv[1])))
    play(globals())
