"""NeMo's candidates: the neurons that a prompt activates unusually, or most."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

Neuron = tuple[int, int]
"""(layer, neuron), the layer as an index into the searched layers."""
Blocked = frozenset[Neuron]

THETA_END = 1.0
"""The theta at which the released code ends its search."""
_THETA, _THETA_STEP = 5.0, 0.25


@dataclass(frozen=True)
class Candidates:
    """The candidate neurons of one choice of theta and k.

    Attributes:
        theta: z-score above which a neuron is a candidate.
        k: number of neurons with the largest magnitudes of each layer that are candidates too.
        neurons: (layer, neuron) in the released code's order: by layer, the unusual ones by index,
            then those with the largest magnitudes, in falling order. A slot is an index into this
            list.
        depth: number of layers.
    """

    theta: float
    k: int
    neurons: tuple[Neuron, ...]
    depth: int

    def by_layer(self, slots: Collection[int] | None = None) -> list[list[int]]:
        """Neurons of each layer in order, of all slots or the given ones."""
        lists: list[list[int]] = [[] for _ in range(self.depth)]
        for slot, (layer, neuron) in enumerate(self.neurons):
            if slots is None or slot in slots:
                lists[layer].append(neuron)
        return lists

    def blocked(self, slots: Collection[int]) -> Blocked:
        """The neurons in the given slots; a neuron that is listed twice is blocked once."""
        return frozenset(self.neurons[slot] for slot in slots)

    def layer(self, slots: Collection[int]) -> int:
        """The first layer of the given slots."""
        return min(self.neurons[slot][0] for slot in slots)

    def layers(self) -> list[frozenset[int]]:
        """The slots of each layer that has any, deepest layer first."""
        return [
            group
            for layer in reversed(range(self.depth))
            if (group := frozenset(s for s, (at, _) in enumerate(self.neurons) if at == layer))
        ]

    def singles(self, slots: Collection[int]) -> list[frozenset[int]]:
        """Each of the given slots by itself, deepest layer first, then in order."""
        return [frozenset([slot]) for slot in sorted(slots, key=lambda s: (-self.neurons[s][0], s))]


class CandidateSets:
    """Candidates of one prompt for falling theta and growing k.

    Args:
        magnitudes: the prompt's magnitudes [C] by layer.
        mean: means [C] over clean prompts by layer.
        std: standard deviations [C] over clean prompts by layer.
        twice: list a neuron that is both unusual and among the largest twice, as the released
            code does.
    """

    def __init__(
        self,
        magnitudes: Sequence[Tensor],
        mean: Sequence[Tensor],
        std: Sequence[Tensor],
        twice: bool,
    ) -> None:
        self._magnitudes = magnitudes
        self._z_scores = [
            (a.double() - m).abs() / s for a, m, s in zip(magnitudes, mean, std, strict=True)
        ]
        self._twice = twice

    def at(self, theta: float, k: int) -> Candidates:
        """The candidates of one choice."""
        neurons: list[Neuron] = []
        for layer, (z_scores, magnitudes) in enumerate(
            zip(self._z_scores, self._magnitudes, strict=True)
        ):
            listed = (z_scores > theta).nonzero()[:, 0].tolist()
            largest = magnitudes.topk(min(k, len(magnitudes))).indices.tolist()
            seen = set() if self._twice else set(listed)
            listed += [neuron for neuron in largest if neuron not in seen]
            neurons += [(layer, neuron) for neuron in listed]
        return Candidates(theta, k, tuple(neurons), len(self._z_scores))

    def down_to(self, end: float = THETA_END) -> list[Candidates]:
        """Candidates from theta 5 and k 0; theta falls in steps of 0.25, k grows by 1.

        The released code lowers theta before it checks whether to stop, so ``end`` itself is not
        tested: by default the last set has theta 1.25 and k 15.
        """
        count = math.ceil((_THETA - end) / _THETA_STEP)
        return [self.at(_THETA - i * _THETA_STEP, i) for i in range(count)]
