"""Scaled dot-product attention with its forward derivative (Jacobian-vector product).

torch differentiates only its unfused attention forward, with several matrices of Tq x Tk numbers.
B samples, H heads, Tq queries, Tk keys, D columns of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference.sdpa_jvp import sdpa_jvp_reference

__all__ = ["sdpa_jvp"]


def _fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(q)


_OP = define_op(
    "sdpa_jvp",
    "(Tensor q, Tensor k, Tensor v, Tensor? tq, Tensor? tk, Tensor? tv, float scale)"
    " -> (Tensor, Tensor)",
    reference=sdpa_jvp_reference,
    fake=_fake,
    triton="dori_fast.triton_kernels.sdpa_jvp:sdpa_jvp_triton",
)


def _check_input(argument: str, value: Tensor, q: Tensor) -> None:
    op = "sdpa_jvp"
    _checks.floating_tensor(op, argument, value)
    _checks.same_dtype_and_device(op, argument, value, "q", q)
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

    They equal `torch.func.jvp(scaled_dot_product_attention, (q, k, v), (tq, tk, tv))` without mask,
    causality, dropout or grouped queries, none of which a denoiser's attention has.

    Args:
        q: [B, H, Tq, D] queries.
        k: [B, H, Tk, D] keys.
        v: [B, H, Tk, D] values.
        tq: tangent of q in the shape of q, or None for zero.
        tk: tangent of k in the shape of k, or None for zero, as in cross-attention to a constant
            text; the products of a tangent that is None are skipped.
        tv: tangent of v in the shape of v, or None for zero.
        scale: factor of the scores; default 1 / sqrt(D).
        backend: implementation; see `dori_fast.ops`.

    Returns:
        out and tangent, [B, H, Tq, D] in the dtype of q, in q's order of memory. Without keys both
        are 0, as in torch. A score that is NaN or +inf makes its query's row NaN. So do scores that
        are all -inf, where torch's attention gives 0. No gradient.

    Raises:
        ValueError: an input requires grad while gradients are recorded.

    Note:
        Triton's kernel never writes a score. On tensor cores it rounds p and p ds to a half dtype
        of q, so float16 tangents should have magnitudes well above 6e-5. It copies inputs whose
        rows do not begin at multiples of 16 bytes. A CPU uses the reference, which computes at most
        2^20 scores at a time; there is no kernel in C++, since torch's own matrix products take
        most of the time.
    """
    _check(q, k, v, (tq, tk, tv))
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    out, tangent = select(_OP, backend, q)(q, k, v, tq, tk, tv, scale)
    return out, tangent
