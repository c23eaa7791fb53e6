"""Masks of the weights that matter most for given prompts; pruning by them and undoing it.

Masks of several timesteps are united with `|`. O outputs, I inputs of a linear layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference.wanda_mask import wanda_mask_reference

__all__ = ["pack_mask", "prune_", "restore_", "unpack_mask", "wanda_mask"]


def _fake(weight: Tensor, act_norm: Tensor, base_act_norm: Tensor | None, count: int) -> Tensor:
    return weight.new_empty(weight.shape, dtype=torch.bool)


_OP = define_op(
    "wanda_mask",
    "(Tensor weight, Tensor act_norm, Tensor? base_act_norm, int count) -> Tensor",
    reference=wanda_mask_reference,
    fake=_fake,
    triton="dori_fast.triton_kernels.wanda_mask:wanda_mask_triton",
)


def _check_norm(name: str, norm: Tensor, weight: Tensor) -> None:
    op = "wanda_mask"
    _checks.floating_tensor(op, name, norm)
    if norm.shape != weight.shape[1:]:
        expected = f"[{weight.shape[1]}] for weight {_checks.shape_of(weight)}"
        _checks.reject(op, name, expected, _checks.shape_of(norm))
    _checks.same_device(op, name, norm, "weight", weight)


def _check(weight: Tensor, act_norm: Tensor, sparsity: float, base_act_norm: Tensor | None) -> None:
    op = "wanda_mask"
    _checks.floating_tensor(op, "weight", weight)
    if weight.dim() != 2:
        _checks.reject(op, "weight", "[O, I]", _checks.shape_of(weight))
    _check_norm("act_norm", act_norm, weight)
    if base_act_norm is not None:
        _check_norm("base_act_norm", base_act_norm, weight)
    if not 0.0 <= sparsity <= 1.0:
        _checks.reject(op, "sparsity", "in [0, 1]", sparsity)


def wanda_mask(
    weight: Tensor,
    act_norm: Tensor,
    sparsity: float,
    *,
    base_act_norm: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return the mask of the weights to prune: the most important ones of every row.

    Args:
        weight: [O, I] weight of a linear layer.
        act_norm: [I] norms of the layer's inputs on the target prompts, any floating dtype; only
            magnitudes count.
        sparsity: share of a row to prune, in [0, 1]; int(sparsity * I) weights, rounded down as in
            the released code.
        base_act_norm: [I] norms on the base prompts, any floating dtype. A weight is then pruned
            only if its target score exceeds its base score, so a row may lose fewer. Default: no
            comparison.
        backend: implementation; see `dori_fast.ops`.

    Returns:
        bool [O, I], True where a weight is to be pruned. No gradient.

    Note:
        Every backend selects exactly the same weights. Of equal scores the lowest column counts
        first. NaN ranks above infinity, as in torch.sort, but exceeds no base score.
    """
    _check(weight, act_norm, sparsity, base_act_norm)
    dtype = _checks.accumulate_dtype(weight.dtype)
    base = None if base_act_norm is None else base_act_norm.detach().to(dtype)
    compute = select(_OP, backend, weight)
    count = int(sparsity * weight.shape[1])
    mask: Tensor = compute(weight.detach(), act_norm.detach().to(dtype), base, count)
    return mask


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a mask into bits: bool [O, I] to uint8 [O, ceil(I / 8)], column 0 in the lowest bit.

    `|` unites packed masks as it unites masks.

    Raises:
        ValueError: mask is not bool [O, I].
    """
    if mask.dtype != torch.bool or mask.dim() != 2:
        _checks.reject("pack_mask", "mask", "bool [O, I]", f"{mask.dtype} {list(mask.shape)}")
    bits = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[1] % 8))
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits.unflatten(1, (-1, 8)) << places).sum(2, dtype=torch.uint8)


def unpack_mask(packed: Tensor, columns: int) -> Tensor:
    """Undo `pack_mask`: uint8 [O, ceil(I / 8)] to bool [O, I], where I is `columns`.

    Raises:
        ValueError: packed is not uint8 [O, ceil(I / 8)].
    """
    width = -(-columns // 8)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != width:
        expected = f"uint8 [O, {width}] for {columns} columns"
        _checks.reject("unpack_mask", "packed", expected, f"{packed.dtype} {list(packed.shape)}")
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(2) >> places) & 1
    return bits.flatten(1)[:, :columns].bool()


def _check_pruning(op: str, weight: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        expected = f"bool {_checks.shape_of(weight)}, as weight is"
        _checks.reject(op, "mask", expected, f"{mask.dtype} {_checks.shape_of(mask)}")
    _checks.same_device(op, "mask", mask, "weight", weight)


@torch.no_grad()
def prune_(weight: Tensor, mask: Tensor) -> Tensor:
    """Set the masked weights to 0 in place; `restore_` undoes it with the result.

    Args:
        weight: [O, I], any dtype, written.
        mask: bool [O, I], True where a weight is pruned.

    Returns:
        [K] the removed values, row by row, in the dtype of weight.

    Raises:
        ValueError: mask is not a bool tensor of weight's shape and device.
    """
    _check_pruning("prune_", weight, mask)
    removed = weight[mask]
    weight.masked_fill_(mask, 0)
    return removed


@torch.no_grad()
def restore_(weight: Tensor, mask: Tensor, removed: Tensor) -> None:
    """Put back the weights that `prune_` removed, bit for bit.

    Args:
        weight: [O, I], written.
        mask: bool [O, I], the mask given to `prune_`.
        removed: [K], the result of `prune_`.

    Raises:
        ValueError: mask does not fit weight, or removed does not fit mask.
    """
    _check_pruning("restore_", weight, mask)
    pruned = int(mask.sum())
    if removed.shape != (pruned,) or removed.dtype != weight.dtype:
        expected = f"{weight.dtype} [{pruned}], one value per pruned weight"
        _checks.reject("restore_", "removed", expected, f"{removed.dtype} {list(removed.shape)}")
    weight[mask] = removed
