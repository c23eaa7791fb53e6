"""Which backend computes each op on each kind of device, and why others cannot."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dori_fast import _backend
from dori_fast._library import OPS, FusedOp

_DEVICES = ("cpu", "cuda")
_PREFERENCE = {"cpu": ("cpp", "reference"), "cuda": ("triton", "cuda", "reference")}


@dataclass(frozen=True)
class Availability:
    """Backends of one op on one kind of device.

    Attributes:
        backend: backend that "auto" selects; None without such a device.
        available: backends that may be named.
        unavailable: reason for each backend that may not be named.
    """

    backend: str | None
    available: tuple[str, ...]
    unavailable: dict[str, str]


def backends() -> dict[str, dict[str, Availability]]:
    """Return, for each op and kind of device ("cpu", "cuda"), who computes it and why.

    Raises:
        UsageError: the environment variable DORI_BACKEND names no backend.

    >>> backends()["noise_difference"]["cpu"].backend
    'cpp'
    """
    return {
        name: {device: _availability(op, device) for device in _DEVICES} for name, op in OPS.items()
    }


def _availability(op: FusedOp, device: str) -> Availability:
    absent = _why_no_device(device)
    named = (name for name in _backend.BACKENDS if name != "auto")
    reasons = {name: absent or _backend.why_not(op, name, device) for name in named}
    available = tuple(name for name, reason in reasons.items() if reason is None)
    chosen: str | None = _backend.checked_default()
    if chosen == "auto":
        chosen = next((name for name in _PREFERENCE[device] if name in available), None)
    return Availability(
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
