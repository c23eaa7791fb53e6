"""Similarities of a prompt's noise differences with and without blocked neurons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from dori_fast._checks import require_finite
from dori_fast.models import Denoiser, NeuronMask, SharedLatents, TextCondition
from dori_fast.models.probes import change_of_noise
from dori_fast.ops import ms_ssim_pairs

Neuron = tuple[int, int]
"""(layer, neuron), the layer as an index into the searched layers."""
Blocked = frozenset[Neuron]


class Scorer:
    """Similarities of one prompt's noise differences to the unblocked ones.

    The score of a set of blocked neurons is the largest MS-SSIM, over seeds, of the seed's noise
    difference with and without the block. As in a call of the released code, the seeds of one mask
    share a data range.

    Args:
        model: the denoiser.
        condition: P = 1 prompt.
        shared: the initial noise of S seeds.
        delta: noise differences of the seeds [S, C, H, W] with nothing blocked.
        layers: searched cross-attentions, in the order of ``model.layers``.
        width: largest number of masks scored at once.
        units: units of the noise differences; see :func:`dori_fast.models.probes.change_of_noise`.

    Attributes:
        tests: distinct sets that were scored.
    """

    def __init__(
        self,
        model: Denoiser,
        condition: TextCondition,
        shared: SharedLatents,
        delta: Tensor,
        layers: Sequence[str],
        width: int,
        units: str = "epsilon",
    ) -> None:
        self._model, self._condition, self._shared, self._delta = model, condition, shared, delta
        self._layers, self.width, self._units = layers, width, units
        self._widths = {name: model.engine.value_widths[name] for name in layers}
        self._known: dict[Blocked, float] = {}
        self._prefix: tuple[tuple[int, Blocked], SharedLatents] | None = None
        # with nothing blocked every noise difference equals itself
        self._known[frozenset()] = 1.0

    @property
    def tests(self) -> int:
        return len(self._known) - 1

    def known(self, blocked: Blocked) -> float:
        """The score of a blocked set that was scored before."""
        return self._known[blocked]

    def scores(self, trials: Sequence[Blocked], first: int) -> list[float]:
        """Scores of blocked sets that are equal in all layers before layer ``first``."""
        new = list(dict.fromkeys(trial for trial in trials if trial not in self._known))
        for start in range(0, len(new), self.width):
            part = new[start : start + self.width]
            for trial, score in zip(part, self._evaluate(part, first), strict=True):
                self._known[trial] = score
        return [self._known[trial] for trial in trials]

    def _evaluate(self, trials: Sequence[Blocked], first: int) -> list[float]:
        shared = self._shared_up_to(first, trials[0])
        view = self._model.masked(self._mask(trials))
        text = self._condition.embeddings.expand(len(trials), -1, -1)
        condition = view.condition(text, self._pooled(len(trials)))
        blocked = change_of_noise(view, condition, shared, self._units)
        similarity = ms_ssim_pairs(self._delta, blocked).amax(1)
        require_finite("nemo", "similarities under masks", similarity, self._model.dtype)
        found: list[float] = similarity.tolist()
        return found

    def _pooled(self, n: int) -> Tensor | None:
        pooled = self._condition.pooled
        return None if pooled is None else pooled.expand(n, -1)

    def _shared_up_to(self, first: int, trial: Blocked) -> SharedLatents:
        """The noise after all layers before layer ``first``, with the trial's neurons blocked."""
        before = frozenset(neuron for neuron in trial if neuron[0] < first)
        key = (first, before)
        if self._prefix is not None and self._prefix[0] == key:
            return self._prefix[1]
        layer = self._model.layers.index(self._layers[first])
        if layer == 0:
            return self._shared
        model = self._model.masked(self._mask([before])) if before else self._model
        self._prefix = (key, model.share_up_to(layer, self._condition, self._shared))
        return self._prefix[1]

    def _mask(self, trials: Sequence[Iterable[Neuron]]) -> NeuronMask:
        neurons: list[dict[str, list[int]]] = []
        for trial in trials:
            by_layer: dict[str, list[int]] = {}
            for layer, neuron in trial:
                by_layer.setdefault(self._layers[layer], []).append(neuron)
            neurons.append(by_layer)
        return NeuronMask.blocking(neurons, self._widths)
