from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dori_fast


@pytest.fixture(scope="session")
def model(tiny_directory: Path, model: Any) -> Any:
    """The shared model; on the GPU if there is one, as for users."""
    return dori_fast.load(tiny_directory, batch_size=8) if torch.cuda.is_available() else model
