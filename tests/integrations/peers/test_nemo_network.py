"""What NeMo's calls share is what each of them computed alone, and is given up when it must be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from peft import LoraConfig
from torch import Tensor

from benchmarks.peers.models import sd_unet
from dori_fast.integrations.peers import nemo
from dori_fast.integrations.peers.nemo_inputs import draw, encode, layers
from dori_fast.integrations.peers.swap import Patch
from dori_fast.ops import neuron_mask_

SEEDS = 2
# of differences stretched to [0, 1]; batches of another size are summed in another order
CLOSE = {"rtol": 0, "atol": 1e-4}
BLOCKED = [[0, 3], [], [1], [], [5, 5], [], [2]]


@pytest.fixture
def parts(tiny_directory: Path) -> tuple[Any, ...]:
    """A pipeline's parts, as the released code passes them."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory)
    unet = sd_unet(8, 64, pipe.unet.config.cross_attention_dim, values=6).requires_grad_(False)
    return pipe.tokenizer, pipe.text_encoder, unet, DDIMScheduler()


def run(
    record: Patch, parts: tuple[Any, ...], blocked: Any, prompt: str = "a", **options: Any
) -> Tensor:
    (swap,) = [s for s in nemo.PEER.swaps if s.target == "compute_noise_diff"]
    settings = {"guidance_scale": 0, "seed": 1, "samples_per_prompt": SEEDS, "scaling_factor": 0.0}
    found: Tensor = swap.make(lambda: None, record, {})(
        [prompt], *parts, blocked, **(settings | options)
    )
    return found


def whole(parts: tuple[Any, ...], blocked: Any, prompt: str = "a", **options: Any) -> Tensor:
    """The same by the UNet as it is: a hook of anybody's keeps the engine away."""
    handle = parts[2].register_forward_hook(lambda *_: None)
    record = Patch("nemo", "")
    try:
        return run(record, parts, blocked, prompt, **options)
    finally:
        handle.remove()
        assert record.evaluations == 0 and record.shared == {}


@pytest.mark.parametrize("wanted", [None, torch.tensor([False, True])], ids=str)
def test_calls_in_a_row_give_what_each_gives_alone(parts: Any, wanted: Any) -> None:
    record = Patch("nemo", "")
    for blocked, prompt in [
        (None, "a"),
        (BLOCKED, "a"),
        ([[]] * 7, "a"),
        (BLOCKED, "bb"),
    ]:
        options = {"seed_indices_to_return": wanted}
        found = run(record, parts, blocked, prompt, **options)
        torch.testing.assert_close(found, whole(parts, blocked, prompt, **options), **CLOSE)
    # the second run with nothing blocked was that of the first
    assert record.evaluations == 3 * (SEEDS if wanted is None else 1)


def test_hooks_scale_neurons_by_the_op_with_the_bits_of_released_indexing(
    parts: Any, monkeypatch: Any
) -> None:
    unet, text = parts[2], torch.randn(SEEDS, 5, parts[2].config.cross_attention_dim)
    blocked = [[0, 3], [], [-1], [np.int64(2)], [5, 5, 1], [], torch.tensor([2, 4])]
    projections = [layer.to_v for layer in layers(unet).values()]
    written = []

    def spy(x: Tensor, *arguments: Any) -> Tensor:
        written.append(x)
        return neuron_mask_(x, *arguments)

    monkeypatch.setattr(nemo, "neuron_mask_", spy)
    for factor in (0.0, 0.3, -1.5):
        expected = [project(text) for project in projections]
        for values, listed in zip(expected, blocked, strict=True):
            values[:, :, list(listed)] *= factor
        for _ in range(2):
            with nemo._blocked(unet, blocked, factor):
                found = [project(text) for project in projections]
            assert all(map(torch.equal, found, expected))
    # in place, and only where neurons are listed
    assert len(written) == 6 * 5 and written[-1] is found[-1]
    with pytest.raises(ValueError, match="below N"), nemo._blocked(unet, [[999]], 0.0):
        projections[0](text)


def _weight(parts: Any) -> None:
    parts[2].conv_in.weight.mul_(1.01)


def _layer(parts: Any) -> None:
    attention = next(iter(layers(parts[2]).values()))
    attention.to_v = torch.nn.Linear(32, 8, bias=False).requires_grad_(False)


def _data(parts: Any) -> None:
    # torch does not count this
    parts[2].conv_in.weight.data.mul_(1.01)


def _scale(parts: Any) -> None:
    parts[2].set_adapters("one", 0.25)


@pytest.mark.parametrize("change", [_weight, _layer, _data, _scale])
def test_other_weights_are_noticed(parts: Any, change: Any) -> None:
    record = Patch("nemo", "")
    if change is _scale:
        adapter = LoraConfig(target_modules=["to_v"], init_lora_weights=False)
        parts[2].add_adapter(adapter, "one")
    before = run(record, parts, None)
    change(parts)
    after = run(record, parts, None)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, whole(parts, None), **CLOSE)


def test_schedulers_that_count_their_calls_are_asked_as_often(parts: Any) -> None:
    tokens, encoder, unet, scheduler = *parts[:3], EulerDiscreteScheduler()
    found = run(Patch("nemo", ""), (tokens, encoder, unet, scheduler), None)
    scheduler.set_timesteps(50)
    latents = draw(SEEDS, unet, 1)
    text = encode(["a"] * SEEDS, tokens, encoder)
    with torch.no_grad():
        # the released loop, which never takes a step
        for t in scheduler.timesteps[:2]:
            scaled = scheduler.scale_model_input(latents, t)
            predicted = unet(scaled, t, encoder_hidden_states=text)[0]
    difference = predicted - latents
    difference -= difference.amin((2, 3), keepdim=True)
    difference /= difference.amax((2, 3), keepdim=True)
    torch.testing.assert_close(found, difference, **CLOSE)


@pytest.mark.parametrize("options", [{"seed": 2}, {"early_stopping": 3}, {"samples_per_prompt": 1}])
def test_other_draws_and_steps_are_noticed(parts: Any, options: Any) -> None:
    record = Patch("nemo", "")
    run(record, parts, None)
    found = run(record, parts, None, **options)
    torch.testing.assert_close(found, whole(parts, None, **options), **CLOSE)


def test_blocking_shows_and_what_the_engine_does_not_run_runs_whole(parts: Any) -> None:
    record = Patch("nemo", "")
    assert (run(record, parts, BLOCKED) - run(record, parts, None)).abs().max() > 0.01
    assert record.evaluations == 2 * SEEDS
    run(record, parts, BLOCKED, guidance_scale=7.0)
    run(record, parts, BLOCKED, scaling_factor=0.5)
    assert record.evaluations == 2 * SEEDS
