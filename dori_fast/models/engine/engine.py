"""Runs a network: batches of one fixed shape, and work that samples share done once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from dori_fast._checks import to_device
from dori_fast.errors import UsageError
from dori_fast.models.engine.attention import Attention, forward_mode
from dori_fast.models.engine.backbone import Backbone, Observe, Program
from dori_fast.models.engine.batch import Samples, SharedLatents
from dori_fast.models.engine.batch_size import auto_batch_size
from dori_fast.models.engine.execution import Execution
from dori_fast.models.engine.forward_mode import FusedDerivatives
from dori_fast.models.engine.full_batches import FullBatches
from dori_fast.models.engine.opened import evaluating, opened
from dori_fast.models.engine.state import State, TextPart, Timestep
from dori_fast.models.masks import NeuronMask, WeightMask
from dori_fast.models.precision import fixed_precision
from dori_fast.models.text.conditions import pad_rows


class Engine:
    """A frozen network as a function of (text rows, latents, timestep).

    Every evaluation has ``batch_size`` samples, the last one padded. So on a CPU an output does not
    depend, to the bit, on order or on the neighbors in its batch. On a GPU that is not proven
    ("What 'to the bit' means" in docs/integrity.md).

    Attributes:
        backbone: the network.
        evaluations: sample evaluations so far, without padding and what ran out of memory.
    """

    def __init__(
        self, backbone: Backbone, batch_size: int | str, share: bool, execution: Execution
    ) -> None:
        self.backbone = backbone
        self.evaluations, self._generation = 0, 0
        self._share, self._wanted = share, execution
        self._opened = opened(self.backbone, self._share, self._wanted)
        automatic = batch_size == "auto"
        if automatic:
            with self.evaluating():
                graphs = self._opened.graphs
                batch_size = auto_batch_size(backbone, self._opened.program, graphs=graphs)
        self._batches = FullBatches(int(batch_size), self._opened.release, automatic=automatic)

    @property
    def not_shared(self) -> str | None:
        """The reason why work is not shared between samples, or None if it is."""
        return self._opened.not_shared

    @property
    def execution(self) -> Execution:
        """The switches, with nothing left to "auto"."""
        return self._opened.execution

    @property
    def _program(self) -> Program | None:
        return self._opened.program

    def look_again(self) -> None:
        """Notice what others have changed in the network since it was loaded.

        If methods, hooks, adapters, processors or attributes changed, the network is opened anew.
        If weights changed (except through ``.data``), results of the old ones are void. Takes
        about 1 ms for SD 1.x and 4 ms for SDXL on a CPU, next to a batch of evaluations.
        """
        snapshot = self._opened.snapshot
        with self.evaluating():
            changed = snapshot.changed()
        if changed:
            self._opened = opened(self.backbone, self._share, self._wanted)
            self._batches.release = self._opened.release
            self._generation += 1
        elif snapshot.written():
            self.weights_changed()
        elif self.backbone.borrowed and self._program is not None:
            # its owner may have written to the weights through .data
            self._program.weights_changed()

    @property
    def generation(self) -> int:
        """Number of changes of the network so far; results of earlier generations are void."""
        self.look_again()
        return self._generation

    @property
    def batches(self) -> FullBatches:
        """The evaluations in full batches."""
        return self._batches

    @property
    def batch_size(self) -> int:
        """Samples per evaluation (the fixed, padded batch shape), at this moment.

        Halved if memory runs out. Within :func:`.gradients.differentiating` it has another value.
        """
        return self._batches.size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        self._batches.size = value

    @property
    def rows_computed(self) -> int:
        """Rows of batches so far: samples, padding, and those of parts of the network."""
        return self._batches.rows

    @property
    def program(self) -> Program:
        """The network's stages.

        Raises:
            UsageError: the network runs whole.
        """
        return self.require_stages()

    @property
    def layers(self) -> list[str]:
        """Names of the cross-attention modules, in the order in which the network runs them."""
        return self.program.names

    @property
    def value_widths(self) -> Mapping[str, int]:
        """Number of value neurons of each cross-attention, by name."""
        return self.program.value_widths

    @property
    def second_linears(self) -> dict[str, nn.Module]:
        """The second linear layer of each feed-forward by name, in the same order."""
        return self.program.second_linears

    def require_stages(self) -> Program:
        """The network's stages; raises UsageError if it runs whole."""
        self.look_again()
        if self._program is None:
            raise UsageError(f"the layers of this model are not known ({self.not_shared})")
        return self._program

    def weights_changed(self) -> None:
        """Discard results of the old weights; call this after writes through ``.data``.

        Other writes are noticed before the next evaluation.
        """
        self._generation += 1
        if self._program is not None:
            self._program.weights_changed()

    def evaluating(self) -> AbstractContextManager[None]:
        """The context in which the network is opened and evaluated, in :meth:`precision`.

        In it, a borrowed network has no dropout and no gradients to its weights.
        """
        return evaluating(self.backbone, self._wanted.allow_tf32)

    def precision(self) -> AbstractContextManager[None]:
        """The :func:`.fixed_precision` of all evaluations; enter it for backward passes."""
        return fixed_precision(self._wanted.allow_tf32)

    @torch.no_grad()
    def share(self, latents: Tensor, timestep: Timestep) -> SharedLatents:
        """Do the work on latents [S, C, H, W] that does not depend on the text."""
        generation = self.generation
        program = self._program
        shared = SharedLatents(latents, timestep, None, generation=generation)
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
        program, shared = self.program, samples.shared
        self._check_layer(layer)

        def advanced(text: Tensor, which: Tensor) -> State:
            state = self._prefix(program, shared, which)
            part = self._text_part(program, samples, text)
            return program.between(state, part, shared.timestep_of(which), shared.layer, layer)

        state = self._in_batches(advanced, samples.text, samples.which)
        return SharedLatents(
            shared.latents, shared.timestep, state, layer, generation=self._generation
        )

    def outputs(self, samples: Samples) -> Tensor:
        """Network outputs [N, C, H, W]; they carry gradients to ``samples.unique``."""
        self.look_again()
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
        program, shared = self._variant(forward_mode), samples.shared
        self.evaluations += 2 * len(tangents)

        def derivative(text: Tensor, which: Tensor, sample: Tensor) -> State:
            part = self._text_part(program, samples, text)
            device, timestep = tangents.device, shared.timestep_of(which)
            latents = shared.latents[to_device(which, device)]

            # once more, as in ``evaluations``: the batch computes values and slopes
            self._batches.rows += len(which)

            def output(latents: Tensor) -> Tensor:
                return program.suffix(program.prefix(latents, timestep), part, timestep)

            along = tangents[to_device(sample, device)]
            with FusedDerivatives():
                slope = torch.func.jvp(output, (latents,), (along,))[1]
            return State(slope)

        order = torch.arange(len(tangents))
        return self._in_batches(derivative, samples.text, samples.which, order).x

    @torch.no_grad()
    def observe(self, samples: Samples, observe: Observe) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs [N, C, H, W], and values of ``observe`` by name of the second linear.

        ``observe`` receives the inputs of :attr:`second_linears`, a padded batch at a time. It must
        treat every sample by itself; its values for the padding are cut off.
        """
        program = self._variant(self._opened.kernel, observe)
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
        program, shared = self.program, samples.shared
        self._check_layer(layer)

        def received(text: Tensor, which: Tensor) -> State:
            state = self._prefix(program, shared, which)
            part = self._text_part(program, samples, text)
            timestep = shared.timestep_of(which)
            return State(program.token_attention(state, part, timestep, layer))

        return self._in_batches(received, samples.text, samples.which).x

    def _in_batches(self, compute: Callable[..., State], *indices: Tensor) -> State:
        """``compute`` on full batches of the indices [N], N >= 1; the padding is cut off."""
        with self.evaluating():
            return self._batches.run(compute, *indices)

    def _full_batch(self, samples: Samples, text: Tensor, which: Tensor) -> Tensor:
        unique, shared, program = samples.unique, samples.shared, self._program
        if program is None:
            if samples.masks is not None:
                raise UsageError(f"masks: the layers are not known ({self.not_shared})")
            rows = to_device(text, unique.device)
            pooled = None if samples.pooled is None else samples.pooled[rows]
            latents = shared.latents[to_device(which, unique.device)]
            timestep = shared.timestep_of(which)
            return self.backbone.whole(latents, timestep, unique[rows], pooled)
        state = self._prefix(program, shared, which)
        part = self._text_part(program, samples, text)
        return program.suffix(state, part, shared.timestep_of(which), shared.layer)

    def plain(
        self, latents: Tensor, timestep: Timestep, text: Tensor, pooled: Tensor | None = None
    ) -> Tensor:
        """The network's own forward on N samples, each with its own text [N, T, D]: [N, C, H, W].

        Nothing is shared or padded, and gradients reach the weights too.
        """
        self.evaluations += len(latents)
        self._batches.rows += len(latents)
        with self.precision():
            return self.backbone.whole(latents, timestep, text, pooled)

    @torch.no_grad()
    def _prefix(self, program: Program, shared: SharedLatents, which: Tensor) -> State:
        """The work before the text comes in, which therefore carries no gradient."""
        rows = to_device(which, shared.latents.device)
        if shared.state is not None and shared.generation == self._generation:
            return shared.state.take(rows)
        if shared.layer:
            raise UsageError(
                "the network changed after share_up_to, whose work is void; call it again"
            )
        return program.prefix(shared.latents[rows], shared.timestep_of(which))

    def _text_part(self, program: Program, samples: Samples, text: Tensor) -> TextPart:
        """The contribution of a batch of text rows [B], under the samples' masks.

        Each distinct row is projected once. Groups have a fixed size for the reason that batches
        are padded.
        """
        device, group = samples.unique.device, max(1, self.batch_size // 4)
        distinct, position = torch.unique(text, return_inverse=True)
        parts = []
        for rows in distinct.split(group):
            rows = to_device(pad_rows(rows, group), device)
            pooled = None if samples.pooled is None else samples.pooled[rows]
            parts.append(program.text_part(samples.unique[rows], pooled))
        part = TextPart.join(parts).take(to_device(position, device))
        return part if samples.masks is None else program.masked(part, samples.masks, text)

    def check_mask(self, mask: NeuronMask | WeightMask) -> None:
        """Raise UsageError if the mask's layers or widths are not the network's."""
        self.program.check_mask(mask)

    def copy(self) -> Engine:
        """An engine with the same settings on its own copy of the network."""
        own = Engine(self.backbone.copy(), self.batch_size, self._share, self._wanted)
        own._batches.automatic = self._batches.automatic
        return own

    def _variant(self, attention: Attention, observe: Observe | None = None) -> Program:
        """The stages with another attention kernel or an observer; raises as :attr:`program`."""
        self.require_stages()
        return self.backbone.program(attention, observe=observe)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < len(self.layers):
            raise UsageError(f"layer must be 0..{len(self.layers) - 1}, got {layer}")
