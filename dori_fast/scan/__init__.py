"""Score any number of prompts into a run directory: read, batch, commit, resume."""

from __future__ import annotations

import sys
import types
from typing import Any

from dori_fast.scan.calibrate import CalibrationRecord, Decision, calibrate
from dori_fast.scan.errors import ScanInterrupted, StorageError, WorkerError
from dori_fast.scan.progress import Progress
from dori_fast.scan.result import ScanResult
from dori_fast.scan.run import scan
from dori_fast.scan.verify import Finding, Verification, verify

__all__ = [
    "CalibrationRecord",
    "Decision",
    "Finding",
    "Progress",
    "ScanInterrupted",
    "ScanResult",
    "StorageError",
    "Verification",
    "WorkerError",
    "calibrate",
    "scan",
    "verify",
]


class _CallableModule(types.ModuleType):
    """Lets ``dori_fast.scan`` be both this package and the function that users call.

    ``dori_fast.scan(model, ...)`` is the public name; ``import dori_fast.scan.read`` sets the
    attribute ``dori_fast.scan`` to this module, which would hide a function of that name.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> ScanResult:
        return scan(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
