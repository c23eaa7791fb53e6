"""Mask files: safetensors with the factors of neurons, or with one bit per weight."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor

from dori_fast.errors import IntegrityError
from dori_fast.models.files.tensor_file import read_tensors
from dori_fast.ops import pack_mask, unpack_mask

_FORMAT = "dori_fast.mask/1"
# entry of the header, only in files with missing masks
_MISSING = "missing"
Path = str | os.PathLike[str]


def write_neurons(
    path: Path,
    scales: Mapping[str, Tensor],
    provenance: Mapping[str, str],
    missing: Iterable[int] = (),
) -> None:
    """Write masks of neurons.

    Args:
        path: the file.
        scales: factors [M, C] by layer.
        provenance: further entries of the header.
        missing: numbers of masks that no localization made.
    """
    tensors = {name: tensor.contiguous() for name, tensor in scales.items()}
    save_file(tensors, path, _header("neurons", provenance, missing))


def read_neurons(path: Path) -> tuple[dict[str, Tensor], frozenset[int]]:
    """Factors [M, C] by layer, and the numbers of missing masks, from :func:`write_neurons`.

    Raises:
        UsageError: no such file.
        IntegrityError: damaged, or another kind of file.
    """
    tensors, metadata = _read(path, "neurons")
    return tensors, _missing(path, metadata)


def write_weights(
    path: Path,
    pruned: Mapping[str, Tensor],
    provenance: Mapping[str, str],
    missing: Iterable[int] = (),
) -> None:
    """Write masks of weights, bits [M, O, I] by layer; arguments as of :func:`write_neurons`."""
    packed = {name: torch.stack([pack_mask(m) for m in x]) for name, x in pruned.items()}
    columns = {f"columns:{name}": str(x.shape[2]) for name, x in pruned.items()}
    save_file(packed, path, {**columns, **_header("weights", provenance, missing)})


def read_weights(path: Path) -> tuple[dict[str, Tensor], frozenset[int]]:
    """Masks bool [M, O, I] by layer, and the numbers of missing ones; as :func:`read_neurons`."""
    packed, metadata = _read(path, "weights")
    pruned = {
        name: torch.stack([unpack_mask(m, int(metadata[f"columns:{name}"])) for m in x])
        for name, x in packed.items()
    }
    return pruned, _missing(path, metadata)


def _header(kind: str, provenance: Mapping[str, str], missing: Iterable[int]) -> dict[str, str]:
    numbers = ",".join(map(str, sorted(missing)))
    lacking = {_MISSING: numbers} if numbers else {}
    return {**provenance, **lacking, "format": _FORMAT, "kind": kind}


def _missing(path: Path, metadata: Mapping[str, str]) -> frozenset[int]:
    numbers = metadata.get(_MISSING, "")
    try:
        return frozenset(map(int, numbers.split(","))) if numbers else frozenset()
    except ValueError as error:
        raise IntegrityError(
            f"{path}: missing masks {numbers!r} are no numbers; get it again"
        ) from error


def _read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = read_tensors(path, _FORMAT, f"a mask of {kind}")
    if metadata.get("kind") != kind:
        raise IntegrityError(f"{path}: wanted a mask of {kind}, found {metadata.get('kind')}")
    return tensors, metadata
