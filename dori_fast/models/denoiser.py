"""The Denoiser: prompts and seeds in, noise predictions out, every shared piece of work once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models import images
from dori_fast.models.prediction import KINDS, ddim_step, to_epsilon
from dori_fast.models.text import TextCondition, encode_rows, pad_rows, tokenize

# above this size one sample already keeps a CPU busy, so a padded batch would only cost latency
_LARGE_MODEL_PARAMETERS = 50_000_000
_UNCOND_CACHE_ENTRIES = 4096


class Denoiser:
    """A frozen text-to-image diffusion model as a function from (condition, noise, t) to epsilon.

    Made by :func:`dori_fast.load`. Whatever sampler a pipeline came with, the Denoiser works in
    the variance-preserving parametrisation of DDPM and DDIM with unit initial noise, and epsilon,
    v and sample predictions are all turned into epsilon.

    Every evaluation of the UNet has the same shape, ``batch_size`` samples, the last one padded:
    a prediction therefore does not depend, to the bit, on order or on the neighbours in its batch.
    """

    def __init__(
        self,
        *,
        unet: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler_config: dict[str, Any],
        vae: Callable[[], Any],
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int | str,
        origin: dict[str, str | None],
        weight_hashes: Callable[[], dict[str, str]],
    ) -> None:
        _refuse_unknown_architecture(unet, text_encoder)
        from diffusers import DDIMScheduler

        self.unet = unet.to(device).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self._load_vae = vae
        self._origin = origin
        self._weight_hashes = weight_hashes
        # the config's own keys keep their meaning, whichever sampler wrote them; thresholding and
        # clipping are samplers' options that the plain DDIM update below does not have
        self._scheduler = DDIMScheduler.from_config(
            {**scheduler_config, "clip_sample": False, "thresholding": False}
        )
        self.prediction_type = self._scheduler.config.prediction_type
        if self.prediction_type not in KINDS:
            raise UsageError(
                f"load: prediction_type {self.prediction_type!r} is not one of {', '.join(KINDS)}"
            )
        self.alphas_cumprod: Tensor = self._scheduler.alphas_cumprod.double()
        self.batch_size = self._auto_batch_size() if batch_size == "auto" else int(batch_size)
        self._uncond: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def _auto_batch_size(self) -> int:
        """UNet samples per evaluation: a function of model and device only, never of the load."""
        parameters = sum(p.numel() for p in self.unet.parameters())
        if self.device.type == "cpu":
            return 4 if parameters > _LARGE_MODEL_PARAMETERS else 32
        return 64

    @property
    def batch_size(self) -> int:
        """UNet samples per evaluation (the fixed, padded batch shape)."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        if value < 1:
            raise UsageError(f"batch_size must be at least 1, got {value}")
        self._batch_size = value

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

    def describe(self) -> dict[str, Any]:
        """What the scores depend on, as plain JSON: source, commit, dtype, device, weight sha256."""
        return {
            **self._origin,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "prediction_type": self.prediction_type,
            "weights": self._hashes,
        }

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return self._weight_hashes()

    # -- text ---------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Encode prompts as the model's own pipeline does; equal token sequences are encoded once.

        Raises:
            UsageError: a prompt is not a ``str``.
        """
        for position, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise UsageError(
                    f"encode: prompt {position} must be a str, got {type(prompt).__name__}"
                )
        tokens = tokenize(self.tokenizer, prompts)
        unique = encode_rows(
            self.text_encoder, tokens, self.tokenizer.pad_token_id, self.batch_size
        )
        return TextCondition(
            unique=unique,
            index=tokens.index.to(self.device),
            n_tokens=tokens.n_tokens,
            truncated=tokens.n_tokens > tokens.context,
        )

    def condition(self, embeddings: Tensor) -> TextCondition:
        """Any embeddings [P, T, D] as a condition; epsilon of it carries gradients to them."""
        width = self.unet.config.cross_attention_dim
        if embeddings.ndim != 3 or embeddings.shape[-1] != width:
            raise UsageError(
                f"condition: embeddings must be [P, T, {width}], got {list(embeddings.shape)}"
            )
        n = embeddings.shape[0]
        return TextCondition(
            unique=embeddings.to(self.device, self.dtype),
            index=torch.arange(n, device=self.device),
            n_tokens=torch.full((n,), embeddings.shape[1]),
            truncated=torch.zeros(n, dtype=torch.bool),
        )

    @cached_property
    def unconditional(self) -> TextCondition:
        """The condition of the empty prompt, P = 1."""
        return self.encode([""])

    # -- noise and schedule -------------------------------------------------------------------

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
        self._scheduler.set_timesteps(steps)
        return [int(t) for t in self._scheduler.timesteps]

    def alpha_bar(self, timestep: int) -> float:
        """Cumulative alpha at a timestep; a negative one means the end of the chain."""
        if timestep < 0:
            return float(self._scheduler.final_alpha_cumprod)
        return float(self.alphas_cumprod[timestep])

    # -- noise predictions --------------------------------------------------------------------

    def epsilon(self, condition: TextCondition, latents: Tensor, timestep: int) -> Tensor:
        """Noise predictions of P prompts on S latents.

        Args:
            condition: P prompts.
            latents: [S, C, H, W], shared by all prompts, or [P, S, C, H, W].
            timestep: index into ``alphas_cumprod``.

        Returns:
            [P, S, C, H, W]; model dtype for an epsilon model, else float32 or wider. Carries
            gradients to the condition's embeddings if they require them.
        """
        prompts, latent_shape = len(condition), self.latent_shape
        if latents.shape[-3:] != latent_shape or latents.ndim not in (4, 5):
            raise UsageError(
                f"epsilon: latents must be [S, {', '.join(map(str, latent_shape))}] or [P, S, ...],"
                f" got {list(latents.shape)}"
            )
        if latents.ndim == 5 and latents.shape[0] != prompts:
            raise UsageError(
                f"epsilon: latents are for {latents.shape[0]} prompts, the condition has {prompts}"
            )
        seeds = latents.shape[-4]
        per_sample = latents.expand(prompts, seeds, *latent_shape).reshape(-1, *latent_shape)
        rows = condition.index.repeat_interleave(seeds)
        with torch.set_grad_enabled(torch.is_grad_enabled() and condition.unique.requires_grad):
            flat = self._evaluate(per_sample, condition.unique, rows, timestep)
        return flat.reshape(prompts, seeds, *latent_shape)

    def epsilon_uncond(self, seeds: Sequence[int], timestep: int) -> Tensor:
        """Unconditional predictions [S, C, H, W] on the initial noise of ``seeds``.

        They depend on (seed, timestep) alone, so each is computed once and kept.
        """
        missing = [s for s in dict.fromkeys(seeds) if (s, timestep) not in self._uncond]
        if missing:
            with torch.no_grad():
                fresh = self.epsilon(self.unconditional, self.noise(missing), timestep)[0]
            for seed, prediction in zip(missing, fresh, strict=True):
                self._uncond[seed, timestep] = prediction
        for seed in seeds:
            self._uncond.move_to_end((seed, timestep))
        result = torch.stack([self._uncond[seed, timestep] for seed in seeds])
        while len(self._uncond) > _UNCOND_CACHE_ENTRIES:
            self._uncond.popitem(last=False)
        return result

    def _evaluate(self, latents: Tensor, unique: Tensor, rows: Tensor, timestep: int) -> Tensor:
        """Epsilon [N, C, H, W] of samples ``latents`` [N, C, H, W] under ``unique[rows]``."""
        batch, n = self.batch_size, latents.shape[0]
        time = torch.tensor(timestep, device=self.device)
        alpha_bar = self.alpha_bar(timestep)
        chunks = []
        for start in range(0, n, batch):
            x_t = pad_rows(latents[start : start + batch], batch)
            text = unique[pad_rows(rows[start : start + batch], batch)]
            output = self.unet(x_t, time, text, return_dict=False)[0]
            chunks.append(to_epsilon(output, x_t, alpha_bar, self.prediction_type))
        return torch.cat(chunks)[:n] if chunks else latents

    # -- images -------------------------------------------------------------------------------

    @torch.no_grad()
    def denoise(
        self, condition: TextCondition, latents: Tensor, *, steps: int, guidance: float
    ) -> Tensor:
        """DDIM with classifier-free guidance from ``latents`` [P, S, C, H, W] to clean latents.

        eps = eps_uncond + guidance (eps_cond - eps_uncond) (Ho & Salimans, 2022, arXiv 2207.12598).
        """
        timesteps = self.timesteps(steps)
        prompts, seeds = latents.shape[:2]
        for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
            eps = self.epsilon(condition, latents, t)
            if guidance != 1.0:
                eps_uncond = self.epsilon(self.unconditional, latents.flatten(0, 1), t)
                eps_uncond = eps_uncond.reshape(prompts, seeds, *self.latent_shape)
                eps = eps_uncond + guidance * (eps - eps_uncond)
            step = ddim_step(eps, latents, self.alpha_bar(t), self.alpha_bar(t_prev))
            latents = step.to(self.dtype)
        return latents

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
        latents = self.denoise(condition, latents, steps=steps, guidance=guidance)
        pictures = images.decode(self.vae, latents.flatten(0, 1), self.batch_size)
        return pictures.reshape(len(condition), len(seeds), *pictures.shape[1:])

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """The clean latents [N, C, h, w] of images, uint8 [N, H, W, 3] (posterior mean, scaled)."""
        return images.encode(self.vae, pictures, self.device, self.dtype, self.batch_size)


def _refuse_unknown_architecture(unet: Any, text_encoder: Any) -> None:
    config = unet.config
    if config.in_channels != config.out_channels:
        raise UsageError(
            f"load: a UNet from {config.in_channels} to {config.out_channels} channels is not a"
            " text-to-image denoiser (an inpainting or edit model?); not supported"
        )
    if config.addition_embed_type is not None or config.class_embed_type is not None:
        raise UsageError(
            "load: a UNet with additional or class embeddings (SDXL and others) is not supported yet"
        )
    width = text_encoder.config.hidden_size
    if config.cross_attention_dim != width:
        raise UsageError(
            f"load: the UNet takes text of width {config.cross_attention_dim}, the text encoder"
            f" makes {width}; the parts do not belong together"
        )
