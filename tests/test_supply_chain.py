"""What runs in CI is pinned by hash, and nothing in the package unpickles."""

from __future__ import annotations

import ast
import gc
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PACKAGE = sorted((ROOT / "dori_fast").rglob("*.py"))
PICKLING = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


def unpinned(workflow: dict[Any, Any]) -> list[str]:
    """What a workflow may do beyond its pinned parts."""
    found = []
    # YAML reads a bare "on" as true
    if not workflow.get(True) or workflow.get("permissions") != {"contents": "read"}:
        found.append("no trigger, or more permissions than reading")
    for step in steps(workflow):
        if not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{40 * '0'}")):
            found.append(step["uses"])
        command = step.get("run", "")
        for line in command.splitlines():
            own = "--no-build-isolation --no-deps -e ." in line
            pinned = (own or "--require-hashes" in line) and "extra-index-url" not in line
            if "pip install" in line and not pinned:
                found.append(line)
        found += [name for name in re.findall(r"-r (\S+)", command) if not (ROOT / name).is_file()]
    return found


def test_workflows_are_pinned() -> None:
    found = {path.name: unpinned(yaml.safe_load(path.read_text())) for path in WORKFLOWS}
    assert not any(found.values()), found


def test_what_is_not_pinned_is_found() -> None:
    pinned = {"uses": f"actions/checkout@{40 * 'a'}"}
    hashed = {"run": "pip install --require-hashes -r requirements/ci.txt"}
    sound = {True: "push", "permissions": {"contents": "read"}}
    assert unpinned({**sound, "jobs": {"one": {"steps": [pinned, hashed]}}}) == []
    planted: list[dict[str, str]] = [
        {"uses": "actions/checkout@v4"},
        {"run": "pip install numpy"},
        {"run": "pip install --require-hashes --extra-index-url http://a -r requirements/ci.txt"},
        {"run": "pip install --require-hashes -r requirements/none.txt"},
    ]
    for step in planted:
        assert len(unpinned({**sound, "jobs": {"one": {"steps": [pinned, step]}}})) == 1, step
    for missing in sound:
        rest = {key: value for key, value in sound.items() if key != missing}
        assert len(unpinned({**rest, "jobs": {}})) == 1, missing


def test_there_is_a_test_an_audit_and_a_release() -> None:
    assert {path.stem for path in WORKFLOWS} == {"ci", "audit", "release"}
    audit = yaml.safe_load((ROOT / ".github/workflows/audit.yml").read_text())
    assert audit[True]["schedule"]
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "password" not in (ROOT / ".github/workflows/release.yml").read_text()
    assert any("cyclonedx-py" in step.get("run", "") for step in steps(release))


def locked(path: Path) -> set[str]:
    """Names in a lock file; each must have one version and at least one hash."""
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


# a supervisor sends pickles to the workers that it starts; they come from no file
BETWEEN_PROCESSES = {"dori_fast/runs/workers/worker.py"}
READING = [path for path in PACKAGE if str(path.relative_to(ROOT)) not in BETWEEN_PROCESSES]


def test_nothing_unpickles() -> None:
    found = {str(path): unpickling(path.read_text()) for path in READING}
    assert not any(found.values()), {path: calls for path, calls in found.items() if calls}


def test_the_search_finds() -> None:
    planted = [
        "import pickle",
        "from joblib import load",
        "import torch; torch.load(p)",
        "import torch; torch.load(p, weights_only=False)",
        "import torch; torch.load(p, weights_only=chosen)",
        "import numpy as np; np.load(p, allow_pickle=True)",
        "import numpy as np; np.load(p, allow_pickle=chosen)",
        "import pandas; pandas.read_pickle(p)",
    ]
    assert [source for source in planted if not unpickling(source)] == []
