"""The library's imports run one way: those inside functions and for type checkers too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "spikescore"
GROUND = (
    "errors",
    "plugins",
    "runtime",
    "files",
    "journal",
    "pickles",
    "shards",
    "pairs",
    "packing",
)
ALLOWED = {
    "stats": set(),
    "data": set(),
    "model": set(),
    "labels": {"data"},
    "dialogues": {"stats", "data", "model", "labels"},
    "measures": {"data", "model", "labels", "dialogues"},
    "probes": {"stats", "dialogues", "measures"},
    "detectors": {"stats", "data", "model", "labels", "dialogues", "measures", "probes"},
    "report": {"stats", "dialogues", "detectors"},
}
"""What a package may import beside the ground and itself."""
SCRIPTS = {path.stem for path in (*ROOT.glob("*.py"), *ROOT.glob("scripts/*.py"))}
FILES = sorted(LIBRARY.rglob("*.py"))


def module_of(path: Path, root: Path = ROOT) -> str:
    """Return the dotted name of a module of the library."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


@cache
def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, module) of every import in a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found.append((node.lineno, inner if inner in MODULES else node.module))
    return found


def room(module: str) -> str:
    """Return the package, or the ground room, that a module of the library belongs to."""
    return module.split(".")[1] if "." in module else ""


def broken_rules(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield `file:line: rule` for every import of a file that the layers do not allow."""
    own = room(module_of(path, root))
    for line, found in imports(path):
        top = found.split(".")[0]
        where = f"{path.relative_to(root)}:{line}: "
        if top == "argparse" or top in SCRIPTS:
            yield f"{where}the library knows no script, so it imports no {top}"
        elif own == "stats" and top == "torch":
            yield f"{where}statistics are pure numpy, so stats imports no torch"
        elif top == "spikescore":
            allowed = {own, *ALLOWED.get(own, ()), *GROUND}
            if own in GROUND:
                allowed = set(GROUND[: GROUND.index(own) + 1])
            if room(found) not in allowed:
                yield f"{where}{own or 'spikescore'} may not import {room(found) or found}"


def test_imports_run_down():
    assert [rule for path in FILES for rule in broken_rules(path)] == []


def test_no_circles():
    """Modules can be put in an order in which each imports only those before it."""
    graph = {
        module: {found for _, found in imports(path) if found in MODULES and found != module}
        for module, path in MODULES.items()
    }
    while free := {module for module, needs in graph.items() if not needs & graph.keys()}:
        graph = {module: needs for module, needs in graph.items() if module not in free}
    circles = {module: sorted(needs & graph.keys()) for module, needs in graph.items()}
    assert circles == {}


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_says_what_it_is_for(package):
    text = ast.get_docstring(ast.parse((LIBRARY / package / "__init__.py").read_text("utf-8")))
    assert text and "tart" in text and len(text) > 100, "what it is for, and where to start reading"


def test_every_room_is_known():
    rooms = {
        path.stem for path in LIBRARY.iterdir() if path.stem not in ("__init__", "__pycache__")
    }
    assert rooms == {*GROUND, *ALLOWED}


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("model/engine.py", "import argparse", "no argparse"),
        ("stats/roc.py", "    import torch.nn", "no torch"),
        ("data/files.py", "    from spikescore.model import engine", "data may not import model"),
        ("labels/rules.py", "from spikescore.measures.file import x", "may not import measures"),
        ("report/text.py", "import utils", "no utils"),
        ("errors.py", "from spikescore.pairs import x", "errors may not import pairs"),
    ],
)
def test_a_broken_rule_is_named_with_file_and_line(tmp_path, file, line, rule):
    """The rules are tried on files that break them, so that a rule that finds nothing is seen."""
    path = tmp_path / "spikescore" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"if True:\n    pass\n{line.strip()}\n", encoding="utf-8")
    (found,) = broken_rules(path, tmp_path)
    assert found.startswith(f"spikescore/{file}:3: ") and rule in found
