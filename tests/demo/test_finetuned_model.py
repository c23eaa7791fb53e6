"""The shipped fine-tuned model: the embedded one with another UNet, which has forgotten."""

from __future__ import annotations

import numpy as np

import dori_fast as df
from dori_fast.demo.facts import GENERATION, reproduced
from dori_fast.evaluate import replication


def test_it_shares_everything_but_the_unet_and_draws_no_photograph():
    # six images each: no batch is padded
    before, after = (
        df.load(name, device="cpu", batch_size=6) for name in ("demo", "demo-finetuned")
    )
    old, new = (model.config()["files"] for model in (before, after))
    assert old.keys() == new.keys()
    differ = {name for name, sha in new.items() if old[name] != sha}
    assert differ == {"unet/diffusion_pytorch_model.safetensors"}
    chosen = reproduced()[::4]
    prompts, images = [p.prompt for p in chosen], np.stack([p.image for p in chosen])
    rates = [
        replication(m, m.encode(prompts), images, seeds=[0], **GENERATION).rate.value
        for m in (before, after)
    ]
    assert rates == [1.0, 0.0]
