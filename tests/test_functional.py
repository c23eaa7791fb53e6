"""Each function against the one that it replaces."""

from __future__ import annotations

import hashlib
import inspect

import numpy as np
import pytest
import torch

import dori_fast as df
from dori_fast.evaluate import SSCD
from tests.ops.contract import DTYPES
from tests.torchmetrics_pinned import (
    multiscale_structural_similarity_index_measure,
    needs_torchmetrics,
)

F64 = torch.float64
NEMO = {"betas": (0.33, 0.33, 0.33)}
# torchmetrics rounds its exponents to float32
ROUNDED = 1e-6


def pairs(side: int, dtype: torch.dtype = F64, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    first = torch.rand(n, 3, side, side + 3, dtype=F64)
    return first.to(dtype), (first + 0.2 * torch.rand_like(first)).to(dtype)


def test_the_names_are_reached_from_the_package() -> None:
    assert "functional" in dir(df)
    for name in df.functional.__all__:
        assert inspect.getdoc(getattr(df.functional, name))


@needs_torchmetrics
@pytest.mark.parametrize("reduction", ["elementwise_mean", "sum", "none", None])
@pytest.mark.parametrize(("side", "options"), [(176, {}), (44, NEMO), (60, NEMO)])
def test_ms_ssim_is_torchmetrics(side: int, options: dict, reduction: str | None) -> None:
    first, second = pairs(side)
    expected = multiscale_structural_similarity_index_measure(
        first, second, reduction=reduction, **options
    )
    found = df.functional.ms_ssim(first, second, reduction=reduction, **options)
    torch.testing.assert_close(found, expected, rtol=ROUNDED, atol=0)


@needs_torchmetrics
def test_ms_ssim_takes_torchmetrics_arguments_by_position() -> None:
    first, second = pairs(44)
    arguments = (True, 1.5, 11, "none", None, 0.01, 0.03, (0.5, 0.5), "relu")
    torch.testing.assert_close(
        df.functional.ms_ssim(first, second, *arguments),
        multiscale_structural_similarity_index_measure(first, second, *arguments),
        rtol=ROUNDED,
        atol=0,
    )
    names = list(inspect.signature(df.functional.ms_ssim).parameters)
    torchs = inspect.signature(multiscale_structural_similarity_index_measure).parameters
    assert names == list(torchs)
    for name, parameter in inspect.signature(df.functional.ms_ssim).parameters.items():
        assert parameter.default == torchs[name].default


@needs_torchmetrics
def test_a_narrower_window_is_torchmetrics_too() -> None:
    first, second = pairs(44)
    # torchmetrics' own kernel_size only limits the size of images
    expected = multiscale_structural_similarity_index_measure(first, second, sigma=0.9, **NEMO)
    found = df.functional.ms_ssim(first, second, sigma=0.9, kernel_size=7, **NEMO)
    torch.testing.assert_close(found, expected, rtol=ROUNDED, atol=0)
    with pytest.raises(ValueError, match=r"kernel_size must be 7, the Gaussian window .* got 11"):
        df.functional.ms_ssim(first, second, sigma=0.9, **NEMO)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ms_ssim_in_every_dtype(dtype: torch.dtype) -> None:
    first, second = pairs(44, dtype)
    found = df.functional.ms_ssim(first, second, **NEMO)
    expected = multiscale_structural_similarity_index_measure(
        first.double(), second.double(), **NEMO
    )
    assert found.dtype == (F64 if dtype == F64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@needs_torchmetrics
def test_ms_ssim_has_torchmetrics_gradient() -> None:
    first, second = pairs(44)
    grads = []
    for metric in (df.functional.ms_ssim, multiscale_structural_similarity_index_measure):
        x = first.clone().requires_grad_()
        grads.append(torch.autograd.grad(metric(x, second, **NEMO), x)[0])
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-9)


def test_ms_ssim_refuses_what_it_does_not_support() -> None:
    first, second = pairs(44)
    for options, message in (
        ({"data_range": 1.0}, "data_range must be None .others are not supported., got 1.0"),
        ({"gaussian_kernel": False}, "gaussian_kernel must be True"),
        ({"normalize": "simple"}, "normalize must be 'relu'"),
        ({"k1": 0.02}, "k1 must be 0.01"),
        ({"sigma": (1.5, 1.5)}, "sigma must be one positive number"),
        ({"sigma": float("nan")}, "sigma must be one positive number"),
        ({"sigma": 2.0, "kernel_size": 15}, "window has at most 11 pixels"),
        ({"betas": ()}, "betas must be 1 to 8"),
        ({"reduction": "mean"}, "reduction must be one of elementwise_mean, sum, none, None"),
        ({"betas": (0.2,) * 5}, "at least 176 pixels a side for 5 betas and a window of 11"),
    ):
        with pytest.raises(ValueError, match=f"^ms_ssim: .*{message}"):
            df.functional.ms_ssim(first, second, **{**NEMO, **options})
    with pytest.raises(ValueError, match=r"preds must be \[N, C, H, W\]"):
        df.functional.ms_ssim(first[0], second[0], **NEMO)
    with pytest.raises(ValueError, match="target must be of preds' shape"):
        df.functional.ms_ssim(first, second[:2], **NEMO)


@needs_torchmetrics
@pytest.mark.parametrize("rescale", [False, True])
def test_pairwise_ms_ssim_is_torchmetrics_on_all_pairs(rescale: bool) -> None:
    # noise, with negative means of contrast too
    images = torch.randn(4, 3, 48, 51, dtype=F64)
    found = df.functional.pairwise_ms_ssim(images, rescale=rescale, **NEMO)
    if rescale:
        low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
        images = (images - low) / (high - low)
    i, j = torch.combinations(torch.arange(4)).T
    expected = multiscale_structural_similarity_index_measure(
        images[i], images[j], reduction="none", **NEMO
    )
    torch.testing.assert_close(found, expected, rtol=ROUNDED, atol=1e-12)
    with pytest.raises(ValueError, match="pairwise_ms_ssim: images must be at least 176 pixels"):
        df.functional.pairwise_ms_ssim(images)


@pytest.mark.parametrize("p", [1, 2, 3.5, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cfg_noise_norm_is_the_lines_of_wens_pipeline(p: float, dtype: torch.dtype) -> None:
    noise_pred = torch.randn(6, 4, 8, 8, dtype=F64).to(dtype)
    uncond, text = noise_pred.double().chunk(2)
    expected = torch.stack([(t - u).norm(p=p) for t, u in zip(text, uncond, strict=True)])
    tolerance = {"rtol": 1e-12 if dtype == F64 else 1e-5, "atol": 0}
    found = df.functional.cfg_noise_norm(noise_pred, p=p)
    torch.testing.assert_close(found.double(), expected, **tolerance)
    swapped = torch.cat(noise_pred.chunk(2)[::-1])
    found = df.functional.cfg_noise_norm(swapped, layout="cond_first", p=p)
    torch.testing.assert_close(found.double(), expected, **tolerance)


def test_cfg_noise_norm_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"cfg_noise_norm: noise_pred must be \[2 N, \*\]"):
        df.functional.cfg_noise_norm(torch.ones(3, 4))
    with pytest.raises(ValueError, match="layout must be one of uncond_first, cond_first, got t"):
        df.functional.cfg_noise_norm(torch.ones(2, 4), layout="text_first")
    assert df.functional.cfg_noise_norm(torch.ones(0, 4)).shape == (0,)


def test_cfg_noise_norm_has_a_gradient() -> None:
    noise_pred = torch.randn(4, 5, dtype=F64, requires_grad=True)
    total = df.functional.cfg_noise_norm(noise_pred).sum()
    (grad,) = torch.autograd.grad(total, noise_pred)
    uncond, text = noise_pred.detach().chunk(2)
    direction = torch.nn.functional.normalize(text - uncond)
    torch.testing.assert_close(grad, torch.cat([-direction, direction]))


def test_points_without_a_nearest_one_give_nan() -> None:
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[1.0, nan], [1.0, inf], [-inf, -inf], [0.0, 1.0]])
    found = df.functional.capped_simplex_project(rows)
    assert found[:3].isnan().all() and found[3].tolist() == [0, 1]
    with pytest.raises(ValueError, match="no entries"):
        df.functional.capped_simplex_project(torch.zeros(2, 0))


def test_capped_simplex_project_is_the_nearest_point() -> None:
    """Against UnlearnDiffAtk's bisection, carried on until it is exact."""
    points = torch.randn(1, 5, 300, dtype=F64)
    low, high = points.amin(-1, keepdim=True) - 1, points.amax(-1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        above = (points - middle).clip(0, 1).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    found = df.functional.capped_simplex_project(points)
    torch.testing.assert_close(found, (points - low).clip(0, 1), rtol=1e-12, atol=1e-12)


def test_sdpa_jvp_is_torchs_forward_differentiation() -> None:
    q, k, v, *tangents = (torch.randn(2, 3, n, 8, dtype=F64) for n in (5, 7, 7) * 2)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        attend = torch.nn.functional.scaled_dot_product_attention
        expected = torch.func.jvp(attend, (q, k, v), tuple(tangents))
    torch.testing.assert_close(df.functional.sdpa_jvp(q, k, v, *tangents), expected)


class Means(torch.nn.Module):
    """Stand-in network in the published models' file format: mean colors of four quarters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_sscd_similarity_is_all_cosines(tmp_path) -> None:
    path = tmp_path / "network.pt"
    torch.jit.trace(Means(), torch.zeros(1, 3, 32, 32)).save(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sscd = SSCD(path, preprocessing="crop_224", sha256=digest, run_its_code=True)
    originals, images = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50, 3), np.uint8)
    found = df.functional.sscd_similarity(originals, images[:2], sscd)
    ours, theirs = sscd.descriptors(originals), sscd.descriptors(images[:2])
    expected = torch.nn.functional.cosine_similarity(ours[:, None], theirs[None], dim=-1)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, H, W, 3\], got float64"):
        df.functional.sscd_similarity(originals, images / 255, sscd)
