from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dori_fast._library import OPS
from dori_fast.ops import neuron_mask, neuron_mask_, pack_indices
from dori_fast.reference.neuron_mask import neuron_mask_reference
from dori_fast.testing import assert_close_to_oracle, copy_with_layout, to_oracle, with_layout
from tests.ops.contract import DEVICE, DTYPES, backends_of
from tests.ops.pairwise import cover

BACKENDS = backends_of("neuron_mask")
KERNELS = [backend for backend in BACKENDS if backend != "reference"]


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_a_loop_in_plain_python(backend: str) -> None:
    x, scale = activations(2, 3, 5), activations(2, 5)
    y = neuron_mask(x, scale, backend=backend)
    for b in range(2):
        for t in range(3):
            for n in range(5):
                assert y[b, t, n].item() == pytest.approx(x[b, t, n].item() * scale[b, n].item())


@pytest.mark.parametrize(
    ("backend", "dtype", "scale_dtype"), cover(BACKENDS, DTYPES, DTYPES), ids=str
)
def test_any_floating_scale(backend: str, dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    x, scale = activations(2, 3, 67, dtype=dtype), activations(2, 67, dtype=scale_dtype)
    y = neuron_mask(x, scale, backend=backend)
    inputs = (x, scale.to(torch.float64 if dtype == torch.float64 else torch.float32))
    assert_close_to_oracle(
        y, neuron_mask_reference(*inputs), neuron_mask_reference(*to_oracle(inputs))
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_leaves_and_zero_blocks_exactly(backend: str) -> None:
    x = activations(3, 4, 70, dtype=torch.bfloat16)
    scale = torch.ones(70, device=DEVICE)
    assert torch.equal(neuron_mask(x, scale, backend=backend), x)
    scale[[3, 69]] = 0
    y = neuron_mask(x, scale, backend=backend)
    assert y[:, :, [3, 69]].eq(0).all()
    kept = [n for n in range(70) if n not in (3, 69)]
    assert torch.equal(y[:, :, kept], x[:, :, kept])


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_every_16_bit_number_is_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, -1)
    for factor in (1.0, 1 / 3, 2.0**-9, 1.0009765625, 3.14159e4):
        scale = torch.full((2**16,), factor)
        y, expected = neuron_mask(every, scale), neuron_mask_reference(every, scale)
        assert torch.equal(y.isnan(), expected.isnan())
        number = ~expected.isnan()
        assert torch.equal(y[number].view(torch.int16), expected[number].view(torch.int16))


@pytest.mark.parametrize("backend", KERNELS)
def test_batch_order_does_not_matter(backend: str) -> None:
    x, scale = activations(5, 3, 65), activations(5, 65)
    order = torch.tensor([3, 0, 4, 1, 2])
    y = neuron_mask(x, scale, backend=backend)
    assert torch.equal(neuron_mask(x[order], scale[order], backend=backend), y[order])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_sample", (True, False))
def test_gradients(backend: str, per_sample: bool) -> None:
    x = activations(2, 3, 4, dtype=torch.float64).requires_grad_()
    scale = activations(*((2, 4) if per_sample else (4,)), dtype=torch.float64).requires_grad_()
    call = lambda a, b: neuron_mask(a, b, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, scale))
    assert torch.autograd.gradgradcheck(call, (x, scale))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_equal_those_of_the_reference(backend: str, dtype: torch.dtype) -> None:
    x = activations(2, 7, 50, dtype=dtype).requires_grad_()
    scale = activations(2, 50, dtype=dtype).requires_grad_()
    weights = activations(2, 7, 50, dtype=dtype)
    grads = torch.autograd.grad(neuron_mask(x, scale, backend=backend), (x, scale), weights)
    expected = torch.autograd.grad(neuron_mask_reference(x, scale), (x, scale), weights)
    assert_close_to_oracle(grads[0], expected[0], expected[0].double())
    torch.testing.assert_close(grads[1], expected[1])


def as_scale(indices: list[list[int]], neurons: int, factor: float) -> Tensor:
    scale = torch.ones(len(indices), neurons)
    for row, listed in zip(scale, indices, strict=True):
        row[listed] = factor
    return scale.to(DEVICE)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("backend", backends_of("neuron_mask_"))
def test_in_place_equals_the_mask_it_stands_for(backend: str, data: st.DataObject) -> None:
    batch, tokens, neurons = (data.draw(st.integers(1, high)) for high in (4, 3, 40))
    lists = [data.draw(st.lists(st.integers(0, neurons - 1), max_size=9)) for _ in range(batch)]
    factor = data.draw(st.sampled_from([0.0, 1.0, -2.5]))
    layout = data.draw(st.sampled_from(["contiguous", "offset", "sliced", "transposed"]))
    x = with_layout(activations(batch, tokens, neurons), layout)
    expected = neuron_mask(x, as_scale(lists, neurons, factor), backend="reference")
    written = copy_with_layout(x)
    assert neuron_mask_(written, lists, factor, backend=backend) is written
    assert torch.equal(written, expected)


@pytest.mark.parametrize("backend", backends_of("neuron_mask_"))
def test_in_place_touches_nothing_else(backend: str) -> None:
    around = activations(4, 6, 20)
    before = around.clone()
    neuron_mask_(around[1:3, ::2, 3:17], [0, 13], 0.5, backend=backend)
    changed = torch.zeros_like(around, dtype=torch.bool)
    changed[1:3, ::2, [3, 16]] = True
    assert torch.equal(around[~changed], before[~changed])
    assert torch.equal(around[changed], before[changed] * 0.5)


@pytest.mark.parametrize(
    "indices",
    [
        [1, 3],
        [3, 1, 3, 1],
        torch.tensor([1, 3]),
        [[1, 3], [3, 1, 1]],
        [torch.tensor([1, 3]), torch.tensor([3, 1])],
        torch.tensor([[1, 3], [3, 1]]),
        (1, 3),
    ],
    ids=str,
)
def test_forms_of_indices(indices: object) -> None:
    x = activations(2, 3, 5)
    expected = neuron_mask(x, as_scale([[1, 3], [1, 3]], 5, 0.5), backend="reference")
    assert torch.equal(neuron_mask_(x.clone(), indices, 0.5), expected)
    packed = pack_indices(indices, device=DEVICE)
    assert torch.equal(neuron_mask_(x.clone(), packed, 0.5), expected)


@pytest.mark.parametrize("indices", [[], [[], []], torch.tensor([], dtype=torch.int64)], ids=str)
def test_nothing_listed(indices: object) -> None:
    x = activations(2, 3, 5)
    assert torch.equal(neuron_mask_(x.clone(), indices), x)


@pytest.mark.parametrize("backend", backends_of("neuron_mask_"))
def test_in_place_gradient_and_version(backend: str) -> None:
    lists = [[1], [0, 3]]
    x = activations(2, 3, 4, dtype=torch.float64).requires_grad_()
    call = lambda a: neuron_mask_(a.clone(), lists, 0.25, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x,))
    kept = (x * 2).requires_grad_()
    square = kept * kept
    with torch.no_grad():
        neuron_mask_(kept, lists, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([4, 5], ValueError, "indices must be below N = 5, got 5"),
        ([-1], ValueError, "indices must be 0 or more, got -1"),
        ([[1], [2], [3]], ValueError, r"one list, or one per sample \(B = 2\), got 3 lists"),
        ([1.5], TypeError, "indices must be integers"),
    ],
    ids=str,
)
def test_wrong_indices_are_named(indices: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^neuron_mask_: .*{message}"):
        neuron_mask_(activations(2, 3, 5), indices)


def test_wrong_tensors_are_named() -> None:
    x = activations(2, 3, 5)
    with pytest.raises(ValueError, match=r"^neuron_mask: x must be \[B, T, N\], got \[3, 5\]$"):
        neuron_mask(x[0], torch.ones(5))
    with pytest.raises(ValueError, match=r"scale must be \[5\] or \[2, 5\] for x .*, got \[3, 5\]"):
        neuron_mask(x, torch.ones(3, 5))
    with pytest.raises(ValueError, match="scale must be float32, .* got bool"):
        neuron_mask(x, torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="x must be free of repeated memory"):
        neuron_mask_(x[:1].expand(2, 3, 5), [1])


@pytest.mark.parametrize("backend", {"triton", "cuda"} & set(backends_of("neuron_mask_")))
def test_wrong_lists_touch_nothing_on_a_gpu(backend: str) -> None:
    """They are not read on the host, which would wait for the device."""
    op, x = OPS["neuron_mask_"].kernel(backend), torch.ones(3, 2, 8, device=DEVICE)
    # the lists lie among others: what is beyond their ends is a valid neuron
    around = torch.tensor([5, 0, 9, -1, 2, 5], device=DEVICE)
    offsets = torch.tensor([-1, 2, 4, 5], device=DEVICE)
    op(x, around[1:5], offsets, 0.0)
    expected = torch.ones(3, 2, 8, device=DEVICE)
    expected[0, :, 0] = 0
    expected[1, :, 2] = 0
    assert torch.equal(x, expected)
    with_end = torch.tensor([4, 9, 9, 9], device=DEVICE)
    op(x, around[1:5], with_end, 0.0)
    assert torch.equal(x, expected)


def test_the_operator_itself_refuses_indices_that_would_corrupt_memory() -> None:
    op = torch.ops.dori.neuron_mask_
    x = torch.zeros(2, 3, 5)
    with pytest.raises(RuntimeError, match=r"indices must be in \[0, 5\), got 5"):
        op(x, torch.tensor([5]), None, 0.0)
    with pytest.raises(RuntimeError, match="offsets must have 3 entries"):
        op(x, torch.tensor([1]), torch.tensor([0, 1]), 0.0)
    with pytest.raises(RuntimeError, match="offsets must rise"):
        op(x, torch.tensor([1]), torch.tensor([0, 2, 1]), 0.0)
