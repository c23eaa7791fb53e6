"""dori_fast: find, attack and remove memorized training data in text-to-image diffusion models.

Importing this package is cheap and needs no GPU, no compiled extension, no Triton and no
diffusers; every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dori_fast._version import __version__ as __version__

if TYPE_CHECKING:
    from dori_fast import (
        attack,
        demo,
        detect,
        errors,
        evaluate,
        finetune,
        functional,
        integrations,
        mitigate,
        ops,
        prune,
    )
    from dori_fast.integrations import accelerate, patch, restore, unpatch
    from dori_fast.models import Denoiser
    from dori_fast.models.load import load
    from dori_fast.ops.backends import backends
    from dori_fast.runs.calibrate import calibrate
    from dori_fast.runs.estimate import estimate
    from dori_fast.runs.flag import flag
    from dori_fast.runs.scan import scan
    from dori_fast.runs.store.status import status
    from dori_fast.runs.verify.verify import verify

_MODULES = (
    "attack",
    "demo",
    "detect",
    "errors",
    "evaluate",
    "finetune",
    "functional",
    "integrations",
    "mitigate",
    "models",
    "ops",
    "prune",
)
_NAMES = {
    "Denoiser": "dori_fast.models",
    "accelerate": "dori_fast.integrations",
    "backends": "dori_fast.ops.backends",
    "calibrate": "dori_fast.runs.calibrate",
    "estimate": "dori_fast.runs.estimate",
    "flag": "dori_fast.runs.flag",
    "load": "dori_fast.models",
    "patch": "dori_fast.integrations",
    "restore": "dori_fast.integrations",
    "scan": "dori_fast.runs.scan",
    "status": "dori_fast.runs.store.status",
    "unpatch": "dori_fast.integrations",
    "verify": "dori_fast.runs.verify.verify",
}

__all__ = [
    "Denoiser",
    "accelerate",
    "attack",
    "backends",
    "calibrate",
    "demo",
    "detect",
    "errors",
    "estimate",
    "evaluate",
    "finetune",
    "flag",
    "functional",
    "integrations",
    "load",
    "mitigate",
    "ops",
    "patch",
    "prune",
    "restore",
    "scan",
    "status",
    "unpatch",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"dori_fast.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'dori_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
