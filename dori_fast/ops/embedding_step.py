"""One Adam step on many independent embeddings, each with its own step count.

P problems, T tokens, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op, mark_written
from dori_fast.reference.embedding_step import embedding_step_reference

__all__ = ["EmbeddingState", "embedding_step"]


def _fake(*arguments: Any) -> None:
    return None


_OP = define_op(
    "embedding_step",
    "(Tensor(a!) params, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) step,"
    " Tensor? active, Tensor? frozen, float lr, float beta1, float beta2, float eps,"
    " float weight_decay) -> ()",
    reference=embedding_step_reference,
    fake=_fake,
    triton="dori_fast.triton_kernels.embedding_step:embedding_step_triton",
)


@dataclass(frozen=True)
class EmbeddingState:
    """State of Adam for P problems; every step writes it.

    Attributes:
        exp_avg: [P, T, D] first moment, float32 (float64 for float64 params).
        exp_avg_sq: [P, T, D] second moment, same dtype.
        step: int64 [P], steps taken by each problem.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor

    @classmethod
    def zeros_like(cls, params: Tensor) -> EmbeddingState:
        """Return the state before the first step of params [P, T, D]."""
        _check_params(params)
        dtype = _checks.accumulate_dtype(params.dtype)
        return cls(
            exp_avg=torch.zeros(params.shape, dtype=dtype, device=params.device),
            exp_avg_sq=torch.zeros(params.shape, dtype=dtype, device=params.device),
            step=torch.zeros(params.shape[0], dtype=torch.int64, device=params.device),
        )

    def take(self, rows: Tensor) -> EmbeddingState:
        """Return a copy of the state of the problems with indices int64 [A]."""
        rows = rows.to(self.step.device)
        return EmbeddingState(self.exp_avg[rows], self.exp_avg_sq[rows], self.step[rows])


def _check_params(params: Tensor) -> None:
    op = "embedding_step"
    _checks.floating_tensor(op, "params", params)
    if params.dim() != 3:
        _checks.reject(op, "params", "[P, T, D]", _checks.shape_of(params))


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
    wide = _checks.accumulate_dtype(params.dtype)
    _check_like("grad", grad, params, params.dtype)
    _check_like("state.exp_avg", state.exp_avg, params, wide)
    _check_like("state.exp_avg_sq", state.exp_avg_sq, params, wide)
    if state.step.dtype != torch.int64 or state.step.shape != params.shape[:1]:
        got = f"{state.step.dtype} {_checks.shape_of(state.step)}"
        _checks.reject("embedding_step", "state.step", f"int64 [{params.shape[0]}]", got)
    _checks.same_device("embedding_step", "state.step", state.step, "params", params)
    _checks.writable("embedding_step", "params", params)
    for name in ("exp_avg", "exp_avg_sq", "step"):
        _checks.writable("embedding_step", f"state.{name}", getattr(state, name))


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

    The result equals torch.optim.Adam (AdamW) run on each problem alone, up to rounding.

    Args:
        params: [P, T, D] embeddings, written; they may require grad.
        grad: [P, T, D] gradients.
        state: moments and step counts from `EmbeddingState.zeros_like(params)`, written.
        lr: learning rate, 0 or more.
        active: bool [P]; an inactive problem keeps params, moments and step count. Default: all
            are active.
        frozen_tokens: bool [T] or [P, T]; a frozen token keeps params and moments and does not
            decay. Default: none.
        betas: decay rates of both moments, in [0, 1).
        eps: term added to the root of the second moment, 0 or more.
        weight_decay: decoupled weight decay, as in AdamW; 0 is Adam.
        backend: implementation; see `dori_fast.ops`.

    Raises:
        ValueError: params or the state is expanded, so that a write would be repeated.
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
    mark_written(*written)
