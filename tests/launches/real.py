"""Calls of real runs: Stable Diffusion 1.4 (latents 4 x 64 x 64) and SDXL (4 x 128 x 128)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.launches.cases import Case
from tests.ops.contract import DTYPES

_HALF, _SINGLE = torch.float16, torch.float32

# a scan's batch of 64 samples: 16 prompts with 4 seeds
_SCAN = {"SD 1.4": (16, 4, 4, 64, 64), "SDXL": (16, 4, 4, 128, 128)}
# an attack: 8 problems with 8 draws, embeddings of 77 tokens
_DRAWS = {"SD 1.4": (8, 8, 4, 64, 64), "SDXL": (8, 8, 4, 128, 128)}
_EMBEDDINGS = {"SD 1.4": (8, 77, 768, 1, 1), "SDXL": (8, 77, 2048, 1, 1)}
# NeMo: 6 masks with 10 seeds
_MAPS = {"SD 1.4": (6, 10, 4, 64, 64), "SDXL": (6, 10, 4, 128, 128)}
_VALUES = {"SD 1.4": (60, 77, 320), "SDXL": (60, 77, 1280)}
# feed-forward layers: tokens x (samples x neurons), and their weights
_ACTIVATIONS = {"SD 1.4": (4096, 64 * 1280), "SDXL": (4096, 8 * 2560)}
_WEIGHTS = {"SD 1.4": (320, 1280), "SDXL": (1280, 5120)}
# dtype; batch, heads, queries, keys, width of a head; tangents of q, k and v
_ATTENTION = (
    ("SD 1.4", "self-attention", _HALF, (4, 8, 4096, 4096, 40, 1, 1, 1)),
    ("SD 1.4", "cross-attention", _HALF, (4, 8, 4096, 77, 40, 1, 0, 0)),
    ("SD 1.4", "self-attention", _HALF, (4, 8, 1024, 1024, 80, 1, 1, 1)),
    ("SD 1.4", "self-attention", _HALF, (4, 8, 256, 256, 160, 1, 1, 1)),
    ("SDXL", "self-attention", _HALF, (4, 10, 4096, 4096, 64, 1, 1, 1)),
    ("SDXL", "cross-attention", _HALF, (4, 10, 4096, 77, 64, 1, 0, 0)),
    ("SD 1.4", "self-attention", _SINGLE, (4, 8, 4096, 4096, 40, 1, 1, 1)),
    ("SD 1.4", "self-attention", _SINGLE, (4, 8, 256, 256, 160, 1, 1, 1)),
    ("SDXL", "self-attention", _SINGLE, (4, 10, 4096, 4096, 64, 1, 1, 1)),
)


def real() -> Iterator[Case]:
    """The calls of the table in docs/codegen.md, in its order."""
    for network, size in _SCAN.items():
        for op in ("noise_difference", "noise_difference_step", "noise_cosine"):
            yield _case(op, size, _HALF, f"{network}, scan")
    for network, size in _DRAWS.items():
        for op in ("add_noise", "diffusion_loss", "diffusion_loss_bwd"):
            yield _case(op, size, _HALF, f"{network}, attack")
        yield _case("embedding_step", _EMBEDDINGS[network], _SINGLE, f"{network}, attack")
    for network, size in _MAPS.items():
        yield _case("ms_ssim", size, _SINGLE, f"{network}, NeMo")
        yield _case("neuron_mask", (*_VALUES[network], 2), _HALF, f"{network}, NeMo")
        yield _case("neuron_mask_", (*_VALUES[network], 10), _HALF, f"{network}, NeMo")
        yield _case("activation_stats", (256, _VALUES[network][2]), _SINGLE, f"{network}, NeMo")
    for network, size in _ACTIVATIONS.items():
        yield _case("activation_stats", size, _SINGLE, f"{network}, Wanda")
    for network, (rows, columns) in _WEIGHTS.items():
        size = (rows, columns, columns // 100, 1)
        yield _case("wanda_mask", size, _SINGLE, f"{network}, Wanda")
    for network, kind, dtype, size in _ATTENTION:
        yield _case("sdpa_jvp", size, dtype, f"{network}, SAIL {kind}")


# heads of the embedded model (24, 48), SD (40, 80, 160) and SDXL (64)
_WIDTHS = (24, 40, 48, 64, 80, 160)


def wide() -> Iterator[Case]:
    """Kernels that hold a whole row in registers, at every width in use and in every dtype."""
    for dtype in DTYPES:
        for width in _WIDTHS:
            yield _case("sdpa_jvp", (2, 4, 256, 256, width, 1, 1, 1), dtype, "self-attention")
            yield _case("sdpa_jvp", (2, 4, 256, 77, width, 1, 0, 0), dtype, "cross-attention")
        # beyond 8,192 columns, rows spill a few bytes; no model in use has them
        for columns in (1280, 2560, 5120, 8192):
            yield _case("wanda_mask", (columns // 4, columns, columns // 100, 1), dtype, "Wanda")


# Many rows and long rows, none of more than 2^37 bytes in all.
_HUGE = {
    **dict.fromkeys(
        (
            *("noise_difference", "noise_difference_step", "noise_cosine"),
            *("add_noise", "diffusion_loss", "diffusion_loss_bwd"),
        ),
        ((1 << 20, 1 << 8, 4), (1, 1, 4, 1 << 28)),
    ),
    "embedding_step": ((1 << 20, 77, 8, 1, 1), (1, 1, 1 << 28, 0, 0)),
    "activation_stats": ((1 << 30, 4), (2, 1 << 28)),
    "neuron_mask": ((1 << 20, 77, 8, 2), (1, 1, 1 << 30, 1)),
    "neuron_mask_": ((1 << 20, 77, 8, -3), (1, 1, 1 << 30, -(1 << 28))),
    "wanda_mask": ((1 << 28, 8, 1, 1),),
    "ms_ssim": ((1 << 18, 2, 1, 16, 16), (1, 16, 3, 4096, 4096)),
    "sdpa_jvp": ((1 << 12, 64, 4096, 77, 40, 1, 1, 1), (1, 1, 64, 64, 1 << 14, 1, 1, 1)),
}


def huge() -> Iterator[Case]:
    """The largest calls that the memory of a GPU allows, along every dimension of the inputs."""
    for op, sizes in _HUGE.items():
        for size in sizes:
            yield _case(op, size, _HALF, "limits of a grid")


def _case(op: str, size: tuple[int, ...], dtype: torch.dtype, use: str) -> Case:
    return Case(op, size, dtype, use=use)
