"""Define the operators `dori::*` of torch.

Schema, fake and reference are Python; the compiled kernels register themselves when the extension
is loaded. Per device, the dispatcher picks the extension's kernel, else Triton's (on CUDA), else
the reference. Gradients live in the `autograd.Function` of each public function: a registered
autograd formula costs five times as much per call.
"""

from __future__ import annotations

import importlib
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
    """One op and the ways to call it.

    Attributes:
        name: op, as in `dori::<name>`.
        reference: plain-torch function.
        dispatched: handle of `dori::<name>`, the best kernel for the device.
        triton: handle of `dori::<name>_triton`, the Triton kernel even where it is not the best.
        compiled_for: device types ("cpu", "cuda") for which the extension holds a kernel.
    """

    name: str
    reference: Callable[..., Any]
    dispatched: Callable[..., Any]
    triton: Callable[..., Any]
    compiled_for: frozenset[str]


OPS: dict[str, FusedOp] = {}
"""All ops by name, in the order of definition."""


def define_op(
    name: str,
    signature: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    triton: str,
) -> FusedOp:
    """Register `dori::<name>` and `dori::<name>_triton` and return the handles to call them.

    Args:
        name: op.
        signature: schema after the name, such as "(Tensor x) -> Tensor"; a written argument must be
            marked, as in "(Tensor(a!) x) -> ()".
        reference: plain-torch function.
        fake: function that returns empty outputs of the right shapes, dtypes and devices.
        triton: launcher of the Triton kernel as "module:function", imported at its first call, so
            that importing the ops does not import Triton.
    """
    launch = _imported_when_called(triton)
    for variant in (name, f"{name}_triton"):
        _LIBRARY.define(variant + signature)
        torch.library.register_fake(f"dori::{variant}", fake, lib=_LIBRARY)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(f"{name}_triton", launch, key)
    compiled_for = frozenset(d for d in ("cpu", "cuda") if _extension.has_kernel(name, d.upper()))
    if HAS_TRITON and "cuda" not in compiled_for:
        _LIBRARY.impl(name, launch, "CUDA")
    # bound once: looking a handle up costs more than calling it
    op = FusedOp(
        name,
        reference,
        dispatched=getattr(torch.ops.dori, name).default,
        triton=getattr(torch.ops.dori, f"{name}_triton").default,
        compiled_for=compiled_for,
    )
    OPS[name] = op
    return op


def _imported_when_called(target: str) -> Callable[..., Any]:
    """Return a function that calls the function `target`, "module:function"."""
    module, function = target.split(":")
    return lambda *arguments: getattr(importlib.import_module(module), function)(*arguments)


def mark_written(*tensors: torch.Tensor) -> None:
    """Raise the version counters of tensors that an op has written in place.

    Autograd then refuses a backward pass through another operation that saved their old values.
    """
    # in a compiled graph the schema's marks of written arguments do this
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(tensors)
