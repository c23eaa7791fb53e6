"""Operators under the signatures of other libraries, to be called from other code.

Each docstring names the function that it replaces; `docs/functional.md` shows the line before and
after. An unsupported setting is rejected by name and never computed differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dori_fast import _checks, ops
from dori_fast.ops import sdpa_jvp
from dori_fast.ops.simplex import capped_simplex_project

__all__ = [
    "capped_simplex_project",
    "cfg_noise_norm",
    "ms_ssim",
    "pairwise_ms_ssim",
    "sdpa_jvp",
    "sscd_similarity",
]

_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_REDUCTIONS = ("elementwise_mean", "sum", "none", None)
_WIDEST = 11
_LAYOUTS = ("uncond_first", "cond_first")


class Descriptors(Protocol):
    """Source of copy descriptors for `sscd_similarity`, such as `dori_fast.evaluate.SSCD`."""

    def descriptors(self, images: NDArray[np.uint8], /) -> Tensor:
        """Return descriptors of length 1, float32 [N, D], of images uint8 [N, H, W, 3]."""


def _window(op: str, kernel_size: int, sigma: float) -> int:
    """Return the length of torchmetrics' Gaussian window, which follows from sigma alone."""
    if not isinstance(sigma, int | float) or not 0 < sigma < float("inf"):
        _checks.reject(op, "sigma", "one positive number for both axes", sigma)
    window = int(3.5 * sigma + 0.5) * 2 + 1
    if window > _WIDEST:
        _checks.reject(op, "sigma", f"one whose window has at most {_WIDEST} pixels", sigma)
    if kernel_size != window:
        expected = f"{window}, the Gaussian window that torchmetrics takes for sigma {sigma}"
        _checks.reject(op, "kernel_size", expected, kernel_size)
    return window


def _check_images(op: str, argument: str, images: Tensor, window: int, scales: int) -> None:
    if scales == 0:
        _checks.reject(op, "betas", "1 to 8 positive numbers", ())
    _checks.floating_tensor(op, argument, images)
    if images.dim() != 4 or 0 in images.shape[1:]:
        _checks.reject(op, argument, "[N, C, H, W]", _checks.shape_of(images))
    least = window << (scales - 1)
    if min(images.shape[2:]) < least:
        expected = f"at least {least} pixels a side for {scales} betas and a window of {window}"
        _checks.reject(op, argument, expected, _checks.shape_of(images))


def ms_ssim(
    preds: Tensor,
    target: Tensor,
    gaussian_kernel: bool = True,
    sigma: float = 1.5,
    kernel_size: int = 11,
    reduction: str | None = "elementwise_mean",
    data_range: float | tuple[float, float] | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    betas: Sequence[float] = _BETAS,
    normalize: str | None = "relu",
) -> Tensor:
    """Replace `torchmetrics.functional.image.multiscale_structural_similarity_index_measure`.

    The numbers are those of torchmetrics 1.3.2, which NeMo's code pins. Later versions count the
    borders at the last scale and give other numbers.

    Args:
        preds: [N, C, H, W] images; dtypes and strides as in `dori_fast.ops`.
        target: [N, C, H, W] images, same dtype and device.
        gaussian_kernel: only True is supported.
        sigma: standard deviation of the Gaussian window in pixels, one number.
        kernel_size: length of the window, which must be 2 int(3.5 sigma + 0.5) + 1 (11 for 1.5);
            torchmetrics uses that window for any `kernel_size`.
        reduction: "elementwise_mean", "sum", "none" or None.
        data_range: only None is supported, the larger range of preds and of target at each scale.
        k1: only 0.01 is supported.
        k2: only 0.03 is supported.
        betas: exponent of each scale, finest first, 1 to 8 positive numbers.
        normalize: only "relu" is supported.

    Returns:
        A number, or [N] without reduction, float32 (float64 for float64 images). For half dtypes
        these are more digits than torchmetrics returns. Differentiable.

    Raises:
        TypeError: an input is not a tensor.
        ValueError: shape, dtype or device do not fit, an image is too small, or a setting is not
            supported.
    """
    op = "ms_ssim"
    for argument, value, supported in (
        ("gaussian_kernel", gaussian_kernel, True),
        ("data_range", data_range, None),
        ("k1", k1, 0.01),
        ("k2", k2, 0.03),
        ("normalize", normalize, "relu"),
    ):
        if value != supported:
            _checks.reject(op, argument, f"{supported!r} (others are not supported)", value)
    if reduction not in _REDUCTIONS:
        _checks.reject(op, "reduction", f"one of {', '.join(map(str, _REDUCTIONS))}", reduction)
    window = _window(op, kernel_size, sigma)
    _check_images(op, "preds", preds, window, len(betas))
    _checks.floating_tensor(op, "target", target)
    if target.shape != preds.shape:
        expected = f"of preds' shape {_checks.shape_of(preds)}"
        _checks.reject(op, "target", expected, _checks.shape_of(target))
    found = ops.ms_ssim_pairs(
        preds[None], target[None], kernel_size=window, sigma=sigma, betas=betas, rescale=False
    )[0]
    if reduction == "elementwise_mean":
        return found.mean()
    return found.sum() if reduction == "sum" else found


def pairwise_ms_ssim(
    images: Tensor,
    *,
    sigma: float = 1.5,
    kernel_size: int = 11,
    betas: Sequence[float] = _BETAS,
    rescale: bool = False,
) -> Tensor:
    """Return `ms_ssim(images[i], images[j], reduction="none")` for all pairs i < j.

    Moments are computed once per image, not once per pair.

    Args:
        images: [N, C, H, W]; dtypes and strides as in `dori_fast.ops`.
        sigma: as in `ms_ssim`.
        kernel_size: as in `ms_ssim`.
        betas: as in `ms_ssim`; NeMo's code uses (0.33, 0.33, 0.33).
        rescale: stretch each channel of each image to [0, 1] first, as NeMo's code does; default
            False.

    Returns:
        [N (N - 1) / 2] float32 (float64 for float64 images), pairs in the order of
        `torch.combinations(torch.arange(N))`. `dori_fast.ops.largest_per_map(found[None])` gives
        each image's largest. Differentiable.

    Raises:
        TypeError: images is not a tensor.
        ValueError: shape, dtype or a setting does not fit, or an image is too small.
    """
    op = "pairwise_ms_ssim"
    window = _window(op, kernel_size, sigma)
    _check_images(op, "images", images, window, len(betas))
    return ops.ms_ssim(images[None], kernel_size=window, sigma=sigma, betas=betas, rescale=rescale)[
        0
    ]


def cfg_noise_norm(noise_pred: Tensor, layout: str = "uncond_first", p: float = 2) -> Tensor:
    """Return the norm of the text's share of a prediction under classifier-free guidance.

    This is the score of Wen et al. (ICLR 2024), computed from the doubled batch that a pipeline's
    UNet returns: `uncond, text = noise_pred.chunk(2)`, then the norm of `text - uncond` per image.

    Args:
        noise_pred: [2 N, *]; dtypes and strides as in `dori_fast.ops`.
        layout: order of both halves, "uncond_first" (diffusers) or "cond_first".
        p: order of the norm; 2 is fused, other orders are torch's.

    Returns:
        [N] float32 (float64 for float64 inputs), not rounded to a half dtype as in Wen's code.
        Differentiable.

    Raises:
        TypeError: noise_pred is not a tensor.
        ValueError: shape, dtype or layout does not fit.
    """
    op = "cfg_noise_norm"
    _checks.floating_tensor(op, "noise_pred", noise_pred)
    if noise_pred.dim() < 2 or noise_pred.shape[0] % 2:
        _checks.reject(op, "noise_pred", "[2 N, *]", _checks.shape_of(noise_pred))
    if layout not in _LAYOUTS:
        _checks.reject(op, "layout", f"one of {', '.join(_LAYOUTS)}", layout)
    first, second = noise_pred.chunk(2) if noise_pred.shape[0] else (noise_pred, noise_pred)
    cond, uncond = (second, first) if layout == "uncond_first" else (first, second)
    if p == 2:
        return ops.noise_difference(cond[None], uncond)[0]
    wide = _checks.accumulate_dtype(noise_pred.dtype)
    difference = (cond.to(wide) - uncond.to(wide)).flatten(1)
    norm: Tensor = torch.linalg.vector_norm(difference, ord=p, dim=1)
    return norm


def sscd_similarity(originals: Any, images: Any, sscd: Descriptors) -> Tensor:
    """Return the cosine of the copy descriptors of each original and each image.

    Args:
        originals: uint8 [O, H, W, 3], sRGB.
        images: uint8 [N, H', W', 3], sRGB.
        sscd: `dori_fast.evaluate.SSCD` with your model file; its preprocessing decides whether the
            numbers compare with Wen's ("crop_224") or NeMo's ("skew_320").

    Returns:
        float32 [O, N] on the CPU.

    Raises:
        ValueError: an argument is not uint8 [N, H, W, 3].
    """
    both = {"originals": np.asarray(originals), "images": np.asarray(images)}
    for argument, array in both.items():
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            found = f"{array.dtype} {list(array.shape)}"
            _checks.reject("sscd_similarity", argument, "uint8 [N, H, W, 3]", found)
    ours, theirs = (sscd.descriptors(array) for array in both.values())
    return ours @ theirs.T
