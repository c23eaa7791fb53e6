"""The swapped refinement of NeMo's released code: the decisions of our own search."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.integrations.peers.nemo_refinement import _kept
from dori_fast.models.probes import change_of_noise
from dori_fast.prune import NeMo, NeuronStatistics
from dori_fast.prune.nemo.masked_rows import MaskedRows


@pytest.mark.parametrize("guess", [False, True])
def test_the_neurons_are_those_of_a_search(tiny_directory, guess):
    model = df.load(tiny_directory, device="cpu", batch_size=18)
    for name in model.layers:
        model.unet.get_submodule(name).to_v.weight.data *= 1000
    clean = [f"picture {i} of the {i % 7} houses" for i in range(40)]
    nemo = NeMo(
        NeuronStatistics.collect(model, clean),
        layers="all",
        mode="reference",
        threshold=0.1,
        theta_end=4.0,
    )
    found = nemo.search(model, "a cup of coffee")
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(10, *model.latent_shape, generator=generator)[found.seeds]
    with torch.no_grad():
        shared = model.share(noise, model.timesteps(50)[1])
        condition = model.encode([found.prompt])
        delta = change_of_noise(model, condition, shared, "epsilon")[0]
        rows = MaskedRows(model, condition, shared, model.layers, "epsilon")
        kept = _kept(found.initial, rows, delta, guess, found.threshold)
    assert [sorted(layer) for layer in kept] == [sorted(layer) for layer in found.refined]
    assert 0 < sum(map(len, kept)) < sum(map(len, found.initial))
