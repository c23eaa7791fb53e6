"""Choose an implementation. Only "auto" may choose; a backend asked for by name never falls back.

The environment variable DORI_BACKEND names the backend that "auto" stands for (to find out whether
a kernel is at fault, for instance).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dori_fast import _extension
from dori_fast._library import HAS_TRITON, OPS, FusedOp

Backend = Literal["auto", "reference", "cpp", "triton", "cuda"]

BACKENDS: tuple[Backend, ...] = ("auto", "reference", "cpp", "triton", "cuda")
_DEFAULT = os.environ.get("DORI_BACKEND", "auto")
# Triton reads this when a kernel is decorated, so it cannot change afterwards.
_INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
_NO_KERNEL = {
    "cpp": "it has no kernel in C++; the reference serves CPU tensors",
    "cuda": "it has no kernel in CUDA C++; Triton's serves CUDA tensors",
}
_NO_EXTENSION = f"the compiled extension is missing: {_extension.REASON}"


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
    """Return the function that computes `op` on tensors where x is.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the backend was asked for by name and cannot serve; says why.
    """
    if backend == "auto":
        backend = _DEFAULT
    if backend == "auto":
        return op.dispatched
    if backend not in BACKENDS:
        raise ValueError(f"{op.name}: backend must be one of {', '.join(BACKENDS)}, got {backend}")
    reason = why_not(op, backend, x.device.type)
    if reason is not None:
        raise RuntimeError(f"{op.name}: backend '{backend}' is unavailable: {reason}")
    if backend == "reference":
        return op.reference
    return op.triton if backend == "triton" else op.dispatched


@dataclass(frozen=True)
class Answer:
    """Who computes an operator on one kind of device.

    `backend` is what "auto" gives there (None without such a device), `available` what may be asked
    for by name, and `unavailable` says for each other backend why it may not.
    """

    backend: str | None
    available: tuple[str, ...]
    unavailable: dict[str, str]


def _answer(op: FusedOp, device: str) -> Answer:
    order = ("cuda", "triton", "cpp", "reference") if device == "cuda" else ("cpp", "reference")
    absent = _why_no_device(device)
    reasons = {name: absent or why_not(op, name, device) for name in BACKENDS if name != "auto"}
    available = tuple(name for name, reason in reasons.items() if reason is None)
    preferred = next((name for name in order if name in available), None)
    chosen = preferred if _DEFAULT == "auto" else _DEFAULT
    return Answer(
        backend=chosen if chosen in available else None,
        available=available,
        unavailable={name: reason for name, reason in reasons.items() if reason is not None},
    )


def _why_no_device(device: str) -> str | None:
    if device == "cpu" or torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "no CUDA device is visible"


def backends() -> dict[str, dict[str, Answer]]:
    """Say for each operator and kind of device ("cpu", "cuda") who answers, and why others do not.

    >>> backends()["noise_difference"]["cpu"].backend
    'cpp'
    """
    import dori_fast.ops  # noqa: F401  (importing the operators defines them)

    return {name: {d: _answer(op, d) for d in ("cpu", "cuda")} for name, op in OPS.items()}
