"""Names of shards: ``shards/part-NNNNN.parquet`` in a run directory.

Standard library alone, so that the status of a run needs no reader of Parquet.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"part-(\d{5}|[1-9]\d{5,})\.parquet", re.ASCII)


def directory(root: Path) -> Path:
    """The directory of a run's shards."""
    return root / "shards"


def path(root: Path, index: int) -> Path:
    """The final path of shard ``index`` of the run directory ``root``."""
    return directory(root) / f"part-{index:05d}.parquet"


def number(path: Path) -> int | None:
    """The index that a shard's name states; None if :func:`path` gives no such name."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else None


def paths(root: Path) -> list[Path]:
    """The shards of a run directory by number, after any ``part-*.parquet`` without one.

    By name, shard 100,000 would come before shard 99,999.
    """
    return sorted(directory(root).glob("part-*.parquet"), key=_by_number)


def lookalikes(root: Path) -> list[Path]:
    """All files of a run directory whose names begin as those of shards, by name."""
    return sorted(directory(root).glob("part-*"))


def _by_number(path: Path) -> tuple[int, str]:
    index = number(path)
    return (-1 if index is None else index, path.name)
