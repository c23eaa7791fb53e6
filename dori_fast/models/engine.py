"""Runs the UNet: fixed batch shapes, and every piece of work that samples share done once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.architecture import refusal
from dori_fast.models.attention import choose
from dori_fast.models.program import KeysValues, Program, State
from dori_fast.models.text import pad_rows

# above this size one sample already keeps a CPU busy, so a padded batch would only cost latency
_LARGE_MODEL_PARAMETERS = 50_000_000


@dataclass(frozen=True)
class SharedLatents:
    """S latents at a timestep, with what the network does before it looks at the text done once.

    Attributes:
        latents: [S, C, H, W].
        timestep: index into ``alphas_cumprod``.
        state: the network's state for each latent, or None where it is not made in advance.
    """

    latents: Tensor
    timestep: int
    state: State | None

    def __len__(self) -> int:
        return self.latents.shape[0]


class Engine:
    """A frozen UNet as a function from (text rows, latents, timestep) to its output.

    Every evaluation has ``batch_size`` samples, the last one padded, so that an output does not
    depend, to the bit, on order or on the neighbours in its batch.

    Attributes:
        evaluations: UNet sample evaluations so far, padding left out.
        not_shared: why work is not shared between samples, or None if it is.
        attention: the attention kernel, "sdpa" or "xformers"; "own" where the model's own runs.
    """

    def __init__(self, unet: Any, batch_size: int | str, share: bool, attention: str) -> None:
        self.unet = unet
        self.evaluations = 0
        self.not_shared = refusal(unet) if share else "switched off"
        name, kernel = choose(attention, unet.device, unet.dtype)
        self.attention = name if self.not_shared is None else "own"
        self._program = Program(unet, kernel) if self.not_shared is None else None
        self.batch_size = _auto_batch_size(unet) if batch_size == "auto" else int(batch_size)

    @property
    def batch_size(self) -> int:
        """UNet samples per evaluation (the fixed, padded batch shape)."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        if value < 1:
            raise UsageError(f"batch_size must be at least 1, got {value}")
        self._batch_size = value

    @torch.no_grad()
    def share(self, latents: Tensor, timestep: int) -> SharedLatents:
        """Do for latents [S, C, H, W] what does not depend on the text."""
        if self._program is None or latents.shape[0] == 0:
            return SharedLatents(latents, timestep, None)
        states = [
            self._program.prefix(pad_rows(chunk, self.batch_size), timestep)
            for chunk in latents.split(self.batch_size)
        ]
        samples = torch.arange(latents.shape[0], device=latents.device)
        return SharedLatents(latents, timestep, State.join(states).take(samples))

    def outputs(self, unique: Tensor, rows: Tensor, shared: SharedLatents, which: Tensor) -> Tensor:
        """Network outputs [N, C, H, W] of N samples: text ``unique[rows]``, latent ``which``.

        Args:
            unique: [U, T, D] text embeddings; the outputs carry gradients to them.
            rows: int64 [N] on the CPU, into ``unique``.
            shared: S latents.
            which: int64 [N] on the CPU, into ``shared``.
        """
        self.evaluations += rows.shape[0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and unique.requires_grad):
            return self._in_batches(
                lambda texts, samples: self._full_batch(unique, texts, shared, samples),
                rows,
                which,
            )

    @torch.no_grad()
    def token_attention(
        self, unique: Tensor, rows: Tensor, shared: SharedLatents, which: Tensor, layer: int
    ) -> Tensor:
        """Attention [N, T] that each token receives in cross-attention ``layer``, float32."""
        program = self._program
        if program is None:
            raise UsageError(f"token_attention: the layers are not known ({self.not_shared})")
        if not 0 <= layer < len(program.cross):
            raise UsageError(
                f"token_attention: layer must be 0..{len(program.cross) - 1}, got {layer}"
            )

        def received(texts: Tensor, samples: Tensor) -> Tensor:
            state = self._prefix(program, shared, samples)
            keys_values = self._keys_values(program, unique, texts)
            return program.token_attention(state, shared.timestep, keys_values, layer)

        return self._in_batches(received, rows, which)

    def _in_batches(
        self, compute: Callable[[Tensor, Tensor], Tensor], rows: Tensor, which: Tensor
    ) -> Tensor:
        """``compute(rows, which)`` in full batches of fixed shape, the padding cut off."""
        batch, n = self.batch_size, rows.shape[0]
        chunks = [
            compute(
                pad_rows(rows[start : start + batch], batch),
                pad_rows(which[start : start + batch], batch).to(self.unet.device),
            )
            for start in range(0, n, batch)
        ]
        return torch.cat(chunks)[:n] if chunks else torch.zeros(0, device=self.unet.device)

    def _full_batch(
        self, unique: Tensor, texts: Tensor, shared: SharedLatents, samples: Tensor
    ) -> Tensor:
        if self._program is None:
            time = torch.tensor(shared.timestep, device=unique.device)
            text = unique[texts.to(unique.device)]
            return self.unet(shared.latents[samples], time, text, return_dict=False)[0]
        state = self._prefix(self._program, shared, samples)
        keys_values = self._keys_values(self._program, unique, texts)
        return self._program.suffix(state, keys_values, shared.timestep)

    def _prefix(self, program: Program, shared: SharedLatents, samples: Tensor) -> State:
        if shared.state is not None:
            return shared.state.take(samples)
        return program.prefix(shared.latents[samples], shared.timestep)

    def _keys_values(self, program: Program, unique: Tensor, texts: Tensor) -> KeysValues:
        """Keys and values [B, T, C] of every cross-attention for a batch of text rows [B].

        Each distinct row is projected once, in groups of a fixed size, for the same reason that
        batches are padded.
        """
        group = max(1, self.batch_size // 4)
        distinct, position = torch.unique(texts, return_inverse=True)
        position = position.to(unique.device)
        groups = [
            program.keys_values(unique[pad_rows(part, group).to(unique.device)])
            for part in distinct.split(group)
        ]
        return [
            (torch.cat([k for k, _ in layer])[position], torch.cat([v for _, v in layer])[position])
            for layer in zip(*groups, strict=True)
        ]


def _auto_batch_size(unet: Any) -> int:
    """UNet samples per evaluation: a function of model and device alone, so that scores are too."""
    if unet.device.type != "cpu":
        return 64
    parameters = sum(p.numel() for p in unet.parameters())
    return 4 if parameters > _LARGE_MODEL_PARAMETERS else 32
