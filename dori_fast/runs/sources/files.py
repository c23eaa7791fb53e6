"""The files of an input, in order, with the partition columns in their folders' names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from dori_fast.errors import UsageError
from dori_fast.runs.sources.folders.kept import (
    kept_files,
    refuse_inside_table,
    refuse_partly,
)
from dori_fast.runs.sources.folders.shard_sets import check_shard_sets
from dori_fast.runs.sources.folders.suffixes import SUFFIXES, UNFINISHED
from dori_fast.runs.sources.hub import HUB, hub_files

_MAGIC = re.compile(r"[*?\[{]")
_SHOWN = 80
# most files of one pair of braces
_NUMBERS = 1_000_000
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class InputFile:
    """One file of an input.

    Attributes:
        path: location on disk.
        name: path relative to the input's folder, part of the input's digest.
        partition: value of each column that a folder such as ``year=2020`` adds to every row.
    """

    path: Path
    name: str
    partition: Mapping[str, pa.Scalar] = field(default_factory=dict)


def input_files(source: str | Path) -> list[InputFile]:
    """The files of an input, all of one kind, in an order that does not depend on the machine.

    Args:
        source: a file; a folder; a pattern; or ``hf:NAME``, see
            :func:`dori_fast.runs.sources.hub.hub_files`. A folder stands for all files of a known
            kind below it and behind links, sorted by path, without names that begin with ``.``
            or ``_``. Of a folder that another program keeps (a saved dataset, a Delta table) it
            stands for the files that count, see
            :func:`dori_fast.runs.sources.folders.kept.kept_files`. A pattern may have ``*``,
            ``?``, ``[...]``, ``**``, ``{a,b}`` and ``{00000..00041}``; braces count in the order
            written, the files of each by path.

    Raises:
        UsageError: no such file, no file of a known kind, files of several kinds, a file found
            twice, or shards that are no whole set.
    """
    text = str(source)
    if text.startswith(HUB):
        paths = hub_files(text)
        return [InputFile(path, path.name) for path in paths]
    path = Path(source)
    if os.path.isdir(path) and path.suffix.lower() not in SUFFIXES:
        root, paths = path, _below(path)
        whole = True
    elif _MAGIC.search(text) and not os.path.exists(path):
        root, paths = _fixed_part(path), _matching(text)
        refuse_partly(paths)
        whole = False
    else:
        return [InputFile(path, path.name)]
    _refuse_doubled(paths)
    kinds = sorted({found.suffix.lower() for found in paths})
    if not paths:
        raise UsageError(f"{source}: {_nothing(path)}; use one of {', '.join(SUFFIXES)}")
    if len(kinds) > 1:
        one = f"{path}/**/*{kinds[0]}" if path.is_dir() else f"*{kinds[0]}"
        raise UsageError(
            f"{source}: files of several kinds ({', '.join(kinds)}); choose one: '{one}'"
        )
    check_shard_sets(paths, whole=whole)
    names = [found.relative_to(root).as_posix() for found in paths]
    partitions = _partitions(paths, [_hive(name) for name in names])
    return [InputFile(*one) for one in zip(paths, names, partitions, strict=True)]


def refuse_missing(text: str) -> None:
    """Raise UsageError if a text given as prompts is neither a path, a pattern nor ``hf:NAME``."""
    there = text.startswith(HUB) or os.path.exists(text)
    if there or Path(text).suffix.lower() in SUFFIXES:
        # a missing file of a known kind is refused when it is opened
        return
    if _MAGIC.search(text) and any(glob.glob(one, recursive=True) for one in _braces(text)):
        return
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
    raise UsageError(
        f"prompts={shown!r}: no such file or folder; check the path, or pass a list for prompts in"
        " memory, such as [prompt]"
    )


def _refuse_doubled(paths: Sequence[Path]) -> None:
    """Raise UsageError if links or a pattern give a file twice, whose rows would be doubled.

    Links to one file elsewhere are files of their own: a cache has one blob for equal files.
    """
    real = cache(os.path.realpath)
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(os.path.join(real(path.parent), path.name), path)
        if other is not path:
            raise _doubled(path, other)
    for path in paths:
        if path.is_symlink() and (there := seen.get(real(path), path)) is not path:
            raise _doubled(path, there)


def _doubled(path: Path, other: Path) -> UsageError:
    what = "matched twice" if path == other else f"the same file as {other}, by a link"
    return UsageError(f"{path}: {what}, so its rows would count twice; choose it once by a pattern")


def _nothing(folder: Path) -> str:
    """The statement that a folder has no input, with what it has instead."""
    suffixes = {path.suffix.lower() or path.name for path in _walked(folder)}
    if suffixes and suffixes <= {*UNFINISHED}:
        return f"only unfinished downloads there ({', '.join(sorted(suffixes))})"
    others = f", only {', '.join(sorted(suffixes)[:5])}" if suffixes else ""
    return f"no file there{others}"


def _below(folder: Path) -> list[Path]:
    refuse_inside_table(folder)
    kept = _kept(folder)
    if kept is not None:
        return kept
    known = [path for path in _walked(folder) if path.suffix.lower() in SUFFIXES]
    return sorted(known, key=lambda path: path.relative_to(folder).as_posix())


def _kept(folder: Path) -> list[Path] | None:
    try:
        return kept_files(folder)
    except OSError as error:
        raise _unlisted(folder, error) from error


def _unlisted(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"{folder}: {error.strerror}, its files cannot be listed; make it readable")


def _walked(folder: Path) -> Iterator[Path]:
    """All files below a folder; follows links to folders, as patterns do."""
    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        parent, above = waiting.pop()
        try:
            status = parent.stat()
            entries = [(entry.name, entry.is_dir()) for entry in os.scandir(parent)]
        except OSError as error:
            raise _unlisted(parent, error) from error
        itself = (status.st_dev, status.st_ino)
        if itself in above:
            # a link to a folder above it, whose files are found there
            continue
        kept = _kept(parent) if parent != folder else None
        if kept is not None:
            yield from kept
            continue
        for name, is_folder in entries:
            if name.startswith((".", "_")):
                continue
            if is_folder:
                waiting.append((parent / name, above | {itself}))
            else:
                yield parent / name


def _matching(pattern: str) -> list[Path]:
    found = []
    for one in _braces(pattern):
        matches = [one] if os.path.isfile(one) else sorted(glob.glob(one, recursive=True))
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            raise UsageError(f"{one}: no such file; check the path of the prompts")
        found += files
    return found


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        numbers = range(int(span[1]), int(span[2]) + 1)
        if len(numbers) > _NUMBERS:
            raise UsageError(f"{pattern}: stands for {len(numbers):,} files; check the numbers")
        options = [f"{i:0{len(span[1])}d}" for i in numbers]
    else:
        options = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    for option in options:
        yield from _braces(head + option + tail)


def _fixed_part(pattern: Path) -> Path:
    return Path(*takewhile(lambda part: not _MAGIC.search(part), pattern.parts))


def _hive(name: str) -> dict[str, str | None]:
    pairs = [folder.split("=", 1) for folder in name.split("/")[:-1] if "=" in folder]
    return {key: None if value == _NO_VALUE else unquote(value) for key, value in pairs}


def _partitions(
    paths: Sequence[Path], raw: Sequence[Mapping[str, str | None]]
) -> list[dict[str, pa.Scalar]]:
    """Each file's partition values: int64 if a column has whole numbers only, else text."""
    for path, values in zip(paths, raw, strict=True):
        if list(values) != list(raw[0]):
            raise UsageError(
                f"{path}: partition columns {list(values)} where {paths[0]} has {list(raw[0])};"
                " read the two layouts one by one"
            )
    types = {
        key: pa.int64()
        if all(v[key] is None or re.fullmatch(r"0|-?[1-9]\d{0,17}", v[key] or "") for v in raw)
        else pa.string()
        for key in raw[0]
    }
    return [
        {key: pa.scalar(value, pa.string()).cast(types[key]) for key, value in values.items()}
        for values in raw
    ]
