"""Mask files: safetensors with the factors of neurons, or with one bit per weight."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor

from dori_fast.errors import IntegrityError
from dori_fast.models.files.tensor_file import read_tensors
from dori_fast.ops import pack_mask, unpack_mask

_FORMAT = "dori_fast.mask/1"
Path = str | os.PathLike[str]


def write_neurons(path: Path, scales: Mapping[str, Tensor], provenance: Mapping[str, str]) -> None:
    """Write factors [M, C] by layer; ``provenance`` are further entries of the header."""
    tensors = {name: tensor.contiguous() for name, tensor in scales.items()}
    save_file(tensors, path, {**provenance, "format": _FORMAT, "kind": "neurons"})


def read_neurons(path: Path) -> dict[str, Tensor]:
    """Factors [M, C] by layer, from :func:`write_neurons`.

    Raises:
        UsageError: no such file.
        IntegrityError: damaged, or another kind of file.
    """
    return _read(path, "neurons")[0]


def write_weights(path: Path, pruned: Mapping[str, Tensor], provenance: Mapping[str, str]) -> None:
    """Write bits [M, O, I] by layer; ``provenance`` are further entries of the header."""
    packed = {name: torch.stack([pack_mask(m) for m in x]) for name, x in pruned.items()}
    columns = {f"columns:{name}": str(x.shape[2]) for name, x in pruned.items()}
    save_file(packed, path, {**columns, **provenance, "format": _FORMAT, "kind": "weights"})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Masks bool [M, O, I] by layer, from :func:`write_weights`; raises as :func:`read_neurons`."""
    packed, metadata = _read(path, "weights")
    return {
        name: torch.stack([unpack_mask(m, int(metadata[f"columns:{name}"])) for m in x])
        for name, x in packed.items()
    }


def _read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = read_tensors(path, _FORMAT, f"a mask of {kind}")
    if metadata.get("kind") != kind:
        raise IntegrityError(f"{path}: wanted a mask of {kind}, found {metadata.get('kind')}")
    return tensors, metadata
