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
time. Here the masks of several prompts share batches (``lockstep``), the tests of a layer share the
part of the network before it (``masked_rows``), and equal masks are scored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dori_fast._checks import require_finite, threshold_number, to_device
from dori_fast.errors import NonFiniteError, UsageError
from dori_fast.models import Denoiser, NeuronMask, TextCondition, stack
from dori_fast.models.probes import change_of_noise, value_magnitudes
from dori_fast.models.schedules.vp import DDIM_STEPS, require_units, units_config
from dori_fast.models.text.prompts import list_of_str
from dori_fast.ops import largest_per_map, ms_ssim
from dori_fast.prune.nemo.candidates import THETA_END, Candidates, CandidateSets
from dori_fast.prune.nemo.lockstep import Lockstep, Walk
from dori_fast.prune.nemo.masked_rows import MaskedRows
from dori_fast.prune.nemo.result import Search
from dori_fast.prune.nemo.statistics import NeuronStatistics
from dori_fast.prune.nemo.walk import search as walk_of

THRESHOLD = 0.428
"""The paper's threshold: mean plus one standard deviation over 50,000 LAION prompts, on SD 1.4."""
_SEEDS = 10
# prompts searched at once for each that a batch has room for: with four times as many, the last
# batches of a search, when some prompts are done, are full too
_PROMPTS = 4


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
        width: largest number of masks that share a batch; default: as many as fill one on a GPU,
            one on a CPU, where the seeds of one mask are enough. 1 tests one mask of one prompt
            at a time. With more, several prompts are searched at once, and room that is left is
            filled with tests that may be needed later.
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
            UsageError: no prompts, layers that the model or the statistics lack, an architecture
                with unknown layers, or a model with a mask per prompt.
            NonFiniteError: noise differences or neurons that are NaN or infinite.
        """
        if not isinstance(prompts, TextCondition):
            prompts = list_of_str("nemo", prompts)
        if not prompts:
            raise UsageError("nemo: no prompts")
        return stack([_found(result).mask for result in self.searches(model, prompts)])

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
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return _found(next(self.searches(model, prompts)))

    def searches(
        self, model: Denoiser, prompts: Sequence[str] | TextCondition
    ) -> Iterator[Search | NonFiniteError]:
        """Find the neurons of P prompts or embeddings: a result or an error for each, in order.

        Their tests fill batches together, :meth:`at_once` prompts at a time. A prompt's result does
        not depend on the others; to the bit, this is proven on a CPU.

        Raises:
            UsageError: the cases of :meth:`localize`.
        """
        if not isinstance(prompts, TextCondition):
            prompts = list_of_str("nemo", prompts)
        if model.masks is not None and len(model.masks) > 1:
            raise UsageError("nemo: this model has a mask per prompt; search without masks or one")
        layers = self.layers(model)
        return self._each(model, prompts, layers)

    def _each(
        self, model: Denoiser, prompts: list[str] | TextCondition, layers: list[str]
    ) -> Iterator[Search | NonFiniteError]:
        groups = -(-len(prompts) // self.at_once(model))
        for group in range(groups):
            # groups of equal size, since small ones fill fewer batches
            part = slice(group * len(prompts) // groups, (group + 1) * len(prompts) // groups)
            some = prompts[part] if isinstance(prompts, list) else prompts[part].one_row_each()
            with torch.no_grad(), _batches_of(model, self._batch(model)):
                found = self._group(model, some, layers)
            yield from found

    def at_once(self, model: Denoiser) -> int:
        """Number of prompts that are searched at once: one if masks are scored one at a time."""
        return 1 if self._masks(model) == 1 else max(2, _PROMPTS * self._batch(model) // _SEEDS)

    def _masks(self, model: Denoiser) -> int:
        """Number of masks, with all seeds, that a batch has room for."""
        if self._width is None:
            return 1 if model.device.type == "cpu" else -(-model.batch_size // _SEEDS)
        return self._width

    def _batch(self, model: Denoiser) -> int:
        return min(model.batch_size, self._masks(model) * _SEEDS)

    def _group(
        self, model: Denoiser, prompts: list[str] | TextCondition, layers: list[str]
    ) -> list[Search | NonFiniteError]:
        """Searches of a few prompts in lockstep."""
        condition = model.encode(prompts) if isinstance(prompts, list) else prompts
        names = prompts if isinstance(prompts, list) else [""] * len(prompts)
        noise, timestep = self._noise(model)
        shared = model.share(noise, timestep)
        delta = change_of_noise(model, condition, shared, self.units)
        alike = largest_per_map(ms_ssim(delta))
        widths = {name: model.engine.value_widths[name] for name in layers}
        kept = [(one > self.threshold).nonzero()[:, 0].tolist() for one in alike]
        found = [
            Search(name, layers, widths, float(one.max()), seeds, evaluations=_SEEDS)
            for name, one, seeds in zip(names, alike, kept, strict=True)
        ]
        magnitudes = value_magnitudes(model, condition, layers) if any(kept) else {}
        errors: dict[int, NonFiniteError] = {}
        walks: dict[int, Walk] = {}
        for i, search in enumerate(found):
            try:
                require_finite("nemo", "similarities of noise differences", alike[i], model.dtype)
                if search.memorized:
                    own = {name: of_all[i] for name, of_all in magnitudes.items()}
                    asks = walk_of(self._tries(model, own), self.threshold, search)
                    plain = delta[i][to_device(torch.tensor(search.seeds), delta.device)]
                    walks[i] = Walk(i, tuple(search.seeds), plain, model.dtype, asks)
            except NonFiniteError as error:
                errors[i] = error
        rows = MaskedRows(model, condition, shared, layers, self.units)
        Lockstep(rows, guess=self._masks(model) > 1).run(list(walks.values()))
        for i, walk in walks.items():
            found[i].tests = len(walk.tests)
            found[i].evaluations += len(walk.seeds) * len(walk.tests)
            if walk.error is not None:
                errors[i] = walk.error
        return [errors.get(i, search) for i, search in enumerate(found)]

    def _noise(self, model: Denoiser) -> tuple[Tensor, int]:
        timesteps = model.timesteps(DDIM_STEPS)
        if self.mode == "paper":
            return model.noise(range(_SEEDS)), timesteps[0]
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(_SEEDS, *model.latent_shape, generator=generator)
        return noise.to(model.device, model.dtype), timesteps[1]

    def _tries(self, model: Denoiser, magnitudes: dict[str, Tensor]) -> list[Candidates]:
        """Sets of candidates of one prompt, with magnitudes [C] by layer, in the order of tests."""
        usual = self.statistics(model)
        for name, each in magnitudes.items():
            require_finite("nemo", f"magnitudes of {name}", each, model.dtype)
        sets = CandidateSets(
            [each.cpu() for each in magnitudes.values()],
            [usual.mean[name] for name in magnitudes],
            [usual.std[name] for name in magnitudes],
            twice=self.mode == "reference",
        )
        return sets.down_to(self.theta_end)


def _found(result: Search | NonFiniteError) -> Search:
    if isinstance(result, NonFiniteError):
        raise result
    return result


@contextmanager
def _batches_of(model: Denoiser, samples: int) -> Iterator[None]:
    """Limit UNet batches to this size within the block, since padding costs as much as samples.

    A size that was halved within the block, since memory ran out, stays.
    """
    before = model.batch_size
    model.batch_size = limit = min(before, samples)
    try:
        yield
    finally:
        if model.batch_size == limit:
            model.batch_size = before
