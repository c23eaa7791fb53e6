"""What a network predicts, brought to one form: the noise epsilon.

With x_t = sqrt(a) x_0 + sqrt(1 - a) eps, where a is the cumulative alpha at t (Ho et al., 2020,
arXiv 2006.11239; v from Salimans & Ho, 2022, arXiv 2202.00512):

    epsilon       eps = output
    v_prediction  eps = sqrt(a) output + sqrt(1 - a) x_t
    sample        eps = (x_t - sqrt(a) output) / sqrt(1 - a)
"""

from __future__ import annotations

from torch import Tensor

KINDS = ("epsilon", "v_prediction", "sample")


def to_epsilon(output: Tensor, x_t: Tensor, alpha_bar: float, kind: str) -> Tensor:
    """Epsilon [N, *] from the network's output [N, *] at x_t [N, *].

    An epsilon model's output is returned as it is. The other two are computed in float32 or wider,
    since the methods take small differences of the result.
    """
    if kind == "epsilon":
        return output
    signal, noise = alpha_bar**0.5, (1.0 - alpha_bar) ** 0.5
    wide = output.float() if output.dtype.itemsize < 4 else output
    x_t = x_t.to(wide.dtype)
    if kind == "v_prediction":
        return signal * wide + noise * x_t
    return (x_t - signal * wide) / noise


def ddim_step(eps: Tensor, x_t: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    """The deterministic DDIM update (eta 0; Song et al., 2021, arXiv 2010.02502, equation 12).

    x_0 = (x_t - sqrt(1 - a) eps) / sqrt(a), then x_prev = sqrt(a') x_0 + sqrt(1 - a') eps.
    """
    x_0 = (x_t - (1.0 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return alpha_bar_prev**0.5 * x_0 + (1.0 - alpha_bar_prev) ** 0.5 * eps
