"""Per-sample, per-neuron scaling of activations, in plain torch.

NeMo (Hintersdorf et al., "Finding NeMo: Localizing Neurons Responsible For Memorization in
Diffusion Models", NeurIPS 2024) blocks neurons with factor 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, accumulate_dtype, randn


def neuron_mask_reference(x: Tensor, scale: Tensor) -> Tensor:
    """Compute `y[b, t, n] = x[b, t, n] * scale[b, n]`, rounded once to the dtype of x.

    Args:
        x: [B, T, N], any floating dtype.
        scale: [N] (shared by all samples) or [B, N], any floating dtype.

    Returns:
        [B, T, N] in the dtype of x; arithmetic in float32 (float64 for float64 x).
    """
    dtype = accumulate_dtype(x.dtype)
    per_sample = scale if scale.dim() == 1 else scale[:, None, :]
    return (x.to(dtype) * per_sample.to(dtype)).to(x.dtype)


def neuron_mask_in_place_reference(
    x: Tensor, indices: Tensor, offsets: Tensor | None, factor: float
) -> None:
    """Multiply the listed neurons of x by one factor in place.

    Args:
        x: [B, T, N], any floating dtype; written.
        indices: int64 [K], neurons in [0, N), none twice in one sample.
        offsets: int64 [B + 1]; sample b owns `indices[offsets[b]:offsets[b + 1]]`. None: every
            sample owns all of them.
        factor: multiplier; 0 times NaN stays NaN.
    """
    dtype = accumulate_dtype(x.dtype)
    if offsets is None:
        x[:, :, indices] = (x[:, :, indices].to(dtype) * factor).to(x.dtype)
        return
    bounds = offsets.tolist()
    for sample, first, last in zip(x, bounds, bounds[1:], strict=False):
        listed = indices[first:last]
        sample[:, listed] = (sample[:, listed].to(dtype) * factor).to(x.dtype)


def _inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (B, T, N, rank of the scale)."""
    *shape, rank = size
    scale_shape = (shape[0], shape[2])[2 - rank :]
    return (
        randn(tuple(shape), dtype, device, generator),
        randn(scale_shape, accumulate_dtype(dtype), device, generator),
    )


def _in_place_inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (B, T, N, neurons listed per sample); a negative number lists them once for all."""
    batch, tokens, neurons, listed = size
    x = randn((batch, tokens, neurons), dtype, device, generator)
    draws = 1 if listed < 0 else batch
    rows = [torch.randperm(neurons, generator=generator)[: abs(listed)] for _ in range(draws)]
    indices = torch.cat([*rows, torch.empty(0, dtype=torch.int64)]).to(device)
    offsets = None if listed < 0 else torch.arange(batch + 1, device=device) * listed
    return (x, indices, offsets, 0.25)


SPECS = (
    OpSpec(
        name="neuron_mask",
        public="neuron_mask",
        reference=neuron_mask_reference,
        # widths around the vector widths and beyond the float16 buffer and Triton's block (1024);
        # both ranks of the scale; empty dimensions
        sizes=(
            *((2, 3, neurons, 2) for neurons in (1, 3, 63, 64, 257, 1000, 1027)),
            *((3, 2, 65, 1), (1, 1, 8, 1), (2, 5, 320, 2)),
            *((0, 3, 8, 2), (2, 0, 8, 1), (2, 3, 0, 2)),
        ),
        make_inputs=_inputs,
    ),
    OpSpec(
        name="neuron_mask_",
        public="neuron_mask_",
        reference=neuron_mask_in_place_reference,
        sizes=(
            *((2, 3, neurons, 1) for neurons in (1, 3, 257)),
            *((3, 2, 64, 5), (2, 5, 1000, 200), (2, 5, 320, -7), (1, 2, 9, -9)),
            *((2, 3, 8, 0), (0, 3, 8, 2), (2, 0, 8, -3)),
        ),
        make_inputs=_in_place_inputs,
    ),
)
