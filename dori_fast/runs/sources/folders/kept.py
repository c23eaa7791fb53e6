"""Folders that another program keeps: the files that count, whatever else lies beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dori_fast._text import read_stand_in
from dori_fast.errors import UsageError
from dori_fast.runs.sources.folders.delta import LOG, delta_files

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_CACHE = re.compile(r"(cache|indices)-[0-9a-f]{8,}.*\.arrow")
_EXPORT = "read it with its own library, and write the rows to one .parquet file"


def kept_files(folder: Path) -> list[Path] | None:
    """The files that count in a folder, in order; None if any file in it may count.

    A dataset that Hugging Face's ``save_to_disk`` left counts by its ``state.json``, and a Delta
    table by its log; caches, stale shards and removed files do not.

    Raises:
        UsageError: several splits, a table of another program (Iceberg, Hudi, Spark's streams), or
            a folder that is damaged.
    """
    if (folder / LOG).is_dir():
        return delta_files(folder)
    _refuse_table(folder)
    if (folder / _SPLITS).is_file():
        return _only_split(folder)
    state = _state(folder)
    if state is not None:
        return _data_files(folder, state)
    caches = [path.name for path in folder.glob("*.arrow") if _CACHE.fullmatch(path.name)]
    if caches:
        raise UsageError(
            f"{folder}: holds caches of the datasets library ({min(caches)}) and no {_STATE} that"
            " names the data; choose the files by a pattern"
        )
    return None


def refuse_inside_table(folder: Path) -> None:
    """Raise UsageError if a folder lies in a Delta table, whose log lists the files."""
    for parent in folder.absolute().parents:
        if (parent / LOG).is_dir():
            raise UsageError(
                f"{folder}: lies in the Delta table {parent}, whose log says which files count;"
                " give the table's folder"
            )


def refuse_partly(paths: Sequence[Path]) -> None:
    """Raise UsageError if a pattern takes files that do not count in their folder."""
    for folder in sorted({path.parent for path in paths}):
        # the folder itself may be the table
        refuse_inside_table(folder / "file")
        state = _state(folder)
        inside = [path for path in paths if path.parent == folder]
        counted = set(inside) if state is None else set(_data_files(folder, state))
        stale = [p for p in inside if p not in counted or _CACHE.fullmatch(p.name)]
        if stale:
            raise UsageError(
                f"{stale[0]}: no data of the saved dataset, but a cache or a stale shard; leave it"
                f" out of the pattern, or give the folder {folder}"
            )


def _refuse_table(folder: Path) -> None:
    metadata = folder / "metadata"
    iceberg = [*metadata.glob("*.metadata.json"), *metadata.glob("version-hint.text")]
    for there, kind in (
        (bool(iceberg), "an Iceberg table"),
        ((folder / ".hoodie").is_dir(), "a Hudi table"),
        ((folder / "_spark_metadata").is_dir(), "the output of a Spark stream"),
    ):
        if there:
            raise UsageError(f"{folder}: {kind}, not all of whose files count; {_EXPORT}")


def _only_split(folder: Path) -> list[Path]:
    splits = _document(folder / _SPLITS).get("splits")
    if not isinstance(splits, list) or not splits:
        raise UsageError(f"{folder / _SPLITS}: names no splits; give the folder of one split")
    if len(splits) > 1:
        names = ", ".join(map(str, splits))
        raise UsageError(
            f"{folder}: a dataset of several splits ({names}); choose one, such as"
            f" {folder / str(splits[0])}"
        )
    inside = _inside(folder, splits[0], _SPLITS)
    state = _state(inside)
    if state is None:
        raise UsageError(f"{inside}: no {_STATE}, though {_SPLITS} names it; get the folder again")
    return _data_files(inside, state)


def _state(folder: Path) -> dict[str, Any] | None:
    """The state of a saved dataset; None if the folder is none."""
    path = folder / _STATE
    if not path.is_file():
        return None
    saved = (folder / "dataset_info.json").exists() or any(folder.glob("*.arrow"))
    return _document(path) if saved else None


def _document(path: Path) -> dict[str, Any]:
    if reason := read_stand_in(path):
        raise UsageError(f"{path}: {reason}")
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); get the folder again") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: no JSON object; get the folder again")
    return found


def _data_files(folder: Path, state: dict[str, Any]) -> list[Path]:
    for key in ("_indices_files", "_indices_data_files"):
        if state.get(key):
            raise UsageError(
                f"{folder / _STATE}: the dataset is a selection of rows ({key}); load it with"
                " datasets, flatten_indices, and save it again"
            )
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise UsageError(f"{folder / _STATE}: names no data files; save the dataset again")
    paths = [_inside(folder, one.get("filename"), _STATE) for one in listed]
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: missing, though {_STATE} names it; get the folder again")
    return paths


def _inside(folder: Path, name: object, where: str) -> Path:
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise UsageError(
            f"{folder / where}: {name!r} is no name of a file in the folder; save the dataset again"
        )
    return folder / name
