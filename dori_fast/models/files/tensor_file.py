"""Readers of safetensors files: foreign ones, and those of the package's own formats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dori_fast._text import read_stand_in
from dori_fast.errors import IntegrityError, UsageError

# Stable Diffusion XL's header has 0.2 MB
_HEADER_BYTES = 10_000_000


def refuse_doubled_names(path: Path) -> None:
    """Raise IntegrityError if two tensors share a name, since readers differ in which they take.

    A pointer of Git LFS or a web page in the file's place is named as such.
    """
    if reason := read_stand_in(path):
        raise IntegrityError(f"{path}: {reason}")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _HEADER_BYTES:
            raise IntegrityError(f"{path}: cannot be read: a header of {size:,} bytes")
        header = file.read(size)
    try:
        json.loads(header, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{path}: cannot be read: its header is damaged ({error}); get the file again"
        ) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name in its header occurs twice")
    return found


def open_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the header's entries.

    Raises:
        UsageError: no such file.
        IntegrityError: a damaged file.
    """
    try:
        refuse_doubled_names(Path(path))
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: a folder; name a safetensors file in it") from None
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: not a readable safetensors file ({error})") from error


def read_tensors(
    path: str | os.PathLike[str], wanted: str, kind: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the header's other entries.

    Args:
        path: the file.
        wanted: required "format" entry of the header.
        kind: name of this kind of file, for the error message.

    Raises:
        UsageError: no such file.
        IntegrityError: a damaged file, or another format.
    """
    tensors, metadata = open_tensors(path)
    found = metadata.pop("format", None)
    if found != wanted:
        raise IntegrityError(f"{path}: wanted {kind}, found {found or 'another kind of file'}")
    return tensors, metadata
