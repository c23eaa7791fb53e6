"""Kernel of attention with its forward derivative, in one pass over the keys.

It extends the online softmax of FlashAttention (Dao et al., NeurIPS 2022) to the derivative as in
Lu & Song's sCM (arXiv 2410.11081, appendix). Beside its sums of p and p v, each row keeps those of
p ds and of p ds v + p tv; all shrink together when the row's maximum rises.

Strides count UNIT elements, 16 bytes. Functions pass a matrix [T, D] as (pointer, stride of its
rows, T).
"""

from __future__ import annotations

import triton
import triton.language as tl

from dori_fast.triton_kernels._common import quotient


@triton.jit
def _matrix(x_ptr, b, h, stride_b, stride_h, stride_t, T, UNIT: tl.constexpr):
    """Return one head's matrix; the factor UNIT tells the compiler that rows are aligned."""
    # a cast, since a launch passes a stride of 1 as a constant, which has no method `to`
    return x_ptr + (b * stride_b + h * stride_h) * UNIT, tl.cast(stride_t, tl.int64) * UNIT, T


@triton.jit
def _tile(x, t, d, D: tl.constexpr, DTYPE: tl.constexpr):
    """Load rows t and columns d of a matrix, 0 beyond it."""
    at = x[0] + t[:, None] * x[1] + d[None, :]
    return tl.load(at, mask=(t[:, None] < x[2]) & (d[None, :] < D), other=0.0).to(DTYPE)


@triton.jit
def _store(x, values, t, d, D: tl.constexpr):
    at = x[0] + t[:, None] * x[1] + d[None, :]
    tl.store(at, values, mask=(t[:, None] < x[2]) & (d[None, :] < D))


@triton.jit
def _times_first(x, y, t, d, D: tl.constexpr, DTYPE: tl.constexpr, ACC: tl.constexpr):
    """Return the products of rows t of x with the first row of y, over columns d."""
    first = tl.load(y[0] + d, mask=d < D, other=0.0).to(ACC)
    return tl.sum(_tile(x, t, d, D, DTYPE).to(ACC) * first[None, :], 1)


@triton.jit
def _dot(a, b, total):
    # "ieee": float32 products are not rounded to TF32
    return tl.dot(a, b, total, input_precision="ieee", out_dtype=total.dtype)


@triton.jit
def _add_scores(
    s,
    ds,
    q,
    tq,
    k,
    tk,
    m,
    n,
    d,
    D: tl.constexpr,
    HAS_TQ: tl.constexpr,
    HAS_TK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Add what columns d contribute to s = q k^T and to ds = tq k^T + q tk^T."""
    queries = _tile(q, m, d, D, DTYPE)
    # a tile of keys is loaded by rows, which are contiguous, and transposed on the chip
    keys = tl.trans(_tile(k, n, d, D, DTYPE))
    s = _dot(queries, keys, s)
    if HAS_TQ:
        ds = _dot(_tile(tq, m, d, D, DTYPE), keys, ds)
    if HAS_TK:
        ds = _dot(queries, tl.trans(_tile(tk, n, d, D, DTYPE)), ds)
    return s, ds


@triton.jit
def _add_values(
    out,
    tangent,
    p,
    p_ds,
    v,
    tv,
    n,
    d,
    D: tl.constexpr,
    HAS_DS: tl.constexpr,
    HAS_TV: tl.constexpr,
):
    """Add columns d of p v to out, and of p ds v + p tv to tangent."""
    values = _tile(v, n, d, D, p.dtype)
    out = _dot(p, values, out)
    if HAS_DS:
        tangent = _dot(p_ds, values, tangent)
    if HAS_TV:
        tangent = _dot(p, _tile(tv, n, d, D, p.dtype), tangent)
    return out, tangent


@triton.jit
def sdpa_jvp_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    tq_ptr,
    tk_ptr,
    tv_ptr,
    out_ptr,
    tangent_ptr,
    H,
    slices,
    TQ,
    TK,
    D: tl.constexpr,
    scale: tl.float64,  # an unannotated float would arrive as float32
    q_stride_b,
    q_stride_h,
    q_stride_t,
    k_stride_b,
    k_stride_h,
    k_stride_t,
    v_stride_b,
    v_stride_h,
    v_stride_t,
    tq_stride_b,
    tq_stride_h,
    tq_stride_t,
    tk_stride_b,
    tk_stride_h,
    tk_stride_t,
    tv_stride_b,
    tv_stride_h,
    tv_stride_t,
    out_stride_b,
    out_stride_h,
    out_stride_t,
    HAS_TQ: tl.constexpr,
    HAS_TK: tl.constexpr,
    HAS_TV: tl.constexpr,
    DTYPE: tl.constexpr,
    ACC: tl.constexpr,
    UNIT: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # One program per head, block of queries (64 for half dtypes, else 32), and slice of the
    # result's columns. Scores need all columns and are summed slice by slice; with one slice, q is
    # read once and stays. A slice is HEAD + TAIL columns, both powers of two: 80 = 64 + 16 wastes
    # nothing.
    HAS_DS: tl.constexpr = HAS_TQ or HAS_TK
    SLICE: tl.constexpr = HEAD + TAIL
    blocks = tl.cdiv(TQ, BLOCK_M)
    matrix = tl.program_id(0).to(tl.int64) // blocks
    b = matrix // H
    h = matrix % H
    q = _matrix(q_ptr, b, h, q_stride_b, q_stride_h, q_stride_t, TQ, UNIT)
    k = _matrix(k_ptr, b, h, k_stride_b, k_stride_h, k_stride_t, TK, UNIT)
    v = _matrix(v_ptr, b, h, v_stride_b, v_stride_h, v_stride_t, TK, UNIT)
    tq = _matrix(tq_ptr, b, h, tq_stride_b, tq_stride_h, tq_stride_t, TQ, UNIT)
    tk = _matrix(tk_ptr, b, h, tk_stride_b, tk_stride_h, tk_stride_t, TK, UNIT)
    tv = _matrix(tv_ptr, b, h, tv_stride_b, tv_stride_h, tv_stride_t, TK, UNIT)
    to_out = _matrix(out_ptr, b, h, out_stride_b, out_stride_h, out_stride_t, TQ, UNIT)
    to_tangent = _matrix(tangent_ptr, b, h, out_stride_b, out_stride_h, out_stride_t, TQ, UNIT)
    # m: queries of this block; head and tail: the columns of a slice in two powers of two
    m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.arange(0, HEAD)
    tail = HEAD + tl.arange(0, TAIL if TAIL > 0 else 16)
    scale = (tl.full([], 1.0, ACC) * scale).to(ACC)

    # The derivative does not change when all ds of a row shift by one number. Subtract the first
    # key's ds: a large part that all keys share would take the digits of their differences.
    shift = tl.zeros([BLOCK_M], ACC)
    for c in range(0, slices):
        if HAS_TQ:
            shift += _times_first(tq, k, m, c * SLICE + head, D, DTYPE, ACC)
            if TAIL > 0:
                shift += _times_first(tq, k, m, c * SLICE + tail, D, DTYPE, ACC)
        if HAS_TK:
            shift += _times_first(q, tk, m, c * SLICE + head, D, DTYPE, ACC)
            if TAIL > 0:
                shift += _times_first(q, tk, m, c * SLICE + tail, D, DTYPE, ACC)

    # d and e: the result's columns that this program owns
    d = tl.program_id(1) * SLICE + head
    e = tl.program_id(1) * SLICE + tail
    out = tl.zeros([BLOCK_M, HEAD], ACC)
    tangent = tl.zeros([BLOCK_M, HEAD], ACC)
    if TAIL > 0:
        out_tail = tl.zeros([BLOCK_M, TAIL], ACC)
        tangent_tail = tl.zeros([BLOCK_M, TAIL], ACC)
    # running maximum of a row's scores, sum of p, and sum of p ds
    highest = tl.full([BLOCK_M], float("-inf"), ACC)
    weight = tl.zeros([BLOCK_M], ACC)
    slope = tl.zeros([BLOCK_M], ACC)
    # 16 or 32 keys at a time; no score leaves the chip
    for start in range(0, TK, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        s = tl.zeros([BLOCK_M, BLOCK_N], ACC)
        ds = tl.zeros([BLOCK_M, BLOCK_N], ACC) - shift[:, None]
        for c in range(0, slices):
            s, ds = _add_scores(
                *(s, ds, q, tq, k, tk, m, n, c * SLICE + head, D),
                *(HAS_TQ, HAS_TK, DTYPE),
            )
            if TAIL > 0:
                s, ds = _add_scores(
                    *(s, ds, q, tq, k, tk, m, n, c * SLICE + tail, D),
                    *(HAS_TQ, HAS_TK, DTYPE),
                )

        # keys beyond TK get weight 0
        s = tl.where(n[None, :] < TK, s * scale, float("-inf"))
        higher = tl.maximum(highest, tl.max(s, 1))
        # a row whose scores so far are all -inf has no maximum: -inf - -inf would be NaN
        level = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp(s - level[:, None])
        p_ds = p * (ds * scale)
        # what the risen maximum takes from everything summed so far
        shrink = tl.exp(highest - level)
        highest = higher
        weight = weight * shrink + tl.sum(p, 1)
        if HAS_DS:
            slope = slope * shrink + tl.sum(p_ds, 1)
        # sums of p above are in ACC; only the products below round p to a half dtype
        p = p.to(DTYPE)
        p_ds = p_ds.to(DTYPE)
        out *= shrink[:, None]
        tangent *= shrink[:, None]
        out, tangent = _add_values(*(out, tangent, p, p_ds, v, tv, n, d, D, HAS_DS, HAS_TV))
        if TAIL > 0:
            out_tail *= shrink[:, None]
            tangent_tail *= shrink[:, None]
            out_tail, tangent_tail = _add_values(
                *(out_tail, tangent_tail, p, p_ds, v, tv, n, e, D, HAS_DS, HAS_TV)
            )

    # tangent = (sum p ds v + sum p tv) / sum p - mu out, with mu = sum p ds / sum p
    slope = quotient(slope, weight)[:, None]
    weight = weight[:, None]
    out = quotient(out, weight)
    _store(to_out, out, m, d, D)
    _store(to_tangent, quotient(tangent, weight) - slope * out, m, d, D)
    if TAIL > 0:
        out_tail = quotient(out_tail, weight)
        _store(to_out, out_tail, m, e, D)
        _store(to_tangent, quotient(tangent_tail, weight) - slope * out_tail, m, e, D)
