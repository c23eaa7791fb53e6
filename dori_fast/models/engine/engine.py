"""Runs the UNet: fixed batch shapes, and every piece of work that samples share done once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.masking import check_mask, masked
from dori_fast.models.backbones.unet.parts import Parts
from dori_fast.models.backbones.unet.program import Program
from dori_fast.models.backbones.unet.recognize import refusal
from dori_fast.models.backbones.unet.stages import Observe
from dori_fast.models.engine.attention import choose, forward_mode
from dori_fast.models.engine.batch import Samples, SharedLatents
from dori_fast.models.engine.batch_size import auto_batch_size
from dori_fast.models.engine.execution import Execution, is_channels_last
from dori_fast.models.engine.forward_mode import FusedDerivatives
from dori_fast.models.engine.graphs import Graphs
from dori_fast.models.engine.state import State, TextPart, Timestep, added_conditions
from dori_fast.models.masks import NeuronMask, WeightMask
from dori_fast.models.text.conditions import pad_rows

_log = logging.getLogger(__name__)


class Engine:
    """A frozen UNet as a function from (text rows, latents, timestep) to its output.

    Every evaluation has ``batch_size`` samples, the last one padded, so that an output does not
    depend, to the bit, on order or on the neighbors in its batch.

    Attributes:
        evaluations: UNet sample evaluations so far, padding left out.
        generation: how often the weights have changed; what was computed before is of no use.
        not_shared: why work is not shared between samples, or None if it is.
        execution: how it is run, nothing left to "auto".
    """

    def __init__(
        self,
        unet: Any,
        batch_size: int | str,
        share: bool,
        execution: Execution,
        picture_size: tuple[int, int],
    ) -> None:
        self.unet = unet
        self.evaluations, self.generation = 0, 0
        self.not_shared = refusal(unet) if share else "switched off"
        name, self._kernel = choose(execution.attention, unet.device, unet.dtype)
        whole = self.not_shared and f"the network is called whole ({self.not_shared})"
        compiled, graphs = (
            execution.on(switch, unet.device, whole) for switch in ("compile", "cuda_graphs")
        )
        self.execution = Execution(
            attention="own" if whole else name,
            compile=compiled,
            channels_last=is_channels_last(unet),
            cuda_graphs=graphs,
        )
        self._picture_size = picture_size
        plain = None if whole else Program(unet, Parts(self._kernel), picture_size)
        self._program = plain
        if compiled or graphs:
            parts = Parts(self._kernel, compiled)
            self._program = Program(unet, parts, picture_size, Graphs() if graphs else None)
        if batch_size == "auto":
            batch_size = auto_batch_size(unet, plain, picture_size)
        self.batch_size = int(batch_size)

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
    def layers(self) -> list[str]:
        """Names of the cross-attention modules, in the order in which the UNet runs them."""
        return self._known_program().names

    @property
    def value_widths(self) -> dict[str, int]:
        """Neurons of the value projection of every cross-attention, by its name."""
        return self._known_program().value_widths

    @property
    def second_linears(self) -> dict[str, nn.Module]:
        """The second linear layer of each feed-forward by name, in the same order."""
        return self._known_program().second_linears

    def weights_changed(self) -> None:
        """Forget what was computed with the old weights; call it whenever they are written to."""
        self.generation += 1
        if self._program is not None:
            self._program.weights_changed()

    @contextmanager
    def recomputing(self, on: bool = True) -> Iterator[None]:
        """Keep no activation within a stage for the backward pass, but compute it there again."""
        if on:
            self._known_program()
        program, before = self._program, self._program and self._program.recompute
        if program is not None:
            program.recompute = on
        try:
            yield
        finally:
            if program is not None:
                program.recompute = bool(before)

    @torch.no_grad()
    def share(self, latents: Tensor, timestep: Timestep) -> SharedLatents:
        """Do for latents [S, C, H, W] what does not depend on the text."""
        program, shared = self._program, SharedLatents(latents, timestep, None)
        if program is None or len(shared) == 0:
            return shared
        samples = torch.arange(len(shared))
        shared.state = self._in_batches(lambda which: self._prefix(program, shared, which), samples)
        return shared

    @torch.no_grad()
    def advance(self, samples: Samples, layer: int) -> SharedLatents:
        """Latents of one prompt with everything before cross-attention ``layer`` done.

        ``samples`` must be the prompt's text row on each latent in turn.
        """
        program, shared = self._known_program(), samples.shared
        self._check_layer(layer)

        def advanced(text: Tensor, which: Tensor) -> State:
            state = self._prefix(program, shared, which)
            part = self._text_part(program, samples, text)
            return program.between(state, part, shared.timestep_of(which), shared.layer, layer)

        state = self._in_batches(advanced, samples.text, samples.which)
        return SharedLatents(shared.latents, shared.timestep, state, layer)

    def outputs(self, samples: Samples) -> Tensor:
        """Network outputs [N, C, H, W]; they carry gradients to ``samples.unique``."""
        n = samples.text.shape[0]
        self.evaluations += n
        if n == 0:
            return samples.shared.latents[:0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and samples.unique.requires_grad):
            return self._in_batches(
                lambda text, which: State(self._full_batch(samples, text, which)),
                samples.text,
                samples.which,
            ).x

    @torch.no_grad()
    def jvp(self, samples: Samples, tangents: Tensor) -> Tensor:
        """Directional derivatives [N, C, H, W] of the outputs along the latents, forward mode.

        ``tangents`` [N, C, H, W] are the directions. Each sample counts as two evaluations.
        """
        program, shared = self._differentiable(), samples.shared
        self.evaluations += 2 * len(tangents)

        def derivative(text: Tensor, which: Tensor, sample: Tensor) -> State:
            part = self._text_part(program, samples, text)
            device = tangents.device

            timestep = shared.timestep_of(which)

            def output(latents: Tensor) -> Tensor:
                return program.suffix(program.prefix(latents, timestep), part, timestep)

            along = tangents[sample.to(device)]
            with FusedDerivatives():
                slope = torch.func.jvp(output, (shared.latents[which.to(device)],), (along,))[1]
            return State(slope)

        order = torch.arange(len(tangents))
        return self._in_batches(derivative, samples.text, samples.which, order).x

    @torch.no_grad()
    def observe(self, samples: Samples, observe: Observe) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs [N, C, H, W], and what ``observe`` makes of each feed-forward's hidden layer.

        It is given the inputs of :attr:`second_linears`, [B, HW, 4C], a batch at a time, and must
        treat every sample by itself: batches are padded, and what comes of the padding is cut off.
        """
        self._known_program()
        program = Program(self.unet, Parts(self._kernel), self._picture_size, observe=observe)
        self.evaluations += len(samples.text)

        def finished(text: Tensor, which: Tensor) -> State:
            shared = samples.shared
            state = self._prefix(program, shared, which)
            part = self._text_part(program, samples, text)
            return program.finish(state, part, shared.timestep_of(which), shared.layer)

        state = self._in_batches(finished, samples.text, samples.which)
        return state.x, dict(zip(program.second_linears, reversed(state.kept), strict=True))

    @torch.no_grad()
    def token_attention(self, samples: Samples, layer: int) -> Tensor:
        """Attention [N, T] that each token receives in cross-attention ``layer``, float32."""
        program, shared = self._known_program(), samples.shared
        self._check_layer(layer)

        def received(text: Tensor, which: Tensor) -> State:
            state = self._prefix(program, shared, which)
            part = self._text_part(program, samples, text)
            timestep = shared.timestep_of(which)
            return State(program.token_attention(state, part, timestep, layer))

        return self._in_batches(received, samples.text, samples.which).x

    def _in_batches(self, compute: Callable[..., State], *indices: Tensor) -> State:
        """``compute`` on full batches of the indices [N], N >= 1; the padding is cut off.

        Where memory does not suffice, batches are halved from here on, down to one sample.
        """
        while True:
            try:
                return self._in_full_batches(compute, *indices)
            except RuntimeError as error:
                if self.batch_size == 1 or not out_of_memory(error):
                    raise
            # outside the handler, whose traceback would keep the failed batch's tensors
            self.batch_size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning("out of memory: UNet batches are of %d samples now", self.batch_size)

    def _in_full_batches(self, compute: Callable[..., State], *indices: Tensor) -> State:
        batch, n = self.batch_size, indices[0].shape[0]
        chunks = [
            compute(*(pad_rows(index[start : start + batch], batch) for index in indices))
            for start in range(0, n, batch)
        ]
        return State.join(chunks).first(n)

    def _full_batch(self, samples: Samples, text: Tensor, which: Tensor) -> Tensor:
        unique, shared, program = samples.unique, samples.shared, self._program
        if program is None:
            if samples.masks is not None:
                raise UsageError(f"masks: the layers are not known ({self.not_shared})")
            rows = text.to(unique.device)
            pooled = None if samples.pooled is None else samples.pooled[rows]
            latents = shared.latents[which.to(unique.device)]
            return self.plain(latents, shared.timestep_of(which), unique[rows], pooled)
        state = self._prefix(program, shared, which)
        part = self._text_part(program, samples, text)
        return program.suffix(state, part, shared.timestep_of(which), shared.layer)

    def plain(
        self, latents: Tensor, timestep: Timestep, text: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """The model's own forward on N samples, each with its own text [N, T, D]: [N, C, H, W].

        Nothing is shared or padded, and whatever requires gradients gets them, weights included.
        """
        output: Tensor = self.unet(
            latents,
            torch.as_tensor(timestep).to(latents.device),
            text,
            added_cond_kwargs=added_conditions(pooled, self._picture_size),
            return_dict=False,
        )[0]
        return output

    @torch.no_grad()
    def _prefix(self, program: Program, shared: SharedLatents, which: Tensor) -> State:
        """What the text has no part in, and so no gradient."""
        rows = which.to(shared.latents.device)
        if shared.state is not None:
            return shared.state.take(rows)
        return program.prefix(shared.latents[rows], shared.timestep_of(which))

    def _text_part(self, program: Program, samples: Samples, text: Tensor) -> TextPart:
        """What a batch of text rows [B] contributes, masks applied to the values.

        Each distinct row is projected once, in groups of a fixed size, for the same reason that
        batches are padded.
        """
        device, group = samples.unique.device, max(1, self.batch_size // 4)
        distinct, position = torch.unique(text, return_inverse=True)
        parts = []
        for rows in distinct.split(group):
            rows = pad_rows(rows, group).to(device)
            pooled = None if samples.pooled is None else samples.pooled[rows]
            parts.append(program.text_part(samples.unique[rows], pooled))
        part = TextPart.join(parts).take(position.to(device))
        return part if samples.masks is None else masked(program, part, samples.masks, text)

    def check_mask(self, mask: NeuronMask | WeightMask) -> None:
        """Refuse a mask whose layers or widths are not this UNet's."""
        check_mask(self._known_program(), mask)

    def copy(self) -> Engine:
        """An engine of the same settings on its own copy of the UNet."""
        share, execution = self.not_shared is None, self.execution
        if not share:
            execution = replace(execution, attention="auto")
        unet = copy.deepcopy(self.unet)
        return Engine(unet, self.batch_size, share, execution, self._picture_size)

    def _differentiable(self) -> Program:
        """The program with an attention that takes tangents along."""
        self._known_program()
        return Program(self.unet, Parts(forward_mode), self._picture_size)

    def _known_program(self) -> Program:
        if self._program is None:
            raise UsageError(f"the layers of this model are not known ({self.not_shared})")
        return self._program

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < len(self.layers):
            raise UsageError(f"layer must be 0..{len(self.layers) - 1}, got {layer}")


def out_of_memory(error: Exception) -> bool:
    """Whether this says that memory did not suffice."""
    # the CPU allocator has no exception of its own
    own = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return own or "can't allocate memory" in str(error)
