"""A Python that has the heavy libraries, and forks for each script what a fresh one would take
seconds to import. None of the project's own modules is imported before a script asks for it.

Run by `tests.helpers.running` with the number of a socket. A request is a byte with the script's
three streams and a line of JSON, {"argv", "env", "cwd"}; the reply is the script's process id. The
script heads a session of its own and, as the process between them ends at once, is the child of
whoever asked (who is a subreaper), not of this process.
"""

import json
import multiprocessing.process
import os
import socket
import sys
from contextlib import suppress
from importlib import import_module

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


if __name__ == "__main__":
    for name in HEAVY:
        with suppress(ImportError):
            import_module(name)
    sys.argv = forked(socket.socket(fileno=int(sys.argv[1])))
    __file__ = os.path.abspath(sys.argv[0])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [os.path.dirname(__file__), *filter(None, given)]
    with open(__file__, "rb") as file:
        code = compile(file.read(), __file__, "exec", dont_inherit=True)
    for name in set(globals()) - {"code", "__file__", "__name__", "__builtins__"}:
        del globals()[name]
    exec(code)
