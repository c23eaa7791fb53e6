"""Activations inside the network, against hooks on the plain one."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.models import probes
from dori_fast.models.probes import feed_forward_inputs

PROMPTS, SEEDS, TIMESTEP = ["a cup of coffee", "the cat", "a dog"], [0, 3], 500


def mean_token(activations):
    return activations.mean(1)


def hooked(model, prompt, latents):
    """Mean input token of each second linear layer of the plain UNet, by name."""
    seen, handles = {}, []
    for name, module in model.unet.named_modules():
        if name.endswith("ff.net.2"):
            handles.append(
                module.register_forward_pre_hook(
                    lambda module, args, name=name: seen.update({name: mean_token(args[0])})
                )
            )
    try:
        text = model.encode([prompt]).embeddings.expand(len(latents), -1, -1)
        with torch.no_grad():
            eps = model.unet(latents, torch.tensor(TIMESTEP), text).sample
    finally:
        for handle in handles:
            handle.remove()
    return eps, seen


# 6 samples: padded, in several batches, and in one of their own size
@pytest.mark.parametrize("batch_size", [4, 5, 6, 16])
@pytest.mark.parametrize("own_latents", [False, True])
def test_what_enters_the_second_linears(tiny_directory, batch_size, own_latents):
    model = df.load(tiny_directory, device="cpu", batch_size=batch_size)
    latents = model.noise(SEEDS)
    condition, before = model.encode(PROMPTS), model.engine.evaluations
    given = latents.expand(len(PROMPTS), *latents.shape) if own_latents else latents
    eps, seen = feed_forward_inputs(model, condition, given, TIMESTEP, mean_token)
    assert model.engine.evaluations - before == len(PROMPTS) * len(SEEDS)
    torch.testing.assert_close(eps, model.epsilon(condition, given, TIMESTEP))
    for row, prompt in enumerate(PROMPTS):
        expected, activations = hooked(model, prompt, latents)
        torch.testing.assert_close(eps[row], expected, rtol=1e-4, atol=1e-5)
        assert list(seen) == list(model.engine.second_linears) and set(seen) == set(activations)
        for name, activation in activations.items():
            torch.testing.assert_close(seen[name][row], activation, rtol=1e-4, atol=1e-5)


def test_each_sample_is_seen_once_after_memory_ran_out(tiny_directory):
    model = df.load(tiny_directory, device="cpu", batch_size=4)
    condition, latents = model.encode(PROMPTS), model.noise(SEEDS)
    expected = feed_forward_inputs(model, condition, latents, TIMESTEP, mean_token)[1]
    calls = []

    def short_of_memory(activations):
        calls.append(len(activations))
        # in the middle of the second batch
        if len(calls) == 6:
            raise RuntimeError("can't allocate memory")
        return mean_token(activations)

    seen = feed_forward_inputs(model, condition, latents, TIMESTEP, short_of_memory)[1]
    assert calls[5] == 4 and calls[-1] == model.batch_size == 2
    for name, values in expected.items():
        torch.testing.assert_close(seen[name], values)


def test_layers_of_sdxl_are_told_apart(tiny_sdxl_directory):
    model = df.load(tiny_sdxl_directory, device="cpu", batch_size=4)
    condition, latents = model.encode(PROMPTS), model.noise(SEEDS)
    _, seen = feed_forward_inputs(model, condition, latents, TIMESTEP, mean_token)
    names = [name for name, _ in model.unet.named_modules() if name.endswith("ff.net.2")]
    assert set(seen) == set(names)
    for name, value in seen.items():
        width = model.unet.get_submodule(name).in_features
        assert value.shape == (len(PROMPTS), len(SEEDS), width)


def test_value_magnitudes_do_not_depend_on_neighbours(model):
    prompts = [*PROMPTS, "the cat", "the cat in the hat on the mat", "ZZ 999 !"]
    condition, calls = model.encode(prompts), []
    for name, found in probes.value_magnitudes(model, condition).items():
        project = model.unet.get_submodule(name).to_v
        each = [project(condition.embeddings[i]).abs().mean(0) for i in range(len(prompts))]
        assert torch.equal(found, torch.stack(each))
        # elsewhere than on a CPU: batches of one size, the last one padded
        hook = project.register_forward_hook(lambda *a: calls.append(a[2].shape[0]))
        batched = probes._magnitudes(model, name, condition, 3)
        alone = [
            probes._magnitudes(model, name, condition[i : i + 1].one_row_each(), 3)
            for i in range(5)
        ]
        hook.remove()
        assert torch.equal(batched[:5], torch.cat(alone))
        torch.testing.assert_close(batched, found)
    assert set(calls) == {3} and len(calls) == len(model.layers) * (2 + 5)
    nothing = model.encode([])
    assert probes.value_magnitudes(model, nothing)[name].shape == (0, found.shape[1])
