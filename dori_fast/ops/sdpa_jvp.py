"""Scaled dot-product attention with its forward derivative (Jacobian-vector product).

With s = scale q k^T, p = softmax(s), ds = scale (tq k^T + q tk^T) and mu_i = sum_j p_ij ds_ij:

    out_i     = sum_j p_ij v_j
    tangent_i = sum_j p_ij (ds_ij - mu_i) v_j + sum_j p_ij tv_j

the rule of forward differentiation. Since sum_j p (ds - mu) v = sum_j p ds v - mu out, it can be
computed in one pass over the keys with FlashAttention's online softmax, as Lu & Song do ("sCM",
arXiv 2410.11081, appendix). torch differentiates only its unfused attention forward, with several
matrices of Tq x Tk numbers. B samples, H heads, Tq queries, Tk keys, D columns of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference.sdpa_jvp import sdpa_jvp_reference

__all__ = ["sdpa_jvp"]


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(q)


def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    from dori_fast.triton_kernels.sdpa_jvp import sdpa_jvp_triton

    return sdpa_jvp_triton(q, k, v, tq, tk, tv, scale)


_OP = define_op(
    "sdpa_jvp",
    "(Tensor q, Tensor k, Tensor v, Tensor? tq, Tensor? tk, Tensor? tv, float scale)"
    " -> (Tensor, Tensor)",
    reference=sdpa_jvp_reference,
    triton=_triton,
    fake=_fake,
)


def _check_input(argument: str, value: Tensor, q: Tensor) -> None:
    op = "sdpa_jvp"
    _checks.floating_tensor(op, argument, value)
    _checks.same_dtype(op, argument, value, "q", q)
    _checks.same_device(op, argument, value, "q", q)
    _checks.constant(op, argument, value)


def _check(q: Tensor, k: Tensor, v: Tensor, tangents: tuple[Tensor | None, ...]) -> None:
    op = "sdpa_jvp"
    _checks.floating_tensor(op, "q", q)
    for argument, value in (("q", q), ("k", k), ("v", v)):
        _check_input(argument, value, q)
    if q.dim() != 4 or q.shape[3] == 0:
        _checks.reject(op, "q", "[B, H, Tq, D] with D at least 1", _checks.shape_of(q))
    batch, heads, _, width = q.shape
    if k.dim() != 4 or k.shape[:2] != q.shape[:2] or k.shape[3] != width:
        expected = f"[{batch}, {heads}, Tk, {width}] for q {_checks.shape_of(q)}"
        _checks.reject(op, "k", expected, _checks.shape_of(k))
    if v.shape != k.shape:
        _checks.reject(op, "v", f"of k's shape {_checks.shape_of(k)}", _checks.shape_of(v))
    for name, primal, tangent in zip("qkv", (q, k, v), tangents, strict=True):
        if tangent is not None:
            _check_input(f"t{name}", tangent, q)
            if tangent.shape != primal.shape:
                expected = f"of {name}'s shape {_checks.shape_of(primal)}"
                _checks.reject(op, f"t{name}", expected, _checks.shape_of(tangent))


def sdpa_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return attention and its directional derivative, in memory linear in Tq and Tk.

    Equals `torch.func.jvp(scaled_dot_product_attention, (q, k, v), (tq, tk, tv))` without mask,
    causality, dropout or grouped queries, none of which a denoiser's attention has.

    Args:
        q: [B, H, Tq, D] queries, float32, bfloat16, float16 or float64, any strides.
        k: [B, H, Tk, D] keys, same dtype and device.
        v: [B, H, Tk, D] values, same dtype and device.
        tq: tangent of q, same shape, dtype and device, or None for zero.
        tk: tangent of k likewise; None for cross-attention to a constant text, whose products are
            then left out.
        tv: tangent of v likewise.
        scale: of the scores; None for 1 / sqrt(D).
        backend: "auto", or an implementation by name, which then answers or raises.

    Returns:
        out and tangent, [B, H, Tq, D] in the dtype of q, in q's order of memory. Without keys both
        are 0, as torch has it. A score that is NaN or +inf makes its query's row NaN; so do scores
        that are all -inf, where torch's attention gives 0. No gradient.

    Raises:
        TypeError: an input is not a tensor.
        ValueError: shape, dtype or device do not fit, an input requires grad while gradients are
            recorded, or the backend is unknown.
        RuntimeError: the backend asked for cannot serve; says why.

    Note:
        Sums in float32 or better. Triton's kernel never writes a score; on tensor cores it rounds p
        and p ds to a half dtype of q, so tangents in float16 want magnitudes well above 6e-5. It
        copies inputs whose rows do not begin at multiples of 16 bytes. A CPU takes the reference in
        pieces of at most 2^20 scores: most of its time are torch's own matrix products, and there
        is no kernel in C++.
    """
    _check(q, k, v, (tq, tk, tv))
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    out, tangent = select(_OP, backend, q)(q, k, v, tq, tk, tv, scale)
    return out, tangent
