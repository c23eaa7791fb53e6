from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from dori_fast.ops import sdpa_jvp
from dori_fast.reference import accumulate_dtype
from dori_fast.reference import sdpa_jvp as reference_module
from dori_fast.testing import check_backend
from tests.ops.contract import DEVICE, DTYPES, SPECS, backends_of, draw_and_check

BACKENDS = backends_of("sdpa_jvp")
SPEC = SPECS["sdpa_jvp"]
SUBSETS = list(itertools.product((True, False), repeat=3))


def inputs(
    queries: int, keys: int, width: int, dtype: torch.dtype = torch.float64, batch: int = 2
) -> list[Tensor]:
    """q, k, v and their tangents, for three heads."""
    lengths = (queries, keys, keys) * 2
    return [torch.randn(batch, 3, n, width).to(DEVICE, dtype) for n in lengths]


def by_torch(primals: list[Tensor], tangents: list[Tensor | None], scale: float | None = None):
    """torch's forward differentiation of torch's own unfused attention."""
    zeros = [torch.zeros_like(x) if t is None else t for x, t in zip(primals, tangents)]  # noqa: B905
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(
            lambda *x: F.scaled_dot_product_attention(*x, scale=scale), tuple(primals), tuple(zeros)
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given_tangents", SUBSETS, ids=str)
def test_equals_torchs_forward_differentiation(backend: str, given_tangents) -> None:
    *primals, tq, tk, tv = inputs(9, 21, 24)
    tangents = [t if there else None for t, there in zip((tq, tk, tv), given_tangents, strict=True)]
    expected = by_torch(primals, tangents)
    found = sdpa_jvp(*primals, *tangents, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    expected = by_torch(primals, tangents, scale=0.7)
    found = sdpa_jvp(*primals, *tangents, scale=0.7, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# The widths of Stable Diffusion, SDXL and the embedded model; text has 77 tokens.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", (24, 40, 48, 64, 80, 160))
def test_cross_attention_at_the_widths_in_use(backend: str, width: int) -> None:
    q, k, v, tq, *_ = inputs(5, 77, width, batch=1)
    expected = by_torch([q, k, v], [tq, None, None])
    found = sdpa_jvp(q, k, v, tq, None, None, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tangent_is_the_slope_of_the_output(backend: str) -> None:
    those, step = inputs(4, 5, 6), 1e-6
    primals, tangents = those[:3], those[3:]
    ahead, behind = (
        sdpa_jvp(*(x + h * t for x, t in zip(primals, tangents, strict=True)), None, None, None)[0]
        for h in (step, -step)
    )
    found = sdpa_jvp(*primals, *tangents, backend=backend)[1]
    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_keys_have_in_common_costs_no_digits(backend: str, dtype: torch.dtype) -> None:
    """A constant column of k that q does not see, but tq does, changes neither result."""
    q, k, v, tq, tk, tv = inputs(7, 40, 24, dtype)
    q[..., 0], tq[..., 0], k[..., 0] = 0, 1, 0
    plain = sdpa_jvp(q, k, v, tq, tk, tv, backend=backend)
    k[..., 0] = offset = 4096
    shifted = sdpa_jvp(q, k, v, tq, tk, tv, backend=backend)
    # scores are sums in float32, or better, of numbers as large as the offset
    allowed = 8 * torch.finfo(dtype).eps
    allowed += 2 * offset * torch.finfo(accumulate_dtype(dtype)).eps
    for a, b in zip(plain, shifted, strict=True):
        assert (a - b).abs().max() <= allowed


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.itemsize)
        return result


def test_the_references_memory_does_not_grow_with_the_product_of_lengths() -> None:
    for length in (1500, 3000):
        those = [torch.randn(1, 2, length, 8, device=DEVICE) for _ in range(6)]
        with Largest() as watch:
            sdpa_jvp(*those, backend="reference")
        assert length**2 // 9 < watch.numel <= reference_module.ENTRIES < length**2


def test_tritons_memory_is_that_of_its_inputs() -> None:
    those = [torch.randn(1, 1, 100, 8, device=DEVICE) for _ in range(6)]
    with Largest() as watch:
        sdpa_jvp(*those, backend="triton")
    assert watch.numel == those[0].numel() < 100 * 100


@pytest.mark.parametrize("entries", (1, 30, 200, 10**6))
def test_pieces_of_any_size_give_the_same(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    *primals, tq, tk, tv = inputs(9, 13, 5)
    expected = by_torch(primals, [tq, tk, tv])
    monkeypatch.setattr(reference_module, "ENTRIES", entries)
    found = sdpa_jvp(*primals, tq, tk, tv, backend="reference")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_lie_as_the_queries_do(backend: str) -> None:
    """A network's heads are slices of its tokens, [B, T, H, D]; joining them copies nothing."""
    q, k, v, tq, tk, tv = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(9, 5, 40))
    for x in sdpa_jvp(q, k, v, tq, tk, tv, backend=backend):
        assert x.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_shared_by_a_batch_need_no_copies(backend: str) -> None:
    q, k, v, tq, tk, tv = inputs(4, 7, 16)
    shared = [x[:1].expand(x.shape) for x in (k, v, tk, tv)]
    found = sdpa_jvp(q, *shared[:2], tq, *shared[2:], backend=backend)
    expected = sdpa_jvp(q, *(x.clone() for x in shared[:2]), tq, *(x.clone() for x in shared[2:]))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_minus_infinity_only_take_a_key_away(backend: str) -> None:
    q, k, v, tq, _, tv = inputs(5, 70, 8)
    q[..., 0], tq[..., 0] = 1e10, 0
    k[..., 0] = 0
    # more keys than a block has, so that a whole block has no maximum
    k[:, :, :40, 0] = -1e308
    found = sdpa_jvp(q, k, v, tq, None, tv, backend=backend)
    expected = sdpa_jvp(q, k[:, :, 40:], v[:, :, 40:], tq, None, tv[:, :, 40:])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("itemsize", (2, 4, 8))
def test_slices_cover_every_width_and_none_is_empty(itemsize: int) -> None:
    from dori_fast.triton_kernels.sdpa_jvp import _slices

    for width in range(1, 520):
        slices, tile = _slices(width, itemsize)
        columns = tile["HEAD"] + tile["TAIL"]
        assert (slices - 1) * columns < width <= slices * columns
        assert all(n == 0 or n & (n - 1) == 0 for n in (tile["HEAD"], tile["TAIL"]))


def agrees_with_the_oracle(backend: str, data: st.DataObject) -> None:
    size = [data.draw(st.integers(low, high)) for low, high in ((0, 2), (1, 2), (0, 40), (0, 40))]
    size += [data.draw(st.integers(1, 90)), *(data.draw(st.integers(0, 1)) for _ in range(3))]
    draw_and_check(SPEC, backend, size, data)


@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    agrees_with_the_oracle("triton", data)


@pytest.mark.nightly
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_of_many_shapes(data: st.DataObject) -> None:
    agrees_with_the_oracle("triton", data)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "width"), ((4096, 40), (1024, 80), (256, 160), (4096, 64)))
def test_real_sizes(dtype: torch.dtype, tokens: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for keys, tangents in ((tokens, (1, 1, 1)), (77, (1, 0, 0))):
        size = (1, 2, tokens, keys, width, *tangents)
        check_backend(SPEC, "triton", SPEC.make_inputs(size, dtype, DEVICE, generator))


def test_wrong_arguments_are_named() -> None:
    q, k, v, tq, tk, tv = inputs(4, 7, 8, torch.float32)
    with pytest.raises(
        ValueError, match=r"^sdpa_jvp: q must be \[B, H, Tq, D\] .* got \[3, 4, 8\]"
    ):
        sdpa_jvp(q[0], k, v, tq, tk, tv)
    with pytest.raises(ValueError, match=r"k must be \[2, 3, Tk, 8\] for q .*, got \[2, 3, 7, 4\]"):
        sdpa_jvp(q, k[..., :4], v, tq, tk, tv)
    with pytest.raises(ValueError, match=r"v must be of k's shape \[2, 3, 7, 8\], got \[2, 3, 6"):
        sdpa_jvp(q, k, v[:, :, 1:], tq, tk, tv)
    with pytest.raises(ValueError, match=r"tk must be of k's shape \[2, 3, 7, 8\]"):
        sdpa_jvp(q, k, v, tq, tk[:, :, 1:], tv)
    with pytest.raises(ValueError, match="tv must be of q's dtype torch.float32"):
        sdpa_jvp(q, k, v, tq, tk, tv.half())
    with pytest.raises(TypeError, match="sdpa_jvp: v must be a tensor, got NoneType"):
        sdpa_jvp(q, k, None, tq, tk, tv)
    with pytest.raises(ValueError, match="tq must be without gradient"):
        sdpa_jvp(q, k, v, tq.requires_grad_(), tk, tv)
    with pytest.raises(RuntimeError, match="backend 'cpp' is unavailable"):
        sdpa_jvp(q, k, v, None, tk, tv, backend="cpp")
