"""A linear layer with `neuron_mask` as its epilogue: the unmasked output is never written.

B samples, T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.ops.neuron_mask import neuron_mask
from dori_fast.reference.masked_linear import masked_linear_reference

__all__ = ["masked_linear"]


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], weight.shape[0]))


_OP = define_op(
    "masked_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor scale) -> Tensor",
    reference=masked_linear_reference,
    fake=_fake,
    triton="dori_fast.triton_kernels.masked_linear:masked_linear_triton",
)


def _compute(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, backend: str) -> Tensor:
    """Call the op with the scale in the dtype that kernels take."""
    dtype = _checks.accumulate_dtype(x.dtype)
    if scale.dtype is not dtype:
        scale = scale.to(dtype)
    y: Tensor = select(_OP, backend, x)(x, weight, bias, scale)
    return y


class _MaskedLinear(torch.autograd.Function):
    """The gradient passes the mask, then the layer; the scale's needs the layer's output again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, backend: str
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, scale)
        ctx.backend = backend
        return _compute(x, weight, bias, scale, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale = ctx.saved_tensors
        for_x, for_weight, for_bias, for_scale, _ = ctx.needs_input_grad
        masked = neuron_mask(grad, scale, backend=ctx.backend)
        to_x = masked @ weight if for_x else None
        to_weight = masked.flatten(0, 1).T @ x.flatten(0, 1) if for_weight else None
        to_bias = masked.sum((0, 1)) if for_bias else None
        to_scale = None
        if for_scale:
            dtype = _checks.accumulate_dtype(x.dtype)
            product = grad.to(dtype) * F.linear(x, weight, bias).to(dtype)
            to_scale = product.sum((0, 1) if scale.dim() == 1 else (1,)).to(scale.dtype)
        return to_x, to_weight, to_bias, to_scale, None


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> None:
    op = "masked_linear"
    _checks.floating_tensor(op, "x", x)
    _checks.floating_tensor(op, "weight", weight)
    _checks.floating_tensor(op, "scale", scale)
    if x.dim() != 3:
        _checks.reject(op, "x", "[B, T, I]", _checks.shape_of(x))
    batch, _, inputs = x.shape
    if weight.dim() != 2 or weight.shape[1] != inputs:
        expected = f"[O, {inputs}] for x {_checks.shape_of(x)}"
        _checks.reject(op, "weight", expected, _checks.shape_of(weight))
    outputs = weight.shape[0]
    if scale.shape != (outputs,) and scale.shape != (batch, outputs):
        expected = f"[{outputs}] or [{batch}, {outputs}] for x {_checks.shape_of(x)}"
        _checks.reject(op, "scale", expected, _checks.shape_of(scale))
    _checks.same_dtype_and_device(op, "weight", weight, "x", x)
    _checks.same_device(op, "scale", scale, "x", x)
    if bias is not None:
        _check_bias(x, weight, bias)


def _check_bias(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    op = "masked_linear"
    _checks.floating_tensor(op, "bias", bias)
    if bias.shape != weight.shape[:1]:
        expected = f"[{weight.shape[0]}] for weight {_checks.shape_of(weight)}"
        _checks.reject(op, "bias", expected, _checks.shape_of(bias))
    _checks.same_dtype_and_device(op, "bias", bias, "x", x)


def masked_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Return a linear layer's output with every neuron scaled.

    Args:
        x: [B, T, I] inputs.
        weight: [O, I] weight of the layer.
        bias: [O] bias of the layer, or None.
        scale: [O] for all samples or [B, O] for one each, any floating dtype; 0 blocks a neuron, 1
            leaves it.
        backend: implementation; see `dori_fast.ops`.

    Returns:
        [B, T, O] in the dtype of x, contiguous; differentiable in all inputs.

    Note:
        Only Triton's result is rounded once and independent of the batch around a sample. The
        others use torch's own matrix product, with its order of summation, and round twice if x is
        narrower than float32.
    """
    _check(x, weight, bias, scale)
    inputs = (x, weight, scale) if bias is None else (x, weight, bias, scale)
    if torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
        y: Tensor = _MaskedLinear.apply(x, weight, bias, scale, backend)
        return y
    return _compute(x, weight, bias, scale, backend)
