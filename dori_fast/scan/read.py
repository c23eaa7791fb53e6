"""Open any kind of prompt input as a stream of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dori_fast.errors import UsageError
from dori_fast.scan.csv_file import CsvFile
from dori_fast.scan.durable import disk_refusals
from dori_fast.scan.jsonl_file import JsonLines
from dori_fast.scan.lines import PlainText
from dori_fast.scan.parquet_file import ParquetFile
from dori_fast.scan.rows import Reader

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")


def open_prompts(path: str | Path, column: str | None = None) -> Reader:
    """A reader for a prompt file, chosen by its suffix.

    Args:
        path: .txt (one prompt a line), .csv or .tsv (any of ``, ; tab |``), .jsonl or .parquet.
        column: the prompt column; by default the first of prompt, caption, text, TEXT, Caption
            and Prompt that the file has. Plain text has no columns.

    Raises:
        UsageError: no such file, unknown suffix, no prompt column, or not readable at all.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: unknown kind of file — use one of {', '.join(SUFFIXES)}")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror} — check the path of the prompts") from error
    if suffix == ".txt":
        if column is not None:
            raise UsageError(f"{path}: plain text has no columns — leave --column out")
        return PlainText(path)
    if suffix == ".jsonl":
        return JsonLines(path, column)
    return ParquetFile(path, column) if suffix == ".parquet" else CsvFile(path, column)


@contextmanager
def prompts_on_disk(prompts: str | Path | Iterable[object]) -> Iterator[Path]:
    """The path itself, or prompts in memory spooled to a file that is removed afterwards.

    A one-shot iterator can so be hashed before it is scored, without being held in memory.
    """
    if isinstance(prompts, str | Path):
        yield Path(prompts)
        return
    with TemporaryDirectory(prefix="dori_fast-") as folder:
        path = Path(folder) / "prompts.jsonl"
        with disk_refusals(path), path.open("w") as file:
            for prompt in prompts:
                # a value that JSON cannot hold is no text either, and is quarantined as such
                file.write(json.dumps({"prompt": prompt}, default=lambda _: {}) + "\n")
        yield path


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
