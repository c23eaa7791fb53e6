"""Out of memory: batches are halved down to one sample, scores stay equal."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import dori_fast as df
from dori_fast.models.backbones.unet.by_sample import require_by_sample
from dori_fast.models.engine.memory import Shrinking, out_of_memory
from dori_fast.runs.workers.worker import failure

CPU_MESSAGE = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.fixture
def refuse_over(monkeypatch: Any) -> Any:
    """A function that lets the UNet's last layer fail on batches over a number of samples."""

    def refuse(model: Any, samples: int, error: Exception) -> None:
        convolve, last = F.conv2d, model.unet.conv_out.weight

        def check(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
            if weight is last and len(x) > samples:
                raise error
            return convolve(x, weight, *rest)

        # not a hook, which would be tested as somebody's change of the network
        monkeypatch.setattr(F, "conv2d", check)

    return refuse


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError(CPU_MESSAGE)])
def test_batches_are_halved_until_they_fit(
    tiny_directory: Any, error: Exception, caplog: Any, refuse_over: Any
) -> None:
    prompts = [f"a cat {i}" for i in range(11)]
    model, small = df.load(tiny_directory, batch_size=16), df.load(tiny_directory, batch_size=2)
    refuse_over(model, 2, error)
    detector = df.detect.Wen(seeds=2)
    with caplog.at_level(logging.WARNING, "dori_fast"):
        found = detector.score(model, prompts)
    assert model.batch_size == 2
    assert [" ".join(r.message.split()[-6:]) for r in caplog.records] == [
        f"batches are of {n} samples now" for n in (8, 4, 2)
    ]
    torch.testing.assert_close(found, detector.score(small, prompts), rtol=1e-5, atol=1e-6)


def test_one_sample_is_the_floor(tiny_directory: Any, refuse_over: Any) -> None:
    model = df.load(tiny_directory, batch_size=4)
    refuse_over(model, 0, torch.OutOfMemoryError("CUDA"))
    with pytest.raises(torch.OutOfMemoryError):
        df.detect.Wen(seeds=2).score(model, ["a cat"])
    assert model.batch_size == 1


def test_other_errors_pass(tiny_directory: Any, refuse_over: Any) -> None:
    model = df.load(tiny_directory, batch_size=4)
    refuse_over(model, 0, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        df.detect.Wen(seeds=2).score(model, ["a cat"])
    assert model.batch_size == 4


# what torch 2.13, cuBLAS, cuDNN and Triton 3.6 say
@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Triton Error [CUDA]: out of memory",
        CPU_MESSAGE,
    ],
)
def test_every_way_to_say_it_is_understood(said: str) -> None:
    assert out_of_memory(RuntimeError(said))
    assert out_of_memory(torch.AcceleratorError(said))
    assert not out_of_memory(ValueError(said))


def test_an_error_that_follows_from_it_is_one_too() -> None:
    """The capture of a CUDA graph cannot be ended after an allocation in it has failed."""

    class Capture:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    def capture(error: Exception) -> None:
        with Capture():
            raise error

    for inner, expected in ((torch.OutOfMemoryError("CUDA"), True), (ValueError("shape"), False)):
        with pytest.raises(RuntimeError, match="previous error") as caught:
            capture(inner)
        assert out_of_memory(caught.value) is expected


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_no_library_without_memory_is_taken_for_another_fault(error: Exception) -> None:
    """For a lost device, which costs a worker, or for foreign code, which would be to blame."""
    assert not failure(error).device_lost

    def evaluate(*batch: object) -> torch.Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        require_by_sample(evaluate, (torch.zeros(1, 4), torch.zeros(1, 3), None), "a hook")
    assert caught.value is error


def test_a_device_in_an_undefined_state_is_lost() -> None:
    for message in ("CUDA error: an illegal memory access was encountered", "cuDNN error: BAD"):
        assert failure(RuntimeError(message)).device_lost
    assert failure(torch.AcceleratorError("unspecified launch failure")).device_lost


def test_an_error_that_the_caller_was_handling_says_nothing_about_the_work() -> None:
    pieces, calls = Shrinking(8, "pieces"), []

    def work() -> None:
        calls.append(pieces.size)
        raise torch.OutOfMemoryError("CUDA") if pieces.size > 4 else RuntimeError("shape")

    try:
        raise torch.OutOfMemoryError("the caller's")
    except torch.OutOfMemoryError:
        with pytest.raises(RuntimeError, match="shape"):
            pieces.run(work, lambda: None)
    assert calls == [8, 4]
