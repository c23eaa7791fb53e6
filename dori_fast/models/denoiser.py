"""The Denoiser: prompts and seeds in, noise predictions out, every shared piece of work once."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models import images
from dori_fast.models import save as saving
from dori_fast.models.backbones.unet.recognize import require_denoiser
from dori_fast.models.engine.batch import (
    Samples,
    SharedLatents,
    all_pairs,
    flat_timesteps,
    own_latents,
)
from dori_fast.models.engine.engine import Engine
from dori_fast.models.engine.execution import Execution
from dori_fast.models.engine.state import Timestep
from dori_fast.models.masks import Masks, NeuronMask, WeightMask
from dori_fast.models.schedules.sampling import denoise
from dori_fast.models.schedules.vp import Schedule
from dori_fast.models.text.conditions import TextCondition
from dori_fast.models.text.encoders import TextSide, TextSideXL

_SHARED_NOISES_KEPT = 16


class Denoiser:
    """A frozen text-to-image diffusion model as a function from (condition, noise, t) to epsilon.

    Made by :func:`dori_fast.load`. Whatever sampler a pipeline came with, the Denoiser works in
    the variance-preserving parametrization of DDPM and DDIM with unit initial noise, and epsilon,
    v and sample predictions are all turned into epsilon.

    Every evaluation of the UNet has the same shape, ``batch_size`` samples, the last one padded:
    a prediction therefore does not depend, to the bit, on order or on the neighbors in its batch.

    Attributes:
        schedule: noise schedule, prediction type and the DDIM update.
        engine: what runs the UNet; it knows the evaluations so far and what it shares.
        recipe: arguments of :func:`dori_fast.load`, if files say all; see ``models.recipe``.
        picture_size: (H, W) of the pictures that it draws.
    """

    def __init__(
        self,
        *,
        unet: Any,
        text: TextSide | TextSideXL,
        scheduler_config: dict[str, Any],
        vae: Callable[[], Any],
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int | str,
        picture_size: tuple[int, int],
        origin: dict[str, str | None],
        hashes: Callable[[], dict[str, str]],
        share: bool = True,
        execution: Execution | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        require_denoiser(unet, text)
        self.unet, self._text = unet, text
        self.device, self.dtype = device, dtype
        self._load_vae, self._load_hashes = vae, hashes
        self._origin, self.recipe = origin, recipe
        self.schedule = Schedule(scheduler_config)
        self.picture_size = picture_size
        self.engine = Engine(unet, batch_size, share, execution or Execution(), picture_size)
        self._masks: Masks | None = None
        self._shared: OrderedDict[tuple[Any, ...], SharedLatents] = OrderedDict()

    @property
    def batch_size(self) -> int:
        """UNet samples per evaluation (the fixed, padded batch shape); at least 1."""
        return self.engine.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.engine.batch_size = value
        # what was computed in another shape may differ in the last bits
        self._shared.clear()
        self.__dict__.pop("unconditional", None)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @cached_property
    def vae(self) -> Any:
        """The image autoencoder, read when an image is first asked for."""
        return self._load_vae().eval().requires_grad_(False)

    def config(self) -> dict[str, Any]:
        """What scores depend on, as plain JSON: source, commit, dtype, device, file sha256."""
        return {
            **self._origin,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "prediction_type": self.schedule.prediction_type,
            "files": self._hashes,
            "masks": self._masks and self._masks.sha256(),
        }

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return self._load_hashes()

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._text.tokenizer

    @property
    def text_encoder(self) -> Any:
        """The model's frozen text encoder."""
        return self._text.text_encoder

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """All token ids of each prompt, before truncation. Equal ids give equal scores."""
        return self._text.token_ids(prompts)

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Encode prompts as the model's own pipeline does; equal token sequences are encoded once.

        Raises:
            UsageError: a prompt is not a ``str``, or there is not one prompt for each mask.
        """
        condition = self._text.encode(prompts, self.batch_size)
        if self._one_mask_each:
            self._check_one_mask_each(len(condition))
            condition = condition.one_row_each()
        return condition

    def condition(self, embeddings: Tensor, pooled: Tensor | None = None) -> TextCondition:
        """Any embeddings [P, T, D] as a condition; epsilon of it carries gradients to them.

        An SDXL model needs ``pooled`` [P, E] as well.
        """
        width = self.unet.config.cross_attention_dim
        if embeddings.ndim != 3 or embeddings.shape[-1] != width:
            raise UsageError(
                f"condition: embeddings must be [P, T, {width}], got {list(embeddings.shape)}"
            )
        n = embeddings.shape[0]
        if self._text.has_pooled != (pooled is not None):
            raise UsageError("condition: pooled embeddings are for SDXL models, which need them")
        self._check_one_mask_each(n)
        return TextCondition(
            unique=embeddings.to(self.device, self.dtype),
            index=torch.arange(n),
            n_tokens=torch.full((n,), embeddings.shape[1]),
            truncated=torch.zeros(n, dtype=torch.bool),
            pooled=None if pooled is None else pooled.to(self.device, self.dtype),
        )

    @cached_property
    def unconditional(self) -> TextCondition:
        """The condition of the empty prompt, P = 1."""
        return self._text.empty(self.batch_size)

    def unconditional_for(self, condition: TextCondition) -> TextCondition:
        """The empty prompt in the place of each of P prompts, under the masks of theirs."""
        if not self._one_mask_each:
            return self.unconditional.repeat(len(condition))
        empty = self.unconditional.repeat(condition.unique.shape[0])
        return dataclasses.replace(empty.one_row_each(), index=condition.index)

    @property
    def layers(self) -> list[str]:
        """Names of the cross-attention modules, in the order in which the UNet runs them."""
        return self.engine.layers

    @property
    def masks(self) -> Masks | None:
        """The masks of this view, or None."""
        return self._masks

    def masked(self, mask: NeuronMask | WeightMask) -> Denoiser:
        """A view of this model with neurons or weights switched off; nothing is changed.

        With one mask (M = 1) all prompts have it. With more, prompt i of every ``encode`` and
        ``condition`` has mask i, so there must be as many prompts as masks. Masks of a view add
        up with those that it has already.

        Raises:
            UsageError: a layer or width does not fit, or the numbers of masks do not.
        """
        self.engine.check_mask(mask)
        view = copy.copy(self)
        view._masks, view._shared = (self._masks or Masks()).joined(mask), OrderedDict()
        return view

    @property
    def _one_mask_each(self) -> bool:
        return self._masks is not None and len(self._masks) > 1

    def _check_one_mask_each(self, prompts: int) -> None:
        if self._masks is not None and len(self._masks) not in (1, prompts):
            raise UsageError(
                f"this model has {len(self._masks)} masks, one per prompt, got {prompts} prompts"
            )

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Initial latents [S, C, H, W] in model dtype, unit variance.

        Each is drawn on the CPU in float32 from its own seed: the same on every device, and the
        same for every prompt, so that whatever depends on (seed, timestep) alone is shared.
        """
        draws = [
            torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(int(seed)))
            for seed in seeds
        ]
        stacked = torch.stack(draws) if draws else torch.zeros(0, *self.latent_shape)
        return stacked.to(self.device, self.dtype)

    def timesteps(self, steps: int) -> list[int]:
        """The DDIM timesteps of a run of ``steps`` steps, noisiest first."""
        return self.schedule.timesteps(steps)

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.schedule.alphas_cumprod

    def epsilon(self, condition: TextCondition, latents: Tensor, timestep: Timestep) -> Tensor:
        """Noise predictions of P prompts on S latents.

        Args:
            condition: P prompts.
            latents: [S, C, H, W], shared by all prompts, or [P, S, C, H, W].
            timestep: index into ``alphas_cumprod``, or each latent's own: int64 [S] or [P, S].

        Returns:
            [P, S, C, H, W]; model dtype for an epsilon model, else float32 or wider. Carries
            gradients to the condition's embeddings if they require them.
        """
        eps = self._evaluate(self.samples(condition, latents, timestep))
        return eps.reshape(len(condition), latents.shape[-4], *self.latent_shape)

    def share(self, latents: Tensor, timestep: Timestep) -> SharedLatents:
        """Do for latents [S, C, H, W] what does not depend on the text, once for all prompts."""
        self._check_latents(latents)
        return self.engine.share(latents, flat_timesteps(timestep, latents))

    def share_noise(self, seeds: Sequence[int], timestep: int) -> SharedLatents:
        """The initial noise of S seeds, shared by all prompts; kept for the next call."""
        key = (self.engine.generation, tuple(seeds), timestep)
        if key not in self._shared:
            self._shared[key] = self.share(self.noise(seeds), timestep)
        self._shared.move_to_end(key)
        if len(self._shared) > _SHARED_NOISES_KEPT:
            self._shared.popitem(last=False)
        return self._shared[key]

    def share_up_to(
        self, layer: int, condition: TextCondition, shared: SharedLatents
    ) -> SharedLatents:
        """Do for one prompt what lies before cross-attention ``layer``, once for all its masks.

        Args:
            layer: number of the cross-attention, in the order of :attr:`layers`.
            condition: P = 1 prompt; the result serves this prompt alone.
            shared: S latents.
        """
        if len(condition) != 1:
            raise UsageError(f"share_up_to: condition must be of 1 prompt, got {len(condition)}")
        return self.engine.advance(all_pairs(condition, shared, self._masks), layer)

    def epsilon_shared(self, condition: TextCondition, shared: SharedLatents) -> Tensor:
        """Noise predictions [P, S, C, H, W] of P prompts on shared latents; see :meth:`epsilon`."""
        eps = self._evaluate(all_pairs(condition, shared, self._masks))
        return eps.reshape(len(condition), len(shared), *self.latent_shape)

    def samples(self, condition: TextCondition, latents: Tensor, timestep: Timestep) -> Samples:
        """The samples that :meth:`epsilon` of the same arguments evaluates, P x S of them."""
        self._check_latents(latents)
        timestep = flat_timesteps(timestep, latents)
        if latents.ndim == 5:
            return own_latents(condition, latents, timestep, self._masks)
        return all_pairs(condition, self.engine.share(latents, timestep), self._masks)

    def _check_latents(self, latents: Tensor) -> None:
        if latents.shape[-3:] != self.latent_shape or latents.ndim not in (4, 5):
            shape = ", ".join(map(str, self.latent_shape))
            found = list(latents.shape)
            raise UsageError(f"latents must be [S, {shape}] or [P, S, {shape}], got {found}")

    def _evaluate(self, samples: Samples) -> Tensor:
        """Epsilon [N, C, H, W] of N samples."""
        output = self.engine.outputs(samples)
        shared, which = samples.shared, samples.which
        x_t = shared.latents[which.to(self.device)]
        return self.schedule.epsilon(output, x_t, shared.timestep_of(which))

    def epsilon_uncond(self, condition: TextCondition, shared: SharedLatents) -> Tensor:
        """Unconditional predictions on shared latents, to compare those of ``condition`` with.

        They depend on the latents alone, so they are computed once and kept: [S, C, H, W]. Only
        where each prompt has a mask of its own are they the prompts' own: [P, S, C, H, W].
        """
        if self._one_mask_each:
            return self.epsilon_shared(self.unconditional_for(condition), shared)
        if shared.uncond is None:
            shared.uncond = self.epsilon_shared(self.unconditional, shared)[0]
        return shared.uncond

    @torch.no_grad()
    def generate(
        self,
        condition: TextCondition,
        seeds: Sequence[int],
        *,
        steps: int = 50,
        guidance: float = 7.5,
    ) -> Tensor:
        """Draw images: uint8 [P, S, H, W, 3] on the CPU, by DDIM with ``steps`` steps."""
        noise = self.noise(seeds)
        latents = noise.expand(len(condition), *noise.shape)
        latents = denoise(self, condition, latents, steps=steps, guidance=guidance)
        pictures = images.decode(self.vae, latents.flatten(0, 1), self.batch_size)
        return pictures.reshape(len(condition), len(seeds), *pictures.shape[1:])

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """The clean latents [N, C, h, w] of images, uint8 [N, H, W, 3] (posterior mean, scaled)."""
        return images.encode(self.vae, pictures, self.device, self.dtype)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write a diffusers directory; see :func:`dori_fast.models.save.save_pretrained`."""
        saving.save_pretrained(self, directory)
