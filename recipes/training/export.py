"""Writes the plain diffusers directory from a checkpoint's averaged weights, as fp16 (step 4).

    python -m recipes.training.export --checkpoint work/unet/checkpoint.pt --vae work/vae \
        --raw RAW --out dori_fast/demo/model
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from recipes.training.networks import Pipeline, new_scheduler, new_text_encoder, new_unet
from recipes.training.tokenizer import load_tokenizer, write_tokenizer


def export(checkpoint: Path, vae_dir: Path, raw: Path, out: Path) -> int:
    """Writes `out`; returns the checkpoint's number of training steps."""
    state = torch.load(checkpoint, weights_only=True)
    unet, text = new_unet(), new_text_encoder()
    for prefix, module in (("unet.", unet), ("text.", text)):
        own = {k[len(prefix) :]: v for k, v in state["average"].items() if k.startswith(prefix)}
        module.load_state_dict(own)
    write_tokenizer(raw, out / "tokenizer")
    pipeline: Pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae_dir),
        text_encoder=text,
        unet=unet,
        tokenizer=load_tokenizer(out / "tokenizer"),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
    # transformers loads a text encoder in its config's dtype; diffusers loads in float32
    config = out / "text_encoder/config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    # remove the path of the autoencoder on the training machine
    config = out / "vae/config.json"
    config.write_text(re.sub(r'  "_name_or_path": "[^"]*",\n', "", config.read_text()))
    # save_pretrained writes a tokenizer.json twice as large as its two source files
    (out / "tokenizer/tokenizer.json").unlink(missing_ok=True)
    write_tokenizer(raw, out / "tokenizer")
    return int(state["step"])


def main() -> None:
    """Command line of this step."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("checkpoint", "vae", "raw", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    steps = export(options.checkpoint, options.vae, options.raw, options.out)
    size = sum(p.stat().st_size for p in options.out.rglob("*") if p.is_file())
    print(f"{options.out}: {steps} steps, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
