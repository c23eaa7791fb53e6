"""Define the operators `dori::*` of torch.

Schema, fake and reference are Python; the compiled kernels register themselves when the extension
is loaded. The dispatcher then picks, per device, the extension's kernel, else Triton's (on CUDA),
else the reference. Gradients live in the `autograd.Function` of each public function: a registered
autograd formula costs five times as much per call.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dori_fast import _extension

_LIBRARY = torch.library.Library("dori", "FRAGMENT")
HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class FusedOp:
    """One operator and the ways to call it.

    `dispatched` is `dori::<name>`, the best kernel for the device; `triton` is
    `dori::<name>_triton`, so that the Triton kernel can be called and compiled where it is not the
    best; `reference` is the plain-torch function; `compiled_for` the device types ("cpu", "cuda")
    for which the extension holds a kernel.
    """

    name: str
    reference: Callable[..., Any]
    dispatched: Callable[..., Any]
    triton: Callable[..., Any]
    compiled_for: frozenset[str]


OPS: dict[str, FusedOp] = {}
"""Every operator by name, in the order of definition."""


def define_op(
    name: str,
    signature: str,
    *,
    reference: Callable[..., Any],
    triton: Callable[..., Any],
    fake: Callable[..., Any],
) -> FusedOp:
    """Register `dori::<name>` and `dori::<name>_triton` and return the handles to call them.

    `signature` is the schema after the name, such as "(Tensor x) -> Tensor"; a written argument
    must be marked, as in "(Tensor(a!) x) -> ()". `triton` launches the Triton kernel; it must
    import it inside, so that importing the operators does not import Triton. `fake` computes the
    outputs' metadata.
    """
    for variant in (name, f"{name}_triton"):
        _LIBRARY.define(variant + signature)
        torch.library.register_fake(f"dori::{variant}", fake, lib=_LIBRARY)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(f"{name}_triton", triton, key)
    compiled_for = frozenset(d for d in ("cpu", "cuda") if _extension.has_kernel(name, d.upper()))
    if HAS_TRITON and "cuda" not in compiled_for:
        _LIBRARY.impl(name, triton, "CUDA")
    # Bound once: looking a handle up costs more than calling it.
    op = FusedOp(
        name,
        reference,
        dispatched=getattr(torch.ops.dori, name).default,
        triton=getattr(torch.ops.dori, f"{name}_triton").default,
        compiled_for=compiled_for,
    )
    OPS[name] = op
    return op
