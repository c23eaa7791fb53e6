"""Scaled dot-product attention with its forward derivative, in plain torch.

This is the rule of forward differentiation. Since sum_j p (ds - mu) v = sum_j p ds v - mu out, one
pass over the keys is enough with FlashAttention's online softmax, as in Lu & Song, "sCM" (arXiv
2410.11081, appendix).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast.reference import Inputs, OpSpec, accumulate_dtype, randn

# Entries of [Tq, Tk] matrices that exist at one time, whatever the lengths: 4 MiB in float32. Among
# the powers from 2^15 to 2^22 this is about the fastest on a CPU at all shapes of Stable Diffusion.
ENTRIES = 1 << 20


def sdpa_jvp_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute attention and its derivative along tangents, a bounded number of queries at a time.

    With s = scale q k^T, p = softmax(s), ds = scale (tq k^T + q tk^T) and mu = sum_j p_j ds_j:

        out = sum_j p_j v_j,    tangent = sum_j p_j (ds_j - mu) v_j + sum_j p_j tv_j

    Args:
        q: [B, H, Tq, D], any floating dtype.
        k: [B, H, Tk, D], same dtype.
        v: [B, H, Tk, D], same dtype.
        tq: tangent of q, shape and dtype of q, or None for zero.
        tk: tangent of k, likewise.
        tv: tangent of v, likewise.
        scale: factor of the scores.

    Returns:
        out and tangent, [B, H, Tq, D] in the dtype of q, laid out as `torch.empty_like(q)`; zeros
        without keys. Arithmetic is in float32 (float64 for float64).
    """
    out, tangent = torch.empty_like(q), torch.empty_like(q)
    wide = accumulate_dtype(q.dtype)
    q, k, v = (x.flatten(0, 1).to(wide) for x in (q, k, v))
    tq, tk, tv = (None if x is None else x.flatten(0, 1).to(wide) for x in (tq, tk, tv))
    q, tq = q * scale, None if tq is None else tq * scale
    heads, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    heads_at_once = max(1, ENTRIES // max(1, queries * keys))
    queries_at_once = max(1, ENTRIES // max(1, keys))
    out_by_head, tangent_by_head = torch.empty_like(q), torch.empty_like(q)
    for head in range(0, heads, heads_at_once):
        some = slice(head, head + heads_at_once)
        some_tk, some_tv = (None if x is None else x[some] for x in (tk, tv))
        for query in range(0, queries, queries_at_once):
            at = (some, slice(query, query + queries_at_once))
            out_by_head[at], tangent_by_head[at] = _attend(
                q[at], k[some], v[some], None if tq is None else tq[at], some_tk, some_tv
            )
    out.copy_(out_by_head.view(out.shape))
    tangent.copy_(tangent_by_head.view(out.shape))
    return out, tangent


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return output and tangent of the scaled queries [G, T, D] of G heads."""
    weights = (q @ k.mT).softmax(-1)
    out = weights @ v
    tangent = torch.zeros_like(out) if tv is None else weights @ tv
    slopes = None if tq is None else tq @ k.mT
    if tk is not None:
        slopes = q @ tk.mT if slopes is None else slopes.baddbmm_(q, tk.mT)
    if slopes is not None:
        # p (ds - mu): the Jacobian of softmax is symmetric, so its backward is its derivative
        slopes = torch.ops.aten._softmax_backward_data(slopes, weights, -1, weights.dtype)
        tangent.baddbmm_(slopes, v)
    return out, tangent


def _magnitudes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the same sums with every term made positive, the scale of rounding errors."""
    weights = (scale * q @ k.mT).softmax(-1)
    slopes = torch.zeros_like(weights)
    if tq is not None:
        slopes += scale * tq.abs() @ k.mT.abs()
    if tk is not None:
        slopes += scale * q.abs() @ tk.mT.abs()
    slopes += (weights * slopes).sum(-1, keepdim=True)
    tangent = (weights * slopes) @ v.abs()
    if tv is not None:
        tangent += weights @ tv.abs()
    # without tangents the result is 0, even if a score is NaN
    return weights @ v.abs(), tangent.nan_to_num(0)


def _inputs(
    size: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """`size` is (B, H, Tq, Tk, D), then 1 or 0 for a tangent of q, k and v."""
    batch, heads, queries, keys, width, *has = size
    primals, tangents = (
        [
            randn((batch, heads, length, width), dtype, device, generator)
            for length in (queries, keys, keys)
        ]
        for _ in range(2)
    )
    given = (tangent if there else None for tangent, there in zip(tangents, has, strict=True))
    return (*primals, *given, width**-0.5)


SPECS = (
    OpSpec(
        name="sdpa_jvp",
        public="sdpa_jvp",
        reference=sdpa_jvp_reference,
        # lengths around the tiles; heads of one tile, of two, and of several slices; tangents of
        # each input alone and of none; a single key, no keys, no queries, no batch
        sizes=(
            (1, 1, 1, 1, 1, 1, 1, 1),
            (2, 3, 5, 7, 9, 1, 1, 1),
            (1, 1, 33, 17, 16, 1, 0, 0),
            (1, 2, 65, 20, 24, 1, 1, 1),
            (1, 2, 8, 77, 40, 1, 0, 0),
            (1, 1, 35, 33, 80, 1, 1, 1),
            (1, 1, 9, 35, 64, 0, 1, 0),
            (1, 1, 9, 35, 20, 0, 0, 1),
            (1, 1, 3, 1, 8, 1, 1, 1),
            (1, 2, 3, 5, 8, 0, 0, 0),
            (0, 2, 3, 5, 8, 1, 1, 1),
            (2, 2, 0, 5, 8, 1, 1, 1),
            (2, 2, 3, 0, 8, 1, 1, 1),
        ),
        make_inputs=_inputs,
        magnitudes=_magnitudes,
    ),
)
