"""The Denoiser: a diffusion model as a function from prompts and seeds to noise predictions."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.hung import why_not_files
from dori_fast.models.engine import batch
from dori_fast.models.engine.backbone import Backbone
from dori_fast.models.engine.batch import RecentLatents, Samples, SharedLatents
from dori_fast.models.engine.engine import Engine
from dori_fast.models.engine.execution import Execution
from dori_fast.models.engine.state import Timestep
from dori_fast.models.files.hashes import with_unet_weights
from dori_fast.models.images import Autoencoder
from dori_fast.models.masks import Masks, NeuronMask, WeightMask
from dori_fast.models.schedules.vp import DDIM_STEPS, Schedule, unit_noise
from dori_fast.models.text.conditions import TextCondition
from dori_fast.models.text.encoders import TextSide, TextSideXL


class Denoiser:
    """A frozen text-to-image diffusion model as a function from (condition, noise, t) to epsilon.

    Made by :func:`dori_fast.load`. Whichever sampler a pipeline came with, the Denoiser uses the
    variance-preserving parametrization of DDPM and DDIM with unit initial noise, and converts
    epsilon-, v- and sample-predictions to epsilon.

    Every evaluation of the network has the same shape, ``batch_size`` samples, the last one padded,
    so that on a CPU a prediction does not depend, to the bit, on order or neighbors in its batch.

    Attributes:
        unet: the network.
        schedule: noise schedule, prediction type and the DDIM update.
        autoencoder: decodes and encodes images; opened at its first use.
        engine: runs the network, counts its evaluations and shares its work.
        recipe: arguments of :func:`dori_fast.load`, or None if files do not describe the model.
        reading: sentences on what is read otherwise than by the model's own pipeline.
        image_size, latent_shape: (H, W) of the images in pixels, and (C, H, W) of one latent.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        text: TextSide | TextSideXL,
        schedule: Schedule,
        vae: Callable[[], Any],
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int | str,
        origin: dict[str, str | None],
        hashes: Callable[[], dict[str, str]],
        share: bool = True,
        execution: Execution | None = None,
        recipe: dict[str, Any] | None = None,
        reading: tuple[str, ...] = (),
    ) -> None:
        backbone.require_text(text.width, text.has_pooled)
        self.unet, self._text = backbone.network, text
        self.image_size, self.latent_shape = backbone.image_size, backbone.latent_shape
        self.device, self.dtype = device, dtype
        self.autoencoder = Autoencoder(vae, self.latent_shape[0], text.has_pooled)
        self._origin, self._hashes_at = origin, lru_cache(1)(lambda generation: hashes())
        self.schedule, self.recipe, self.reading = schedule, recipe, reading
        self.engine = Engine(backbone, batch_size, share, execution or Execution())
        self._masks: Masks | None = None
        self._shared = RecentLatents()
        # by batch size, as the shared noise is: another shape may differ in the last bits
        self._empty: dict[tuple[int, int], TextCondition] = {}
        # between calls, the caller may train a network of its own
        self._keeps = not backbone.borrowed

    @property
    def batch_size(self) -> int:
        """Samples per evaluation (the fixed, padded batch shape); at least 1."""
        return self.engine.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self.engine.batch_size = value

    @property
    def vae(self) -> Any:
        """The image autoencoder, loaded at first use; UsageError if there is no fitting one."""
        return self.autoencoder.module

    def config(self) -> dict[str, Any]:
        """Everything that scores depend on, as JSON: source, commit, dtype, device, file sha256."""
        return {
            **self._origin,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "prediction_type": self.schedule.prediction_type,
            "files": self._hashes_at(self.engine.generation if self._keeps else object()),
            "masks": self._masks and self._masks.sha256(),
        }

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
            UsageError: a prompt is not a ``str``, or the numbers of prompts and masks differ.
        """
        condition = self._text.encode(prompts, self.batch_size)
        self._check_one_mask_each(len(condition))
        return condition.one_row_each() if self._one_mask_each else condition

    def condition(self, embeddings: Tensor, pooled: Tensor | None = None) -> TextCondition:
        """Any embeddings [P, T, D] as a condition, through which epsilon carries gradients to them.

        An SDXL model needs ``pooled`` [P, E] as well.
        """
        width = self.engine.backbone.text_width
        if embeddings.ndim != 3 or embeddings.shape[-1] != width:
            raise UsageError(
                f"condition: embeddings must be [P, T, {width}], got {list(embeddings.shape)}"
            )
        if self._text.has_pooled != (pooled is not None):
            raise UsageError("condition: SDXL models need pooled embeddings, others take none")
        self._check_one_mask_each(len(embeddings))
        pooled = None if pooled is None else pooled.to(self.device, self.dtype)
        return TextCondition.of(embeddings.to(self.device, self.dtype), pooled)

    @property
    def unconditional(self) -> TextCondition:
        """The condition of the empty prompt, P = 1."""
        at = self.batch_size, torch.get_num_threads()  # the last bits depend on both
        if at not in self._empty or not self._keeps:
            self._empty[at] = self._text.empty(self.batch_size)
        return self._empty[at]

    def unconditional_for(self, condition: TextCondition) -> TextCondition:
        """The empty prompt in place of each of P prompts, under the same masks."""
        if not self._one_mask_each:
            return self.unconditional.repeat(len(condition))
        empty = self.unconditional.repeat(condition.unique.shape[0])
        return dataclasses.replace(empty.one_row_each(), index=condition.index)

    @property
    def layers(self) -> list[str]:
        """Names of the cross-attention modules, in the order in which the network runs them."""
        return self.engine.layers

    @property
    def masks(self) -> Masks | None:
        """The masks of this view, or None."""
        return self._masks

    def masked(self, mask: NeuronMask | WeightMask) -> Denoiser:
        """A view of this model with neurons or weights switched off; the model is unchanged.

        One mask (M = 1) applies to all prompts. With more, prompt i of every ``encode`` and
        ``condition`` has mask i, so there must be as many prompts as masks. Masks of a masked view
        are combined.

        Raises:
            UsageError: a layer or width does not fit, or the numbers of masks differ.
        """
        self.engine.check_mask(mask)
        view, masks = copy.copy(self), self._masks or Masks()
        view._masks, view._shared = masks.joined(mask, self.device), RecentLatents()
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
        """Initial latents [S, C, H, W] in model dtype, unit variance, the same for every prompt."""
        return unit_noise(seeds, self.latent_shape).to(self.device, self.dtype)

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
            timestep: index into ``alphas_cumprod``, or one for each latent: int64 [S] or [P, S].

        Returns:
            [P, S, C, H, W] in model dtype, or in float32 or wider after a conversion to epsilon.
            Carries gradients to the condition's embeddings if they require them.

        Raises:
            UsageError: epsilon does not depend on the network there; see
                ``schedule.require_epsilon``.
        """
        output = self.output(condition, latents, timestep)
        return self.schedule.epsilon(output, latents, timestep)

    def output(self, condition: TextCondition, latents: Tensor, timestep: Timestep) -> Tensor:
        """The network's outputs in model dtype; arguments and shapes as in :meth:`epsilon`."""
        outputs = self.engine.outputs(self.samples(condition, latents, timestep))
        return outputs.reshape(len(condition), latents.shape[-4], *self.latent_shape)

    def share(self, latents: Tensor, timestep: Timestep) -> SharedLatents:
        """Do the work on latents [S, C, H, W] that does not depend on the text, for all prompts."""
        batch.require_latents(latents, self.latent_shape)
        return self.engine.share(latents, batch.flat_timesteps(timestep, latents))

    def share_noise(self, seeds: Sequence[int], timestep: int) -> SharedLatents:
        """The initial noise of S seeds, shared by all prompts and kept for later calls."""
        at = self.engine.generation, self.batch_size, torch.get_num_threads()
        if not self._keeps:
            return self.share(self.noise(seeds), timestep)
        key = (*at, tuple(seeds), timestep)
        return self._shared.get(key, lambda: self.share(self.noise(seeds), timestep))

    def share_up_to(
        self, layer: int, condition: TextCondition, shared: SharedLatents
    ) -> SharedLatents:
        """Do the work before cross-attention ``layer`` for one prompt, for all its masks.

        Args:
            layer: number of the cross-attention, in the order of :attr:`layers`.
            condition: P = 1 prompt; the result serves this prompt only.
            shared: S latents.
        """
        if len(condition) != 1:
            raise UsageError(f"share_up_to: condition must be of 1 prompt, got {len(condition)}")
        return self.engine.advance(batch.all_pairs(condition, shared, self._masks), layer)

    def epsilon_shared(self, condition: TextCondition, shared: SharedLatents) -> Tensor:
        """Noise predictions [P, S, C, H, W] of P prompts on shared latents; see :meth:`epsilon`."""
        output = self.output_shared(condition, shared)
        return self.schedule.epsilon(output, shared.latents, shared.timestep)

    def output_shared(self, condition: TextCondition, shared: SharedLatents) -> Tensor:
        """The network's outputs [P, S, C, H, W] on shared latents; see :meth:`output`."""
        outputs = self.engine.outputs(batch.all_pairs(condition, shared, self._masks))
        return outputs.reshape(len(condition), len(shared), *self.latent_shape)

    def samples(self, condition: TextCondition, latents: Tensor, timestep: Timestep) -> Samples:
        """The P x S samples that :meth:`epsilon` evaluates for the same arguments."""
        batch.require_latents(latents, self.latent_shape)
        timestep = batch.flat_timesteps(timestep, latents)
        if latents.ndim == 5:
            return batch.own_latents(condition, latents, timestep, self._masks)
        return batch.all_pairs(condition, self.engine.share(latents, timestep), self._masks)

    def epsilon_uncond(self, condition: TextCondition, shared: SharedLatents) -> Tensor:
        """Unconditional noise predictions on shared latents; see :meth:`output_uncond`."""
        output = self.output_uncond(condition, shared)
        return self.schedule.epsilon(output, shared.latents, shared.timestep)

    def output_uncond(self, condition: TextCondition, shared: SharedLatents) -> Tensor:
        """Unconditional outputs on shared latents, for comparison with ``condition``'s.

        They depend on the latents alone, so they are computed once and kept: [S, C, H, W]. If each
        prompt has its own mask, each has its own outputs: [P, S, C, H, W].
        """
        if self._one_mask_each:
            return self.output_shared(self.unconditional_for(condition), shared)
        if shared.uncond is None or shared.generation != self.engine.generation:
            shared.uncond = self.output_shared(self.unconditional, shared)[0]
        return shared.uncond

    @torch.no_grad()
    def generate(
        self,
        condition: TextCondition,
        seeds: Sequence[int],
        *,
        steps: int = DDIM_STEPS,
        guidance: float = 7.5,
    ) -> Tensor:
        """Draw images: uint8 [P, S, H, W, 3] on the CPU, by DDIM with ``steps`` steps.

        Raises UsageError without a fitting autoencoder, NonFiniteError for NaN or Inf.
        """
        self.autoencoder.require()
        empty, noise = self.unconditional_for(condition), self.noise(seeds)
        estimate = self.schedule.estimate
        latents = self.schedule.denoise(
            lambda x, t: estimate(self.output(condition, x, t), x, t),
            lambda x, t: estimate(self.output(empty, x, t), x, t),
            noise.expand(len(condition), *noise.shape),
            steps=steps,
            guidance=guidance,
        )
        return self.autoencoder.decode(latents, seeds)

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Latents [N, C, h, w] of images, uint8 [N, H, W, 3]; raises as :meth:`generate`."""
        return self.autoencoder.encode(images, self.device, self.dtype)

    def copy(self) -> Denoiser:
        """A Denoiser with its own copy of the network; everything else is shared.

        After writes to its weights through ``.data``, call ``copy.engine.weights_changed()``.
        """
        own = copy.copy(self)
        own.engine, own.recipe, own._shared = self.engine.copy(), None, RecentLatents()
        own.unet = own.engine.backbone.network
        own._origin = {**self._origin, "source": f"weights changed after {self._origin['source']}"}
        own._hashes_at = lru_cache(1)(lambda _: with_unet_weights(self.config()["files"], own.unet))
        return own

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write safetensors that a stock pipeline (by DDIM) and ``df.load`` open.

        Raises:
            UsageError: masks, adapters or replaced code, which such a directory cannot hold.
        """
        masks = "this view has masks; save those, or put them into a pipeline with df.prune.apply_"
        reason = why_not_files(self.unet) if self._masks is None else masks
        if reason is not None:
            raise UsageError(f"save_pretrained: {reason}")
        networks = {"vae": self.autoencoder.optional, "unet": self.unet}
        pipe = self._text.pipeline(**networks, scheduler=self.schedule.sampler)
        pipe.save_pretrained(os.fspath(directory), safe_serialization=True)
