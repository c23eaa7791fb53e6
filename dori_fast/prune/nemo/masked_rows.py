"""Noise differences of samples of several prompts, each under its own blocked neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dori_fast._checks import to_device
from dori_fast.models import Denoiser, NeuronMask, SharedLatents, TextCondition
from dori_fast.models.engine.batch import Samples
from dori_fast.models.engine.memory import out_of_memory
from dori_fast.models.engine.state import State
from dori_fast.models.masks import Masks
from dori_fast.models.probes import noise_change
from dori_fast.prune.nemo.candidates import Blocked


@dataclass(frozen=True)
class Piece:
    """Samples of one prompt under one mask.

    Attributes:
        prompt: number of the prompt.
        blocked: blocked neurons.
        latents: numbers of the latents, one for each sample.
    """

    prompt: int
    blocked: Blocked
    latents: tuple[int, ...]


class MaskedRows:
    """Runs samples of P prompts on S latents; a piece's result does not depend on the others.

    Every stage of the network runs on batches of one shape. So on a CPU a result is the same, to
    the bit, whether the part before a layer was computed in advance or not.

    Args:
        model: the denoiser, whose own masks, if any, are M = 1.
        condition: P prompts.
        shared: S latents at one timestep.
        layers: searched cross-attentions, in the order of ``model.layers``.
        units: units of the noise differences; see :func:`dori_fast.models.probes.change_of_noise`.

    Attributes:
        in_advance: whether memory suffices for work before a layer that is done in advance.
    """

    def __init__(
        self,
        model: Denoiser,
        condition: TextCondition,
        shared: SharedLatents,
        layers: Sequence[str],
        units: str,
    ) -> None:
        self.model, self._condition, self._shared = model, condition, shared
        self._layers, self._units = layers, units
        self._widths = {name: model.engine.value_widths[name] for name in layers}
        self.in_advance = True
        # latents with the work before a layer done, the row of each by prompt and number of the
        # latent, and what was blocked before that layer
        self._before: SharedLatents | None = None
        self._row: dict[tuple[int, int], int] = {}
        self._earlier: dict[int, Blocked] = {}

    def place(self, first: int) -> int:
        """Number of a searched layer among all cross-attentions."""
        return self.model.layers.index(self._layers[first])

    def has(self, piece: Piece, first: int) -> bool:
        """Whether the work before searched layer ``first`` is done for a piece's samples."""
        begun = 0 if self._before is None else self._before.layer
        return begun == self.place(first) and self._earlier.get(piece.prompt) == _earlier(
            piece.blocked, first
        )

    def begin(self, pieces: Sequence[Piece], first: int) -> bool:
        """Do the work before searched layer ``first`` for prompts, one piece each.

        It serves all masks of a prompt that block the same neurons in earlier layers, and is kept
        until the next call for another layer. Where memory runs out nothing is kept, now or later:
        what is kept would make batches smaller.

        Returns:
            Whether the work is kept.
        """
        size = self.model.batch_size
        try:
            self._begin(pieces, first)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        else:
            if self.model.batch_size == size:
                return True
        self.in_advance, self._before, self._row, self._earlier = False, None, {}, {}
        self.model.batch_size = size
        return False

    def _begin(self, pieces: Sequence[Piece], first: int) -> None:
        layer, before = self.place(first), self._before
        if before is None or before.layer != layer:
            before, self._row, self._earlier = None, {}, {}
        blocked = {piece.prompt: _earlier(piece.blocked, first) for piece in pieces}
        earlier = [Piece(piece.prompt, blocked[piece.prompt], piece.latents) for piece in pieces]
        samples = self._samples(earlier, self._shared)
        done = self.model.engine.advance(samples, layer)
        done.latents = self._shared.latents[to_device(samples.which, self.model.device)]
        if before is not None and before.state is not None and done.state is not None:
            done.state = State.join([before.state, done.state])
            done.latents = torch.cat([before.latents, done.latents])
        start = 0 if before is None else len(before)
        for row, (prompt, latent) in enumerate(
            (piece.prompt, latent) for piece in pieces for latent in piece.latents
        ):
            self._row[prompt, latent] = start + row
        self._before, self._earlier = done, self._earlier | blocked

    def differences(self, pieces: Sequence[Piece], advanced: bool = False) -> Tensor:
        """Noise differences [N, C, H, W] of all pieces' samples, in order.

        ``advanced`` starts from the work of :meth:`begin`.
        """
        shared = self._before if advanced and self._before is not None else self._shared
        samples = self._samples(pieces, shared)
        outputs = self.model.engine.outputs(samples)
        latents = shared.latents[to_device(samples.which, shared.latents.device)]
        return noise_change(self.model, outputs, latents, int(shared.timestep), self._units)

    def _samples(self, pieces: Sequence[Piece], shared: SharedLatents) -> Samples:
        counts = torch.tensor([len(piece.latents) for piece in pieces])
        prompts = self._condition.index[torch.tensor([piece.prompt for piece in pieces])]
        rows = to_device(prompts, self._condition.unique.device)
        pooled = self._condition.pooled
        which = [
            self._row[piece.prompt, latent] if shared is self._before else latent
            for piece in pieces
            for latent in piece.latents
        ]
        return Samples(
            self._condition.unique[rows],
            None if pooled is None else pooled[rows],
            torch.arange(len(pieces)).repeat_interleave(counts),
            shared,
            torch.tensor(which),
            self._masks(pieces),
        )

    def _masks(self, pieces: Sequence[Piece]) -> Masks:
        neurons: list[dict[str, list[int]]] = []
        for piece in pieces:
            by_layer: dict[str, list[int]] = {}
            for layer, neuron in piece.blocked:
                by_layer.setdefault(self._layers[layer], []).append(neuron)
            neurons.append(by_layer)
        blocking = NeuronMask.blocking(neurons, self._widths)
        return (self.model.masks or Masks()).joined(blocking, self.model.device)


def _earlier(blocked: Blocked, first: int) -> Blocked:
    return frozenset(neuron for neuron in blocked if neuron[0] < first)
