"""CUDA graphs: the launches of a batch recorded once for each shape, then replayed as one.

They help where a batch is so small that launching takes longer than computing. A replay gives the
same bits as the launches that it repeats.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from dori_fast.models.engine.state import State, TextPart, TimeBiases

Run = Callable[[State, TextPart | None, TimeBiases | None], State]
_GRAPHS_KEPT = 8


class Graphs:
    """Recorded runs of stages by place and by the shapes that go in; the last ones are kept."""

    def __init__(self) -> None:
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recorded)

    def run(
        self,
        place: Hashable,
        compute: Run,
        state: State,
        text: TextPart | None,
        biases: TimeBiases | None,
    ) -> State:
        """``compute(state, text, biases)``, replayed if there is no gradient or weight mask."""
        keys_values = None if text is None else text.keys_values
        leaves, structure = tree_flatten((state.x, state.kept, keys_values, biases))
        differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in leaves)
        if differentiated or (text is not None and text.pruned):
            return compute(state, text, biases)

        def on_leaves(leaves: list[Tensor]) -> State:
            x, kept, keys_values, biases = tree_unflatten(leaves, structure)
            text = None if keys_values is None else TextPart(keys_values)
            return compute(State(x, kept), text, biases)

        key = (place, structure, tuple((x.shape, x.stride()) for x in leaves))
        with torch.cuda.device(state.x.device):
            if key not in self._recorded:
                self._recorded[key] = _Recorded(on_leaves, leaves)
                if len(self._recorded) > _GRAPHS_KEPT:
                    self._recorded.popitem(last=False)
            self._recorded.move_to_end(key)
            return self._recorded[key](leaves)


class _Recorded:
    """One recorded run: inputs are copied to where it reads, the output from where it writes."""

    def __init__(self, compute: Callable[[list[Tensor]], State], leaves: list[Tensor]) -> None:
        self._inputs = [x.clone() for x in leaves]
        # libraries choose kernels and take their workspaces in a first run, on a stream of its own
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
