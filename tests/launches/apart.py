"""Runs the compiler in a process of its own, which interprets no kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def compiled_apart(cache: Path, capability: int | None, *calls: str) -> dict[str, Any]:
    """Return what `python -m tests.launches.compile` prints.

    Args:
        cache: empty folder for the compiled kernels.
        capability: compute capability of the GPU, or None to record grids alone.
        calls: kinds of calls, keys of `tests.launches.compile.CALLS`.

    Raises:
        RuntimeError: the program failed; the message is its error output.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    target = () if capability is None else ("--capability", str(capability))
    kinds = [part for kind in calls for part in ("--calls", kind)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.launches.compile", *target, *kinds],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
