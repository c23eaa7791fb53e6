"""Evaluations in batches of one fixed shape: cut, padded, counted, and halved without memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.engine.batch_size import out_of_memory
from dori_fast.models.engine.state import State
from dori_fast.models.text.conditions import pad_rows

_log = logging.getLogger(__name__)


class FullBatches:
    """Runs of a computation on full batches of samples.

    Attributes:
        size: samples per batch (the fixed, padded shape).
        rows: rows computed so far, padding and repeats after running out of memory included.
    """

    def __init__(self, size: int) -> None:
        self.size, self.rows = size, 0

    @property
    def size(self) -> int:
        return self._size

    @size.setter
    def size(self, value: int) -> None:
        if value < 1:
            raise UsageError(f"batch_size must be at least 1, got {value}")
        self._size = value

    def run(self, compute: Callable[..., State], *indices: Tensor) -> State:
        """``compute`` on full batches of the indices [N], N >= 1; the padding is cut off.

        If memory runs out, this and all later batches are halved, down to one sample.
        """
        while True:
            try:
                return self._run(compute, *indices)
            except RuntimeError as error:
                if self.size == 1 or not out_of_memory(error):
                    raise
            # outside the handler, whose traceback would keep the failed batch's tensors
            self.size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning("out of memory: batches are of %d samples now", self.size)

    def _run(self, compute: Callable[..., State], *indices: Tensor) -> State:
        size, n = self.size, indices[0].shape[0]
        chunks = []
        for start in range(0, n, size):
            self.rows += size
            chunks.append(
                compute(*(pad_rows(index[start : start + size], size) for index in indices))
            )
        return State.join(chunks).first(n)
