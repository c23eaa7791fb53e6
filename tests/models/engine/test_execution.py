"""The switches: choices of "auto", refusals, and changes of rounding alone."""

from __future__ import annotations

import pytest
import torch
import torch._inductor.config as inductor_config
from diffusers import StableDiffusionPipeline
from torch._inductor.graph import GraphLowering

import dori_fast as df
from dori_fast.errors import UsageError
from dori_fast.models.backbones.unet.parts import Parts
from dori_fast.models.backbones.unet.program import Program
from dori_fast.models.engine.attention import sdpa
from dori_fast.models.engine.execution import Execution
from dori_fast.models.engine.graphs import Graphs
from tests.models.backbones.test_unet_program import small_unet

CPU = torch.device("cpu")
PROMPTS = ["a cat", "a thin hen", "a cat in a hat"]


def epsilon(model, prompts=PROMPTS):
    return model.epsilon(model.encode(prompts), model.noise([0, 1]), 961)


def test_on_a_cpu_auto_switches_nothing_on(tiny_directory):
    chosen = df.load(tiny_directory, device="cpu").engine.execution
    assert chosen == Execution("sdpa", compile=False, channels_last=False, cuda_graphs=False)


@pytest.mark.parametrize("share", [True, False])
def test_channels_last_changes_rounding_alone(tiny_directory, share):
    how = {"device": "cpu", "dtype": "float64", "share": share}
    plain, last = (df.load(tiny_directory, channels_last=on, **how) for on in (False, True))
    assert not plain.engine.backbone.channels_last and last.engine.backbone.channels_last
    expected = epsilon(plain)
    assert (epsilon(last) - expected).norm() <= 1e-12 * expected.norm()


def test_derivatives_are_the_same_with_channels_last(tiny_directory):
    how = {"device": "cpu", "dtype": "float64"}
    found = []
    for on in (False, True):
        model = df.load(tiny_directory, channels_last=on, **how)
        embeddings = model.encode(PROMPTS).embeddings.clone().requires_grad_()
        epsilon = model.epsilon(model.condition(embeddings), model.noise([0]), 961)
        epsilon.square().sum().backward()
        samples = model.samples(model.encode(PROMPTS), model.noise([0]), 961)
        directions = torch.ones(3, *model.latent_shape, dtype=torch.float64)
        found.append((embeddings.grad, model.engine.jvp(samples, directions)))
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_is_refused_with_the_reason(tiny_directory):
    with pytest.raises(UsageError, match="cuda_graphs=True is impossible here: a cpu device"):
        df.load(tiny_directory, device="cpu", cuda_graphs=True)
    with pytest.raises(UsageError, match="compile=True .* called whole .switched off"):
        df.load(tiny_directory, device="cpu", compile=True, share=False)
    with pytest.raises(UsageError, match="compile must be 'auto', True or False, got 'on'"):
        df.load(tiny_directory, device="cpu", compile="on")
    # Inductor's own patch: monkeypatch would delete the setting when it undoes the change.
    no_compiler = inductor_config.patch({"cpp.cxx": ("no-such-compiler",)})
    with no_compiler, pytest.raises(UsageError, match="needs a C\\+\\+ compiler"):
        df.load(tiny_directory, device="cpu", compile=True)


def test_a_pipelines_layout_is_its_owners(tiny_directory):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory, safety_checker=None)
    assert not df.load(pipe).engine.execution.channels_last
    with pytest.raises(UsageError, match=r"pipe.unet.to\(memory_format=torch.channels_last\)"):
        df.load(pipe, channels_last=True)
    assert pipe.unet.conv_in.weight.is_contiguous()
    pipe.unet.to(memory_format=torch.channels_last)
    assert df.load(pipe, channels_last=True).engine.execution.channels_last
    with pytest.raises(UsageError, match="contiguous_format"):
        df.load(pipe, channels_last=False)


def run(program, latents, text, timestep=961):
    state = program.prefix(latents, timestep)
    return program.suffix(state, program.text_part(text, None), timestep)


def one_block_unet():
    """Few kinds of part, since each is compiled."""
    return small_unet(
        torch.float64,
        sample_size=8,
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )


@pytest.mark.slow
@pytest.mark.parametrize("differentiated", [False, True])
def test_compiled_parts_are_exact(differentiated, monkeypatch):
    unet = one_block_unet()
    latents = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    text = torch.randn(2, 7, 24, dtype=torch.float64)
    plain, compiled = Program(unet), Program(unet, Parts(sdpa, compiled=True))

    def results(program, timestep):
        given = text.clone().requires_grad_(differentiated)
        output = run(program, latents, given, timestep)
        if not differentiated:
            return [output]
        return [output, *torch.autograd.grad(output.square().sum(), given)]

    def compare(timestep):
        pairs = zip(results(compiled, timestep), results(plain, timestep), strict=True)
        for actual, expected in pairs:
            assert (actual - expected).norm() <= 1e-12 * expected.norm()

    deterministic = []
    codegen = GraphLowering.codegen

    def watched(graph):
        deterministic.append(inductor_config.deterministic)
        return codegen(graph)

    monkeypatch.setattr(GraphLowering, "codegen", watched)
    with inductor_config.patch(fx_graph_cache=False):
        compare(961)
    # forward, and backward when it first ran: every process compiles the same kernels
    assert deterministic and all(deterministic) and not inductor_config.deterministic
    # another timestep needs no recompilation
    with torch.compiler.set_stance("fail_on_recompile"):
        compare(21)


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 4])
def test_replayed_graphs_give_the_same_bits(tiny_directory, batch_size):
    how = {"device": "cuda", "dtype": "float16", "batch_size": batch_size}
    plain, replayed = (df.load(tiny_directory, cuda_graphs=on, **how) for on in (False, True))
    assert replayed.engine.execution.cuda_graphs
    for prompts, timestep in [(PROMPTS, 961), (PROMPTS[::-1], 961), (PROMPTS, 21)]:
        expected = plain.epsilon(plain.encode(prompts), plain.noise([0, 1]), timestep)
        actual = replayed.epsilon(replayed.encode(prompts), replayed.noise([0, 1]), timestep)
        assert torch.equal(actual, expected)


@pytest.mark.gpu
def test_one_graph_serves_all_timesteps_and_gradients_go_around_it():
    unet = small_unet(torch.float32).cuda()
    graphs = Graphs(unet)
    program = Program(unet, Parts(sdpa), graphs=graphs)
    latents, text = torch.randn(2, 4, 16, 16).cuda(), torch.randn(2, 7, 24).cuda()
    with torch.no_grad():
        for timestep in (961, 21, 961):
            expected = run(Program(unet), latents, text, timestep)
            assert torch.equal(run(program, latents, text, timestep), expected)
    assert len(graphs) == 1
    text.requires_grad_()
    run(program, latents, text).square().sum().backward()
    assert text.grad is not None and len(graphs) == 1
