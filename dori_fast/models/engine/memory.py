"""Out of memory: how it is recognized, and work that is repeated in smaller pieces."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

_log = logging.getLogger(__name__)
T = TypeVar("T")

# Allocators and libraries without an exception of their own, by what they say: torch's CPU
# allocator; the CUDA driver below torch's allocator (AcceleratorError) and below Triton's loader;
# cuBLAS and cuDNN.
_SAID = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "[CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException, outer: BaseException | None = None) -> bool:
    """Whether an error, or one during whose handling it was raised, means that memory ran out.

    The end of a CUDA graph's capture, for one, fails because an allocation within it did.

    Args:
        error: the error.
        outer: error that was already being handled when the work began, or None. It and those
            before it say nothing about the work.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and found is not outer and id(found) not in seen:
        if isinstance(found, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(found, RuntimeError) and any(said in str(found) for said in _SAID):
            return True
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return False


def free_cached(device: torch.device) -> None:
    """Give memory that torch holds unused on a GPU back to the driver; nothing on other devices."""
    # a failed evaluation's tensors may be part of a cycle through its traceback
    gc.collect()
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


class Shrinking:
    """A number of samples at once, halved whenever memory runs out.

    Args:
        size: samples at once.
        what: name of the pieces in the log.

    Attributes:
        size: samples at once now.
    """

    def __init__(self, size: int, what: str) -> None:
        self.size, self._what = size, what

    def run(self, work: Callable[[], T], release: Callable[[], None]) -> T:
        """``work()``, which cuts its samples by :attr:`size`; repeated until it fits.

        Args:
            work: function that starts from nothing at each call and keeps no graph when it fails.
            release: function that frees memory after a failure.

        Raises:
            RuntimeError, MemoryError: memory runs out even with one sample, or another error.
        """
        outer = sys.exc_info()[1]
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if self.size == 1 or not out_of_memory(error, outer):
                    raise
            # outside the handler, whose traceback would keep the failed work's tensors
            self.size //= 2
            release()
            _log.warning("out of memory: %s are of %d samples now", self._what, self.size)
