"""What a network predicts, brought to one form: the noise epsilon.

With x_t = sqrt(a) x_0 + sqrt(1 - a) eps, where a is the cumulative alpha at t (Ho et al., 2020,
arXiv 2006.11239; v from Salimans & Ho, 2022, arXiv 2202.00512):

    epsilon       eps = output
    v_prediction  eps = sqrt(a) output + sqrt(1 - a) x_t
    sample        eps = (x_t - sqrt(a) output) / sqrt(1 - a)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

KINDS = ("epsilon", "v_prediction", "sample")


def to_epsilon(output: Tensor, x_t: Tensor, alpha_bar: float | Tensor, kind: str) -> Tensor:
    """Epsilon [N, *] from the network's output [N, *] at x_t [N, *].

    ``alpha_bar`` is one for all samples, or float64 and of a shape that broadcasts to theirs.
    An epsilon model's output is returned as it is. The other two are computed in float32 or wider,
    since the methods take small differences of the result.
    """
    if kind == "epsilon":
        return output
    wide = output.float() if output.dtype.itemsize < 4 else output
    x_t = x_t.to(wide.dtype)
    signal, noise = _amplitudes(alpha_bar, wide.dtype)
    if kind == "v_prediction":
        return signal * wide + noise * x_t
    return (x_t - signal * wide) / noise


def target(x_0: Tensor, eps: Tensor, alpha_bar: Tensor, kind: str) -> Tensor:
    """What the network was trained to answer at x_t of clean x_0 and noise eps, all [N, *].

    ``alpha_bar`` is float64 and of a shape that broadcasts to theirs. In the dtype of eps.
    """
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x_0
    wide = torch.float32 if eps.dtype.itemsize < 4 else eps.dtype
    signal, noise = _amplitudes(alpha_bar, wide)
    return (signal * eps - noise * x_0).to(eps.dtype)


def _amplitudes(alpha_bar: float | Tensor, dtype: torch.dtype) -> tuple[Any, Any]:
    """sqrt(a) and sqrt(1 - a), rounded once to ``dtype`` where they are tensors."""
    signal, noise = alpha_bar**0.5, (1.0 - alpha_bar) ** 0.5
    if isinstance(signal, Tensor) and isinstance(noise, Tensor):
        return signal.to(dtype), noise.to(dtype)
    return signal, noise


def ddim_step(eps: Tensor, x_t: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    """The deterministic DDIM update (eta 0; Song et al., 2021, arXiv 2010.02502, equation 12).

    x_0 = (x_t - sqrt(1 - a) eps) / sqrt(a), then x_prev = sqrt(a') x_0 + sqrt(1 - a') eps.
    """
    x_0 = (x_t - (1.0 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return alpha_bar_prev**0.5 * x_0 + (1.0 - alpha_bar_prev) ** 0.5 * eps
