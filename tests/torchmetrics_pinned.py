"""The MS-SSIM of torchmetrics 1.3.2, which NeMo's code pins: later versions compute another one."""

from __future__ import annotations

import warnings
from importlib import metadata
from typing import Any

import pytest

_PINNED = "1.3.2"

multiscale_structural_similarity_index_measure: Any = None
try:
    found = metadata.version("torchmetrics")
    with warnings.catch_warnings():
        # an old version, from before newer Python and setuptools
        warnings.simplefilter("ignore")
        from torchmetrics.functional import image

    multiscale_structural_similarity_index_measure = (
        image.multiscale_structural_similarity_index_measure
    )
except ImportError:
    found = "none"

needs_torchmetrics = pytest.mark.skipif(
    found != _PINNED, reason=f"compares with torchmetrics {_PINNED}, found {found}"
)
