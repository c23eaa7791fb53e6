"""The house rules that a machine can check: who imports whom, and how long a file may grow."""

from __future__ import annotations

import ast
import gc
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dori_fast"

# a room may import from itself and from rooms on lower floors
FLOORS = [
    {"cli"},
    # the demo tells the whole story
    {"demo"},
    {"report", "scan", "integrations"},
    {"detect", "prune", "attack", "mitigate", "finetune", "evaluate"},
    {"models"},
    # other tools' signatures over the operators
    {"functional"},
    {"ops"},
    {"reference", "triton_kernels"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# finetune's inner loop is the attack
ALLOWED_SIDEWAYS = {("finetune", "attack")}
# plumbing (torch at most) that every room may use; it imports no room but the ones below it
PLUMBING = {
    "errors",
    "_backend",
    "_checks",
    "_extension",
    "_info",
    "_library",
    "_text",
    "testing",
}
# the third-party libraries that a room must not know
FORBIDDEN = {
    "ops": {"diffusers", "transformers"},
    "reference": {"diffusers", "transformers", "triton"},
    "triton_kernels": {"diffusers", "transformers"},
    "models": {"typer", "rich", "pyarrow"},
    "detect": {"typer", "rich", "pyarrow", "pathlib"},
    "prune": {"typer", "rich", "pyarrow", "pathlib"},
}


def imports(path: Path) -> set[str]:
    """Absolute dotted names that a file imports, at top level or inside functions."""
    found = set()
    # CPython 3.11 loses count of its depth when garbage is collected while it builds a tree
    # (python/cpython issue 106905)
    gc.disable()
    try:
        tree = ast.parse(path.read_text())
    finally:
        gc.enable()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it in full"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_direction(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in FLOOR or room in PLUMBING, f"{room} has no place in the house: name its floor"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "dori_fast":
            assert parts[0] not in FORBIDDEN.get(room, set()), f"{room} must not import {parts[0]}"
        elif len(parts) > 1 and parts[1] != room:
            target = parts[1]
            if target in PLUMBING or target == "__version__":
                continue
            assert target in FLOOR, f"{path}: imports {name}, which stands above"
            if room in PLUMBING:
                lowest_user = FLOOR["ops"]
                assert FLOOR[target] >= lowest_user, f"plumbing {room} imports {name}"
            else:
                below = FLOOR[target] > FLOOR[room] or (room, target) in ALLOWED_SIDEWAYS
                assert below, f"{path}: {room} imports {name}, sideways or upwards"


def test_an_upward_import_is_caught(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    from dori_fast.cli import main\n")
    assert "dori_fast.cli" in imports(path)
    assert FLOOR["cli"] < FLOOR["models"]


def test_importing_the_package_is_light():
    import subprocess
    import sys

    code = (
        "import sys, dori_fast; "
        "heavy = {'torch', 'triton', 'diffusers', 'transformers', 'pyarrow'} & set(sys.modules); "
        "sys.exit(f'import dori_fast loads {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SOURCES = [
    path
    for folder, pattern in [
        ("dori_fast", "*.py"),
        ("tests", "*.py"),
        ("benchmarks", "*.py"),
        ("csrc", "*.*"),
    ]
    for path in (ROOT / folder).rglob(pattern)
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    limit = 350 if path.suffix == ".py" else 400
    lines = len(path.read_text().splitlines())
    assert lines <= limit, f"{path.name} has {lines} lines, over {limit}: split it by purpose"
