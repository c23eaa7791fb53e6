"""Optimize many embeddings at once, each as its own optimizer would.

One step of Adam (Kingma & Ba, ICLR 2015) with decoupled weight decay (Loshchilov & Hutter, ICLR
2019) on P independent problems: each has its own step count, may stand still while others go on,
and may keep tokens frozen. Adam at lr 0.1 is the attack of Kowalczuk et al., "Finding DoRI" (ICML
2026); AdamW with weight decay 0.01 the mitigation of Wen et al. (ICLR 2024, released code), whose
first token has its gradient zeroed and so still decays: zero it, and do not freeze it, to repeat
that. P problems, T tokens, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference import accumulate_dtype
from dori_fast.reference.embedding_step import embedding_step_reference

__all__ = ["EmbeddingState", "embedding_step"]


def _fake(*arguments: Any) -> None:
    return None


def _triton(*arguments: Any) -> None:
    from dori_fast.triton_kernels.embedding_step import embedding_step_triton

    embedding_step_triton(*arguments)


_OP = define_op(
    "embedding_step",
    "(Tensor(a!) params, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) step,"
    " Tensor? active, Tensor? frozen, float lr, float beta1, float beta2, float eps,"
    " float weight_decay) -> ()",
    reference=embedding_step_reference,
    triton=_triton,
    fake=_fake,
)


@dataclass(frozen=True)
class EmbeddingState:
    """What Adam remembers of P problems; written by every step.

    `exp_avg` and `exp_avg_sq` are [P, T, D], float32 (float64 for float64 params); `step` is int64
    [P], the steps that each problem has taken.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor

    @classmethod
    def zeros_like(cls, params: Tensor) -> EmbeddingState:
        """Return the state before the first step of params [P, T, D].

        Raises:
            TypeError: params is not a tensor.
            ValueError: params is not floating or not [P, T, D].
        """
        _check_params(params)
        dtype = accumulate_dtype(params.dtype)
        return cls(
            exp_avg=torch.zeros(params.shape, dtype=dtype, device=params.device),
            exp_avg_sq=torch.zeros(params.shape, dtype=dtype, device=params.device),
            step=torch.zeros(params.shape[0], dtype=torch.int64, device=params.device),
        )

    def take(self, rows: Tensor) -> EmbeddingState:
        """Return a copy of the state of some problems: int64 indices [A]."""
        rows = rows.to(self.step.device)
        return EmbeddingState(self.exp_avg[rows], self.exp_avg_sq[rows], self.step[rows])


def _check_params(params: Tensor) -> None:
    op = "embedding_step"
    _checks.floating_tensor(op, "params", params)
    if params.dim() != 3:
        _checks.reject(op, "params", "[P, T, D]", _checks.shape_of(params))


def _check_written(name: str, x: Tensor) -> None:
    if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True)):
        expected = "free of repeated memory to be written"
        _checks.reject("embedding_step", name, expected, "an expanded tensor")


def _check_like(name: str, x: Tensor, params: Tensor, dtype: torch.dtype) -> None:
    op = "embedding_step"
    _checks.floating_tensor(op, name, x)
    if x.shape != params.shape or x.dtype != dtype:
        expected = f"{dtype} {_checks.shape_of(params)} for params"
        _checks.reject(op, name, expected, f"{x.dtype} {_checks.shape_of(x)}")
    _checks.same_device(op, name, x, "params", params)


def _check_mask(
    name: str, mask: Tensor | None, params: Tensor, shapes: Sequence[torch.Size]
) -> None:
    if mask is None:
        return
    op = "embedding_step"
    if not isinstance(mask, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool or mask.shape not in shapes:
        expected = "bool " + " or ".join(str(list(shape)) for shape in shapes)
        _checks.reject(op, name, expected, f"{mask.dtype} {_checks.shape_of(mask)}")
    _checks.same_device(op, name, mask, "params", params)


def _check(params: Tensor, grad: Tensor, state: EmbeddingState) -> None:
    _check_params(params)
    _check_written("params", params)
    wide = accumulate_dtype(params.dtype)
    _check_like("grad", grad, params, params.dtype)
    _check_like("state.exp_avg", state.exp_avg, params, wide)
    _check_like("state.exp_avg_sq", state.exp_avg_sq, params, wide)
    if state.step.dtype != torch.int64 or state.step.shape != params.shape[:1]:
        got = f"{state.step.dtype} {_checks.shape_of(state.step)}"
        _checks.reject("embedding_step", "state.step", f"int64 [{params.shape[0]}]", got)
    _checks.same_device("embedding_step", "state.step", state.step, "params", params)


def _check_rates(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    op = "embedding_step"
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0.0:
            _checks.reject(op, name, "0 or more", value)
    if not all(0.0 <= beta < 1.0 for beta in betas):
        _checks.reject(op, "betas", "two numbers in [0, 1)", betas)


@torch.no_grad()
def embedding_step(
    params: Tensor,
    grad: Tensor,
    state: EmbeddingState,
    *,
    lr: float,
    active: Tensor | None = None,
    frozen_tokens: Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    backend: str = "auto",
) -> None:
    """Step every active problem in place, in one pass over its memory.

    Args:
        params: [P, T, D] embeddings, float32, bfloat16, float16 or float64, any strides; written.
            It may require grad.
        grad: [P, T, D] gradients, same dtype and device.
        state: moments and step counts from `EmbeddingState.zeros_like(params)`; written.
        lr: learning rate, 0 or more.
        active: bool [P]; a problem that is not active keeps params, moments and step count. None:
            all are active.
        frozen_tokens: bool [T] or [P, T]; a frozen token keeps params and moments, and does not
            decay. None: none is frozen.
        betas: decay rates of both moments, in [0, 1).
        eps: added to the root of the second moment, 0 or more.
        weight_decay: decoupled, as in AdamW; 0 is Adam.
        backend: "auto", or an implementation by name, which then answers or raises.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shape, dtype, device or a rate do not fit, memory to be written repeats
            (expanded), or the backend is unknown.
        RuntimeError: the backend asked for cannot serve; says why.

    Note:
        Equal to torch.optim.Adam (AdamW) run on each problem alone, up to rounding. Moments and
        arithmetic are in float32 (float64 for float64 params), also where params are narrower.
    """
    _check(params, grad, state)
    shape = params.shape
    _check_mask("active", active, params, [shape[:1]])
    _check_mask("frozen_tokens", frozen_tokens, params, [shape[1:2], shape[:2]])
    _check_rates(lr, betas, eps, weight_decay)
    written = (params, state.exp_avg, state.exp_avg_sq, state.step)
    rates = (float(lr), *map(float, betas), float(eps), float(weight_decay))
    compute = select(_OP, backend, params)
    compute(params, grad, *written[1:], active, frozen_tokens, *rates)
    if not torch.compiler.is_compiling():
        # Tells autograd that they have changed, in case another operation has kept one.
        torch.autograd.graph.increment_version(written)
