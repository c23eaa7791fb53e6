"""Opening any prompt input as a stream of rows, and the digest of an input."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dori_fast._text import HEAD_BYTES, stand_in
from dori_fast.errors import UsageError
from dori_fast.runs.sources.arrow import ArrowFile
from dori_fast.runs.sources.concatenated import Concatenated
from dori_fast.runs.sources.csv import CsvFile
from dori_fast.runs.sources.files import InputFile, input_files, refuse_missing
from dori_fast.runs.sources.filtered import Filtered
from dori_fast.runs.sources.folders.suffixes import kind_of
from dori_fast.runs.sources.json.array import JsonArray
from dori_fast.runs.sources.jsonl import JsonLines
from dori_fast.runs.sources.lines import unreadable
from dori_fast.runs.sources.memory.values import described, write_in_memory
from dori_fast.runs.sources.parquet import ParquetFile
from dori_fast.runs.sources.rows import Reader
from dori_fast.runs.sources.tar import TarFile, tar_sha256
from dori_fast.runs.sources.text import PlainText, TextReader
from dori_fast.runs.sources.where import EVERYTHING, Selection
from dori_fast.runs.store.digest import file_sha256
from dori_fast.runs.store.durable import disk_refusals

# options in an error, which are arguments to a caller with prompts in memory
_OPTION = re.compile("--(column|where|max-errors)")


def open_prompts(
    path: str | Path, column: str | None = None, selection: Selection = EVERYTHING
) -> Reader:
    """A reader of prompts, chosen by the suffix of the files.

    Args:
        path: a .txt (one prompt per line), .csv or .tsv (any of ``, ; tab |``), .jsonl, .parquet,
            .arrow (as Hugging Face datasets are saved) or .tar (webdataset) file; or a folder, a
            pattern or ``hf:NAME``, see :func:`dori_fast.runs.sources.files.input_files`. A file
            that is named, not found in a folder, may also be .json (an array, or COCO's captions),
            .ndjson or .feather.
        column: the prompt column; plain text has none. Default: the first of prompt, caption,
            text, TEXT, Caption and Prompt that the first file has.
        selection: the wanted rows and columns, and whether .csv files have a header; default: all
            rows and columns, with a header.

    Raises:
        UsageError: no such file, unknown suffix, no prompt column, a wanted column is missing,
            files do not fit together, or a file is unreadable.
    """
    if column is not None and not isinstance(column, str):
        raise UsageError(f"column={column!r}: not the name of one column; pass one str")
    files = input_files(path)
    readers: list[Reader] = []
    for file in files:
        readers.append(_open_file(file, column, selection))
        column = readers[0].column
    return readers[0] if len(files) == 1 else Concatenated(readers, [file.path for file in files])


def _open_file(file: InputFile, column: str | None, selection: Selection) -> Reader:
    path = file.path
    kind = kind_of(path)
    try:
        with path.open("rb") as opened:
            reason = stand_in(opened.read(HEAD_BYTES))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; check the path of the prompts") from error
    if reason is not None:
        raise UsageError(f"{path}: {reason}")
    columnar = {".parquet": ParquetFile, ".arrow": ArrowFile}.get(kind)
    if columnar is not None:
        return columnar(path, column, selection, file.partition)
    reader = _open_text(path, kind, column, selection.header)
    if not selection and not file.partition:
        return reader
    return Filtered(reader, path, selection, file.partition)


def _open_text(path: Path, kind: str, column: str | None, header: bool | None) -> TextReader:
    if kind == ".txt":
        if column is not None:
            raise UsageError(f"{path}: plain text has no columns; leave --column out")
        return PlainText(path)
    if kind in (".csv", ".tsv"):
        return CsvFile(path, column, header)
    return {".jsonl": JsonLines, ".json": JsonArray, ".tar": TarFile}[kind](path, column)


@contextmanager
def prompts_on_disk(prompts: str | Path | Iterable[object]) -> Iterator[Path]:
    """The path itself, or prompts in memory written to a temporary file.

    The file lets a one-shot iterator be hashed before it is scored, without holding it in memory.
    An error about that file names the object that the prompts came from instead.

    Raises:
        UsageError: a text that is no path, or an object that holds no prompts; see
            :func:`dori_fast.runs.sources.memory.values.write_in_memory`.
    """
    if isinstance(prompts, str | os.PathLike):
        if isinstance(prompts, str):
            refuse_missing(prompts)
        yield Path(prompts)
        return
    with TemporaryDirectory(prefix="dori_fast-") as folder:
        with disk_refusals(Path(folder)):
            path = write_in_memory(prompts, Path(folder))
        try:
            yield path
        except UsageError as error:
            what = str(error).replace(str(path), described(prompts))
            # the same kind of error, such as a run over its budget
            raise type(error)(_OPTION.sub(_as_argument, what)) from error


def _as_argument(option: re.Match[str]) -> str:
    return f"{option[1].replace('-', '_')}="


def _content_sha256(path: Path, stopped: threading.Event) -> str:
    try:
        if path.suffix.lower() == ".tar":
            return tar_sha256(path)
        return file_sha256(path, stopped)
    except OSError as error:
        raise unreadable(path, error) from error


def input_sha256(path: str | Path) -> str:
    """The hexadecimal sha256 of a whole input.

    A single file's digest is that of its bytes, an archive's that of its members' names, sizes
    and texts (:func:`dori_fast.runs.sources.tar.tar_sha256`). The digest of several files is that
    of a text with a line ``<sha256>  <name>`` per file, in order, with names relative to the
    input's folder. Another order or folder name (a partition's value) is thus another input.
    """
    files, stopped = input_files(path), threading.Event()
    with ThreadPoolExecutor() as pool:
        try:
            digests = list(pool.map(lambda file: _content_sha256(file.path, stopped), files))
        except BaseException:
            # a signal: leaving the pool waits for the reads in progress
            stopped.set()
            raise
    if len(files) == 1:
        return digests[0]
    lines = [f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True)]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
