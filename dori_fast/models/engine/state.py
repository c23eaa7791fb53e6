"""Shared work as data: a network's activations, and the contribution of the text.

Both are nothing but tensors with the samples (or prompts) in front, so that a result that was
computed once is given to many samples by indexing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dori_fast._checks import to_device

Timestep = int | Tensor
"""One index into ``alphas_cumprod`` for all N samples, or int64 [N] on the CPU, each its own."""


@dataclass(frozen=True)
class State:
    """Activations between two stages.

    ``x`` [N, *] is the current one. ``kept`` are those that later stages need again (skip
    connections, residuals), the next one needed last. All have the N samples in front.
    """

    x: Tensor
    kept: tuple[Tensor, ...] = ()

    def take(self, samples: Tensor) -> State:
        """The state of the given samples: int64 indices [M], repeats allowed."""
        return State(self.x[samples], tuple(kept[samples] for kept in self.kept))

    def push(self, x: Tensor) -> State:
        """The state with ``x`` as the current activation and the previous one kept."""
        return State(x, (*self.kept, self.x))

    def with_kept(self, *tensors: Tensor) -> State:
        """The state with ``tensors`` kept as well."""
        return State(self.x, (*self.kept, *tensors))

    def with_aside(self, tensor: Tensor) -> State:
        """The state with ``tensor`` below everything kept, where no stage needs it."""
        return State(self.x, (tensor, *self.kept))

    def pop(self) -> tuple[Tensor, State]:
        """The activation kept last, and the state without it."""
        return self.kept[-1], State(self.x, self.kept[:-1])

    def first(self, n: int) -> State:
        """The state of the first ``n`` samples."""
        return State(self.x[:n], tuple(kept[:n] for kept in self.kept))

    @staticmethod
    def join(states: list[State]) -> State:
        """States of different samples as one."""
        kept = zip(*(state.kept for state in states), strict=True)
        return State(torch.cat([s.x for s in states]), tuple(torch.cat(k) for k in kept))


@dataclass(frozen=True)
class Pruned:
    """Weights missing from a linear layer, the same for all N samples or each sample's own.

    Attributes:
        mask: bool [M, O, I], True where a weight is 0.
        rows: each sample's mask, N of them.
    """

    mask: Tensor
    rows: tuple[int, ...]

    @property
    def same(self) -> bool:
        """Whether all samples have the same mask."""
        return len(self.mask) == 1

    def weight(self, weight: Tensor, row: int) -> Tensor:
        """Weights [O, I] under mask ``row``."""
        return weight.masked_fill(to_device(self.mask[row], weight.device), 0)


@dataclass(frozen=True)
class TextPart:
    """The contribution of the text, and of the masks that go with it, to an evaluation.

    Attributes:
        keys_values: keys and values [N, T, C] of every cross-attention, in order.
        time: [N, E], the text's addition to the time embedding, or None.
        pruned: weights missing from second feed-forward linears, by number of the layer.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    time: Tensor | None = None
    pruned: Mapping[int, Pruned] = field(default_factory=dict)

    def take(self, rows: Tensor) -> TextPart:
        """The part of the given rows: int64 indices [M], repeats allowed."""
        keys_values = [(k[rows], v[rows]) for k, v in self.keys_values]
        return TextPart(keys_values, None if self.time is None else self.time[rows])

    @staticmethod
    def join(parts: list[TextPart]) -> TextPart:
        """Parts of different rows as one."""
        layers = zip(*(part.keys_values for part in parts), strict=True)
        keys_values = [
            (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers
        ]
        times = [part.time for part in parts if part.time is not None]
        return TextPart(keys_values, torch.cat(times) if times else None)
