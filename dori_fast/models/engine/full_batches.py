"""Evaluations in batches of one fixed shape: cut, padded, counted, and halved without memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dori_fast.errors import UsageError
from dori_fast.models.engine.memory import Shrinking, T
from dori_fast.models.engine.state import State
from dori_fast.models.text.conditions import pad_rows


class FullBatches:
    """Runs of a computation on full batches of samples.

    Args:
        size: samples per batch.
        release: function that frees memory when it ran out.
        automatic: True if the size was not chosen by the user.

    Attributes:
        release: the same; another one once the network is opened anew.
        size: samples per batch (the fixed, padded shape).
        automatic: the size that was chosen automatically, or None.
        rows: rows computed so far, padding and repeats after running out of memory included.
        used: sizes of the batches so far; its owner may clear it.
    """

    def __init__(self, size: int, release: Callable[[], None], *, automatic: bool) -> None:
        self._pieces, self.release = Shrinking(size, "batches"), release
        self.size, self.automatic = size, size if automatic else None
        self.rows, self._differentiating = 0, False
        self.used: set[int] = set()
        self._for_gradients: dict[Hashable, int] = {}

    @property
    def size(self) -> int:
        return self._pieces.size

    @size.setter
    def size(self, value: int) -> None:
        if value < 1:
            raise UsageError(f"batch_size must be at least 1, got {value}")
        self._pieces.size = value

    def run(self, compute: Callable[..., State], *indices: Tensor) -> State:
        """``compute`` on full batches of the indices [N], N >= 1; the padding is cut off.

        If memory runs out, this and all later batches are halved, down to one sample. With
        gradients the error is raised instead: the graphs of smaller batches would all be kept
        until the backward pass, so only the graph's owner can use less; see :mod:`.gradients`.
        """
        if torch.is_grad_enabled():
            return self._run(compute, *indices)
        return self.fitted(lambda: self._run(compute, *indices))

    @contextmanager
    def differentiating(self, kind: Hashable, probe: Callable[[], int]) -> Iterator[None]:
        """A context of work with gradients, in batches of a size of its own.

        A size that was chosen automatically is replaced by a smaller one for gradients; any other
        one stays. Within another such context the outer one's size stays. Afterwards the size is
        as before.

        Args:
            kind: kind of work, for which ``probe`` is called once.
            probe: function that returns the size for gradients.
        """
        if self._differentiating:
            yield
            return
        before = self.size
        if before == self.automatic:
            if kind not in self._for_gradients:
                self._for_gradients[kind] = probe()
            self.size = min(before, self._for_gradients[kind])
        self._differentiating = True
        try:
            yield
        finally:
            self.size, self._differentiating = before, False

    def fitted(self, step: Callable[[], T], pieces: Shrinking | None = None) -> T:
        """``step()``, repeated with half the size whenever memory runs out.

        Args:
            step: function as in :meth:`Shrinking.run`.
            pieces: size of its own by which the step cuts its samples; default: that of batches.
        """
        automatic = self.size == self.automatic and not self._differentiating
        try:
            return (pieces or self._pieces).run(step, self.release)
        finally:
            if automatic:
                # nobody chose the smaller size either
                self.automatic = self.size

    def _run(self, compute: Callable[..., State], *indices: Tensor) -> State:
        size, n = self.size, indices[0].shape[0]
        self.used.add(size)
        chunks = []
        for start in range(0, n, size):
            self.rows += size
            chunks.append(
                compute(*(pad_rows(index[start : start + size], size) for index in indices))
            )
        return State.join(chunks).first(n)
