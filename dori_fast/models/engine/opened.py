"""The way in which the engine runs a network: whole or in stages, with which switches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from dori_fast.models.engine.attention import choose
from dori_fast.models.engine.backbone import Backbone
from dori_fast.models.engine.execution import Execution
from dori_fast.models.engine.graphs import Graphs
from dori_fast.models.engine.memory import free_cached
from dori_fast.models.engine.snapshot import Snapshot
from dori_fast.models.frozen import frozen
from dori_fast.models.precision import fixed_precision


@contextmanager
def evaluating(backbone: Backbone, allow_tf32: bool = False) -> Iterator[None]:
    """The context in which a network is opened and evaluated.

    In it, a borrowed network has no dropout and no gradients to its weights, and products have the
    precision of :func:`fixed_precision`. Afterwards all is as it was before.
    """
    unchanged = frozen(backbone.network) if backbone.borrowed else nullcontext()
    with fixed_precision(allow_tf32), unchanged:
        yield


def opened(backbone: Backbone, share: bool, wanted: Execution) -> Opened:
    """A network opened in evaluation mode."""
    with evaluating(backbone, wanted.allow_tf32):
        return Opened(backbone, share, wanted)


class Opened:
    """A network as it was at one moment. After changes by others it must be opened again.

    Args:
        backbone: the network.
        share: True to share work between samples, where the network allows it.
        wanted: the requested switches.

    Attributes:
        snapshot: the network's state at this moment.
        not_shared: reason why work is not shared between samples, or None if it is.
        kernel: attention kernel of the stages.
        execution: the switches, with nothing left to "auto".
        plain: the stages with no switch on, or None if the network runs whole.
        program: the stages with the switches on, or None.
        graphs: recorded CUDA graphs of ``program``, or None if they are off.

    Raises:
        UsageError: a switch cannot be on for this network.
    """

    def __init__(self, backbone: Backbone, share: bool, wanted: Execution) -> None:
        self.snapshot = Snapshot(backbone.network)
        self.not_shared = backbone.not_shared if share else "switched off"
        whole = self.not_shared and f"the network is called whole ({self.not_shared})"
        heads = () if whole else backbone.head_sizes
        name, self.kernel = choose(wanted.attention, backbone.device, backbone.dtype, heads)
        compiled, graphs = (
            wanted.on(switch, backbone.device, whole) for switch in ("compile", "cuda_graphs")
        )
        self.execution = Execution(
            attention="own" if whole else name,
            compile=compiled,
            channels_last=backbone.channels_last,
            cuda_graphs=graphs,
            allow_tf32=wanted.on("allow_tf32", backbone.device),
        )
        self.plain = self.program = None if whole else backbone.program(self.kernel)
        self.graphs = Graphs(backbone.network) if graphs else None
        if compiled or graphs:
            self.program = backbone.program(self.kernel, compiled=compiled, graphs=self.graphs)
        self._device = backbone.device

    def release(self) -> None:
        """Free memory that no result needs: CUDA graphs, and what torch holds unused."""
        if self.graphs is not None:
            self.graphs.clear()
        free_cached(self._device)
