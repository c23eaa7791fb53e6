"""Masks as data: neurons or weights of a network that are switched off, for one prompt or many.

A :class:`NeuronMask` scales neurons of cross-attention value projections, which NeMo blocks. A
:class:`WeightMask` zeroes weights of the second feed-forward linear layers, which Wanda prunes.
Each holds M masks at once, so that the samples of one batch can have different ones. A mask can be
``missing``: its place is there, but no localization made it, so nothing may be judged under it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from dori_fast._checks import to_device
from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models.files import mask_file
from dori_fast.models.files.hashes import tensors_sha256

_M = TypeVar("_M", "NeuronMask", "WeightMask")
# bytes; a mask of Stable Diffusion 1.4's weights takes 100 MB
_MOST_ON_A_DEVICE = 1 << 30


class _Rows:
    """M masks as tensors [M, *] by layer: the part that both kinds share."""

    missing: frozenset[int]

    @property
    def _tensors(self) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def __len__(self) -> int:
        return _count(self._tensors)

    def __getitem__(self, row: int) -> Self:
        """One of the masks, M = 1."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"mask {row} of {len(self)}")
        return self.take([row])

    def to(self, device: torch.device | str) -> Self:
        """The masks on a device; a copy to a GPU does not wait for it."""
        place = torch.device(device)
        tensors = {name: to_device(x, place) for name, x in self._tensors.items()}
        return type(self)(tensors, self.missing)  # type: ignore[call-arg]

    def take(self, rows: Sequence[int]) -> Self:
        """The masks of the given rows, in their order."""
        count, tensors = len(self), {name: x[list(rows)] for name, x in self._tensors.items()}
        missing = frozenset(i for i, row in enumerate(rows) if row % count in self.missing)
        return type(self)(tensors, missing)  # type: ignore[call-arg]

    @property
    def present(self) -> list[int]:
        """Numbers of the masks that are not missing, in order."""
        return [row for row in range(len(self)) if row not in self.missing]

    def in_turn(self, rows: int | Sequence[int]) -> Self:
        """The masks taken in turn: of the M that are present, mask ``i % M`` for prompt i.

        Args:
            rows: number of prompts, or the prompts' row numbers.

        Raises:
            UsageError: all masks are missing.
        """
        present = self.present
        if not present:
            self.require_present()
        numbers = range(rows) if isinstance(rows, int) else rows
        return self.take([present[row % len(present)] for row in numbers])

    def require_present(self) -> None:
        """Raise UsageError if a mask is missing: a network under it would be the unpruned one."""
        if self.missing:
            raise UsageError(
                f"masks: mask {min(self.missing)} of {len(self)} is missing, since its row was"
                " quarantined; choose others with masks.take(masks.present)"
            )

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that the masks cover."""
        return tuple(self._tensors)

    def sha256(self) -> str:
        """Hash of names and values, for the record of what a score depends on."""
        # masks of old files, which miss none, keep their hash
        lacking = {"missing": torch.tensor(sorted(self.missing))} if self.missing else {}
        return tensors_sha256({**self._tensors, **lacking})


@dataclass(frozen=True, eq=False)
class NeuronMask(_Rows):
    """M masks on the output neurons of cross-attention value projections.

    Attributes:
        scales: factors, float [M, C] by name of the cross-attention module: 0 blocks a neuron, 1
            leaves it. Other layers keep their values.
        missing: numbers of masks that no localization made; :meth:`Denoiser.masked` refuses them.
    """

    scales: Mapping[str, Tensor]
    missing: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        _check_counts(self.scales, 2, "[M, C]", self.missing)

    @property
    def _tensors(self) -> Mapping[str, Tensor]:
        return self.scales

    @staticmethod
    def blocking(
        neurons: Sequence[Mapping[str, Sequence[int]]],
        widths: Mapping[str, int],
        factor: float = 0.0,
        missing: Iterable[int] = (),
    ) -> NeuronMask:
        """M masks that multiply the listed neurons by ``factor``.

        Args:
            neurons: for each mask, lists of neurons by layer; layers may be missing.
            widths: number of neurons C of every layer to cover.
            factor: factor of the listed neurons; default 0.
            missing: numbers of the masks that are missing; default: none.

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
        return NeuronMask(scales, frozenset(missing))

    def neurons(self, row: int = 0) -> dict[str, list[int]]:
        """Lists of the neurons of mask ``row`` whose factor is not 1, by layer."""
        return {name: (s[row] != 1).nonzero()[:, 0].tolist() for name, s in self.scales.items()}

    def counts(self) -> dict[str, Tensor]:
        """Number of neurons that each mask scales, int64 [M] by layer."""
        return {name: (scale != 1).sum(1) for name, scale in self.scales.items()}

    def __or__(self, other: NeuronMask) -> NeuronMask:
        """Both masks at once: factors multiply, and M = 1 combines with any M."""
        return NeuronMask(_merge(self.scales, other.scales, torch.mul), _lacking(self, other))

    def any(self) -> NeuronMask:
        """All masks that are present as one (M = 1): the product of their factors."""
        one = {name: scale.prod(0, keepdim=True) for name, scale in self.scales.items()}
        return NeuronMask(one, _none_of(self))

    def save(self, path: str | os.PathLike[str], **provenance: str) -> None:
        """Write a safetensors file with the factors, and ``provenance`` in its header."""
        mask_file.write_neurons(path, self.scales, provenance, self.missing)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> NeuronMask:
        """Read a file of :meth:`save`; IntegrityError if it is anything else."""
        return _whole(NeuronMask, path, *mask_file.read_neurons(path))


@dataclass(frozen=True, eq=False)
class WeightMask(_Rows):
    """M masks on the weights of linear layers.

    Attributes:
        pruned: bool [M, O, I] by name of the linear layer, True where a weight is set to 0.
        missing: numbers of masks that no localization made; :meth:`Denoiser.masked` refuses them.
    """

    pruned: Mapping[str, Tensor]
    missing: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        _check_counts(self.pruned, 3, "[M, O, I]", self.missing)

    @property
    def _tensors(self) -> Mapping[str, Tensor]:
        return self.pruned

    def counts(self) -> dict[str, Tensor]:
        """Number of weights that each mask prunes, int64 [M] by layer."""
        return {name: mask.flatten(1).sum(1) for name, mask in self.pruned.items()}

    def __or__(self, other: WeightMask) -> WeightMask:
        """Both masks at once; M = 1 combines with any M."""
        joined = _merge(self.pruned, other.pruned, torch.logical_or)
        return WeightMask(joined, _lacking(self, other))

    def any(self) -> WeightMask:
        """All masks that are present as one (M = 1): every weight that any of them prunes."""
        one = {name: mask.any(0, keepdim=True) for name, mask in self.pruned.items()}
        return WeightMask(one, _none_of(self))

    def save(self, path: str | os.PathLike[str], **provenance: str) -> None:
        """Write a safetensors file with a bit per weight, and ``provenance`` in its header."""
        mask_file.write_weights(path, self.pruned, provenance, self.missing)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> WeightMask:
        """Read a file of :meth:`save`; IntegrityError if it is anything else."""
        return _whole(WeightMask, path, *mask_file.read_weights(path))


@dataclass(frozen=True)
class Masks:
    """The masks of a model's view, of either kind."""

    neurons: NeuronMask | None = None
    weights: WeightMask | None = None

    def __len__(self) -> int:
        return max(len(mask) for mask in (self.neurons, self.weights) if mask is not None)

    def joined(self, mask: NeuronMask | WeightMask, device: torch.device) -> Masks:
        """These masks and one more, on ``device`` if they take at most 1 GiB there.

        Raises:
            UsageError: a mask is missing, or the numbers of masks differ.
        """
        mask.require_present()
        if isinstance(mask, NeuronMask):
            mask = mask if self.neurons is None else self.neurons.to("cpu") | mask.to("cpu")
            joined = Masks(_placed(mask, device), self.weights)
        else:
            mask = mask if self.weights is None else self.weights.to("cpu") | mask.to("cpu")
            joined = Masks(self.neurons, _placed(mask, device))
        counts = {len(m) for m in (joined.neurons, joined.weights) if m is not None} - {1}
        if len(counts) > 1:
            raise UsageError(f"masked: {sorted(counts)} masks do not go together")
        return joined

    def sha256(self) -> dict[str, str]:
        """Hash of each kind of mask, by its name."""
        kinds: dict[str, Any] = {"neurons": self.neurons, "weights": self.weights}
        return {kind: mask.sha256() for kind, mask in kinds.items() if mask is not None}


def stack(masks: Sequence[_M]) -> _M:
    """Masks of one kind as one batch, in order; layers that a mask does not cover stay.

    Raises:
        UsageError: no masks, or layers of different widths.
    """
    if not masks:
        raise UsageError("stack: no masks")
    first = [0, *accumulate(map(len, masks))]
    missing = frozenset(first[i] + row for i, mask in enumerate(masks) for row in mask.missing)
    if isinstance(masks[0], NeuronMask):
        return type(masks[0])(_stack([m.scales for m in masks], 1), missing)
    return type(masks[0])(_stack([m.pruned for m in masks], 0), missing)


def _placed(mask: _M, device: torch.device) -> _M:
    """The mask on a device; where it would take too much memory, it stays in the CPU's."""
    size = sum(x.numel() * x.element_size() for x in mask._tensors.values())
    return mask.to(device if size <= _MOST_ON_A_DEVICE else "cpu")


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


def _lacking(one: _M, two: _M) -> frozenset[int]:
    """Numbers of the combined masks to which one side is missing."""
    count = max(len(one), len(two))
    sides = [
        mask.missing if len(mask) == count else range(count) if mask.missing else ()
        for mask in (one, two)
    ]
    return frozenset(row for side in sides for row in side)


def _none_of(masks: NeuronMask | WeightMask) -> frozenset[int]:
    """{0} if all masks are missing, so that their union is."""
    return frozenset({0} if len(masks) and not masks.present else ())


def _whole(kind: type[_M], path: str | os.PathLike[str], *content: Any) -> _M:
    try:
        return kind(*content)
    except UsageError as error:
        raise IntegrityError(
            f"{os.fspath(path)}: damaged ({error}); make the masks again"
        ) from error


def _check_counts(
    tensors: Mapping[str, Tensor], ndim: int, shape: str, missing: frozenset[int]
) -> None:
    for name, tensor in tensors.items():
        if tensor.ndim != ndim or len(tensor) != _count(tensors):
            raise UsageError(
                f"masks: {name} must be {shape} with the same M in all layers,"
                f" got {list(tensor.shape)}"
            )
    if missing and not 0 <= min(missing) <= max(missing) < _count(tensors):
        raise UsageError(
            f"masks: missing must be numbers in 0..{_count(tensors) - 1}, got {sorted(missing)}"
        )


def _count(tensors: Mapping[str, Tensor]) -> int:
    return len(next(iter(tensors.values()))) if tensors else 1
