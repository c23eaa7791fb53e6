"""What the switches of precision do on a GPU; imports little, for machines without the extras."""

from __future__ import annotations

import pytest
import torch

from dori_fast.models.precision import fixed_precision


@pytest.mark.gpu
def test_float32_is_ieee_unless_tf32_is_allowed(monkeypatch):
    x, weight = torch.randn(2, 64, 16, 16).cuda(), torch.randn(64, 64, 3, 3).cuda()
    exact = torch.nn.functional.conv2d(x.double(), weight.double())

    def error(allow_tf32):
        with fixed_precision(allow_tf32):
            return float((torch.nn.functional.conv2d(x, weight) - exact).norm() / exact.norm())

    # as torch comes, by its older interface
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert error(False) < 1e-6 < 1e-5 < error(True)
