"""Define the operators `dori::*` of torch.

Schema, fake and reference are Python; the compiled kernels register themselves when the extension
is loaded. The dispatcher picks the kernel in C++ on a CPU, Triton's on a GPU, and one in CUDA C++
where Triton is not installed; else the reference. No committed row shows a kernel in CUDA C++ to be
at least 1.15 times as fast as Triton's; one that is would come first. Gradients live in the
`autograd.Function` of each public function: a registered autograd formula costs five times as much
per call.
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
        cuda: handle of `dori::<name>_cuda`, the kernel in CUDA C++; None without one.
        compiled_for: device types ("cpu", "cuda") for which the extension holds a kernel.
    """

    name: str
    reference: Callable[..., Any]
    dispatched: Callable[..., Any]
    triton: Callable[..., Any]
    cuda: Callable[..., Any] | None
    compiled_for: frozenset[str]

    def kernel(self, backend: str) -> Callable[..., Any]:
        """Return the handle of a named backend that can serve (`dori_fast._backend.why_not`)."""
        named = {"reference": self.reference, "triton": self.triton, "cuda": self.cuda}
        return named.get(backend) or self.dispatched


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
    """Register `dori::<name>` with its variants `_triton` and `_cuda`; return the handles.

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
    in_cuda = _extension.has_kernel(f"{name}_cuda", "CUDA")
    in_cpp = _extension.has_kernel(name, "CPU")
    for variant in (name, f"{name}_triton", *((f"{name}_cuda",) if in_cuda else ())):
        _LIBRARY.define(variant + signature)
        torch.library.register_fake(f"dori::{variant}", fake, lib=_LIBRARY)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(f"{name}_triton", launch, key)
    # bound once: looking a handle up costs more than calling it
    cuda = getattr(torch.ops.dori, f"{name}_cuda").default if in_cuda else None
    if HAS_TRITON:
        _LIBRARY.impl(name, launch, "CUDA")
    elif cuda is not None:
        _LIBRARY.impl(name, cuda, "CUDA")
    op = FusedOp(
        name,
        reference,
        dispatched=getattr(torch.ops.dori, name).default,
        triton=getattr(torch.ops.dori, f"{name}_triton").default,
        cuda=cuda,
        compiled_for=frozenset({"cpu"} if in_cpp else ()) | frozenset({"cuda"} if in_cuda else ()),
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
