"""CUDA graphs: the launches of a batch recorded once for each shape, then replayed as one.

They help where a batch is so small that launching takes longer than computing. A replay repeats
the same kernels on the same shapes; a gpu test compares its bits with those of the launches.

A graph reads weights where they were when it was recorded, so all graphs are dropped once a weight
lies elsewhere. Graphs of one model share a memory pool: replays follow one another, inputs lie
outside it, and outputs are copied before the next replay. So all graphs together take the memory of
the largest, besides their inputs and outputs. Where memory runs out while a graph is recorded, its
launches run one by one.
"""

from __future__ import annotations

import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dori_fast.models.engine.memory import free_cached, out_of_memory
from dori_fast.models.engine.state import State, TextPart

_log = logging.getLogger(__name__)

Run = Callable[[State, TextPart, Any], State]
Compute = Callable[[Sequence[Tensor]], State]
"""A computation on tensors of fixed dtypes and shapes."""
_GRAPHS_KEPT = 8


class Recorder(Protocol):
    """Records computations."""

    def __call__(self, compute: Compute, inputs: list[Tensor]) -> Compute:
        """The computation, recorded on ``inputs``, as a function that replays it on others."""

    def restart(self) -> None:
        """Note that no earlier record exists any more."""


class Graphs:
    """Recorded runs of stages by place, dtypes and shapes of the inputs; the latest 8 are kept.

    Args:
        network: module whose weights the stages read.
        recorder: how a run is recorded; default: as a CUDA graph.
    """

    def __init__(self, network: nn.Module, recorder: Recorder | None = None) -> None:
        self._recorded: OrderedDict[Hashable, Compute] = OrderedDict()
        self._recorder = recorder or CudaRecorder()
        self._weights: list[Mapping[str, Tensor | None]] = [
            weights
            for module in network.modules()
            for weights in (module._parameters, module._buffers)
        ]
        self._addresses: list[int] = []
        # runs whose recording took more memory than there was
        self._too_large: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._recorded)

    def clear(self) -> None:
        """Drop all graphs, and their memory with them."""
        self._recorded.clear()
        self._too_large.clear()

    def run(self, place: Hashable, compute: Run, state: State, text: TextPart, extra: Any) -> State:
        """``compute(state, text, extra)``, replayed if there is no gradient or weight mask.

        ``extra`` is any pytree of tensors and None.
        """
        time = () if text.time is None else (text.time,)
        leaves, structure = tree_flatten((state.x, state.kept, text.keys_values, time, extra))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if differentiated or text.pruned:
            return compute(state, text, extra)
        # None, where an input is left out, is a leaf as well
        others = tuple(None if isinstance(x, Tensor) else (x,) for x in leaves)

        def on_tensors(tensors: Sequence[Tensor]) -> State:
            given = iter(tensors)
            filled = [next(given) if other is None else other[0] for other in others]
            x, kept, keys_values, time, extra = tree_unflatten(filled, structure)
            return compute(State(x, kept), TextPart(keys_values, *time), extra)

        self._look_at_weights()
        key = (place, structure, others, tuple((x.dtype, x.shape, x.stride()) for x in tensors))
        replay = self._recorded.get(key) or self._record(key, on_tensors, tensors)
        if replay is None:
            return compute(state, text, extra)
        self._recorded.move_to_end(key)
        return replay(tensors)

    def _record(self, key: Hashable, compute: Compute, tensors: list[Tensor]) -> Compute | None:
        """The new graph, or None if it does not fit into memory."""
        if key in self._too_large:
            return None
        while len(self._recorded) >= _GRAPHS_KEPT:
            self._recorded.popitem(last=False)
        if not self._recorded:
            self._recorder.restart()
        outer = sys.exc_info()[1]
        try:
            recorded = self._recorder(compute, [x.clone() for x in tensors])
        except RuntimeError as error:
            if not out_of_memory(error, outer):
                raise
        else:
            self._recorded[key] = recorded
            return recorded
        # outside the handler, whose traceback would keep the failed run's tensors
        self._too_large.add(key)
        free_cached(tensors[0].device)
        _log.warning("out of memory for a CUDA graph: its launches run one by one")
        return None

    def _look_at_weights(self) -> None:
        addresses = [
            weight.data_ptr()
            for weights in self._weights
            for weight in weights.values()
            if weight is not None
        ]
        if addresses != self._addresses:
            self.clear()
            self._addresses = addresses


class CudaRecorder:
    """Records CUDA graphs that share one memory pool and one stream."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def restart(self) -> None:
        # torch refuses the handle of a pool whose graphs are all gone
        self._pool = None

    def __call__(self, compute: Compute, inputs: list[Tensor]) -> Compute:
        device = inputs[0].device
        with torch.cuda.device(device):
            # torch's own capture stream is one for the process, on the device that came first
            self._stream = self._stream or torch.cuda.Stream(device)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            here = torch.cuda.current_stream(device)
            self._stream.wait_stream(here)
            graph: Any = torch.cuda.CUDAGraph()
            # the outer context also leaves the stream if the capture cannot be ended
            with torch.cuda.stream(self._stream), torch.no_grad():
                # in a first run, libraries choose kernels and allocate workspaces; entering the
                # capture empties torch's cache, and so frees what this run took
                compute(inputs)
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    output = compute(inputs)
            here.wait_stream(self._stream)

        def replay(tensors: Sequence[Tensor]) -> State:
            with torch.cuda.device(device):
                torch._foreach_copy_(inputs, list(tensors))
                graph.replay()
                return State(output.x.clone(), tuple(kept.clone() for kept in output.kept))

        return replay
