"""Masks as data: which neurons or weights of a UNet are switched off, for one prompt or many.

A :class:`NeuronMask` scales neurons of cross-attention value projections (what NeMo blocks), a
:class:`WeightMask` sets weights of the second feed-forward linear layers to zero (what Wanda
prunes). Each holds M masks at once, so that the samples of one batch can have different ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models.files.hashes import tensors_sha256
from dori_fast.models.files.tensor_file import read_tensors
from dori_fast.ops import pack_mask, unpack_mask

_M = TypeVar("_M", "NeuronMask", "WeightMask")
_FORMAT = "dori_fast.mask/1"


@dataclass(frozen=True, eq=False)
class NeuronMask:
    """M masks on the output neurons of cross-attention value projections.

    Attributes:
        scales: by name of the cross-attention module, float [M, C] factors: 0 blocks a neuron, 1
            leaves it. Layers that are not named keep their values.
    """

    scales: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        _check_counts(self.scales, 2, "[M, C]")

    @staticmethod
    def blocking(
        neurons: Sequence[Mapping[str, Sequence[int]]],
        widths: Mapping[str, int],
        factor: float = 0.0,
    ) -> NeuronMask:
        """M masks that multiply the listed neurons by ``factor``.

        Args:
            neurons: for each mask, lists of neurons by layer; layers may be missing.
            widths: neurons C of every layer that the masks are to cover.

        Raises:
            UsageError: a layer without a width, or a neuron outside 0..C-1.
        """
        scales = {name: torch.ones(len(neurons), width) for name, width in widths.items()}
        for row, layers in enumerate(neurons):
            for name, listed in layers.items():
                if name not in scales:
                    raise UsageError(f"NeuronMask: no layer {name!r}; layers are {list(widths)}")
                if listed and not 0 <= min(listed) <= max(listed) < widths[name]:
                    raise UsageError(
                        f"NeuronMask: {name} has neurons 0..{widths[name] - 1}, got {listed}"
                    )
                scales[name][row, list(listed)] = factor
        return NeuronMask(scales)

    def __len__(self) -> int:
        return _count(self.scales)

    def __getitem__(self, row: int) -> NeuronMask:
        """One of the masks, M = 1."""
        return NeuronMask(_row(self.scales, row, len(self)))

    def take(self, rows: Sequence[int]) -> NeuronMask:
        """The masks of the given rows, in their order."""
        return NeuronMask({name: x[list(rows)] for name, x in self.scales.items()})

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are covered."""
        return tuple(self.scales)

    def neurons(self, row: int = 0) -> dict[str, list[int]]:
        """Lists of the neurons of mask ``row`` whose factor is not 1, by layer."""
        return {name: (s[row] != 1).nonzero()[:, 0].tolist() for name, s in self.scales.items()}

    def counts(self) -> dict[str, Tensor]:
        """How many neurons each mask scales, int64 [M] by layer."""
        return {name: (scale != 1).sum(1) for name, scale in self.scales.items()}

    def __or__(self, other: NeuronMask) -> NeuronMask:
        """Both masks one after the other: their factors multiply, M = 1 goes with any M."""
        return NeuronMask(_merge(self.scales, other.scales, torch.mul))

    def any(self) -> NeuronMask:
        """One mask (M = 1) with what any of the M has: the product of their factors."""
        return NeuronMask({n: scale.prod(0, keepdim=True) for n, scale in self.scales.items()})

    def sha256(self) -> str:
        """Hash of names and factors, for the record of what a score depends on."""
        return tensors_sha256(self.scales)

    def save(self, path: str | os.PathLike[str], **provenance: str) -> None:
        """Write a safetensors file with the factors and what they came from."""
        save_file(_contiguous(self.scales), path, _metadata("neurons", provenance))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> NeuronMask:
        """Read what :meth:`save` wrote; IntegrityError if it is something else."""
        tensors, _ = _read(path, "neurons")
        return NeuronMask(tensors)


@dataclass(frozen=True, eq=False)
class WeightMask:
    """M masks on the weights of linear layers.

    Attributes:
        pruned: by name of the linear layer, bool [M, O, I], True where a weight is set to 0.
    """

    pruned: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        _check_counts(self.pruned, 3, "[M, O, I]")

    def __len__(self) -> int:
        return _count(self.pruned)

    def __getitem__(self, row: int) -> WeightMask:
        """One of the masks, M = 1."""
        return WeightMask(_row(self.pruned, row, len(self)))

    def take(self, rows: Sequence[int]) -> WeightMask:
        """The masks of the given rows, in their order."""
        return WeightMask({name: x[list(rows)] for name, x in self.pruned.items()})

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are covered."""
        return tuple(self.pruned)

    def counts(self) -> dict[str, Tensor]:
        """How many weights each mask prunes, int64 [M] by layer."""
        return {name: mask.flatten(1).sum(1) for name, mask in self.pruned.items()}

    def __or__(self, other: WeightMask) -> WeightMask:
        """What either prunes; M = 1 goes with any M."""
        return WeightMask(_merge(self.pruned, other.pruned, torch.logical_or))

    def any(self) -> WeightMask:
        """One mask (M = 1) that prunes what any of the M prunes."""
        return WeightMask({name: mask.any(0, keepdim=True) for name, mask in self.pruned.items()})

    def sha256(self) -> str:
        """Hash of names and masks, for the record of what a score depends on."""
        return tensors_sha256(self.pruned)

    def save(self, path: str | os.PathLike[str], **provenance: str) -> None:
        """Write a safetensors file, a bit per weight, and what the masks came from."""
        packed = {name: torch.stack([pack_mask(m) for m in x]) for name, x in self.pruned.items()}
        columns = {f"columns:{name}": str(x.shape[2]) for name, x in self.pruned.items()}
        save_file(packed, path, _metadata("weights", {**columns, **provenance}))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> WeightMask:
        """Read what :meth:`save` wrote; IntegrityError if it is something else."""
        tensors, metadata = _read(path, "weights")
        return WeightMask(
            {
                name: torch.stack([unpack_mask(m, int(metadata[f"columns:{name}"])) for m in x])
                for name, x in tensors.items()
            }
        )


@dataclass(frozen=True)
class Masks:
    """The masks of a model's view, of either kind."""

    neurons: NeuronMask | None = None
    weights: WeightMask | None = None

    def __len__(self) -> int:
        return max(len(mask) for mask in (self.neurons, self.weights) if mask is not None)

    def joined(self, mask: NeuronMask | WeightMask) -> Masks:
        """These masks and one more."""
        if isinstance(mask, NeuronMask):
            mask = mask if self.neurons is None else self.neurons | mask
            joined = Masks(mask, self.weights)
        else:
            mask = mask if self.weights is None else self.weights | mask
            joined = Masks(self.neurons, mask)
        counts = {len(m) for m in (joined.neurons, joined.weights) if m is not None} - {1}
        if len(counts) > 1:
            raise UsageError(f"masked: {sorted(counts)} masks do not go together")
        return joined

    def sha256(self) -> dict[str, str]:
        """Hash of each kind that is there."""
        kinds: dict[str, Any] = {"neurons": self.neurons, "weights": self.weights}
        return {kind: mask.sha256() for kind, mask in kinds.items() if mask is not None}


def stack(masks: Sequence[_M]) -> _M:
    """Masks of one kind as one batch, in order; a layer that one does not cover it leaves alone.

    Raises:
        UsageError: no masks, or layers of different widths.
    """
    if not masks:
        raise UsageError("stack: no masks")
    if isinstance(masks[0], NeuronMask):
        return type(masks[0])(_stack([m.scales for m in masks], 1))
    return type(masks[0])(_stack([m.pruned for m in masks], 0))


def _stack(parts: list[Mapping[str, Tensor]], neutral: int) -> dict[str, Tensor]:
    like = {name: tensor for part in parts for name, tensor in part.items()}
    stacked = {}
    for name, one in like.items():
        rows = [
            part[name] if name in part else one.new_full((_count(part), *one.shape[1:]), neutral)
            for part in parts
        ]
        if len({row.shape[1:] for row in rows}) > 1:
            raise UsageError(f"stack: the masks of {name} have different widths")
        stacked[name] = torch.cat(rows)
    return stacked


def _merge(one: Mapping[str, Tensor], two: Mapping[str, Tensor], join: Any) -> dict[str, Tensor]:
    counts = {_count(one), _count(two)} - {1}
    if len(counts) > 1:
        raise UsageError(f"masks: {sorted(counts)} masks do not go together")
    count = max(counts, default=1)
    merged = {}
    for name in {**one, **two}:
        if name in one and name in two:
            merged[name] = join(one[name], two[name])
        else:
            alone = one[name] if name in one else two[name]
            merged[name] = alone.expand(count, *alone.shape[1:])
    return merged


def _check_counts(tensors: Mapping[str, Tensor], ndim: int, shape: str) -> None:
    for name, tensor in tensors.items():
        if tensor.ndim != ndim or len(tensor) != _count(tensors):
            raise UsageError(
                f"masks: {name} must be {shape} with the same M in all layers,"
                f" got {list(tensor.shape)}"
            )


def _count(tensors: Mapping[str, Tensor]) -> int:
    return len(next(iter(tensors.values()))) if tensors else 1


def _row(tensors: Mapping[str, Tensor], row: int, count: int) -> dict[str, Tensor]:
    if not -count <= row < count:
        raise IndexError(f"mask {row} of {count}")
    return {name: tensor[row].unsqueeze(0) for name, tensor in tensors.items()}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _metadata(kind: str, provenance: Mapping[str, str]) -> dict[str, str]:
    return {**provenance, "format": _FORMAT, "kind": kind}


def _read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = read_tensors(path, _FORMAT, f"a mask of {kind}")
    if metadata.get("kind") != kind:
        raise IntegrityError(f"{path}: wanted a mask of {kind}, found {metadata.get('kind')}")
    return tensors, metadata
