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
from dori_fast.models.architecture import require_denoiser
from dori_fast.models.engine import Engine, SharedLatents
from dori_fast.models.schedule import Schedule
from dori_fast.models.text import TextCondition, encode_rows, tokenize

_UNCOND_CACHE_ENTRIES = 4096


class Denoiser:
    """A frozen text-to-image diffusion model as a function from (condition, noise, t) to epsilon.

    Made by :func:`dori_fast.load`. Whatever sampler a pipeline came with, the Denoiser works in
    the variance-preserving parametrisation of DDPM and DDIM with unit initial noise, and epsilon,
    v and sample predictions are all turned into epsilon.

    Every evaluation of the UNet has the same shape, ``batch_size`` samples, the last one padded:
    a prediction therefore does not depend, to the bit, on order or on the neighbours in its batch.

    Attributes:
        schedule: noise schedule, prediction type and the DDIM update.
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
        share: bool = True,
        attention: str = "auto",
    ) -> None:
        require_denoiser(unet, text_encoder)
        self.unet = unet.to(device).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(device).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self._load_vae = vae
        self._origin = origin
        self._weight_hashes = weight_hashes
        self.schedule = Schedule(scheduler_config)
        self._engine = Engine(self.unet, batch_size, share, attention)
        self._uncond: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    @property
    def batch_size(self) -> int:
        """UNet samples per evaluation (the fixed, padded batch shape); at least 1."""
        return self._engine.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._engine.batch_size = value

    @property
    def evaluations(self) -> int:
        """UNet sample evaluations so far, padding left out."""
        return self._engine.evaluations

    @property
    def not_shared(self) -> str | None:
        """Why the network's work is not shared between prompts, or None if it is."""
        return self._engine.not_shared

    @property
    def attention(self) -> str:
        """The attention kernel that runs: "sdpa", "xformers", or "own" for the model's own."""
        return self._engine.attention

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
        """What scores depend on, as plain JSON: source, commit, dtype, device, weight sha256."""
        return {
            **self._origin,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "prediction_type": self.schedule.prediction_type,
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
            index=tokens.index,
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
            index=torch.arange(n),
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
        return self.schedule.timesteps(steps)

    @property
    def alphas_cumprod(self) -> Tensor:
        """Cumulative alphas of the noise schedule, float64 [1000]."""
        return self.schedule.alphas_cumprod

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
        if latents.ndim == 4:
            return self.epsilon_shared(condition, self.share(latents, timestep))
        eps = self._evaluate(condition, *self._per_prompt(condition, latents, timestep))
        return eps.reshape(latents.shape)

    def _per_prompt(
        self, condition: TextCondition, latents: Tensor, timestep: int
    ) -> tuple[Tensor, SharedLatents, Tensor]:
        """Text row and latent of each sample where every prompt has its own latents [P, S, ...]."""
        self._check_latents(latents, 5)
        prompts, seeds = latents.shape[:2]
        if prompts != len(condition):
            raise UsageError(
                f"epsilon: latents are for {prompts} prompts, the condition has {len(condition)}"
            )
        flat = SharedLatents(latents.flatten(0, 1), timestep, None)
        return condition.index.repeat_interleave(seeds), flat, torch.arange(len(flat))

    def _all_pairs(
        self, condition: TextCondition, shared: SharedLatents
    ) -> tuple[Tensor, SharedLatents, Tensor]:
        """Text row and latent of each sample where all prompts share S latents."""
        prompts, seeds = len(condition), len(shared)
        rows = condition.index.repeat_interleave(seeds)
        return rows, shared, torch.arange(seeds).repeat(prompts)

    def _check_latents(self, latents: Tensor, ndim: int) -> None:
        if latents.shape[-3:] != self.latent_shape or latents.ndim != ndim:
            shape = ", ".join(map(str, self.latent_shape))
            raise UsageError(
                f"epsilon: latents must be [S, {shape}] or [P, S, {shape}], got"
                f" {list(latents.shape)}"
            )

    def share(self, latents: Tensor, timestep: int) -> SharedLatents:
        """Do for latents [S, C, H, W] what does not depend on the text, once for all prompts."""
        self._check_latents(latents, 4)
        return self._engine.share(latents, timestep)

    def epsilon_shared(self, condition: TextCondition, shared: SharedLatents) -> Tensor:
        """Noise predictions [P, S, C, H, W] of P prompts on shared latents; see :meth:`epsilon`."""
        eps = self._evaluate(condition, *self._all_pairs(condition, shared))
        return eps.reshape(len(condition), len(shared), *self.latent_shape)

    def _evaluate(
        self, condition: TextCondition, rows: Tensor, shared: SharedLatents, which: Tensor
    ) -> Tensor:
        """Epsilon [N, C, H, W] of text rows [N] on the latents ``which`` [N], both on the CPU."""
        output = self._engine.outputs(condition.unique, rows, shared, which)
        x_t = shared.latents[which.to(self.device)]
        return self.schedule.epsilon(output, x_t, shared.timestep)

    def token_attention(
        self, condition: TextCondition, latents: Tensor, timestep: int, layer: int
    ) -> Tensor:
        """The attention that each token receives in one cross-attention layer.

        Only the part of the network before that layer is run.

        Args:
            condition: P prompts.
            latents: [S, C, H, W], shared by all prompts, or [P, S, C, H, W].
            timestep: index into ``alphas_cumprod``.
            layer: number of the cross-attention, in the order in which the UNet runs them.

        Returns:
            float32 [P, S, T], averaged over pixels and heads; sums to 1 over tokens.

        Raises:
            UsageError: no such layer, or an architecture whose layers are not known.
        """
        if latents.ndim == 4:
            samples = self._all_pairs(condition, self.share(latents, timestep))
        else:
            samples = self._per_prompt(condition, latents, timestep)
        received = self._engine.token_attention(condition.unique, *samples, layer)
        return received.reshape(len(condition), latents.shape[-4], -1)

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
            latents = self.schedule.step(eps, latents, t, t_prev).to(self.dtype)
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
