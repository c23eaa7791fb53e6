from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dori_fast.ops import largest_per_map, ms_ssim, ms_ssim_pairs, ms_ssim_settings
from dori_fast.testing import check_backend
from tests.ops.contract import DEVICE, DTYPES, SPECS, backends_of, check_threads
from tests.torchmetrics_pinned import (
    multiscale_structural_similarity_index_measure,
    needs_torchmetrics,
)

BACKENDS = backends_of("ms_ssim")
KERNELS = [backend for backend in BACKENDS if backend != "reference"]
# torchmetrics rounds its exponents to float32.
BETAS = tuple(torch.tensor((0.33, 0.33, 0.33)).tolist())


def drawn(*shape: int, dtype: torch.dtype = torch.float64, noise: float = 0.7) -> Tensor:
    """Maps [G, S, C, H, W] that share a structure within each group."""
    common = torch.randn(shape[0], 1, *shape[2:], dtype=torch.float64)
    return (common + noise * torch.randn(shape, dtype=torch.float64)).to(DEVICE, dtype)


def stretched(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low)


def peer(
    first: Tensor, second: Tensor, *, sigma: float = 1.5, betas: tuple[float, ...] = BETAS
) -> Tensor:
    """The peer's call on the pairs [N, C, H, W] of one group."""
    return multiscale_structural_similarity_index_measure(
        first, second, kernel_size=3, sigma=sigma, betas=betas, reduction="none", data_range=None
    )


def peer_all_pairs(maps: Tensor, **options: object) -> Tensor:
    """One call per group [S, C, H, W] of maps, as NeMo does it."""
    pairs = torch.combinations(torch.arange(maps.shape[1]))
    groups = stretched(maps)
    return torch.stack([peer(g[pairs[:, 0]], g[pairs[:, 1]], **options) for g in groups])


def size_for(backend: str) -> tuple[int, ...]:
    """Maps of the peer's size; on the interpreter the smallest that its settings fit."""
    return (1, 3, 1, 45, 44) if backend == "triton" and DEVICE == "cpu" else (2, 5, 4, 64, 51)


@needs_torchmetrics
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_torchmetrics_on_the_peers_grouping(backend: str) -> None:
    maps = drawn(*size_for(backend))
    found = ms_ssim(maps, betas=BETAS, backend=backend)
    torch.testing.assert_close(found, peer_all_pairs(maps), rtol=1e-10, atol=0)


@needs_torchmetrics
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "triton" or DEVICE == "cuda"])
def test_noise_without_anything_in_common_equals_torchmetrics(backend: str) -> None:
    maps = torch.randn(1, 10, 4, 64, 64, dtype=torch.float64, device=DEVICE)
    found = ms_ssim(maps, betas=BETAS, backend=backend)
    torch.testing.assert_close(found, peer_all_pairs(maps), rtol=1e-10, atol=1e-12)
    single = ms_ssim(maps.float(), backend=backend).double()
    torch.testing.assert_close(single, found, rtol=2e-5, atol=1e-6)


@needs_torchmetrics
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", (16, 29))
def test_smaller_maps_equal_torchmetrics_with_the_settings_reported(
    backend: str, side: int
) -> None:
    maps = drawn(1, 3, 1, side, side + 2)
    used = ms_ssim_settings(side, side + 2)
    assert used.kernel_size < 11
    betas = tuple(torch.tensor(used.betas).tolist())
    found = ms_ssim(maps, betas=betas, backend=backend)
    expected = peer_all_pairs(maps, sigma=used.sigma, betas=betas)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(ms_ssim(maps, backend=backend), found, rtol=1e-6, atol=0)


@needs_torchmetrics
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "triton" or DEVICE == "cuda"])
@pytest.mark.parametrize("kernel_size", (3, 5, 7, 9, 11))
def test_every_window_equals_torchmetrics(backend: str, kernel_size: int) -> None:
    maps = drawn(1, 3, 2, 50, 47)
    sigma = 1.5 * kernel_size / 11
    found = ms_ssim(maps, kernel_size=kernel_size, sigma=sigma, betas=BETAS, backend=backend)
    expected = peer_all_pairs(maps, sigma=sigma)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("backend", KERNELS)
def test_a_group_has_its_own_data_range(backend: str) -> None:
    maps = drawn(2, 3, 1, 16, 16, noise=2.0)
    maps[1] *= 50
    found = ms_ssim(maps, rescale=False, backend=backend)
    for g in range(2):
        alone = ms_ssim(maps[g : g + 1], rescale=False, backend=backend)
        assert torch.equal(found[g : g + 1], alone)
    first, second = torch.combinations(torch.arange(6)).unbind(1)
    pooled = ms_ssim(maps.reshape(1, 6, 1, 16, 16), rescale=False, backend=backend)[0]
    kept = pooled[(first < 3) & (second < 3)]
    assert (kept - found[0]).abs().max() > 0.01, "the pooled range would not have shown"


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_come_in_the_order_of_combinations(backend: str) -> None:
    # at full size all stretched maps span the same range, whatever they are compared with
    options = {"kernel_size": 3, "betas": (0.9,), "backend": backend}
    maps = drawn(1, 4, 1, 8, 8)
    found = ms_ssim(maps, **options)[0]
    for value, (i, j) in zip(found, itertools.combinations(range(4), 2), strict=True):
        alone = ms_ssim(maps[:, [i, j]], **options)[0, 0]
        torch.testing.assert_close(value, alone, rtol=1e-12, atol=0)


@needs_torchmetrics
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_stacks_equal_torchmetrics(backend: str) -> None:
    before = drawn(1, 3, 1, 30, 30)[0]
    after = torch.stack([before + s * torch.randn_like(before) for s in (0.1, 0.6)])
    sigma = ms_ssim_settings(30, 30).sigma
    found = ms_ssim_pairs(before, after, betas=BETAS, backend=backend)
    expected = torch.stack(
        [peer(stretched(before), stretched(group), sigma=sigma) for group in after]
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    repeated = ms_ssim_pairs(before.expand_as(after), after, betas=BETAS, backend=backend)
    assert torch.equal(repeated, found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_maps_are_wholly_similar_whatever_their_scale(
    backend: str, dtype: torch.dtype
) -> None:
    x = torch.randn(1, 1, 2, 12, 13).to(DEVICE, dtype)
    for factor in (1.0, 2.0**-7, 64.0):
        found = ms_ssim(torch.cat([x, factor * x], 1), backend=backend)
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_channel_counts_as_zero(backend: str) -> None:
    maps = drawn(1, 3, 2, 12, 12)
    zeroed = maps.clone()
    zeroed[:, 1, 0] = 0
    maps[:, 1, 0] = 0.1
    found = ms_ssim(maps, backend=backend)
    assert found.isfinite().all()
    assert torch.equal(found, ms_ssim(zeroed, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rescale", (True, False))
def test_a_group_without_contrast_or_with_a_nan_is_nan_alone(backend: str, rescale: bool) -> None:
    maps = drawn(4, 3, 1, 12, 12)
    maps[0] = 0.1
    maps[1, 2, 0, 3, 4] = float("nan")
    maps[2, 0, 0, 11, 11] = float("inf")
    found = ms_ssim(maps, rescale=rescale, backend=backend)
    assert found[:3].isnan().all()
    torch.testing.assert_close(found[3:], ms_ssim(maps[3:], rescale=rescale), rtol=1e-9, atol=0)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_group_does_not_depend_on_its_batch(backend: str, dtype: torch.dtype) -> None:
    maps = drawn(3, 3, 1, 11, 12, dtype=dtype)
    found = ms_ssim(maps, backend=backend)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(ms_ssim(maps[order], backend=backend), found[order])
    assert torch.equal(ms_ssim(maps[1:2], backend=backend), found[1:2])


@pytest.mark.parametrize("threads", (1, 2, 5))
def test_threads_do_not_change_a_bit(threads: int) -> None:
    maps = drawn(2, 6, 4, 64, 64, dtype=torch.float32)
    check_threads(lambda: (ms_ssim(maps),), threads)


@needs_torchmetrics
def test_kernels_keep_more_digits_than_torchmetrics() -> None:
    maps = drawn(1, 5, 4, 64, 64, dtype=torch.float32)
    exact = ms_ssim(maps.double())
    error = (ms_ssim(maps) - exact).abs().max()
    peers_error = (peer_all_pairs(maps) - exact).abs().max()
    assert error < peers_error / 3


@pytest.mark.parametrize("rescale", (True, False))
def test_gradients(rescale: bool) -> None:
    maps = drawn(1, 3, 1, 8, 8).requires_grad_()
    call = lambda x: ms_ssim(x, kernel_size=5, rescale=rescale)  # noqa: E731
    assert torch.autograd.gradcheck(call, (maps,))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(call(maps).sum(), maps)
    (found,) = torch.autograd.grad(compiled(maps).sum(), maps)
    torch.testing.assert_close(found, expected)


def test_a_clipped_similarity_has_no_gradient_and_no_nan() -> None:
    x = torch.randn(1, 1, 1, 8, 8)
    maps = torch.cat([x, -x], 1).requires_grad_()
    similarity = ms_ssim(maps, betas=(0.5,))
    assert similarity.eq(0).all()
    (grad,) = torch.autograd.grad(similarity.sum(), maps)
    assert grad.eq(0).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_a_kernel_asked_for_by_name_refuses_to_lose_a_gradient(backend: str) -> None:
    maps = drawn(1, 2, 1, 8, 8).requires_grad_()
    with pytest.raises(RuntimeError, match=f"ms_ssim: backend '{backend}' has no gradient"):
        ms_ssim(maps, backend=backend)
    with torch.no_grad():
        assert ms_ssim(maps, backend=backend).isfinite().all()


@pytest.mark.parametrize(
    ("height", "width", "kernel_size", "n_scales"),
    [
        (64, 64, 11, 3),
        (44, 80, 11, 3),
        (43, 80, 9, 3),
        (32, 32, 7, 3),
        (20, 99, 5, 3),
        (19, 99, 9, 2),
        (16, 16, 7, 2),
        (10, 10, 5, 2),
        (9, 9, 9, 1),
        (8, 8, 7, 1),
        (4, 9, 3, 1),
    ],
)
def test_settings_follow_the_size(height: int, width: int, kernel_size: int, n_scales: int) -> None:
    used = ms_ssim_settings(height, width)
    assert (used.kernel_size, used.n_scales) == (kernel_size, n_scales)
    assert used.sigma == pytest.approx(1.5 * kernel_size / 11)
    assert sum(used.betas) == pytest.approx(0.99)
    assert ms_ssim(torch.randn(1, 2, 1, height, width)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd, 3 to 11, got 4"),
        ({"kernel_size": 13}, "kernel_size must be odd, 3 to 11, got 13"),
        ({"sigma": 0.0}, "sigma must be positive, got 0.0"),
        ({"betas": ()}, r"betas must be 1 to 8 positive numbers, got \(\)"),
        ({"betas": (0.5, -0.5)}, "betas must be 1 to 8 positive numbers"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^ms_ssim: {message}"):
        ms_ssim(torch.ones(1, 2, 1, 8, 8), **options)


@pytest.mark.parametrize(
    ("maps", "error", "message"),
    [
        (torch.ones(2, 1, 8, 8), ValueError, r"maps must be \[G, S, C, H, W\], got \[2, 1, 8, 8\]"),
        (torch.ones(1, 2, 0, 8, 8), ValueError, r"maps must be \[G, S, C, H, W\]"),
        (torch.ones(1, 2, 1, 8, 2), ValueError, r"maps must be at least 3 pixels a side, got"),
        (torch.ones(1, 2, 1, 8, 8).int(), ValueError, "maps must be float32, .*got int32"),
        ([1.0], TypeError, "maps must be a tensor, got list"),
    ],
)
def test_wrong_maps_are_named(maps: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^ms_ssim: {message}"):
        ms_ssim(maps)


def test_stacks_that_do_not_fit_are_named() -> None:
    second = torch.ones(2, 3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"first must be \[3, 1, 8, 8\] or \[2, 3, 1, 8, 8\]"):
        ms_ssim_pairs(second[:, :2], second)
    with pytest.raises(ValueError, match="first must be of second's dtype torch.float32"):
        ms_ssim_pairs(second.half(), second)


def test_the_operator_refuses_pairs_that_are_not_there() -> None:
    maps = torch.randn(1, 2, 1, 8, 8)
    for pairs, message in (([[0, 2]], r"pairs must be in \[0, 2\), got 2"), ([[0]], "int64")):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.dori.ms_ssim(maps, torch.tensor(pairs), 3, 0.5, [0.5], True)
    with pytest.raises(RuntimeError, match="kernel_size must be at most 8"):
        torch.ops.dori.ms_ssim(maps, torch.tensor([[0, 1]]), 9, 1.5, [0.5], True)


SIZES = st.tuples(
    st.integers(0, 3),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(12, 40),
    st.integers(12, 40),
    st.sampled_from((3, 5)),
    st.integers(1, 2),
    st.integers(0, 1),
)


def check_drawn(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    spec = SPECS["ms_ssim"]
    generator = torch.Generator().manual_seed(seed)
    inputs = spec.make_inputs(size, dtype, DEVICE, generator)
    check_backend(spec, "cuda" if DEVICE == "cuda" else "cpp", inputs)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(SIZES, st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_drawn_shapes(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    check_drawn(size, dtype, seed)


@pytest.mark.nightly
@settings(max_examples=200, deadline=None)
@given(SIZES, st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_many_drawn_shapes(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    check_drawn(size, dtype, seed)


def test_largest_per_map_by_hand():
    similarity = torch.tensor([[0.1, 0.9, 0.4]])  # of 01, 02, 12
    assert largest_per_map(similarity).tolist() == [pytest.approx([0.9, 0.4, 0.9])]
    assert largest_per_map(torch.zeros(0, 1)).shape == (0, 2)
