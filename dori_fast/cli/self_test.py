"""Small known-answer runs of every op, for doctor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dori_fast import ops

_TOLERANCE = 1e-5


def _noise_difference(draw: Callable[..., Tensor], backend: str) -> Tensor:
    return ops.noise_difference(draw(3, 2, 4, 7, 9), draw(2, 4, 7, 9), backend=backend)


def _neuron_mask(draw: Callable[..., Tensor], backend: str) -> Tensor:
    return ops.neuron_mask(draw(3, 5, 67), draw(3, 67), backend=backend)


def _neuron_mask_in_place(draw: Callable[..., Tensor], backend: str) -> Tensor:
    x = draw(3, 5, 67)
    ops.neuron_mask_(x, [[0, 66], [7], [13, 14, 15]], 0.5, backend=backend)
    return x


CASES: dict[str, Callable[[Callable[..., Tensor], str], Tensor]] = {
    "noise_difference": _noise_difference,
    "neuron_mask": _neuron_mask,
    "neuron_mask_": _neuron_mask_in_place,
}


def self_test(op: str, backend: str, device: str) -> str | None:
    """Compare an op's backend with the reference in float64; None if it agrees, else why not."""
    if op not in CASES:
        return "has no self-test"
    try:
        got = _run(op, backend, device, torch.float32)
        expected = _run(op, "reference", "cpu", torch.float64)
    except Exception as error:  # whatever a broken build raises is what doctor is to report
        return f"{type(error).__name__}: {error}"
    distance = float((got.double().cpu() - expected).abs().max() / expected.abs().max())
    return None if distance <= _TOLERANCE else f"is off by {distance:.1e} of the largest value"


def _run(op: str, backend: str, device: str, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return CASES[op](draw, backend)
