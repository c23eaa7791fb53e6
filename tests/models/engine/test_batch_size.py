"""The automatic batch size."""

from __future__ import annotations

import pytest
import torch

import dori_fast as df
from dori_fast.models.backbones.registry import backbone_of
from dori_fast.models.engine.attention import sdpa
from dori_fast.models.engine.batch_size import auto_batch_size, fitting, line, peak_bytes
from dori_fast.models.engine.graphs import Graphs
from tests.models.backbones.test_unet_program import small_unet

GB = 1e9


@pytest.mark.parametrize(
    ("per_sample", "fixed", "free", "expected"),
    [
        (0.3 * GB, 0, 80 * GB, 64),
        # 0.7 * 24 GB hold 56 samples of 0.3 GB: the power of two below
        (0.3 * GB, 0, 24 * GB, 32),
        (0.3 * GB, 8 * GB, 24 * GB, 16),
        (1.3 * GB, 0, 80 * GB, 32),
        (3 * GB, 0, 4 * GB, 1),
        # not even one fits, so the run itself will raise
        (3 * GB, 0, 1 * GB, 1),
        (0.0, 0, 1 * GB, 64),
    ],
)
def test_the_largest_power_of_two_that_fits(per_sample, fixed, free, expected):
    assert fitting(per_sample, fixed, free) == expected


def test_a_little_less_memory_changes_nothing():
    sizes = {fitting(0.3 * GB, 1 * GB, free * GB) for free in (70, 74, 78)}
    assert sizes == {64}


def test_on_a_cpu_it_depends_on_the_model_alone(tiny_directory):
    assert df.load(tiny_directory, device="cpu").batch_size == 32
    assert auto_batch_size(backbone_of(small_unet(), (0, 0)), None) == 32


def test_a_probe_that_does_not_fit_is_an_answer():
    freed = []

    def peak(most):
        def found(samples):
            if samples > most:
                raise torch.OutOfMemoryError("CUDA")
            return 100 + 30 * samples

        return found

    for most, expected in ((4, (100, 30, 64)), (3, (0, 0, 2)), (1, (0, 0, 1))):
        assert line(peak(most), lambda: freed.append(1)) == expected
    assert len(freed) == 2
    with pytest.raises(RuntimeError, match="shape"):
        line(lambda samples: torch.zeros(2).reshape(3), lambda: freed.append(1))


@pytest.mark.gpu
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("how", ["own", "stages", "recompute"])
def test_the_peak_that_a_probe_predicts_is_that_of_a_real_batch(how, gradients):
    backbone = backbone_of(small_unet(torch.float32, sample_size=64).cuda(), (0, 0))
    program = None if how == "own" else backbone.program(sdpa)
    if program is not None:
        program.recompute = how == "recompute"
    two, four, real = (peak_bytes(backbone, program, n, gradients=gradients) for n in (2, 4, 16))
    predicted = two + 7 * (four - two)
    assert two < four < real
    assert 0.5 * real < predicted < 1.5 * real
    assert auto_batch_size(backbone, program, gradients=gradients) == 64


@pytest.mark.gpu
def test_the_memory_that_a_graph_keeps_is_counted_and_given_back():
    backbone = backbone_of(small_unet(torch.float32, sample_size=64).cuda(), (0, 0))
    graphs = Graphs(backbone.network)
    program = backbone.program(sdpa, graphs=graphs)
    recorded = peak_bytes(backbone, program, 16, graphs=graphs)
    assert recorded > peak_bytes(backbone, backbone.program(sdpa), 16)
    assert auto_batch_size(backbone, program, graphs=graphs) == 64 and len(graphs) == 0
