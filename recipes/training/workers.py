"""Data-parallel training on one machine: one thread per worker, one barrier per step.

On a shared machine two single-threaded workers keep their speed. Two threads of one process wait
for each other at every operator and lose more than half of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn


class Exchange:
    """Gradients of all workers in shared memory.

    With two buffers, one barrier per step is enough: a worker is at most one step ahead and then
    writes to the other buffer.
    """

    def __init__(self, workers: int, size: int) -> None:
        self.workers = workers
        self.gradients = torch.zeros(2, workers, size).share_memory_()
        self.progress = torch.zeros(2, dtype=torch.float64).share_memory_()
        self.barrier = mp.get_context("spawn").Barrier(workers)

    def mean(self, rank: int, step: int, flat: Tensor, progress: float) -> tuple[Tensor, float]:
        """The mean gradient, the same bits for every worker, and the progress seen by worker 0."""
        side = step % 2
        self.gradients[side, rank] = flat
        if rank == 0:
            self.progress[side] = progress
        self.barrier.wait()
        return self.gradients[side].mean(dim=0), float(self.progress[side])


def settle(rank: int) -> None:
    """Pins the process to one core and thread; schedulers often put both workers on one core."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})


def flat_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradient of `loss` as one vector; zeros for unused parameters."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]
    return torch.cat([g.flatten() for g in filled])


def set_gradient(flat: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Clips `flat` to norm 1 and writes it to the parameters' `.grad`."""
    flat *= min(1.0, 1.0 / (float(flat.norm()) + 1e-6))
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p)
