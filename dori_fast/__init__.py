"""dori_fast: find, attack and remove memorized training data in text-to-image diffusion models.

Importing this package is cheap and needs no GPU, no compiled extension, no Triton and no
diffusers; every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

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
    from dori_fast._backend import backends
    from dori_fast.integrations import accelerate, patch, restore, unpatch
    from dori_fast.models import Denoiser, load
    from dori_fast.scan import scan

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
    "scan",
)
_NAMES = {
    "Denoiser": "dori_fast.models",
    "accelerate": "dori_fast.integrations",
    "backends": "dori_fast._backend",
    "load": "dori_fast.models",
    "patch": "dori_fast.integrations",
    "restore": "dori_fast.integrations",
    "unpatch": "dori_fast.integrations",
}

__all__ = [
    "Denoiser",
    "accelerate",
    "attack",
    "backends",
    "demo",
    "detect",
    "errors",
    "evaluate",
    "finetune",
    "functional",
    "integrations",
    "load",
    "mitigate",
    "ops",
    "patch",
    "prune",
    "restore",
    "scan",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"dori_fast.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'dori_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
