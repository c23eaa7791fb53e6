"""What runs in CI is pinned by hash, and nothing in the package unpickles."""

from __future__ import annotations

import ast
import gc
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PACKAGE = sorted((ROOT / "dori_fast").rglob("*.py"))
PICKLING = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_are_pinned(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    # YAML reads a bare "on" as true
    assert workflow[True] and workflow["permissions"] == {"contents": "read"}
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"]), step
        for line in step.get("run", "").splitlines():
            if "pip install" in line:
                own = "--no-build-isolation --no-deps -e ." in line
                assert own or "--require-hashes" in line, line
                assert "extra-index-url" not in line, line
        for locked in re.findall(r"-r (\S+)", step.get("run", "")):
            assert (ROOT / locked).is_file(), locked


def test_there_is_a_test_an_audit_and_a_release() -> None:
    assert {path.stem for path in WORKFLOWS} == {"ci", "audit", "release"}
    audit = yaml.safe_load((ROOT / ".github/workflows/audit.yml").read_text())
    assert audit[True]["schedule"]
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "password" not in (ROOT / ".github/workflows/release.yml").read_text()
    assert any("cyclonedx-py" in step.get("run", "") for step in steps(release))


def locked(path: Path) -> set[str]:
    """Names in a lock file, each with one version and at least one hash."""
    entries = path.read_text().replace("\\\n", " ").splitlines()
    for entry in entries:
        pin = r"[a-z0-9._-]+==\S+( ; [^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+"
        assert re.fullmatch(pin, entry), f"{path.name}: {entry[:80]}"
    return {entry.split("==")[0] for entry in entries}


def test_locks_have_every_dependency_with_hashes_and_name_no_host() -> None:
    assert {path.name for path in LOCKS} == {"ci.txt", "tools.txt", "torch-cpu.txt"}
    names = set.union(*map(locked, LOCKS))
    assert not any("//" in path.read_text() for path in LOCKS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted = {re.split(r"[^\w-]", line)[0].lower() for line in needed}
    assert wanted <= names, f"not locked: {wanted - names}; see requirements/README.md"


def unpickling(source: str) -> list[str]:
    """Imports and calls of a file that may run a pickle's code."""
    gc.disable()  # as in test_architecture
    try:
        tree = ast.parse(source)
    finally:
        gc.enable()
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            called = ast.unparse(node.func)
            if called == "torch.load" and given.get("weights_only") is not True:
                found.append(called)
            if called.endswith("read_pickle") or given.get("allow_pickle", False) is not False:
                found.append(called)
        found += [name for name in names if name.split(".")[0] in PICKLING]
    return found


# what a scan's process sends to the workers that it starts comes from no file
BETWEEN_PROCESSES = {"dori_fast/runs/workers/worker.py"}
READING = [path for path in PACKAGE if str(path.relative_to(ROOT)) not in BETWEEN_PROCESSES]


@pytest.mark.parametrize("path", READING, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles(path: Path) -> None:
    assert unpickling(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch; torch.load(p)",
        "import torch; torch.load(p, weights_only=False)",
        "import torch; torch.load(p, weights_only=chosen)",
        "import numpy as np; np.load(p, allow_pickle=True)",
        "import numpy as np; np.load(p, allow_pickle=chosen)",
        "import pandas; pandas.read_pickle(p)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert unpickling(source)
