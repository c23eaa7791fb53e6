"""The precision of products while a network is evaluated, whatever a caller has set.

Torch's switches are global to the process. As torch comes, float32 on a GPU is not IEEE float32:
convolutions round their inputs to TF32 (10 bits of mantissa). Products of float16 and bfloat16 may
add up in 16 bits. A caller may also have chosen bfloat16 products on a CPU, or cuDNN kernels by
their time in a trial run. :func:`fixed_precision` sets the switches for an evaluation and sets them
back afterwards, so that a score depends on none of this:

    float32 products            IEEE float32; TF32 on a GPU only where it is allowed
    float16, bfloat16 products  sums in float32
    cuDNN                       deterministic kernels, none chosen by its time
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_C: Any = torch._C

# a value "none" stands for that of the backend's "all", and there for that of "generic"
_OPS = ("conv", "rnn", "matmul")
_GPU = (("cuda", "all"), *(("cuda", op) for op in _OPS))
_CPU = (("mkldnn", "all"), *(("mkldnn", op) for op in _OPS))
_KEYS = (("generic", "all"), *_GPU, *_CPU)

# switches of one value each that have one value in every evaluation
_FIXED = (
    (_C._get_cudnn_benchmark, _C._set_cudnn_benchmark, False),
    (_C._get_cudnn_deterministic, _C._set_cudnn_deterministic, True),
    (_C._get_cublas_allow_fp16_accumulation, _C._set_cublas_allow_fp16_accumulation, False),
    (_C._get_math_sdp_allow_fp16_bf16_reduction, _C._set_math_sdp_allow_fp16_bf16_reduction, False),
)
# whether sums may be in 16 bits and, since torch 2.10, whether a sum may be split among blocks
_SUMS = (
    (
        _C._get_cublas_allow_fp16_reduced_precision_reduction,
        _C._set_cublas_allow_fp16_reduced_precision_reduction,
    ),
    (
        _C._get_cublas_allow_bf16_reduced_precision_reduction,
        _C._set_cublas_allow_bf16_reduced_precision_reduction,
    ),
)


class _Switches:
    """Torch's switches at one moment, whichever of its two interfaces has set them.

    Torch keeps the values of the older interface (``allow_tf32``, ``float32_matmul_precision``)
    beside those of the newer one (``fp32_precision``), and raises where a disagreement is read.
    Reading sets all values of the newer interface to "none".
    """

    def __init__(self) -> None:
        self._fixed = [read() for read, _, _ in _FIXED]
        self._sums = [read() for read, _ in _SUMS]
        self._precisions = []
        for key in _KEYS:
            # with "none" above it, a value is as it was set
            self._precisions.append(_C._get_fp32_precision_getter(*key))
            _C._set_fp32_precision_setter(*key, "none")
        self._matmul = _C._get_float32_matmul_precision()
        try:
            self._cudnn = _C._get_cudnn_allow_tf32()
        except RuntimeError:
            # "none" disagrees with True alone
            self._cudnn = True

    def restore(self) -> None:
        """Set all switches as they were at that moment."""
        for (_, write, _), value in zip(_FIXED, self._fixed, strict=True):
            write(value)
        for (_, write), sums in zip(_SUMS, self._sums, strict=True):
            write(*sums) if isinstance(sums, tuple) else write(sums)
        # the older switches write into the newer ones
        _C._set_cudnn_allow_tf32(self._cudnn)
        _C._set_float32_matmul_precision(self._matmul)
        for key, value in zip(_KEYS, self._precisions, strict=True):
            _C._set_fp32_precision_setter(*key, value)


def _fix(allow_tf32: bool) -> None:
    """Set all switches for evaluations; both interfaces agree, as torch.compile reads both."""
    for _, write, value in _FIXED:
        write(value)
    for read, write in _SUMS:
        # split sums are added up in float32
        write(False, True) if isinstance(read(), tuple) else write(False)
    _C._set_cudnn_allow_tf32(allow_tf32)
    # "high" would mean TF32 on a CPU too
    _C._set_float32_matmul_precision("high" if allow_tf32 else "highest")
    for key in _KEYS:
        _C._set_fp32_precision_setter(*key, "tf32" if allow_tf32 and key in _GPU else "ieee")


class _Evaluations:
    """The evaluations of this process that are going on, in all threads.

    The switches are fixed from the beginning of the first one to the end of the last one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callers: _Switches | None = None
        # number of evaluations by whether they allow TF32
        self._going_on = {True: 0, False: 0}

    def begin(self, allow_tf32: bool) -> None:
        with self._lock:
            before = self._allowed
            self._going_on[allow_tf32] += 1
            if before is None:
                self._callers = _Switches()
            if before is not self._allowed:
                _fix(allow_tf32)

    def end(self, allow_tf32: bool) -> None:
        with self._lock:
            before = self._allowed
            self._going_on[allow_tf32] -= 1
            if self._allowed is None:
                assert self._callers is not None  # noqa: S101
                self._callers.restore()
                self._callers = None
            elif before is not self._allowed:
                _fix(self._allowed)

    @property
    def _allowed(self) -> bool | None:
        """Whether all evaluations allow TF32; None if there are none."""
        if self._going_on[False]:
            return False
        return True if self._going_on[True] else None


_evaluations = _Evaluations()


@contextmanager
def fixed_precision(allow_tf32: bool = False) -> Iterator[None]:
    """A context for evaluations and their backward passes.

    It may be entered again within itself and by several threads. The caller's switches are back
    when all have left it; changes made meanwhile are lost. TF32 is used only while every context
    allows it. Entering and leaving takes some tens of microseconds, and less within another.

    Args:
        allow_tf32: True to allow TF32 in float32 convolutions and matrix products on a GPU.
    """
    allow_tf32 = bool(allow_tf32)
    _evaluations.begin(allow_tf32)
    try:
        yield
    finally:
        _evaluations.end(allow_tf32)
