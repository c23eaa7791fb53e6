from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dori_fast.ops import noise_difference
from dori_fast.reference.noise_difference import noise_difference_reference
from dori_fast.testing import assert_close_to_oracle, to_oracle
from tests.ops.contract import DEVICE, DTYPES, backends_of, check_threads

BACKENDS = backends_of("noise_difference")
KERNELS = [backend for backend in BACKENDS if backend != "reference"]


def predictions(
    *shape: int, dtype: torch.dtype = torch.float32, shared: bool = True
) -> tuple[Tensor, Tensor]:
    cond = torch.randn(shape).to(DEVICE, dtype)
    return cond, torch.randn(shape[1:] if shared else shape).to(DEVICE, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_a_loop_in_plain_python(backend: str) -> None:
    cond, uncond = predictions(3, 2, 2, 3, dtype=torch.float64)
    norm = noise_difference(cond, uncond, backend=backend)
    for p in range(3):
        for s in range(2):
            pairs = zip(cond[p, s].flatten().tolist(), uncond[s].flatten().tolist(), strict=True)
            assert norm[p, s].item() == pytest.approx(math.dist(*zip(*pairs, strict=True)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_and_repeated_eps_uncond_agree(backend: str, dtype: torch.dtype) -> None:
    cond, uncond = predictions(70, 2, 4, 33, dtype=dtype)
    shared = noise_difference(cond, uncond, backend=backend)
    repeated = noise_difference(cond, uncond.expand_as(cond).contiguous(), backend=backend)
    assert torch.equal(shared, repeated)
    assert torch.equal(noise_difference(cond, uncond.expand_as(cond), backend=backend), shared)


@pytest.mark.parametrize("backend", KERNELS)
def test_one_eps_uncond_per_prompt(backend: str) -> None:
    cond, uncond = predictions(3, 2, 4, 33, shared=False)
    assert_close_to_oracle(
        noise_difference(cond, uncond, backend=backend),
        noise_difference_reference(cond, uncond),
        noise_difference_reference(*to_oracle((cond, uncond))),
    )


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_batch(backend: str, dtype: torch.dtype) -> None:
    cond, uncond = predictions(5, 3, 4, 1100, dtype=dtype)
    norm = noise_difference(cond, uncond, backend=backend)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(noise_difference(cond[order], uncond, backend=backend), norm[order])
    assert torch.equal(noise_difference(cond[2:3], uncond, backend=backend), norm[2:3])
    assert torch.equal(noise_difference(cond[:, 1:2], uncond[1:2], backend=backend), norm[:, 1:2])


@pytest.mark.parametrize("threads", (1, 2, 5))
def test_threads_do_not_change_a_bit(threads: int) -> None:
    cond, uncond = predictions(37, 3, 4, 1100)
    check_threads(lambda: (noise_difference(cond, uncond),), threads)


@pytest.mark.parametrize("backend", KERNELS)
def test_error_does_not_grow_with_the_length(backend: str) -> None:
    cond, uncond = predictions(1, 1, 300_000)
    exact = noise_difference_reference(cond.double(), uncond.double())
    norm = noise_difference(cond, uncond, backend=backend)
    assert ((norm - exact) / exact).abs().item() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", (True, False))
def test_gradients(backend: str, shared: bool) -> None:
    inputs = predictions(2, 3, 2, 5, dtype=torch.float64, shared=shared)
    inputs = tuple(x.requires_grad_() for x in inputs)
    call = lambda a, b: noise_difference(a, b, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)
    if backend != "triton" or DEVICE == "cuda":
        assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_equal_those_of_the_reference(backend: str, dtype: torch.dtype) -> None:
    cond, uncond = (x.requires_grad_() for x in predictions(2, 3, 2, 50, dtype=dtype))
    weights = torch.randn(2, 3, device=DEVICE)
    grads = torch.autograd.grad(
        (noise_difference(cond, uncond, backend=backend) * weights).sum(), (cond, uncond)
    )
    expected = torch.autograd.grad(
        (noise_difference_reference(cond, uncond) * weights).sum(), (cond, uncond)
    )
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_zero_where_the_difference_is_zero(backend: str) -> None:
    cond, uncond = predictions(2, 1, 8)
    cond[0] = uncond
    cond.requires_grad_()
    uncond.requires_grad_()
    noise_difference(cond, uncond, backend=backend).sum().backward()
    assert cond.grad is not None and uncond.grad is not None
    assert cond.grad[0].eq(0).all() and cond.grad[1].ne(0).all()
    torch.testing.assert_close(uncond.grad, -cond.grad[1])


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_magnitudes_whose_squares_are_still_numbers(backend: str, dtype: torch.dtype) -> None:
    largest = min(math.sqrt(torch.finfo(torch.float32).max) / 100, torch.finfo(dtype).max / 8)
    for factor in (largest, 1e-3 if dtype == torch.float16 else 1e-12):
        cond, uncond = predictions(2, 2, 65, dtype=torch.float32)
        inputs = ((cond * factor).to(dtype), (uncond * factor).to(dtype))
        assert_close_to_oracle(
            noise_difference(*inputs, backend=backend),
            noise_difference_reference(*inputs),
            noise_difference_reference(*to_oracle(inputs)),
        )


@pytest.mark.parametrize(
    ("cond", "uncond", "error", "message"),
    [
        (torch.ones(3), torch.ones(3), ValueError, r"eps_cond must be \[P, S, \*\], got \[3\]"),
        (
            torch.ones(2, 3, 4),
            torch.ones(2, 4),
            ValueError,
            r"eps_uncond must be \[3, 4\] or \[2, 3, 4\] for eps_cond \[2, 3, 4\], got \[2, 4\]",
        ),
        (torch.ones(2, 3), torch.ones(3).half(), ValueError, "of eps_cond's dtype torch.float32"),
        (
            torch.ones(2, 3).int(),
            torch.ones(3),
            ValueError,
            "must be float32, .*got int32",
        ),
        (torch.ones(2, 3), torch.ones(3, device="meta"), ValueError, "on eps_cond's device cpu"),
        ([[1.0]], torch.ones(1), TypeError, "eps_cond must be a tensor, got list"),
    ],
)
def test_wrong_arguments_are_named(
    cond: Tensor, uncond: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^noise_difference: .*{message}"):
        noise_difference(cond, uncond)


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31_elements() -> None:
    cond = torch.zeros(2, 1, 2**31 + 64, dtype=torch.float16, device="cuda")
    cond[1, 0, -1] = 3.0
    uncond = torch.zeros((), dtype=torch.float16, device="cuda").expand(1, cond.shape[2])
    for backend in KERNELS:
        assert noise_difference(cond, uncond, backend=backend).flatten().tolist() == [0.0, 3.0]
