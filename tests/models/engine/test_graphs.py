"""Recorded runs: when one is made, replayed, dropped and done without.

A recorder that computes anew at each replay stands in for CUDA graphs, which only a GPU has.
"""

from __future__ import annotations

import pytest
import torch

from dori_fast.models.backbones.unet.parts import Parts
from dori_fast.models.backbones.unet.program import Program
from dori_fast.models.engine.attention import sdpa
from dori_fast.models.engine.graphs import Graphs
from dori_fast.models.engine.state import State, TextPart
from tests.models.backbones.test_unet_program import small_unet


class Recorder:
    """Keeps the inputs' tensors, as a graph does, and computes on them at each replay."""

    def __init__(self, error=None):
        self.recorded = self.tried = self.replayed = self.restarted = 0
        self.error = error

    def restart(self):
        self.restarted += 1

    def __call__(self, compute, inputs):
        self.tried += 1
        if self.error is not None:
            raise self.error
        self.recorded += 1

        def replay(tensors):
            self.replayed += 1
            for own, given in zip(inputs, tensors, strict=True):
                assert own.dtype == given.dtype
                own.copy_(given)
            return compute(inputs)

        return replay


def network():
    return torch.nn.Linear(3, 3)


def run(graphs, x, extra=None):
    def compute(state, text, extra):
        added = 0 if extra["bias"] is None else extra["bias"]
        return State(state.x * 2 + added, state.kept)

    return graphs.run("place", compute, State(x), TextPart([]), {"bias": extra}).x


def test_a_network_is_replayed_to_the_bit():
    unet = small_unet(torch.float32)
    recorder = Recorder()
    plain, replayed = Program(unet), Program(unet, Parts(sdpa), graphs=Graphs(unet, recorder))
    for timestep in (961, 21):
        latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 24)
        with torch.no_grad():
            found, expected = (
                p.suffix(p.prefix(latents, timestep), p.text_part(text, None), timestep)
                for p in (replayed, plain)
            )
        assert torch.equal(found, expected)
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_dtypes_shapes_and_inputs_left_out_have_graphs_of_their_own():
    recorder = Recorder()
    graphs = Graphs(network(), recorder)
    x, bias = torch.randn(2, 4, 4), torch.ones(1)
    cases = [(x, None), (x, bias), (x.double(), None), (x[:1], None), (x.mT, None)]
    for _ in range(2):
        for x, bias in cases:
            assert torch.equal(run(graphs, x, bias), x * 2 + (0 if bias is None else bias))
    assert recorder.recorded == len(graphs) == 5 and recorder.replayed == 10


def test_eight_are_kept_and_a_pool_without_graphs_is_not_used_again():
    recorder = Recorder()
    graphs = Graphs(network(), recorder)
    for n in range(1, 12):
        run(graphs, torch.randn(n, 4))
    assert len(graphs) == 8 and recorder.restarted == 1
    run(graphs, torch.randn(11, 4))
    run(graphs, torch.randn(1, 4))
    assert recorder.recorded == 12
    graphs.clear()
    run(graphs, torch.randn(1, 4))
    assert len(graphs) == 1 and recorder.restarted == 2


@pytest.mark.parametrize("how", ["parameter", "data", "buffer"])
def test_graphs_are_dropped_once_a_weight_lies_elsewhere(how):
    module, recorder = network(), Recorder()
    module.register_buffer("scale", torch.ones(1))
    graphs, x = Graphs(module, recorder), torch.randn(2, 4)
    run(graphs, x)
    with torch.no_grad():
        module.weight.mul_(2)
    run(graphs, x)
    # in-place writes are where the graph reads
    assert recorder.recorded == 1
    old = module.weight, module.weight.data, module.scale
    if how == "parameter":
        module.weight = torch.nn.Parameter(old[0].detach().clone())
    elif how == "data":
        module.weight.data = old[1].clone()
    else:
        module.scale = old[2].clone()
    run(graphs, x)
    assert recorder.recorded == 2 and len(graphs) == 1


def test_without_memory_for_a_graph_its_launches_run_one_by_one(caplog):
    recorder = Recorder(torch.OutOfMemoryError("CUDA"))
    graphs, x = Graphs(network(), recorder), torch.randn(2, 4)
    for _ in range(3):
        assert torch.equal(run(graphs, x), x * 2)
    # the same shape is not tried again
    assert recorder.tried == 1 and len(graphs) == 0 and len(caplog.records) == 1
    recorder.error = None
    graphs.clear()
    assert torch.equal(run(graphs, x), x * 2) and len(graphs) == 1
    recorder.error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal"):
        run(graphs, x[:1])


@pytest.mark.gpu
def test_graphs_share_one_pool():
    unet = small_unet(torch.float32, sample_size=64).cuda()
    latents, text = torch.randn(16, 4, 64, 64).cuda(), torch.randn(16, 7, 24).cuda()

    def held(graphs):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        for n in (16, 15, 14, 13):
            program = Program(unet, Parts(sdpa), graphs=graphs())
            with torch.no_grad():
                state = program.prefix(latents[:n], 961)
                program.suffix(state, program.text_part(text[:n], None), 961)
            kept.append(program)
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() - before

    kept = []
    own = held(lambda: Graphs(unet))
    kept.clear()
    shared = Graphs(unet)
    assert held(lambda: shared) < 0.9 * own
    assert len(shared) == 4


@pytest.mark.gpu
def test_a_capture_that_runs_out_of_memory_leaves_the_device_usable():
    graphs, x = Graphs(network().cuda()), torch.randn(4, 4).cuda()
    stream, total = torch.cuda.current_stream(), torch.cuda.mem_get_info()[1]

    def compute(state, text, extra):
        if torch.cuda.is_current_stream_capturing() and extra["large"] is not None:
            torch.empty(2 * total, dtype=torch.uint8, device="cuda")
        return State(state.x * 2)

    def run(large):
        return graphs.run("place", compute, State(x), TextPart([]), {"large": large}).x

    for large, recorded in ((None, 1), (x[:1], 1), (x[:1], 1), (None, 1), (x[:2], 1)):
        assert torch.equal(run(large), x * 2) and len(graphs) == recorded
        assert torch.cuda.current_stream() == stream
    graphs.clear()
    assert torch.equal(run(x[:1]), x * 2) and len(graphs) == 0
    assert torch.equal(run(None), x * 2) and len(graphs) == 1
