"""Kinds of input files by suffix, and what to do with those that are not read."""

from __future__ import annotations

import os
from pathlib import Path

from dori_fast.errors import UsageError

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".arrow", ".tar")
UNFINISHED = (".incomplete", ".part", ".partial", ".tmp", ".crdownload", ".aria2", ".download")
# read if named; folders hold .json files that are no prompts
_NAMED = {".json": ".json", ".ndjson": ".jsonl", ".feather": ".arrow", ".tab": ".tsv"}
_COMPRESSED = (".gz", ".tgz", ".zst", ".zstd", ".bz2", ".xz", ".zip", ".7z", ".lz4")
_REMEDIES = {
    **dict.fromkeys(_COMPRESSED, "a compressed file; decompress it first"),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "a spreadsheet; save it as CSV UTF-8"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), "a pickle, which is never read; export it"),
    **dict.fromkeys(UNFINISHED, "an unfinished download; get the file again"),
    ".dvc": "a DVC pointer, not the data; run dvc pull, then name the file itself",
}


def kind_of(path: Path) -> str:
    """The suffix among :data:`SUFFIXES`, or ``.json``, that says how a named file is read.

    Raises:
        UsageError: the suffix is unknown; the message says what to do with the file.
    """
    suffix = path.suffix.lower()
    kind = suffix if suffix in SUFFIXES else _NAMED.get(suffix)
    if kind is not None:
        return kind
    if not os.path.exists(path):
        raise UsageError(f"{path}: no such file or folder; check the path of the prompts")
    if suffix in _REMEDIES:
        raise UsageError(f"{path}: {_REMEDIES[suffix]}")
    raise UsageError(f"{path}: unknown kind of file; use one of {', '.join(SUFFIXES)}")
