"""Kernels of MS-SSIM: once per image, once per scale, then per pair and scale."""

from __future__ import annotations

import triton
import triton.language as tl

from dori_fast.triton_kernels._common import quotient, sum_of

K1 = tl.constexpr(0.01)
K2 = tl.constexpr(0.03)


@triton.jit
def center_kernel(
    maps_ptr,
    planes_ptr,
    pivots_ptr,
    M,
    C,
    L,
    stride_g,
    stride_m,
    RESCALE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per plane of L pixels. It writes the plane around its mean, where squares and
    # their differences keep most digits; the mean need not be exact. Pivot plus plane gives the
    # true values (stretched to [0, 1] with RESCALE).
    plane = tl.program_id(0).to(tl.int64)
    image = plane // C
    x_ptr = maps_ptr + (image // M) * stride_g + (image % M) * stride_m + (plane % C) * L
    # first pass, 1024 pixels at a time: the least and the largest value, and the sum. Minima and
    # maxima may skip a NaN; `poison` is NaN for a NaN or an infinity (x - x) and 0 otherwise.
    low = tl.full([BLOCK], float("inf"), ACC)
    high = tl.full([BLOCK], float("-inf"), ACC)
    poison = tl.zeros([BLOCK], ACC)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < L, other=0.0).to(ACC)
        low = tl.minimum(low, tl.where(i < L, x, float("inf")))
        high = tl.maximum(high, tl.where(i < L, x, float("-inf")))
        poison += x - x
        total += x
    least = tl.min(low, 0) + tl.sum(poison, 0)
    largest = tl.max(high, 0) + tl.sum(poison, 0)
    # a constant plane becomes exactly 0: its rounded mean could differ from its value
    mean = tl.where(largest == least, least, quotient(sum_of(total), L))
    pivot = mean
    span = tl.full([], 1.0, ACC)
    # a span of 1 leaves a constant plane, which would divide 0 by 0
    if RESCALE:
        span = tl.where(largest == least, span, largest - least)
        pivot = quotient(mean - least, span)
    # second pass: center and stretch
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < L, other=0.0).to(ACC)
        tl.store(planes_ptr + plane * L + i, quotient(x - mean, span), mask=i < L)
    tl.store(pivots_ptr + plane, pivot)


@triton.jit
def pool_kernel(from_ptr, to_ptr, count, from_L, from_W, L, W, BLOCK: tl.constexpr):
    # Means of 2 x 2 pixels lead to the next scale; an odd last row or column is dropped. One
    # program per 1024 pixels j of all coarser planes in a row; pixel i lies in plane j // L.
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    i = j % L
    x_ptr = from_ptr + (j // L) * from_L + 2 * (i // W) * from_W + 2 * (i % W)
    x = tl.load(x_ptr, mask=inside) + tl.load(x_ptr + 1, mask=inside)
    x += tl.load(x_ptr + from_W, mask=inside) + tl.load(x_ptr + from_W + 1, mask=inside)
    tl.store(to_ptr + j, 0.25 * x, mask=inside)


@triton.jit
def extent_kernel(
    planes_ptr,
    pivots_ptr,
    extents_ptr,
    C,
    L,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per image: its least and largest true value over C planes of L pixels; both are
    # NaN if a value is not finite.
    image = tl.program_id(0).to(tl.int64)
    low = tl.full([BLOCK], float("inf"), ACC)
    high = tl.full([BLOCK], float("-inf"), ACC)
    poison = tl.zeros([BLOCK], ACC)
    for start in range(0, C * L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < C * L
        x = tl.load(planes_ptr + image * C * L + i, mask=inside, other=0.0)
        # the plane's pivot turns it back into true values
        x += tl.load(pivots_ptr + image * C + i // L, mask=inside, other=0.0)
        low = tl.minimum(low, tl.where(inside, x, float("inf")))
        high = tl.maximum(high, tl.where(inside, x, float("-inf")))
        poison += x - x
    # extents is [G, M, 2]; adding NaN makes both ends NaN
    tl.store(extents_ptr + 2 * image, tl.min(low, 0) + tl.sum(poison, 0))
    tl.store(extents_ptr + 2 * image + 1, tl.max(high, 0) + tl.sum(poison, 0))


@triton.jit
def range_kernel(
    extents_ptr,
    pairs_ptr,
    range_ptr,
    M,
    P,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program per group: the larger of the ranges of all first and of all second members of its
    # P pairs, as torchmetrics takes it; NaN if nothing has contrast or a value is not finite.
    g = tl.program_id(0).to(tl.int64)
    widest = tl.zeros([], ACC)
    for member in range(0, 2):
        low = tl.full([BLOCK], float("inf"), ACC)
        high = tl.full([BLOCK], float("-inf"), ACC)
        poison = tl.zeros([BLOCK], ACC)
        # 64 pairs at a time; pairs is [P, 2] with images of the group
        for start in range(0, P, BLOCK):
            k = start + tl.arange(0, BLOCK)
            inside = k < P
            at = extents_ptr + 2 * (
                g * M + tl.load(pairs_ptr + 2 * k + member, mask=inside, other=0)
            )
            least = tl.load(at, mask=inside, other=float("inf"))
            largest = tl.load(at + 1, mask=inside, other=float("-inf"))
            low = tl.minimum(low, least)
            high = tl.maximum(high, largest)
            poison += tl.where(inside, least - largest, 0.0)
        # a maximum may skip NaN, so it is added: NaN - NaN is NaN, and 0 for finite values
        poisoned = tl.sum(poison, 0)
        widest = tl.maximum(widest, tl.max(high, 0) - tl.min(low, 0)) + (poisoned - poisoned)
    # comparing with NaN is false, so NaN stays NaN; 0 becomes NaN
    tl.store(range_ptr + g, tl.where(widest > 0, widest, float("nan")))


@triton.jit
def moments_kernel(
    planes_ptr,
    window_ptr,
    mean_ptr,
    variance_ptr,
    count,
    L,
    W,
    inner_L,
    inner_W,
    ACC: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Gaussian mean and variance once per image. One program per 256 of the pixels j, of all planes
    # in a row, around which the whole window fits; inner_W and inner_L are the size of that part.
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    i = j % inner_L
    x_ptr = planes_ptr + (j // inner_L) * L + (i // inner_W) * W + i % inner_W
    mean = tl.zeros([BLOCK], ACC)
    square = tl.zeros([BLOCK], ACC)
    # the window is a product of weights: each of its rows is summed (unrolled), then weighted
    for row in range(0, WINDOW):
        row_mean = tl.zeros([BLOCK], ACC)
        row_square = tl.zeros([BLOCK], ACC)
        for column in tl.static_range(WINDOW):
            weight = tl.load(window_ptr + column)
            x = tl.load(x_ptr + column, mask=inside, other=0.0)
            row_mean += weight * x
            row_square += weight * (x * x)
        row_weight = tl.load(window_ptr + row)
        mean += row_weight * row_mean
        square += row_weight * row_square
        x_ptr += W
    # rounding can push a small difference below 0
    variance = square - mean * mean
    tl.store(mean_ptr + j, mean, mask=inside)
    tl.store(variance_ptr + j, tl.where(variance < 0, 0.0, variance), mask=inside)


@triton.jit
def similarity_kernel(
    planes_ptr,
    mean_ptr,
    variance_ptr,
    pivots_ptr,
    window_ptr,
    pairs_ptr,
    range_ptr,
    to_ptr,
    count,
    M,
    P,
    C,
    L,
    W,
    inner_L,
    inner_W,
    LUMINANCE: tl.constexpr,
    ACC: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Similarity of 256 pixels j of all pairs: to is [G, P, C, inner_L] in a row. Only the
    # covariance is new for a pair; means and variances of both images are loaded.
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    i = j % inner_L
    c = (j // inner_L) % C
    pair = j // inner_L // C
    g = pair // P
    k = pair % P
    # planes of both members: channel c of two images of group g
    first = (g * M + tl.load(pairs_ptr + 2 * k, mask=inside, other=0)) * C + c
    second = (g * M + tl.load(pairs_ptr + 2 * k + 1, mask=inside, other=0)) * C + c
    pixel = (i // inner_W) * W + i % inner_W
    x_ptr = planes_ptr + first * L + pixel
    y_ptr = planes_ptr + second * L + pixel
    # E[xy] under the window, whose first pixel is `pixel`
    product = tl.zeros([BLOCK], ACC)
    for row in range(0, WINDOW):
        row_product = tl.zeros([BLOCK], ACC)
        for column in tl.static_range(WINDOW):
            x = tl.load(x_ptr + column, mask=inside, other=0.0)
            y = tl.load(y_ptr + column, mask=inside, other=0.0)
            row_product += tl.load(window_ptr + column) * (x * y)
        product += tl.load(window_ptr + row) * row_product
        x_ptr += W
        y_ptr += W
    # a range of NaN makes the whole group NaN
    data_range = tl.load(range_ptr + g, mask=inside, other=1.0)
    c1 = (K1 * data_range) * (K1 * data_range)
    c2 = (K2 * data_range) * (K2 * data_range)
    a = tl.load(mean_ptr + first * inner_L + i, mask=inside, other=0.0)
    b = tl.load(mean_ptr + second * inner_L + i, mask=inside, other=0.0)
    # contrast and structure: (2 cov + c2) / (var_x + var_y + c2)
    upper = 2 * (product - a * b) + c2
    lower = tl.load(variance_ptr + first * inner_L + i, mask=inside, other=0.0) + c2
    lower += tl.load(variance_ptr + second * inner_L + i, mask=inside, other=0.0)
    # luminance, at the last scale only, takes true means: pivots back on
    if LUMINANCE:
        a += tl.load(pivots_ptr + first, mask=inside, other=0.0)
        b += tl.load(pivots_ptr + second, mask=inside, other=0.0)
        upper *= 2 * a * b + c1
        lower *= a * a + b * b + c1
    tl.store(to_ptr + j, quotient(upper, lower), mask=inside)


@triton.jit
def mean_kernel(from_ptr, to_ptr, L, ACC: tl.constexpr, BLOCK: tl.constexpr):
    # Mean over channels and pixels: one program per (group, pair), which sums its L numbers in one
    # order, whatever the number of pairs.
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, L, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(from_ptr + row * L + i, mask=i < L, other=0.0)
    tl.store(to_ptr + row, quotient(sum_of(total), L))
