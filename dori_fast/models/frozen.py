"""Networks of a caller, frozen while they are evaluated and left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode and without gradients to its weights, as it was at exit."""
    training = [module for module in network.modules() if module.training]
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    for module in training:
        module.training = False
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield network
    finally:
        for module in training:
            module.training = True
        for weight in trained:
            weight.requires_grad_(True)
