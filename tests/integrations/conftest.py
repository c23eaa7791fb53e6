from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

import dori_fast as df

KINDS = ["demo", "sd", "sdxl"]


@pytest.fixture(scope="session")
def originals(tiny_directory: Path, tiny_sdxl_directory: Path) -> dict[str, Any]:
    found = {
        "demo": StableDiffusionPipeline.from_pretrained(df.demo.path()),
        "sd": StableDiffusionPipeline.from_pretrained(tiny_directory),
        "sdxl": StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_directory),
    }
    for pipe in found.values():
        pipe.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def new(originals: dict[str, Any]) -> Callable[[str], Any]:
    """A pipeline of its own, of a kind."""
    return lambda kind: copy.deepcopy(originals[kind])


@pytest.fixture(params=KINDS)
def kind(request: Any) -> str:
    return request.param


PROMPTS = ["a key", "portrait of an astronaut with a flag"]


def call(pipe: Any, prompts: list[str] = PROMPTS, *, seeds: Any = None, **options: Any) -> Any:
    """Latents [B, C, h, w] of a short call; every image its own seed."""
    images = len(prompts) * options.get("num_images_per_prompt", 1)
    seeds = range(images) if seeds is None else seeds
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": 3, "output_type": "latent", **options}
    return pipe(prompts, generator=generators, **options).images


def save_lora(pipe: Any, folder: Path, seed: int = 0) -> Path:
    """A LoRA file for the pipeline's UNet, all attention projections, far from doing nothing."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    other = copy.deepcopy(pipe)
    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    other.unet.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(other.unet))
    type(pipe).save_lora_weights(folder, unet_lora_layers=layers)
    return folder
