"""What a user adds without editing the package: a class or function in a Python file of one's own.

It is named as "path/to/file.py:name". The file may import what lies beside it. Whatever is wrong
in it is told in one line: which file, which line, what Python says.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from spikescore.errors import UserError


def is_plugin(name: str) -> bool:
    """Whether a name is that of something in a file: "path/to/file.py:name"."""
    path, colon, inner = name.rpartition(":")
    return bool(colon) and path.endswith(".py") and inner.isidentifier()


def plugin_file(name: str) -> str:
    """Return the file of "path/to/file.py:name"."""
    return name.rpartition(":")[0]


def plugin_digest(name: str) -> str:
    """Return 12 hex digits over the content of a plug-in's file."""
    return sha256(Path(plugin_file(name)).read_bytes()).hexdigest()[:12]


def load_plugin(name: str) -> Any:
    """Return what "path/to/file.py:name" names; UserError where it cannot be had."""
    if not is_plugin(name):
        raise UserError(f'"{name}" names nothing in a file; write it as path/to/file.py:Name')
    file, _, inner = name.rpartition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f'"{name}": there is no file "{file}"')
    module = _load(path)
    if not hasattr(module, inner):
        own = [
            key
            for key, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
        ]
        raise UserError(f'"{file}" has no "{inner}"; it defines {", ".join(own) or "nothing"}')
    return getattr(module, inner)


@contextmanager
def own_faults(called: str = "") -> Iterator[None]:
    """Raise an error that comes out of a plug-in's code inside as a UserError that says where.

    `called` names what is called inside, if that is a plug-in: then an error is its own even where
    it comes from the call itself (other arguments).
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if where := fault_place(error) or called:
            raise UserError(f"{where}: {said(error)}") from error
        raise


def fault_place(error: BaseException) -> str:
    """Return 'file "mine.py", line 7', the last line of a plug-in that an error passed; or ""."""
    files = {str(path): path for path in _loaded}
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if frame.filename in files]
    return f'file "{_short(files[lines[-1].filename])}", line {lines[-1].lineno}' if lines else ""


_loaded: set[Path] = set()


@cache
def _load(path: Path) -> ModuleType:
    """Run a file as a module, once; what lies beside it can be imported from it."""
    name = f"plugin_{path.stem}_{len(_loaded)}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    _loaded.add(path)
    sys.modules[name] = module  # dataclasses look their module up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        with own_faults():
            spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(
            f'file "{_short(Path(error.filename or path))}", line {error.lineno}: {said(error)}'
        ) from error
    except SystemExit as error:
        raise UserError(f'file "{_short(path)}" ends the program when it is imported') from error
    return module


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def said(error: BaseException) -> str:
    """Return an error in one line: its kind and its text."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())
