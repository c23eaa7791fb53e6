from __future__ import annotations

import pytest

import dori_fast as df
from tests.tiny_model import save_tiny_sd


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_sd(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(directory):
    return df.load(directory, device="cpu", batch_size=8)
