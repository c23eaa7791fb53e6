"""Statistics of each neuron over all samples and tokens, in one read of the activations.

R rows (all leading axes), N neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dori_fast import _checks
from dori_fast._backend import select
from dori_fast._library import define_op
from dori_fast.reference.activation_stats import activation_stats_reference

__all__ = ["ActivationStats", "activation_stats"]


def _fake(x: Tensor) -> Tensor:
    return x.new_empty((5, x.shape[1]), dtype=torch.float64)


_OP = define_op(
    "activation_stats",
    "(Tensor x) -> Tensor",
    reference=activation_stats_reference,
    fake=_fake,
    triton="dori_fast.triton_kernels.activation_stats:activation_stats_triton",
)


@dataclass(frozen=True)
class ActivationStats:
    """Statistics of N neurons over `count` rows; merging keeps the count exact.

    Attributes:
        count: number of rows, a Python int without limit.
        mean: float64 [N], means.
        m2: float64 [N], sums of squared deviations from the mean.
        abs_mean: float64 [N], means of magnitudes.
        abs_max: float64 [N], largest magnitudes.
        sum_sq: float64 [N], sums of squares.

    All are 0 where `count` is 0. A NaN in the activations of a neuron makes all of its statistics
    NaN.
    """

    count: int
    mean: Tensor
    m2: Tensor
    abs_mean: Tensor
    abs_max: Tensor
    sum_sq: Tensor

    def merge(self, other: ActivationStats) -> ActivationStats:
        """Return the statistics of both sets of rows together.

        They equal the statistics of the concatenated rows up to rounding (Chan, Golub and LeVeque,
        "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).

        Raises:
            ValueError: the number of neurons or the device differs.
        """
        if self.mean.shape != other.mean.shape:
            expected = f"of {self.mean.shape[0]} neurons"
            _checks.reject("ActivationStats.merge", "other", expected, other.mean.shape[0])
        _checks.same_device("ActivationStats.merge", "other", other.mean, "self", self.mean)
        count = self.count + other.count
        share, other_share = self.count / max(1, count), other.count / max(1, count)
        # an int64 tensor would overflow; Python's product is exact
        between = self.count * other.count / max(1, count)
        return ActivationStats(
            count=count,
            mean=share * self.mean + other_share * other.mean,
            m2=self.m2 + other.m2 + between * (other.mean - self.mean).square(),
            abs_mean=share * self.abs_mean + other_share * other.abs_mean,
            abs_max=torch.maximum(self.abs_max, other.abs_max),
            sum_sq=self.sum_sq + other.sum_sq,
        )

    def std(self, unbiased: bool = True) -> Tensor:
        """Return the standard deviation, float64 [N]; NaN with too few rows.

        Args:
            unbiased: divisor `count - 1` instead of `count`; default True.
        """
        degrees = self.count - 1 if unbiased else self.count
        variance = self.m2 / degrees if degrees > 0 else torch.full_like(self.m2, torch.nan)
        return variance.sqrt()

    def to(self, device: torch.device | str) -> ActivationStats:
        """Return the statistics on another device."""
        fields = (self.mean, self.m2, self.abs_mean, self.abs_max, self.sum_sq)
        return ActivationStats(self.count, *(field.to(device) for field in fields))


def activation_stats(x: Tensor, *, backend: str = "auto") -> ActivationStats:
    """Return the statistics of each neuron over all other axes, reading x once.

    Args:
        x: [*, N] activations, at least one axis; copied if one stride cannot walk the leading axes.
        backend: implementation; see `dori_fast.ops`.

    Returns:
        Statistics over the R rows, on the device of x; not differentiable.

    Note:
        Sums are in float64. Deviations are taken from the mean of a block of rows before blocks are
        merged, so m2 keeps its digits however large the mean is. A neuron's result does not depend
        on the other neurons.
    """
    _checks.floating_tensor("activation_stats", "x", x)
    if x.dim() == 0:
        _checks.reject("activation_stats", "x", "[*, N]", _checks.shape_of(x))
    # not -1, which is ambiguous where N is 0
    rows = x.shape[:-1].numel()
    flat = x.detach().reshape(rows, x.shape[-1])
    mean, m2, abs_mean, abs_max, sum_sq = select(_OP, backend, x)(flat).unbind()
    return ActivationStats(rows, mean, m2, abs_mean, abs_max, sum_sq)
