"""Safetensors files, read back: anybody's, and those of the package's own formats."""

from __future__ import annotations

import os

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dori_fast.errors import IntegrityError, UsageError


def open_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the header's entries.

    Raises:
        UsageError: no such file.
        IntegrityError: damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: not a readable safetensors file ({error})") from error


def read_tensors(
    path: str | os.PathLike[str], wanted: str, kind: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the header's other entries.

    Args:
        path: the file.
        wanted: what its header must have as "format".
        kind: what such a file is called, for the message.

    Raises:
        UsageError: no such file.
        IntegrityError: damaged, or of another format.
    """
    tensors, metadata = open_tensors(path)
    found = metadata.pop("format", None)
    if found != wanted:
        raise IntegrityError(f"{path}: wanted {kind}, found {found or 'another kind of file'}")
    return tensors, metadata
