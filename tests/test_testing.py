"""The comparison itself: it must accept right results and reject slightly wrong ones."""

from __future__ import annotations

import pytest
import torch

from dori_fast.testing import LAYOUTS, assert_close_to_oracle, copy_with_layout, run, with_layout


def test_rounding_passes_and_one_wrong_element_does_not() -> None:
    exact = torch.randn(100, dtype=torch.float64)
    rounded = exact.to(torch.bfloat16)
    assert_close_to_oracle(rounded, rounded, exact)
    neighbor = rounded.clone()
    neighbor[7] = torch.nextafter(rounded[7], rounded[7] * 2)
    assert_close_to_oracle(neighbor, rounded, exact)
    wrong = rounded.clone()
    wrong[7] *= 1.05
    with pytest.raises(AssertionError, match=r"1 of 100 elements off(.|\n)*at \(7,\)"):
        assert_close_to_oracle(wrong, rounded, exact)


def test_small_elements_are_held_to_their_own_size() -> None:
    exact = torch.tensor([1e6, 1e-6], dtype=torch.float64)
    reference = exact.float()
    with pytest.raises(AssertionError, match=r"at \(1,\)"):
        assert_close_to_oracle(reference + torch.tensor([0.0, 1e-9]), reference, exact)


def test_an_inexact_reference_earns_more_room() -> None:
    exact = torch.tensor([1.0], dtype=torch.float64)
    actual = torch.tensor([1.0 + 3e-6])
    with pytest.raises(AssertionError):
        assert_close_to_oracle(actual, torch.tensor([1.0]), exact)
    assert_close_to_oracle(actual, torch.tensor([1.0 - 2e-6]), exact)


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 1.0), ids=str)
@pytest.mark.parametrize("other", (float("nan"), float("inf"), -float("inf"), 1.0), ids=str)
def test_nonfinite_values_must_match(value: float, other: float) -> None:
    actual, reference = torch.tensor([0.0, value]), torch.tensor([0.0, other])
    if str(value) == str(other):
        assert_close_to_oracle(actual, reference, reference.double())
    else:
        with pytest.raises(AssertionError):
            assert_close_to_oracle(actual, reference, reference.double())


def test_shape_and_dtype_must_match() -> None:
    x = torch.zeros(2)
    with pytest.raises(AssertionError, match="expected torch.float32"):
        assert_close_to_oracle(x.double(), x, x.double())
    with pytest.raises(AssertionError, match=r"\[1, 2\]"):
        assert_close_to_oracle(x[None], x, x.double())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_values_and_copies_keep_layouts(layout: str) -> None:
    x = torch.randn(3, 4, 5)
    y = with_layout(x, layout)
    assert torch.equal(y, x[:1].expand_as(x) if layout == "expanded" else x)
    expected = {
        "contiguous": ((20, 5, 1), 0),
        "offset": ((20, 5, 1), 1),
        "sliced": ((40, 10, 2), 0),
        "transposed": ((20, 1, 4), 0),
        "expanded": ((0, 5, 1), 0),
    }[layout]
    copy = copy_with_layout(y)
    for tensor in (y, copy):
        assert (tensor.stride(), tensor.storage_offset()) == expected
    assert torch.equal(copy, y) and copy.data_ptr() != y.data_ptr()


def test_run_leaves_its_inputs_alone_and_returns_what_was_written() -> None:
    x = torch.ones(3)
    assert run(lambda a: a.add_(1) and None, (x[:1],))[0].item() == 2
    assert torch.equal(x, torch.ones(3))


def test_run_returns_every_result_and_everything_written() -> None:
    x, y = torch.ones(2), torch.ones(3)
    assert len(run(lambda a, b: (a, b), (x, y))) == 2
    written = run(lambda a, b: (a.add_(1), b.mul_(5), None)[-1], (x, y))
    assert [w.tolist() for w in written] == [[2.0] * 2, [5.0] * 3]


def test_errors_are_relative_to_the_scale_where_terms_cancel() -> None:
    exact = torch.tensor([1e-9, 1.0], dtype=torch.float64)
    reference, actual = exact.float(), torch.tensor([1e-9 + 1e-7, 1.0])
    with pytest.raises(AssertionError, match="1 of 2 elements off"):
        assert_close_to_oracle(actual, reference, exact)
    assert_close_to_oracle(actual, reference, exact, torch.ones(2, dtype=torch.float64))
    with pytest.raises(AssertionError, match="1 of 2 elements off"):
        assert_close_to_oracle(actual + torch.tensor([1e-5, 0]), reference, exact, exact + 1)


def test_what_is_not_floating_must_be_equal() -> None:
    mask = torch.tensor([True, False])
    assert_close_to_oracle(mask, mask.clone(), mask)
    with pytest.raises(AssertionError, match="1 of 2 differ"):
        assert_close_to_oracle(mask, torch.tensor([True, True]), mask)
