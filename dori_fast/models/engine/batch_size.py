"""How many samples the UNet evaluates at a time, where nobody says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dori_fast.models.backbones.unet.program import Program
from dori_fast.models.engine.state import added_conditions

# above this size one sample already keeps a CPU busy, so a padded batch would only cost latency
_LARGE_MODEL_PARAMETERS = 50_000_000
_PROBES = (2, 4)
_LARGEST = 64
# of the free memory; what else a method keeps, and what the allocator loses, is in the rest
_SHARE = 0.7
_TOKENS = 77


def auto_batch_size(unet: Any, program: Program | None, picture_size: tuple[int, int]) -> int:
    """UNet samples per evaluation.

    On a CPU a function of the model alone, so that scores are too. On a GPU a power of two that
    fits the free memory, by the peak of two small evaluations, and at most 64, above which a GPU
    gains nothing more; on a GPU that is otherwise free it is a function of model and GPU alone.
    """
    if unet.device.type == "cpu":
        parameters = sum(p.numel() for p in unet.parameters())
        return 4 if parameters > _LARGE_MODEL_PARAMETERS else 32
    if unet.device.type != "cuda":
        return _LARGEST
    first, second = (peak_bytes(unet, program, picture_size, n) for n in _PROBES)
    per_sample = (second - first) / (_PROBES[1] - _PROBES[0])
    fixed = first - _PROBES[0] * per_sample
    return fitting(per_sample, max(0.0, fixed), _free_bytes(unet.device))


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
def peak_bytes(
    unet: Any, program: Program | None, picture_size: tuple[int, int], samples: int
) -> int:
    """Bytes of GPU memory that an evaluation of so many samples takes at its peak."""
    config, device = unet.config, unet.device
    options: dict[str, Any] = {"dtype": unet.dtype, "device": device}
    side = config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    latents = torch.zeros(samples, config.in_channels, height, width, **options)
    text = torch.zeros(samples, _TOKENS, config.cross_attention_dim, **options)
    pooled = None
    if config.addition_embed_type == "text_time":
        # the projection takes the pooled text and six embedded numbers
        pooled_width = (
            config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        )
        pooled = torch.zeros(samples, pooled_width, **options)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _evaluate(unet, program, latents, text, pooled, picture_size)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _evaluate(
    unet: Any,
    program: Program | None,
    latents: Tensor,
    text: Tensor,
    pooled: Tensor | None,
    picture_size: tuple[int, int],
) -> None:
    if program is not None:
        program.suffix(program.prefix(latents, 0), program.text_part(text, pooled), 0)
        return
    added = added_conditions(pooled, picture_size)
    unet(latents, torch.tensor(0, device=unet.device), text, added_cond_kwargs=added)


def _free_bytes(device: torch.device) -> int:
    """What the driver has free, and what torch's allocator holds unused."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held
