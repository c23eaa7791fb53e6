"""Score any number of prompts into a run directory: read, batch, commit, resume.

Names are loaded when they are first used: a look at a run's status needs none of the libraries.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dori_fast.scan.calibrate import CalibrationRecord, Decision, calibrate
    from dori_fast.scan.errors import ScanInterrupted, StorageError, WorkerError
    from dori_fast.scan.estimate import Estimate, estimate
    from dori_fast.scan.progress import Progress
    from dori_fast.scan.result import ScanResult
    from dori_fast.scan.run import scan
    from dori_fast.scan.status import RunStatus, status
    from dori_fast.scan.verify import Finding, Verification, verify

__all__ = [
    "CalibrationRecord",
    "Decision",
    "Estimate",
    "Finding",
    "Progress",
    "RunStatus",
    "ScanInterrupted",
    "ScanResult",
    "StorageError",
    "Verification",
    "WorkerError",
    "calibrate",
    "estimate",
    "scan",
    "status",
    "verify",
]

_HOMES = {
    "CalibrationRecord": "calibrate",
    "Decision": "calibrate",
    "Estimate": "estimate",
    "Finding": "verify",
    "Progress": "progress",
    "RunStatus": "status",
    "ScanInterrupted": "errors",
    "ScanResult": "result",
    "StorageError": "errors",
    "Verification": "verify",
    "WorkerError": "errors",
    "calibrate": "calibrate",
    "estimate": "estimate",
    "scan": "run",
    "status": "status",
    "verify": "verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dori_fast.scan' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dori_fast.scan.{_HOMES[name]}"), name)


class _CallableModule(types.ModuleType):
    """Lets ``dori_fast.scan`` be both this package and the function that users call.

    ``dori_fast.scan(model, ...)`` is the public name; ``import dori_fast.scan.read`` sets the
    attribute ``dori_fast.scan`` to this module, which would hide a function of that name.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> ScanResult:
        from dori_fast.scan.run import scan

        return scan(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # importing the file calibrate.py must not hide the function calibrate
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _CallableModule
