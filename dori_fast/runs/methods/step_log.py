"""The figures of every step as lines of JSON, never behind the checkpoint and cut back to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dori_fast.runs.store.durable import disk_refusals, sync_file, write_durably


class Scalars:
    """A file of one line a step, each an object with ``step``, counted from 1."""

    def __init__(self, path: Path, after: int) -> None:
        """Open it to go on after a step: lines of later ones, and a torn last one, are dropped."""
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = b"".join(line for line in lines if _step(line, after + 1) <= after)
        write_durably(path, lambda file: file.write_bytes(kept))

    def append(self, scalars: dict[str, Any]) -> None:
        """Add a line; it outlives the process, but for a power cut only after :meth:`sync`."""
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
