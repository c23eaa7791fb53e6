"""A stand-in for a device with little memory: the network's last layer runs out of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks


class _Held:
    """The activations of some samples, as long as a graph keeps them."""


class Memory:
    """Memory for the graphs of so many samples, padding included.

    What a graph keeps is counted until autograd drops it: after its backward pass, or when nobody
    holds the graph any more.

    Args:
        samples: samples whose graphs fit at the same time.
        backward: True to fail in the backward pass, False in the forward pass.
        failing: numbers of evaluations with gradients, from 0, that fail whatever is free.

    Attributes:
        refused: samples of each evaluation that failed.
        live: samples whose graphs exist.
    """

    def __init__(
        self, samples: int = 10**9, *, backward: bool = False, failing: tuple[int, ...] = ()
    ) -> None:
        self._samples, self._backward, self._failing = samples, backward, failing
        self.refused: list[int] = []
        self.live, self._calls = 0, count()

    @contextmanager
    def of(self, network: torch.nn.Module) -> Iterator[None]:
        """A context in which a network, and its copies, have this memory."""
        convolve, last = F.conv2d, network.conv_out.weight.shape

        def check(x: torch.Tensor, weight: torch.Tensor, *rest: object) -> torch.Tensor:
            output = convolve(x, weight, *rest)
            return self._kept(output) if weight.shape == last else output

        # not a hook, which would be tested as somebody's change of the network
        F.conv2d = check
        try:
            yield
        finally:
            F.conv2d = convolve

    def _kept(self, output: torch.Tensor) -> torch.Tensor:
        if not output.requires_grad:
            return output
        samples, fails = len(output), next(self._calls) in self._failing
        fails |= self.live + samples > self._samples
        if fails and not self._backward:
            self._refuse(samples)
        held = _Held()
        self.live += samples
        weakref.finalize(held, self._free, samples)
        with saved_tensors_hooks(lambda tensor: (held, tensor), lambda both: both[1]):
            kept = output * torch.ones_like(output)
        if fails:
            kept.register_hook(lambda slope: self._refuse(samples))
        return kept

    def _free(self, samples: int) -> None:
        self.live -= samples

    def _refuse(self, samples: int) -> None:
        self.refused.append(samples)
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
