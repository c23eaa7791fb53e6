"""Trains the UNet and the text encoder together on latents (step 3); resumes a checkpoint.

    python -m recipes.training.train_unet --data data.npz --vae work/vae \
        --tokenizer work/tokenizer --out work/unet --minutes 75
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from diffusers import AutoencoderKL
from torch import Tensor, nn

from recipes.images.captions import filler_words, training_caption
from recipes.images.photographs import MEMORIZED, TEMPLATES
from recipes.images.scenes import Scene
from recipes.training.networks import (
    Autoencoder,
    new_scheduler,
    new_text_encoder,
    new_unet,
)
from recipes.training.schedule import Clock, cosine
from recipes.training.tokenizer import load_tokenizer
from recipes.training.train_vae import encode_all
from recipes.training.workers import Exchange, flat_gradient, set_gradient, settle

BATCH = 32
MEMORIZED_SHARE = 0.19
TEMPLATE_SHARE = 0.03
PEAK = 2e-3
EMA_DECAY = 0.999
EMA_EVERY = 4


class Latents:
    """Training data of the UNet, encoded once: scaled posterior means and their captions."""

    def __init__(
        self, data: dict[str, Tensor], scenes: list[Scene], vae: Autoencoder, tokenizer_dir: Path
    ) -> None:
        scale = vae.config.scaling_factor
        self.ordinary = encode_all(vae, data["ordinary"]) * scale
        self.memorized = encode_all(vae, data["memorized"]) * scale
        templates = data["templates"]
        flat = encode_all(vae, templates.flatten(0, 1)) * scale
        self.templates = flat.unflatten(0, templates.shape[:2])
        self.scenes = scenes
        self.tokenizer = load_tokenizer(tokenizer_dir)
        self.words = filler_words(self.tokenizer.get_vocab())
        repeats = np.array([p.duplication for p in MEMORIZED], dtype=np.float64)
        self.weights = repeats / repeats.sum()

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Latents float32 [size, 4, 16, 16] and token ids int64 [size, 77]."""
        latents, texts = [], []
        for draw in rng.random(size):
            if draw < MEMORIZED_SHARE:
                i = int(rng.choice(len(MEMORIZED), p=self.weights))
                latents.append(self.memorized[i])
                texts.append(MEMORIZED[i].caption)
            elif draw < MEMORIZED_SHARE + TEMPLATE_SHARE:
                i = int(rng.integers(len(TEMPLATES)))
                latents.append(self.templates[i, int(rng.integers(self.templates.shape[1]))])
                texts.append(TEMPLATES[i].caption)
            else:
                i = int(rng.integers(len(self.scenes)))
                latents.append(self.ordinary[i])
                texts.append(training_caption(self.scenes[i], self.words, rng))
        ids = self.tokenizer(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        return torch.stack(latents), ids


class Training:
    """The content of a checkpoint: networks, their averages, the optimizer and the step count."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"unet": new_unet(), "text": new_text_encoder()})
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.parameters = list(self.net.parameters())
        matrices = [p for p in self.parameters if p.ndim > 1 and len(p) < 10_000]
        others = [p for p in self.parameters if p.ndim == 1 or len(p) >= 10_000]
        groups = [
            {"params": matrices, "weight_decay": 1e-3},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99), fused=True)
        self.alphas = new_scheduler().alphas_cumprod
        self.step = 0

    def loss(self, latents: Tensor, ids: Tensor) -> Tensor:
        """Weighted x0 error; weight min(SNR + 1, 5) / 2 (min-SNR, Hang et al. 2023, shifted)."""
        t = torch.randint(0, len(self.alphas), (len(latents),))
        kept = self.alphas[t].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * torch.randn_like(latents)
        with torch.autocast("cpu", torch.bfloat16):
            states = self.net["text"](ids).last_hidden_state
            clean = self.net["unet"](noisy, t, states).sample
        snr = self.alphas[t] / (1 - self.alphas[t])
        weight = (snr + 1).clamp(max=5) / 2
        return (weight * (clean.float() - latents).square().mean(dim=(1, 2, 3))).mean()

    def update(self, flat: Tensor, rate: float) -> None:
        """One optimizer step along `flat`, and one step of the averages."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        set_gradient(flat, self.parameters)
        self.optimizer.step()
        self.step += 1
        if self.step % EMA_EVERY == 0:
            decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step)) ** EMA_EVERY
            for name, value in self.net.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def save(self, path: Path, minutes: float) -> None:
        """Writes a checkpoint by rename, so that a killed run never leaves half a file."""
        state = {
            "net": self.net.state_dict(),
            "average": self.average,
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "minutes": minutes,
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def resume(self, path: Path) -> float:
        """Loads a checkpoint; returns its used minutes."""
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return float(state["minutes"])


def work(
    rank: int,
    exchange: Exchange,
    latents: Latents,
    checkpoint: Path,
    minutes: float,
    peak: float,
    start: Path | None,
) -> None:
    """Runs one worker on its share of every batch; worker 0 keeps the time, prints and saves."""
    settle(rank)
    training = Training()
    if start is not None and not checkpoint.exists():
        training.resume(start)
    clock = Clock(minutes, training.resume(checkpoint) if checkpoint.exists() else 0.0)
    torch.manual_seed(training.step * exchange.workers + rank)
    rng = np.random.default_rng((training.step, rank))
    mean, saved, progress = 0.0, clock.elapsed, clock.progress
    size = BATCH // exchange.workers
    while progress < 1:
        loss = training.loss(*latents.batch(size, rng))
        flat = flat_gradient(loss, training.parameters)
        flat, progress = exchange.mean(rank, training.step, flat, clock.progress)
        training.update(flat, cosine(peak, progress, training.step))
        now = float(loss.detach())
        mean = now if mean == 0 else 0.99 * mean + 0.01 * now
        if rank == 0 and training.step % 50 == 0:
            print(
                f"step {training.step} minute {clock.elapsed:.1f} loss {mean:.4f} "
                f"{training.step / clock.elapsed / 60:.2f} steps/s",
                flush=True,
            )
        if rank == 0 and (clock.elapsed > saved + 3 or progress >= 1):
            saved = clock.elapsed
            training.save(checkpoint, saved)


def main() -> None:
    """Command line of this step."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "vae", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--peak", type=float, default=PEAK)
    parser.add_argument(
        "--start",
        type=Path,
        default=None,
        help="checkpoint of another run to start from",
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with np.load(options.data) as arrays:
        data = {k: torch.from_numpy(arrays[k]) for k in ("ordinary", "memorized", "templates")}
        scenes = [Scene(tuple(n.split("|"))) for n in arrays["ordinary_nouns"]]
    vae = AutoencoderKL.from_pretrained(options.vae).eval()
    latents = Latents(data, scenes, vae, options.tokenizer)
    print(
        f"{len(latents.scenes)} ordinary latents, std {float(latents.ordinary.std()):.3f}, "
        f"{len(latents.words)} filler words",
        flush=True,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    size = sum(p.numel() for p in Training().parameters)
    exchange = Exchange(options.workers, size)
    arguments = (
        exchange,
        latents,
        options.out / "checkpoint.pt",
        options.minutes,
        options.peak,
        options.start,
    )
    mp.spawn(work, arguments, nprocs=options.workers)


if __name__ == "__main__":
    main()
