"""Select the implementation of an op. Only "auto" chooses; a named backend never falls back.

The environment variable DORI_BACKEND names the backend that "auto" stands for, for instance to find
out whether a kernel is at fault.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch

from dori_fast import _extension
from dori_fast._library import HAS_TRITON, OPS, FusedOp
from dori_fast.errors import UsageError

Backend = Literal["auto", "reference", "cpp", "triton", "cuda"]

BACKENDS: tuple[Backend, ...] = ("auto", "reference", "cpp", "triton", "cuda")
DEFAULT = os.environ.get("DORI_BACKEND", "auto")
# Triton reads this when a kernel is decorated, so it cannot change afterwards.
_INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
_NO_KERNEL = {
    "cpp": "it has no kernel in C++; the reference serves CPU tensors",
    "cuda": "it has no kernel in CUDA C++; Triton's serves CUDA tensors",
}
_NO_EXTENSION = f"the compiled extension is missing: {_extension.REASON}"


def checked_default() -> str:
    """The backend that "auto" stands for; UsageError if DORI_BACKEND names none."""
    if DEFAULT not in BACKENDS:
        raise UsageError(
            f"DORI_BACKEND must be one of {', '.join(BACKENDS)}, got {DEFAULT!r}; unset it"
        )
    return DEFAULT


def why_not(op: FusedOp, backend: str, device: str) -> str | None:
    """Return why `backend` cannot serve `op` on a device type, None if it can."""
    if backend == "reference":
        return None
    if backend == "triton":
        if not HAS_TRITON:
            return "triton is not installed (pip install triton)"
        if device == "cuda" or (device == "cpu" and _INTERPRETING):
            return None
        return f"needs CUDA tensors, got {device} (TRITON_INTERPRET=1 emulates it on the CPU)"
    needed = {"cpp": "cpu", "cuda": "cuda"}[backend]
    if device != needed:
        return f"needs {needed.upper()} tensors, got {device}"
    if _extension.REASON is not None:
        return _NO_EXTENSION
    if needed not in op.compiled_for:
        if any(needed in other.compiled_for for other in OPS.values()):
            return _NO_KERNEL[backend]
        return "the extension was built without CUDA kernels (DORI_WITH_CUDA=ON needs nvcc)"
    return None


def select(op: FusedOp, backend: str, x: torch.Tensor) -> Callable[..., Any]:
    """Return the function that computes `op` on the device of x.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the named backend cannot serve; the message says why.
    """
    if backend == "auto":
        backend = checked_default()
    if backend == "auto":
        return op.dispatched
    if backend not in BACKENDS:
        raise ValueError(f"{op.name}: backend must be one of {', '.join(BACKENDS)}, got {backend}")
    reason = why_not(op, backend, x.device.type)
    if reason is not None:
        raise RuntimeError(f"{op.name}: backend '{backend}' is unavailable: {reason}")
    return op.kernel(backend)
