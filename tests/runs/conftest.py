from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dori_fast
from tests.tiny_model import save_tiny_sd


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: Any) -> Path:
    return save_tiny_sd(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def model(tiny_directory: Path) -> Any:
    return dori_fast.load(tiny_directory, batch_size=8)
