"""NeMo's candidates: neurons that a prompt activates unusually, or most."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from dori_fast.prune.nemo.scorer import Blocked, Neuron

THETA_END = 1.0
"""Where the released code gives up."""
_THETA, _THETA_STEP = 5.0, 0.25


@dataclass(frozen=True)
class Rung:
    """The neurons that one choice of theta and k blocks.

    Attributes:
        theta: z-score above which a neuron is a candidate.
        k: this many with the largest magnitudes of each layer are candidates too.
        neurons: (layer, neuron) in the released code's order: by layer, the unusual ones by index,
            then the largest, largest first. A slot's number is its place in this list.
        depth: number of layers.
    """

    theta: float
    k: int
    neurons: tuple[Neuron, ...]
    depth: int

    def by_layer(self, slots: Collection[int] | None = None) -> list[list[int]]:
        """Lists of neurons for each layer, of all slots or the given ones, in order."""
        lists: list[list[int]] = [[] for _ in range(self.depth)]
        for slot, (layer, neuron) in enumerate(self.neurons):
            if slots is None or slot in slots:
                lists[layer].append(neuron)
        return lists

    def blocked(self, slots: Collection[int]) -> Blocked:
        """The neurons in the given slots; one that is listed twice is blocked once."""
        return frozenset(self.neurons[slot] for slot in slots)

    def layer(self, slots: Collection[int]) -> int:
        """The first layer that the given slots lie in."""
        return min(self.neurons[slot][0] for slot in slots)

    def layers(self) -> list[frozenset[int]]:
        """The slots of each layer that has any, the deepest layer first."""
        return [
            group
            for layer in reversed(range(self.depth))
            if (group := frozenset(s for s, (at, _) in enumerate(self.neurons) if at == layer))
        ]

    def singles(self, slots: Collection[int]) -> list[frozenset[int]]:
        """Each of the given slots by itself: the deepest layer first, then in order."""
        return [frozenset([slot]) for slot in sorted(slots, key=lambda s: (-self.neurons[s][0], s))]


class Ladder:
    """Candidates of one prompt for falling theta and growing k.

    Args:
        magnitudes: [C] of the prompt, by layer.
        mean: [C] over clean prompts, by layer.
        std: [C] over clean prompts, by layer.
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
        self._unusual = [
            (a.double() - m).abs() / s for a, m, s in zip(magnitudes, mean, std, strict=True)
        ]
        self._twice = twice

    def rung(self, theta: float, k: int) -> Rung:
        """The candidates of one choice."""
        neurons: list[Neuron] = []
        for layer, (unusual, magnitudes) in enumerate(
            zip(self._unusual, self._magnitudes, strict=True)
        ):
            listed = (unusual > theta).nonzero()[:, 0].tolist()
            largest = magnitudes.topk(min(k, len(magnitudes))).indices.tolist()
            seen = set() if self._twice else set(listed)
            listed += [neuron for neuron in largest if neuron not in seen]
            neurons += [(layer, neuron) for neuron in listed]
        return Rung(theta, k, tuple(neurons), len(self._unusual))

    def rungs(self, end: float = THETA_END) -> list[Rung]:
        """From theta 5 and k 0 on: theta falls by a quarter, k grows by one.

        The released code lowers theta before it asks whether to stop, so ``end`` is never tested:
        the last rung has theta 1.25 and k 15.
        """
        count = round((_THETA - end) / _THETA_STEP)
        return [self.rung(_THETA - i * _THETA_STEP, i) for i in range(count)]
