from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dori_fast.ops import masked_linear, neuron_mask
from dori_fast.reference.masked_linear import masked_linear_reference
from tests.ops.contract import DEVICE, DTYPES, SPECS, backends_of, draw_and_check

BACKENDS = backends_of("masked_linear")
KERNELS = [backend for backend in BACKENDS if backend != "reference"]


def layer(
    batch: int, tokens: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, weight, bias, and a scale per sample."""
    tensors = (
        torch.randn(batch, tokens, inputs),
        torch.randn(outputs, inputs) / inputs**0.5,
        torch.randn(outputs),
        torch.rand(batch, outputs),
    )
    x, weight, bias, scale = (tensor.to(DEVICE, dtype) for tensor in tensors)
    return x, weight, bias, scale


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("has_bias", (True, False))
def test_equals_the_layer_and_then_the_mask(backend: str, has_bias: bool) -> None:
    x, weight, bias, scale = layer(3, 5, 40, 70)
    bias = bias if has_bias else None
    for mask in (scale, scale[1]):
        y = masked_linear(x, weight, bias, mask, backend=backend)
        torch.testing.assert_close(y, neuron_mask(F.linear(x, weight, bias), mask))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_blocks_exactly_and_one_leaves(backend: str, dtype: torch.dtype) -> None:
    x, weight, bias, scale = layer(2, 3, 33, 70, dtype)
    scale[:] = 1
    plain = masked_linear(x, weight, bias, scale, backend=backend)
    scale[1, [3, 69]] = 0
    blocked = masked_linear(x, weight, bias, scale, backend=backend)
    assert blocked[1, :, [3, 69]].eq(0).all()
    assert torch.equal(blocked[0], plain[0])
    kept = [o for o in range(70) if o not in (3, 69)]
    assert torch.equal(blocked[1][:, kept], plain[1][:, kept])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_sample", (True, False))
def test_gradients(backend: str, per_sample: bool) -> None:
    x, weight, bias, scale = layer(2, 3, 4, 5, torch.float64)
    inputs = (x, weight, bias, scale if per_sample else scale[0].clone())
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    call = lambda *tensors: masked_linear(*tensors, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_only_the_gradients_asked_for(backend: str, dtype: torch.dtype) -> None:
    x, weight, _, scale = layer(2, 7, 30, 50, dtype)
    x.requires_grad_()
    weights = torch.randn(2, 7, 50).to(DEVICE, dtype)
    y = masked_linear(x, weight, None, scale, backend=backend)
    (grad,) = torch.autograd.grad(y, x, weights)
    expected = masked_linear_reference(x, weight, None, scale)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, x, weights)[0])


# only on a GPU: the interpreter multiplies by numpy, whose sums depend on a row's place
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sample_does_not_depend_on_its_batch_in_triton(dtype: torch.dtype) -> None:
    x, weight, bias, scale = layer(5, 30, 70, 40, dtype)
    y = masked_linear(x, weight, bias, scale, backend="triton")
    alone = masked_linear(x[2:3], weight, bias, scale[2:3], backend="triton")
    assert torch.equal(alone, y[2:3])


def agrees_with_the_oracle(backend: str, data: st.DataObject) -> None:
    size = [data.draw(st.integers(0, high)) for high in (3, 30, 70, 70)]
    size += [data.draw(st.integers(1, 2)), data.draw(st.integers(0, 1))]
    draw_and_check(SPECS["masked_linear"], backend, size, data)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
@pytest.mark.parametrize("backend", KERNELS)
def test_any_shape(backend: str, data: st.DataObject) -> None:
    agrees_with_the_oracle(backend, data)


@pytest.mark.nightly
@settings(deadline=None, max_examples=200)
@given(data=st.data())
@pytest.mark.parametrize("backend", KERNELS)
def test_any_of_many_shapes(backend: str, data: st.DataObject) -> None:
    agrees_with_the_oracle(backend, data)


def test_wrong_arguments_are_named() -> None:
    x, weight, bias, scale = layer(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"^masked_linear: x must be \[B, T, I\], got \[3, 4\]$"):
        masked_linear(x[0], weight, bias, scale)
    with pytest.raises(
        ValueError, match=r"weight must be \[O, 4\] for x \[2, 3, 4\], got \[4, 5\]"
    ):
        masked_linear(x, weight.T, bias, scale)
    with pytest.raises(ValueError, match=r"bias must be \[5\] for weight \[5, 4\], got \[4\]"):
        masked_linear(x, weight, bias[:4], scale)
    with pytest.raises(ValueError, match=r"scale must be \[5\] or \[2, 5\] for x .*, got \[3, 5\]"):
        masked_linear(x, weight, bias, torch.ones(3, 5))
    with pytest.raises(ValueError, match="weight must be of x's dtype torch.float32"):
        masked_linear(x, weight.half(), bias, scale)
    with pytest.raises(TypeError, match="masked_linear: scale must be a tensor, got NoneType"):
        masked_linear(x, weight, bias, None)
