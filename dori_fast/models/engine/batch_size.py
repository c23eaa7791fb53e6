"""The number of samples per evaluation, where the user does not set it."""

from __future__ import annotations

import torch

from dori_fast.models.engine.backbone import Backbone, Program

# above this size one sample already keeps a CPU busy, so a padded batch would only cost latency
_LARGE_MODEL_PARAMETERS = 50_000_000
_PROBES = (2, 4)
_LARGEST = 64
# share of the free memory; a method's own tensors and the allocator's losses take the rest
_SHARE = 0.7


def auto_batch_size(backbone: Backbone, program: Program | None) -> int:
    """Samples per evaluation.

    On a CPU this depends on the model alone, so scores do too. On a GPU it is the largest power of
    two, at most 64, that fits the free memory by the peaks of two small evaluations; beyond 64 a
    GPU gains nothing more. On an otherwise free GPU it depends on model and GPU alone. Since the
    last bits of a score depend on it, each shard of a run records it.
    """
    if backbone.device.type == "cpu":
        return 4 if backbone.parameters > _LARGE_MODEL_PARAMETERS else 32
    if backbone.device.type != "cuda":
        return _LARGEST
    first, second = (peak_bytes(backbone, program, n) for n in _PROBES)
    per_sample = (second - first) / (_PROBES[1] - _PROBES[0])
    fixed = first - _PROBES[0] * per_sample
    return fitting(per_sample, max(0.0, fixed), _free_bytes(backbone.device))


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


@torch.no_grad()
def peak_bytes(backbone: Backbone, program: Program | None, samples: int) -> int:
    """Bytes of GPU memory that an evaluation of so many samples takes at its peak."""
    device, (latents, text, pooled) = backbone.device, backbone.zeros(samples)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    if program is None:
        backbone.whole(latents, 0, text, pooled)
    else:
        program.suffix(program.prefix(latents, 0), program.text_part(text, pooled), 0)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _free_bytes(device: torch.device) -> int:
    """Bytes that the driver has free or torch's allocator holds unused."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out."""
    # the CPU allocator has no exception of its own
    own = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return own or "can't allocate memory" in str(error)
