"""Torch's switches of precision: fixed in every evaluation and backward pass, given back after it.

A dispatch mode sees every operator that runs, in forward and backward passes, and what the switches
are at that moment. No operator is replaced.
"""

from __future__ import annotations

import threading

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch.utils._python_dispatch import TorchDispatchMode

import dori_fast as df
from dori_fast.attack import Dori, Tokens
from dori_fast.errors import UsageError
from dori_fast.evaluate.denoising import held_out_loss
from dori_fast.evaluate.locality import value_discrepancy
from dori_fast.mitigate import Wen
from dori_fast.models.engine import execution
from dori_fast.models.precision import fixed_precision
from dori_fast.models.probes import token_attention, value_magnitudes
from dori_fast.runs.workers.worker import known_answer
from tests.finetune.material import IMAGES, PROMPTS, train, tuning

B = torch.backends
PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm"}


def read(get):
    """The value of a switch, or the kind of error with which torch refuses to read it."""
    try:
        return get()
    except RuntimeError:
        return "mixed"


def switches():
    """All switches by their public names, of both interfaces."""
    matmul = B.cuda.matmul
    return {
        "cudnn.benchmark": B.cudnn.benchmark,
        "cudnn.deterministic": B.cudnn.deterministic,
        "fp16 sums": matmul.allow_fp16_reduced_precision_reduction,
        "fp16 split": getattr(matmul, "allow_fp16_reduced_precision_reduction_split_k", True),
        "bf16 sums": matmul.allow_bf16_reduced_precision_reduction,
        "fp16 accumulation": matmul.allow_fp16_accumulation,
        "sdpa sums": B.cuda.fp16_bf16_reduction_math_sdp_allowed(),
        "cudnn.allow_tf32": read(lambda: B.cudnn.allow_tf32),
        "matmul.allow_tf32": read(lambda: matmul.allow_tf32),
        "float32_matmul": read(torch.get_float32_matmul_precision),
        "cuda": B.cudnn.fp32_precision,
        "cuda.conv": B.cudnn.conv.fp32_precision,
        "cuda.rnn": B.cudnn.rnn.fp32_precision,
        "cuda.matmul": matmul.fp32_precision,
        "cpu": B.mkldnn.fp32_precision,
        "cpu.conv": B.mkldnn.conv.fp32_precision,
        "cpu.matmul": B.mkldnn.matmul.fp32_precision,
    }


def everything():
    """The switches, and how they follow the ones above them, which a restored value must too."""
    before, found = B.fp32_precision, [switches()]
    for general in ("ieee", "tf32"):
        B.fp32_precision = general
        found.append(switches())
    B.fp32_precision = before
    return [before, *found]


IEEE = {
    "cudnn.benchmark": False,
    "cudnn.deterministic": True,
    "fp16 sums": False,
    "fp16 split": True,
    "bf16 sums": False,
    "fp16 accumulation": False,
    "sdpa sums": False,
    "cudnn.allow_tf32": False,
    "matmul.allow_tf32": False,
    "float32_matmul": "highest",
    **dict.fromkeys(("cuda", "cuda.conv", "cuda.rnn", "cuda.matmul"), "ieee"),
    **dict.fromkeys(("cpu", "cpu.conv", "cpu.matmul"), "ieee"),
}
TF32 = IEEE | {
    "cudnn.allow_tf32": True,
    "matmul.allow_tf32": True,
    "float32_matmul": "high",
    **dict.fromkeys(("cuda", "cuda.conv", "cuda.rnn", "cuda.matmul"), "tf32"),
}


def as_torch_comes():
    B.cudnn.benchmark = B.cudnn.deterministic = False
    B.cuda.matmul.allow_fp16_reduced_precision_reduction = True
    B.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    B.cuda.matmul.allow_fp16_accumulation = False
    B.cuda.allow_fp16_bf16_reduction_math_sdp(False)
    B.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    B.fp32_precision = B.cudnn.fp32_precision = "none"
    B.cuda.matmul.fp32_precision = "none"
    for op in (B.mkldnn.conv, B.mkldnn.matmul):
        op.fp32_precision = "none"


def by_the_older_interface():
    B.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    B.cudnn.benchmark = True
    B.cuda.matmul.allow_fp16_accumulation = True
    B.cuda.allow_fp16_bf16_reduction_math_sdp(True)


def by_the_newer_interface():
    B.fp32_precision = "tf32"
    B.cudnn.conv.fp32_precision = "none"
    B.cudnn.rnn.fp32_precision = "none"
    B.mkldnn.matmul.fp32_precision = "bf16"
    if hasattr(B.cuda.matmul, "allow_fp16_reduced_precision_reduction_split_k"):
        B.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, False)


def by_both():
    torch.set_float32_matmul_precision("high")
    B.cuda.matmul.fp32_precision = "ieee"
    B.cudnn.allow_tf32 = False
    B.cudnn.conv.fp32_precision = "tf32"


CALLERS = [as_torch_comes, by_the_older_interface, by_the_newer_interface, by_both]


@pytest.fixture(autouse=True)
def _switches_come_back():
    as_torch_comes()
    yield
    as_torch_comes()


@pytest.fixture(params=CALLERS, ids=lambda caller: caller.__name__)
def caller(request):
    request.param()


class Watch(TorchDispatchMode):
    """Switches by operator, for those that compute products."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in PRODUCTS or "scaled_dot_product" in name:
            seen, now = self.seen.setdefault(name, []), switches()
            if now not in seen:
                seen.append(now)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("allow_tf32", [False, True])
def test_a_callers_switches_are_fixed_and_come_back(caller, allow_tf32):
    before = everything()
    with fixed_precision(allow_tf32):
        assert switches() == (TF32 if allow_tf32 else IEEE)
        with fixed_precision():
            assert switches() == IEEE
        assert switches() == (TF32 if allow_tf32 else IEEE)
    assert everything() == before
    with pytest.raises(ZeroDivisionError), fixed_precision(allow_tf32):
        1 / 0  # noqa: B018
    assert everything() == before


def test_an_evaluation_in_a_thread_keeps_the_switches_of_one_that_goes_on():
    before, inside, left = everything(), threading.Event(), threading.Event()

    def other():
        with fixed_precision(allow_tf32=True):
            inside.set()
            left.wait()

    thread = threading.Thread(target=other)
    with fixed_precision():
        thread.start()
        inside.wait()
        # TF32 waits until nobody needs IEEE
        assert switches() == IEEE
    assert switches() == TF32
    left.set()
    thread.join()
    assert everything() == before


def run_epsilon(model):
    model.epsilon(model.encode(PROMPTS), model.noise([0]), 961)


METHODS = {
    "epsilon": run_epsilon,
    "generate": lambda model: model.generate(model.encode(["a"]), [0], steps=2),
    "latents": lambda model: model.latents(IMAGES),
    "attack": lambda model: Dori(steps=2, draws=2, recompute=True).run(model, PROMPTS, IMAGES),
    "kept": lambda model: Dori(steps=1, draws=2).run(model, PROMPTS, IMAGES),
    "tokens": lambda model: Tokens(steps=1, draws=1).run(model, PROMPTS, IMAGES),
    "mitigation": lambda model: Wen(0.0, iterations=1).run(model, PROMPTS),
    "sail": lambda model: df.detect.get("sail", seeds=1).score(model, PROMPTS),
    "ren": lambda model: df.detect.get("ren", seeds=1).score(model, PROMPTS),
    "wanda": lambda model: df.prune.Wanda(0.1).localize(model, PROMPTS),
    "magnitudes": lambda model: value_magnitudes(model, model.encode(PROMPTS)),
    "discrepancy": lambda model: value_discrepancy(model, model.encode(PROMPTS)),
    "attention": lambda model: token_attention(
        model, model.encode(PROMPTS), model.noise([0]), 961, 0
    ),
    "held out": lambda model: held_out_loss(model, PROMPTS, IMAGES, draws=1),
    "known answer": known_answer,
}
BACKWARD = {"attack", "kept", "tokens", "mitigation"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_evaluates_in_ieee_float32(model, method):
    by_both()
    before = everything()
    with Watch() as watch:
        METHODS[method](model)
    assert watch.seen and all(seen == [IEEE] for seen in watch.seen.values()), method
    assert ("convolution_backward" in watch.seen) == (method in BACKWARD)
    assert everything() == before


@pytest.mark.parametrize("share", [True, False])
def test_a_pipeline_in_memory_and_its_acceleration_too(tiny_directory, share):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_directory, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    by_both()
    before = everything()
    with Watch() as watch:
        run_epsilon(df.load(pipe, share=share, batch_size=4))
        with df.accelerate(pipe):
            pipe("a cat", num_inference_steps=1, output_type="np")
    assert all(seen == [IEEE] for seen in watch.seen.values())
    assert everything() == before
    with Watch() as watch, df.accelerate(pipe, allow_tf32=True):
        pipe("a cat", num_inference_steps=1, output_type="latent")
    assert all(seen == [TF32] for seen in watch.seen.values())
    with pytest.raises(UsageError, match="allow_tf32 must be True or False, got 'auto'"):
        df.accelerate(pipe, allow_tf32="auto")


def test_fine_tuning_too(tiny_directory):
    own = df.load(tiny_directory, device="cpu", batch_size=8)
    by_both()
    before = everything()
    with Watch() as watch:
        train(tuning(steps=1), own)
    assert "convolution_backward" in watch.seen
    assert all(seen == [IEEE] for seen in watch.seen.values())
    assert everything() == before


def test_both_text_encoders_of_sdxl_too(tiny_sdxl_directory):
    own = df.load(tiny_sdxl_directory, device="cpu", batch_size=4)
    by_both()
    with Watch() as watch:
        run_epsilon(own)
    assert watch.seen and all(seen == [IEEE] for seen in watch.seen.values())


def test_a_model_that_allows_tf32_gets_it_in_its_network_alone(tiny_directory, monkeypatch):
    # torch has the switch without a GPU too, and nothing heeds it there
    monkeypatch.setitem(execution._REFUSALS, "allow_tf32", lambda device: None)
    model = df.load(tiny_directory, device="cpu", batch_size=8, allow_tf32=True)
    assert model.engine.execution.allow_tf32 and model.recipe["allow_tf32"]
    by_the_newer_interface()
    before = everything()
    with Watch() as watch:
        model.encode(["a new prompt"])
    assert all(seen == [IEEE] for seen in watch.seen.values())
    with Watch() as watch:
        Dori(steps=1, draws=1).run(model, None, IMAGES, start="gaussian")
    # the autoencoder is in IEEE float32, the network in TF32
    assert watch.seen["convolution"] == [IEEE, TF32]
    assert watch.seen["convolution_backward"] == [TF32]
    assert everything() == before
    with Watch() as watch:
        Wen(0.0, iterations=1).run(model, PROMPTS[:1])
    assert watch.seen["convolution_backward"] == [TF32]
    with Watch() as watch:
        value_magnitudes(model, model.unconditional)
    assert all(seen == [TF32] for seen in watch.seen.values())
    # workers with and without TF32 are not compared
    assert known_answer(model).device.endswith(", TF32")


def test_tf32_is_refused_where_there_is_none(tiny_directory):
    with pytest.raises(UsageError, match="allow_tf32=True is impossible here: a cpu device has no"):
        df.load(tiny_directory, device="cpu", allow_tf32=True)
    with pytest.raises(UsageError, match="allow_tf32 must be True or False, got 'auto'"):
        df.load(tiny_directory, device="cpu", allow_tf32="auto")
    assert not df.load(tiny_directory, device="cpu").engine.execution.allow_tf32


def test_a_score_does_not_depend_on_a_callers_switches(model):
    def scores():
        return df.detect.Wen(seeds=2).score(model, PROMPTS)

    expected = scores()
    for choose in CALLERS:
        as_torch_comes()
        choose()
        assert torch.equal(scores(), expected)
