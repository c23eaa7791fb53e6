"""A test of networks with foreign code: is a sample's output a function of that sample alone?

Step caches answer from an earlier call. Attention control, cross-frame attention and perturbed
guidance mix the samples of a batch. Scores of such a network would depend on which prompts happen
to be in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.engine.memory import out_of_memory

Evaluate = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A network's outputs [N, *] for latents [N, *], texts [N, *] and pooled texts."""


def require_by_sample(evaluate: Evaluate, like: tuple[Tensor, Tensor, Any], why: str) -> None:
    """Check that outputs do not depend on neighbors in a batch, places in it or earlier calls.

    Two batches of random numbers have some samples in common, in other places and in reverse order.
    Their outputs must agree to half of the dtype's digits: batches of one shape round alike, and
    what is computed from other samples agrees in no digit. A network that changes its ways after
    many calls passes.

    Args:
        evaluate: the network, in evaluation mode.
        like: latents, texts and pooled texts (or None) of the batches that will follow.
        why: the foreign code.

    Raises:
        UsageError: they do depend on something else, or the network fails on such batches.
    """
    samples = max(2, len(like[0]))
    kept = samples // 2
    first, second = _batches(like, samples, kept)
    try:
        with torch.no_grad():
            one, other = evaluate(*first), evaluate(*second)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(
            f"the network with {why} fails on a batch of {samples} different prompts"
            f" ({type(error).__name__}: {reason}); remove that first, and load the model again"
        ) from error
    expected, found = one[:kept].double(), other[samples - kept :].flip(0).double()
    allowed = torch.finfo(one.dtype).eps ** 0.5 * expected.abs().max()
    # a comparison with NaN is false
    if not (found - expected).abs().max() <= allowed:
        raise UsageError(
            f"the network with {why} gives a sample another output beside other samples or after"
            " other calls, so its scores would mean nothing; remove that first, and load the model"
            " again"
        )


def _batches(like: tuple[Tensor, Tensor, Any], samples: int, kept: int) -> Any:
    """Two batches of random inputs; the first samples of one are the last of the other."""
    generator = torch.Generator().manual_seed(0)
    batches: list[list[Tensor | None]] = [[], []]
    for tensor in like:
        if tensor is None:
            one = other = None
        else:
            shape = 2 * samples - kept, *tensor.shape[1:]
            drawn = torch.randn(shape, generator=generator).to(tensor)
            one, other = drawn[:samples], torch.cat([drawn[samples:], drawn[:kept].flip(0)])
        batches[0].append(one)
        batches[1].append(other)
    return batches
