"""Trains the autoencoder, 3x64x64 <-> 4x16x16 (step 2).

    python -m recipes.training.train_vae --data data.npz --out work/vae --minutes 18

`--decoder-of work/vae` trains only the decoder of a finished autoencoder, longer and mostly on
ordinary images. The latents do not change, so a UNet trained on them stays valid.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.training.networks import Autoencoder, new_vae
from recipes.training.schedule import Clock, cosine
from recipes.training.workers import Exchange, flat_gradient, set_gradient, settle

# samples per worker and step, by kind; crops are of the memorized files
BATCH = {"ordinary": 3, "memorized": 3, "templates": 1, "crops": 1}
DECODER_BATCH = {"ordinary": 5, "memorized": 2, "templates": 1}
KL_WEIGHT = 1e-6
PEAK, DECODER_PEAK = 2e-3, 1e-3


def to_float(images: Tensor) -> Tensor:
    """uint8 [N, 64, 64, 3] to float32 [N, 3, 64, 64] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical first differences."""
    return images.diff(dim=-1), images.diff(dim=-2)


def loss_of(vae: Autoencoder, images: Tensor) -> tuple[Tensor, float]:
    """Loss (squared, absolute and edge errors, and a small KL term), and the plain MSE."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        drawn = vae.decode(posterior.sample()).sample
    drawn = drawn.float()
    squared = F.mse_loss(drawn, images)
    sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(drawn), edges(images), strict=True))
    loss = squared + 0.3 * F.l1_loss(drawn, images) + 0.3 * sharp
    return loss + KL_WEIGHT * posterior.kl().float().mean(), float(squared.detach())


@torch.no_grad()
def encode_all(vae: Autoencoder, images: Tensor, batch: int = 256) -> Tensor:
    """Posterior means of uint8 [N, 64, 64, 3], unscaled: float32 [N, 4, 16, 16]."""
    return torch.cat([vae.encode(to_float(p)).latent_dist.mean for p in images.split(batch)])


@torch.no_grad()
def psnr(vae: Autoencoder, images: Tensor) -> float:
    """Mean peak signal-to-noise ratio of reconstructions from the means, in dB."""
    wanted = to_float(images)
    drawn = vae.decode(encode_all(vae, images)).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / (drawn - wanted).square().mean(dim=(1, 2, 3)))).mean())


def batch(data: dict[str, Tensor], counts: dict[str, int], rng: np.random.Generator) -> Tensor:
    """One worker's mixed batch, float32 [8, 3, 64, 64]; each part is mirrored half of the time."""
    parts = []
    for name, count in counts.items():
        picked = data[name][torch.from_numpy(rng.integers(0, len(data[name]), count))]
        parts.append(picked.flip(2) if rng.random() < 0.5 else picked)
    return to_float(torch.cat(parts))


def trained_part(vae: Autoencoder, decoder_only: bool) -> list[nn.Parameter]:
    """The parameters to train; the others are frozen."""
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    return [p for p in vae.parameters() if p.requires_grad]


def work(
    rank: int,
    exchange: Exchange,
    data: dict[str, Tensor],
    out: Path,
    minutes: float,
    decoder_of: Path | None,
) -> None:
    """Runs one worker; worker 0 keeps the time, prints, and saves every 3 minutes."""
    settle(rank)
    torch.manual_seed(0)
    vae = new_vae() if decoder_of is None else AutoencoderKL.from_pretrained(decoder_of)
    parameters = trained_part(vae, decoder_of is not None)
    counts, peak = (BATCH, PEAK) if decoder_of is None else (DECODER_BATCH, DECODER_PEAK)
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=1e-4, fused=True)
    torch.manual_seed(rank)
    rng = np.random.default_rng(rank)
    clock, step, mean, saved, progress = Clock(minutes), 0, 0.0, 0.0, 0.0
    while progress < 1:
        loss, squared = loss_of(vae, batch(data, counts, rng))
        flat = flat_gradient(loss, parameters)
        flat, progress = exchange.mean(rank, step, flat, clock.progress)
        optimizer.param_groups[0]["lr"] = cosine(peak, progress, step)
        set_gradient(flat, parameters)
        optimizer.step()
        step += 1
        mean = squared if step == 1 else 0.98 * mean + 0.02 * squared
        if rank == 0 and step % 100 == 0:
            print(f"step {step} minute {clock.elapsed:.1f} mse {mean:.5f}", flush=True)
        if rank == 0 and clock.elapsed > saved + 3:
            saved = clock.elapsed
            vae.save_pretrained(out)
            print(
                f"psnr memorized {psnr(vae, data['memorized']):.2f} "
                f"held out {psnr(vae, data['held_out']):.2f}",
                flush=True,
            )
    if rank == 0:
        finish(vae, data, out, step)


def finish(vae: Autoencoder, data: dict[str, Tensor], out: Path, steps: int) -> None:
    """Sets the scaling factor so that ordinary latents have unit variance; saves and prints."""
    scale = round(1 / float(encode_all(vae, data["ordinary"][:2000]).std()), 4)
    vae.register_to_config(scaling_factor=scale)
    vae.save_pretrained(out)
    print(
        json.dumps(
            {
                "steps": steps,
                "scaling_factor": scale,
                "psnr_memorized": psnr(vae, data["memorized"]),
                "psnr_held_out": psnr(vae, data["held_out"]),
            }
        ),
        flush=True,
    )


def main() -> None:
    """Command line of this step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--decoder-of", type=Path, default=None)
    parser.add_argument("--minutes", type=float, default=18)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    names = ("ordinary", "memorized", "templates", "crops", "held_out")
    with np.load(options.data) as arrays:
        data = {k: torch.from_numpy(arrays[k]) for k in names}
    data["templates"] = data["templates"].flatten(0, 1)
    parameters = trained_part(new_vae(), options.decoder_of is not None)
    exchange = Exchange(options.workers, sum(p.numel() for p in parameters))
    arguments = (exchange, data, options.out, options.minutes, options.decoder_of)
    mp.spawn(work, arguments, nprocs=options.workers)


if __name__ == "__main__":
    main()
