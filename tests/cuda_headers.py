"""The include folder of a CUDA toolkit, with which the C++ compiler needs no nvcc."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def _include() -> Path | None:
    nvcc = shutil.which("nvcc")
    roots = (
        os.environ.get("CUDA_HOME"),
        str(Path(nvcc).resolve().parent.parent) if nvcc else None,
        "/usr/local/cuda",
    )
    folders = (Path(root, "include") for root in roots if root)
    return next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)


CUDA_INCLUDE = _include()
"""Folder with cuda_fp16.h and cuda_occupancy.h, or None."""
WHY_NOT = "no CUDA headers (cuda_fp16.h); install a CUDA toolkit or set CUDA_HOME"
