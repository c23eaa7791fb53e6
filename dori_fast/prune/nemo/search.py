"""NeMo: find the value neurons that make a prompt reproduce its image.

Hintersdorf, Struppek et al., "Finding NeMo: Localizing Neurons Responsible For Memorization in
Diffusion Models" (NeurIPS 2024). For one prompt, with noise differences

    delta_s = eps(x_T, t, c) - x_T          of seeds s

1. keep the seeds whose delta resembles another seed's (MS-SSIM above ``threshold``); without any,
   the prompt is not memorized;
2. block the neurons with |a - mean| / std > theta, and the k largest a of each layer (a are
   magnitudes, :mod:`dori_fast.prune.nemo.statistics`), with theta falling and k growing until no
   kept delta resembles its unblocked one any more;
3. un-block whole layers, then single neurons, deepest layer first, wherever no delta comes to
   resemble its unblocked one again.

The released code (METHODS.md of NeMo) spends two passes per test, on all seeds and one mask at a
time. Here masks share batches, the tests of a layer share the part of the network before it,
outcomes are guessed ahead (``refine``), and equal masks are scored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dori_fast._checks import require_finite, threshold_number
from dori_fast.errors import UsageError
from dori_fast.models import Denoiser, NeuronMask, SharedLatents, TextCondition, stack
from dori_fast.models.probes import change_of_noise, value_magnitudes
from dori_fast.models.schedules.vp import DDIM_STEPS, require_units, units_config
from dori_fast.models.text.prompts import list_of_str
from dori_fast.ops import largest_per_map, ms_ssim
from dori_fast.prune.nemo.candidates import THETA_END, Candidates, CandidateSets
from dori_fast.prune.nemo.refine import refine_candidates
from dori_fast.prune.nemo.result import Search
from dori_fast.prune.nemo.scorer import Scorer
from dori_fast.prune.nemo.statistics import NeuronStatistics

THRESHOLD = 0.428
"""The paper's threshold: mean plus one standard deviation over 50,000 LAION prompts, on SD 1.4."""
_SEEDS = 10


class NeMo:
    """NeMo's search.

    Args:
        statistics: statistics of the model's value neurons over clean prompts; default: those over
            the 2,000 captions of the package, collected once for each model.
        layers: names of the cross-attentions to search; default: the paper's, all in the down and
            mid blocks. ``"all"`` adds those in the up blocks.
        mode: ``"paper"``: seeds 0..9, the noisiest timestep, each neuron listed once; or
            ``"reference"``, the released code (localizing_memorization_in_diffusion_models at
            f952ede): ten noises drawn at once from seed 1, the second timestep (961), and a neuron
            that is both unusual and among the largest is listed, and tested, twice. The dtype is
            the model's in both modes; the released code uses half precision.
        threshold: similarity above which noise differences are alike.
        theta_end: z-score, below 5, at which the search for candidates ends; not tested itself.
        width: largest number of masks scored at once; default: as many as fill a batch on a GPU,
            one on a CPU, where the seeds of one mask are enough. 1 tests one by one.
        units: units of noise differences, as in :class:`dori_fast.detect.NeMo`.
    """

    name = "nemo"

    def __init__(
        self,
        statistics: NeuronStatistics | None = None,
        *,
        layers: Sequence[str] | Literal["encoder", "all"] = "encoder",
        mode: Literal["paper", "reference"] = "paper",
        threshold: float = THRESHOLD,
        theta_end: float = THETA_END,
        width: int | None = None,
        units: str = "epsilon",
    ) -> None:
        if mode not in ("paper", "reference"):
            raise UsageError(f"nemo: mode must be 'paper' or 'reference', got {mode!r}")
        if isinstance(layers, str) and layers not in ("encoder", "all"):
            raise UsageError(
                "nemo: layers must be 'encoder', 'all' or a list of names of cross-attentions, got"
                f" {layers!r}"
            )
        if not isinstance(layers, str):
            layers = list_of_str("nemo", layers, "layers")
            if not layers:
                raise UsageError("nemo: layers must name at least one cross-attention")
        if width is not None and width < 1:
            raise UsageError(f"nemo: width must be at least 1, got {width}")
        self.mode, self.threshold = mode, threshold_number("nemo", threshold)
        self._given, self._taken = statistics, WeakKeyDictionary[Any, NeuronStatistics]()
        if not 0 <= theta_end < 5:
            raise UsageError(f"nemo: theta_end must be in 0..5, got {theta_end}")
        require_units("nemo", units)
        self.theta_end, self._layers, self._width = float(theta_end), layers, width
        self.units = units

    def localize(self, model: Denoiser, prompts: Sequence[str] | TextCondition) -> NeuronMask:
        """One mask per prompt or embedding, M = P; it blocks nothing for an unmemorized prompt.

        Raises:
            UsageError: no prompts, layers that the model or the statistics lack, or an
                architecture with unknown layers.
        """
        if not isinstance(prompts, TextCondition):
            prompts = list_of_str("nemo", prompts)
        if not prompts:
            raise UsageError("nemo: no prompts")
        if isinstance(prompts, TextCondition):
            each = [prompts[i : i + 1] for i in range(len(prompts))]
            return stack([self.search(model, one).mask for one in each])
        return stack([self.search(model, prompt).mask for prompt in prompts])

    def statistics(self, model: Denoiser) -> NeuronStatistics:
        """The given statistics, or those of the shipped captions."""
        if self._given is not None:
            return self._given
        if model.unet not in self._taken:
            self._taken[model.unet] = NeuronStatistics.shipped(model)
        return self._taken[model.unet]

    def config(self) -> dict[str, Any]:
        """Everything that the neurons depend on besides the model, as plain JSON."""
        layers = self._layers if isinstance(self._layers, str) else list(self._layers)
        return {
            "name": self.name,
            "mode": self.mode,
            "layers": layers,
            "threshold": self.threshold,
            "theta_end": self.theta_end,
            "statistics": self._given and self._given.sha256(),
            **units_config(self.units),
        }

    def layers(self, model: Denoiser) -> list[str]:
        """The layers to search, in the order in which the network runs them."""
        if self._layers == "all":
            chosen = model.layers
        elif self._layers == "encoder":
            chosen = [name for name in model.layers if not name.startswith("up_blocks.")]
        else:
            unknown = [name for name in self._layers if name not in model.layers]
            if unknown:
                raise UsageError(
                    f"nemo: no cross-attention {unknown[0]!r}; there are {', '.join(model.layers)}"
                )
            chosen = [name for name in model.layers if name in self._layers]
        statistics = self.statistics(model)
        missing = [name for name in chosen if name not in statistics.mean]
        if missing:
            raise UsageError(f"nemo: the statistics lack {missing[0]}; collect them for this model")
        return chosen

    @torch.no_grad()
    def search(self, model: Denoiser, prompt: str | TextCondition) -> Search:
        """Find the neurons of one prompt or embedding (the result's ``prompt`` is then empty).

        Raises:
            UsageError: the cases of :meth:`localize`, or more than one prompt.
            NonFiniteError: noise differences or neurons that are NaN or infinite.
        """
        if not isinstance(prompt, str) and (
            not isinstance(prompt, TextCondition) or len(prompt) != 1
        ):
            kind = type(prompt).__name__
            raise UsageError(f"nemo: search takes one str or one condition, got a {kind}")
        with _batches_of(model, self._at_once(model, _SEEDS) * _SEEDS):
            return self._search(model, prompt)

    def _at_once(self, model: Denoiser, seeds: int) -> int:
        """The number of masks to score at once."""
        busy = _SEEDS if model.device.type == "cpu" else model.batch_size
        return self._width or max(1, busy // seeds)

    def _search(self, model: Denoiser, prompt: str | TextCondition) -> Search:
        layers, before = self.layers(model), model.engine.evaluations
        condition = model.encode([prompt]) if isinstance(prompt, str) else prompt
        name = prompt if isinstance(prompt, str) else ""
        noise, timestep = self._noise(model)
        shared = model.share(noise, timestep)
        delta = change_of_noise(model, condition, shared, self.units)[0]
        alike = largest_per_map(ms_ssim(delta[None]))[0]
        require_finite("nemo", "similarities of noise differences", alike, model.dtype)
        found = Search(
            name, layers, {n: model.engine.value_widths[n] for n in layers}, float(alike.max())
        )
        kept = (alike > self.threshold).nonzero()[:, 0].tolist()
        if kept:
            scorer = self._scorer(model, condition, shared, delta, kept, layers)
            self._find(scorer, self._candidates(model, condition, layers), found)
            found.tests = scorer.tests
        found.seeds, found.evaluations = kept, model.engine.evaluations - before
        return found

    def _noise(self, model: Denoiser) -> tuple[Tensor, int]:
        timesteps = model.timesteps(DDIM_STEPS)
        if self.mode == "paper":
            return model.noise(range(_SEEDS)), timesteps[0]
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(_SEEDS, *model.latent_shape, generator=generator)
        return noise.to(model.device, model.dtype), timesteps[1]

    def _scorer(
        self,
        model: Denoiser,
        condition: TextCondition,
        shared: SharedLatents,
        delta: Tensor,
        kept: Sequence[int],
        layers: Sequence[str],
    ) -> Scorer:
        rows = torch.tensor(kept)
        width = self._at_once(model, len(kept))
        part = shared.take(rows)
        kept_delta = delta[rows.to(delta.device)]
        return Scorer(model, condition, part, kept_delta, layers, width, self.units)

    def _candidates(
        self, model: Denoiser, condition: TextCondition, layers: Sequence[str]
    ) -> CandidateSets:
        magnitudes, usual = value_magnitudes(model, condition, layers), self.statistics(model)
        for name in layers:
            require_finite("nemo", f"magnitudes of {name}", magnitudes[name], model.dtype)
        return CandidateSets(
            [magnitudes[name][0].cpu() for name in layers],
            [usual.mean[name] for name in layers],
            [usual.std[name] for name in layers],
            twice=self.mode == "reference",
        )

    def _find(self, scorer: Scorer, sets: CandidateSets, found: Search) -> None:
        initial, similarity = self._initial(scorer, sets)
        # if even the last candidates leave too much similarity, refinement must not raise it
        threshold = similarity if similarity > self.threshold else self.threshold
        found.theta, found.k, found.threshold = initial.theta, initial.k, threshold
        found.initial, found.initial_similarity = initial.by_layer(), similarity
        slots = refine_candidates(initial, scorer, threshold)
        found.refined = initial.by_layer(slots)
        found.refined_similarity = scorer.known(initial.blocked(slots))

    def _initial(self, scorer: Scorer, sets: CandidateSets) -> tuple[Candidates, float]:
        """The first candidates whose similarity is not above the threshold, else the last ones."""
        tries = sets.down_to(self.theta_end)
        for start in range(0, len(tries), scorer.width):
            part = tries[start : start + scorer.width]
            similarities = scorer.scores([frozenset(each.neurons) for each in part], 0)
            for candidates, similarity in zip(part, similarities, strict=True):
                if not similarity > self.threshold:
                    return candidates, similarity
        return tries[-1], similarities[-1]


@contextmanager
def _batches_of(model: Denoiser, samples: int) -> Iterator[None]:
    """Limit UNet batches to this size within the block, since padding costs as much as samples."""
    before = model.batch_size
    model.batch_size = min(before, samples)
    try:
        yield
    finally:
        model.batch_size = before
