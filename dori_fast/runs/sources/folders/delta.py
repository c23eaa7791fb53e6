"""The files of a Delta table's current version, by its JSON log.

Protocol: https://github.com/delta-io/delta/blob/master/PROTOCOL.md, "Action Reconciliation".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dori_fast.errors import UsageError

LOG = "_delta_log"
_COMMIT = re.compile(r"(\d{20})\.json")
_EXPORT = "read it with deltalake, and write the rows to one .parquet file"


def delta_files(table: Path) -> list[Path]:
    """The parquet files that the table's last version holds, sorted by path.

    Raises:
        UsageError: the log is damaged or no longer starts at version 0, a file is missing, or the
            table has what plain files do not show: deletion vectors, mapped column names, files
            elsewhere, or partition values that are not in the folders' names.
    """
    present: dict[tuple[str, str], dict[str, Any]] = {}
    for action in _actions(table):
        if metadata := action.get("metaData"):
            mode = (metadata.get("configuration") or {}).get("delta.columnMapping.mode", "none")
            if mode != "none":
                raise UsageError(f"{table}: a Delta table with mapped column names; {_EXPORT}")
        if added := action.get("add"):
            present[_key(added)] = added
        if removed := action.get("remove"):
            present.pop(_key(removed), None)
    found = [_file(table, added) for added in present.values()]
    return sorted(found, key=lambda path: path.relative_to(table).as_posix())


def _key(action: dict[str, Any]) -> tuple[str, str]:
    # one commit may remove a file and add it again with a deletion vector, in any order
    return str(action.get("path")), json.dumps(action.get("deletionVector"), sort_keys=True)


def _actions(table: Path) -> Iterator[dict[str, Any]]:
    commits = sorted(path for path in (table / LOG).iterdir() if _COMMIT.fullmatch(path.name))
    for version, path in enumerate(commits):
        if int(path.stem) != version:
            raise UsageError(
                f"{table}: a Delta table whose log has no version {version}, only checkpoints;"
                f" {_EXPORT}"
            )
        try:
            actions = [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read ({error}); get the table again") from error
        values = [
            value for action in actions if isinstance(action, dict) for value in action.values()
        ]
        if not all(isinstance(one, dict) for one in [*actions, *values]):
            raise UsageError(f"{path}: no log of a Delta table; get the table again")
        yield from actions
    if not commits:
        raise UsageError(f"{table}: a Delta table without a JSON log; {_EXPORT}")


def _file(table: Path, added: dict[str, Any]) -> Path:
    name = unquote(str(added.get("path")))
    if added.get("deletionVector"):
        raise UsageError(f"{table}: a Delta table with deleted rows in {name}; {_EXPORT}")
    parts = Path(name).parts
    if name.startswith("/") or "://" in name or name.startswith("file:") or ".." in parts:
        raise UsageError(f"{table}: a Delta table with files elsewhere ({name}); {_EXPORT}")
    folders = [unquote(part) for part in parts[:-1] if "=" in part]
    values = added.get("partitionValues") or {}
    hive = "__HIVE_DEFAULT_PARTITION__"
    wanted = [f"{key}={hive if value in (None, '') else value}" for key, value in values.items()]
    if sorted(folders) != sorted(wanted):
        raise UsageError(
            f"{table}: a Delta table whose partition values are not in the names of its folders"
            f" ({name}); {_EXPORT}"
        )
    path = table / name
    if not path.exists():
        raise UsageError(f"{path}: missing, though the table's log names it; get the table again")
    return path
