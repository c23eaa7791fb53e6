"""A network's intermediate results, kept so that a derivative does not compute them again.

In forward mode torch computes an operation's value and its derivative side by side. Values that
were computed just before, from the very same tensors, are handed out again; derivatives are new.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Replay(TorchDispatchMode):
    """Within it every operation is remembered and not run again on the same tensors.

    Tensors are the same if they are the same memory, seen in the same way; all that are remembered
    are held, so that their memory is not given to others. They must not be written to: operations
    that write, and those that give views or draw random numbers, are left alone.

    Attributes:
        computed: operations that ran.
        replayed: operations that did not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Any, tuple[Any, Any]] = {}
        self.computed, self.replayed = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view or func._schema.is_mutable or _draws(func):
            return func(*args, **kwargs)
        key = (func, *(_identity(leaf) for leaf in tree_flatten((args, kwargs))[0]))
        if key in self._known:
            self.replayed += 1
            return self._known[key][1]
        result = func(*args, **kwargs)
        self.computed += 1
        self._known[key] = ((args, kwargs), result)
        return result


def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _identity(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return (leaf.data_ptr(), leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
    return type(leaf), repr(leaf) if isinstance(leaf, float) else leaf
