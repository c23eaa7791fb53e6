"""A log with a line of JSON per training step, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dori_fast.runs.store.durable import disk_refusals, sync_file, write_durably


class StepLog:
    """A file of one line per step, each an object with ``step``, counted from 1."""

    def __init__(self, path: Path, after: int) -> None:
        """Open the log after a step; drop lines of later steps and a torn last line."""
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = b"".join(line for line in lines if _step(line, after + 1) <= after)
        write_durably(path, lambda file: file.write_bytes(kept))

    def append(self, scalars: dict[str, Any]) -> None:
        """Add a line. It survives the process; only :meth:`sync` makes it survive a power cut."""
        with disk_refusals(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(scalars) + "\n")

    def sync(self) -> None:
        """Force all lines to the disk."""
        with disk_refusals(self._path):
            sync_file(self._path)


def _step(line: bytes, unknown: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return unknown
