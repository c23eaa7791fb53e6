"""Timers for busy machines: CPU time, wall-clock time, events, replayed graphs, and launches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_SHORTEST_SAMPLE = 200e-6
# A call longer than this is warm after one run; more trial runs would cost as much as timing it.
_LONG_CALL = 0.1
_L2_FLUSH_BYTES = 256 * 2**20
# a replay of fewer calls would time its own start; more would take long to record
_FEWEST_COPIES, _MOST_COPIES = 8, 128

Timer = Callable[[Callable[[], object], int], float]


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """CPU seconds per call; other processes on the machine hardly change them."""
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def wall_seconds(call: Callable[[], object], repeats: int) -> float:
    """Wall-clock seconds per call, for more than one thread."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def gpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """GPU seconds per call with a cold L2 cache, measured by events around the call alone."""
    flush = torch.empty(_L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    total = 0.0
    for _ in range(repeats):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        total += start.elapsed_time(end) * 1e-3
    return total / repeats


def graph_seconds(calls: Sequence[Callable[[], object]]) -> Callable[[], float]:
    """A timer of calls that are recorded as one CUDA graph: GPU seconds per call of a replay.

    A replay has no gaps between launches. Together, the calls should read more than the L2 cache
    holds (:func:`rotated`), so that each finds its own inputs in memory.

    Raises:
        RuntimeError: a call waits for the device, which cannot be recorded.
    """
    # in a first run, on a separate stream, libraries choose kernels and allocate workspaces
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()

    def replayed() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / len(calls)

    return replayed


def rotated(inputs: tuple[Any, ...], cache_bytes: int) -> list[tuple[Any, ...]]:
    """Copies of a call's inputs that together are three times as large as a cache.

    The originals come first. Only tensors, and lists and tuples of them, are copied.
    """
    size = sum(x.nbytes for x in tree_leaves(inputs) if isinstance(x, Tensor))
    count = min(_MOST_COPIES, max(_FEWEST_COPIES, math.ceil(3 * cache_bytes / max(size, 1))))

    def copied(x: Any) -> Any:
        return x.clone() if isinstance(x, Tensor) else x

    return [inputs, *(tree_map(copied, inputs) for _ in range(count - 1))]


def enqueue_seconds(call: Callable[[], object], repeats: int) -> float:
    """CPU seconds of launching a call on an idle GPU, without waiting for its end.

    A call that itself waits for the GPU counts with its wait.
    """
    total = 0.0
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        total += time.perf_counter() - start
    torch.cuda.synchronize()
    return total / repeats


def timer_for(device: str, threads: int) -> Timer:
    """The timer for a device; CPU time is meaningful for one thread only."""
    if device == "cuda":
        return gpu_seconds
    return cpu_seconds if threads == 1 else wall_seconds


def metric_of(timer: Timer) -> str:
    """The name of a timer's metric in the rows."""
    return "cpu_time" if timer is cpu_seconds else "time"


def _repeats(call: Callable[[], object]) -> int:
    """Warm up; return the calls per sample that outlast the clock's resolution."""
    call()
    once = wall_seconds(call, 1)
    if once < _LONG_CALL:
        once = min(wall_seconds(call, 1) for _ in range(6))
    return max(1, round(_SHORTEST_SAMPLE / once))


def interleave(
    calls: dict[str, Callable[[], object]], timer: Timer, rounds: int
) -> dict[str, list[float]]:
    """Time all providers in turn, round after round, so that a slow moment hits all of them.

    Each round starts with another provider, so that none always follows the same one.

    Returns:
        Seconds per call, one a round, by provider.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            samples[name].append(timer(calls[name], repeats[name]))
    return samples
