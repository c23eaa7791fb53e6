"""The samples of an evaluation: latents, texts, masks, and which sample has which."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from dori_fast._checks import to_device
from dori_fast.errors import UsageError
from dori_fast.models.engine.state import State, Timestep
from dori_fast.models.masks import Masks
from dori_fast.models.text.conditions import TextCondition


@dataclass(eq=False)
class SharedLatents:
    """S latents at a timestep, with the work on them that prompts share already done.

    Attributes:
        latents: [S, C, H, W].
        timestep: index into ``alphas_cumprod``, or int64 [S] on the CPU, each latent's own.
        state: the network's state for each latent, or None if nothing was computed in advance.
        layer: the cross-attention before which the state stands. If it is not 0, the state serves
            one prompt only.
        uncond: unconditional outputs [S, C, H, W], or None until they are needed.
        generation: the engine's generation when state and uncond were computed.
    """

    latents: Tensor
    timestep: Timestep
    state: State | None
    layer: int = 0
    uncond: Tensor | None = None
    generation: int = 0

    def __len__(self) -> int:
        return self.latents.shape[0]

    def take(self, rows: Tensor) -> SharedLatents:
        """A selection of the latents: int64 indices [R] on the CPU."""
        timestep, rows = self.timestep_of(rows), to_device(rows, self.latents.device)
        state = None if self.state is None else self.state.take(rows)
        uncond = None if self.uncond is None else self.uncond[rows]
        return SharedLatents(
            self.latents[rows], timestep, state, self.layer, uncond, self.generation
        )

    def timestep_of(self, which: Tensor) -> Timestep:
        """The timestep of the given latents: int64 indices [N] on the CPU."""
        return self.timestep[which] if isinstance(self.timestep, Tensor) else self.timestep


class RecentLatents:
    """The shared latents of the last few calls, by what they were made from."""

    def __init__(self, kept: int = 16) -> None:
        self._kept = kept
        self._by_key: OrderedDict[Hashable, SharedLatents] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], SharedLatents]) -> SharedLatents:
        """The latents of a key, made if they are not there."""
        if key not in self._by_key:
            self._by_key[key] = make()
        self._by_key.move_to_end(key)
        if len(self._by_key) > self._kept:
            self._by_key.popitem(last=False)
        return self._by_key[key]


def require_latents(latents: Tensor, shape: tuple[int, ...]) -> None:
    """Check that latents are [S, *shape] or [P, S, *shape]; raises UsageError."""
    if latents.shape[-3:] != shape or latents.ndim not in (4, 5):
        one, found = ", ".join(map(str, shape)), list(latents.shape)
        raise UsageError(f"latents must be [S, {one}] or [P, S, {one}], got {found}")


def flat_timesteps(timestep: Timestep, latents: Tensor) -> Timestep:
    """One timestep for all latents [*, C, H, W], or one each [*] as int64 [N] on the CPU.

    Raises:
        UsageError: there is not one for each latent, or they are not integers.
    """
    if not isinstance(timestep, Tensor) or timestep.ndim == 0:
        return int(timestep)
    wanted, found = list(latents.shape[:-3]), list(timestep.shape)
    if timestep.is_floating_point() or found != wanted:
        raise UsageError(
            f"timestep must be an int, or integers {wanted} as the latents are, got"
            f" {timestep.dtype} {found}"
        )
    return timestep.flatten().to("cpu", torch.int64)


@dataclass(frozen=True)
class Samples:
    """N samples of P prompts on S latents.

    Attributes:
        unique: [U, T, D] text embeddings.
        pooled: [U, E] pooled text embeddings, or None.
        text: int64 [N] on the CPU, each sample's row of ``unique`` (and its mask, if M > 1).
        shared: the latents.
        which: int64 [N] on the CPU, each sample's latent.
        masks: masks of all samples (M = 1) or of each row of ``unique``, or None.
    """

    unique: Tensor
    pooled: Tensor | None
    text: Tensor
    shared: SharedLatents
    which: Tensor
    masks: Masks | None = None


def all_pairs(condition: TextCondition, shared: SharedLatents, masks: Masks | None) -> Samples:
    """P x S samples: every prompt on every latent, prompts outermost."""
    text = condition.index.repeat_interleave(len(shared))
    which = torch.arange(len(shared)).repeat(len(condition))
    return Samples(condition.unique, condition.pooled, text, shared, which, masks)


def own_latents(
    condition: TextCondition, latents: Tensor, timestep: Timestep, masks: Masks | None
) -> Samples:
    """P x S samples: every prompt on its own S latents [P, S, C, H, W].

    ``timestep`` is one for all, or [P x S].
    """
    prompts, seeds = latents.shape[:2]
    if prompts != len(condition):
        raise UsageError(f"latents are for {prompts} prompts, the condition has {len(condition)}")
    flat = SharedLatents(latents.flatten(0, 1), timestep, None)
    text = condition.index.repeat_interleave(seeds)
    return Samples(condition.unique, condition.pooled, text, flat, torch.arange(len(flat)), masks)
