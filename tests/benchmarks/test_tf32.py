"""The emulation of TF32: rounding to 10 bits of mantissa, in the products of one network."""

from __future__ import annotations

import pytest
import torch

from benchmarks.quality.tf32 import Tf32, rounded

UNIT = 2.0**-10


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 1.0),
        (1 + UNIT, 1 + UNIT),
        (1 + 0.49 * UNIT, 1.0),
        (1 + 0.5 * UNIT, 1.0),
        (1 + 1.5 * UNIT, 1 + 2 * UNIT),
        (-(1 + 0.51 * UNIT), -(1 + UNIT)),
        (0.0, 0.0),
    ],
)
def test_rounding_is_to_the_nearest_and_to_even(value: float, expected: float) -> None:
    assert rounded(torch.tensor([value])).item() == expected


def test_products_with_the_networks_weights_alone_are_rounded() -> None:
    linear, conv = torch.nn.Linear(5, 3), torch.nn.Conv2d(2, 3, 3)
    network = torch.nn.ModuleList([linear, conv])
    x, image = torch.randn(4, 5), torch.randn(1, 2, 4, 4)
    plain, other = linear(x), x @ x.T
    with torch.no_grad(), Tf32(network) as mode:
        found, slice_of_it = linear(x), torch.nn.functional.conv2d(image, conv.weight[:, :2])
        assert torch.equal(x @ x.T, other)
    assert mode.products == 2
    expected = rounded(x).double() @ rounded(linear.weight).double().T + linear.bias.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert (found - plain).abs().max() > 1e-5
    exact = torch.nn.functional.conv2d(rounded(image).double(), rounded(conv.weight).double())
    torch.testing.assert_close(slice_of_it.double(), exact, rtol=1e-6, atol=1e-6)


def test_tangents_are_rounded_too() -> None:
    linear = torch.nn.Linear(5, 3)
    x, along = torch.randn(4, 5), torch.randn(4, 5)
    with torch.no_grad(), Tf32(linear) as mode:
        slope = torch.func.jvp(linear, (x,), (along,))[1]
    assert mode.products == 2
    expected = rounded(along).double() @ rounded(linear.weight).double().T
    torch.testing.assert_close(slope.double(), expected, rtol=1e-6, atol=1e-6)
