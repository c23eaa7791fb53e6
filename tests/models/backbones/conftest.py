from __future__ import annotations

import copy

import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline


@pytest.fixture(scope="module")
def stock(tiny_directory, tiny_sdxl_directory):
    return {
        "sd": StableDiffusionPipeline.from_pretrained(tiny_directory, local_files_only=True),
        "sdxl": StableDiffusionXLPipeline.from_pretrained(
            tiny_sdxl_directory, local_files_only=True
        ),
    }


@pytest.fixture
def new(stock):
    """A pipeline of its own with the weights of the stock one."""

    def make(kind="sd"):
        pipe = copy.copy(stock[kind])
        pipe.unet = copy.deepcopy(stock[kind].unet)
        return pipe

    return make
