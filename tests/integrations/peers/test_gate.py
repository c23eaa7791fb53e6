"""One gate: what df.load refuses has no scores under accelerate, nor under patched code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
from diffusers import (
    EDMEulerScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.integrations.peers import nemo_network, sail, wen
from dori_fast.integrations.peers.swap import Patch
from tests.integrations.conftest import call

Change = Callable[[Any], None]


def _distilled(pipe: Any) -> None:
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8).eval()


def _edm(pipe: Any) -> None:
    pipe.scheduler = EDMEulerScheduler()


def _lcm(pipe: Any) -> None:
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)


def released(self: Any, prompt: Any = None, guidance_scale: float = 7.5, return_dict: bool = True,
             track_noise_norm: bool = False, args: Any = None) -> None:  # fmt: skip
    """A released function, which is never reached."""
    raise AssertionError("the released function was called")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_distilled, "distilled"),
        (_edm, "EDMEulerScheduler"),
        (_lcm, "LCMScheduler is a sampler of distilled"),
    ],
)
def test_a_model_without_scores_is_refused_by_all_for_one_reason(
    change: Change, reason: str, new: Callable[[str], StableDiffusionPipeline]
) -> None:
    pipe: Any = new("sd")
    change(pipe)
    record = Patch("test", "")
    parts = (pipe.tokenizer, pipe.text_encoder, pipe.unet, pipe.scheduler)
    calls = {
        "load": lambda: df.load(pipe),
        "accelerate": lambda: df.accelerate(pipe, scan_steps=1),
        "patch: wen": lambda: wen._make_call(released, record, {"scan_steps": 1})(
            pipe, ["a"], track_noise_norm=True
        ),
        "patch: sail": lambda: sail._make_call(released, record, {})(
            pipe, ["a"], args=Namespace(exp_type="det", hvp_sampling_num=1)
        ),
        "patch: nemo": lambda: nemo_network.network(record, *parts),
    }
    told = set()
    for who, attempt in calls.items():
        with pytest.raises(UsageError, match=reason) as raised:
            attempt()
        assert str(raised.value).startswith(who)
        told.add(str(raised.value).rpartition(": ")[2])
    assert len(told) == 1


def test_norms_of_a_model_without_scores_are_refused_and_its_images_are_not(
    new: Callable[[str], StableDiffusionPipeline],
) -> None:
    pipe: Any = new("sd")
    _edm(pipe)
    expected = call(pipe)
    assert call(df.accelerate(pipe, share=False)).equal(expected)
    with pytest.raises(UsageError, match="noise_norms: .*EDMEulerScheduler"):
        _ = pipe.noise_norms
