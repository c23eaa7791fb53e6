from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=generator)
