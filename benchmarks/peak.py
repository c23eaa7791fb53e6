"""Peak memory of a call, from torch's own record of allocations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_megabytes(call: Callable[[], Any]) -> float:
    """Peak memory of CPU tensors during a call, in MB (10^6 bytes) above the start.

    Recording slows the call down, so time it separately.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    results = record.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event for event in results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    live = torch.tensor([event.nbytes() for event in changes], dtype=torch.int64).cumsum(0)
    return round(max(live.max().item() if len(live) else 0, 0) / 1e6, 1)
