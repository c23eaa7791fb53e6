"""Load the compiled ops, or record why they are missing. Importing this never raises."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).with_name("_C.abi3.so")
_BUILD_ERROR = Path(__file__).with_name("_build_error.txt")
_FACTS = ("version", "compiler", "build_type", "cxx_standard", "simd_levels", "cuda_version")


def _load() -> str | None:
    """Load the ops; return None, or the reason why they are missing."""
    if not LIBRARY.exists():
        if _BUILD_ERROR.exists():
            return f"it was not built: {_BUILD_ERROR.read_text().strip()}"
        return "it was not built: run `pip install .` where a C++20 compiler is installed"
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        return f"{LIBRARY.name} does not load on torch {torch.__version__}: {error}"
    return None


REASON: str | None = _load()
"""Reason why the compiled ops are missing; None if they are loaded."""

# listed here, before Python registers kernels of its own
_KERNELS = {
    key: frozenset(torch._C._dispatch_get_registrations_for_dispatch_key(key))
    for key in ("CPU", "CUDA")
}


def has_kernel(op: str, dispatch_key: str) -> bool:
    """Return whether the extension has registered `dori::<op>` for a key ("CPU", "CUDA")."""
    return f"dori::{op}" in _KERNELS[dispatch_key]


def build_facts() -> dict[str, Any] | None:
    """Return facts of the build (compiler, SIMD levels, ...); None without an extension."""
    try:
        info = importlib.import_module("dori_fast._info")
    except ImportError:
        return None
    facts = {name: getattr(info, name) for name in (*_FACTS, "cuda_archs")}
    return {**facts, "simd_in_use": info.simd_in_use()}
