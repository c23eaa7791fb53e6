"""Wen et al.'s gradients by a text: their mitigation and their token gradients.

The released loops still run. Half of the rows in their guided batches belong to a text without a
derivative. Here these rows are evaluated without a graph, and again only after their inputs change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dori_fast.integrations.peers.swap import Patch, replaced_forward
from dori_fast.models.backbones.unet.stock import foreign_module


@dataclass(frozen=True)
class _Asked:
    """Inputs and prediction of a batch's fixed half."""

    sample: Tensor
    version: int
    timestep: Any
    text: Tensor
    answer: Tensor


class HalfFixed:
    """A UNet's forward for batches of two halves, one of them without a derivative.

    Args:
        forward: Forward of the UNet, which treats every sample by itself.
        fixed: Half without a derivative, 0 or 1.
    """

    def __init__(self, forward: Callable[..., Any], fixed: int) -> None:
        self._forward, self._fixed = forward, fixed
        self._last: _Asked | None = None

    def __call__(self, sample: Tensor, timestep: Any, **others: Any) -> Any:
        """The prediction for ``sample`` [2 N, C, H, W] and ``encoder_hidden_states``."""
        text: Tensor = others.pop("encoder_hidden_states")
        halves_match = len(sample) == len(text) and len(text) % 2 == 0
        if not torch.is_grad_enabled() or others.get("return_dict", True) or not halves_match:
            return self._forward(sample, timestep, encoder_hidden_states=text, **others)
        texts, samples = text.chunk(2), sample.chunk(2)
        moving = 1 - self._fixed
        halves: dict[int, Tensor] = {
            moving: self._forward(
                samples[moving], timestep, encoder_hidden_states=texts[moving], **others
            )[0]
        }
        last, own = self._last, texts[self._fixed].detach()
        if last is None or not (
            last.sample is sample
            and last.version == sample._version
            and last.timestep is timestep
            and torch.equal(last.text, own)
        ):
            with torch.no_grad():
                answer = self._forward(
                    samples[self._fixed], timestep, encoder_hidden_states=own, **others
                )[0]
            last = self._last = _Asked(sample, sample._version, timestep, own, answer)
        halves[self._fixed] = last.answer
        return (torch.cat([halves[0], halves[1]]),)


@contextmanager
def _weights_fixed(unet: nn.Module) -> Iterator[None]:
    """Turn off gradients of all weights, so that no layer stores its inputs; restore at exit."""
    with_gradient = [weight for weight in unet.parameters() if weight.requires_grad]
    try:
        for weight in with_gradient:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in with_gradient:
            weight.requires_grad_(True)


def make_differentiated(fixed: int) -> Callable[..., Any]:
    """Maker of the swap for a method whose batches have a fixed half."""

    def make(released: Callable[..., Any], record: Patch, _: Any) -> Callable[..., Any]:
        @functools.wraps(released)
        def differentiated(self: Any, *args: Any, **kwargs: Any) -> Any:
            foreign = foreign_module(self.unet, any_root=True)
            if foreign is not None:
                record.note(f"both halves run in one batch: {foreign} may look across them")
                return released(self, *args, **kwargs)
            forward = HalfFixed(self.unet.forward, fixed)
            with _weights_fixed(self.unet), replaced_forward(self.unet, forward):
                return released(self, *args, **kwargs)

        return differentiated

    return make
