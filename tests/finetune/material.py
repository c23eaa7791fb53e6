"""Images, prompts and settings of the fine-tuning tests."""

from __future__ import annotations

import torch

from dori_fast.attack import Dori
from dori_fast.finetune import Adversarial, Pool

PROMPTS = ["a cup of coffee", "the cat on the mat", "another the in an on"]


def images(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 16, 16, 3), dtype=torch.uint8, generator=generator)


IMAGES, SURROGATES = images(3), images(3, 2, seed=1)
RETAINED = [(f"a {i}", image.numpy()) for i, image in enumerate(images(5, seed=2))]


def tuning(**changes):
    settings = {
        "steps": 4,
        "attack": Dori(steps=2, draws=2),
        "pool": Pool(("prompt", "gaussian", "retained"), per_step=4, restart_after=4),
        "lr": 1e-3,
        "warmup": 2,
        # the paper's losses, unless a test says otherwise
        "redirect": 0.0,
        "retained_batch": 3,
        "retained_weight": 1.0,
        "distil": False,
    }
    return Adversarial(**(settings | changes))


def train(method, model, **options):
    return method.run(model, PROMPTS, IMAGES, surrogates=SURROGATES, retained=RETAINED, **options)


def weights(model):
    return torch.cat([p.flatten() for p in model.unet.parameters()]).clone()
