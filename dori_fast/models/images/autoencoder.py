"""A model's image autoencoder, opened at its first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dori_fast._checks import seed_tuple
from dori_fast.models.frozen import frozen
from dori_fast.models.images.convert import decode, encode
from dori_fast.models.images.kinds import class_and_config, require_autoencoder
from dori_fast.models.precision import fixed_precision


class Autoencoder:
    """A model's image autoencoder, opened at its first use.

    Args:
        load: function that returns the autoencoder, or None if the model has none.
        latent_channels: channels of the UNet's latents.
        xl: True for SDXL.
    """

    def __init__(self, load: Callable[[], Any], latent_channels: int, xl: bool) -> None:
        self._load, self._channels, self._xl = load, latent_channels, xl

    @property
    def optional(self) -> Any:
        """The module, or None if the model has none."""
        return self._load()

    @property
    def module(self) -> Any:
        """The module.

        Raises:
            UsageError: the model has none, or one whose images would not be the model's.
        """
        found = self.optional
        require_autoencoder(*class_and_config(found), self._channels, xl=self._xl)
        return found

    def require(self) -> None:
        """Raise UsageError as :attr:`module` does."""
        _ = self.module

    def decode(self, latents: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images [P, S, H, W, 3] of latents [P, S, C, h, w] of S seeds; see :func:`decode`."""
        prompts, flat, seeds = len(latents), latents.flatten(0, 1), seed_tuple(seeds)
        of_each = [*seeds] * prompts
        with fixed_precision(), frozen(self.module) as module:
            images = decode(module, flat, upcast=self._xl, seeds=of_each)
        return images.reshape(prompts, len(seeds), *images.shape[1:])

    def encode(self, images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Latents of images uint8 [N, H, W, 3]; see :func:`encode`."""
        with fixed_precision(), frozen(self.module) as module:
            return encode(module, images, device, dtype, upcast=self._xl)
