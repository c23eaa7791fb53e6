from __future__ import annotations

import math
import statistics
from dataclasses import fields
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dori_fast.ops import ActivationStats, activation_stats
from dori_fast.testing import check_backend
from tests.ops.contract import DEVICE, DTYPES, SPECS, backends_of, check_threads

BACKENDS = backends_of("activation_stats")
KERNELS = [backend for backend in BACKENDS if backend != "reference"]
TENSORS = [field.name for field in fields(ActivationStats) if field.name != "count"]


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) + 2).to(DEVICE, dtype)


def assert_same(found: ActivationStats, expected: ActivationStats, rtol: float) -> None:
    assert found.count == expected.count
    for name in TENSORS:
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=rtol, atol=0, msg=f"{name} differs"
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_exact_arithmetic(backend: str) -> None:
    x = rows(9, 2, dtype=torch.float64)
    found = activation_stats(x, backend=backend)
    assert found.count == 9
    for n in range(2):
        values = [Fraction(value) for value in x[:, n].tolist()]
        mean = statistics.mean(values)
        expected = {
            "mean": mean,
            "m2": sum((value - mean) ** 2 for value in values),
            "abs_mean": statistics.mean(abs(value) for value in values),
            "abs_max": max(abs(value) for value in values),
            "sum_sq": sum(value**2 for value in values),
        }
        for name, value in expected.items():
            assert getattr(found, name)[n].item() == pytest.approx(float(value), rel=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_leading_axes_are_rows(backend: str) -> None:
    x = rows(2, 3, 5, 4)
    expected = activation_stats(x.reshape(30, 4), backend=backend)
    assert expected.count == 30
    for view in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert_same(activation_stats(view, backend=backend), expected, rtol=1e-14)
    assert activation_stats(x[0, 0, 0], backend=backend).count == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_a_large_mean_takes_no_digits_from_the_deviations(backend: str, dtype: torch.dtype) -> None:
    offset = 2.0**20 if dtype == torch.float32 else 2.0**30
    # Whole numbers, so that adding the offset rounds nothing.
    deviations = torch.randint(-7, 8, (700, 3)).to(DEVICE, dtype)
    plain = activation_stats(deviations, backend=backend)
    shifted = activation_stats(deviations + offset, backend=backend)
    torch.testing.assert_close(shifted.m2, plain.m2, rtol=1e-9, atol=0)
    torch.testing.assert_close(shifted.std(), deviations.double().std(0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_neuron_does_not_depend_on_its_neighbours(backend: str, dtype: torch.dtype) -> None:
    x = rows(150, 130, dtype=dtype)
    whole = activation_stats(x, backend=backend)
    for first, last in ((0, 5), (3, 70), (129, 130)):
        part = activation_stats(x[:, first:last], backend=backend)
        for name in TENSORS:
            assert torch.equal(getattr(part, name), getattr(whole, name)[first:last])


@pytest.mark.parametrize("threads", (1, 2, 5))
def test_threads_do_not_change_a_bit(threads: int) -> None:
    x = rows(900, 700)
    check_threads(lambda: [getattr(activation_stats(x), name) for name in TENSORS], threads)


@pytest.mark.parametrize(
    "sizes", [(400,), (1, 399), (64, 64, 272), (0, 150, 0, 250), (7,) * 50 + (50,)]
)
def test_merged_batches_equal_one_batch(sizes: tuple[int, ...]) -> None:
    x = rows(400, 6, dtype=torch.float64)
    merged = activation_stats(x[:0])
    for part in x.split(sizes):
        merged = merged.merge(activation_stats(part))
    assert_same(merged, activation_stats(x), rtol=1e-12)


def test_an_empty_batch_is_neutral() -> None:
    empty, some = activation_stats(torch.ones(0, 3)), activation_stats(rows(5, 3))
    assert empty.count == 0
    assert all(getattr(empty, name).eq(0).all() for name in TENSORS)
    for merged in (empty.merge(some), some.merge(empty)):
        assert_same(merged, some, rtol=0)
    assert empty.merge(empty).count == 0 and empty.std().isnan().all()


def test_infinities_and_nans_survive_a_merge() -> None:
    x = rows(20, 4)
    x[3, 1], x[12, 2], x[15, 3] = math.inf, math.nan, -math.inf
    merged = activation_stats(x[:10]).merge(activation_stats(x[10:]))
    whole = activation_stats(x)
    for name in TENSORS:
        torch.testing.assert_close(
            getattr(merged, name), getattr(whole, name), rtol=1e-12, atol=0, equal_nan=True
        )
    assert whole.mean[1] == math.inf and whole.mean[3] == -math.inf
    assert whole.abs_max[3] == math.inf and whole.mean[2].isnan() and whole.abs_max[2].isnan()


def constant(count: int, value: float) -> ActivationStats:
    """Statistics of `count` rows that are all `value`."""
    one = torch.full((1,), value, dtype=torch.float64)
    return ActivationStats(count, one, 0 * one, one.abs(), one.abs(), count * one.square())


def test_counts_are_exact_beyond_two_to_the_53() -> None:
    many = constant(2**60 + 1, 1.0).merge(constant(3 * 2**60, 3.0))
    assert many.count == 2**62 + 1
    assert many.mean.item() == pytest.approx(2.5, rel=1e-15)
    # Two values a distance of 2 apart with shares 1/4 and 3/4: variance 4 * 3/16.
    assert many.std(unbiased=False).item() == pytest.approx(math.sqrt(0.75), rel=1e-15)
    assert many.merge(constant(1, 0.0)).count == 2**62 + 2


@pytest.mark.parametrize("backend", KERNELS)
def test_rows_lie_further_apart_than_an_int32_reaches(backend: str) -> None:
    stride, width = 2**30, 5
    # Zeroed memory costs nothing until it is touched.
    memory = torch.from_numpy(numpy.zeros(3 * stride + width, dtype=numpy.float16))
    x = memory.as_strided((4, width), (stride, 1))
    x.copy_(torch.arange(20).reshape(4, 5))
    found = activation_stats(x.to(DEVICE) if DEVICE == "cuda" else x, backend=backend)
    assert_same(found, activation_stats(x.contiguous().to(DEVICE), backend="reference"), rtol=1e-14)


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31_elements() -> None:
    x = torch.zeros(2**21 + 64, 1024, dtype=torch.float16, device="cuda")
    x[-1, -1] = 3.0
    found = activation_stats(x, backend="triton")
    assert found.count == len(x)
    assert found.sum_sq[-1].item() == 9.0 and found.sum_sq[:-1].eq(0).all()


@pytest.mark.parametrize("unbiased", (True, False))
def test_std_equals_torch(unbiased: bool) -> None:
    x = rows(40, 6)
    found = activation_stats(x).std(unbiased)
    torch.testing.assert_close(found, x.double().std(0, unbiased=unbiased), rtol=1e-12, atol=0)
    assert activation_stats(x[:1]).std().isnan().all()
    assert activation_stats(x[:1]).std(unbiased=False).eq(0).all()


def test_results_carry_no_gradient_and_move_between_devices() -> None:
    found = activation_stats(rows(4, 3).requires_grad_())
    moved = found.to("meta")
    for name in TENSORS:
        assert not getattr(found, name).requires_grad
        assert getattr(found, name).dtype == torch.float64
        assert getattr(moved, name).device.type == "meta"
    assert moved.count == 4


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.tensor(1.0), ValueError, r"x must be \[\*, N\], got \[\]"),
        (torch.ones(2, 3).int(), ValueError, "x must be float32, .*got int32"),
        (3.0, TypeError, "x must be a tensor, got float"),
    ],
)
def test_wrong_arguments_are_named(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^activation_stats: {message}"):
        activation_stats(x)


def test_statistics_that_do_not_fit_are_not_merged() -> None:
    three, four = activation_stats(rows(2, 3)), activation_stats(rows(2, 4))
    with pytest.raises(ValueError, match=r"^ActivationStats.merge: other must be of 3 neurons"):
        three.merge(four)
    with pytest.raises(ValueError, match="other must be on self's device"):
        three.merge(three.to("meta"))


SIZES = st.tuples(st.integers(0, 400), st.integers(0, 200))


def check_drawn(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    spec = SPECS["activation_stats"]
    inputs = spec.make_inputs(size, dtype, DEVICE, torch.Generator().manual_seed(seed))
    for backend in KERNELS:
        check_backend(spec, backend, inputs)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(SIZES, st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_drawn_shapes(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    check_drawn(size, dtype, seed)


@pytest.mark.nightly
@settings(max_examples=200, deadline=None)
@given(SIZES, st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_many_drawn_shapes(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    check_drawn(size, dtype, seed)
