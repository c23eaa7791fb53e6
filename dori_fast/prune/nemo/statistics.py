"""NeMo's statistics of value neurons: their usual magnitudes over clean prompts.

    a[p, n] = 1/T sum_t |W_v e[p, t]|[n]          over all T tokens of a prompt, padding included
    mean[n], std[n] = mean and unbiased standard deviation over prompts

Values depend on the text alone, so only the text encoder and the value projections are run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice

import torch
from safetensors.torch import save_file
from torch import Tensor

from dori_fast.errors import IntegrityError, UsageError
from dori_fast.models import Denoiser
from dori_fast.models.files.hashes import tensors_sha256
from dori_fast.models.files.tensor_file import read_tensors
from dori_fast.models.probes import value_magnitudes
from dori_fast.models.text.prompts import refuse_other_iterables
from dori_fast.ops import ActivationStats, activation_stats

_FORMAT = "dori_fast.neuron_statistics/1"
_CHUNK = 256
# the order in which NeMo's released files list the layers of SD 1.x
_NEMO_LAYERS = (
    *(
        f"down_blocks.{block}.attentions.{index}.transformer_blocks.0.attn2"
        for block in range(3)
        for index in range(2)
    ),
    "mid_block.attentions.0.transformer_blocks.0.attn2",
)


@dataclass(frozen=True, eq=False)
class NeuronStatistics:
    """Mean and standard deviation of value magnitudes over prompts.

    Attributes:
        mean: float64 [C] by name of the cross-attention.
        std: unbiased float64 [C] by the same names.
        count: number of prompts.
        provenance: the model's ``config()`` or the source, as short texts.
    """

    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    count: int
    provenance: Mapping[str, str]

    @staticmethod
    def collect(
        model: Denoiser, prompts: Iterable[str], layers: Sequence[str] | None = None
    ) -> NeuronStatistics:
        """Statistics over any number of prompts, in one pass and constant memory.

        Args:
            model: the denoiser; its text encoder and value projections are used.
            prompts: at least 2 prompts; a repeated prompt counts each time.
            layers: names of cross-attentions; default: all of ``model.layers``.

        Raises:
            UsageError: fewer than 2 prompts, or a layer that does not exist.
        """
        refuse_other_iterables("NeuronStatistics", prompts)
        found: dict[str, ActivationStats] = {}
        for chunk in _chunks(prompts):
            for name, magnitudes in value_magnitudes(model, model.encode(chunk), layers).items():
                stats = activation_stats(magnitudes)
                found[name] = found[name].merge(stats) if name in found else stats
        count = next(iter(found.values())).count if found else 0
        if count < 2:
            raise UsageError(f"NeuronStatistics: at least 2 prompts are needed, got {count}")
        return NeuronStatistics(
            mean={name: stats.mean.cpu() for name, stats in found.items()},
            std={name: stats.std().cpu() for name, stats in found.items()},
            count=count,
            provenance={key: str(value) for key, value in model.config().items()},
        )

    @staticmethod
    def shipped(model: Denoiser) -> NeuronStatistics:
        """Statistics over the 2,000 COCO captions of the package."""
        text = (
            files("dori_fast.prune.nemo").joinpath("clean_prompts.txt").read_text(encoding="utf-8")
        )
        return NeuronStatistics.collect(model, text.splitlines())

    def sha256(self) -> str:
        """Hash of layers, means and standard deviations."""
        return tensors_sha256(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        mean = {f"mean:{name}": value.contiguous() for name, value in self.mean.items()}
        return mean | {f"std:{name}": value.contiguous() for name, value in self.std.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with count and provenance."""
        metadata = {**self.provenance, "format": _FORMAT, "count": str(self.count)}
        save_file(self._tensors(), path, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> NeuronStatistics:
        """Read a file of :meth:`save`.

        Raises:
            UsageError: no such file.
            IntegrityError: a damaged file, or one of another kind.
        """
        tensors, metadata = read_tensors(path, _FORMAT, "neuron statistics")
        names = [name.removeprefix("mean:") for name in tensors if name.startswith("mean:")]
        return NeuronStatistics(
            mean={name: tensors[f"mean:{name}"] for name in names},
            std={name: tensors[f"std:{name}"] for name in names},
            count=int(metadata.pop("count")),
            provenance=metadata,
        )

    @staticmethod
    def load_nemo(path: str | os.PathLike[str]) -> NeuronStatistics:
        """Read a statistics file of NeMo's released code for SD 1.x: a pickled pair of lists.

        torch's restricted unpickler reads it, which accepts only tensors and containers.

        Raises:
            UsageError: no such file.
            IntegrityError: a file of another kind.
        """
        try:
            means, stds = torch.load(path, map_location="cpu", weights_only=True)
            pairs = list(zip(_NEMO_LAYERS, means, stds, strict=True))
            return NeuronStatistics(
                mean={name: mean.double() for name, mean, _ in pairs},
                std={name: std.double() for name, _, std in pairs},
                # the paper's number; the file has none
                count=50_000,
                provenance={"source": "NeMo's released statistics"},
            )
        except FileNotFoundError:
            raise UsageError(f"{path}: no such file") from None
        except Exception as error:
            # torch.load and the unpickler may raise anything on a damaged file
            raise IntegrityError(
                f"{path}: not a statistics file of NeMo ({len(_NEMO_LAYERS)} means and standard"
                f" deviations): {error}"
            ) from error


def _chunks(prompts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(prompts)
    while chunk := list(islice(stream, _CHUNK)):
        yield chunk
