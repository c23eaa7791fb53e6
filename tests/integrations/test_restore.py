"""What df.accelerate touches, and that df.restore leaves none of it."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

import dori_fast as df
from dori_fast.errors import UsageError
from tests.integrations.conftest import call
from tests.integrations.inventory import differences, inventory

# what the pipeline itself remembers of a call
LEFT_BY_A_CALL = {
    f"_{name}"
    for name in (
        "clip_skip",
        "cross_attention_kwargs",
        "denoising_end",
        "guidance_rescale",
        "guidance_scale",
        "interrupt",
        "num_timesteps",
    )
}
OPTIONS = [{}, {"scan_steps": 1}, {"share": True}, {"attention": "sdpa"}]
# a call of compiled blocks takes long: see test_compiled_blocks
NOT_CALLED = [{"compile": True}]


def left_by_a_stock_call(pipe):
    """The places that a stock call changes (transformers hooks its text encoders, for one)."""
    before = inventory(pipe)
    call(pipe)
    return differences(before, inventory(pipe))


@pytest.mark.parametrize("options", [*OPTIONS, *NOT_CALLED], ids=str)
def test_accelerate_alone_touches_two_things(new, kind, options):
    pipe = new(kind)
    before = inventory(pipe)
    df.accelerate(pipe, **options)
    touched = differences(before, inventory(pipe))
    if "compile" in options:
        assert all("transformer_blocks" in n for n in touched if not n.startswith("pipe"))
        touched = [n for n in touched if n.startswith("pipe")]
    assert touched == ["pipe", "pipe._dori_fast"]
    df.restore(pipe)
    assert differences(before, inventory(pipe)) == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_calls_leave_nothing_but_what_stock_calls_leave(new, kind, options):
    pipe, stock = new(kind), new(kind)
    before, left = inventory(pipe), left_by_a_stock_call(stock)
    df.accelerate(pipe, **options)
    call(pipe)
    assert differences(before, inventory(pipe)) == sorted([*left, "pipe", "pipe._dori_fast"])
    df.restore(pipe)
    assert differences(before, inventory(pipe)) == left
    assert {n for n in left if n.startswith("pipe.")} <= {f"pipe.{n}" for n in LEFT_BY_A_CALL}
    for name in LEFT_BY_A_CALL & set(vars(stock)):
        assert getattr(pipe, name) == getattr(stock, name)
    assert torch.equal(call(pipe), call(stock))


def test_a_call_that_fails_leaves_nothing(new, kind):
    pipe = new(kind)
    before = inventory(pipe)
    df.accelerate(pipe, scan_steps=3, attention="sdpa")

    def fails(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(pipe, callback_on_step_end=fails)
    with pytest.raises(UsageError, match="the last call did not end"):
        _ = pipe.noise_norms
    assert not pipe._interrupt
    df.restore(pipe)
    stock = new(kind)
    left = left_by_a_stock_call(stock)
    assert set(differences(before, inventory(pipe))) <= set(left)
    assert torch.equal(call(pipe), call(stock))


def test_the_inventory_sees_what_might_be_forgotten(new):
    """The comparison above is worth nothing if it is blind."""
    pipe = new("sdxl")
    before = inventory(pipe)
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    handle = pipe.unet.register_forward_hook(lambda *_: None)
    assert differences(before, inventory(pipe)) == ["unet:._forward_hooks"]
    handle.remove()
    assert differences(before, inventory(pipe)) == []
    layer.to_k.forward = layer.to_k.forward
    assert len(differences(before, inventory(pipe))) == 2
    del layer.to_k.forward
    processor = layer.processor
    layer.processor = copy.copy(processor)
    assert len(differences(before, inventory(pipe))) == 2
    layer.processor = processor
    pipe.extra = 1
    assert differences(before, inventory(pipe)) == ["pipe.extra"]
    del pipe.extra
    with torch.no_grad():
        layer.to_k.weight.mul_(1)
    assert len(differences(before, inventory(pipe))) >= 1


def test_twice_is_refused_and_an_untouched_pipeline_is_left_alone(new):
    pipe = new("sd")
    before = inventory(pipe)
    assert df.restore(pipe) is pipe and differences(before, inventory(pipe)) == []
    df.accelerate(pipe)
    with pytest.raises(UsageError, match=r"accelerated already; df.restore\(pipe\) first"):
        df.accelerate(pipe)
    df.restore(df.restore(pipe))
    assert differences(before, inventory(pipe)) == []


def test_not_from_within_a_call(new):
    pipe = df.accelerate(new("sd"))

    def restores(*_):
        df.restore(pipe)

    def calls(*_):
        call(pipe)

    with pytest.raises(UsageError, match="within a call"):
        call(pipe, callback_on_step_end=restores)
    with pytest.raises(UsageError, match="from within its own call"):
        call(pipe, callback_on_step_end=calls)
    call(pipe)


class Mine(AttnProcessor):
    """An attention processor of the caller's."""


def test_processors_of_the_callers_run_and_stay(new, kind):
    pipe, stock = new(kind), new(kind)
    mine = {name: Mine() for name in pipe.unet.attn_processors}
    for p in (pipe, stock):
        p.unet.set_attn_processor(dict(mine))
    df.accelerate(pipe)
    assert torch.equal(call(pipe), call(stock)) and pipe.report.not_cached is None
    assert pipe.unet.attn_processors == mine
    for p in (pipe, stock):
        p.unet.set_attn_processor(SlicedAttnProcessor(1))
    assert torch.equal(call(pipe), call(stock))
    df.restore(pipe)
    assert all(type(p) is SlicedAttnProcessor for p in pipe.unet.attn_processors.values())


def test_fused_projections(new, kind):
    pipe, stock = new(kind), new(kind)
    for p in (pipe, stock):
        p.unet.fuse_qkv_projections()
    df.accelerate(pipe)
    assert torch.equal(call(pipe), call(stock)) and pipe.report.reused > 0
    df.restore(pipe)
    with pytest.raises(UsageError, match=r"unfuse_qkv_projections\(\)"):
        df.accelerate(pipe, attention="sdpa")


def test_the_saved_pipeline_is_a_stock_one(new, kind, tmp_path):
    pipe = new(kind)
    pipe.save_pretrained(tmp_path / "stock")
    df.accelerate(pipe).save_pretrained(tmp_path / "fast")
    files = [p.relative_to(tmp_path / "stock") for p in (tmp_path / "stock").rglob("*.*")]
    assert files
    for file in files:
        assert (tmp_path / "stock" / file).read_bytes() == (tmp_path / "fast" / file).read_bytes()


def test_a_copy_of_an_accelerated_pipeline_is_one_of_its_own(new):
    pipe = df.accelerate(new("sd"), scan_steps=1)
    other = copy.deepcopy(pipe)
    df.restore(pipe)
    call(other)
    assert other.report.steps == 1 and not hasattr(pipe, "report")
