"""Which file imports which, read from the source without running it."""

from __future__ import annotations

import ast
import gc
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
TREES = ("dori_fast", "benchmarks", "recipes", "tests")

Graph = dict[str, set[str]]
"""By dotted name of a file, the dotted names that it imports; ours are names of files."""


@cache
def parsed(source: str) -> ast.Module:
    """A source as a tree."""
    # CPython 3.11 loses count of its depth when garbage is collected while it builds a tree
    # (python/cpython issue 106905)
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        gc.enable()


def module_name(path: Path) -> str:
    """``dori_fast.models.load`` for its path relative to the root; a package by its folder."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, str]:
    """The text of every Python file of the project by its dotted name."""
    paths = [path for tree in TREES for path in (ROOT / tree).rglob("*.py")]
    return {module_name(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)}


def graph(texts: Mapping[str, str]) -> Graph:
    """The imports of every file, those inside functions and of type checkers included.

    A name that a package only re-exports counts as an import of the file that defines it, since
    ``from dori_fast.models import load`` makes the importer depend on ``dori_fast.models.load``.
    """
    packages = {name.rpartition(".")[0] for name in texts}
    exports = {name: _taken(texts[name]) for name in packages & texts.keys()}

    def home(module: str, name: str) -> str:
        """The file that ``from module import name`` leads to."""
        further, submodule = exports.get(module, {}).get(name), f"{module}.{name}"
        if further is not None and further != (module, name) and further[0] in texts:
            return home(*further)
        return submodule if submodule in texts else module

    found: Graph = {}
    for name, text in texts.items():
        modules, names = _imports(name, text)
        found[name] = (modules | {home(*each) for each in names}) - {name}
    return found


@cache
def _imports(name: str, text: str) -> tuple[frozenset[str], frozenset[tuple[str, str]]]:
    """Modules that a file imports, and the names that it takes from modules."""
    modules, names = set(), set()
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{name}: relative import in line {node.lineno}; write it in full")
            names |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            match node.func, node.args[0]:
                # import_module and __import__ of a name that is written out
                case (
                    ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"),
                    ast.Constant(str(module)),
                ):
                    modules.add(module)
    return frozenset(modules), frozenset(names)


@cache
def _taken(text: str) -> dict[str, tuple[str, str]]:
    """The names that a package takes from elsewhere: by its name there, the module and name."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(parsed(text))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def circles(found: Graph) -> list[list[str]]:
    """Files that import one another, each circle once: strongly connected components (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(found[node] & found.keys()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                components.append(sorted(component))

    for node in sorted(found):
        if node not in index:
            visit(node)
    return components
