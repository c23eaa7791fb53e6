"""The state of a network at one moment, to notice what others change in it afterwards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_WEIGHTS = ("_parameters", "_buffers")
_CONTAINERS = {dict, list, set, OrderedDict}


class Snapshot:
    """Code, structure and weights of a network, by identity.

    A change of a module's attributes, children or hooks is noticed, or of a function of its class;
    so is a weight that was replaced or written to (except through ``.data``, which torch does not
    count).

    Args:
        network: the network; something else than a module never changes.
    """

    def __init__(self, network: Any) -> None:
        self._network = network if isinstance(network, nn.Module) else None
        self._state, self._classes = self._look()
        self._written = self._weights()

    def changed(self) -> bool:
        """Whether code or structure are not those of the moment."""
        modules = [] if self._network is None else [*self._network.modules()]
        if len(modules) != len(self._state):
            return True
        same = all(
            module is known and type(module) is kind and _equal(vars(module), state)
            for module, (known, kind, state) in zip(modules, self._state, strict=True)
        )
        return not (same and all(_equal(vars(kind).copy(), known) for kind, known in self._classes))

    def written(self) -> bool:
        """Whether weights have changed since the moment, or since the last call."""
        now, before = self._weights(), self._written
        self._written = now
        return len(now) != len(before) or any(
            weight is not known or version != then
            for (weight, version), (known, then) in zip(now, before, strict=True)
        )

    def _look(self) -> tuple[list[Any], list[Any]]:
        state: list[Any] = []
        classes: dict[type, None] = {}
        for module in () if self._network is None else self._network.modules():
            state.append((module, type(module), _copied(vars(module))))
            classes |= dict.fromkeys(type(module).__mro__)
            processor = getattr(module, "processor", None)
            classes |= dict.fromkeys(type(processor).__mro__)
        return state, [(kind, vars(kind).copy()) for kind in classes]

    def _weights(self) -> list[tuple[Tensor, int]]:
        return [
            (weight, 0 if weight.is_inference() else weight._version)
            for module, _, _ in self._state
            for name in _WEIGHTS
            for weight in getattr(module, name).values()
            if weight is not None
        ]


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of attributes, and of the lists and dictionaries among them, weights left out."""
    return {
        # the same dictionary of weights is equal to itself, whatever is in it
        name: value.copy() if type(value) in _CONTAINERS and name not in _WEIGHTS else value
        for name, value in state.items()
    }


def _equal(now: Mapping[str, Any], known: dict[str, Any]) -> bool:
    """Whether attributes are the same objects, or equal ones."""
    try:
        return bool(now == known)
    except (RuntimeError, ValueError, TypeError):
        # two tensors or arrays that cannot be compared in one word are not the same one
        return False
