"""Every operator in plain torch: the definition, the oracle in float64, and the last fallback.

Each module ends in SPECS, from which contract tests, code generation and benchmarks take the
operator; adding a module here is all it takes to be tested.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class OpSpec:
    """How to make inputs for an operator.

    `name` is the operator's (`dori::<name>`), `public` the function of `dori_fast.ops` that users
    call, `sizes` small problem sizes that reach every code path, and `make_inputs(size, dtype,
    device, generator)` the positional arguments of `dori::<name>`.

    Where terms of a sum may cancel, rounding is relative to the terms and not to what is left of
    them: `uncanceled(*inputs)` then gives inputs of the same magnitudes whose terms all add up, or
    `magnitudes(*inputs)`, where no inputs do that, the sums of the terms' magnitudes themselves.
    """

    name: str
    public: str
    reference: Callable[..., Any]
    sizes: tuple[tuple[int, ...], ...]
    make_inputs: Callable[[tuple[int, ...], torch.dtype, str, torch.Generator], Inputs]
    uncanceled: Callable[..., Inputs] | None = None
    magnitudes: Callable[..., Any] | None = None


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that arithmetic is done in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def randn(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> torch.Tensor:
    """Draw in float32 on the CPU, so that a seed means the same numbers everywhere."""
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def all_specs() -> list[OpSpec]:
    """Return the specs of all modules of this package."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [spec for module in modules for spec in module.SPECS]
