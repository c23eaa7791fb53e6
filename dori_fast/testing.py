"""Compare implementations with a float64 oracle; make tensors with awkward memory layouts.

Used by the tests, the benchmarks and `dori-fast doctor`; itself tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dori_fast._backend import BACKENDS, why_not
from dori_fast._library import OPS
from dori_fast.reference import OpSpec

LAYOUTS = ("contiguous", "offset", "sliced", "transposed", "expanded")
"""Memory layouts that `with_layout` makes."""

_WORST_SHOWN = 5


def available_backends(op: str, device: str = "cpu") -> list[str]:
    """Return the backends, "auto" aside, that can serve `dori::<op>` on a device type."""
    named = (name for name in BACKENDS if name != "auto")
    return [name for name in named if why_not(OPS[op], name, device) is None]


def with_layout(x: Tensor, layout: str) -> Tensor:
    """Return a tensor with the values of x and another memory layout.

    Args:
        x: any shape and dtype.
        layout: "contiguous"; "offset", which starts one element into its storage and so is not
            aligned to vectors; "sliced", which skips every other element of the last dimension;
            "transposed", whose last two dimensions are swapped in memory; "expanded", which repeats
            its first sample with a stride of 0 (the only layout that changes values).

    Raises:
        ValueError: unknown layout.
    """
    if layout == "contiguous" or x.dim() == 0:
        return x.contiguous()
    if layout == "offset":
        return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)
    if layout == "sliced":
        return torch.stack([x, torch.zeros_like(x)], dim=-1).flatten(-2)[..., ::2]
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x.contiguous()
    if layout == "expanded":
        return x[:1].expand(x.shape)
    raise ValueError(f"with_layout: layout must be one of {', '.join(LAYOUTS)}, got {layout}")


def map_tensors(function: Callable[[Tensor], Tensor], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Apply a function to the tensors among inputs, also those of flags and indices."""
    return tuple(function(value) if isinstance(value, Tensor) else value for value in inputs)


def to_oracle(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return inputs in float64 on the CPU: the same numbers, for exact arithmetic."""
    return map_tensors(lambda x: x.cpu().double() if x.is_floating_point() else x.cpu(), inputs)


def copy_with_layout(x: Tensor) -> Tensor:
    """Return a copy of x with the same strides and storage offset."""
    storage = x.untyped_storage().clone()
    empty = torch.empty(0, dtype=x.dtype, device=x.device)
    return empty.set_(storage, x.storage_offset(), x.size(), x.stride())


def run(function: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Tensor]:
    """Call a function on copies of inputs and return its results.

    If it returns nothing, return its tensor arguments as it left them.
    """
    copies = tuple(copy_with_layout(x) if isinstance(x, Tensor) else x for x in inputs)
    result = function(*copies)
    if result is None:
        return [x for x in copies if isinstance(x, Tensor)]
    return list(result) if isinstance(result, tuple) else [result]


def assert_close_to_oracle(
    actual: Tensor, reference: Tensor, oracle: Tensor, scale: Tensor | None = None
) -> None:
    """Require errors of at most twice those of the plain-torch reference, plus rounding.

    Let r be the largest relative error of the reference and u the spacing of the dtype at 1 (16
    times that in float64, where the oracle itself has rounded sums). Each element may be off by
    `2 * (r + u) * |oracle|` plus one smallest number of its dtype. `scale` replaces |oracle| where
    it is larger, also for r.

    Args:
        actual: result of the implementation under test, any shape.
        reference: result of the reference on the same inputs, same shape and dtype.
        oracle: result of the reference on the inputs in float64, same shape.
        scale: magnitudes that rounding errors are relative to where terms cancel, same shape,
            float64. Default: |oracle|.

    Raises:
        AssertionError: shape or dtype differ; NaN or Inf stand where neither the reference nor the
            oracle has them, or finite numbers where both have them; or an error is too large. The
            message lists the worst elements and both root mean squares.
    """
    if actual.shape != reference.shape or actual.dtype != reference.dtype:
        raise AssertionError(
            f"got {actual.dtype} {list(actual.shape)}, "
            f"expected {reference.dtype} {list(reference.shape)}"
        )
    if not actual.is_floating_point():
        if not torch.equal(actual, reference):
            raise AssertionError(f"{int((actual != reference).sum())} of {actual.numel()} differ")
        return
    found, expected, exact = (x.detach().cpu().double() for x in (actual, reference, oracle))
    _require_same_nonfinite(found, expected, exact)
    finite = found.isfinite() & exact.isfinite()
    zero = torch.zeros((), dtype=torch.float64)
    error = torch.where(finite, (found - exact).abs(), zero)
    reference_error = torch.where(finite & expected.isfinite(), (expected - exact).abs(), zero)
    size = exact.abs() if scale is None else torch.maximum(exact.abs(), scale.cpu().double().abs())
    size = torch.where(finite, size, zero)
    relative = torch.where(size > 0, reference_error / size.clamp_min(1e-300), zero)
    info = torch.finfo(actual.dtype)
    worst_relative = relative[size >= info.tiny].max().item() if (size >= info.tiny).any() else 0.0
    unit = info.eps * (16 if actual.dtype == torch.float64 else 1)
    allowed = 2 * (worst_relative + unit) * size + info.smallest_normal * info.eps
    if bool((error <= allowed).all()):
        return
    raise AssertionError("\n".join(_describe(error, allowed, found, exact, reference_error)))


def _require_same_nonfinite(found: Tensor, expected: Tensor, exact: Tensor) -> None:
    # Either may be wrong here: oneDNN's bfloat16 products with AMX carry a NaN into the row before
    # it, so the reference may; narrow dtypes overflow where float64 does not, so the oracle may.
    same = torch.zeros(found.shape, dtype=torch.bool)
    for right in (expected, exact):
        same |= torch.where(right.isfinite(), found.isfinite(), found == right)
        same |= right.isnan() & found.isnan()
    if not bool(same.all()):
        where = tuple((~same).nonzero()[0].tolist())
        raise AssertionError(f"at {where}: got {found[where]}, expected {expected[where]}")


def _describe(
    error: Tensor, allowed: Tensor, found: Tensor, exact: Tensor, reference_error: Tensor
) -> Iterator[str]:
    rms, reference_rms = (x.square().mean().sqrt().item() for x in (error, reference_error))
    count = int((error > allowed).sum())
    yield f"{count} of {error.numel()} elements off"
    yield f"root mean square error {rms:.3g}, of the reference {reference_rms:.3g}"
    worst = (error / allowed).flatten().topk(min(_WORST_SHOWN, error.numel())).indices
    for flat in worst.tolist():
        where = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape))
        yield (
            f"at {where}: got {found[where]:.9g}, exact {exact[where]:.9g}, "
            f"error {error[where]:.3g}, allowed {allowed[where]:.3g}"
        )


def check_backend(spec: OpSpec, backend: str, inputs: tuple[Any, ...]) -> None:
    """Require that one backend of `dori::<spec.name>` agrees with the float64 oracle.

    Raises:
        AssertionError: see `assert_close_to_oracle`.
    """
    op = OPS[spec.name]
    found, expected = run(op.kernel(backend), inputs), run(spec.reference, inputs)
    exact_inputs = to_oracle(inputs)
    exact = run(spec.reference, exact_inputs)
    scale = exact
    if spec.uncanceled is not None:
        scale = run(spec.reference, spec.uncanceled(*exact_inputs))
    if spec.magnitudes is not None:
        scale = run(spec.magnitudes, exact_inputs)
    for tensors in zip(found, expected, exact, scale, strict=True):
        assert_close_to_oracle(*tensors)
