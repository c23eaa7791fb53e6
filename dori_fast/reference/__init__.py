"""Every op in plain torch: its definition, its oracle in float64, and the last fallback.

Each module ends in SPECS, from which the contract tests, code generation and benchmarks take the
op. A new module is tested without further registration.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# every module of this room computes in it
from dori_fast._checks import accumulate_dtype as accumulate_dtype

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class OpSpec:
    """Description of an op for tests and benchmarks.

    If terms of a sum may cancel, rounding errors are relative to the terms, not to the small sum.
    `uncanceled` or `magnitudes` then gives that scale.

    Attributes:
        name: op, as in `dori::<name>`.
        public: function of `dori_fast.ops` that users call.
        reference: plain-torch function.
        sizes: small problem sizes that reach every code path.
        make_inputs: function of (size, dtype, device, generator) that returns the positional
            arguments of `dori::<name>`.
        uncanceled: function of the inputs that returns inputs of the same magnitudes whose terms
            all have one sign.
        magnitudes: function of the inputs that returns the sums of the terms' magnitudes, for
            ops that no inputs keep from canceling.
    """

    name: str
    public: str
    reference: Callable[..., Any]
    sizes: tuple[tuple[int, ...], ...]
    make_inputs: Callable[[tuple[int, ...], torch.dtype, str, torch.Generator], Inputs]
    uncanceled: Callable[..., Inputs] | None = None
    magnitudes: Callable[..., Any] | None = None


def randn(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> torch.Tensor:
    """Draw in float32 on the CPU, so that a seed gives the same numbers on every device."""
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def all_specs() -> list[OpSpec]:
    """Return the specs of all modules of this package."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [spec for module in modules for spec in module.SPECS]
