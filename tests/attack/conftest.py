from __future__ import annotations

import pytest
import torch

import dori_fast as df
from tests.tiny_model import save_tiny_sd


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_sd(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(directory):
    return df.load(directory, device="cpu", batch_size=8)


@pytest.fixture(scope="module")
def model64(directory):
    return df.load(directory, device="cpu", dtype="float64", batch_size=8)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=generator)
