"""The number of samples per evaluation, where the user does not set it.

What is predicted, on a GPU: the peak of an evaluation, its outputs included, and of an evaluation
with its backward pass to the text embeddings. What is not: the tensors of a method, the gradients
of weights that are trained, the text encoders (below 1 % of the UNet's work), and the autoencoder,
which takes one image at a time. If the prediction is too high, memory runs out and batches are
halved (:mod:`dori_fast.models.engine.memory`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from dori_fast.models.engine.backbone import Backbone, Program
from dori_fast.models.engine.graphs import Graphs
from dori_fast.models.engine.memory import free_cached, out_of_memory

# above this size one sample already keeps a CPU busy, so a padded batch would only cost latency
_LARGE_MODEL_PARAMETERS = 50_000_000
_PROBES = (2, 4)
# unmeasured: no GPU has shown yet from which size on a larger batch gains nothing
_LARGEST = 64
# share of the free memory; a method's own tensors and the allocator's losses take the rest
_SHARE = 0.7


def auto_batch_size(
    backbone: Backbone,
    program: Program | None,
    *,
    graphs: Graphs | None = None,
    gradients: bool = False,
) -> int:
    """Samples per evaluation.

    On a CPU this depends on the model alone, so scores do too. On a GPU it is the largest power of
    two, at most 64, that fits the free memory by the peaks of two small evaluations. The limit of
    64 is a guess. Memory that other processes hold at this moment is not free, so the size depends
    on model and GPU alone only on an otherwise free GPU. Since the last bits of a score depend on
    it, each shard of a run records it.

    Args:
        backbone: the network.
        program: its stages as they will run, or None if it runs whole.
        graphs: recorded CUDA graphs of ``program``, if it has any. They are cleared.
        gradients: True for evaluations that are followed by their backward pass. A program that
            recomputes is measured so.
    """
    if backbone.device.type == "cpu":
        return 4 if backbone.parameters > _LARGE_MODEL_PARAMETERS else 32
    if backbone.device.type != "cuda":
        return _LARGEST

    def peak(samples: int) -> int:
        return peak_bytes(backbone, program, samples, graphs=graphs, gradients=gradients)

    fixed, per_sample, most = line(peak, lambda: free_cached(backbone.device))
    return min(most, fitting(per_sample, fixed, _free_bytes(backbone.device)))


def line(peak: Callable[[int], int], release: Callable[[], None]) -> tuple[float, float, int]:
    """Bytes at the peak as a line over the number of samples, by two small evaluations.

    Args:
        peak: function from a number of samples to the bytes that they take.
        release: function that frees memory after an evaluation that did not fit.

    Returns:
        Bytes of any batch, bytes of each of its samples, and the most samples by what did not fit
        even in the probe.
    """
    found: list[int] = []
    outer = sys.exc_info()[1]
    for samples in _PROBES:
        try:
            found.append(peak(samples))
            continue
        except RuntimeError as error:
            if not out_of_memory(error, outer):
                raise
        # outside the handler, whose traceback would keep the evaluation's tensors
        release()
        return 0.0, 0.0, samples // 2
    per_sample = (found[1] - found[0]) / (_PROBES[1] - _PROBES[0])
    return max(0.0, found[0] - _PROBES[0] * per_sample), per_sample, _LARGEST


def fitting(per_sample: float, fixed: float, free: float) -> int:
    """The largest power of two, from 1 to 64, of samples that fit.

    Args:
        per_sample: bytes that each sample of a batch takes at the peak.
        fixed: bytes that a batch of any size takes.
        free: bytes that are free.
    """
    size = _LARGEST
    while size > 1 and fixed + size * per_sample > _SHARE * free:
        size //= 2
    return size


def peak_bytes(
    backbone: Backbone,
    program: Program | None,
    samples: int,
    *,
    graphs: Graphs | None = None,
    gradients: bool = False,
) -> int:
    """Bytes of GPU memory that an evaluation of so many samples takes at its peak.

    Those of a recorded graph, which no other work can use, are added to those of its replay. In a
    first evaluation, which is not measured, libraries allocate their workspaces.
    """
    device = backbone.device
    latents, text, pooled = backbone.zeros(samples)

    def evaluation() -> None:
        given = text.clone().requires_grad_(gradients)
        if program is None:
            output = backbone.whole(latents, 0, given, pooled)
        else:
            with torch.no_grad():
                state = program.prefix(latents, 0)
            output = program.suffix(state, program.text_part(given, pooled), 0)
        if gradients:
            output.float().square().sum().backward(inputs=[given])

    def settled(stat: Callable[[torch.device], int]) -> int:
        torch.cuda.synchronize(device)
        free_cached(device)
        return stat(device)

    with torch.set_grad_enabled(gradients):
        evaluation()
        if graphs is not None:
            graphs.clear()
        before = settled(torch.cuda.memory_reserved)
        if graphs is not None:
            evaluation()
        kept = max(0, settled(torch.cuda.memory_reserved) - before)
        held = settled(torch.cuda.memory_allocated)
        torch.cuda.reset_peak_memory_stats(device)
        evaluation()
        torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - held
    if graphs is not None:
        graphs.clear()
    return kept + peak


def _free_bytes(device: torch.device) -> int:
    """Bytes that the driver has free or torch's allocator holds unused."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held
