"""CUDA graphs: the launches of a batch recorded once for each shape, then replayed as one.

They help where a batch is so small that launching takes longer than computing. A replay repeats the
same kernels on the same shapes; a gpu test compares its bits with those of the launches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dori_fast.models.engine.state import State, TextPart

Run = Callable[[State, TextPart, Any], State]
_GRAPHS_KEPT = 8


class Graphs:
    """Recorded runs of stages by place and input shapes; the latest few are kept."""

    def __init__(self) -> None:
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recorded)

    def run(self, place: Hashable, compute: Run, state: State, text: TextPart, extra: Any) -> State:
        """``compute(state, text, extra)``, replayed if there is no gradient or weight mask.

        ``extra`` is any pytree of tensors.
        """
        time = () if text.time is None else (text.time,)
        leaves, structure = tree_flatten((state.x, state.kept, text.keys_values, time, extra))
        differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
        if differentiated or text.pruned:
            return compute(state, text, extra)

        def on_leaves(leaves: list[Tensor]) -> State:
            x, kept, keys_values, time, extra = tree_unflatten(leaves, structure)
            return compute(State(x, kept), TextPart(keys_values, *time), extra)

        key = (place, structure, tuple((x.shape, x.stride()) for x in leaves))
        with torch.cuda.device(state.x.device):
            if key not in self._recorded:
                self._recorded[key] = _Recorded(on_leaves, leaves)
                if len(self._recorded) > _GRAPHS_KEPT:
                    self._recorded.popitem(last=False)
            self._recorded.move_to_end(key)
            return self._recorded[key](leaves)


class _Recorded:
    """One recorded run, with tensors of its own for inputs and outputs."""

    def __init__(self, compute: Callable[[list[Tensor]], State], leaves: list[Tensor]) -> None:
        self._inputs = [x.clone() for x in leaves]
        # in a first run, on a separate stream, libraries choose kernels and allocate workspaces
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            compute(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), torch.no_grad():
            self._output = compute(self._inputs)

    def __call__(self, leaves: list[Tensor]) -> State:
        torch._foreach_copy_(self._inputs, leaves)
        self._graph.replay()
        return State(self._output.x.clone(), tuple(kept.clone() for kept in self._output.kept))
